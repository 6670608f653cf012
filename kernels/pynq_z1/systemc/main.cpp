// Cycles of a ring of descriptors, by this model and by the cycle model that ships (timing/timing.cpp).
//
//   pynq_z1_systemc [NAME=VALUE ...] FORMAT:ROWS:CHUNKS:TOKENS[:MODE] ...
//
// NAME is a constant of timing.h, set in both models, or in one: systemc.NAME, plain.NAME.
#include <cstdio>
#include <string>

#include "../../fabric/systemc/constants.h"
#include "engine.h"

namespace fabric = hetrun::fabric;
using namespace hetrun::pynq;

namespace {

struct Timings {
    BoardTiming board = board_timing();
    EngineTiming engine = engine_timing();

    fabric::Constants constants() {
        return {
            {"clock_ps", &board.clock_ps},
            {"dram_byte_fs", &board.dram_byte_fs},
            {"dram_burst_ps", &board.dram_burst_ps},
            {"dram_row_miss_ps", &board.dram_row_miss_ps},
            {"refresh_interval_ps", &board.refresh_interval_ps},
            {"refresh_ps", &board.refresh_ps},
            {"read_latency_ps", &board.read_latency_ps},
            {"processor_bytes_per_s", &board.processor_bytes_per_s},
            {"lanes", &engine.lanes},
            {"ports", &engine.ports},
            {"fifo_words", &engine.fifo_words},
            {"outstanding", &engine.outstanding},
            {"fetch_cycles", &engine.fetch_cycles},
            {"pipeline_cycles", &engine.pipeline_cycles},
            {"slot_cycles", &engine.slot_cycles},
            {"activate_cycles", &engine.activate_cycles},
            {"divide_cycles", &engine.divide_cycles},
        };
    }
};

void print(const char* name, uint64_t cycles, uint64_t busy, uint64_t memory_stalls, uint64_t lane_stalls, const char* end) {
    std::printf("\"%s\": {\"cycles\": %llu, \"busy_cycles\": %llu, \"memory_stalls\": %llu, \"lane_stalls\": %llu}%s", name,
                static_cast<unsigned long long>(cycles), static_cast<unsigned long long>(busy),
                static_cast<unsigned long long>(memory_stalls), static_cast<unsigned long long>(lane_stalls), end);
}

}  // namespace

int sc_main(int argc, char** argv) {
    Timings systemc, plain;
    const fabric::Constants of_systemc = systemc.constants(), of_plain = plain.constants();
    std::vector<model::Job> ring;
    Timing sum{};
    uint32_t weights = 1u << 24;
    for (int i = 1; i < argc; ++i) {
        unsigned format, rows, chunks, tokens, mode = HETRUN_PYNQ_MODE_WRITE;
        if (std::sscanf(argv[i], "%u:%u:%u:%u:%u", &format, &rows, &chunks, &tokens, &mode) >= 4 && format < HETRUN_PYNQ_FORMATS) {
            ring.push_back({kFormats[format], rows, chunks, tokens, mode, weights, 1u << 27, (1u << 27) + (1u << 17), 3u << 26});
            const Timing t = simulate(plain.board, plain.engine, work_of(format, rows, chunks, tokens, weights, mode));
            sum.cycles += t.cycles;
            sum.busy_cycles += t.busy_cycles;
            sum.memory_stalls += t.memory_stalls;
            sum.lane_stalls += t.lane_stalls;
            weights += ring.back().n_pairs() * 16;
            continue;
        }
        if (!fabric::set_constant(argv[i], of_systemc, of_plain) || !ring.empty()) {
            std::fprintf(stderr, "%s: neither a constant of timing.h before all shapes nor FORMAT:ROWS:CHUNKS:TOKENS[:MODE]\n", argv[i]);
            return 2;
        }
    }
    model::Memory memory("memory", systemc.board);
    model::Engine engine("engine", systemc.board, systemc.engine, memory, ring);
    sc_core::sc_start();
    std::printf("{");
    print("systemc", engine.total(), engine.busy(), engine.memory_stalls(), engine.lane_stalls(), ", ");
    print("plain", static_cast<uint64_t>(sum.cycles), static_cast<uint64_t>(sum.busy_cycles), static_cast<uint64_t>(sum.memory_stalls),
          static_cast<uint64_t>(sum.lane_stalls), "}\n");
    return 0;
}
