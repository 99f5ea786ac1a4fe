// Vectors of floats in the widest form that the instruction set has, and functions on them. The compiler's vector
// extension carries the arithmetic; only conversions need intrinsics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "zoo.h"

namespace zoo::ZOO_ISA::ops {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
inline vf splat(float x) { return x - vf{}; }
inline vf select(vi mask, vf a, vf b) { return mask ? a : b; }
inline vf max(vf a, vf b) { return select(a > b, a, b); }

// Lane i of the result: v[i] of the first `n` lanes, 0 beyond; reads and writes nothing beyond.
inline vf load_part(const float* p, int64_t n) {
  if (n >= VL) return load(p);
  alignas(64) float lanes[VL] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
inline void store_part(float* p, vf v, int64_t n) {
  if (n >= VL) return store(p, v);
  alignas(64) float lanes[VL];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

inline float sum(vf v) {
  alignas(64) float lanes[VL];
  store(lanes, v);
  for (int width = VL / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline float largest(vf v) {
  alignas(64) float lanes[VL];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < VL; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

// e^x to about one unit in the last place between -87 and 88, clamped outside; NaN stays NaN.
inline vf exp(vf x) {
  x = select(x < -87.0f, splat(-87.0f), x);
  x = select(x > 88.0f, splat(88.0f), x);
  const vf magic = splat(12582912.0f);  // adding it rounds to an integer in the low bits
  const vf shifted = x * 1.44269504f + magic;
  const vf n = shifted - magic;
  const vf r = x - n * 0.693145752f - n * 1.42860677e-6f;
  vf p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const vi power = (reinterpret_cast<vi>(shifted) << 23) + 0x3f800000;
  return p * reinterpret_cast<vf>(power);
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }
inline vf tanh(vf x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

inline vf activation(int32_t act, vf x) {
  if (act == SILU) return x * sigmoid(x);
  const vf inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh(inner));
}

// Element types of a cache or of a small dense vector. float at(p): VL elements; put(p, v): VL elements.
struct Full {
  using type = float;
  static vf at(const float* p) { return load(p); }
  static void put(float* p, vf v) { store(p, v); }
  static float one(float x) { return x; }
  static float pack(float x) { return x; }
};

struct Brain {
  using type = uint16_t;
  static vf at(const uint16_t* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif defined(__AVX2__)
    return reinterpret_cast<vf>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#elif defined(__aarch64__)
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
#else
    vi bits;
    for (int i = 0; i < VL; ++i) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
    return reinterpret_cast<vf>(bits);
#endif
  }
  static void put(uint16_t* p, vf v) {
    alignas(64) float lanes[VL];
    store(lanes, v);
    for (int i = 0; i < VL; ++i) p[i] = pack(lanes[i]);
  }
  static float one(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  // To the nearest, ties to even, as torch rounds.
  static uint16_t pack(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
  }
};

struct Half {
  using type = uint16_t;
  static vf at(const uint16_t* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    vf out;
    for (int i = 0; i < VL; ++i) out[i] = one(p[i]);
    return out;
#endif
  }
  static void put(uint16_t* p, vf v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
    for (int i = 0; i < VL; ++i) p[i] = pack(v[i]);
#endif
  }
  static float one(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    float out;
    if (exponent == 0) {
      out = static_cast<float>(mantissa) * 0x1p-24f;
    } else {
      const uint32_t bits = (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
      std::memcpy(&out, &bits, 4);
    }
    return sign ? -out : out;
  }
  static uint16_t pack(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00;
    if (bits >= 0x477ff000u) return sign | 0x7c00;
    if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
      float magnitude;
      std::memcpy(&magnitude, &bits, 4);
      magnitude += 0.5f;
      std::memcpy(&bits, &magnitude, 4);
      return sign | static_cast<uint16_t>(bits - 0x3f000000u);
    }
    bits += 0xfffu + (bits >> 13 & 1);
    return sign | static_cast<uint16_t>((bits - 0x38000000u) >> 13);
  }
};

// VL elements of a dense vector of any float type, at index i; n of them are there.
inline vf load_any(int32_t type, const void* p, int64_t i, int64_t n) {
  if (type == F32) return load_part(static_cast<const float*>(p) + i, n);
  const uint16_t* from = static_cast<const uint16_t*>(p) + i;
  if (n >= VL) return type == F16 ? Half::at(from) : Brain::at(from);
  alignas(64) float lanes[VL] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j] = type == F16 ? Half::one(from[j]) : Brain::one(from[j]);
  return load(lanes);
}

// A thread's part of n things.
struct Range { int64_t begin, end; };
inline Range share(int64_t n, int ith, int nth) { return {n * ith / nth, n * (ith + 1) / nth}; }

inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace zoo::ZOO_ISA::ops
