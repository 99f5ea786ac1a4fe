// Sums of products by a dot instruction of unsigned with signed bytes. Needs ZOO_VNNI_DOT and zero_words.
#pragma once

namespace zoo::ZOO_ISA {

constexpr bool SIGNED_AS_UNSIGNED = true;  // signed weights are stored plus 128, which the sum begins without
constexpr bool CENTRE_IN_WEIGHTS = false, FREE_FACTORS = false;
constexpr bool SCALED_HALVES = true;  // multiplications of integers take as long, and another set of sums as well

// What the sum of a block's products begins with. Of weights stored plus 128: minus 128 times the sum of q; of those with
// a centre of 32: minus 32 times that of each half. `halved` is for halved.h.
struct Centres {
  int32_t of_all, of_halves[2], halved, unused;

  ZOO_INLINE void set(const int32_t* sums, int) {
    for (int half = 0; half < 2; half++) of_halves[half] = -32 * (sums[2 * half] + sums[2 * half + 1]);
    of_all = 4 * (of_halves[0] + of_halves[1]);
    halved = unused = 0;
  }
  ZOO_INLINE VF half_sum(int half, VI shift) const {
    return mul(to_float(left_by(splat_word(&of_halves[half]), shift)), constant(-1.0f / 32));
  }
};

// PARTS: the sum is taken over 32 columns, or over 16 twice.
template <Encoding E, int FACTORS, int CENTRE, int PARTS>
struct Sum {
  static_assert(FACTORS == 0);
  static constexpr int TOGETHER = PARTS == 2 && W == 8 ? 1 : ROW_GROUPS;  // row groups whose sums fit into registers
  static constexpr int TOKENS = INT_TOKENS;
  using Quad = VI;
  VI sum;

  static ZOO_INLINE Quad prepare(VI w) { return w; }
  static ZOO_INLINE VI factor(VI v, int i) { return pick_byte(v, i); }
  static ZOO_INLINE VI signed_factor(VI v, int i) { return right_signed(left(v, 24 - 8 * i), 24); }

  template <int J>
  ZOO_INLINE void step(VI w, VI x, VI, const Centres& centres) {
    if constexpr (J % (8 / PARTS) == 0) sum = begin(centres, J / 4);
    sum = ZOO_VNNI_DOT(sum, w, x);
  }
  static ZOO_INLINE VI begin(const Centres& centres, int half) {
    static_assert(CENTRE == 0 || CENTRE == 16 || (CENTRE == 32 && PARTS == 2));
    if constexpr (E == Encoding::S8) return splat_word(&centres.of_all);
    else if constexpr (CENTRE == 16) return right_signed(splat_word(&centres.of_all), 3);
    else return CENTRE ? splat_word(&centres.of_halves[half]) : zero_words();
  }
  ZOO_INLINE VI total() const { return sum; }
};

}  // namespace zoo::ZOO_ISA
