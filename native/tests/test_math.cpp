// Plain exp, log, sine and cosine; rotary tables; counter-based random numbers.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "rope_table.hpp"
#include "sampler.hpp"

namespace headrace::tests {
namespace {

double relative(double got, double exact) {
  return exact == 0 ? std::fabs(got) : std::fabs(got - exact) / std::fabs(exact);
}

}  // namespace

HEADRACE_TEST(plain_exp) {
  Random random(30);
  for (int i = 0; i < 20'000; ++i) {
    const double x = (random.unit() - 0.5) * 120;
    CHECK_FOR(relative(plain_exp(x), std::exp(x)) < 1e-14, x);
  }
  CHECK(plain_exp(0) == 1.0);
}

HEADRACE_TEST(plain_log) {
  Random random(31);
  for (int i = 0; i < 20'000; ++i) {
    const double x = std::ldexp(0.5 + random.unit(), random.below(200) - 100);
    CHECK_FOR(relative(plain_log(x), std::log(x)) < 1e-14, x);
    const double near_one = 1 + (random.unit() - 0.5) * 1e-3;
    CHECK_FOR(relative(plain_log(near_one), std::log(near_one)) < 1e-13, near_one);
  }
  CHECK(plain_log(1) == 0.0);
}

HEADRACE_TEST(plain_sine_and_cosine) {
  Random random(32);
  for (int i = 0; i < 50'000; ++i) {
    const double x = (random.unit() - 0.5) * std::ldexp(1.0, random.below(21));
    double s, c;
    plain_sincos(x, &s, &c);
    CHECK_FOR(std::fabs(s - std::sin(x)) < 1e-15 && std::fabs(c - std::cos(x)) < 1e-15, x);
  }
  // Around multiples of a quarter turn, where the reduction cancels.
  for (int n = -2000; n <= 2000; ++n) {
    const double x = n * 1.5707963267948966;
    double s, c;
    plain_sincos(x, &s, &c);
    CHECK_FOR(std::fabs(s - std::sin(x)) < 1e-15 && std::fabs(c - std::cos(x)) < 1e-15, x);
  }
}

// Far beyond any context of today, where the reduction is no longer exact, a float's accuracy
// stays.
HEADRACE_TEST(plain_sine_of_the_longest_context) {
  Random random(33);
  for (int i = 0; i < 10'000; ++i) {
    const double x = random.unit() * 0x1p28;
    double s, c;
    plain_sincos(x, &s, &c);
    CHECK_FOR(std::fabs(s - std::sin(x)) < 0x1p-22 && std::fabs(c - std::cos(x)) < 0x1p-22, x);
  }
}

HEADRACE_TEST(rope_angles) {
  for (const auto& [dim, theta] :
       {std::pair<int, double>{64, 1e4}, {128, 5e5}, {16, 1e6}, {2, 1e4}}) {
    RopeTable table(dim, theta, {});
    table.extend(4097);
    for (const int position : {0, 1, 2, 255, 256, 257, 1000, 4096}) {
      for (int i = 0; i < dim / 2; ++i) {
        const double angle = position * std::pow(theta, -2.0 * i / dim);
        CHECK_FOR(std::fabs(table.cosine(position)[i] - std::cos(angle)) < 6e-8, position, i);
        CHECK_FOR(std::fabs(table.sine(position)[i] - std::sin(angle)) < 6e-8, position, i);
      }
    }
  }
}

HEADRACE_TEST(rope_factors_divide_the_frequencies) {
  const std::vector<double> factors = {1.0, 2.0, 8.0, 0.5};
  RopeTable table(8, 1e4, factors);
  table.extend(100);
  for (int i = 0; i < 4; ++i) {
    const double angle = 99 * std::pow(1e4, -2.0 * i / 8) / factors[i];
    CHECK(std::fabs(table.cosine(99)[i] - std::cos(angle)) < 6e-8);
  }
}

// Rows are those of their position, however the table grew.
HEADRACE_TEST(rope_rows_are_fixed_by_position) {
  RopeTable once(64, 1e4, {}), slowly(64, 1e4, {});
  once.extend(1000);
  for (int end = 1; end <= 1000; end += 37) slowly.extend(end);
  slowly.extend(1000);
  float cosine[32], sine[32];
  for (int position = 0; position < 1000; ++position) {
    CHECK_SAME(slowly.cosine(position), once.cosine(position), 32, position);
    CHECK_SAME(slowly.sine(position), once.sine(position), 32, position);
    once.rotation(position, cosine, sine);
    CHECK_SAME(cosine, once.cosine(position), 32, position);
    once.rotation(-position, cosine, sine);
    for (int i = 0; i < 32; ++i) {
      CHECK(cosine[i] == once.cosine(position)[i] && sine[i] == -once.sine(position)[i]);
    }
  }
}

// Philox 4x32-10's published answers (Random123, kat_vectors), then the draw made of it.
HEADRACE_TEST(philox_known_answers) {
  const struct {
    uint32_t counter[4], key[2], answer[4];
  } known[] = {{{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
               {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                {0xffffffff, 0xffffffff},
                {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
               {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                {0xa4093822, 0x299f31d0},
                {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const auto& k : known) {
    uint32_t got[4];
    definition::philox(k.counter, k.key, got);
    for (int i = 0; i < 4; ++i) CHECK(got[i] == k.answer[i]);
  }
}

HEADRACE_TEST(uniform_is_philox) {
  Random random(34);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t seed = random.bits(), position = random.bits();
    const auto choice = static_cast<uint32_t>(random.bits());
    const uint32_t counter[4] = {static_cast<uint32_t>(position),
                                 static_cast<uint32_t>(position >> 32), choice, 0x68656164};
    const uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    uint32_t x[4];
    definition::philox(counter, key, x);
    // 53 bits of the first two words.
    const double expected = std::ldexp(x[0], -32) + std::ldexp(x[1] >> 11, -53);
    const double got = uniform(seed, choice, position);
    CHECK(got == expected && got >= 0 && got < 1);
  }
}

}  // namespace headrace::tests
