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

// Whether the processor should be left to foresee alone what is read in the order of memory. AMD's (Zen 4) read it half as
// fast again as with instructions to fetch it, Intel's (Emerald Rapids) a quarter slower.
extern const bool foresees;

// Whether additions of vectors have units of their own beside those of multiplications, so that two of the former for half
// of the latter take less time: AMD's (Zen 4) have, Intel's have not.
extern const bool adds_aside;

}  // namespace zoo
