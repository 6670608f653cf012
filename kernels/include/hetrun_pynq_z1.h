// C ABI of libhetrun_pynq_z1.so: weights and activations into the engine's form, launches over a seam of register access, and the
// engine itself (kernels/pynq_z1/hls) compiled for this machine.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HETRUN_PYNQ_ABI 5

uint32_t hetrun_pynq_abi(void);

// Bytes of a GGUF matrix [n_rows, n_columns] as the engine reads it (hls/formats.h): rows padded to 8, columns to 64 (256 for
// super-blocks, which need no padding). 0 where the format is none of HETRUN_PYNQ_FORMAT_* or columns are no whole blocks.
uint64_t hetrun_pynq_stream_bytes(uint32_t format, uint64_t n_rows, uint64_t n_columns);

// Writes that many bytes. blocks: the GGUF matrix.
void hetrun_pynq_pack(uint32_t format, uint64_t n_rows, uint64_t n_columns, const uint8_t* blocks, uint8_t* stream);

// One token: int8 codes [padded] and scales [padded / block], zeros beyond n. block: 256 or 32; padded: a multiple of it.
// scale = largest magnitude / 127, code = round to nearest even(x * (127 / largest)): never -128. A block with a NaN or an infinity
// has a NaN for a scale, one whose largest magnitude is below 1e-35 has zeros.
void hetrun_pynq_quantize(const float* x, uint64_t n, uint64_t padded, uint32_t block, int8_t* codes, float* scales);

// How a launcher reaches a board: registers at byte offsets, caches by physical address, and the engine's interrupt.
typedef struct {
    void* context;
    uint32_t (*read)(void* context, uint32_t offset);
    void (*write)(void* context, uint32_t offset, uint32_t value);
    void (*flush)(void* context, uint32_t address, uint32_t nbytes);
    void (*invalidate)(void* context, uint32_t address, uint32_t nbytes);
    int32_t interrupt;  // file descriptor of a UIO device, or -1: the register CTRL is polled
} hetrun_pynq_seam;

// A matmul of a launch, in the order of waves. Behind one of mode GATE comes the one that its results meet, of mode ACTIVATE or CODES_*,
// with as many rows, in the same wave.
typedef struct {
    uint32_t format, n_rows, n_columns;
    uint32_t input;
    uint32_t weights;         // physical address
    uint32_t out;             // physical address of float [tokens, out_width]; of CODES_* the number of the input that the codes are
    uint32_t out_width;
    uint32_t first_row;       // where its results begin among them: of a weight that is kept in parts, one matmul each
    uint32_t rows_are_outputs;  // 1: of the rows whose logits are wanted
    uint32_t wave;            // a wave reads what earlier ones wrote as floats, and codes of its own
    uint32_t mode;            // HETRUN_PYNQ_MODE_*
} hetrun_pynq_matmul;

// A matrix that matmuls read.
typedef struct {
    const float* data;  // as the host addresses it; null where a matmul of the same wave writes its codes
    uint32_t address;   // the same, physical, where an earlier wave wrote it; else 0
    uint32_t width, rows_are_outputs;
} hetrun_pynq_input;

// silu(gate) * up on the host, in the order of waves, before the wave's matmuls. Addresses as of inputs.
typedef struct {
    const float *gate, *up;
    float* out;
    uint32_t gate_address, up_address;
    uint32_t width, rows_are_outputs, wave;
} hetrun_pynq_gated;

// Memory that a launch may use: physical address and the host's view of it.
typedef struct {
    uint8_t* data;
    uint32_t address, nbytes;
} hetrun_pynq_window;

// A weight that stays in the host's own memory. Matmuls name it by an address that is no memory's.
typedef struct {
    uint32_t address, nbytes;
    const uint8_t* stream;
} hetrun_pynq_streamed;

// Where such weights pass through. area: descriptors, then two halves for pieces, one of which is filled while the engine reads
// the other.
typedef struct {
    hetrun_pynq_window area;
    const hetrun_pynq_streamed* weights;
    uint32_t n_weights;
} hetrun_pynq_staging;

typedef struct {
    uint64_t busy_cycles, stall_cycles, n_descriptors, n_launches, copied_bytes;
    uint32_t status;  // HETRUN_PYNQ_STATUS_* of the engine
} hetrun_pynq_report;

enum {
    HETRUN_PYNQ_OK = 0,
    HETRUN_PYNQ_NO_ROOM = 1,       // the window or the staging area is too small
    HETRUN_PYNQ_TIMEOUT = 2,       // the engine did not finish in time
    HETRUN_PYNQ_ENGINE_ERROR = 3,  // report->status says which
    HETRUN_PYNQ_NO_INTERRUPT = 4,  // the engine finished, but its interrupt never came
};

// Bytes of a window that serves any launch of these matmuls with up to max_tokens rows.
uint64_t hetrun_pynq_window_bytes(const hetrun_pynq_matmul* matmuls, uint32_t n_matmuls, const hetrun_pynq_input* inputs,
                                  uint32_t n_inputs, uint32_t max_tokens);

// Rows of a weight of that many columns that a staging area of `nbytes` takes at once; 0 where it takes none.
uint32_t hetrun_pynq_staged_rows(uint32_t format, uint32_t n_columns, uint32_t nbytes);

// Quantises, writes descriptors, starts the engine and waits, wave by wave. n_tokens, n_outputs: rows of this step; 0 is legal.
// staging: null where all weights are resident.
int32_t hetrun_pynq_run(const hetrun_pynq_seam* seam, const hetrun_pynq_window* window, const hetrun_pynq_matmul* matmuls,
                        uint32_t n_matmuls, const hetrun_pynq_input* inputs, uint32_t n_inputs, const hetrun_pynq_gated* gated,
                        uint32_t n_gated, uint32_t n_tokens, uint32_t n_outputs, const hetrun_pynq_staging* staging,
                        double timeout_s, hetrun_pynq_report* report);

// What the timing model (timing/timing.h) gives for a matmul of n_tokens rows, all its descriptors, in cycles of the fabric.
typedef struct {
    uint64_t cycles, busy_cycles, memory_stalls, lane_stalls, n_descriptors;
} hetrun_pynq_timing;
void hetrun_pynq_matmul_timing(uint32_t format, uint32_t n_rows, uint32_t n_columns, uint32_t n_tokens, hetrun_pynq_timing* timing);

// A design that may differ from the one of hls/engine.h. clock_hz to 1 GHz; burst_words: a multiple of 2; rows: of a tile, 4, 8 or 16;
// ddr_permille: of the pins' rate that two ports sustain, 500 to 850.
typedef struct {
    uint32_t clock_hz, lanes, ports, fifo_words, outstanding, burst_words, tokens, rows, ddr_permille;
} hetrun_pynq_design;
#define HETRUN_PYNQ_DDR_PERMILLE 750  // what the memory's constants are calibrated to (UG585 section 22.3)

// The design of hls/engine.h.
void hetrun_pynq_header_design(hetrun_pynq_design* design);
// mode: HETRUN_PYNQ_MODE_*, what becomes of the results.
void hetrun_pynq_design_timing(const hetrun_pynq_design* design, uint32_t format, uint32_t n_rows, uint32_t n_columns,
                               uint32_t n_tokens, uint32_t mode, hetrun_pynq_timing* timing);

// The same of the published design (timing/secda.h). block_words: 32-bit words of a super-block; copied: 1 where the weights lie
// beyond the CMA window. Times in seconds, at clock_hz.
typedef struct {
    uint64_t tile_rows, n_tiles, compute_cycles, input_words, weight_words;
    double copy_s, dma_s, compute_s, call_s;
} hetrun_pynq_secda_timing;
void hetrun_pynq_secda_matmul(uint32_t n_rows, uint32_t n_blocks, uint32_t n_tokens, uint32_t block_words, uint32_t copied,
                              uint32_t clock_hz, hetrun_pynq_secda_timing* timing);

// Registers that are mapped into this process; context: where they begin.
uint32_t hetrun_pynq_mmio_read(void* registers, uint32_t offset);
void hetrun_pynq_mmio_write(void* registers, uint32_t offset, uint32_t value);

// Copies into memory that is mapped uncached, in whole words only: unaligned accesses fault there. All three are multiples of 8.
// When it returns, the bytes are in the memory. 0 where what was written last does not read back.
int32_t hetrun_pynq_copy_uncached(uint8_t* target, const uint8_t* source, uint64_t nbytes);

// A board that is simulated by the engine's own source: `memory` is its DDR from physical address 0 on.
typedef struct hetrun_pynq_csim hetrun_pynq_csim;
hetrun_pynq_csim* hetrun_pynq_csim_create(uint8_t* memory, uint64_t nbytes);
void hetrun_pynq_csim_threads(hetrun_pynq_csim* board, uint32_t n);  // that share its work; one at first
void hetrun_pynq_csim_destroy(hetrun_pynq_csim* board);
uint32_t hetrun_pynq_csim_read(void* board, uint32_t offset);
void hetrun_pynq_csim_write(void* board, uint32_t offset, uint32_t value);
void hetrun_pynq_csim_cache(void* board, uint32_t address, uint32_t nbytes);  // nothing to do

#ifdef __cplusplus
}
#endif
