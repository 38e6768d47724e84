// From logits to a token: penalties, masks, temperature, truncation, a counter-based draw.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace headrace {

struct SamplerSettings {
  float temperature = 0;  // 0 is argmax
  int top_k = 0;          // 0 keeps all
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
  uint64_t seed = 0;
  uint32_t choice = 0;
  int num_logprobs = 0;
  bool want_logprob = false;
  std::vector<std::pair<int32_t, float>> bias;
};

struct Sampled {
  int token = -1;  // -1 with an error
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first, ties to the lower id
  const char* error = nullptr;
};

// A uniform number in [0, 1) that is a function of its arguments alone: Philox 4x32-10
// (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011).
double uniform(uint64_t seed, uint32_t choice, uint64_t position);

// One sequence's sampler: settings, and how often each token has been seen.
class Sampler {
 public:
  explicit Sampler(SamplerSettings settings);

  // Counts tokens for the penalties. Those of the prompt weigh in the repetition penalty only.
  void observe(const int32_t* tokens, size_t n, bool is_prompt);

  // `logits` are those of the model, `mask` a bit per token or null; `scratch` holds `vocab` floats
  // twice. Log-probabilities are of the unmodified logits. The token drawn is the one at which the
  // weights of those that top-k, min-p and top-p leave, added up in id order, pass uniform() of
  // their sum. The time is linear in `vocab`, whatever they leave.
  Sampled sample(const Kernels& kernels, const float* logits, int vocab, uint64_t position,
                 const uint32_t* mask, float* scratch) const;

 private:
  struct Seen {
    bool in_prompt = false;
    int count = 0;
  };

  const float* adjust(const float* logits, int vocab, const uint32_t* mask, float* out) const;
  int draw(const Kernels& kernels, const float* logits, int vocab, float greatest,
           uint64_t position, float* weights) const;
  int draw_any(const Kernels& kernels, const float* logits, int vocab, float greatest, double u,
               float* weights) const;
  int draw_best(const float* weights, const float* logits, int vocab, double total, double u) const;

  SamplerSettings settings_;
  bool penalises_ = false;
  std::unordered_map<int32_t, Seen> seen_;
};

}  // namespace headrace
