// Sampling against a naive reference that sorts everything.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "sampler.hpp"

namespace headrace::tests {
namespace {

constexpr double kSlack = 1e-6;  // of the total weight: sums are taken in another order

Sampled sample(const Kernels& kernels, const SamplerSettings& settings,
               const std::vector<float>& logits, uint64_t position = 0,
               const uint32_t* mask = nullptr) {
  std::vector<float> scratch(2 * logits.size());
  return Sampler(settings).sample(kernels, logits.data(), static_cast<int>(logits.size()), position,
                                  mask, scratch.data());
}

// The tokens that may be drawn, in the order in which their weights add up, and what they weigh.
struct Choice {
  std::vector<int> ids;
  std::vector<double> weights;
  double total = 0;  // of the kept tokens
};

Choice naive_choice(const SamplerSettings& s, const std::vector<float>& logits) {
  const int n = static_cast<int>(logits.size());
  const float top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weight;
  for (const float x : logits) {
    weight.push_back(std::exp((static_cast<double>(x) - top) / s.temperature));
  }
  Choice c;
  c.ids.resize(n);
  std::iota(c.ids.begin(), c.ids.end(), 0);
  const bool truncates = s.top_k > 0 || s.top_p < 1 || s.min_p > 0;
  if (truncates) {
    std::stable_sort(c.ids.begin(), c.ids.end(),
                     [&](int a, int b) { return logits[a] > logits[b]; });
    if (s.top_k > 0 && s.top_k < n) c.ids.resize(s.top_k);
    while (c.ids.size() > 1 && weight[c.ids.back()] < s.min_p) c.ids.pop_back();
    double kept = 0, mass = 0;
    for (const int id : c.ids) kept += weight[id];
    size_t end = 0;
    while (end < c.ids.size() && (end == 0 || mass < s.top_p * kept)) mass += weight[c.ids[end++]];
    c.ids.resize(end);
    std::sort(c.ids.begin(), c.ids.end());
  }
  for (const int id : c.ids) {
    c.weights.push_back(weight[id]);
    c.total += weight[id];
  }
  return c;
}

// Whether `token` is where the draw u falls, or beside a boundary that u touches.
bool is_plausible(const Choice& c, double u, int token) {
  double before = 0;
  for (size_t i = 0; i < c.ids.size(); ++i) {
    const double after = before + c.weights[i] / c.total;
    if (c.ids[i] == token) return u > before - kSlack && u < after + kSlack;
    before = after;
  }
  return false;
}

std::vector<float> random_logits(int vocab, Random& random) {
  auto logits = random.normals(vocab, 2.0f + 4.0f * static_cast<float>(random.unit()));
  // Equal logits must be told apart by id.
  for (int i = 0; i + 1 < vocab; i += 5) logits[i + 1] = logits[i];
  return logits;
}

void check_draws_from(const std::vector<float>& logits, SamplerSettings settings, int num_draws,
                      Random& random) {
  const int vocab = static_cast<int>(logits.size());
  const Choice choice = naive_choice(settings, logits);
  for (int i = 0; i < num_draws; ++i) {
    settings.seed = random.bits();
    settings.choice = static_cast<uint32_t>(i);
    const uint64_t position = random.below(5000);
    const double u = uniform(settings.seed, settings.choice, position);
    for_each_isa([&](const Kernels& kernels) {
      const Sampled got = sample(kernels, settings, logits, position);
      CHECK_FOR(got.error == nullptr && is_plausible(choice, u, got.token), kernels.name, "vocab",
                vocab, "top_k", settings.top_k, "top_p", settings.top_p, "min_p", settings.min_p,
                "temperature", settings.temperature, "u", u, "token", got.token);
    });
  }
}

void check_draws(const SamplerSettings& settings, int vocab, int num_draws, Random& random) {
  check_draws_from(random_logits(vocab, random), settings, num_draws, random);
}

SamplerSettings at_temperature(float temperature) {
  SamplerSettings s;
  s.temperature = temperature;
  return s;
}

}  // namespace

HEADRACE_TEST(sampler_draws_by_weight) {
  Random random(40);
  for (const int vocab : {1, 2, 17, 1023, 1024, 1025, 5000}) {
    for (const float temperature : {0.2f, 1.0f, 3.0f}) {
      check_draws(at_temperature(temperature), vocab, quick() ? 5 : 60, random);
    }
  }
}

HEADRACE_TEST(sampler_truncates_as_defined) {
  Random random(41);
  for (int round = 0; round < (quick() ? 20 : 600); ++round) {
    SamplerSettings s = at_temperature(0.3f + 2.0f * static_cast<float>(random.unit()));
    const int kinds = 1 + random.below(7);
    if (kinds & 1) s.top_k = 1 + random.below(60);
    // Away from what a rounded sum can turn around.
    if (kinds & 2) s.top_p = 0.02f + 0.97f * static_cast<float>(random.unit());
    if (kinds & 4) s.min_p = 0.3f * static_cast<float>(random.unit());
    check_draws(s, 2 + random.below(3000), 3, random);
  }
}

// Few distinct logits, zeros of both signs among them: what is kept ends among equals, by id.
HEADRACE_TEST(sampler_truncates_among_equals) {
  Random random(46);
  const float values[] = {-3.0f, -0.5f, -0.0f, 0.0f, 0.5f, 2.0f};
  for (int round = 0; round < (quick() ? 20 : 300); ++round) {
    std::vector<float> logits(2 + random.below(2000));
    const int first = random.below(6), num_values = 1 + random.below(6 - first);
    for (float& x : logits) x = values[first + random.below(num_values)];
    SamplerSettings s = at_temperature(0.5f + 2.0f * static_cast<float>(random.unit()));
    if (round % 2) s.top_k = 1 + random.below(static_cast<int>(logits.size()));
    // Never where the mass of whole tokens ends: a rounded sum could fall on either side.
    if (round % 2 == 0) s.top_p = 0.123457f + 0.8f * static_cast<float>(random.unit());
    check_draws_from(logits, s, 5, random);
  }
}

// A wide nucleus of a large vocabulary.
HEADRACE_TEST(sampler_truncates_large_vocabularies) {
  Random random(47);
  for (const int top_k : {0, 50, 40'000}) {
    SamplerSettings s = at_temperature(2.0f);
    s.top_k = top_k;
    s.top_p = 0.99f;
    check_draws(s, quick() ? 10'000 : 150'000, 5, random);
  }
}

HEADRACE_TEST(sampler_truncation_edges) {
  Random random(42);
  const auto logits = random_logits(300, random);
  const int best =
      static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  for_each_isa([&](const Kernels& kernels) {
    for (uint64_t position = 0; position < 50; ++position) {
      for (const int kind : {0, 1, 2, 3}) {
        SamplerSettings s = at_temperature(2.0f);
        if (kind == 0) s.top_k = 1;
        if (kind == 1) s.top_p = 0.0f;
        if (kind == 2) s.min_p = 1.0f;
        if (kind == 3) s.temperature = 0.0f;
        const int token = sample(kernels, s, logits, position).token;
        // min-p of 1 keeps all that equal the best.
        CHECK_FOR(kind == 2 ? logits[token] == logits[best] : token == best, kernels.name, "kind",
                  kind);
      }
      SamplerSettings all = at_temperature(1.0f), same = all;
      same.top_k = 1'000'000;
      const int token = sample(kernels, same, logits, position).token;
      CHECK(is_plausible(naive_choice(same, logits), uniform(0, 0, position), token));
    }
  });
}

// Temperatures so low that their inverse is no float.
HEADRACE_TEST(sampler_at_vanishing_temperatures_is_argmax) {
  const std::vector<float> logits = {1.0f, 5.0f, 3.0f, 5.0f, -2.0f};
  for_each_isa([&](const Kernels& kernels) {
    for (const float temperature : {1e-45f, 1e-40f, 1e-39f, 4e-39f, 1e-38f, 1e-30f, 1e-6f}) {
      std::set<int> drawn;
      for (uint64_t position = 0; position < 40; ++position) {
        for (const float top_p : {1.0f, 0.9f}) {
          SamplerSettings s = at_temperature(temperature);
          s.top_p = top_p;
          const Sampled got = sample(kernels, s, logits, position);
          CHECK_FOR(got.error == nullptr, kernels.name, temperature);
          drawn.insert(got.token);
        }
      }
      for (const int token : drawn) {
        CHECK_FOR(token == 1 || token == 3, kernels.name, temperature, "drew", token);
      }
    }
  });
}

// Whatever the settings, a masked token is never drawn.
HEADRACE_TEST(sampler_keeps_to_the_mask) {
  Random random(43);
  for (int round = 0; round < (quick() ? 10 : 300); ++round) {
    const int vocab = 40 + random.below(2000);
    auto logits = random.normals(vocab, 8.0f);
    std::vector<uint32_t> mask((vocab + 31) / 32, 0);
    std::set<int> allowed;
    for (int i = 0; i < 1 + round % 5; ++i) {
      const int id = random.below(vocab);
      allowed.insert(id);
      mask[id / 32] |= 1u << (id % 32);
      if (random.below(2)) logits[id] = -200.0f;  // as good as impossible, yet all there is
    }
    SamplerSettings s = at_temperature(random.below(2) ? 0.7f : 0.0f);
    if (random.below(2)) s.top_k = 50;
    if (random.below(2)) s.top_p = 0.999999f;
    if (random.below(2)) s.min_p = 1e-7f;
    s.seed = random.bits();
    for_each_isa([&](const Kernels& kernels) {
      const Sampled got = sample(kernels, s, logits, round, mask.data());
      CHECK_FOR(allowed.count(got.token) == 1, kernels.name, "round", round, "token", got.token);
    });
  }
}

HEADRACE_TEST(sampler_errors_are_of_one_row) {
  std::vector<float> logits(100, 0.5f);
  const std::vector<uint32_t> none(4, 0);
  for_each_isa([&](const Kernels& kernels) {
    for (const float temperature : {0.0f, 1.0f}) {
      const SamplerSettings s = at_temperature(temperature);
      CHECK(sample(kernels, s, logits, 0, none.data()).error != nullptr);
      CHECK(sample(kernels, s, std::vector<float>(100, -INFINITY)).error != nullptr);
      for (const float bad : {NAN, INFINITY}) {
        logits[77] = bad;
        const Sampled got = sample(kernels, s, logits);
        CHECK_FOR(got.error != nullptr && got.token == -1, kernels.name, bad);
        logits[77] = 0.5f;
      }
      // Minus infinity is a probability of zero.
      logits[0] = -INFINITY;
      CHECK(sample(kernels, s, logits).error == nullptr && sample(kernels, s, logits).token != 0);
      logits[0] = 0.5f;
      for (const float bias : {INFINITY, NAN}) {
        SamplerSettings biased = s;
        biased.bias = {{5, bias}};
        CHECK_FOR(sample(kernels, biased, logits).error != nullptr, kernels.name, "bias", bias);
      }
    }
  });
}

// Penalties, bias and mask, in that order; seen through argmax of nudged logits.
HEADRACE_TEST(sampler_penalties) {
  SamplerSettings s;
  s.repetition_penalty = 2.0f;
  s.frequency_penalty = 0.5f;
  s.presence_penalty = 0.25f;
  s.bias = {{3, 1.0f}, {900, 1.0f}, {-4, 1.0f}};  // ids that are no tokens change nothing
  Sampler sampler(s);
  const int32_t prompt[] = {0, 1, 1}, generated[] = {1, 2, 2};
  sampler.observe(prompt, 3, true);
  sampler.observe(generated, 3, false);
  const std::vector<float> logits = {4.0f, -1.0f, 6.0f, 0.0f, 1.0f};
  // 0: 4 / 2; 1: -1 * 2 - 0.5 - 0.25; 2: 6 / 2 - 2 * 0.5 - 0.25; 3: 0 + 1; 4: unseen.
  const std::vector<float> expected = {2.0f, -2.75f, 1.75f, 1.0f, 1.0f};
  std::vector<float> scratch(10);
  for_each_isa([&](const Kernels& kernels) {
    CHECK(sampler.sample(kernels, logits.data(), 5, 0, nullptr, scratch.data()).token == 0);
    for (int i = 0; i < 5; ++i) CHECK_FOR(scratch[i] == expected[i], i, scratch[i]);
  });
}

HEADRACE_TEST(sampler_logprobs_are_of_the_raw_logits) {
  Random random(44);
  for (const int vocab : {3, 1000, 3001}) {
    const auto logits = random_logits(vocab, random);
    double total = 0;
    for (const float x : logits) total += std::exp(static_cast<double>(x));
    SamplerSettings s = at_temperature(0.5f);
    s.top_k = 3;
    s.num_logprobs = 20;
    s.want_logprob = true;
    for_each_isa([&](const Kernels& kernels) {
      const Sampled got = sample(kernels, s, logits, 7);
      const auto exact = [&](int id) { return logits[id] - std::log(total); };
      CHECK(std::fabs(got.logprob - exact(got.token)) < 1e-4);
      CHECK(static_cast<int>(got.top.size()) == std::min(20, vocab));
      for (size_t i = 0; i < got.top.size(); ++i) {
        const auto [id, logprob] = got.top[i];
        CHECK(std::fabs(logprob - exact(id)) < 1e-4);
        if (i == 0) continue;
        const int before = got.top[i - 1].first;
        CHECK(logits[before] > logits[id] || (logits[before] == logits[id] && before < id));
      }
    });
  }
}

// The same bits on every instruction set, logprobs included.
HEADRACE_TEST(sampler_is_the_same_on_every_instruction_set) {
  Random random(45);
  for (int round = 0; round < (quick() ? 5 : 100); ++round) {
    const auto logits = random_logits(1 + random.below(4000), random);
    SamplerSettings s = at_temperature(0.1f + static_cast<float>(random.unit()));
    if (round % 2) s.top_p = 0.9f;
    s.num_logprobs = 3;
    s.want_logprob = true;
    s.seed = random.bits();
    const Sampled first = sample(kPortableKernels, s, logits, round);
    for_each_isa([&](const Kernels& kernels) {
      const Sampled got = sample(kernels, s, logits, round);
      CHECK(got.token == first.token && got.top == first.top);
      CHECK_SAME(&got.logprob, &first.logprob, 1, kernels.name);
    });
  }
}

}  // namespace headrace::tests
