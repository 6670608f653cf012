// Runs the steps of a program on one batch: every thread walks the table and does its share of each step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "experts.h"
#include "pack.h"
#include "program.h"

namespace hetrun::cpu {

namespace {

struct Range {
    size_t begin, end;
};

constexpr size_t kFetchAheadBytes = 8192;

// Rows lie so far apart that the hardware does not foresee them.
constexpr size_t kEpilogueAhead = 8;

void fetch_row(const float* from, size_t n) {
    for (size_t i = 0; i < n; i += 16) __builtin_prefetch(from + i);
}

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A counter of constant rate that is read in a few nanoseconds; the system's clock takes four times as long, which hundreds
// of steps a token would feel.
uint64_t ticks() {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t count;
    asm volatile("mrs %0, cntvct_el0" : "=r"(count));
    return count;
#else
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

}  // namespace

class Run {
public:
    Run(Program& program, const hetrun_batch& batch, hetrun_report& report)
        : p_(program),
          k_(*program.device_.kernels),
          pool_(*program.device_.pool),
          batch_(batch),
          step_times_(reinterpret_cast<double*>(static_cast<uintptr_t>(report.step_s))),
          began_s_(step_times_ ? now_s() : 0.0),
          began_(step_times_ ? ticks() : 0) {}

    static void entry(void* self, uint32_t thread) { static_cast<Run*>(self)->walk(thread); }

    // When every thread has ended: ticks become seconds.
    void end_timing() {
        if (step_times_ == nullptr || p_.steps_.empty()) return;
        const uint64_t ended = ticks();
        const double elapsed_s = now_s() - began_s_, elapsed = static_cast<double>(ended - began_);
        step_times_[p_.steps_.size() - 1] = static_cast<double>(ended - step_began_);
        for (size_t i = 0; i < p_.steps_.size(); ++i) step_times_[i] *= elapsed > 0 ? elapsed_s / elapsed : 0.0;
    }

private:
    void begin_timing(const Step& s) {
        const uint64_t now = ticks();
        const size_t index = static_cast<size_t>(&s - p_.steps_.data());
        if (index > 0) step_times_[index - 1] = static_cast<double>(now - step_began_);
        step_began_ = now;
    }

    void walk(uint32_t thread);
    void execute(const Step& s, uint32_t thread);
    void embed(const Step& s, uint32_t thread);
    void rope_table(const Step& s, uint32_t thread);
    void prepare(const Step& s, uint32_t thread);
    void matmul(const Step& s, uint32_t thread);
    void multiply(const WeightView& w, const Value& input, size_t first, size_t n_rows, size_t n_tokens, uint32_t thread,
                  float* out, size_t stride);
    void write_rows(const Step& s, size_t first, size_t n_rows, size_t n_tokens, const float* tile, const float* up);
    void fill_panels(const Step& s, size_t first, size_t n_tokens, float* tile, const float* up);
    void fetch_ahead(const Step& s, uint32_t thread) const;
    void norm(const Step& s, uint32_t thread);
    void rope(const Step& s, uint32_t thread);
    void kv_store(const Step& s, uint32_t thread);
    void attend(const Step& s, uint32_t thread);
    void attend_parts(const Step& s, uint32_t thread, size_t n_splits);
    AttendArgs attend_args(const Step& s, uint32_t thread, size_t first_token, size_t n_tokens, size_t first_head, size_t n_heads);
    void elementwise(const Step& s, uint32_t thread);
    void select(const Step& s, uint32_t thread);
    void routes(const Step& s, uint32_t thread);
    void experts(const Step& s, uint32_t thread);

    size_t rows(const Value& v) const { return static_cast<size_t>(v.outputs ? batch_.n_outputs : batch_.n_tokens); }
    uint8_t* scratch(uint32_t thread, size_t offset) const {
        return p_.scratch_.data() + thread * p_.layout_.stride + offset;
    }
    // The thread's share of n items, in whole units.
    Range share(size_t n, uint32_t thread, size_t unit = 1) const {
        const size_t units = (n + unit - 1) / unit, threads = pool_.active();
        return {std::min(n, units * thread / threads * unit), std::min(n, units * (thread + 1) / threads * unit)};
    }

    Program& p_;
    const Kernels& k_;
    Pool& pool_;
    const hetrun_batch& batch_;
    double* const step_times_;  // ticks, in the end seconds, of each step; nullptr: steps are not timed
    const double began_s_;
    const uint64_t began_;
    alignas(128) uint64_t step_began_ = 0;  // for the caller's thread alone, on a cache line that the others do not read
};

void Run::walk(uint32_t thread) {
    const bool timing = thread == 0 && step_times_ != nullptr;
    bool shared = false;  // the last PREPARE was shared out
    for (const Step& s : p_.steps_) {
        if ((s.flags & HETRUN_BARRIER) || (shared && (s.flags & HETRUN_BARRIER_IF_SHARED))) pool_.barrier(thread);
        if (timing) begin_timing(s);
        execute(s, thread);
        if (s.kind == HETRUN_PREPARE) shared = rows(*s.in[0]) > kPrivateRows && !s.fills_panels;
    }
}

void Run::execute(const Step& s, uint32_t thread) {
    switch (s.kind) {
        case HETRUN_EMBED: return embed(s, thread);
        case HETRUN_ROPE_TABLE: return rope_table(s, thread);
        case HETRUN_PREPARE: return prepare(s, thread);
        case HETRUN_MATMUL: return matmul(s, thread);
        case HETRUN_NORM: return norm(s, thread);
        case HETRUN_ROPE: return rope(s, thread);
        case HETRUN_KV_STORE: return kv_store(s, thread);
        case HETRUN_ATTEND: return attend(s, thread);
        case HETRUN_SELECT: return select(s, thread);
        case HETRUN_ROUTE: return routes(s, thread);
        case HETRUN_EXPERTS_UP:
        case HETRUN_EXPERTS_DOWN: return experts(s, thread);
        default: return elementwise(s, thread);
    }
}

void Run::embed(const Step& s, uint32_t thread) {
    const WeightView& w = *s.weight[0];
    const Range r = share(rows(*s.out), thread);
    for (size_t t = r.begin; t < r.end; ++t)
        k_.types[w.type]->dequantize(w.row(static_cast<size_t>(batch_.tokens[t])), w.n_columns, s.out->row(t));
}

void Run::rope_table(const Step& s, uint32_t thread) {
    const RopeTable& table = *s.rope;
    const Range r = share(static_cast<size_t>(batch_.n_tokens), thread);
    for (size_t t = r.begin; t < r.end; ++t) {
        float* cosines = table.data + t * 2 * table.n_pairs;
        float* sines = cosines + table.n_pairs;
        for (size_t i = 0; i < table.n_pairs; ++i) {
            const double angle = static_cast<double>(batch_.positions[t]) * table.frequencies[i];
            cosines[i] = static_cast<float>(std::cos(angle)) * table.magnitude;
            sines[i] = static_cast<float>(std::sin(angle)) * table.magnitude;
        }
    }
}

void Run::prepare(const Step& s, uint32_t thread) {
    const Value& x = *s.in[0];
    const PreparedLayout& layout = s.out->prepared;
    const size_t n_rows = rows(x);
    const bool alone = n_rows <= kPrivateRows;
    if (!alone && s.fills_panels) return;
    uint8_t* base = alone ? scratch(thread, p_.layout_.prepared) : s.out->data;
    float* normed = reinterpret_cast<float*>(scratch(thread, p_.layout_.row));
    const bool floats = (s.flags & HETRUN_PREPARE_FLOAT) != 0;
    const Range r = alone ? Range{0, n_rows} : share(n_rows, thread, kPanelTokens);
    if (!alone && s.panels_read) {
        for (size_t t = r.begin; t < r.end; t += kPanelTokens) {
            const float* panel[kPanelTokens];  // beyond the last row the last once more, which nobody reads
            for (size_t i = 0; i < kPanelTokens; ++i) panel[i] = x.row(std::min(t + i, r.end - 1));
            k_.prepare_panel(panel, s.weight[0] ? s.weight[0]->floats : nullptr, s.f0, x.width,
                             s.out->panels + t / kPanelTokens * layout.panel);
        }
        if (!s.rows_read && !floats) return;
    }
    for (size_t t = r.begin; t < r.end; ++t) {
        uint8_t* out = base + t * layout.stride;
        const float* from = x.row(t);
        if (s.weight[0]) {
            k_.rms_norm(from, s.weight[0]->floats, x.width, s.f0, normed);
            from = normed;
        }
        if (s.flags & HETRUN_PREPARE_INT8) k_.prepare_int8(from, layout, out);
        if (floats) {
            float* copy = reinterpret_cast<float*>(out + layout.floats);
            std::memcpy(copy, from, x.width * sizeof(float));
            for (size_t i = x.width; i < round_up(x.width, 16); ++i) copy[i] = 0.0f;
        }
    }
}

// Rows [first, first + n_rows) of a weight times all tokens: out[n_tokens, stride], which holds whole groups of rows.
void Run::multiply(const WeightView& w, const Value& input, size_t first, size_t n_rows, size_t n_tokens, uint32_t thread,
                   float* out, size_t stride) {
    const bool alone = n_tokens <= kPrivateRows;
    const uint8_t* prepared = alone ? scratch(thread, p_.layout_.prepared) : input.data;
    uint8_t* own = scratch(thread, p_.layout_.matmul);
    if (w.packed == nullptr) {
        return k_.types[w.type]->matmul({w.row(first), w.row_bytes, n_rows, prepared, &input.prepared, n_tokens, out, stride, own});
    }
    const uint8_t* groups = w.packed + first / kGroup * w.group_bytes;
    const size_t n_groups = (n_rows + kGroup - 1) / kGroup;
    if (!alone) return k_.types[w.type]->gemm({groups, w.group_bytes, n_groups, input.panels, &input.prepared, n_tokens, out, own});
    for (size_t t = 0; t < n_tokens; ++t)
        k_.types[w.type]->gemv({groups, w.group_bytes, n_groups, prepared + t * input.prepared.stride, &input.prepared, out + t * stride});
}

void Run::matmul(const Step& s, uint32_t thread) {
    const size_t n_tokens = rows(*s.out);
    if (n_tokens == 0) return;
    const size_t group = group_rows(n_tokens);
    const bool packed = s.weight[0]->packed || (s.weight[1] && s.weight[1]->packed);
    float* tiles[2] = {reinterpret_cast<float*>(scratch(thread, p_.layout_.tile)), nullptr};
    tiles[1] = tiles[0] + group * n_tokens;

    const bool fills = s.fills_panels && n_tokens > kPrivateRows;
    const Range r = share(s.out->width, thread, fills ? kGroupRows : packed ? kGroup : 4);
    for (size_t first = r.begin; first < r.end; first += group) {
        const size_t n_rows = std::min(group, r.end - first);
        for (int i = 0; i < 2 && s.weight[i]; ++i) {
            multiply(*s.weight[i], *s.in[0], first, n_rows, n_tokens, thread, tiles[i], group);
            if (s.bias[i]) {
                for (size_t t = 0; t < n_tokens; ++t)
                    k_.add(tiles[i] + t * group, s.bias[i] + first, n_rows, tiles[i] + t * group);
            }
        }
        if (fills) {
            fill_panels(s, first, n_tokens, tiles[0], tiles[1]);
        } else {
            write_rows(s, first, n_rows, n_tokens, tiles[0], tiles[1]);
        }
    }
    if (n_tokens <= kPrivateRows) fetch_ahead(s, thread);
}

// Rows [first, first + n_rows) of a matmul's result, from its tiles [n_tokens, group_rows(n_tokens)].
void Run::write_rows(const Step& s, size_t first, size_t n_rows, size_t n_tokens, const float* tile, const float* up) {
    const size_t group = group_rows(n_tokens);
    for (size_t t = 0; t < n_tokens; ++t) {
        float* out = s.out->row(t) + first;
        if (t + kEpilogueAhead < n_tokens) {
            fetch_row(s.out->row(t + kEpilogueAhead) + first, n_rows);
            if (s.in[1] && !s.weight[1]) fetch_row(s.in[1]->row(t + kEpilogueAhead) + first, n_rows);
        }
        if (s.weight[1]) {
            k_.gated(s.function, tile + t * group, up + t * group, n_rows, out);
        } else if (s.in[1]) {
            k_.add(s.in[1]->row(t) + first, tile + t * group, n_rows, out);
        } else {
            std::memcpy(out, tile + t * group, n_rows * sizeof(float));
        }
    }
}

// kGroupRows rows of gate and up: 32 columns of what the next matmul takes. `tile` is used up.
void Run::fill_panels(const Step& s, size_t first, size_t n_tokens, float* tile, const float* up) {
    static_assert(kGroupRows == 32, "a block of a panel");
    const Value& to = *s.in[1];
    k_.gated(s.function, tile, up, n_tokens * kGroupRows, tile);
    for (size_t t = 0; t < n_tokens; t += kPanelTokens) {
        const float* rows[kPanelTokens];
        for (size_t i = 0; i < kPanelTokens; ++i) rows[i] = tile + std::min(t + i, n_tokens - 1) * kGroupRows;
        uint8_t* panel = to.panels + t / kPanelTokens * to.prepared.panel;
        k_.prepare_panel(rows, nullptr, 0.0f, kGroupRows, panel + first / 32 * sizeof(PanelBlock));
    }
}

// The start of the thread's share of the next matmul, on its way while threads wait for each other.
void Run::fetch_ahead(const Step& s, uint32_t thread) const {
    if (s.next_matmul == nullptr) return;
    const Range r = share(s.next_matmul->out->width, thread, kGroup);
    for (int i = 0; i < 2 && s.next_matmul->weight[i]; ++i) {
        const WeightView& w = *s.next_matmul->weight[i];
        if (w.packed == nullptr || r.begin >= r.end) continue;
        const uint8_t* from = w.packed + r.begin / kGroup * w.group_bytes;
        for (size_t at = 0; at < kFetchAheadBytes; at += 64) __builtin_prefetch(from + at);
    }
}

void Run::norm(const Step& s, uint32_t thread) {
    const size_t width = s.weight[0]->n_columns, groups = s.out->width / width;
    const Range r = share(rows(*s.out) * groups, thread);
    for (size_t i = r.begin; i < r.end; ++i)
        k_.rms_norm(s.in[0]->row(0) + i * width, s.weight[0]->floats, width, s.f0, s.out->row(0) + i * width);
}

void Run::rope(const Step& s, uint32_t thread) {
    const size_t heads = s.out->width / s.head_dim;
    const Range r = share(rows(*s.out) * heads, thread);
    for (size_t i = r.begin; i < r.end; ++i)
        k_.rope(s.in[0]->row(0) + i * s.head_dim, s.rope->cosines(i / heads), s.rope->sines(i / heads), s.head_dim,
                s.rope->n_pairs, s.flags & HETRUN_ROPE_HALF, s.out->row(0) + i * s.head_dim);
}

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
        if (s.rope) {
            k_.rope(key, s.rope->cosines(t), s.rope->sines(t), dim, s.rope->n_pairs, s.flags & HETRUN_ROPE_HALF, row);
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
            end = std::max(end, state.visible(static_cast<size_t>(batch_.positions[t])).end());
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
            k_.attend(a);
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
        return s.state->visible(static_cast<size_t>(batch_.positions[token])).end();
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
        k_.attend(a);
    }
    pool_.barrier(thread);
    const Range r = share(n_tokens * heads, thread);
    for (size_t i = r.begin; i < r.end; ++i) {
        const size_t token = i / heads, row = i % shared, first = i / shared * n_splits;
        const size_t end = s.state->visible(static_cast<size_t>(batch_.positions[token])).end();
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

// All cells that the tokens see, and queries ready for them.
AttendArgs Run::attend_args(const Step& s, uint32_t thread, size_t first_token, size_t n_tokens, size_t first_head,
                            size_t n_heads) {
    State& state = *s.state;
    const size_t dim = static_cast<size_t>(state.spec().head_dim), padded = round_up(dim, 16), n_rows = n_tokens * n_heads;
    CellSpan* spans = reinterpret_cast<CellSpan*>(scratch(thread, p_.layout_.queries));
    float* queries = reinterpret_cast<float*>(spans + std::max(kAttendRows, n_heads));
    for (size_t r = 0; r < n_rows; ++r) {
        const size_t token = first_token + r / n_heads;
        const float* q = s.in[0]->row(token) + (first_head + r % n_heads) * dim;
        float* to = queries + r * padded;
        if (s.rope) {
            k_.rope(q, s.rope->cosines(token), s.rope->sines(token), dim, s.rope->n_pairs, s.flags & HETRUN_ROPE_HALF, to);
        } else {
            std::memcpy(to, q, dim * sizeof(float));
        }
        if (state.format() == KvFormat::KV4H) k_.hadamard(to, dim);
        for (size_t i = dim; i < padded; ++i) to[i] = 0.0f;
    }
    const size_t slot = static_cast<size_t>(batch_.slots[first_token]);
    const size_t kv_head = first_head / (s.in[0]->width / dim / static_cast<size_t>(state.spec().n_heads));
    AttendArgs a{};
    a.format = state.format();
    a.keys = state.keys(slot, kv_head);
    a.values = state.values(slot, kv_head);
    a.split_bytes = state.split_bytes();
    a.spans = spans;
    a.n_tokens = n_tokens;
    for (size_t t = 0; t < n_tokens; ++t) {
        spans[t] = state.visible(static_cast<size_t>(batch_.positions[first_token + t]));
        a.end = std::max(a.end, spans[t].end());
    }
    a.head_dim = dim;
    a.n_heads = n_heads;
    a.q = queries;
    a.scale = s.f0;
    a.soft_cap = s.f1;
    a.sums = reinterpret_cast<float*>(scratch(thread, p_.layout_.sums));
    a.largest = a.sums + n_rows * attend_sum_stride(dim);
    a.scratch = reinterpret_cast<float*>(scratch(thread, p_.layout_.attend));
    return a;
}

void Run::elementwise(const Step& s, uint32_t thread) {
    const size_t width = s.out->width;
    const Range r = share(rows(*s.out) * width, thread, 64);
    const float* a = s.in[0]->row(0);
    float* out = s.out->row(0);
    if (s.kind == HETRUN_BIAS) {
        const Range whole = share(rows(*s.out), thread);
        for (size_t t = whole.begin; t < whole.end; ++t) k_.add(a + t * width, s.bias[0], width, out + t * width);
        return;
    }
    const size_t n = r.end - r.begin;
    a += r.begin;
    out += r.begin;
    switch (s.kind) {
        case HETRUN_GATED: return k_.gated(s.function, a, s.in[1]->row(0) + r.begin, n, out);
        case HETRUN_ADD: return k_.add(a, s.in[1]->row(0) + r.begin, n, out);
        case HETRUN_SCALE: return k_.scale(a, s.f0, n, out);
        default: return k_.soft_cap(a, s.f0, n, out);
    }
}

void Run::select(const Step& s, uint32_t thread) {
    const Range r = share(rows(*s.out), thread);
    for (size_t i = r.begin; i < r.end; ++i)
        std::memcpy(s.out->row(i), s.in[0]->row(static_cast<size_t>(batch_.outputs[i])), s.out->width * sizeof(float));
}

void Run::routes(const Step& s, uint32_t thread) {
    const Range r = share(rows(*s.out), thread);
    for (size_t i = r.begin; i < r.end; ++i)
        route(s.in[0]->row(i), s.out->width, s.n_used, s.flags & HETRUN_ROUTE_NORMALISE, s.f0, s.out->row(i));
}

void Run::experts(const Step& s, uint32_t thread) {
    const bool up = s.kind == HETRUN_EXPERTS_UP;
    const Range r = share(s.weight[0]->n_rows / s.in[1]->width, thread, 4);
    if (r.begin >= r.end) return;
    const ExpertsArgs args{&k_, &s, rows(*s.out), r.begin, r.end, scratch(thread, p_.layout_.experts), scratch(thread, p_.layout_.matmul)};
    up ? experts_up(args) : experts_down(args);
}

int Program::check(const hetrun_batch& batch, uint64_t& detail) {
    detail = 0;
    if (batch.n_tokens > spec_.max_tokens || batch.n_outputs > spec_.max_outputs) return HETRUN_TOO_MANY_ROWS;
    std::fill(chunks_.begin(), chunks_.end(), Chunk{0, 0});
    for (size_t t = 0; t < batch.n_tokens; ++t) {
        detail = t;
        const int64_t token = batch.tokens[t], position = batch.positions[t], slot = batch.slots[t];
        if (token < 0 || (n_vocab_ != 0 && static_cast<uint64_t>(token) >= n_vocab_)) return HETRUN_BAD_TOKEN;
        if (position < 0) return HETRUN_BAD_POSITION;
        if (slot < 0) return HETRUN_BAD_SLOT;
        for (const State* state : states_) {
            if (static_cast<uint64_t>(slot) >= state->spec().n_slots) return HETRUN_BAD_SLOT;
            if (static_cast<uint64_t>(position) >= state->spec().n_ctx) return HETRUN_BAD_POSITION;
        }
        if (states_.empty()) continue;
        Chunk& chunk = chunks_[static_cast<size_t>(slot)];
        if (chunk.count == 0) chunk.first = position;
        if (position != chunk.first + chunk.count) return HETRUN_BAD_POSITION;
        ++chunk.count;
        for (const State* state : states_) {
            if (state->ring() && static_cast<uint64_t>(chunk.count) > state->spec().slack + 1) return HETRUN_CHUNK_TOO_LONG;
        }
    }
    for (size_t i = 0; i < batch.n_outputs; ++i) {
        detail = i;
        const int64_t output = batch.outputs[i];
        if (output < 0 || static_cast<uint64_t>(output) >= batch.n_tokens || (i > 0 && output <= batch.outputs[i - 1]))
            return HETRUN_BAD_OUTPUT;
    }
    return HETRUN_OK;
}

int Program::run(const hetrun_batch& batch, hetrun_report& report) {
    const double before = now_s();
    report.seconds = 0;
    if (const int status = check(batch, report.detail)) return status;
    if (const int status = device_.own_threads()) return status;
    Run run(*this, batch, report);
    device_.pool->run(Run::entry, &run, record_);
    run.end_timing();
    report.seconds = now_s() - before;
    return HETRUN_OK;
}

}  // namespace hetrun::cpu
