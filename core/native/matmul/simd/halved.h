// Panels against tokens with half of the multiplications (Winograd, "A New Algorithm for Inner Product", 1968). With a a
// column of the first half of a block and b one of the second half,
//   sum of (xa + wb) (xb + wa) = sum of (xa wa + xb wb) + sum of xa xb + sum of wa wb,
// and what is not wanted of it belongs to the token or to the row alone. Both factors fit into a byte, for |x| <= 112 in
// ACT_INT8_128, and weights less 16 lie from -16 to 15. The first one is unsigned, as the instruction wants it: 128 is added.
// So the sums are exact, and the bits those of any other way.
#pragma once

namespace zoo::ZOO_ISA {

template <class K>
constexpr bool HALVED = K::GROUP > 1 && K::PARTS == 1 && (K::ENCODING == Encoding::U4 || K::ENCODING == Encoding::U5);

template <class K>
struct HalvedBlock : Block<K> {
  static constexpr int TOGETHER = Block<K>::TOGETHER;
  VI row;  // minus the sum of wa wb, as they are kept

  template <int J>
  ZOO_INLINE void keep(VI quad) { this->q[J] = _mm512_add_epi8(quad, word(J < 4 ? 0xF0F0F0F0u : 0x70707070u)); }
  ZOO_INLINE void complete() {
    VI sum = zero_words();
    repeat<4>([&](auto j) ZOO_INLINE_LAMBDA { sum = ZOO_VNNI_DOT(sum, this->q[j + 4], this->q[j]); });
    row = sub(zero_words(), sum);
  }

  template <int T>
  static ZOO_INLINE void add(const HalvedBlock* blocks, const ActBlock* const* x, VF (*totals)[TOGETHER]) {
    VI products[T][TOGETHER];
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
      repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA { products[t][g] = splat_word(&x[t]->centres.halved); });
    });
    repeat<4>([&](auto j) ZOO_INLINE_LAMBDA {
      VI first[TOGETHER], second[TOGETHER];
      repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
        first[g] = load(&blocks[g].q[j]);
        second[g] = load(&blocks[g].q[j + 4]);
      });
      repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
        const VI xa = splat_word(x[t]->q + 4 * j), xb = splat_word(x[t]->q + 16 + 4 * j);
        repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
          products[t][g] = ZOO_VNNI_DOT(products[t][g], _mm512_add_epi8(xa, second[g]), _mm512_add_epi8(xb, first[g]));
        });
      });
    });
    repeat<T>([&](auto t) ZOO_INLINE_LAMBDA {
      repeat<TOGETHER>([&](auto g) ZOO_INLINE_LAMBDA {
        const VI total = zoo::ZOO_ISA::add(products[t][g], blocks[g].row);
        totals[t][g] = scaled<K, 0>(totals[t][g], total, blocks[g], *x[t]);
      });
    });
  }
};

}  // namespace zoo::ZOO_ISA
