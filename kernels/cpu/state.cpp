#include "state.h"

#include <algorithm>
#include <cstring>

namespace hetrun::cpu {

int State::allocate() {
    const hetrun_kv_spec& s = spec_;
    if (s.format > HETRUN_KV_Q8_0 || s.n_slots < 1 || s.n_ctx < 1 || s.n_heads < 1 || s.head_dim < 1 || s.n_cells > s.n_ctx)
        return HETRUN_BAD_ARGUMENT;
    if (s.format == HETRUN_KV_Q8_0 && s.head_dim % 32 != 0) return HETRUN_BAD_ARGUMENT;
    if (s.n_ctx > INT32_MAX || s.n_slots > INT32_MAX) return HETRUN_BAD_ARGUMENT;
    if (ring() && (s.window < 1 || s.n_cells < s.sink + s.window)) return HETRUN_BAD_ARGUMENT;
    if (s.head_dim > (1u << 20) || s.n_heads > (1u << 20)) return HETRUN_BAD_ARGUMENT;
    const uint64_t row = kv_row_bytes(format(), static_cast<size_t>(s.head_dim));
    const uint64_t head = product(row, s.n_cells);
    const uint64_t half = product(product(head, s.n_heads), s.n_slots);
    const uint64_t all = product(half, 2);
    if (all == UINT64_MAX || !memory_.allocate(all)) return HETRUN_NO_MEMORY;
    row_bytes_ = static_cast<size_t>(row);
    head_bytes_ = static_cast<size_t>(head);
    half_bytes_ = static_cast<size_t>(half);
    return HETRUN_OK;
}

int State::copy(uint64_t from, uint64_t to, uint64_t n_tokens) {
    if (from >= spec_.n_slots || to >= spec_.n_slots || n_tokens > spec_.n_ctx) return HETRUN_BAD_ARGUMENT;
    if (from == to) return HETRUN_OK;
    // A ring that has gone round holds the last positions in all of its cells.
    const size_t cells = static_cast<size_t>(std::min(n_tokens, spec_.n_cells));
    for (size_t head = 0; head < spec_.n_heads; ++head) {
        std::memcpy(keys(to, head), keys(from, head), cells * row_bytes_);
        std::memcpy(values(to, head), values(from, head), cells * row_bytes_);
    }
    return HETRUN_OK;
}

size_t State::visible(size_t position, CellRun* runs) const {
    const size_t sink = static_cast<size_t>(spec_.sink), window = static_cast<size_t>(spec_.window);
    size_t n_runs = 0;
    if (window == 0 || position + 1 <= sink + window) {
        // Everything so far; a ring has not gone round by then.
        runs[n_runs++] = {0, position + 1};
        return n_runs;
    }
    if (sink > 0) runs[n_runs++] = {0, sink};
    const size_t first = cell(position - window + 1);
    const size_t end = ring() ? static_cast<size_t>(spec_.n_cells) : static_cast<size_t>(spec_.n_ctx);
    const size_t before_wrap = std::min(window, end - first);
    runs[n_runs++] = {first, before_wrap};
    if (before_wrap < window) runs[n_runs++] = {sink, window - before_wrap};
    return n_runs;
}

}  // namespace hetrun::cpu
