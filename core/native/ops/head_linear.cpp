// One small matrix per head. A head belongs to one thread.
#include "heads.h"

#include <algorithm>

#include "ops.h"

namespace zoo::ZOO_ISA::ops {

Weight matrix_of(const Stack& stack, int64_t n) {
  Weight weight = stack.first;
  weight.data += n * stack.next;
  if (weight.scale) weight.scale += n * stack.next_scale;
  return weight;
}

namespace {

// y[r, at ..] = sum over i of x[r, i] * w[i, at ..] for R rows: in order of i, so a row's bits depend on no other row.
template <int R>
void times_columns(const float* x, int64_t ldx, const float* w, int64_t ldw, int64_t inner, int64_t at, int64_t left,
                   float* y, int64_t ldy) {
  vf total[R] = {};
  for (int64_t i = 0; i < inner; ++i) {
    const vf column = load(w + i * ldw + at);
    for (int r = 0; r < R; ++r) total[r] += x[r * ldx + i] * column;
  }
  for (int r = 0; r < R; ++r) store_part(y + r * ldy + at, total[r], left);
}

}  // namespace

size_t head_scratch(const Weight& weight, int64_t m, bool transposed) {
  if (transposed) return static_cast<size_t>(weight.rows * padded(weight.cols)) * 4;
  const int kind = matmul_kernels.activation_kind(weight.type);
  return aligned(matmul_kernels.activation_bytes(kind, m, weight.cols)) + matmul_kernels.matmul_scratch(&weight, kind, m, 1);
}

void head_product(const Weight& weight, bool transposed, const float* x, int64_t ldx, int64_t m, float* y, int64_t ldy,
                  char* scratch) {
  if (!transposed) {
    const int kind = matmul_kernels.activation_kind(weight.type);
    matmul_kernels.quantize(kind, x, ldx, m, weight.cols, scratch, 0, 1);
    char* rest = scratch + aligned(matmul_kernels.activation_bytes(kind, m, weight.cols));
    matmul_kernels.matmul(&weight, kind, scratch, m, nullptr, m, y, ldy, nullptr, rest, 0, 1);
    return;
  }
  float* dense = reinterpret_cast<float*>(scratch);
  const int64_t ld = padded(weight.cols);
  for (int64_t i = 0; i < weight.rows; ++i) {
    float* row = dense + i * ld;
    matmul_kernels.read_row(&weight, i, row);
    if (weight.type == FP8_E4M3)
      for (int64_t j = 0; j < weight.cols; ++j)
        row[j] *= weight.scale[i / weight.block_rows * weight.scale_stride + j / weight.block_cols];
    for (int64_t j = weight.cols; j < ld; ++j) row[j] = 0;
  }
  for (int64_t at = 0; at < weight.cols; at += VL) {
    int64_t t = 0;
    for (; t + 4 <= m; t += 4)
      times_columns<4>(x + t * ldx, ldx, dense, ld, weight.rows, at, weight.cols - at, y + t * ldy, ldy);
    for (; t < m; ++t) times_columns<1>(x + t * ldx, ldx, dense, ld, weight.rows, at, weight.cols - at, y + t * ldy, ldy);
  }
}

namespace {

bool prepare(const HeadLinear& op, int, Scratch& scratch) {
  if (matmul_kernels.activation_kind(op.stack.first.type) < 0) return false;
  scratch.local = head_scratch(op.stack.first, op.tokens, op.transposed);
  return true;
}

void run(const HeadLinear& op, Worker& worker) {
  const int64_t out = op.transposed ? op.stack.first.cols : op.stack.first.rows;
  for (int64_t n = worker.next(); n < op.heads; n = worker.next())
    head_product(matrix_of(op.stack, n), op.transposed, op.x + n * op.x_head, op.x_token, op.tokens, op.y + n * out,
                 op.heads * out, worker.local);
}

}  // namespace

const OpKernel head_linear_op = op_kernel<HeadLinear, prepare, run>();

}  // namespace zoo::ZOO_ISA::ops
