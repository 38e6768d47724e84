#include "pack.hpp"

#include <cstring>

#include "half.hpp"
#include "numerics.hpp"

namespace headrace {
namespace {

uint16_t read_half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

void put_half(uint8_t* at, int lane, uint16_t h) { std::memcpy(at + 2 * lane, &h, 2); }

float half_at(const uint8_t* p, int lane) { return half_to_float(read_half(p + 2 * lane)); }

// 32 nibbles, byte k holding input k (low) and k + 16 (high), into a row of a record.
void put_nibbles(uint8_t* record, int lane, const uint8_t nibbles[16]) {
  for (int n = 0; n < 4; ++n) std::memcpy(record + 64 * n + 4 * lane, nibbles + 4 * n, 4);
}

void put_bytes(uint8_t* record, int lane, const uint8_t values[32]) {
  for (int j = 0; j < 8; ++j) std::memcpy(record + 64 * j + 4 * lane, values + 4 * j, 4);
}

// 32 six-bit values: low nibbles as above, then two high bits each in 128 bytes.
void put_six_bits(uint8_t* record, int lane, const uint8_t values[32]) {
  uint8_t low[16], high[8];
  for (int k = 0; k < 16; ++k) {
    low[k] = static_cast<uint8_t>((values[k] & 15) | (values[k + 16] & 15) << 4);
  }
  for (int k = 0; k < 8; ++k) {
    high[k] = static_cast<uint8_t>((values[k] >> 4) | (values[k + 8] >> 4) << 2 |
                                   (values[k + 16] >> 4) << 4 | (values[k + 24] >> 4) << 6);
  }
  put_nibbles(record, lane, low);
  uint8_t* at = record + kNibbleQuants;
  for (int n = 0; n < 2; ++n) std::memcpy(at + 64 * n + 4 * lane, high + 4 * n, 4);
}

void get_nibbles(const uint8_t* record, int lane, uint8_t values[32]) {
  for (int k = 0; k < 16; ++k) {
    const uint8_t byte = record[64 * (k / 4) + 4 * lane + k % 4];
    values[k] = byte & 15;
    values[k + 16] = byte >> 4;
  }
}

void get_bytes(const uint8_t* record, int lane, uint8_t values[32]) {
  for (int k = 0; k < 32; ++k) values[k] = record[64 * (k / 4) + 4 * lane + k % 4];
}

void get_six_bits(const uint8_t* record, int lane, uint8_t values[32]) {
  get_nibbles(record, lane, values);
  for (int k = 0; k < 8; ++k) {
    const uint8_t high = record[kNibbleQuants + 64 * (k / 4) + 4 * lane + k % 4];
    for (int g = 0; g < 4; ++g) values[k + 8 * g] |= ((high >> (2 * g)) & 3) << 4;
  }
}

// Five-bit blocks keep bit 4 of input k in bit k of a 32-bit word.
void five_bits(const uint8_t* high, const uint8_t* nibbles, uint8_t values[32]) {
  uint32_t word;
  std::memcpy(&word, high, 4);
  for (int k = 0; k < 16; ++k) {
    values[k] = static_cast<uint8_t>((nibbles[k] & 15) | ((word >> k) & 1) << 4);
    values[k + 16] = static_cast<uint8_t>((nibbles[k] >> 4) | ((word >> (k + 16)) & 1) << 4);
  }
}

// Scale and minimum j of the 6-bit pairs that Q4_K and Q5_K pack into 12 bytes.
void scale_and_minimum(const uint8_t packed[12], int j, uint8_t& scale, uint8_t& minimum) {
  if (j < 4) {
    scale = packed[j] & 63;
    minimum = packed[j + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
    minimum = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
  }
}

// Block j's scale and minimum, bytes that stand behind its quants.
void put_scales(const uint8_t* block, int j, uint8_t* scales, int lane) {
  uint8_t scale, minimum;
  scale_and_minimum(block + 4, j, scale, minimum);
  scales[lane] = scale;
  scales[kByteScales + lane] = minimum;
}

// What the scales and the minima of all eight blocks are multiplied with.
void put_factors(const uint8_t* block, uint8_t* factors, int lane) {
  put_half(factors, lane, read_half(block));
  put_half(factors + kHalves, lane, read_half(block + 2));
}

void pack_simple(Format format, const uint8_t* block, uint8_t* record, int lane) {
  uint8_t values[32];
  switch (format) {
    case Format::kQ4_0:
      put_nibbles(record, lane, block + 2);
      put_half(record + kNibbleQuants, lane, read_half(block));
      break;
    case Format::kQ4_1:
      put_nibbles(record, lane, block + 4);
      put_half(record + kNibbleQuants, lane, read_half(block));
      put_half(record + kNibbleQuants + kHalves, lane, read_half(block + 2));
      break;
    case Format::kQ5_0:
      five_bits(block + 2, block + 6, values);
      put_bytes(record, lane, values);
      put_half(record + kByteQuants, lane, read_half(block));
      break;
    case Format::kQ5_1:
      five_bits(block + 4, block + 8, values);
      put_bytes(record, lane, values);
      put_half(record + kByteQuants, lane, read_half(block));
      put_half(record + kByteQuants + kHalves, lane, read_half(block + 2));
      break;
    default:  // Q8_0, with the sign as an offset of 128
      for (int k = 0; k < 32; ++k) values[k] = block[2 + k] ^ 0x80;
      put_bytes(record, lane, values);
      put_half(record + kByteQuants, lane, read_half(block));
  }
}

void pack_q4_k(const uint8_t* block, uint8_t* record, int lane) {
  for (int j = 0; j < 8; ++j) {
    const uint8_t* source = block + 16 + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    uint8_t nibbles[16];
    for (int k = 0; k < 16; ++k) {
      nibbles[k] =
          static_cast<uint8_t>(((source[k] >> shift) & 15) | ((source[k + 16] >> shift) & 15) << 4);
    }
    uint8_t* at = record + j * kBlockQ4K;
    put_nibbles(at, lane, nibbles);
    put_scales(block, j, at + kNibbleQuants, lane);
  }
  put_factors(block, record + 8 * kBlockQ4K, lane);
}

void pack_q5_k(const uint8_t* block, uint8_t* record, int lane) {
  for (int j = 0; j < 8; ++j) {
    const uint8_t* source = block + 48 + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    uint8_t values[32];
    for (int k = 0; k < 32; ++k) {
      values[k] =
          static_cast<uint8_t>(((source[k] >> shift) & 15) | ((block[16 + k] >> j) & 1) << 4);
    }
    uint8_t* at = record + j * kBlockQ5K;
    put_bytes(at, lane, values);
    put_scales(block, j, at + kByteQuants, lane);
  }
  put_factors(block, record + 8 * kBlockQ5K, lane);
}

// The file keeps 128 inputs as 64 bytes of nibbles (inputs l and l + 64) and 32 of high bits.
void pack_q6_k(const uint8_t* block, uint8_t* record, int lane) {
  for (int j = 0; j < 8; ++j) {
    const int half = j / 4, quarter = j % 4;
    const uint8_t* nibbles = block + 64 * half + 32 * (quarter % 2);
    const uint8_t* high = block + 128 + 32 * half;
    uint8_t values[32];
    for (int k = 0; k < 32; ++k) {
      values[k] = static_cast<uint8_t>(((nibbles[k] >> (4 * (quarter / 2))) & 15) |
                                       ((high[k] >> (2 * quarter)) & 3) << 4);
    }
    uint8_t* at = record + j * kBlockQ6K;
    put_six_bits(at, lane, values);
    at[kSixBitQuants + lane] = block[192 + 2 * j];
    at[kSixBitQuants + kByteScales + lane] = block[192 + 2 * j + 1];
  }
  put_half(record + 8 * kBlockQ6K, lane, read_half(block + 208));
}

void pack_row(const FormatTraits& traits, const uint8_t* row, int num_inputs, uint8_t* tile,
              int lane) {
  if (traits.is_float) {
    const int size = traits.file_bytes;
    for (int k = 0; k < num_inputs; ++k) {
      std::memcpy(tile + static_cast<size_t>(16 * k + lane) * size,
                  row + static_cast<size_t>(k) * size, size);
    }
    return;
  }
  const int num_records = num_inputs / traits.file_block;
  for (int b = 0; b < num_records; ++b) {
    const uint8_t* block = row + static_cast<size_t>(b) * traits.file_bytes;
    uint8_t* record = tile + static_cast<size_t>(b) * traits.record_bytes;
    switch (traits.format) {
      case Format::kQ4_K:
        pack_q4_k(block, record, lane);
        break;
      case Format::kQ5_K:
        pack_q5_k(block, record, lane);
        break;
      case Format::kQ6_K:
        pack_q6_k(block, record, lane);
        break;
      default:
        pack_simple(traits.format, block, record, lane);
    }
  }
}

// Scales of one block of 32: weight k = scale[k / 16] * (value - zero) + minimum.
struct BlockScales {
  float scale[2];
  float minimum;
  int zero;
};

// As `put_scales` and `put_factors` have put them.
BlockScales read_scales(const uint8_t* scales, const uint8_t* factors, int lane) {
  const float d = half_at(factors, lane) * static_cast<float>(scales[lane]);
  const float step = half_at(factors + kHalves, lane);
  return {{d, d}, -(step * static_cast<float>(scales[kByteScales + lane])), 0};
}

BlockScales read_block(Format format, const uint8_t* record, int j, int lane, uint8_t values[32]) {
  switch (format) {
    case Format::kQ4_0: {
      get_nibbles(record, lane, values);
      const float d = half_at(record + kNibbleQuants, lane);
      return {{d, d}, 0.0f, 8};
    }
    case Format::kQ4_1: {
      get_nibbles(record, lane, values);
      const float d = half_at(record + kNibbleQuants, lane);
      return {{d, d}, half_at(record + kNibbleQuants + kHalves, lane), 0};
    }
    case Format::kQ4_K: {
      const uint8_t* at = record + j * kBlockQ4K;
      get_nibbles(at, lane, values);
      return read_scales(at + kNibbleQuants, record + 8 * kBlockQ4K, lane);
    }
    case Format::kQ5_K: {
      const uint8_t* at = record + j * kBlockQ5K;
      get_bytes(at, lane, values);
      return read_scales(at + kByteQuants, record + 8 * kBlockQ5K, lane);
    }
    case Format::kQ6_K: {
      const uint8_t* at = record + j * kBlockQ6K;
      get_six_bits(at, lane, values);
      const float d = half_at(record + 8 * kBlockQ6K, lane);
      const auto scale = [&](int i) { return d * static_cast<float>(static_cast<int8_t>(at[i])); };
      const int first = kSixBitQuants + lane;
      return {{scale(first), scale(first + kByteScales)}, 0.0f, 32};
    }
    default: {
      get_bytes(record, lane, values);
      const float d = half_at(record + kByteQuants, lane);
      const uint8_t* minima = record + kByteQuants + kHalves;
      const float minimum = format == Format::kQ5_1 ? half_at(minima, lane) : 0.0f;
      return {{d, d}, minimum, format == Format::kQ8_0 ? 128 : format == Format::kQ5_0 ? 16 : 0};
    }
  }
}

float float_weight(Format format, const uint8_t* p) {
  if (format == Format::kF16) return half_to_float(read_half(p));
  uint32_t bits;
  if (format == Format::kF32) {
    std::memcpy(&bits, p, 4);
  } else {
    bits = static_cast<uint32_t>(read_half(p)) << 16;
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

}  // namespace

size_t file_row_bytes(const FormatTraits& traits, int num_inputs) {
  return static_cast<size_t>(num_inputs / traits.file_block) * traits.file_bytes;
}

size_t tile_bytes(const FormatTraits& traits, int num_inputs) {
  const int num_blocks = num_inputs / kBlock;
  return static_cast<size_t>(num_blocks / traits.record_blocks) * traits.record_bytes;
}

void pack_tile(const FormatTraits& traits, const uint8_t* const rows[16], int num_inputs,
               uint8_t* tile) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (rows[lane] != nullptr) pack_row(traits, rows[lane], num_inputs, tile, lane);
  }
}

void float_row(const FormatTraits& traits, const uint8_t* row, int num_inputs, float* out) {
  for (int k = 0; k < num_inputs; ++k) {
    out[k] = float_weight(traits.format, row + static_cast<size_t>(k) * traits.file_bytes);
  }
}

void unpack_row(const FormatTraits& traits, const uint8_t* tile, int lane, int num_inputs,
                float* out) {
  if (traits.is_float) {
    const int size = traits.file_bytes;
    for (int k = 0; k < num_inputs; ++k) {
      out[k] = float_weight(traits.format, tile + static_cast<size_t>(16 * k + lane) * size);
    }
    return;
  }
  for (int b = 0; b < num_inputs / kBlock; ++b) {
    const int record_index = b / traits.record_blocks;
    const uint8_t* record = tile + static_cast<size_t>(record_index) * traits.record_bytes;
    uint8_t values[32];
    const BlockScales s = read_block(traits.format, record, b % traits.record_blocks, lane, values);
    for (int k = 0; k < kBlock; ++k) {
      const float quant = static_cast<float>(values[k] - s.zero);
      out[b * kBlock + k] = s.scale[k / 16] * quant + s.minimum;
    }
  }
}

}  // namespace headrace
