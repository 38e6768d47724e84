// One vector against many, as bytes: the first look at a memory of texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace headrace {

// Row i stands for scales[i] * rows[i * n, (i + 1) * n).
struct ByteRows {
  const int8_t* rows;
  const float* scales;
  size_t count;
  int n;  // at most 2^17, so that no sum overflows
};

// The `limit` rows whose dot products with x are the greatest, the best first; of equal ones the
// first row. Each |x| is at most 127. On up to `num_threads` threads; with any number of them, and
// on every processor, the same.
std::vector<size_t> nearest(const Kernels& kernels, const ByteRows& all, const int16_t* x,
                            size_t limit, int num_threads);

}  // namespace headrace
