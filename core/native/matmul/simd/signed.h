// For sets whose products take signed weights: a centre is taken off when they are unpacked, so nothing of it lies beside x.
#pragma once

namespace zoo::ZOO_ISA {

constexpr bool SIGNED_AS_UNSIGNED = false, CENTRE_IN_WEIGHTS = true, FREE_FACTORS = false, SCALED_HALVES = false;

struct Centres {
  float half_sums[2];
  int32_t unused[3];

  ZOO_INLINE void set(const int32_t* sums, int shift) {
    for (int half = 0; half < 2; half++)
      half_sums[half] = static_cast<float>((sums[2 * half] + sums[2 * half + 1]) * (1 << shift));
  }
  ZOO_INLINE VF half_sum(int half, VI) const { return splat(&half_sums[half]); }
};

}  // namespace zoo::ZOO_ISA
