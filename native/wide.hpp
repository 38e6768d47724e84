// Weight matrices in 16 bits: tiles of 16 rows, [pair of inputs][16 rows][2].
#pragma once

#include <cstdint>
#include <vector>

#include "memory.hpp"
#include "numerics.hpp"

namespace headrace {

struct WideMatrix {
  int rows = 0;
  int inputs = 0;
  int num_tiles = 0;
  Buffer data;
  std::vector<float> steps;  // of each row; 0 for the rows that fill the last tile

  WideMatrix() = default;
  // `inputs` is a multiple of 32.
  WideMatrix(int num_rows, int num_inputs);

  int16_t* tile(int i) const {
    return data.as<int16_t>() + static_cast<size_t>(i) * kLanes * inputs;
  }
  // Row `row` becomes integers. Threads may put different rows at once. Throws std::runtime_error
  // where a weight is infinite or no number.
  void put(int row, const float* weights);
};

}  // namespace headrace
