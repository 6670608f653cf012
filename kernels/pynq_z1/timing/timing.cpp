#include "timing.h"

#include <algorithm>
#include <vector>

#include "../hls/engine.h"
#include "dram.h"
#include "tail.h"

namespace hetrun::pynq {

BoardTiming board_timing() {
    return {
        1'000'000'000'000 / HETRUN_PYNQ_CLOCK_HZ,
        476'190,     // PYNQ-Z1 manual: 16 bits at 1,050 MT/s, 2.1 GB/s
        8'500,       // calibrated: two ports sustain 75% of the pins' rate (UG585 section 22.3) beside the processor's 50 MB/s
        27'500,      // DDR3-1066 (MT41K256M16): tRP + tRCD = 2 x 13.75 ns; the next row's bank is not opened ahead
        2048,        // MT41K256M16: a page of 2 KB
        8,
        7'800'000,   // JESD79-3: tREFI
        260'000,     // JESD79-3: tRFC of 4 Gb
        400'000,     // analytic: 50 cycles through the AFI, the interconnect and back
        50'000'000,  // analytic: an idle Linux, interrupts and the host's share of a step
        32,          // a cache line of the Cortex-A9
    };
}

// analytic: Vitis HLS gives float adders 4 cycles at 100 MHz and 9 at 200 MHz on such parts (the names of its cores in published
// designs); 7 at 125 MHz is cautious. A sum is read, added to twice, written, and read again by the row of the next tile.
uint32_t slot_cycles_of(uint32_t tile_rows) {
    constexpr uint32_t kAddCycles = 7, kLeastPairs = HETRUN_PYNQ_SUM_DISTANCE / HETRUN_PYNQ_TILE_ROWS;
    const uint32_t slots = tile_rows * kLeastPairs;
    return (2 * kAddCycles + 2 + slots - 1) / slots;
}

EngineTiming engine_timing() {
    return {
        HETRUN_PYNQ_LANES,
        HETRUN_PYNQ_PORTS,
        HETRUN_PYNQ_FIFO_WORDS,
        HETRUN_PYNQ_OUTSTANDING,
        HETRUN_PYNQ_BURST_WORDS,
        60,  // analytic: the checks of a descriptor, and the start of the processes
        60,  // analytic: depth of unpack, multiply and finish
        slot_cycles_of(HETRUN_PYNQ_TILE_ROWS),
        60,  // analytic: three products, a sum, a quotient and the exponential between them
        30,  // analytic: PG060's divider, pipelined for a -1 part; an assumption
    };
}

namespace {

constexpr uint32_t kDescriptorWords = 8, kDescriptorAddress = 1u << 26, kInputAddress = 1u << 27;

// The next edge of the fabric's clock.
int64_t edge(const BoardTiming& board, int64_t at) { return (at + board.clock_ps - 1) / board.clock_ps * board.clock_ps; }

// One master: when the last word of a burst is in the fabric. It moves a word a cycle from when the first leaves the DRAM.
int64_t moved(const BoardTiming& board, int64_t served, uint32_t n_words, int64_t port_free) {
    const int64_t first = served - n_words * 8 * board.dram_byte_fs / 1000 + board.read_latency_ps / 2;
    return std::max(edge(board, first), port_free) + n_words * board.clock_ps;
}

// A loop over words in a row, its bursts asked for ahead: when the last word is there.
int64_t read_words(const BoardTiming& board, const EngineTiming& engine, Dram& dram, int64_t now, uint32_t address, uint32_t n_words) {
    const int64_t arrival = now + board.read_latency_ps / 2;
    for (uint32_t word = 0; word < n_words; word += engine.burst_words) {
        const uint32_t n = std::min(engine.burst_words, n_words - word);
        // Behind the one before it by what the port takes: the DRAM is faster.
        const int64_t at = word == 0 ? arrival : std::max(arrival, now - board.read_latency_ps / 2 - engine.burst_words * board.clock_ps);
        now = moved(board, dram.serve(at, address + word * 8, n * 8), n, now);
    }
    return now;
}

}  // namespace

Timing simulate(const BoardTiming& board, const EngineTiming& engine, const Work& work) {
    Dram dram(board);
    const int64_t clock = board.clock_ps, way = board.read_latency_ps / 2;
    const uint32_t burst_bytes = engine.burst_words * 8;

    int64_t now = read_words(board, engine, dram, 0, kDescriptorAddress, kDescriptorWords) + engine.fetch_cycles * clock;
    for (uint32_t token = 0; token < work.n_tokens; ++token) {
        const uint32_t address = kInputAddress + token * work.code_words * 8;
        now = read_words(board, engine, dram, now, address, work.code_words);
        now = read_words(board, engine, dram, now, address + (1u << 17), work.scale_words);
    }

    const uint32_t n_bursts = (work.n_words + engine.burst_words - 1) / engine.burst_words;
    const uint32_t room = engine.fifo_words / engine.burst_words;  // bursts that a FIFO holds
    const uint32_t ports = engine.ports;
    const int64_t begin = now;
    // Of each burst: when its last word is in the FIFO, and when the unpacker has emptied it.
    std::vector<int64_t> arrived(n_bursts), emptied(n_bursts), port_free(ports, now);
    Tail tail(board, engine, work, dram, now);

    // A burst is asked for when its FIFO has room for it, and an earlier one of the same port has returned.
    const auto issue = [&](uint32_t burst) {
        int64_t at = begin + burst / ports * clock;
        if (burst >= engine.outstanding * ports) at = std::max(at, arrived[burst - engine.outstanding * ports]);
        if (burst >= room * ports) at = std::max(at, emptied[burst - room * ports]);
        tail.advance(at + way);
        const uint32_t n = std::min(engine.burst_words, work.n_words - burst * engine.burst_words);
        int64_t& port = port_free[burst % ports];
        port = moved(board, dram.serve(at + way, work.address + burst * burst_bytes, n * 8), n, port);
        arrived[burst] = port;
    };

    Timing result{};
    int64_t memory_ps = 0, lane_ps = 0;
    uint32_t issued = 0, in_tile = 0;  // words of the tile that have been taken
    for (uint32_t burst = 0; burst < n_bursts; ++burst) {
        while (issued < n_bursts && issued < burst + std::min(room, engine.outstanding) * ports) issue(issued++);
        const uint32_t words = std::min(engine.burst_words, work.n_words - burst * engine.burst_words);
        for (uint32_t word = 0; word < words; word += 2) {
            // Words may be taken as they come.
            const int64_t there = arrived[burst] - (words - word - 2) * clock;
            memory_ps += std::max<int64_t>(there - now, 0);
            now = std::max(now, there);
            for (uint32_t i = 0; i < 2; ++i) {
                if (++in_tile > work.header_words && (in_tile - work.header_words) % work.packet_words == 0) {
                    const int64_t taken = tail.packet(now);
                    lane_ps += taken - now;
                    now = taken;
                }
                if (in_tile == work.tile_words) in_tile = 0;
            }
            now += clock;
            ++result.busy_cycles;
        }
        emptied[burst] = now;
    }
    result.cycles = (tail.end() + clock - 1) / clock + engine.pipeline_cycles;
    result.memory_stalls = memory_ps / clock;
    result.lane_stalls = lane_ps / clock;
    result.dram_busy_ps = dram.busy_ps();
    return result;
}

}  // namespace hetrun::pynq
