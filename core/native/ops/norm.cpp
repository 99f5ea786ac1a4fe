// Root-mean-square norm and layer norm, a row at a time.
#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

// The row plus what is to be added, into y and, where wanted, into sum.
void gather_row(const Norm& op, int64_t row) {
  const float* x = op.x + row * op.ldx;
  const float* add = op.add ? op.add + row * op.ld_add : nullptr;
  float* y = op.y + row * op.cols;
  for (int64_t i = 0; i < op.cols; i += VL) {
    vf v = load_part(x + i, op.cols - i);
    if (add) {
      v += load_part(add + i, op.cols - i);
      store_part(op.sum + row * op.cols + i, v, op.cols - i);
    }
    store_part(y + i, v, op.cols - i);
  }
}

void run_rms(const Norm& op, Worker& worker) {
  const Range mine = share(op.rows, worker.ith, worker.nth);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    gather_row(op, row);
    float* y = op.y + row * op.cols;
    vf squares = {};
    for (int64_t i = 0; i < op.cols; i += VL) {
      const vf v = load_part(y + i, op.cols - i);
      squares += v * v;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(op.cols) + op.eps);
    for (int64_t i = 0; i < op.cols; i += VL) {
      vf v = load_part(y + i, op.cols - i) * factor;
      if (op.weight) v *= load_any(op.type, op.weight, i, op.cols - i) + op.offset;
      store_part(y + i, v, op.cols - i);
    }
  }
}

void run_layer(const Norm& op, Worker& worker) {
  const Range mine = share(op.rows, worker.ith, worker.nth);
  const float size = static_cast<float>(op.cols);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    gather_row(op, row);
    float* y = op.y + row * op.cols;
    vf total = {}, squares = {};
    for (int64_t i = 0; i < op.cols; i += VL) total += load_part(y + i, op.cols - i);
    const float mean = sum(total) / size;
    for (int64_t i = 0; i < op.cols; i += VL) {
      const int64_t left = op.cols - i;
      const vf v = load_part(y + i, left) - mean;
      store_part(y + i, v, left);
      const vf kept = load_part(y + i, left);  // the lanes beyond the row are 0, not -mean
      squares += kept * kept;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / size + op.eps);
    for (int64_t i = 0; i < op.cols; i += VL) {
      const int64_t left = op.cols - i;
      vf v = load_part(y + i, left) * factor;
      if (op.weight) v *= load_any(op.type, op.weight, i, left);
      if (op.bias) v += load_any(op.type, op.bias, i, left);
      store_part(y + i, v, left);
    }
  }
}

}  // namespace

const OpKernel rms_norm_op = op_kernel<Norm, needs_nothing<Norm>, run_rms>();
const OpKernel layer_norm_op = op_kernel<Norm, needs_nothing<Norm>, run_layer>();

}  // namespace zoo::ZOO_ISA::ops
