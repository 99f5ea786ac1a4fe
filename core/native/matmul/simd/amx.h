// Products of many tokens by the tile instructions of AMX: 16 rows x 32 columns times 32 columns x 16 tokens in one. The
// sums of integers are exact, and what follows them is as everywhere, so the bits are those of one token alone.
#pragma once

namespace zoo::ZOO_ISA {

constexpr int TILE_TOKENS = 16;
constexpr int64_t TILES_FROM = 6;  // fewer tokens take less time one by one
constexpr int64_t TILE_GROUPS = 16;  // groups of W rows that share a copy of the tokens
constexpr int64_t TILE_BLOCKS = 16;  // 512 columns: those of 16 tokens and 16 rows stay in a first-level cache
constexpr int64_t TILE_CACHE = 1 << 20;  // bytes of tokens that stay in a second-level cache, half of one

struct alignas(64) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0, 1: sums [16 tokens][16 rows]; 2, 3: columns of tokens; 4, 5: columns of rows, four to a word. Not on the stack:
// GCC 12 believes that the instruction reads eight bytes of it, and drops the rest.
template <class K>
constexpr TileShapes TILE_SHAPES = {
    1, 0, {}, {64, 64, 32 / K::PARTS, 32 / K::PARTS, 64, 64}, {16, 16, 16, 16, 8 / K::PARTS, 8 / K::PARTS}};

// 32 columns of 16 tokens.
struct TokenTile {
  ActBlock x[TILE_TOKENS];
};

// Tiles multiply signed bytes as well: there a centre is taken off the weights.
template <class K>
constexpr bool SIGNED_TILES = K::CENTRE != 0 || K::ENCODING == Encoding::S8;

template <class K>
struct TileBlock : Block<K> {
  template <int J>
  ZOO_INLINE void keep(VI quad) { this->q[J] = K::CENTRE ? _mm512_sub_epi8(quad, word(0x01010101u * K::CENTRE)) : quad; }
};

template <class K>
ZOO_INLINE void multiply_tiles() {
  if constexpr (SIGNED_TILES<K>) _tile_dpbssd(0, 2, 4);
  else _tile_dpbsud(0, 2, 4);
  if constexpr (K::PARTS == 2) {
    if constexpr (SIGNED_TILES<K>) _tile_dpbssd(1, 3, 5);
    else _tile_dpbsud(1, 3, 5);
  }
}

template <class K>
ZOO_INLINE void tile_products(const TileBlock<K>& block, const TokenTile& tokens, int32_t* sums) {
  _tile_zero(0);
  _tile_loadd(2, tokens.x[0].q, sizeof(ActBlock));
  _tile_loadd(4, block.q, 64);
  if constexpr (K::PARTS == 2) {
    _tile_zero(1);
    _tile_loadd(3, tokens.x[0].q + 16, sizeof(ActBlock));
    _tile_loadd(5, block.q + 4, 64);
  }
  multiply_tiles<K>();
  _tile_stored(0, sums, 64);
  if constexpr (K::PARTS == 2) _tile_stored(1, sums + 256, 64);
}

// `count` blocks of W rows against 16 tokens. `sums` [16][W] is added to. A block is multiplied while the sums of the one
// before are scaled.
template <class K>
void tile_times_panel(const TileBlock<K>* panel, int64_t count, const TokenTile* tokens, float* sums) {
  alignas(64) int32_t products[2][256 * K::PARTS];
  VF totals[TILE_TOKENS];
  repeat<TILE_TOKENS>([&](auto t) ZOO_INLINE_LAMBDA { totals[t] = K::GROUP > 1 ? constant(0) : load_f(sums + t * W); });
  tile_products<K>(panel[0], tokens[0], products[0]);
  for (int64_t i = 0; i < count; i++) {
    if (i + 1 < count) tile_products<K>(panel[i + 1], tokens[i + 1], products[(i + 1) % 2]);
    repeat<TILE_TOKENS>([&](auto t) ZOO_INLINE_LAMBDA {
      repeat<K::PARTS>([&](auto part) ZOO_INLINE_LAMBDA {
        const VI total = load(products[i % 2] + 256 * part + 16 * t);
        totals[t] = scaled<K, part>(totals[t], total, panel[i], tokens[i].x[t]);
      });
    });
    if (K::GROUP == 1 || (i + 1) % K::GROUP != 0) continue;
    repeat<TILE_TOKENS>([&](auto t) ZOO_INLINE_LAMBDA {
      store_f(sums + t * W, fma(totals[t], splat(&tokens[i].x[t].scale), load_f(sums + t * W)));
      totals[t] = constant(0);
    });
  }
  if constexpr (K::GROUP == 1) repeat<TILE_TOKENS>([&](auto t) ZOO_INLINE_LAMBDA { store_f(sums + t * W, totals[t]); });
}

// Tokens first .. first + 15 from block `from` on; after the last token the last again.
inline void gather_tile(const Tokens& tokens, int64_t first, int64_t from, int64_t count, TokenTile* to) {
  for (int64_t i = 0; i < TILE_TOKENS; i++) {
    const int64_t token = first + i < tokens.count ? first + i : tokens.count - 1;
    for (int64_t b = 0; b < count; b++) store(&to[b].x[i], load(tokens.int8(token, from + b)));
  }
  asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
}

template <class K>
constexpr size_t TILE_PANEL_BYTES = sizeof(TileBlock<K>) * TILE_BLOCKS;

// Tiles of tokens that stay in a second-level cache while panel after panel, each of W rows, passes by.
inline int64_t tiles_together(int64_t cols, int64_t m) {
  const int64_t all = (m + TILE_TOKENS - 1) / TILE_TOKENS;
  const int64_t fit = TILE_CACHE / (TILE_TOKENS * cols / 32 * static_cast<int64_t>(sizeof(ActBlock)));
  return fit < 4 ? (all < 4 ? all : 4) : fit < all ? fit : all;
}

// A panel, tiles of tokens, and their sums [tiles][TILE_GROUPS][16][W].
template <class F>
size_t tiles_scratch(const Weight& weight, int64_t m) {
  constexpr size_t TILE = sizeof(TokenTile) * TILE_BLOCKS + sizeof(float) * TILE_GROUPS * TILE_TOKENS * W;
  return TILE_PANEL_BYTES<typename F::Kind> + TILE * static_cast<size_t>(tiles_together(weight.cols, m));
}

template <class F, class P>
void integer_tiles(const Rows& rows, const Tokens& tokens, const Output& y, uint8_t* scratch) {
  using K = typename F::Kind;
  auto* panel = reinterpret_cast<TileBlock<K>*>(scratch);
  auto* tile = reinterpret_cast<TokenTile*>(scratch + TILE_PANEL_BYTES<K>);
  const int64_t blocks = rows.weight.cols / 32, together = tiles_together(tokens.cols, tokens.count) * TILE_TOKENS;
  auto* sums = reinterpret_cast<float*>(tile + TILE_BLOCKS * (together / TILE_TOKENS));
  _tile_loadconfig(&TILE_SHAPES<K>);
  for (int64_t first = 0; first < tokens.count; first += together) {
    const int64_t last = first + together < tokens.count ? first + together : tokens.count;
    const int64_t tiles = (last - first + TILE_TOKENS - 1) / TILE_TOKENS;
    for (int64_t row = rows.low; row < rows.high; row += TILE_GROUPS * rows.step) {
      const int64_t left = (rows.high - row + rows.step - 1) / rows.step, groups = left < TILE_GROUPS ? left : TILE_GROUPS;
      const uint8_t* next = rows.tile(row + groups * rows.step).data;
      RowTile from_rows[TILE_GROUPS];
      for (int64_t g = 0; g < groups; g++) from_rows[g] = rows.tile(row + g * rows.step);
      __builtin_memset(sums, 0, static_cast<size_t>(together * TILE_GROUPS * W) * sizeof(float));
      for (int64_t from = 0; from < blocks; from += TILE_BLOCKS) {
        const int64_t count = blocks - from < TILE_BLOCKS ? blocks - from : TILE_BLOCKS;
        for (int64_t t = 0; t < tiles; t++) gather_tile(tokens, first + t * TILE_TOKENS, from, count, tile + t * TILE_BLOCKS);
        for (int64_t g = 0; g < groups; g++) {
          P p(from_rows[g].data, from_rows[g].stride);
          p.advance(from / F::BLOCKS * F::BYTES);
          for (int64_t i = 0; i < count; i += F::BLOCKS, p.advance(F::BYTES), next += F::BYTES * W)
            fill_panel<F, 1>(p, next, panel + i);
          for (int64_t t = 0; t < tiles; t++)
            tile_times_panel<K>(panel, count, tile + t * TILE_BLOCKS, sums + (t * TILE_GROUPS + g) * TILE_TOKENS * W);
        }
      }
      for (int64_t t = first; t < last; t++)
        for (int64_t g = 0; g < groups; g++) {
          const int64_t i = t - first, place = (i / TILE_TOKENS * TILE_GROUPS + g) * TILE_TOKENS + i % TILE_TOKENS;
          y.write(t, from_rows[g], sums + place * W);
        }
    }
  }
  _tile_release();
}

}  // namespace zoo::ZOO_ISA
