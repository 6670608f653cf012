// The walk through a program's steps, and all of them but matmuls and attention.
#include "run.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "experts.h"
#include "prepare.h"

namespace hetrun::cpu {

namespace {

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

Run::Run(Program& program, const hetrun_batch& batch, hetrun_report& report)
    : p_(program),
      k_(*program.device_.kernels),
      pool_(*program.device_.pool),
      batch_(batch),
      turns_(program.turns_ += static_cast<uint32_t>(program.steps_.size())),
      step_times_(reinterpret_cast<double*>(static_cast<uintptr_t>(report.step_s))),
      began_s_(step_times_ ? now_s() : 0.0),
      began_(step_times_ ? ticks() : 0) {}

void Run::end_timing() {
    if (step_times_ == nullptr || p_.steps_.empty()) return;
    const uint64_t ended = ticks();
    const double elapsed_s = now_s() - began_s_, elapsed = static_cast<double>(ended - began_);
    step_times_[p_.steps_.size() - 1] = static_cast<double>(ended - step_began_);
    for (size_t i = 0; i < p_.steps_.size(); ++i) step_times_[i] *= elapsed > 0 ? elapsed_s / elapsed : 0.0;
}

void Run::begin_timing(const Step& s) {
    const uint64_t now = ticks();
    const size_t index = static_cast<size_t>(&s - p_.steps_.data());
    if (index > 0) step_times_[index - 1] = static_cast<double>(now - step_began_);
    step_began_ = now;
}

void Run::walk(uint32_t thread) {
    const bool timing = thread == 0 && step_times_ != nullptr;
    p_.ahead_[thread].clear();
    bool shared = false;  // the last PREPARE was shared out
    for (const Step& s : p_.steps_) {
        if ((s.flags & HETRUN_BARRIER) || (shared && (s.flags & HETRUN_BARRIER_IF_SHARED))) pool_.barrier(thread, &p_.ahead_[thread]);
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
    const TypeKernels& kernels = *k_.types[w.type];
    for (size_t t = r.begin; t < r.end; ++t) {
        const size_t row = static_cast<size_t>(batch_.tokens[t]);
        // Where the rows are packed for a matmul too, the pages of the file stay out of memory: to map one takes longer than this.
        if (w.packed) {
            kernels.lookup(w.packed + row / kGroup * w.group_bytes, row % kGroup, w.n_columns, s.out->row(t));
        } else {
            kernels.dequantize(w.row(row), w.n_columns, s.out->row(t));
        }
    }
}

void Run::rope_table(const Step& s, uint32_t thread) {
    const RopeTable& table = *s.rope[0];
    const Range r = share(static_cast<size_t>(batch_.n_tokens), thread);
    for (size_t t = r.begin; t < r.end; ++t) {
        float* cosines = table.data + t * 2 * table.n_pairs;
        float* sines = cosines + table.n_pairs;
        for (size_t i = 0; i < table.n_pairs; ++i) {
            const double angle = static_cast<double>(std::min(batch_.positions[t], table.max_position)) * table.frequencies[i];
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
    const Range r = alone ? Range{0, n_rows} : share(n_rows, thread, kPanelTokens);
    if (!alone && s.panels_read) {
        for (size_t t = r.begin; t < r.end; t += kPanelTokens) {
            const float* panel[kPanelTokens];  // beyond the last row the last once more, which nobody reads
            for (size_t i = 0; i < kPanelTokens; ++i) panel[i] = x.row(std::min(t + i, r.end - 1));
            k_.prepare_panel(panel, s.weight[0] ? s.weight[0]->floats : nullptr, s.f0, x.width,
                             k_.panel_of(s.out->panels, layout, t), k_.panel_stride());
        }
        if (!s.rows_read && !layout.has_floats()) return;
    }
    for (size_t t = r.begin; t < r.end; ++t) {
        uint8_t* out = base + t * layout.stride;
        const float* from = x.row(t);
        if (s.weight[0]) {
            k_.rms_norm(from, s.weight[0]->floats, x.width, s.f0, normed);
            from = normed;
        }
        prepare_row(k_, from, layout, out);
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
        k_.rope(s.in[0]->row(0) + i * s.head_dim, s.rope[0]->cosines(i / heads), s.rope[0]->sines(i / heads), s.head_dim,
                s.rope[0]->n_pairs, s.flags & HETRUN_ROPE_HALF, s.out->row(0) + i * s.head_dim);
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
