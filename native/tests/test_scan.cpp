// One vector against many.
#include <algorithm>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "scan.hpp"

namespace headrace::tests {
namespace {

std::vector<int8_t> random_rows(Random& random, size_t count) {
  std::vector<int8_t> rows;
  for (const float v : random.normals(count, 40.0f)) {
    rows.push_back(static_cast<int8_t>(v < -128 ? -128 : v > 127 ? 127 : v));
  }
  return rows;
}

std::vector<int16_t> steps(int n) {
  std::vector<int16_t> x(n);
  for (int i = 0; i < n; ++i) x[i] = static_cast<int16_t>(i * 7 % 255 - 127);
  return x;
}

std::vector<int32_t> products(const std::vector<int8_t>& rows, const std::vector<int16_t>& x) {
  std::vector<int32_t> out(rows.size() / x.size());
  for (size_t i = 0; i < rows.size(); ++i) out[i / x.size()] += rows[i] * x[i % x.size()];
  return out;
}

}  // namespace

HEADRACE_TEST(scan_sums_exactly) {
  Random random(17);
  for (const int n : {1, 31, 32, 33, 384, 1000}) {
    const size_t num_rows = 21;
    const auto rows = random_rows(random, num_rows * n);
    const auto x = steps(n);
    const auto expected = products(rows, x);
    for_each_isa([&](const Kernels& kernels) {
      std::vector<int32_t> out(num_rows);
      kernels.scan(rows.data(), num_rows, x.data(), n, out.data());
      CHECK_SAME(out.data(), expected.data(), num_rows, kernels.name, "n", n);
    });
  }
}

HEADRACE_TEST(scan_holds_its_greatest_sum) {
  const int n = 1 << 17;
  const std::vector<int8_t> row(n, -128);
  const std::vector<int16_t> x(n, -127);
  for_each_isa([&](const Kernels& kernels) {
    int32_t out = 0;
    kernels.scan(row.data(), 1, x.data(), n, &out);
    CHECK_FOR(out == int64_t{n} * 128 * 127, kernels.name);
  });
}

HEADRACE_TEST(nearest_are_the_greatest_products_in_order) {
  Random random(18);
  const int n = 40;
  for (const size_t num_rows : {size_t{1}, size_t{300}, size_t{9000}}) {
    auto rows = random_rows(random, num_rows * n);
    // Some rows twice: of equal ones the first is the nearer.
    std::copy_n(rows.begin(), num_rows / 3 * n, rows.begin() + num_rows / 2 * n);
    const std::vector<float> scales(num_rows, 0.25f);
    const auto x = steps(n);
    const auto scores = products(rows, x);
    std::vector<size_t> order(num_rows);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    const ByteRows all{rows.data(), scales.data(), num_rows, n};
    for (const size_t limit : {size_t{0}, size_t{1}, size_t{50}, num_rows + 1}) {
      for (const int threads : {1, 3}) {
        for_each_isa([&](const Kernels& kernels) {
          const auto found = nearest(kernels, all, x.data(), limit, threads);
          const size_t expected = std::min(limit, num_rows);
          CHECK_FOR(
              found.size() == expected && std::equal(found.begin(), found.end(), order.begin()),
              kernels.name, "rows", num_rows, "limit", limit, "threads", threads);
        });
      }
    }
  }
}

}  // namespace headrace::tests
