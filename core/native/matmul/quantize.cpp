// float32 activations -> what products read.
#include "dispatch.h"

namespace zoo::ZOO_ISA {
namespace {

// 32 columns. A scale is the largest magnitude / 127, so q never is -128, whose sign could not be moved to a
// weight.
void quantize_block(const float* x, ActBlock& out) {
  uint32_t largest = 0;  // bits of magnitudes order as the numbers do, and NaN comes last: it must not get lost
  for (int c = 0; c < 32; c++) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + c, 4);
    bits &= 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
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
    for (int c = 0; c < 32; c++) q[c] = static_cast<int8_t>(static_cast<int32_t>(__builtin_rintf(x[c] * inverse)));
  } else {
    for (int c = 0; c < 32; c++) q[c] = 1;  // times a scale of 0, infinity or NaN
  }
  int32_t sums[4] = {0, 0, 0, 0};
  for (int c = 0; c < 32; c++) sums[c / 16 * 2 + c % 4 / 2] += q[c];
  out.scale = scale;
  out.sum32 = scale * static_cast<float>(sums[0] + sums[1] + sums[2] + sums[3]);
  for (int half = 0; half < 2; half++) {
    out.sum16[half] = scale * static_cast<float>(sums[2 * half] + sums[2 * half + 1]);
    out.centre32[half] = static_cast<int16_t>(-16 * (sums[half] + sums[half + 2]));
  }
  for (int part = 0; part < 4; part++) out.centre16[part] = static_cast<int16_t>(-32 * sums[part]);
  out.unused = 0;
}

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
  const int64_t wide = padded(k), low = m * ith / nth, high = m * (ith + 1) / nth;
  for (int64_t t = low; t < high; t++) {
    float* row = static_cast<float*>(act) + t * wide;
    for (int64_t i = 0; i < wide; i++) row[i] = i < k ? x[t * ldx + i] : 0.0f;
  }
}

size_t activation_bytes(int kind, int64_t m, int64_t k) {
  const size_t row = kind == ACT_INT8 ? static_cast<size_t>(k / 32) * sizeof(ActBlock) : static_cast<size_t>(padded(k)) * sizeof(float);
  return static_cast<size_t>(m) * row;
}

}  // namespace zoo::ZOO_ISA
