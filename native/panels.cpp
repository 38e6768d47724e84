#include "panels.hpp"

#include <algorithm>

namespace headrace {

void Panels::plan(int num_tokens, int widest) {
  panels_.clear();
  places_.clear();
  for (int first = 0; first < num_tokens;) {
    const int width = std::min(widest, num_tokens - first);
    for (int lane = 0; lane < width; ++lane) places_.push_back({count(), lane});
    panels_.push_back({first, width});
    first += width;
  }
}

}  // namespace headrace
