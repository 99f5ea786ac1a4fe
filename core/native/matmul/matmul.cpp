// The table of this folder for one instruction set.
#include "dispatch.h"

namespace zoo::ZOO_ISA {
namespace {

const TypeKernel* find(const Weight& weight) {
  if (const TypeKernel* found = integer_32_kernel(weight.type)) return found;
  if (const TypeKernel* found = integer_256_kernel(weight.type)) return found;
  return dense_kernel(weight);
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

const TypeKernel* find(int32_t type) {
  Weight weight{};
  weight.type = type;
  return find(weight);
}

int activation_kind(int32_t type) {
  const TypeKernel* kernel = find(type);
  return kernel ? kernel->kind : -1;
}

int prompt_kind(int32_t type) {
  const TypeKernel* kernel = find(type);
  return kernel && kernel->prompt.multiply ? ACT_BF16 : activation_kind(type);
}

const Product& product_of(const TypeKernel& kernel, int kind) { return kind == kernel.kind ? kernel.product : kernel.prompt; }

size_t matmul_scratch(const Weight* weight, int kind, int64_t m, int nth) {
  const TypeKernel* kernel = find(*weight);
  return kernel ? aligned(product_of(*kernel, kind).scratch(*weight, m)) * static_cast<size_t>(nth) : 0;
}

void matmul(const Weight* weight, int kind, const void* act, int64_t act_rows, const int32_t* pick, int64_t m, float* y,
            int64_t ldy, const float* bias, void* scratch, int ith, int nth) {
  const TypeKernel* kernel = find(*weight);
  if (kernel == nullptr || m < 1) return;
  const Product& product = product_of(*kernel, kind);
  uint8_t* part = static_cast<uint8_t*>(scratch) + aligned(product.scratch(*weight, m)) * static_cast<size_t>(ith);
  const Tokens tokens{act, act_rows, pick, m, weight->cols};
  product.multiply(*weight, tokens, Output{y, ldy, bias}, part, ith, nth);
}

}  // namespace

extern const MatmulKernels matmul_kernels;
const MatmulKernels matmul_kernels = {activation_kind, prompt_kind, activation_bytes, quantize, matmul,
                                      matmul_scratch,  unpack_row,  tile_rows,        pack,     read_row};

}  // namespace zoo::ZOO_ISA
