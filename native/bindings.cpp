// The Python face of the core: headrace._native.
//
// Arrays come in as array('i') or any contiguous buffer; long calls release the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cores.hpp"
#include "cpu.hpp"
#include "encoder.hpp"
#include "memory.hpp"
#include "model.hpp"
#include "sampler.hpp"
#include "scan.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace headrace {
namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Shorts = nb::ndarray<const int16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Shape shape_from(const nb::dict& d) {
  const auto integer = [&](const char* key) { return nb::cast<int>(d[key]); };
  const auto number = [&](const char* key) { return nb::cast<double>(d[key]); };
  Shape s;
  s.num_layers = integer("num_layers");
  s.hidden = integer("hidden_size");
  s.num_heads = integer("num_heads");
  s.num_kv_heads = integer("num_kv_heads");
  s.head_dim = integer("head_dim");
  s.ffn = integer("ffn_size");
  s.vocab = integer("vocab_size");
  s.context = integer("context_length");
  s.rope_dim = integer("rope_dim");
  s.rope_theta = number("rope_theta");
  s.rope_interleaved = nb::cast<bool>(d["rope_interleaved"]);
  s.rope_factors = nb::cast<std::vector<double>>(d["rope_factors"]);
  s.rms_eps = static_cast<float>(number("rms_eps"));
  s.attention_scale = static_cast<float>(number("attention_scale"));
  return s;
}

// The parts of an item, itself a tuple or what makes one; nanobind looks neither at a tuple's type
// nor at its length.
nb::tuple parts_of(nb::handle item, Py_ssize_t count) {
  const auto parts = nb::steal<nb::tuple>(PySequence_Tuple(item.ptr()));
  if (!parts.is_valid()) throw nb::python_error();
  if (PyTuple_GET_SIZE(parts.ptr()) != count) {
    throw nb::type_error(("expected a tuple of " + std::to_string(count)).c_str());
  }
  return parts;
}

std::vector<TensorRef> tensors_from(const nb::list& list) {
  std::vector<TensorRef> refs;
  for (nb::handle item : list) {
    const nb::tuple t = parts_of(item, 7);
    refs.push_back({nb::cast<std::string>(t[0]), nb::cast<int>(t[1]), nb::cast<uint32_t>(t[2]),
                    nb::cast<int>(t[3]), nb::cast<int>(t[4]), nb::cast<uint64_t>(t[5]),
                    nb::cast<uint64_t>(t[6])});
  }
  return refs;
}

// Rows to sample as Python hands them over, held while the GIL is away.
struct SampleRow {
  int logits;
  nb::object holder;
  const Sampler* sampler;
  uint64_t position;
  std::optional<Words> mask;
};

std::vector<SampleRow> rows_from(const nb::sequence& rows) {
  std::vector<SampleRow> all;
  for (nb::handle item : rows) {
    const nb::tuple row = parts_of(item, 4);
    SampleRow r{nb::cast<int>(row[0]),
                nb::borrow(row[1]),
                &nb::cast<const Sampler&>(row[1]),
                nb::cast<uint64_t>(row[2]),
                {}};
    if (!row[3].is_none()) r.mask = nb::cast<Words>(row[3]);
    all.push_back(std::move(r));
  }
  return all;
}

// A model behind the narrow header of model/interface.py. One thread at a time computes: Python
// threads that call at once take turns, and close() waits for its turn. Nobody waits for the mutex
// with the GIL in hand.
class Core {
 public:
  Core(const std::string& path, const nb::dict& shape, const nb::list& tensors, int threads,
       const std::string& isa) {
    Shape s = shape_from(shape);
    const std::vector<TensorRef> refs = tensors_from(tensors);
    nb::gil_scoped_release release;
    model_ = std::make_unique<Model>(path, std::move(s), refs, threads, isa);
  }

  // Long work, without the GIL.
  template <class Work>
  auto compute(Work work) const {
    nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return work(model());
  }

  // Short work, which is not worth giving up the GIL for unless another thread computes.
  template <class Work>
  auto briefly(Work work) const {
    const auto lock = turn();
    return work(model());
  }

  void close() {
    const auto lock = turn();
    model_.reset();
  }

  // Each span: (tokens, position, banks, num_logits).
  void step(const nb::sequence& spans) {
    std::vector<Ints> keep;
    std::vector<Span> batch;
    for (nb::handle item : spans) {
      const nb::tuple span = parts_of(item, 4);
      const auto tokens = nb::cast<Ints>(span[0]);
      const auto banks = nb::cast<Ints>(span[2]);
      batch.push_back({tokens.data(), static_cast<int>(tokens.size()), nb::cast<int>(span[1]),
                       banks.data(), static_cast<int>(banks.size()), nb::cast<int>(span[3])});
      keep.push_back(tokens);
      keep.push_back(banks);
    }
    compute([&](Model& m) { m.step(batch); });
  }

  // Each row: (row, sampler, position, mask or None).
  nb::list sample(const nb::sequence& rows) {
    const std::vector<SampleRow> batch = rows_from(rows);
    std::vector<Sampled> results(batch.size());
    compute([&](Model& m) { draw(m, batch, results); });
    nb::list out;
    for (const Sampled& s : results) {
      nb::list top;
      for (const auto& [id, logprob] : s.top) top.append(nb::make_tuple(id, logprob));
      nb::object token = s.error ? nb::none() : nb::object(nb::int_(s.token));
      nb::object error = s.error ? nb::object(nb::str(s.error)) : nb::none();
      out.append(nb::make_tuple(token, s.logprob, top, error));
    }
    return out;
  }

  nb::bytes logits(int row) const {
    return briefly([&](Model& m) {
      return nb::bytes(reinterpret_cast<const char*>(m.logits(row)),
                       sizeof(float) * m.shape().vocab);
    });
  }

  // Each move: (source, first, target, at, count, delta).
  void move(const nb::sequence& moves) {
    std::vector<Move> all;
    for (nb::handle item : moves) {
      const nb::tuple m = parts_of(item, 6);
      const auto number = [&](int i) { return nb::cast<int>(m[i]); };
      all.push_back({number(0), number(1), number(2), number(3), number(4), number(5)});
    }
    compute([&](Model& m) { m.move(all); });
  }

  nb::bytes export_bank(int bank) const {
    return briefly([&](Model& m) {
      std::vector<uint8_t> data(m.bank_bytes());
      m.export_bank(bank, data.data());
      return nb::bytes(reinterpret_cast<const char*>(data.data()), data.size());
    });
  }

  void import_bank(int bank, const nb::bytes& data) {
    briefly([&](Model& m) {
      if (data.size() != m.bank_bytes()) {
        throw std::invalid_argument("a bank of this model has " + std::to_string(m.bank_bytes()) +
                                    " bytes, not " + std::to_string(data.size()));
      }
      m.import_bank(bank, reinterpret_cast<const uint8_t*>(data.c_str()));
    });
  }

 private:
  Model& model() const {
    if (!model_) throw std::runtime_error("the model is closed");
    return *model_;
  }

  std::unique_lock<std::mutex> turn() const {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      nb::gil_scoped_release release;
      lock.lock();
    }
    return lock;
  }

  void draw(Model& m, const std::vector<SampleRow>& batch, std::vector<Sampled>& results) {
    const int vocab = m.shape().vocab;
    std::vector<const float*> logits;
    for (const SampleRow& row : batch) {
      if (row.mask && row.mask->size() < static_cast<size_t>(vocab + 31) / 32) {
        throw std::invalid_argument("the grammar mask is shorter than the vocabulary");
      }
      logits.push_back(m.logits(row.logits));
    }
    const size_t share = static_cast<size_t>(vocab) * 2;
    scratch_.reserve(share * m.team().size() * sizeof(float));
    m.team().run([&](Team::Walk& walk) {
      float* mine = scratch_.as<float>() + share * walk.thread();
      m.team().each(walk, static_cast<int>(batch.size()), [&](int i) {
        const SampleRow& row = batch[i];
        const uint32_t* mask = row.mask ? row.mask->data() : nullptr;
        results[i] = row.sampler->sample(m.kernels(), logits[i], vocab, row.position, mask, mine);
      });
    });
  }

  mutable std::mutex mutex_;
  std::unique_ptr<Model> model_;
  Buffer scratch_;
};

EncoderShape encoder_shape_from(const nb::dict& d) {
  const auto integer = [&](const char* key) { return nb::cast<int>(d[key]); };
  EncoderShape s;
  s.num_layers = integer("num_layers");
  s.hidden = integer("hidden_size");
  s.num_heads = integer("num_heads");
  s.ffn = integer("ffn_size");
  s.vocab = integer("vocab_size");
  s.context = integer("context_length");
  s.norm_eps = static_cast<float>(nb::cast<double>(d["norm_eps"]));
  s.takes_first = nb::cast<bool>(d["takes_first"]);
  return s;
}

std::vector<Text> texts_from(const Ints& tokens, const Ints& lengths) {
  std::vector<Text> texts;
  const int32_t* at = tokens.data();
  size_t rest = tokens.size();
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int32_t length = lengths.data()[i];
    if (length < 0 || static_cast<size_t>(length) > rest) {
      throw std::invalid_argument("the lengths do not add up to the tokens");
    }
    texts.push_back({at, length});
    at += length;
    rest -= static_cast<size_t>(length);
  }
  if (rest != 0) throw std::invalid_argument("the lengths do not add up to the tokens");
  return texts;
}

// An encoder behind model/embedding. One thread at a time computes, the others wait their turn.
class EncoderCore {
 public:
  EncoderCore(const std::string& path, const nb::dict& shape, const nb::list& tensors, int threads,
              const std::string& isa) {
    const EncoderShape s = encoder_shape_from(shape);
    const std::vector<TensorRef> refs = tensors_from(tensors);
    nb::gil_scoped_release release;
    encoder_ = std::make_unique<Encoder>(path, s, refs, threads, isa);
  }

  void embed(const Ints& tokens, const Ints& lengths, const Table& out) {
    const std::vector<Text> texts = texts_from(tokens, lengths);
    if (out.shape(0) != texts.size() ||
        out.shape(1) != static_cast<size_t>(encoder_->shape().hidden)) {
      throw std::invalid_argument("the vectors have no room in `out`");
    }
    nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    encoder_->embed(texts, out.data());
  }

  const char* isa() const { return encoder_->kernels().name; }
  int num_threads() const { return encoder_->num_threads(); }
  size_t weight_bytes() const { return encoder_->weight_bytes(); }

 private:
  std::mutex mutex_;
  std::unique_ptr<Encoder> encoder_;
};

nb::dict cpu_info() {
  nb::dict d;
  d["name"] = cpu_name();
  nb::list sets;
  for (const Kernels* kernels : supported_kernels()) sets.append(kernels->name);
  d["instruction_sets"] = sets;
  d["usable_cores"] = usable_cores();
  return d;
}

// sums[i] = rows[i] . x
std::vector<size_t> nearest_rows(const Bytes& rows, const Floats& scales, const Shorts& x,
                                 size_t limit) {
  constexpr size_t kMost = size_t{1} << 17;
  const size_t n = x.shape(0);
  if (rows.shape(1) != n || rows.shape(0) != scales.shape(0) || n > kMost) {
    throw std::invalid_argument("rows, scales and x do not fit each other");
  }
  for (size_t i = 0; i < n; ++i) {
    if (x.data()[i] < -127 || x.data()[i] > 127) throw std::invalid_argument("x is over 127");
  }
  nb::gil_scoped_release release;
  static const Kernels& kernels = choose_kernels("");
  static const int num_threads = usable_cores();
  const ByteRows all{rows.data(), scales.data(), rows.shape(0), static_cast<int>(n)};
  return nearest(kernels, all, x.data(), limit, num_threads);
}

Sampler make_sampler(float temperature, int top_k, float top_p, float min_p,
                     float repetition_penalty, float frequency_penalty, float presence_penalty,
                     uint64_t seed, uint32_t choice, int num_logprobs, bool want_logprob,
                     const nb::sequence& logit_bias) {
  SamplerSettings s{
      temperature,      top_k, top_p,  min_p,        repetition_penalty, frequency_penalty,
      presence_penalty, seed,  choice, num_logprobs, want_logprob,       {}};
  for (nb::handle item : logit_bias) {
    const nb::tuple pair = parts_of(item, 2);
    s.bias.emplace_back(nb::cast<int32_t>(pair[0]), nb::cast<float>(pair[1]));
  }
  return Sampler(std::move(s));
}

}  // namespace
}  // namespace headrace

NB_MODULE(_native, m) {
  using namespace headrace;
  m.attr("NUMERICS_VERSION") = kNumericsVersion;
  m.attr("BANK_SIZE") = kBankSize;

  m.def("cpu", &cpu_info);
  m.def(
      "measure_bandwidth",
      [](size_t num_bytes, int threads, int repeats) {
        nb::gil_scoped_release release;
        return measure_bandwidth(num_bytes, threads > 0 ? threads : usable_cores(), repeats);
      },
      "num_bytes"_a, "threads"_a = 0, "repeats"_a = 10,
      "Bytes a second that all threads read together: the best of `repeats` passes.");
  m.def(
      "nearest", &nearest_rows, "rows"_a, "scales"_a, "x"_a, "limit"_a,
      "The `limit` rows whose dot products with x, times their scales, are the greatest, the best "
      "first. On all cores.");
  m.def("uniform", &uniform, "seed"_a, "choice"_a, "position"_a);

  nb::class_<Sampler>(m, "Sampler")
      .def(nb::new_(&make_sampler), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
           "repetition_penalty"_a, "frequency_penalty"_a, "presence_penalty"_a, "seed"_a,
           "choice"_a, "num_logprobs"_a, "want_logprob"_a, "logit_bias"_a)
      .def(
          "observe",
          [](Sampler& self, const Ints& tokens, bool is_prompt) {
            self.observe(tokens.data(), tokens.size(), is_prompt);
          },
          "tokens"_a, "is_prompt"_a = false);

  nb::class_<Core>(m, "Core")
      .def(
          nb::init<const std::string&, const nb::dict&, const nb::list&, int, const std::string&>(),
          "path"_a, "shape"_a, "tensors"_a, "threads"_a = 0, "isa"_a = "")
      .def_prop_ro(
          "isa", [](const Core& c) { return c.briefly([](Model& m) { return m.kernels().name; }); })
      .def_prop_ro(
          "num_threads",
          [](const Core& c) { return c.briefly([](Model& m) { return m.team().size(); }); })
      .def_prop_ro("bank_bytes",
                   [](const Core& c) { return c.briefly([](Model& m) { return m.bank_bytes(); }); })
      .def_prop_ro(
          "weight_bytes",
          [](const Core& c) { return c.briefly([](Model& m) { return m.weight_bytes(); }); })
      .def(
          "allocate",
          [](Core& c, int num_banks) { c.briefly([&](Model& m) { m.allocate(num_banks); }); },
          "num_banks"_a)
      .def(
          "touch",
          [](const Core& c, int first, int count) {
            c.compute([&](Model& m) { m.touch(first, count); });
          },
          "first"_a, "count"_a)
      .def("step", &Core::step, "spans"_a)
      .def("sample", &Core::sample, "rows"_a)
      .def("logits", &Core::logits, "row"_a)
      .def(
          "copy_bank",
          [](Core& c, int source, int target) {
            c.briefly([&](Model& m) { m.copy_bank(source, target); });
          },
          "source"_a, "target"_a)
      .def(
          "shift_bank",
          [](Core& c, int bank, int delta) {
            c.briefly([&](Model& m) { m.shift_bank(bank, delta); });
          },
          "bank"_a, "delta"_a)
      .def("move", &Core::move, "moves"_a)
      .def("export_bank", &Core::export_bank, "bank"_a)
      .def("import_bank", &Core::import_bank, "bank"_a, "data"_a)
      .def("close", &Core::close);

  nb::class_<EncoderCore>(m, "EncoderCore")
      .def(
          nb::init<const std::string&, const nb::dict&, const nb::list&, int, const std::string&>(),
          "path"_a, "shape"_a, "tensors"_a, "threads"_a = 0, "isa"_a = "")
      .def_prop_ro("isa", &EncoderCore::isa)
      .def_prop_ro("num_threads", &EncoderCore::num_threads)
      .def_prop_ro("weight_bytes", &EncoderCore::weight_bytes)
      .def("embed", &EncoderCore::embed, "tokens"_a, "lengths"_a, "out"_a);
}
