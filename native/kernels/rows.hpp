// Work on single rows: norms, quantization, rotation, activation, sampling. Included by isa_*.cpp.

// 2^x for x in [-125, 127.4]; outside it is clamped. Relative error below 2^-23; NaN stays NaN.
inline F exp2(F x) {
  x = min(broadcast(127.4f), max(broadcast(-125.0f), x));
  const I n = to_int(x);
  const F f = sub(x, to_float(n));
  F p = broadcast(kExp2[6]);
#pragma GCC unroll 6
  for (int k = 5; k >= 0; --k) p = fma(p, f, broadcast(kExp2[k]));
  return scale_exponent(p, n);
}

// 2^x for x <= 0, exactly zero below kMinWeightLog2.
inline F softmax_weight(F x) { return where_below(x, kMinWeightLog2, exp2(x), zero()); }

// Calls body(i, n) for chunks of 16 and the rest, n being the number of elements.
template <class Body>
inline void chunks(int n, Body body) {
  int i = 0;
  for (; i + 16 <= n; i += 16) body(i, 16);
  if (i < n) body(i, n - i);
}

inline F load_part(const float* p, int n, float rest) {
  if (n == 16) return load(p);
  float part[16];
  for (int i = 0; i < 16; ++i) part[i] = i < n ? p[i] : rest;
  return load(part);
}

inline void store_part(float* p, F x, int n) {
  if (n == 16) return store(p, x);
  float part[16];
  store(part, x);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
  F squares = zero();
  chunks(n, [&](int i, int m) {
    const F v = load_part(x + i, m, 0.0f);
    squares = fma(v, v, squares);
  });
  const float mean = sum(squares) / static_cast<float>(n);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  chunks(n, [&](int i, int m) {
    const F scaled = mul(load_part(x + i, m, 0.0f), broadcast(inverse));
    store_part(out + i, mul(scaled, load_part(weight + i, m, 0.0f)), m);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n,
                float* out) {
  const float count = static_cast<float>(n);
  F total = zero();
  chunks(n, [&](int i, int m) { total = add(total, load_part(x + i, m, 0.0f)); });
  const F mean = broadcast(sum(total) / count);
  F squares = zero();
  chunks(n, [&](int i, int m) {
    const F centred = first(sub(load_part(x + i, m, 0.0f), mean), m, 0.0f);
    squares = fma(centred, centred, squares);
  });
  const F inverse = broadcast(1.0f / __builtin_sqrtf(sum(squares) / count + eps));
  chunks(n, [&](int i, int m) {
    const F scaled = mul(sub(load_part(x + i, m, 0.0f), mean), inverse);
    store_part(out + i, fma(scaled, load_part(weight + i, m, 0.0f), load_part(bias + i, m, 0.0f)),
               m);
  });
}

// A block with a number that is none: its step is none, so that no product of it is a number.
inline void put_not_a_number(uint8_t* record, int width, int lane) {
  const float nan = __builtin_nanf("");
  __builtin_memset(record + 32 * lane, 0, 32);
  __builtin_memcpy(record + 32 * width + 4 * lane, &nan, 4);
  __builtin_memcpy(record + 36 * width + 4 * lane, &nan, 4);
  __builtin_memset(record + 40 * width + 4 * lane, 0, 4);
  __builtin_memset(record + 44 * width + 4 * lane, 0, 4);
}

void quantize(const float* x, int n, void* panel, int width, int lane) {
  auto* record = static_cast<uint8_t*>(panel);
  for (int i = 0; i < n; i += kBlock, record += width * kPanelBytes) {
    const F a = load(x + i), b = load(x + i + 16);
    const float amax = greatest_size(a, b);
    if (!(amax < __builtin_inff())) {
      put_not_a_number(record, width, lane);
      continue;
    }
    const bool tiny = amax < kTinyAmax;
    const float d = tiny ? 0.0f : amax / 127.0f;
    const F inverse = broadcast(tiny ? 0.0f : 127.0f / amax);
    const I qa = to_int(mul(a, inverse)), qb = to_int(mul(b, inverse));
    store_s8(reinterpret_cast<int8_t*>(record + 32 * lane), qa);
    store_s8(reinterpret_cast<int8_t*>(record + 32 * lane + 16), qb);
    const int32_t first = sum(qa);
    const int32_t total = first + sum(qb);
    const float scaled = d * static_cast<float>(total);
    const int32_t negative[2] = {-total, -first};
    __builtin_memcpy(record + 32 * width + 4 * lane, &d, 4);
    __builtin_memcpy(record + 36 * width + 4 * lane, &scaled, 4);
    __builtin_memcpy(record + 40 * width + 4 * lane, &negative[0], 4);
    __builtin_memcpy(record + 44 * width + 4 * lane, &negative[1], 4);
  }
}

void spread(const float* x, int n, float* panel, int width, int lane) {
  for (int i = 0; i < n; ++i) panel[static_cast<size_t>(i) * width + lane] = x[i];
}

void rotate(float* x, int n, int rope_dim, const float* cosine, const float* sine, float scale) {
  const int half = rope_dim / 2;
  chunks(half, [&](int i, int m) {
    const F a = load_part(x + i, m, 0.0f), b = load_part(x + half + i, m, 0.0f);
    const F c = load_part(cosine + i, m, 0.0f), s = load_part(sine + i, m, 0.0f);
    store_part(x + i, fma(a, c, negate(mul(b, s))), m);
    store_part(x + half + i, fma(b, c, mul(a, s)), m);
  });
  if (scale == 1.0f) return;
  chunks(n, [&](int i, int m) {
    store_part(x + i, mul(load_part(x + i, m, 0.0f), broadcast(scale)), m);
  });
}

void to_half(const float* x, int n, uint16_t* out) {
  const F limit = broadcast(kMaxHalf);
  chunks(n, [&](int i, int m) {
    uint16_t part[16];
    store_half(part, max(negate(limit), min(limit, load_part(x + i, m, 0.0f))));
    for (int j = 0; j < m; ++j) out[i + j] = part[j];
  });
}

void from_half(const uint16_t* x, int n, float* out) {
  chunks(n, [&](int i, int m) {
    uint16_t part[16];
    for (int j = 0; j < 16; ++j) part[j] = j < m ? x[i + j] : 0;
    store_part(out + i, load_half(part), m);
  });
}

void add_rows(float* x, const float* y, int n) {
  chunks(n, [&](int i, int m) {
    store_part(x + i, add(load_part(x + i, m, 0.0f), load_part(y + i, m, 0.0f)), m);
  });
}

void silu_multiply(const float* gate, const float* up, int n, float* out) {
  chunks(n, [&](int i, int m) {
    const F g = load_part(gate + i, m, 0.0f);
    const F bottom = add(broadcast(1.0f), exp2(mul(g, broadcast(-kLog2E))));
    store_part(out + i, mul(div(g, bottom), load_part(up + i, m, 0.0f)), m);
  });
}

void gelu(const float* x, int n, float* out) {
  chunks(n, [&](int i, int m) {
    const F v = load_part(x + i, m, 0.0f), size = abs(v);
    const F t = div(broadcast(1.0f), fma(size, broadcast(kHalfErfcStep), broadcast(1.0f)));
    F p = broadcast(kHalfErfc[4]);
#pragma GCC unroll 4
    for (int k = 3; k >= 0; --k) p = fma(p, t, broadcast(kHalfErfc[k]));
    const F bell = exp2(mul(mul(v, v), broadcast(-0.5f * kLog2E)));
    const F tail = mul(mul(p, t), bell);
    store_part(out + i, fma(negate(size), tail, max(zero(), v)), m);
  });
}

float softmax_weights(const float* x, int n, float greatest_x, float scale, float* out) {
  F total = zero();
  chunks(n, [&](int i, int m) {
    const F distance = sub(load_part(x + i, m, -__builtin_inff()), broadcast(greatest_x));
    const F w = softmax_weight(mul(distance, broadcast(scale)));
    total = add(total, w);
    store_part(out + i, w, m);
  });
  return sum(total);
}

int argmax(const float* x, int n, float* value, bool* has_nan) {
  F best = broadcast(-__builtin_inff());
  F taint = zero();
  chunks(n, [&](int i, int m) {
    const F v = load_part(x + i, m, -__builtin_inff());
    best = max(v, best);
    // Zero times anything finite or infinite-free is zero; NaN and infinities leave a NaN behind.
    taint = fma(max(broadcast(-1.0f), min(broadcast(1.0f), v)), zero(), taint);
  });
  const float top = greatest(best);
  const float nan = sum(taint);
  *has_nan = nan != nan;
  *value = top;
  for (int i = 0; i < n; ++i) {
    if (x[i] == top) return i;
  }
  return 0;
}
