// A segment's steps with every name resolved and checked once, so that a run follows pointers only.
#pragma once

#include <memory>
#include <vector>

#include "ahead.h"
#include "claims.h"
#include "hetrun_cpu.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"
#include "state.h"

namespace hetrun::cpu {

struct Device {
    const Kernels* kernels = nullptr;
    std::unique_ptr<Pool> pool;
    int64_t pid = 0;  // of the process that started the pool's threads

    int start(uint32_t n_threads);
    int own_threads();  // after a fork
};

struct Value {
    uint8_t* data;
    size_t width;
    bool outputs;
    PreparedLayout prepared;  // of the scratch of a PREPARE
    uint8_t* panels = nullptr;

    float* row(size_t i) const { return reinterpret_cast<float*>(data) + i * width; }
};

struct WeightView {
    const uint8_t* data;
    size_t row_bytes, n_rows, n_columns;
    uint32_t type;
    const uint8_t* packed = nullptr;  // groups of rows (pack.h)
    size_t group_bytes = 0;
    const float* floats = nullptr;  // of a vector

    const uint8_t* row(size_t i) const { return data + i * row_bytes; }
};

struct RopeTable {
    float* data;  // [max_tokens, 2 * n_pairs]
    const double* frequencies;
    size_t n_pairs;
    float magnitude;
    int32_t max_position;

    const float* cosines(size_t token) const { return data + token * 2 * n_pairs; }
    const float* sines(size_t token) const { return cosines(token) + n_pairs; }
};

struct Step {
    uint32_t kind, flags, function;
    const Value* in[2];
    const Value* out;
    const WeightView* weight[2];
    const float* bias[2];
    State* state;
    const RopeTable* rope[2];
    size_t head_dim;
    float f0, f1;
    size_t n_used;
    PreparedLayout expert_input;  // of EXPERTS_UP and EXPERTS_DOWN: a token's part of in[0]
    const Step* next_matmul = nullptr;  // of packed weights
    bool rows_read = false, panels_read = false;  // which form of a PREPARE the matmuls after it want
    bool fills_panels = false;  // of in[1], instead of writing out (MATMUL); was filled so (PREPARE): of many tokens
};

// What each thread has for itself, at byte offsets from the start of its part of the scratch.
struct ScratchLayout {
    size_t prepared, matmul, tile, row, queries, sums, attend, parts, experts, stride;
};

// So few rows are prepared by every thread for itself, which costs less than a barrier.
constexpr size_t kPrivateRows = 2;
// Rows of a matmul between two looks at its epilogue.
constexpr size_t kGroupRows = kPanelRows, kGroupRowsFew = 64;

// So few tokens share the cells of an attention among threads, which then merge their parts.
constexpr size_t kSplitTokens = 4;

inline size_t group_rows(size_t n_tokens) { return n_tokens <= kPrivateRows ? kGroupRowsFew : kGroupRows; }

class Program {
public:
    Program(Device& device, const hetrun_program_spec& spec) : device_(device), spec_(spec) {}

    int build(uint64_t& detail);  // a hetrun_status
    int run(const hetrun_batch& batch, hetrun_report& report);

private:
    friend class Run;

    int resolve_tables();
    int resolve_step(const hetrun_step& raw, Step& step);
    int resolve_filling(Step& matmul);
    bool resolve_experts(Step& step);
    int vector_of(int32_t index, size_t width, const float*& out);
    int allocate_scratch();
    int check(const hetrun_batch& batch, uint64_t& detail);

    Device& device_;
    hetrun_program_spec spec_;  // only its numbers after build
    std::vector<Step> steps_;
    std::vector<Value> values_;
    std::vector<WeightView> weights_;
    std::vector<std::vector<float>> vectors_;  // copies of vectors that are not aligned float32
    std::vector<RopeTable> ropes_;
    std::vector<double> frequencies_;
    std::vector<State*> states_;
    Memory arena_, scratch_;
    ScratchLayout layout_{};
    Pool::Record record_;
    std::vector<Claims> claims_;  // of each thread
    uint32_t turns_ = 0;
    std::vector<Ahead> ahead_;  // of each thread
    size_t n_vocab_ = 0;  // of the smallest embedding, or 0
    struct Chunk {
        int64_t first, count;
    };
    std::vector<Chunk> chunks_;  // of each slot in the batch being checked
};

}  // namespace hetrun::cpu
