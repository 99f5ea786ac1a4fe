// Products in float32: dense weights, and packed types without a kernel of their own, which are unpacked row by row.
//
// As with integers, one token takes weights straight from the registers and more go over a panel in the cache; an element
// of y is one chain of fused multiply-adds over the columns either way.
#include "formats_dense.h"

#include "dispatch.h"

namespace zoo::ZOO_ISA {
namespace {

constexpr int64_t PANEL_COLUMNS = 256;  // 16 KB of 16 rows
constexpr int GROUPS_OF_ONE = 4;        // row groups at once for one token: chains that hide each other's latency
constexpr int WIDTH = ROW_GROUPS * W;

// Scales of W rows at a column; 2^8 is what DenseFP8 leaves to them.
VF scales_at(const Weight& weight, const RowTile& tile, int64_t column) {
  alignas(64) float lanes[W];
  for (int i = 0; i < W; i++) {
    const int64_t row = tile.start + (tile.stride ? i : 0);
    lanes[i] = weight.scale[row / weight.block_rows * weight.scale_stride + column / weight.block_cols] * 256.0f;
  }
  return load_f(lanes);
}

// Columns [from, from + count) of a tile through `emit(column, VF)`, count <= 16 bytes' worth: the end of a row.
template <class F, class Emit>
ZOO_INLINE void unpack_end(const uint8_t* data, ptrdiff_t stride, int64_t count, VF scale, Emit&& emit) {
  alignas(64) uint8_t copy[W][16] = {};
  for (int i = 0; i < W; i++) {
    __builtin_memcpy(copy[i], data + i * stride, static_cast<size_t>(count * 16 / F::COLUMNS));
  }
  F::unpack(RowCursor(copy[0], 16), scale, emit);
}

template <class F>
void dense_one(const Weight& weight, const Tokens& tokens, const Output& y, int ith, int nth) {
  const Rows rows(weight, GROUPS_OF_ONE, ith, nth);
  const float* x = tokens.float32(0);
  const int64_t whole = weight.cols / F::COLUMNS * F::COLUMNS;
  constexpr bool SCALED = F::COLUMNS == 16;
  for (int64_t row = rows.low; row < rows.high; row += GROUPS_OF_ONE * rows.step) {
    VF sums[GROUPS_OF_ONE];
    const RowTile tiles[GROUPS_OF_ONE] = {rows.tile(row), rows.tile(row + rows.step), rows.tile(row + 2 * rows.step),
                                          rows.tile(row + 3 * rows.step)};
    repeat<GROUPS_OF_ONE>([&](auto g) ZOO_INLINE_LAMBDA { sums[g] = constant(0); });
    const uint8_t* next = rows.tile(row + GROUPS_OF_ONE * rows.step).data;
    VF scale[GROUPS_OF_ONE];
    repeat<GROUPS_OF_ONE>([&](auto g) ZOO_INLINE_LAMBDA { scale[g] = constant(1); });
    for (int64_t k = 0; k < weight.cols; k += F::COLUMNS) {
      if (SCALED && k % weight.block_cols == 0) {
        repeat<GROUPS_OF_ONE>([&](auto g) ZOO_INLINE_LAMBDA { scale[g] = scales_at(weight, tiles[g], k); });
      }
      repeat<GROUPS_OF_ONE * W / 4>([&](auto line) ZOO_INLINE_LAMBDA { __builtin_prefetch(next + 64 * line, 0, 2); });
      next += GROUPS_OF_ONE * W * 16;
      const int64_t at = k / F::COLUMNS * 16;
      repeat<GROUPS_OF_ONE>([&](auto g) ZOO_INLINE_LAMBDA {
        const auto accumulate = [&](auto i, VF w) ZOO_INLINE_LAMBDA { sums[g] = fma(w, splat(x + k + i), sums[g]); };
        if (k < whole) {
          F::unpack(RowCursor(tiles[g].data + at, tiles[g].stride), scale[g], accumulate);
        } else {
          unpack_end<F>(tiles[g].data + at, tiles[g].stride, weight.cols - k, scale[g], accumulate);
        }
      });
    }
    repeat<GROUPS_OF_ONE>([&](auto g) ZOO_INLINE_LAMBDA {
      alignas(64) float lanes[W];
      store_f(lanes, sums[g]);
      y.write(0, tiles[g], lanes);
    });
  }
}

// Fills column k of a panel with `stride` floats between columns: a dense type.
template <class F>
void fill_dense(const Weight& weight, const RowTile& tile, int64_t from, int64_t count, float* panel, float*) {
  VF scale = constant(1);
  for (int64_t k = from; k < from + count; k += F::COLUMNS) {
    if (F::COLUMNS == 16 && (k == from || k % weight.block_cols == 0)) scale = scales_at(weight, tile, k);
    const uint8_t* data = tile.data + k / F::COLUMNS * 16;
    const auto keep = [&](auto i, VF w) ZOO_INLINE_LAMBDA { store_f(panel + (k - from + i) * WIDTH, w); };
    if (k + F::COLUMNS <= weight.cols) {
      F::unpack(RowCursor(data, tile.stride), scale, keep);
    } else {
      unpack_end<F>(data, tile.stride, weight.cols - k, scale, keep);
    }
  }
}

// The same by unpack_row, through `rows` [W][PANEL_COLUMNS]: any type.
void fill_any(const Weight& weight, const RowTile& tile, int64_t from, int64_t count, float* panel, float* rows) {
  const BlockType& block = *block_type(weight.type);
  for (int lane = 0; lane < W; lane++) {
    float* out = rows + lane * PANEL_COLUMNS;
    if (lane > 0 && tile.stride == 0) {
      __builtin_memcpy(out, rows, static_cast<size_t>(PANEL_COLUMNS) * sizeof(float));
      continue;
    }
    unpack_row(weight.type, tile.data + lane * tile.stride + from / block.columns * block.bytes, out, count);
    if (weight.type == FP8_E4M3) {
      const float* scales = weight.scale + (tile.start + lane) / weight.block_rows * weight.scale_stride;
      for (int64_t k = 0; k < count; k++) out[k] *= scales[(from + k) / weight.block_cols];
    }
    for (int64_t k = count; k < padded(count); k++) out[k] = 0;
  }
  for (int64_t k = 0; k < count; k += DenseF32::COLUMNS) {
    const RowCursor cursor(reinterpret_cast<uint8_t*>(rows + k), PANEL_COLUMNS * sizeof(float));
    DenseF32::unpack(cursor, constant(1), [&](auto i, VF w) ZOO_INLINE_LAMBDA { store_f(panel + (k + i) * WIDTH, w); });
  }
}

// `count` columns of a panel against T tokens; `sums` [T][WIDTH] is added to.
template <int T>
void panel_times_tokens(const float* panel, int64_t count, const float* const* tokens, float* sums) {
  VF sum[T][ROW_GROUPS];
  const float* x[T];
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
    x[t] = tokens[t];
    repeat<ROW_GROUPS>([&](auto g) ZOO_INLINE_LAMBDA { sum[t][g] = load_f(sums + t * WIDTH + g * W); });
  });
  for (int64_t k = 0; k < count; k++, panel += WIDTH) {
    VF w[ROW_GROUPS];
    repeat<ROW_GROUPS>([&](auto g) ZOO_INLINE_LAMBDA { w[g] = load_f(panel + g * W); });
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
      const VF value = splat(x[t] + k);
      repeat<ROW_GROUPS>([&](auto g) ZOO_INLINE_LAMBDA { sum[t][g] = fma(w[g], value, sum[t][g]); });
    });
  }
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
    repeat<ROW_GROUPS>([&](auto g) ZOO_INLINE_LAMBDA { store_f(sums + t * WIDTH + g * W, sum[t][g]); });
  });
}

template <int T>
void panel_times_all(const float* panel, int64_t from, int64_t count, const Tokens& tokens, int64_t first, float* sums) {
  int64_t t = first;
  for (; t + T <= tokens.count; t += T) {
    const float* x[T];
    for (int i = 0; i < T; i++) x[i] = tokens.float32(t + i) + from;
    panel_times_tokens<T>(panel, count, x, sums + t * WIDTH);
  }
  if constexpr (T > 1) panel_times_all<T - 1>(panel, from, count, tokens, t, sums);
}

using Fill = void (*)(const Weight&, const RowTile&, int64_t, int64_t, float*, float*);

template <Fill fill>
void dense_many(const Weight& weight, const Tokens& tokens, const Output& y, uint8_t* scratch, int ith, int nth) {
  const Rows rows(weight, ROW_GROUPS, ith, nth);
  auto* panel = reinterpret_cast<float*>(scratch);
  float* unpacked = panel + PANEL_COLUMNS * WIDTH;
  float* sums = unpacked + PANEL_COLUMNS * W;
  for (int64_t row = rows.low; row < rows.high; row += ROW_GROUPS * rows.step) {
    for (int64_t i = 0; i < tokens.count * WIDTH; i++) sums[i] = 0;
    for (int64_t from = 0; from < weight.cols; from += PANEL_COLUMNS) {
      const int64_t count = weight.cols - from < PANEL_COLUMNS ? weight.cols - from : PANEL_COLUMNS;
      for (int g = 0; g < ROW_GROUPS; g++) {
        fill(weight, rows.tile(row + g * rows.step), from, count, panel + g * W, unpacked);
      }
      panel_times_all<FLOAT_TOKENS>(panel, from, count, tokens, 0, sums);
    }
    for (int g = 0; g < ROW_GROUPS; g++) {
      const RowTile tile = rows.tile(row + g * rows.step);
      for (int64_t t = 0; t < tokens.count; t++) y.write(t, tile, sums + t * WIDTH + g * W);
    }
  }
}

template <class F>
void dense_multiply(const Weight& weight, const Tokens& tokens, const Output& y, uint8_t* scratch, int ith, int nth) {
  if (tokens.count == 1) {
    dense_one<F>(weight, tokens, y, ith, nth);
  } else {
    dense_many<fill_dense<F>>(weight, tokens, y, scratch, ith, nth);
  }
}

size_t dense_scratch(const Weight&, int64_t m) {
  return (PANEL_COLUMNS * (WIDTH + W) + static_cast<size_t>(m) * WIDTH) * sizeof(float);
}

template <class F>
constexpr TypeKernel DENSE = {ACT_F32, {dense_scratch, dense_multiply<F>}, {}, {}};
constexpr TypeKernel ANY = {ACT_F32, {dense_scratch, dense_many<fill_any>}, {}, {}};

}  // namespace

const TypeKernel* dense_kernel(const Weight& weight) {
  switch (weight.type) {
    case F32: return &DENSE<DenseF32>;
    case F16: return &DENSE<DenseF16>;
    case BF16: return &DENSE<DenseBF16>;
    case FP8_E4M3: return weight.block_cols % 16 == 0 ? &DENSE<DenseFP8> : &ANY;
    default: return block_type(weight.type) ? &ANY : nullptr;
  }
}

}  // namespace zoo::ZOO_ISA
