// Products of 16-bit integers: a tile of 16 rows against a panel of tokens. Included by isa_*.cpp.
//
// Weights lie as [pair of inputs][16 rows][2], activations as [pair of inputs][token][2], so that
// one instruction multiplies two inputs of a lane's row and adds them up.

// Weights between what is multiplied and what is fetched: 8 KB.
constexpr int kAhead = 4096;

// A token's inputs as integers, in column `lane` of a panel; returns their step.
float widen(const float* x, int n, int16_t* panel, int width, int lane) {
  float amax = 0.0f;
  for (int i = 0; i < n; i += kBlock) {
    const float size = greatest_size(load(x + i), load(x + i + 16));
    // Once not a number, always not a number.
    amax = size <= amax ? amax : amax == amax ? size : amax;
  }
  const bool is_number = amax < __builtin_inff(), is_tiny = amax < kTinyAmax;
  const F inverse = broadcast(!is_number || is_tiny ? 0.0f : kWideInput / amax);
  int16_t quants[kBlock];
  for (int i = 0; i < n; i += kBlock) {
    if (is_number) {
      store_s16(quants, to_int(mul(load(x + i), inverse)));
      store_s16(quants + 16, to_int(mul(load(x + i + 16), inverse)));
    } else {
      __builtin_memset(quants, 0, sizeof quants);
    }
    int16_t* out = panel + static_cast<size_t>(i) * width + 2 * lane;
    for (int k = 0; k < kBlock; k += 2) __builtin_memcpy(out + k * width, quants + k, 4);
  }
  return !is_number ? __builtin_nanf("") : is_tiny ? 0.0f : amax / kWideInput;
}

// acc[16 t + lane] += the products of inputs [0, num_inputs), a whole number of blocks or the last.
// A few tokens' time is that of reading the weights, so what comes next is fetched meanwhile.
template <int T>
void wide_gemm(const int16_t* tile, const int16_t* panel, int num_inputs, float* acc) {
  for (int from = 0; from < num_inputs; from += kWideBlock) {
    const int rest = num_inputs - from, pairs = (rest < kWideBlock ? rest : kWideBlock) / 2;
    I sums[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sums[t] = no_integers();
    for (int j = 0; j < pairs; ++j) {
      __builtin_prefetch(tile + 2 * kLanes * j + kAhead);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        sums[t] = add_products(sums[t], tile + 2 * kLanes * j, panel + 2 * (T * j + t));
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      store(acc + kLanes * t, add(load(acc + kLanes * t), to_float(sums[t])));
    }
    tile += kLanes * kWideBlock;
    panel += T * kWideBlock;
  }
}

void wide_finish(const float* acc, const float* steps, float step, const float* bias, float* out) {
  store(out, fma(load(acc), mul(load(steps), broadcast(step)), load(bias)));
}
