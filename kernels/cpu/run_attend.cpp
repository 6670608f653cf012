// Attention: keys and values of the batch into the cache, and its queries over what they see there.
#include <cstring>

#include "run.h"

namespace hetrun::cpu {

void Run::kv_store(const Step& s, uint32_t thread) {
    State& state = *s.state;
    const size_t heads = static_cast<size_t>(state.spec().n_heads), dim = static_cast<size_t>(state.spec().head_dim);
    float* row = reinterpret_cast<float*>(scratch(thread, p_.layout_.row));
    const Range r = share(rows(*s.in[0]) * heads, thread);
    for (size_t i = r.begin; i < r.end; ++i) {
        const size_t t = i / heads, head = i % heads;
        const size_t slot = static_cast<size_t>(batch_.slots[t]);
        const size_t cell = state.cell(static_cast<size_t>(batch_.positions[t]));
        const float* key = s.in[0]->row(0) + i * dim;
        if (const RopeTable* rope = s.rope[0]) {
            k_.rope(key, rope->cosines(t), rope->sines(t), dim, rope->n_pairs, s.flags & HETRUN_ROPE_HALF, row);
        } else {
            std::memcpy(row, key, dim * sizeof(float));
        }
        const size_t lane = cell % kKeyGroup;
        uint8_t* group = state.keys(slot, head) + state.offset(cell - lane);
        k_.kv_store_key(state.format(), row, dim, group, lane, reinterpret_cast<uint8_t*>(row + dim));
        std::memcpy(row, s.in[1]->row(0) + i * dim, dim * sizeof(float));
        k_.kv_store_value(state.format(), row, dim, state.values(slot, head) + state.offset(cell));
    }
}

void Run::attend(const Step& s, uint32_t thread) {
    const State& state = *s.state;
    const size_t kv_heads = static_cast<size_t>(state.spec().n_heads), dim = static_cast<size_t>(state.spec().head_dim);
    const size_t heads = s.in[0]->width / dim, shared = heads / kv_heads, n_tokens = rows(*s.in[0]);
    const size_t threads = pool_.active();
    if (threads > 1 && n_tokens <= kSplitTokens) {
        size_t end = 0;
        for (size_t t = 0; t < n_tokens; ++t)
            end = std::max(end, state.visible(static_cast<size_t>(batch_.positions[t]), true).end());
        if (end > kAttendSplit) return attend_parts(s, thread, (end + kAttendSplit - 1) / kAttendSplit);
    }
    // Heads that share keys widen them once, unless that leaves threads idle.
    const size_t together = threads == 1 || n_tokens * kv_heads >= 4 * threads ? shared : 1;
    const size_t most = std::max<size_t>(1, kAttendRows / together);
    size_t item = 0;
    for (size_t first = 0, n = 1; first < n_tokens; first += n) {
        for (n = 1; n < most && first + n < n_tokens && batch_.slots[first + n] == batch_.slots[first]; ++n) {
        }
        for (size_t head = 0; head < heads; head += together, ++item) {
            // Threads take turns there and back: later tokens see more.
            const size_t turn = item % (2 * threads);
            if ((turn < threads ? turn : 2 * threads - 1 - turn) != thread) continue;
            AttendArgs a = attend_args(s, thread, first, n, head, together);
            if (n_tokens <= kPrivateRows) {  // few cells are few bytes, and memory would wait
                const size_t tile_bytes = kAttendTile * kv_row_bytes(a.format, dim);
                if (const uint8_t* next = p_.ahead_[thread].take(2 * tile_bytes)) {
                    a.next_keys = next;
                    a.next_values = next + tile_bytes;
                }
            }
            attend_cells(s, thread, first, head, a);
            for (size_t r = 0; r < n * together; ++r)
                k_.attend_finish(a.format, dim, a.sums + r * attend_sum_stride(dim),
                                 s.out->row(first + r / together) + (head + r % together) * dim);
        }
    }
}

// Each thread takes some splits of the cells; after a barrier, some heads.
void Run::attend_parts(const Step& s, uint32_t thread, size_t n_splits) {
    const size_t kv_heads = static_cast<size_t>(s.state->spec().n_heads), dim = static_cast<size_t>(s.state->spec().head_dim);
    const size_t heads = s.in[0]->width / dim, shared = heads / kv_heads, n_tokens = rows(*s.in[0]);
    const size_t part_floats = attend_part_floats(dim, shared), n_items = n_tokens * kv_heads * n_splits;
    const auto part = [&](size_t item) {
        return reinterpret_cast<float*>(scratch(0, p_.layout_.parts)) + item * part_floats;
    };
    // Threads take runs of items, of as many cells: one run is one stream of memory.
    const auto end_of = [&](size_t token) {
        return s.state->visible(static_cast<size_t>(batch_.positions[token]), true).end();
    };
    size_t n_cells = 0, before = 0;
    for (size_t token = 0; token < n_tokens; ++token) n_cells += kv_heads * end_of(token);
    const size_t threads = pool_.active();
    AttendArgs a{};
    size_t ready = n_items;  // the token and head whose queries are
    for (size_t item = 0; item < n_items; ++item) {
        const size_t token = item / n_splits / kv_heads, head = item / n_splits % kv_heads, begin = item % n_splits * kAttendSplit;
        const size_t end = std::min(end_of(token), begin + kAttendSplit);
        if (begin >= end) continue;
        const size_t middle = before + (end - begin) / 2;
        before += end - begin;
        if (middle * threads / n_cells != thread) continue;
        if (item / n_splits != ready) {
            ready = item / n_splits;
            a = attend_args(s, thread, token, 1, head * shared, shared);
        }
        const bool last = end == end_of(token) && head + 1 < kv_heads;
        const size_t slot = static_cast<size_t>(batch_.slots[token]);
        a.next_keys = last ? s.state->keys(slot, head + 1) : nullptr;
        a.next_values = last ? s.state->values(slot, head + 1) : nullptr;
        a.begin = begin;
        a.end = end;
        a.sums = part(item);
        a.largest = a.sums + shared * attend_sum_stride(dim);
        attend_cells(s, thread, token, head * shared, a);
    }
    pool_.barrier(thread);
    const Range r = share(n_tokens * heads, thread);
    for (size_t i = r.begin; i < r.end; ++i) {
        const size_t token = i / heads, row = i % shared, first = i / shared * n_splits;
        const size_t end = s.state->visible(static_cast<size_t>(batch_.positions[token]), true).end();
        float* sums = part(first) + row * attend_sum_stride(dim);
        float& largest = part(first)[shared * attend_sum_stride(dim) + row];
        for (size_t split = 1; split * kAttendSplit < end; ++split) {
            float* other = part(first + split);
            k_.attend_merge(dim, sums, largest, other + row * attend_sum_stride(dim),
                            other[shared * attend_sum_stride(dim) + row]);
        }
        k_.attend_finish(s.state->format(), dim, sums, s.out->row(token) + i % heads * dim);
    }
}

// Where the queries in[set] of a step stand: the cells that they see, then themselves.
struct Run::Queries {
    CellSpan* spans;
    float* rows;
};
Run::Queries Run::queries(uint32_t thread, size_t dim, size_t n_heads, size_t set) {
    const size_t n_rows = std::max(kAttendRows, n_heads);
    CellSpan* spans = reinterpret_cast<CellSpan*>(scratch(thread, p_.layout_.queries) + set * attend_query_bytes(dim, n_rows));
    return {spans, reinterpret_cast<float*>(spans + n_rows)};
}

// Rotates them as the cache's keys are, and rounds their length up.
void Run::turn_queries(const Step& s, size_t set, size_t first_token, size_t n_tokens, size_t first_head, size_t n_heads,
                       float* to) {
    const size_t dim = static_cast<size_t>(s.state->spec().head_dim), padded = round_up(dim, 16);
    const RopeTable* rope = s.rope[set];
    for (size_t r = 0; r < n_tokens * n_heads; ++r, to += padded) {
        const size_t token = first_token + r / n_heads;
        const float* q = s.in[set]->row(token) + (first_head + r % n_heads) * dim;
        if (rope) {
            k_.rope(q, rope->cosines(token), rope->sines(token), dim, rope->n_pairs, s.flags & HETRUN_ROPE_HALF, to);
        } else {
            std::memcpy(to, q, dim * sizeof(float));
        }
        if (s.state->format() == KvFormat::KV4H) k_.hadamard(to, dim);
        for (size_t i = dim; i < padded; ++i) to[i] = 0.0f;
    }
}

// All cells that the tokens see, and queries ready for them.
AttendArgs Run::attend_args(const Step& s, uint32_t thread, size_t first_token, size_t n_tokens, size_t first_head,
                            size_t n_heads) {
    State& state = *s.state;
    const size_t dim = static_cast<size_t>(state.spec().head_dim), n_rows = n_tokens * n_heads;
    const Queries own = queries(thread, dim, n_heads, 0);
    turn_queries(s, 0, first_token, n_tokens, first_head, n_heads, own.rows);
    const size_t slot = static_cast<size_t>(batch_.slots[first_token]);
    const size_t kv_head = first_head / (s.in[0]->width / dim / static_cast<size_t>(state.spec().n_heads));
    AttendArgs a{};
    a.format = state.format();
    a.keys = state.keys(slot, kv_head);
    a.values = state.values(slot, kv_head);
    a.split_bytes = state.split_bytes();
    a.spans = own.spans;
    a.n_tokens = n_tokens;
    for (size_t t = 0; t < n_tokens; ++t) {
        own.spans[t] = state.visible(static_cast<size_t>(batch_.positions[first_token + t]), s.in[1] == nullptr);
        a.end = std::max(a.end, own.spans[t].end());
    }
    a.head_dim = dim;
    a.n_heads = n_heads;
    a.q = own.rows;
    a.scale = s.f0;
    a.soft_cap = s.f1;
    a.sums = reinterpret_cast<float*>(scratch(thread, p_.layout_.sums));
    a.largest = a.sums + n_rows * attend_sum_stride(dim);
    a.scratch = reinterpret_cast<float*>(scratch(thread, p_.layout_.attend));
    return a;
}

// The cells of `a`, and with the first of them the sinks where these meet queries of their own: they are summed apart, then join.
void Run::attend_cells(const Step& s, uint32_t thread, size_t first_token, size_t first_head, const AttendArgs& a) {
    k_.attend(a);
    if (s.in[1] == nullptr || a.begin != 0) return;
    const Queries own = queries(thread, a.head_dim, a.n_heads, 1);
    turn_queries(s, 1, first_token, a.n_tokens, first_head, a.n_heads, own.rows);
    AttendArgs sinks = a;
    sinks.next_keys = sinks.next_values = nullptr;
    sinks.spans = own.spans;
    sinks.q = own.rows;
    sinks.end = 0;
    for (size_t t = 0; t < a.n_tokens; ++t) {
        const size_t position = static_cast<size_t>(batch_.positions[first_token + t]);
        own.spans[t] = {0, std::min(static_cast<size_t>(s.state->spec().sink), position + 1), 0, 0};
        sinks.end = std::max(sinks.end, own.spans[t].end());
    }
    const size_t n_rows = a.n_tokens * a.n_heads, stride = attend_sum_stride(a.head_dim);
    sinks.sums = reinterpret_cast<float*>(scratch(thread, p_.layout_.sums)) +
                 attend_part_floats(a.head_dim, std::max(kAttendRows, a.n_heads));
    sinks.largest = sinks.sums + n_rows * stride;
    k_.attend(sinks);
    for (size_t r = 0; r < n_rows; ++r)
        k_.attend_merge(a.head_dim, a.sums + r * stride, a.largest[r], sinks.sums + r * stride, sinks.largest[r]);
}

}  // namespace hetrun::cpu
