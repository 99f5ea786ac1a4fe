// Panels against pairs of tokens by the matrix products of ARMv8.6 (i8mm): 2 rows x 8 columns times 8 columns x 2 tokens,
// twice the products of a dot instruction. The sums of integers are exact, so the bits are those of one token alone.
#pragma once

namespace zoo::ZOO_ISA {

// As panel_times_tokens, for an even number of tokens.
template <class K, int T>
void panel_times_pairs(const Block<K>* panel, int64_t count, const ActBlock* const* tokens, const Sums& from, const Sums& to) {
  static_assert(T % 2 == 0 && K::FACTORS != 1);
  constexpr int PARTS = K::FACTORS == 2 ? 2 : 1;  // sums with a factor of their own
  const ActBlock* x[T];
  repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t] = tokens[t]; });
  VF totals[T][ROW_GROUPS];
  const int64_t stretch = K::GROUP > 1 ? K::GROUP : count;
  const Sums* before = &from;
  for (int64_t done = 0; done < count; done += stretch, before = &to) {
    for (int t = 0; t < T; t++)
      for (int g = 0; g < ROW_GROUPS; g++) totals[t][g] = K::GROUP > 1 ? constant(0) : load_f(before->of(t, g));
    for (const Block<K>* end = panel + stretch * ROW_GROUPS; panel < end; panel += ROW_GROUPS) {
      for (int g = 0; g < ROW_GROUPS; g++) {
        const Block<K>& block = panel[g];
        // Lanes: row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1; the same of rows 2 and 3.
        int32x4_t first[T / 2][PARTS], last[T / 2][PARTS];
        repeat<4>([&](auto j) ZOO_INLINE_LAMBDA {
          const VI even = load(&block.q[2 * j]), uneven = load(&block.q[2 * j + 1]);
          const int8x16_t rows01 = vreinterpretq_s8_u32(vzip1q_u32(even, uneven));
          const int8x16_t rows23 = vreinterpretq_s8_u32(vzip2q_u32(even, uneven));
          repeat<T / 2>([&](auto p) ZOO_INLINE_LAMBDA {
            constexpr int part = j * PARTS / 4;
            const int8x16_t both = vcombine_s8(vld1_s8(x[2 * p]->q + 8 * j), vld1_s8(x[2 * p + 1]->q + 8 * j));
            const bool begins = j % (4 / PARTS) == 0;
            first[p][part] = vmmlaq_s32(begins ? vdupq_n_s32(0) : first[p][part], rows01, both);
            last[p][part] = vmmlaq_s32(begins ? vdupq_n_s32(0) : last[p][part], rows23, both);
          });
        });
        repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
          int32x4_t total[PARTS];
          repeat<PARTS>([&](auto part) ZOO_INLINE_LAMBDA {
            const int32x4_t a = first[t / 2][part], b = last[t / 2][part];
            total[part] = t % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
          });
          if constexpr (PARTS == 2) {
            total[0] = vmulq_s32(total[0], vreinterpretq_s32_u32(block.factor[0]));
            total[0] = vmlaq_s32(total[0], total[1], vreinterpretq_s32_u32(block.factor[1]));
          }
          totals[t][g] = scaled<K, 0>(totals[t][g], vreinterpretq_u32_s32(total[0]), block, *x[t]);
        });
      }
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA { x[t]++; });
    }
    for (int t = 0; t < T; t++)
      for (int g = 0; g < ROW_GROUPS; g++) {
        const VF sum = totals[t][g];
        store_f(to.of(t, g), K::GROUP > 1 ? fma(sum, splat(&x[t][-1].scale), load_f(before->of(t, g))) : sum);
      }
  }
}

}  // namespace zoo::ZOO_ISA
