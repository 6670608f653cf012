// Runs the steps of a program on one batch: every thread walks the table and does its share of each step.
#pragma once

#include <algorithm>

#include "pack.h"
#include "program.h"

namespace hetrun::cpu {

class Run {
public:
    Run(Program& program, const hetrun_batch& batch, hetrun_report& report);

    static void entry(void* self, uint32_t thread) { static_cast<Run*>(self)->walk(thread); }

    // When every thread has ended: ticks become seconds.
    void end_timing();

private:
    void begin_timing(const Step& s);
    void walk(uint32_t thread);
    void execute(const Step& s, uint32_t thread);
    void embed(const Step& s, uint32_t thread);
    void rope_table(const Step& s, uint32_t thread);
    void prepare(const Step& s, uint32_t thread);
    void matmul(const Step& s, uint32_t thread);
    void matmul_rows(const Step& s, size_t first, size_t n_rows, Range tokens, bool alone, uint32_t thread);
    void multiply(const WeightView& w, const Value& input, size_t first, size_t n_rows, Range tokens, bool alone, uint32_t thread,
                  float* out, size_t stride);
    void write_rows(const Step& s, size_t first, size_t n_rows, Range tokens, size_t stride, const float* tile, const float* up);
    void fill_panels(const Step& s, size_t first, Range tokens, float* tile, const float* up);
    void look_ahead(const Step& s, uint32_t thread);
    void norm(const Step& s, uint32_t thread);
    void rope(const Step& s, uint32_t thread);
    void kv_store(const Step& s, uint32_t thread);
    void attend(const Step& s, uint32_t thread);
    void attend_parts(const Step& s, uint32_t thread, size_t n_splits);
    struct Queries;
    Queries queries(uint32_t thread, size_t dim, size_t n_heads, size_t set);
    void turn_queries(const Step& s, size_t set, size_t first_token, size_t n_tokens, size_t first_head, size_t n_heads, float* to);
    AttendArgs attend_args(const Step& s, uint32_t thread, size_t first_token, size_t n_tokens, size_t first_head, size_t n_heads);
    void attend_cells(const Step& s, uint32_t thread, size_t first_token, size_t first_head, const AttendArgs& a);
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
    const uint32_t turns_;  // of matmuls: that of step 0
    double* const step_times_;  // ticks, in the end seconds, of each step; nullptr: steps are not timed
    const double began_s_;
    const uint64_t began_;
    alignas(128) uint64_t step_began_ = 0;  // for the caller's thread alone, on a cache line that the others do not read
};

}  // namespace hetrun::cpu
