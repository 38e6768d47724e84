// Random rows of weights in the layout of a GGUF file: every field any bits that a file may hold,
// also what no quantizer writes.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "formats.hpp"
#include "pack.hpp"

namespace headrace::tests {

enum class Content {
  kUsual,     // scales as in real models
  kExtremes,  // largest quants and scales of either sign, zero blocks, denormal scales
};

inline uint16_t random_scale(Random& random, Content content) {
  const uint16_t sign = random.below(2) ? 0x8000 : 0;
  if (content == Content::kUsual) {
    // 2^-14 to 2^-5
    return static_cast<uint16_t>(sign | (1 + random.below(10)) << 10 | random.below(1024));
  }
  switch (random.below(4)) {
    case 0:
      return sign;  // zero
    case 1:
      return sign | 0x7BFF;  // 65504
    case 2:
      return static_cast<uint16_t>(sign | random.below(1024));  // denormal
    default:
      return static_cast<uint16_t>(sign | random.below(0x7C00));
  }
}

inline void put_u16(uint8_t* at, uint16_t h) { std::memcpy(at, &h, 2); }

// Where a block keeps its 16-bit scales.
inline std::vector<int> scales_at(Format format) {
  switch (format) {
    case Format::kQ4_0:
    case Format::kQ5_0:
    case Format::kQ8_0:
      return {0};
    case Format::kQ6_K:
      return {208};
    default:
      return {0, 2};
  }
}

inline void fill_quantized(const FormatTraits& traits, Content content, Random& random,
                           std::vector<uint8_t>& row) {
  for (size_t at = 0; at < row.size(); at += traits.file_bytes) {
    const int kind = content == Content::kUsual ? 3 : random.below(4);
    for (int i = 0; i < traits.file_bytes; ++i) {
      row[at + i] = kind == 0   ? 0x00
                    : kind == 1 ? 0xFF
                    : kind == 2 ? 0x80  // -128 in Q8_0 and in Q6_K's scales
                                : static_cast<uint8_t>(random.bits());
    }
    for (const int scale : scales_at(traits.format)) {
      put_u16(row.data() + at + scale, random_scale(random, content));
    }
  }
}

inline void fill_floats(const FormatTraits& traits, Content content, Random& random,
                        std::vector<uint8_t>& row) {
  for (size_t at = 0; at < row.size(); at += traits.file_bytes) {
    float f = random.normal();
    // 2^-140 is denormal in float and BF16.
    if (content == Content::kExtremes) f *= std::ldexp(1.0f, random.below(200) - 140);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (traits.format == Format::kF32) {
      std::memcpy(row.data() + at, &f, 4);
    } else if (traits.format == Format::kBF16) {
      put_u16(row.data() + at, static_cast<uint16_t>(bits >> 16));
    } else {
      put_u16(row.data() + at, random_scale(random, content));
    }
  }
}

inline std::vector<uint8_t> random_row(const FormatTraits& traits, int num_inputs, Content content,
                                       Random& random) {
  std::vector<uint8_t> row(file_row_bytes(traits, num_inputs));
  if (traits.is_float) {
    fill_floats(traits, content, random, row);
  } else {
    fill_quantized(traits, content, random, row);
  }
  return row;
}

// Rows in the file's layout, and the tiles that pack_tile makes of them; the last tile is padded.
struct Weights {
  const FormatTraits* traits;
  int num_inputs;
  std::vector<std::vector<uint8_t>> rows;
  size_t bytes;  // of a tile
  std::vector<uint8_t> tiles;

  Weights(const FormatTraits& t, int num_rows, int inputs, Content content, Random& random)
      : traits(&t), num_inputs(inputs), bytes(tile_bytes(t, inputs)) {
    for (int i = 0; i < num_rows; ++i) rows.push_back(random_row(t, inputs, content, random));
    tiles.resize(num_tiles() * bytes);
    for (int i = 0; i < num_tiles(); ++i) {
      const uint8_t* sources[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int row = i * kLanes + lane;
        sources[lane] = row < num_rows ? rows[row].data() : nullptr;
      }
      pack_tile(t, sources, inputs, tiles.data() + i * bytes);
    }
  }
  int num_tiles() const { return static_cast<int>((rows.size() + kLanes - 1) / kLanes); }
};

}  // namespace headrace::tests
