// Matrix products by AMX: 16 rows times up to 16 tokens times 32 inputs in one instruction.
// Included only by isa_amx.cpp, after kernels/gemm.hpp, inside an anonymous namespace.
//
// The instruction sums integers and is exact, so the chain of numerics.hpp follows as it does in
// gemm.hpp, and a result is the same to the bit. A block goes through three stages: its weights are
// unpacked to bytes, the tile registers leave their sums in memory, and the sums are scaled and
// added up. The stages of one block lie some blocks apart: a tile register that is loaded before
// what was stored has reached the cache waits for it.

// Fewer tokens are quicker by gemm.hpp: tile registers cost the same, however few rows are used.
constexpr int kLeastTokens = 8;

constexpr int kUnpackAhead = 3, kSumAhead = 1;  // blocks
constexpr int kSlots = 4;                       // blocks under way at most
static_assert(kSumAhead < kUnpackAhead && kUnpackAhead < kSlots);

// The tile registers; intrinsics take constants alone.
#define HEADRACE_SUMS 0
#define HEADRACE_INPUTS 1
#define HEADRACE_WEIGHTS 2

// What LDTILECFG reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};
};

// The compiler does not know what tile registers read and write.
inline void order_memory() { asm volatile("" ::: "memory"); }

// Sums [token][row of weights], inputs [token][32 / kGroups], weights [input / 4][row][4].
template <int kGroups, int T>
inline void shape_tiles() {
  TileShapes shapes;
  shapes.num_rows[HEADRACE_SUMS] = T;
  shapes.row_bytes[HEADRACE_SUMS] = 64;
  shapes.num_rows[HEADRACE_INPUTS] = T;
  shapes.row_bytes[HEADRACE_INPUTS] = kBlock / kGroups;
  shapes.num_rows[HEADRACE_WEIGHTS] = kBlock / 4 / kGroups;
  shapes.row_bytes[HEADRACE_WEIGHTS] = 64;
  // Older compilers take it to read no more than a pointer's bytes, and leave out the rest.
  asm volatile("" ::"r"(&shapes) : "memory");
  _tile_loadconfig(&shapes);
  order_memory();
}

template <class Format, int T>
struct Slots {
  alignas(64) uint8_t weights[kSlots][512];
  alignas(64) int32_t sums[kSlots][Format::kGroups][T][kLanes];
};

template <class Format, int T>
inline void unpack_block(const uint8_t* tile, int b, Slots<Format, T>& slots) {
  const uint8_t* p = Format::at(tile, b);
#pragma GCC unroll 16
  for (int line = 0; line < Format::kAhead; line += 64) __builtin_prefetch(p + kPrefetch + line);
  if constexpr (!Format::kIsBytes) {
    const Weights w = Format::weights(p);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) _mm512_store_si512(slots.weights[b % kSlots] + 64 * j, w.v[j]);
  }
}

template <class Format, int T>
inline void sum_block(const uint8_t* tile, int b, const uint8_t* inputs, Slots<Format, T>& slots) {
  const uint8_t* weights = Format::kIsBytes ? Format::at(tile, b) : slots.weights[b % kSlots];
  order_memory();
#pragma GCC unroll 2
  for (int g = 0; g < Format::kGroups; ++g) {
    _tile_loadd(HEADRACE_WEIGHTS, weights + 512 / Format::kGroups * g, 64);
    _tile_loadd(HEADRACE_INPUTS, inputs + kBlock / Format::kGroups * g, kBlock);
    _tile_zero(HEADRACE_SUMS);
    _tile_dpbsud(HEADRACE_SUMS, HEADRACE_INPUTS, HEADRACE_WEIGHTS);
    _tile_stored(HEADRACE_SUMS, slots.sums[b % kSlots][g], 64);
  }
  order_memory();
}

template <class Format, int T>
inline void scale_block(const uint8_t* tile, int b, Column<T> x, const Slots<Format, T>& slots,
                        F (&acc)[T]) {
  const uint8_t* p = Format::at(tile, b);
  const uint8_t* factors = Format::factors(tile, b);
  F minimum = zero();
  if constexpr (Format::kHasMinimum) minimum = Format::minimum(p, factors);
#pragma GCC unroll 2
  for (int g = 0; g < Format::kGroups; ++g) {
    const F scale = Format::scale(p, factors, g);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      __m512i sum = _mm512_load_si512(slots.sums[b % kSlots][g][t]);
      if constexpr (Format::kZeroShift > 0) {
        const int32_t minus =
            x.negative_sum(t, 8 / Format::kGroups * g, 8 / Format::kGroups * (g + 1));
        sum =
            _mm512_add_epi32(sum, _mm512_slli_epi32(_mm512_set1_epi32(minus), Format::kZeroShift));
      }
      acc[t] = fma(mul(scale, broadcast(x.scale(t))), to_float({sum}), acc[t]);
      if constexpr (Format::kHasMinimum) acc[t] = fma(minimum, broadcast(x.sum(t)), acc[t]);
    }
  }
}

template <class Format, int T>
void amx_gemm(const uint8_t* tiles, size_t tile_bytes, int num_tiles, int num_inputs,
              const void* panel, float* out, size_t out_stride) {
  const int num_blocks = num_inputs / kBlock;
  const auto inputs = [panel](int b) {
    return static_cast<const uint8_t*>(panel) + static_cast<size_t>(b) * (T * kPanelBytes);
  };
  Slots<Format, T> slots;
  shape_tiles<Format::kGroups, T>();
  for (int i = 0; i < num_tiles; ++i) {
    const uint8_t* tile = tiles + i * tile_bytes;
    F acc[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = zero();
    for (int b = -kUnpackAhead; b < num_blocks; ++b) {
      const int next = b + kSumAhead, last = b + kUnpackAhead;
      if (last < num_blocks) unpack_block<Format, T>(tile, last, slots);
      if (next >= 0 && next < num_blocks) sum_block<Format, T>(tile, next, inputs(next), slots);
      if (b >= 0) scale_block<Format, T>(tile, b, {inputs(b)}, slots, acc);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store(out + t * out_stride + 16 * i, acc[t]);
  }
  // Else every switch of threads would save the registers.
  _tile_release();
}

template <class Format, int T>
constexpr Gemm amx_or_none() {
  if constexpr (T >= kLeastTokens) return amx_gemm<Format, T>;
  return nullptr;
}

template <class Format, int... I>
constexpr ByWidth<Gemm> amx_gemms(std::integer_sequence<int, I...>) {
  return {{amx_or_none<Format, I + 1>()...}};
}
