// Formats with blocks of 256 columns ("K" types and IQ4_XS), unpacked 32 columns at a time.
#pragma once

#include "formats_32.h"

namespace zoo::ZOO_ISA {

template <Encoding E, int MINS, int FACTORS = 0, int CENTRE = 0>
using Kind256 = Kind<E, MINS, FACTORS, CENTRE, SHARING>;

// d, dmin, 12 bytes that hold 6-bit scales and mins of 8 sub-blocks: value = d * scale * q - dmin * min.
// Bytes 0-3 and 4-7 hold scales and mins 0-3, and in their top bits those of 4-7, whose low nibbles are bytes 8-11.
struct ScalesAndMins {
  VF d, minus_dmin;
  VI scales[2], mins[2];  // bytes

  template <class P>
  ZOO_INLINE void read(const P& p) {
    const typename P::template Part<0> begin(p);
    d = begin.template half<0>();
    minus_dmin = mul(begin.template half<2>(), constant(-1));
    const VI six = word(0x3F3F3F3Fu), upper = word(0x30303030u), nibble = word(LOW_NIBBLES);
    const VI first = begin.template word<4>(), second = begin.template word<8>(), third = begin.template word<12>();
    scales[0] = first & six;
    scales[1] = (third & nibble) | (right(first, 2) & upper);
    mins[0] = second & six;
    mins[1] = (right(third, 4) & nibble) | (right(second, 2) & upper);
  }
  template <class K, int I>
  ZOO_INLINE Head<K> head() const {
    Head<K> head;
    head.set_scale(d, scales[I / 4], I % 4);
    head.min[0] = mul(minus_dmin, to_float(pick_byte(mins[I / 4], I % 4)));
    return head;
  }
};

struct FormatQ4_K {  // d, dmin, scales, 4 x 32 bytes of nibbles
  using Kind = Kind256<Encoding::U4, 1, 1>;
  static constexpr int BLOCKS = 8, BYTES = 144;
  static constexpr Order ORDER = {{{0, 4, 2}, {4, 144}}};
  template <class P>
  struct Unit {
    ScalesAndMins scales;
    typename P::template Words<32> pair;
    ZOO_INLINE void read(const P& p) { scales.read(p); }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      if constexpr (I % 2 == 0) pair.template read<16 + I / 2 * 32>(p);
      return scales.template head<Kind, I>();
    }
    template <int I, int J>
    ZOO_INLINE VI quad() const { return right(pair[J], 4 * (I % 2)) & word(LOW_NIBBLES); }
  };
};

struct FormatQ5_K {  // as Q4_K, with 32 bytes of fifth bits before the nibbles: bit i belongs to sub-block i
  using Kind = Kind256<Encoding::U5, 1, 1>;
  static constexpr int BLOCKS = 8, BYTES = 176;
  static constexpr Order ORDER = {{{0, 4, 2}, {4, 16}, {16, 48, 4, 48}, {80, 176}}};
  template <class P>
  struct Unit {
    ScalesAndMins scales;
    typename P::template Words<32> fifth, pair;
    ZOO_INLINE void read(const P& p) {
      scales.read(p);
      fifth.template read<16>(p);
    }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      if constexpr (I % 2 == 0) pair.template read<48 + I / 2 * 32>(p);
      return scales.template head<Kind, I>();
    }
    template <int I, int J>
    ZOO_INLINE VI quad() const {
      const VI bit = (I < 4 ? left(fifth[J], 4 - I) : right(fifth[J], I - 4)) & word(0x10101010u);
      return (right(pair[J], 4 * (I % 2)) & word(LOW_NIBBLES)) | bit;
    }
  };
};

struct FormatQ6_K {  // 2 x 64 bytes of nibbles, 2 x 32 bytes of upper bits, 16 signed scales, d: d * scale * (q - 32)
  using Kind = Kind256<Encoding::U6, 0, 2, 32>;
  static constexpr int BLOCKS = 8, BYTES = 210;
  static constexpr Order ORDER = {
      {{192, 208}, {0, 32, 4, 128}, {32, 64}, {64, 96, 4, 160}, {96, 128}, {208, 210, 2}}};  // d last: vectors are aligned
  template <class P>
  struct Unit {
    typename P::template Words<16> scales;
    typename P::template Words<32> low[2], high;
    VF d;
    ZOO_INLINE void read(const P& p) {
      scales.template read<192>(p);
      d = typename P::template Part<194>(p).template half<208>();
    }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      if constexpr (I % 4 == 0) {
        low[0].template read<I / 4 * 64>(p);
        low[1].template read<I / 4 * 64 + 32>(p);
        high.template read<128 + I / 4 * 32>(p);
      }
      Head<Kind> head;
      head.set_signed_scales(d, scales[I / 2], I % 2 * 2);
      return head;
    }
    template <int I, int J>
    ZOO_INLINE VI quad() const {
      constexpr int i = I % 4;
      const VI upper = i < 2 ? left(high[J], 4 - 2 * i) : right(high[J], 2 * i - 4);
      return (right(low[i % 2][J], i / 2 * 4) & word(LOW_NIBBLES)) | (upper & word(0x30303030u));
    }
  };
};

// 32 bytes of third bits, 2 x 32 bytes of 2-bit planes, 12 bytes of scales, d: d * (scale - 32) * (q - 4).
// Unpacked as 8 q with a scale of d / 8: then the centre is the one of Q6_K.
struct FormatQ3_K {
  using Kind = Kind256<Encoding::U6, 0, 2, 32>;
  static constexpr int BLOCKS = 8, BYTES = 110;
  static constexpr Order ORDER = {{{96, 108}, {0, 32, 4, 32}, {64, 96}, {108, 110, 2}}};
  template <class P>
  struct Unit {
    typename P::template Words<32> third, planes;
    VI scales[4];
    VF d;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<94> end(p);
      d = mul(end.template half<108>(), constant(0.125f));
      // Scale i has its low nibble in the first two words, its upper bits in plane i / 4 of the last
      const VI low[2] = {end.template word<96>(), end.template word<100>()}, last = end.template word<104>();
      repeat<4>([&](auto i) ZOO_INLINE_LAMBDA {
        const VI upper = (i < 2 ? left(last, 4 - 2 * i) : right(last, 2 * i - 4)) & word(0x30303030u);
        const VI top = word(0x80808080u);
        scales[i] = (right(low[i % 2], i / 2 * 4) & word(LOW_NIBBLES)) | upper | top;
        scales[i] = sub(scales[i], word(0x20202020u)) ^ top;
      });
      third.template read<0>(p);
    }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      if constexpr (I % 4 == 0) planes.template read<32 + I / 4 * 32>(p);
      Head<Kind> head;
      head.set_signed_scales(d, scales[I / 2], I % 2 * 2);
      return head;
    }
    template <int I, int J>
    ZOO_INLINE VI quad() const {
      constexpr int i = I % 4;
      const VI two = i < 2 ? left(planes[J], 3 - 2 * i) : right(planes[J], 2 * i - 3);
      const VI one = I < 5 ? left(third[J], 5 - I) : right(third[J], I - 5);
      return (two & word(0x18181818u)) | (one & word(0x20202020u));
    }
  };
};

struct FormatQ2_K {  // 16 bytes of nibbles (scale, min), 2 x 32 bytes of 2-bit planes, d, dmin: d * scale * q - dmin * min
  using Kind = Kind256<Encoding::U4, 2, 2>;
  static constexpr int BLOCKS = 8, BYTES = 84;
  static constexpr Order ORDER = {{{80, 84, 2}, {0, 80}}};
  template <class P>
  struct Unit {
    typename P::template Words<16> pairs;
    typename P::template Words<32> planes;
    VF d, minus_dmin;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<68> end(p);
      d = end.template half<80>();
      minus_dmin = mul(end.template half<82>(), constant(-1));
      pairs.template read<0>(p);
    }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      if constexpr (I % 4 == 0) planes.template read<16 + I / 4 * 32>(p);
      Head<Kind> head;
      const VI both = pairs[I / 2], scales = both & word(LOW_NIBBLES), mins = right(both, 4) & word(LOW_NIBBLES);
      head.set_scales(d, scales, I % 2 * 2);
      repeat<2>([&](auto g) ZOO_INLINE_LAMBDA {
        head.min[g] = mul(minus_dmin, to_float(pick_byte(mins, I % 2 * 2 + g)));
      });
      return head;
    }
    template <int I, int J>
    ZOO_INLINE VI quad() const { return right(planes[J], I % 4 * 2) & word(0x03030303u); }
  };
};

struct FormatIQ4_XS {  // d, 8 x upper 2 bits, 8 x lower 4 bits of scales, 8 x 16 bytes of nibbles: d * (scale - 32) * level[q]
  using Kind = Kind256<Encoding::S8, 0>;
  static constexpr int BLOCKS = 8, BYTES = 136;
  static constexpr Order ORDER = {{{0, 136}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VI upper, lower;  // scales
    VF d;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<0> begin(p);
      upper = begin.template word<0>();
      lower = begin.template word<4>();
      VF unused;
      halves(upper, d, unused);
    }
    template <int I>
    ZOO_INLINE Head<Kind> head(const P& p) {
      q.template read<8 + 16 * I>(p);
      const VI bits = (right(lower, 4 * I) & word(15)) | left(right(upper, 16 + 2 * I) & word(3), 4);
      return scale_only<Kind>(mul(d, to_float(sub(bits, word(32)))));
    }
    template <int, int J>
    ZOO_INLINE VI quad() const { return lookup(IQ4_LEVELS, q.template quad<J>()); }
  };
};

}  // namespace zoo::ZOO_ISA
