// AVX2, FMA and F16C; the integer products by VNNI where the compiler may use it (AVX-VNNI).
#pragma once
#include <immintrin.h>

namespace zoo::ZOO_ISA {

using VI = __m256i;
using VF = __m256;
constexpr int W = 8;
constexpr int ROW_GROUPS = 2, INT_TOKENS = 4, FLOAT_TOKENS = 6, FEW_TOKENS = 4;

ZOO_INLINE VI load(const void* p) { return _mm256_loadu_si256(static_cast<const VI*>(p)); }
ZOO_INLINE void store(void* p, VI v) { _mm256_storeu_si256(static_cast<VI*>(p), v); }
ZOO_INLINE VF load_f(const float* p) { return _mm256_loadu_ps(p); }
ZOO_INLINE void store_f(float* p, VF v) { _mm256_storeu_ps(p, v); }
ZOO_INLINE VI splat_word(const void* p) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
}
ZOO_INLINE VF splat(const float* p) { return _mm256_broadcast_ss(p); }
ZOO_INLINE VF constant(float x) { return _mm256_set1_ps(x); }
ZOO_INLINE VI word(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
ZOO_INLINE VI right(VI v, int n) { return _mm256_srli_epi32(v, n); }
ZOO_INLINE VI left(VI v, int n) { return _mm256_slli_epi32(v, n); }
ZOO_INLINE VI left_by(VI v, VI n) { return _mm256_sllv_epi32(v, n); }
ZOO_INLINE VI right_signed(VI v, int n) { return _mm256_srai_epi32(v, n); }
ZOO_INLINE VI add(VI a, VI b) { return _mm256_add_epi32(a, b); }
ZOO_INLINE VI sub(VI a, VI b) { return _mm256_sub_epi32(a, b); }
ZOO_INLINE VF as_float(VI v) { return _mm256_castsi256_ps(v); }
ZOO_INLINE VF to_float(VI v) { return _mm256_cvtepi32_ps(v); }
ZOO_INLINE VF mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
ZOO_INLINE VF fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }

ZOO_INLINE VI lookup(const int8_t* table, VI index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index);
}

ZOO_INLINE void transpose16(const RowCursor& rows, VI out[4]) {
  VI v[4];
  for (int i = 0; i < 4; i++) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(i)));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(i + 4)));
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  const VI a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const VI c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
}

ZOO_INLINE void halves(VI v, VF& low, VF& high) {
  const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const VI sorted = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order)), 0xD8);
  low = _mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
  high = _mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1));
}

ZOO_INLINE VF load_halves(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
ZOO_INLINE VI load_bytes(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }

ZOO_INLINE VI shuffle(VI v, __m128i from) { return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(from)); }

ZOO_INLINE VI spread_bits(VI v, int quad) {
  const int i = quad / 2;
  const VI from = shuffle(v, _mm_setr_epi8(i, i, i, i, i + 4, i + 4, i + 4, i + 4, i + 8, i + 8, i + 8, i + 8, i + 12,
                                           i + 12, i + 12, i + 12));
  const VI bit = word(quad % 2 ? 0x80402010u : 0x08040201u);
  return _mm256_cmpeq_epi8(from & bit, bit) & word(0x10101010u);
}

ZOO_INLINE VI pick_byte(VI v, int i) {
  return shuffle(v, _mm_setr_epi8(i, -1, -1, -1, i + 4, -1, -1, -1, i + 8, -1, -1, -1, i + 12, -1, -1, -1));
}

#ifdef __AVXVNNI__

#define ZOO_VNNI_DOT(sum, w, a) _mm256_dpbusd_avx_epi32(sum, w, a)
ZOO_INLINE VI zero_words() { return _mm256_setzero_si256(); }

#else

constexpr bool SIGNED_AS_UNSIGNED = false, CENTRE_IN_WEIGHTS = false, FREE_FACTORS = true, SCALED_HALVES = false;

// What takes 16 off the weights of 32 columns, and 32 off those of 16: minus 16 (32) times the sum of q over columns 4 j,
// 4 j + 1, and the same over 4 j + 2, 4 j + 3.
struct Centres {
  float half_sums[2];
  int16_t of_all[2], of_halves[4];

  ZOO_INLINE void set(const int32_t* sums, int shift) {
    for (int half = 0; half < 2; half++)
      half_sums[half] = static_cast<float>((sums[2 * half] + sums[2 * half + 1]) * (1 << shift));
    for (int i = 0; i < 2; i++) of_all[i] = static_cast<int16_t>(-16 * (sums[i] + sums[i + 2]));
    for (int i = 0; i < 4; i++) of_halves[i] = static_cast<int16_t>(-32 * sums[i]);
  }
  ZOO_INLINE VF half_sum(int half, VI) const { return splat(&half_sums[half]); }
};

// Without VNNI products are summed in 16 bits as long as they cannot overflow, which costs two instructions per 32
// products instead of three: neighbouring columns of up to FLUSH steps. Sums may wrap around on the way, for a centre is
// taken off first. Signed weights need the sign moved over to x, and their pairs already fill 16 bits.
template <Encoding E, int FACTORS, int CENTRE, int>
struct Sum {
  static constexpr int FLUSH = E == Encoding::S8 ? 1 : FACTORS == 2 || (E == Encoding::U5 && !CENTRE) ? 4 : 8;
  static constexpr int TOGETHER = FLUSH == 4 ? 1 : ROW_GROUPS;  // row groups whose sums fit into 16 registers
  static constexpr int TOKENS = INT_TOKENS;
  static_assert(E != Encoding::U6 || CENTRE == 32);
  struct Quad { VI w, magnitude; };
  VI narrow, wide;

  static ZOO_INLINE Quad prepare(VI w) { return {w, E == Encoding::S8 ? _mm256_abs_epi8(w) : w}; }
  // Byte i of each word as a factor of sums: in both halves of the word.
  static ZOO_INLINE VI factor(VI v, int i) {
    return shuffle(v, _mm_setr_epi8(i, -1, i, -1, i + 4, -1, i + 4, -1, i + 8, -1, i + 8, -1, i + 12, -1, i + 12, -1));
  }
  static ZOO_INLINE VI signed_factor(VI v, int i) {
    const VI high = shuffle(v, _mm_setr_epi8(-1, i, -1, i, -1, i + 4, -1, i + 4, -1, i + 8, -1, i + 8, -1, i + 12, -1,
                                             i + 12));
    return _mm256_srai_epi16(high, 8);
  }

  template <int J>
  ZOO_INLINE void step(const Quad& w, VI x, VI scale, const Centres& centres) {
    const VI pairs = _mm256_maddubs_epi16(w.magnitude, E == Encoding::S8 ? _mm256_sign_epi8(x, w.w) : x);
    if constexpr (J % FLUSH != 0) {
      narrow = _mm256_add_epi16(narrow, pairs);
    } else if constexpr (CENTRE != 0) {
      narrow = _mm256_add_epi16(splat_word(CENTRE == 32 ? centres.of_halves + J / 4 * 2 : centres.of_all), pairs);
    } else {
      narrow = pairs;
    }
    asm("" : "+x"(narrow));  // a compiler that reorders these sums needs more registers than there are
    if constexpr (J % FLUSH == FLUSH - 1) {
      const VI words = _mm256_madd_epi16(narrow, FACTORS ? scale : _mm256_set1_epi16(1));
      wide = J < FLUSH ? words : add(wide, words);
      asm("" : "+x"(wide));
    }
  }
  ZOO_INLINE VI total() const { return wide; }
};

#endif

}  // namespace zoo::ZOO_ISA
