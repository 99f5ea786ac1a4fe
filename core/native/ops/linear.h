#pragma once

#include "kernels.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

constexpr int KINDS = 4;
constexpr int64_t PIECE = 256;  // columns of a row that one thread takes

// A thread's share of y = x W^T, its scratch at the beginning of worker.local.
void product(const Weight& weight, int kind, const void* act, int64_t act_rows, const int32_t* pick, int64_t m, float* y,
             int64_t ldy, const float* bias, const Worker& worker);

// Several products on one input: which of its rows are needed quantised in which kind, and where they lie in shared memory.
struct Products {
  Range rows[KINDS];
  size_t act[KINDS];  // offset
  size_t bytes;       // of all inputs
  size_t local;       // scratch of a thread

  // Rows from `prompt` on belong to prompts.
  bool plan(const Part* parts, int count, int64_t m, int64_t prompt);
  void quantize(const float* x, int64_t ldx, int64_t k, char* base, const Worker& worker) const;
  void multiply(const Part* parts, int count, char* base, const Worker& worker) const;

 private:
  void want(const Part& part, int kind, Range wanted);
};

// gate = act(gate) * up, a thread's share.
void activate_and_multiply(int32_t act, float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                           int64_t cols, const Worker& worker);

}  // namespace zoo::ZOO_ISA::ops
