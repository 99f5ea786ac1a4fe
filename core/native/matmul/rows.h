// What a thread works on: rows of the weight, tokens of x, and where results go.
#pragma once

#include "matmul.h"
#include "simd/simd.h"

namespace zoo::ZOO_ISA {

// 32 columns of a token, quantised. A line of the cache, so that one pointer finds everything. x = scale * q, and sum32 is
// that of x; or, where blocks share a scale, x = scale * (q << shift), and sum32 is that of q << shift.
struct ActBlock {
  int8_t q[32];
  float scale, sum32;
  int32_t shift;
  Centres centres;
};
static_assert(sizeof(ActBlock) == 64);

// Blocks of a token that lie side by side: those of a panel of W rows. Then come those of the next token, so that all tokens
// pass by a panel in the order of memory, and behind the last token the next slice.
constexpr int64_t SLICE = 128 / W;

inline int64_t slices(int64_t k) { return (k / 32 + SLICE - 1) / SLICE; }

// In ACT_INT8_128: blocks that have one scale, the largest |q|, which leaves room for a sum of q and a weight in a byte
// (halved.h), and the largest shift, with which no sum of products times a factor overflows.
constexpr int SHARING = 4, MOST_SHARED = 112, MOST_SHIFT = 7;

// A row of float32 activations is padded with zeros, so that weights can be taken 16 columns at a time.
inline int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

// 32 columns of 16 tokens in bfloat16; or of 16 rows of weights, then columns 2 i and 2 i + 1 of row r are at x[i][2 r].
struct alignas(64) Bf16Tile {
  static constexpr int64_t TOKENS = 16;
  uint16_t x[TOKENS][32];
};

struct Tokens {
  const void* act;
  int64_t rows;  // of act
  const int32_t* pick;
  int64_t count, cols;

  int64_t row(int64_t t) const { return pick ? pick[t] : t; }
  // The slice of a token that begins with `block`.
  const ActBlock* int8(int64_t t, int64_t block) const {
    return static_cast<const ActBlock*>(act) + (block / SLICE * rows + row(t)) * SLICE + block % SLICE;
  }
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
