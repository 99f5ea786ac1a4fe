// Products of blocks with int8 activations.
//
// A format (formats_*.h) unpacks W rows 32 columns at a time: a Head, and eight quads of columns. Few tokens take quads
// straight from the registers; more go over a panel of Blocks in the cache, so that unpacking is paid once for all
// of them. Either way, and however the rows lie in memory, the same operations happen in the same order for an element of
// y: per block an exact integer sum, scaled and added to a float32, then the mins.
#pragma once

#include <cstring>

#include "cpu.h"
#include "dispatch.h"
#include "layout.h"

namespace zoo::ZOO_ISA {

// What 32 columns of a format are: value = scale * factor * (q - CENTRE) + min.
// MINS: none, one per 32 columns or two of 16. FACTORS: integer scales, likewise.
// Signed bytes with VNNI are stored plus 128, which is a centre; factors that cost something are multiplied into the scale.
template <Encoding E, int M, int F = 0, int C = 0>
struct Kind {
  static constexpr Encoding ENCODING = E;
  static constexpr bool SHIFTED = E == Encoding::S8 && SIGNED_AS_UNSIGNED;
  static constexpr int MINS = M;
  static constexpr int FACTORS = F == 1 && !FREE_FACTORS ? 0 : F;
  static constexpr int CENTRE = C;
  using Products = Sum<E, FACTORS, C>;

  // A quad as the products want it.
  static ZOO_INLINE VI stored(VI q) {
    if constexpr (SHIFTED) {
      return q ^ word(0x80808080u);
    } else if constexpr (CENTRE != 0 && CENTRE_IN_WEIGHTS) {
      const VI top = word(0x80808080u), centre = word(0x01010101u * CENTRE);
      return sub(q | top, centre) ^ top;
    } else {
      return q;
    }
  }
};

// What 32 columns of W rows have in common.
template <class K>
struct Head {
  VF scale;
  VI factor[K::FACTORS ? K::FACTORS : 1];
  VF min[K::MINS ? K::MINS : 1];

  // Scale d times byte i of each word.
  ZOO_INLINE void set_scale(VF d, VI bytes, int i) {
    if constexpr (K::FACTORS == 1) {
      scale = d;
      factor[0] = K::Products::factor(bytes, i);
    } else {
      scale = mul(d, to_float(pick_byte(bytes, i)));
    }
  }
  ZOO_INLINE VI factor_of(int j) const { return factor[K::FACTORS == 2 ? j / 4 : 0]; }
};

template <class K>
struct Block : Head<K> {
  VI q[8];  // columns 4 j .. 4 j + 3
};

template <class K>
ZOO_INLINE const int16_t* centre_of(const ActBlock& x, int step) {
  return K::CENTRE == 32 ? x.centre16 + step / 4 * 2 : x.centre32;
}

// What a block of the sum `total`, an integer, adds to the float32 sum of W rows.
template <class K>
ZOO_INLINE VF scaled(VF sum, VF total, const Head<K>& block, const ActBlock& x) {
  sum = fma(total, mul(block.scale, splat(&x.scale)), sum);
  if constexpr (K::MINS == 1) sum = fma(block.min[0], splat(&x.sum32), sum);
  if constexpr (K::MINS == 2) {
    sum = fma(block.min[0], splat(&x.sum16[0]), sum);
    sum = fma(block.min[1], splat(&x.sum16[1]), sum);
  }
  return sum;
}

// Block I's share of a unit at `next` into the second level, for the first one has too few misses in flight. A few lines at
// a time: more at once wait for each other.
template <class F, int I>
ZOO_INLINE void fetch_ahead(const uint8_t* next) {
  constexpr int share = F::BYTES * W / F::BLOCKS, first = I * share / 64 * 64, last = (I + 1) * share / 64 * 64;
  repeat<(F::BLOCKS == 1 ? (share + 63) / 64 : (last - first) / 64)>(
      [&](auto line) ZOO_INLINE_LAMBDA { __builtin_prefetch(next + first + 64 * line, 0, 2); });
}

// What few tokens are multiplied with soon: the next unit of raw rows into the first level, and a tile at `next`.
template <class F, int I>
ZOO_INLINE void fetch_soon(const RawRows& rows, const uint8_t* next) {
  fetch_ahead<F, I>(next);
  if constexpr (F::BLOCKS == 8) {
    repeat<(F::BYTES + 63) / 64>(
        [&](auto line) ZOO_INLINE_LAMBDA { __builtin_prefetch(rows.row(I) + F::BYTES + 64 * line, 0, 3); });
  }
}

template <class F, int I>
ZOO_INLINE void fetch_soon(const PackedRows<F>&, [[maybe_unused]] const uint8_t* next) {
#ifndef __AMX_INT8__  // there Stage fetches
  if (next != nullptr) fetch_ahead<F, I>(next);
#endif
}

// A unit of packed rows, copied line by line into the first level before it is looked at. Processors with AMX follow one
// load that walks through memory, and what it is told to fetch comes in two legs: into the second level, and from there
// into the first. The many loads of an unpacked unit, with wide steps each, left a tenth to a fifth of the bandwidth.
template <class F, class P>
struct Stage {
  ZOO_INLINE const P& of(const P& rows) { return rows; }
};

#ifdef __AMX_INT8__
template <class F>
struct Stage<F, PackedRows<F>> {
  static constexpr int BYTES = F::BYTES * W, NEAR = 3584, FAR = 7168;
  alignas(64) uint8_t bytes[BYTES];

  ZOO_INLINE PackedRows<F> of(const PackedRows<F>& rows) {
    const uint8_t* from = rows.p;
    uint8_t* to = bytes;
#pragma GCC unroll 1
    for (int line = 0; line < BYTES / 64; line++, from += 64, to += 64) {
      __builtin_prefetch(from + NEAR, 0, 3);
      __builtin_prefetch(from + FAR, 0, 2);
      store(to, load(from));
      asm volatile("" : "+r"(from));  // else it becomes a call of memcpy
    }
    if constexpr (BYTES % 64 != 0) std::memcpy(to, from, BYTES % 64);
    return PackedRows<F>(bytes, 0);
  }
};
#endif

// W rows against T tokens -> sums [T]. `next` is where a tile after this one begins: its rows follow those of this one, so
// fetching it ahead is one linear stream, whatever the length of a row. Null: nothing is to be fetched.
template <class F, class P, int T>
ZOO_INLINE void tile_times_tokens(P rows, int64_t cols, const ActBlock* const* tokens, const uint8_t* next, VF* sums) {
  using K = typename F::Kind;
  using Products = typename K::Products;
  const ActBlock* x[T];
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] = tokens[t]; });
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { sums[t] = constant(0); });
  for (const ActBlock* end = x[0] + cols / 32; x[0] < end;) {
    Stage<F, P> stage;
    const P& here = stage.of(rows);
    typename F::template Unit<P> unit;
    unit.read(here);
    repeat<F::BLOCKS>([&](auto i) ZOO_INLINE_LAMBDA {
      fetch_soon<F, i>(rows, next);
      const Head<K> head = unit.template head<i>(here);
      Products products[T];
      repeat<8>([&](auto j) ZOO_INLINE_LAMBDA {
        const typename Products::Quad w = Products::prepare(K::stored(unit.template quad<i, j>()));
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
          products[t].template step<j>(w, splat_word(x[t][i].q + 4 * j), head.factor_of(j), centre_of<K>(x[t][i], j));
        });
      });
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { sums[t] = scaled(sums[t], to_float(products[t].total()), head, x[t][i]); });
    });
    rows.advance(F::BYTES);
    if (next != nullptr) next += F::BYTES * W;
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] += F::BLOCKS; });
  }
}

// A unit of W rows -> BLOCKS blocks, APART from one to the next; `stored` says how a quad is kept. What comes next is fetched
// on every processor: between one panel and another lie products, and over those none foresees.
template <class F, int APART, class P, class S>
ZOO_INLINE void fill_panel(const P& rows, const uint8_t* next, Block<typename F::Kind>* panel, S&& stored) {
  typename F::template Unit<P> unit;
  unit.read(rows);
  repeat<F::BLOCKS>([&](auto i) ZOO_INLINE_LAMBDA {
    fetch_ahead<F, i>(next);
    Block<typename F::Kind>& block = panel[i * APART];
    static_cast<Head<typename F::Kind>&>(block) = unit.template head<i>(rows);
    repeat<8>([&](auto j) ZOO_INLINE_LAMBDA { block.q[j] = stored(unit.template quad<i, j>()); });
  });
}

// `count` blocks of ROW_GROUPS * W rows against T tokens. `sums` [T][ROW_GROUPS * W] is added to.
template <class K, int T>
void panel_times_tokens(const Block<K>* panel, int64_t count, const ActBlock* const* tokens, float* sums) {
  using P = typename K::Products;
  constexpr int TOGETHER = P::TOGETHER;
  for (int first = 0; first < ROW_GROUPS; first += TOGETHER) {
    const ActBlock* x[T];
    VF totals[T][TOGETHER];
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
      x[t] = tokens[t];
      repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA { totals[t][g] = load_f(sums + (t * ROW_GROUPS + first + g) * W); });
    });
#pragma GCC unroll 1
    for (const Block<K>*blocks = panel + first, *end = blocks + count * ROW_GROUPS; blocks < end; blocks += ROW_GROUPS) {
      P products[T][TOGETHER];
      repeat<8>([&](auto j) ZOO_INLINE_LAMBDA {
        typename P::Quad w[TOGETHER];
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA { w[g] = P::prepare(load(&blocks[g].q[j])); });
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
          const VI four = splat_word(x[t]->q + 4 * j);
          repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
            products[t][g].template step<j>(w[g], four, blocks[g].factor_of(j), centre_of<K>(*x[t], j));
          });
        });
      });
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
          totals[t][g] = scaled(totals[t][g], to_float(products[t][g].total()), blocks[g], *x[t]);
        });
        x[t]++;
      });
    }
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
      repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA { store_f(sums + (t * ROW_GROUPS + first + g) * W, totals[t][g]); });
    });
  }
}

}  // namespace zoo::ZOO_ISA

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "simd/i8mm.h"
#endif

namespace zoo::ZOO_ISA {

// Tokens [first, tokens.count) over one panel, which begins at block `from` of a row: T at a time, then fewer.
template <class K, int T>
void panel_times_all(const Block<K>* panel, int64_t from, int64_t count, const Tokens& tokens, int64_t first,
                     float* sums) {
  int64_t t = first;
  for (; t + T <= tokens.count; t += T) {
    const ActBlock* x[T];
    for (int i = 0; i < T; i++) x[i] = tokens.int8(t + i) + from;
#ifdef __ARM_FEATURE_MATMUL_INT8
    if constexpr (T % 2 == 0) panel_times_pairs<K, T>(panel, count, x, sums + t * ROW_GROUPS * W);
    else
#endif
    panel_times_tokens<K, T>(panel, count, x, sums + t * ROW_GROUPS * W);
  }
  if constexpr (T > 1) panel_times_all<K, T - 1>(panel, from, count, tokens, t, sums);
}

constexpr int64_t PANEL_BLOCKS = 128 / W;  // 10 KB: a panel stays in a first-level cache beside the tokens

template <class F>
constexpr size_t PANEL_BYTES = sizeof(Block<typename F::Kind>) * PANEL_BLOCKS * ROW_GROUPS;

constexpr int64_t AHEAD_BYTES = 8192;

template <class F, class P, int T>
void integer_few(const Rows& rows, const Tokens& tokens, const Output& y) {
  // Up to T tokens: the last one stands in for those that are missing, which compiles faster than one function for each.
  const ActBlock* x[T];
  for (int t = 0; t < T; t++) x[t] = tokens.int8(t < tokens.count ? t : tokens.count - 1);
  // Far enough ahead for memory to answer: a tile of short rows is done in less time than that takes.
  const int64_t ahead = rows.step * (1 + AHEAD_BYTES / (rows.step * rows.weight.row_bytes));
  for (int64_t row = rows.low; row < rows.high; row += rows.step) {
    const RowTile tile = rows.tile(row);
    const uint8_t* next = P::PACKED && foresees ? nullptr : rows.tile(row + ahead).data;
    VF sums[T];
    tile_times_tokens<F, P, T>(P(tile.data, tile.stride), rows.weight.cols, x, next, sums);
    for (int t = 0; t < T && t < tokens.count; t++) {
      alignas(64) float lanes[W];
      store_f(lanes, sums[t]);
      y.write(t, tile, lanes);
    }
  }
}

template <class F, class P>
void integer_many(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  using K = typename F::Kind;
  auto* panel = reinterpret_cast<Block<K>*>(scratch);
  auto* sums = reinterpret_cast<float*>(scratch + PANEL_BYTES<F>);
  const int64_t blocks = rows.weight.cols / 32;
  for (int64_t row = rows.low; row < rows.high; row += ROW_GROUPS * rows.step) {
    const uint8_t* next = rows.tile(row + ROW_GROUPS * rows.step).data;
    for (int64_t i = 0; i < tokens.count * ROW_GROUPS * W; i++) sums[i] = 0;
    for (int64_t from = 0; from < blocks; from += PANEL_BLOCKS) {
      const int64_t count = blocks - from < PANEL_BLOCKS ? blocks - from : PANEL_BLOCKS;
      for (int g = 0; g < ROW_GROUPS; g++) {
        const RowTile tile = rows.tile(row + g * rows.step);
        P p(tile.data, tile.stride);
        p.advance(from / F::BLOCKS * F::BYTES);
        for (int64_t i = 0; i < count; i += F::BLOCKS, p.advance(F::BYTES), next += F::BYTES * W) {
          fill_panel<F, ROW_GROUPS>(p, next, panel + i * ROW_GROUPS + g, K::stored);
        }
      }
      panel_times_all<K, K::Products::TOKENS>(panel, from, count, tokens, 0, sums);
    }
    RowTile to[ROW_GROUPS];
    for (int g = 0; g < ROW_GROUPS; g++) to[g] = rows.tile(row + g * rows.step);
    for (int64_t t = 0; t < tokens.count; t++)
      for (int g = 0; g < ROW_GROUPS; g++) y.write(t, to[g], sums + (t * ROW_GROUPS + g) * W);
  }
}

}  // namespace zoo::ZOO_ISA

#ifdef __AMX_INT8__
#include "simd/amx.h"
#include "simd/amx_bf16.h"
#endif

namespace zoo::ZOO_ISA {

// Bytes that a thread needs for m tokens: a panel, and the sums of its rows.
template <class F>
size_t integer_scratch([[maybe_unused]] const Weight& weight, int64_t m) {
  if (m <= FEW_TOKENS) return 0;
#ifdef __AMX_INT8__
  if (m >= TILES_FROM) return tiles_scratch<F>(weight, m);
#endif
  return PANEL_BYTES<F> + static_cast<size_t>(m) * ROW_GROUPS * W * sizeof(float);
}

template <class F, class P>
void integer_rows(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  if (tokens.count == 1) return integer_few<F, P, 1>(rows, tokens, y);
#ifdef __AMX_INT8__
  if (tokens.count >= TILES_FROM) return integer_tiles<F, P>(rows, tokens, y, scratch);
#endif
  if (tokens.count > FEW_TOKENS) return integer_many<F, P>(rows, tokens, y, scratch);
  if (tokens.count == 2) return integer_few<F, P, FEW_TOKENS < 2 ? FEW_TOKENS : 2>(rows, tokens, y);
  integer_few<F, P, FEW_TOKENS>(rows, tokens, y);
}

template <class F>
void integer_multiply(const Weight& weight, const Tokens& tokens, const Output& y, uint8_t* scratch, int ith, int nth) {
  const Rows rows(weight, ROW_GROUPS, ith, nth);
  if (weight.packed) return integer_rows<F, PackedRows<F>>(rows, tokens, y, scratch);
  integer_rows<F, RawRows>(rows, tokens, y, scratch);
}

template <class F>
constexpr TypeKernel INTEGER_KERNEL = {ACT_INT8,
                                       {integer_scratch<F>, integer_multiply<F>},
#ifdef __AMX_BF16__
                                       {bf16_scratch, bf16_multiply<F>},
#else
                                       {nullptr, nullptr},
#endif
                                       F::ORDER};

}  // namespace zoo::ZOO_ISA
