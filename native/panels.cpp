#include "panels.hpp"

#include "formats.hpp"

namespace headrace {

void Panels::plan(int num_tokens, int widest) {
  panels_.clear();
  places_.clear();
  for (int first = 0; first < num_tokens;) {
    int kernel = kPanelWidths - 1;
    while ((1 << kernel) > widest || (1 << kernel) > num_tokens - first) --kernel;
    const int width = 1 << kernel;
    for (int lane = 0; lane < width; ++lane) places_.push_back({count(), lane});
    panels_.push_back({first, width, kernel});
    first += width;
  }
}

}  // namespace headrace
