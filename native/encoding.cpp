#include "encoding.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

namespace headrace {
namespace {

// Inputs of a tile that stay in the first-level cache while a group's panels pass by.
constexpr int kChunkInputs = 4 * kWideBlock;
// The most tokens whose sums, and whose chunk of inputs, stay beside them.
constexpr int kGroupTokens = 64;
// Enough items that the last ones, unevenly shared, cost little.
constexpr int kItemsPerThread = 16;

size_t aligned(size_t n) { return (n + 63) / 64 * 64; }

}  // namespace

Encoding::Encoding(Encoder& encoder, const std::vector<Text>& texts, float* out)
    : encoder_(encoder),
      shape_(encoder.shape_),
      kernels_(encoder.kernels_),
      team_(encoder.team_),
      memory_(encoder.memory_),
      out_(out) {
  plan_texts(texts);
  panels_.plan(static_cast<int>(tokens_.size()), kernels_.widest_panel);
  plan_groups();
  reserve();
}

// A text's keys begin with a bank of their own.
void Encoding::plan_texts(const std::vector<Text>& texts) {
  int bank = 0;
  for (const Text& text : texts) {
    const Place place{static_cast<int>(tokens_.size()), text.num_tokens, bank};
    for (int t = 0; t < text.num_tokens; t += kMaxQueryRows) {
      query_tiles_.push_back({static_cast<int>(texts_.size()), place.first + t,
                              std::min(kMaxQueryRows, text.num_tokens - t)});
    }
    for (int t = 0; t < text.num_tokens; ++t) {
      tokens_.push_back(text.tokens[t]);
      positions_.push_back(t);
      places_.push_back(bank * kBankSize + t);
    }
    texts_.push_back(place);
    bank += (text.num_tokens + kBankSize - 1) / kBankSize;
  }
  banks_.resize(bank);
  std::iota(banks_.begin(), banks_.end(), 0);
  steps_.resize(tokens_.size());
}

// Groups small enough for the cache and for all threads to have work.
void Encoding::plan_groups() {
  const int num_tokens = panels_.num_tokens();
  const int tiles = shape_.hidden / kLanes;  // of the narrowest matrices
  const int wanted = (kItemsPerThread * team_.size() + tiles - 1) / tiles;
  const int most = std::clamp((num_tokens + wanted - 1) / wanted, 1, kGroupTokens);
  for (int p = 0; p < panels_.count(); ++p) {
    const Panels::Panel& panel = panels_[p];
    if (groups_.empty() || groups_.back().num_tokens + panel.width > most) {
      groups_.push_back({p, p, panel.first, 0});
    }
    groups_.back().end = p + 1;
    groups_.back().num_tokens += panel.width;
    most_group_tokens_ = std::max(most_group_tokens_, groups_.back().num_tokens);
  }
}

void Encoding::reserve() {
  const size_t n = tokens_.size(), f = sizeof(float);
  const size_t widest = std::max(shape_.hidden, shape_.ffn);
  memory_.hidden.reserve(n * shape_.hidden * f);
  memory_.queries.reserve(n * shape_.hidden * f);
  memory_.keys.reserve(slice_bytes(shape_.head_dim()) * banks_.size() * shape_.num_heads);
  memory_.mixed.reserve(n * widest * f);
  memory_.panels.reserve(n * widest * sizeof(int16_t));
  memory_.private_.reserve(reinterpret_cast<uintptr_t>(scratch(team_.size())) -
                           reinterpret_cast<uintptr_t>(scratch(0)));
}

// A thread's own: the sums of a group and one tile, or the states of a query tile, or a row.
float* Encoding::scratch(int thread) const {
  const int state = shape_.head_dim() + kLanes;
  const size_t floats =
      std::max({most_group_tokens_ * kLanes + kLanes, kMaxQueryRows * state, shape_.hidden});
  return reinterpret_cast<float*>(memory_.private_.data() +
                                  thread * aligned(sizeof(float) * floats));
}

float* Encoding::hidden(int token) const {
  return memory_.hidden.as<float>() + static_cast<size_t>(token) * shape_.hidden;
}

float* Encoding::query(int head, int token) const {
  return memory_.queries.as<float>() +
         (static_cast<size_t>(head) * tokens_.size() + token) * shape_.head_dim();
}

uint8_t* Encoding::slices(int head) const {
  return memory_.keys.data() + slice_bytes(shape_.head_dim()) * banks_.size() * head;
}

void Encoding::run() {
  team_.run([this](Team::Walk& walk) { body(walk); });
}

void Encoding::body(Team::Walk& walk) {
  look_up(walk);
  for (const EncoderLayer& layer : encoder_.layers_) {
    project_qkv(layer, walk);
    attend(walk);
    widen_mixed(shape_.hidden, walk);
    add_product(layer.o, walk);
    normalise(layer.attention_norm, walk);
    expand(layer.up, walk);
    widen_mixed(shape_.ffn, walk);
    add_product(layer.down, walk);
    normalise(layer.output_norm, walk);
  }
  pool(walk);
}

void Encoding::look_up(Team::Walk& walk) {
  const size_t n = shape_.hidden;
  team_.each(walk, panels_.num_tokens(), [&](int t) {
    float* row = hidden(t);
    kernels_.from_half(encoder_.words_.as<uint16_t>() + tokens_[t] * n, shape_.hidden, row);
    kernels_.add(row, encoder_.positions_.as<float>() + positions_[t] * n, shape_.hidden);
    const Norm& norm = encoder_.norm_;
    kernels_.layer_norm(row, norm.weight.data(), norm.bias.data(), shape_.norm_eps, shape_.hidden,
                        row);
    widen(t, row, shape_.hidden);
  });
}

void Encoding::normalise(const Norm& norm, Team::Walk& walk) {
  team_.each(walk, panels_.num_tokens(), [&](int t) {
    float* row = hidden(t);
    kernels_.layer_norm(row, norm.weight.data(), norm.bias.data(), shape_.norm_eps, shape_.hidden,
                        row);
    widen(t, row, shape_.hidden);
  });
}

void Encoding::widen_mixed(int num_inputs, Team::Walk& walk) {
  team_.each(walk, panels_.num_tokens(), [&](int t) {
    widen(t, memory_.mixed.as<float>() + static_cast<size_t>(t) * num_inputs, num_inputs);
  });
}

// The panel column that the next product reads.
void Encoding::widen(int token, const float* row, int num_inputs) {
  const Panels::Place place = panels_.place(token);
  const Panels::Panel& panel = panels_[place.panel];
  int16_t* out = memory_.panels.as<int16_t>() + static_cast<size_t>(panel.first) * num_inputs;
  steps_[token] = kernels_.widen(row, num_inputs, out, panel.width, place.lane);
}

// take(tile, token, values): 16 outputs of a token, the bias added. An item is a tile times a group
// of panels; all tiles pass over one group before the next.
template <class Take>
void Encoding::multiply(const Linear& linear, Team::Walk& walk, const Take& take) {
  const WideMatrix& m = linear.weights;
  const int num_items = m.num_tiles * static_cast<int>(groups_.size());
  team_.each(walk, num_items, [&](int i) {
    const Group& group = groups_[i / m.num_tiles];
    const int tile = i % m.num_tiles;
    float* sums = scratch(walk.thread());
    std::memset(sums, 0, sizeof(float) * kLanes * group.num_tokens);
    for (int from = 0; from < m.inputs; from += kChunkInputs) {
      const int16_t* weights = m.tile(tile) + static_cast<size_t>(from) * kLanes;
      const int count = std::min(kChunkInputs, m.inputs - from);
      for (int p = group.first; p < group.end; ++p) {
        const Panels::Panel& panel = panels_[p];
        const int16_t* inputs = memory_.panels.as<int16_t>() +
                                static_cast<size_t>(panel.first) * m.inputs + from * panel.width;
        kernels_.wide_gemm(panel.width)(weights, inputs, count,
                                        sums + kLanes * (panel.first - group.first_token));
      }
    }
    float* values = sums + kLanes * group.num_tokens;
    for (int t = 0; t < group.num_tokens; ++t) {
      const int token = group.first_token + t;
      kernels_.wide_finish(sums + kLanes * t, m.steps.data() + tile * kLanes, steps_[token],
                           linear.bias.data() + tile * kLanes, values);
      take(tile, token, values);
    }
  });
}

void Encoding::project_qkv(const EncoderLayer& layer, Team::Walk& walk) {
  multiply(layer.qkv, walk,
           [this](int tile, int token, float* values) { store_heads(tile, token, values); });
}

// 16 dimensions of a query, a key or a value to where attention reads them.
void Encoding::store_heads(int tile, int token, float* values) {
  const int tiles = shape_.hidden / kLanes, dim = shape_.head_dim();
  const int kind = tile / tiles, at = tile % tiles * kLanes, head = at / dim, from = at % dim;
  if (kind == 0) {
    std::memcpy(query(head, token) + from, values, sizeof(float) * kLanes);
    return;
  }
  const int bank = places_[token] / kBankSize, slot = places_[token] % kBankSize;
  auto* slice = reinterpret_cast<uint16_t*>(slices(head) + slice_bytes(dim) * bank);
  if (kind == 2) {
    kernels_.to_half(values, kLanes, slice + kBankSize * dim + slot * dim + from);
    return;
  }
  uint16_t halves[kLanes];
  kernels_.to_half(values, kLanes, halves);
  uint16_t* key = slice + slot / kLanes * kLanes * dim + from * kLanes + slot % kLanes;
  for (int d = 0; d < kLanes; ++d) key[d * kLanes] = halves[d];
}

// Head by head, so that one head's keys and values stay in the second-level cache.
void Encoding::attend(Team::Walk& walk) {
  const int num_tiles = static_cast<int>(query_tiles_.size());
  team_.each(walk, num_tiles * shape_.num_heads, [&](int i) {
    attend_tile(query_tiles_[i % num_tiles], i / num_tiles, scratch(walk.thread()));
  });
}

// Every query sees all of its text.
void Encoding::attend_tile(const QueryTile& tile, int head, float* states) {
  const int dim = shape_.head_dim(), stride = dim + kLanes;
  const Place& text = texts_[tile.text];
  AttentionTask task;
  task.num_rows = tile.count;
  task.head_dim = dim;
  task.slices = slices(head);
  task.group_bytes = slice_bytes(dim) * kGroupBanks;
  task.banks = banks_.data() + text.first_bank;
  task.first_partition = 0;
  task.num_partitions = (text.count + kPartition - 1) / kPartition;
  for (int row = 0; row < tile.count; ++row) {
    task.query[row] = query(head, tile.first + row);
    task.visible[row] = text.count;
    task.state[row] = states + row * stride;
  }
  kernels_.attend(task);
  for (int row = 0; row < tile.count; ++row) {
    float* out = memory_.mixed.as<float>() + static_cast<size_t>(tile.first + row) * shape_.hidden +
                 head * dim;
    kernels_.finish(task.state[row], dim, out);
  }
}

// hidden += W x + b, for the two products that end in the residual stream.
void Encoding::add_product(const Linear& linear, Team::Walk& walk) {
  multiply(linear, walk, [this](int tile, int token, float* values) {
    kernels_.add(hidden(token) + tile * kLanes, values, kLanes);
  });
}

void Encoding::expand(const Linear& linear, Team::Walk& walk) {
  multiply(linear, walk, [this](int tile, int token, float* values) {
    float* out = memory_.mixed.as<float>() + static_cast<size_t>(token) * shape_.ffn;
    kernels_.gelu(values, kLanes, out + tile * kLanes);
  });
}

void Encoding::pool(Team::Walk& walk) {
  team_.each(walk, static_cast<int>(texts_.size()), [&](int i) {
    float* out = out_ + static_cast<size_t>(i) * shape_.hidden;
    add_up(texts_[i], out);
    double squares = 0;
    for (int d = 0; d < shape_.hidden; ++d) squares += static_cast<double>(out[d]) * out[d];
    const double length = std::sqrt(squares);
    if (!(length > 0) || !std::isfinite(length)) {
      throw std::runtime_error("text " + std::to_string(i) + ": the model gives no numbers");
    }
    for (int d = 0; d < shape_.hidden; ++d) out[d] = static_cast<float>(out[d] / length);
  });
}

// Only the direction matters, so the sum is as good as the mean.
void Encoding::add_up(const Place& text, float* out) const {
  std::memcpy(out, hidden(text.first), sizeof(float) * shape_.hidden);
  if (shape_.takes_first) return;
  for (int t = 1; t < text.count; ++t) {
    kernels_.add(out, hidden(text.first + t), shape_.hidden);
  }
}

}  // namespace headrace
