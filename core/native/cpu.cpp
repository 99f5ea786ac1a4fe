// Which instruction sets are in this library, and which of them the processor has.
#include "cpu.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// A build may leave sets out.
#define ZOO_PERHAPS __attribute__((weak))

ZOO_DECLARE(scalar, ZOO_PERHAPS)
#if defined(__x86_64__)
ZOO_DECLARE(avx2, ZOO_PERHAPS)
ZOO_DECLARE(avxvnni, ZOO_PERHAPS)
ZOO_DECLARE(avx512, ZOO_PERHAPS)
ZOO_DECLARE(amx, ZOO_PERHAPS)
#elif defined(__aarch64__)
ZOO_DECLARE(dotprod, ZOO_PERHAPS)
ZOO_DECLARE(i8mm, ZOO_PERHAPS)
#endif

namespace zoo {

namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool bit(unsigned word, int n) { return (word >> n & 1) != 0; }

// Registers that the system saves on a switch of threads: without it an instruction set must not be used.
bool saved(unsigned mask) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & mask) == mask;
}

bool has_avx2() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 12) || !bit(c, 28) || !bit(c, 29)) return false;  // FMA AVX F16C
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && bit(b, 5) && bit(b, 8) && saved(0x6);          // AVX2 BMI2
}

bool has_avxvnni() {
  unsigned a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4);
}

bool has_avx512() {
  unsigned a, b, c, d;
  if (!has_avx2() || !saved(0xe6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool base = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F DQ BW VL
  const bool vnni = bit(c, 11), vbmi = bit(c, 1);
  return base && vnni && vbmi && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5);  // BF16
}

bool made_by_amd() {
  unsigned a, vendor[3];
  return __get_cpuid(0, &a, &vendor[0], &vendor[2], &vendor[1]) && std::memcmp(vendor, "AuthenticAMD", 12) == 0;
}

// The registers of tiles are large: Linux saves them only for a process that asked for it.
bool tiles_granted() {
#ifdef __linux__
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned a, b, c, d;
  if (!has_avx512() || !saved(0x60000) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return bit(d, 22) && bit(d, 24) && bit(d, 25) && tiles_granted();  // BF16 TILE INT8
}
#elif defined(__aarch64__) && defined(__linux__)
bool has_dotprod() {
  constexpr unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP;
  return (getauxval(AT_HWCAP) & needed) == needed;
}
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#elif defined(__aarch64__)
bool has_dotprod() { return true; }
bool has_i8mm() { return false; }
#endif

const Isa ISAS[] = {
#if defined(__x86_64__)
    {"amx", has_amx, &amx::kernels},
    {"avx512", has_avx512, &avx512::kernels},
    {"avxvnni", has_avxvnni, &avxvnni::kernels},
    {"avx2", has_avx2, &avx2::kernels},
#elif defined(__aarch64__)
    {"i8mm", has_i8mm, &i8mm::kernels},
    {"dotprod", has_dotprod, &dotprod::kernels},
#endif
    {"scalar", always, &scalar::kernels},
};

}  // namespace

#if defined(__x86_64__)
const bool foresees = made_by_amd(), adds_aside = foresees;
#else
const bool foresees = false, adds_aside = false;
#endif

const Isa* isa_at(int index) {
  for (const Isa& isa : ISAS)
    if (isa.kernels != nullptr && index-- == 0) return &isa;
  return nullptr;
}

}  // namespace zoo
