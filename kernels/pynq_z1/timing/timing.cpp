#include "timing.h"

#include <algorithm>
#include <vector>

#include "../hls/engine.h"
#include "dram.h"

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

EngineTiming engine_timing() {
    return {
        HETRUN_PYNQ_LANES,
        HETRUN_PYNQ_PORTS,
        HETRUN_PYNQ_FIFO_WORDS,
        8,    // num_read_outstanding of the masters, engine.cpp
        HETRUN_PYNQ_BURST_WORDS,
        60,   // analytic: one burst of eight words, and the checks
        120,  // analytic: depth of unpack, multiply, finish and write
    };
}

Timing simulate(const BoardTiming& board, const EngineTiming& engine, const Work& work) {
    Dram dram(board);
    const int64_t clock = board.clock_ps;
    Timing result{};
    const uint32_t burst_bytes = engine.burst_words * 8;

    // The descriptor, then the activations: one master, bursts one behind the other but for the latency.
    int64_t now = engine.fetch_cycles * clock + board.read_latency_ps;
    for (uint32_t word = 0; word < work.input_words; word += engine.burst_words)
        now = std::max(dram.serve(now, (1u << 27) + word * 8, burst_bytes), now + engine.burst_words * clock);
    now += board.read_latency_ps;

    const uint32_t n_bursts = (work.n_words + engine.burst_words - 1) / engine.burst_words;
    const uint32_t room = engine.fifo_words / engine.burst_words;  // bursts that a FIFO holds
    // Of each burst: when its last word is in the FIFO, and when the unpacker has emptied it.
    std::vector<int64_t> arrived(n_bursts), emptied(n_bursts);
    std::vector<int64_t> port_free(engine.ports, now);
    uint32_t issued = 0;
    const int64_t packet_cycles = 64 / engine.lanes * ((work.n_tokens + 1) / 2);
    int64_t lanes_free = now, begin = now;
    uint32_t in_tile = 0;  // words of the tile that have been taken

    // Requests are served in the order in which they can be made: a burst's turn comes when its FIFO has room for it, and an
    // earlier burst of the same port has returned far enough.
    const auto issue_time = [&](uint32_t burst) {
        int64_t at = begin;
        const uint32_t ports = engine.ports;
        if (burst >= engine.outstanding * ports) at = std::max(at, arrived[burst - engine.outstanding * ports]);
        if (burst >= room * ports) at = std::max(at, emptied[burst - room * ports]);
        return at;
    };
    const auto issue = [&](uint32_t burst) {
        const uint32_t port = burst % engine.ports;
        const int64_t served = dram.serve(issue_time(burst) + board.read_latency_ps / 2,
                                          work.address + burst * burst_bytes, burst_bytes);
        // The port moves a word a cycle.
        const int64_t last = std::max(served + board.read_latency_ps / 2, port_free[port] + engine.burst_words * clock);
        port_free[port] = last;
        arrived[burst] = last;
    };

    for (uint32_t burst = 0; burst < n_bursts; ++burst) {
        while (issued < n_bursts && issued < burst + room * engine.ports && issued < burst + engine.outstanding * engine.ports)
            issue(issued++);
        const uint32_t words = std::min(engine.burst_words, work.n_words - burst * engine.burst_words);
        // Words may be taken as they come: the first is there a burst's length before the last.
        const int64_t first = arrived[burst] - (words - 1) * clock;
        if (first > now) {
            result.memory_stalls += (first - now + clock - 1) / clock;
            now = first;
        }
        for (uint32_t word = 0; word < words; word += 2) {
            const int64_t there = first + (word + 1) * clock;
            if (there > now) {
                result.memory_stalls += (there - now) / clock;
                now = there;
            }
            for (uint32_t i = 0; i < 2; ++i) {
                if (++in_tile > work.header_words && (in_tile - work.header_words) % work.packet_words == 0) {
                    // A few packets wait in a FIFO before the lanes.
                    const int64_t start = std::max(now, lanes_free);
                    const int64_t waits = start - now - 4 * packet_cycles * clock;
                    if (waits > 0) {
                        result.lane_stalls += waits / clock;
                        now += waits;
                    }
                    lanes_free = std::max(now, lanes_free) + packet_cycles * clock;
                }
                if (in_tile == work.tile_words) in_tile = 0;
            }
            now += clock;
            ++result.busy_cycles;
        }
        emptied[burst] = now;
    }
    const int64_t end = std::max(now, lanes_free) + engine.pipeline_cycles * clock;
    result.cycles = (end + clock - 1) / clock;
    result.dram_busy_ps = dram.busy_ps();
    return result;
}

}  // namespace hetrun::pynq
