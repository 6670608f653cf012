// Cells of the KV cache: which of them a query sees, and in which channel and place they lie.
#pragma once

#include "flow.h"

namespace hetrun::u280 {

// What an ATTEND says of its cache.
struct Cache {
    KvLayout layout;
    uint32_t n_cells, n_ctx, sink, window, head_dim, n_heads_kv;

    explicit Cache(const Instruction& i)
        : layout(i.n_cells, i.n_heads_kv, i.head_dim),
          n_cells(i.n_cells),
          n_ctx(i.n_ctx),
          sink(i.sink),
          window(i.window),
          head_dim(i.head_dim),
          n_heads_kv(i.n_heads_kv) {}

    // Sinks are pinned, the rest is a ring.
    uint32_t cell(uint32_t position) const {
        return n_cells == n_ctx || position < sink ? position : sink + (position - sink) % (n_cells - sink);
    }
    uint32_t place(uint32_t position) const { return cell(position) / layout.stripes; }
    uint32_t stripe(uint32_t position) const { return cell(position) % layout.stripes; }
    bool visible(uint32_t key, uint32_t query) const { return key <= query && (window == 0 || key < sink || key + window > query); }

    // KV head of a channel in a group; n_heads_kv or more for none.
    uint32_t head(uint32_t channel, uint32_t group) const { return (group * kChannels + channel) / layout.stripes; }
    uint32_t stripe_of(uint32_t channel, uint32_t group) const { return (group * kChannels + channel) % layout.stripes; }
    // Whether the cell of a row stands in a channel and group.
    bool owns(const Row& row, uint32_t channel, uint32_t group) const {
        return head(channel, group) < n_heads_kv && stripe_of(channel, group) == stripe(static_cast<uint32_t>(row.position));
    }
};

// Places of a stripe among cells [from, to).
inline void add_run(Cells& cells, uint32_t i, const Cache& cache, uint32_t stripe, uint32_t from, uint32_t to) {
    const uint32_t m = cache.layout.stripes;
    const uint32_t first = from > stripe ? divided(from - stripe, m) : 0, end = to > stripe ? divided(to - stripe, m) : 0;
    cells.place[i] = first;
    cells.n[i] = end > first ? end - first : 0;
}

// Rows of the pass before `row`, and itself, whose keys its query sees on the chip.
inline bool own_visible(const Cache& cache, const Pass& pass, uint32_t row, uint32_t other) {
    return other <= row && pass.row[other].slot == pass.row[row].slot &&
           cache.visible(static_cast<uint32_t>(pass.row[other].position), static_cast<uint32_t>(pass.row[row].position));
}

// What the query of a row sees of a channel in a group.
inline Cells visible_cells(const Cache& cache, const Pass& pass, uint32_t row, uint32_t channel, uint32_t group) {
    Cells cells{};
    if (cache.head(channel, group) >= cache.n_heads_kv) return cells;
    const uint32_t position = static_cast<uint32_t>(pass.row[row].position), stripe = cache.stripe_of(channel, group);
    uint32_t own = position;  // the first position of the slot that this pass writes
    for (uint32_t r = row + 1; r-- > 0;) {
        if (pass.row[r].slot == pass.row[row].slot) own = static_cast<uint32_t>(pass.row[r].position);
    }
    const uint32_t recent = cache.window != 0 && position + 1 > cache.window ? position + 1 - cache.window : 0;
    const uint32_t pinned = cache.sink < own ? cache.sink : own;
    add_run(cells, 0, cache, stripe, 0, pinned);
    const uint32_t from = recent > pinned ? recent : pinned;
    if (from < own) {
        const uint32_t first = cache.cell(from), end = first + (own - from);
        add_run(cells, 1, cache, stripe, first, end < cache.n_cells ? end : cache.n_cells);
        if (end > cache.n_cells) add_run(cells, 2, cache, stripe, cache.sink, cache.sink + (end - cache.n_cells));
    }
    for (uint32_t r = 0; r <= row; ++r) {
        if (own_visible(cache, pass, row, r) && cache.stripe(static_cast<uint32_t>(pass.row[r].position)) == stripe) ++cells.n_own;
    }
    return cells;
}

}  // namespace hetrun::u280
