// What Python calls and passes (zoo.kernels.native mirrors it). A step is a list of ops: plain structs that begin with a
// code and hold pointers, sizes and strides. Strides count elements. Nothing here allocates or keeps a pointer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul/matmul.h"

#define ZOO_ABI 4  // raised with every change of a struct or a function below

namespace zoo {

enum Code : int32_t {
  LINEAR, HEAD_LINEAR, GLU, EMBEDDING, RMS_NORM, LAYER_NORM, ROTARY, ATTEND, ATTEND_LATENT, ROUTE, MOE, ELEMENTWISE,
  SAMPLE, NUM_CODES,
};

enum Act : int32_t { SILU, GELU_TANH };

// One weight on a shared input: y [m, weight.rows].
struct Part { Weight weight; float* y; int64_t ldy; const float* bias; };

// A stack of equal matrices, one per head, `next` bytes and `next_scale` floats apart.
struct Stack { Weight first; int64_t next, next_scale; };

// Rows of x from `prompt` on belong to prompts and may be rounded in another way than those before: each row as if it were
// alone.
struct Linear { int32_t code, count; const float* x; int64_t m, ldx, prompt; const Part* parts; };

// act(x gate^T) * (x up^T): parts[0] is the gate, parts[1] is up; their y are not used.
struct Glu { int32_t code, act; const float* x; int64_t m, ldx, prompt; const Part* parts; float* y; int64_t ldy; };

struct Embedding { int32_t code; float scale; const int32_t* ids; int64_t count; Weight table; float* y; };

// weight and bias: `type` F32, F16 or BF16, or null. sum (may be null): x + add.
struct Norm {
  int32_t code, type;
  const float *x, *add;
  const void *weight, *bias;
  float *y, *sum;
  int64_t rows, cols, ldx, ld_add;
  float eps, offset;
};

struct RotaryOp {
  int32_t code; float scaling;
  const int32_t* positions; const float* inv_freq; float *cos, *sin; int64_t count, half;
};

// Element type of a cache: F32, F16 or BF16.
struct Attend {
  int32_t code, cache_type;
  const float *q, *k, *v; int64_t q_token, q_head, k_token, k_head, v_token, v_head;
  const float *cos, *sin; int64_t half; int32_t interleaved, block_size;
  void *k_cache, *v_cache;
  const int32_t *block_table, *slots, *cu_seqlens, *seq_lens, *positions; int64_t table_stride;
  const float* sinks; float* y;
  int64_t tokens, sequences, heads, kv_heads, head_dim, v_dim, window;  // window 0: none
  float scale, softcap;                                                // softcap 0: none
};

// y[t, n] = x[t, n] W[n]^T, or x[t, n] W[n] where `transposed`.
struct HeadLinear {
  int32_t code, transposed;
  const float* x; int64_t tokens, heads, x_token, x_head;
  Stack stack;
  float* y;
};

// Latent attention. `absorbed`: q is in the latent space, [T, N, rank + rope], and so is y [T, N, rank]; the stacks are
// not used. Otherwise q is [T, N, nope + rope] and y [T, N, v_dim]. rope comes last, and only that part is rotated: of q,
// and of k_rope, which is written to the cache behind the latent. Sequences of one kind only: `absorbed` takes those of
// at most `most` new tokens, the other those of more; each op writes the cache of all tokens.
struct AttendLatent {
  int32_t code, cache_type;
  const float *q, *q_rope; int64_t q_token, q_head, r_token, r_head;
  const float *latent, *k_rope; int64_t l_token, k_token;
  const float *cos, *sin; int64_t half; int32_t interleaved, block_size;
  void* cache;
  const int32_t *block_table, *slots, *cu_seqlens, *seq_lens, *positions; int64_t table_stride;
  float* y;
  int64_t tokens, sequences, heads, rank, rope, nope, v_dim, most;
  Stack k_up, v_up;
  int32_t absorbed, k_up_transposed;
  float scale; int32_t unused;
};

enum Scoring : int32_t { SOFTMAX, SIGMOID, SPARSEMIXER };

struct Route {
  int32_t code, scoring;
  const float *logits, *bias; int32_t* indices; float* weights;
  int64_t tokens, experts, ld, top_k, groups, top_groups;
  int32_t best_two, normalize;
  float scale, jitter;
};

// gate, up, down: one Weight per expert.
struct Moe {
  int32_t code, act;
  const float* x; int64_t tokens, ldx;
  const int32_t* indices; const float* weights; int64_t top_k, experts;
  const Weight *gate, *up, *down;
  const float* add; int64_t ld_add; float* y;
};

enum Element : int32_t { ADD, ACTIVATE, GATE, SOFTCAP, POSITION_SCALE };

// y[r, c] = f(a[r, c], b[r, c]); b has one column where b_cols is 1. POSITION_SCALE: b are int32 positions [rows].
struct Elementwise {
  int32_t code, what; const float* a; const void* b; float* y;
  int64_t rows, cols, lda, ldb, b_cols, length; int32_t act; float value;
};

// banned (may be null): [cols], not 0 where a column is never taken.
struct Sample {
  int32_t code, unused;
  const float* logits; int64_t rows, cols, ld;
  const uint8_t* banned;
  const float *temperature, *top_p, *min_p, *uniform; const int32_t* top_k; int32_t* out;
};

}  // namespace zoo

#define ZOO_EXPORT extern "C" __attribute__((visibility("default")))

struct zoo_pool;

ZOO_EXPORT int zoo_abi();
ZOO_EXPORT int64_t zoo_op_bytes(int32_t code);
// Instruction sets of the build, best first: name, whether this processor has it. null past the end.
ZOO_EXPORT const char* zoo_isa(int index, int* usable);
// A pool of `threads`, the caller's included, that computes with an instruction set; null if that is not usable.
ZOO_EXPORT zoo_pool* zoo_pool_create(const char* isa, int threads);
ZOO_EXPORT void zoo_pool_destroy(zoo_pool* pool);
// Runs the ops in order. 0; or 1 + the index of an op that is unknown or has a weight type without a kernel.
ZOO_EXPORT int64_t zoo_execute(zoo_pool* pool, const void* const* ops, int64_t count);
// Whether the library multiplies with a weight type.
ZOO_EXPORT int zoo_has_type(zoo_pool* pool, int32_t type);
// Rows of a packed tile of a type; 0 where it cannot be packed.
ZOO_EXPORT int zoo_tile_rows(zoo_pool* pool, int32_t type);
// Packs a raw matrix with all threads. `out` has room for its rows, rounded up to whole tiles.
ZOO_EXPORT void zoo_pack(zoo_pool* pool, const zoo::Weight* weight, void* out);
// Sums `bytes` bytes with all threads, for a measurement of the read bandwidth.
ZOO_EXPORT uint64_t zoo_read(zoo_pool* pool, const void* data, int64_t bytes);
