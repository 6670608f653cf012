#include "experts.h"

#include <algorithm>
#include <cmath>

#include "prepare.h"

namespace hetrun::cpu {

namespace {

struct Place {
    size_t token, part;  // part: which of its token's experts
};

struct Scratch {
    uint32_t* used;  // experts of each token so far
    float* tiles;    // two of [kExpertTokens, kGroupRowsFew]
    uint8_t* prepared;
};

constexpr size_t kTileFloats = kExpertTokens * kGroupRowsFew;

Scratch scratch_of(const ExpertsArgs& a) {
    uint8_t* tiles = a.scratch + round_up(a.n_tokens * sizeof(uint32_t), 64);
    return {reinterpret_cast<uint32_t*>(a.scratch), reinterpret_cast<float*>(tiles), tiles + 2 * kTileFloats * sizeof(float)};
}

void prepare(const ExpertsArgs& a, const float* x, uint8_t* out) { prepare_row(*a.kernels, x, a.step->expert_input, out); }

// Rows [first, first + n_rows) of an expert's matrix times prepared tokens: tile[n_tokens, kGroupRowsFew].
void multiply(const ExpertsArgs& a, const WeightView& w, size_t expert, size_t first, size_t n_rows, size_t n_tokens,
              const uint8_t* prepared, float* tile) {
    const size_t n_experts = a.step->in[1]->width;
    const uint8_t* rows = w.row(expert * (w.n_rows / n_experts) + first);
    a.kernels->types[w.type]->matmul(
        {rows, w.row_bytes, n_rows, prepared, &a.step->expert_input, n_tokens, tile, kGroupRowsFew, a.matmul});
}

// Calls f(expert, places, how many) with at most kExpertTokens tokens at a time, experts in ascending order.
template <class F>
void each_expert(const ExpertsArgs& a, uint32_t* used, F f) {
    const Value& routes = *a.step->in[1];
    Place places[kExpertTokens];
    std::fill(used, used + a.n_tokens, 0u);
    for (size_t expert = 0; expert < routes.width; ++expert) {
        size_t n = 0;
        for (size_t token = 0; token < a.n_tokens; ++token) {
            if (routes.row(token)[expert] == 0.0f) continue;
            const size_t part = used[token]++;
            if (part >= a.step->n_used) continue;
            places[n++] = {token, part};
            if (n == kExpertTokens) {
                f(expert, places, n);
                n = 0;
            }
        }
        if (n) f(expert, places, n);
    }
}

}  // namespace

size_t experts_scratch_bytes(const Step& step, size_t max_tokens) {
    return round_up(max_tokens * sizeof(uint32_t), 64) + 2 * kTileFloats * sizeof(float) + kExpertTokens * step.expert_input.stride;
}

void experts_up(const ExpertsArgs& a) {
    const Step& s = *a.step;
    const Scratch scratch = scratch_of(a);
    const size_t n_ff = s.weight[0]->n_rows / s.in[1]->width;
    size_t ready = SIZE_MAX;  // a token by itself is prepared once for all of its experts
    each_expert(a, scratch.used, [&](size_t expert, const Place* places, size_t n) {
        if (n > 1 || places[0].token != ready) {
            for (size_t i = 0; i < n; ++i)
                prepare(a, s.in[0]->row(places[i].token), scratch.prepared + i * s.expert_input.stride);
            ready = n == 1 ? places[0].token : SIZE_MAX;
        }
        for (size_t first = a.begin; first < a.end; first += kGroupRowsFew) {
            const size_t n_rows = std::min(kGroupRowsFew, a.end - first);
            for (size_t half = 0; half < 2; ++half)
                multiply(a, *s.weight[half], expert, first, n_rows, n, scratch.prepared, scratch.tiles + half * kTileFloats);
            for (size_t i = 0; i < n; ++i) {
                const float* gate = scratch.tiles + i * kGroupRowsFew;
                a.kernels->gated(s.function, gate, gate + kTileFloats, n_rows,
                                 s.out->row(places[i].token) + places[i].part * n_ff + first);
            }
        }
    });
}

void experts_down(const ExpertsArgs& a) {
    const Step& s = *a.step;
    const Scratch scratch = scratch_of(a);
    const size_t n_ff = s.weight[0]->n_columns;
    for (size_t token = 0; token < a.n_tokens; ++token) std::fill(s.out->row(token) + a.begin, s.out->row(token) + a.end, 0.0f);
    each_expert(a, scratch.used, [&](size_t expert, const Place* places, size_t n) {
        for (size_t i = 0; i < n; ++i)
            prepare(a, s.in[0]->row(places[i].token) + places[i].part * n_ff, scratch.prepared + i * s.expert_input.stride);
        for (size_t first = a.begin; first < a.end; first += kGroupRowsFew) {
            const size_t n_rows = std::min(kGroupRowsFew, a.end - first);
            multiply(a, *s.weight[0], expert, first, n_rows, n, scratch.prepared, scratch.tiles);
            for (size_t i = 0; i < n; ++i) {
                float* tile = scratch.tiles + i * kGroupRowsFew;
                float* out = s.out->row(places[i].token) + first;
                a.kernels->scale(tile, s.in[1]->row(places[i].token)[expert], n_rows, tile);
                a.kernels->add(out, tile, n_rows, out);
            }
        }
    });
    for (size_t token = 0; token < a.n_tokens; ++token) {
        if (scratch.used[token] > s.n_used)
            std::fill(s.out->row(token) + a.begin, s.out->row(token) + a.end, __builtin_nanf(""));
    }
}

void route(const float* scores, size_t n_experts, size_t n_used, bool normalise, float factor, float* out) {
    float largest = scores[0];
    bool numbers = true;
    for (size_t e = 0; e < n_experts; ++e) {
        numbers = numbers && !std::isnan(scores[e]);
        largest = std::max(largest, scores[e]);
    }
    if (!numbers) return std::fill(out, out + n_experts, __builtin_nanf(""));
    double all = 0.0, kept = 0.0;
    for (size_t e = 0; e < n_experts; ++e) {
        all += std::exp(static_cast<double>(scores[e] - largest));
        out[e] = -1.0f;  // not chosen
    }
    for (size_t i = 0; i < n_used; ++i) {
        size_t best = n_experts;
        for (size_t e = 0; e < n_experts; ++e) {
            if (out[e] == -1.0f && (best == n_experts || scores[e] > scores[best])) best = e;
        }
        const double weight = std::exp(static_cast<double>(scores[best] - largest)) / all;
        kept += weight;
        out[best] = static_cast<float>(weight);
    }
    const double multiplier = static_cast<double>(factor) / (normalise ? kept : 1.0);
    for (size_t e = 0; e < n_experts; ++e)
        out[e] = out[e] == -1.0f ? 0.0f : static_cast<float>(static_cast<double>(out[e]) * multiplier);
}

}  // namespace hetrun::cpu
