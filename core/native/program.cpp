// The C interface: pools, and the execution of a list of ops.
#include <cstring>
#include <algorithm>

#include "cpu.h"

struct zoo_pool {
  const zoo::Isa* isa;
  zoo::Pool pool;
};

namespace zoo {

namespace {

struct Program {
  const IsaKernels* kernels;
  const void* const* ops;
  int64_t count;
};

int32_t code_of(const void* op) { return *static_cast<const int32_t*>(op); }

void run_program(void* data, Worker& worker) {
  const auto& program = *static_cast<const Program*>(data);
  for (int64_t i = 0; i < program.count; ++i) {
    program.kernels->ops[code_of(program.ops[i])].run(program.ops[i], worker);
    if (i + 1 < program.count) worker.barrier();
  }
}

struct Packing {
  const IsaKernels* kernels;
  const Weight* weight;
  uint8_t* out;
};

void pack_all(void* data, Worker& worker) {
  const auto& packing = *static_cast<const Packing*>(data);
  packing.kernels->matmul->pack(packing.weight, packing.out, worker.ith, worker.nth);
}

struct Reading {
  const uint64_t* data;
  int64_t words;
  std::atomic<uint64_t> sum;
};

void read_all(void* data, Worker& worker) {
  auto& reading = *static_cast<Reading*>(data);
  const int64_t begin = reading.words * worker.ith / worker.nth, end = reading.words * (worker.ith + 1) / worker.nth;
  uint64_t sum[8] = {};
  for (int64_t i = begin; i + 8 <= end; i += 8)
    for (int64_t j = 0; j < 8; ++j) sum[j] += reading.data[i + j];
  for (uint64_t part : sum) reading.sum += part;
}

}  // namespace

}  // namespace zoo

int zoo_abi() { return ZOO_ABI; }

int64_t zoo_op_bytes(int32_t code) {
  if (code < 0 || code >= zoo::NUM_CODES) return -1;
  return static_cast<int64_t>(zoo::isa_at(0)->kernels->ops[code].op_bytes);
}

const char* zoo_isa(int index, int* usable) {
  const zoo::Isa* isa = zoo::isa_at(index);
  if (isa == nullptr) return nullptr;
  *usable = isa->usable();
  return isa->name;
}

zoo_pool* zoo_pool_create(const char* name, int threads) {
  for (int i = 0; const zoo::Isa* isa = zoo::isa_at(i); ++i)
    if (std::strcmp(isa->name, name) == 0 && isa->usable()) return new zoo_pool{isa, zoo::Pool(threads)};
  return nullptr;
}

void zoo_pool_destroy(zoo_pool* pool) { delete pool; }

int64_t zoo_execute(zoo_pool* pool, const void* const* ops, int64_t count) {
  zoo::Program program{pool->isa->kernels, ops, count};
  zoo::Scratch scratch;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t code = zoo::code_of(ops[i]);
    zoo::Scratch needed;
    if (code < 0 || code >= zoo::NUM_CODES || program.kernels->ops[code].run == nullptr) return i + 1;
    if (!program.kernels->ops[code].prepare(ops[i], pool->pool.threads(), needed)) return i + 1;
    scratch.shared = std::max(scratch.shared, needed.shared);
    scratch.local = std::max(scratch.local, needed.local);
  }
  pool->pool.run(zoo::run_program, &program, scratch.shared, scratch.local);
  return 0;
}

int zoo_has_type(zoo_pool* pool, int32_t type) { return pool->isa->kernels->matmul->activation_kind(type) >= 0; }

int zoo_tile_rows(zoo_pool* pool, int32_t type) { return pool->isa->kernels->matmul->tile_rows(type); }

void zoo_pack(zoo_pool* pool, const zoo::Weight* weight, void* out) {
  zoo::Packing packing{pool->isa->kernels, weight, static_cast<uint8_t*>(out)};
  pool->pool.run(zoo::pack_all, &packing, 0, 0);
}

uint64_t zoo_read(zoo_pool* pool, const void* data, int64_t bytes) {
  zoo::Reading reading{static_cast<const uint64_t*>(data), bytes / 8, {0}};
  pool->pool.run(zoo::read_all, &reading, 0, 0);
  return reading.sum;
}
