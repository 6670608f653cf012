// Cycles of a step, by this model and by the cycle model that ships (timing/step.cpp).
//
//   u280_systemc [NAME=VALUE ...] PROGRAM ROWS
//
// PROGRAM, ROWS: files of hls/engine.h's Instruction and Row. NAME is a constant of timing.h, set in both models, or in one:
// systemc.NAME, plain.NAME.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "../../fabric/systemc/constants.h"
#include "engine.h"

namespace fabric = hetrun::fabric;
using namespace hetrun::u280;

namespace {

struct Timings {
    MemoryTiming memory = memory_timing();
    EngineTiming engine = engine_timing();

    fabric::Constants constants() {
        return {
            {"byte_fs", &memory.byte_fs},
            {"burst_ps", &memory.burst_ps},
            {"hit_ps", &memory.hit_ps},
            {"activate_ps", &memory.activate_ps},
            {"precharge_ps", &memory.precharge_ps},
            {"row_cycle_ps", &memory.row_cycle_ps},
            {"refresh_interval_ps", &memory.refresh_interval_ps},
            {"refresh_ps", &memory.refresh_ps},
            {"turn_ps", &memory.turn_ps},
            {"clock_ps", &engine.clock_ps},
            {"row_bytes", &memory.row_bytes},
            {"banks", &memory.banks},
            {"channels", &engine.channels},
            {"lanes", &engine.lanes},
            {"outstanding", &engine.outstanding},
            {"burst_beats", &engine.burst_beats},
            {"fifo_beats", &engine.fifo_beats},
            {"pass_tokens", &engine.pass_tokens},
            {"vector_floats", &engine.vector_floats},
            {"gate_floats", &engine.gate_floats},
            {"stream_floats", &engine.stream_floats},
            {"exchange_turns", &engine.exchange_turns},
            {"result_beats", &engine.result_beats},
            {"stall_factor", &engine.stall_factor},
            {"fetch_cycles", &engine.fetch_cycles},
            {"port_cycles", &engine.port_cycles},
            {"crossing_cycles", &engine.crossing_cycles},
            {"ddr_cycles", &engine.ddr_cycles},
            {"finish_cycles", &engine.finish_cycles},
            {"norm_cycles", &engine.norm_cycles},
            {"quantize_cycles", &engine.quantize_cycles},
            {"element_cycles", &engine.element_cycles},
            {"gate_cycles", &engine.gate_cycles},
            {"softmax_cycles", &engine.softmax_cycles},
        };
    }
};

template <typename T>
std::vector<T> records(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<T> all(bytes.size() / sizeof(T));
    if (!all.empty()) std::memcpy(all.data(), bytes.data(), all.size() * sizeof(T));
    return all;
}

}  // namespace

int sc_main(int argc, char** argv) {
    Timings systemc, plain;
    const fabric::Constants of_systemc = systemc.constants(), of_plain = plain.constants();
    for (int i = 1; i < argc - 2; ++i) {
        if (!fabric::set_constant(argv[i], of_systemc, of_plain)) {
            std::fprintf(stderr, "%s: no constant of timing.h\n", argv[i]);
            return 2;
        }
    }
    const auto program = argc > 2 ? records<Instruction>(argv[argc - 2]) : std::vector<Instruction>();
    const auto rows = argc > 2 ? records<Row>(argv[argc - 1]) : std::vector<Row>();
    StepTiming timing;
    if (rows.empty() || !simulate_step(plain.memory, plain.engine, program, rows, timing, nullptr)) {
        std::fprintf(stderr, "PROGRAM and ROWS: files of instructions and rows that the engine takes\n");
        return 2;
    }
    model::Engine engine("engine", systemc.memory, systemc.engine, program, rows);
    sc_core::sc_start();
    std::printf("{\"systemc\": {\"cycles\": %llu, \"beats\": %llu}, \"plain\": {\"cycles\": %lld, \"beats\": %lld}}\n",
                static_cast<unsigned long long>(engine.total()), static_cast<unsigned long long>(engine.beats_read()),
                static_cast<long long>(timing.cycles), static_cast<long long>(timing.weight_beats + timing.kv_beats));
    return 0;
}
