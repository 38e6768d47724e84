// How the tokens of a pass are divided for the matrix kernels.
#pragma once

#include <vector>

namespace headrace {

// Tokens grouped for the matrix kernels: the widest panels, then one of what is left. Every panel
// passes over the weights once more, so the fewest are quickest.
class Panels {
 public:
  void plan(int num_tokens, int widest);
  int count() const { return static_cast<int>(panels_.size()); }
  int num_tokens() const { return static_cast<int>(places_.size()); }

  struct Panel {
    int first;  // token
    int width;
  };
  const Panel& operator[](int i) const { return panels_[i]; }

  struct Place {
    int panel, lane;
  };
  Place place(int token) const { return places_[token]; }

 private:
  std::vector<Panel> panels_;
  std::vector<Place> places_;
};

}  // namespace headrace
