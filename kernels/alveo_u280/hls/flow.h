// What flows between the processes of the engine, and the sizes that they share.
//
//   DDR --> fetch --> reader 0 --> ... --> reader 31 --> vector --> DDR, writer --> HBM
//                        |                     |           ^|
//                     HBM 0                 HBM 31      8 kernels of lanes, which take the beats of four readers each
//
// Checked instructions pass from process to process. Readers turn them into beats of their channel, as far ahead as FIFOs reach. vector
// does one instruction after the other and tells the lanes what to do with the beats.
//
// A process is a loop (processes.h) around a step, which does one instruction, of lanes one command. A plain host runs the steps alone:
// vector's request for results makes the lanes run, and they read memory where readers would have (host/csim.cpp).
#pragma once

#include <cstdint>

#include "engine.h"
#include "fabric/stream.h"
#include "fabric/types.h"
#include "formats.h"

namespace hetrun::u280 {
using namespace fabric;

constexpr uint32_t kTokens = HETRUN_U280_PASS_TOKENS, kLaneKernels = HETRUN_U280_LANE_KERNELS;
constexpr uint32_t kLaneChannels = kChannels / kLaneKernels;  // of a kernel
constexpr uint32_t kFloats = HETRUN_U280_BEAT_BYTES / 4;      // of a beat
constexpr uint32_t kCodes = HETRUN_U280_BEAT_BYTES;           // int8 of a beat
constexpr uint32_t kBlock = HETRUN_U280_ACTIVATION_BLOCK;
constexpr uint32_t kBlocks = kCodes / kBlock, kShared = kCodes / kBlocks;  // blocks of a beat of codes; such beats whose exponents share one
constexpr uint32_t kMaxColumns = HETRUN_U280_MAX_COLUMNS, kMaxBlocks = kMaxColumns / kBlock;
constexpr uint32_t kMaxHeadDim = HETRUN_U280_MAX_HEAD_DIM, kMaxHeads = HETRUN_U280_MAX_HEADS, kMaxQueries = HETRUN_U280_MAX_QUERIES;
constexpr uint32_t kMaxScores = HETRUN_U280_MAX_SCORES;
constexpr uint32_t kRuns = 3;           // of places: sinks, and the ring's two parts

inline uint32_t word_of(const Beat& beat, uint32_t i) {
#pragma HLS INLINE
    return static_cast<uint32_t>(beat.byte[4 * i]) | static_cast<uint32_t>(beat.byte[4 * i + 1]) << 8 |
           static_cast<uint32_t>(beat.byte[4 * i + 2]) << 16 | static_cast<uint32_t>(beat.byte[4 * i + 3]) << 24;
}
inline void set_word(Beat& beat, uint32_t i, uint32_t value) {
#pragma HLS INLINE
    for (uint32_t k = 0; k < 4; ++k) beat.byte[4 * i + k] = static_cast<uint8_t>(value >> 8 * k);
}
inline float float_of(const Beat& beat, uint32_t i) { return bits_float(word_of(beat, i)); }
inline void set_float(Beat& beat, uint32_t i, float value) { set_word(beat, i, float_bits(value)); }
inline int16_t short_of(const Beat& beat, uint32_t i) {
#pragma HLS INLINE
    return static_cast<int16_t>(beat.byte[2 * i] | beat.byte[2 * i + 1] << 8);
}

// Rows of a pass, as all processes know them.
struct Pass {
    uint32_t n_rows, n_outputs, first;   // first: number of its first row in the step
    uint32_t followed;                   // 1: by another, which waits for it
    Row row[kTokens];
    uint32_t output_row[kTokens];        // of each output: its row

    uint32_t rows_of(uint32_t rows) const { return rows == HETRUN_U280_ROWS_OUTPUTS ? n_outputs : n_rows; }
};

inline Pass pass_of(const Row* rows, uint32_t n_rows, uint32_t first, uint32_t followed) {
    Pass pass{};
    pass.n_rows = n_rows;
    pass.first = first;
    pass.followed = followed;
    for (uint32_t i = 0; i < n_rows; ++i) {
        pass.row[i] = rows[i];
        if (rows[i].output >= 0) pass.output_row[pass.n_outputs++] = i;
    }
    return pass;
}

// An instruction and the rows that it is for. op END closes a pass.
struct Order {
    Instruction instruction;
    Pass pass;
};

// A beat that the writer puts into a channel. Beyond the channels: the pass is done, or the launch.
constexpr uint32_t kPassDone = kChannels, kLaunchDone = kChannels + 1;

struct HbmWrite {
    uint32_t channel, beat;
    Beat data;
};

// What vector tells lanes: the words of a beat. What follows each, and comes back, is written where lanes do it.
constexpr uint32_t kCommandEnd = 0, kCommandActivations = 1, kCommandMultiply = 2, kCommandEmbed = 3, kCommandForward = 4, kCommandAttend = 5;
// Of Attend: which of its parts there are, in this order.
constexpr uint32_t kPartValues = 1, kPartWeights = 2, kPartKeys = 4;

constexpr uint32_t kTriplets = 5;  // of floats in a beat: what Weights gives of a query
// Beats of a query: its factor and the sum of its codes, then its codes.
constexpr uint32_t query_beats(uint32_t head_dim) { return 1 + divided(head_dim, kCodes); }

struct Command {
    uint32_t kind, format, n_tokens, n_columns;
    uint32_t n_blocks;             // Multiply: of every channel
    uint32_t channel, block, row;  // Embed: of the kernel; of the channel; of the block
    uint32_t n_queries, chunks;    // Attend: of each KV head, whose size is n_columns
    uint32_t n_sets;               // 2 where queries of their own meet the keys of sinks
    uint32_t parts;
    uint32_t n_forward[kLaneChannels];
};

inline Beat beat_of(const Command& c) {
    Beat beat{};
    const uint32_t words[16] = {c.kind,      c.format, c.n_tokens,     c.n_columns,    c.n_blocks,     c.channel,     c.block, c.row,
                                c.n_queries, c.chunks, c.n_forward[0], c.n_forward[1], c.n_forward[2], c.n_forward[3], c.n_sets, c.parts};
    for (uint32_t i = 0; i < 16; ++i) set_word(beat, i, words[i]);
    return beat;
}
inline Command command_of(const Beat& beat) {
    Command c{};
    uint32_t* const words[16] = {&c.kind,      &c.format, &c.n_tokens,     &c.n_columns,    &c.n_blocks,     &c.channel,     &c.block, &c.row,
                                 &c.n_queries, &c.chunks, &c.n_forward[0], &c.n_forward[1], &c.n_forward[2], &c.n_forward[3], &c.n_sets, &c.parts};
    for (uint32_t i = 0; i < 16; ++i) *words[i] = word_of(beat, i);
    return c;
}

// Cells of one KV head that a query sees in one channel, in the order of their positions: runs of places, the first of which is sinks,
// then those that the pass itself has written, which come from the chip.
struct Cells {
    uint32_t place[kRuns], n[kRuns], n_own;

    uint32_t n_old() const { return n[0] + n[1] + n[2]; }
    uint32_t count() const { return n_old() + n_own; }
};

// A walk over the places of runs, those without any passed over.
struct RunWalk {
    uint32_t run, in_run;

    explicit RunWalk(const Cells& cells) : run(0), in_run(0) { next(cells, 0); }
    bool ended() const { return run == kRuns; }
    uint32_t place(const Cells& cells) const { return cells.place[run] + in_run; }
    bool begins_block(const Cells& cells) const { return in_run == 0 || place(cells) % HETRUN_U280_KV_BLOCK == 0; }
    // n places on, at most to the end of the run.
    void next(const Cells& cells, uint32_t n) {
#pragma HLS INLINE
        in_run += n;
        for (uint32_t i = 0; i < kRuns; ++i) {
#pragma HLS UNROLL
            if (run < kRuns && in_run == cells.n[run]) {
                ++run;
                in_run = 0;
            }
        }
    }
};

inline Beat beat_of(const Cells& cells) {
    Beat beat{};
    for (uint32_t i = 0; i < kRuns; ++i) {
        set_word(beat, i, cells.place[i]);
        set_word(beat, kRuns + i, cells.n[i]);
    }
    set_word(beat, 2 * kRuns, cells.n_own);
    return beat;
}
inline Cells cells_of(const Beat& beat) {
    Cells cells{};
    for (uint32_t i = 0; i < kRuns; ++i) {
        cells.place[i] = word_of(beat, i);
        cells.n[i] = word_of(beat, kRuns + i);
    }
    cells.n_own = word_of(beat, 2 * kRuns);
    return cells;
}

}  // namespace hetrun::u280
