#include "formats_32.h"

namespace zoo::ZOO_ISA {

const TypeKernel* integer_32_kernel(int32_t type) {
  switch (type) {
    case Q4_0: return &INTEGER_KERNEL<FormatQ4_0>;
    case Q4_1: return &INTEGER_KERNEL<FormatQ4_1>;
    case Q5_0: return &INTEGER_KERNEL<FormatQ5_0>;
    case Q5_1: return &INTEGER_KERNEL<FormatQ5_1>;
    case Q8_0: return &INTEGER_KERNEL<FormatQ8_0>;
    case IQ4_NL: return &INTEGER_KERNEL<FormatIQ4_NL>;
    case MXFP4: return &INTEGER_KERNEL<FormatMXFP4>;
    default: return nullptr;
  }
}

}  // namespace zoo::ZOO_ISA
