// The vector process: one instruction after the other, on rows of the vector memory.
//
// Floats, each operator rounded to nearest even and subnormals zero:
//   NORM   sum of squares: of each 64 elements a tree (k and k + 32, 16, 8, 4, 2, 1; zeros beyond the end), its sum into part
//          (number of the 64) mod 16, in order; then parts k and k + 8, 4, 2, 1 are added.
//          y = (x * (1 / sqrt(sum / group + eps))) * weight
//   ROPE   (a cos - b sin, a sin + b cos)   ADD a + b   BIAS a + vector   SCALE a * f0   GATE silu_times(a, b) of activation.h
//   QUANTIZE as quantize.h, MATMUL and EMBED as lanes.h, ATTEND as attend.h and attention.h
#pragma once

#include <cmath>

#include "attention.h"
#include "fabric/activation.h"
#include "fetch.h"
#include "flow.h"
#include "quantize.h"

namespace hetrun::u280 {

struct Vector {
    float memory[kTokens][HETRUN_U280_VECTOR_FLOATS];
    Attending attending;
    bool lanes_know;  // of the next MATMUL
};

// Floats of the DDR, from any of them on.
inline void read_floats(const Beat* ddr, uint64_t first, uint32_t n, float* out) {
    for (uint32_t i = 0; i < n;) {
#pragma HLS PIPELINE II = 1
        const uint32_t at = static_cast<uint32_t>((first + i) % kFloats), here = kFloats - at < n - i ? kFloats - at : n - i;
        const Beat beat = ddr[(first + i) / kFloats];
        for (uint32_t k = 0; k < here; ++k) out[i + k] = float_of(beat, at + k);
        i += here;
    }
}

// A beat that is not all of the row is read, since others have the rest of it.
inline void write_floats(Beat* ddr, uint64_t first, uint32_t n, const float* x) {
    for (uint32_t i = 0; i < n;) {
        const uint32_t at = static_cast<uint32_t>((first + i) % kFloats), here = kFloats - at < n - i ? kFloats - at : n - i;
        Beat beat{};
        if (here != kFloats) beat = ddr[(first + i) / kFloats];
        for (uint32_t k = 0; k < here; ++k) set_float(beat, at + k, x[i + k]);
        ddr[(first + i) / kFloats] = beat;
        i += here;
    }
}

// First float in the DDR of a row.
inline uint64_t ddr_row(const Order& order, uint32_t row) {
    const bool outputs = order.instruction.rows == HETRUN_U280_ROWS_OUTPUTS;
    const uint64_t number = outputs ? static_cast<uint32_t>(order.pass.row[order.pass.output_row[row]].output) : order.pass.first + row;
    return uint64_t{order.instruction.ddr} * kFloats + number * order.instruction.stride;
}

constexpr uint32_t kWide = 64;   // floats an iteration: of the vector memory's ports
constexpr uint32_t kGates = 8;    // of them with an exponential and a division each

// Adds x[k + apart] to x[k] for half of n, then the half of that.
template <uint32_t N>
float tree(float (&x)[N]) {
#pragma HLS INLINE
    for (uint32_t apart = N / 2; apart > 0; apart /= 2) {
#pragma HLS UNROLL
        for (uint32_t k = 0; k < apart; ++k) {
#pragma HLS UNROLL
            x[k] = plus(x[k], x[k + apart]);
        }
    }
    return x[0];
}

inline void norm(const Instruction& i, const float* weights, float* memory) {
    for (uint32_t first = 0; first < i.n; first += i.group) {
        float part[16] = {};
        for (uint32_t from = 0; from < i.group; from += kWide) {
#pragma HLS PIPELINE II = 1
            float squares[kWide];
            for (uint32_t k = 0; k < kWide; ++k) {
#pragma HLS UNROLL
                const float x = from + k < i.group ? memory[i.a + first + from + k] : 0.0f;
                squares[k] = times(x, x);
            }
            float& sum = part[from / kWide % 16];
            sum = plus(sum, tree(squares));
        }
        const float mean = over(tree(part), static_cast<float>(i.group)), factor = over(1.0f, flushed(std::sqrt(plus(mean, i.f0))));
        for (uint32_t from = 0; from < i.group; from += kWide) {
#pragma HLS PIPELINE II = 1
            for (uint32_t k = from; k < from + kWide; ++k) {
#pragma HLS UNROLL
                if (k < i.group) memory[i.dst + first + k] = times(times(memory[i.a + first + k], factor), weights[k]);
            }
        }
    }
}

// table: cos, sin of each pair.
inline void rope(const Instruction& i, const float* table, float* memory) {
    for (uint32_t head = 0; head < i.n; head += i.group) {
        for (uint32_t k = 0; k < i.group && i.a != i.dst; ++k) memory[i.dst + head + k] = memory[i.a + head + k];
        for (uint32_t p = 0; p < i.n_pairs; ++p) {
#pragma HLS PIPELINE II = 1
            const bool halves = (i.flags & HETRUN_U280_FLAG_HALF) != 0;
            float& first = memory[i.dst + head + (halves ? p : 2 * p)];
            float& second = memory[i.dst + head + (halves ? p + i.n_pairs : 2 * p + 1)];
            const float a = first, b = second, cos = table[2 * p], sin = table[2 * p + 1];
            first = plus(times(a, cos), -times(b, sin));
            second = plus(times(a, sin), times(b, cos));
        }
    }
}

// Codes of all rows to the lanes, padded with zeros to 64 columns.
template <class Commands>
void quantize(const Order& order, const float memory[kTokens][HETRUN_U280_VECTOR_FLOATS], Commands* commands) {
    const Instruction& i = order.instruction;
    const uint32_t n_rows = order.pass.rows_of(i.rows), padded = divided(i.n, kCodes) * kCodes;
    Command command{};
    command.kind = kCommandActivations;
    command.n_tokens = n_rows;
    command.n_columns = padded;
    uint32_t largest[kTokens][kMaxBlocks], of_row[kTokens] = {};
    Beat scales{};
    for (uint32_t t = 0; t < n_rows; ++t) {
        for (uint32_t first = 0; first < i.n; first += kWide) {
#pragma HLS PIPELINE II = 1
            for (uint32_t b = first / kBlock; b < (first + kWide) / kBlock; ++b) {
#pragma HLS UNROLL
                uint32_t most = 0;
                for (uint32_t k = b * kBlock; k < (b + 1) * kBlock; ++k) {
#pragma HLS UNROLL
                    const uint32_t magnitude = k < i.n ? magnitude_of(memory[t][i.a + k]) : 0;
                    most = magnitude > most ? magnitude : most;
                }
                largest[t][b] = most;
                of_row[t] = most > of_row[t] ? most : of_row[t];
            }
        }
        set_float(scales, t, RowScale(of_row[t]).scale);
    }
    send_all(commands, beat_of(command));
    send_all(commands, scales);
    for (uint32_t t = 0; t < n_rows; ++t) {
        const RowScale scale(of_row[t]);
        for (uint32_t first = 0; first < padded / kBlock; first += kCodes) {
            Beat beat{};
            for (uint32_t b = first; b < padded / kBlock && b < first + kCodes; ++b)
                beat.byte[b - first] = static_cast<uint8_t>(scale.exponent(largest[t][b]));
            send_all(commands, beat);
        }
        for (uint32_t first = 0; first < padded; first += kCodes) {
            Beat beat{};
            for (uint32_t k = first; k < i.n && k < first + kCodes; ++k)
                beat.byte[k - first] = scale.code(memory[t][i.a + k], scale.exponent(largest[t][k / kBlock]));
            send_all(commands, beat);
        }
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

// Results `first` to `first` + n of a row into the vector memory, as they are or with what stands at b.
inline void put_results(const Instruction& i, uint32_t first, uint32_t n, const float* results, float* memory) {
    float* dst = memory + i.dst + first;
    const float* b = memory + i.b + first;
    if ((i.flags & HETRUN_U280_FLAG_GATE) != 0) {
        for (uint32_t from = 0; from < n; from += kGates) {
#pragma HLS PIPELINE II = 1
            for (uint32_t k = from; k < from + kGates; ++k) {
#pragma HLS UNROLL
                if (k < n) dst[k] = silu_times(b[k], results[k]);
            }
        }
        return;
    }
    const bool adds = (i.flags & HETRUN_U280_FLAG_ADD) != 0;
    for (uint32_t from = 0; from < n; from += kWide) {
#pragma HLS PIPELINE II = 1
        for (uint32_t k = from; k < from + kWide; ++k) {
#pragma HLS UNROLL
            if (k < n) dst[k] = adds ? plus(b[k], results[k]) : results[k];
        }
    }
}

// Results of the lanes: 16 rows of each channel at once are neighbours among the weight's. The lanes begin with the next
// MATMUL while the results of this one are collected.
template <class Commands, class Results>
void matmul(const Order& order, Vector& vector, Beat* ddr, Commands* commands, Results* results) {
    const Instruction& i = order.instruction;
    const Format f = kFormats[i.format];
    const uint32_t n_rows = order.pass.rows_of(i.rows);
    if (!vector.lanes_know) send_multiply(i.format, i.n_rows, i.n_columns, n_rows, commands);
    vector.lanes_know = i.next_rows != 0;
    if (vector.lanes_know) send_multiply(i.next_format, i.next_rows, i.n_columns, n_rows, commands);
    float group[kTokens][kChannels * kGroupRows];
    for (uint32_t first = 0; first < i.n_rows; first += kChannels * kGroupRows) {
        for (uint32_t channel = 0; channel < kChannels; ++channel) {
            for (uint32_t t = 0; t < n_rows; ++t) {
#pragma HLS PIPELINE II = 1
                const Beat beat = results[channel / kLaneChannels].read();
                for (uint32_t k = 0; k < kGroupRows; ++k) {
#pragma HLS UNROLL
                    group[t][(k / f.rows * kChannels + channel) * f.rows + k % f.rows] = float_of(beat, k);
                }
            }
        }
        const uint32_t left = i.n_rows - first, n = left < kChannels * kGroupRows ? left : kChannels * kGroupRows;
        for (uint32_t t = 0; t < n_rows; ++t) {
            if (i.ddr != 0) {
                write_floats(ddr, ddr_row(order, t) + first, n, group[t]);
            } else {
                put_results(i, first, n, group[t], vector.memory[t]);
            }
        }
    }
}

template <class Commands, class Results>
void embed_rows(const Order& order, float memory[kTokens][HETRUN_U280_VECTOR_FLOATS], Commands* commands, Results* results) {
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
            const Beat beat = results[channel / kLaneChannels].read();
            for (uint32_t k = 0; k < kFloats && first + k < i.n_columns; ++k) memory[row][i.dst + first + k] = float_of(beat, k);
        }
    }
}

// Ops of one row, element by element or head by head.   constants: of the instruction, or of the row.
inline void map_row(const Instruction& i, const float* constants, float* memory) {
    if (i.op == HETRUN_U280_OP_NORM) return norm(i, constants, memory);
    if (i.op == HETRUN_U280_OP_ROPE) return rope(i, constants, memory);
    if (i.op == HETRUN_U280_OP_GATE) {
        for (uint32_t first = 0; first < i.n; first += kGates) {
#pragma HLS PIPELINE II = 1
            for (uint32_t k = first; k < first + kGates; ++k) {
#pragma HLS UNROLL
                if (k < i.n) memory[i.dst + k] = silu_times(memory[i.a + k], memory[i.b + k]);
            }
        }
        return;
    }
    for (uint32_t first = 0; first < i.n; first += kWide) {
#pragma HLS PIPELINE II = 1
        for (uint32_t k = first; k < first + kWide; ++k) {
#pragma HLS UNROLL
            if (k >= i.n) continue;
            const float a = memory[i.a + k];
            const bool scaled = i.op == HETRUN_U280_OP_SCALE;
            memory[i.dst + k] = scaled ? times(a, i.f0) : plus(a, i.op == HETRUN_U280_OP_BIAS ? constants[k] : memory[i.b + k]);
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
            for (uint32_t row = 0; row < n_rows; ++row) read_floats(ddr, ddr_row(order, row), i.n, vector.memory[row] + i.dst);
            return;
        case HETRUN_U280_OP_STORE:
            for (uint32_t row = 0; row < n_rows; ++row) write_floats(ddr, ddr_row(order, row), i.n, vector.memory[row] + i.a);
            return;
        case HETRUN_U280_OP_SELECT:
            for (uint32_t row = 0; row < order.pass.n_outputs; ++row) {
                for (uint32_t k = 0; k < i.n; ++k) vector.memory[row][i.dst + k] = vector.memory[order.pass.output_row[row]][i.a + k];
            }
            return;
        case HETRUN_U280_OP_EMBED: return embed_rows(order, vector.memory, commands, results);
        case HETRUN_U280_OP_QUANTIZE: return quantize(order, vector.memory, commands);
        case HETRUN_U280_OP_MATMUL: return matmul(order, vector, ddr, commands, results);
        case HETRUN_U280_OP_ATTEND: return attend(order, vector.memory, vector.attending, commands, results, writes);
        default: break;
    }
    float constants[kMaxColumns];
    const uint32_t n = i.op == HETRUN_U280_OP_NORM ? i.group : i.op == HETRUN_U280_OP_BIAS ? i.n : i.op == HETRUN_U280_OP_ROPE ? 2 * i.n_pairs : 0;
    for (uint32_t row = 0; row < n_rows; ++row) {
        const uint64_t at = i.op == HETRUN_U280_OP_ROPE ? uint64_t{rope_row(i, order.pass.row[row])} * i.stride : 0;
        if (row == 0 || i.op == HETRUN_U280_OP_ROPE) read_floats(ddr, uint64_t{i.ddr} * kFloats + at, n, constants);
        map_row(i, constants, vector.memory[row]);
    }
}

}  // namespace hetrun::u280
