// A matmul through the timing models.
#include <algorithm>

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

// The overhead of a burst by which weights get this share of the pins' rate: what refresh and the processor's lines leave, less
// row misses. Only its differences are used, since rows that these close are not in it.
double burst_overhead_ps(const BoardTiming& board, double burst_bytes, double share) {
    const double data = burst_bytes * static_cast<double>(board.dram_byte_fs) / 1000, miss = static_cast<double>(board.dram_row_miss_ps);
    const double lines_per_ps = static_cast<double>(board.processor_bytes_per_s) / board.processor_line_bytes * 1e-12;
    const double line = board.processor_line_bytes * static_cast<double>(board.dram_byte_fs) / 1000 + miss;
    const double refresh = static_cast<double>(board.refresh_ps) / static_cast<double>(board.refresh_interval_ps);
    const double left = data * (1 - refresh - lines_per_ps * line), taken = data + miss * burst_bytes / board.dram_row_bytes;
    return (left - share * taken) / (share + lines_per_ps * data);
}

BoardTiming board_of(const hetrun_pynq_design& design) {
    BoardTiming board = board_timing();
    board.clock_ps = 1'000'000'000'000 / design.clock_hz;
    if (design.ddr_permille != HETRUN_PYNQ_DDR_PERMILLE) {
        const auto overhead = [&](uint32_t permille) { return burst_overhead_ps(board, design.burst_words * 8, permille / 1000.0); };
        const double more = overhead(design.ddr_permille) - overhead(HETRUN_PYNQ_DDR_PERMILLE);
        board.dram_burst_ps = std::max<int64_t>(0, board.dram_burst_ps + static_cast<int64_t>(more));
    }
    return board;
}

EngineTiming engine_of(const hetrun_pynq_design& design) {
    EngineTiming engine = engine_timing();
    engine.lanes = design.lanes;
    engine.ports = design.ports;
    engine.fifo_words = design.fifo_words;
    engine.outstanding = design.outstanding;
    engine.burst_words = design.burst_words;
    engine.slot_cycles = slot_cycles_of(design.rows);
    return engine;
}

}  // namespace

Work hetrun::pynq::work_of(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens, uint32_t address,
                            uint32_t mode) {
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
            (scales + 1) / 2,
            static_cast<uint32_t>(kTileRows),
            mode};
}

void hetrun_pynq_header_design(hetrun_pynq_design* design) {
    const EngineTiming engine = engine_timing();
    *design = {HETRUN_PYNQ_CLOCK_HZ, engine.lanes,       engine.ports,          engine.fifo_words,       engine.outstanding,
               engine.burst_words,   HETRUN_PYNQ_TOKENS, HETRUN_PYNQ_TILE_ROWS, HETRUN_PYNQ_DDR_PERMILLE};
}

void hetrun_pynq_matmul_timing(uint32_t format, uint32_t n_rows, uint32_t n_columns, uint32_t n_tokens, hetrun_pynq_timing* timing) {
    hetrun_pynq_design design;
    hetrun_pynq_header_design(&design);
    hetrun_pynq_design_timing(&design, format, n_rows, n_columns, n_tokens, HETRUN_PYNQ_MODE_WRITE, timing);
}

void hetrun_pynq_design_timing(const hetrun_pynq_design* design, uint32_t format, uint32_t n_rows, uint32_t n_columns,
                               uint32_t n_tokens, uint32_t mode, hetrun_pynq_timing* timing) {
    *timing = {};
    if (format >= HETRUN_PYNQ_FORMATS || mode > HETRUN_PYNQ_MODE_CODES_256) return;
    const BoardTiming board = board_of(*design);
    const EngineTiming engine = engine_of(*design);
    const Format& f = kFormats[format];
    const uint32_t columns = static_cast<uint32_t>(chunk_columns(f)), n_chunks = (n_columns + columns - 1) / columns;
    uint32_t address = 1u << 24;
    for (uint32_t first = 0; first < n_rows; first += HETRUN_PYNQ_MAX_ROWS) {
        const uint32_t rows = n_rows - first < HETRUN_PYNQ_MAX_ROWS ? n_rows - first : HETRUN_PYNQ_MAX_ROWS;
        // Whole tiles of either height.
        const uint32_t height = std::max(design->rows, static_cast<uint32_t>(kTileRows));
        const uint32_t padded = (rows + height - 1) / height * height;
        uint32_t n_words = 0;
        for (uint32_t t = 0; t < n_tokens; t += design->tokens) {
            const uint32_t tokens = n_tokens - t < design->tokens ? n_tokens - t : design->tokens;
            Work work = work_of(format, padded, n_chunks, tokens, address, mode);
            // Headers and codes of a tile grow with its rows.
            work.header_words = work.header_words * design->rows / kTileRows;
            work.tile_words = work.tile_words * design->rows / kTileRows;
            work.tile_rows = design->rows;
            n_words = work.n_words;
            add(simulate(board, engine, work), *timing);
        }
        address += n_words * 8;
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
