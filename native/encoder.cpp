#include "encoder.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "cores.hpp"
#include "cpu.hpp"
#include "encoding.hpp"
#include "pack.hpp"

namespace headrace {
namespace {

EncoderShape checked(const EncoderShape& s) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::runtime_error(what);
  };
  require(s.num_layers > 0 && s.vocab > 0 && s.context > 0, "model sizes must be positive");
  require(s.hidden > 0 && s.hidden % kBlock == 0, "hidden size must be a multiple of 32");
  require(s.ffn > 0 && s.ffn % kBlock == 0, "feed-forward size must be a multiple of 32");
  require(s.num_heads > 0 && s.hidden % s.num_heads == 0 && s.head_dim() % kLanes == 0 &&
              s.head_dim() <= 256,
          "head size must be a multiple of 16, at most 256");
  return s;
}

// Rows of any float format, as the file holds them.
class FloatRows {
 public:
  FloatRows(const TensorFile& file, const TensorRef& ref, int rows, int inputs)
      : traits_(traits_of(ref)), inputs_(inputs), row_bytes_(file_row_bytes(traits_, inputs)) {
    if (!traits_.is_float) mismatch(ref, "must not be quantized");
    if (ref.rows != rows || ref.inputs != inputs) mismatch(ref, "has another shape than the model");
    if (ref.num_bytes != row_bytes_ * rows) mismatch(ref, "has another size than its shape");
    data_ = Buffer(ref.num_bytes);
    file.read(ref, data_.data());
  }
  void row(int i, float* out) const {
    float_row(traits_, data_.data() + row_bytes_ * i, inputs_, out);
  }

 private:
  const FormatTraits& traits_;
  int inputs_;
  size_t row_bytes_;
  Buffer data_;
};

}  // namespace

Encoder::Encoder(const std::string& path, const EncoderShape& shape,
                 const std::vector<TensorRef>& tensors, int num_threads, const std::string& isa)
    : shape_(checked(shape)),
      kernels_(choose_kernels(isa)),
      team_(num_threads > 0 ? num_threads : usable_cores()),
      layers_(shape_.num_layers) {
  const TensorFile file(path, tensors);
  load_words(file);
  load_positions(file);
  norm_ = load_norm(file, "embedding_norm", -1);
  for (int i = 0; i < shape_.num_layers; ++i) {
    EncoderLayer& layer = layers_[i];
    layer.qkv = load_qkv(file, i);
    layer.o = load_linear(file, "o", i, shape_.hidden, shape_.hidden);
    layer.attention_norm = load_norm(file, "attention_norm", i);
    layer.up = load_linear(file, "up", i, shape_.ffn, shape_.hidden);
    layer.down = load_linear(file, "down", i, shape_.hidden, shape_.ffn);
    layer.output_norm = load_norm(file, "output_norm", i);
  }
}

void Encoder::load_words(const TensorFile& file) {
  const size_t n = shape_.hidden;
  const FloatRows rows(file, file.need("words", -1), shape_.vocab, shape_.hidden);
  words_ = Buffer(sizeof(uint16_t) * shape_.vocab * n);
  team_.run([&](Team::Walk& walk) {
    team_.each(walk, shape_.vocab, [&](int i) {
      std::vector<float> row(n);
      rows.row(i, row.data());
      kernels_.to_half(row.data(), shape_.hidden, words_.as<uint16_t>() + i * n);
    });
  });
}

void Encoder::load_positions(const TensorFile& file) {
  const size_t n = shape_.hidden;
  const FloatRows rows(file, file.need("positions", -1), shape_.context, shape_.hidden);
  const std::vector<float> mark = file.read_vector(file.need("text_mark", -1), shape_.hidden);
  positions_ = Buffer(sizeof(float) * shape_.context * n);
  for (int i = 0; i < shape_.context; ++i) {
    rows.row(i, positions_.as<float>() + i * n);
    kernels_.add(positions_.as<float>() + i * n, mark.data(), shape_.hidden);
  }
}

// Rows [first_row, ...) of a matrix that may be made of several tensors.
void Encoder::load_rows(const TensorFile& file, const TensorRef& ref, int first_row, float scale,
                        Linear& into) {
  WideMatrix& m = into.weights;
  const FloatRows rows(file, ref, ref.rows, m.inputs);
  team_.run([&](Team::Walk& walk) {
    team_.each(walk, ref.rows, [&](int i) {
      std::vector<float> row(m.inputs);
      rows.row(i, row.data());
      try {
        m.put(first_row + i, row.data());
      } catch (const std::runtime_error& error) {
        mismatch(ref, error.what());
      }
      m.steps[first_row + i] = m.steps[first_row + i] * scale;
    });
  });
  const std::vector<float> bias =
      file.read_vector(file.need(ref.role + "_bias", ref.layer), ref.rows);
  for (int i = 0; i < ref.rows; ++i) into.bias[first_row + i] = bias[i] * scale;
}

Linear Encoder::load_linear(const TensorFile& file, const std::string& role, int layer, int rows,
                            int inputs) {
  const TensorRef& ref = file.need(role, layer);
  if (ref.rows != rows) mismatch(ref, "has another shape than the model");
  Linear linear{WideMatrix(rows, inputs), std::vector<float>(rows)};
  load_rows(file, ref, 0, 1.0f, linear);
  return linear;
}

Linear Encoder::load_qkv(const TensorFile& file, int layer) {
  const int n = shape_.hidden;
  const float scale = kLog2E / std::sqrt(static_cast<float>(shape_.head_dim()));
  Linear linear{WideMatrix(3 * n, n), std::vector<float>(3 * n)};
  int first = 0;
  for (const char* role : {"q", "k", "v"}) {
    const TensorRef& ref = file.need(role, layer);
    if (ref.rows != n) mismatch(ref, "has another shape than the model");
    load_rows(file, ref, first, first == 0 ? scale : 1.0f, linear);
    first += n;
  }
  return linear;
}

Norm Encoder::load_norm(const TensorFile& file, const std::string& role, int layer) const {
  return {file.read_vector(file.need(role, layer), shape_.hidden),
          file.read_vector(file.need(role + "_bias", layer), shape_.hidden)};
}

size_t Encoder::weight_bytes() const {
  size_t total = words_.size() + positions_.size();
  for (const EncoderLayer& l : layers_) {
    for (const Linear* m : {&l.qkv, &l.o, &l.up, &l.down}) total += m->weights.data.size();
  }
  return total;
}

void Encoder::check(const std::vector<Text>& texts) const {
  const auto require = [](bool ok, size_t i, const char* what) {
    if (!ok) throw std::invalid_argument("text " + std::to_string(i) + ": " + what);
  };
  for (size_t i = 0; i < texts.size(); ++i) {
    require(texts[i].num_tokens > 0, i, "no tokens");
    require(texts[i].num_tokens <= shape_.context, i, "more tokens than the model has positions");
    for (int t = 0; t < texts[i].num_tokens; ++t) {
      require(texts[i].tokens[t] >= 0 && texts[i].tokens[t] < shape_.vocab, i,
              "a token outside the vocabulary");
    }
  }
}

void Encoder::embed(const std::vector<Text>& texts, float* out) {
  check(texts);
  if (!texts.empty()) Encoding(*this, texts, out).run();
}

}  // namespace headrace
