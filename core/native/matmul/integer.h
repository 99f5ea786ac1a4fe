// Products of blocks with int8 activations.
//
// A format (formats_*.h) unpacks W rows 32 columns at a time: a Head, and eight quads of columns. Few tokens take quads
// straight from the registers; more go over a panel of Blocks in the cache, so that unpacking is paid once for all
// of them. Either way, and however the rows lie in memory, the same operations happen in the same order for an element of
// y: per block an exact integer sum, scaled and added to a float32, then the mins. Where blocks share a scale of x, their
// sum is multiplied by it once: multiplications of floats would else take a fifth of the time of those of integers.
#pragma once

#include <cstring>

#include "cpu.h"
#include "dispatch.h"
#include "layout.h"

namespace zoo::ZOO_ISA {

// What 32 columns of a format are: value = scale * factor * (q - CENTRE) + min.
// MINS: none, one per 32 columns or two of 16. FACTORS: integer scales, likewise. GROUP: blocks that share a scale of x.
// Signed bytes with VNNI are stored plus 128, which is a centre; factors that cost something are multiplied into the scale,
// of which there are then PARTS.
template <Encoding E, int M, int F = 0, int C = 0, int G = 1>
struct Kind {
  static constexpr Encoding ENCODING = E;
  static constexpr bool SHIFTED = E == Encoding::S8 && SIGNED_AS_UNSIGNED;
  static constexpr int MINS = M;
  static constexpr int FACTORS = (F == 1 && !FREE_FACTORS) || (F == 2 && SCALED_HALVES) ? 0 : F;
  static constexpr int PARTS = F == 2 && SCALED_HALVES ? 2 : 1;
  static constexpr int CENTRE = C;
  static constexpr int GROUP = G;
  using Products = Sum<E, FACTORS, C, PARTS>;

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

template <int N>
struct Factors {
  VI factor[N];

  ZOO_INLINE VI factor_of(int j) const { return factor[N == 2 ? j / 4 : 0]; }
};

template <>
struct Factors<0> {
  ZOO_INLINE VI factor_of(int) const { return VI{}; }
};

template <int N>
struct Mins {
  VF min[N];
};

template <>
struct Mins<0> {};

// What 32 columns of W rows have in common.
template <class K>
struct Head : Factors<K::FACTORS>, Mins<K::MINS> {
  VF scale[K::PARTS];

  // Scale d times byte i of each word.
  ZOO_INLINE void set_scale(VF d, VI bytes, int i) {
    if constexpr (K::FACTORS == 1) {
      scale[0] = d;
      this->factor[0] = K::Products::factor(bytes, i);
    } else {
      scale[0] = mul(d, to_float(pick_byte(bytes, i)));
    }
  }
  // Scale d times byte i of each word for the first half, byte i + 1 for the second one.
  ZOO_INLINE void set_scales(VF d, VI bytes, int i) {
    set_halves(d, K::Products::factor(bytes, i), K::Products::factor(bytes, i + 1));
  }
  ZOO_INLINE void set_signed_scales(VF d, VI bytes, int i) {
    set_halves(d, K::Products::signed_factor(bytes, i), K::Products::signed_factor(bytes, i + 1));
  }

 private:
  ZOO_INLINE void set_halves(VF d, VI first, VI second) {
    if constexpr (K::PARTS == 2) {
      scale[0] = mul(d, to_float(first));
      scale[1] = mul(d, to_float(second));
    } else {
      scale[0] = d;
      this->factor[0] = first;
      this->factor[1] = second;
    }
  }
};

// What part P of a block, whose products have the integer sum `total`, adds to the float32 sum of W rows. After the last
// part come the mins.
template <class K, int P>
ZOO_INLINE VF scaled(VF sum, VI total, const Head<K>& block, const ActBlock& x) {
  static_assert(K::MINS < 2 || K::GROUP > 1);
  if constexpr (K::GROUP == 1) {
    sum = fma(to_float(total), mul(block.scale[P], splat(&x.scale)), sum);
  } else {
    sum = fma(to_float(left_by(total, splat_word(&x.shift))), block.scale[P], sum);
  }
  if constexpr (P == K::PARTS - 1) {
    if constexpr (K::MINS == 1) sum = fma(block.min[0], splat(&x.sum32), sum);
    if constexpr (K::MINS == 2) {
      sum = fma(block.min[0], x.centres.half_sum(0, splat_word(&x.shift)), sum);
      sum = fma(block.min[1], x.centres.half_sum(1, splat_word(&x.shift)), sum);
    }
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

// W rows against T tokens, whose slices are `apart` blocks from each other -> sums [T]. `next` is where a tile after this one
// begins: its rows follow those of this one, so fetching it ahead is one linear stream, whatever the length of a row. Null:
// nothing is to be fetched.
template <class F, class P, int T>
ZOO_INLINE void tile_times_tokens(P rows, int64_t cols, const ActBlock* const* tokens, int64_t apart, const uint8_t* next,
                                  VF* sums) {
  using K = typename F::Kind;
  using Products = typename K::Products;
  const ActBlock* x[T];
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] = tokens[t]; });
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { sums[t] = constant(0); });
  static_assert(F::BLOCKS % K::GROUP == 0);
  VF group[T];  // sums of blocks with one scale of x
  const int64_t slice = apart == SLICE ? cols / 32 : SLICE;  // those of a lone token lie side by side
  for (int64_t left = cols / 32; left > 0; left -= slice) {
    for (const ActBlock* end = x[0] + (left < slice ? left : slice); x[0] < end;) {
      Stage<F, P> stage;
      const P& here = stage.of(rows);
      typename F::template Unit<P> unit;
      unit.read(here);
      repeat<F::BLOCKS>([&](auto i) ZOO_INLINE_LAMBDA {
        fetch_soon<F, i>(rows, next);
        const Head<K> head = unit.template head<i>(here);
        VF* const to = K::GROUP > 1 ? group : sums;
        if constexpr (K::GROUP > 1 && i % K::GROUP == 0) repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { group[t] = constant(0); });
        repeat<K::PARTS>([&](auto part) ZOO_INLINE_LAMBDA {
          constexpr int STEPS = 8 / K::PARTS;
          Products products[T];
          repeat<STEPS>([&](auto step) ZOO_INLINE_LAMBDA {
            constexpr int j = part * STEPS + step;
            const typename Products::Quad w = Products::prepare(K::stored(unit.template quad<i, j>()));
            repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
              products[t].template step<j>(w, splat_word(x[t][i].q + 4 * j), head.factor_of(j), x[t][i].centres);
            });
          });
          repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
            to[t] = scaled<K, part>(to[t], products[t].total(), head, x[t][i]);
          });
        });
        if constexpr (K::GROUP > 1 && i % K::GROUP == K::GROUP - 1)
          repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { sums[t] = fma(group[t], splat(&x[t][i].scale), sums[t]); });
      });
      rows.advance(F::BYTES);
      if (next != nullptr) next += F::BYTES * W;
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] += F::BLOCKS; });
    }
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] += apart - SLICE; });
  }
}

// 32 columns of W rows in a panel. `keep` takes their quads, `complete` comes after the last one.
template <class K>
struct Block : Head<K> {
  using Kind = K;
  static constexpr int TOGETHER = K::Products::TOGETHER, TOKENS = K::Products::TOKENS;
  VI q[8];  // columns 4 j .. 4 j + 3

  template <int J>
  ZOO_INLINE void keep(VI quad) { q[J] = K::stored(quad); }
  ZOO_INLINE void complete() {}

  // Adds `blocks`, TOGETHER of as many row groups, times T tokens.
  template <int T>
  static ZOO_INLINE void add(const Block* blocks, const ActBlock* const* x, VF (*totals)[TOGETHER]) {
    using P = typename K::Products;
    repeat<K::PARTS>([&](auto part) ZOO_INLINE_LAMBDA {
      constexpr int STEPS = 8 / K::PARTS;
      P products[T][TOGETHER];
      repeat<STEPS>([&](auto step) ZOO_INLINE_LAMBDA {
        constexpr int j = part * STEPS + step;
        typename P::Quad w[TOGETHER];
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA { w[g] = P::prepare(load(&blocks[g].q[j])); });
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
          const VI four = splat_word(x[t]->q + 4 * j);
          repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
            products[t][g].template step<j>(w[g], four, blocks[g].factor_of(j), x[t]->centres);
          });
        });
      });
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
          totals[t][g] = scaled<K, part>(totals[t][g], products[t][g].total(), blocks[g], *x[t]);
        });
      });
    });
  }
};

// A unit of W rows -> BLOCKS blocks, APART from one to the next. What comes next is fetched on every processor: between one
// panel and another lie products, and over those none foresees.
template <class F, int APART, class P, class B>
ZOO_INLINE void fill_panel(const P& rows, const uint8_t* next, B* panel) {
  typename F::template Unit<P> unit;
  unit.read(rows);
  repeat<F::BLOCKS>([&](auto i) ZOO_INLINE_LAMBDA {
    fetch_ahead<F, i>(next);
    B& block = panel[i * APART];
    static_cast<Head<typename F::Kind>&>(block) = unit.template head<i>(rows);
    repeat<8>([&](auto j) ZOO_INLINE_LAMBDA { block.template keep<j>(unit.template quad<i, j>()); });
    block.complete();
  });
}

// Sums of ROW_GROUPS * W rows, side by side, `next` floats from one token to the next.
struct Sums {
  float* at;
  int64_t next;

  ZOO_INLINE float* of(int64_t token, int group) const { return at + token * next + group * W; }
  Sums from(int64_t token) const { return {of(token, 0), next}; }
};

// What all sums begin with, whatever the token.
inline Sums zeros() {
  alignas(64) static float none[ROW_GROUPS * W];
  return {none, 0};
}

// `count` blocks of ROW_GROUPS * W rows against T tokens, added to `from`, go to `to`.
template <class B, int T>
void panel_times_tokens(const B* panel, int64_t count, const ActBlock* const* tokens, const Sums& from, const Sums& to) {
  constexpr int GROUP = B::Kind::GROUP, TOGETHER = B::TOGETHER;
  const int64_t stretch = (GROUP > 1 ? GROUP : count) * ROW_GROUPS;
  for (int first = 0; first < ROW_GROUPS; first += TOGETHER) {
    const ActBlock* x[T];
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] = tokens[t]; });
    const Sums* before = &from;
    const B* blocks = panel + first;
    for (const B* all = blocks + count * ROW_GROUPS; blocks < all; before = &to) {
      VF totals[T][TOGETHER];
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
          totals[t][g] = GROUP > 1 ? constant(0) : load_f(before->of(t, first + g));
        });
      });
#pragma GCC unroll 1
      for (const B* end = blocks + stretch; blocks < end; blocks += ROW_GROUPS) {
        // The next tokens' blocks: prefetchers stop at the end of a page, which a few calls reach.
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { __builtin_prefetch(x[t] + T * SLICE, 0, 3); });
        B::template add<T>(blocks, x, totals);
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t]++; });
      }
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
          const int group = first + g;
          const VF sum = totals[t][g];
          store_f(to.of(t, group), GROUP > 1 ? fma(sum, splat(&x[t][-1].scale), load_f(before->of(t, group))) : sum);
        });
      });
    }
  }
}

}  // namespace zoo::ZOO_ISA

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "simd/i8mm.h"
#endif
#ifdef ZOO_HALVED
#include "simd/halved.h"
#endif

namespace zoo::ZOO_ISA {

// Tokens [first, tokens.count) over one panel, which begins at block `at` of a row: T at a time, then fewer.
template <class B, int T>
void panel_times_all(const B* panel, int64_t at, int64_t count, const Tokens& tokens, int64_t first, const Sums& from,
                     const Sums& to) {
  int64_t t = first;
  for (; t + T <= tokens.count; t += T) {
    const ActBlock* x[T];
    for (int i = 0; i < T; i++) x[i] = tokens.int8(t + i, at);
    if (to.next != ROW_GROUPS * W) {  // a row of y each, which memory has to bring before it is written
      for (int i = 0; i < T; i++)
        for (int g = 0; g < ROW_GROUPS; g++) __builtin_prefetch(to.of(t + T + i, g), 1, 3);
    }
#ifdef __ARM_FEATURE_MATMUL_INT8
    if constexpr (T % 2 == 0) panel_times_pairs<typename B::Kind, T>(panel, count, x, from.from(t), to.from(t));
    else
#endif
    panel_times_tokens<B, T>(panel, count, x, from.from(t), to.from(t));
  }
  if constexpr (T > 1) panel_times_all<B, T - 1>(panel, at, count, tokens, t, from, to);
}

#ifdef ZOO_HALVED
template <class K>
using PanelBlock = HalvedBlock<K>;  // the larger one
#else
template <class K>
using PanelBlock = Block<K>;
#endif

constexpr int64_t PANEL_BLOCKS = SLICE;  // 10 KB: a panel stays in a first-level cache beside the tokens

template <class F>
constexpr size_t PANEL_BYTES = sizeof(PanelBlock<typename F::Kind>) * PANEL_BLOCKS * ROW_GROUPS;

constexpr int64_t AHEAD_BYTES = 8192;

template <class F, class P, int T>
void integer_few(const Rows& rows, const Tokens& tokens, const Output& y) {
  // Up to T tokens: the last one stands in for those that are missing, which compiles faster than one function for each.
  const ActBlock* x[T];
  for (int t = 0; t < T; t++) x[t] = tokens.int8(t < tokens.count ? t : tokens.count - 1, 0);
  // Far enough ahead for memory to answer: a tile of short rows is done in less time than that takes.
  const int64_t ahead = rows.step * (1 + AHEAD_BYTES / (rows.step * rows.weight.row_bytes));
  for (int64_t row = rows.low; row < rows.high; row += rows.step) {
    const RowTile tile = rows.tile(row);
    const uint8_t* next = P::PACKED && foresees ? nullptr : rows.tile(row + ahead).data;
    VF sums[T];
    tile_times_tokens<F, P, T>(P(tile.data, tile.stride), rows.weight.cols, x, tokens.rows * SLICE, next, sums);
    for (int t = 0; t < T && t < tokens.count; t++) {
      alignas(64) float lanes[W];
      store_f(lanes, sums[t]);
      y.write(t, tile, lanes);
    }
  }
}

template <class F, class B, class P>
void many_by(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  auto* panel = reinterpret_cast<B*>(scratch);
  const Sums sums{reinterpret_cast<float*>(scratch + PANEL_BYTES<F>), ROW_GROUPS * W};
  const int64_t blocks = rows.weight.cols / 32;
  for (int64_t row = rows.low; row < rows.high; row += ROW_GROUPS * rows.step) {
    const uint8_t* next = rows.tile(row + ROW_GROUPS * rows.step).data;
    RowTile tiles[ROW_GROUPS];
    for (int g = 0; g < ROW_GROUPS; g++) tiles[g] = rows.tile(row + g * rows.step);
    // The last panel writes to y itself: while it multiplies, memory takes what came before.
    const bool straight = y.bias == nullptr && tiles[ROW_GROUPS - 1].count == W;
    for (int64_t at = 0; at < blocks; at += PANEL_BLOCKS) {
      const int64_t count = blocks - at < PANEL_BLOCKS ? blocks - at : PANEL_BLOCKS;
      for (int g = 0; g < ROW_GROUPS; g++) {
        P p(tiles[g].data, tiles[g].stride);
        p.advance(at / F::BLOCKS * F::BYTES);
        for (int64_t i = 0; i < count; i += F::BLOCKS, p.advance(F::BYTES), next += F::BYTES * W) {
          fill_panel<F, ROW_GROUPS>(p, next, panel + i * ROW_GROUPS + g);
        }
      }
      const Sums to = straight && at + count == blocks ? Sums{y.y + row, y.ldy} : sums;
      panel_times_all<B, B::TOKENS>(panel, at, count, tokens, 0, at == 0 ? zeros() : sums, to);
    }
    if (straight) continue;
    for (int64_t t = 0; t < tokens.count; t++)
      for (int g = 0; g < ROW_GROUPS; g++) y.write(t, tiles[g], sums.of(t, g));
  }
}

template <class F, class P>
void integer_many(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  using K = typename F::Kind;
#ifdef ZOO_HALVED
  if constexpr (HALVED<K>) {
    if (adds_aside) return many_by<F, HalvedBlock<K>, P>(rows, tokens, y, scratch);
  }
#endif
  many_by<F, Block<K>, P>(rows, tokens, y, scratch);
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
constexpr TypeKernel INTEGER_KERNEL = {F::Kind::GROUP > 1 ? ACT_INT8_128 : ACT_INT8,
                                       {integer_scratch<F>, integer_multiply<F>},
#ifdef __AMX_BF16__
                                       {bf16_scratch, bf16_multiply<F>},
#else
                                       {nullptr, nullptr},
#endif
                                       F::ORDER};

}  // namespace zoo::ZOO_ISA
