#pragma once

#include "kernels.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

inline int64_t padded(int64_t n) { return (n + VL - 1) / VL * VL; }

Weight matrix_of(const Stack& stack, int64_t n);

// y [m, out] = x [m, in] W^T, or x W where `transposed`, on one thread with head_scratch bytes.
void head_product(const Weight& weight, bool transposed, const float* x, int64_t ldx, int64_t m, float* y, int64_t ldy,
                  char* scratch);
size_t head_scratch(const Weight& weight, int64_t m, bool transposed);

}  // namespace zoo::ZOO_ISA::ops
