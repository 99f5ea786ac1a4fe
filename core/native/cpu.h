#pragma once

#include "kernels.h"

namespace zoo {

struct Isa {
  const char* name;
  bool (*usable)();
  const IsaKernels* kernels;
};

// Instruction sets of this build, best first; null past the end.
const Isa* isa_at(int index);

}  // namespace zoo
