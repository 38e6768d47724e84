// Tests register themselves; a failed check says where and goes on, so that one run shows all.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu.hpp"

namespace headrace::tests {

struct Test {
  const char* name;
  void (*body)();
};

std::vector<Test>& all_tests();

struct Registration {
  Registration(const char* name, void (*body)()) { all_tests().push_back({name, body}); }
};

// True under --quick: fewer cases of each kind, for slow emulators and sanitizers.
bool quick();

void fail(const char* file, int line, const std::string& what);

#define HEADRACE_TEST(name)                                                              \
  static void test_##name();                                                             \
  static const ::headrace::tests::Registration registration_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) ::headrace::tests::fail(__FILE__, __LINE__, #condition); \
  } while (false)

// As CHECK, with the case that failed.
#define CHECK_FOR(condition, ...)                                                              \
  do {                                                                                         \
    if (!(condition))                                                                          \
      ::headrace::tests::fail(__FILE__, __LINE__,                                              \
                              #condition + (": " + ::headrace::tests::describe(__VA_ARGS__))); \
  } while (false)

#define CHECK_THROWS(expression, Exception)                                                 \
  do {                                                                                      \
    bool threw = false;                                                                     \
    try {                                                                                   \
      (void)(expression);                                                                   \
    } catch (const Exception&) {                                                            \
      threw = true;                                                                         \
    }                                                                                       \
    if (!threw) ::headrace::tests::fail(__FILE__, __LINE__, #expression " throws nothing"); \
  } while (false)

inline std::string word(const char* s) { return s; }
inline std::string word(const std::string& s) { return s; }
template <class Number>
  requires std::is_arithmetic_v<Number>
std::string word(Number n) {
  char text[48];
  if constexpr (std::is_floating_point_v<Number>) {
    std::snprintf(text, sizeof text, "%.9g (%a)", static_cast<double>(n), static_cast<double>(n));
  } else {
    std::snprintf(text, sizeof text, "%lld", static_cast<long long>(n));
  }
  return text;
}
template <class... Words>
std::string describe(const Words&... words) {
  std::string all;
  ((all += all.empty() ? word(words) : " " + word(words)), ...);
  return all;
}

// The index of the first element whose bits differ, or -1.
template <class T>
int first_difference(const T* a, const T* b, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(T)) != 0) return static_cast<int>(i);
  }
  return -1;
}

template <class T>
void check_same_bits(const T* got, const T* expected, size_t n, const char* file, int line,
                     const std::string& what) {
  const int i = first_difference(got, expected, n);
  if (i < 0) return;
  fail(file, line,
       what + ": element " + word(i) + " is " + word(got[i]) + ", by definition " +
           word(expected[i]));
}
// Bit for bit: the same number of another sign of zero fails too.
#define CHECK_SAME(got, expected, n, ...)                                        \
  ::headrace::tests::check_same_bits((got), (expected), (n), __FILE__, __LINE__, \
                                     ::headrace::tests::describe(__VA_ARGS__))

// Random numbers that are the same on every machine; std distributions are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t bits() { return engine_(); }
  int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }
  // [0, 1)
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  // About normal, standard deviation 1.
  float normal() {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += unit();
    return static_cast<float>(sum - 6.0);
  }
  std::vector<float> normals(size_t n, float scale = 1.0f) {
    std::vector<float> x(n);
    for (float& v : x) v = normal() * scale;
    return x;
  }

 private:
  std::mt19937_64 engine_;
};

// Runs body(kernels) for every instruction set of this processor.
inline void for_each_isa(const std::function<void(const Kernels&)>& body) {
  for (const Kernels* kernels : supported_kernels()) body(*kernels);
}

}  // namespace headrace::tests
