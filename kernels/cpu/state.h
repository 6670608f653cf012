// The KV cache of one attention op. Keys, then values, each [slot, head, cell, head_dim] in the format of the spec, keys
// interleaved in groups of cells: those of a head are consecutive, and groups of positions never reached are never touched.
#pragma once

#include "hetrun_cpu.h"
#include "kernels.h"
#include "memory.h"

namespace hetrun::cpu {

class State {
public:
    explicit State(const hetrun_kv_spec& spec) : spec_(spec) {}

    int allocate();  // a hetrun_status
    int copy(uint64_t from, uint64_t to, uint64_t n_tokens);

    const hetrun_kv_spec& spec() const { return spec_; }
    KvFormat format() const { return static_cast<KvFormat>(spec_.format); }
    bool ring() const { return spec_.n_cells < spec_.n_ctx; }
    size_t row_bytes() const { return row_bytes_; }

    size_t cell(size_t position) const {
        const size_t sink = static_cast<size_t>(spec_.sink);
        if (!ring() || position < sink) return position;
        return sink + (position - sink) % (static_cast<size_t>(spec_.n_cells) - sink);
    }

    // The cells that the query at `position` sees.
    CellSpan visible(size_t position) const;

    uint8_t* keys(size_t slot, size_t head) { return memory_.data() + (slot * spec_.n_heads + head) * head_bytes_; }
    uint8_t* values(size_t slot, size_t head) { return keys(slot, head) + half_bytes_; }

private:
    hetrun_kv_spec spec_;
    size_t row_bytes_ = 0, head_bytes_ = 0, half_bytes_ = 0;
    Memory memory_;
};

}  // namespace hetrun::cpu
