#include "formats_256.h"

namespace zoo::ZOO_ISA {

const TypeKernel* integer_256_kernel(int32_t type) {
  switch (type) {
    case Q2_K: return &INTEGER_KERNEL<FormatQ2_K>;
    case Q3_K: return &INTEGER_KERNEL<FormatQ3_K>;
    case Q4_K: return &INTEGER_KERNEL<FormatQ4_K>;
    case Q5_K: return &INTEGER_KERNEL<FormatQ5_K>;
    case Q6_K: return &INTEGER_KERNEL<FormatQ6_K>;
    case IQ4_XS: return &INTEGER_KERNEL<FormatIQ4_XS>;
    default: return nullptr;
  }
}

}  // namespace zoo::ZOO_ISA
