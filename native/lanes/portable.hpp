// Sixteen virtual lanes in plain C++: the baseline of every platform.
// Included only by isa_portable.cpp, inside an anonymous namespace.

constexpr int kWidestPanel = 4;
// As in avx2.hpp.
constexpr int kTokensTogether = 1;
constexpr int kQueryRows = 3;

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};

// Correctly rounded a * b + c without an FMA instruction: the product of two floats is exact in
// double; the sum is rounded to odd there, so that the final rounding to float is the only one.
inline float fused(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  const double p = static_cast<double>(a) * b;
  const double s = p + c;
  const double t = s - p;
  const double error = (p - (s - t)) + (c - t);
  uint64_t bits;
  __builtin_memcpy(&bits, &s, 8);
  if (error != 0.0 && (bits & 1) == 0 && s - s == 0.0) {
    bits += (error > 0.0) == (s > 0.0) ? 1 : -1;
    double odd;
    __builtin_memcpy(&odd, &bits, 8);
    return static_cast<float>(odd);
  }
  return static_cast<float>(s);
#endif
}

#define HEADRACE_EACH(type, expression)               \
  type r;                                             \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r

inline F zero() { HEADRACE_EACH(F, 0.0f); }
inline F broadcast(float x) { HEADRACE_EACH(F, x); }
inline F load(const float* p) { HEADRACE_EACH(F, p[i]); }
inline void store(float* p, F a) { __builtin_memcpy(p, a.v, 64); }
inline F add(F a, F b) { HEADRACE_EACH(F, a.v[i] + b.v[i]); }
inline F sub(F a, F b) { HEADRACE_EACH(F, a.v[i] - b.v[i]); }
inline F mul(F a, F b) { HEADRACE_EACH(F, a.v[i] * b.v[i]); }
inline F div(F a, F b) { HEADRACE_EACH(F, a.v[i] / b.v[i]); }
inline F fma(F a, F b, F c) { HEADRACE_EACH(F, fused(a.v[i], b.v[i], c.v[i])); }
// a > b ? a : b, so the second operand wins when either is NaN.
inline F max(F a, F b) { HEADRACE_EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F min(F a, F b) { HEADRACE_EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F abs(F a) { HEADRACE_EACH(F, __builtin_fabsf(a.v[i])); }
inline F negate(F a) { HEADRACE_EACH(F, -a.v[i]); }
// `with` in the lanes where a < limit, `value` in the others.
inline F where_below(F a, float limit, F value, F with) {
  HEADRACE_EACH(F, a.v[i] < limit ? with.v[i] : value.v[i]);
}
// The first n lanes of a, the others `rest`; n in [0, 16].
inline F first(F a, int n, float rest) { HEADRACE_EACH(F, i < n ? a.v[i] : rest); }

// Nearest integer, ties to even, without libm: exact for |x| < 2^22, and what an overflowing
// conversion gives elsewhere.
inline int32_t nearest(float x) {
  if (!(x > -4194304.0f && x < 4194304.0f)) {
    return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(x) : INT32_MIN;
  }
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the mantissa's last bit is worth one
  const float shifted = x + kShift;
  return static_cast<int32_t>(shifted - kShift);
}
inline I to_int(F a) { HEADRACE_EACH(I, nearest(a.v[i])); }
inline F to_float(I a) { HEADRACE_EACH(F, static_cast<float>(a.v[i])); }
inline F scale_exponent(F a, I n) {
  F r;
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &a.v[i], 4);
    bits += static_cast<uint32_t>(n.v[i]) << 23;
    __builtin_memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
inline F load_half(const uint16_t* p) { HEADRACE_EACH(F, half_to_float(p[i])); }
inline void store_half(uint16_t* p, F a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}
inline float bfloat(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float r;
  __builtin_memcpy(&r, &bits, 4);
  return r;
}
inline F load_bfloat(const uint16_t* p) { HEADRACE_EACH(F, bfloat(p[i])); }
inline F load_u8(const uint8_t* p) { HEADRACE_EACH(F, static_cast<float>(p[i])); }
inline F load_s8(const int8_t* p) { HEADRACE_EACH(F, static_cast<float>(p[i])); }
inline void store_s8(int8_t* p, I a) {
  for (int i = 0; i < 16; ++i) {
    const int32_t x = a.v[i];
    p[i] = static_cast<int8_t>(x < -128 ? -128 : x > 127 ? 127 : x);
  }
}
inline I no_integers() { HEADRACE_EACH(I, 0); }
inline void store_s16(int16_t* p, I a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}
// As in avx512.hpp.
inline I add_products(I sum, const int16_t* w, const int16_t* a) {
  HEADRACE_EACH(I, sum.v[i] + w[2 * i] * a[0] + w[2 * i + 1] * a[1]);
}
inline int sum(I a) {
  int s = 0;
  for (int i = 0; i < 16; ++i) s += a.v[i];
  return s;
}
// As in avx512.hpp; one sum, as compilers know what to do with that.
inline int dot_bytes(const int8_t* w, const int16_t* a, int n) {
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += w[i] * a[i];
  return sum;
}
inline float sum(F a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
  }
  return a.v[0];
}
inline float greatest(F a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
// As in avx512.hpp.
inline float greatest_size(F a, F b) {
  int32_t most = 0;
  for (int i = 0; i < 16; ++i) {
    int32_t x, y;
    const float size_x = __builtin_fabsf(a.v[i]), size_y = __builtin_fabsf(b.v[i]);
    __builtin_memcpy(&x, &size_x, 4);
    __builtin_memcpy(&y, &size_y, 4);
    most = x > most ? x : most;
    most = y > most ? y : most;
  }
  float f;
  __builtin_memcpy(&f, &most, 4);
  return f;
}

// Sixteen rows by 32 inputs of weights as unsigned bytes, by input group as in avx512.hpp.
struct Weights {
  uint8_t v[512];
};

inline Weights load_nibbles(const uint8_t* p) {
  Weights w;
  for (int i = 0; i < 256; ++i) {
    w.v[i] = p[i] & 0x0F;
    w.v[256 + i] = p[i] >> 4;
  }
  return w;
}
inline Weights load_bytes(const uint8_t* p) {
  Weights w;
  __builtin_memcpy(w.v, p, 512);
  return w;
}
inline Weights load_six_bits(const uint8_t* p, const uint8_t* high) {
  Weights w = load_nibbles(p);
  for (int i = 0; i < 128; ++i) {
    w.v[i] |= (high[i] << 4) & 0x30;
    w.v[128 + i] |= (high[i] << 2) & 0x30;
    w.v[256 + i] |= high[i] & 0x30;
    w.v[384 + i] |= (high[i] >> 2) & 0x30;
  }
  return w;
}

template <int kZeroShift, int kMaxWeight, int kFrom, int kTo, int G>
inline void dots(const Weights& w, const int8_t* const (&inputs)[G],
                 const int32_t (&negative_sums)[G], I (&sums)[G]) {
  for (int t = 0; t < G; ++t) {
    const int8_t* a = inputs[t];
    I& s = sums[t];
    const int32_t start = kZeroShift > 0 ? negative_sums[t] * (1 << kZeroShift) : 0;
    for (int r = 0; r < 16; ++r) s.v[r] = start;
    for (int j = kFrom; j < kTo; ++j) {
      for (int r = 0; r < 16; ++r) {
        const uint8_t* u = w.v + 64 * j + 4 * r;
        s.v[r] += u[0] * a[4 * j] + u[1] * a[4 * j + 1] + u[2] * a[4 * j + 2] + u[3] * a[4 * j + 3];
      }
    }
  }
}

#undef HEADRACE_EACH
