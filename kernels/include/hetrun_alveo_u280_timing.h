// C ABI of the cycle model in libhetrun_alveo_u280.so (kernels/alveo_u280/timing).
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HETRUN_U280_TIMING_ABI 1

uint32_t hetrun_u280_timing_abi(void);

// A design that may differ from the one of hls/engine.h. clock_hz to 1 GHz; channels: 1 to 32; lanes: products of a channel a cycle;
// pass_tokens: 1 to 64; vector_floats: a cycle; stall_factor: times what the vector process takes, 1 to 100; memory_factor: HBM that
// is so many times as fast as the card's, to tell what waits for it from what does not, 1 to 100.
typedef struct {
    uint32_t clock_hz, channels, lanes, fifo_beats, outstanding, burst_beats, pass_tokens, vector_floats, stall_factor, memory_factor;
} hetrun_u280_design;

// The design of hls/engine.h.
void hetrun_u280_header_design(hetrun_u280_design* design);

// Cycles of the fabric, from an idle engine on.
typedef struct {
    uint64_t cycles;         // the whole step
    uint64_t weight_beats, kv_beats;  // read, all channels
    uint64_t memory_stalls;  // lanes waited for beats, mean of the channels
    uint64_t vector_cycles;  // the vector process worked, results not counted
    uint64_t n_passes;
} hetrun_u280_timing;

// A step. instructions: n_instructions of hls/engine.h's Instruction, 128 bytes each; rows: n_rows of its Row. cycles_of: null, or for
// each instruction what it adds, from the end of the one before to its own, all passes. 0: an instruction or row that the engine
// refuses, or a design that cannot be; *timing is zeros then.
int32_t hetrun_u280_step_timing(const hetrun_u280_design* design, const void* instructions, uint32_t n_instructions, const void* rows,
                                uint32_t n_rows, hetrun_u280_timing* timing, uint64_t* cycles_of);

// Beats that a weight of HETRUN_U280_FORMAT_* takes in every channel; 0 for another format.
uint64_t hetrun_u280_timing_weight_beats(const hetrun_u280_design* design, uint32_t format, uint64_t n_rows, uint64_t n_columns);

// Masters that read HBM alike: master i reads pseudo-channel (i + shift) % 32, n_bursts of burst_bytes, stride bytes apart,
// `outstanding` at a time. Bytes a second of all together; latency_s: mean of a burst.
typedef struct {
    uint32_t n_masters, shift, burst_bytes, n_bursts, outstanding, port_clock_hz;
    uint64_t stride;
} hetrun_u280_reads;
typedef struct {
    double bytes_per_s, latency_s;
} hetrun_u280_rate;
void hetrun_u280_read_rate(const hetrun_u280_reads* reads, hetrun_u280_rate* rate);

// Seconds of a decoded token in published designs (timing/published.h).
// FlightLLM on a U280, at n_past tokens of KV, with the overhead of an instruction that calibration has given.
double hetrun_u280_flightllm_token(uint32_t n_past);
// AccLLM: which of its four measures are taken, and what bounds the token.
typedef struct {
    uint32_t pruned, two_bit, kv4, packed, n_past;
} hetrun_u280_accllm_design;
double hetrun_u280_accllm_token(const hetrun_u280_accllm_design* design);

#ifdef __cplusplus
}
#endif
