// 16-bit floats: every half, and floats around every boundary where rounding turns.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "half.hpp"
#include "numerics.hpp"
#include "pack.hpp"

namespace headrace::tests {
namespace {

bool is_nan_half(uint32_t h) { return (h & 0x7C00) == 0x7C00 && (h & 0x3FF) != 0; }

// Every finite half, the midpoints between neighbours, and the floats on both sides of each.
std::vector<float> boundary_floats() {
  std::vector<float> all;
  for (uint32_t h = 0; h < 0x7C00; ++h) {
    const double here = definition::half_value(static_cast<uint16_t>(h));
    const double next = h + 1 == 0x7C00 ? 65536.0 : definition::half_value(h + 1);
    const float middle = static_cast<float>((here + next) / 2);
    for (const float x : {static_cast<float>(here), middle}) {
      for (const float y : {x, std::nextafter(x, 0.0f), std::nextafter(x, INFINITY)}) {
        all.push_back(y);
        all.push_back(-y);
      }
    }
  }
  for (const float x : {0x1p-149f, 0x1p-126f, 65519.99f, 65536.0f, 1e30f, 0x1.fffffep127f}) {
    all.push_back(x);
    all.push_back(-x);
  }
  return all;
}

std::vector<uint16_t> definition_bits(const std::vector<float>& floats, bool clamped) {
  std::vector<uint16_t> out;
  for (const float x : floats) out.push_back(definition::half_bits(x, clamped));
  return out;
}

}  // namespace

HEADRACE_TEST(half_header_reads_every_half) {
  for (uint32_t h = 0; h <= 0xFFFF; ++h) {
    const float got = half_to_float(static_cast<uint16_t>(h));
    const float expected = definition::half_value(static_cast<uint16_t>(h));
    if (is_nan_half(h)) {
      CHECK_FOR(std::isnan(got), h);
    } else {
      CHECK_SAME(&got, &expected, 1, "half", h);
    }
  }
}

HEADRACE_TEST(half_header_rounds_to_nearest_even) {
  const std::vector<float> floats = boundary_floats();
  const std::vector<uint16_t> expected = definition_bits(floats, false);
  for (size_t i = 0; i < floats.size(); ++i) {
    const uint16_t got = float_to_half(floats[i]);
    CHECK_FOR(got == expected[i], floats[i], "gives", got, "not", expected[i]);
  }
  CHECK(float_to_half(INFINITY) == 0x7C00 && float_to_half(-INFINITY) == 0xFC00);
  CHECK(is_nan_half(float_to_half(NAN)));
}

HEADRACE_TEST(kernels_read_every_half) {
  std::vector<uint16_t> halves;
  std::vector<float> expected;
  for (uint32_t h = 0; h <= 0xFFFF; ++h) {
    if (is_nan_half(h)) continue;
    halves.push_back(static_cast<uint16_t>(h));
    expected.push_back(definition::half_value(static_cast<uint16_t>(h)));
  }
  const int n = static_cast<int>(halves.size());
  CHECK(n % 16 != 0);  // a tail too
  for_each_isa([&](const Kernels& kernels) {
    std::vector<float> got(n);
    kernels.from_half(halves.data(), n, got.data());
    CHECK_SAME(got.data(), expected.data(), n, kernels.name);
  });
}

HEADRACE_TEST(kernels_write_halves_clamped) {
  std::vector<float> floats = boundary_floats();
  floats.push_back(INFINITY);
  floats.push_back(-INFINITY);
  std::vector<uint16_t> expected = definition_bits(floats, true);
  const int n = static_cast<int>(floats.size());
  for_each_isa([&](const Kernels& kernels) {
    std::vector<uint16_t> got(n);
    kernels.to_half(floats.data(), n, got.data());
    CHECK_SAME(got.data(), expected.data(), n, kernels.name);
    uint16_t nan;
    const float x = NAN;
    kernels.to_half(&x, 1, &nan);
    CHECK_FOR(is_nan_half(nan), kernels.name, nan);
  });
}

// A row of the file read at once is what tiles make of it.
HEADRACE_TEST(float_rows_are_those_of_tiles) {
  Random random(48);
  for (const Format format : {Format::kF32, Format::kF16, Format::kBF16}) {
    const FormatTraits& traits = kFormats[format_index(format)];
    std::vector<uint8_t> row(96 * traits.file_bytes), tile(tile_bytes(traits, 96));
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random.below(0x78));  // no NaN
    const uint8_t* const rows[kLanes] = {row.data()};
    pack_tile(traits, rows, 96, tile.data());
    std::vector<float> expected(96), got(96);
    unpack_row(traits, tile.data(), 0, 96, expected.data());
    float_row(traits, row.data(), 96, got.data());
    CHECK_SAME(got.data(), expected.data(), 96, traits.name);
  }
}

}  // namespace headrace::tests
