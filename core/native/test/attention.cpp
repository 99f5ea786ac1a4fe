// Attention over a paged cache, and over a latent one: prompts, decode steps, both in one batch, padding at its end.
#include <cstring>

#include "check.h"

namespace check {

namespace {

struct Sequence { int64_t before, fresh; };

// Index tensors of a batch; tables name pages out of order, and memory that no sequence wrote is NaN.
struct Batch {
  int64_t tokens, sequences, pages, page, stride;
  Buffer table, slots, bounds, lengths, positions;
  std::vector<int32_t> written;  // slots that hold keys from before
};

Batch batch_of(const std::vector<Sequence>& sequences, int64_t page, int64_t padding, Random& random) {
  std::vector<int32_t> bounds{0}, lengths, positions, slots, written;
  int64_t pages = 1, widest = 0;
  for (const Sequence& s : sequences) {
    const int64_t needed = (s.before + s.fresh + page - 1) / page;
    pages += needed;
    widest = needed > widest ? needed : widest;
  }
  std::vector<int32_t> free;
  for (int64_t i = 1; i < pages; ++i) free.insert(free.begin() + random.below(i), static_cast<int32_t>(i));
  std::vector<int32_t> table(sequences.size() * static_cast<size_t>(widest), 0);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t end = sequences[s].before + sequences[s].fresh;
    int32_t* row = table.data() + static_cast<int64_t>(s) * widest;
    for (int64_t i = 0; i * page < end; ++i) row[i] = free.back(), free.pop_back();
    for (int64_t i = 0; i < end; ++i) {
      const int32_t slot = static_cast<int32_t>(row[i / page] * page + i % page);
      if (i < sequences[s].before) {
        written.push_back(slot);
        continue;
      }
      slots.push_back(slot);
      positions.push_back(static_cast<int32_t>(i));
    }
    bounds.push_back(static_cast<int32_t>(slots.size()));
    lengths.push_back(static_cast<int32_t>(end));
  }
  slots.resize(slots.size() + static_cast<size_t>(padding), -1);
  positions.resize(slots.size(), 0);
  const auto tokens = static_cast<int64_t>(slots.size()), count = static_cast<int64_t>(sequences.size());
  return {tokens, count, pages, page, widest, integers(table), integers(slots), integers(bounds), integers(lengths),
          integers(positions), written};
}

Buffer cache_of(const Batch& batch, int32_t type, int64_t row, Random& random) {
  const size_t bytes = static_cast<size_t>(row) * (type == zoo::F32 ? 4 : 2);
  Buffer cache(static_cast<size_t>(batch.pages * batch.page) * bytes);
  std::memset(cache.data(), 0xFF, cache.bytes());
  const Buffer values = dense(random, type, row * static_cast<int64_t>(batch.written.size()));
  for (size_t i = 0; i < batch.written.size(); ++i)
    std::memcpy(cache.data() + static_cast<size_t>(batch.written[i]) * bytes, values.data() + i * bytes, bytes);
  return cache;
}

const std::vector<std::vector<Sequence>> BATCHES = {
    {{0, 1}}, {{300, 1}, {0, 1}, {63, 1}}, {{0, 37}}, {{5, 70}, {130, 1}, {0, 2}, {127, 1}}, {{64, 64}, {1000, 1}},
};

struct Shape { int64_t heads, kv_heads, head_dim, v_dim, half, window; float softcap; bool sinks, interleaved; };

void grouped(const Batch& batch, const Shape& s, int32_t type, Random& random) {
  // q, k and v side by side, as one product leaves them.
  const int64_t row = s.heads * s.head_dim + s.kv_heads * (s.head_dim + s.v_dim);
  const Buffer x = floats(random, batch.tokens * row), angles = floats(random, 2 * batch.tokens * s.half);
  const Buffer sinks = floats(random, s.heads);
  const Buffer keys = cache_of(batch, type, s.kv_heads * s.head_dim, random);
  const Buffer values = cache_of(batch, type, s.kv_heads * s.v_dim, random);
  Buffer y(static_cast<size_t>(batch.tokens * s.heads * s.v_dim) * 4);
  std::memset(y.data(), 0xFF, y.bytes());
  const float *k = x.as() + s.heads * s.head_dim, *v = k + s.kv_heads * s.head_dim;
  zoo::Attend op{};
  op.code = zoo::ATTEND, op.cache_type = type;
  op.q = x.as(), op.k = k, op.v = v;
  op.q_token = op.k_token = op.v_token = row;
  op.q_head = op.k_head = s.head_dim, op.v_head = s.v_dim;
  op.cos = s.half ? angles.as() : nullptr, op.sin = s.half ? angles.as() + batch.tokens * s.half : nullptr;
  op.half = s.half, op.interleaved = s.interleaved, op.block_size = static_cast<int32_t>(batch.page);
  op.k_cache = keys.data(), op.v_cache = values.data();
  op.block_table = batch.table.as<int32_t>(), op.slots = batch.slots.as<int32_t>();
  op.cu_seqlens = batch.bounds.as<int32_t>(), op.seq_lens = batch.lengths.as<int32_t>();
  op.positions = batch.positions.as<int32_t>(), op.table_stride = batch.stride;
  op.sinks = s.sinks ? sinks.as() : nullptr, op.y = y.as();
  op.tokens = batch.tokens, op.sequences = batch.sequences, op.heads = s.heads, op.kv_heads = s.kv_heads;
  op.head_dim = s.head_dim, op.v_dim = s.v_dim, op.window = s.window;
  op.scale = 0.125f, op.softcap = s.softcap;
  // A rotated key may be rounded to the neighbour in half precision.
  everywhere("attend " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " x " + std::to_string(s.head_dim),
             {&op}, {{&y, zoo::F32}, {&keys, type}, {&values, type}}, type == zoo::F32 ? 2e-5 : 5e-3);
}

void latent(const Batch& batch, const TypeInfo& info, int32_t type, bool transposed, int64_t most, Random& random) {
  const int64_t heads = 6, rank = 256, rope = 12, nope = transposed ? 256 : 20, v_dim = 24, width = nope + rope;
  const Buffer q = floats(random, batch.tokens * heads * width), absorbed = floats(random, batch.tokens * heads * rank);
  const Buffer rows = floats(random, batch.tokens * (rank + rope)), angles = floats(random, batch.tokens * rope);
  const Matrix k_up = matrix(random, info, heads * (transposed ? rank : nope), transposed ? nope : rank, 4, 32);
  const Matrix v_up = matrix(random, info, heads * v_dim, rank, 4, 32);
  const Buffer cache = cache_of(batch, type, rank + rope, random);
  Buffer y(static_cast<size_t>(batch.tokens * heads * v_dim) * 4), mixed(static_cast<size_t>(batch.tokens * heads * rank) * 4);
  std::memset(y.data(), 0, y.bytes());  // rows of the other kind are not written
  std::memset(mixed.data(), 0, mixed.bytes());
  auto stack = [&](const Matrix& made) {
    zoo::Stack stack{made.weight, 0, 0};
    stack.first.rows /= heads;
    stack.next = stack.first.rows * made.weight.row_bytes;
    stack.next_scale = made.weight.scale ? stack.first.rows / 4 * made.weight.scale_stride : 0;
    return stack;
  };
  zoo::AttendLatent op{};
  op.code = zoo::ATTEND_LATENT, op.cache_type = type;
  op.q = q.as(), op.q_rope = q.as() + nope;
  op.q_token = op.r_token = heads * width, op.q_head = op.r_head = width;
  op.latent = rows.as(), op.k_rope = rows.as() + rank, op.l_token = op.k_token = rank + rope;
  op.cos = angles.as(), op.sin = angles.as() + batch.tokens * (rope / 2), op.half = rope / 2, op.interleaved = 1;
  op.block_size = static_cast<int32_t>(batch.page), op.cache = cache.data();
  op.block_table = batch.table.as<int32_t>(), op.slots = batch.slots.as<int32_t>();
  op.cu_seqlens = batch.bounds.as<int32_t>(), op.seq_lens = batch.lengths.as<int32_t>();
  op.positions = batch.positions.as<int32_t>(), op.table_stride = batch.stride, op.y = y.as();
  op.tokens = batch.tokens, op.sequences = batch.sequences, op.heads = heads, op.rank = rank, op.rope = rope;
  op.nope = nope, op.v_dim = v_dim, op.most = most;
  op.k_up = stack(k_up), op.v_up = stack(v_up), op.k_up_transposed = transposed, op.scale = 0.01f;
  zoo::AttendLatent other = op;
  other.absorbed = 1, other.q = absorbed.as(), other.q_token = heads * rank, other.q_head = rank, other.y = mixed.as();
  everywhere(std::string("attend_latent ") + info.name, {&other, &op}, {{&y, zoo::F32}, {&mixed, zoo::F32}, {&cache, type}},
             type == zoo::F32 ? 5e-5 : 5e-3);
}

}  // namespace

void test_attention() {
  Random random(5);
  const Shape shapes[] = {
      {4, 2, 64, 64, 32, 0, 0, false, false}, {6, 2, 20, 36, 6, 50, 3, true, true}, {40, 1, 16, 16, 0, 0, 0, true, false},
      {3, 3, 80, 80, 40, 100, 0, false, false}, {9, 3, 7, 5, 3, 0, 30, false, false},
  };
  for (const auto& sequences : BATCHES) {
    if (quick && sequences.size() == 2) continue;  // the longest
    for (int64_t page : {16, 5}) {
      const Batch batch = batch_of(sequences, page, page == 5 ? 3 : 0, random);
      for (const Shape& shape : shapes)
        for (int32_t type : {zoo::F32, zoo::F16, zoo::BF16}) grouped(batch, shape, type, random);
    }
    const Batch batch = batch_of(sequences, 16, 2, random);
    for (const TypeInfo& info : TYPES) {
      // Short batches for every type, longer ones for some.
      if ((quick || batch.tokens > 10) && info.type != zoo::Q8_0 && info.type != zoo::BF16) continue;
      latent(batch, info, info.columns == 1 ? zoo::F16 : zoo::F32, false, 1, random);
      latent(batch, info, zoo::BF16, true, 0, random);
    }
  }
}

}  // namespace check
