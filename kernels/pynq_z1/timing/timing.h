// Cycles of the engine on the board: every burst of weights, from the DRAM to the lanes.
//
// What is simulated, burst by burst: read masters with a bounded number of outstanding bursts, reserved room in their FIFOs,
// a DRAM that serves one burst at a time (data time, overhead, row misses, refresh, the processor's own traffic), the unpacker
// that takes two words a cycle from the ports in turn, and the lanes, the float tail and the writer (tail.h), which hold it back
// where a packet meets many tokens. ../systemc models the same source independently.
// Time is in picoseconds and integers: a run gives the same numbers everywhere.
#pragma once

#include <cstdint>

namespace hetrun::pynq {

// Each number's source is where its default is set, in timing.cpp.
struct BoardTiming {
    int64_t clock_ps;            // of the fabric
    int64_t dram_byte_fs;        // femtoseconds a byte at the pins' full rate
    int64_t dram_burst_ps;       // overhead of each burst: arbitration, commands, turn-around
    int64_t dram_row_miss_ps;
    uint32_t dram_row_bytes;     // of a row, over all chips
    uint32_t dram_banks;
    int64_t refresh_interval_ps, refresh_ps;
    int64_t read_latency_ps;     // from a master's request to the controller, and back with the first word
    int64_t processor_bytes_per_s;  // traffic of the processors meanwhile
    uint32_t processor_line_bytes;
};

struct EngineTiming {
    uint32_t lanes, ports, fifo_words, outstanding, burst_words;
    uint32_t fetch_cycles;     // of a descriptor, once it is read
    uint32_t pipeline_cycles;  // that a value takes through the stages, beside waiting
    uint32_t slot_cycles;      // of the float tail for a row and two tokens
    uint32_t activate_cycles;  // that a value takes through silu(gate) * up
    uint32_t divide_cycles;    // of the division before a block's codes
};

BoardTiming board_timing();
EngineTiming engine_timing();
uint32_t slot_cycles_of(uint32_t tile_rows);  // EngineTiming::slot_cycles of an engine with so many rows in flight

struct Work {
    uint32_t n_words;        // of weights, 64 bits each
    uint32_t address;        // of the first
    uint32_t n_tokens;
    uint32_t header_words;   // of a tile
    uint32_t tile_words;
    uint32_t packet_words;   // bits of a code
    uint32_t row_packets;    // of a row in a tile
    uint32_t n_rows, n_chunks;
    uint32_t code_words, scale_words;  // of activations, a token, read before
    uint32_t tile_rows;
    uint32_t mode;           // HETRUN_PYNQ_MODE_*
};

// Of a descriptor. n_rows: a multiple of 8.
Work work_of(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens, uint32_t address, uint32_t mode);

struct Timing {
    int64_t cycles;        // of the whole descriptor
    int64_t busy_cycles;   // the unpacker took words
    int64_t memory_stalls;  // it waited for them
    int64_t lane_stalls;   // the lanes held it back
    int64_t dram_busy_ps;
};

// Simulates one descriptor from an idle engine on.
Timing simulate(const BoardTiming& board, const EngineTiming& engine, const Work& work);

}  // namespace hetrun::pynq
