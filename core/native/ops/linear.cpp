// Weights on a shared input: quantise the input once per kind, then multiply. The gated linear unit adds the activation.
#include "linear.h"

#include <algorithm>

#include "ops.h"

namespace zoo::ZOO_ISA::ops {

bool Products::plan(const Part* parts, int count, int64_t m, int64_t prompt) {
  bytes = local = 0;
  for (Range& range : rows) range = {0, 0};
  for (int i = 0; i < count; ++i) {
    const int kind = matmul_kernels.activation_kind(parts[i].weight.type);
    if (kind < 0) return false;
    const int of_prompts = matmul_kernels.prompt_kind(parts[i].weight.type);
    want(parts[i], kind, {0, of_prompts == kind ? m : prompt});
    if (of_prompts != kind) want(parts[i], of_prompts, {prompt, m});
  }
  for (int kind = 0; kind < KINDS; ++kind) {
    act[kind] = bytes;
    bytes += aligned(matmul_kernels.activation_bytes(kind, rows[kind].end - rows[kind].begin, parts[0].weight.cols));
  }
  return true;
}

void Products::want(const Part& part, int kind, Range wanted) {
  if (wanted.begin == wanted.end) return;
  rows[kind] = wanted;
  local = std::max(local, matmul_kernels.matmul_scratch(&part.weight, kind, wanted.end - wanted.begin, 1));
}

void Products::quantize(const float* x, int64_t ldx, int64_t k, char* base, const Worker& worker) const {
  for (int kind = 0; kind < KINDS; ++kind) {
    const Range& mine = rows[kind];
    matmul_kernels.quantize(kind, x + mine.begin * ldx, ldx, mine.end - mine.begin, k, base + act[kind], worker.ith, worker.nth);
  }
}

void Products::multiply(const Part* parts, int count, char* base, const Worker& worker) const {
  for (int i = 0; i < count; ++i) {
    const Part& part = parts[i];
    const int own = matmul_kernels.activation_kind(part.weight.type);
    const int of_prompts = matmul_kernels.prompt_kind(part.weight.type);
    for (int kind = 0; kind < KINDS; ++kind) {
      const Range& mine = rows[kind];
      if (kind != own && kind != of_prompts) continue;
      const int64_t m = mine.end - mine.begin;
      product(part.weight, kind, base + act[kind], m, nullptr, m, part.y + mine.begin * part.ldy, part.ldy, part.bias, worker);
    }
  }
}

void product(const Weight& weight, int kind, const void* act, int64_t act_rows, const int32_t* pick, int64_t m, float* y,
             int64_t ldy, const float* bias, const Worker& worker) {
  // A thread's part of the scratch begins at its number times the size of one: laid so that it falls on its own memory,
  // threads may be at different products.
  char* scratch = worker.local - matmul_kernels.matmul_scratch(&weight, kind, m, 1) * static_cast<size_t>(worker.ith);
  matmul_kernels.matmul(&weight, kind, act, act_rows, pick, m, y, ldy, bias, scratch, worker.ith, worker.nth);
}

namespace {

bool prepare_linear(const Linear& op, int, Scratch& scratch) {
  Products products;
  if (!products.plan(op.parts, op.count, op.m, op.prompt)) return false;
  scratch.shared = products.bytes;
  scratch.local = products.local;
  return true;
}

void run_linear(const Linear& op, Worker& worker) {
  Products products;
  products.plan(op.parts, op.count, op.m, op.prompt);
  products.quantize(op.x, op.ldx, op.parts[0].weight.cols, worker.shared, worker);
  worker.barrier();
  products.multiply(op.parts, op.count, worker.shared, worker);
}

// The two products lie behind the scratch of the matmuls.
bool prepare_glu(const Glu& op, int, Scratch& scratch) {
  Products products;
  if (!products.plan(op.parts, 2, op.m, op.prompt)) return false;
  scratch.shared = products.bytes + aligned(op.m * op.parts[0].weight.rows * 4);
  scratch.local = products.local;
  return true;
}

void run_glu(const Glu& op, Worker& worker) {
  Products products;
  products.plan(op.parts, 2, op.m, op.prompt);
  const int64_t width = op.parts[0].weight.rows;
  float* up = reinterpret_cast<float*>(worker.shared + products.bytes);
  Part parts[2] = {op.parts[0], op.parts[1]};
  parts[0].y = op.y;
  parts[0].ldy = op.ldy;
  parts[1].y = up;
  parts[1].ldy = width;
  products.quantize(op.x, op.ldx, parts[0].weight.cols, worker.shared, worker);
  worker.barrier();
  products.multiply(parts, 2, worker.shared, worker);
  worker.barrier();
  activate_and_multiply(op.act, op.y, op.ldy, up, width, op.m, width, worker);
}

}  // namespace

void activate_and_multiply(int32_t act, float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                           int64_t cols, const Worker& worker) {
  const int64_t pieces = (cols + PIECE - 1) / PIECE;
  const Range mine = share(rows * pieces, worker.ith, worker.nth);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    float* g = gate + item / pieces * ld_gate;
    const float* u = up + item / pieces * ld_up;
    const int64_t begin = item % pieces * PIECE, end = begin + PIECE < cols ? begin + PIECE : cols;
    for (int64_t i = begin; i < end; i += VL)
      store_part(g + i, activation(act, load_part(g + i, end - i)) * load_part(u + i, end - i), end - i);
  }
}

const OpKernel linear_op = op_kernel<Linear, prepare_linear, run_linear>();
const OpKernel glu_op = op_kernel<Glu, prepare_glu, run_glu>();

}  // namespace zoo::ZOO_ISA::ops
