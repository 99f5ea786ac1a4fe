// Norms, rotary angles, routing, sums and activations, sampling.
#include <cmath>
#include <cstring>
#include <set>

#include "check.h"

namespace check {

namespace {

Buffer room(int64_t count) {
  Buffer buffer(static_cast<size_t>(count) * 4);
  std::memset(buffer.data(), 0xFF, buffer.bytes());
  return buffer;
}

void norms(int64_t rows, int64_t cols, Random& random) {
  const int64_t gap = 3;
  const Buffer x = floats(random, rows * (cols + gap) - gap), add = floats(random, rows * cols);
  const Buffer y = room(rows * cols), sum = room(rows * cols);
  for (int32_t type : {zoo::F32, zoo::F16, zoo::BF16}) {
    const Buffer weight = dense(random, type, cols), bias = dense(random, type, cols);
    for (int32_t code : {zoo::RMS_NORM, zoo::LAYER_NORM}) {
      for (int with = 0; with < 3; ++with) {
        zoo::Norm op{};
        op.code = code, op.type = type, op.x = x.as(), op.y = y.as();
        op.rows = rows, op.cols = cols, op.ldx = cols + gap, op.ld_add = cols, op.eps = 1e-5f;
        if (with > 0) op.weight = weight.data(), op.offset = code == zoo::RMS_NORM ? 1.0f : 0.0f;
        if (with > 0 && code == zoo::LAYER_NORM) op.bias = bias.data();
        if (with > 1) op.add = add.as(), op.sum = sum.as();
        everywhere("norm of " + std::to_string(cols), {&op}, {{&y, zoo::F32}, {&sum, zoo::F32}});
      }
    }
  }
}

void angles(Random& random) {
  for (int64_t half : {1, 7, 32}) {
    const Buffer positions = integers({0, 1, 77, 4095, 100000}), frequencies = floats(random, half);
    const Buffer cos = room(5 * half), sin = room(5 * half);
    const zoo::RotaryOp op{zoo::ROTARY, 1.25f, positions.as<int32_t>(), frequencies.as(), cos.as(), sin.as(), 5, half};
    everywhere("rotary", {&op}, {{&cos, zoo::F32}, {&sin, zoo::F32}}, 1e-6);
  }
}

// `broken`: logits that a model in trouble gives. Whatever they are, a token goes to top_k different experts.
void routes(int64_t experts, int64_t top_k, int64_t groups, bool broken, Random& random) {
  const int64_t tokens = 13;
  const Buffer logits = floats(random, tokens * experts), bias = floats(random, experts, 0.1f);
  for (int64_t i = 0; broken && i < tokens * experts; ++i) {
    const float values[] = {NAN, INFINITY, -INFINITY, -NAN};
    if (i % experts % 3 || i < 4 * experts) logits.as()[i] = values[i / experts % 4];
  }
  const Buffer indices = room(tokens * top_k), weights = room(tokens * top_k);
  for (int32_t scoring : {zoo::SOFTMAX, zoo::SIGMOID, zoo::SPARSEMIXER}) {
    for (int best_two : {0, 1}) {
      zoo::Route op{};
      op.code = zoo::ROUTE, op.scoring = scoring, op.logits = logits.as(), op.indices = indices.as<int32_t>();
      op.bias = best_two ? bias.as() : nullptr, op.weights = weights.as();
      op.tokens = tokens, op.experts = experts, op.ld = experts, op.top_k = top_k, op.groups = groups;
      op.top_groups = groups > 1 ? groups / 2 : 1, op.best_two = best_two, op.normalize = best_two;
      op.scale = 2.5f, op.jitter = 0.01f;
      if (!broken) everywhere("route", {&op}, {{&indices, I32}, {&weights, zoo::F32}});
      for (const Table& table : tables()) {
        const void* ops[] = {&op};
        zoo_execute(table.pool, ops, 1);
        for (int64_t t = 0; t < tokens; ++t) {
          std::set<int32_t> chosen(indices.as<int32_t>() + t * top_k, indices.as<int32_t>() + (t + 1) * top_k);
          expect(static_cast<int64_t>(chosen.size()) == top_k, "a token goes to an expert twice on " + table.isa);
          expect(*chosen.begin() >= 0 && *chosen.rbegin() < experts, "an expert that is not there on " + table.isa);
        }
      }
    }
  }
}

void elements(int64_t rows, int64_t cols, Random& random) {
  const int64_t gap = 5;
  const Buffer a = floats(random, rows * (cols + gap) - gap), b = floats(random, rows * cols), one = floats(random, rows);
  const Buffer y = room(rows * cols);
  std::vector<int32_t> places;
  for (int64_t row = 0; row < rows; ++row) places.push_back(static_cast<int32_t>(row * 4000));
  const Buffer positions = integers(places);
  for (int32_t what : {zoo::ADD, zoo::ACTIVATE, zoo::GATE, zoo::SOFTCAP, zoo::POSITION_SCALE}) {
    for (int variant = 0; variant < 2; ++variant) {
      zoo::Elementwise op{};
      op.code = zoo::ELEMENTWISE, op.what = what, op.a = a.as(), op.y = y.as(), op.rows = rows, op.cols = cols;
      op.lda = cols + gap, op.length = 8192, op.act = variant, op.value = 4;
      if (what == zoo::POSITION_SCALE) op.b = positions.data(), op.ldb = 1, op.b_cols = 1;
      else if (what == zoo::ADD || what == zoo::GATE)
        op.b = variant ? one.data() : b.data(), op.ldb = variant ? 1 : cols, op.b_cols = variant ? 1 : cols;
      everywhere("elementwise " + std::to_string(what), {&op}, {{&y, zoo::F32}});
    }
  }
}

void samples(int64_t cols, bool broken, Random& random) {
  const int64_t rows = 12;
  const Buffer logits = floats(random, rows * cols, 3), uniform = floats(random, rows), out = room(rows);
  std::vector<int32_t> top_k;
  const Buffer temperature = room(rows), top_p = room(rows), min_p = room(rows);
  for (int64_t i = 0; i < rows; ++i) {
    uniform.as()[i] = random.uniform();
    temperature.as()[i] = i % 4 ? 0.7f : 0.0f;
    top_p.as()[i] = i % 2 ? 0.9f : 1.0f;
    min_p.as()[i] = i % 3 ? 0.0f : 0.05f;
    top_k.push_back(static_cast<int32_t>(i % 3 == 0 ? 0 : i % 3 == 1 ? 40 : cols / 2));
  }
  for (int64_t i = 0; broken && i < rows * cols; ++i) {
    const float values[] = {NAN, INFINITY, -INFINITY, NAN};
    if (random.word() % 2) logits.as()[i] = values[random.word() % 4];
  }
  const Buffer counts = integers(top_k), banned(static_cast<size_t>(cols));
  for (int64_t i = 0; i < cols; ++i) banned.data()[i] = i != cols / 2 && random.word() % 2;
  for (const uint8_t* never : {static_cast<const uint8_t*>(nullptr), static_cast<const uint8_t*>(banned.data())}) {
    const zoo::Sample op{zoo::SAMPLE, 0, logits.as(), rows, cols, cols, never, temperature.as(), top_p.as(), min_p.as(),
                         uniform.as(), counts.as<int32_t>(), out.as<int32_t>()};
    if (!broken) everywhere("sample of " + std::to_string(cols), {&op}, {{&out, I32}});
    for (const Table& table : tables()) {
      const void* ops[] = {&op};
      zoo_execute(table.pool, ops, 1);
      for (int64_t i = 0; i < rows; ++i) {
        const int32_t token = out.as<int32_t>()[i];
        expect(token >= 0 && token < cols, "a token that is not there on " + table.isa);
        if (!broken && never != nullptr) expect(!never[token], "a banned token on " + table.isa);
      }
    }
  }
}

}  // namespace

void test_small_ops() {
  Random random(6);
  for (int64_t cols : {1, 5, 64, 259, 1000}) {
    norms(4, cols, random);
    elements(5, cols, random);
  }
  angles(random);
  for (bool broken : {false, true}) {
    routes(8, 2, 1, broken, random);
    routes(60, 6, 4, broken, random);
    routes(3, 3, 1, broken, random);
    for (int64_t cols : {1, 33, 1000}) samples(cols, broken, random);
  }
}

}  // namespace check
