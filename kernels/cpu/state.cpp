#include "state.h"

#include <algorithm>
#include <cstring>

namespace hetrun::cpu {

int State::allocate() {
    const hetrun_kv_spec& s = spec_;
    if (s.format > HETRUN_KV_KV4H || s.n_slots < 1 || s.n_ctx < 1 || s.n_heads < 1 || s.head_dim < 1 || s.n_cells > s.n_ctx)
        return HETRUN_BAD_ARGUMENT;
    if (s.format == HETRUN_KV_Q8_0 && s.head_dim % 32 != 0) return HETRUN_BAD_ARGUMENT;
    if (s.format >= HETRUN_KV_KV4 && s.head_dim % 2 != 0) return HETRUN_BAD_ARGUMENT;
    if (s.format == HETRUN_KV_KV4H && (s.head_dim & (s.head_dim - 1)) != 0) return HETRUN_BAD_ARGUMENT;
    if (s.n_ctx > INT32_MAX - kKeyGroup || s.n_slots > INT32_MAX) return HETRUN_BAD_ARGUMENT;
    if (ring() && (s.window < 1 || s.n_cells < s.sink + s.window)) return HETRUN_BAD_ARGUMENT;
    if (s.head_dim > (1u << 20) || s.n_heads > (1u << 20)) return HETRUN_BAD_ARGUMENT;
    const uint64_t row = kv_row_bytes(format(), static_cast<size_t>(s.head_dim));
    const uint64_t cells = std::min<uint64_t>(kAttendSplit, round_up(s.n_cells, kKeyGroup));
    const uint64_t split = product(product(row, 2 * cells), s.n_heads);
    const uint64_t slot = product(split, (s.n_cells + kAttendSplit - 1) / kAttendSplit);
    const uint64_t all = product(slot, s.n_slots);
    if (all == UINT64_MAX || !memory_.allocate(all)) return HETRUN_NO_MEMORY;
    row_bytes_ = static_cast<size_t>(row);
    part_bytes_ = static_cast<size_t>(row * cells);
    split_bytes_ = static_cast<size_t>(split);
    slot_bytes_ = static_cast<size_t>(slot);
    return HETRUN_OK;
}

int State::copy(uint64_t from, uint64_t to, uint64_t n_tokens) {
    if (from >= spec_.n_slots || to >= spec_.n_slots || n_tokens > spec_.n_ctx) return HETRUN_BAD_ARGUMENT;
    if (from == to) return HETRUN_OK;
    // A ring that has gone round holds the last positions in all of its cells.
    const size_t cells = round_up(static_cast<size_t>(std::min(n_tokens, spec_.n_cells)), kKeyGroup);
    for (size_t first = 0; first < cells; first += kAttendSplit) {
        const size_t nbytes = std::min(cells - first, kAttendSplit) * row_bytes_;
        for (size_t head = 0; head < spec_.n_heads; ++head) {
            std::memcpy(keys(to, head) + offset(first), keys(from, head) + offset(first), nbytes);
            std::memcpy(values(to, head) + offset(first), values(from, head) + offset(first), nbytes);
        }
    }
    return HETRUN_OK;
}

CellSpan State::visible(size_t position, bool sinks) const {
    const size_t sink = static_cast<size_t>(spec_.sink), window = static_cast<size_t>(spec_.window);
    // Everything so far; a ring has not gone round by then.
    if (window == 0 || position + 1 <= sink + window) return {sinks ? 0 : std::min(sink, position + 1), position + 1, 0, 0};
    const size_t first = cell(position - window + 1), end = first + window;
    const size_t limit = static_cast<size_t>(ring() ? spec_.n_cells : spec_.n_ctx);
    if (end <= limit) return {0, sinks ? sink : 0, first, end};
    return {sinks ? 0 : sink, sink + (end - limit), first, limit};
}

}  // namespace hetrun::cpu
