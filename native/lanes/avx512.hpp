// Sixteen virtual lanes on AVX-512 (F, BW, VL, DQ, VNNI): one register.
// Included only by isa_avx512.cpp, inside an anonymous namespace.

constexpr int kWidestPanel = 16;
// Tokens whose sums run side by side: the weights fill the other registers.
constexpr int kTokensTogether = 1;
constexpr int kQueryRows = 12;

struct F {
  __m512 v;
};
struct I {
  __m512i v;
};

inline F zero() { return {_mm512_setzero_ps()}; }
inline F broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b, so the second operand wins when either is NaN.
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F negate(F a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
// `with` in the lanes where a < limit, `value` in the others.
inline F where_below(F a, float limit, F value, F with) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, _mm512_set1_ps(limit), _CMP_LT_OQ), value.v,
                               with.v)};
}
// The first n lanes of a, the others `rest`; n in [0, 16].
inline F first(F a, int n, float rest) {
  const __mmask16 keep = static_cast<__mmask16>((1u << n) - 1u);
  return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(rest), a.v)};
}
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F scale_exponent(F a, I n) {
  return {
      _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(n.v, 23)))};
}
inline F load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_half(uint16_t* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bfloat(const uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline F load_s8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_s8(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
inline I no_integers() { return {_mm512_setzero_si512()}; }
inline void store_s16(int16_t* p, I a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(a.v));
}
// Row r's sum += w[2r] * a[0] + w[2r + 1] * a[1]: two inputs of 16 rows. Exact.
inline I add_products(I sum, const int16_t* w, const int16_t* a) {
  int32_t both;
  __builtin_memcpy(&both, a, 4);
  return {_mm512_dpwssd_epi32(sum.v, _mm512_loadu_si512(w), _mm512_set1_epi32(both))};
}
inline int sum(I a) { return _mm512_reduce_add_epi32(a.v); }
// Bytes times words, exact where their sum is one of 32 bits; n is a multiple of 32.
inline int dot_bytes(const int8_t* w, const int16_t* a, int n) {
  __m512i sums = _mm512_setzero_si512();
  for (int j = 0; j < n; j += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + j));
    sums = _mm512_dpwssd_epi32(sums, _mm512_cvtepi8_epi16(bytes), _mm512_loadu_si512(a + j));
  }
  return _mm512_reduce_add_epi32(sums);
}
inline float sum(F a) {
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
inline float greatest(F a) { return _mm512_reduce_max_ps(a.v); }
// The greatest |a| or |b|, compared as bits: NaN counts as greater than infinity, in any lane.
inline float greatest_size(F a, F b) {
  const __m512i most =
      _mm512_max_epi32(_mm512_castps_si512(abs(a).v), _mm512_castps_si512(abs(b).v));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(most))));
}

// Sixteen rows by 32 inputs of weights as unsigned bytes: v[j] holds inputs 4j..4j+3 of each row.
struct Weights {
  __m512i v[8];
};

inline Weights load_nibbles(const uint8_t* p) {
  const __m512i low = _mm512_set1_epi8(0x0F);
  Weights w;
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    const __m512i packed = _mm512_loadu_si512(p + 64 * n);
    w.v[n] = _mm512_and_si512(packed, low);
    w.v[n + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
  }
  return w;
}

inline Weights load_bytes(const uint8_t* p) {
  Weights w;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) w.v[j] = _mm512_loadu_si512(p + 64 * j);
  return w;
}

// Inputs 0-15 from the low, 16-31 from the high nibbles, two more bits of each from `high`.
inline Weights load_six_bits(const uint8_t* p, const uint8_t* high) {
  const __m512i top = _mm512_set1_epi8(0x30);
  Weights w = load_nibbles(p);
#pragma GCC unroll 2
  for (int n = 0; n < 2; ++n) {
    const __m512i h = _mm512_loadu_si512(high + 64 * n);
    w.v[n] = _mm512_or_si512(w.v[n], _mm512_and_si512(_mm512_slli_epi16(h, 4), top));
    w.v[n + 2] = _mm512_or_si512(w.v[n + 2], _mm512_and_si512(_mm512_slli_epi16(h, 2), top));
    w.v[n + 4] = _mm512_or_si512(w.v[n + 4], _mm512_and_si512(h, top));
    w.v[n + 6] = _mm512_or_si512(w.v[n + 6], _mm512_and_si512(_mm512_srli_epi16(h, 2), top));
  }
  return w;
}

inline __m512i four_inputs(const int8_t* a) {
  int32_t word;
  __builtin_memcpy(&word, a, 4);
  return _mm512_set1_epi32(word);
}

// For each token the sum over inputs [4 * kFrom, 4 * kTo) of (weight - kZero) * input, a row a
// lane. `negative_sums` are minus the sums of those inputs. Exact.
template <int kZeroShift, int kMaxWeight, int kFrom, int kTo, int G>
inline void dots(const Weights& w, const int8_t* const (&inputs)[G],
                 const int32_t (&negative_sums)[G], I (&sums)[G]) {
#pragma GCC unroll 4
  for (int t = 0; t < G; ++t) {
    __m512i s = _mm512_setzero_si512();
    if constexpr (kZeroShift > 0) {
      s = _mm512_slli_epi32(_mm512_set1_epi32(negative_sums[t]), kZeroShift);
    }
#pragma GCC unroll 8
    for (int j = kFrom; j < kTo; ++j) {
      s = _mm512_dpbusd_epi32(s, w.v[j], four_inputs(inputs[t] + 4 * j));
    }
    sums[t].v = s;
  }
}
