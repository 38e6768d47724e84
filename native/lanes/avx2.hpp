// Sixteen virtual lanes on AVX2 + FMA + F16C: two registers.
// Included only by isa_avx2.cpp, inside an anonymous namespace.

constexpr int kWidestPanel = 4;
// Tokens whose sums run side by side; see dots().
constexpr int kTokensTogether = 4;
constexpr int kQueryRows = 3;

struct F {
  __m256 lo, hi;
};
struct I {
  __m256i lo, hi;
};

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// a > b ? a : b, so the second operand wins when either is NaN.
inline F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F abs(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F negate(F a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
// `with` in the lanes where a < limit, `value` in the others.
inline F where_below(F a, float limit, F value, F with) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_blendv_ps(value.lo, with.lo, _mm256_cmp_ps(a.lo, l, _CMP_LT_OQ)),
          _mm256_blendv_ps(value.hi, with.hi, _mm256_cmp_ps(a.hi, l, _CMP_LT_OQ))};
}
// The first n lanes of a, the others `rest`; n in [0, 16].
inline F first(F a, int n, float rest) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i keep_lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), index);
  const __m256i keep_hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), index);
  const __m256 other = _mm256_set1_ps(rest);
  return {_mm256_blendv_ps(other, a.lo, _mm256_castsi256_ps(keep_lo)),
          _mm256_blendv_ps(other, a.hi, _mm256_castsi256_ps(keep_hi))};
}
inline I to_int(F a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline F scale_exponent(F a, I n) {
  return {
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lo), _mm256_slli_epi32(n.lo, 23))),
      _mm256_castsi256_ps(
          _mm256_add_epi32(_mm256_castps_si256(a.hi), _mm256_slli_epi32(n.hi, 23)))};
}
inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_half(uint16_t* p, F a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                   _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 bfloats(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F load_bfloat(const uint16_t* p) { return {bfloats(p), bfloats(p + 8)}; }
inline __m128i eight_bytes(const void* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
inline F load_u8(const uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight_bytes(p + 8)))};
}
inline F load_s8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(p))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_bytes(p + 8)))};
}
inline void store_s8(int8_t* p, I a) {
  const __m256i words = _mm256_packs_epi32(a.lo, a.hi);  // 0-3, 8-11 | 4-7, 12-15
  const __m256i order = _mm256_permute4x64_epi64(words, 0xD8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(order), _mm256_extracti128_si256(order, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline I no_integers() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline void store_s16(int16_t* p, I a) {
  const __m256i words = _mm256_packs_epi32(a.lo, a.hi);  // 0-3, 8-11 | 4-7, 12-15
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xD8));
}
// As in avx512.hpp.
inline I add_products(I sum, const int16_t* w, const int16_t* a) {
  int32_t both;
  __builtin_memcpy(&both, a, 4);
  const __m256i x = _mm256_set1_epi32(both);
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 16));
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(lo, x)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(hi, x))};
}
inline int sum(I a) {
  const __m256i x = _mm256_add_epi32(a.lo, a.hi);
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1));
  return _mm_cvtsi128_si32(y);
}
inline __m256i byte_products(const int8_t* w, const int16_t* a) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
  return _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
}
// As in avx512.hpp.
inline int dot_bytes(const int8_t* w, const int16_t* a, int n) {
  I sums = no_integers();
  for (int j = 0; j < n; j += 32) {
    sums.lo = _mm256_add_epi32(sums.lo, byte_products(w + j, a + j));
    sums.hi = _mm256_add_epi32(sums.hi, byte_products(w + j + 16, a + j + 16));
  }
  return sum(sums);
}
inline float sum(F a) {
  const __m256 x = _mm256_add_ps(a.lo, a.hi);
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
inline float greatest(F a) {
  const __m256 x = _mm256_max_ps(a.lo, a.hi);
  const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_shuffle_ps(z, z, 1)));
}
// As in avx512.hpp.
inline float greatest_size(F a, F b) {
  const F x = abs(a), y = abs(b);
  const __m256i lo = _mm256_max_epi32(_mm256_castps_si256(x.lo), _mm256_castps_si256(y.lo));
  const __m256i hi = _mm256_max_epi32(_mm256_castps_si256(x.hi), _mm256_castps_si256(y.hi));
  const __m256i both = _mm256_max_epi32(lo, hi);
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

// Sixteen rows by 32 inputs of weights as unsigned bytes, unpacked once into the first-level cache:
// bytes [64 j, 64 j + 64) hold inputs 4j..4j+3 of each row.
struct Weights {
  alignas(64) uint8_t v[512];
};

inline __m256i bytes_at(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void put(uint8_t* p, __m256i a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), a); }

inline Weights load_nibbles(const uint8_t* p) {
  const __m256i low = _mm256_set1_epi8(0x0F);
  Weights w;
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {
    const __m256i packed = bytes_at(p + 32 * n);
    put(w.v + 32 * n, _mm256_and_si256(packed, low));
    put(w.v + 256 + 32 * n, _mm256_and_si256(_mm256_srli_epi16(packed, 4), low));
  }
  return w;
}

inline Weights load_bytes(const uint8_t* p) {
  Weights w;
#pragma GCC unroll 16
  for (int n = 0; n < 16; ++n) put(w.v + 32 * n, bytes_at(p + 32 * n));
  return w;
}

inline Weights load_six_bits(const uint8_t* p, const uint8_t* high) {
  const __m256i top = _mm256_set1_epi8(0x30);
  Weights w = load_nibbles(p);
  const auto join = [&](uint8_t* at, __m256i bits) {
    put(at, _mm256_or_si256(bytes_at(at), _mm256_and_si256(bits, top)));
  };
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    const __m256i h = bytes_at(high + 32 * n);
    join(w.v + 32 * n, _mm256_slli_epi16(h, 4));
    join(w.v + 128 + 32 * n, _mm256_slli_epi16(h, 2));
    join(w.v + 256 + 32 * n, h);
    join(w.v + 384 + 32 * n, _mm256_srli_epi16(h, 2));
  }
  return w;
}

inline __m256i four_inputs(const int8_t* a) {
  int32_t word;
  __builtin_memcpy(&word, a, 4);
  return _mm256_set1_epi32(word);
}

// As in avx512.hpp. maddubs adds two products in 16 bits, which saturates on u8 * s8, so weights
// up to 127 are used as they are, with as many 16-bit sums as provably fit, and 8-bit weights
// take their sign from the activation side. Tokens take turns at each weight: a weight that is in
// a register serves all of them, and no sum waits for its own last addition.
template <int kZeroShift, int kMaxWeight, int kFrom, int kTo, int G>
inline void dots(const Weights& w, const int8_t* const (&inputs)[G],
                 const int32_t (&negative_sums)[G], I (&sums)[G]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int t = 0; t < G; ++t) {
    sums[t].lo = _mm256_setzero_si256();
    if constexpr (kZeroShift > 0 && kMaxWeight <= 127) {
      sums[t].lo = _mm256_set1_epi32(negative_sums[t] << kZeroShift);
    }
    sums[t].hi = sums[t].lo;
  }
  if constexpr (kMaxWeight > 127) {
    static_assert(kZeroShift == 7);
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
#pragma GCC unroll 8
    for (int j = kFrom; j < kTo; ++j) {
      const __m256i w0 = _mm256_xor_si256(bytes_at(w.v + 64 * j), flip);
      const __m256i w1 = _mm256_xor_si256(bytes_at(w.v + 64 * j + 32), flip);
      const __m256i size0 = _mm256_abs_epi8(w0), size1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 4
      for (int t = 0; t < G; ++t) {
        const __m256i a = four_inputs(inputs[t] + 4 * j);
        const __m256i p0 = _mm256_maddubs_epi16(size0, _mm256_sign_epi8(a, w0));
        const __m256i p1 = _mm256_maddubs_epi16(size1, _mm256_sign_epi8(a, w1));
        sums[t].lo = _mm256_add_epi32(sums[t].lo, _mm256_madd_epi16(p0, ones));
        sums[t].hi = _mm256_add_epi32(sums[t].hi, _mm256_madd_epi16(p1, ones));
      }
    }
  } else {
    constexpr int kAtMost = 32767 / (2 * 127 * kMaxWeight);
    constexpr int kFit = kAtMost < kTo - kFrom ? kAtMost : kTo - kFrom;
    static_assert(kFit >= 2);
#pragma GCC unroll 8
    for (int from = kFrom; from < kTo; from += kFit) {
      __m256i p0[G], p1[G];
#pragma GCC unroll 8
      for (int n = 0; n < kFit; ++n) {
        const int j = from + n;
        if (j >= kTo) break;
        const __m256i w0 = bytes_at(w.v + 64 * j), w1 = bytes_at(w.v + 64 * j + 32);
#pragma GCC unroll 4
        for (int t = 0; t < G; ++t) {
          const __m256i a = four_inputs(inputs[t] + 4 * j);
          const __m256i q0 = _mm256_maddubs_epi16(w0, a), q1 = _mm256_maddubs_epi16(w1, a);
          p0[t] = n == 0 ? q0 : _mm256_add_epi16(p0[t], q0);
          p1[t] = n == 0 ? q1 : _mm256_add_epi16(p1[t], q1);
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < G; ++t) {
        sums[t].lo = _mm256_add_epi32(sums[t].lo, _mm256_madd_epi16(p0[t], ones));
        sums[t].hi = _mm256_add_epi32(sums[t].hi, _mm256_madd_epi16(p1[t], ones));
      }
    }
  }
}
