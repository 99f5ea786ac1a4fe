#include "pool.h"

#include <chrono>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace zoo {

namespace {

constexpr auto SPIN = std::chrono::microseconds(500);  // longer than Python takes from one step to the next
constexpr size_t ALIGN = 64;
// Between the parts of the scratch. A processor fetches on past the end of what its thread walks through, and would take
// lines from the thread that is writing there: that cost a quarter of a product's time.
constexpr size_t GAP = 16384;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__SANITIZE_ADDRESS__)
// Nobody may touch what lies between the parts.
void forbid(const char* from, size_t bytes) { ASAN_POISON_MEMORY_REGION(from, bytes); }
void allow(const char* from, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(from, bytes); }
#else
void forbid(const char*, size_t) {}
void allow(const char*, size_t) {}
#endif

size_t rounded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN + GAP; }

}  // namespace

void Signal::raise() {
  value_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  // Whoever counted itself a sleeper holds the mutex until it waits, so the notice cannot come too early.
  { std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_all();
}

bool Signal::wait_past(uint32_t seen) {
  for (int i = 0; i < 64; ++i) {
    if (read() != seen) return false;
    relax();
  }
  const auto until = std::chrono::steady_clock::now() + SPIN;
  while (std::chrono::steady_clock::now() < until) {
    for (int i = 0; i < 16; ++i) {
      if (read() != seen) return false;
      relax();
    }
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return true;
}

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads), processors_(static_cast<size_t>(threads_)) {
  for (auto& processor : processors_) processor.store(-1, std::memory_order_relaxed);
#ifdef __linux__
  if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
#endif
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { loop(i); });
}

Pool::~Pool() {
  stop_.store(true, std::memory_order_relaxed);
  start_.raise();
  for (auto& worker : workers_) worker.join();
  allow(scratch_, scratch_bytes_);
  std::free(scratch_);
}

void Pool::run(Job job, void* data, size_t shared_bytes, size_t local_bytes) {
  std::lock_guard<std::mutex> lock(one_at_a_time_);
  shared_bytes_ = rounded(shared_bytes);
  local_bytes_ = rounded(local_bytes);
  const size_t needed = shared_bytes_ + local_bytes_ * static_cast<size_t>(threads_);
  allow(scratch_, scratch_bytes_);
  if (needed > scratch_bytes_) {
    std::free(scratch_);
    scratch_ = static_cast<char*>(std::aligned_alloc(ALIGN, needed));
    if (scratch_ == nullptr) std::abort();  // as any allocation of this size fails: the system has no memory left
    scratch_bytes_ = needed;
  }
  forbid(scratch_, scratch_bytes_);
  allow(scratch_, shared_bytes);
  for (int i = 0; i < threads_; ++i) allow(local_of(i), local_bytes);
  job_ = job;
  data_ = data;
  next_.store(0, std::memory_order_relaxed);
  if (threads_ > 1) {
    keep_apart(0);
    start_.raise();
  }
  work(0);
  if (threads_ > 1) barrier(0);
}

void Pool::loop(int ith) {
  for (uint32_t seen = 0;;) {
    start_.wait_past(seen);
    // One raise is one job: the next comes only after this thread passed the last barrier.
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    keep_apart(ith);
    work(ith);
    barrier(ith);
  }
}

void Pool::work(int ith) {
  Worker worker{this, ith, threads_, scratch_, local_of(ith)};
  job_(data_, worker);
}

// A kernel likes to wake a thread where the one runs that woke it, and two threads on one processor wait for each other at
// every barrier. So a thread that finds another of its pool on its processor goes to one without. The caller, number 0,
// is not ours to move.
void Pool::keep_apart(int ith) {
#ifdef __linux__
  const int here = sched_getcpu();
  processors_[static_cast<size_t>(ith)].store(here, std::memory_order_relaxed);
  bool shared = false;
  for (int other = 0; other < ith; ++other)
    shared |= processors_[static_cast<size_t>(other)].load(std::memory_order_relaxed) == here;
  if (!shared) return;
  cpu_set_t places = allowed_;
  for (int other = 0; other < threads_; ++other) {
    const int processor = processors_[static_cast<size_t>(other)].load(std::memory_order_relaxed);
    if (other != ith && processor >= 0 && processor < CPU_SETSIZE) CPU_CLR(processor, &places);
  }
  if (CPU_COUNT(&places) == 0 || sched_setaffinity(0, sizeof places, &places) != 0) return;
  processors_[static_cast<size_t>(ith)].store(sched_getcpu(), std::memory_order_relaxed);
#else
  (void)ith;
#endif
}

void Pool::barrier(int ith) {
  const uint32_t seen = phase_.read();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
    if (phase_.wait_past(seen)) keep_apart(ith);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  phase_.raise();
}

}  // namespace zoo
