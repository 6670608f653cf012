// What the loops of the vector process take: their iterations, as hls/ has them, and the depths of their pipelines. tests/hls counts the
// iterations of the source itself beside these.
#pragma once

#include <algorithm>

#include "timing.h"

namespace hetrun::u280 {

class Loops {
public:
    explicit Loops(const EngineTiming& engine) : engine_(engine) {}

    // Of words of the DDR.
    uint64_t ddr(uint64_t n) const { return up(n, engine_.stream_floats) + engine_.ddr_cycles; }

    // Of rows, for an instruction that is neither MATMUL nor ATTEND.
    uint64_t rows(const Instruction& op, uint64_t n_rows) const {
        const uint32_t wide = engine_.vector_floats;
        const uint64_t words = up(op.n, wide);
        switch (op.op) {
            case HETRUN_U280_OP_LOAD:
            case HETRUN_U280_OP_STORE: return n_rows * ddr(op.n);
            case HETRUN_U280_OP_NORM: {
                const uint64_t n_groups = n_rows * (op.n / std::max(1u, op.group)), each = up(op.group, op.n == op.group ? wide : step(op.group));
                return ddr(op.group) + n_groups * (2 * each + 1) + engine_.norm_cycles;
            }
            case HETRUN_U280_OP_QUANTIZE:  // maxima, scales, and codes with the exponents of 32 words before them, 16 at a time
                return n_rows * (2 * words + 1 + up(words, 32) * 4) + engine_.quantize_cycles;
            case HETRUN_U280_OP_BIAS: return ddr(op.n) + n_rows * (words + engine_.element_cycles);
            case HETRUN_U280_OP_ADD: return n_rows * (2 * words + engine_.element_cycles);
            case HETRUN_U280_OP_GATE: return n_rows * (up(op.n, engine_.gate_floats) + engine_.gate_cycles);
            case HETRUN_U280_OP_ROPE: return n_rows * (ddr(2 * op.n_pairs) + rotations(op) + engine_.element_cycles);
            default: return n_rows * (words + engine_.element_cycles);  // SCALE, SELECT
        }
    }

    // Of heads: largest and least, scales, codes.
    uint64_t rounding(uint64_t n_heads, uint32_t head_dim, bool rotates) const {
        return n_heads * (2 * up(head_dim, step(head_dim)) + 1) + engine_.quantize_cycles + (rotates ? hadamard(n_heads, head_dim) : 0);
    }
    // Of heads' floats, from their sums.
    uint64_t finishing(uint64_t n_heads, uint32_t head_dim, bool rotates) const {
        const uint64_t floats = n_heads * head_dim;
        return n_heads * up(head_dim, step(head_dim)) + engine_.element_cycles + (rotates ? hadamard(n_heads, head_dim) + up(floats, engine_.vector_floats) : 0);
    }
    // So many beats to or from each channel, those of kernels side by side. One at least goes by for each.
    uint64_t exchange(uint64_t beats) const { return engine_.exchange_turns * std::max<uint64_t>(1, beats); }
    // Of the rows of a pass: two beats of scales from each channel that has a row's cell.   split: channels of a head.
    uint64_t scales(uint64_t n_rows, uint32_t groups, uint32_t split) const {
        return n_rows * groups * (engine_.exchange_turns + up(engine_.exchange_turns, split));
    }
    // Sums and largest weights of a unit of n_heads KV heads, and what follows of them.
    uint64_t weights(uint32_t queries, uint32_t n_heads, uint32_t split) const {
        return exchange(up(queries, 5)) + split * std::max(8u, n_heads * queries) + engine_.softmax_cycles;
    }
    // Sums of values, four kernels at a time, each behind the one before it; further where they share a head.
    uint64_t sums(uint32_t queries, uint32_t head_dim, uint32_t split) const {
        const bool within = split == 1 || split == 2 || split == 4;
        const uint64_t beats = up(queries * up(head_dim, 16), 4) * 4, each = std::max<uint64_t>(within ? 8 : 20, beats);
        return up(engine_.channels, 4 * engine_.exchange_turns) * (engine_.exchange_turns * each + 3 * (within ? 1 : 5));
    }

private:
    static uint64_t up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

    // Floats of a group of n that are taken at once: words, or what never crosses one.
    uint32_t step(uint32_t n) const {
        const uint32_t wide = engine_.vector_floats;
        return n % wide == 0 ? wide : std::min(wide, n % 16 == 0 ? 16u : 2u);
    }
    // Pairs in one word or in words of their own; of other heads a pair after the other, behind a copy.
    uint64_t rotations(const Instruction& op) const {
        const uint32_t wide = engine_.vector_floats, group = std::max(1u, op.group);
        const bool halves = (op.flags & HETRUN_U280_FLAG_HALF) != 0;
        if (group % wide == 0 && (!halves || 2 * op.n_pairs == wide || op.n_pairs % wide == 0)) return up(op.n, wide);
        return (op.a == op.dst ? 0 : up(op.n, wide)) + uint64_t{2} * (op.n / group) * op.n_pairs;
    }
    uint64_t hadamard(uint64_t n_heads, uint32_t head_dim) const {
        uint64_t passes = 0;
        for (uint32_t apart = 1; apart < head_dim; apart *= 2) ++passes;
        return passes * (up(n_heads * head_dim, engine_.vector_floats) + engine_.element_cycles);
    }

    const EngineTiming& engine_;
};

}  // namespace hetrun::u280
