// Matrix products: tiles of 16 rows against panels of up to 16 tokens. Included by isa_*.cpp.
//
// The accumulators of a panel stay in registers while one tile's inputs pass by; each block's
// weights are unpacked once for all tokens. A result is the chain that numerics.hpp defines,
// whatever the panel's width.

// Weights are fetched this many bytes ahead, across tiles: from DRAM one core reads twice as fast.
constexpr int kPrefetch = 5120;

template <int kNibbles, int kZero, int kMax, bool kMinimum>
struct BlockFormat {
  static constexpr int kZeroShift = kZero, kMaxWeight = kMax, kGroups = 1;
  static constexpr bool kHasMinimum = kMinimum, kIsBytes = !kNibbles;
  static constexpr int kQuants = kNibbles ? 256 : 512;
  static constexpr int kRecord = kQuants + (kMinimum ? 64 : 32);
  static constexpr int kAhead = kRecord;

  static const uint8_t* at(const uint8_t* tile, int b) {
    return tile + static_cast<size_t>(b) * kRecord;
  }
  static Weights weights(const uint8_t* p) {
    if constexpr (kNibbles) {
      return load_nibbles(p);
    } else {
      return load_bytes(p);
    }
  }
  static F scale(const uint8_t* p, const uint8_t*, int) {
    return load_half(reinterpret_cast<const uint16_t*>(p + kQuants));
  }
  static F minimum(const uint8_t* p, const uint8_t*) {
    return load_half(reinterpret_cast<const uint16_t*>(p + kQuants + 32));
  }
  static const uint8_t* factors(const uint8_t*, int) { return nullptr; }
};

// Q4_K and Q5_K: weight = (d * scale) * q - dmin * min; both products are exact in float.
template <int kNibbles, int kMax>
struct SuperFormat {
  static constexpr int kZeroShift = 0, kMaxWeight = kMax, kGroups = 1;
  static constexpr bool kHasMinimum = true, kIsBytes = !kNibbles;
  static constexpr int kQuants = kNibbles ? 256 : 512;
  static constexpr int kBlockBytes = kQuants + 32;
  static constexpr int kRecord = 8 * kBlockBytes + 64;
  static constexpr int kAhead = kBlockBytes;

  static const uint8_t* at(const uint8_t* tile, int b) {
    return tile + static_cast<size_t>(b >> 3) * kRecord + (b & 7) * kBlockBytes;
  }
  static Weights weights(const uint8_t* p) {
    if constexpr (kNibbles) {
      return load_nibbles(p);
    } else {
      return load_bytes(p);
    }
  }
  static const uint8_t* factors(const uint8_t* tile, int b) {
    return tile + static_cast<size_t>(b >> 3) * kRecord + 8 * kBlockBytes;
  }
  static F scale(const uint8_t* p, const uint8_t* factors, int) {
    return mul(load_half(reinterpret_cast<const uint16_t*>(factors)), load_u8(p + kQuants));
  }
  static F minimum(const uint8_t* p, const uint8_t* factors) {
    return negate(
        mul(load_half(reinterpret_cast<const uint16_t*>(factors + 32)), load_u8(p + kQuants + 16)));
  }
};

// Q6_K: weight = (d * scale) * (q - 32), a scale per 16 inputs.
struct SixBitFormat {
  static constexpr int kZeroShift = 5, kMaxWeight = 63, kGroups = 2;
  static constexpr bool kHasMinimum = false, kIsBytes = false;
  static constexpr int kRecord = 8 * kBlockQ6K + 32;
  static constexpr int kAhead = kBlockQ6K;

  static const uint8_t* at(const uint8_t* tile, int b) {
    return tile + static_cast<size_t>(b >> 3) * kRecord + (b & 7) * kBlockQ6K;
  }
  static Weights weights(const uint8_t* p) { return load_six_bits(p, p + 256); }
  static const uint8_t* factors(const uint8_t* tile, int b) {
    return tile + static_cast<size_t>(b >> 3) * kRecord + 8 * kBlockQ6K;
  }
  static F scale(const uint8_t* p, const uint8_t* factors, int group) {
    return mul(load_half(reinterpret_cast<const uint16_t*>(factors)),
               load_s8(reinterpret_cast<const int8_t*>(p + 384 + 16 * group)));
  }
  static F minimum(const uint8_t*, const uint8_t*) { return zero(); }
};

// For making a kernel of every width.
constexpr std::make_integer_sequence<int, kWidestPanel> kWidths;

// One token's part of a panel record.
template <int T>
struct Column {
  const uint8_t* record;
  const int8_t* quants(int t) const { return reinterpret_cast<const int8_t*>(record) + 32 * t; }
  float scale(int t) const { return number<float>(32 * T + 4 * t); }
  float sum(int t) const { return number<float>(36 * T + 4 * t); }
  int32_t negative_sum(int t) const { return number<int32_t>(40 * T + 4 * t); }
  int32_t negative_first(int t) const { return number<int32_t>(44 * T + 4 * t); }
  // Minus the sum of inputs [4 * from, 4 * to): a half of the block, or all of it.
  int32_t negative_sum(int t, int from, int to) const {
    if (from > 0) return negative_sum(t) - negative_first(t);
    return to < 8 ? negative_first(t) : negative_sum(t);
  }

 private:
  template <class Number>
  Number number(int offset) const {
    Number n;
    __builtin_memcpy(&n, record + offset, 4);
    return n;
  }
};

// Adds inputs [4 * kFrom, 4 * kTo) of one block for the tokens [t, t + G).
template <class Format, int kFrom, int kTo, int G, int T>
inline void add_dots(const Weights& w, F scale, const Column<T>& x, int t, F (&acc)[T]) {
  const int8_t* inputs[G];
  int32_t negative_sums[G];
  I sums[G];
#pragma GCC unroll 4
  for (int i = 0; i < G; ++i) {
    inputs[i] = x.quants(t + i);
    negative_sums[i] = x.negative_sum(t + i, kFrom, kTo);
  }
  dots<Format::kZeroShift, Format::kMaxWeight, kFrom, kTo>(w, inputs, negative_sums, sums);
#pragma GCC unroll 4
  for (int i = 0; i < G; ++i) {
    acc[t + i] = fma(mul(scale, broadcast(x.scale(t + i))), to_float(sums[i]), acc[t + i]);
  }
}

template <class Format, int T>
inline void accumulate(const uint8_t* tile, int b, Column<T> x, F (&acc)[T]) {
  const uint8_t* p = Format::at(tile, b);
  const uint8_t* factors = Format::factors(tile, b);
#pragma GCC unroll 16
  for (int line = 0; line < Format::kAhead; line += 64) __builtin_prefetch(p + kPrefetch + line);
  const Weights w = Format::weights(p);
  const F scale = Format::scale(p, factors, 0);
  constexpr int G = T < kTokensTogether ? T : kTokensTogether;
  static_assert(T % G == 0);
  if constexpr (Format::kGroups == 2) {
    const F second = Format::scale(p, factors, 1);
#pragma GCC unroll 16
    for (int t = 0; t < T; t += G) {
      add_dots<Format, 0, 4, G>(w, scale, x, t, acc);
      add_dots<Format, 4, 8, G>(w, second, x, t, acc);
    }
  } else {
    F minimum = zero();
    if constexpr (Format::kHasMinimum) minimum = Format::minimum(p, factors);
#pragma GCC unroll 16
    for (int t = 0; t < T; t += G) {
      add_dots<Format, 0, 8, G>(w, scale, x, t, acc);
      if constexpr (Format::kHasMinimum) {
#pragma GCC unroll 4
        for (int i = t; i < t + G; ++i) acc[i] = fma(minimum, broadcast(x.sum(i)), acc[i]);
      }
    }
  }
}

template <class Format, int T>
inline void quantized_tile(const uint8_t* tile, int num_blocks, const uint8_t* panel, float* out,
                           size_t out_stride) {
  F acc[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) acc[t] = zero();
  for (int b = 0; b < num_blocks; ++b) {
    const Column<T> x{panel + static_cast<size_t>(b) * (T * kPanelBytes)};
    accumulate<Format, T>(tile, b, x, acc);
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store(out + t * out_stride, acc[t]);
}

// One tile after another: with few tokens the memory's speed decides, and a single stream is what
// hardware prefetches best (two or four tiles side by side read half as fast).
template <class Format, int T>
void quantized_gemm(const uint8_t* tiles, size_t tile_bytes, int num_tiles, int num_inputs,
                    const void* panel, float* out, size_t out_stride) {
  const int num_blocks = num_inputs / kBlock;
  const auto* x = static_cast<const uint8_t*>(panel);
  for (int i = 0; i < num_tiles; ++i) {
    quantized_tile<Format, T>(tiles + i * tile_bytes, num_blocks, x, out + 16 * i, out_stride);
  }
}

struct Float32 {
  static constexpr int kBytes = 64;
  static F row(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct Float16 {
  static constexpr int kBytes = 32;
  static F row(const uint8_t* p) { return load_half(reinterpret_cast<const uint16_t*>(p)); }
};
struct BFloat16 {
  static constexpr int kBytes = 32;
  static F row(const uint8_t* p) { return load_bfloat(reinterpret_cast<const uint16_t*>(p)); }
};

// R tiles side by side hide the latency of one chain when there are few tokens.
template <class Format, int R, int T>
inline void float_tiles(const uint8_t* tiles, size_t tile_bytes, int num_inputs, const float* panel,
                        float* out, size_t out_stride) {
  F acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = zero();
  }
  for (int k = 0; k < num_inputs; ++k) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F w = Format::row(tiles + r * tile_bytes + static_cast<size_t>(k) * Format::kBytes);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[r][t] = fma(w, broadcast(panel[k * T + t]), acc[r][t]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store(out + t * out_stride + 16 * r, acc[r][t]);
  }
}

template <class Format, int T>
void float_gemm(const uint8_t* tiles, size_t tile_bytes, int num_tiles, int num_inputs,
                const void* panel, float* out, size_t out_stride) {
  constexpr int R = T <= 2 ? 4 : 1;
  const auto* x = static_cast<const float*>(panel);
  int i = 0;
  for (; i + R <= num_tiles; i += R) {
    float_tiles<Format, R, T>(tiles + i * tile_bytes, tile_bytes, num_inputs, x, out + 16 * i,
                              out_stride);
  }
  for (; i < num_tiles; ++i) {
    float_tiles<Format, 1, T>(tiles + i * tile_bytes, tile_bytes, num_inputs, x, out + 16 * i,
                              out_stride);
  }
}

using Q4_0 = BlockFormat<1, 3, 15, false>;
using Q4_1 = BlockFormat<1, 0, 15, true>;
using Q5_0 = BlockFormat<0, 4, 31, false>;
using Q5_1 = BlockFormat<0, 0, 31, true>;
using Q8_0 = BlockFormat<0, 7, 255, false>;
using Q4_K = SuperFormat<1, 15>;
using Q5_K = SuperFormat<0, 31>;
