#include "model.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "cores.hpp"
#include "cpu.hpp"
#include "forward.hpp"
#include "half.hpp"
#include "pack.hpp"

namespace headrace {
namespace {

constexpr int kMaxHeadDim = 256;

// The file's row behind row `i` of a head matrix: interleaved pairs (2i, 2i + 1) become halves.
int file_row(int i, int head_dim, int rope_dim, bool permuted) {
  const int inside = i % head_dim;
  if (!permuted || inside >= rope_dim) return i;
  const int half = rope_dim / 2;
  return i - inside + (inside < half ? 2 * inside : 2 * (inside - half) + 1);
}

void check_shape(const Shape& s) {
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::runtime_error(what);
  };
  require(s.num_layers > 0 && s.vocab > 0 && s.context > 0, "model sizes must be positive");
  require(s.hidden > 0 && s.hidden % kBlock == 0, "hidden size must be a multiple of 32");
  require(s.ffn > 0 && s.ffn % kBlock == 0, "feed-forward size must be a multiple of 32");
  require(s.head_dim >= 16 && s.head_dim % 16 == 0 && s.head_dim <= kMaxHeadDim,
          "head size must be a multiple of 16, at most 256");
  require(s.num_kv_heads > 0 && s.num_heads > 0 && s.num_heads % s.num_kv_heads == 0,
          "heads must be a multiple of KV heads");
  require(s.num_heads * s.head_dim % kBlock == 0, "attention width must be a multiple of 32");
  require(s.rope_dim > 0 && s.rope_dim % 2 == 0 && s.rope_dim <= s.head_dim,
          "rotary size must be even and at most the head size");
  require(s.rope_factors.empty() || static_cast<int>(s.rope_factors.size()) == s.rope_dim / 2,
          "rotary factors must number half the rotary size");
}

}  // namespace

Model::Model(const std::string& path, Shape shape, const std::vector<TensorRef>& tensors,
             int num_threads, const std::string& isa)
    : shape_((check_shape(shape), std::move(shape))),
      kernels_(choose_kernels(isa)),
      team_(num_threads > 0 ? num_threads : usable_cores()),
      rope_(shape_.rope_dim, shape_.rope_theta, shape_.rope_factors),
      layers_(shape_.num_layers),
      work_(std::make_unique<Workspace>()) {
  const TensorFile file(path, tensors);
  const int width = shape_.num_heads * shape_.head_dim;
  const int kv_width = shape_.num_kv_heads * shape_.head_dim;
  const bool permuted = shape_.rope_interleaved;

  const auto matrix = [&](const char* role, int layer, int rows, int inputs, bool permuted_rows) {
    return load_matrix(file, file.need(role, layer), rows, inputs, permuted_rows);
  };
  const auto vector = [&](const char* role, int layer, int size) {
    return load_vector(file, file.need(role, layer), size);
  };
  const auto optional = [&](const char* role, int layer, int size, bool permuted_rows) {
    const TensorRef* ref = file.find(role, layer);
    return ref == nullptr ? std::vector<float>() : load_vector(file, *ref, size, permuted_rows);
  };

  embedding_ = matrix("token_embedding", -1, shape_.vocab, shape_.hidden, false);
  if (file.find("output", -1) != nullptr)
    head_ = matrix("output", -1, shape_.vocab, shape_.hidden, false);
  output_norm_ = vector("output_norm", -1, shape_.hidden);
  for (int i = 0; i < shape_.num_layers; ++i) {
    Layer& l = layers_[i];
    l.attention_norm = vector("attn_norm", i, shape_.hidden);
    l.q = matrix("q", i, width, shape_.hidden, permuted);
    l.k = matrix("k", i, kv_width, shape_.hidden, permuted);
    l.v = matrix("v", i, kv_width, shape_.hidden, false);
    l.q_bias = optional("q_bias", i, width, permuted);
    l.k_bias = optional("k_bias", i, kv_width, permuted);
    l.v_bias = optional("v_bias", i, kv_width, false);
    l.q_norm = optional("q_norm", i, shape_.head_dim, permuted);
    l.k_norm = optional("k_norm", i, shape_.head_dim, permuted);
    l.o = matrix("o", i, shape_.hidden, width, false);
    l.ffn_norm = vector("ffn_norm", i, shape_.hidden);
    l.gate = matrix("gate", i, shape_.ffn, shape_.hidden, false);
    l.up = matrix("up", i, shape_.ffn, shape_.hidden, false);
    l.down = matrix("down", i, shape_.hidden, shape_.ffn, false);
  }
  bank_bytes_ = slice_bytes(shape_.head_dim) * shape_.num_kv_heads * shape_.num_layers;
}

Model::~Model() = default;

Matrix Model::load_matrix(const TensorFile& file, const TensorRef& ref, int rows, int inputs,
                          bool permuted) {
  const FormatTraits& traits = traits_of(ref);
  if (ref.rows != rows || ref.inputs != inputs) mismatch(ref, "has another shape than the model");
  if (inputs % traits.file_block != 0) mismatch(ref, "has rows that its blocks do not divide");
  const size_t row_bytes = file_row_bytes(traits, inputs);
  if (ref.num_bytes != row_bytes * rows) mismatch(ref, "has another size than its shape");

  Matrix m;
  m.traits = &traits;
  m.format = format_index(traits.format);
  m.rows = rows;
  m.inputs = inputs;
  m.num_tiles = (rows + kLanes - 1) / kLanes;
  m.tile_bytes = tile_bytes(traits, inputs);
  m.data = Buffer(m.tile_bytes * m.num_tiles);
  Buffer raw(ref.num_bytes);
  file.read(ref, raw.data());
  const int dim = shape_.head_dim;
  team_.run([&](Team::Walk& walk) {
    team_.each(walk, m.num_tiles, [&](int i) {
      const uint8_t* sources[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int row = i * kLanes + lane;
        const int from = row < rows ? file_row(row, dim, shape_.rope_dim, permuted) : 0;
        sources[lane] = row < rows ? raw.data() + from * row_bytes : nullptr;
      }
      pack_tile(traits, sources, inputs, m.data.data() + i * m.tile_bytes);
    });
  });
  return m;
}

std::vector<float> Model::load_vector(const TensorFile& file, const TensorRef& ref, int size,
                                      bool permuted) {
  std::vector<float> out = file.read_vector(ref, size);
  if (!permuted) return out;
  std::vector<float> ordered(size);
  for (int i = 0; i < size; ++i) {
    ordered[i] = out[file_row(i, shape_.head_dim, shape_.rope_dim, true)];
  }
  return ordered;
}

size_t Model::weight_bytes() const {
  const auto bytes = [](const Matrix& m) { return m.tile_bytes * m.num_tiles; };
  size_t total = bytes(head_.empty() ? embedding_ : head_);
  for (const Layer& l : layers_) {
    for (const Matrix* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) total += bytes(*m);
  }
  return total;
}

void Model::allocate(int num_banks) {
  if (num_banks < 0) throw std::invalid_argument("a pool cannot have fewer than 0 banks");
  const size_t num_groups = (static_cast<size_t>(num_banks) + kGroupBanks - 1) / kGroupBanks;
  pool_ = Buffer(group_bytes() * num_groups);
  num_banks_ = num_banks;
}

void Model::touch(int first, int count) const {
  if (first < 0 || count < 0) throw std::invalid_argument("banks to touch are counted from 0");
  // Banks of a group are interleaved, so single ones are met on average only.
  pool_.populate(static_cast<size_t>(first) * bank_bytes_,
                 static_cast<size_t>(count) * bank_bytes_);
}

void Model::check_bank(int bank) const {
  if (bank < 0 || bank >= num_banks_) {
    throw std::invalid_argument("bank " + std::to_string(bank) + " is not in the pool of " +
                                std::to_string(num_banks_));
  }
}

template <class Visit>
void Model::each_slice(int bank, Visit visit) const {
  check_bank(bank);
  const size_t size = slice_bytes(shape_.head_dim);
  size_t offset = 0;
  for (int layer = 0; layer < shape_.num_layers; ++layer) {
    for (int head = 0; head < shape_.num_kv_heads; ++head, offset += size) {
      visit(slice(layer, head, bank), layer, head, offset);
    }
  }
}

void Model::copy_bank(int source, int target) {
  check_bank(source);
  const size_t size = slice_bytes(shape_.head_dim);
  each_slice(target, [&](uint8_t* to, int layer, int head, size_t) {
    std::memmove(to, slice(layer, head, source), size);
  });
}

void Model::export_bank(int bank, uint8_t* out) const {
  const size_t size = slice_bytes(shape_.head_dim);
  each_slice(bank, [&](const uint8_t* from, int, int, size_t offset) {
    std::memcpy(out + offset, from, size);
  });
}

void Model::import_bank(int bank, const uint8_t* data) {
  const size_t size = slice_bytes(shape_.head_dim);
  each_slice(bank,
             [&](uint8_t* to, int, int, size_t offset) { std::memcpy(to, data + offset, size); });
}

void Model::shift_bank(int bank, int delta) {
  const FloatingPointControl control;
  const int dim = shape_.head_dim, half = shape_.rope_dim / 2;
  std::vector<float> cosine(half), sine(half), key(dim);
  std::vector<uint16_t> halves(dim);
  rope_.rotation(delta, cosine.data(), sine.data());
  each_slice(bank, [&](uint8_t* from, int, int, size_t) {
    auto* keys = reinterpret_cast<uint16_t*>(from);
    for (int slot = 0; slot < kBankSize; ++slot) {
      uint16_t* at = keys + slot / kLanes * kLanes * dim + slot % kLanes;
      for (int d = 0; d < dim; ++d) halves[d] = at[d * kLanes];
      kernels_.from_half(halves.data(), dim, key.data());
      kernels_.rotate(key.data(), dim, shape_.rope_dim, cosine.data(), sine.data(), 1.0f);
      kernels_.to_half(key.data(), dim, halves.data());
      for (int d = 0; d < dim; ++d) at[d * kLanes] = halves[d];
    }
  });
}

void Model::move(const std::vector<Move>& moves) {
  for (const Move& m : moves) {
    check_bank(m.source);
    check_bank(m.target);
    const auto fits = [&](int slot) { return slot >= 0 && slot <= kBankSize - m.count; };
    if (m.count < 1 || !fits(m.first) || !fits(m.at)) {
      throw std::invalid_argument("a move does not fit into banks of " + std::to_string(kBankSize) +
                                  " positions");
    }
  }
  const int half = shape_.rope_dim / 2;
  std::vector<float> turns(moves.size() * 2 * half);
  for (size_t i = 0; i < moves.size(); ++i) {
    float* cosine = turns.data() + i * 2 * half;
    rope_.rotation(moves[i].delta, cosine, cosine + half);
  }
  const int heads = shape_.num_kv_heads;
  team_.run([&](Team::Walk& walk) {
    team_.each(walk, shape_.num_layers * heads, [&](int item) {
      const int layer = item / heads, head = item % heads;
      for (size_t i = 0; i < moves.size(); ++i) {
        const float* cosine = turns.data() + i * 2 * half;
        move_in_slice(moves[i], cosine, cosine + half, slice(layer, head, moves[i].source),
                      slice(layer, head, moves[i].target));
      }
    });
  });
}

void Model::move_in_slice(const Move& m, const float* cosine, const float* sine, uint8_t* from,
                          uint8_t* to) const {
  const int dim = shape_.head_dim;
  float key[kMaxHeadDim];
  uint16_t halves[kMaxHeadDim];
  const auto lane = [&](uint8_t* slice, int slot) {
    return reinterpret_cast<uint16_t*>(slice) + slot / kLanes * kLanes * dim + slot % kLanes;
  };
  for (int i = 0; i < m.count; ++i) {
    const uint16_t* source = lane(from, m.first + i);
    uint16_t* target = lane(to, m.at + i);
    for (int d = 0; d < dim; ++d) halves[d] = source[d * kLanes];
    if (m.delta != 0) {
      kernels_.from_half(halves, dim, key);
      kernels_.rotate(key, dim, shape_.rope_dim, cosine, sine, 1.0f);
      kernels_.to_half(key, dim, halves);
    }
    for (int d = 0; d < dim; ++d) target[d * kLanes] = halves[d];
  }
  const auto values = [&](uint8_t* slice, int slot) {
    return slice + slice_bytes(dim) / 2 + static_cast<size_t>(slot) * dim * sizeof(uint16_t);
  };
  std::memmove(values(to, m.at), values(from, m.first), m.count * dim * sizeof(uint16_t));
}

void Model::check(const std::vector<Span>& spans) const {
  const auto require = [](bool ok, size_t i, const char* what) {
    if (!ok) throw std::invalid_argument("span " + std::to_string(i) + ": " + what);
  };
  for (size_t i = 0; i < spans.size(); ++i) {
    const Span& s = spans[i];
    require(s.num_tokens > 0, i, "no tokens");
    require(s.position >= 0 && s.position <= shape_.context - s.num_tokens, i,
            "positions past the model's context");
    require(s.num_logits >= 0 && s.num_logits <= s.num_tokens, i, "more logits than tokens");
    const int needed = (s.position + s.num_tokens - 1) / kBankSize + 1;
    require(s.num_banks >= needed, i, "too few banks");
    for (int b = 0; b < needed; ++b) {
      require(s.banks[b] >= 0 && s.banks[b] < num_banks_, i, "a bank outside the pool");
    }
    for (int t = 0; t < s.num_tokens; ++t) {
      require(s.tokens[t] >= 0 && s.tokens[t] < shape_.vocab, i, "a token outside the vocabulary");
    }
  }
}

void Model::step(const std::vector<Span>& spans) {
  check(spans);
  num_logits_ = 0;
  if (spans.empty()) return;
  int end = 0;
  for (const Span& s : spans) end = std::max(end, s.position + s.num_tokens);
  rope_.extend(end);
  num_logits_ = Forward(*this, *work_, spans).run();
}

const float* Model::logits(int row) const {
  if (row < 0 || row >= num_logits_) {
    throw std::invalid_argument("logits row " + std::to_string(row) + " of " +
                                std::to_string(num_logits_));
  }
  return work_->logits.as<float>() + static_cast<size_t>(row) * head_rows(*this);
}

}  // namespace headrace
