// Runs a matrix product of the cpu device N_RUNS times, for benchmarks/arm_instructions.py to count what it takes.
//   arm_matmul ISA TYPE ROW_BYTES PACKED N_ROWS N_TOKENS N_RUNS    ISA, TYPE: by number; rows are of 2048 columns
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "hetrun_cpu.h"

namespace {

constexpr uint64_t kColumns = 2048;

uint64_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

void check(int status, const char* what) {
    if (status == HETRUN_OK) return;
    std::fprintf(stderr, "%s: status %d\n", what, status);
    std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 8) return 2;
    uint64_t numbers[7];
    for (int i = 0; i < 7; ++i) numbers[i] = std::strtoull(argv[i + 1], nullptr, 10);
    const auto [isa, type, row_bytes, packed, n_rows, n_tokens, n_runs] = numbers;

    // Bytes that are a small number as float16, and codes of every type.
    const std::vector<uint8_t> blocks(n_rows * row_bytes, 0x11);
    hetrun_weight weight{};
    weight.address = address(blocks.data());
    weight.nbytes = blocks.size();
    weight.n_rows = n_rows;
    weight.n_columns = kColumns;
    weight.type = static_cast<uint32_t>(type);

    void *device = nullptr, *pack = nullptr, *program = nullptr;
    check(hetrun_cpu_device_create(1, static_cast<int32_t>(isa), &device), "device");
    if (packed) {
        check(hetrun_cpu_pack_create(device, &weight, 1, &pack), "pack");
        if (!weight.packed) check(HETRUN_BAD_ARGUMENT, "the type has no packed form");
    }

    const std::vector<float> x(n_tokens * kColumns, 0.5f);
    std::vector<float> y(n_tokens * n_rows);
    hetrun_value values[3]{};
    values[0] = {address(x.data()), 0, kColumns, 0, 4 * x.size()};
    // A prepared row takes four bytes a column, its share of a panel among them.
    constexpr uint32_t kPrepared = kColumns;
    const uint64_t prepared_bytes = 4 * kPrepared * ((n_tokens + 15) / 16 * 16);
    values[1] = {0, 0, kPrepared, 0, prepared_bytes};
    values[2] = {address(y.data()), 0, static_cast<uint32_t>(n_rows), 0, 4 * y.size()};
    hetrun_step steps[2];
    for (hetrun_step& step : steps) {
        step = {};
        step.in[0] = step.in[1] = step.weight[0] = step.weight[1] = step.bias[0] = step.bias[1] = -1;
        step.state = step.rope[0] = step.rope[1] = -1;
    }
    steps[0].kind = HETRUN_PREPARE;
    steps[0].flags = HETRUN_PREPARE_INT8;
    steps[0].in[0] = 0;
    steps[0].out = 1;
    steps[1].kind = HETRUN_MATMUL;
    steps[1].flags = HETRUN_BARRIER;
    steps[1].in[0] = 1;
    steps[1].out = 2;
    steps[1].weight[0] = 0;

    hetrun_program_spec spec{};
    spec.steps = steps;
    spec.values = values;
    spec.weights = &weight;
    spec.n_steps = 2;
    spec.n_values = 3;
    spec.n_weights = 1;
    spec.max_tokens = spec.max_outputs = n_tokens;
    spec.arena_bytes = prepared_bytes;
    uint64_t detail = 0;
    check(hetrun_cpu_program_create(device, &spec, &detail, &program), "program");

    std::vector<int32_t> tokens(n_tokens), positions(n_tokens), slots(n_tokens);
    for (uint64_t t = 0; t < n_tokens; ++t) positions[t] = static_cast<int32_t>(t);
    const hetrun_batch batch{tokens.data(), positions.data(), slots.data(), nullptr, n_tokens, 0};
    hetrun_report report{};
    for (uint64_t run = 0; run < n_runs; ++run) check(hetrun_cpu_run(program, &batch, &report), "run");
    hetrun_cpu_program_destroy(program);
    if (pack) hetrun_cpu_pack_destroy(pack);
    hetrun_cpu_device_destroy(device);
    return 0;
}
