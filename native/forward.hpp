// The forward pass: a ragged batch through all layers, on every thread of the
// team.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "model.hpp"
#include "panels.hpp"

namespace headrace {

// Memory that steps reuse.
class Workspace {
 public:
  Buffer hidden;    // [tokens][hidden], the residual stream
  Buffer queries;   // [tokens][heads][head_dim]
  Buffer ffn;       // panels of the down projection's activations
  Buffer states;    // partial attention, see Forward::Token::state
  Buffer panels;    // activations of the widest matrix, all tokens
  Buffer logits;    // [rows][vocab rounded up to 16]
  Buffer private_;  // per thread: rows, panels of a few tokens, tiles' results
};

// Rows of the output head, padded to whole tiles.
int head_rows(const Model& model);

class Forward {
 public:
  Forward(Model& model, Workspace& work, const std::vector<Span>& spans);
  // Returns the number of logits rows.
  int run();

 private:
  struct Token {
    const Span* span;
    int position;
    int bank;  // that its key and value go to
    int slot;
    int num_parts;  // attention partials
    size_t state;   // offset of its first state, in floats
  };
  // Query rows that walk the same keys: tokens [first, first + count) of one
  // span.
  struct QueryTile {
    int first, count;
    int first_partition, num_partitions;
    int part;  // index of the partial that it leaves
  };
  struct Scratch {
    float* row;       // one token's inputs to a matrix
    float* tiles;     // results of one panel and one unit of rows
    uint8_t* panels;  // private panels
  };
  enum class Source { kAttentionNorm, kAttention, kFfnNorm, kFfn, kOutput };
  // What goes into one fused region of matrices.
  struct Region {
    Source source;
    int layer;
    const Panels* panels;
    int num_inputs;
    bool quantized, floats;  // which kinds of panel its matrices read
  };
  // A region's panels, filled or yet to be.
  class Inputs {
   public:
    Inputs(const Forward& forward, const Region& region, const Scratch& mine, uint8_t* data,
           bool is_ready)
        : forward_(forward), region_(region), mine_(mine), data_(data), is_ready_(is_ready) {}
    const uint8_t* get();

   private:
    const Forward& forward_;
    const Region region_;
    const Scratch& mine_;
    uint8_t* data_;
    bool is_ready_;
  };

  void plan_attention();
  void reserve();
  void body(Team::Walk& walk);
  void embed(Team::Walk& walk);
  Region region(Source source, int layer, const Panels& panels,
                std::initializer_list<const Matrix*> matrices) const;
  void fill(const Region& region, const Panels::Panel& panel, int lane, int from, int n,
            const float* row, uint8_t* out) const;
  Inputs prepare(const Region& region, const Scratch& mine, Team::Walk& walk) const;
  void prepare_token(const Region& region, int token, const Scratch& mine, uint8_t* out) const;
  void project_qkv(const Layer& layer, int index, const Scratch& mine, Team::Walk& walk);
  void attend(int layer, Team::Walk& walk);
  void project_residual(const Matrix& matrix, Inputs inputs, const Scratch& mine, Team::Walk& walk);
  Inputs project_ffn(const Layer& layer, int index, const Scratch& mine, Team::Walk& walk);
  void project_logits(const Scratch& mine, Team::Walk& walk);
  void store_head(const Layer& layer, int index, int kind, int head, int token, float* values);
  void gemm(const Matrix& m, int tile, int num_tiles, const Panels::Panel& panel,
            const uint8_t* activations, float* out, size_t stride) const;
  size_t floats_offset(int num_inputs) const;
  Scratch scratch(int thread) const;

  Model& model_;
  const Shape& shape_;
  const Kernels& kernels_;
  Team& team_;
  Workspace& work_;
  const std::vector<Span>& spans_;

  std::vector<Token> tokens_;
  std::vector<int> logits_tokens_;
  std::vector<QueryTile> query_tiles_;
  Panels panels_, logits_panels_;
  size_t state_floats_ = 0;
  int widest_inputs_ = 0;
  bool private_panels_ = false;
};

}  // namespace headrace
