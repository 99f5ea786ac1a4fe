// How blocks of W rows lie in memory, seen alike by all formats.
//
// Raw rows lie apart, as in a file, and are turned into vectors by transposing. Packed rows lie W together: an element of
// a block is followed by the same element of the next row, and elements come in the ORDER of their format. So a tile is as
// large as its rows were, and a vector is one load.
#pragma once

#include "dispatch.h"
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

template <class F>
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
    ZOO_INLINE VI word() const { return load(at<AT>()); }
    template <int AT>
    ZOO_INLINE VI byte() const { return load_bytes(at<AT>()); }
    template <int AT>
    ZOO_INLINE VF half() const { return load_halves(at<AT>()); }

   private:
    template <int AT>
    ZOO_INLINE const uint8_t* at() const {
      constexpr int place = F::ORDER.place(AT);
      return p + W * place;
    }
  };

  // Words that are as far from each other as the first two are.
  template <int N>
  struct Words {
    const uint8_t* p;
    int step;

    template <int AT>
    ZOO_INLINE void read(const PackedRows& rows) {
      constexpr int first = F::ORDER.place(AT), apart = F::ORDER.place(AT + 4) - first;
      static_assert(F::ORDER.place(AT + N - 4) == first + apart * (N / 4 - 1));
      p = rows.p + W * first;
      step = W * apart;
    }
    ZOO_INLINE VI operator[](int i) const { return load(p + step * i); }
  };
};

}  // namespace zoo::ZOO_ISA
