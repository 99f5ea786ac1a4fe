// One OpKernel per code, each in a file of its own.
#pragma once

#include "kernels.h"

namespace zoo::ZOO_ISA::ops {

extern const OpKernel linear_op, head_linear_op, glu_op, embedding_op, rms_norm_op, layer_norm_op, rotary_op, attend_op,
    attend_latent_op, route_op, moe_op, elementwise_op, sample_op;

// An OpKernel of typed functions.
template <class Op, bool (*prepare)(const Op&, int, Scratch&), void (*run)(const Op&, Worker&)>
constexpr OpKernel op_kernel() {
  return {sizeof(Op),
          [](const void* op, int threads, Scratch& scratch) { return prepare(*static_cast<const Op*>(op), threads, scratch); },
          [](const void* op, Worker& worker) { run(*static_cast<const Op*>(op), worker); }};
}

template <class Op>
bool needs_nothing(const Op&, int, Scratch&) { return true; }

}  // namespace zoo::ZOO_ISA::ops
