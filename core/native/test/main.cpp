// Runs the tests of the CPU library: all, or those named; "quick" takes fewer sizes, for an emulator.
#include <chrono>
#include <cstdio>
#include <cstring>

#include "check.h"

int main(int count, char** names) {
  const struct { const char* name; void (*run)(); } tests[] = {
      {"products", check::test_products},
      {"attention", check::test_attention},
      {"small", check::test_small_ops},
      {"pools", check::test_pools},
  };
  std::printf("instruction sets:");
  int usable = 0;
  for (int i = 0; const char* isa = zoo_isa(i, &usable); ++i) std::printf(" %s%s", isa, usable ? "" : " (not run)");
  std::printf("\n");
  bool all = true;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(names[i], "quick") == 0) check::quick = true;
    else all = false;
  }
  for (const auto& test : tests) {
    bool wanted = all;
    for (int i = 1; i < count; ++i) wanted |= std::strcmp(names[i], test.name) == 0;
    if (!wanted) continue;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%s: %lld checks so far, %.1f s\n", test.name, static_cast<long long>(check::checks()), took.count());
    std::fflush(stdout);
  }
  for (const check::Table& table : check::tables()) zoo_pool_destroy(table.pool);
  std::printf("%s\n", check::failures() ? "FAILED" : "passed");
  return check::failures() ? 1 : 0;
}
