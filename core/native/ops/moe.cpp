// Routing, and the experts that it chose. Tokens are grouped by expert; nobody else's weights are read.
#include <algorithm>
#include <utility>

#include "linear.h"
#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

constexpr float NEVER = -INFINITY;

// Scores of a token, and what they are ranked by.
void score(const Route& op, const float* logits, float* scores, float* ranking) {
  float best = logits[0], total = 0;
  for (int64_t e = 1; e < op.experts; ++e) best = std::max(best, logits[e]);
  for (int64_t e = 0; e < op.experts; ++e) {
    scores[e] = op.scoring == SIGMOID ? 1.0f / (1.0f + std::exp(-logits[e])) : std::exp(logits[e] - best);
    total += scores[e];
  }
  for (int64_t e = 0; e < op.experts; ++e) {
    if (op.scoring == SOFTMAX) scores[e] /= total;
    ranking[e] = op.bias ? scores[e] + op.bias[e] : scores[e];
  }
}

// The number of the largest that is neither NaN nor NEVER, -1: there is none.
int64_t best_of(const float* values, int64_t count) {
  int64_t best = -1;
  float top = NEVER;
  for (int64_t i = 0; i < count; ++i)
    if (values[i] > top) top = values[i], best = i;
  return best;
}

// The next expert of a token that has `n` of them: another one whatever the values are, NaN for instance.
int32_t next_expert(const float* values, int64_t count, const int32_t* chosen, int64_t n) {
  if (const int64_t best = best_of(values, count); best >= 0) return static_cast<int32_t>(best);
  for (int32_t e = 0; e < count; ++e)
    if (std::find(chosen, chosen + n, e) == chosen + n) return e;
  return 0;
}

// Experts outside the best groups rank at 0, or nowhere where groups count by their best two.
void mask_groups(const Route& op, float* ranking, float* group_scores) {
  const int64_t size = op.experts / op.groups;
  for (int64_t g = 0; g < op.groups; ++g) {
    float first = NEVER, second = NEVER;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      if (ranking[e] > first) second = first, first = ranking[e];
      else if (ranking[e] > second) second = ranking[e];
    }
    group_scores[g] = op.best_two ? first + second : first;
  }
  for (int64_t left = op.groups - op.top_groups; left > 0; --left) {
    // The worst group that is left; of equals the last, as the first ones are chosen before it.
    int64_t worst = -1;
    for (int64_t g = 0; g < op.groups; ++g)
      if (group_scores[g] != INFINITY && (worst < 0 || group_scores[g] <= group_scores[worst])) worst = g;
    group_scores[worst] = INFINITY;
    for (int64_t e = worst * size; e < (worst + 1) * size; ++e) ranking[e] = op.best_two ? NEVER : 0.0f;
  }
}

void choose(const Route& op, const float* logits, float* space, int32_t* indices, float* weights) {
  float *scores = space, *ranking = space + op.experts, *groups = space + 2 * op.experts;
  score(op, logits, scores, ranking);
  if (op.groups > 1) mask_groups(op, ranking, groups);
  float total = 0;
  for (int64_t j = 0; j < op.top_k; ++j) {
    const int32_t best = next_expert(ranking, op.experts, indices, j);
    indices[j] = best;
    weights[j] = scores[best];
    total += scores[best];
    ranking[best] = NEVER;
  }
  for (int64_t j = 0; j < op.top_k; ++j) {
    if (op.normalize) weights[j] /= total + 1e-20f;
    weights[j] *= op.scale;
  }
}

void choose_sparse(const Route& op, const float* logits, float* left, int32_t* indices, float* weights) {
  for (int64_t e = 0; e < op.experts; ++e) left[e] = logits[e];
  for (int64_t j = 0; j < op.top_k; ++j) {
    const int32_t best = next_expert(left, op.experts, indices, j);
    float total = 0;
    for (int64_t e = 0; e < op.experts; ++e) {
      const bool far = (left[best] - logits[e]) / std::max(std::fabs(logits[e]), left[best]) > 2 * op.jitter;
      if (!far && left[e] != NEVER) total += std::exp(left[e] - left[best]);
    }
    indices[j] = best;
    weights[j] = op.scale / total;
    left[best] = NEVER;
  }
}

bool prepare_route(const Route& op, int, Scratch& scratch) {
  scratch.local = static_cast<size_t>(2 * op.experts + op.groups) * 4;
  return true;
}

void run_route(const Route& op, Worker& worker) {
  const Range mine = share(op.tokens, worker.ith, worker.nth);
  float* space = reinterpret_cast<float*>(worker.local);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    auto* function = op.scoring == SPARSEMIXER ? choose_sparse : choose;
    function(op, op.logits + t * op.ld, space, op.indices + t * op.top_k, op.weights + t * op.top_k);
  }
}

// Shared memory of the experts: who has which tokens, and what lies between the products.
struct Layout {
  size_t first, pick, place, act[KINDS], gate, up, act_down, down, bytes, local;
  int kind_down;
};

bool plan(const Moe& op, Layout& at) {
  const int64_t pairs = op.tokens * op.top_k, width = op.gate[0].rows, out = op.down[0].rows;
  size_t end = 0;
  auto take = [&](size_t bytes) { const size_t begin = end; end += aligned(bytes); return begin; };
  at.first = take((op.experts + 1) * 4);
  at.pick = take(pairs * 4);
  at.place = take(pairs * 4);
  bool wanted[KINDS] = {};
  at.local = 0;
  at.kind_down = matmul_kernels.activation_kind(op.down[0].type);
  for (int64_t e = 0; e < op.experts; ++e) {
    for (const Weight* table : {op.gate, op.up, op.down}) {
      const Weight* weight = table + e;
      if (e > 0 && weight->type == weight[-1].type) continue;
      const int kind = matmul_kernels.activation_kind(weight->type);
      if (kind < 0 || kind >= KINDS || (table == op.down && kind != at.kind_down)) return false;
      if (table != op.down) wanted[kind] = true;
      // A token may name an expert more than once, so an expert has at most all pairs.
      at.local = std::max(at.local, matmul_kernels.matmul_scratch(weight, kind, pairs, 1));
    }
  }
  for (int kind = 0; kind < KINDS; ++kind)
    at.act[kind] = wanted[kind] ? 1 + take(matmul_kernels.activation_bytes(kind, op.tokens, op.gate[0].cols)) : 0;
  at.gate = take(pairs * width * 4);
  at.up = take(pairs * width * 4);
  at.act_down = take(matmul_kernels.activation_bytes(at.kind_down, pairs, width));
  at.down = take(pairs * out * 4);
  at.bytes = end;
  return true;
}

// first[e]: where the tokens of expert e begin in pick; place[pair]: the position of a pair there.
void group(const Moe& op, int32_t* first, int32_t* pick, int32_t* place) {
  const int64_t pairs = op.tokens * op.top_k;
  for (int64_t e = 0; e <= op.experts; ++e) first[e] = 0;
  for (int64_t i = 0; i < pairs; ++i) ++first[op.indices[i] + 1];
  for (int64_t e = 0; e < op.experts; ++e) first[e + 1] += first[e];
  for (int64_t i = 0; i < pairs; ++i) {
    const int32_t at = first[op.indices[i]]++;
    pick[at] = static_cast<int32_t>(i / op.top_k);
    place[i] = at;
  }
  for (int64_t e = op.experts; e > 0; --e) first[e] = first[e - 1];
  first[0] = 0;
}

bool prepare_moe(const Moe& op, int, Scratch& scratch) {
  Layout at;
  if (!plan(op, at)) return false;
  scratch.shared = at.bytes;
  scratch.local = at.local;
  return true;
}

void run_moe(const Moe& op, Worker& worker) {
  Layout at;
  plan(op, at);
  char* base = worker.shared;
  auto* first = reinterpret_cast<int32_t*>(base + at.first);
  auto* pick = reinterpret_cast<int32_t*>(base + at.pick);
  auto* place = reinterpret_cast<int32_t*>(base + at.place);
  auto *gate = reinterpret_cast<float*>(base + at.gate), *up = reinterpret_cast<float*>(base + at.up);
  auto* down = reinterpret_cast<float*>(base + at.down);
  const int64_t pairs = op.tokens * op.top_k, width = op.gate[0].rows, out = op.down[0].rows;
  if (worker.ith == 0) group(op, first, pick, place);
  for (int kind = 0; kind < KINDS; ++kind)
    if (at.act[kind])
      matmul_kernels.quantize(kind, op.x, op.ldx, op.tokens, op.gate[0].cols, base + at.act[kind] - 1, worker.ith, worker.nth);
  worker.barrier();
  for (int64_t e = 0; e < op.experts; ++e) {
    const int64_t begin = first[e], m = first[e + 1] - begin;
    if (m == 0) continue;
    for (auto [weight, to] : {std::pair{&op.gate[e], gate}, std::pair{&op.up[e], up}}) {
      const int kind = matmul_kernels.activation_kind(weight->type);
      const char* act = base + at.act[kind] - 1;
      product(*weight, kind, act, op.tokens, pick + begin, m, to + begin * width, width, nullptr, worker);
    }
  }
  worker.barrier();
  activate_and_multiply(op.act, gate, width, up, width, pairs, width, worker);
  worker.barrier();
  matmul_kernels.quantize(at.kind_down, gate, width, pairs, width, base + at.act_down, worker.ith, worker.nth);
  // pick is not needed any more: it now counts the pairs.
  const Range numbers = share(pairs, worker.ith, worker.nth);
  for (int64_t i = numbers.begin; i < numbers.end; ++i) pick[i] = static_cast<int32_t>(i);
  worker.barrier();
  for (int64_t e = 0; e < op.experts; ++e) {
    const int64_t begin = first[e], m = first[e + 1] - begin;
    if (m == 0) continue;
    product(op.down[e], at.kind_down, base + at.act_down, pairs, pick + begin, m, down + begin * out, out, nullptr, worker);
  }
  worker.barrier();
  const int64_t pieces = (out + PIECE - 1) / PIECE;
  const Range mine = share(op.tokens * pieces, worker.ith, worker.nth);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t t = item / pieces, begin = item % pieces * PIECE, end = std::min(begin + PIECE, out);
    for (int64_t i = begin; i < end; i += VL) {
      vf total = op.add ? load_part(op.add + t * op.ld_add + i, end - i) : vf{};
      for (int64_t j = 0; j < op.top_k; ++j)
        total += op.weights[t * op.top_k + j] * load_part(down + place[t * op.top_k + j] * out + i, end - i);
      store_part(op.y + t * out + i, total, end - i);
    }
  }
}

}  // namespace

const OpKernel route_op = op_kernel<Route, prepare_route, run_route>();
const OpKernel moe_op = op_kernel<Moe, prepare_moe, run_moe>();

}  // namespace zoo::ZOO_ISA::ops
