// Matmuls: a thread's share of the rows, and what becomes of a tile of results.
#include <cstring>

#include "run.h"

namespace hetrun::cpu {

namespace {

constexpr size_t kFetchAheadBytes = 8192, kAheadBytes = 128 << 10;

// Prepared activations that a core's second-level cache holds beside weights, and the groups of rows that they meet there.
constexpr size_t kCachedBytes = 1 << 20, kCachedGroups = 8;

// Tokens of a prompt that packed rows are multiplied with at once: blocks of one size, where they are too many for that cache.
size_t tokens_at_once(size_t n_tokens, const PreparedLayout& layout) {
    const size_t most = std::max(kCachedBytes / (layout.panel / kPanelTokens), kPreparedRows), blocks = (n_tokens + most - 1) / most;
    return round_up((n_tokens + blocks - 1) / blocks, kPreparedRows);
}

// Rows lie so far apart that the hardware does not foresee them.
constexpr size_t kEpilogueAhead = 8;

bool has_packed(const Step& s) { return s.weight[0]->packed || (s.weight[1] && s.weight[1]->packed); }

// Rows that are claimed together at least. `alone`: by few tokens.
size_t claim_unit(const Step& s, bool alone) {
    size_t unit = !alone ? kGroupRows : has_packed(s) ? kGroup : 4;
    while (s.out->width / unit > Claims::kMostUnits) unit *= 2;
    return unit;
}

void fetch_row(const float* from, size_t n) {
    for (size_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
}

}  // namespace

// Rows [first, first + n_rows) of a weight times some tokens: out[tokens, stride], which holds whole groups of rows.
// `alone`: each thread has prepared the tokens for itself, and they are all.
void Run::multiply(const WeightView& w, const Value& input, size_t first, size_t n_rows, Range tokens, bool alone, uint32_t thread,
                   float* out, size_t stride) {
    const size_t n_tokens = tokens.end - tokens.begin;
    const uint8_t* prepared = alone ? scratch(thread, p_.layout_.prepared) : input.data + tokens.begin * input.prepared.stride;
    uint8_t* own = scratch(thread, p_.layout_.matmul);
    if (w.packed == nullptr) {
        return k_.types[w.type]->matmul({w.row(first), w.row_bytes, n_rows, prepared, &input.prepared, n_tokens, out, stride, own});
    }
    const uint8_t* groups = w.packed + first / kGroup * w.group_bytes;
    const size_t n_groups = (n_rows + kGroup - 1) / kGroup;
    if (!alone) {
        const uint8_t* panels = k_.panel_of(input.panels, input.prepared, tokens.begin);
        return k_.types[w.type]->gemm({groups, w.group_bytes, n_groups, panels, &input.prepared, n_tokens, out, own});
    }
    for (size_t t = 0; t < n_tokens; ++t)
        k_.types[w.type]->gemv({groups, w.group_bytes, n_groups, prepared + t * input.prepared.stride, &input.prepared, out + t * stride});
}

void Run::matmul(const Step& s, uint32_t thread) {
    const size_t n_tokens = rows(*s.out), threads = pool_.active(), group = group_rows(n_tokens);
    if (n_tokens == 0) return;
    const bool alone = n_tokens <= kPrivateRows;
    const size_t unit = claim_unit(s, alone);
    // Rows are claimed by the group, or by as many as tokens stay in the cache for.
    const size_t block = alone || !has_packed(s) ? n_tokens : tokens_at_once(n_tokens, s.in[0]->prepared);
    const size_t claimed = block < n_tokens ? kCachedGroups * group : group;
    const auto units_of = [&](Range r) { return (r.end - r.begin + unit - 1) / unit; };
    const uint32_t turn = turns_ + static_cast<uint32_t>(&s - p_.steps_.data());
    p_.claims_[thread].begin(turn, units_of(share(s.out->width, thread, unit)));
    for (size_t i = 0; i < threads; ++i) {
        const uint32_t owner = static_cast<uint32_t>((thread + i) % threads);
        const Range theirs = share(s.out->width, owner, unit);
        for (;;) {
            const Range taken = p_.claims_[owner].take(turn, i == 0, std::max<size_t>(1, claimed / unit));
            if (taken.begin == taken.end) break;
            const size_t end = std::min(theirs.end, theirs.begin + taken.end * unit);
            for (size_t t = 0; t < n_tokens; t += block) {
                for (size_t first = theirs.begin + taken.begin * unit; first < end; first += group)
                    matmul_rows(s, first, std::min(group, end - first), {t, std::min(n_tokens, t + block)}, alone, thread);
            }
        }
    }
    if (alone) look_ahead(s, thread);
}

// Rows [first, first + n_rows) of a matmul, a group at most, and some tokens.
void Run::matmul_rows(const Step& s, size_t first, size_t n_rows, Range tokens, bool alone, uint32_t thread) {
    const size_t group = alone ? kGroupRowsFew : kGroupRows, n_tokens = tokens.end - tokens.begin;
    float* tiles[2] = {reinterpret_cast<float*>(scratch(thread, p_.layout_.tile)), nullptr};
    tiles[1] = tiles[0] + group * n_tokens;
    for (int i = 0; i < 2 && s.weight[i]; ++i) {
        multiply(*s.weight[i], *s.in[0], first, n_rows, tokens, alone, thread, tiles[i], group);
        if (s.bias[i]) {
            for (size_t t = 0; t < n_tokens; ++t) k_.add(tiles[i] + t * group, s.bias[i] + first, n_rows, tiles[i] + t * group);
        }
    }
    if (s.fills_panels && !alone) {
        fill_panels(s, first, tokens, tiles[0], tiles[1]);
    } else {
        write_rows(s, first, n_rows, tokens, group, tiles[0], tiles[1]);
    }
}

// Rows [first, first + n_rows) of a matmul's result, from its tiles [tokens, stride].
void Run::write_rows(const Step& s, size_t first, size_t n_rows, Range tokens, size_t stride, const float* tile, const float* up) {
    for (size_t t = tokens.begin; t < tokens.end; ++t, tile += stride, up += up ? stride : 0) {
        float* out = s.out->row(t) + first;
        if (t + kEpilogueAhead < tokens.end) {
            fetch_row(s.out->row(t + kEpilogueAhead) + first, n_rows);
            if (s.in[1] && !s.weight[1]) fetch_row(s.in[1]->row(t + kEpilogueAhead) + first, n_rows);
        }
        if (s.weight[1]) {
            k_.gated(s.function, tile, up, n_rows, out);
        } else if (s.in[1]) {
            k_.add(s.in[1]->row(t) + first, tile, n_rows, out);
        } else {
            std::memcpy(out, tile, n_rows * sizeof(float));
        }
    }
}

// kGroupRows rows of gate and up: 32 columns of what the next matmul takes. `tile` is used up.
void Run::fill_panels(const Step& s, size_t first, Range tokens, float* tile, const float* up) {
    static_assert(kGroupRows == 32, "a block of a panel");
    const Value& to = *s.in[1];
    const size_t n_tokens = tokens.end - tokens.begin;
    k_.gated(s.function, tile, up, n_tokens * kGroupRows, tile);
    for (size_t t = 0; t < n_tokens; t += kPanelTokens) {
        const float* rows[kPanelTokens];
        for (size_t i = 0; i < kPanelTokens; ++i) rows[i] = tile + std::min(t + i, n_tokens - 1) * kGroupRows;
        uint8_t* panel = k_.panel_of(to.panels, to.prepared, tokens.begin + t) + first / 32 * k_.panel_stride();
        k_.prepare_panel(rows, nullptr, 0.0f, kGroupRows, panel, k_.panel_stride());
    }
}

// What the thread reads first of the next matmul, on its way while threads wait for each other.
void Run::look_ahead(const Step& s, uint32_t thread) {
    Ahead& ahead = p_.ahead_[thread];
    ahead.clear();
    if (s.next_matmul == nullptr) return;
    const Range r = share(s.next_matmul->out->width, thread, claim_unit(*s.next_matmul, true));
    const bool pair = s.next_matmul->weight[1] != nullptr;
    const size_t n_rows = pair ? std::min(r.end - r.begin, kGroupRowsFew) : r.end - r.begin;
    if (n_rows == 0) return;
    for (int i = 0; i < 2 && s.next_matmul->weight[i]; ++i) {
        const WeightView& w = *s.next_matmul->weight[i];
        const uint8_t* from = w.packed ? w.packed + r.begin / kGroup * w.group_bytes : w.row(r.begin);
        const size_t nbytes = w.packed ? (n_rows + kGroup - 1) / kGroup * w.group_bytes : n_rows * w.row_bytes;
        ahead.add(from, std::min(nbytes, kAheadBytes));
        for (size_t at = 0; at < kFetchAheadBytes; at += 64) __builtin_prefetch(from + at);
    }
}

}  // namespace hetrun::cpu
