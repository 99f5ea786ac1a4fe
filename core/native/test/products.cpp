// Ops that multiply with a weight, each with every type.
#include <array>
#include <cmath>
#include <cstring>

#include "check.h"

namespace check {

namespace {

using zoo::Linear;
using zoo::Part;

constexpr int64_t MOST = 33;  // tokens

// The product in double precision on the unpacked weight, FP8 scales included.
double error_of(const Matrix& made, const float* x, int64_t ldx, int64_t m, const float* y, int64_t ldy) {
  const zoo::Weight& weight = made.weight;
  std::vector<float> row(static_cast<size_t>(weight.cols));
  double difference = 0, norm = 0;
  for (int64_t r = 0; r < weight.rows; ++r) {
    zoo::scalar::matmul_kernels.unpack_row(weight.type, weight.data + r * weight.row_bytes, row.data(), weight.cols);
    for (int64_t c = 0; weight.scale && c < weight.cols; ++c)
      row[static_cast<size_t>(c)] *= weight.scale[r / weight.block_rows * weight.scale_stride + c / weight.block_cols];
    for (int64_t t = 0; t < m; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < weight.cols; ++c) sum += static_cast<double>(x[t * ldx + c]) * row[static_cast<size_t>(c)];
      difference += (y[t * ldy + r] - sum) * (y[t * ldy + r] - sum);
      norm += sum * sum;
    }
  }
  return std::sqrt(difference / norm);
}

void nan_fill(const Buffer& buffer) { std::memset(buffer.data(), 0xFF, buffer.bytes()); }

// 1 to 33 tokens; a token's row must have the same bits however many there are.
void every_count(const TypeInfo& info, const Matrix& made, Random& random) {
  const int64_t rows = made.weight.rows, cols = made.weight.cols;
  const std::string name = std::string(info.name) + " [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  const Buffer all = floats(random, MOST * cols), bias = floats(random, rows);
  std::vector<uint8_t> longest[2];
  for (int64_t m = MOST; m >= 1; --m) {
    if (quick && m > 4 && m != 9 && m != 17 && m != MOST) continue;
    Buffer x(static_cast<size_t>(m * cols) * 4), y(static_cast<size_t>(m * rows) * 4);
    std::memcpy(x.data(), all.data(), x.bytes());
    nan_fill(y);
    const Part part{made.weight, y.as(), rows, m % 2 ? nullptr : bias.as()};
    const Linear op{zoo::LINEAR, 1, x.as(), m, cols, m, &part};
    // One product alone may be a small difference of large numbers.
    everywhere(name + " " + std::to_string(m) + " tokens", {&op}, {{&y, zoo::F32}}, m * rows < 100 ? 1e-3 : 1e-5);
    std::vector<uint8_t>& most = longest[m % 2];
    if (most.empty()) most.assign(y.data(), y.data() + y.bytes());
    expect(std::memcmp(most.data(), y.data(), y.bytes()) == 0, name + ": a row depends on the number of tokens");
    // Scales are random, so the largest of a few rows is all there is of them: what is measured then is one product.
    if (m == MOST && rows > 7)
      expect(error_of(made, x.as(), cols, m, y.as(), rows) < 0.01, name + ": the product in double precision");
  }
}

// A prompt after some other tokens: tokens of either kind have the bits that they have without the other.
void prompts(const TypeInfo& info, Random& random) {
  constexpr int64_t rows = 37, cols = 1280, m = 19, split = 5;
  const Matrix made = matrix(random, info, rows, cols);
  const Buffer x = floats(random, m * cols), bias = floats(random, rows);
  for (const Table& table : tables()) {
    std::vector<std::vector<uint8_t>> found;
    for (const auto [from, to, prompt] : {std::array<int64_t, 3>{0, m, split}, {0, split, split}, {split, m, 0}}) {
      Buffer y(static_cast<size_t>((to - from) * rows) * 4);
      nan_fill(y);
      const Part part{made.weight, y.as(), rows, bias.as()};
      const Linear op{zoo::LINEAR, 1, x.as() + from * cols, to - from, cols, prompt, &part};
      const void* ops[] = {&op};
      expect(zoo_execute(table.pool, ops, 1) == 0, "a prompt is run");
      found.emplace_back(y.data(), y.data() + y.bytes());
    }
    found[1].insert(found[1].end(), found[2].begin(), found[2].end());
    expect(found[0] == found[1], std::string("a prompt behind other tokens, ") + info.name + " on " + table.isa);
    Buffer y(static_cast<size_t>(m * rows) * 4);
    const Part part{made.weight, y.as(), rows, nullptr};
    const Linear op{zoo::LINEAR, 1, x.as(), m, cols, 0, &part};
    const void* ops[] = {&op};
    expect(zoo_execute(table.pool, ops, 1) == 0, "a prompt is run");
    expect(error_of(made, x.as(), cols, m, y.as(), rows) < 0.01, std::string("a prompt in double precision, ") + info.name);
  }
}

// Packed rows against raw ones, on each instruction set with its own tiles: the same bits.
void packed(const TypeInfo& info, Random& random) {
  constexpr int64_t rows = 37, cols = 1280;
  const Matrix made = matrix(random, info, rows, cols);
  for (const Table& table : tables()) {
    const int tile = zoo_tile_rows(table.pool, info.type);
    if (tile == 0) return;
    const Buffer data(static_cast<size_t>((rows + tile - 1) / tile * tile * made.weight.row_bytes));
    zoo_pack(table.pool, &made.weight, data.data());
    zoo::Weight weight = made.weight;
    weight.packed = 1;
    weight.data = data.data();
    for (int64_t m : {1, 2, 3, 9}) {
      const Buffer x = floats(random, m * cols), y(static_cast<size_t>(m * rows) * 4), z(static_cast<size_t>(m * rows) * 4);
      const Part parts[2] = {{made.weight, y.as(), rows, nullptr}, {weight, z.as(), rows, nullptr}};
      for (int64_t prompt : {m, m / 2, int64_t{0}}) {
        const Linear op{zoo::LINEAR, 2, x.as(), m, cols, prompt, parts};
        const void* ops[] = {&op};
        expect(zoo_execute(table.pool, ops, 1) == 0, "a packed weight is run");
        expect(std::memcmp(y.data(), z.data(), y.bytes()) == 0, std::string("packed ") + info.name + " on " + table.isa);
      }
    }
    const Buffer ids = integers({36, 0, 7, 16}), y(static_cast<size_t>(4 * cols) * 4), z(static_cast<size_t>(4 * cols) * 4);
    const zoo::Embedding first{zoo::EMBEDDING, 1, ids.as<int32_t>(), 4, made.weight, y.as()};
    const zoo::Embedding second{zoo::EMBEDDING, 1, ids.as<int32_t>(), 4, weight, z.as()};
    const void* ops[] = {&first, &second};
    expect(zoo_execute(table.pool, ops, 2) == 0, "rows of a packed weight are read");
    expect(std::memcmp(y.data(), z.data(), y.bytes()) == 0, std::string("rows of packed ") + info.name);
  }
}

// Two types on one input, a stride on all sides, and the gated unit.
void strided(const TypeInfo& info, const TypeInfo& other, Random& random) {
  const int64_t rows = 37, cols = 256, m = 5, gap = 3;
  const Matrix first = matrix(random, info, rows, cols), second = matrix(random, other, rows, cols);
  const Buffer x = floats(random, m * (cols + gap) - gap);
  Buffer y(static_cast<size_t>(m * (rows + gap) - gap) * 4), z(static_cast<size_t>(m * (rows + gap) - gap) * 4);
  nan_fill(y);
  nan_fill(z);
  const Part parts[2] = {{first.weight, y.as(), rows + gap, nullptr}, {second.weight, z.as(), rows + gap, nullptr}};
  const std::string name = std::string(info.name) + " and " + other.name;
  const Linear linear{zoo::LINEAR, 2, x.as(), m, cols + gap, m, parts};
  everywhere(name, {&linear}, {{&y, zoo::F32}, {&z, zoo::F32}});
  for (int32_t act : {zoo::SILU, zoo::GELU_TANH}) {
    for (int64_t tokens : {int64_t{1}, m}) {
      const zoo::Glu glu{zoo::GLU, act, x.as(), tokens, cols + gap, tokens, parts, y.as(), rows + gap};
      everywhere("glu of " + name, {&glu}, {{&y, zoo::F32}}, 2e-5);
    }
  }
}

void heads(const TypeInfo& info, Random& random) {
  const int64_t count = 3, rows = 19, cols = 256, m = 6;
  const Matrix made = matrix(random, info, count * rows, cols, static_cast<int>(rows), 32);
  for (int transposed : {0, 1}) {
    const int64_t in = transposed ? rows : cols, out = transposed ? cols : rows;
    const Buffer x = floats(random, m * count * in);
    Buffer y(static_cast<size_t>(m * count * out) * 4);
    nan_fill(y);
    zoo::Stack stack{made.weight, rows * made.weight.row_bytes, made.weight.scale_stride};
    stack.first.rows = rows;
    for (int64_t tokens : {int64_t{1}, m}) {
      const zoo::HeadLinear op{zoo::HEAD_LINEAR, transposed, x.as(), tokens, count, count * in, in, stack, y.as()};
      everywhere(std::string("head_linear ") + info.name, {&op}, {{&y, zoo::F32}});
    }
  }
}

void embedding(const TypeInfo& info, Random& random) {
  if (info.type == zoo::FP8_E4M3) return;
  const int64_t rows = 21, cols = 512;
  const Matrix made = matrix(random, info, rows, cols);
  const Buffer ids = integers({20, 0, 7, 7, 19, 1, 20});
  Buffer y(static_cast<size_t>(7 * cols) * 4);
  nan_fill(y);
  const zoo::Embedding op{zoo::EMBEDDING, 1.5f, ids.as<int32_t>(), 7, made.weight, y.as()};
  everywhere(std::string("embedding ") + info.name, {&op}, {{&y, zoo::F32}}, 1e-7);
}

// `indices` name an expert per pair; `down_info` may be another type of the same kind.
void experts(const TypeInfo& info, const TypeInfo& down_info, int64_t tokens, int64_t top_k,
             const std::vector<int32_t>& indices, Random& random) {
  constexpr int64_t count = 5, hidden = 256, width = 256;
  std::vector<Matrix> made;
  std::vector<zoo::Weight> gate, up, down;
  for (int64_t e = 0; e < count; ++e) {
    for (auto* table : {&gate, &up, &down}) {
      made.push_back(matrix(random, table == &down ? down_info : info, table == &down ? hidden - 5 : width, hidden));
      table->push_back(made.back().weight);
    }
  }
  const Buffer x = floats(random, tokens * hidden), weights = floats(random, tokens * top_k);
  const Buffer add = floats(random, tokens * (hidden - 5)), chosen = integers(indices);
  Buffer y(static_cast<size_t>(tokens * (hidden - 5)) * 4);
  nan_fill(y);
  zoo::Moe op{zoo::MOE, zoo::SILU, x.as(), tokens, hidden, chosen.as<int32_t>(), weights.as(), top_k, count, gate.data(),
              up.data(), down.data(), tokens % 2 ? add.as() : nullptr, hidden - 5, y.as()};
  // The inputs of the last product are rounded to 8 bits: an ulp before may be a step there.
  everywhere(std::string("experts of ") + info.name + " and " + down_info.name, {&op}, {{&y, zoo::F32}}, 5e-3);
}

std::vector<int32_t> some_experts(int64_t tokens, int64_t top_k, Random& random) {
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0, first = random.below(5); j < top_k; ++j) indices.push_back(static_cast<int32_t>((first + j) % 5));
  return indices;
}

}  // namespace

void test_products() {
  for (const TypeInfo& info : TYPES) {
    Random random(static_cast<uint64_t>(info.type) + 1);
    for (int64_t rows : {1, 7, 37}) every_count(info, matrix(random, info, rows, 512), random);
    every_count(info, matrix(random, info, 19, 1280, 7, 9), random);
    if (info.columns == 1) every_count(info, matrix(random, info, 45, 333, 128, 128), random);
    for (const TypeInfo& other : {TYPES[0], TYPES[11], TYPES[13]}) strided(info, other, random);
    heads(info, random);
    packed(info, random);
    prompts(info, random);
    embedding(info, random);
    for (const TypeInfo& other : {TYPES[0], TYPES[8]}) {
      if (!same_kind(info.type, other.type)) continue;
      for (int64_t tokens : {1, 4, 9}) experts(info, other, tokens, 2, some_experts(tokens, 2, random), random);
      experts(other, info, 3, 3, some_experts(3, 3, random), random);
    }
    // A router that is given NaN may name one expert again and again.
    experts(info, info, 9, 3, std::vector<int32_t>(27, 4), random);
  }
}

}  // namespace check
