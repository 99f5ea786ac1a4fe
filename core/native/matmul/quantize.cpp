// float32 activations -> what products read.
#include "dispatch.h"

namespace zoo::ZOO_ISA {
namespace {

// What takes most of the time, in vectors where the compiler would not.
#ifdef __AVX512F__

ZOO_INLINE uint32_t largest_magnitude(const float* x) {
  const VI magnitude = word(0x7FFFFFFFu);
  return _mm512_reduce_max_epu32(_mm512_max_epu32(load(x) & magnitude, load(x + 16) & magnitude));
}

ZOO_INLINE void round_to_bytes(const float* x, float inverse, int8_t* q) {
  const auto bytes = [&](const float* from) ZOO_INLINE_LAMBDA {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(mul(load_f(from), constant(inverse))));
  };
  const __m128i low = bytes(x), high = bytes(x + 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

#else

// Bits of magnitudes order as the numbers do, and NaN comes last: it must not get lost.
ZOO_INLINE uint32_t largest_magnitude(const float* x) {
  uint32_t largest = 0;
  for (int c = 0; c < 32; c++) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + c, 4);
    bits &= 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

ZOO_INLINE void round_to_bytes(const float* x, float inverse, int8_t* q) {
  for (int c = 0; c < 32; c++) q[c] = static_cast<int8_t>(static_cast<int32_t>(__builtin_rintf(x[c] * inverse)));
}

#endif

// sums[2 h + p]: of columns 4 j + 2 p and 4 j + 2 p + 1 of half h.
ZOO_INLINE void sum_columns(const int8_t* q, int32_t* sums) {
#ifdef __AVX2__
  // Pairs of neighbours, then the pairs of each half with those two, four and six further.
  __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
  pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4E));
  pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xB1));
  for (int half = 0; half < 2; half++) {
    const int32_t both = half ? _mm256_extract_epi32(pairs, 4) : _mm256_extract_epi32(pairs, 0);
    sums[2 * half] = static_cast<int16_t>(both);
    sums[2 * half + 1] = both >> 16;
  }
#else
  for (int i = 0; i < 4; i++) sums[i] = 0;
  for (int c = 0; c < 32; c++) sums[c / 16 * 2 + c % 4 / 2] += q[c];
#endif
}

// 32 columns. A scale is the largest magnitude / 127, so q never is -128, whose sign could not be moved to a
// weight.
void quantize_block(const float* x, ActBlock& out) {
  const uint32_t largest = largest_magnitude(x);
  float magnitude, inverse = 0;
  __builtin_memcpy(&magnitude, &largest, 4);
  float scale = magnitude / 127.0f;
  if (magnitude < 1e-35f) {
    scale = 0;  // the inverse would be infinite
  } else if (largest < 0x7F800000u) {
    inverse = 127.0f / magnitude;
  }
  int8_t* q = out.q;
  if (inverse > 0) {
    round_to_bytes(x, inverse, q);
  } else {
    for (int c = 0; c < 32; c++) q[c] = 1;  // times a scale of 0, infinity or NaN
  }
  int32_t sums[4];
  sum_columns(q, sums);
  out.scale = scale;
  out.sum32 = scale * static_cast<float>(sums[0] + sums[1] + sums[2] + sums[3]);
  for (int half = 0; half < 2; half++) {
    out.sum16[half] = scale * static_cast<float>(sums[2 * half] + sums[2 * half + 1]);
    out.centre32[half] = static_cast<int16_t>(-16 * (sums[half] + sums[half + 2]));
  }
  for (int part = 0; part < 4; part++) out.centre16[part] = static_cast<int16_t>(-32 * sums[part]);
  out.unused = 0;
}

#ifdef __AMX_BF16__
ZOO_INLINE void round_to_bf16(const float* x, uint16_t* out) {
  store(out, reinterpret_cast<VI>(_mm512_cvtne2ps_pbh(load_f(x + 16), load_f(x))));
}
#endif

}  // namespace

void quantize(int kind, const float* x, int64_t ldx, int64_t m, int64_t k, void* act, int ith, int nth) {
  if (kind == ACT_INT8) {
    const int64_t blocks = k / 32, low = m * blocks * ith / nth, high = m * blocks * (ith + 1) / nth;
    for (int64_t i = low; i < high; i++) {
      const int64_t token = i / blocks, block = i % blocks;
      quantize_block(x + token * ldx + 32 * block, static_cast<ActBlock*>(act)[i]);
    }
    return;
  }
#ifdef __AMX_BF16__
  if (kind == ACT_BF16) {
    const int64_t blocks = k / 32, low = m * blocks * ith / nth, high = m * blocks * (ith + 1) / nth;
    const Tokens tokens{act, nullptr, m, k};
    for (int64_t i = low; i < high; i++) {
      const int64_t token = i / blocks, block = i % blocks;
      auto* tile = const_cast<Bf16Tile*>(tokens.bf16(token)) + block;
      round_to_bf16(x + token * ldx + 32 * block, tile->x[token % Bf16Tile::TOKENS]);
    }
    return;
  }
#endif
  const int64_t wide = padded(k), low = m * ith / nth, high = m * (ith + 1) / nth;
  for (int64_t t = low; t < high; t++) {
    float* row = static_cast<float*>(act) + t * wide;
    for (int64_t i = 0; i < wide; i++) row[i] = i < k ? x[t * ldx + i] : 0.0f;
  }
}

size_t activation_bytes(int kind, int64_t m, int64_t k) {
  const auto rows = static_cast<size_t>(m), blocks = static_cast<size_t>(k / 32);
  if (kind == ACT_INT8) return rows * blocks * sizeof(ActBlock);
  if (kind == ACT_BF16) return (rows + Bf16Tile::TOKENS - 1) / Bf16Tile::TOKENS * blocks * sizeof(Bf16Tile);
  return rows * static_cast<size_t>(padded(k)) * sizeof(float);
}

}  // namespace zoo::ZOO_ISA
