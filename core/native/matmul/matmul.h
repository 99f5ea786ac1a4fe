// Matrix products with packed weights: y[t, r] = sum over k of x[t, k] * w[r, k] + bias[r].
//
// The interface of this folder. Every function is pure: no allocation, no locks, no global state. Work is divided by
// (ith, nth): all threads make the same call with their own ith, and a barrier must lie between `quantize` and `matmul`.
// A row of y has the same bits whatever the number of threads, the other rows, and their number. They depend on the kind
// in which x is stored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zoo {

// Numbers of GGUF files, plus one of our own.
enum Type : int32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
  Q6_K = 14, Q8_K = 15, IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22,
  IQ4_XS = 23, IQ1_M = 29, BF16 = 30, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39, NVFP4 = 40, Q1_0 = 41, Q2_0 = 42,
  FP8_E4M3 = 1000,
};

// A matrix [rows, cols] as it lies in a file; `data` may have any alignment. Rows are `row_bytes` apart.
// `packed`: in tiles of tile_rows(type) rows instead, each as large as its rows; the last one is filled up with zeros.
// FP8_E4M3 has a float32 scale per block_rows x block_cols, rows of scales `scale_stride` floats apart.
struct Weight {
  int32_t type, packed;
  int64_t rows, cols;
  const uint8_t* data;
  int64_t row_bytes;
  const float* scale;
  int64_t scale_stride;
  int32_t block_rows, block_cols;
};

// How x is stored for the product. Weights of the same kind share one quantised x.
enum ActivationKind : int {
  ACT_F32 = 0,   // float32 rows, padded with zeros to a multiple of 16: dense and table types
  ACT_INT8 = 1,  // int8 with a float32 scale per 32 elements, and scaled sums per 32 and per 16: types with blocks of 32
  ACT_BF16 = 2,  // bfloat16 in tiles of 16 rows and 32 columns: the int8 types in prompts, where that is faster
  ACT_INT8_128 = 3,  // int8 with a float32 scale per 128 elements and a shift per 32: types with blocks of 256
};

struct MatmulKernels {
  // ACT_* of a weight type, -1 for a type without a kernel; the same for tokens of a prompt.
  int (*activation_kind)(int32_t type);
  int (*prompt_kind)(int32_t type);
  // Bytes of m quantised rows of k elements; `act` must be aligned to 64 bytes.
  size_t (*activation_bytes)(int kind, int64_t m, int64_t k);
  // x [m, k], rows ldx floats apart -> act. k is a multiple of 32 for ACT_INT8 and ACT_BF16, of 128 for ACT_INT8_128.
  void (*quantize)(int kind, const float* x, int64_t ldx, int64_t m, int64_t k, void* act, int ith, int nth);
  // y [m, rows], rows ldy floats apart. `kind` of act: activation_kind of the weight, or prompt_kind. Output row t uses row
  // pick[t] of act, or row t where pick is null, as it must be for ACT_BF16: the tokens of an expert. `scratch` holds
  // matmul_scratch bytes for all threads together, aligned to 64.
  void (*matmul)(const Weight* weight, int kind, const void* act, int64_t act_rows, const int32_t* pick, int64_t m, float* y,
                 int64_t ldy, const float* bias_or_null, void* scratch, int ith, int nth);
  size_t (*matmul_scratch)(const Weight* weight, int kind, int64_t m, int nth);
  // n elements of a row of any type (FP8 without its scales), bit-equal to zoo.quant.dequant. 0, or -1: unknown type.
  int (*unpack_row)(int32_t type, const uint8_t* row, float* out, int64_t n);
  // Rows of a packed tile; 0 for a type that cannot be packed.
  int (*tile_rows)(int32_t type);
  // A raw matrix -> packed. A part of one can be packed that begins with a tile.
  void (*pack)(const Weight* weight, uint8_t* out, int ith, int nth);
  // As unpack_row, for a row of a matrix in either layout.
  int (*read_row)(const Weight* weight, int64_t row, float* out);
};

}  // namespace zoo
