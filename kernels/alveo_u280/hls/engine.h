// A decoder on an Alveo U280 that keeps weights and a 4-bit KV cache in HBM and runs whole steps of a model in one launch: its
// parameters, what it is told, and how memory is laid out.
//
// Every number that other code needs is a #define of one literal, so that Python (hetrun_alveo_u280/definition.py), the
// cycle model and the build scripts read this very file.
//
// HBM holds what is streamed: weights and KV, striped over 32 pseudo-channels, each with a reader and lanes of its own. DDR holds what
// the host writes and reads: programs, tables, values that cross a segment's border. Values within a segment stay in a vector memory
// on the chip.
#pragma once

#include <cstdint>

#define HETRUN_U280_VERSION 1          // of this file; the engine checks it against the launch's argument
#define HETRUN_U280_CLOCK_HZ 266000000 // of the fabric
#define HETRUN_U280_CHANNELS 32        // HBM pseudo-channels with a reader and lanes
#define HETRUN_U280_CHANNEL_BYTES 268435456  // of a pseudo-channel
#define HETRUN_U280_DDR_BYTES 17179869184  // of DDR[0]
#define HETRUN_U280_BEAT_BYTES 64      // 512 bits: what a reader takes a cycle
#define HETRUN_U280_BURST_BEATS 8      // of a read: 512 bytes, never across 4 KiB
#define HETRUN_U280_OUTSTANDING 8      // bursts of a reader that are under way
#define HETRUN_U280_FIFO_BEATS 4096    // of each reader: 256 KiB, which it fills ahead, across instructions
#define HETRUN_U280_LANES 128          // products of a channel a cycle, each for one or two tokens
#define HETRUN_U280_LANE_KERNELS 8     // compute units of four channels each
#define HETRUN_U280_PASS_TOKENS 8      // of one pass over the program: rows of the vector memory
#define HETRUN_U280_VECTOR_FLOATS 65536 // of a row of the vector memory
#define HETRUN_U280_MAX_COLUMNS 16384  // of activations
#define HETRUN_U280_MAX_CELLS 8192     // of a KV slot: scores of a head are kept on the chip
#define HETRUN_U280_MAX_SCORES 32768   // of a channel and KV head: its cells times its queries
#define HETRUN_U280_MAX_HEAD_DIM 256
#define HETRUN_U280_MAX_HEADS 128      // of queries
#define HETRUN_U280_MAX_QUERIES 16     // of a KV head, times the beats of a key: a channel's sums of values
#define HETRUN_U280_MAX_PASSES 4096    // of a launch
#define HETRUN_U280_ACTIVATION_BLOCK 32 // columns that share an exponent
#define HETRUN_U280_MAX_EXPONENT 7     // of a block: its codes count 2^exponent steps of the token's scale
#define HETRUN_U280_KV_BLOCK 32        // cells of a head and channel whose scales share beats
#define HETRUN_U280_P_CODES 4095       // a probability times the value's scale is rounded to so many steps

// Formats of weights in HBM. A block of rows (4, of 8-bit codes 2) lies in one channel: block b in channel b % CHANNELS, at place b /
// CHANNELS. A beat of values has the same columns of all its rows; rows follow one another in it. Behind every 32 scales' worth of
// values stands a beat with those 32 scales, int16, in the order of values (of each beat: row by row, of a row block by block), and of
// MIN formats another with the minima. The last such group of a block of rows may be shorter: its beat of scales is filled with zeros.
// Before each 16 rows of a channel stands a beat of their row scales, float32. Rows and columns that are missing are zeros.
//   W2S24  beats of 64 columns x 4 rows, scale and zero point within (docs/compression.md, "Beats of the U280")
//   W2     beats of 64 columns x 4 rows of 2-bit values; scales: 14 bits, and the zero point in bits 14 and 15
//   S4     beats of 32 columns x 4 rows of 4-bit codes, low nibble first; value = scale * (code - 8)
//   U4     the same with minima: value = scale * code + minimum
//   S8     beats of 32 columns x 2 rows of int8 codes; a scale for 32 columns
//   S8H    the same, a scale for 16 columns
// value of a weight = row scale * (integer). Scales of GGUF blocks become integers of at most 32767 steps of the row's largest.
#define HETRUN_U280_FORMAT_W2S24 0
#define HETRUN_U280_FORMAT_W2 1
#define HETRUN_U280_FORMAT_S4 2
#define HETRUN_U280_FORMAT_U4 3
#define HETRUN_U280_FORMAT_S8 4
#define HETRUN_U280_FORMAT_S8H 5
#define HETRUN_U280_FORMATS 6

// KV4: a key or value of a head is ceil(head_dim / 128) beats of 4-bit codes, low nibble first, zeros beyond head_dim; value = scale *
// code + minimum, both binary16, as `kv4` of hetrun.reference.kv. With m = max(1, CHANNELS / n_heads_kv), cell j of head h lies in
// channel (h * m + j % m) % CHANNELS, in the region of (slot, h * m / CHANNELS), at place j / m there. A region is blocks of 32 places:
//   2 beats: scale and minimum of 32 keys (binary16 pairs) | 2 beats: of values | keys | values
// Regions of a slot follow one another, slots follow one another. (slot, group) -> slot * n_groups + group.

// Instructions. Operands a, b, c, d, dst: first float of a value in a row of the vector memory, a multiple of 64. A row is a token of the
// pass; with rows = OUTPUTS only tokens whose logits are wanted have it, in order, from row 0 on. In the DDR a token's row is the one of
// its number in the step, an output's that of its number among outputs. What reads and writes may be the same place, or apart.
#define HETRUN_U280_OP_END 0
#define HETRUN_U280_OP_LOAD 1     // dst <- n floats of each row at ddr + row * stride, which is any number of floats
#define HETRUN_U280_OP_STORE 2    // a -> the same
#define HETRUN_U280_OP_EMBED 3    // dst <- row `token` of a weight in HBM (hbm, format, n_rows, n_columns)
#define HETRUN_U280_OP_NORM 4     // dst <- a / sqrt(mean(a^2) + f0) * weights in DDR (ddr), in groups of `group`; n
#define HETRUN_U280_OP_QUANTIZE 5 // activations <- a, n columns
#define HETRUN_U280_OP_MATMUL 6   // dst, or DDR where `ddr` is not 0, <- activations x weight (hbm, format, n_rows, n_columns); as many
                                  // columns and the same rows as the last QUANTIZE of the pass. Flags: dst <- of it and b
#define HETRUN_U280_OP_BIAS 7     // dst <- a + vector in DDR (ddr); n
#define HETRUN_U280_OP_ADD 8      // dst <- a + b; n
#define HETRUN_U280_OP_SCALE 9    // dst <- a * f0; n
#define HETRUN_U280_OP_GATE 10    // dst <- silu(a) * b; n
#define HETRUN_U280_OP_ROPE 11    // dst <- a, pairs of heads rotated by row min(position, max_position) of a table in DDR: n_pairs (cos,
                                  // sin), rows `stride` floats apart
#define HETRUN_U280_OP_ATTEND 12  // KV <- b (keys), c (values); dst <- attention of queries a, of d where a key is a sink's
#define HETRUN_U280_OP_SELECT 13  // dst <- rows of a whose logits are wanted; n
#define HETRUN_U280_OPS 14

#define HETRUN_U280_ROWS_TOKENS 0
#define HETRUN_U280_ROWS_OUTPUTS 1

// Flags of an instruction.
#define HETRUN_U280_FLAG_HALF 1      // ROPE: pair i is (i, i + n_pairs), not (2i, 2i + 1)
#define HETRUN_U280_FLAG_HADAMARD 2  // ATTEND: keys and values are rotated before they are rounded (kv4h)
#define HETRUN_U280_FLAG_GATE 4      // MATMUL: dst <- silu(b) * (activations x weight)
#define HETRUN_U280_FLAG_ADD 8       // MATMUL: dst <- b + activations x weight

#define HETRUN_U280_STATUS_OK 0
#define HETRUN_U280_STATUS_BAD_VERSION 1
#define HETRUN_U280_STATUS_BAD_OP 2
#define HETRUN_U280_STATUS_BAD_FORMAT 3
#define HETRUN_U280_STATUS_BAD_SHAPE 4
#define HETRUN_U280_STATUS_BAD_TOKEN 5   // beyond the table
#define HETRUN_U280_STATUS_BAD_POSITION 6  // beyond the cache

// Arguments of the kernel, by their number: what a driver sets, and what connectivity names. 0 to 31 are the channels.
#define HETRUN_U280_ARG_DDR 32       // buffer: all of the DDR that the host gives the engine
#define HETRUN_U280_ARG_VERSION 33   // HETRUN_U280_VERSION, or the launch does nothing but say so
#define HETRUN_U280_ARG_PROGRAM 34   // beat of DDR at which the program begins
#define HETRUN_U280_ARG_ROWS 35      // beat of DDR at which the table of rows begins
#define HETRUN_U280_ARG_N_TOKENS 36  // rows of the step; with one, TOKEN, POSITION, SLOT and OUTPUT say it and the table is not read
#define HETRUN_U280_ARG_TOKEN 37
#define HETRUN_U280_ARG_POSITION 38
#define HETRUN_U280_ARG_SLOT 39
#define HETRUN_U280_ARG_OUTPUT 40    // number of the row among the outputs, -1 for none
#define HETRUN_U280_ARG_REPORT 41    // beat of DDR that gets a Report
#define HETRUN_U280_ARG_DDR_VECTOR 42  // buffer: the same as DDR, through the port of values and results
#define HETRUN_U280_ARGS 43

namespace hetrun::u280 {

// A word of the memories.
struct alignas(64) Beat {
    uint8_t byte[HETRUN_U280_BEAT_BYTES];
};

// Two beats. Fields that an op does not name are zero.
struct Instruction {
    uint32_t op, rows, flags, format;
    uint32_t a, b, c, dst;        // floats of the vector memory
    uint32_t n, n_rows, n_columns, group;
    uint32_t hbm;                 // beat of every channel
    uint32_t ddr;                 // beat of DDR
    uint32_t stride;              // floats from row to row there
    uint32_t n_pairs;             // ROPE; of a head of `group` floats
    float f0;                     // NORM: eps.   SCALE: the factor.   ATTEND: of scores
    uint32_t n_heads, n_heads_kv, head_dim;  // ATTEND
    uint32_t n_slots, n_cells, n_ctx, sink, window;
    uint32_t d;                   // ATTEND: queries that meet the keys of positions below `sink`; as `a` where there are none of their own
    uint32_t max_position;        // ROPE: positions beyond it count as it
    uint32_t next_rows, next_format;  // MATMUL: of the next with the same activations, 0 rows for none. fetch (ahead.h) fills them in
    uint32_t reserved[3];
};
static_assert(sizeof(Instruction) == 128, "two beats");

// A row of a step. A table has n_tokens of them, four a beat.
struct Row {
    int32_t token, position, slot;
    int32_t output;               // number among the rows whose logits are wanted, or -1
};
static_assert(sizeof(Row) == 16, "four a beat");

struct Report {
    uint32_t version, status;
    uint32_t instruction;         // the one that failed
    uint32_t n_passes;
    uint64_t cycles, weight_beats, kv_beats, stall_cycles;  // stalls: lanes that waited for a reader
    uint32_t reserved[4];
};
static_assert(sizeof(Report) == 64, "a beat");

}  // namespace hetrun::u280
