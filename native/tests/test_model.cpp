// The forward pass: equal to its definition bit for bit, in any batch, chunk, bank and thread
// count.
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "model.hpp"
#include "sampler.hpp"
#include "threads.hpp"
#include "tiny_model.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace::tests {
namespace {

Shape shape(int hidden, int heads, int kv_heads, int head_dim, int ffn, int vocab, int context) {
  Shape s;
  s.num_layers = 2;
  s.hidden = hidden;
  s.num_heads = heads;
  s.num_kv_heads = kv_heads;
  s.head_dim = head_dim;
  s.ffn = ffn;
  s.vocab = vocab;
  s.context = context;
  s.rope_dim = head_dim;
  s.rms_eps = 1e-5f;
  s.attention_scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return s;
}

// Nothing is a multiple of 64, the vocabulary not of 16; interleaved rotation.
const TinyModel& odd_model() {
  static const TinyModel model = [] {
    Shape s = shape(96, 6, 2, 16, 160, 50, 700);
    s.rope_interleaved = true;
    return TinyModel(s,
                     {Format::kQ4_0, Format::kQ8_0, Format::kF16, Format::kQ5_1, Format::kQ4_1,
                      Format::kF32, Format::kQ5_0, Format::kBF16},
                     true, false, false);
  }();
  return model;
}

// More query heads to a KV head than a query tile has rows; K formats; biases, norms, factors.
const TinyModel& wide_model() {
  static const TinyModel model = [] {
    Shape s = shape(256, 16, 1, 16, 256, 33, 600);
    s.rope_factors = {1, 1, 1.5, 2, 3, 5, 8, 8};
    return TinyModel(s, {Format::kQ4_K, Format::kQ6_K, Format::kQ5_K}, false, true, true);
  }();
  return model;
}

// The largest head, partly rotated.
const TinyModel& tall_model() {
  static const TinyModel model = [] {
    Shape s = shape(32, 2, 1, 256, 64, 16, 64);
    s.rope_dim = 96;
    return TinyModel(s, {Format::kQ8_0, Format::kQ4_1}, true, true, false);
  }();
  return model;
}

std::vector<int32_t> random_tokens(int n, int vocab, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = random.below(vocab);
  return tokens;
}

// A sequence and the banks that it holds.
struct Run {
  std::vector<int32_t> tokens, banks;
  int done = 0;
  std::vector<std::vector<float>> logits;  // a row per token computed

  Span span(int count) const {
    return {tokens.data() + done, count, done, banks.data(), static_cast<int>(banks.size()), count};
  }
};

// Banks numbered by `order` in turn; `from` is the first that is free.
Run make_run(std::vector<int32_t> tokens, const std::vector<int32_t>& order, int& from) {
  Run run;
  run.tokens = std::move(tokens);
  const int n = (static_cast<int>(run.tokens.size()) + kBankSize - 1) / kBankSize;
  run.banks.assign(order.begin() + from, order.begin() + from + n);
  from += n;
  return run;
}

std::vector<int32_t> shuffled(int n, Random& random) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int i = n - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
  return order;
}

void step(Model& model, const std::vector<Run*>& runs, const std::vector<int>& counts) {
  std::vector<Span> spans;
  for (size_t i = 0; i < runs.size(); ++i) spans.push_back(runs[i]->span(counts[i]));
  model.step(spans);
  int row = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (int t = 0; t < counts[i]; ++t) {
      const float* p = model.logits(row++);
      runs[i]->logits.emplace_back(p, p + model.shape().vocab);
    }
    runs[i]->done += counts[i];
  }
  CHECK(row == model.num_logits());
}

std::vector<std::vector<float>> whole(const TinyModel& tiny, const std::vector<int32_t>& tokens,
                                      const std::string& isa, int threads) {
  Model model = tiny.load(threads, isa);
  model.allocate(32);
  int from = 0;
  std::vector<int32_t> order(32);
  std::iota(order.begin(), order.end(), 0);
  Run run = make_run(tokens, order, from);
  step(model, {&run}, {static_cast<int>(tokens.size())});
  return run.logits;
}

void check_rows(const std::vector<std::vector<float>>& got,
                const std::vector<std::vector<float>>& expected, const std::string& what) {
  CHECK_FOR(got.size() == expected.size(), what);
  for (size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    CHECK_SAME(got[i].data(), expected[i].data(), expected[i].size(), what, "position", i);
  }
}

void check_definition(const TinyModel& tiny, int num_tokens) {
  const auto tokens = random_tokens(num_tokens, tiny.shape.vocab, 50);
  DefinedModel defined(tiny);
  std::vector<std::vector<float>> expected;
  for (const int32_t token : tokens) expected.push_back(defined.next(token));
  CHECK(std::isfinite(expected.back()[0]));
  for_each_isa([&](const Kernels& kernels) {
    check_rows(whole(tiny, tokens, kernels.name, 2), expected, kernels.name);
  });
}

}  // namespace

HEADRACE_TEST(model_equals_its_definition) {
  check_definition(odd_model(), quick() ? 20 : 275);
  check_definition(wide_model(), quick() ? 10 : 60);
  check_definition(tall_model(), quick() ? 5 : 50);
}

namespace {

// Several sequences, advanced by random numbers of tokens in random company, over random banks.
void run_in_company(Model& model, std::vector<Run>& runs, Random& random) {
  for (;;) {
    std::vector<Run*> chosen;
    std::vector<int> counts;
    bool left = false;
    for (Run& run : runs) {
      const int rest = static_cast<int>(run.tokens.size()) - run.done;
      left = left || rest > 0;
      if (rest == 0 || random.below(3) == 0) continue;
      const int count = random.below(2) ? 1 : 1 + random.below(70);
      chosen.push_back(&run);
      counts.push_back(std::min(rest, count));
    }
    if (!left) return;
    if (!chosen.empty()) step(model, chosen, counts);
  }
}

void check_company(const TinyModel& tiny, int length) {
  std::vector<std::vector<int32_t>> texts;
  std::vector<std::vector<std::vector<float>>> alone;
  for (int i = 0; i < 5; ++i) {
    texts.push_back(random_tokens(i == 0 ? length : 1 + 13 * i, tiny.shape.vocab, 60 + i));
    alone.push_back(whole(tiny, texts.back(), "portable", 1));
  }
  Random random(61);
  for_each_isa([&](const Kernels& kernels) {
    for (const int threads : {1, 2, 3}) {
      Model model = tiny.load(threads, kernels.name);
      model.allocate(40);
      const auto order = shuffled(40, random);
      int from = 0;
      std::vector<Run> runs;
      for (const auto& text : texts) runs.push_back(make_run(text, order, from));
      run_in_company(model, runs, random);
      for (size_t i = 0; i < runs.size(); ++i) {
        check_rows(runs[i].logits, alone[i],
                   describe(kernels.name, "threads", threads, "sequence", static_cast<int>(i)));
      }
    }
  });
}

}  // namespace

// The promise: a row depends on its own sequence alone.
HEADRACE_TEST(model_is_invariant_in_company) {
  check_company(odd_model(), quick() ? 70 : 530);
  if (quick()) return;
  check_company(wide_model(), 300);
  check_company(tall_model(), 64);
}

// Spans of a few tokens, whose attention is divided by partition, with a partition's end among
// them. What lies before is computed once; what lies after is what the last round has left.
HEADRACE_TEST(model_is_invariant_across_partitions) {
  const TinyModel& tiny = odd_model();
  const int stride = quick() ? 2 : 1;
  for (const int edge : quick() ? std::vector<int>{256} : std::vector<int>{256, 512}) {
    const auto tokens = random_tokens(edge + 8, tiny.shape.vocab, 62);
    const auto expected = whole(tiny, tokens, "", 1);
    Model model = tiny.load(2);
    model.allocate(32);
    std::vector<int32_t> order(32);
    std::iota(order.begin(), order.end(), 0);
    int from = 0;
    Run begun = make_run(tokens, order, from);
    step(model, {&begun}, {edge - 5});
    for (int before = 1; before <= 5; before += stride) {
      for (int after = 1; after <= 5; after += stride) {
        Run run = begun;
        if (before < 5) step(model, {&run}, {5 - before});
        step(model, {&run}, {before + after});
        step(model, {&run}, {8 - after});
        check_rows(run.logits, expected, describe("around", edge, "by", before, after));
      }
    }
  }
}

HEADRACE_TEST(model_banks_move) {
  const TinyModel& tiny = odd_model();
  const auto tokens = random_tokens(100, tiny.shape.vocab, 70);
  const auto expected = whole(tiny, tokens, "", 1);
  Model model = tiny.load(2);
  model.allocate(20);
  Run run{tokens, {3, 7, 1, 19}, 0, {}};
  step(model, {&run}, {90});
  std::vector<uint8_t> data(model.bank_bytes());
  model.export_bank(7, data.data());
  model.copy_bank(3, 12);
  model.copy_bank(3, 3);
  model.import_bank(18, data.data());
  model.shift_bank(1, 0);
  // The old places hold other things now.
  model.import_bank(3, std::vector<uint8_t>(data.size(), 0xFF).data());
  model.import_bank(7, std::vector<uint8_t>(data.size(), 0xFF).data());
  run.banks = {12, 18, 1, 19};
  step(model, {&run}, {10});
  check_rows(run.logits, expected, "after moving");
}

// Keys shifted by a bank's length stand where they would have been computed, within 16-bit
// rounding.
HEADRACE_TEST(model_shifts_keys) {
  const TinyModel& tiny = odd_model();
  Model model = tiny.load(1);
  model.allocate(4);
  const std::vector<int32_t> token = {5};
  const std::vector<int32_t> banks = {0, 1, 2};
  const int dim = tiny.shape.head_dim;
  // The first layer's key of a token depends on its position through the rotation alone.
  model.step({{token.data(), 1, 3, banks.data(), 3, 0}});
  model.step({{token.data(), 1, 3 + 64, banks.data(), 3, 0}});
  model.shift_bank(0, 64);
  std::vector<uint8_t> shifted(model.bank_bytes()), computed(model.bank_bytes());
  model.export_bank(0, shifted.data());
  model.export_bank(2, computed.data());
  const auto* a = reinterpret_cast<const uint16_t*>(shifted.data());
  const auto* b = reinterpret_cast<const uint16_t*>(computed.data());
  double norm = 0, difference = 0;
  for (int d = 0; d < dim; ++d) {
    const float x = definition::half_value(a[16 * d + 3]),
                y = definition::half_value(b[16 * d + 3]);
    norm += y * y;
    difference += (x - y) * (x - y);
  }
  CHECK_FOR(norm > 0.1 && std::sqrt(difference / norm) < 1e-3, norm, difference);
}

HEADRACE_TEST(model_of_context_one) {
  const TinyModel tiny(shape(32, 2, 2, 16, 32, 17, 1), {Format::kF32}, true, false, false);
  Model model = tiny.load(2);
  model.allocate(1);
  const int32_t tokens[] = {16, 16}, bank = 0;
  model.step({{tokens, 1, 0, &bank, 1, 1}});
  CHECK(std::isfinite(model.logits(0)[16]));
  CHECK_THROWS(model.step({{tokens, 2, 0, &bank, 1, 1}}), std::invalid_argument);
  CHECK_THROWS(model.step({{tokens, 1, 1, &bank, 1, 1}}), std::invalid_argument);
}

HEADRACE_TEST(model_refuses_wrong_spans) {
  const TinyModel& tiny = odd_model();
  Model model = tiny.load(2);
  const std::vector<int32_t> tokens = random_tokens(40, 50, 80), banks = {0, 1};
  const Span good{tokens.data(), 40, 0, banks.data(), 2, 1};
  CHECK_THROWS(model.step({good}), std::invalid_argument);  // no pool yet
  model.allocate(2);
  model.step({good});
  const std::vector<float> before(model.logits(0), model.logits(0) + 50);
  const int32_t too_large = 50, negative = -1;
  const std::vector<int32_t> outside = {0, 2}, below = {-1, 1};
  const std::vector<std::function<void(Span&)>> faults = {
      [](Span& s) { s.num_tokens = 0; },
      [](Span& s) { s.num_tokens = -1; },
      [](Span& s) { s.position = -1; },
      [](Span& s) { s.position = 661; },
      [](Span& s) { s.position = INT32_MAX; },
      [](Span& s) { s.position = 30; },  // needs a third bank
      [](Span& s) { s.num_banks = 1; },
      [](Span& s) { s.num_banks = 0; },
      [](Span& s) { s.num_logits = 41; },
      [](Span& s) { s.num_logits = -1; },
      [&](Span& s) { s.tokens = &too_large, s.num_tokens = 1; },
      [&](Span& s) { s.tokens = &negative, s.num_tokens = 1; },
      [&](Span& s) { s.banks = outside.data(); },
      [&](Span& s) { s.banks = below.data(); },
  };
  for (size_t i = 0; i < faults.size(); ++i) {
    Span bad = good;
    faults[i](bad);
    CHECK_THROWS(model.step({good, bad}), std::invalid_argument);
  }
  model.step({good});
  CHECK_SAME(model.logits(0), before.data(), 50, "after refusals");
  CHECK_THROWS(model.logits(1), std::invalid_argument);
  CHECK_THROWS(model.logits(-1), std::invalid_argument);
  for (const int bank : {-1, 2, INT32_MAX, INT32_MIN}) {
    CHECK_THROWS(model.copy_bank(bank, 0), std::invalid_argument);
    CHECK_THROWS(model.copy_bank(0, bank), std::invalid_argument);
    CHECK_THROWS(model.shift_bank(bank, 1), std::invalid_argument);
  }
  model.step({});
  CHECK(model.num_logits() == 0);
}

// A directory opens, but no read of it succeeds.
HEADRACE_TEST(model_tells_a_failed_read_from_a_short_file) {
  std::string message;
  try {
    const Model model("/", odd_model().shape, odd_model().refs, 1, "");
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK_FOR(message.find("cannot read tensor") == 0, message);
}

// The last positions of the longest context that fits an int: sizes must not wrap around.
HEADRACE_TEST(model_refuses_positions_that_wrap) {
  Shape s = odd_model().shape;
  s.context = INT32_MAX;
  Model model(odd_model().path, s, odd_model().refs, 1, "");
  model.allocate(1);
  const int32_t token = 0, bank = 0;
  CHECK_THROWS(model.step({{&token, 1, INT32_MAX - 1, &bank, 1, 0}}), std::invalid_argument);
  CHECK_THROWS(model.step({{&token, 1, INT32_MAX - 32, &bank, 1, 0}}), std::invalid_argument);
}

HEADRACE_TEST(model_refuses_pools_that_do_not_fit) {
  Model model = odd_model().load();
  CHECK_THROWS(model.allocate(-1), std::exception);
  CHECK_THROWS(model.allocate(INT32_MIN), std::exception);
  model.allocate(2);
  CHECK(model.num_banks() == 2);
}

HEADRACE_TEST(model_refuses_wrong_tensors) {
  const TinyModel& tiny = odd_model();
  const auto load = [&](const std::vector<TensorRef>& refs) {
    Model(tiny.path, tiny.shape, refs, 1, "");
  };
  for (size_t i = 0; i < tiny.refs.size(); ++i) {
    const std::vector<std::function<void(TensorRef&)>> faults = {
        [](TensorRef& r) { r.rows += 1; },
        [](TensorRef& r) { r.inputs += 32; },
        [](TensorRef& r) { r.num_bytes -= 1; },
        [](TensorRef& r) { r.num_bytes = UINT64_MAX; },
        [](TensorRef& r) { r.offset = uint64_t{1} << 40; },
        [](TensorRef& r) { r.offset = UINT64_MAX; },
        [](TensorRef& r) { r.type = 9; },
        [](TensorRef& r) { r.type = UINT32_MAX; },
        [](TensorRef& r) { r.role = "elsewhere"; },
    };
    for (const auto& fault : faults) {
      auto refs = tiny.refs;
      fault(refs[i]);
      CHECK_THROWS(load(refs), std::runtime_error);
    }
  }
  CHECK_THROWS(Model("/nonexistent/file", tiny.shape, tiny.refs, 1, ""), std::runtime_error);
  CHECK_THROWS(Model("/tmp", tiny.shape, tiny.refs, 1, ""), std::runtime_error);
  CHECK_THROWS(tiny.load(1, "quantum"), std::invalid_argument);
}

HEADRACE_TEST(model_refuses_wrong_shapes) {
  const TinyModel& tiny = odd_model();
  const std::vector<std::function<void(Shape&)>> faults = {
      [](Shape& s) { s.num_layers = 0; },   [](Shape& s) { s.hidden = 80; },
      [](Shape& s) { s.hidden = 0; },       [](Shape& s) { s.ffn = 0; },
      [](Shape& s) { s.vocab = -1; },       [](Shape& s) { s.context = 0; },
      [](Shape& s) { s.head_dim = 8; },     [](Shape& s) { s.head_dim = 272; },
      [](Shape& s) { s.num_kv_heads = 0; }, [](Shape& s) { s.num_kv_heads = 4; },
      [](Shape& s) { s.num_heads = 0; },    [](Shape& s) { s.num_heads = -6; },
      [](Shape& s) { s.rope_dim = 0; },     [](Shape& s) { s.rope_dim = 15; },
      [](Shape& s) { s.rope_dim = 18; },    [](Shape& s) { s.rope_factors = {1.0}; },
      [](Shape& s) { s.num_layers = 3; },
  };
  for (const auto& fault : faults) {
    Shape s = tiny.shape;
    fault(s);
    CHECK_THROWS(Model(tiny.path, s, tiny.refs, 1, ""), std::runtime_error);
  }
}

// A sequence of NaN weights fails for itself; its neighbours' bits stay.
HEADRACE_TEST(model_keeps_nan_to_its_sequence) {
  TinyModel tiny(shape(64, 4, 2, 16, 64, 20, 100), {Format::kF32}, false, false, false);
  const TensorRef* embedding = nullptr;
  for (const TensorRef& ref : tiny.refs) {
    if (ref.role == "token_embedding") embedding = &ref;
  }
  std::FILE* file = std::fopen(tiny.path.c_str(), "r+b");
  const float nan = NAN;
  std::fseek(file, static_cast<long>(embedding->offset + 7 * 64 * sizeof nan), SEEK_SET);
  std::fwrite(&nan, sizeof nan, 1, file);
  std::fclose(file);
  for_each_isa([&](const Kernels& kernels) {
    Model model = tiny.load(2, kernels.name);
    model.allocate(4);
    const std::vector<int32_t> sound = {1, 2, 3, 4}, sick = {1, 7, 3, 4};
    const std::vector<int32_t> first = {0}, second = {1};
    model.step({{sound.data(), 4, 0, first.data(), 1, 1}});
    const std::vector<float> alone(model.logits(0), model.logits(0) + 20);
    model.step(
        {{sick.data(), 4, 0, second.data(), 1, 1}, {sound.data(), 4, 0, first.data(), 1, 1}});
    CHECK_SAME(model.logits(1), alone.data(), 20, kernels.name, "beside NaN");
    std::vector<float> scratch(40);
    const Sampler sampler{SamplerSettings{}};
    CHECK(sampler.sample(kernels, model.logits(0), 20, 4, nullptr, scratch.data()).error);
    CHECK(!sampler.sample(kernels, model.logits(1), 20, 4, nullptr, scratch.data()).error);
  });
}

#if defined(__x86_64__)
// Rounding and flushing that the host program has set do not reach results.
HEADRACE_TEST(model_ignores_the_hosts_floating_point_control) {
  const TinyModel& tiny = odd_model();
  const auto tokens = random_tokens(40, 50, 90);
  const auto expected = whole(tiny, tokens, "", 2);
  const unsigned before = _mm_getcsr();
  for (const unsigned bits : {0x8040u, 0x2000u, 0x4000u, 0x6000u}) {
    _mm_setcsr(before | bits);
    const auto got = whole(tiny, tokens, "", 2);
    _mm_setcsr(before);
    check_rows(got, expected, "control " + word(bits));
  }
}
#endif

}  // namespace headrace::tests
