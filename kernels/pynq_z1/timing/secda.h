// The published design that this engine is measured against (SECDA-LLM, arXiv 2408.00462), in the same board's memory.
//
// Tiles of weights are copied by the processor where they lie beyond the CMA window, sent by DMA, multiplied, and the results
// sent back, one after the other: the published source (github.com/judeharis/SECDA-LLM) overlaps nothing.
#pragma once

#include <cstdint>

#include "timing.h"

namespace hetrun::pynq {

struct SecdaTiming {
    uint32_t dmas;                // 32-bit streams
    uint32_t weight_blocks;       // super-blocks that the weight buffer holds
    uint32_t input_blocks;        // the same of activations; a matmul with more stays on the processor
    uint32_t cycles_of_block;     // 256 products at 16 a cycle
    uint32_t cycles_of_output;    // beside those
    int64_t copy_bytes_per_s;     // the processor's memcpy
    int64_t call_ps;              // a driver call: set up, start, poll
    uint32_t calls_of_tile;
};

SecdaTiming secda_timing();

struct SecdaWork {
    uint32_t n_rows, n_blocks, n_tokens;  // n_blocks: super-blocks of a row
    uint32_t block_words;                 // 32-bit words of a super-block on the stream
    bool copied;                          // the weights lie beyond the CMA window
};

struct SecdaResult {
    uint32_t tile_rows, n_tiles;
    uint64_t compute_cycles, input_words, weight_words;  // words of 32 bits on the streams
    int64_t copy_ps, dma_ps, compute_ps, call_ps;
};

SecdaResult simulate_secda(const BoardTiming& board, const SecdaTiming& design, const SecdaWork& work);

}  // namespace hetrun::pynq
