// Small encoders of random weights in a file of the test's own, and their pass by definition.
#pragma once

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "encoder.hpp"

namespace headrace::tests {

using Rows = std::vector<std::vector<float>>;

class TinyEncoder {
 public:
  EncoderShape shape;
  std::map<std::pair<std::string, int>, Rows> tensors;
  std::vector<TensorRef> refs;
  std::string path;

  explicit TinyEncoder(const EncoderShape& s) : shape(s), random_(s.hidden + s.vocab) {
    table("words", -1, s.vocab, s.hidden, 1.0f);
    table("positions", -1, s.context, s.hidden, 0.3f);
    table("text_mark", -1, 1, s.hidden, 0.3f);
    norm("embedding_norm", -1);
    for (int i = 0; i < s.num_layers; ++i) {
      for (const char* role : {"q", "k", "v", "o"}) linear(role, i, s.hidden, s.hidden);
      linear("up", i, s.ffn, s.hidden);
      linear("down", i, s.hidden, s.ffn);
      norm("attention_norm", i);
      norm("output_norm", i);
    }
    write();
  }
  ~TinyEncoder() { std::remove(path.c_str()); }
  TinyEncoder(const TinyEncoder&) = delete;
  TinyEncoder& operator=(const TinyEncoder&) = delete;

  const Rows& at(const std::string& role, int layer) const { return tensors.at({role, layer}); }

 private:
  void table(const std::string& role, int layer, int rows, int inputs, float scale) {
    for (int i = 0; i < rows; ++i) {
      tensors[{role, layer}].push_back(random_.normals(inputs, scale));
    }
  }
  void linear(const std::string& role, int layer, int rows, int inputs) {
    table(role, layer, rows, inputs, 1.0f / std::sqrt(static_cast<float>(inputs)));
    table(role + "_bias", layer, 1, rows, 0.2f);
  }
  void norm(const std::string& role, int layer) {
    table(role, layer, 1, shape.hidden, 0.2f);
    for (float& v : tensors[{role, layer}][0]) v = v + 1.0f;
    table(role + "_bias", layer, 1, shape.hidden, 0.2f);
  }
  void write() {
    char name[] = "/tmp/headrace_tests_XXXXXX";
    const int fd = mkstemp(name);
    if (fd < 0) throw std::runtime_error("cannot make a file in /tmp");
    path = name;
    std::FILE* file = fdopen(fd, "wb");
    uint64_t offset = std::fwrite("tiny", 1, 4, file);
    for (const auto& [key, rows] : tensors) {
      const uint64_t num_bytes = rows.size() * rows[0].size() * sizeof(float);
      refs.push_back({key.first, key.second, static_cast<uint32_t>(Format::kF32),
                      static_cast<int>(rows.size()), static_cast<int>(rows[0].size()), offset,
                      num_bytes});
      for (const auto& row : rows) std::fwrite(row.data(), sizeof(float), row.size(), file);
      offset += num_bytes;
    }
    std::fclose(file);
  }

  Random random_;
};

// The whole pass over one text, one output at a time.
class DefinedEncoder {
 public:
  explicit DefinedEncoder(const TinyEncoder& encoder) : encoder_(encoder), shape_(encoder.shape) {}

  std::vector<float> embed(const std::vector<int32_t>& tokens) const {
    Rows rows = look_up(tokens);
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      const Rows mixed = attend(layer, rows);
      for (size_t t = 0; t < rows.size(); ++t) {
        add(rows[t], multiply("o", layer, mixed[t], 1.0f));
        rows[t] = norm("attention_norm", layer, rows[t]);
        std::vector<float> wide = multiply("up", layer, rows[t], 1.0f);
        for (float& v : wide) v = definition::gelu(v);
        add(rows[t], multiply("down", layer, wide, 1.0f));
        rows[t] = norm("output_norm", layer, rows[t]);
      }
    }
    return pool(rows);
  }

 private:
  using Floats = std::vector<float>;

  static void add(Floats& x, const Floats& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] + y[i];
  }
  static float half(float x) { return definition::half_value(definition::half_bits(x, true)); }
  const Floats& vector(const std::string& role, int layer) const {
    return encoder_.at(role, layer)[0];
  }
  Floats norm(const std::string& role, int layer, const Floats& x) const {
    return definition::layer_norm(x.data(), vector(role, layer).data(),
                                  vector(role + "_bias", layer).data(), shape_.norm_eps,
                                  static_cast<int>(x.size()));
  }
  Floats multiply(const std::string& role, int layer, const Floats& x, float scale) const {
    const int n = static_cast<int>(x.size());
    const auto inputs = definition::widen(x.data(), n, kWideInput);
    const Rows& rows = encoder_.at(role, layer);
    Floats out;
    for (size_t i = 0; i < rows.size(); ++i) {
      auto weights = definition::widen(rows[i].data(), n, kWideWeight);
      weights.step = weights.step * scale;
      out.push_back(
          definition::wide_product(weights, inputs, vector(role + "_bias", layer)[i] * scale));
    }
    return out;
  }
  Rows look_up(const std::vector<int32_t>& tokens) const {
    Rows rows;
    for (size_t t = 0; t < tokens.size(); ++t) {
      Floats row = encoder_.at("words", -1)[tokens[t]];
      Floats place = encoder_.at("positions", -1)[t];
      for (float& v : row) v = half(v);
      add(place, vector("text_mark", -1));
      add(row, place);
      rows.push_back(norm("embedding_norm", -1, row));
    }
    return rows;
  }
  Rows attend(int layer, const Rows& rows) const {
    const int dim = shape_.head_dim(), count = static_cast<int>(rows.size());
    const float scale = kLog2E / std::sqrt(static_cast<float>(dim));
    Rows queries, out(rows.size());
    std::vector<definition::History> heads(shape_.num_heads, definition::History{dim, {}, {}});
    for (const Floats& row : rows) {
      queries.push_back(multiply("q", layer, row, scale));
      const Floats keys = multiply("k", layer, row, 1.0f);
      const Floats values = multiply("v", layer, row, 1.0f);
      for (int i = 0; i < shape_.hidden; ++i) {
        heads[i / dim].keys.push_back(half(keys[i]));
        heads[i / dim].values.push_back(half(values[i]));
      }
    }
    for (int t = 0; t < count; ++t) {
      for (int head = 0; head < shape_.num_heads; ++head) {
        const Floats part = definition::finish(
            definition::attend(heads[head], queries[t].data() + head * dim, count));
        out[t].insert(out[t].end(), part.begin(), part.end());
      }
    }
    return out;
  }
  Floats pool(const Rows& rows) const {
    Floats out = rows[0];
    for (size_t t = 1; t < rows.size() && !shape_.takes_first; ++t) add(out, rows[t]);
    double squares = 0;
    for (const float v : out) squares += static_cast<double>(v) * v;
    for (float& v : out) v = static_cast<float>(v / std::sqrt(squares));
    return out;
  }

  const TinyEncoder& encoder_;
  const EncoderShape& shape_;
};

}  // namespace headrace::tests
