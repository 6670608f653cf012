// Where the keys and values of a pass lie, and how much of them a channel reads for each of its rows (engine.h, KV4).
#pragma once

#include <algorithm>
#include <vector>

#include "timing.h"

namespace hetrun::u280 {

// A row of the pass and a group of heads: what a channel does for it.
struct Unit {
    uint64_t beat;          // where its region begins in the channel
    uint32_t n_old, n_own;  // cells that are read, and cells of this pass, which are on the chip
    uint32_t n_channels;    // with a head in this group
    uint32_t n_heads;       // KV heads of the group
    size_t row;
    bool first;             // of its row

    uint32_t n_cells() const { return n_old + n_own; }
};

class Heads {
public:
    Heads(const Instruction& op, uint32_t channels)
        : op_(op), channels_(channels), split_(std::max(1u, channels / op.n_heads_kv)),
          groups_((op.n_heads_kv * split_ + channels - 1) / channels), code_beats_((op.head_dim + 127) / 128) {
        const uint32_t places = (op.n_cells + split_ - 1) / split_;
        region_beats_ = uint64_t{(places + HETRUN_U280_KV_BLOCK - 1) / HETRUN_U280_KV_BLOCK} * block_beats();
    }

    uint32_t groups() const { return groups_; }
    uint32_t split() const { return split_; }                    // channels of a head
    uint32_t code_beats() const { return code_beats_; }          // of a key or value
    uint32_t block_beats() const { return 4 + 2 * HETRUN_U280_KV_BLOCK * code_beats_; }
    uint32_t queries() const { return op_.n_heads / op_.n_heads_kv; }  // of a head
    uint32_t head_channels(uint32_t group) const {               // channels with a head in this group
        return std::min(channels_, op_.n_heads_kv * split_ - group * channels_);
    }
    // Whether a channel keeps a cell for its head of this group.
    bool keeps(uint32_t cell, uint32_t group, uint32_t channel) const {
        return channel < head_channels(group) && (group * channels_ + channel) % split_ == cell % split_;
    }
    // Where a position is kept: sinks are pinned, the rest is a ring.
    uint32_t cell(uint32_t position) const {
        if (op_.n_cells == op_.n_ctx || position < op_.sink) return position;
        return op_.sink + (position - op_.sink) % (op_.n_cells - op_.sink);
    }

    uint32_t query_sets() const { return op_.d == op_.a || op_.sink == 0 ? 1 : 2; }  // sinks may meet their own

    Unit unit(const std::vector<Row>& rows, size_t r, uint32_t group) const {
        const uint32_t position = static_cast<uint32_t>(rows[r].position);
        uint32_t own = 0;
        for (const Row& row : rows) own += row.slot == rows[r].slot && row.position <= rows[r].position;
        const uint32_t visible = op_.window ? std::min(position + 1, op_.sink + op_.window) : position + 1;
        own = std::min(own, visible);
        const uint32_t n = head_channels(group);
        return {region_of(rows[r], group), (visible - own + split_ - 1) / split_, (own + split_ - 1) / split_, n, n / split_, r, group == 0};
    }
    std::vector<Unit> units(const std::vector<Row>& rows) const {
        std::vector<Unit> all;
        for (size_t r = 0; r < rows.size(); ++r)
            for (uint32_t group = 0; group < groups_; ++group) all.push_back(unit(rows, r, group));
        return all;
    }

    // The block of a group's region in which a row's slot has a cell.
    uint64_t block(const Row& row, uint32_t cell, uint32_t group) const {
        return region_of(row, group) + uint64_t{cell / split_ / HETRUN_U280_KV_BLOCK} * block_beats();
    }

private:
    uint64_t region_of(const Row& row, uint32_t group) const {
        return op_.hbm + (static_cast<uint64_t>(row.slot) * groups_ + group) * region_beats_;
    }

    const Instruction& op_;
    uint32_t channels_, split_, groups_, code_beats_;
    uint64_t region_beats_;
};

}  // namespace hetrun::u280
