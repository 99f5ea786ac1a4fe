// What every instruction set provides. Sources in ops/ and matmul/ are compiled once per set, into namespace
// zoo::ZOO_ISA; this table is all that the rest of the library sees of them.
#pragma once

#include "pool.h"
#include "zoo.h"

namespace zoo {

struct Scratch { size_t shared = 0, local = 0; };

struct OpKernel {
  size_t op_bytes;
  // Scratch of an op for a number of threads. False: it cannot be run (a weight type without a kernel).
  bool (*prepare)(const void* op, int threads, Scratch& scratch);
  // Runs on every thread; a barrier follows.
  void (*run)(const void* op, Worker& worker);
};

struct IsaKernels {
  OpKernel ops[NUM_CODES];
  const MatmulKernels* matmul;
};

}  // namespace zoo

#define ZOO_DECLARE(isa, attribute)                       \
  namespace zoo::isa {                                    \
  extern const IsaKernels kernels attribute;              \
  extern const MatmulKernels matmul_kernels attribute;    \
  }

#ifdef ZOO_ISA
ZOO_DECLARE(ZOO_ISA, )
#endif
