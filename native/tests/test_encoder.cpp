// The encoder: equal to its definition bit for bit, in any company and with any number of threads.
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "encoder.hpp"
#include "tiny_encoder.hpp"

namespace headrace::tests {
namespace {

EncoderShape shape(int hidden, int heads, int ffn, int vocab, int context) {
  EncoderShape s;
  s.num_layers = 2;
  s.hidden = hidden;
  s.num_heads = heads;
  s.ffn = ffn;
  s.vocab = vocab;
  s.context = context;
  s.norm_eps = 1e-12f;
  return s;
}

// More than one block of inputs, and texts of more than one partition of keys.
const TinyEncoder& odd_encoder() {
  static const TinyEncoder encoder(shape(96, 6, 160, 40, 300));
  return encoder;
}

const TinyEncoder& first_token_encoder() {
  static const TinyEncoder encoder([] {
    EncoderShape s = shape(64, 1, 32, 17, 40);
    s.takes_first = true;
    return s;
  }());
  return encoder;
}

using Tokens = std::vector<int32_t>;

Tokens random_text(int n, int vocab, Random& random) {
  Tokens tokens(n);
  for (int32_t& t : tokens) t = random.below(vocab);
  return tokens;
}

std::vector<float> embed(const TinyEncoder& tiny, const std::vector<Tokens>& texts, int threads,
                         const std::string& isa) {
  Encoder encoder(tiny.path, tiny.shape, tiny.refs, threads, isa);
  std::vector<Text> views;
  for (const Tokens& text : texts) views.push_back({text.data(), static_cast<int>(text.size())});
  std::vector<float> out(texts.size() * tiny.shape.hidden);
  encoder.embed(views, out.data());
  return out;
}

void check_encoder(const TinyEncoder& tiny, const std::vector<int>& lengths) {
  Random random(90);
  const DefinedEncoder defined(tiny);
  const int hidden = tiny.shape.hidden;
  std::vector<Tokens> texts;
  std::vector<float> expected;
  for (const int length : lengths) {
    texts.push_back(random_text(length, tiny.shape.vocab, random));
    const auto vector = defined.embed(texts.back());
    expected.insert(expected.end(), vector.begin(), vector.end());
  }
  for_each_isa([&](const Kernels& kernels) {
    for (const int threads : {1, 2, 3}) {
      const auto got = embed(tiny, texts, threads, kernels.name);
      CHECK_SAME(got.data(), expected.data(), got.size(), kernels.name, "threads", threads);
    }
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto alone = embed(tiny, {texts[i]}, 2, kernels.name);
      CHECK_SAME(alone.data(), expected.data() + i * hidden, hidden, kernels.name, "alone", i);
    }
  });
}

}  // namespace

HEADRACE_TEST(encoder_equals_its_definition) {
  if (quick()) {
    check_encoder(odd_encoder(), {1, 14, 3});
    check_encoder(first_token_encoder(), {5, 2});
  } else {
    check_encoder(odd_encoder(), {1, 13, 2, 290, 16, 33, 5, 64});
    check_encoder(first_token_encoder(), {40, 1, 7});
  }
}

HEADRACE_TEST(an_encoder_is_used_again_for_less_and_for_more) {
  const TinyEncoder& tiny = first_token_encoder();
  const DefinedEncoder defined(tiny);
  Encoder encoder(tiny.path, tiny.shape, tiny.refs, 2, "");
  Random random(91);
  for (const int length : {5, 30, 1, 40, 12}) {
    const Tokens text = random_text(length, tiny.shape.vocab, random);
    std::vector<float> got(tiny.shape.hidden);
    encoder.embed({{text.data(), length}}, got.data());
    const auto expected = defined.embed(text);
    CHECK_SAME(got.data(), expected.data(), got.size(), "length", length);
  }
  encoder.embed({}, nullptr);
}

HEADRACE_TEST(texts_that_do_not_fit_an_encoder) {
  const TinyEncoder& tiny = first_token_encoder();
  Encoder encoder(tiny.path, tiny.shape, tiny.refs, 1, "");
  const Tokens long_text(41, 3), wrong = {1, 17}, negative = {-1};
  std::vector<float> out(tiny.shape.hidden);
  for (const Text& text : {Text{long_text.data(), 41}, Text{wrong.data(), 2},
                           Text{negative.data(), 1}, Text{wrong.data(), 0}}) {
    CHECK_THROWS(encoder.embed({text}, out.data()), std::invalid_argument);
  }
}

HEADRACE_TEST(encoder_files_that_do_not_fit_their_shape) {
  const TinyEncoder& tiny = first_token_encoder();
  const auto load = [&](EncoderShape s, std::vector<TensorRef> refs) {
    return Encoder(tiny.path, s, refs, 1, "").weight_bytes();
  };
  CHECK(load(tiny.shape, tiny.refs) > 0);
  for (size_t i = 0; i < tiny.refs.size(); ++i) {
    auto refs = tiny.refs;
    refs.erase(refs.begin() + static_cast<int>(i));
    CHECK_THROWS(load(tiny.shape, refs), std::runtime_error);
    for (const auto& spoil : std::vector<void (*)(TensorRef&)>{
             [](TensorRef& r) { r.rows += 1; }, [](TensorRef& r) { r.inputs += 32; },
             [](TensorRef& r) { r.num_bytes -= 4; }, [](TensorRef& r) { r.offset = 1u << 30; },
             [](TensorRef& r) { r.type = static_cast<uint32_t>(Format::kQ8_0); },
             [](TensorRef& r) { r.type = 99; }}) {
      refs = tiny.refs;
      spoil(refs[i]);
      CHECK_THROWS(load(tiny.shape, refs), std::runtime_error);
    }
  }
  EncoderShape s = tiny.shape;
  s.hidden = 40;
  CHECK_THROWS(load(s, tiny.refs), std::runtime_error);
  s = tiny.shape;
  s.num_heads = 3;
  CHECK_THROWS(load(s, tiny.refs), std::runtime_error);
  s = tiny.shape;
  s.num_layers = 3;
  CHECK_THROWS(load(s, tiny.refs), std::runtime_error);
}

}  // namespace headrace::tests
