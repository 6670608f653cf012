// Runs the steps of a program on one batch: every thread walks the table and does its share of each step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "pack.h"
#include "program.h"

namespace hetrun::cpu {

namespace {

struct Range {
    size_t begin, end;
};

constexpr size_t kFetchAheadBytes = 8192;

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

class Run {
public:
    Run(Program& program, const hetrun_batch& batch, hetrun_report& report)
        : p_(program), k_(*program.device_.kernels), pool_(*program.device_.pool), batch_(batch), report_(report) {}

    static void entry(void* self, uint32_t thread) { static_cast<Run*>(self)->walk(thread); }

private:
    void walk(uint32_t thread);
    void execute(const Step& s, uint32_t thread);
    void embed(const Step& s, uint32_t thread);
    void rope_table(const Step& s, uint32_t thread);
    void prepare(const Step& s, uint32_t thread);
    void matmul(const Step& s, uint32_t thread);
    void multiply(const WeightView& w, const Value& input, size_t first, size_t n_rows, size_t n_tokens, uint32_t thread,
                  float* out, size_t stride);
    void fetch_ahead(const Step& s, uint32_t thread) const;
    void norm(const Step& s, uint32_t thread);
    void rope(const Step& s, uint32_t thread);
    void kv_store(const Step& s, uint32_t thread);
    void attend(const Step& s, uint32_t thread);
    void attend_parts(const Step& s, uint32_t thread, size_t n_splits);
    AttendArgs attend_args(const Step& s, uint32_t thread, size_t first_token, size_t n_tokens, size_t first_head, size_t n_heads);
    void elementwise(const Step& s, uint32_t thread);
    void select(const Step& s, uint32_t thread);

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
    hetrun_report& report_;
    friend class Program;
};

void Run::walk(uint32_t thread) {
    const bool counting = p_.device_.count && thread == 0;
    double before = counting ? now_s() : 0.0;
    bool shared = false;  // the last PREPARE was shared out
    for (const Step& s : p_.steps_) {
        if ((s.flags & HETRUN_BARRIER) || (shared && (s.flags & HETRUN_BARRIER_IF_SHARED))) pool_.barrier(thread);
        execute(s, thread);
        if (s.kind == HETRUN_PREPARE) shared = rows(*s.in[0]) > kPrivateRows;
        if (counting) {
            const double after = now_s();
            report_.step_s[s.kind] += after - before;
            before = after;
        }
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
    uint8_t* base = alone ? scratch(thread, p_.layout_.prepared) : s.out->data;
    float* normed = reinterpret_cast<float*>(scratch(thread, p_.layout_.row));
    const bool panels = !alone && s.panels_read;
    const bool floats = (s.flags & HETRUN_PREPARE_FLOAT) != 0;
    const Range r = alone ? Range{0, n_rows} : share(n_rows, thread, kPanelTokens);
    for (size_t t = r.begin; t < r.end; ++t) {
        // Where nobody reads the row itself, it stays in the cache.
        uint8_t* out = alone || s.rows_read || floats ? base + t * layout.stride : scratch(thread, p_.layout_.prepared);
        const float* from = x.row(t);
        if (s.weight[0]) {
            k_.rms_norm(from, s.weight[0]->floats, x.width, s.f0, normed);
            from = normed;
        }
        if (s.flags & HETRUN_PREPARE_INT8) k_.prepare_int8(from, layout, out);
        if (panels) k_.fill_panel(out, layout, t % kPanelTokens, s.out->panels + t / kPanelTokens * layout.panel);
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

    const Range r = share(s.out->width, thread, packed ? kGroup : 4);
    for (size_t first = r.begin; first < r.end; first += group) {
        const size_t n_rows = std::min(group, r.end - first);
        for (int i = 0; i < 2 && s.weight[i]; ++i) {
            multiply(*s.weight[i], *s.in[0], first, n_rows, n_tokens, thread, tiles[i], group);
            if (s.bias[i]) {
                for (size_t t = 0; t < n_tokens; ++t)
                    k_.add(tiles[i] + t * group, s.bias[i] + first, n_rows, tiles[i] + t * group);
            }
        }
        for (size_t t = 0; t < n_tokens; ++t) {
            float* out = s.out->row(t) + first;
            const float* tile = tiles[0] + t * group;
            if (s.weight[1]) {
                k_.gated(s.function, tile, tiles[1] + t * group, n_rows, out);
            } else if (s.in[1]) {
                k_.add(s.in[1]->row(t) + first, tile, n_rows, out);
            } else {
                std::memcpy(out, tile, n_rows * sizeof(float));
            }
        }
    }
    if (n_tokens <= kPrivateRows) fetch_ahead(s, thread);
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
        rope_head(s.in[0]->row(0) + i * s.head_dim, s.rope->cosines(i / heads), s.rope->sines(i / heads), s.head_dim,
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
            rope_head(key, s.rope->cosines(t), s.rope->sines(t), dim, s.rope->n_pairs, s.flags & HETRUN_ROPE_HALF, row);
        } else {
            std::memcpy(row, key, dim * sizeof(float));
        }
        const size_t lane = cell % kKeyGroup;
        uint8_t* group = state.keys(slot, head) + (cell - lane) * state.row_bytes();
        k_.kv_store_key(state.format(), row, dim, group, lane, reinterpret_cast<uint8_t*>(row + dim));
        std::memcpy(row, s.in[1]->row(0) + i * dim, dim * sizeof(float));
        k_.kv_store_value(state.format(), row, dim, state.values(slot, head) + cell * state.row_bytes());
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
    const size_t threads = pool_.active(), part_floats = attend_part_floats(dim, shared);
    const auto part = [&](size_t item) {
        return reinterpret_cast<float*>(scratch(static_cast<uint32_t>(item % threads), p_.layout_.parts)) +
               item / threads * part_floats;
    };
    const size_t n_items = n_tokens * kv_heads * n_splits;
    for (size_t item = thread; item < n_items; item += threads) {
        const size_t head = item / n_splits % kv_heads * shared;
        AttendArgs a = attend_args(s, thread, item / n_splits / kv_heads, 1, head, shared);
        a.begin = item % n_splits * kAttendSplit;
        a.end = std::min(a.end, a.begin + kAttendSplit);
        a.sums = part(item);
        a.largest = a.sums + shared * attend_sum_stride(dim);
        if (a.begin < a.end) k_.attend(a);
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
            rope_head(q, s.rope->cosines(token), s.rope->sines(token), dim, s.rope->n_pairs, s.flags & HETRUN_ROPE_HALF, to);
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
    report = hetrun_report{};
    if (const int status = check(batch, report.detail)) return status;
    if (const int status = device_.own_threads()) return status;
    Run run(*this, batch, report);
    device_.pool->run(Run::entry, &run, record_);
    report.seconds = now_s() - before;
    return HETRUN_OK;
}

}  // namespace hetrun::cpu
