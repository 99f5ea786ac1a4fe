// Types without integer products, as floats: 16 bytes of W rows at a time.
#pragma once

#include "rows.h"

namespace zoo::ZOO_ISA {

struct DenseF32 {
  static constexpr int COLUMNS = 4;  // in 16 bytes
  template <class Emit>
  static ZOO_INLINE void unpack(const RowCursor& p, VF, Emit&& emit) {
    VI words[4];
    transpose16(p, words);
    repeat<4>([&](auto i) ZOO_INLINE_LAMBDA { emit(i, as_float(words[i])); });
  }
};

struct DenseBF16 {
  static constexpr int COLUMNS = 8;
  template <class Emit>
  static ZOO_INLINE void unpack(const RowCursor& p, VF, Emit&& emit) {
    VI words[4];
    transpose16(p, words);
    repeat<4>([&](auto i) ZOO_INLINE_LAMBDA {
      emit(Int<2 * i>{}, as_float(left(words[i], 16)));
      emit(Int<2 * i + 1>{}, as_float(words[i] & word(0xFFFF0000u)));
    });
  }
};

struct DenseF16 {
  static constexpr int COLUMNS = 8;
  template <class Emit>
  static ZOO_INLINE void unpack(const RowCursor& p, VF, Emit&& emit) {
    VI words[4];
    transpose16(p, words);
    repeat<4>([&](auto i) ZOO_INLINE_LAMBDA {
      VF low, high;
      halves(words[i], low, high);
      emit(Int<2 * i>{}, low);
      emit(Int<2 * i + 1>{}, high);
    });
  }
};

// A half precision number with the fields of an E4M3 one is 2^-8 of it, subnormals included; `scale` puts that right.
// NaN (all ones) becomes a number there: a carry out of it sets the exponent of a NaN.
struct DenseFP8 {
  static constexpr int COLUMNS = 16;
  template <class Emit>
  static ZOO_INLINE void unpack(const RowCursor& p, VF scale, Emit&& emit) {
    VI words[4];
    transpose16(p, words);
    repeat<4>([&](auto i) ZOO_INLINE_LAMBDA {
      VF low, high;
      const auto widen = [&](VI magnitude, VI sign) ZOO_INLINE_LAMBDA {
        magnitude = magnitude & word(0x3F803F80u);
        const VI nan = add(magnitude, word(0x00800080u)) & word(0x40004000u);
        halves(magnitude | sub(left(nan, 1), right(nan, 4)) | (sign & word(0x80008000u)), low, high);
      };
      VF even[2], uneven[2];
      widen(left(words[i], 7), left(words[i], 8));
      even[0] = low, even[1] = high;
      widen(right(words[i], 1), words[i]);
      uneven[0] = low, uneven[1] = high;
      repeat<2>([&](auto k) ZOO_INLINE_LAMBDA {
        emit(Int<4 * i + 2 * k>{}, mul(even[k], scale));
        emit(Int<4 * i + 2 * k + 1>{}, mul(uneven[k], scale));
      });
    });
  }
};

}  // namespace zoo::ZOO_ISA
