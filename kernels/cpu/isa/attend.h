// Attention of a block of queries of one sequence over the cells of one KV head.
//
// Softmax is online over tiles of cells, started anew every kAttendSplit cells and merged. Tiles start at multiples of
// kAttendTile, and a cell that a query does not see adds nothing to the last bit: what a query gets depends neither on the
// queries beside it nor on which thread took which part of the cells.
#pragma once

namespace hetrun::cpu {
namespace {

// The cells of one split. sums: [rows, sum_stride], begun anew. careful: weigh only values of cells that a query sees,
// instead of those of others with 0.
template <bool Careful>
void attend_split(const AttendArgs& a, size_t begin, size_t end, float* sums, float* largest) {
    const size_t padded = round_up(a.head_dim, 16), sum_stride = attend_sum_stride(a.head_dim);
    const size_t n_rows = a.n_tokens * a.n_heads, row_bytes = kv_row_bytes(a.format, a.head_dim);
    const uint8_t* stored_keys = a.keys + begin / kAttendSplit * a.split_bytes;  // of the split
    const uint8_t* stored_values = a.values + begin / kAttendSplit * a.split_bytes;
    const bool at_end = end == a.end && a.next_keys;
    const uint8_t* after_keys = at_end ? a.next_keys : stored_keys + a.split_bytes;
    const uint8_t* after_values = at_end ? a.next_values : stored_values + a.split_bytes;
    float* keys = a.scratch;                            // [head_dim, kAttendTile]
    float* values = keys + a.head_dim * kAttendTile;    // [kAttendTile, padded]
    float* scores = values + kAttendTile * padded;      // [rows, kAttendTile]
    for (size_t i = 0; i < n_rows * sum_stride; ++i) sums[i] = 0.0f;
    for (size_t r = 0; r < n_rows; ++r) largest[r] = kLowestScore;

    for (size_t first = begin; first < end; first += kAttendTile) {
        // The tokens that see a cell of the tile: the later ones, or where the window has passed it the earlier ones.
        size_t from = 0, to = a.n_tokens, last = 0;
        const size_t full = first + kAttendTile < end ? first + kAttendTile : end;
        while (from < to && !sees_any(a.spans[from], first, full)) ++from;
        while (to > from && !sees_any(a.spans[to - 1], first, full)) --to;
        if (from == to) continue;
        for (size_t t = from; t < to; ++t) {
            const CellSpan& s = a.spans[t];
            const size_t until = s.end_high > first && s.begin_high < full ? s.end_high : s.end_low;
            last = until > last ? until : last;
        }
        const size_t count = round_up((last < full ? last : full) - first, kKeyGroup);
        const uint8_t* tile_keys = stored_keys + (first - begin) * row_bytes;
        const uint8_t* tile_values = stored_values + (first - begin) * row_bytes;
        const bool last_tile = full == end;
        const uint8_t* next_keys = last_tile ? after_keys : tile_keys + kAttendTile * row_bytes;
        const uint8_t* next_values = last_tile ? after_values : tile_values + kAttendTile * row_bytes;
        const size_t row = from * a.n_heads, rows = (to - from) * a.n_heads;
        const float* q = a.q + row * padded;
        float* out = sums + row * sum_stride;
        const auto weigh = [&] {
            for (size_t r = 0; r < rows; ++r)
                weigh_scores(a, a.spans[(row + r) / a.n_heads], first, count, scores + r * kAttendTile, out + r * sum_stride,
                             sum_stride, largest[row + r]);
        };
        if (!Careful && reads_directly(a.format, a.head_dim, rows)) {
            direct_rows(a.format, rows, [&](auto form, auto block, size_t r) {
                score_tile<form(), block()>(q + r * padded, padded, tile_keys, next_keys, row_bytes, count, a.head_dim,
                                            scores + r * kAttendTile);
            });
            weigh();
            direct_rows(a.format, rows, [&](auto form, auto block, size_t r) {
                value_tile<form(), block()>(scores + r * kAttendTile, tile_values, next_values, row_bytes, count, a.head_dim,
                                            out + r * sum_stride, sum_stride);
            });
            continue;
        }
        for (size_t i = 0; i < count; i += kKeyGroup) {
            prefetch(next_keys + i * row_bytes, kKeyGroup * row_bytes);
            prefetch(next_values + i * row_bytes, kKeyGroup * row_bytes);
            widen_keys(a.format, tile_keys + i * row_bytes, a.head_dim, keys + i);
        }
        multiply(rows, count, q, padded, keys, kAttendTile, a.head_dim, scores, kAttendTile, false);
        weigh();
        for (size_t i = 0; i < count; ++i)
            widen_value(a.format, tile_values + i * row_bytes, a.head_dim, padded, values + i * padded);
        if (!Careful) {
            multiply(rows, padded, scores, kAttendTile, values, padded, count, out, sum_stride, true);
            continue;
        }
        for (size_t r = 0; r < rows; ++r)
            for (size_t i = 0; i < count; ++i)
                if (sees(a.spans[(row + r) / a.n_heads], first + i))
                    multiply(1, padded, scores + r * kAttendTile + i, kAttendTile, values + i * padded, padded, 1,
                             out + r * sum_stride, sum_stride, true);
    }
    // A NaN or an infinity of a cell that a query does not see is none of its business, not even times 0.
    if (!Careful && !all_finite(sums, n_rows * sum_stride)) attend_split<true>(a, begin, end, sums, largest);
}

void attend_merge(size_t head_dim, float* sums, float& largest, float* other, float other_largest) {
    const size_t n = attend_sum_stride(head_dim);
    const float now = other_largest > largest ? other_largest : largest;
    const float own_factor = decay_of(largest - now), other_factor = decay_of(other_largest - now);
    for (size_t i = 0; i < n; i += kLanes)
        store_floats(sums + i, fmadd(load_floats(other + i), broadcast(other_factor),
                                     load_floats(sums + i) * broadcast(own_factor)));
    largest = now;
}

void attend(const AttendArgs& a) {
    if (a.format == KvFormat::F16) {
        // Queries as precise as keys, as in llama.cpp: rounding alike keeps results within the noise that its own batch
        // sizes have.
        const size_t n = a.n_tokens * a.n_heads * round_up(a.head_dim, 16);
        for (size_t i = 0; i < n; i += kLanes) store_floats(a.q + i, rounded_halves(load_floats(a.q + i)));
    }
    const size_t n_rows = a.n_tokens * a.n_heads, sum_stride = attend_sum_stride(a.head_dim);
    float* part = a.scratch + attend_tile_floats(a.head_dim, n_rows);  // sums of a split, then their largest scores
    bool first = true;
    for (size_t begin = a.begin; begin < a.end; begin += kAttendSplit) {
        const size_t end = begin + kAttendSplit < a.end ? begin + kAttendSplit : a.end;
        bool any = false;
        for (size_t t = 0; t < a.n_tokens; ++t) any = any || sees_any(a.spans[t], begin, end);
        if (!any && !(first && end == a.end)) continue;
        if (first) {
            attend_split<false>(a, begin, end, a.sums, a.largest);
        } else {
            float* largest = part + n_rows * sum_stride;
            attend_split<false>(a, begin, end, part, largest);
            for (size_t r = 0; r < n_rows; ++r)
                attend_merge(a.head_dim, a.sums + r * sum_stride, a.largest[r], part + r * sum_stride, largest[r]);
        }
        first = false;
    }
}

void attend_finish(KvFormat format, size_t head_dim, float* sums, float* out) {
    const size_t padded = round_up(head_dim, 16);
    scale_row(sums, padded, 1.0f / lane_sum(load_floats(sums + padded)));
    if (format == KvFormat::KV4H) hadamard(sums, head_dim);
    std::memcpy(out, sums, head_dim * sizeof(float));
}

}  // namespace
}  // namespace hetrun::cpu
