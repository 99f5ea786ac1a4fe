#pragma once

#include "kernels.h"

namespace zoo::ZOO_ISA::ops {

constexpr int KINDS = 4;
constexpr int64_t PIECE = 256;  // columns of a row that one thread takes

// A thread's share of y = x W^T, its scratch at the beginning of worker.local.
void product(const Weight& weight, const void* act, const int32_t* pick, int64_t m, float* y, int64_t ldy,
             const float* bias, const Worker& worker);

// Where the quantised inputs of several products on one input lie in shared memory.
struct Products {
  size_t act[KINDS];  // 1 + offset of the input of a kind, 0: nobody needs it
  size_t bytes;       // of all inputs
  size_t local;       // scratch of a thread

  bool plan(const Part* parts, int count, int64_t m);
  void quantize(const float* x, int64_t ldx, int64_t m, int64_t k, char* base, const Worker& worker) const;
  void multiply(const Part* parts, int count, int64_t m, char* base, const Worker& worker) const;
};

// gate = act(gate) * up, a thread's share.
void activate_and_multiply(int32_t act, float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                           int64_t cols, const Worker& worker);

}  // namespace zoo::ZOO_ISA::ops
