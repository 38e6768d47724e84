#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "rope_table.hpp"

namespace headrace {
namespace {

constexpr const char* kNan = "the model's output is not a number";
constexpr const char* kMasked = "no token is allowed here";
// Sums run over chunks of this many weights, in order.
constexpr int kChunk = 1024;
// Where candidates are looked for, in turn. The last is below any weight but zero.
constexpr float kThresholds[] = {0x1p-7f, 0x1p-14f, 0x1p-28f, 0x1p-61f};

// A logit's place in descending order, equal for equal logits.
uint32_t place(float logit) {
  const float x = logit + 0.0f;  // zeros lose their sign
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (((bits >> 31) - 1) & 0x7FFFFFFFu);  // turns positive ones round; no branch
}

// Better first: greater logit, then lower id. A number that sorts so.
uint64_t rank(float logit, int id) {
  return uint64_t{place(logit)} << 32 | static_cast<uint32_t>(id);
}

// Keeps the fewest best tokens whose amounts reach `wanted`; all, if they do not. The last one's
// rank is found digit by digit of its place, from sums of amounts with the same digit, each in
// order of id: nothing is sorted. `ids` ascend before and after.
template <class Amount>
void keep_best(std::vector<int32_t>& ids, const float* logits, double wanted, Amount amount) {
  constexpr int kDigit = 11, kDigits = 1 << kDigit;
  uint32_t known = 0, mask = 0;
  double before = 0;
  for (int shift = 22; shift >= 0; shift -= kDigit) {
    double amounts[kDigits] = {};
    for (const int32_t id : ids) {
      const uint32_t at = place(logits[id]);
      if ((at & mask) == known) amounts[at >> shift & (kDigits - 1)] += amount(id);
    }
    int digit = -1;
    for (int d = 0; d < kDigits; ++d) {
      if (amounts[d] == 0) continue;
      if (digit >= 0) before += amounts[digit];
      digit = d;
      if (before + amounts[d] >= wanted) break;
    }
    known |= static_cast<uint32_t>(std::max(0, digit)) << shift;
    mask |= static_cast<uint32_t>(kDigits - 1) << shift;
  }
  int32_t last = 0;
  for (const int32_t id : ids) {
    if (place(logits[id]) != known) continue;
    last = id;
    before += amount(id);
    if (before >= wanted) break;
  }
  const uint64_t end = uint64_t{known} << 32 | static_cast<uint32_t>(last);
  std::erase_if(ids, [&](int32_t id) { return rank(logits[id], id) > end; });
}

// Better first: greater logit, then lower id.
struct Better {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  }
};

double log_sum(const Kernels& kernels, const float* logits, int vocab, float greatest,
               float* weights) {
  double total = 0;
  for (int i = 0; i < vocab; i += kChunk) {
    total += kernels.softmax_weights(logits + i, std::min(kChunk, vocab - i), greatest, kLog2E,
                                     weights + i);
  }
  return static_cast<double>(greatest) + plain_log(total);
}

}  // namespace

double uniform(uint64_t seed, uint32_t choice, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice,
                   0x68656164u};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t{c[0]} << 32 | c[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

Sampler::Sampler(SamplerSettings settings) : settings_(std::move(settings)) {
  penalises_ = settings_.repetition_penalty != 1.0f || settings_.frequency_penalty != 0.0f ||
               settings_.presence_penalty != 0.0f;
}

void Sampler::observe(const int32_t* tokens, size_t n, bool is_prompt) {
  if (!penalises_) return;
  for (size_t i = 0; i < n; ++i) {
    Seen& seen = seen_[tokens[i]];
    if (is_prompt) {
      seen.in_prompt = true;
    } else {
      ++seen.count;
    }
  }
}

// Logits after penalties, bias and mask; the original ones when nothing changes them.
const float* Sampler::adjust(const float* logits, int vocab, const uint32_t* mask,
                             float* out) const {
  if (seen_.empty() && settings_.bias.empty() && mask == nullptr) return logits;
  std::memcpy(out, logits, sizeof(float) * vocab);
  for (const auto& [id, seen] : seen_) {
    if (id < 0 || id >= vocab) continue;
    float x = out[id];
    x = x > 0 ? x / settings_.repetition_penalty : x * settings_.repetition_penalty;
    if (seen.count > 0) {
      x = x - settings_.frequency_penalty * static_cast<float>(seen.count);
      x = x - settings_.presence_penalty;
    }
    out[id] = x;
  }
  for (const auto& [id, bias] : settings_.bias) {
    if (id >= 0 && id < vocab) out[id] = out[id] + bias;
  }
  if (mask != nullptr) {
    for (int i = 0; i < vocab; ++i) {
      if ((mask[i / 32] >> (i % 32) & 1u) == 0) out[i] = -INFINITY;
    }
  }
  return out;
}

Sampled Sampler::sample(const Kernels& kernels, const float* logits, int vocab, uint64_t position,
                        const uint32_t* mask, float* scratch) const {
  Sampled result;
  float greatest;
  bool has_nan;
  int best = kernels.argmax(logits, vocab, &greatest, &has_nan);
  if (has_nan || greatest == INFINITY) {
    result.error = kNan;
    return result;
  }
  const float raw_greatest = greatest;
  const float* adjusted = adjust(logits, vocab, mask, scratch);
  if (adjusted != logits) best = kernels.argmax(adjusted, vocab, &greatest, &has_nan);
  if (has_nan || std::isinf(greatest)) {
    result.error = greatest == -INFINITY && !has_nan ? kMasked : kNan;
    return result;
  }
  result.token = best;
  // The inverse of a vanishing temperature overflows; all its weight is on the best token.
  if (settings_.temperature > 0 && std::isfinite(kLog2E / settings_.temperature)) {
    result.token = draw(kernels, adjusted, vocab, greatest, position, scratch + vocab);
  }
  if (settings_.want_logprob || settings_.num_logprobs > 0) {
    const double normaliser = log_sum(kernels, logits, vocab, raw_greatest, scratch + vocab);
    const auto logprob = [&](int id) { return static_cast<float>(logits[id] - normaliser); };
    result.logprob = logprob(result.token);
    const int n = std::min(settings_.num_logprobs, vocab);
    if (n > 0) {
      std::vector<int32_t> ids(vocab);
      for (int i = 0; i < vocab; ++i) ids[i] = i;
      std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), Better{logits});
      for (int i = 0; i < n; ++i) result.top.emplace_back(ids[i], logprob(ids[i]));
    }
  }
  return result;
}

int Sampler::draw(const Kernels& kernels, const float* logits, int vocab, float greatest,
                  uint64_t position, float* weights) const {
  const double u = uniform(settings_.seed, settings_.choice, position);
  if (settings_.top_k <= 0 && settings_.top_p >= 1.0f && settings_.min_p <= 0.0f) {
    return draw_any(kernels, logits, vocab, greatest, u, weights);
  }
  const float scale = kLog2E / settings_.temperature;
  double total = 0;
  for (int i = 0; i < vocab; i += kChunk) {
    total += kernels.softmax_weights(logits + i, std::min(kChunk, vocab - i), greatest, scale,
                                     weights + i);
  }
  return draw_best(weights, logits, vocab, total, u);
}

// Inverse of the cumulative weights in id order.
int Sampler::draw_any(const Kernels& kernels, const float* logits, int vocab, float greatest,
                      double u, float* weights) const {
  const float scale = kLog2E / settings_.temperature;
  std::vector<float> sums;
  double total = 0;
  for (int i = 0; i < vocab; i += kChunk) {
    sums.push_back(kernels.softmax_weights(logits + i, std::min(kChunk, vocab - i), greatest, scale,
                                           weights + i));
    total += sums.back();
  }
  double rest = u * total;
  int chunk = 0;
  while (chunk + 1 < static_cast<int>(sums.size()) && rest >= sums[chunk]) rest -= sums[chunk++];
  int last = -1;
  for (int i = chunk * kChunk; i < std::min(vocab, (chunk + 1) * kChunk); ++i) {
    if (weights[i] == 0.0f) continue;
    last = i;
    rest -= weights[i];
    if (rest < 0) return i;
  }
  // Rounding left a crumb past the chunk's last token.
  while (last < 0 && chunk > 0) {
    --chunk;
    for (int i = chunk * kChunk; i < (chunk + 1) * kChunk; ++i) {
      if (weights[i] != 0.0f) last = i;
    }
  }
  return last;
}

// A draw among the best tokens: top-k, then min-p, then the smallest set that reaches top-p of what
// is left. Candidates are collected above a falling threshold, so that they are few if few suffice.
int Sampler::draw_best(const float* weights, const float* logits, int vocab, double total,
                       double u) const {
  const size_t limit = settings_.top_k > 0 ? std::min<size_t>(settings_.top_k, vocab) : vocab;
  const bool is_share_of_all = settings_.top_k <= 0 && settings_.min_p <= 0;
  std::vector<int32_t> ids;
  for (const float threshold : kThresholds) {
    ids.clear();
    double mass = 0;
    for (int i = 0; i < vocab; ++i) {
      if (weights[i] >= threshold) {
        ids.push_back(i);
        mass += weights[i];
      }
    }
    if (ids.size() >= limit || settings_.min_p >= threshold ||
        (is_share_of_all && mass >= settings_.top_p * total)) {
      break;
    }
  }
  const auto weight = [&](int32_t id) { return static_cast<double>(weights[id]); };
  const auto sum = [&] {
    double mass = 0;
    for (const int32_t id : ids) mass += weights[id];
    return mass;
  };
  if (ids.size() > limit) {
    keep_best(ids, logits, static_cast<double>(limit), [](int32_t) { return 1.0; });
  }
  const float least = std::min(settings_.min_p, 1.0f);  // the best token weighs 1
  std::erase_if(ids, [&](int32_t id) { return weights[id] < least; });
  if (settings_.top_p < 1.0f) {
    keep_best(ids, logits, settings_.top_p * (is_share_of_all ? total : sum()), weight);
  }
  double rest = u * sum();
  for (const int32_t id : ids) {
    rest -= weights[id];
    if (rest < 0) return id;
  }
  return ids.back();
}

}  // namespace headrace
