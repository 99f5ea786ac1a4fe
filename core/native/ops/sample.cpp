// A token from each row of logits; zoo.kernels.sample defines the order of the filters.
#include <algorithm>

#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

struct Entry { float logit; int32_t id; };

// NaN counts as the least likely: an order that compares with it is none, and sorting by it leaves the memory.
Entry entry_of(float logit, int64_t id) { return {logit == logit ? logit : -INFINITY, static_cast<int32_t>(id)}; }

// Whether a comes after b in the order from likely to unlikely: equal logits go by id. For heaps with the likeliest on top.
struct After {
  bool operator()(const Entry& a, const Entry& b) const { return a.logit < b.logit || (a.logit == b.logit && a.id > b.id); }
};
struct Before {
  bool operator()(const Entry& a, const Entry& b) const { return After{}(b, a); }
};

int32_t arg_max(const float* row, int64_t n) {
  vf top = splat(-INFINITY);
  for (int64_t i = 0; i + VL <= n; i += VL) top = max(load(row + i), top);
  float best = largest(top);
  for (int64_t i = n / VL * VL; i < n; ++i) best = row[i] > best ? row[i] : best;
  for (int64_t i = 0; i < n; ++i)
    if (row[i] == best) return static_cast<int32_t>(i);
  return 0;  // nothing but NaN
}

// Entries of the top k of a row, likeliest first.
int64_t top_entries(const float* row, int64_t n, int64_t k, Entry* entries) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Entry entry = entry_of(row[i], i);
    if (count < k) {
      entries[count++] = entry;
      if (count == k) std::make_heap(entries, entries + k, Before{});
    } else if (row[i] > entries[0].logit) {
      std::pop_heap(entries, entries + k, Before{});
      entries[k - 1] = entry;
      std::push_heap(entries, entries + k, Before{});
    }
  }
  std::sort(entries, entries + count, Before{});
  return count;
}

// The draw over entries that come one after the other, likeliest first, from `next`; `sum` is the mass of all of them.
// Probabilities of the kept ones are written to `kept`.
template <class Next>
int32_t draw(const Sample& op, int64_t row, double sum, double best, int64_t count, double* kept, int32_t* ids, Next next) {
  const double top_p = op.top_p[row], min_p = op.min_p[row], temperature = op.temperature[row];
  double before = 0, mass = 0, first = 0;
  int64_t n = 0;
  for (; n < count; ++n) {
    const Entry entry = next(n);
    const double p = std::exp((static_cast<double>(entry.logit) - best) / temperature) / sum;
    if (n == 0) first = p;
    // The likeliest survives every filter.
    if (n > 0 && ((before >= top_p && top_p < 1) || p < min_p * first)) break;
    before += p;
    mass += p;
    kept[n] = mass;
    ids[n] = entry.id;
  }
  const double target = static_cast<double>(op.uniform[row]) * mass;
  const int64_t choice = std::upper_bound(kept, kept + n, target) - kept;
  return ids[choice < n ? choice : n - 1];
}

struct Space { Entry* entries; double* kept; int32_t* ids; };

Space space_of(char* local, int64_t n) {
  double* kept = reinterpret_cast<double*>(local);
  Entry* entries = reinterpret_cast<Entry*>(kept + n);
  return {entries, kept, reinterpret_cast<int32_t*>(entries + n)};
}

int32_t sample_row(const Sample& op, int64_t row, char* local) {
  const float* logits = op.logits + row * op.ld;
  if (!(op.temperature[row] > 0)) return arg_max(logits, op.cols);
  const Space space = space_of(local, op.cols);
  const int64_t k = op.top_k[row] > 0 && op.top_k[row] < op.cols ? op.top_k[row] : op.cols;
  const double temperature = op.temperature[row];
  double sum = 0;
  if (k < op.cols) {
    const int64_t count = top_entries(logits, op.cols, k, space.entries);
    const double best = space.entries[0].logit;
    for (int64_t i = 0; i < count; ++i) sum += std::exp((space.entries[i].logit - best) / temperature);
    return draw(op, row, sum, best, count, space.kept, space.ids, [&](int64_t i) { return space.entries[i]; });
  }
  const float best = logits[arg_max(logits, op.cols)];
  for (int64_t i = 0; i < op.cols; ++i) {
    sum += std::exp((static_cast<double>(logits[i]) - best) / temperature);
    space.entries[i] = entry_of(logits[i], i);
  }
  // A heap orders only as many as the draw looks at.
  std::make_heap(space.entries, space.entries + k, After{});
  return draw(op, row, sum, best, k, space.kept, space.ids, [&](int64_t i) {
    std::pop_heap(space.entries, space.entries + (k - i), After{});
    return space.entries[k - i - 1];
  });
}

bool prepare(const Sample& op, int, Scratch& scratch) {
  scratch.local = static_cast<size_t>(op.cols) * (sizeof(Entry) + sizeof(double) + sizeof(int32_t));
  return true;
}

void run(const Sample& op, Worker& worker) {
  for (int64_t row = worker.ith; row < op.rows; row += worker.nth) op.out[row] = sample_row(op, row, worker.local);
}

}  // namespace

const OpKernel sample_op = op_kernel<Sample, prepare, run>();

}  // namespace zoo::ZOO_ISA::ops
