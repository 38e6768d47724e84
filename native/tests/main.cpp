// headrace_tests [--quick] [--expect-isa NAME] [FILTER]
//
// Runs the tests whose names contain FILTER. --expect-isa fails unless NAME is the best instruction
// set that this processor is found to have: an emulated older one must not be taken for newer.
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include "check.hpp"

namespace headrace::tests {
namespace {

bool is_quick = false;
int num_failures = 0;
int num_shown = 0;  // of the running test

int run(const std::string& filter) {
  int num_run = 0;
  for (const Test& test : all_tests()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    ++num_run;
    num_shown = 0;
    const int before = num_failures;
    const auto start = std::chrono::steady_clock::now();
    try {
      test.body();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("threw: ") + error.what());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%s %s (%.2f s)\n", num_failures == before ? "ok    " : "FAILED", test.name,
                took.count());
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed checks\n", num_run, num_failures);
  return num_run > 0 && num_failures == 0 ? 0 : 1;
}

void print_isas() {
  std::printf("%s; instruction sets tested:", cpu_name().c_str());
  for (const Kernels* kernels : supported_kernels()) std::printf(" %s", kernels->name);
  std::printf("%s\n", is_quick ? "; quick" : "");
}

}  // namespace

std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

bool quick() { return is_quick; }

void fail(const char* file, int line, const std::string& what) {
  ++num_failures;
  // A test's first failures tell; thousands would hide them.
  if (++num_shown <= 10) std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

int main(int argc, char** argv) {
  std::string filter, expected;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      is_quick = true;
    } else if (argument == "--expect-isa" && i + 1 < argc) {
      expected = argv[++i];
    } else {
      filter = argument;
    }
  }
  print_isas();
  if (!expected.empty() && expected != supported_kernels().front()->name) {
    std::fprintf(stderr, "expected %s to be the best instruction set\n", expected.c_str());
    return 1;
  }
  return run(filter);
}

}  // namespace headrace::tests

int main(int argc, char** argv) { return headrace::tests::main(argc, argv); }
