// AVX-512 F, BW, VL, DQ with VNNI.
#pragma once
#include <immintrin.h>

namespace zoo::ZOO_ISA {

using VI = __m512i;
using VF = __m512;
constexpr int W = 16;
constexpr int ROW_GROUPS = 2, INT_TOKENS = 6, FLOAT_TOKENS = 12, FEW_TOKENS = 4;

ZOO_INLINE VI load(const void* p) { return _mm512_loadu_si512(p); }
ZOO_INLINE void store(void* p, VI v) { _mm512_storeu_si512(p, v); }
ZOO_INLINE VF load_f(const float* p) { return _mm512_loadu_ps(p); }
ZOO_INLINE void store_f(float* p, VF v) { _mm512_storeu_ps(p, v); }
ZOO_INLINE VI splat_word(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
ZOO_INLINE VF splat(const float* p) { return _mm512_set1_ps(*p); }
ZOO_INLINE VF constant(float x) { return _mm512_set1_ps(x); }
ZOO_INLINE VI word(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
ZOO_INLINE VI right(VI v, int n) { return _mm512_srli_epi32(v, static_cast<unsigned>(n)); }
ZOO_INLINE VI left(VI v, int n) { return _mm512_slli_epi32(v, static_cast<unsigned>(n)); }
ZOO_INLINE VI left_by(VI v, VI n) { return _mm512_sllv_epi32(v, n); }
ZOO_INLINE VI right_signed(VI v, int n) { return _mm512_srai_epi32(v, static_cast<unsigned>(n)); }
ZOO_INLINE VI add(VI a, VI b) { return _mm512_add_epi32(a, b); }
ZOO_INLINE VI sub(VI a, VI b) { return _mm512_sub_epi32(a, b); }
ZOO_INLINE VF as_float(VI v) { return _mm512_castsi512_ps(v); }
ZOO_INLINE VF to_float(VI v) { return _mm512_cvtepi32_ps(v); }
ZOO_INLINE VF mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
ZOO_INLINE VF fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }

ZOO_INLINE VI lookup(const int8_t* table, VI index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), index);
}

ZOO_INLINE void transpose16(const RowCursor& rows, VI out[4]) {
  VI v[4];
  for (int i = 0; i < 4; i++) {
    const auto row = [&](int r) ZOO_INLINE_LAMBDA {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>((r < 8 ? rows.row(r) : rows.row(r - 8) + 8 * rows.stride)));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i + 8)), row(i + 12), 1);
    v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  const VI a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const VI c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

ZOO_INLINE void halves(VI v, VF& low, VF& high) {
  low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
  high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(right(v, 16)));
}

ZOO_INLINE VF load_halves(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
ZOO_INLINE VI load_bytes(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

ZOO_INLINE VI spread_bits(VI v, int quad) {
  const __m128i words = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
  const VI from = _mm512_add_epi8(_mm512_broadcast_i32x4(words), _mm512_set1_epi8(static_cast<char>(quad / 2)));
  const VI bit = word(quad % 2 ? 0x80402010u : 0x08040201u);
  return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(_mm512_shuffle_epi8(v, from), bit), word(0x10101010u));
}

ZOO_INLINE VI pick_byte(VI v, int i) { return right(left(v, 24 - 8 * i), 24); }

#define ZOO_VNNI_DOT(sum, w, a) _mm512_dpbusd_epi32(sum, w, a)
ZOO_INLINE VI zero_words() { return _mm512_setzero_si512(); }

}  // namespace zoo::ZOO_ISA
