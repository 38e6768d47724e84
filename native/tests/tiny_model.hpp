// Small models of random weights in a file of the test's own, and their forward pass by definition.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "definition.hpp"
#include "model.hpp"
#include "rope_table.hpp"
#include "weights.hpp"

namespace headrace::tests {

struct Tensor {
  const FormatTraits* traits;
  int inputs;
  std::vector<std::vector<uint8_t>> rows;  // in the file's layout
};

// A row whose products with inputs near 1 are near 1.
inline std::vector<uint8_t> tame_row(const FormatTraits& traits, int num_inputs, Random& random) {
  std::vector<uint8_t> row = random_row(traits, num_inputs, Content::kUsual, random);
  const float size = 1.0f / std::sqrt(static_cast<float>(num_inputs));
  if (traits.is_float) {
    for (int k = 0; k < num_inputs; ++k) {
      const float f = random.normal() * size;
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      uint8_t* at = row.data() + static_cast<size_t>(k) * traits.file_bytes;
      if (traits.format == Format::kF32) std::memcpy(at, &f, 4);
      if (traits.format == Format::kF16) put_u16(at, definition::half_bits(f, true));
      if (traits.format == Format::kBF16) put_u16(at, static_cast<uint16_t>(bits >> 16));
    }
    return row;
  }
  // The greatest quant, times the usual second scale of K formats, and what centres the quants.
  std::map<Format, std::pair<float, float>> scales = {
      {Format::kQ4_0, {4.0f, 0}},       {Format::kQ4_1, {4.0f, -7.5f}},
      {Format::kQ5_0, {8.0f, 0}},       {Format::kQ5_1, {8.0f, -15.5f}},
      {Format::kQ8_0, {70.0f, 0}},      {Format::kQ4_K, {150.0f, 7.5f}},
      {Format::kQ5_K, {300.0f, 15.5f}}, {Format::kQ6_K, {1500.0f, 0}}};
  const auto [divisor, centre] = scales[traits.format];
  for (size_t at = 0; at < row.size(); at += traits.file_bytes) {
    const std::vector<int> places = scales_at(traits.format);
    put_u16(row.data() + at + places[0], definition::half_bits(size / divisor, true));
    if (places.size() > 1) {
      put_u16(row.data() + at + places[1], definition::half_bits(size / divisor * centre, true));
    }
  }
  return row;
}

// `formats` are given to the matrices in turn.
class TinyModel {
 public:
  Shape shape;
  std::map<std::pair<std::string, int>, Tensor> tensors;
  std::vector<TensorRef> refs;
  std::string path;

  TinyModel(const Shape& s, const std::vector<Format>& formats, bool tied, bool biases, bool norms)
      : shape(s), formats_(formats), random_(s.hidden + s.vocab) {
    const int width = s.num_heads * s.head_dim, kv_width = s.num_kv_heads * s.head_dim;
    matrix("token_embedding", -1, s.vocab, s.hidden);
    if (!tied) matrix("output", -1, s.vocab, s.hidden);
    vector("output_norm", -1, s.hidden);
    for (int i = 0; i < s.num_layers; ++i) {
      vector("attn_norm", i, s.hidden);
      vector("ffn_norm", i, s.hidden);
      matrix("q", i, width, s.hidden);
      matrix("k", i, kv_width, s.hidden);
      matrix("v", i, kv_width, s.hidden);
      matrix("o", i, s.hidden, width);
      matrix("gate", i, s.ffn, s.hidden);
      matrix("up", i, s.ffn, s.hidden);
      matrix("down", i, s.hidden, s.ffn);
      if (biases) {
        vector("q_bias", i, width);
        vector("k_bias", i, kv_width);
        vector("v_bias", i, kv_width);
      }
      if (norms) {
        vector("q_norm", i, s.head_dim);
        vector("k_norm", i, s.head_dim);
      }
    }
    write();
  }
  ~TinyModel() { std::remove(path.c_str()); }
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  Model load(int threads = 1, const std::string& isa = "") const {
    return Model(path, shape, refs, threads, isa);
  }
  const Tensor& at(const std::string& role, int layer) const { return tensors.at({role, layer}); }
  bool has(const std::string& role, int layer) const { return tensors.count({role, layer}) > 0; }

 private:
  void matrix(const std::string& role, int layer, int rows, int inputs) {
    const Format format = formats_[next_format_++ % formats_.size()];
    const FormatTraits& traits = kFormats[format_index(format)];
    Tensor t{&traits, inputs, {}};
    for (int i = 0; i < rows; ++i) t.rows.push_back(tame_row(traits, inputs, random_));
    tensors[{role, layer}] = std::move(t);
  }
  void vector(const std::string& role, int layer, int size) {
    const float base = role.find("norm") != std::string::npos ? 1.0f : 0.0f;
    std::vector<uint8_t> row(sizeof(float) * size);
    for (int i = 0; i < size; ++i) {
      const float f = base + 0.3f * random_.normal();
      std::memcpy(row.data() + sizeof f * i, &f, sizeof f);
    }
    tensors[{role, layer}] = {&kFormats[format_index(Format::kF32)], size, {row}};
  }
  void write() {
    char name[] = "/tmp/headrace_tests_XXXXXX";
    const int fd = mkstemp(name);
    if (fd < 0) throw std::runtime_error("cannot make a file in /tmp");
    path = name;
    std::FILE* file = fdopen(fd, "wb");
    uint64_t offset = std::fwrite("tiny", 1, 4, file);  // so that nothing is aligned
    for (const auto& [key, t] : tensors) {
      TensorRef ref{key.first,
                    key.second,
                    static_cast<uint32_t>(t.traits->format),
                    static_cast<int>(t.rows.size()),
                    t.inputs,
                    offset,
                    0};
      for (const auto& row : t.rows) {
        ref.num_bytes += std::fwrite(row.data(), 1, row.size(), file);
      }
      offset += ref.num_bytes;
      refs.push_back(ref);
    }
    std::fclose(file);
  }

  std::vector<Format> formats_;
  size_t next_format_ = 0;
  Random random_;
};

// The whole model, one sequence, one output at a time.
class DefinedModel {
 public:
  explicit DefinedModel(const TinyModel& model)
      : model_(model),
        shape_(model.shape),
        rope_(shape_.rope_dim, shape_.rope_theta, shape_.rope_factors),
        histories_(static_cast<size_t>(shape_.num_layers) * shape_.num_kv_heads,
                   definition::History{shape_.head_dim, {}, {}}) {}

  // Logits for the token after the one at the next position.
  std::vector<float> next(int token) {
    rope_.extend(position_ + 1);
    const Tensor& embedding = model_.at("token_embedding", -1);
    std::vector<float> x =
        definition::row_weights(*embedding.traits, embedding.rows[token].data(), shape_.hidden);
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      const auto normed = norm(x, "attn_norm", layer);
      store(layer, normed);
      add(x, multiply("o", layer, attend(layer, normed)));
      add(x, multiply("down", layer, feed_forward(layer, norm(x, "ffn_norm", layer))));
    }
    ++position_;
    return multiply(model_.has("output", -1) ? "output" : "token_embedding", -1,
                    norm(x, "output_norm", -1));
  }

 private:
  using Floats = std::vector<float>;

  static void add(Floats& x, const Floats& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] + y[i];
  }
  Floats vector(const std::string& role, int layer) const {
    const Tensor& t = model_.at(role, layer);
    return definition::row_weights(*t.traits, t.rows[0].data(), t.inputs);
  }
  Floats norm(const Floats& x, const std::string& role, int layer) const {
    return definition::rms_norm(x.data(), vector(role, layer).data(), shape_.rms_eps,
                                static_cast<int>(x.size()));
  }
  Floats multiply(const std::string& role, int layer, const Floats& x) const {
    const Tensor& t = model_.at(role, layer);
    const auto quantized = definition::quantize(x.data(), t.inputs);
    Floats out;
    for (const auto& row : t.rows) {
      out.push_back(t.traits->is_float
                        ? definition::float_product(*t.traits, row.data(), x.data(), t.inputs)
                        : definition::quantized_product(*t.traits, row.data(), quantized));
    }
    return out;
  }
  // Interleaved pairs (2i, 2i + 1) become (i, i + half).
  Floats ordered(const Floats& head) const {
    if (!shape_.rope_interleaved) return head;
    Floats out = head;
    const int half = shape_.rope_dim / 2;
    for (int i = 0; i < half; ++i) {
      out[i] = head[2 * i];
      out[half + i] = head[2 * i + 1];
    }
    return out;
  }
  // Head `head` of q or k: bias, norm, rotation.
  Floats turned(const std::string& role, int layer, int head, const Floats& projected,
                float scale) const {
    const int dim = shape_.head_dim;
    Floats values(projected.begin() + head * dim, projected.begin() + (head + 1) * dim);
    if (model_.has(role + "_bias", layer)) {
      const Floats bias = vector(role + "_bias", layer);
      for (int d = 0; d < dim; ++d) values[d] = values[d] + bias[head * dim + d];
    }
    values = ordered(values);
    if (model_.has(role + "_norm", layer)) {
      values = definition::rms_norm(values.data(), ordered(vector(role + "_norm", layer)).data(),
                                    shape_.rms_eps, dim);
    }
    return definition::rotate(values.data(), dim, shape_.rope_dim, rope_.cosine(position_),
                              rope_.sine(position_), scale);
  }
  definition::History& history(int layer, int kv_head) {
    return histories_[static_cast<size_t>(layer) * shape_.num_kv_heads + kv_head];
  }
  void store(int layer, const Floats& x) {
    const int dim = shape_.head_dim;
    const Floats keys = multiply("k", layer, x);
    Floats values = multiply("v", layer, x);
    if (model_.has("v_bias", layer)) add(values, vector("v_bias", layer));
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      definition::History& h = history(layer, head);
      for (const float k : turned("k", layer, head, keys, 1.0f)) {
        h.keys.push_back(definition::half_value(definition::half_bits(k, true)));
      }
      for (int d = 0; d < dim; ++d) {
        h.values.push_back(
            definition::half_value(definition::half_bits(values[head * dim + d], true)));
      }
    }
  }
  Floats attend(int layer, const Floats& x) {
    const Floats queries = multiply("q", layer, x);
    const int group = shape_.num_heads / shape_.num_kv_heads;
    Floats out;
    for (int head = 0; head < shape_.num_heads; ++head) {
      const Floats query = turned("q", layer, head, queries, shape_.attention_scale * kLog2E);
      const Floats part = definition::finish(
          definition::attend(history(layer, head / group), query.data(), position_ + 1));
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }
  Floats feed_forward(int layer, const Floats& x) const {
    const Floats gate = multiply("gate", layer, x), up = multiply("up", layer, x);
    Floats out;
    for (size_t i = 0; i < gate.size(); ++i) {
      out.push_back(definition::silu_multiply(gate[i], up[i]));
    }
    return out;
  }

  const TinyModel& model_;
  const Shape& shape_;
  RopeTable rope_;
  std::vector<definition::History> histories_;
  int position_ = 0;
};

}  // namespace headrace::tests
