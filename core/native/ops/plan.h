// How attention is divided: units that any thread may take. One row of a sequence is split along its keys, at places that
// depend on its length alone; many rows are tiled. So what a row gives depends on no other sequence and on no thread.
#pragma once

#include "tile.h"

namespace zoo::ZOO_ISA::ops {

constexpr int64_t CHUNK = 128;     // keys of one unit of a single row
constexpr int64_t TILE_ROWS = 128;  // query rows of one unit of a prompt

// Some new tokens of a sequence, seen from one group of heads, over the keys begin <= j < end.
struct Unit { int64_t sequence, lane, first, tokens, begin, end, partial; };

struct Work {
  const int32_t *cu_seqlens, *seq_lens, *positions;
  int64_t sequences;
  int64_t lanes, group;   // groups of heads that share keys, and heads of a group
  int64_t v_dim, window;  // 0: none
  int64_t most;           // sequences of more new tokens are not this op's

  int64_t units() const {
    int64_t total = 0;
    for (int64_t s = 0; s < sequences; ++s) total += pieces(s) * lanes;
    return total;
  }
  // Units whose results are combined afterwards.
  int64_t partials() const {
    int64_t total = 0;
    for (int64_t s = 0; s < sequences; ++s)
      if (splits(s)) total += pieces(s) * lanes;
    return total;
  }
  int64_t length(int64_t s) const {
    const int64_t n = cu_seqlens[s + 1] - cu_seqlens[s];
    return n > most ? 0 : n;
  }
  int64_t pieces(int64_t s) const {
    const int64_t n = length(s);
    if (n == 0) return 0;
    if (n > 1) return (n + tile_tokens() - 1) / tile_tokens();
    return (seq_lens[s] - first_key(seq_lens[s] - 1) + CHUNK - 1) / CHUNK;
  }
  bool splits(int64_t s) const { return length(s) == 1 && pieces(s) > 1; }
  int64_t tile_tokens() const { return group >= TILE_ROWS ? 1 : TILE_ROWS / group; }
  int64_t first_key(int64_t position) const {
    const int64_t first = window ? position - window + 1 : 0;
    return first > 0 ? first / KEYS * KEYS : 0;
  }
  // What a partial unit leaves: per row the maximum, the total and the sum of values.
  int64_t row_floats() const { return 2 + (v_dim + VL - 1) / VL * VL; }
  int64_t partial_floats() const { return group * row_floats(); }
};

// Finds the units by their number, those of the same keys one after the other; numbers must not fall from call to call.
class Cursor {
 public:
  Unit find(const Work& work, int64_t index) {
    for (;; ++sequence_) {
      const int64_t pieces = work.pieces(sequence_), units = pieces * work.lanes;
      const bool split = work.splits(sequence_);
      if (index < units_before_ + units) return unit(work, index - units_before_, pieces, split);
      units_before_ += units;
      if (split) partials_before_ += units;
    }
  }

 private:
  Unit unit(const Work& work, int64_t inside, int64_t pieces, bool split) const {
    const int64_t lane = inside % work.lanes, piece = inside / work.lanes, start = work.cu_seqlens[sequence_];
    if (work.length(sequence_) == 1) {
      const int64_t length = work.seq_lens[sequence_], begin = work.first_key(length - 1) + piece * CHUNK;
      const int64_t end = begin + CHUNK < length ? begin + CHUNK : length;
      return {sequence_, lane, start, 1, begin, end, split ? partials_before_ + lane * pieces + piece : -1};
    }
    // The last tile sees the most keys, so it comes first.
    const int64_t size = work.tile_tokens(), first = start + (pieces - 1 - piece) * size;
    const int64_t left = work.cu_seqlens[sequence_ + 1] - first, tokens = left < size ? left : size;
    return {sequence_, lane, first, tokens, work.first_key(work.positions[first]),
            work.positions[first + tokens - 1] + 1, -1};
  }

  int64_t sequence_ = 0, units_before_ = 0, partials_before_ = 0;
};

// finish(token, head, best, total, out) for each row of a unit, or the row into `partials` if the unit is one of several.
template <class Finish>
void leave(const Work& work, const Unit& unit, const Rows& rows, float* partials, Finish finish) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const float* out = rows.out + r * rows.value_padded;
    if (unit.partial < 0) {
      finish(unit.first + r / work.group, unit.lane * work.group + r % work.group, rows.best[r], rows.total[r], out);
      continue;
    }
    float* kept = partials + unit.partial * work.partial_floats() + r * work.row_floats();
    kept[0] = rows.best[r];
    kept[1] = rows.total[r];
    for (int64_t i = 0; i < rows.value_padded; ++i) kept[2 + i] = out[i];
  }
}

// Puts the pieces of split rows together, in the order of the keys. `out` is scratch of v_dim floats, padded.
template <class Finish>
void combine(const Work& work, const float* partials, float* out, const Worker& worker, Finish finish) {
  const int64_t width = work.row_floats() - 2, step = work.partial_floats();
  int64_t item = 0;
  for (int64_t s = 0; s < work.sequences; ++s) {
    if (!work.splits(s)) continue;
    const int64_t pieces = work.pieces(s);
    for (int64_t head = 0; head < work.lanes * work.group; ++head) {
      if (item++ % worker.nth != worker.ith) continue;
      const float* first = partials + head / work.group * pieces * step + head % work.group * work.row_floats();
      float best = NOTHING, total = 0;
      for (int64_t piece = 0; piece < pieces; ++piece) best = first[piece * step] > best ? first[piece * step] : best;
      for (int64_t i = 0; i < width; ++i) out[i] = 0;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const float* part = first + piece * step;
        if (part[0] == NOTHING) continue;
        const float keep = exp(splat(part[0] - best))[0];
        total += part[1] * keep;
        for (int64_t i = 0; i < width; i += VL) store(out + i, load(out + i) + load(part + 2 + i) * keep);
      }
      finish(work.cu_seqlens[s], head, best, total, out);
    }
    partials += pieces * work.lanes * step;
  }
}

// Rotates the first 2 half elements of a head and multiplies all by a factor.
struct Rotation {
  const float *cos, *sin;
  int64_t half;
  bool interleaved;

  void turn(const float* from, int64_t token, int64_t width, float factor, float* to) const {
    const float *c = cos + token * half, *s = sin + token * half;
    const int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = from[i * step], b = from[i * step + apart];
      to[i * step] = (a * c[i] - b * s[i]) * factor;
      to[i * step + apart] = (b * c[i] + a * s[i]) * factor;
    }
    for (int64_t i = 2 * half; i < width; ++i) to[i] = from[i] * factor;
  }
};

template <class E>
inline void pack(const float* from, int64_t width, void* to, int64_t at) {
  typename E::type* out = static_cast<typename E::type*>(to) + at;
  int64_t i = 0;
  for (; i + VL <= width; i += VL) E::put(out + i, load(from + i));
  for (; i < width; ++i) out[i] = E::pack(from[i]);
}

}  // namespace zoo::ZOO_ISA::ops
