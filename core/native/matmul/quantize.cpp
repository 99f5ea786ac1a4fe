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

#ifdef ZOO_HALVED
// What halved.h adds for a token: minus the sum of xa xb, and what takes 16 off wa and adds 112 to wb.
ZOO_INLINE int32_t halved_sum(const int8_t* q, const int32_t* sums) {
  const auto half = [](const int8_t* from) ZOO_INLINE_LAMBDA {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  const __m256i eight = _mm256_madd_epi16(half(q), half(q + 16));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return 16 * (sums[0] + sums[1]) - 112 * (sums[2] + sums[3]) - _mm_cvtsi128_si32(four);
}
#endif

float as_magnitude(uint32_t bits) {
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, 4);
  return magnitude;
}

// What x is multiplied by if `largest`, the bits of a magnitude, is to become `most`. 0: then q shall be 1, which a scale of
// 0, infinity or NaN is multiplied by.
float inverse_scale(uint32_t largest, float most) {
  const float magnitude = as_magnitude(largest);
  return largest >= 0x7F800000u || magnitude < 1e-33f ? 0 : most / magnitude;  // an inverse would be infinite
}

// Rounds a block whose scale is known.
void quantize_block(const float* x, float inverse, ActBlock& out, int32_t* sums) {
  if (inverse > 0) {
    round_to_bytes(x, inverse, out.q);
  } else {
    for (int c = 0; c < 32; c++) out.q[c] = 1;
  }
  sum_columns(out.q, sums);
  out.centres.set(sums, out.shift);
}

// The largest magnitude becomes 127, so q never is -128, whose sign could not be moved to a weight.
void quantize_alone(const float* x, ActBlock& out) {
  const uint32_t largest = largest_magnitude(x);
  const float inverse = inverse_scale(largest, 127);
  const float magnitude = as_magnitude(largest);
  out.scale = magnitude < 1e-33f ? 0 : magnitude / 127;
  out.shift = 0;
  int32_t sums[4];
  quantize_block(x, inverse, out, sums);
  out.sum32 = out.scale * static_cast<float>(sums[0] + sums[1] + sums[2] + sums[3]);
}

// Blocks with one scale. One without large elements is doubled as often as it can be, or a few large ones would leave it no
// digits; its products are the less shifted.
void quantize_group(const float* x, ActBlock* out) {
  uint32_t largest[SHARING], most = 0;
  for (int b = 0; b < SHARING; b++) {
    largest[b] = largest_magnitude(x + 32 * b);
    most = largest[b] > most ? largest[b] : most;
  }
  const float inverse = inverse_scale(most, MOST_SHARED), magnitude = as_magnitude(most);
  const float scale = magnitude < 1e-33f ? 0 : magnitude / (MOST_SHARED * (1 << MOST_SHIFT));
  for (int b = 0; b < SHARING; b++) {
    // Bits of magnitudes one exponent apart are those of twice the number.
    const uint32_t fits = (most - largest[b]) >> 23;
    const int doubled = inverse > 0 ? static_cast<int>(fits < MOST_SHIFT ? fits : MOST_SHIFT) : 0;
    ActBlock& block = out[b];
    block.scale = scale;
    block.shift = MOST_SHIFT - doubled;
    int32_t sums[4];
    quantize_block(x + 32 * b, inverse * static_cast<float>(1 << doubled), block, sums);
    block.sum32 = static_cast<float>((sums[0] + sums[1] + sums[2] + sums[3]) * (1 << block.shift));
#ifdef ZOO_HALVED
    block.centres.halved = halved_sum(block.q, sums);
#endif
  }
}

// Calls quantize(x, act) for each `blocks` of blocks of a thread's share.
template <class Q>
void quantize_tokens(const float* x, int64_t ldx, int64_t m, int64_t k, ActBlock* act, int ith, int nth, int64_t blocks,
                     Q&& quantize) {
  const int64_t pieces = k / (32 * blocks), low = m * pieces * ith / nth, high = m * pieces * (ith + 1) / nth;
  for (int64_t i = low; i < high; i++) {
    const int64_t token = i / pieces, block = i % pieces * blocks;
    quantize(x + token * ldx + 32 * block, act + (block / SLICE * m + token) * SLICE + block % SLICE);
  }
}

#ifdef __AMX_BF16__
ZOO_INLINE void round_to_bf16(const float* x, uint16_t* out) {
  store(out, reinterpret_cast<VI>(_mm512_cvtne2ps_pbh(load_f(x + 16), load_f(x))));
}
#endif

}  // namespace

void quantize(int kind, const float* x, int64_t ldx, int64_t m, int64_t k, void* act, int ith, int nth) {
  auto* blocks = static_cast<ActBlock*>(act);
  if (kind == ACT_INT8)
    return quantize_tokens(x, ldx, m, k, blocks, ith, nth, 1, [](const float* from, ActBlock* to) { quantize_alone(from, *to); });
  if (kind == ACT_INT8_128) return quantize_tokens(x, ldx, m, k, blocks, ith, nth, SHARING, quantize_group);
#ifdef __AMX_BF16__
  if (kind == ACT_BF16) {
    const int64_t blocks = k / 32, low = m * blocks * ith / nth, high = m * blocks * (ith + 1) / nth;
    const Tokens tokens{act, m, nullptr, m, k};
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
  if (kind == ACT_INT8 || kind == ACT_INT8_128) return rows * static_cast<size_t>(slices(k) * SLICE) * sizeof(ActBlock);
  if (kind == ACT_BF16) return (rows + Bf16Tile::TOKENS - 1) / Bf16Tile::TOKENS * blocks * sizeof(Bf16Tile);
  return rows * static_cast<size_t>(padded(k)) * sizeof(float);
}

}  // namespace zoo::ZOO_ISA
