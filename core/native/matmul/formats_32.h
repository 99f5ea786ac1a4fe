// Formats with blocks of 32 columns. The nibble of byte j is column j, the upper one column j + 16.
#pragma once

#include "integer.h"

namespace zoo::ZOO_ISA {

constexpr uint32_t LOW_NIBBLES = 0x0F0F0F0Fu;

template <class K>
ZOO_INLINE Head<K> scale_only(VF scale) {
  Head<K> head;
  head.scale[0] = scale;
  return head;
}
template <class K>
ZOO_INLINE Head<K> scale_and_min(VF scale, VF min) {
  Head<K> head;
  head.scale[0] = scale;
  head.min[0] = min;
  return head;
}

// 32 columns in 16 bytes.
template <class P>
struct Nibbles {
  typename P::template Words<16> words;

  template <int AT>
  ZOO_INLINE void read(const P& p) { words.template read<AT>(p); }
  template <int J>
  ZOO_INLINE VI quad() const {
    if constexpr (J < 4) return words[J] & word(LOW_NIBBLES);
    else return right(words[J - 4], 4) & word(LOW_NIBBLES);
  }
};

struct FormatQ4_0 {  // d, q: d * (q - 8)
  using Kind = ZOO_ISA::Kind<Encoding::U4, 1>;
  static constexpr int BLOCKS = 1, BYTES = 18;
  static constexpr Order ORDER = {{{0, 2, 2}, {2, 18}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VF d;
    ZOO_INLINE void read(const P& p) {
      d = typename P::template Part<0>(p).template half<0>();
      q.template read<2>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_and_min<Kind>(d, mul(d, constant(-8))); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return q.template quad<J>(); }
  };
};

struct FormatQ4_1 {  // d, m, q: d * q + m
  using Kind = ZOO_ISA::Kind<Encoding::U4, 1>;
  static constexpr int BLOCKS = 1, BYTES = 20;
  static constexpr Order ORDER = {{{0, 4, 2}, {4, 20}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VF d, m;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<0> begin(p);
      d = begin.template half<0>();
      m = begin.template half<2>();
      q.template read<4>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_and_min<Kind>(d, m); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return q.template quad<J>(); }
  };
};

struct FormatQ5_0 {  // d, 32 fifth bits, q: d * (q - 16)
  using Kind = ZOO_ISA::Kind<Encoding::U5, 0, 0, 16>;
  static constexpr int BLOCKS = 1, BYTES = 22;
  static constexpr Order ORDER = {{{0, 2, 2}, {2, 22}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VI fifth;
    VF d;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<0> begin(p);
      d = begin.template half<0>();
      fifth = begin.template word<2>();
      q.template read<6>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_only<Kind>(d); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return q.template quad<J>() | spread_bits(fifth, J); }
  };
};

struct FormatQ5_1 {  // d, m, 32 fifth bits, q: d * q + m
  using Kind = ZOO_ISA::Kind<Encoding::U5, 1>;
  static constexpr int BLOCKS = 1, BYTES = 24;
  static constexpr Order ORDER = {{{0, 4, 2}, {4, 24}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VI fifth;
    VF d, m;
    ZOO_INLINE void read(const P& p) {
      const typename P::template Part<0> begin(p);
      d = begin.template half<0>();
      m = begin.template half<2>();
      fifth = begin.template word<4>();
      q.template read<8>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_and_min<Kind>(d, m); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return q.template quad<J>() | spread_bits(fifth, J); }
  };
};

struct FormatQ8_0 {  // d, 32 signed bytes: d * q
  using Kind = ZOO_ISA::Kind<Encoding::S8, 0>;
  static constexpr int BLOCKS = 1, BYTES = 34;
  static constexpr Order ORDER = {{{0, 2, 2}, {2, 34}}};
  template <class P>
  struct Unit {
    typename P::template Words<32> q;
    VF d;
    ZOO_INLINE void read(const P& p) {
      d = typename P::template Part<0>(p).template half<0>();
      q.template read<2>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_only<Kind>(d); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return q[J]; }
  };
};

alignas(16) constexpr int8_t IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
// Twice the values of E2M1, plus 16.
alignas(16) constexpr int8_t FP4_LEVELS[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

struct FormatIQ4_NL {  // d, q: d * level[q]
  using Kind = ZOO_ISA::Kind<Encoding::S8, 0>;
  static constexpr int BLOCKS = 1, BYTES = 18;
  static constexpr Order ORDER = {{{0, 2, 2}, {2, 18}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VF d;
    ZOO_INLINE void read(const P& p) {
      d = typename P::template Part<0>(p).template half<0>();
      q.template read<2>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_only<Kind>(d); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return lookup(IQ4_LEVELS, q.template quad<J>()); }
  };
};

struct FormatMXFP4 {  // exponent E8M0, q: 2^(e - 128) * level[q]
  using Kind = ZOO_ISA::Kind<Encoding::U5, 0, 0, 16>;
  static constexpr int BLOCKS = 1, BYTES = 17;
  static constexpr Order ORDER = {{{0, 1, 1}, {1, 17}}};
  template <class P>
  struct Unit {
    Nibbles<P> q;
    VF d;
    ZOO_INLINE void read(const P& p) {
      // in two factors, for 2^-128 itself is subnormal
      const VI exponent = typename P::template Part<0>(p).template byte<0>(), half = right(exponent, 1);
      const auto power = [](VI e) ZOO_INLINE_LAMBDA { return as_float(left(add(e, word(63)), 23)); };  // 2^(e - 64)
      d = mul(power(half), power(sub(exponent, half)));
      q.template read<1>(p);
    }
    template <int>
    ZOO_INLINE Head<Kind> head(const P&) const { return scale_only<Kind>(d); }
    template <int, int J>
    ZOO_INLINE VI quad() const { return lookup(FP4_LEVELS, q.template quad<J>()); }
  };
};

}  // namespace zoo::ZOO_ISA
