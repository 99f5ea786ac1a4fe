// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). Absorbed: queries were taken into the latent
// space, and all heads share the cached rows, whose first part serves as values too. Expanded: keys and values of a head
// are taken out of the latent space, some keys at a time, and all new tokens of a sequence go over them.
#include <algorithm>

#include "heads.h"
#include "ops.h"
#include "plan.h"

namespace zoo::ZOO_ISA::ops {

namespace {

constexpr int64_t LANE_HEADS = 16;  // heads that one unit takes together at the most
constexpr int64_t EXPAND = 1024;    // keys that are expanded at a time, a multiple of KEYS

int64_t row_width(const AttendLatent& op) { return op.rank + op.rope; }
Rotation rotation_of(const AttendLatent& op) { return {op.cos, op.sin, op.half, op.interleaved != 0}; }

Work work_of(const AttendLatent& op) {
  int64_t group = std::min(op.heads, LANE_HEADS);
  while (op.heads % group) --group;
  return {op.cu_seqlens, op.seq_lens, op.positions, op.sequences, op.heads / group, group, op.rank, 0, op.most};
}

template <class E>
void write_cache(const AttendLatent& op, Worker& worker) {
  float* turned = reinterpret_cast<float*>(worker.local);
  const Range mine = share(op.tokens, worker.ith, worker.nth);
  for (int64_t token = mine.begin; token < mine.end; ++token) {
    const int64_t slot = op.slots[token];
    if (slot < 0) continue;
    pack<E>(op.latent + token * op.l_token, op.rank, op.cache, slot * row_width(op));
    rotation_of(op).turn(op.k_rope + token * op.k_token, token, op.rope, 1.0f, turned);
    pack<E>(turned, op.rope, op.cache, slot * row_width(op) + op.rank);
  }
}

// A query: the part without rotation, then the rotated one.
void load_query(const AttendLatent& op, int64_t token, int64_t head, int64_t width, float* to) {
  const float* from = op.q + token * op.q_token + head * op.q_head;
  for (int64_t i = 0; i < width; ++i) to[i] = from[i] * op.scale;
  rotation_of(op).turn(op.q_rope + token * op.r_token + head * op.r_head, token, op.rope, op.scale, to + width);
}

void finish(const AttendLatent& op, int64_t width, int64_t token, int64_t head, float total, const float* out) {
  float* y = op.y + (token * op.heads + head) * width;
  const float factor = 1.0f / total;
  for (int64_t i = 0; i < width; i += VL) store_part(y + i, load_part(out + i, width - i) * factor, width - i);
}

template <class E>
void run_absorbed(const AttendLatent& op, Worker& worker) {
  const Work work = work_of(op);
  const int64_t units = work.units();
  float* partials = reinterpret_cast<float*>(worker.shared);
  auto end = [&](int64_t token, int64_t head, float, float total, const float* out) {
    finish(op, op.rank, token, head, total, out);
  };
  const auto* cache = static_cast<const typename E::type*>(op.cache);
  Cursor cursor;
  for (int64_t index = worker.next(); index < units; index = worker.next()) {
    const Unit unit = cursor.find(work, index);
    Rows rows = make_rows(reinterpret_cast<float*>(worker.local), unit.tokens * work.group, row_width(op), op.rank);
    rows.alone = work.length(unit.sequence) == 1;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t token = unit.first + r / work.group;
      load_query(op, token, unit.lane * work.group + r % work.group, op.rank, rows.q + r * rows.key_padded);
      rows.last[r] = op.positions[token];
    }
    const Pages<E> pages{cache, cache, op.block_table + unit.sequence * op.table_stride, op.block_size, row_width(op), row_width(op)};
    attend_keys<E>(rows, pages, unit.begin, unit.end);
    leave(work, unit, rows, partials, end);
  }
  if (work.partials() == 0) return;
  worker.barrier();
  combine(work, partials, reinterpret_cast<float*>(worker.local), worker, end);
}

// Scratch of a thread that expands: latents [EXPAND, row], keys [EXPAND, key], values [EXPAND, value], state and queries
// of all new tokens of a sequence, and what the products need.
struct Expansion {
  int64_t key, value, row, tiles;
  size_t latents, keys, values, states, products, bytes;
  int32_t table[EXPAND / KEYS];  // an expanded run of keys is a cache of one page after the other
};

Expansion expansion_of(const AttendLatent& op) {
  Expansion at{};
  at.key = padded(op.nope + op.rope);
  at.value = padded(op.v_dim);
  at.row = padded(row_width(op));
  int64_t longest = 0;
  for (int64_t s = 0; s < op.sequences; ++s) longest = std::max<int64_t>(longest, op.cu_seqlens[s + 1] - op.cu_seqlens[s]);
  at.tiles = (longest + TILE_ROWS - 1) / TILE_ROWS;
  size_t end = 0;
  auto take = [&](size_t bytes) { const size_t begin = end; end += aligned(bytes); return begin; };
  at.latents = take(EXPAND * at.row * 4);
  at.keys = take(EXPAND * at.key * 4);
  at.values = take(EXPAND * at.value * 4);
  at.states = take(static_cast<size_t>(at.tiles * padded(rows_floats(TILE_ROWS, at.key, at.value))) * 4);
  at.products = take(std::max(head_scratch(op.k_up.first, EXPAND, op.k_up_transposed), head_scratch(op.v_up.first, EXPAND, false)));
  at.bytes = end;
  for (int i = 0; i < static_cast<int>(EXPAND / KEYS); ++i) at.table[i] = i;
  return at;
}

// Latents [n, row] of a sequence from position `begin` on.
template <class E>
void gather(const AttendLatent& op, int64_t s, int64_t begin, int64_t n, int64_t ld, float* to) {
  const auto* cache = static_cast<const typename E::type*>(op.cache);
  const Pages<E> pages{cache, cache, op.block_table + s * op.table_stride, op.block_size, row_width(op), row_width(op)};
  for (int64_t j = 0; j < n; ++j) unpack<E>(cache + pages.offset(begin + j, pages.key_row), row_width(op), ld, to + j * ld);
}

template <class E>
void expand_head(const AttendLatent& op, const Expansion& at, int64_t s, int64_t head, char* local) {
  auto place = [&](size_t offset) { return reinterpret_cast<float*>(local + offset); };
  float *latents = place(at.latents), *keys = place(at.keys), *values = place(at.values);
  const int64_t start = op.cu_seqlens[s], n = op.cu_seqlens[s + 1] - start, length = op.seq_lens[s];
  const int64_t tiles = (n + TILE_ROWS - 1) / TILE_ROWS, state = padded(rows_floats(TILE_ROWS, at.key, at.value));
  auto tile_rows = [&](int64_t tile) { return std::min(TILE_ROWS, n - tile * TILE_ROWS); };
  for (int64_t tile = 0; tile < tiles; ++tile) {
    Rows rows = make_rows(place(at.states) + tile * state, tile_rows(tile), at.key, at.value);
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t token = start + tile * TILE_ROWS + r;
      load_query(op, token, head, op.nope, rows.q + r * rows.key_padded);
      rows.last[r] = op.positions[token];
    }
  }
  const Weight k_up = matrix_of(op.k_up, head), v_up = matrix_of(op.v_up, head);
  for (int64_t begin = 0; begin < length; begin += EXPAND) {
    const int64_t count = std::min(EXPAND, length - begin);
    gather<E>(op, s, begin, count, at.row, latents);
    for (int64_t i = 0; i < count * at.key; ++i) keys[i] = 0;
    for (int64_t i = 0; i < count * at.value; ++i) values[i] = 0;
    head_product(k_up, op.k_up_transposed, latents, at.row, count, keys, at.key, local + at.products);
    head_product(v_up, false, latents, at.row, count, values, at.value, local + at.products);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < op.rope; ++i) keys[j * at.key + op.nope + i] = latents[j * at.row + op.rank + i];
    const Pages<Full> pages{keys, values, at.table, KEYS, at.key, at.value};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      Rows rows = lay_rows(place(at.states) + tile * state, tile_rows(tile), at.key, at.value);
      const int64_t last = op.positions[start + tile * TILE_ROWS + rows.count - 1] + 1 - begin;
      if (last > 0) attend_keys<Full>(rows, pages, begin, begin + std::min(count, last), begin);
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const Rows rows = lay_rows(place(at.states) + tile * state, tile_rows(tile), at.key, at.value);
    for (int64_t r = 0; r < rows.count; ++r)
      finish(op, op.v_dim, start + tile * TILE_ROWS + r, head, rows.total[r], rows.out + r * rows.value_padded);
  }
}

template <class E>
void run_expanded(const AttendLatent& op, Worker& worker) {
  const Expansion at = expansion_of(op);
  for (int64_t item = worker.next(); item < op.sequences * op.heads; item = worker.next()) {
    const int64_t s = item / op.heads;
    if (op.cu_seqlens[s + 1] - op.cu_seqlens[s] > op.most) expand_head<E>(op, at, s, item % op.heads, worker.local);
  }
}

template <class E>
void run_as(const AttendLatent& op, Worker& worker) {
  write_cache<E>(op, worker);
  // Padding tokens stand at the end and give zeros.
  const int64_t width = op.heads * (op.absorbed ? op.rank : op.v_dim);
  if (worker.ith == 0)
    for (int64_t i = op.cu_seqlens[op.sequences] * width; i < op.tokens * width; ++i) op.y[i] = 0;
  worker.barrier();
  if (op.absorbed) run_absorbed<E>(op, worker);
  else run_expanded<E>(op, worker);
}

bool prepare(const AttendLatent& op, int, Scratch& scratch) {
  if (op.absorbed) {
    const Work work = work_of(op);
    scratch.local = static_cast<size_t>(rows_floats(work.tile_tokens() * work.group, row_width(op), op.rank)) * 4;
    scratch.shared = static_cast<size_t>(work.partials() * work.partial_floats()) * 4;
  } else {
    for (const Stack* stack : {&op.k_up, &op.v_up})
      if (matmul_kernels.activation_kind(stack->first.type) < 0) return false;
    scratch.local = expansion_of(op).bytes;
  }
  return op.cache_type == F32 || op.cache_type == F16 || op.cache_type == BF16;
}

void run(const AttendLatent& op, Worker& worker) {
  if (op.cache_type == F32) run_as<Full>(op, worker);
  else if (op.cache_type == F16) run_as<Half>(op, worker);
  else run_as<Brain>(op, worker);
}

}  // namespace

const OpKernel attend_latent_op = op_kernel<AttendLatent, prepare, run>();

}  // namespace zoo::ZOO_ISA::ops
