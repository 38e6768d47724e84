// One vector against many.
#include <vector>

#include "check.hpp"
#include "scan.hpp"

namespace headrace::tests {

HEADRACE_TEST(scan_sums_exactly) {
  Random random(17);
  for (const int n : {1, 31, 32, 384, 1000}) {
    const int num_rows = 21;
    const auto values = random.normals(static_cast<size_t>(n) * num_rows, 40.0f);
    std::vector<int8_t> rows;
    for (const float v : values) {
      rows.push_back(static_cast<int8_t>(v < -128 ? -128 : v > 127 ? 127 : v));
    }
    std::vector<int16_t> x(n);
    for (int i = 0; i < n; ++i) x[i] = static_cast<int16_t>(i * 7 % 255 - 127);
    std::vector<int32_t> out(num_rows);
    scan(rows.data(), num_rows, x.data(), n, out.data());
    for (int r = 0; r < num_rows; ++r) {
      int64_t expected = 0;
      for (int i = 0; i < n; ++i) expected += int64_t{rows[static_cast<size_t>(r) * n + i]} * x[i];
      CHECK_FOR(out[r] == expected, "n", n, "row", r);
    }
  }
}

HEADRACE_TEST(scan_holds_its_greatest_sum) {
  const int n = 1 << 17;
  const std::vector<int8_t> row(n, -128);
  const std::vector<int16_t> x(n, -127);
  int32_t out = 0;
  scan(row.data(), 1, x.data(), n, &out);
  CHECK(out == int64_t{n} * 128 * 127);
}

}  // namespace headrace::tests
