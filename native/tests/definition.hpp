// Every operation of the core as numerics.hpp words it: one output at a time, plain scalar code, no
// tiles, no lanes wider than a loop. What the kernels compute must equal this bit for bit.
//
// Weights are read from the file's blocks, not from packed tiles, so that packing is tested too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "formats.hpp"
#include "numerics.hpp"

namespace headrace::definition {

// --- 16-bit numbers ------------------------------------------------------------------------------

inline float half_value(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  const double sign = (h & 0x8000) ? -1.0 : 1.0;
  if (exponent == 31) {
    return mantissa == 0 ? static_cast<float>(sign * INFINITY) : std::nanf("");
  }
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(sign * size);
}

// Nearest, ties to even; |x| above 65504 counts as 65504 when `clamped`, else rounds to infinity
// from 65520 on. Not for NaN.
inline uint16_t half_bits(float x, bool clamped) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  double size = std::fabs(static_cast<double>(x));
  if (clamped) size = std::min(size, 65504.0);
  if (size >= 65520.0) return sign | 0x7C00;
  if (size == 0) return sign;
  const int exponent = std::max(-14, std::ilogb(size));
  // In units of the last place; may round up into the next binade, where the bits carry over.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  const int base = exponent == -14 ? 0 : (exponent + 14) << 10;
  return static_cast<uint16_t>(sign | (base + units));
}

inline float bfloat_value(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// --- weights, as the GGUF format defines them ----------------------------------------------------

// 32 weights of one row: weight k = scale[k / 16] * q[k] + minimum.
struct Block {
  int q[32];
  float scale[2];
  float minimum = 0.0f;
  bool has_minimum = false;
  bool has_two_scales = false;
};

// Bits 4.. of the 6-bit pair j that Q4_K and Q5_K pack into 12 bytes.
inline void k_scale(const uint8_t* packed, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *minimum = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) + 16 * (packed[j - 4] >> 6);
    *minimum = (packed[j + 4] >> 4) + 16 * (packed[j] >> 6);
  }
}

inline Block read_simple(Format format, const uint8_t* p) {
  Block out;
  out.scale[0] = out.scale[1] = half_value(read_u16(p));
  const uint8_t* at = p + 2;
  if (format == Format::kQ8_0) {
    for (int k = 0; k < 32; ++k) out.q[k] = static_cast<int8_t>(at[k]);
    return out;
  }
  out.has_minimum = format == Format::kQ4_1 || format == Format::kQ5_1;
  if (out.has_minimum) {
    out.minimum = half_value(read_u16(at));
    at += 2;
  }
  const bool five = format == Format::kQ5_0 || format == Format::kQ5_1;
  const uint8_t* high = at;
  if (five) at += 4;
  for (int k = 0; k < 32; ++k) {
    int q = k < 16 ? at[k] & 15 : at[k - 16] >> 4;
    if (five) q += 16 * ((high[k / 8] >> (k % 8)) & 1);
    if (!out.has_minimum) q -= five ? 16 : 8;
    out.q[k] = q;
  }
  return out;
}

inline Block read_q45_k(bool five, const uint8_t* p, int j) {
  Block out;
  int scale, minimum;
  k_scale(p + 4, j, &scale, &minimum);
  out.scale[0] = out.scale[1] = half_value(read_u16(p)) * static_cast<float>(scale);
  out.minimum = -(half_value(read_u16(p + 2)) * static_cast<float>(minimum));
  out.has_minimum = true;
  const uint8_t* low = p + (five ? 48 : 16);
  for (int k = 0; k < 32; ++k) {
    const uint8_t byte = low[32 * (j / 2) + k];
    out.q[k] = j % 2 == 0 ? byte & 15 : byte >> 4;
    if (five) out.q[k] += 16 * ((p[16 + k] >> j) & 1);
  }
  return out;
}

inline Block read_q6_k(const uint8_t* p, int j) {
  Block out;
  out.has_two_scales = true;
  const float d = half_value(read_u16(p + 208));
  for (int g = 0; g < 2; ++g) {
    out.scale[g] = d * static_cast<float>(static_cast<int8_t>(p[192 + 2 * j + g]));
  }
  for (int k = 0; k < 32; ++k) {
    const int quarter = j % 4;
    const uint8_t low = p[64 * (j / 4) + 32 * (quarter % 2) + k];
    const uint8_t high = p[128 + 32 * (j / 4) + k];
    out.q[k] = (quarter < 2 ? low & 15 : low >> 4) + 16 * ((high >> (2 * quarter)) & 3) - 32;
  }
  return out;
}

// Block b of 32 weights of a quantized row in the file's layout.
inline Block read_block(const FormatTraits& traits, const uint8_t* row, int b) {
  const int per_block = traits.file_block / 32;
  const uint8_t* p = row + static_cast<size_t>(b / per_block) * traits.file_bytes;
  switch (traits.format) {
    case Format::kQ4_K:
      return read_q45_k(false, p, b % 8);
    case Format::kQ5_K:
      return read_q45_k(true, p, b % 8);
    case Format::kQ6_K:
      return read_q6_k(p, b % 8);
    default:
      return read_simple(traits.format, p);
  }
}

inline float float_weight(Format format, const uint8_t* row, int k) {
  if (format == Format::kF16) return half_value(read_u16(row + 2 * static_cast<size_t>(k)));
  if (format == Format::kBF16) return bfloat_value(read_u16(row + 2 * static_cast<size_t>(k)));
  float f;
  std::memcpy(&f, row + 4 * static_cast<size_t>(k), 4);
  return f;
}

// Weights of one row as floats: product, then sum, each rounded.
inline std::vector<float> row_weights(const FormatTraits& traits, const uint8_t* row, int n) {
  std::vector<float> out(n);
  for (int k = 0; k < n; ++k) {
    if (traits.is_float) {
      out[k] = float_weight(traits.format, row, k);
      continue;
    }
    const Block block = read_block(traits, row, k / 32);
    out[k] = block.scale[k % 32 / 16] * static_cast<float>(block.q[k % 32]) + block.minimum;
  }
  return out;
}

// --- activations ---------------------------------------------------------------------------------

struct Quantized {
  int8_t q[32];
  float d;
  float scaled_sum;  // d * sum(q)
  int sum, first_sum;
};

inline Quantized quantize_block(const float* x) {
  Quantized out{};
  float amax = 0;
  for (int k = 0; k < 32; ++k) {
    amax = std::max(amax, std::fabs(x[k]));
    if (!std::isfinite(x[k])) {
      out.d = out.scaled_sum = std::nanf("");
      return out;
    }
  }
  const bool tiny = amax < kTinyAmax;
  out.d = tiny ? 0.0f : amax / 127.0f;
  const float inverse = tiny ? 0.0f : 127.0f / amax;
  for (int k = 0; k < 32; ++k) {
    const int q = static_cast<int>(std::nearbyint(x[k] * inverse));
    out.q[k] = static_cast<int8_t>(q);
    out.sum += q;
    if (k < 16) out.first_sum += q;
  }
  out.scaled_sum = out.d * static_cast<float>(out.sum);
  return out;
}

inline std::vector<Quantized> quantize(const float* x, int n) {
  std::vector<Quantized> out;
  for (int i = 0; i < n; i += 32) out.push_back(quantize_block(x + i));
  return out;
}

// A panel record as formats.hpp draws it, for `width` tokens of n inputs each.
inline std::vector<uint8_t> panel(const std::vector<std::vector<Quantized>>& tokens, int n) {
  const int width = static_cast<int>(tokens.size());
  std::vector<uint8_t> out(static_cast<size_t>(n / 32) * width * kPanelBytes);
  for (int b = 0; b < n / 32; ++b) {
    uint8_t* record = out.data() + static_cast<size_t>(b) * width * kPanelBytes;
    for (int t = 0; t < width; ++t) {
      const Quantized& x = tokens[t][b];
      const int32_t sum = -x.sum, first = -x.first_sum;
      std::memcpy(record + 32 * t, x.q, 32);
      std::memcpy(record + 32 * width + 4 * t, &x.d, 4);
      std::memcpy(record + 36 * width + 4 * t, &x.scaled_sum, 4);
      std::memcpy(record + 40 * width + 4 * t, &sum, 4);
      std::memcpy(record + 44 * width + 4 * t, &first, 4);
    }
  }
  return out;
}

// --- matrix products -----------------------------------------------------------------------------

inline int dot(const Block& w, const Quantized& x, int from, int to) {
  int sum = 0;
  for (int k = from; k < to; ++k) sum += w.q[k] * x.q[k];
  return sum;
}

// One output: a row of quantized weights times one token's quantized inputs.
inline float quantized_product(const FormatTraits& traits, const uint8_t* row,
                               const std::vector<Quantized>& inputs) {
  float acc = 0;
  for (size_t b = 0; b < inputs.size(); ++b) {
    const Block w = read_block(traits, row, static_cast<int>(b));
    const Quantized& x = inputs[b];
    if (w.has_two_scales) {
      acc = std::fma(w.scale[0] * x.d, static_cast<float>(dot(w, x, 0, 16)), acc);
      acc = std::fma(w.scale[1] * x.d, static_cast<float>(dot(w, x, 16, 32)), acc);
    } else {
      acc = std::fma(w.scale[0] * x.d, static_cast<float>(dot(w, x, 0, 32)), acc);
    }
    if (w.has_minimum) acc = std::fma(w.minimum, x.scaled_sum, acc);
  }
  return acc;
}

inline float float_product(const FormatTraits& traits, const uint8_t* row, const float* inputs,
                           int n) {
  float acc = 0;
  for (int k = 0; k < n; ++k) acc = std::fma(float_weight(traits.format, row, k), inputs[k], acc);
  return acc;
}

// --- 16-bit products -----------------------------------------------------------------------------

// A row of weights, or a token's inputs, as integers of one step.
struct Wide {
  std::vector<int> q;
  float step;
};

inline Wide widen(const float* x, int n, float most) {
  float amax = 0;
  for (int k = 0; k < n; ++k) {
    if (!std::isfinite(x[k])) return {std::vector<int>(n, 0), std::nanf("")};
    amax = std::max(amax, std::fabs(x[k]));
  }
  if (amax < kTinyAmax) return {std::vector<int>(n, 0), 0.0f};
  Wide out{{}, amax / most};
  const float inverse = most / amax;
  for (int k = 0; k < n; ++k) out.q.push_back(static_cast<int>(std::nearbyint(x[k] * inverse)));
  return out;
}

inline float wide_sum(const Wide& w, const Wide& x, float acc) {
  for (size_t from = 0; from < x.q.size(); from += kWideBlock) {
    int64_t sum = 0;
    for (size_t k = from; k < std::min(x.q.size(), from + kWideBlock); ++k) {
      sum += static_cast<int64_t>(w.q[k]) * x.q[k];
    }
    acc = acc + static_cast<float>(static_cast<int32_t>(sum));
  }
  return acc;
}

inline float wide_product(const Wide& w, const Wide& x, float bias) {
  return std::fma(wide_sum(w, x, 0.0f), w.step * x.step, bias);
}

// --- reductions and functions --------------------------------------------------------------------

// Sixteen partial results, added as a tree.
inline float tree_sum(const float lanes[16]) {
  float sum[16];
  std::copy(lanes, lanes + 16, sum);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] = sum[i] + sum[i + half];
  }
  return sum[0];
}

inline float sum(const std::vector<float>& x) {
  float lanes[16] = {};
  for (size_t i = 0; i < x.size(); ++i) lanes[i % 16] = lanes[i % 16] + x[i];
  return tree_sum(lanes);
}

inline float exp2(float x) {
  x = std::min(127.4f, std::max(-125.0f, x));
  const float n = std::nearbyint(x);
  const float f = x - n;
  float p = kExp2[6];
  for (int k = 5; k >= 0; --k) p = std::fma(p, f, kExp2[k]);
  return std::ldexp(p, static_cast<int>(n));
}

inline float softmax_weight(float x) { return x < kMinWeightLog2 ? 0.0f : exp2(x); }

inline std::vector<float> rms_norm(const float* x, const float* weight, float eps, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i % 16] = std::fma(x[i], x[i], lanes[i % 16]);
  const float mean = tree_sum(lanes) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  std::vector<float> out(n);
  for (int i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
  return out;
}

inline std::vector<float> layer_norm(const float* x, const float* weight, const float* bias,
                                     float eps, int n) {
  const float count = static_cast<float>(n);
  const float mean = sum(std::vector<float>(x, x + n)) / count;
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) {
    const float centred = x[i] - mean;
    lanes[i % 16] = std::fma(centred, centred, lanes[i % 16]);
  }
  const float inverse = 1.0f / std::sqrt(tree_sum(lanes) / count + eps);
  std::vector<float> out(n);
  for (int i = 0; i < n; ++i) out[i] = std::fma((x[i] - mean) * inverse, weight[i], bias[i]);
  return out;
}

inline float gelu(float x) {
  const float size = std::fabs(x);
  const float t = 1.0f / std::fma(size, kHalfErfcStep, 1.0f);
  float p = kHalfErfc[4];
  for (int k = 3; k >= 0; --k) p = std::fma(p, t, kHalfErfc[k]);
  const float tail = p * t * exp2(x * x * (-0.5f * kLog2E));
  return std::fma(-size, tail, 0.0f > x ? 0.0f : x);
}

inline std::vector<float> rotate(const float* x, int n, int rope_dim, const float* cosine,
                                 const float* sine, float scale) {
  std::vector<float> out(x, x + n);
  const int half = rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    out[i] = std::fma(x[i], cosine[i], -(x[half + i] * sine[i]));
    out[half + i] = std::fma(x[half + i], cosine[i], x[i] * sine[i]);
  }
  for (float& v : out) v = v * scale;
  return out;
}

inline float silu_multiply(float gate, float up) {
  return gate / (1.0f + exp2(gate * -kLog2E)) * up;
}

// --- attention -----------------------------------------------------------------------------------

// Keys and values of one sequence and KV head, as their 16-bit numbers say: [position][head_dim].
struct History {
  int head_dim;
  std::vector<float> keys, values;
};

// Weighted values, greatest score, sum of weights.
struct State {
  std::vector<float> values;
  float max, sum;
};

inline float score(const History& h, const float* query, int position) {
  float acc = 0;
  for (int d = 0; d < h.head_dim; ++d) {
    acc = std::fma(query[d], h.keys[static_cast<size_t>(position) * h.head_dim + d], acc);
  }
  return acc;
}

// One row over the keys [256 * partition, min(visible, 256 * (partition + 1))).
inline State attend_partition(const History& h, const float* query, int visible, int partition) {
  const int start = partition * kPartition, end = std::min(visible, start + kPartition);
  std::vector<float> weights;
  for (int p = start; p < end; ++p) weights.push_back(score(h, query, p));
  State out{std::vector<float>(h.head_dim, 0.0f), *std::max_element(weights.begin(), weights.end()),
            0.0f};
  for (float& w : weights) w = softmax_weight(w - out.max);
  out.sum = sum(weights);
  for (int d = 0; d < h.head_dim; ++d) {
    for (int p = start; p < end; ++p) {
      const float value = h.values[static_cast<size_t>(p) * h.head_dim + d];
      out.values[d] = std::fma(weights[p - start], value, out.values[d]);
    }
  }
  return out;
}

inline void merge(State& into, const State& from) {
  const float top = std::max(into.max, from.max);
  const float a = softmax_weight(into.max - top), b = softmax_weight(from.max - top);
  for (size_t d = 0; d < into.values.size(); ++d) {
    into.values[d] = std::fma(into.values[d], a, from.values[d] * b);
  }
  into.sum = std::fma(into.sum, a, from.sum * b);
  into.max = top;
}

inline State attend(const History& h, const float* query, int visible) {
  State state = attend_partition(h, query, visible, 0);
  for (int p = 1; p * kPartition < visible; ++p) {
    merge(state, attend_partition(h, query, visible, p));
  }
  return state;
}

inline std::vector<float> finish(const State& state) {
  const float inverse = 1.0f / state.sum;
  std::vector<float> out;
  for (const float v : state.values) out.push_back(v * inverse);
  return out;
}

// --- random numbers ------------------------------------------------------------------------------

// Philox 4x32-10 as its authors publish it: ten rounds, the key bumped between them.
inline void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t x[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t k[2] = {key[0], key[1]};
  for (int round = 0; round < 10; ++round) {
    if (round > 0) {
      k[0] += 0x9E3779B9u;
      k[1] += 0xBB67AE85u;
    }
    const uint64_t p0 = uint64_t{0xD2511F53u} * x[0], p1 = uint64_t{0xCD9E8D57u} * x[2];
    const uint32_t y[4] = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k[0], static_cast<uint32_t>(p1),
                           static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k[1],
                           static_cast<uint32_t>(p0)};
    std::copy(y, y + 4, x);
  }
  std::copy(x, x + 4, out);
}

}  // namespace headrace::definition
