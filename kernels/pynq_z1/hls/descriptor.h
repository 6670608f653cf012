// Descriptors: fetched from the ring, and checked.
#pragma once

#include <cstdint>

#include "flow.h"
#include "formats.h"

namespace hetrun::pynq {
namespace {

void fetch(const uint64_t* memory, uint32_t address, Descriptor& d) {
    uint32_t fields[16];
#pragma HLS ARRAY_PARTITION variable = fields complete
    for (uint32_t i = 0; i < 8; ++i) {
#pragma HLS PIPELINE II = 1
        const uint64_t word = memory[address / 8 + i];
        fields[2 * i] = static_cast<uint32_t>(word);
        fields[2 * i + 1] = static_cast<uint32_t>(word >> 32);
    }
    d = {fields[0], fields[1], fields[2],  fields[3],  fields[4],  fields[5],  fields[6],  fields[7],
         fields[8], fields[9], fields[10], fields[11], fields[12], fields[13], fields[14], fields[15]};
}

// before: the descriptor that ran last.
uint32_t problem(const Descriptor& d, const Descriptor& before) {
    if (d.format >= HETRUN_PYNQ_FORMATS) return HETRUN_PYNQ_STATUS_BAD_FORMAT;
    const uint32_t most_chunks = kFormats[d.format].super ? kMaxPackets / 4 : kMaxPackets;
    if (d.n_rows == 0 || d.n_rows % kTileRows != 0 || d.n_rows > kMaxRows || d.n_chunks == 0 || d.n_chunks > most_chunks ||
        d.n_tokens == 0 || d.n_tokens > kTokens || d.out_rows > d.n_rows)
        return HETRUN_PYNQ_STATUS_BAD_SHAPE;
    if (((d.weights | d.codes | d.code_stride | d.scales | d.scale_stride) & 7) != 0 ||
        ((d.out | d.out_stride | d.out_scales | d.out_scale_stride) & 3) != 0)
        return HETRUN_PYNQ_STATUS_BAD_ADDRESS;
    if (d.mode == HETRUN_PYNQ_MODE_WRITE) return HETRUN_PYNQ_STATUS_OK;
    if (d.mode > HETRUN_PYNQ_MODE_CODES_256 || d.gate_row > kMaxRows - d.n_rows) return HETRUN_PYNQ_STATUS_BAD_MODE;
    if (d.mode == HETRUN_PYNQ_MODE_GATE) return HETRUN_PYNQ_STATUS_OK;
    const uint32_t block_rows = d.mode == HETRUN_PYNQ_MODE_CODES_256 ? kMaxBlockRows : kWriteRows;
    const bool blocks = d.mode == HETRUN_PYNQ_MODE_ACTIVATE || (d.n_rows % block_rows == 0 && d.out_rows == d.n_rows);
    const bool gated = before.mode == HETRUN_PYNQ_MODE_GATE && before.gate_row == d.gate_row && before.n_rows == d.n_rows &&
                       before.n_tokens == d.n_tokens;
    return blocks && gated ? HETRUN_PYNQ_STATUS_OK : HETRUN_PYNQ_STATUS_BAD_MODE;
}

}  // namespace
}  // namespace hetrun::pynq
