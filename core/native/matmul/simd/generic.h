// Any processor: vectors of the compiler, four words long. Slow, and the meaning of every other file here.
#pragma once

namespace zoo::ZOO_ISA {

typedef uint32_t VI __attribute__((vector_size(16)));
typedef int32_t VS __attribute__((vector_size(16)));
typedef float VF __attribute__((vector_size(16)));
constexpr int W = 4;
constexpr int ROW_GROUPS = 1, INT_TOKENS = 2, FLOAT_TOKENS = 4, FEW_TOKENS = 1;

ZOO_INLINE VI load(const void* p) {
  VI v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ZOO_INLINE void store(void* p, VI v) { __builtin_memcpy(p, &v, sizeof v); }
ZOO_INLINE VF load_f(const float* p) {
  VF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ZOO_INLINE void store_f(float* p, VF v) { __builtin_memcpy(p, &v, sizeof v); }
ZOO_INLINE VI word(uint32_t x) { return VI{x, x, x, x}; }
ZOO_INLINE VF constant(float x) { return VF{x, x, x, x}; }
ZOO_INLINE VI splat_word(const void* p) {
  uint32_t x;
  __builtin_memcpy(&x, p, 4);
  return word(x);
}
ZOO_INLINE VF splat(const float* p) { return constant(*p); }
ZOO_INLINE VI right(VI v, int n) { return v >> static_cast<uint32_t>(n); }
ZOO_INLINE VI left(VI v, int n) { return v << static_cast<uint32_t>(n); }
ZOO_INLINE VI left_by(VI v, VI n) { return v << n; }
ZOO_INLINE VI right_signed(VI v, int n) { return (VI)((VS)v >> n); }
ZOO_INLINE VI add(VI a, VI b) { return a + b; }
ZOO_INLINE VI sub(VI a, VI b) { return a - b; }
ZOO_INLINE VF as_float(VI v) { return (VF)v; }
ZOO_INLINE VF to_float(VI v) { return __builtin_convertvector((VS)v, VF); }
ZOO_INLINE VF mul(VF a, VF b) { return a * b; }
ZOO_INLINE VF fma(VF a, VF b, VF c) { return a * b + c; }  // rounded twice: this processor may lack the instruction

ZOO_INLINE VI lookup(const int8_t* table, VI index) {
  uint8_t i[16];
  store(i, index);
  for (uint8_t& byte : i) byte = static_cast<uint8_t>(table[byte & 15]);
  return load(i);
}

ZOO_INLINE void transpose16(const RowCursor& rows, VI out[4]) {
  VI v[4];
  for (int i = 0; i < 4; i++) v[i] = load(rows.row(i));
  for (int j = 0; j < 4; j++) out[j] = VI{v[0][j], v[1][j], v[2][j], v[3][j]};
}

ZOO_INLINE void halves(VI v, VF& low, VF& high) {
  for (int i = 0; i < W; i++) {
    low[i] = half_to_float(static_cast<uint16_t>(v[i]));
    high[i] = half_to_float(static_cast<uint16_t>(v[i] >> 16));
  }
}

ZOO_INLINE VF load_halves(const uint8_t* p) {
  VF v;
  for (int i = 0; i < W; i++) v[i] = half_to_float(static_cast<uint16_t>(p[2 * i] | p[2 * i + 1] << 8));
  return v;
}
ZOO_INLINE VI load_bytes(const uint8_t* p) { return VI{p[0], p[1], p[2], p[3]}; }

ZOO_INLINE VI spread_bits(VI v, int quad) {
  return ((right(v, 4 * quad) & word(15)) * word(0x00204081u << 4)) & word(0x10101010u);
}

ZOO_INLINE VI pick_byte(VI v, int i) { return right(left(v, 24 - 8 * i), 24); }

}  // namespace zoo::ZOO_ISA

#include "signed.h"

namespace zoo::ZOO_ISA {

template <Encoding E, int FACTORS, int CENTRE, int>
struct Sum {
  static constexpr int TOGETHER = 1, TOKENS = INT_TOKENS;
  using Quad = VI;
  VI narrow, wide;

  static ZOO_INLINE Quad prepare(VI w) { return w; }
  static ZOO_INLINE VI factor(VI v, int i) { return pick_byte(v, i); }
  static ZOO_INLINE VI signed_factor(VI v, int i) { return right_signed(left(v, 24 - 8 * i), 24); }

  template <int J>
  ZOO_INLINE void step(VI w, VI x, VI scale, const Centres&) {
    VS products{};
    for (int i = 0; i < 4; i++) {
      products += ((VS)left(w, 24 - 8 * i) >> 24) * ((VS)left(x, 24 - 8 * i) >> 24);
    }
    narrow = J % (FACTORS == 2 ? 4 : 8) == 0 ? (VI)products : narrow + (VI)products;
    if constexpr (FACTORS == 2 && J == 3) wide = narrow * scale;
    if constexpr (FACTORS == 2 && J == 7) wide += narrow * scale;
  }
  ZOO_INLINE VI total() const { return FACTORS == 2 ? wide : narrow; }
};

}  // namespace zoo::ZOO_ISA
