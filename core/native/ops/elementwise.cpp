// Sums, gates and activations.
#include "linear.h"
#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

vf apply(const Elementwise& op, vf a, vf b) {
  switch (op.what) {
    case ADD: return a + b;
    case POSITION_SCALE: return a * b;
    case GATE: return a * sigmoid(b);
    case SOFTCAP: return op.value * tanh(a * (1.0f / op.value));
    default: return activation(op.act, a);
  }
}

float position_scale(const Elementwise& op, int64_t row) {
  const int64_t position = static_cast<const int32_t*>(op.b)[row];
  return 1.0f + op.value * std::log1p(static_cast<float>(position / op.length));
}

void run(const Elementwise& op, Worker& worker) {
  const int64_t pieces = (op.cols + PIECE - 1) / PIECE;
  const Range mine = share(op.rows * pieces, worker.ith, worker.nth);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t row = item / pieces, begin = item % pieces * PIECE;
    const int64_t end = begin + PIECE < op.cols ? begin + PIECE : op.cols;
    const float* a = op.a + row * op.lda;
    const float* b = op.b && op.what != POSITION_SCALE ? static_cast<const float*>(op.b) + row * op.ldb : nullptr;
    const vf one = op.what == POSITION_SCALE ? splat(position_scale(op, row)) : b && op.b_cols == 1 ? splat(*b) : vf{};
    const bool wide = b && op.b_cols != 1;
    for (int64_t i = begin; i < end; i += VL) {
      const vf second = wide ? load_part(b + i, end - i) : one;
      store_part(op.y + row * op.cols + i, apply(op, load_part(a + i, end - i), second), end - i);
    }
  }
}

}  // namespace

const OpKernel elementwise_op = op_kernel<Elementwise, needs_nothing<Elementwise>, run>();

}  // namespace zoo::ZOO_ISA::ops
