#include "forward.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pack.hpp"

namespace headrace {
namespace {

// Work is handed out in units of rows; a unit's results for one panel stay in
// the first-level cache.
constexpr int kUnitTiles = 4;
// Enough items that the last ones, unevenly shared, cost little.
constexpr int kItemsPerThread = 16;
constexpr int kHeadUnitTiles = 32;
// Up to this many tokens, each thread prepares all activations for itself: cheaper than a phase.
constexpr int kPrivateTokens = 8;
constexpr int kMaxHeadState = 256 + 16;
// Activations of the panels that one work item passes over stay in half of a
// second-level cache.
constexpr size_t kPanelGroupBytes = size_t{384} << 10;

int state_stride(const Shape& shape) { return shape.head_dim + 16; }

size_t aligned(size_t n) { return (n + 63) / 64 * 64; }

int units(int num_tiles, int unit_tiles) { return (num_tiles + unit_tiles - 1) / unit_tiles; }

// How a matrix product is divided: an item is a unit of rows times a group of
// panels. All units pass over one group before the next, so that its
// activations stay in the second-level cache.
class Items {
 public:
  Items(int num_units, int num_inputs, int num_panels, int num_threads)
      : num_units_(num_units), num_panels_(num_panels) {
    const size_t panel = static_cast<size_t>(num_inputs) / kBlock * kPanelBytes * kMaxPanel;
    const int fitting = static_cast<int>(std::max<size_t>(kPanelGroupBytes / panel, 1));
    const int num_groups =
        std::max(units(num_panels, fitting), units(kItemsPerThread * num_threads, num_units));
    per_group_ = units(num_panels, num_groups);
  }
  int count() const { return num_units_ * units(num_panels_, per_group_); }
  int unit(int item) const { return item % num_units_; }
  int first_panel(int item) const { return item / num_units_ * per_group_; }
  int end_panel(int item) const { return std::min(num_panels_, first_panel(item) + per_group_); }

 private:
  int num_units_, num_panels_, per_group_;
};

}  // namespace

int head_rows(const Model& model) { return (model.shape().vocab + kLanes - 1) / kLanes * kLanes; }

Forward::Forward(Model& model, Workspace& work, const std::vector<Span>& spans)
    : model_(model),
      shape_(model.shape()),
      kernels_(model.kernels()),
      team_(model.team()),
      work_(work),
      spans_(spans) {
  for (const Span& s : spans) {
    for (int t = 0; t < s.num_tokens; ++t) {
      const int position = s.position + t;
      if (t >= s.num_tokens - s.num_logits)
        logits_tokens_.push_back(static_cast<int>(tokens_.size()));
      tokens_.push_back({&s, position, s.banks[position / kBankSize], position % kBankSize, 1, 0});
    }
  }
  panels_.plan(static_cast<int>(tokens_.size()), kernels_.widest_panel);
  logits_panels_.plan(static_cast<int>(logits_tokens_.size()), kernels_.widest_panel);
  private_panels_ = static_cast<int>(tokens_.size()) <= kPrivateTokens;
  widest_inputs_ = std::max({shape_.hidden, shape_.ffn, shape_.num_heads * shape_.head_dim});
  plan_attention();
  reserve();
}

// A lone token's keys are divided among threads by partition; a prompt's tiles
// suffice by number.
void Forward::plan_attention() {
  const int group = shape_.num_heads / shape_.num_kv_heads;
  const int per_tile = std::max(1, kMaxQueryRows / group);
  int first = 0;
  for (const Span& s : spans_) {
    for (int t = 0; t < s.num_tokens; t += per_tile) {
      const int count = std::min(per_tile, s.num_tokens - t);
      const int partitions = (s.position + t + count + kPartition - 1) / kPartition;
      if (s.num_tokens > per_tile) {
        query_tiles_.push_back({first + t, count, 0, partitions, 0});
        continue;
      }
      for (int p = 0; p < partitions; ++p) query_tiles_.push_back({first + t, count, p, 1, p});
      for (int i = 0; i < count; ++i) {
        tokens_[first + t + i].num_parts = (s.position + t + i) / kPartition + 1;
      }
    }
    first += s.num_tokens;
  }
  std::stable_sort(
      query_tiles_.begin(), query_tiles_.end(),
      [](const QueryTile& a, const QueryTile& b) { return a.num_partitions > b.num_partitions; });
  for (Token& token : tokens_) {
    token.state = state_floats_;
    state_floats_ += static_cast<size_t>(shape_.num_heads) * token.num_parts * state_stride(shape_);
  }
}

size_t Forward::floats_offset(int num_inputs) const {
  const size_t tokens = std::max(panels_.num_tokens(), logits_panels_.num_tokens());
  return aligned(static_cast<size_t>(num_inputs / kBlock) * kPanelBytes * tokens);
}

void Forward::reserve() {
  const size_t n = tokens_.size(), f = sizeof(float);
  work_.hidden.reserve(n * shape_.hidden * f);
  work_.queries.reserve(n * shape_.num_heads * shape_.head_dim * f);
  work_.ffn.reserve(floats_offset(shape_.ffn) + n * shape_.ffn * f);
  work_.states.reserve(state_floats_ * f);
  work_.panels.reserve(floats_offset(widest_inputs_) + n * widest_inputs_ * f);
  work_.logits.reserve(logits_tokens_.size() * head_rows(model_) * f);
  const Scratch last = scratch(team_.size());
  work_.private_.reserve(reinterpret_cast<uintptr_t>(last.row) -
                         reinterpret_cast<uintptr_t>(scratch(0).row));
}

Forward::Scratch Forward::scratch(int thread) const {
  const size_t row = aligned(sizeof(float) * widest_inputs_);
  const size_t tiles =
      aligned(sizeof(float) * kMaxPanel * 2 * std::max(kUnitTiles * kLanes, shape_.head_dim));
  const size_t panels =
      aligned(static_cast<size_t>(widest_inputs_) / kBlock * kPanelBytes * kPrivateTokens) +
      aligned(sizeof(float) * widest_inputs_ * kPrivateTokens);
  uint8_t* start = work_.private_.data() + (row + tiles + panels + 64) * thread;
  return {reinterpret_cast<float*>(start), reinterpret_cast<float*>(start + row),
          start + row + tiles};
}

int Forward::run() {
  team_.run([this](Team::Walk& walk) { body(walk); });
  return static_cast<int>(logits_tokens_.size());
}

void Forward::body(Team::Walk& walk) {
  const Scratch mine = scratch(walk.thread());
  embed(walk);
  for (int i = 0; i < shape_.num_layers; ++i) {
    const Layer& layer = model_.layers_[i];
    project_qkv(layer, i, mine, walk);
    attend(i, walk);
    const Region attention = region(Source::kAttention, i, panels_, {&layer.o});
    project_residual(layer.o, prepare(attention, mine, walk), mine, walk);
    project_residual(layer.down, project_ffn(layer, i, mine, walk), mine, walk);
  }
  if (!logits_tokens_.empty()) project_logits(mine, walk);
}

void Forward::embed(Team::Walk& walk) {
  const Matrix& m = model_.embedding_;
  team_.each(walk, panels_.num_tokens(), [&](int t) {
    const Span& s = *tokens_[t].span;
    const int id = s.tokens[tokens_[t].position - s.position];
    unpack_row(*m.traits, m.tile(id / kLanes), id % kLanes, m.inputs,
               work_.hidden.as<float>() + static_cast<size_t>(t) * shape_.hidden);
  });
}

// What these matrices read: panels of int8, of floats, or of both.
Forward::Region Forward::region(Source source, int layer, const Panels& panels,
                                std::initializer_list<const Matrix*> matrices) const {
  const auto is_float = [](const Matrix* m) { return m->traits->is_float; };
  return {source,
          layer,
          &panels,
          (*matrices.begin())->inputs,
          !std::all_of(matrices.begin(), matrices.end(), is_float),
          std::any_of(matrices.begin(), matrices.end(), is_float)};
}

// One token's inputs to a region's matrices, in its panel column.
void Forward::prepare_token(const Region& region, int token, const Scratch& mine,
                            uint8_t* out) const {
  const auto [source, layer, panels, num_inputs, quantized, floats] = region;
  const int t = source == Source::kOutput ? logits_tokens_[token] : token;
  const float* hidden = work_.hidden.as<float>() + static_cast<size_t>(t) * shape_.hidden;
  const float* row = mine.row;
  const auto normalise = [&](const std::vector<float>& weight) {
    kernels_.rms_norm(hidden, weight.data(), shape_.rms_eps, shape_.hidden, mine.row);
  };
  switch (source) {
    case Source::kAttentionNorm:
      normalise(model_.layers_[layer].attention_norm);
      break;
    case Source::kFfnNorm:
      normalise(model_.layers_[layer].ffn_norm);
      break;
    case Source::kOutput:
      normalise(model_.output_norm_);
      break;
    case Source::kFfn:  // filled where it is computed, by project_ffn()
      return;
    case Source::kAttention: {
      const int stride = state_stride(shape_), dim = shape_.head_dim;
      for (int head = 0; head < shape_.num_heads; ++head) {
        float* state = work_.states.as<float>() + tokens_[t].state +
                       static_cast<size_t>(head) * tokens_[t].num_parts * stride;
        float merged[kMaxHeadState];
        const float* whole = state;
        if (tokens_[t].num_parts > 1) {
          std::memcpy(merged, state, sizeof(float) * stride);
          for (int p = 1; p < tokens_[t].num_parts; ++p) {
            kernels_.merge(merged, state + static_cast<size_t>(p) * stride, dim);
          }
          whole = merged;
        }
        kernels_.finish(whole, dim, mine.row + head * dim);
      }
      break;
    }
  }
  const Panels::Place place = panels->place(token);
  fill(region, (*panels)[place.panel], place.lane, 0, num_inputs, row, out);
}

// Inputs [from, from + n) of one token, as the panel column that the region's matrices read.
void Forward::fill(const Region& region, const Panels::Panel& panel, int lane, int from, int n,
                   const float* row, uint8_t* out) const {
  const size_t num_inputs = region.num_inputs;
  if (region.quantized) {
    const size_t block =
        panel.first * (num_inputs / kBlock) + static_cast<size_t>(panel.width) * (from / kBlock);
    kernels_.quantize(row, n, out + block * kPanelBytes, panel.width, lane);
  }
  if (region.floats) {
    auto* floats = reinterpret_cast<float*>(out + floats_offset(region.num_inputs));
    const size_t at = panel.first * num_inputs + static_cast<size_t>(panel.width) * from;
    kernels_.spread(row, n, floats + at, panel.width, lane);
  }
}

// The panels of all tokens, for gemm(): shared, or for a few tokens this
// thread's own.
Forward::Inputs Forward::prepare(const Region& region, const Scratch& mine,
                                 Team::Walk& walk) const {
  if (private_panels_) return {*this, region, mine, mine.panels, false};
  team_.each(walk, region.panels->num_tokens(),
             [&](int t) { prepare_token(region, t, mine, work_.panels.data()); });
  return {*this, region, mine, work_.panels.data(), true};
}

// Own panels are filled when the first item is in hand: while it is not done
// nobody can be past this phase, so what they are made from stands still.
const uint8_t* Forward::Inputs::get() {
  if (!is_ready_) {
    for (int t = 0; t < region_.panels->num_tokens(); ++t) {
      forward_.prepare_token(region_, t, mine_, data_);
    }
    is_ready_ = true;
  }
  return data_;
}

void Forward::gemm(const Matrix& m, int tile, int num_tiles, const Panels::Panel& panel,
                   const uint8_t* activations, float* out, size_t stride) const {
  const uint8_t* x = activations;
  if (m.traits->is_float) {
    x += floats_offset(m.inputs) + static_cast<size_t>(panel.first) * m.inputs * sizeof(float);
  } else {
    x += static_cast<size_t>(panel.first) * (m.inputs / kBlock) * kPanelBytes;
  }
  kernels_.gemm[m.format](panel.width)(m.tile(tile), m.tile_bytes, num_tiles, m.inputs, x, out,
                                       stride);
}

// Queries, keys and values, a head at a time: bias, norm, rotation; keys and
// values to their banks.
void Forward::project_qkv(const Layer& layer, int index, const Scratch& mine, Team::Walk& walk) {
  Inputs inputs = prepare(
      region(Source::kAttentionNorm, index, panels_, {&layer.q, &layer.k, &layer.v}), mine, walk);
  const int head_tiles = shape_.head_dim / kLanes;
  const Items items(shape_.num_heads + 2 * shape_.num_kv_heads, shape_.hidden, panels_.count(),
                    team_.size());
  team_.each(walk, items.count(), [&](int i) {
    const uint8_t* x = inputs.get();
    int head = items.unit(i), kind = 0;
    if (head >= shape_.num_heads) {
      head -= shape_.num_heads;
      kind = 1 + head / shape_.num_kv_heads;
      head %= shape_.num_kv_heads;
    }
    const Matrix& m = kind == 0 ? layer.q : kind == 1 ? layer.k : layer.v;
    for (int p = items.first_panel(i); p < items.end_panel(i); ++p) {
      const Panels::Panel& panel = panels_[p];
      gemm(m, head * head_tiles, head_tiles, panel, x, mine.tiles, shape_.head_dim);
      for (int lane = 0; lane < panel.width; ++lane) {
        store_head(layer, index, kind, head, panel.first + lane,
                   mine.tiles + lane * shape_.head_dim);
      }
    }
  });
}

void Forward::store_head(const Layer& layer, int index, int kind, int head, int t, float* values) {
  const Token& token = tokens_[t];
  const int dim = shape_.head_dim;
  const auto& bias = kind == 0 ? layer.q_bias : kind == 1 ? layer.k_bias : layer.v_bias;
  if (!bias.empty()) kernels_.add(values, bias.data() + head * dim, dim);
  if (kind < 2) {
    const auto& norm = kind == 0 ? layer.q_norm : layer.k_norm;
    if (!norm.empty()) kernels_.rms_norm(values, norm.data(), shape_.rms_eps, dim, values);
    const float scale = kind == 0 ? shape_.attention_scale * kLog2E : 1.0f;
    kernels_.rotate(values, dim, shape_.rope_dim, model_.rope_.cosine(token.position),
                    model_.rope_.sine(token.position), scale);
  }
  if (kind == 0) {
    std::memcpy(
        work_.queries.as<float>() + (static_cast<size_t>(t) * shape_.num_heads + head) * dim,
        values, sizeof(float) * dim);
    return;
  }
  uint16_t halves[kMaxHeadState];
  kernels_.to_half(values, dim, halves);
  uint8_t* base = model_.slice(index, head, token.bank);
  if (kind == 1) {
    auto* at = reinterpret_cast<uint16_t*>(base) + token.slot / kLanes * kLanes * dim +
               token.slot % kLanes;
    for (int d = 0; d < dim; ++d) at[d * kLanes] = halves[d];
  } else {
    auto* at = reinterpret_cast<uint16_t*>(base + slice_bytes(dim) / 2) + token.slot * dim;
    std::memcpy(at, halves, sizeof(uint16_t) * dim);
  }
}

void Forward::attend(int layer, Team::Walk& walk) {
  const int kv_heads = shape_.num_kv_heads, group = shape_.num_heads / kv_heads;
  const int stride = state_stride(shape_);
  const int num_items = static_cast<int>(query_tiles_.size()) * kv_heads;
  team_.each(walk, num_items, [&](int i) {
    // Head by head, so that one head's keys and values stay in the second-level
    // cache.
    const int num_tiles = static_cast<int>(query_tiles_.size());
    const QueryTile& tile = query_tiles_[i % num_tiles];
    const int kv_head = i / num_tiles;
    AttentionTask task;
    task.head_dim = shape_.head_dim;
    task.slices = model_.slices(layer, kv_head);
    task.group_bytes = model_.group_bytes();
    task.banks = tokens_[tile.first].span->banks;
    task.first_partition = tile.first_partition;
    task.num_partitions = tile.num_partitions;
    task.num_rows = 0;
    const auto flush = [&] {
      kernels_.attend(task);
      task.num_rows = 0;
    };
    for (int t = tile.first; t < tile.first + tile.count; ++t) {
      const Token& token = tokens_[t];
      for (int g = 0; g < group; ++g) {
        const int head = kv_head * group + g;
        const int row = task.num_rows++;
        task.query[row] = work_.queries.as<float>() +
                          (static_cast<size_t>(t) * shape_.num_heads + head) * shape_.head_dim;
        task.visible[row] = token.position + 1;
        task.state[row] = work_.states.as<float>() + token.state +
                          (static_cast<size_t>(head) * token.num_parts + tile.part) * stride;
        if (task.num_rows == kMaxQueryRows) flush();
      }
    }
    if (task.num_rows > 0) flush();
  });
}

// hidden += matrix x inputs, for the two projections that end in the residual stream.
void Forward::project_residual(const Matrix& m, Inputs inputs, const Scratch& mine,
                               Team::Walk& walk) {
  const int unit_tiles = panels_.count() > 1 ? kUnitTiles : kUnitTiles / 2;
  const Items items(units(m.num_tiles, unit_tiles), m.inputs, panels_.count(), team_.size());
  team_.each(walk, items.count(), [&](int i) {
    const uint8_t* x = inputs.get();
    const int tile = items.unit(i) * unit_tiles;
    const int num_tiles = std::min(unit_tiles, m.num_tiles - tile);
    const int width = num_tiles * kLanes;
    for (int p = items.first_panel(i); p < items.end_panel(i); ++p) {
      const Panels::Panel& panel = panels_[p];
      gemm(m, tile, num_tiles, panel, x, mine.tiles, width);
      for (int lane = 0; lane < panel.width; ++lane) {
        float* hidden = work_.hidden.as<float>() +
                        static_cast<size_t>(panel.first + lane) * shape_.hidden + tile * kLanes;
        kernels_.add(hidden, mine.tiles + lane * width, width);
      }
    }
  });
}

// silu(gate) * up, left as the panels that the down projection reads.
Forward::Inputs Forward::project_ffn(const Layer& layer, int index, const Scratch& mine,
                                     Team::Walk& walk) {
  Inputs inputs =
      prepare(region(Source::kFfnNorm, index, panels_, {&layer.gate, &layer.up}), mine, walk);
  const Region next = region(Source::kFfn, index, panels_, {&layer.down});
  uint8_t* out = work_.ffn.data();
  const int num_tiles = layer.gate.num_tiles;
  const int unit_tiles = panels_.count() > 1 ? kUnitTiles : kUnitTiles / 2;
  const Items items(units(num_tiles, unit_tiles), shape_.hidden, panels_.count(), team_.size());
  team_.each(walk, items.count(), [&](int i) {
    const uint8_t* x = inputs.get();
    const int tile = items.unit(i) * unit_tiles;
    const int count = std::min(unit_tiles, num_tiles - tile);
    const int width = count * kLanes;
    float* up = mine.tiles + kMaxPanel * width;
    for (int p = items.first_panel(i); p < items.end_panel(i); ++p) {
      const Panels::Panel& panel = panels_[p];
      gemm(layer.gate, tile, count, panel, x, mine.tiles, width);
      gemm(layer.up, tile, count, panel, x, up, width);
      for (int lane = 0; lane < panel.width; ++lane) {
        float* gate = mine.tiles + lane * width;
        kernels_.silu_multiply(gate, up + lane * width, width, gate);
        fill(next, panel, lane, tile * kLanes, width, gate, out);
      }
    }
  });
  return {*this, next, mine, out, true};
}

void Forward::project_logits(const Scratch& mine, Team::Walk& walk) {
  const Matrix& m = model_.head_.empty() ? model_.embedding_ : model_.head_;
  Inputs inputs = prepare(region(Source::kOutput, 0, logits_panels_, {&m}), mine, walk);
  const int num_units = units(m.num_tiles, kHeadUnitTiles);
  const size_t stride = head_rows(model_);
  team_.each(walk, num_units, [&](int i) {
    const uint8_t* x = inputs.get();
    const int tile = i * kHeadUnitTiles;
    const int count = std::min(kHeadUnitTiles, m.num_tiles - tile);
    for (int p = 0; p < logits_panels_.count(); ++p) {
      const Panels::Panel& panel = logits_panels_[p];
      gemm(m, tile, count, panel, x,
           work_.logits.as<float>() + panel.first * stride + tile * kLanes, stride);
    }
  });
}

}  // namespace headrace
