// Products of 16-bit integers of every panel width and instruction set, against their definition.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "wide.hpp"

namespace headrace::tests {
namespace {

const std::vector<int> kInputs = {32, 96, 128, 160, 384, 1536};

std::vector<int16_t> panel_of(const std::vector<definition::Wide>& tokens, int num_inputs) {
  const int width = static_cast<int>(tokens.size());
  std::vector<int16_t> out(static_cast<size_t>(num_inputs) * width);
  for (int k = 0; k < num_inputs; ++k) {
    for (int t = 0; t < width; ++t) {
      out[(k / 2 * width + t) * 2 + k % 2] = static_cast<int16_t>(tokens[t].q[k]);
    }
  }
  return out;
}

void check_widen(const std::vector<std::vector<float>>& tokens, const std::string& what) {
  const int n = static_cast<int>(tokens[0].size()), width = static_cast<int>(tokens.size());
  std::vector<definition::Wide> expected;
  for (const auto& x : tokens) expected.push_back(definition::widen(x.data(), n, kWideInput));
  const auto expected_panel = panel_of(expected, n);
  for_each_isa([&](const Kernels& kernels) {
    std::vector<int16_t> panel(expected_panel.size(), 0x5555);
    for (int t = 0; t < width; ++t) {
      const float step = kernels.widen(tokens[t].data(), n, panel.data(), width, t);
      if (std::isnan(expected[t].step)) {
        CHECK_FOR(std::isnan(step), kernels.name, what);
      } else {
        CHECK_SAME(&step, &expected[t].step, 1, kernels.name, what, "token", t);
      }
    }
    CHECK_SAME(panel.data(), expected_panel.data(), panel.size(), kernels.name, what);
  });
}

WideMatrix matrix_of(const std::vector<std::vector<float>>& rows) {
  WideMatrix m(static_cast<int>(rows.size()), static_cast<int>(rows[0].size()));
  for (size_t i = 0; i < rows.size(); ++i) m.put(static_cast<int>(i), rows[i].data());
  return m;
}

// One tile and one panel, inputs in chunks of `chunk`.
void check_product(const Kernels& kernels, const std::vector<std::vector<float>>& rows,
                   const std::vector<std::vector<float>>& tokens, int width, int chunk) {
  const int n = static_cast<int>(rows[0].size());
  const WideMatrix m = matrix_of(rows);
  std::vector<int16_t> panel(static_cast<size_t>(n) * width);
  std::vector<float> steps;
  for (int t = 0; t < width; ++t) {
    steps.push_back(kernels.widen(tokens[t].data(), n, panel.data(), width, t));
  }
  std::vector<float> acc(kLanes * width, 0.0f);
  for (int from = 0; from < n; from += chunk) {
    kernels.wide_gemm(width)(m.tile(0) + from * kLanes, panel.data() + from * width,
                             std::min(chunk, n - from), acc.data());
  }
  std::vector<float> bias(kLanes);
  for (int i = 0; i < kLanes; ++i) bias[i] = 0.25f * static_cast<float>(i) - 1.0f;
  for (int t = 0; t < width; ++t) {
    float got[kLanes], expected[kLanes];
    kernels.wide_finish(acc.data() + kLanes * t, m.steps.data(), steps[t], bias.data(), got);
    const auto x = definition::widen(tokens[t].data(), n, kWideInput);
    for (int i = 0; i < kLanes; ++i) {
      expected[i] =
          definition::wide_product(definition::widen(rows[i].data(), n, kWideWeight), x, bias[i]);
    }
    CHECK_SAME(got, expected, kLanes, kernels.name, "inputs", n, "width", width, "chunk", chunk,
               "token", t);
  }
}

}  // namespace

HEADRACE_TEST(widen_fills_panels) {
  Random random(80);
  for (const int n : kInputs) {
    for (int width = 1; width <= 16; width *= 2) {
      std::vector<std::vector<float>> tokens;
      for (int t = 0; t < width; ++t) {
        tokens.push_back(random.normals(n, std::ldexp(1.0f, random.below(60) - 30)));
      }
      check_widen(tokens, describe("inputs", n, "width", width));
    }
  }
}

HEADRACE_TEST(widen_at_its_edges) {
  const float max = std::numeric_limits<float>::max();
  for (const float amax : {0.0f, 0x1p-149f, 0x1.fffffep-101f, 0x1p-100f, 1e-20f, 1.0f, max}) {
    std::vector<float> x(96);
    for (int i = 0; i < 96; ++i) x[i] = amax * (static_cast<float>(i % 7 - 3) / 3.0f);
    check_widen({x}, "amax " + word(amax));
  }
  // With a greatest of 8191, a number is its own integer: halves must go to even.
  std::vector<float> ties(64, kWideInput);
  for (int i = 0; i < 63; ++i) ties[i] = static_cast<float>(i) - 31.5f;
  check_widen({ties}, "ties");
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
    for (const int at : {0, 31, 32, 95}) {
      std::vector<float> x(96, 0.5f);
      x[at] = bad;
      check_widen({x, std::vector<float>(96, 0.25f)}, describe(bad, "at", at));
    }
  }
}

HEADRACE_TEST(wide_products) {
  Random random(81);
  for (const int n : kInputs) {
    std::vector<std::vector<float>> rows, tokens;
    for (int i = 0; i < kLanes; ++i) rows.push_back(random.normals(n, 0.05f));
    for (int t = 0; t < 16; ++t) tokens.push_back(random.normals(n));
    for_each_isa([&](const Kernels& kernels) {
      for (int width = 1; width <= kernels.widest_panel; ++width) {
        for (const int chunk : {kWideBlock, 4 * kWideBlock, 4096}) {
          check_product(kernels, rows, tokens, width, chunk);
        }
      }
    });
  }
}

// The greatest sums of a block stay within 32 bits.
HEADRACE_TEST(wide_products_at_their_greatest) {
  for (const float sign : {1.0f, -1.0f}) {
    const std::vector<std::vector<float>> rows(kLanes, std::vector<float>(256, sign));
    const std::vector<std::vector<float>> tokens(16, std::vector<float>(256, 3.0f));
    for_each_isa([&](const Kernels& kernels) {
      for (int width = 1; width <= kernels.widest_panel; ++width) {
        check_product(kernels, rows, tokens, width, 4096);
      }
    });
  }
}

HEADRACE_TEST(wide_rows_of_nothing) {
  std::vector<std::vector<float>> rows(3, std::vector<float>(32, 0.0f));
  rows[1][5] = -2.0f;
  const WideMatrix m = matrix_of(rows);
  CHECK(m.num_tiles == 1 && m.steps.size() == 16);
  CHECK(m.steps[0] == 0.0f && m.steps[1] == 2.0f / kWideWeight && m.steps[15] == 0.0f);
  CHECK(m.tile(0)[(5 / 2 * 16 + 1) * 2 + 1] == -2047);
  for (const float bad : {NAN, INFINITY}) {
    rows[2][7] = bad;
    CHECK_THROWS(matrix_of(rows), std::runtime_error);
  }
}

}  // namespace headrace::tests
