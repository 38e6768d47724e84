// Kernels on single rows: norms, rotation, activation, softmax, argmax.
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "kernels.hpp"

namespace headrace::tests {
namespace {

const std::vector<int> kSizes = {1, 2, 15, 16, 17, 31, 32, 48, 64, 80, 96, 255, 576, 1000};

}  // namespace

HEADRACE_TEST(rms_norm) {
  Random random(10);
  for (const int n : kSizes) {
    for (const float scale : {1.0f, 1e-20f, 1e15f, 0.0f}) {
      const auto x = random.normals(n, scale), weight = random.normals(n);
      const auto expected = definition::rms_norm(x.data(), weight.data(), 1e-5f, n);
      for_each_isa([&](const Kernels& kernels) {
        std::vector<float> out(n);
        kernels.rms_norm(x.data(), weight.data(), 1e-5f, n, out.data());
        CHECK_SAME(out.data(), expected.data(), n, kernels.name, "n", n, "scale", scale);
        std::vector<float> in_place = x;
        kernels.rms_norm(in_place.data(), weight.data(), 1e-5f, n, in_place.data());
        CHECK_SAME(in_place.data(), expected.data(), n, kernels.name, "in place, n", n);
      });
    }
  }
}

HEADRACE_TEST(layer_norm) {
  Random random(19);
  for (const int n : kSizes) {
    for (const float scale : {1.0f, 1e-20f, 1e15f, 0.0f}) {
      auto x = random.normals(n, scale);
      for (float& v : x) v = v + 3.0f * scale;
      const auto weight = random.normals(n), bias = random.normals(n);
      const auto expected = definition::layer_norm(x.data(), weight.data(), bias.data(), 1e-12f, n);
      for_each_isa([&](const Kernels& kernels) {
        std::vector<float> out(n);
        kernels.layer_norm(x.data(), weight.data(), bias.data(), 1e-12f, n, out.data());
        CHECK_SAME(out.data(), expected.data(), n, kernels.name, "n", n, "scale", scale);
        std::vector<float> in_place = x;
        kernels.layer_norm(in_place.data(), weight.data(), bias.data(), 1e-12f, n, in_place.data());
        CHECK_SAME(in_place.data(), expected.data(), n, kernels.name, "in place, n", n);
      });
    }
  }
}

namespace {

void check_quantize(std::vector<float> x, const std::string& what) {
  const int n = static_cast<int>(x.size());
  const auto expected = definition::panel({definition::quantize(x.data(), n)}, n);
  for_each_isa([&](const Kernels& kernels) {
    std::vector<uint8_t> got(expected.size(), 0xAA);
    kernels.quantize(x.data(), n, got.data(), 1, 0);
    CHECK_SAME(got.data(), expected.data(), got.size(), kernels.name, what);
  });
}

}  // namespace

HEADRACE_TEST(quantize_at_its_edges) {
  check_quantize(std::vector<float>(32, 0.0f), "zero");
  check_quantize(std::vector<float>(32, -0.0f), "minus zero");
  const float max = std::numeric_limits<float>::max();
  for (const float amax : {0x1p-149f, 0x1p-126f, 0x1.fffffep-101f, 0x1p-100f, 0x1.000002p-100f,
                           1e-20f, 1.0f, 1e30f, max}) {
    std::vector<float> x(64);
    for (int i = 0; i < 64; ++i) x[i] = amax * (static_cast<float>(i % 7 - 3) / 3.0f);
    check_quantize(x, "amax " + word(amax));
    for (float& v : x) v = -amax;
    check_quantize(x, "all at minus amax " + word(amax));
  }
  // With a greatest of 127, a number is its own quant: halves must go to even.
  std::vector<float> ties(256, 127.0f);
  for (int i = 0; i < 254; ++i) ties[i] = static_cast<float>(i) - 126.5f;
  for (int i = 0; i < 256; i += 32) ties[i] = 127.0f;
  check_quantize(ties, "ties");
}

HEADRACE_TEST(quantize_random_rows) {
  Random random(11);
  for (int round = 0; round < (quick() ? 20 : 2000); ++round) {
    const float scale = std::ldexp(1.0f, random.below(200) - 100);
    check_quantize(random.normals(96, scale), "scale " + word(scale));
  }
}

// One number that is none makes its whole block none, wherever it stands: it must not be lost, and
// must not depend on how a processor compares.
HEADRACE_TEST(quantize_keeps_what_is_not_a_number) {
  for_each_isa([&](const Kernels& kernels) {
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      for (int at = 0; at <= 32; ++at) {
        std::vector<float> x(32, at == 32 ? bad : 0.25f);
        if (at < 32) x[at] = bad;
        std::vector<uint8_t> panel(kPanelBytes);
        kernels.quantize(x.data(), 32, panel.data(), 1, 0);
        float d;
        std::memcpy(&d, panel.data() + 32, 4);
        CHECK_FOR(!std::isfinite(d), kernels.name, bad, "at", at, "has the step", d);
      }
    }
  });
}

HEADRACE_TEST(spread_writes_one_column) {
  Random random(12);
  const auto x = random.normals(96);
  for_each_isa([&](const Kernels& kernels) {
    for (int width = 1; width <= 16; width *= 2) {
      std::vector<float> panel(96 * width, 7.0f);
      kernels.spread(x.data(), 96, panel.data(), width, width - 1);
      for (int i = 0; i < 96 * width; ++i) {
        CHECK(panel[i] == (i % width == width - 1 ? x[i / width] : 7.0f));
      }
    }
  });
}

HEADRACE_TEST(rotate) {
  Random random(13);
  const std::vector<std::pair<int, int>> sizes = {{16, 16}, {16, 2},    {32, 20},   {64, 64},
                                                  {64, 34}, {80, 80},   {80, 10},   {96, 96},
                                                  {96, 62}, {128, 126}, {256, 256}, {128, 32}};
  for (const auto& [n, dim] : sizes) {
    const auto x = random.normals(n);
    std::vector<float> cosine, sine;
    for (int i = 0; i < dim / 2; ++i) {
      const double angle = random.unit() * 6.28;
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
    for (const float scale : {1.0f, 0.18033688f}) {
      const auto expected = definition::rotate(x.data(), n, dim, cosine.data(), sine.data(), scale);
      for_each_isa([&](const Kernels& kernels) {
        std::vector<float> got = x;
        kernels.rotate(got.data(), n, dim, cosine.data(), sine.data(), scale);
        CHECK_SAME(got.data(), expected.data(), n, kernels.name, "n", n, "dim", dim);
      });
    }
  }
}

HEADRACE_TEST(add_rows) {
  Random random(14);
  for (const int n : kSizes) {
    const auto x = random.normals(n), y = random.normals(n, 1e3f);
    std::vector<float> expected(n);
    for (int i = 0; i < n; ++i) expected[i] = x[i] + y[i];
    for_each_isa([&](const Kernels& kernels) {
      std::vector<float> got = x;
      kernels.add(got.data(), y.data(), n);
      CHECK_SAME(got.data(), expected.data(), n, kernels.name, "n", n);
    });
  }
}

HEADRACE_TEST(silu_multiply) {
  Random random(15);
  for (const int n : kSizes) {
    std::vector<float> gate = random.normals(n, 6.0f);
    const auto up = random.normals(n);
    // Where the exponential saturates, underflows or vanishes beside one.
    const float edges[] = {0.0f,   -0.0f, 86.0f,     87.4f,     88.5f, 89.0f,  1e4f,  -86.0f,
                           -88.5f, -1e4f, 0x1p-140f, -0x1p-30f, 3e38f, -3e38f, 17.0f, -17.0f};
    for (int i = 0; i < n; i += 3) gate[i] = edges[random.below(16)];
    std::vector<float> expected(n);
    for (int i = 0; i < n; ++i) expected[i] = definition::silu_multiply(gate[i], up[i]);
    for_each_isa([&](const Kernels& kernels) {
      std::vector<float> got(n);
      kernels.silu_multiply(gate.data(), up.data(), n, got.data());
      CHECK_SAME(got.data(), expected.data(), n, kernels.name, "n", n);
    });
  }
}

HEADRACE_TEST(silu_is_close_to_the_exact_function) {
  for_each_isa([&](const Kernels& kernels) {
    const float up = 1.0f;
    for (double x = -80; x < 80; x += 0.37) {
      const float gate = static_cast<float>(x);
      float got;
      kernels.silu_multiply(&gate, &up, 1, &got);
      const double exact = gate / (1 + std::exp(-static_cast<double>(gate)));
      // The exponent gate * log2(e) is rounded to float: 2^-24 of up to 115.
      CHECK_FOR(std::fabs(got - exact) <= std::fabs(exact) * 1e-5, kernels.name, gate, got);
    }
  });
}

HEADRACE_TEST(gelu) {
  Random random(20);
  for (const int n : kSizes) {
    std::vector<float> x = random.normals(n, 3.0f);
    const float edges[] = {0.0f, -0.0f, 13.0f, -13.0f, 18.0f,     -18.0f,
                           1e4f, -1e4f, 3e38f, -3e38f, 0x1p-140f, -0x1p-30f};
    for (int i = 0; i < n; i += 3) x[i] = edges[random.below(12)];
    std::vector<float> expected(n);
    for (int i = 0; i < n; ++i) expected[i] = definition::gelu(x[i]);
    for_each_isa([&](const Kernels& kernels) {
      std::vector<float> got(n);
      kernels.gelu(x.data(), n, got.data());
      CHECK_SAME(got.data(), expected.data(), n, kernels.name, "n", n);
    });
  }
}

HEADRACE_TEST(gelu_is_close_to_the_exact_function) {
  for_each_isa([&](const Kernels& kernels) {
    for (double at = -30; at < 30; at += 0.0137) {
      const float x = static_cast<float>(at);
      float got;
      kernels.gelu(&x, 1, &got);
      const double exact = 0.5 * x * std::erfc(-static_cast<double>(x) / std::sqrt(2.0));
      CHECK_FOR(std::fabs(got - exact) <= 0x1p-21 * std::max(1.0, std::fabs(at)), kernels.name, x,
                got);
    }
    const float nan = NAN;
    float got = 0;
    kernels.gelu(&nan, 1, &got);
    CHECK(std::isnan(got));
  });
}

HEADRACE_TEST(exp2_is_accurate) {
  for_each_isa([&](const Kernels& kernels) {
    double worst = 0;
    const int steps = quick() ? 2000 : 200'000;
    for (int i = 0; i <= steps; ++i) {
      const float x = static_cast<float>(-60.0 * i / steps);
      float got;
      kernels.softmax_weights(&x, 1, 0.0f, 1.0f, &got);
      const double exact = std::exp2(static_cast<double>(x));
      worst = std::max(worst, std::fabs(got - exact) / exact);
    }
    CHECK_FOR(worst <= 0x1p-22, kernels.name, worst);
  });
  CHECK(definition::exp2(0.0f) == 1.0f && definition::exp2(-3.0f) == 0.125f);
}

HEADRACE_TEST(softmax_weights) {
  Random random(16);
  for (const int n : kSizes) {
    for (const float scale : {1.44269504f, 0.3f, 40.0f}) {
      auto x = random.normals(n, 5.0f);
      x[random.below(n)] = -INFINITY;
      const float top = 7.0f;
      x[random.below(n)] = top;
      std::vector<float> expected(n);
      for (int i = 0; i < n; ++i) expected[i] = definition::softmax_weight((x[i] - top) * scale);
      const float expected_sum = definition::sum(expected);
      for_each_isa([&](const Kernels& kernels) {
        std::vector<float> got(n);
        const float sum = kernels.softmax_weights(x.data(), n, top, scale, got.data());
        CHECK_SAME(got.data(), expected.data(), n, kernels.name, "n", n, "scale", scale);
        CHECK_SAME(&sum, &expected_sum, 1, kernels.name, "sum, n", n, "scale", scale);
      });
    }
  }
}

HEADRACE_TEST(softmax_weights_vanish_exactly) {
  for_each_isa([&](const Kernels& kernels) {
    const float x[] = {0.0f, -60.0f, std::nextafter(-60.0f, -61.0f), -1e30f, -INFINITY};
    float w[5];
    kernels.softmax_weights(x, 5, 0.0f, 1.0f, w);
    CHECK(w[0] == 1.0f && w[1] == 0x1p-60f && w[2] == 0.0f && w[3] == 0.0f && w[4] == 0.0f);
  });
}

namespace {

void check_argmax(const Kernels& kernels, const std::vector<float>& x, int expected) {
  float value = 0;
  bool has_nan = true;
  const int n = static_cast<int>(x.size());
  const int got = kernels.argmax(x.data(), n, &value, &has_nan);
  CHECK_FOR(got == expected, kernels.name, "n", n, "gives", got, "not", expected);
  CHECK_FOR(value == x[expected] && !has_nan, kernels.name, "n", n, "value", value);
}

}  // namespace

HEADRACE_TEST(argmax_takes_the_first_of_equals) {
  Random random(17);
  for_each_isa([&](const Kernels& kernels) {
    for (const int n : {1, 2, 16, 17, 33, 100}) {
      for (int at = 0; at < n; ++at) {
        auto x = random.normals(n);
        for (float& v : x) v = v - 20.0f;
        x[at] = -1.0f;
        check_argmax(kernels, x, at);
        for (int later = at; later < n; later += 1 + random.below(5)) x[later] = -1.0f;
        check_argmax(kernels, x, at);
      }
      check_argmax(kernels, std::vector<float>(n, -INFINITY), 0);
    }
    check_argmax(kernels, {0.0f, -INFINITY, INFINITY, INFINITY}, 2);
    check_argmax(kernels, {-0.0f, 0.0f}, 0);
    std::vector<float> large = random.normals(49'152);
    large[40'001] = 50.0f;
    check_argmax(kernels, large, 40'001);
  });
}

HEADRACE_TEST(argmax_tells_of_nan) {
  Random random(18);
  for_each_isa([&](const Kernels& kernels) {
    for (const int n : {1, 16, 17, 40}) {
      for (int at = 0; at < n; ++at) {
        auto x = random.normals(n);
        x[at] = at % 2 ? NAN : -NAN;
        if (n > 1) x[(at + 1) % n] = INFINITY;
        float value;
        bool has_nan = false;
        kernels.argmax(x.data(), n, &value, &has_nan);
        CHECK_FOR(has_nan, kernels.name, "n", n, "at", at);
      }
    }
  });
}

}  // namespace headrace::tests
