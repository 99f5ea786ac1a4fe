// How blocks of W rows lie in memory, seen alike by all formats.
//
// Raw rows lie apart, as in a file, and are turned into vectors by transposing. Packed rows lie W together: an element of
// a block (a word, or what NARROW of its format says) is followed by the same element of the next row, and the W of them
// begin at W times their place in a block. So a tile is as large as its rows were, and a vector is one load.
#pragma once

#include "simd/simd.h"

namespace zoo::ZOO_ISA {

struct RawRows : RowCursor {
  static constexpr bool PACKED = false;

  ZOO_INLINE RawRows(const uint8_t* data, ptrdiff_t stride) : RowCursor(data, stride) {}

  // Elements in the 16 bytes from FROM on.
  template <int FROM>
  struct Part {
    VI v[4];

    ZOO_INLINE explicit Part(const RawRows& p) { transpose16(p + FROM, v); }
    template <int AT>
    ZOO_INLINE VI word() const {
      constexpr int i = (AT - FROM) / 4, bits = (AT - FROM) % 4 * 8;
      if constexpr (bits == 0) return v[i];
      else return right(v[i], bits) | left(v[i + 1], 32 - bits);
    }
    template <int AT>
    ZOO_INLINE VI byte() const { return pick_byte(v[(AT - FROM) / 4], (AT - FROM) % 4); }
    template <int AT>
    ZOO_INLINE VF half() const {
      VF low, high;
      halves(v[(AT - FROM) / 4], low, high);
      return (AT - FROM) % 4 == 0 ? low : high;
    }
  };

  // N bytes of words.
  template <int N>
  struct Words {
    VI v[N / 4];

    template <int AT>
    ZOO_INLINE void read(const RawRows& p) {
      repeat<N / 16>([&](auto i) ZOO_INLINE_LAMBDA { transpose16(p + (AT + 16 * i), v + 4 * i); });
    }
    ZOO_INLINE VI operator[](int i) const { return v[i]; }
  };
};

struct PackedRows {
  static constexpr bool PACKED = true;
  const uint8_t* p;

  ZOO_INLINE PackedRows(const uint8_t* data, ptrdiff_t) : p(data) {}
  ZOO_INLINE void advance(int64_t bytes) { p += W * bytes; }

  template <int FROM>
  struct Part {
    const uint8_t* p;

    ZOO_INLINE explicit Part(const PackedRows& rows) : p(rows.p) {}
    template <int AT>
    ZOO_INLINE VI word() const { return load(p + W * AT); }
    template <int AT>
    ZOO_INLINE VI byte() const { return load_bytes(p + W * AT); }
    template <int AT>
    ZOO_INLINE VF half() const { return load_halves(p + W * AT); }
  };

  template <int N>
  struct Words {
    const uint8_t* p;

    template <int AT>
    ZOO_INLINE void read(const PackedRows& rows) { p = rows.p + W * AT; }
    ZOO_INLINE VI operator[](int i) const { return load(p + 4 * W * i); }
  };
};

}  // namespace zoo::ZOO_ISA
