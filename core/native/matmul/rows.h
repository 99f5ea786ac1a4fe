// What a thread works on: rows of the weight, tokens of x, and where results go.
#pragma once

#include "matmul.h"
#include "simd/simd.h"

namespace zoo::ZOO_ISA {

// 32 columns of a token, quantised: x = scale * q. A line of the cache, so that one pointer finds everything.
// sum32 and sum16 are those of scale * q. centre32 and centre16 take 16 off the weights of 32 columns, and 32 off those of
// 16: minus 16 (32) times the integer sum of q over columns 4 j, 4 j + 1, and the same over 4 j + 2, 4 j + 3.
struct ActBlock {
  int8_t q[32];
  float scale, sum32, sum16[2];
  int16_t centre32[2], centre16[4];
  int32_t unused;
};
static_assert(sizeof(ActBlock) == 64);

// A row of float32 activations is padded with zeros, so that weights can be taken 16 columns at a time.
inline int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

#ifdef __AMX_BF16__
constexpr ActivationKind PROMPTS = ACT_BF16;
#else
constexpr ActivationKind PROMPTS = ACT_INT8;
#endif

// 32 columns of 16 tokens in bfloat16; or of 16 rows of weights, then columns 2 i and 2 i + 1 of row r are at x[i][2 r].
struct alignas(64) Bf16Tile {
  static constexpr int64_t TOKENS = 16;
  uint16_t x[TOKENS][32];
};

struct Tokens {
  const void* act;
  const int32_t* pick;
  int64_t count, cols;

  int64_t row(int64_t t) const { return pick ? pick[t] : t; }
  const ActBlock* int8(int64_t t) const { return static_cast<const ActBlock*>(act) + row(t) * (cols / 32); }
  const float* float32(int64_t t) const { return static_cast<const float*>(act) + row(t) * padded(cols); }
  // Tiles of the tokens from t on, a multiple of 16: the one of columns 32 b is at b.
  const Bf16Tile* bf16(int64_t t) const { return static_cast<const Bf16Tile*>(act) + t / Bf16Tile::TOKENS * (cols / 32); }
};

// W rows from `data` on, of which lanes [lane, lane + count) are results: rows [row, row + count).
struct RowTile {
  const uint8_t* data;
  ptrdiff_t stride;
  int64_t start, row;
  int lane, count;
};

// The rows of one thread, in tiles of W. The last tile of a raw matrix ends at its last row, so that it never reads past
// the end; a raw matrix of fewer than W rows goes row by row, each in all lanes.
struct Rows {
  const Weight& weight;
  int step;  // rows per tile
  int64_t low, high;

  // Threads share the rows in multiples of `multiple` tiles.
  Rows(const Weight& w, int multiple, int ith, int nth) : weight(w), step(w.rows < W && !w.packed ? 1 : W) {
    const int64_t size = int64_t{multiple} * step, parts = (w.rows + size - 1) / size;
    low = parts * ith / nth * size;
    high = parts * (ith + 1) / nth * size;
    if (high > w.rows) high = w.rows;
  }

  RowTile tile(int64_t row) const {
    const int64_t last = weight.packed ? (weight.rows - 1) / W * W : weight.rows - step;
    const int64_t start = row < last ? row : last;
    const int64_t left = high - row;
    return {weight.data + start * weight.row_bytes, step == 1 ? 0 : weight.row_bytes, start, row,
            left > 0 ? static_cast<int>(row - start) : 0,
            left <= 0 ? 0 : left < step ? static_cast<int>(left) : step};
  }
};

struct Output {
  float* y;
  int64_t ldy;
  const float* bias;

  // sums: the W lanes of a tile.
  ZOO_INLINE void write(int64_t token, const RowTile& tile, const float* sums) const {
    if (tile.count == W) {
      const VF whole = load_f(sums);
      // times one, for vectors have no sum of floats: it rounds as the sum does
      store_f(y + token * ldy + tile.row, bias ? fma(load_f(bias + tile.row), constant(1), whole) : whole);
    } else {
      write_part(token, tile, sums);
    }
  }

 private:
  __attribute__((noinline)) void write_part(int64_t token, const RowTile& tile, const float* sums) const {
    float* out = y + token * ldy + tile.row;
    for (int i = 0; i < tile.count; i++) out[i] = sums[tile.lane + i] + (bias ? bias[tile.row + i] : 0.0f);
  }
};

}  // namespace zoo::ZOO_ISA
