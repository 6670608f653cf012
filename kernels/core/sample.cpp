// Filters in the order that the field uses: repetition penalty, top-k, top-p, min-p, temperature, one draw.
#include "hetrun_core.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace {

struct Candidate {
  float logit;
  int32_t id;
};

// Ties go to the lower id, so that equal logits give the same token on every machine.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// SplitMix64 (Steele, Lea, Flood 2014): one 64-bit word of state, a uniform double from the top 53 bits.
double uniform(uint64_t& state) {
  state += 0x9E3779B97F4A7C15ULL;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

void penalise(std::vector<float>& logits, const int32_t* recent, int32_t n_recent, float penalty) {
  std::vector<int32_t> ids(recent, recent + n_recent);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (int32_t id : ids) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

int32_t most_likely(const float* logits, int32_t n_vocab) {
  int32_t best = -1;
  for (int32_t i = 0; i < n_vocab; i++) {
    if (std::isnan(logits[i])) continue;
    if (best < 0 || logits[i] > logits[best]) best = i;
  }
  return best;
}

std::vector<Candidate> top_candidates(const float* logits, int32_t n_vocab, int32_t top_k) {
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<size_t>(n_vocab));
  for (int32_t i = 0; i < n_vocab; i++) {
    if (!std::isnan(logits[i])) candidates.push_back({logits[i], i});
  }
  const size_t k = top_k > 0 ? static_cast<size_t>(top_k) : candidates.size();
  if (k < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k), candidates.end(), more_likely);
    candidates.resize(k);
  }
  std::sort(candidates.begin(), candidates.end(), more_likely);
  return candidates;
}

// exp((logit - best) / temperature) for each candidate. An infinite best logit leaves those that share it.
std::vector<double> weights_of(const std::vector<Candidate>& candidates, double temperature) {
  std::vector<double> weights(candidates.size());
  const double best = candidates.front().logit;
  for (size_t i = 0; i < candidates.size(); i++) {
    const double logit = candidates[i].logit;
    weights[i] = logit == best ? 1.0 : std::exp((logit - best) / temperature);
  }
  return weights;
}

void keep_nucleus(std::vector<Candidate>& candidates, double top_p, double min_p) {
  const std::vector<double> weights = weights_of(candidates, 1.0);
  size_t kept = candidates.size();
  if (top_p < 1.0) {
    double total = 0.0;
    for (double w : weights) total += w;
    double sum = 0.0;
    for (kept = 0; kept < weights.size() && sum < top_p * total; kept++) sum += weights[kept];
  }
  if (min_p > 0.0) {
    while (kept > 1 && weights[kept - 1] < min_p) kept--;
  }
  candidates.resize(std::max<size_t>(kept, 1));
}

}  // namespace

int32_t hetrun_core_sample(const float* logits, int32_t n_vocab, const hetrun_sampling* sampling, const int32_t* recent,
                           int32_t n_recent, uint64_t* rng_state) {
  std::vector<float> penalised;
  if (sampling->repeat_penalty != 1.0F && n_recent > 0) {
    penalised.assign(logits, logits + n_vocab);
    penalise(penalised, recent, n_recent, sampling->repeat_penalty);
    logits = penalised.data();
  }
  if (!(sampling->temperature > 0.0F)) return most_likely(logits, n_vocab);

  std::vector<Candidate> candidates = top_candidates(logits, n_vocab, sampling->top_k);
  if (candidates.empty()) return -1;
  keep_nucleus(candidates, sampling->top_p, sampling->min_p);
  const std::vector<double> weights = weights_of(candidates, sampling->temperature);
  double total = 0.0;
  for (double w : weights) total += w;
  double left = uniform(*rng_state) * total;
  for (size_t i = 0; i < weights.size(); i++) {
    left -= weights[i];
    if (left < 0.0) return candidates[i].id;
  }
  return candidates.back().id;
}

void hetrun_core_mask(const float* logits, int32_t n_vocab, const uint32_t* mask, int32_t n_bits, float* masked) {
  constexpr float kNever = std::numeric_limits<float>::quiet_NaN();
  const int32_t n = std::min(n_vocab, n_bits);
  int32_t start = 0;
  for (; start + 32 <= n; start += 32) {
    uint32_t bits = mask[start / 32];
    if (bits == ~0U) {  // inside a string most words are all ones, outside 0
      std::copy(logits + start, logits + start + 32, masked + start);
      continue;
    }
    std::fill(masked + start, masked + start + 32, kNever);
    for (; bits != 0; bits &= bits - 1) {
      const int32_t i = start + __builtin_ctz(bits);
      masked[i] = logits[i];
    }
  }
  for (int32_t i = start; i < n_vocab; i++) {
    masked[i] = i < n && (mask[i / 32] >> (i % 32) & 1U) != 0 ? logits[i] : kNever;
  }
}
