// How weights lie in memory: tiles of 16 output rows, blocks of 32 inputs.
//
// A tile is a run of records, one per block (per 8 blocks for the K formats), each holding the
// quants of 16 rows x 32 inputs and then the scales of those rows. Inside the quants, bytes
// [64 j + 4 r, + 4) are inputs 4j..4j+3 of row r, so that one 32-bit lane is one output row; a
// nibble pair holds input group j (low) and j + 4 (high).
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// Numbered as in GGUF files.
enum class Format : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

constexpr int kNumFormats = 11;

struct FormatTraits {
  Format format;
  const char* name;
  int file_block;     // inputs per block in the file
  int file_bytes;     // bytes per block in the file
  int record_blocks;  // blocks of 32 inputs per record of a tile
  int record_bytes;   // bytes per record of a tile
  bool is_float;      // activations stay float
};

// What lies in front of the scales of a block: its quants of 4, 8 and 6 bits.
constexpr int kNibbleQuants = 256, kByteQuants = 512, kSixBitQuants = 384;
// A record of the others: quants, 16 half scales, 16 half minima where there are any.
constexpr int kHalves = 32;

// K formats: per block quants, 16 scales, 16 minima (or 32 scales); then 16-bit factors.
constexpr int kByteScales = 16;
constexpr int kBlockQ4K = kNibbleQuants + 2 * kByteScales;
constexpr int kBlockQ5K = kByteQuants + 2 * kByteScales;
constexpr int kBlockQ6K = kSixBitQuants + 2 * kByteScales;

constexpr FormatTraits kFormats[kNumFormats] = {
    {Format::kF32, "F32", 1, 4, 1, 32 * 64, true},
    {Format::kF16, "F16", 1, 2, 1, 32 * 32, true},
    {Format::kQ4_0, "Q4_0", 32, 18, 1, kNibbleQuants + kHalves, false},
    {Format::kQ4_1, "Q4_1", 32, 20, 1, kNibbleQuants + 2 * kHalves, false},
    {Format::kQ5_0, "Q5_0", 32, 22, 1, kByteQuants + kHalves, false},
    {Format::kQ5_1, "Q5_1", 32, 24, 1, kByteQuants + 2 * kHalves, false},
    {Format::kQ8_0, "Q8_0", 32, 34, 1, kByteQuants + kHalves, false},
    {Format::kQ4_K, "Q4_K", 256, 144, 8, 8 * kBlockQ4K + 2 * kHalves, false},
    {Format::kQ5_K, "Q5_K", 256, 176, 8, 8 * kBlockQ5K + 2 * kHalves, false},
    {Format::kQ6_K, "Q6_K", 256, 210, 8, 8 * kBlockQ6K + kHalves, false},
    {Format::kBF16, "BF16", 1, 2, 1, 32 * 32, true},
};

// The index into kFormats and the kernel tables, or -1.
constexpr int format_index(Format format) {
  for (int i = 0; i < kNumFormats; ++i) {
    if (kFormats[i].format == format) return i;
  }
  return -1;
}

// Quantized activations of a panel of T tokens: a record per block of 32 inputs.
//   T x 32 int8 | T x float d | T x float d * sum | T x int32 -sum | T x int32 -sum of the first 16
constexpr int kPanelBytes = 48;  // per token and block
constexpr int kMaxPanel = 16;    // tokens

}  // namespace headrace
