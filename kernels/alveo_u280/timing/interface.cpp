// The models behind their C ABI.
#include <algorithm>
#include <cstring>

#include "hetrun_alveo_u280_timing.h"
#include "masters.h"
#include "published.h"
#include "timing.h"

using namespace hetrun::u280;

namespace {

MemoryTiming memory_of(const hetrun_u280_design& design) {
    MemoryTiming memory = memory_timing();
    const int64_t f = design.memory_factor;
    for (int64_t* time : {&memory.byte_fs, &memory.burst_ps, &memory.hit_ps, &memory.activate_ps, &memory.precharge_ps,
                          &memory.row_cycle_ps, &memory.refresh_ps, &memory.turn_ps})
        *time /= f;
    return memory;
}

EngineTiming engine_of(const hetrun_u280_design& design) {
    EngineTiming engine = engine_timing();
    engine.clock_ps = 1'000'000'000'000 / design.clock_hz;
    engine.channels = design.channels;
    engine.lanes = design.lanes;
    engine.fifo_beats = design.fifo_beats;
    engine.outstanding = design.outstanding;
    engine.burst_beats = design.burst_beats;
    engine.pass_tokens = design.pass_tokens;
    engine.vector_floats = design.vector_floats;
    engine.gate_floats = std::min(engine.gate_floats, design.vector_floats);
    engine.stall_factor = design.stall_factor;
    return engine;
}

bool can_be(const hetrun_u280_design& d) {
    const auto within = [](uint32_t value, uint32_t low, uint32_t high) { return low <= value && value <= high; };
    return within(d.clock_hz, 1'000'000, 1'000'000'000) && within(d.channels, 1, HETRUN_U280_CHANNELS) && within(d.lanes, 1, 4096) &&
           within(d.burst_beats, 1, 64) && 64 % d.burst_beats == 0 && within(d.fifo_beats, d.burst_beats, 1u << 20) &&
           within(d.outstanding, 1, 256) && within(d.pass_tokens, 1, 64) && within(d.vector_floats, 1, 1024) &&
           within(d.stall_factor, 1, 100) && within(d.memory_factor, 1, 100);
}

}  // namespace

uint32_t hetrun_u280_timing_abi(void) { return HETRUN_U280_TIMING_ABI; }

void hetrun_u280_header_design(hetrun_u280_design* design) {
    const EngineTiming e = engine_timing();
    *design = {HETRUN_U280_CLOCK_HZ, e.channels, e.lanes, e.fifo_beats, e.outstanding, e.burst_beats, e.pass_tokens, e.vector_floats, 1, 1};
}

int32_t hetrun_u280_step_timing(const hetrun_u280_design* design, const void* instructions, uint32_t n_instructions, const void* rows,
                                uint32_t n_rows, hetrun_u280_timing* timing, uint64_t* cycles_of) {
    *timing = {};
    if (!can_be(*design)) return 0;
    std::vector<Instruction> program(n_instructions);
    std::vector<Row> table(n_rows);
    if (n_instructions) std::memcpy(program.data(), instructions, n_instructions * sizeof(Instruction));
    if (n_rows) std::memcpy(table.data(), rows, n_rows * sizeof(Row));
    std::vector<int64_t> each(n_instructions, 0);
    StepTiming t;
    if (!simulate_step(memory_of(*design), engine_of(*design), program, table, t, each.data())) return 0;
    if (cycles_of) std::copy(each.begin(), each.end(), cycles_of);
    const auto plain = [](int64_t n) { return static_cast<uint64_t>(n); };
    *timing = {plain(t.cycles), plain(t.weight_beats), plain(t.kv_beats), plain(t.memory_stalls), plain(t.vector_cycles), plain(t.n_passes)};
    return 1;
}

uint64_t hetrun_u280_timing_weight_beats(const hetrun_u280_design* design, uint32_t format, uint64_t n_rows, uint64_t n_columns) {
    return format < HETRUN_U280_FORMATS ? weight_beats(kLayouts[format], n_rows, n_columns, design->channels) : 0;
}

void hetrun_u280_read_rate(const hetrun_u280_reads* reads, hetrun_u280_rate* rate) {
    const Rate r = read_rate(memory_timing(), {reads->n_masters, reads->shift, reads->burst_bytes, reads->n_bursts, reads->outstanding,
                                               1'000'000'000'000 / reads->port_clock_hz, reads->stride});
    *rate = {r.bytes_per_s, r.latency_s};
}

double hetrun_u280_flightllm_token(uint32_t n_past) { return flightllm_token_s(memory_timing(), n_past); }

double hetrun_u280_accllm_token(const hetrun_u280_accllm_design* d) {
    return accllm_token_s(memory_timing(), {d->pruned != 0, d->two_bit != 0, d->kv4 != 0, d->packed != 0}, d->n_past);
}
