// A token from each row of logits; zoo.kernels.sample defines the order of the filters.
#include <algorithm>

#include "ops.h"
#include "vec.h"

namespace zoo::ZOO_ISA::ops {

namespace {

struct Entry { float logit; int32_t id; };

// Logits as they are drawn from. What is banned, and NaN, counts as the least likely: an order that compares with NaN is
// none, and sorting by it leaves the memory.
struct Row {
  const float* logits;
  const uint8_t* banned;

  Entry at(int64_t id) const {
    const bool never = logits[id] != logits[id] || (banned != nullptr && banned[id]);
    return {never ? -INFINITY : logits[id], static_cast<int32_t>(id)};
  }
};

// Whether a comes after b in the order from likely to unlikely: equal logits go by id. For heaps with the likeliest on top.
struct After {
  bool operator()(const Entry& a, const Entry& b) const { return a.logit < b.logit || (a.logit == b.logit && a.id > b.id); }
};
struct Before {
  bool operator()(const Entry& a, const Entry& b) const { return After{}(b, a); }
};

// The likeliest of some columns, the first of them where all are the least likely.
Entry likeliest(const Row& row, Range columns) {
  const int64_t begin = columns.begin, n = columns.end - begin;
  vf top = splat(-INFINITY);
  for (int64_t i = 0; i + VL <= n; i += VL) top = max(load(row.logits + begin + i), top);
  float best = largest(top);
  for (int64_t i = n / VL * VL; i < n; ++i) best = row.logits[begin + i] > best ? row.logits[begin + i] : best;
  for (int64_t i = begin; i < columns.end; ++i) {
    if (row.logits[i] != best) continue;
    if (row.banned == nullptr || !row.banned[i]) return {best, static_cast<int32_t>(i)};
    // Rarely: only then is every column asked whether it is banned.
    Entry allowed = row.at(begin);
    for (int64_t j = begin; j < columns.end; ++j)
      if (row.at(j).logit > allowed.logit) allowed = row.at(j);
    return allowed;
  }
  return {-INFINITY, static_cast<int32_t>(begin)};  // nothing but NaN
}

// Entries of the top k of a row, likeliest first.
int64_t top_entries(const Row& row, int64_t n, int64_t k, Entry* entries) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (count < k) {
      entries[count++] = row.at(i);
      if (count == k) std::make_heap(entries, entries + k, Before{});
    } else if (row.logits[i] > entries[0].logit && row.at(i).logit > entries[0].logit) {
      std::pop_heap(entries, entries + k, Before{});
      entries[k - 1] = row.at(i);
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

Row row_of(const Sample& op, int64_t row) { return {op.logits + row * op.ld, op.banned}; }

bool is_greedy(const Sample& op, int64_t row) { return !(op.temperature[row] > 0); }

int32_t sample_row(const Sample& op, int64_t row, char* local) {
  const Row logits = row_of(op, row);
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
  const double best = likeliest(logits, {0, op.cols}).logit;
  for (int64_t i = 0; i < op.cols; ++i) {
    space.entries[i] = logits.at(i);
    sum += std::exp((space.entries[i].logit - best) / temperature);
  }
  // A heap orders only as many as the draw looks at.
  std::make_heap(space.entries, space.entries + k, After{});
  return draw(op, row, sum, best, k, space.kept, space.ids, [&](int64_t i) {
    std::pop_heap(space.entries, space.entries + (k - i), After{});
    return space.entries[k - i - 1];
  });
}

bool prepare(const Sample& op, int threads, Scratch& scratch) {
  scratch.shared = static_cast<size_t>(op.rows * threads) * sizeof(Entry);
  scratch.local = static_cast<size_t>(op.cols) * (sizeof(Entry) + sizeof(double) + sizeof(int32_t));
  return true;
}

// All threads look for the likeliest column of a greedy row, each among those that it has probably computed itself.
void run(const Sample& op, Worker& worker) {
  auto* found = reinterpret_cast<Entry*>(worker.shared);
  const Range mine = share(op.cols, worker.ith, worker.nth);
  for (int64_t row = 0; row < op.rows; ++row)
    if (is_greedy(op, row) && mine.end > mine.begin) found[row * worker.nth + worker.ith] = likeliest(row_of(op, row), mine);
  worker.barrier();
  for (int64_t row = worker.ith; row < op.rows; row += worker.nth) {
    if (!is_greedy(op, row)) {
      op.out[row] = sample_row(op, row, worker.local);
      continue;
    }
    Entry best{-INFINITY, 0};
    for (int i = 0; i < worker.nth; ++i) {
      const Range other = share(op.cols, i, worker.nth);
      const Entry& entry = found[row * worker.nth + i];
      if (other.end > other.begin && entry.logit > best.logit) best = entry;
    }
    op.out[row] = best.id;
  }
}

}  // namespace

const OpKernel sample_op = op_kernel<Sample, prepare, run>();

}  // namespace zoo::ZOO_ISA::ops
