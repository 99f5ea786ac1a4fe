// What the sources of this folder offer each other, per instruction set.
#pragma once

#include "rows.h"

namespace zoo::ZOO_ISA {

// Where a block's elements are not words but `width` bytes: its bytes [from, to). See layout.h.
struct Narrow {
  int from, to, width;
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
  Narrow narrow;    // of types that can be packed: those of ACT_INT8
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
