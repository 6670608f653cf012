// The vector process: one instruction after the other, on rows of the vector memory.
//
// Floats, each operator rounded to nearest even and subnormals zero:
//   NORM   sum of squares: of each 64 elements a tree (k and k + 32, 16, 8, 4, 2, 1; zeros beyond the end), its sum into part
//          (number of the 64) mod 16, in order; then parts k and k + 8, 4, 2, 1 are added.
//          y = (x * (1 / sqrt(sum / group + eps))) * weight
//   ROPE   (a cos - b sin, a sin + b cos)   ADD a + b   BIAS a + vector   SCALE a * f0   GATE silu_times(a, b) of activation.h
//   QUANTIZE as quantize.h, MATMUL and EMBED as lanes.h, ATTEND as attend.h and attention.h
#pragma once

#include "attention.h"
#include "fetch.h"
#include "flow.h"
#include "memory.h"
#include "quantize.h"
#include "rows.h"

namespace hetrun::u280 {

struct Vector {
    MemoryRow memory[kTokens];
    Constants constants;
    Attending attending;
    bool lanes_know;  // of the next MATMUL
};

// First float in the DDR of a row.
inline uint64_t ddr_row(const Order& order, uint32_t row) {
    const bool outputs = order.instruction.rows == HETRUN_U280_ROWS_OUTPUTS;
    const uint64_t number = outputs ? static_cast<uint32_t>(order.pass.row[order.pass.output_row[row]].output) : order.pass.first + row;
    return uint64_t{order.instruction.ddr} * kFloats + number * order.instruction.stride;
}

static_assert(kWide == kCodes, "a word becomes a beat of codes");
constexpr uint32_t kExponents = 16;  // decided at once

// Codes of all rows to the lanes, padded with zeros to 64 columns.
template <class Commands>
void quantize(const Order& order, const MemoryRow* memory, Commands* commands) {
    const Instruction& i = order.instruction;
    const uint32_t n_rows = order.pass.rows_of(i.rows), n_words = divided(i.n, kWide), from = i.a / kWide;
    Command command{};
    command.kind = kCommandActivations;
    command.n_tokens = n_rows;
    command.n_columns = n_words * kWide;
    uint32_t largest[kTokens][kMaxBlocks], of_row[kTokens];
#pragma HLS ARRAY_PARTITION variable = largest cyclic factor = 16 dim = 2
    RowScale row_scales[kTokens];
    uint32_t most_of_row = 0, w = 0;
    for (uint32_t t = 0; t < n_rows;) {
        HETRUN_FABRIC_PIPELINE(1);
        const Word x = load_word(memory[t], from + w);
        for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma HLS UNROLL
            uint32_t most = 0;
            for (uint32_t k = b * kBlock; k < (b + 1) * kBlock; ++k) {
#pragma HLS UNROLL
                const uint32_t magnitude = w * kWide + k < i.n ? magnitude_of(x.x[k]) : 0;
                most = magnitude > most ? magnitude : most;
            }
            largest[t][w * kBlocks + b] = most;
            most_of_row = most > most_of_row ? most : most_of_row;
        }
        of_row[t] = most_of_row;
        if (++w < n_words) continue;
        w = most_of_row = 0;
        ++t;
    }
    Beat scales{};
    for (uint32_t t = 0; t < n_rows; ++t) {
        HETRUN_FABRIC_PIPELINE(1);
        row_scales[t] = RowScale(of_row[t]);
        set_float(scales, t, row_scales[t].scale);
    }
    send_all(commands, beat_of(command));
    send_all(commands, scales);
    uint32_t exponents_known = 0;  // of the next kShared words
    Beat exponents{};
    w = 0;
    for (uint32_t t = 0; t < n_rows;) {
        HETRUN_FABRIC_PIPELINE(1);
        const RowScale& scale = row_scales[t];
        Beat beat{};
        if (w % kShared == 0 && exponents_known < kCodes) {
            if (exponents_known == 0) exponents = Beat{};
            for (uint32_t k = 0; k < kExponents; ++k) {
#pragma HLS UNROLL
                const uint32_t block = w * kBlocks + exponents_known + k;
                if (block < n_words * kBlocks) exponents.byte[exponents_known + k] = static_cast<uint8_t>(scale.exponent(largest[t][block]));
            }
            exponents_known += kExponents;
            if (exponents_known == kCodes) send_all(commands, exponents);
            continue;
        }
        const Word x = load_word(memory[t], from + w);
        for (uint32_t b = 0; b < kBlocks; ++b) {
#pragma HLS UNROLL
            const float factor = scale.factor(scale.exponent(largest[t][w * kBlocks + b]));
            for (uint32_t k = b * kBlock; k < (b + 1) * kBlock; ++k) {
#pragma HLS UNROLL
                if (w * kWide + k < i.n) beat.byte[k] = scale.code(x.x[k], factor);
            }
        }
        send_all(commands, beat);
        ++w;
        exponents_known = w % kShared == 0 || w == n_words ? 0 : exponents_known;
        if (w < n_words) continue;
        w = 0;
        ++t;
    }
}

template <class Commands>
void send_multiply(uint32_t format, uint32_t n_rows, uint32_t n_columns, uint32_t n_tokens, Commands* commands) {
    Command command{};
    command.kind = kCommandMultiply;
    command.format = format;
    command.n_tokens = n_tokens;
    command.n_columns = n_columns;
    command.n_blocks = channel_blocks(kFormats[format], n_rows);
    send_all(commands, beat_of(command));
}

// Results of the lanes: a kernel's beat has a row block's rows of its four channels, which are neighbours in the weight, so that four
// kernels (of 2 rows a block: all) give a word. It goes to the row as it is, or with what stands at b: added, or as what that gates, 8 floats
// an iteration. The lanes begin with the next MATMUL while the results of this one are collected.
template <class Commands, class Results>
void matmul(const Order& order, Vector& vector, Beat* ddr, Commands* commands, Results* results) {
    const Instruction& i = order.instruction;
    const Format f = kFormats[i.format];
    const uint32_t n_rows = order.pass.rows_of(i.rows);
    if (!vector.lanes_know) send_multiply(i.format, i.n_rows, i.n_columns, n_rows, commands);
    vector.lanes_know = i.next_rows != 0;
    if (vector.lanes_know) send_multiply(i.next_format, i.next_rows, i.n_columns, n_rows, commands);
    const uint32_t of_beat = kLaneChannels * f.rows, kernels = kWide / of_beat, halves = kLaneKernels / kernels;
    const bool gates = (i.flags & HETRUN_U280_FLAG_GATE) != 0, adds = (i.flags & HETRUN_U280_FLAG_ADD) != 0;
    uint32_t block = 0, t = 0, half = 0, slice = 0;
    Word word{}, other{};
    while (block < channel_blocks(f, i.n_rows)) {
        HETRUN_FABRIC_PIPELINE(1);
#pragma HLS DEPENDENCE variable = vector.memory inter false
        const uint32_t w = block * halves + half, first = w * kWide, n = i.n_rows < first ? 0 : i.n_rows - first < kWide ? i.n_rows - first : kWide;
        if (slice == 0) {
            for (uint32_t k = 0; k < kLaneKernels; ++k) {
#pragma HLS UNROLL
                if (k / kernels != half) continue;
                const Beat beat = results[k].read();
                for (uint32_t r = 0; r < kFloats; ++r) {
#pragma HLS UNROLL
                    if (r < of_beat) word.x[k % kernels * of_beat + r] = float_of(beat, r);
                }
            }
            if (n != 0 && (gates || adds)) other = load_word(vector.memory[t], i.b / kWide + w);
        }
        if (gates) {
            gate_slice(slice, other, word);
            if (++slice < kWide / kGates) continue;
            slice = 0;
        }
        for (uint32_t k = 0; k < kWide && adds; ++k) {
#pragma HLS UNROLL
            word.x[k] = plus(other.x[k], word.x[k]);
        }
        if (n != 0 && i.ddr == 0) store_word(vector.memory[t], i.dst / kWide + w, word);
        if (n != 0 && i.ddr != 0) write_floats(ddr, ddr_row(order, t) + first, n, [&](uint32_t b) { return quarter_of(word, b); });
        if (++half < halves) continue;
        half = 0;
        if (++t < n_rows) continue;
        t = 0;
        ++block;
    }
}

template <class Commands, class Results>
void embed_rows(const Order& order, MemoryRow* memory, Commands* commands, Results* results) {
    const Instruction& i = order.instruction;
    const Format f = kFormats[i.format];
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        const uint32_t token = static_cast<uint32_t>(order.pass.row[row].token), block = token / f.rows, channel = block % kChannels;
        Command command{};
        command.kind = kCommandEmbed;
        command.format = i.format;
        command.n_columns = i.n_columns;
        command.channel = channel % kLaneChannels;
        command.block = block / kChannels;
        command.row = token % f.rows;
        commands[channel / kLaneChannels].write(beat_of(command));
        for (uint32_t first = 0; first < value_beats(f, i.n_columns) * f.columns; first += kFloats) {
            HETRUN_FABRIC_PIPELINE(1);
            const Beat beat = results[channel / kLaneChannels].read();
            Word floats{};
            for (uint32_t k = 0; k < kFloats; ++k) {
#pragma HLS UNROLL
                floats.x[k] = float_of(beat, k);
            }
            if (first < i.n_columns) store_step(memory[row], i.dst + first, kFloats, floats);
        }
    }
}

// One instruction, which fetch.h has checked.
template <class Commands, class Results, class Writes>
void vector_step(const Order& order, Vector& vector, Beat* ddr, Commands* commands, Results* results, Writes& writes) {
    const Instruction& i = order.instruction;
    const uint32_t n_rows = order.pass.rows_of(i.rows);
    if (n_rows == 0) return;
    switch (i.op) {
        case HETRUN_U280_OP_END: return;
        case HETRUN_U280_OP_LOAD:
            for (uint32_t row = 0; row < n_rows; ++row) read_floats(ddr, ddr_row(order, row), i.n, vector.memory[row] + i.dst / kWide);
            return;
        case HETRUN_U280_OP_STORE:
            for (uint32_t row = 0; row < n_rows; ++row)
                write_floats(ddr, ddr_row(order, row), i.n, [&](uint32_t b) { return load_step(vector.memory[row], i.a + b * kFloats, kFloats); });
            return;
        case HETRUN_U280_OP_SELECT:
            for (uint32_t row = 0; row < order.pass.n_outputs; ++row) {
                for (uint32_t w = 0; w < divided(i.n, kWide); ++w) {
                    HETRUN_FABRIC_PIPELINE(1);
                    store_word(vector.memory[row], i.dst / kWide + w, load_word(vector.memory[order.pass.output_row[row]], i.a / kWide + w));
                }
            }
            return;
        case HETRUN_U280_OP_EMBED: return embed_rows(order, vector.memory, commands, results);
        case HETRUN_U280_OP_NORM:
            read_floats(ddr, uint64_t{i.ddr} * kFloats, i.group, vector.constants);
            return norm(i, n_rows, vector.constants, vector.memory);
        case HETRUN_U280_OP_QUANTIZE: return quantize(order, vector.memory, commands);
        case HETRUN_U280_OP_MATMUL: return matmul(order, vector, ddr, commands, results);
        case HETRUN_U280_OP_ATTEND: return attend(order, vector.memory, vector.attending, commands, results, writes);
        default: break;
    }
    const bool of_row = i.op == HETRUN_U280_OP_ROPE;
    const uint32_t n = i.op == HETRUN_U280_OP_BIAS ? i.n : of_row ? 2 * i.n_pairs : 0;
    for (uint32_t row = 0; row < n_rows; ++row) {
        const uint64_t at = of_row ? uint64_t{rope_row(i, order.pass.row[row])} * i.stride : 0;
        if (row == 0 || of_row) read_floats(ddr, uint64_t{i.ddr} * kFloats + at, n, vector.constants);
        if (of_row) {
            rope(i, vector.constants, vector.memory[row]);
        } else {
            map_words(i, vector.constants, vector.memory[row]);
        }
    }
}

}  // namespace hetrun::u280
