// The processes of a step, instruction by instruction: what each does is timed when the vector process comes to it.
#include <deque>
#include <memory>

#include "heads.h"
#include "reader.h"

namespace hetrun::u280 {

namespace {

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

class Step {
public:
    Step(const MemoryTiming& memory, const EngineTiming& engine, const std::vector<Instruction>& program)
        : engine_(engine), program_(program), lane_free_(engine.channels, 0), results_(engine.channels) {
        for (uint32_t c = 0; c < engine.channels; ++c) readers_.push_back(std::make_unique<Reader>(memory, engine, c));
        // The arguments are there; the first instructions come from DDR, and the table of rows beside them.
        fetched_ = cycles(2 * engine.ddr_cycles);
    }

    void pass(const std::vector<Row>& rows, int64_t* cycles_of) {
        rows_ = rows;
        n_outputs_ = static_cast<uint32_t>(std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.output >= 0; }));
        const int64_t first_fetched = fetched_;
        for (const Instruction& op : program_) {
            fetched_ += cycles(engine_.fetch_cycles);
            ask(op, std::max(fetched_, fence_));
        }
        fetched_ = first_fetched;
        for (size_t i = 0; i < program_.size(); ++i) {
            fetched_ += cycles(engine_.fetch_cycles);
            const int64_t before = vector_;
            vector_ = std::max(vector_, fetched_);
            run(program_[i]);
            if (cycles_of) cycles_of[i] += (vector_ - before) / engine_.clock_ps;
        }
        fence_ = written_;
        ++timing_.n_passes;
    }

    StepTiming finish() {
        vector_ = std::max(vector_, written_) + cycles(engine_.ddr_cycles);  // the Report
        timing_.cycles = (vector_ + engine_.clock_ps - 1) / engine_.clock_ps;
        int64_t stalls = 0;
        for (const auto& reader : readers_) stalls += reader->stalls_ps();
        timing_.memory_stalls = stalls / engine_.clock_ps / engine_.channels;
        return timing_;
    }

private:
    int64_t cycles(uint64_t n) const { return static_cast<int64_t>(n) * engine_.clock_ps; }
    uint32_t rows_of(const Instruction& op) const {
        return op.rows == HETRUN_U280_ROWS_OUTPUTS ? n_outputs_ : static_cast<uint32_t>(rows_.size());
    }

    // What the readers will want for an instruction.
    void ask(const Instruction& op, int64_t at) {
        if (op.op == HETRUN_U280_OP_MATMUL && rows_of(op) != 0) {
            const uint32_t beats = static_cast<uint32_t>(weight_beats(kLayouts[op.format], op.n_rows, op.n_columns, engine_.channels));
            for (auto& reader : readers_) reader->add({op.hbm, beats, at});
            timing_.weight_beats += int64_t{beats} * engine_.channels;
        } else if (op.op == HETRUN_U280_OP_EMBED) {
            for (const Row& row : rows_) {
                const uint32_t n = kLayouts[op.format].block_beats(op.n_columns), block = embed_block(op, row);
                readers_[block % engine_.channels]->add({op.hbm, 1, at});
                readers_[block % engine_.channels]->add({op.hbm + uint64_t{block / engine_.channels} * n, n, at});
                timing_.weight_beats += n + 1;
            }
        } else if (op.op == HETRUN_U280_OP_ATTEND) {
            const Heads heads(op, engine_.channels);
            for (const Row& row : rows_) ask_scales(heads, row, at);
            for (size_t r = 0; r < rows_.size(); ++r)
                for (uint32_t group = 0; group < heads.groups(); ++group)
                    for (const Phase phase : kPhases) ask_phase(heads, heads.region(rows_, r, group), group, phase, at);
        }
    }

    // The beats of scales that a row's own will stand in.
    void ask_scales(const Heads& heads, const Row& row, int64_t at) {
        const uint32_t cell = heads.cell(static_cast<uint32_t>(row.position));
        for (uint32_t group = 0; group < heads.groups(); ++group) {
            for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                if (!heads.keeps(cell, group, c)) continue;
                const uint64_t scales = heads.block(row, cell, group) + cell / heads.split() % HETRUN_U280_KV_BLOCK / 16;
                for (const uint64_t beat : {scales, scales + 2}) readers_[c]->add({beat, 1, at});
                timing_.kv_beats += 2;
            }
        }
    }

    void ask_phase(const Heads& heads, const Region& region, uint32_t group, Phase phase, int64_t at) {
        for (uint32_t first = 0; first < region.n_old; first += HETRUN_U280_KV_BLOCK) {
            const uint32_t n = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, region.n_old - first) * heads.code_beats();
            const uint64_t scales = region.beat + uint64_t{first / HETRUN_U280_KV_BLOCK} * heads.block_beats(), keys = scales + 4;
            for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                if (phase == Phase::kKeys) readers_[c]->add({scales, 2, at});
                if (phase == Phase::kKeys) readers_[c]->add({keys, n, at});
                if (phase == Phase::kWeights) readers_[c]->add({scales + 2, 2, at});
                if (phase == Phase::kValues) readers_[c]->add({keys + HETRUN_U280_KV_BLOCK * heads.code_beats(), n, at});
            }
            const uint32_t beats = phase == Phase::kKeys ? n + 2 : phase == Phase::kWeights ? 2 : n;
            timing_.kv_beats += heads.head_channels(group) * beats;
        }
    }

    static uint32_t embed_block(const Instruction& op, const Row& row) {
        return static_cast<uint32_t>(row.token) / kLayouts[op.format].block_rows;
    }

    // The vector process works for so many cycles.
    void work(uint64_t n) {
        vector_ += cycles(n * engine_.stall_factor);
        timing_.vector_cycles += static_cast<int64_t>(n) * engine_.stall_factor;
    }
    // Rows one after another, `floats` a cycle, and the pipeline once.
    void work_rows(const Instruction& op, uint64_t n, uint64_t floats, uint64_t pipeline) {
        if (rows_of(op) != 0) work(rows_of(op) * ceil_div(n, floats) + pipeline);
    }
    // Of words of DDR.
    void access_ddr(const Instruction& op) {
        if (rows_of(op) != 0) vector_ += cycles(rows_of(op) * ceil_div(op.n, engine_.stream_floats) + engine_.ddr_cycles);
    }

    void run(const Instruction& op) {
        const EngineTiming& e = engine_;
        switch (op.op) {
            case HETRUN_U280_OP_LOAD: return access_ddr(op);
            case HETRUN_U280_OP_STORE: return access_ddr(op);
            case HETRUN_U280_OP_EMBED: return embed(op);
            case HETRUN_U280_OP_NORM: return work_rows(op, 2 * op.n, e.vector_floats, e.norm_cycles);
            case HETRUN_U280_OP_QUANTIZE: return quantize(op);
            case HETRUN_U280_OP_MATMUL: return matmul(op);
            case HETRUN_U280_OP_GATE: return work_rows(op, op.n, e.gate_floats, e.gate_cycles);
            case HETRUN_U280_OP_ATTEND: return attend(op);
            case HETRUN_U280_OP_BIAS:
            case HETRUN_U280_OP_ADD:
            case HETRUN_U280_OP_SCALE:
            case HETRUN_U280_OP_ROPE:
            case HETRUN_U280_OP_SELECT: return work_rows(op, op.n, e.vector_floats, e.element_cycles);
            default: return;
        }
    }

    // Rows of the table pass through the FIFO of their channel to the vector process.
    void embed(const Instruction& op) {
        for (const Row& row : rows_) {
            const uint32_t c = embed_block(op, row) % engine_.channels;
            const auto one = [](uint32_t i, uint32_t j) { return j - i; };
            vector_ = lane_free_[c] = readers_[c]->take(std::max(vector_, lane_free_[c]), kLayouts[op.format].block_beats(op.n_columns) + 1, one);
        }
        vector_ += cycles(engine_.finish_cycles);
    }

    void quantize(const Instruction& op) {
        work_rows(op, 2 * op.n, engine_.vector_floats, engine_.quantize_cycles);
        codes_there_ = vector_ + cycles(engine_.crossing_cycles);
    }

    void matmul(const Instruction& op) {
        const uint32_t n_rows = rows_of(op);
        if (n_rows == 0) return;
        const Layout& layout = kLayouts[op.format];
        const uint32_t n_values = layout.value_beats(op.n_columns), n_beats = layout.block_beats(op.n_columns);
        const uint32_t value = layout.value_cycles(n_rows, engine_.lanes);
        // Beats of scales among the first i of a block; those of row scales before it count as such.
        const auto scales_before = [&](uint32_t i) -> uint32_t {
            if (layout.scale_period == 0) return 0;
            const uint32_t whole = layout.scale_period + layout.scale_beats;
            const uint32_t values = std::min(layout.scale_period, n_values - std::min(n_values, i / whole * layout.scale_period));
            return i / whole * layout.scale_beats + (i % whole > values ? i % whole - values : 0);
        };
        const auto cost = [&](uint32_t i, uint32_t j) {
            const uint32_t scales = scales_before(j) - scales_before(i);
            return (j - i - scales) * value + scales;
        };
        const auto one = [](uint32_t i, uint32_t j) { return j - i; };
        const int64_t collect = cycles(ceil_div(uint64_t{16} * n_rows, engine_.stream_floats));
        const uint32_t n_blocks = layout.channel_blocks(op.n_rows, engine_.channels);
        for (uint32_t first = 0; first < n_blocks; first += layout.group_blocks()) {
            for (uint32_t c = 0; c < engine_.channels; ++c) {
                int64_t lane = readers_[c]->take(std::max(lane_free_[c], codes_there_), 1, one);
                for (uint32_t i = first; i < std::min(n_blocks, first + layout.group_blocks()); ++i) lane = readers_[c]->take(lane, n_beats, cost);
                // Results wait where the vector process has not taken those before.
                std::deque<int64_t>& waiting = results_[c];
                if (waiting.size() == engine_.result_groups) {
                    lane = std::max(lane, waiting.front());
                    waiting.pop_front();
                }
                lane_free_[c] = lane;
                vector_ = std::max(vector_, lane + cycles(engine_.crossing_cycles)) + collect;
                waiting.push_back(vector_);
            }
        }
        vector_ += cycles(uint64_t{engine_.finish_cycles} * engine_.stall_factor);
        if (op.ddr) vector_ += cycles(engine_.ddr_cycles);
    }

    void attend(const Instruction& op) {
        const Heads heads(op, engine_.channels);
        // Keys and values are rounded and go to HBM, scales among those that stand there; then queries are rounded and sent.
        work_rows(op, 4 * op.n_heads_kv * op.head_dim, engine_.vector_floats, engine_.quantize_cycles);
        forward_scales(heads);
        write_kv(op.n_heads_kv, heads);
        const uint32_t kinds = op.d == op.a ? 1 : 2;  // of queries: sinks may meet their own
        work_rows(op, 2 * kinds * op.n_heads * op.head_dim, engine_.vector_floats, engine_.quantize_cycles);
        const int64_t crossing = cycles(engine_.crossing_cycles);
        const int64_t sent = vector_ + crossing;
        for (size_t r = 0; r < rows_.size(); ++r) {
            for (uint32_t group = 0; group < heads.groups(); ++group) {
                // The largest score of all channels stands between keys and weights, the largest weight between those and values.
                int64_t start = sent;
                for (const Phase phase : kPhases) {
                    int64_t end = 0;
                    for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                        lane_free_[c] = stream(heads, heads.region(rows_, r, group), c, phase, std::max(lane_free_[c], start));
                        end = std::max(end, lane_free_[c]);
                    }
                    vector_ = std::max(vector_, end + crossing);
                    if (phase != Phase::kValues) work(engine_.softmax_cycles);
                    start = vector_ + crossing;
                }
                const uint64_t floats = uint64_t{heads.head_channels(group)} * heads.queries() * op.head_dim;
                work(ceil_div(floats, engine_.vector_floats) + engine_.element_cycles);
            }
        }
    }

    // A phase of a region through the lanes of a channel; cells of the pass last.
    int64_t stream(const Heads& heads, const Region& region, uint32_t c, Phase phase, int64_t lane) {
        const uint32_t each = heads.queries() * static_cast<uint32_t>(ceil_div(128, engine_.lanes)), scales = phase == Phase::kValues ? 0 : 2;
        const auto cost = [&](uint32_t i, uint32_t j) {
            const uint32_t of_scales = std::min(j, scales) - std::min(i, scales);
            return of_scales + (j - i - of_scales) * each;
        };
        for (uint32_t first = 0; first < region.n_old; first += HETRUN_U280_KV_BLOCK) {
            const uint32_t n = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, region.n_old - first) * heads.code_beats();
            lane = readers_[c]->take(lane, phase == Phase::kWeights ? scales : n + scales, cost);
        }
        if (phase != Phase::kWeights) return lane + cycles(uint64_t{region.n_own} * heads.code_beats() * each);
        const uint64_t scores = uint64_t{region.n_old + region.n_own} * heads.queries();
        return lane + cycles(ceil_div(scores, engine_.softmax_scores));
    }

    // The beats of scales pass through the lanes to the vector process.
    void forward_scales(const Heads& heads) {
        const auto one = [](uint32_t i, uint32_t j) { return j - i; };
        const int64_t begin = vector_ + cycles(engine_.crossing_cycles);
        for (const Row& row : rows_) {
            const uint32_t cell = heads.cell(static_cast<uint32_t>(row.position));
            for (uint32_t group = 0; group < heads.groups(); ++group) {
                for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                    if (!heads.keeps(cell, group, c)) continue;
                    lane_free_[c] = readers_[c]->take(std::max(lane_free_[c], begin), 2, one);
                    vector_ = std::max(vector_, lane_free_[c] + cycles(engine_.crossing_cycles));
                }
            }
        }
    }

    // A key, a value and a scale of each: four bursts in every channel that gets a cell of the row.
    void write_kv(uint32_t n_heads_kv, const Heads& heads) {
        for (const Row& row : rows_) {
            const uint32_t cell = heads.cell(static_cast<uint32_t>(row.position)), place = cell / heads.split() % HETRUN_U280_KV_BLOCK;
            for (uint32_t head = 0; head < n_heads_kv; ++head) {
                const uint32_t number = head * heads.split() + cell % heads.split(), c = number % engine_.channels;
                const uint64_t block = heads.block(row, cell, number / engine_.channels), scales = block + place / 16;
                const uint64_t key = block + 4 + place * heads.code_beats();
                for (const uint64_t beat : {scales, scales + 2}) written_ = std::max(written_, readers_[c]->write(vector_, beat, 1));
                for (const uint64_t beat : {key, key + HETRUN_U280_KV_BLOCK * heads.code_beats()})
                    written_ = std::max(written_, readers_[c]->write(vector_, beat, heads.code_beats()));
            }
        }
    }

    const EngineTiming& engine_;
    const std::vector<Instruction>& program_;
    std::vector<Row> rows_;
    uint32_t n_outputs_ = 0;
    std::vector<std::unique_ptr<Reader>> readers_;
    std::vector<int64_t> lane_free_;
    std::vector<std::deque<int64_t>> results_;  // of each channel: when groups of results were taken
    // When the vector process and the fetcher are free; codes are at the lanes; KV is in HBM; readers may begin a pass.
    int64_t vector_ = 0, fetched_ = 0, codes_there_ = 0, written_ = 0, fence_ = 0;
    StepTiming timing_{};
};

bool is_valid(const Instruction& op) {
    const bool has_weight = op.op == HETRUN_U280_OP_MATMUL || op.op == HETRUN_U280_OP_EMBED;
    if (op.op >= HETRUN_U280_OPS) return false;
    if (has_weight) return op.format < HETRUN_U280_FORMATS && op.n_rows != 0 && op.n_columns != 0 && op.n_columns <= HETRUN_U280_MAX_COLUMNS;
    if (op.op != HETRUN_U280_OP_ATTEND) return op.n <= HETRUN_U280_VECTOR_FLOATS;
    return op.n_heads_kv != 0 && op.n_heads != 0 && op.n_heads <= HETRUN_U280_MAX_HEADS && op.n_heads % op.n_heads_kv == 0 &&
           op.head_dim != 0 && op.head_dim <= HETRUN_U280_MAX_HEAD_DIM && op.n_cells <= HETRUN_U280_MAX_CELLS &&
           op.sink < op.n_cells;
}

}  // namespace

bool simulate_step(const MemoryTiming& memory, const EngineTiming& engine, const std::vector<Instruction>& program,
                   const std::vector<Row>& rows, StepTiming& timing, int64_t* cycles_of) {
    timing = {};
    if (!std::all_of(program.begin(), program.end(), is_valid)) return false;
    for (const Row& row : rows)
        if (row.position < 0 || row.slot < 0 || row.token < 0) return false;
    Step step(memory, engine, program);
    for (size_t first = 0; first < rows.size(); first += engine.pass_tokens) {
        const size_t last = std::min(rows.size(), first + engine.pass_tokens);
        step.pass({rows.begin() + static_cast<std::ptrdiff_t>(first), rows.begin() + static_cast<std::ptrdiff_t>(last)}, cycles_of);
    }
    timing = step.finish();
    return true;
}

}  // namespace hetrun::u280
