// Sums of products by a dot instruction of unsigned with signed bytes. Needs ZOO_VNNI_DOT, zero_words, mul_words, pair_sum.
#pragma once

namespace zoo::ZOO_ISA {

constexpr bool SIGNED_AS_UNSIGNED = true;  // signed weights are stored plus 128, which the sum begins without
constexpr bool CENTRE_IN_WEIGHTS = false, FREE_FACTORS = false;

template <Encoding E, int FACTORS, int CENTRE>
struct Sum {
  static constexpr int TOGETHER = FACTORS == 2 && W == 8 ? 1 : ROW_GROUPS;  // row groups whose sums fit into registers
  static constexpr int TOKENS = FACTORS == 2 && W == 16 ? 3 : INT_TOKENS;  // likewise
  static constexpr int GROUP = FACTORS == 2 ? 4 : 8;
  using Quad = VI;
  VI narrow, wide;

  static ZOO_INLINE Quad prepare(VI w) { return w; }
  static ZOO_INLINE VI factor(VI v, int i) { return pick_byte(v, i); }
  static ZOO_INLINE VI signed_factor(VI v, int i) { return right_signed(left(v, 24 - 8 * i), 24); }

  template <int J>
  ZOO_INLINE void step(VI w, VI x, VI scale, const int16_t* centre) {
    if constexpr (J % GROUP == 0) narrow = begin(centre);
    narrow = ZOO_VNNI_DOT(narrow, w, x);
    if constexpr (FACTORS == 2 && J == 3) wide = mul_words(narrow, scale);
    if constexpr (FACTORS == 2 && J == 7) wide = add(wide, mul_words(narrow, scale));
  }
  // What the centre of the weights adds; 128 is eight times the 16 that centres are kept for.
  static ZOO_INLINE VI begin(const int16_t* centre) {
    if constexpr (E == Encoding::S8) return left(pair_sum(splat_word(centre)), 3);
    else return CENTRE ? pair_sum(splat_word(centre)) : zero_words();
  }
  ZOO_INLINE VI total() const { return FACTORS == 2 ? wide : narrow; }
};

}  // namespace zoo::ZOO_ISA
