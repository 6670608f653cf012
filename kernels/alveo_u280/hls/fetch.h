// The program: fetched pass by pass, and checked before any other process sees it, so that none must.
#pragma once

#include "ahead.h"
#include "cells.h"
#include "flow.h"

namespace hetrun::u280 {

// Of the memories, in beats.
struct Limits {
    uint64_t hbm, ddr;
};

// What MATMUL multiplies: as the last QUANTIZE left it.
struct Quantized {
    uint32_t n_columns, rows;
};

constexpr uint32_t kVectorFloats = HETRUN_U280_VECTOR_FLOATS;

// A value of n floats in the vector memory begins at a whole word.
inline bool fits(uint32_t first, uint32_t n) { return first % kCodes == 0 && first <= kVectorFloats && n <= kVectorFloats - first; }

// `rows` rows of n floats at a beat of the DDR, the first of number `first`.
inline bool fits_ddr(const Limits& limits, uint32_t beat, uint64_t first, uint64_t rows, uint32_t stride, uint32_t n) {
    const uint64_t end = uint64_t{beat} * kFloats + (rows == 0 ? 0 : (first + rows - 1) * stride + n);
    return (rows < 2 || stride >= n) && end <= limits.ddr * kFloats;
}

inline bool fits_rows(const Limits& limits, const Instruction& i, const Pass& pass, uint32_t n) {
    if (i.rows == HETRUN_U280_ROWS_TOKENS) return fits_ddr(limits, i.ddr, pass.first, pass.n_rows, i.stride, n);
    for (uint32_t o = 0; o < pass.n_outputs; ++o) {
        const uint64_t number = static_cast<uint32_t>(pass.row[pass.output_row[o]].output);
        if ((number != 0 && i.stride < n) || !fits_ddr(limits, i.ddr, number, 1, i.stride, n)) return false;
    }
    return true;
}

inline uint32_t problem_of_weight(const Instruction& i, const Limits& limits) {
    if (i.format >= HETRUN_U280_FORMATS) return HETRUN_U280_STATUS_BAD_FORMAT;
    if (i.n_rows == 0 || i.n_columns == 0 || i.n_columns > kMaxColumns) return HETRUN_U280_STATUS_BAD_SHAPE;
    const Format f = kFormats[i.format];
    const uint64_t blocks = (uint64_t{i.n_rows} + f.rows - 1) / f.rows, own = (blocks + kChannels - 1) / kChannels;
    const uint64_t beats = (own + group_blocks(f) - 1) / group_blocks(f) + own * block_beats(f, i.n_columns);
    return i.hbm + beats <= limits.hbm ? HETRUN_U280_STATUS_OK : HETRUN_U280_STATUS_BAD_SHAPE;
}

inline uint32_t problem_of_attend(const Instruction& i, const Pass& pass, const Limits& limits) {
    constexpr uint32_t bad = HETRUN_U280_STATUS_BAD_SHAPE;
    if (i.head_dim == 0 || i.head_dim > kMaxHeadDim || i.head_dim % 2 != 0) return bad;
    if (i.n_heads == 0 || i.n_heads > kMaxHeads || i.n_heads_kv == 0 || i.n_heads % i.n_heads_kv != 0) return bad;
    if (i.n_heads / i.n_heads_kv * divided(i.head_dim, 128) > kMaxQueries) return bad;
    if ((i.flags & HETRUN_U280_FLAG_HADAMARD) != 0 && (i.head_dim & (i.head_dim - 1)) != 0) return bad;
    if (i.n_slots == 0 || i.n_cells == 0 || i.n_cells > HETRUN_U280_MAX_CELLS || i.n_ctx < i.n_cells || i.n_ctx > 1u << 30) return bad;
    // A ring holds all that a query sees.
    if (i.n_cells < i.n_ctx && (i.window == 0 || i.sink >= i.n_cells || i.window > i.n_cells - i.sink)) return bad;
    const KvLayout kv(i.n_cells, i.n_heads_kv, i.head_dim);
    if (uint64_t{i.n_slots} * kv.groups * kv.region_beats + i.hbm > limits.hbm) return bad;
    if (uint64_t{divided(i.n_cells, kv.stripes)} * (i.n_heads / i.n_heads_kv) > kMaxScores) return bad;
    const uint32_t n = i.n_heads * i.head_dim, n_kv = i.n_heads_kv * i.head_dim;
    if (!fits(i.a, n) || !fits(i.d, n) || !fits(i.dst, n) || !fits(i.b, n_kv) || !fits(i.c, n_kv)) return bad;
    for (uint32_t row = 0; row < pass.n_rows; ++row) {
        const Row& r = pass.row[row];
        if (r.position < 0 || static_cast<uint32_t>(r.position) >= i.n_ctx) return HETRUN_U280_STATUS_BAD_POSITION;
        if (r.slot < 0 || static_cast<uint32_t>(r.slot) >= i.n_slots) return HETRUN_U280_STATUS_BAD_POSITION;
        for (uint32_t before = 0; before < row; ++before) {  // the places of a slot's rows are counted from its first
            const Row& earlier = pass.row[before];
            if (earlier.slot == r.slot && earlier.position >= r.position) return HETRUN_U280_STATUS_BAD_POSITION;
        }
    }
    return HETRUN_U280_STATUS_OK;
}

// Row of ROPE's table.
inline uint32_t rope_row(const Instruction& i, const Row& row) {
    const uint32_t position = static_cast<uint32_t>(row.position);
    return position < i.max_position ? position : i.max_position;
}

inline uint32_t problem_of_rope(const Instruction& i, const Pass& pass, const Limits& limits) {
    constexpr uint32_t bad = HETRUN_U280_STATUS_BAD_SHAPE;
    if (i.group == 0 || i.n % i.group != 0 || i.n_pairs == 0 || i.n_pairs > i.group / 2 || i.n_pairs > kMaxHeadDim / 2) return bad;
    if (!fits(i.a, i.n) || !fits(i.dst, i.n)) return bad;
    for (uint32_t row = 0; row < pass.n_rows; ++row) {
        if (pass.row[row].position < 0) return HETRUN_U280_STATUS_BAD_POSITION;
        if (i.stride < 2 * i.n_pairs || !fits_ddr(limits, i.ddr, rope_row(i, pass.row[row]), 1, i.stride, 2 * i.n_pairs))
            return HETRUN_U280_STATUS_BAD_POSITION;
    }
    return HETRUN_U280_STATUS_OK;
}

// HETRUN_U280_STATUS_* of an instruction for the rows of a pass.
inline uint32_t problem_of(const Instruction& i, const Pass& pass, const Limits& limits, Quantized& quantized) {
    constexpr uint32_t ok = HETRUN_U280_STATUS_OK, bad = HETRUN_U280_STATUS_BAD_SHAPE;
    if (i.op >= HETRUN_U280_OPS || i.rows > HETRUN_U280_ROWS_OUTPUTS) return HETRUN_U280_STATUS_BAD_OP;
    const bool of_tokens = i.op == HETRUN_U280_OP_EMBED || i.op == HETRUN_U280_OP_ROPE || i.op == HETRUN_U280_OP_ATTEND;
    if (of_tokens && i.rows != HETRUN_U280_ROWS_TOKENS) return HETRUN_U280_STATUS_BAD_OP;
    const bool unary = fits(i.a, i.n) && fits(i.dst, i.n);
    switch (i.op) {
        case HETRUN_U280_OP_END: return ok;
        case HETRUN_U280_OP_LOAD: return fits(i.dst, i.n) && fits_rows(limits, i, pass, i.n) ? ok : bad;
        case HETRUN_U280_OP_STORE: return fits(i.a, i.n) && fits_rows(limits, i, pass, i.n) ? ok : bad;
        case HETRUN_U280_OP_EMBED: {
            const uint32_t status = problem_of_weight(i, limits);
            if (status != ok) return status;
            for (uint32_t row = 0; row < pass.n_rows; ++row) {
                if (pass.row[row].token < 0 || static_cast<uint32_t>(pass.row[row].token) >= i.n_rows) return HETRUN_U280_STATUS_BAD_TOKEN;
            }
            return fits(i.dst, i.n_columns) ? ok : bad;
        }
        case HETRUN_U280_OP_NORM:
            return unary && i.group != 0 && i.group <= kMaxColumns && i.n % i.group == 0 && (i.group % 2 == 0 || i.group == i.n) && fits_ddr(limits, i.ddr, 0, 1, 0, i.group) ? ok : bad;
        case HETRUN_U280_OP_QUANTIZE:
            quantized = {i.n, i.rows};
            return i.n != 0 && i.n <= kMaxColumns && fits(i.a, i.n) ? ok : bad;
        case HETRUN_U280_OP_MATMUL: {
            const uint32_t status = problem_of_weight(i, limits);
            if (status != ok) return status;
            if (i.n_columns != quantized.n_columns || i.rows != quantized.rows) return bad;
            const bool gates = (i.flags & HETRUN_U280_FLAG_GATE) != 0, adds = (i.flags & HETRUN_U280_FLAG_ADD) != 0;
            if ((gates && adds) || ((gates || adds) && (i.ddr != 0 || !fits(i.b, i.n_rows)))) return bad;
            return i.ddr != 0 ? (fits_rows(limits, i, pass, i.n_rows) ? ok : bad) : fits(i.dst, i.n_rows) ? ok : bad;
        }
        case HETRUN_U280_OP_BIAS: return unary && i.n <= kMaxColumns && fits_ddr(limits, i.ddr, 0, 1, 0, i.n) ? ok : bad;
        case HETRUN_U280_OP_ADD:
        case HETRUN_U280_OP_GATE: return unary && fits(i.b, i.n) ? ok : bad;
        case HETRUN_U280_OP_ROPE: return problem_of_rope(i, pass, limits);
        case HETRUN_U280_OP_ATTEND: return problem_of_attend(i, pass, limits);
        default: return unary ? ok : bad;  // SCALE, SELECT
    }
}

// The scalars of a launch.
struct Launch {
    int32_t version, program, rows, n_tokens, token, position, slot, output, report;
};

inline uint32_t bits_of(int32_t argument) { return static_cast<uint32_t>(argument); }

inline Instruction instruction_of(const Beat& first, const Beat& second) {
    uint32_t w[32];
#pragma HLS ARRAY_PARTITION variable = w complete
    for (uint32_t k = 0; k < 2 * kFloats; ++k) w[k] = word_of(k < kFloats ? first : second, k % kFloats);
    return {w[0],  w[1],  w[2],  w[3],  w[4],  w[5],  w[6],  w[7],  w[8],  w[9],  w[10], w[11], w[12], w[13], w[14], w[15], bits_float(w[16]),
            w[17], w[18], w[19], w[20], w[21], w[22], w[23], w[24], w[25], w[26], w[27], w[28], {}};
}

inline Row row_of(const Beat& beat, uint32_t i) {
    const auto at = [&](uint32_t k) { return static_cast<int32_t>(word_of(beat, 4 * i + k)); };
    return {at(0), at(1), at(2), at(3)};
}

// Passes of kTokens rows, each all instructions. Calls begin(pass), emit(order, its two beats) for each instruction, END among them, and
// between passes fence(), which returns when the pass is done: the next may read what it wrote. Returns status, the instruction that
// failed and the number of passes.
template <class Begin, class Emit, class Fence>
Report fetch(const Beat* ddr, const Launch& launch, const Limits& limits, Begin begin, Emit emit, Fence fence) {
    constexpr uint32_t kRowsOfBeat = HETRUN_U280_BEAT_BYTES / sizeof(Row);
    Report report{};
    report.version = HETRUN_U280_VERSION;
    const uint32_t n_tokens = bits_of(launch.n_tokens);
    if (launch.version != HETRUN_U280_VERSION) {
        report.status = HETRUN_U280_STATUS_BAD_VERSION;
    } else if (n_tokens > kTokens * HETRUN_U280_MAX_PASSES || (n_tokens > 1 && bits_of(launch.rows) + uint64_t{divided(n_tokens, kRowsOfBeat)} > limits.ddr)) {
        report.status = HETRUN_U280_STATUS_BAD_SHAPE;
    }
    for (uint32_t first = 0; first < n_tokens && report.status == HETRUN_U280_STATUS_OK; first += kTokens) {
        Row rows[kTokens];
        const uint32_t n_rows = n_tokens - first < kTokens ? n_tokens - first : kTokens;
        for (uint32_t k = 0; k < n_rows && n_tokens > 1; ++k)
            rows[k] = row_of(ddr[bits_of(launch.rows) + (first + k) / kRowsOfBeat], (first + k) % kRowsOfBeat);
        if (n_tokens == 1) rows[0] = {launch.token, launch.position, launch.slot, launch.output};
        const Pass pass = pass_of(rows, n_rows, first, first + kTokens < n_tokens ? 1 : 0);
        begin(pass);
        Quantized quantized{};
        Ahead ahead;
        for (uint32_t number = 0;; ++number) {
            const uint64_t at = bits_of(launch.program) + 2 * uint64_t{number};
            report.instruction = number;
            Beat beats[2] = {};
            if (at + 2 > limits.ddr) {
                report.status = HETRUN_U280_STATUS_BAD_SHAPE;
            } else {
                for (uint32_t k = 0; k < 2; ++k) beats[k] = ddr[at + k];
                report.status = problem_of(instruction_of(beats[0], beats[1]), pass, limits, quantized);
            }
            if (report.status != HETRUN_U280_STATUS_OK) set_word(beats[0], 0, HETRUN_U280_OP_END);
            const bool ends = word_of(beats[0], 0) == HETRUN_U280_OP_END;
            ahead.take(beats, [&](const Beat* next) { emit(Order{instruction_of(next[0], next[1]), pass}, next); });
            if (ends) break;
        }
        if (pass.followed != 0) fence();
        if (report.status != HETRUN_U280_STATUS_OK) break;
        report.instruction = 0;
        ++report.n_passes;
    }
    return report;
}

}  // namespace hetrun::u280
