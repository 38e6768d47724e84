// Texts to vectors: the weights of a BERT encoder. The pass itself is encoding.hpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "tensor_file.hpp"
#include "threads.hpp"
#include "wide.hpp"

namespace headrace {

// Sizes in elements. head_dim is a multiple of 16, hidden and ffn of 32.
struct EncoderShape {
  int num_layers = 0;
  int hidden = 0;
  int num_heads = 0;
  int ffn = 0;
  int vocab = 0;
  int context = 0;  // the most tokens of a text
  float norm_eps = 0;
  bool takes_first = false;  // a text's vector is its first token's, not the mean of all

  int head_dim() const { return hidden / num_heads; }
};

// y = W x + b
struct Linear {
  WideMatrix weights;
  std::vector<float> bias;  // padded to whole tiles
};

struct Norm {
  std::vector<float> weight, bias;
};

struct EncoderLayer {
  Linear qkv;  // all heads' queries, already scaled by log2(e) / sqrt(d), then keys, then values
  Linear o, up, down;
  Norm attention_norm, output_norm;
};

// Tokens of one text, its markers included.
struct Text {
  const int32_t* tokens = nullptr;
  int num_tokens = 0;
};

// Memory that passes reuse.
struct EncoderMemory {
  Buffer hidden;    // [tokens][hidden]
  Buffer queries;   // [heads][tokens][head_dim]
  Buffer keys;      // slices: [heads][banks]
  Buffer mixed;     // [tokens][hidden] that attention gives, or [tokens][ffn]
  Buffer panels;    // integers of the widest matrix, all tokens
  Buffer private_;  // per thread, see Encoding
};

class Encoder {
 public:
  // Reads the tensors from `path` at their offsets. Throws std::runtime_error that names the
  // tensor.
  Encoder(const std::string& path, const EncoderShape& shape, const std::vector<TensorRef>& tensors,
          int num_threads, const std::string& isa);

  const EncoderShape& shape() const { return shape_; }
  const Kernels& kernels() const { return kernels_; }
  int num_threads() const { return team_.size(); }
  size_t weight_bytes() const;

  // out: [texts][hidden], each of length 1. A text's vector depends on its tokens alone. Throws
  // std::invalid_argument, before anything is computed, when a text does not fit the model, and
  // std::runtime_error where the weights give no numbers.
  void embed(const std::vector<Text>& texts, float* out);

 private:
  friend class Encoding;

  void check(const std::vector<Text>& texts) const;
  void load_words(const TensorFile& file);
  void load_positions(const TensorFile& file);
  void load_rows(const TensorFile& file, const TensorRef& ref, int first_row, float scale,
                 Linear& into);
  Linear load_linear(const TensorFile& file, const std::string& role, int layer, int rows,
                     int inputs);
  Linear load_qkv(const TensorFile& file, int layer);
  Norm load_norm(const TensorFile& file, const std::string& role, int layer) const;

  EncoderShape shape_;
  const Kernels& kernels_;
  Team team_;
  Buffer words_;      // [vocab][hidden], 16-bit
  Buffer positions_;  // [context][hidden], float, with what marks a first text added
  Norm norm_;         // of words + positions
  std::vector<EncoderLayer> layers_;
  EncoderMemory memory_;
};

}  // namespace headrace
