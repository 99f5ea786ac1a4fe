// What the tests of the CPU library share: memory whose ends are guarded, random weights of every type, and the run of
// one list of ops on every instruction set and number of threads, against the scalar kernels on one thread.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

ZOO_DECLARE(scalar, )

namespace check {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool ADDRESS_SANITIZER = true;
#else
constexpr bool ADDRESS_SANITIZER = false;
#endif

extern bool quick;  // fewer sizes

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint32_t word();
  int64_t below(int64_t n) { return static_cast<int64_t>(word() % static_cast<uint32_t>(n)); }
  float uniform() { return static_cast<float>(word() >> 8) * 0x1p-24f; }
  float normal();

 private:
  uint64_t state_;
};

// Memory of exactly so many bytes. A kernel that reads or writes behind it stops the program: there is a page without
// rights, or the sanitizer's own zone. Writes before it are found when `whole` is asked.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0, bool mapped = !ADDRESS_SANITIZER);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  size_t bytes() const { return bytes_; }
  uint8_t* data() const { return data_; }
  template <class T = float>
  T* as() const { return reinterpret_cast<T*>(data_); }
  bool whole() const;

 private:
  size_t bytes_ = 0, region_ = 0;
  uint8_t *data_ = nullptr, *start_ = nullptr;  // start_: null where malloc gave it
};

Buffer floats(Random& random, int64_t count, float scale = 1);
Buffer integers(const std::vector<int32_t>& values);
Buffer dense(Random& random, int32_t type, int64_t count);  // F32, F16 or BF16

struct TypeInfo { const char* name; int32_t type; int columns, bytes; };
extern const std::vector<TypeInfo> TYPES;  // every type that the library multiplies with, FP8 included
bool same_kind(int32_t a, int32_t b);      // whether weights of both types take the same quantised input

// Random blocks of a type, up to the last byte of a map.
struct Matrix {
  Buffer data, scale;
  zoo::Weight weight;
};
Matrix matrix(Random& random, const TypeInfo& info, int64_t rows, int64_t cols, int block_rows = 16, int block_cols = 32);

// What ops write. Type F32, F16 and BF16 is compared by the norm of the difference, I32 for equality.
constexpr int32_t I32 = -1;
struct Output { const Buffer* buffer; int32_t type; };

struct Table { std::string isa; int threads; zoo_pool* pool; };
const std::vector<Table>& tables();  // scalar on one thread first, then every usable set on 1, 2 and 3 threads

// Runs ops everywhere from the same initial contents of the outputs. Differing threads must give the same bits.
void everywhere(const std::string& name, const std::vector<const void*>& ops, const std::vector<Output>& outputs,
                double tolerance = 1e-5);

void expect(bool right, const std::string& what);
int failures();
int64_t checks();

void test_products();
void test_attention();
void test_small_ops();
void test_pools();

}  // namespace check
