// Raw rows <-> packed tiles (layout.h).
#include <cstring>

#include "dispatch.h"

namespace zoo::ZOO_ISA {
namespace {

const TypeKernel* integer_kernel(int32_t type) {
  const TypeKernel* kernel = integer_32_kernel(type);
  return kernel ? kernel : integer_256_kernel(type);
}

// Bytes [from, to) of a block of W rows, `count` of which exist, element by element.
template <int WIDTH>
void interleave(const uint8_t* block, int64_t row_bytes, int count, int from, int to, uint8_t* out) {
  for (int at = from; at < to; at += WIDTH) {
    if (count == W) {
      for (int lane = 0; lane < W; lane++) std::memcpy(out + W * at + WIDTH * lane, block + lane * row_bytes + at, WIDTH);
    } else {
      std::memset(out + W * at, 0, size_t{W} * WIDTH);
      for (int lane = 0; lane < count; lane++) {
        std::memcpy(out + W * at + WIDTH * lane, block + lane * row_bytes + at, WIDTH);
      }
    }
  }
}

void gather(const uint8_t* tile, int lane, int from, int to, int width, uint8_t* out) {
  for (int at = from; at < to; at += width) std::memcpy(out + at, tile + W * at + width * lane, static_cast<size_t>(width));
}

}  // namespace

int tile_rows(int32_t type) { return integer_kernel(type) ? W : 0; }

void pack(const Weight* weight, uint8_t* out, int ith, int nth) {
  const BlockType& block = *block_type(weight->type);
  const Narrow narrow = integer_kernel(weight->type)->narrow;
  const int64_t blocks = weight->cols / block.columns, tiles = (weight->rows + W - 1) / W;
  for (int64_t tile = tiles * ith / nth; tile < tiles * (ith + 1) / nth; tile++) {
    const int64_t left = weight->rows - tile * W;
    const int count = left < W ? static_cast<int>(left) : W;
    const uint8_t* from = weight->data + tile * W * weight->row_bytes;
    uint8_t* to = out + tile * W * blocks * block.bytes;
    for (int64_t b = 0; b < blocks; b++, from += block.bytes, to += W * block.bytes) {
      interleave<4>(from, weight->row_bytes, count, 0, narrow.from, to);
      if (narrow.width == 1) interleave<1>(from, weight->row_bytes, count, narrow.from, narrow.to, to);
      else interleave<2>(from, weight->row_bytes, count, narrow.from, narrow.to, to);
      interleave<4>(from, weight->row_bytes, count, narrow.to, block.bytes, to);
    }
  }
}

int read_row(const Weight* weight, int64_t row, float* out) {
  if (!weight->packed) {
    return unpack_row(weight->type, weight->data + row * weight->row_bytes, out, weight->cols);
  }
  const BlockType& block = *block_type(weight->type);
  const Narrow narrow = integer_kernel(weight->type)->narrow;
  const uint8_t* tile = weight->data + row / W * W * weight->row_bytes;
  const int lane = static_cast<int>(row % W);
  uint8_t raw[256];
  for (int64_t i = 0; i < weight->cols; i += block.columns, tile += W * block.bytes) {
    gather(tile, lane, 0, narrow.from, 4, raw);
    gather(tile, lane, narrow.from, narrow.to, narrow.width, raw);
    gather(tile, lane, narrow.to, block.bytes, 4, raw);
    block.unpack(raw, out + i);
  }
  return 0;
}

}  // namespace zoo::ZOO_ISA
