#pragma once

#include <cstdint>

namespace zoo {

struct Codebooks {
  int8_t iq1[2048][8], iq2_xxs[256][8], iq2_xs[512][8], iq2_s[1024][8], iq3_xxs[256][4], iq3_s[512][4];
};
extern const Codebooks codebooks;  // made when the library is loaded

}  // namespace zoo
