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
    uint32_t blocks_of(const Instruction& op, uint32_t channel) const {
        const uint32_t n = static_cast<uint32_t>(ceil_div(op.n_rows, kLayouts[op.format].block_rows));
        return n / engine_.channels + (channel < n % engine_.channels);
    }

    // What the readers will want for an instruction.
    void ask(const Instruction& op, int64_t at) {
        if (op.op == HETRUN_U280_OP_MATMUL && rows_of(op) != 0) {
            const Layout& layout = kLayouts[op.format];
            for (uint32_t c = 0; c < engine_.channels; ++c) {
                const uint32_t n = blocks_of(op, c);
                const uint32_t beats = n * layout.block_beats(op.n_columns) + static_cast<uint32_t>(ceil_div(n, layout.blocks_of_row_scales()));
                readers_[c]->add({op.hbm, beats, at});
                timing_.weight_beats += beats;
            }
        } else if (op.op == HETRUN_U280_OP_EMBED) {
            for (const Row& row : rows_) {
                const uint32_t n = kLayouts[op.format].block_beats(op.n_columns), block = embed_block(op, row);
                readers_[block % engine_.channels]->add({op.hbm + uint64_t{block / engine_.channels} * n, n, at});
                timing_.weight_beats += n;
            }
        } else if (op.op == HETRUN_U280_OP_ATTEND) {
            const Heads heads(op, engine_.channels);
            for (const Stretch& s : stretches(static_cast<uint32_t>(rows_.size()) * heads.groups(), engine_.attend_ahead))
                ask_stretch(heads, s, at);
        }
    }

    void ask_stretch(const Heads& heads, const Stretch& s, int64_t at) {
        const uint32_t group = s.unit % heads.groups();
        const Region region = heads.region(rows_, s.unit / heads.groups(), group);
        for (uint32_t first = 0; first < region.n_old; first += HETRUN_U280_KV_BLOCK) {
            const uint32_t n = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, region.n_old - first) * heads.code_beats();
            const uint64_t block = region.beat + first / HETRUN_U280_KV_BLOCK * heads.block_beats();
            const uint64_t values = block + 4 + HETRUN_U280_KV_BLOCK * heads.code_beats();
            for (uint32_t c = 0; c < heads.head_channels(group); ++c) readers_[c]->add({s.values ? values : block, s.values ? n : n + 4, at});
            timing_.kv_beats += heads.head_channels(group) * (s.values ? n : n + 4);
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
            vector_ = lane_free_[c] = readers_[c]->take(std::max(vector_, lane_free_[c]), kLayouts[op.format].block_beats(op.n_columns), one);
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
        const uint32_t value = (n_rows + 1) / 2 * static_cast<uint32_t>(ceil_div(layout.products, engine_.lanes));
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
        const int64_t collect = cycles(std::max<uint64_t>(1, ceil_div(uint64_t{layout.block_rows} * n_rows, engine_.stream_floats)));
        const uint32_t n_blocks = static_cast<uint32_t>(ceil_div(op.n_rows, layout.block_rows));
        for (uint32_t block = 0; block < n_blocks; ++block) {
            const uint32_t c = block % engine_.channels, place = block / engine_.channels;
            int64_t lane = std::max(lane_free_[c], codes_there_);
            if (place % layout.blocks_of_row_scales() == 0) lane = readers_[c]->take(lane, 1, one);
            lane = readers_[c]->take(lane, n_beats, cost);
            // Results wait where the vector process has not taken those before.
            std::deque<int64_t>& waiting = results_[c];
            if (waiting.size() == engine_.result_blocks) {
                lane = std::max(lane, waiting.front());
                waiting.pop_front();
            }
            lane_free_[c] = lane;
            vector_ = std::max(vector_, lane + cycles(engine_.crossing_cycles)) + collect;
            waiting.push_back(vector_);
        }
        vector_ += cycles(uint64_t{engine_.finish_cycles} * engine_.stall_factor);
        if (op.ddr) vector_ += cycles(engine_.ddr_cycles);
    }

    void attend(const Instruction& op) {
        const Heads heads(op, engine_.channels);
        const uint32_t n_rows = static_cast<uint32_t>(rows_.size()), width = op.n_heads_kv * op.head_dim;
        // Keys and values are rounded and go to HBM; then queries are rounded and sent.
        work_rows(op, 4 * width, engine_.vector_floats, engine_.quantize_cycles);
        write_kv(op.n_heads_kv, heads);
        const uint32_t kinds = op.d == op.a ? 1 : 2;  // of queries: sinks may meet their own
        work_rows(op, 2 * kinds * op.n_heads * op.head_dim, engine_.vector_floats, engine_.quantize_cycles);
        const int64_t begin = vector_ + cycles(engine_.crossing_cycles);

        const uint32_t n_units = n_rows * heads.groups();
        std::vector<int64_t> weighed(n_units, 0);  // when the weights of a unit's values are at the lanes
        for (const Stretch& s : stretches(n_units, engine_.attend_ahead)) {
            const uint32_t group = s.unit % heads.groups();
            const Region region = heads.region(rows_, s.unit / heads.groups(), group);
            int64_t end = 0;
            for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                const int64_t lane = stream(heads, region, c, s.values, std::max({lane_free_[c], begin, s.values ? weighed[s.unit] : 0}));
                lane_free_[c] = lane;
                end = std::max(end, lane);
            }
            end += cycles(engine_.crossing_cycles);
            if (s.values) {  // sums of a head's channels
                const uint64_t floats = uint64_t{heads.head_channels(group)} * heads.queries() * op.head_dim;
                vector_ = std::max(vector_, end);
                work(ceil_div(floats, engine_.vector_floats) + engine_.element_cycles);
            } else {
                const uint64_t scores = uint64_t{region.n_old + region.n_own} * heads.queries();
                const uint64_t n = ceil_div(scores, engine_.softmax_scores) + engine_.softmax_cycles;
                softmax_free_ = std::max(softmax_free_, end) + cycles(n * engine_.stall_factor);
                weighed[s.unit] = softmax_free_ + cycles(engine_.crossing_cycles);
            }
        }
    }

    // Keys (behind their scales) or values of a region through the lanes of a channel; those of the pass last.
    int64_t stream(const Heads& heads, const Region& region, uint32_t c, bool values, int64_t lane) {
        const uint32_t value = heads.shared_cycles() * static_cast<uint32_t>(ceil_div(128, engine_.lanes)), scales = values ? 0 : 4;
        for (uint32_t first = 0; first < region.n_old; first += HETRUN_U280_KV_BLOCK) {
            const uint32_t n = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, region.n_old - first) * heads.code_beats();
            const auto cost = [&](uint32_t i, uint32_t j) {
                const uint32_t of_scales = std::min(j, scales) - std::min(i, scales);
                return of_scales + (j - i - of_scales) * value;
            };
            lane = readers_[c]->take(lane, n + scales, cost);
        }
        return lane + cycles(uint64_t{region.n_own} * heads.code_beats() * value);
    }

    // A key, a value and a scale of each: four bursts in every channel that gets a cell of the row.
    void write_kv(uint32_t n_heads_kv, const Heads& heads) {
        for (size_t r = 0; r < rows_.size(); ++r) {
            const uint32_t cell = heads.cell(static_cast<uint32_t>(rows_[r].position));
            for (uint32_t head = 0; head < n_heads_kv; ++head) {
                const uint32_t number = head * heads.split() + cell % heads.split(), c = number % engine_.channels;
                const uint32_t place = cell / heads.split() % HETRUN_U280_KV_BLOCK;
                const uint64_t block = heads.region(rows_, r, number / engine_.channels).beat +
                                       cell / heads.split() / HETRUN_U280_KV_BLOCK * heads.block_beats();
                const uint64_t keys = block + 4, values = keys + HETRUN_U280_KV_BLOCK * heads.code_beats();
                const uint32_t scale = place * 2 / HETRUN_U280_KV_BLOCK;
                for (const uint64_t beat : {block + scale, block + 2 + scale}) written_ = std::max(written_, readers_[c]->write(vector_, beat, 1));
                for (const uint64_t beat : {keys + place * heads.code_beats(), values + place * heads.code_beats()})
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
    std::vector<std::deque<int64_t>> results_;  // of each channel: when blocks of results were taken
    // When the vector process, softmax and the fetcher are free; codes are at the lanes; KV is in HBM; readers may begin a pass.
    int64_t vector_ = 0, softmax_free_ = 0, fetched_ = 0, codes_there_ = 0, written_ = 0, fence_ = 0;
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
