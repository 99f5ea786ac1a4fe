// Rows of a table by token id, and the angles of rotary positions: what a step begins with.
#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

bool prepare(const Embedding& op, int, Scratch&) {
  return op.table.type != FP8_E4M3 && matmul_kernels.activation_kind(op.table.type) >= 0;
}

void run(const Embedding& op, Worker& worker) {
  const Range mine = share(op.count, worker.ith, worker.nth);
  const int64_t cols = op.table.cols;
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    float* y = op.y + t * cols;
    matmul_kernels.read_row(&op.table, op.ids[t], y);
    if (op.scale == 1.0f) continue;
    for (int64_t i = 0; i < cols; ++i) y[i] *= op.scale;
  }
}

void run_rotary(const RotaryOp& op, Worker& worker) {
  const Range mine = share(op.count, worker.ith, worker.nth);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    const float position = static_cast<float>(op.positions[t]);
    for (int64_t i = 0; i < op.half; ++i) {
      const float angle = position * op.inv_freq[i];
      op.cos[t * op.half + i] = std::cos(angle) * op.scaling;
      op.sin[t * op.half + i] = std::sin(angle) * op.scaling;
    }
  }
}

}  // namespace

const OpKernel embedding_op = op_kernel<Embedding, prepare, run>();
const OpKernel rotary_op = op_kernel<RotaryOp, needs_nothing<RotaryOp>, run_rotary>();

}  // namespace zoo::ZOO_ISA::ops
