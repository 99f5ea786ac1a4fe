// Attention of a few query rows over a run of keys, by an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867)
// over blocks of keys that begin at multiples of KEYS: a row's bits do not depend on where its tile began.
#pragma once

#include <limits>
#include <type_traits>

#include "vec.h"

namespace zoo::ZOO_ISA::ops {

constexpr int KEYS = 64;      // keys of a block
constexpr int DIRECT = 4;     // rows of a lone token that read the cache as it is; others share an unpacked copy of a block
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

template <int STEP>
inline vf fold(vf a, vf b) {
  vi low, high;
  for (int i = 0; i < VL; ++i) {
    low[i] = i & STEP ? VL + i - STEP : i;
    high[i] = i & STEP ? VL + i : i + STEP;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Lane i of the result is the sum over the lanes of v[i]; the VL vectors are overwritten.
inline vf sum_each(vf* v) {
  for (int i = 0; i < VL / 2; ++i) v[i] = fold<1>(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < VL / 4; ++i) v[i] = fold<2>(v[2 * i], v[2 * i + 1]);
  if constexpr (VL >= 8)
    for (int i = 0; i < VL / 8; ++i) v[i] = fold<4>(v[2 * i], v[2 * i + 1]);
  if constexpr (VL >= 16) v[0] = fold<8>(v[0], v[1]);
  return v[0];
}

// n elements, zeros beyond.
template <class E>
inline vf part_of(const typename E::type* from, int64_t n) {
  alignas(64) float lanes[VL] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = E::one(from[i]);
  return load(lanes);
}

// VL vectors of VL lanes, each lane with its vector exchanged.
inline void transpose(vf* v) {
  const auto exchange = [&](auto distance) {
    constexpr int STEP = distance;
    vi low, high;
    for (int i = 0; i < VL; ++i) {
      low[i] = i & STEP ? VL + i - STEP : i;
      high[i] = i & STEP ? VL + i : i + STEP;
    }
    for (int i = 0; i < VL; ++i) {
      if (i & STEP) continue;
      const vf a = v[i], b = v[i + STEP];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + STEP] = __builtin_shuffle(a, b, high);
    }
  };
  exchange(std::integral_constant<int, 1>{});
  exchange(std::integral_constant<int, 2>{});
  if constexpr (VL >= 8) exchange(std::integral_constant<int, 4>{});
  if constexpr (VL >= 16) exchange(std::integral_constant<int, 8>{});
}

// Keys as columns: to [width, KEYS].
template <class E>
inline void unpack_keys(const typename E::type* const* keys, int64_t width, float* to) {
  for (int64_t h = 0; h < width; h += VL) {
    const int64_t part = width - h < VL ? width - h : VL;
    for (int j = 0; j < KEYS; j += VL) {
      vf v[VL];
      for (int i = 0; i < VL; ++i) v[i] = part == VL ? E::at(keys[j + i] + h) : part_of<E>(keys[j + i] + h, part);
      transpose(v);
      for (int64_t i = 0; i < part; ++i) store(to + (h + i) * KEYS + j, v[i]);
    }
  }
}

// scores[r, j] = q[r] . key j for R rows and KEYS keys as columns: a lane has a key, so nothing is summed across.
template <int R>
inline void score_columns(const float* q, int64_t ldq, const float* keys, int64_t width, float* scores) {
  constexpr int BLOCK = VL >= 16 ? 4 : 2;  // as many sums as there are registers for
  for (int j = 0; j < KEYS; j += BLOCK * VL) {
    vf total[R][BLOCK] = {};
    for (int64_t h = 0; h < width; ++h) {
      vf key[BLOCK];
      for (int b = 0; b < BLOCK; ++b) key[b] = load(keys + h * KEYS + j + b * VL);
      for (int r = 0; r < R; ++r)
        for (int b = 0; b < BLOCK; ++b) total[r][b] += key[b] * q[r * ldq + h];
    }
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < BLOCK; ++b) store(scores + r * KEYS + j + b * VL, total[r][b]);
  }
}

// The same for n keys, or some more, as they lie in the cache; `width` is a multiple of VL.
template <class E, int R>
inline void score(const float* q, int64_t ldq, const typename E::type* const* keys, int n, int64_t width, float* scores) {
  for (int j = 0; j < n; j += VL) {
    vf products[R][VL];
    for (int c = 0; c < VL; c += 2) {
      vf a[R] = {}, b[R] = {};
      const typename E::type *first = keys[j + c], *second = keys[j + c + 1];
      for (int64_t h = 0; h < width; h += VL) {
        const vf k0 = E::at(first + h), k1 = E::at(second + h);
        for (int r = 0; r < R; ++r) {
          const vf x = load(q + r * ldq + h);
          a[r] += x * k0;
          b[r] += x * k1;
        }
      }
      for (int r = 0; r < R; ++r) products[r][c] = a[r], products[r][c + 1] = b[r];
    }
    for (int r = 0; r < R; ++r) store(scores + r * KEYS + j, sum_each(products[r]));
  }
}

// out[r] += sum over n keys of weights[r, j] * value j; `width` is a multiple of VL.
template <class E, int R, int BLOCK>
inline void mix_block(const float* weights, const typename E::type* const* values, int n, int64_t at, float* out,
                      int64_t ld) {
  vf total[R][BLOCK];
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < BLOCK; ++b) total[r][b] = load(out + r * ld + at + b * VL);
  for (int j = 0; j < n; ++j) {
    vf value[BLOCK];
    for (int b = 0; b < BLOCK; ++b) value[b] = E::at(values[j] + at + b * VL);
    for (int r = 0; r < R; ++r) {
      const float weight = weights[r * KEYS + j];
      for (int b = 0; b < BLOCK; ++b) total[r][b] += value[b] * weight;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int b = 0; b < BLOCK; ++b) store(out + r * ld + at + b * VL, total[r][b]);
}

template <class E, int R>
inline void mix(const float* weights, const typename E::type* const* values, int n, int64_t width, float* out, int64_t ld) {
  constexpr int BLOCK = 2;
  int64_t at = 0;
  for (; at + BLOCK * VL <= width; at += BLOCK * VL) mix_block<E, R, BLOCK>(weights, values, n, at, out, ld);
  for (; at < width; at += VL) mix_block<E, R, 1>(weights, values, n, at, out, ld);
}

// Where the keys and values of a sequence lie: rows of E, one per position, in pages.
template <class E>
struct Pages {
  const typename E::type *keys, *values;  // of this head, at the first page
  const int32_t* table;
  int64_t page, key_row, value_row;  // positions of a page; elements between positions
  int64_t offset(int64_t position, int64_t row) const {
    return (static_cast<int64_t>(table[position / page]) * page + position % page) * row;
  }
};

// Rows of queries with the state of their softmax. Row r sees keys first(r) <= j <= last[r].
struct Rows {
  int count;
  bool alone;                              // the rows of a sequence's only new token
  int64_t key_width, value_width;          // as in the cache
  int64_t key_padded, value_padded;        // rounded up to VL
  float* q;                                // [count, key_padded], scaled, zeros beyond key_width
  float* out;                              // [count, value_padded]
  float *best, *total;                     // [count]
  int64_t* last;                           // [count]
  int64_t window;                          // 0: none
  float softcap;                           // 0: none
  float *scores, *unpacked_keys, *unpacked_values;
};

// Floats of scratch that Rows needs.
inline int64_t rows_floats(int64_t count, int64_t key_width, int64_t value_width) {
  const int64_t k = (key_width + VL - 1) / VL * VL, v = (value_width + VL - 1) / VL * VL;
  return count * (k + v + KEYS + 2 + 2) + KEYS * (k + v) + 64;
}

// Rows on scratch that holds their state already.
inline Rows lay_rows(float* scratch, int64_t count, int64_t key_width, int64_t value_width) {
  Rows rows{};
  rows.count = static_cast<int>(count);
  rows.key_width = key_width;
  rows.value_width = value_width;
  rows.key_padded = (key_width + VL - 1) / VL * VL;
  rows.value_padded = (value_width + VL - 1) / VL * VL;
  rows.q = scratch;
  rows.out = rows.q + count * rows.key_padded;
  rows.scores = rows.out + count * rows.value_padded;
  rows.unpacked_keys = rows.scores + count * KEYS;
  rows.unpacked_values = rows.unpacked_keys + KEYS * rows.key_padded;
  rows.last = reinterpret_cast<int64_t*>(rows.unpacked_values + KEYS * rows.value_padded);
  rows.best = reinterpret_cast<float*>(rows.last + count);
  rows.total = rows.best + count;
  return rows;
}

// Rows that have seen nothing.
inline Rows make_rows(float* scratch, int64_t count, int64_t key_width, int64_t value_width) {
  Rows rows = lay_rows(scratch, count, key_width, value_width);
  for (int64_t i = 0; i < count * rows.key_padded; ++i) rows.q[i] = 0;
  for (int64_t i = 0; i < count * rows.value_padded; ++i) rows.out[i] = 0;
  for (int64_t r = 0; r < count; ++r) rows.best[r] = NOTHING, rows.total[r] = 0;
  return rows;
}

template <class E>
inline void unpack(const typename E::type* from, int64_t width, int64_t padded, float* to) {
  int64_t i = 0;
  for (; i + VL <= width; i += VL) store(to + i, E::at(from + i));
  for (; i < padded; ++i) to[i] = i < width ? E::one(from[i]) : 0.0f;
}

// Calls use(how many, first row) for rows four at a time, then for the rest together: a key is read once for all of them.
template <class Use>
inline void by_fours(int count, Use use) {
  int r = 0;
  for (; r + 4 <= count; r += 4) use(std::integral_constant<int, 4>{}, r);
  if (count - r == 3) use(std::integral_constant<int, 3>{}, r);
  if (count - r == 2) use(std::integral_constant<int, 2>{}, r);
  if (count - r == 1) use(std::integral_constant<int, 1>{}, r);
}

inline void score_rows(const Rows& rows, const float* columns) {
  by_fours(rows.count, [&](auto together, int r) {
    score_columns<together>(rows.q + r * rows.key_padded, rows.key_padded, columns, rows.key_width, rows.scores + r * KEYS);
  });
}

template <class E>
inline void score_rows(const Rows& rows, const typename E::type* const* keys, int n) {
  by_fours(rows.count, [&](auto together, int r) {
    score<E, together>(rows.q + r * rows.key_padded, rows.key_padded, keys, n, rows.key_padded, rows.scores + r * KEYS);
  });
}

template <class E>
inline void mix_rows(const Rows& rows, const typename E::type* const* values, int n) {
  const int64_t ld = rows.value_padded;
  by_fours(rows.count, [&](auto together, int r) {
    mix<E, together>(rows.scores + r * KEYS, values, n, ld, rows.out + r * ld, ld);
  });
}

// Turns scores of the keys from `start` into weights, and brings what was summed up to the new maximum.
inline void soften(Rows& rows, int64_t start) {
  for (int r = 0; r < rows.count; ++r) {
    float* s = rows.scores + r * KEYS;
    const int64_t last = rows.last[r] - start;
    const int64_t first = rows.window && rows.last[r] - rows.window + 1 > start ? rows.last[r] - rows.window + 1 - start : 0;
    if (last < first) {
      for (int j = 0; j < KEYS; ++j) s[j] = 0;
      continue;
    }
    if (rows.softcap != 0)
      for (int j = 0; j < KEYS; j += VL) store(s + j, rows.softcap * tanh(load(s + j) * (1.0f / rows.softcap)));
    for (int64_t j = 0; j < first && j < KEYS; ++j) s[j] = NOTHING;
    for (int64_t j = last + 1; j < KEYS; ++j) s[j] = NOTHING;
    vf top = load(s);
    for (int j = VL; j < KEYS; j += VL) top = max(load(s + j), top);
    const float best = largest(top) > rows.best[r] ? largest(top) : rows.best[r];
    if (best == NOTHING) {
      for (int j = 0; j < KEYS; ++j) s[j] = 0;
      continue;
    }
    vf part = {};
    for (int j = 0; j < KEYS; j += VL) {
      const vf raw = load(s + j);
      const vf weight = select(raw == NOTHING, vf{}, exp(raw - best));
      store(s + j, weight);
      part += weight;
    }
    const float keep = rows.best[r] == NOTHING ? 0.0f : exp(splat(rows.best[r] - best))[0];
    rows.total[r] = rows.total[r] * keep + sum(part);
    rows.best[r] = best;
    if (keep != 1.0f)
      for (int64_t i = 0; i < rows.value_padded; i += VL)
        store(rows.out + r * rows.value_padded + i, load(rows.out + r * rows.value_padded + i) * keep);
  }
}

// Rows of keys and values of a block, past its n keys the last one again.
template <class E>
struct Found {
  const typename E::type *keys[KEYS], *values[KEYS];

  void find(const Pages<E>& pages, int64_t position, int n) {
    for (int j = 0; j < KEYS; ++j) {
      const int64_t at = position + (j < n ? j : n - 1);
      keys[j] = pages.keys + pages.offset(at, pages.key_row);
      values[j] = pages.values + pages.offset(at, pages.value_row);
    }
  }
  // Many rows at once: a row alone is over before memory has answered.
  void fetch(int64_t key_width, int64_t value_width, int n) const {
    constexpr int64_t LINE = 64 / sizeof(typename E::type);
    for (int j = 0; j < n; ++j) {
      for (int64_t i = 0; i < key_width; i += LINE) __builtin_prefetch(keys[j] + i);
      for (int64_t i = 0; i < value_width; i += LINE) __builtin_prefetch(values[j] + i);
    }
  }
};

// Attends to the keys begin <= j < end of a sequence; the rows' `last` bounds what each may see. `pages` begins at
// position `origin`; begin - origin is a multiple of KEYS.
template <class E>
inline void attend_keys(Rows& rows, const Pages<E>& pages, int64_t begin, int64_t end, int64_t origin = 0) {
  // Not by the number of rows alone: a token's bits would depend on how many others its tile has.
  const bool aligned = rows.key_width == rows.key_padded && rows.value_width == rows.value_padded;
  const bool direct = rows.alone && rows.count <= DIRECT && aligned;
  const auto keys_from = [&](int64_t start) { return static_cast<int>(end - start < KEYS ? end - start : KEYS); };
  Found<E> found[2];
  const float* wide_values[KEYS];
  const auto find = [&](int64_t start) {
    Found<E>& block = found[(start - begin) / KEYS % 2];
    block.find(pages, start - origin, keys_from(start));
    if (direct) block.fetch(rows.key_width, rows.value_width, keys_from(start));
  };
  if (begin < end) find(begin);
  for (int64_t start = begin; start < end; start += KEYS) {
    if (start + KEYS < end) find(start + KEYS);
    const int n = keys_from(start);
    const auto& [keys, values] = found[(start - begin) / KEYS % 2];
    if (direct) {
      score_rows<E>(rows, keys, n);
      soften(rows, start);
      mix_rows<E>(rows, values, n);
      continue;
    }
    unpack_keys<E>(keys, rows.key_width, rows.unpacked_keys);
    score_rows(rows, rows.unpacked_keys);
    soften(rows, start);
    for (int j = 0; j < n; ++j) {
      wide_values[j] = rows.unpacked_values + j * rows.value_padded;
      unpack<E>(values[j], rows.value_width, rows.value_padded, rows.unpacked_values + j * rows.value_padded);
    }
    mix_rows<Full>(rows, wide_values, n);
  }
}

}  // namespace zoo::ZOO_ISA::ops
