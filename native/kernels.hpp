// The table of kernels that each instruction set fills. Plain data and function pointers: the files
// behind it are compiled for different processors and must share no inline code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"
#include "numerics.hpp"

namespace headrace {

// One matrix-panel product. out[t * out_stride + 16 i + lane] for tile i, t in [0, width).
// `panel` holds quantized records, or float [input][width] for float formats.
using Gemm = void (*)(const uint8_t* tiles, size_t tile_bytes, int num_tiles, int num_inputs,
                      const void* panel, float* out, size_t out_stride);

// One tile of 16-bit weights against one panel, see kernels/wide.hpp. acc[16 t + lane] grows by the
// products of `num_inputs` inputs, a multiple of 32, and of kWideBlock unless they are the last.
using WideGemm = void (*)(const int16_t* tile, const int16_t* panel, int num_inputs, float* acc);

// A slice of a bank: 32 positions of one layer and KV head, 16-bit. Keys come first, as
// [group of 16 positions][dimension][16], then values as [position][dimension].
static constexpr size_t slice_bytes(int head_dim) {
  return static_cast<size_t>(kBankSize) * head_dim * 2 * sizeof(uint16_t);
}

// Where bank b's slice lies behind the first of its layer and head. Banks come in groups of 16,
// whose slices of one layer and head lie side by side: long enough runs to stream, and a first
// touch of new banks that stays within a few huge pages.
constexpr int kGroupBanks = 16;
static constexpr size_t slice_offset(int bank, int head_dim, size_t group_bytes) {
  return static_cast<size_t>(bank) / kGroupBanks * group_bytes +
         static_cast<size_t>(bank) % kGroupBanks * slice_bytes(head_dim);
}

// Rows of one KV head's queries against one run of partitions.
struct AttentionTask {
  const float* query[kMaxQueryRows];  // [head_dim], rotated and scaled by log2(e) / sqrt(d)
  int visible[kMaxQueryRows];         // keys each row may see, from position 0
  float* state[kMaxQueryRows];        // out: [head_dim] weighted values, then max, then sum
  int num_rows;
  int head_dim;
  const uint8_t* slices;  // of one layer and KV head, see slice_offset()
  size_t group_bytes;
  const int32_t* banks;  // the sequence's table
  int first_partition, num_partitions;
};

// The kernels for panels of 1, 2, ... tokens; null where panels are never so wide.
template <class Kernel>
struct ByWidth {
  Kernel of[kMaxPanel];
  Kernel operator()(int width) const { return of[width - 1]; }
};

struct Kernels {
  const char* name;
  int widest_panel;

  // By format, then by the panel's width.
  ByWidth<Gemm> gemm[kNumFormats];
  ByWidth<WideGemm> wide_gemm;
  // Column `lane` of a panel of `width` tokens in 16 bits; returns the step. n is a multiple of 32.
  float (*widen)(const float* x, int n, int16_t* panel, int width, int lane);
  // out[i] = acc[i] * (steps[i] * step) + bias[i] for 16 rows.
  void (*wide_finish)(const float* acc, const float* steps, float step, const float* bias,
                      float* out);

  // out[i] = x[i] * (1 / sqrt(mean(x^2) + eps)) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  // out[i] = (x[i] - mean) * (1 / sqrt(variance + eps)) * weight[i] + bias[i]
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n,
                     float* out);
  // Column `lane` of a panel of `width` tokens, quantized or as floats.
  void (*quantize)(const float* x, int n, void* panel, int width, int lane);
  void (*spread)(const float* x, int n, float* panel, int width, int lane);
  // Rotates pairs (i, i + dim / 2) of x by the angles' cosines and sines, then scales all n.
  void (*rotate)(float* x, int n, int rope_dim, const float* cosine, const float* sine,
                 float scale);
  void (*to_half)(const float* x, int n, uint16_t* out);  // clamped to finite
  void (*from_half)(const uint16_t* x, int n, float* out);
  void (*add)(float* x, const float* y, int n);
  // out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
  void (*silu_multiply)(const float* gate, const float* up, int n, float* out);
  // out[i] = x[i] * (1 + erf(x[i] / sqrt(2))) / 2, to within 2^-21.
  void (*gelu)(const float* x, int n, float* out);

  void (*attend)(const AttentionTask& task);
  // Merges a later partition's state into an earlier one's; then divides by the sum.
  void (*merge)(float* into, const float* from, int head_dim);
  void (*finish)(const float* state, int head_dim, float* out);

  // out[i] = exp2((x[i] - max) * scale); the sum over 16 lanes.
  float (*softmax_weights)(const float* x, int n, float max, float scale, float* out);
  // The greatest value and its lowest index; *has_nan when any value is NaN.
  int (*argmax)(const float* x, int n, float* value, bool* has_nan);
  // out[i] = the dot product of row i, n bytes, with x. n is at most 2^17 and each |x| at most 127,
  // so that no sum overflows.
  void (*scan)(const int8_t* rows, size_t num_rows, const int16_t* x, int n, int32_t* out);
};

extern const Kernels kPortableKernels;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif
#ifdef HEADRACE_AMX
// What AMX does better than AVX-512, by format; null where it does not.
struct AmxGemms {
  ByWidth<Gemm> of[kNumFormats];
};
extern const AmxGemms kAmxGemms;
#endif

}  // namespace headrace
