// Products of prompts by the bfloat16 tiles of AMX: weights are unpacked once for 256 tokens and rounded to bfloat16, and one
// instruction multiplies 32 columns of 16 tokens and 16 rows. Sums are float32 and run over the columns in their order,
// whatever else is multiplied, so a row of y depends on nothing but its token.
#pragma once

namespace zoo::ZOO_ISA {

constexpr int64_t BF16_GROUPS = 16;  // groups of W rows in a panel
constexpr int64_t BF16_BLOCKS = 16;  // blocks of 32 columns in a panel: two tiles of tokens stay in a first-level cache
constexpr int64_t BF16_TILES = 16;   // tiles of tokens that pass by a panel
constexpr int64_t BF16_SUMS = Bf16Tile::TOKENS * W;

// Tiles 0 to 3: sums; 4, 5: tokens; 6, 7: rows of weights, two columns to a word.
constexpr TileShapes BF16_SHAPES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Column 4 J + i of W rows, byte i of each word of q, is scale * q + offset after 256 has been added to q: a byte put below
// the exponent of 256.0 is that sum, which saves the conversion.
template <class K, int J>
ZOO_INLINE void dequantize_quad(VI q, VF scale, VF offset, Bf16Tile& to) {
  if constexpr (K::ENCODING == Encoding::S8) q = q ^ word(0x80808080u);
  const auto value = [&](VI shifted) ZOO_INLINE_LAMBDA {
    return fma(as_float((shifted & word(0x007F8000u)) | word(0x43800000u)), scale, offset);
  };
  const auto pairs = [](VF even, VF odd) ZOO_INLINE_LAMBDA {
    const VI interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, reinterpret_cast<VI>(_mm512_cvtne2ps_pbh(odd, even)));
  };
  store(to.x[2 * J], pairs(value(left(q, 15)), value(left(q, 7))));
  store(to.x[2 * J + 1], pairs(value(right(q, 1)), value(right(q, 9))));
}

// A unit of W rows -> BLOCKS tiles.
template <class F, class P>
ZOO_INLINE void dequantize_unit(const P& rows, const uint8_t* next, Bf16Tile* to) {
  using K = typename F::Kind;
  constexpr int HALVES = K::PARTS == 2 || K::MINS == 2 ? 2 : 1;
  constexpr float ZERO = 256.0f + (K::ENCODING == Encoding::S8 ? 128 : K::CENTRE);
  typename F::template Unit<P> unit;
  unit.read(rows);
  repeat<F::BLOCKS>([&](auto i) ZOO_INLINE_LAMBDA {
    fetch_ahead<F, i>(next);
    const Head<K> head = unit.template head<i>(rows);
    VF scale[HALVES], offset[HALVES];
    repeat<HALVES>([&](auto h) ZOO_INLINE_LAMBDA {
      scale[h] = head.scale[K::PARTS == 2 ? h : 0];
      VF min = constant(0);
      if constexpr (K::MINS != 0) min = head.min[K::MINS == 2 ? h : 0];
      offset[h] = fma(scale[h], constant(-ZERO), min);
    });
    repeat<8>([&](auto j) ZOO_INLINE_LAMBDA {
      constexpr int h = HALVES == 2 ? j / 4 : 0;
      dequantize_quad<K, j>(unit.template quad<i, j>(), scale[h], offset[h], to[i]);
    });
  });
}

// `count` blocks of A tiles of tokens, `apart` blocks from one to the next, times B tiles of rows. The sums of A x B pairs
// begin at zero or are added to: rows of tokens lie BF16_GROUPS pairs apart.
template <int A, int B>
void multiply_bf16(const Bf16Tile* x, int64_t apart, const Bf16Tile* w, int64_t count, bool begin, float* sums) {
  float* below = sums + BF16_GROUPS * BF16_SUMS;
  if (begin) {
    _tile_zero(0);
    if constexpr (B == 2) _tile_zero(1);
    if constexpr (A == 2) _tile_zero(2);
    if constexpr (A == 2 && B == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if constexpr (B == 2) _tile_loadd(1, sums + BF16_SUMS, 64);
    if constexpr (A == 2) _tile_loadd(2, below, 64);
    if constexpr (A == 2 && B == 2) _tile_loadd(3, below + BF16_SUMS, 64);
  }
  for (int64_t i = 0; i < count; i++) {
    _tile_loadd(4, x + i, 64);
    _tile_loadd(6, w + i, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (B == 2) _tile_loadd(7, w + BF16_BLOCKS + i, 64);
    if constexpr (B == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (A == 2) _tile_loadd(5, x + apart + i, 64);
    if constexpr (A == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (A == 2 && B == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  if constexpr (B == 2) _tile_stored(1, sums + BF16_SUMS, 64);
  if constexpr (A == 2) _tile_stored(2, below, 64);
  if constexpr (A == 2 && B == 2) _tile_stored(3, below + BF16_SUMS, 64);
}

// `tiles` of tokens times `groups` of a panel.
inline void multiply_panel(const Bf16Tile* x, int64_t apart, int64_t tiles, const Bf16Tile* panel, int64_t groups,
                           int64_t count, bool begin, float* sums) {
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
  for (int64_t t = 0; t < tiles; t += 2)
    for (int64_t g = 0; g < groups; g += 2) {
      const auto multiply = t + 1 < tiles ? (g + 1 < groups ? multiply_bf16<2, 2> : multiply_bf16<2, 1>)
                                          : (g + 1 < groups ? multiply_bf16<1, 2> : multiply_bf16<1, 1>);
      multiply(x + t * apart, apart, panel + g * BF16_BLOCKS, count, begin, sums + (t * BF16_GROUPS + g) * BF16_SUMS);
    }
  asm volatile("" ::: "memory");
}

// A panel, and the sums [tiles of tokens][BF16_GROUPS][16][W].
inline size_t bf16_scratch(const Weight&, int64_t m) {
  const int64_t all = (m + Bf16Tile::TOKENS - 1) / Bf16Tile::TOKENS, tiles = all < BF16_TILES ? all : BF16_TILES;
  return sizeof(Bf16Tile) * BF16_GROUPS * BF16_BLOCKS + sizeof(float) * static_cast<size_t>(tiles * BF16_GROUPS * BF16_SUMS);
}

template <class F, class P>
void bf16_rows(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  constexpr int64_t TOGETHER = BF16_TILES * Bf16Tile::TOKENS;
  auto* panel = reinterpret_cast<Bf16Tile*>(scratch);
  auto* sums = reinterpret_cast<float*>(panel + BF16_GROUPS * BF16_BLOCKS);
  const int64_t blocks = rows.weight.cols / 32;
  _tile_loadconfig(&BF16_SHAPES);
  for (int64_t first = 0; first < tokens.count; first += TOGETHER) {
    const int64_t m = tokens.count - first < TOGETHER ? tokens.count - first : TOGETHER;
    const int64_t tiles = (m + Bf16Tile::TOKENS - 1) / Bf16Tile::TOKENS;
    for (int64_t row = rows.low; row < rows.high; row += BF16_GROUPS * rows.step) {
      const int64_t left = (rows.high - row + rows.step - 1) / rows.step, groups = left < BF16_GROUPS ? left : BF16_GROUPS;
      const uint8_t* next = rows.tile(row + groups * rows.step).data;
      RowTile from_rows[BF16_GROUPS];
      for (int64_t g = 0; g < groups; g++) from_rows[g] = rows.tile(row + g * rows.step);
      for (int64_t from = 0; from < blocks; from += BF16_BLOCKS) {
        const int64_t count = blocks - from < BF16_BLOCKS ? blocks - from : BF16_BLOCKS;
        for (int64_t g = 0; g < groups; g++) {
          P p(from_rows[g].data, from_rows[g].stride);
          p.advance(from / F::BLOCKS * F::BYTES);
          for (int64_t i = 0; i < count; i += F::BLOCKS, p.advance(F::BYTES), next += F::BYTES * W)
            dequantize_unit<F>(p, next, panel + g * BF16_BLOCKS + i);
        }
        multiply_panel(tokens.bf16(first) + from, blocks, tiles, panel, groups, count, from == 0, sums);
      }
      for (int64_t t = 0; t < m; t++)
        for (int64_t g = 0; g < groups; g++) {
          const float* tile = sums + (t / Bf16Tile::TOKENS * BF16_GROUPS + g) * BF16_SUMS;
          y.write(first + t, from_rows[g], tile + t % Bf16Tile::TOKENS * W);
        }
    }
  }
  _tile_release();
}

template <class F>
void bf16_multiply(const Weight& weight, const Tokens& tokens, const Output& y, uint8_t* scratch, int ith, int nth) {
  const Rows rows(weight, ROW_GROUPS, ith, nth);
  if (weight.packed) return bf16_rows<F, PackedRows<F>>(rows, tokens, y, scratch);
  bf16_rows<F, RawRows>(rows, tokens, y, scratch);
}

}  // namespace zoo::ZOO_ISA
