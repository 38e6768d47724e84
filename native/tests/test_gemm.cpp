// Matrix products of every format, panel width and instruction set; packing and unpacking.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "weights.hpp"

namespace headrace::tests {
namespace {

constexpr int kMostTokens = 16;

struct Inputs {
  std::vector<std::vector<float>> tokens;
  std::vector<std::vector<definition::Quantized>> quantized;
};

Inputs random_inputs(int num_inputs, Content content, Random& random) {
  Inputs inputs;
  for (int t = 0; t < kMostTokens; ++t) {
    std::vector<float> x = random.normals(num_inputs);
    if (content == Content::kExtremes) {
      for (int i = 0; i < num_inputs; i += 32) {
        // Zero blocks, blocks of equal numbers (all quants 127), and magnitudes of all sorts.
        const int kind = random.below(4);
        const float scale = std::ldexp(1.0f, random.below(60) - 30);
        for (int k = i; k < i + 32; ++k) {
          x[k] = kind == 0 ? 0.0f : kind == 1 ? (t % 2 ? -scale : scale) : x[k] * scale;
        }
      }
    }
    inputs.quantized.push_back(definition::quantize(x.data(), num_inputs));
    inputs.tokens.push_back(std::move(x));
  }
  return inputs;
}

// [token][row], padding rows included: they are zero weights, whose products are zero.
std::vector<std::vector<float>> expected_products(const Weights& w, const Inputs& inputs) {
  std::vector<std::vector<float>> out;
  for (int t = 0; t < kMostTokens; ++t) {
    std::vector<float> row;
    for (const auto& weights : w.rows) {
      row.push_back(
          w.traits->is_float
              ? definition::float_product(*w.traits, weights.data(), inputs.tokens[t].data(),
                                          w.num_inputs)
              : definition::quantized_product(*w.traits, weights.data(), inputs.quantized[t]));
    }
    row.resize(static_cast<size_t>(w.num_tiles()) * kLanes, 0.0f);
    out.push_back(std::move(row));
  }
  return out;
}

std::vector<uint8_t> panel_of(const Weights& w, const Inputs& inputs, int width) {
  if (!w.traits->is_float) {
    return definition::panel({inputs.quantized.begin(), inputs.quantized.begin() + width},
                             w.num_inputs);
  }
  std::vector<uint8_t> out(sizeof(float) * w.num_inputs * width);
  for (int k = 0; k < w.num_inputs; ++k) {
    for (int t = 0; t < width; ++t) {
      std::memcpy(out.data() + sizeof(float) * (k * width + t), &inputs.tokens[t][k], 4);
    }
  }
  return out;
}

void check_width(const Kernels& kernels, const Weights& w, const Inputs& inputs,
                 const std::vector<std::vector<float>>& expected, int width) {
  const int rows = w.num_tiles() * kLanes;
  const std::vector<uint8_t> panel = panel_of(w, inputs, width);
  // Wider than the rows, so that writing past them shows.
  const size_t stride = rows + 16;
  const float untouched = 12345.0f;
  std::vector<float> out(stride * width, untouched);
  const Gemm gemm = kernels.gemm[format_index(w.traits->format)](width);
  gemm(w.tiles.data(), w.bytes, w.num_tiles(), w.num_inputs, panel.data(), out.data(), stride);
  for (int t = 0; t < width; ++t) {
    const float* row = out.data() + t * stride;
    CHECK_SAME(row, expected[t].data(), rows, kernels.name, w.traits->name, "tiles", w.num_tiles(),
               "inputs", w.num_inputs, "width", width, "token", t);
    for (int i = rows; i < static_cast<int>(stride); ++i) CHECK(row[i] == untouched);
  }
}

void check_format(const FormatTraits& traits, int num_rows, int num_inputs, Content content,
                  Random& random) {
  const Weights w(traits, num_rows, num_inputs, content, random);
  const Inputs inputs = random_inputs(num_inputs, content, random);
  const auto expected = expected_products(w, inputs);
  for_each_isa([&](const Kernels& kernels) {
    for (int width = 1; width <= kernels.widest_panel; ++width) {
      check_width(kernels, w, inputs, expected, width);
    }
  });
}

// Odd numbers of tiles and blocks; the last tile is part padding.
void check_all_formats(Content content) {
  Random random(content == Content::kUsual ? 1 : 2);
  for (const FormatTraits& traits : kFormats) {
    const int unit = traits.file_block == 256 ? 256 : 32;
    for (const int blocks : quick() ? std::vector<int>{1, 3} : std::vector<int>{1, 2, 3, 7, 18}) {
      for (const int rows : quick() ? std::vector<int>{75} : std::vector<int>{16, 43, 75, 144}) {
        check_format(traits, rows, blocks * unit, content, random);
      }
    }
  }
}

}  // namespace

HEADRACE_TEST(gemm_of_usual_weights) { check_all_formats(Content::kUsual); }

HEADRACE_TEST(gemm_of_extreme_weights) { check_all_formats(Content::kExtremes); }

// Activations that are not numbers give products that are not, in every format and row.
HEADRACE_TEST(gemm_of_what_is_not_a_number) {
  Random random(6);
  for (const FormatTraits& traits : kFormats) {
    const int n = traits.file_block == 256 ? 256 : 64;
    const Weights w(traits, 16, n, Content::kUsual, random);
    for (const float bad : {NAN, INFINITY}) {
      std::vector<float> x = random.normals(n);
      x[random.below(n)] = bad;
      for_each_isa([&](const Kernels& kernels) {
        std::vector<uint8_t> panel(static_cast<size_t>(n) / 32 * kPanelBytes);
        kernels.quantize(x.data(), n, panel.data(), 1, 0);
        float out[kLanes];
        const void* inputs = traits.is_float ? static_cast<const void*>(x.data()) : panel.data();
        kernels.gemm[format_index(traits.format)](1)(w.tiles.data(), w.bytes, 1, n, inputs, out,
                                                     kLanes);
        for (const float v : out) {
          CHECK_FOR(!std::isfinite(v), kernels.name, traits.name, bad, "gives", v);
        }
      });
    }
  }
}

// A panel is filled lane by lane, and equals the layout that formats.hpp draws.
HEADRACE_TEST(quantize_fills_panels) {
  Random random(3);
  for (const Content content : {Content::kUsual, Content::kExtremes}) {
    for (const int n : {32, 96, 576}) {
      const Inputs inputs = random_inputs(n, content, random);
      for_each_isa([&](const Kernels& kernels) {
        for (int width = 1; width <= kMaxPanel; ++width) {
          const auto expected =
              definition::panel({inputs.quantized.begin(), inputs.quantized.begin() + width}, n);
          std::vector<uint8_t> panel(expected.size(), 0xAA);
          for (int t = 0; t < width; ++t) {
            kernels.quantize(inputs.tokens[t].data(), n, panel.data(), width, t);
          }
          CHECK_SAME(panel.data(), expected.data(), expected.size(), kernels.name, "inputs", n,
                     "width", width);
        }
      });
    }
  }
}

HEADRACE_TEST(unpacked_rows) {
  Random random(4);
  for (const FormatTraits& traits : kFormats) {
    for (const Content content : {Content::kUsual, Content::kExtremes}) {
      const int inputs = 3 * (traits.file_block == 256 ? 256 : 32);
      const Weights w(traits, 27, inputs, content, random);
      std::vector<float> got(inputs);
      for (size_t row = 0; row < w.rows.size(); ++row) {
        unpack_row(traits, w.tiles.data() + row / kLanes * w.bytes, row % kLanes, inputs,
                   got.data());
        const auto expected = definition::row_weights(traits, w.rows[row].data(), inputs);
        CHECK_SAME(got.data(), expected.data(), inputs, traits.name, "row", row);
      }
    }
  }
}

HEADRACE_TEST(sizes_of_rows_and_tiles) {
  for (const FormatTraits& traits : kFormats) {
    const int unit = traits.file_block == 256 ? 256 : 32;
    CHECK(file_row_bytes(traits, 4 * unit) ==
          static_cast<size_t>(4) * unit / traits.file_block * traits.file_bytes);
    CHECK(tile_bytes(traits, 4 * unit) ==
          static_cast<size_t>(4) * unit / (32 * traits.record_blocks) * traits.record_bytes);
    CHECK(format_index(traits.format) >= 0);
    CHECK(&kFormats[format_index(traits.format)] == &traits);
  }
  CHECK(format_index(static_cast<Format>(9)) == -1);
}

namespace {

// a * b + c where rounding twice goes wrong: ties, near ties, cancellation, denormal results.
struct Triple {
  float a, b, c;
};

Triple hard_triple(Random& random) {
  const auto sign = [&] { return random.below(2) ? -1.0f : 1.0f; };
  const float x = 1.0f + static_cast<float>(random.below(1 << 12)) * 0x1p-12f;
  const float y = 1.0f + static_cast<float>(random.below(1 << 11)) * 0x1p-11f;
  const int shift = random.below(56) - 28;
  Triple t{sign() * x, sign() * std::ldexp(y, shift), sign() * (1.0f + random.below(4) * 0x1p-23f)};
  switch (random.below(4)) {
    case 0:  // c cancels most of the product
      t.c = -(t.a * t.b);
      break;
    case 1:  // the product is half a unit of c's last place, or that and a crumb
      t.a = sign();
      t.b = std::ldexp(1.0f + random.below(3) * 0x1p-23f, -24 - random.below(2));
      break;
    case 2:  // denormal sums
      t.b = std::ldexp(t.b, -130 + random.below(20));
      t.c = std::ldexp(t.c, -140 + random.below(20));
      break;
    default:
      break;
  }
  return t;
}

}  // namespace

// Sixteen triples at a time through the F32 product: inputs (1, b, 0...) and weights (c, a, 0...).
HEADRACE_TEST(fused_multiply_add_rounds_once) {
  Random random(5);
  const FormatTraits& f32 = kFormats[format_index(Format::kF32)];
  const int rounds = quick() ? 200 : 20'000;
  std::vector<uint8_t> tile(tile_bytes(f32, 32));
  for (int round = 0; round < rounds; ++round) {
    // A tile's rows share the input, so b is one number and a, c are sixteen.
    const float b = hard_triple(random).b;
    std::vector<std::vector<float>> rows(kLanes, std::vector<float>(32, 0.0f));
    const uint8_t* sources[kLanes];
    float expected[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Triple t = hard_triple(random);
      rows[lane][0] = random.below(3) ? t.c : -(t.a * b);
      rows[lane][1] = t.a;
      sources[lane] = reinterpret_cast<const uint8_t*>(rows[lane].data());
      // The rest of the chain adds zeros, which turn -0 into 0.
      expected[lane] = std::fma(t.a, b, rows[lane][0]) + 0.0f;
    }
    pack_tile(f32, sources, 32, tile.data());
    std::vector<float> panel(32, 0.0f);
    panel[0] = 1.0f;
    panel[1] = b;
    for_each_isa([&](const Kernels& kernels) {
      float out[kLanes];
      kernels.gemm[format_index(Format::kF32)](1)(tile.data(), tile.size(), 1, 32, panel.data(),
                                                  out, kLanes);
      CHECK_SAME(out, expected, kLanes, kernels.name, "fused a * b + c, b", b);
    });
  }
}

}  // namespace headrace::tests
