// Feed-forward blocks that choose among experts: one thread's share of them.
#pragma once

#include "program.h"

namespace hetrun::cpu {

// Tokens of one expert that pass its weights together.
constexpr size_t kExpertTokens = 16;

struct ExpertsArgs {
    const Kernels* kernels;
    const Step* step;  // EXPERTS_UP or EXPERTS_DOWN
    size_t n_tokens;
    size_t begin, end;  // the thread's rows of each expert's matrices
    uint8_t* scratch;   // experts_scratch_bytes, 64-byte aligned
    uint8_t* matmul;    // matmul_scratch_bytes
};

size_t experts_scratch_bytes(const Step& step, size_t max_tokens);
void experts_up(const ExpertsArgs&);
void experts_down(const ExpertsArgs&);

// One row of ROUTE.
void route(const float* scores, size_t n_experts, size_t n_used, bool normalise, float factor, float* out);

}  // namespace hetrun::cpu
