// Raw rows <-> packed tiles (layout.h).
#include <cstring>

#include "dispatch.h"
#include "layout.h"

namespace zoo::ZOO_ISA {
namespace {

const TypeKernel* integer_kernel(int32_t type) {
  const TypeKernel* kernel = integer_32_kernel(type);
  return kernel ? kernel : integer_256_kernel(type);
}

// visit4(byte, apart, place) for every four words of a run, which go to `place` and on, `apart` bytes from one to the next;
// visit(byte, width, place) for other elements.
template <class Visit, class Visit4>
void for_elements(const Order& order, Visit&& visit, Visit4&& visit4) {
  int place = 0;
  for (const Run& run : order.runs) {
    const int streams = run.with < 0 ? 1 : 2, apart = run.width * streams;
    for (int stream = 0; stream < streams; stream++) {
      int at = stream == 0 ? run.from : run.with, to = place + stream * run.width;
      const int end = at + run.to - run.from;
      for (; run.width == 4 && at + 16 <= end; at += 16, to += 4 * apart) visit4(at, apart, to);
      for (; at < end; at += run.width, to += apart) visit(at, run.width, to);
    }
    place += (run.to - run.from) * streams;
  }
}

template <int WIDTH>
void interleave(const uint8_t* element, int64_t row_bytes, int count, uint8_t* out) {
  for (int lane = 0; lane < W; lane++, out += WIDTH) {
    if (lane < count) std::memcpy(out, element + lane * row_bytes, WIDTH);
    else std::memset(out, 0, WIDTH);
  }
}

// A block of W rows, `count` of which exist.
void pack_block(const Order& order, const uint8_t* block, int64_t row_bytes, int count, uint8_t* out) {
  const auto one = [&](int at, int width, int place) {
    if (width == 4) interleave<4>(block + at, row_bytes, count, out + W * place);
    else if (width == 2) interleave<2>(block + at, row_bytes, count, out + W * place);
    else interleave<1>(block + at, row_bytes, count, out + W * place);
  };
  for_elements(order, one, [&](int at, int apart, int place) {
    VI words[4];
    if (count == W) transpose16(RowCursor(block + at, row_bytes), words);
    for (int i = 0; i < 4; i++) {
      if (count == W) store(out + W * (place + i * apart), words[i]);
      else one(at + 4 * i, 4, place + i * apart);
    }
  });
}

}  // namespace

int tile_rows(int32_t type) { return integer_kernel(type) ? W : 0; }

void pack(const Weight* weight, uint8_t* out, int ith, int nth) {
  const BlockType& block = *block_type(weight->type);
  const Order& order = integer_kernel(weight->type)->order;
  const int64_t blocks = weight->cols / block.columns, tiles = (weight->rows + W - 1) / W;
  for (int64_t tile = tiles * ith / nth; tile < tiles * (ith + 1) / nth; tile++) {
    const int64_t left = weight->rows - tile * W;
    const uint8_t* from = weight->data + tile * W * weight->row_bytes;
    uint8_t* to = out + tile * W * blocks * block.bytes;
    for (int64_t b = 0; b < blocks; b++, from += block.bytes, to += W * block.bytes)
      pack_block(order, from, weight->row_bytes, left < W ? static_cast<int>(left) : W, to);
  }
}

int read_row(const Weight* weight, int64_t row, float* out) {
  if (!weight->packed) {
    return unpack_row(weight->type, weight->data + row * weight->row_bytes, out, weight->cols);
  }
  const BlockType& block = *block_type(weight->type);
  const Order& order = integer_kernel(weight->type)->order;
  const uint8_t* tile = weight->data + row / W * W * weight->row_bytes;
  const int64_t lane = row % W;
  uint8_t raw[256];
  const auto one = [&](int at, int width, int place) {
    std::memcpy(raw + at, tile + W * place + width * lane, static_cast<size_t>(width));
  };
  for (int64_t i = 0; i < weight->cols; i += block.columns, tile += W * block.bytes) {
    for_elements(order, one, [&](int at, int apart, int place) {
      for (int j = 0; j < 4; j++) one(at + 4 * j, 4, place + j * apart);
    });
    block.unpack(raw, out + i);
  }
  return 0;
}

}  // namespace zoo::ZOO_ISA
