// Threads that walk a list of ops together. Between lists they sleep.
#pragma once

#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace zoo {

// A counter that threads wait on: spinning first, then asleep.
class Signal {
 public:
  uint32_t read() const { return value_.load(std::memory_order_acquire); }
  void raise();
  bool wait_past(uint32_t seen);  // whether it slept

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Pool;

// What a thread knows while it runs an op.
struct Worker {
  Pool* pool;
  int ith, nth;
  char* shared;  // scratch of the op, one for all threads, aligned to 64
  char* local;   // scratch of this thread
  void barrier();
  int64_t next();  // 0, 1, 2 ... over all threads since the last barrier
};

using Job = void (*)(void* data, Worker& worker);

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  // Runs `job` on every thread; callers queue. Scratch keeps the largest size asked for.
  void run(Job job, void* data, size_t shared_bytes, size_t local_bytes);

 private:
  friend struct Worker;
  void loop(int ith);
  void work(int ith);
  char* local_of(int ith) { return scratch_ + shared_bytes_ + local_bytes_ * static_cast<size_t>(ith); }
  void barrier(int ith);
  void keep_apart(int ith);

  const int threads_;
  std::mutex one_at_a_time_;
  Signal start_;
  Signal phase_;
  std::atomic<int> arrived_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
#ifdef __linux__
  cpu_set_t allowed_;  // processors of the thread that made the pool
#endif
  std::vector<std::atomic<int>> processors_;  // where each thread was last seen, -1: nowhere yet
  Job job_ = nullptr;
  void* data_ = nullptr;
  char* scratch_ = nullptr;
  size_t scratch_bytes_ = 0, shared_bytes_ = 0, local_bytes_ = 0;
  std::vector<std::thread> workers_;
};

__attribute__((always_inline)) inline void Worker::barrier() {
  if (nth > 1) pool->barrier(ith);
  else pool->next_.store(0, std::memory_order_relaxed);
}

__attribute__((always_inline)) inline int64_t Worker::next() { return pool->next_.fetch_add(1, std::memory_order_relaxed); }

}  // namespace zoo
