// Rotation, cache write and attention with grouped heads.
#include "cpu.h"
#include "ops.h"
#include "plan.h"

namespace zoo::ZOO_ISA::ops {

namespace {

Work work_of(const Attend& op) {
  return {op.cu_seqlens, op.seq_lens, op.positions, op.sequences, op.kv_heads, op.heads / op.kv_heads,
          op.v_dim,      op.window,   op.tokens};
}

Rotation rotation_of(const Attend& op) { return {op.cos, op.sin, op.cos ? op.half : 0, op.interleaved != 0}; }

template <class E>
void write_cache(const Attend& op, Worker& worker) {
  float* turned = reinterpret_cast<float*>(worker.local);
  const Rotation rotation = rotation_of(op);
  const Range mine = share(op.tokens * op.kv_heads, worker.ith, worker.nth);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t token = item / op.kv_heads, head = item % op.kv_heads, slot = op.slots[token];
    if (slot < 0) continue;
    rotation.turn(op.k + token * op.k_token + head * op.k_head, token, op.head_dim, 1.0f, turned);
    pack<E>(turned, op.head_dim, op.k_cache, (slot * op.kv_heads + head) * op.head_dim);
    pack<E>(op.v + token * op.v_token + head * op.v_head, op.v_dim, op.v_cache, (slot * op.kv_heads + head) * op.v_dim);
  }
}

// Adds the sink to the softmax and writes the head's result.
void finish(const Attend& op, int64_t token, int64_t head, float best, float total, const float* out) {
  float* y = op.y + (token * op.heads + head) * op.v_dim;
  float factor = 1.0f / total;
  if (op.sinks) {
    const float sink = op.sinks[head], top = sink > best ? sink : best;
    const float keep = best == NOTHING ? 0.0f : exp(splat(best - top))[0];
    factor = keep / (total * keep + exp(splat(sink - top))[0]);
  }
  for (int64_t i = 0; i < op.v_dim; i += VL)
    store_part(y + i, load_part(out + i, op.v_dim - i) * factor, op.v_dim - i);
}

template <class E>
Pages<E> pages_of(const Attend& op, int64_t sequence, int64_t lane) {
  return {static_cast<const typename E::type*>(op.k_cache) + lane * op.head_dim,
          static_cast<const typename E::type*>(op.v_cache) + lane * op.v_dim,
          op.block_table + sequence * op.table_stride, op.block_size, op.kv_heads * op.head_dim, op.kv_heads * op.v_dim};
}

template <class E>
Rows attend_unit(const Attend& op, const Work& work, const Unit& unit, Worker& worker) {
  const Rotation rotation = rotation_of(op);
  Rows rows = make_rows(reinterpret_cast<float*>(worker.local), unit.tokens * work.group, op.head_dim, op.v_dim);
  rows.window = op.window;
  rows.softcap = op.softcap;
  rows.alone = work.length(unit.sequence) == 1;
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t token = unit.first + r / work.group, head = unit.lane * work.group + r % work.group;
    rotation.turn(op.q + token * op.q_token + head * op.q_head, token, op.head_dim, op.scale, rows.q + r * rows.key_padded);
    rows.last[r] = op.positions[token];
  }
  attend_keys<E>(rows, pages_of<E>(op, unit.sequence, unit.lane), unit.begin, unit.end);
  return rows;
}

// Reads from a line of every 64 bytes.
inline void touch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) static_cast<void>(static_cast<const volatile char*>(from)[i]);
}

// Brings the keys and values of all heads into the cache in the order of memory, for processors that foresee it: a head's
// alone lie apart, and come at a third of the rate.
template <class E>
void fetch_all_heads(const Attend& op, const Unit& unit) {
  const Pages<E> pages = pages_of<E>(op, unit.sequence, 0);
  constexpr int64_t SIZE = sizeof(typename E::type);
  for (int64_t j = unit.begin; j < unit.end; ++j) touch(pages.keys + pages.offset(j, pages.key_row), pages.key_row * SIZE);
  for (int64_t j = unit.begin; j < unit.end; ++j) touch(pages.values + pages.offset(j, pages.value_row), pages.value_row * SIZE);
}

template <class E>
void run_as(const Attend& op, Worker& worker) {
  write_cache<E>(op, worker);
  worker.barrier();
  const Work work = work_of(op);
  const int64_t units = work.units();
  float* partials = reinterpret_cast<float*>(worker.shared);
  auto end = [&](int64_t token, int64_t head, float best, float total, const float* out) {
    finish(op, token, head, best, total, out);
  };
  Cursor cursor;
  // All heads of the same keys go to one thread, where there are units enough to share.
  const int64_t together = foresees && units >= 4 * worker.nth * work.lanes ? work.lanes : 1;
  for (int64_t first = worker.next() * together; first < units; first = worker.next() * together) {
    for (int64_t index = first; index < first + together; ++index) {
      const Unit unit = cursor.find(work, index);
      if (index == first && together > 1 && unit.partial >= 0) fetch_all_heads<E>(op, unit);
      leave(work, unit, attend_unit<E>(op, work, unit, worker), partials, end);
    }
  }
  // Padding tokens stand at the end and give zeros.
  if (worker.ith == 0)
    for (int64_t i = op.cu_seqlens[op.sequences] * op.heads * op.v_dim; i < op.tokens * op.heads * op.v_dim; ++i) op.y[i] = 0;
  if (work.partials() == 0) return;
  worker.barrier();
  combine(work, partials, reinterpret_cast<float*>(worker.local), worker, end);
}

bool prepare(const Attend& op, int, Scratch& scratch) {
  const Work work = work_of(op);
  scratch.local = static_cast<size_t>(rows_floats(work.tile_tokens() * work.group, op.head_dim, op.v_dim)) * 4;
  scratch.shared = static_cast<size_t>(work.partials() * work.partial_floats()) * 4;
  return op.cache_type == F32 || op.cache_type == F16 || op.cache_type == BF16;
}

void run(const Attend& op, Worker& worker) {
  if (op.cache_type == F32) run_as<Full>(op, worker);
  else if (op.cache_type == F16) run_as<Half>(op, worker);
  else run_as<Brain>(op, worker);
}

}  // namespace

const OpKernel attend_op = op_kernel<Attend, prepare, run>();

}  // namespace zoo::ZOO_ISA::ops
