// A matmul through the timing models.
#include "../hls/formats.h"
#include "hetrun_pynq_z1.h"
#include "secda.h"
#include "timing.h"

using namespace hetrun::pynq;

namespace {

void add(const Timing& t, hetrun_pynq_timing& to) {
    to.cycles += static_cast<uint64_t>(t.cycles);
    to.busy_cycles += static_cast<uint64_t>(t.busy_cycles);
    to.memory_stalls += static_cast<uint64_t>(t.memory_stalls);
    to.lane_stalls += static_cast<uint64_t>(t.lane_stalls);
    to.n_descriptors += 1;
}

}  // namespace

Work hetrun::pynq::work_of(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens, uint32_t address) {
    const Format& f = kFormats[format];
    const uint32_t n_tiles = n_rows / kTileRows * n_chunks;
    const uint32_t columns = n_chunks * static_cast<uint32_t>(chunk_columns(f)), scales = n_chunks * (f.super ? 1 : 2);
    return {n_tiles * static_cast<uint32_t>(tile_words(f)),
            address,
            n_tokens,
            static_cast<uint32_t>(header_words(f)),
            static_cast<uint32_t>(tile_words(f)),
            static_cast<uint32_t>(f.bits),
            static_cast<uint32_t>(packets_of_row(f)),
            n_rows,
            n_chunks,
            columns / 8,
            (scales + 1) / 2};
}

void hetrun_pynq_matmul_timing(uint32_t format, uint32_t n_rows, uint32_t n_columns, uint32_t n_tokens, hetrun_pynq_timing* timing) {
    *timing = {};
    if (format >= HETRUN_PYNQ_FORMATS) return;
    const Format& f = kFormats[format];
    const uint32_t columns = static_cast<uint32_t>(chunk_columns(f)), n_chunks = (n_columns + columns - 1) / columns;
    uint32_t address = 1u << 24;
    for (uint32_t first = 0; first < n_rows; first += HETRUN_PYNQ_MAX_ROWS) {
        const uint32_t rows = n_rows - first < HETRUN_PYNQ_MAX_ROWS ? n_rows - first : HETRUN_PYNQ_MAX_ROWS;
        const uint32_t n_tiles = (rows + kTileRows - 1) / kTileRows * n_chunks;
        for (uint32_t t = 0; t < n_tokens; t += HETRUN_PYNQ_TOKENS) {
            const uint32_t tokens = n_tokens - t < HETRUN_PYNQ_TOKENS ? n_tokens - t : HETRUN_PYNQ_TOKENS;
            const Work work = work_of(format, (rows + kTileRows - 1) / kTileRows * kTileRows, n_chunks, tokens, address);
            add(simulate(board_timing(), engine_timing(), work), *timing);
        }
        address += n_tiles * static_cast<uint32_t>(tile_words(f)) * 8;
    }
}

void hetrun_pynq_secda_matmul(uint32_t n_rows, uint32_t n_blocks, uint32_t n_tokens, uint32_t block_words, uint32_t copied,
                              uint32_t clock_hz, hetrun_pynq_secda_timing* timing) {
    BoardTiming board = board_timing();
    board.clock_ps = 1'000'000'000'000 / clock_hz;
    const SecdaResult r = simulate_secda(board, secda_timing(), {n_rows, n_blocks, n_tokens, block_words, copied != 0});
    const auto seconds = [](int64_t ps) { return static_cast<double>(ps) * 1e-12; };
    *timing = {r.tile_rows, r.n_tiles, r.compute_cycles, r.input_words, r.weight_words, seconds(r.copy_ps), seconds(r.dma_ps),
               seconds(r.compute_ps), seconds(r.call_ps)};
}
