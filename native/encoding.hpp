// One pass of an encoder: some texts' tokens side by side, without padding, on every thread of the
// team.
#pragma once

#include <cstdint>
#include <vector>

#include "encoder.hpp"
#include "panels.hpp"

namespace headrace {

class Encoding {
 public:
  Encoding(Encoder& encoder, const std::vector<Text>& texts, float* out);
  void run();

 private:
  // Tokens [first, first + count), whose keys lie in banks [first_bank, ...).
  struct Place {
    int first, count, first_bank;
  };
  // Queries [first, first + count) of one text.
  struct QueryTile {
    int text, first, count;
  };
  // Panels [first, end): tokens [first_token, first_token + num_tokens) whose products with one
  // tile stay in the first-level cache.
  struct Group {
    int first, end, first_token, num_tokens;
  };

  void plan_texts(const std::vector<Text>& texts);
  void plan_groups();
  void reserve();
  float* scratch(int thread) const;

  void body(Team::Walk& walk);
  void look_up(Team::Walk& walk);
  void normalise(const Norm& norm, Team::Walk& walk);
  void widen_mixed(int num_inputs, Team::Walk& walk);
  void project_qkv(const EncoderLayer& layer, Team::Walk& walk);
  void attend(Team::Walk& walk);
  void add_product(const Linear& linear, Team::Walk& walk);
  void expand(const Linear& linear, Team::Walk& walk);
  void pool(Team::Walk& walk);

  void store_heads(int tile, int token, float* values);
  void widen(int token, const float* row, int num_inputs);
  void attend_tile(const QueryTile& tile, int head, float* states);
  void add_up(const Place& text, float* out) const;
  template <class Take>
  void multiply(const Linear& linear, Team::Walk& walk, const Take& take);

  float* hidden(int token) const;
  float* query(int head, int token) const;
  uint8_t* slices(int head) const;

  const Encoder& encoder_;
  const EncoderShape& shape_;
  const Kernels& kernels_;
  Team& team_;
  EncoderMemory& memory_;
  float* const out_;

  std::vector<int32_t> tokens_;  // their ids
  std::vector<int> positions_;
  std::vector<Place> texts_;
  std::vector<QueryTile> query_tiles_;
  std::vector<Group> groups_;
  std::vector<int32_t> banks_;   // 0, 1, 2, ...: a text's table is a part of it
  std::vector<int32_t> places_;  // bank and slot of each token: bank * kBankSize + slot
  std::vector<float> steps_;     // of each token's integers
  Panels panels_;
  int most_group_tokens_ = 0;
};

}  // namespace headrace
