// Cosines and sines of the rotary angles, by absolute position.
//
// Computed in double precision from additions and multiplications alone, so that every machine
// holds the same bits; the C library's functions differ between processors in the last one.
#pragma once

#include <memory>
#include <vector>

namespace headrace {

class RopeTable {
 public:
  // Frequencies theta^(-2i / dim), each divided by factors[i] when factors are given.
  RopeTable(int dim, double theta, const std::vector<double>& factors);

  // Makes positions [0, end) available. Not concurrently with anything else.
  void extend(int end);

  // [dim / 2] each. Positions may be negative in `rotation`, which is not cached.
  const float* cosine(int position) const { return row(position); }
  const float* sine(int position) const { return row(position) + half_; }
  void rotation(int position, float* cosine, float* sine) const;

 private:
  static constexpr int kChunk = 256;
  const float* row(int position) const {
    return chunks_[position / kChunk].get() + static_cast<size_t>(position % kChunk) * 2 * half_;
  }

  int half_;
  std::vector<double> frequencies_;
  std::vector<std::unique_ptr<float[]>> chunks_;
};

// exp, log, sine and cosine in double from + - * / only; relative error below 1e-14 for the
// ranges used here. log needs x > 0 and finite.
double plain_exp(double x);
double plain_log(double x);
void plain_sincos(double x, double* sine, double* cosine);

}  // namespace headrace
