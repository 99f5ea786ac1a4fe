// What the sources of this folder offer each other, per instruction set.
#pragma once

#include "rows.h"

namespace zoo::ZOO_ISA {

// Bytes [from, to) of a block, elements of `width` bytes. From `with` on there are as many: one of each in turn.
struct Run {
  int from = 0, to = 0, width = 4, with = -1;
};

// All bytes of a block in the order in which its elements are read, which is how they lie in packed rows (layout.h): then
// memory is read from one end to the other, as prefetchers foresee it. A single scale goes where it keeps vectors on lines.
struct Order {
  Run runs[6];

  // Where byte `at` of a block goes.
  constexpr int place(int at) const {
    int start = 0;
    for (const Run& run : runs) {
      const int bytes = run.to - run.from;
      if (run.with < 0) {
        if (run.from <= at && at < run.to) return start + at - run.from;
        start += bytes;
        continue;
      }
      const int first = at - run.from, second = at - run.with, width = run.width;
      if (0 <= first && first < bytes) return start + first / width * 2 * width + first % width;
      if (0 <= second && second < bytes) return start + second / width * 2 * width + width + second % width;
      start += 2 * bytes;
    }
    return -1;
  }
};

struct Product {
  size_t (*scratch)(const Weight& weight, int64_t m);  // bytes per thread
  void (*multiply)(const Weight& weight, const Tokens& tokens, const Output& y, uint8_t* scratch, int ith, int nth);
};

// How a weight type is multiplied.
struct TypeKernel {
  ActivationKind kind;
  Product product;  // with activations of that kind
  Product prompt;   // with ACT_BF16, where prompts have it
  Order order;      // of types that can be packed: those of int8
};

// null: no kernel for this weight here.
const TypeKernel* integer_32_kernel(int32_t type);
const TypeKernel* integer_256_kernel(int32_t type);
const TypeKernel* dense_kernel(const Weight& weight);

void quantize(int kind, const float* x, int64_t ldx, int64_t m, int64_t k, void* act, int ith, int nth);
size_t activation_bytes(int kind, int64_t m, int64_t k);

// Blocks of a type, and how to unpack one.
struct BlockType {
  int columns, bytes;
  void (*unpack)(const uint8_t* block, float* out);
};
const BlockType* block_type(int32_t type);  // null: unknown
int unpack_row(int32_t type, const uint8_t* row, float* out, int64_t n);

int tile_rows(int32_t type);
void pack(const Weight* weight, uint8_t* out, int ith, int nth);
int read_row(const Weight* weight, int64_t row, float* out);

}  // namespace zoo::ZOO_ISA
