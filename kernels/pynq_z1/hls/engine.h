// A streaming block-float matmul engine for a Zynq-7020: its parameters, its registers and what it reads from memory.
//
// Every number that other code needs is a #define of one literal, so that Python (hetrun_pynq_z1/definition.py) and Tcl read
// this very file.
//
// y[t, r] = sum over blocks of (d * xd) * isum, and -+ minima, in float32 and in the order of the columns: see finish() in
// finish.h. Codes of weights and activations meet as integers, exactly. Results go to memory as floats, or, of a pair of
// descriptors, as silu(gate) * up (activation.h): floats, or codes and scales that a later descriptor of the same ring reads.
#pragma once

#include <cstdint>
#ifdef __SYNTHESIS__
#include <hls_burst_maxi.h>
#endif

#define HETRUN_PYNQ_VERSION 2          // of this file; the engine shows it in a register
#define HETRUN_PYNQ_CLOCK_HZ 125000000 // of the fabric
#define HETRUN_PYNQ_LANES 64           // weights a cycle, each against two tokens: 16, 32 or 64
#define HETRUN_PYNQ_PACKET_CYCLES 1    // of 64 weights and two tokens: 64 / LANES
#define HETRUN_PYNQ_PORTS 2            // read masters for weights, on HP0 and HP2: 1 or 2
#define HETRUN_PYNQ_BURST_WORDS 16     // 64-bit words: the longest burst of AXI3
#define HETRUN_PYNQ_OUTSTANDING 8      // bursts of a read master that are under way
#define HETRUN_PYNQ_FIFO_WORDS 128     // of each read master
#define HETRUN_PYNQ_TOKENS 8           // of one pass over the weights
#define HETRUN_PYNQ_MAX_COLUMNS 8192   // of the activations in block RAM
#define HETRUN_PYNQ_MAX_ROWS 1024      // of one descriptor
#define HETRUN_PYNQ_WRITE_ROWS 32      // results of a token that leave together: few bursts disturb those of weights less
#define HETRUN_PYNQ_OUTPUT_PAIRS 256   // results of two tokens that wait while the writer sends others
#define HETRUN_PYNQ_TILE_ROWS 8        // rows in flight, which hides the latency of float additions
#define HETRUN_PYNQ_SUM_DISTANCE 16    // results that are worked on before a sum is met again: TILE_ROWS x two pairs of tokens

// Registers of the AXI-Lite slave, bytes. CTRL is that of Vitis HLS: bit 0 start, 1 done, 2 idle, 3 ready.
#define HETRUN_PYNQ_REG_CTRL 0x00
#define HETRUN_PYNQ_REG_GIE 0x04
#define HETRUN_PYNQ_REG_IER 0x08
#define HETRUN_PYNQ_REG_ISR 0x0c
#define HETRUN_PYNQ_REG_RING 0x10          // address of the first descriptor
#define HETRUN_PYNQ_REG_COUNT 0x18         // descriptors to run
#define HETRUN_PYNQ_REG_VERSION 0x20       // HETRUN_PYNQ_VERSION
#define HETRUN_PYNQ_REG_CONFIG 0x30        // lanes | ports << 8 | tokens << 16
#define HETRUN_PYNQ_REG_STATUS 0x40        // HETRUN_PYNQ_STATUS_*, of the first descriptor that failed
#define HETRUN_PYNQ_REG_DONE 0x50          // descriptors that ran
#define HETRUN_PYNQ_REG_BUSY_CYCLES 0x60   // cycles in which weights moved
#define HETRUN_PYNQ_REG_STALL_CYCLES 0x70  // cycles in which the unpacker waited for memory

#define HETRUN_PYNQ_STATUS_OK 0
#define HETRUN_PYNQ_STATUS_BAD_FORMAT 1
#define HETRUN_PYNQ_STATUS_BAD_SHAPE 2
#define HETRUN_PYNQ_STATUS_BAD_ADDRESS 3
#define HETRUN_PYNQ_STATUS_BAD_MODE 4

// What becomes of a descriptor's results. ACTIVATE and CODES: silu(gate) * up, where these are `up` and the descriptor just before,
// of the same rows and tokens, left the gates. Codes are quantised as hetrun_pynq_quantize does, by blocks of 32 or 256 rows.
#define HETRUN_PYNQ_MODE_WRITE 0     // floats, to memory
#define HETRUN_PYNQ_MODE_GATE 1      // they stay in block RAM
#define HETRUN_PYNQ_MODE_ACTIVATE 2  // floats
#define HETRUN_PYNQ_MODE_CODES_32 3  // int8 codes to `out`, float scales to `out_scales`
#define HETRUN_PYNQ_MODE_CODES_256 4

// Formats, numbered as in formats.h.
#define HETRUN_PYNQ_FORMAT_Q2_K 0
#define HETRUN_PYNQ_FORMAT_Q3_K 1
#define HETRUN_PYNQ_FORMAT_Q4_K 2
#define HETRUN_PYNQ_FORMAT_Q5_K 3
#define HETRUN_PYNQ_FORMAT_Q6_K 4
#define HETRUN_PYNQ_FORMAT_Q4_0 5
#define HETRUN_PYNQ_FORMAT_Q4_1 6
#define HETRUN_PYNQ_FORMAT_Q5_0 7
#define HETRUN_PYNQ_FORMAT_Q5_1 8
#define HETRUN_PYNQ_FORMAT_Q8_0 9
#define HETRUN_PYNQ_FORMATS 10

namespace hetrun::pynq {

// One matmul of up to MAX_ROWS rows with up to TOKENS tokens, 64 bytes in memory. Addresses are physical, in bytes.
struct Descriptor {
    uint32_t format;
    uint32_t n_rows;        // a multiple of TILE_ROWS
    uint32_t n_chunks;      // columns / 256 for super-blocks, / 64 for blocks of 32
    uint32_t n_tokens;
    uint32_t weights;       // tiles (formats.h), a multiple of 8
    uint32_t codes;         // int8 [n_tokens, columns], a multiple of 8; none is -128
    uint32_t code_stride;   // bytes from token to token, a multiple of 8
    uint32_t scales;        // float [n_tokens, columns / 256 or / 32], a multiple of 8
    uint32_t scale_stride;  // bytes from token to token, a multiple of 8
    uint32_t out;           // float (or int8 code) [n_tokens, out_rows], a multiple of 4
    uint32_t out_stride;    // bytes from token to token, a multiple of 4
    uint32_t out_rows;      // rows to write, at most n_rows: the last tile may be padded; of codes all
    uint32_t mode;          // HETRUN_PYNQ_MODE_*
    uint32_t gate_row;      // of GATE, ACTIVATE and CODES: where in the block RAM their rows begin; at most MAX_ROWS - n_rows
    uint32_t out_scales;    // of CODES: float [n_tokens, n_rows / block], a multiple of 4
    uint32_t out_scale_stride;  // bytes from token to token, a multiple of 4
};
static_assert(sizeof(Descriptor) == 64, "descriptors are fetched as eight words");

#ifdef __SYNTHESIS__
using Weights = hls::burst_maxi<uint64_t>;
#else
using Weights = const uint64_t*;
#endif

}  // namespace hetrun::pynq

// Runs `count` descriptors from address `ring` on. Masters on the same memory, each addressing it from 0 on: two for weights, one
// for descriptors and activations, one for results. The rest are registers that it writes.
extern "C" void hetrun_pynq_engine(hetrun::pynq::Weights weights0, hetrun::pynq::Weights weights1, const uint64_t* inputs,
                                   uint32_t* results, uint32_t ring, uint32_t count, uint32_t* version, uint32_t* config,
                                   uint32_t* status, uint32_t* done, uint32_t* busy_cycles, uint32_t* stall_cycles);
