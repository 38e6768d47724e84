// Weights, KV pool and the forward pass of one model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "rope_table.hpp"
#include "tensor_file.hpp"
#include "threads.hpp"

namespace headrace {

// Sizes in elements. head_dim, hidden and ffn are multiples of 16, 32 and 32.
struct Shape {
  int num_layers = 0;
  int hidden = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int vocab = 0;
  int context = 0;
  int rope_dim = 0;
  double rope_theta = 10000.0;
  // Adjacent pairs rotate in the file's row order; rows are reordered at load so that halves do.
  bool rope_interleaved = false;
  // Divisors of the frequencies, half of rope_dim, or none.
  std::vector<double> rope_factors;
  float rms_eps = 0;
  float attention_scale = 0;
};

// A weight matrix in tiles.
struct Matrix {
  const FormatTraits* traits = nullptr;
  int format = 0;  // index into the kernel tables
  int rows = 0;
  int inputs = 0;
  int num_tiles = 0;
  size_t tile_bytes = 0;
  Buffer data;

  const uint8_t* tile(int i) const { return data.data() + static_cast<size_t>(i) * tile_bytes; }
  bool empty() const { return rows == 0; }
};

struct Layer {
  std::vector<float> attention_norm, ffn_norm;
  std::vector<float> q_bias, k_bias, v_bias;  // empty when the model has none
  std::vector<float> q_norm, k_norm;
  Matrix q, k, v, o, gate, up, down;
};

// One sequence's part of a step.
struct Span {
  const int32_t* tokens = nullptr;
  int num_tokens = 0;
  int position = 0;  // of tokens[0]
  const int32_t* banks = nullptr;
  int num_banks = 0;
  int num_logits = 0;  // rows wanted, of the last tokens
};

// A run of positions on its way from one bank to another.
struct Move {
  int source = 0;
  int first = 0;  // slot in the source
  int target = 0;
  int at = 0;  // slot in the target
  int count = 0;
  int delta = 0;  // positions by which the keys turn
};

class Workspace;

class Model {
 public:
  // Reads the tensors from `path` at their offsets. Throws std::runtime_error that names the
  // tensor.
  Model(const std::string& path, Shape shape, const std::vector<TensorRef>& tensors,
        int num_threads, const std::string& isa);
  ~Model();

  const Shape& shape() const { return shape_; }
  const Kernels& kernels() const { return kernels_; }
  Team& team() { return team_; }
  size_t bank_bytes() const { return bank_bytes_; }
  // Bytes of packed weights that one decode step reads.
  size_t weight_bytes() const;

  void allocate(int num_banks);
  // Has memory in place for about the banks [first, first + count), contents unchanged: a first
  // touch takes the system milliseconds, inside whatever step comes first.
  void touch(int first, int count) const;
  int num_banks() const { return num_banks_; }

  // Throws std::invalid_argument, before anything is computed, when a span does not fit the model
  // or the pool. Logits rows are in span order.
  void step(const std::vector<Span>& spans);

  int num_logits() const { return num_logits_; }
  const float* logits(int row) const;

  void copy_bank(int source, int target);
  void shift_bank(int bank, int delta);
  // In the order given, so that a bank may be a target after it was a source. Throws
  // std::invalid_argument, before anything is moved, for slots or banks that do not exist.
  void move(const std::vector<Move>& moves);
  // All slices of a bank, layer by layer: bank_bytes() of them.
  void export_bank(int bank, uint8_t* out) const;
  void import_bank(int bank, const uint8_t* data);

 private:
  friend class Forward;

  Matrix load_matrix(const TensorFile& file, const TensorRef& ref, int rows, int inputs,
                     bool permuted);
  std::vector<float> load_vector(const TensorFile& file, const TensorRef& ref, int size,
                                 bool permuted = false);
  void check(const std::vector<Span>& spans) const;
  void check_bank(int bank) const;
  // The first slice of a layer and KV head; slice_offset() leads to a bank's.
  uint8_t* slices(int layer, int kv_head) const {
    const size_t index = static_cast<size_t>(layer) * shape_.num_kv_heads + kv_head;
    return pool_.data() + index * kGroupBanks * slice_bytes(shape_.head_dim);
  }
  uint8_t* slice(int layer, int kv_head, int bank) const {
    return slices(layer, kv_head) + slice_offset(bank, shape_.head_dim, group_bytes());
  }
  size_t group_bytes() const { return bank_bytes_ * kGroupBanks; }
  template <class Visit>
  void each_slice(int bank, Visit visit) const;
  void move_in_slice(const Move& move, const float* cosine, const float* sine, uint8_t* from,
                     uint8_t* to) const;

  Shape shape_;
  const Kernels& kernels_;
  Team team_;
  RopeTable rope_;
  Matrix embedding_;
  Matrix head_;  // empty when tied to the embedding
  std::vector<float> output_norm_;
  std::vector<Layer> layers_;

  size_t bank_bytes_ = 0;
  int num_banks_ = 0;
  Buffer pool_;

  std::unique_ptr<Workspace> work_;
  int num_logits_ = 0;
};

}  // namespace headrace
