// Cycles of the engine on the card: every burst of weights and KV, from HBM to the lanes.
//
// What is simulated: the pseudo-channels of HBM, burst by burst (hbm.h); a reader for each with a bounded number of outstanding bursts
// and a FIFO that it fills ahead, across instructions (reader.h); lanes that take its beats; the vector process, which does one
// instruction after the other and takes results in row order (step.cpp). Streams between them cross SLRs and take their time.
// ../systemc models the same design independently. Time is in picoseconds and integers: a run gives the same numbers everywhere.
#pragma once

#include <cstdint>
#include <vector>

#include "../hls/engine.h"

namespace hetrun::u280 {

// Each number's source is where its default is set, in defaults.cpp.
struct MemoryTiming {
    int64_t byte_fs;          // femtoseconds a byte at a pseudo-channel's full rate
    int64_t burst_ps;         // overhead of each burst
    int64_t hit_ps;           // from a master's request to the first data, in a row that is open
    int64_t activate_ps;      // more, in a bank that is closed
    int64_t precharge_ps;     // more still, in a bank with another row open
    int64_t row_cycle_ps;     // least time between two rows of a bank
    uint32_t row_bytes;       // of a row, over the two bank groups that a stream alternates between
    uint32_t banks;           // such pairs
    int64_t refresh_interval_ps, refresh_ps;
    int64_t turn_ps;          // of the data pins, from reads to writes and back
    uint32_t switch_channels; // of a switch with as many masters
    uint32_t lateral_links;   // between neighbouring switches, each way
    int64_t hop_ps;           // through one more switch, there and back
};

struct EngineTiming {
    int64_t clock_ps;
    uint32_t channels, lanes, outstanding, burst_beats, fifo_beats, pass_tokens;
    uint32_t vector_floats;    // a cycle, of what the vector process does with a row, and of a matrix's results
    uint32_t gate_floats;      // of silu(a) * b
    uint32_t stream_floats;    // of a stream, and of the port of DDR
    uint32_t exchange_turns;   // channels that one after the other exchange beats of attention with the vector process
    uint32_t result_beats;     // of a channel, of a token and block of rows each, that wait for the vector process
    uint32_t stall_factor;     // times what the vector process takes: how much slower HLS may make it
    uint32_t fetch_cycles;     // of an instruction
    uint32_t port_cycles;      // between a reader and its port of HBM, there and back
    uint32_t crossing_cycles;  // of a stream between SLRs
    uint32_t ddr_cycles;       // of an access to DDR
    uint32_t finish_cycles;    // from a sum of integers to a float in the vector memory
    uint32_t norm_cycles, quantize_cycles, element_cycles, gate_cycles, softmax_cycles;  // pipelines
};

MemoryTiming memory_timing();
EngineTiming engine_timing();

// How a format of weights lies in beats: a block of rows is beats of values, with beats of scales behind every `scale_period`.
struct Layout {
    uint32_t block_rows, beat_columns;
    uint32_t scale_period, scale_beats;  // 0: scales lie within the values
    uint32_t products;                   // of a beat of values

    // Of a beat of values, for so many rows of a pass: a DSP makes two products a cycle, for two rows, or of two weights.
    uint32_t value_cycles(uint32_t n_rows, uint32_t lanes) const { return (products * n_rows + 2 * lanes - 1) / (2 * lanes); }
    uint32_t value_beats(uint32_t n_columns) const { return (n_columns + beat_columns - 1) / beat_columns; }
    uint32_t block_beats(uint32_t n_columns) const {
        const uint32_t n = value_beats(n_columns);
        return n + (scale_period ? (n + scale_period - 1) / scale_period * scale_beats : 0);
    }
    uint32_t group_blocks() const { return 16 / block_rows; }  // that share a beat of row scales, and of results
    // The same in every channel.
    uint32_t channel_blocks(uint64_t n_rows, uint32_t channels) const {
        const uint64_t rows = uint64_t{block_rows} * channels;
        return static_cast<uint32_t>((n_rows + rows - 1) / rows);
    }
};
inline constexpr Layout kLayouts[HETRUN_U280_FORMATS] = {
    {4, 64, 0, 0, 128},   // W2S24: half of 4 x 64 are there
    {4, 64, 8, 1, 256},   // W2
    {4, 32, 8, 1, 128},   // S4
    {4, 32, 8, 2, 128},   // U4
    {2, 32, 16, 1, 128},  // S8: 64, but codes of no more than two rows are chosen at once
    {2, 32, 8, 1, 128},   // S8H
};

// Beats of every channel.
uint64_t weight_beats(const Layout& layout, uint64_t n_rows, uint64_t n_columns, uint32_t channels);

struct StepTiming {
    int64_t cycles;        // of the step
    int64_t weight_beats, kv_beats;  // read, all channels
    int64_t memory_stalls; // lanes waited for beats that they could have taken, mean of the channels
    int64_t vector_cycles; // the vector process worked, not counting results
    int64_t n_passes;
};

// A step from an idle engine on. cycles_of: of each instruction, from the end of the one before to its own, all passes; or null.
// False where an instruction is none of engine.h's or its shape none that the engine takes.
bool simulate_step(const MemoryTiming& memory, const EngineTiming& engine, const std::vector<Instruction>& program,
                   const std::vector<Row>& rows, StepTiming& timing, int64_t* cycles_of);

}  // namespace hetrun::u280
