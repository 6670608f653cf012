// Where things stand in a channel of the HBM: weights and the KV cache, in beats (engine.h defines the bytes).
#pragma once

#include "engine.h"

namespace hetrun::u280 {

constexpr uint32_t kChannels = HETRUN_U280_CHANNELS;
constexpr uint32_t kGroupRows = 16;   // of a channel that share a beat of row scales
constexpr uint32_t kBeatScales = 32;  // int16

struct Format {
    uint32_t rows, columns;  // of a beat of values
    uint32_t scales;         // that a beat of values needs; 0 where they are within
    bool minima;
};

constexpr Format kFormats[HETRUN_U280_FORMATS] = {
    {4, 64, 0, false},  // W2S24
    {4, 64, 4, false},  // W2
    {4, 32, 4, false},  // S4
    {4, 32, 4, true},   // U4
    {2, 32, 2, false},  // S8
    {2, 32, 4, false},  // S8H
};

constexpr uint32_t divided(uint32_t n, uint32_t by) { return (n + by - 1) / by; }

// Beats of values of a block of rows.
constexpr uint32_t value_beats(const Format& f, uint32_t n_columns) { return divided(n_columns, f.columns); }
// Of them, those whose scales share a beat.
constexpr uint32_t scaled_beats(const Format& f) { return f.scales == 0 ? 0 : kBeatScales / f.scales; }
// All beats of a block of rows.
constexpr uint32_t block_beats(const Format& f, uint32_t n_columns) {
    const uint32_t n = value_beats(f, n_columns);
    return f.scales == 0 ? n : n + divided(n, scaled_beats(f)) * (f.minima ? 2 : 1);
}
// Blocks of rows of every channel: all have as many.
constexpr uint32_t channel_blocks(const Format& f, uint32_t n_rows) { return divided(divided(n_rows, f.rows), kChannels); }
constexpr uint32_t group_blocks(const Format& f) { return kGroupRows / f.rows; }
constexpr uint32_t weight_beats(const Format& f, uint32_t n_rows, uint32_t n_columns) {
    const uint32_t n = channel_blocks(f, n_rows);
    return divided(n, group_blocks(f)) + n * block_beats(f, n_columns);
}
// Of the channel's block `block`: the beat of its row scales, and its first beat, from the weight's first on.
constexpr uint32_t scales_beat(const Format& f, uint32_t n_columns, uint32_t block) {
    return block / group_blocks(f) * (1 + group_blocks(f) * block_beats(f, n_columns));
}
constexpr uint32_t first_beat(const Format& f, uint32_t n_columns, uint32_t block) {
    return scales_beat(f, n_columns, block) + 1 + block % group_blocks(f) * block_beats(f, n_columns);
}

// The KV cache of an ATTEND: which cell of which head lies where.
struct KvLayout {
    uint32_t stripes;       // channels of a head: its cells take turns
    uint32_t groups;        // of heads: a channel has cells of one head of each
    uint32_t chunks;        // beats of a key, and of a value
    uint32_t block_beats;   // of 32 places: scales of keys, of values, keys, values
    uint32_t region_beats;  // of a slot and group

    constexpr KvLayout(uint32_t n_cells, uint32_t n_heads_kv, uint32_t head_dim)
        : stripes(n_heads_kv < kChannels ? kChannels / n_heads_kv : 1),
          groups(divided(n_heads_kv * stripes, kChannels)),
          chunks(divided(head_dim, 128)),
          block_beats(4 + 2 * HETRUN_U280_KV_BLOCK * chunks),
          region_beats(divided(divided(n_cells, stripes), HETRUN_U280_KV_BLOCK) * block_beats) {}

    constexpr uint32_t region(uint32_t slot, uint32_t group) const { return (slot * groups + group) * region_beats; }
    // Of a place: its block, and what of it stands where.
    constexpr uint32_t block(uint32_t place) const { return place / HETRUN_U280_KV_BLOCK * block_beats; }
    constexpr uint32_t key_scales(uint32_t place) const { return block(place); }
    constexpr uint32_t value_scales(uint32_t place) const { return block(place) + 2; }
    constexpr uint32_t key(uint32_t place) const { return block(place) + 4 + place % HETRUN_U280_KV_BLOCK * chunks; }
    constexpr uint32_t value(uint32_t place) const { return key(place) + HETRUN_U280_KV_BLOCK * chunks; }
};

}  // namespace hetrun::u280
