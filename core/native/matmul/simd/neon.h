// ARM NEON with dotprod and half precision conversion (ARMv8.2).
#pragma once
#include <arm_neon.h>

namespace zoo::ZOO_ISA {

using VI = uint32x4_t;
using VF = float32x4_t;
constexpr int W = 4;
constexpr int ROW_GROUPS = 4, INT_TOKENS = 4, FLOAT_TOKENS = 5, FEW_TOKENS = 4;

ZOO_INLINE VI load(const void* p) { return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
ZOO_INLINE void store(void* p, VI v) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_u32(v)); }
ZOO_INLINE VF load_f(const float* p) { return vld1q_f32(p); }
ZOO_INLINE void store_f(float* p, VF v) { vst1q_f32(p, v); }
ZOO_INLINE VI word(uint32_t x) { return vdupq_n_u32(x); }
ZOO_INLINE VF constant(float x) { return vdupq_n_f32(x); }
ZOO_INLINE VI splat_word(const void* p) {
  uint32_t x;
  __builtin_memcpy(&x, p, 4);
  return word(x);
}
ZOO_INLINE VF splat(const float* p) { return vld1q_dup_f32(p); }
ZOO_INLINE VI right(VI v, int n) { return vshlq_u32(v, vdupq_n_s32(-n)); }
ZOO_INLINE VI left(VI v, int n) { return vshlq_u32(v, vdupq_n_s32(n)); }
ZOO_INLINE VI left_by(VI v, VI n) { return vshlq_u32(v, vreinterpretq_s32_u32(n)); }
ZOO_INLINE VI right_signed(VI v, int n) {
  return vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-n)));
}
ZOO_INLINE VI add(VI a, VI b) { return vaddq_u32(a, b); }
ZOO_INLINE VI sub(VI a, VI b) { return vsubq_u32(a, b); }
ZOO_INLINE VF as_float(VI v) { return vreinterpretq_f32_u32(v); }
ZOO_INLINE VF to_float(VI v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
ZOO_INLINE VF mul(VF a, VF b) { return vmulq_f32(a, b); }
ZOO_INLINE VF fma(VF a, VF b, VF c) { return vfmaq_f32(c, a, b); }

ZOO_INLINE VI lookup(const int8_t* table, VI index) {
  return vreinterpretq_u32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_u32(index)));
}

ZOO_INLINE void transpose16(const RowCursor& rows, VI out[4]) {
  const VI a = load(rows.row(0)), b = load(rows.row(1)), c = load(rows.row(2)), d = load(rows.row(3));
  const uint64x2_t ab0 = vreinterpretq_u64_u32(vzip1q_u32(a, b)), ab1 = vreinterpretq_u64_u32(vzip2q_u32(a, b));
  const uint64x2_t cd0 = vreinterpretq_u64_u32(vzip1q_u32(c, d)), cd1 = vreinterpretq_u64_u32(vzip2q_u32(c, d));
  out[0] = vreinterpretq_u32_u64(vzip1q_u64(ab0, cd0));
  out[1] = vreinterpretq_u32_u64(vzip2q_u64(ab0, cd0));
  out[2] = vreinterpretq_u32_u64(vzip1q_u64(ab1, cd1));
  out[3] = vreinterpretq_u32_u64(vzip2q_u64(ab1, cd1));
}

ZOO_INLINE void halves(VI v, VF& low, VF& high) {
  low = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(v)));
  high = vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(v, 16)));
}

ZOO_INLINE VF load_halves(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
ZOO_INLINE VI load_bytes(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

ZOO_INLINE VI spread_bits(VI v, int quad) {
  const VI from = vmulq_n_u32(word(0x01010101u), static_cast<uint32_t>(quad / 2)) +
                  VI{0, 0x04040404u, 0x08080808u, 0x0C0C0C0Cu};
  const uint8x16_t picked = vqtbl1q_u8(vreinterpretq_u8_u32(v), vreinterpretq_u8_u32(from));
  const uint8x16_t bit = vreinterpretq_u8_u32(word(quad % 2 ? 0x80402010u : 0x08040201u));
  return vreinterpretq_u32_u8(vandq_u8(vtstq_u8(picked, bit), vdupq_n_u8(16)));
}

ZOO_INLINE VI pick_byte(VI v, int i) { return right(left(v, 24 - 8 * i), 24); }

}  // namespace zoo::ZOO_ISA

#include "signed.h"

namespace zoo::ZOO_ISA {

template <Encoding E, int FACTORS, int CENTRE, int>
struct Sum {
  static constexpr int TOGETHER = FACTORS == 2 ? 2 : ROW_GROUPS;
  static constexpr int TOKENS = INT_TOKENS;
  using Quad = VI;
  int32x4_t narrow, wide;

  static ZOO_INLINE Quad prepare(VI w) { return w; }
  static ZOO_INLINE VI factor(VI v, int i) { return pick_byte(v, i); }
  static ZOO_INLINE VI signed_factor(VI v, int i) { return right_signed(left(v, 24 - 8 * i), 24); }

  template <int J>
  ZOO_INLINE void step(VI w, VI x, VI scale, const Centres&) {
    const int32x4_t start = J % (FACTORS == 2 ? 4 : 8) == 0 ? vdupq_n_s32(0) : narrow;
    narrow = vdotq_s32(start, vreinterpretq_s8_u32(w), vreinterpretq_s8_u32(x));
    if constexpr (FACTORS == 2 && J == 3) wide = vmulq_s32(narrow, vreinterpretq_s32_u32(scale));
    if constexpr (FACTORS == 2 && J == 7) wide = vmlaq_s32(wide, narrow, vreinterpretq_s32_u32(scale));
  }
  ZOO_INLINE VI total() const { return vreinterpretq_u32_s32(FACTORS == 2 ? wide : narrow); }
};

}  // namespace zoo::ZOO_ISA
