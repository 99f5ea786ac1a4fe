// Rows of every type as float32: the definitions of zoo/quant/dequant.py, one block at a time, bit for bit.
#include "codebooks.h"
#include "dispatch.h"

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")  // products and sums are rounded one by one
#endif

namespace zoo::ZOO_ISA {
namespace {

using Bytes = const uint8_t*;

uint16_t word16(Bytes p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
uint32_t word32(Bytes p) { return word16(p) | static_cast<uint32_t>(word16(p + 2)) << 16; }
float half(Bytes p) { return half_to_float(word16(p)); }
float single(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
int nibble(Bytes p, int i) { return p[i / 2] >> i % 2 * 4 & 15; }  // side by side, low one first

void f32(Bytes p, float* out) { *out = single(word32(p)); }
void f16(Bytes p, float* out) { *out = half(p); }
void bf16(Bytes p, float* out) { *out = single(static_cast<uint32_t>(word16(p)) << 16); }

// f16(2^8 v) has the bits of E4M3 in its own fields; only NaN looks like a number there.
void fp8_e4m3(Bytes p, float* out) {
  const uint32_t magnitude = *p & 127u;
  const float value = half_to_float(static_cast<uint16_t>((*p & 128u) << 8 | magnitude << 7)) * 256.0f;
  *out = magnitude == 127 ? single(0x7FC00000u) : value;
}

// 16 bytes: element j is the low nibble of byte j, element j + 16 its high one.
template <class Value>
void nibble_planes(Bytes q, int count, float* out, Value value) {
  for (int j = 0; j < count; j++) {
    out[j] = value(q[j] & 15, j);
    out[j + count] = value(q[j] >> 4, j + count);
  }
}

void q4_0(Bytes p, float* out) {
  nibble_planes(p + 2, 16, out, [d = half(p)](int q, int) { return static_cast<float>(q - 8) * d; });
}
void q4_1(Bytes p, float* out) {
  nibble_planes(p + 4, 16, out, [d = half(p), m = half(p + 2)](int q, int) { return static_cast<float>(q) * d + m; });
}
void q5_0(Bytes p, float* out) {
  nibble_planes(p + 6, 16, out, [d = half(p), fifth = word32(p + 2)](int q, int j) {
    return static_cast<float>((q | static_cast<int>(fifth >> j & 1) << 4) - 16) * d;
  });
}
void q5_1(Bytes p, float* out) {
  nibble_planes(p + 8, 16, out, [d = half(p), m = half(p + 2), fifth = word32(p + 4)](int q, int j) {
    return static_cast<float>(q | static_cast<int>(fifth >> j & 1) << 4) * d + m;
  });
}
void q8_0(Bytes p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 32; i++) out[i] = static_cast<float>(static_cast<int8_t>(p[2 + i])) * d;
}
void q8_k(Bytes p, float* out) {
  const float d = single(word32(p));
  for (int i = 0; i < 256; i++) out[i] = static_cast<float>(static_cast<int8_t>(p[4 + i])) * d;
}

void q2_k(Bytes p, float* out) {
  const float d = half(p + 80), dmin = half(p + 82);
  for (int i = 0; i < 256; i++) {
    const int group = p[i / 16], q = p[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
    out[i] = static_cast<float>(q) * (d * static_cast<float>(group & 15)) - dmin * static_cast<float>(group >> 4);
  }
}

void q3_k(Bytes p, float* out) {
  const float d = half(p + 108);
  for (int i = 0; i < 256; i++) {
    const int g = i / 16, low = p[96 + g % 8] >> g / 8 * 4 & 15, high = p[104 + g % 4] >> g / 4 * 2 & 3;
    const int two = p[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3, third = p[i % 32] >> i / 32 & 1;
    out[i] = static_cast<float>((two | third << 2) - 4) * (d * static_cast<float>((low | high << 4) - 32));
  }
}

// Scale and min of sub-block i of Q4_K and Q5_K, 6 bits each, from 12 bytes.
void scale_and_min(Bytes p, int i, float& scale, float& min) {
  const int k = i % 4;
  scale = static_cast<float>(i < 4 ? p[k] & 63 : (p[8 + k] & 15) | p[k] >> 6 << 4);
  min = static_cast<float>(i < 4 ? p[4 + k] & 63 : p[8 + k] >> 4 | p[4 + k] >> 6 << 4);
}

// q holds 4 x 32 bytes of nibbles, fifth 32 bytes of which bit i belongs to sub-block i, or is null.
void q45_k(Bytes p, Bytes q, Bytes fifth, float* out) {
  const float d = half(p), dmin = half(p + 2);
  for (int block = 0; block < 8; block++) {
    float scale, min;
    scale_and_min(p + 4, block, scale, min);
    scale = d * scale;
    min = dmin * min;
    for (int j = 0; j < 32; j++) {
      const int four = q[block / 2 * 32 + j] >> block % 2 * 4 & 15, bit = fifth ? fifth[j] >> block & 1 : 0;
      out[32 * block + j] = static_cast<float>(four | bit << 4) * scale - min;
    }
  }
}
void q4_k(Bytes p, float* out) { q45_k(p, p + 16, nullptr, out); }
void q5_k(Bytes p, float* out) { q45_k(p, p + 48, p + 16, out); }

void q6_k(Bytes p, float* out) {
  const float d = half(p + 208);
  for (int i = 0; i < 256; i++) {
    const int part = i % 128, low = p[i / 128 * 64 + part % 64] >> part / 64 * 4 & 15;
    const int high = p[128 + i / 128 * 32 + i % 32] >> part / 32 * 2 & 3;
    const float scale = d * static_cast<float>(static_cast<int8_t>(p[192 + i / 16]));
    out[i] = static_cast<float>((low | high << 4) - 32) * scale;
  }
}

constexpr int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t FP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void iq4_nl(Bytes p, float* out) {
  nibble_planes(p + 2, 16, out, [d = half(p)](int q, int) { return static_cast<float>(IQ4[q]) * d; });
}
void iq4_xs(Bytes p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 8; i++) {
    const int scale = nibble(p + 4, i) | (word16(p + 2) >> 2 * i & 3) << 4;
    nibble_planes(p + 8 + 16 * i, 16, out + 32 * i, [d = d * static_cast<float>(scale - 32)](int q, int) {
      return static_cast<float>(IQ4[q]) * d;
    });
  }
}
void mxfp4(Bytes p, float* out) {  // half of 2^(e - 127), for levels are doubled; the first two are subnormal
  const float scale = single(p[0] < 2 ? 0x00200000u << p[0] : (p[0] - 1u) << 23);
  nibble_planes(p + 1, 16, out, [scale](int q, int) { return static_cast<float>(FP4[q]) * scale; });
}
void nvfp4(Bytes p, float* out) {
  for (int i = 0; i < 4; i++) {
    const int code = p[i], exponent = code >> 3 & 15, mantissa = code & 7;
    const int scaled = (mantissa + (exponent > 0 ? 8 : 0)) << (exponent > 1 ? exponent : 1);
    const float scale = code == 0x7F ? 0.0f : static_cast<float>(scaled) * 0x1p-11f;
    nibble_planes(p + 4 + 8 * i, 8, out + 16 * i, [scale](int q, int) { return static_cast<float>(FP4[q]) * scale; });
  }
}

void tq1_0(Bytes p, float* out) {  // ternary digits of a fraction: times 3^k modulo 256 brings digit k to the front
  const float d = half(p + 52);
  const struct { int start, bytes, digits; } runs[] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};
  for (const auto& run : runs) {
    for (int digit = 0, power = 1; digit < run.digits; digit++, power *= 3) {
      for (int j = 0; j < run.bytes; j++) {
        const int fraction = p[run.start + j] * power & 255;
        *out++ = static_cast<float>((fraction * 3 >> 8) - 1) * d;
      }
    }
  }
}
void tq2_0(Bytes p, float* out) {
  const float d = half(p + 64);
  for (int i = 0; i < 256; i++) {
    out[i] = static_cast<float>((p[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1) * d;
  }
}
void q1_0(Bytes p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 128; i++) out[i] = static_cast<float>(2 * (p[2 + i / 8] >> i % 8 & 1) - 1) * d;
}
void q2_0(Bytes p, float* out) {
  const float d = half(p);
  for (int i = 0; i < 64; i++) out[i] = static_cast<float>((p[2 + i / 4] >> i % 4 * 2 & 3) - 1) * d;
}

// `width` elements of a codebook, negative where a bit of `signs` is set, times scale.
void signed_vector(const int8_t* vector, int width, uint32_t signs, float scale, float* out) {
  for (int i = 0; i < width; i++) {
    const float sign = signs >> i & 1 ? -1.0f : 1.0f;
    out[i] = static_cast<float>(vector[i]) * sign * scale;
  }
}
// The eighth sign of each seven makes the number of minuses even.
uint32_t eight_signs(uint32_t seven) { return seven | static_cast<uint32_t>(__builtin_popcount(seven) & 1) << 7; }
float odd(int scale) { return static_cast<float>(2 * scale + 1); }

void iq2_xxs(Bytes p, float* out) {
  for (int i = 0; i < 32; i++) {
    const Bytes group = p + 2 + i / 4 * 8;
    const uint32_t word = word32(group + 4);
    const float scale = half(p) * odd(static_cast<int>(word >> 28)) / 8;
    signed_vector(codebooks.iq2_xxs[group[i % 4]], 8, eight_signs(word >> 7 * (i % 4) & 127), scale, out + 8 * i);
  }
}
void iq2_xs(Bytes p, float* out) {
  for (int i = 0; i < 32; i++) {
    const uint32_t word = word16(p + 2 + 2 * i);
    const float scale = half(p) * odd(nibble(p + 66, i / 2)) / 8;
    signed_vector(codebooks.iq2_xs[word & 511], 8, eight_signs(word >> 9), scale, out + 8 * i);
  }
}
void iq2_s(Bytes p, float* out) {
  for (int i = 0; i < 32; i++) {
    const int index = p[2 + i] | (p[66 + i / 4] >> i % 4 * 2 & 3) << 8;
    const float scale = half(p) * odd(nibble(p + 74, i / 2)) / 8;
    signed_vector(codebooks.iq2_s[index], 8, p[34 + i], scale, out + 8 * i);
  }
}
void iq3_xxs(Bytes p, float* out) {
  for (int i = 0; i < 64; i++) {
    const uint32_t word = word32(p + 66 + i / 8 * 4), signs = eight_signs(word >> 7 * (i / 2 % 4) & 127);
    const float scale = half(p) * odd(static_cast<int>(word >> 28)) / 4;
    signed_vector(codebooks.iq3_xxs[p[2 + i]], 4, signs >> i % 2 * 4, scale, out + 4 * i);
  }
}
void iq3_s(Bytes p, float* out) {
  for (int i = 0; i < 64; i++) {
    const int index = p[2 + i] | (p[66 + i / 8] >> i % 8 & 1) << 8;
    const float scale = half(p) * odd(nibble(p + 106, i / 8));
    signed_vector(codebooks.iq3_s[index], 4, static_cast<uint32_t>(p[74 + i / 2] >> i % 2 * 4), scale, out + 4 * i);
  }
}

// An IQ1 vector, all levels shifted by an eighth up or down.
void shifted_vector(int index, bool down, float scale, float* out) {
  for (int i = 0; i < 8; i++) out[i] = (static_cast<float>(codebooks.iq1[index][i]) + (down ? -0.125f : 0.125f)) * scale;
}
void iq1_s(Bytes p, float* out) {
  for (int i = 0; i < 32; i++) {
    const int word = word16(p + 34 + i / 4 * 2);
    const float scale = half(p) * odd(word >> 12 & 7);
    shifted_vector(p[2 + i] | (word >> 3 * (i % 4) & 7) << 8, word >> 15 & 1, scale, out + 8 * i);
  }
}
void iq1_m(Bytes p, float* out) {
  uint16_t bits = 0;
  for (int i = 0; i < 4; i++) bits = static_cast<uint16_t>(bits | word16(p + 48 + 2 * i) >> 12 << 4 * i);
  for (int i = 0; i < 32; i++) {
    const int high = nibble(p + 32, i), word = word16(p + 48 + i / 8 * 2);
    const float scale = half_to_float(bits) * odd(word >> 3 * (i / 2 % 4) & 7);
    shifted_vector(p[i] | (high & 7) << 8, high >> 3, scale, out + 8 * i);
  }
}

constexpr struct { int32_t type; BlockType block; } TYPES[] = {
    {F32, {1, 4, f32}}, {F16, {1, 2, f16}}, {BF16, {1, 2, bf16}}, {FP8_E4M3, {1, 1, fp8_e4m3}},
    {Q4_0, {32, 18, q4_0}}, {Q4_1, {32, 20, q4_1}}, {Q5_0, {32, 22, q5_0}}, {Q5_1, {32, 24, q5_1}},
    {Q8_0, {32, 34, q8_0}}, {Q2_K, {256, 84, q2_k}}, {Q3_K, {256, 110, q3_k}}, {Q4_K, {256, 144, q4_k}},
    {Q5_K, {256, 176, q5_k}}, {Q6_K, {256, 210, q6_k}}, {Q8_K, {256, 292, q8_k}}, {IQ2_XXS, {256, 66, iq2_xxs}},
    {IQ2_XS, {256, 74, iq2_xs}}, {IQ3_XXS, {256, 98, iq3_xxs}}, {IQ1_S, {256, 50, iq1_s}}, {IQ4_NL, {32, 18, iq4_nl}},
    {IQ3_S, {256, 110, iq3_s}}, {IQ2_S, {256, 82, iq2_s}}, {IQ4_XS, {256, 136, iq4_xs}}, {IQ1_M, {256, 56, iq1_m}},
    {TQ1_0, {256, 54, tq1_0}}, {TQ2_0, {256, 66, tq2_0}}, {MXFP4, {32, 17, mxfp4}}, {NVFP4, {64, 36, nvfp4}},
    {Q1_0, {128, 18, q1_0}}, {Q2_0, {64, 18, q2_0}},
};

}  // namespace

const BlockType* block_type(int32_t type) {
  for (const auto& entry : TYPES) {
    if (entry.type == type) return &entry.block;
  }
  return nullptr;
}

int unpack_row(int32_t type, const uint8_t* row, float* out, int64_t n) {
  const BlockType* block = block_type(type);
  if (block == nullptr) return -1;
  for (int64_t i = 0; i < n; i += block->columns, row += block->bytes) block->unpack(row, out + i);
  return 0;
}

}  // namespace zoo::ZOO_ISA
