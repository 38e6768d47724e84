#include "wide.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace headrace {

WideMatrix::WideMatrix(int num_rows, int num_inputs)
    : rows(num_rows),
      inputs(num_inputs),
      num_tiles((num_rows + kLanes - 1) / kLanes),
      data(sizeof(int16_t) * kLanes * num_tiles * num_inputs),
      steps(static_cast<size_t>(num_tiles) * kLanes) {}

void WideMatrix::put(int row, const float* weights) {
  float amax = 0.0f;
  for (int i = 0; i < inputs; ++i) {
    if (!std::isfinite(weights[i])) throw std::runtime_error("has weights that are no numbers");
    amax = std::max(amax, std::fabs(weights[i]));
  }
  if (amax < kTinyAmax) return;
  steps[row] = amax / kWideWeight;
  const float inverse = kWideWeight / amax;
  int16_t* out = tile(row / kLanes) + 2 * (row % kLanes);
  for (int i = 0; i < inputs; ++i) {
    out[static_cast<size_t>(i / 2) * 2 * kLanes + i % 2] =
        static_cast<int16_t>(std::nearbyint(weights[i] * inverse));
  }
}

}  // namespace headrace
