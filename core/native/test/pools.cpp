// Pools and programs: their start and end, several of them at once, one that several callers share, steps run again.
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "check.h"

namespace check {

namespace {

const char* best_isa() {
  int usable = 0;
  for (int i = 0; const char* isa = zoo_isa(i, &usable); ++i)
    if (usable) return isa;
  return nullptr;
}

// A small step: embedding, norm, gated unit, sum, experts, product, choice of a token. Buffers are its own.
class Step {
 public:
  explicit Step(uint64_t seed) : random_(seed) {
    Random& random = random_;
    const TypeInfo &q4 = TYPES[11], &q8 = TYPES[8], &half = TYPES[1];
    const int64_t hidden = 256, vocabulary = 300, experts = 4, top_k = 2;
    const zoo::Weight table = keep(matrix(random, q8, vocabulary, hidden));
    ids_ = integers({3, 299, 0, 41, 41});
    const int32_t* ids = ids_.as<int32_t>();
    float *x = floats_of(TOKENS * hidden), *normed = floats_of(TOKENS * hidden), *sum = floats_of(TOKENS * hidden);
    float *gated = floats_of(TOKENS * hidden), *logits = floats_of(TOKENS * vocabulary), *scores = floats_of(TOKENS * experts);
    float *weights = floats_of(TOKENS * top_k), *mixed = floats_of(TOKENS * hidden), *zeros = floats_of(TOKENS);
    std::memset(zeros, 0, TOKENS * 4);
    auto* indices = reinterpret_cast<int32_t*>(floats_of(TOKENS * top_k));
    auto* none = reinterpret_cast<int32_t*>(floats_of(TOKENS));
    std::memset(none, 0, TOKENS * 4);
    result_ = Buffer(TOKENS * 4);
    gate_[0] = {keep(matrix(random, q4, hidden, hidden)), nullptr, 0, nullptr};
    gate_[1] = {keep(matrix(random, half, hidden, hidden)), nullptr, 0, nullptr};
    router_ = {keep(matrix(random, TYPES[0], experts, hidden)), scores, experts, nullptr};
    head_ = {table, logits, vocabulary, nullptr};
    for (auto& stack : experts_)
      for (int64_t e = 0; e < experts; ++e) stack.push_back(keep(matrix(random, q4, hidden, hidden)));
    embedding_ = {zoo::EMBEDDING, 1, ids, TOKENS, table, x};
    norm_.code = zoo::RMS_NORM, norm_.x = x, norm_.y = normed, norm_.rows = TOKENS, norm_.cols = hidden;
    norm_.ldx = hidden, norm_.eps = 1e-6f;
    glu_ = {zoo::GLU, zoo::SILU, normed, TOKENS, hidden, 2, gate_, gated, hidden};
    sum_.code = zoo::ELEMENTWISE, sum_.what = zoo::ADD, sum_.a = x, sum_.b = gated, sum_.y = sum, sum_.rows = TOKENS;
    sum_.cols = sum_.lda = sum_.ldb = sum_.b_cols = hidden;
    score_ = {zoo::LINEAR, 1, sum, TOKENS, hidden, 2, &router_};
    route_.code = zoo::ROUTE, route_.logits = scores, route_.indices = indices, route_.weights = weights;
    route_.tokens = TOKENS, route_.experts = route_.ld = experts, route_.top_k = top_k, route_.groups = 1;
    route_.top_groups = 1, route_.scale = 1;
    moe_ = {zoo::MOE, zoo::SILU, sum, TOKENS, hidden, indices, weights, top_k, experts, experts_[0].data(),
            experts_[1].data(), experts_[2].data(), x, hidden, mixed};
    linear_ = {zoo::LINEAR, 1, mixed, TOKENS, hidden, TOKENS, &head_};
    sample_ = {zoo::SAMPLE, 0, logits, TOKENS, vocabulary, vocabulary, nullptr, zeros, zeros, zeros, zeros, none,
               result_.as<int32_t>()};
    outcome_ = logits;
  }
  Step(const Step&) = delete;

  // The logits and tokens of one run.
  std::vector<uint8_t> run(zoo_pool* pool) {
    const void* ops[] = {&embedding_, &norm_, &glu_, &sum_, &score_, &route_, &moe_, &linear_, &sample_};
    if (zoo_execute(pool, ops, sizeof ops / sizeof *ops) != 0) return {};
    const auto* logits = reinterpret_cast<const uint8_t*>(outcome_);
    std::vector<uint8_t> all(logits, logits + TOKENS * 300 * 4);
    all.insert(all.end(), result_.data(), result_.data() + result_.bytes());
    std::memset(outcome_, 0xFF, TOKENS * 300 * 4);
    return all;
  }

 private:
  static constexpr int64_t TOKENS = 5;

  zoo::Weight keep(Matrix made) {
    matrices_.push_back(std::move(made));
    return matrices_.back().weight;
  }
  float* floats_of(int64_t count) {
    buffers_.emplace_back(static_cast<size_t>(count) * 4);
    return buffers_.back().as();
  }

  Random random_;
  std::vector<Matrix> matrices_;
  std::vector<Buffer> buffers_;
  Buffer ids_, result_;
  zoo::Part gate_[2], router_, head_;
  std::vector<zoo::Weight> experts_[3];
  zoo::Embedding embedding_;
  zoo::Norm norm_{};
  zoo::Glu glu_;
  zoo::Elementwise sum_{};
  zoo::Linear score_, linear_;
  zoo::Route route_{};
  zoo::Moe moe_;
  zoo::Sample sample_;
  float* outcome_;
};

void start_and_stop(const char* isa) {
  Step step(1);
  for (int round = 0; round < (quick ? 20 : 200); ++round) {
    zoo_pool* pool = zoo_pool_create(isa, 1 + round % 5);
    if (round % 3 == 1) step.run(pool);
    if (round % 3 == 2) {
      const auto first = step.run(pool);
      expect(step.run(pool) == first, "a step gives the same again");
    }
    zoo_pool_destroy(pool);
  }
  expect(zoo_pool_create("none", 1) == nullptr, "an instruction set of no name");
}

void refuse(const char* isa) {
  zoo_pool* pool = zoo_pool_create(isa, 2);
  zoo::Embedding unknown{};
  unknown.code = zoo::EMBEDDING, unknown.table.type = 12345;
  const zoo::Norm nothing{zoo::RMS_NORM, zoo::F32, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 1, 1, 1, 0, 0};
  const int32_t code = zoo::NUM_CODES;
  const void *second[] = {&nothing, &unknown}, *third[] = {&nothing, &nothing, &code};
  expect(zoo_execute(pool, second, 2) == 2, "a weight type without a kernel is op 1");
  expect(zoo_execute(pool, third, 3) == 3, "an unknown code is op 2");
  expect(zoo_execute(pool, nullptr, 0) == 0, "no op");
  expect(!zoo_has_type(pool, 12345) && zoo_has_type(pool, zoo::Q4_K), "types");
  const std::vector<uint64_t> words(1001, 1);
  expect(zoo_read(pool, words.data(), static_cast<int64_t>(words.size()) * 8) > 900, "memory is read");
  zoo_pool_destroy(pool);
}

// Callers at once: each with a pool of its own, or all with one.
void side_by_side(const char* isa, bool shared, int rounds) {
  zoo_pool* one = zoo_pool_create(isa, 3);
  std::vector<std::thread> callers;
  std::vector<int> wrong(3, 0);
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&, i] {
      zoo_pool* pool = shared ? one : zoo_pool_create(isa, 1 + i);
      Step step(static_cast<uint64_t>(i) + 10);
      zoo_pool* alone = zoo_pool_create(isa, 1);
      const auto expected = step.run(alone);
      zoo_pool_destroy(alone);
      for (int round = 0; round < rounds; ++round) wrong[static_cast<size_t>(i)] += step.run(pool) != expected;
      if (!shared) zoo_pool_destroy(pool);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int count : wrong) expect(count == 0, shared ? "callers that share a pool" : "pools side by side");
  zoo_pool_destroy(one);
}

}  // namespace

void test_pools() {
  const char* isa = best_isa();
  start_and_stop(isa);
  refuse(isa);
  for (bool shared : {false, true}) side_by_side(isa, shared, quick ? 20 : 200);
}

}  // namespace check
