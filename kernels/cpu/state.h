// The KV cache of one attention op: [slot, split, head], and there the split's keys, then its values, [cell, head_dim] in the
// format of the spec, keys interleaved in groups of cells. So a sequence fills its memory from the start on, and what it never
// reaches is never touched.
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

    // The cells that the query at `position` sees, sinks among them or not.
    CellSpan visible(size_t position, bool sinks) const;

    // The first split of a head.
    uint8_t* keys(size_t slot, size_t head) { return memory_.data() + slot * slot_bytes_ + head * 2 * part_bytes_; }
    uint8_t* values(size_t slot, size_t head) { return keys(slot, head) + part_bytes_; }
    size_t split_bytes() const { return split_bytes_; }
    // Of a cell, from its head's first split.
    size_t offset(size_t cell) const { return cell / kAttendSplit * split_bytes_ + cell % kAttendSplit * row_bytes_; }

private:
    hetrun_kv_spec spec_;
    size_t row_bytes_ = 0, part_bytes_ = 0, split_bytes_ = 0, slot_bytes_ = 0;
    Memory memory_;
};

}  // namespace hetrun::cpu
