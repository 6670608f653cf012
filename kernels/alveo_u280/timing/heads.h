// Where the keys and values of a pass lie, and how much of them a channel reads for each of its rows (engine.h, KV4).
#pragma once

#include <algorithm>
#include <vector>

#include "timing.h"

namespace hetrun::u280 {

// What a channel does for a row of the pass and a group of heads.
struct Region {
    uint64_t beat;           // where the region begins in the channel
    uint32_t n_old, n_own;   // cells that are read, and cells of this pass, which are on the chip
};

class Heads {
public:
    Heads(const Instruction& op, uint32_t channels)
        : op_(op), channels_(channels), split_(std::max(1u, channels / op.n_heads_kv)),
          groups_((op.n_heads_kv * split_ + channels - 1) / channels), code_beats_((op.head_dim + 127) / 128),
          shared_((op.n_heads / op.n_heads_kv + 1) / 2) {
        const uint32_t places = (op.n_cells + split_ - 1) / split_;
        region_beats_ = uint64_t{(places + HETRUN_U280_KV_BLOCK - 1) / HETRUN_U280_KV_BLOCK} * block_beats();
    }

    uint32_t groups() const { return groups_; }
    uint32_t split() const { return split_; }                    // channels of a head
    uint32_t code_beats() const { return code_beats_; }          // of a key or value
    uint32_t block_beats() const { return 4 + 2 * HETRUN_U280_KV_BLOCK * code_beats_; }
    uint32_t queries() const { return op_.n_heads / op_.n_heads_kv; }  // of a head
    uint32_t shared_cycles() const { return shared_; }           // of a beat: two queries share it
    uint32_t head_channels(uint32_t group) const {               // channels with a head in this group
        return std::min(channels_, op_.n_heads_kv * split_ - group * channels_);
    }
    // Where a position is kept: sinks are pinned, the rest is a ring.
    uint32_t cell(uint32_t position) const {
        if (op_.n_cells == op_.n_ctx || position < op_.sink) return position;
        return op_.sink + (position - op_.sink) % (op_.n_cells - op_.sink);
    }

    // Of row `r`: cells in this channel, those of the pass apart.
    Region region(const std::vector<Row>& rows, size_t r, uint32_t group) const {
        const uint32_t position = static_cast<uint32_t>(rows[r].position);
        uint32_t own = 0;
        for (const Row& row : rows) own += row.slot == rows[r].slot && row.position <= rows[r].position;
        const uint32_t visible = op_.window ? std::min(position + 1, op_.sink + op_.window) : position + 1;
        own = std::min(own, visible);
        const uint64_t number = static_cast<uint64_t>(rows[r].slot) * groups_ + group;
        return {op_.hbm + number * region_beats_, (visible - own + split_ - 1) / split_, (own + split_ - 1) / split_};
    }

private:
    const Instruction& op_;
    uint32_t channels_, split_, groups_, code_beats_, shared_;
    uint64_t region_beats_;
};

// The order in which a channel's keys and values stream: unit u is row u / groups and group u % groups. Keys of the next unit come
// before the values of one where rows overlap.
struct Stretch {
    uint32_t unit;
    bool values;
};

inline std::vector<Stretch> stretches(uint32_t n_units, bool ahead) {
    std::vector<Stretch> order;
    for (uint32_t unit = 0; unit < n_units; ++unit) {
        order.push_back({unit, false});
        if (!ahead) order.push_back({unit, true});
        if (ahead && unit > 0) order.push_back({unit - 1, true});
    }
    if (ahead && n_units) order.push_back({n_units - 1, true});
    return order;
}

}  // namespace hetrun::u280
