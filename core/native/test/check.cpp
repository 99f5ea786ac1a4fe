#include "check.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace check {

namespace {

constexpr uint8_t CANARY = 0xA5;
constexpr size_t BEFORE = 64;
int failed = 0;
int64_t checked = 0;

float value_of(int32_t type, const uint8_t* at) {
  float value = 0;
  zoo::scalar::matmul_kernels.unpack_row(type, at, &value, 1);
  return value;
}

size_t size_of(int32_t type) { return type == zoo::F16 || type == zoo::BF16 ? 2 : 4; }

// The norm of the difference over the norm of `expected`; NaN must meet NaN.
double distance(const std::vector<uint8_t>& expected, const uint8_t* found, int32_t type) {
  if (type == I32) return std::memcmp(expected.data(), found, expected.size()) ? INFINITY : 0;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); i += size_of(type)) {
    const double a = value_of(type, &expected[i]), b = value_of(type, found + i);
    if (std::isnan(a) != std::isnan(b)) return INFINITY;
    if (std::isnan(a)) continue;
    difference += (a - b) * (a - b);
    norm += a * a;
  }
  return norm > 0 ? std::sqrt(difference / norm) : difference;
}

std::vector<std::vector<uint8_t>> contents(const std::vector<Output>& outputs) {
  std::vector<std::vector<uint8_t>> all;
  for (const Output& output : outputs) all.emplace_back(output.buffer->data(), output.buffer->data() + output.buffer->bytes());
  return all;
}

}  // namespace

bool quick = false;

uint32_t Random::word() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return static_cast<uint32_t>(state_ >> 32);
}

float Random::normal() {
  float sum = -6;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum;
}

Buffer::Buffer(size_t bytes, bool mapped) : bytes_(bytes) {
  if (!mapped) {
    data_ = static_cast<uint8_t*>(std::malloc(bytes ? bytes : 1));
    if (data_ == nullptr) std::abort();
    return;
  }
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = (bytes + BEFORE + page - 1) / page * page;
  region_ = room + page;
  void* place = mmap(nullptr, region_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) std::abort();
  start_ = static_cast<uint8_t*>(place);
  if (mprotect(start_ + room, page, PROT_NONE) != 0) std::abort();
  data_ = start_ + room - bytes;
  std::memset(data_ - BEFORE, CANARY, BEFORE);
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(region_, other.region_);
  std::swap(data_, other.data_);
  std::swap(start_, other.start_);
  return *this;
}

Buffer::~Buffer() {
  if (start_ != nullptr) munmap(start_, region_);
  else std::free(data_);
}

bool Buffer::whole() const {
  for (size_t i = 1; start_ != nullptr && i <= BEFORE; ++i)
    if (data_[-static_cast<ptrdiff_t>(i)] != CANARY) return false;
  return true;
}

Buffer floats(Random& random, int64_t count, float scale) {
  Buffer buffer(static_cast<size_t>(count) * 4);
  for (int64_t i = 0; i < count; ++i) buffer.as()[i] = random.normal() * scale;
  return buffer;
}

Buffer integers(const std::vector<int32_t>& values) {
  Buffer buffer(values.size() * 4);
  std::memcpy(buffer.data(), values.data(), values.size() * 4);
  return buffer;
}

Buffer dense(Random& random, int32_t type, int64_t count) {
  if (type == zoo::F32) return floats(random, count);
  Buffer buffer(static_cast<size_t>(count) * 2);
  // Magnitudes from 2^-4 to 2, in the bits of either type.
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t exponent = (type == zoo::F16 ? 11u : 123u) + random.word() % 5, shift = type == zoo::F16 ? 10 : 7;
    buffer.as<uint16_t>()[i] =
        static_cast<uint16_t>(exponent << shift | (random.word() & ((1u << shift) - 1)) | (random.word() & 0x8000u));
  }
  return buffer;
}

const std::vector<TypeInfo> TYPES = {
    {"F32", zoo::F32, 1, 4}, {"F16", zoo::F16, 1, 2}, {"BF16", zoo::BF16, 1, 2}, {"FP8_E4M3", zoo::FP8_E4M3, 1, 1},
    {"Q4_0", zoo::Q4_0, 32, 18}, {"Q4_1", zoo::Q4_1, 32, 20}, {"Q5_0", zoo::Q5_0, 32, 22}, {"Q5_1", zoo::Q5_1, 32, 24},
    {"Q8_0", zoo::Q8_0, 32, 34}, {"Q2_K", zoo::Q2_K, 256, 84}, {"Q3_K", zoo::Q3_K, 256, 110}, {"Q4_K", zoo::Q4_K, 256, 144},
    {"Q5_K", zoo::Q5_K, 256, 176}, {"Q6_K", zoo::Q6_K, 256, 210}, {"Q8_K", zoo::Q8_K, 256, 292},
    {"IQ2_XXS", zoo::IQ2_XXS, 256, 66}, {"IQ2_XS", zoo::IQ2_XS, 256, 74}, {"IQ3_XXS", zoo::IQ3_XXS, 256, 98},
    {"IQ1_S", zoo::IQ1_S, 256, 50}, {"IQ4_NL", zoo::IQ4_NL, 32, 18}, {"IQ3_S", zoo::IQ3_S, 256, 110},
    {"IQ2_S", zoo::IQ2_S, 256, 82}, {"IQ4_XS", zoo::IQ4_XS, 256, 136}, {"IQ1_M", zoo::IQ1_M, 256, 56},
    {"TQ1_0", zoo::TQ1_0, 256, 54}, {"TQ2_0", zoo::TQ2_0, 256, 66}, {"MXFP4", zoo::MXFP4, 32, 17},
    {"NVFP4", zoo::NVFP4, 64, 36}, {"Q1_0", zoo::Q1_0, 128, 18}, {"Q2_0", zoo::Q2_0, 64, 18},
};

bool same_kind(int32_t a, int32_t b) {
  return zoo::scalar::matmul_kernels.activation_kind(a) == zoo::scalar::matmul_kernels.activation_kind(b);
}

// A block whose values are neither huge nor all tiny: drawn until it is so, and so scales need not be known here.
void draw_block(Random& random, const TypeInfo& info, uint8_t* block) {
  std::vector<float> values(static_cast<size_t>(info.columns));
  for (float largest = 0; !(largest > 0.01f && largest < 64.0f);) {
    for (int j = 0; j < info.bytes; ++j) block[j] = static_cast<uint8_t>(random.word());
    zoo::scalar::matmul_kernels.unpack_row(info.type, block, values.data(), info.columns);
    largest = 0;
    for (float value : values) largest = std::isfinite(value) ? std::fmax(largest, std::fabs(value)) : INFINITY;
  }
}

Matrix matrix(Random& random, const TypeInfo& info, int64_t rows, int64_t cols, int block_rows, int block_cols) {
  const int64_t blocks = cols / info.columns, row_bytes = blocks * info.bytes;
  Matrix made{Buffer(static_cast<size_t>(rows * row_bytes), true), Buffer(), {}};
  // Some blocks are drawn; the others are copies, for drawing takes longer than all the rest.
  const int64_t drawn = info.columns == 1 ? 1024 : 32;
  for (int64_t i = 0; i < rows * blocks; ++i) {
    uint8_t* block = made.data.data() + i * info.bytes;
    if (i < drawn) draw_block(random, info, block);
    else std::memcpy(block, made.data.data() + random.below(drawn) * info.bytes, static_cast<size_t>(info.bytes));
  }
  made.weight = {info.type, 0, rows, cols, made.data.data(), row_bytes, nullptr, 0, 0, 0};
  if (info.type != zoo::FP8_E4M3) return made;
  const int64_t down = (rows + block_rows - 1) / block_rows, across = (cols + block_cols - 1) / block_cols;
  made.scale = floats(random, down * across);
  made.weight.scale = made.scale.as();
  made.weight.scale_stride = across;
  made.weight.block_rows = block_rows;
  made.weight.block_cols = block_cols;
  return made;
}

const std::vector<Table>& tables() {
  static const std::vector<Table> all = [] {
    std::vector<Table> made{{"scalar", 1, zoo_pool_create("scalar", 1)}};
    int usable = 0;
    for (int i = 0; const char* isa = zoo_isa(i, &usable); ++i) {
      const int most = !usable ? 0 : !quick ? 3 : i == 0 ? 2 : 1;
      for (int threads = 1; threads <= most; ++threads) made.push_back({isa, threads, zoo_pool_create(isa, threads)});
    }
    return made;
  }();
  return all;
}

void everywhere(const std::string& name, const std::vector<const void*>& ops, const std::vector<Output>& outputs,
                double tolerance) {
  const auto initial = contents(outputs);
  std::vector<std::vector<uint8_t>> expected, alone;
  for (const Table& table : tables()) {
    const std::string where = name + " on " + table.isa + " with " + std::to_string(table.threads) + " threads";
    for (size_t i = 0; i < outputs.size(); ++i)
      std::memcpy(outputs[i].buffer->data(), initial[i].data(), initial[i].size());
    expect(zoo_execute(table.pool, ops.data(), static_cast<int64_t>(ops.size())) == 0, where + ": runs");
    const auto found = contents(outputs);
    if (expected.empty()) expected = found;
    if (table.threads == 1) alone = found;
    expect(found == alone, where + ": the bits of one thread");
    for (size_t i = 0; i < outputs.size(); ++i) {
      const double far = distance(expected[i], found[i].data(), outputs[i].type);
      expect(far <= tolerance, where + ": output " + std::to_string(i) + " differs from scalar by " + std::to_string(far));
      expect(outputs[i].buffer->whole(), where + ": writes before output " + std::to_string(i));
    }
  }
}

void expect(bool right, const std::string& what) {
  ++checked;
  if (right) return;
  if (++failed <= 20) std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

int failures() { return failed; }
int64_t checks() { return checked; }

}  // namespace check
