// The vectors that all kernels here are written in, one file per instruction set.
//
// A vector has W words of 32 bits, one per weight row: rows lie across lanes, so no sum ever runs across a vector.
// VI holds words (or 4 W bytes, four neighbouring columns of each row), VF floats. Beside plain arithmetic each file has
//   transpose16(rows, out)        16 bytes of each of W rows -> out[j]: word j of every row
//   halves(v, low, high)         the lower and upper 16 bits of each word as half precision
//   load_halves(p), load_bytes(p) W of them, as floats and as words
//   spread_bits(v, quad)         bits 4 quad .. 4 quad + 3 of each word -> 16 or 0 in its four bytes
//   lookup(table, bytes)         16-entry table, indexes below 16
//   pick_byte(v, i)              byte i of each word, as a word
//   Sum                          products of W x 32 weight bytes with 32 bytes of x, eight steps of four columns
//   Centres                      20 bytes for Sum beside each 32 of x, made from sums of q: [2 h + p] is that of columns
//                                4 j + 2 p and 4 j + 2 p + 1 of half h; half_sum gives that of half h << shift
//   left_by(v, n)                each word shifted by another
// and four facts on how Sum wants weights:
//   SIGNED_AS_UNSIGNED           signed bytes are stored plus 128
//   CENTRE_IN_WEIGHTS            a centre is taken off the weights, not off the sums
//   FREE_FACTORS                 an integer factor per row and block costs nothing
//   SCALED_HALVES                where halves of a block have factors, each is summed and scaled for itself
#pragma once

#include <cstddef>
#include <cstdint>

#define ZOO_INLINE inline __attribute__((always_inline))
#define ZOO_INLINE_LAMBDA __attribute__((always_inline))

namespace zoo::ZOO_ISA {

// What the weight bytes of a block can be: unsigned below 16, 32, 64, or any signed byte.
enum class Encoding { U4, U5, U6, S8 };

ZOO_INLINE float half_to_float(uint16_t h) {
  // 2^112 rebases the exponent and normalises subnormals; infinities and NaN are what reaches 2^16 by it
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = static_cast<uint32_t>(h & 0x7FFF) << 13;
  float x;
  __builtin_memcpy(&x, &rest, 4);
  x *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x >= 65536.0f) bits |= 0x7F800000u;
  bits |= sign;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

template <int I>
struct Int {
  constexpr operator int() const { return I; }
};

// body(Int<0>{}), ..., body(Int<N - 1>{}): a loop whose counter is a constant, so that arrays of vectors stay registers.
template <int N, int I = 0, class F>
ZOO_INLINE void repeat(F&& body) {
  if constexpr (I < N) {
    body(Int<I>{});
    repeat<N, I + 1>(body);
  }
}

// Where a tile of rows is being read.
struct RowCursor {
  const uint8_t *first, *fifth;  // rows 0 and 4: all of 8 rows by two pointers, a stride and its triple
  ptrdiff_t stride, triple;

  ZOO_INLINE RowCursor(const uint8_t* p, ptrdiff_t s) : first(p), fifth(p + 4 * s), stride(s), triple(3 * s) {}
  ZOO_INLINE void advance(int64_t bytes) {
    first += bytes;
    fifth += bytes;
    asm("" : "+r"(first), "+r"(fifth));  // or the compiler makes a pointer for every row, more than there are registers
  }
  ZOO_INLINE RowCursor operator+(int bytes) const {
    RowCursor moved = *this;
    moved.first += bytes;
    moved.fifth += bytes;
    return moved;
  }
  // Row i of 0..7.
  ZOO_INLINE const uint8_t* row(int i) const {
    return (i < 4 ? first : fifth) + (i % 4 == 3 ? triple : i % 4 * stride);
  }
};

}  // namespace zoo::ZOO_ISA

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "avx512.h"
#include "vnni.h"
#ifndef __AMX_INT8__
#define ZOO_HALVED  // panels by halved.h; with AMX tiles are faster
#endif
#elif defined(__AVX2__)
#include "avx2.h"
#ifdef __AVXVNNI__
#include "vnni.h"
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include "neon.h"
#else
#include "generic.h"
#endif
