#include "rope_table.hpp"

#include <cmath>

#include "threads.hpp"

namespace headrace {
namespace {

constexpr double kLn2High = 0x1.62e42fefa38p-1, kLn2Low = 0x1.ef35793c7673p-45;
// Pi / 2 in pieces of 33 bits, so that a multiple below 2^20 of each is exact.
constexpr double kHalfPi1 = 0x1.921fb544p+0, kHalfPi2 = 0x1.0b4611a6p-34,
                 kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;

}  // namespace

double plain_exp(double x) {
  const double n = std::floor(x / (kLn2High + kLn2Low) + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double term = 1.0, total = 1.0;
  for (int k = 1; k < 20; ++k) {
    term = term * r / k;
    total = total + term;
  }
  return std::ldexp(total, static_cast<int>(n));
}

double plain_log(double x) {
  int exponent;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m = m * 2;
    --exponent;
  }
  // log(m) = 2 artanh(z), z = (m - 1) / (m + 1), |z| < 0.172.
  const double z = (m - 1) / (m + 1), square = z * z;
  double total = 0;
  for (int k = 25; k >= 1; k -= 2) total = total * square + 1.0 / k;
  return exponent * kLn2High + (2 * z * total + exponent * kLn2Low);
}

void plain_sincos(double x, double* sine, double* cosine) {
  const double n = std::floor(x * kTwoOverPi + 0.5);
  const double r = ((x - n * kHalfPi1) - n * kHalfPi2) - n * kHalfPi3;
  const double square = r * r;
  double s = 0, c = 0;
  for (int k = 9; k >= 1; --k) {
    s = (s + 1) * (-square / ((2 * k) * (2 * k + 1)));
    c = (c + 1) * (-square / ((2 * k - 1) * (2 * k)));
  }
  s = r + r * s;
  c = 1 + c;
  switch (static_cast<long long>(n) & 3) {
    case 0:
      *sine = s, *cosine = c;
      break;
    case 1:
      *sine = c, *cosine = -s;
      break;
    case 2:
      *sine = -s, *cosine = -c;
      break;
    default:
      *sine = -c, *cosine = s;
  }
}

RopeTable::RopeTable(int dim, double theta, const std::vector<double>& factors) : half_(dim / 2) {
  const FloatingPointControl control;
  for (int i = 0; i < half_; ++i) {
    const double frequency = plain_exp(-(2.0 * i / dim) * plain_log(theta));
    frequencies_.push_back(factors.empty() ? frequency : frequency / factors[i]);
  }
}

void RopeTable::rotation(int position, float* cosine, float* sine) const {
  const FloatingPointControl control;
  for (int i = 0; i < half_; ++i) {
    double s, c;
    plain_sincos(position * frequencies_[i], &s, &c);
    cosine[i] = static_cast<float>(c);
    sine[i] = static_cast<float>(s);
  }
}

void RopeTable::extend(int end) {
  while (static_cast<int>(chunks_.size()) * kChunk < end) {
    const int start = static_cast<int>(chunks_.size()) * kChunk;
    std::unique_ptr<float[]> chunk(new float[static_cast<size_t>(kChunk) * 2 * half_]);
    for (int i = 0; i < kChunk; ++i) {
      float* row = chunk.get() + static_cast<size_t>(i) * 2 * half_;
      rotation(start + i, row, row + half_);
    }
    chunks_.push_back(std::move(chunk));
  }
}

}  // namespace headrace
