// The processes of a step, instruction by instruction: what each does is timed when the vector process comes to it.
#include <deque>
#include <memory>

#include "heads.h"
#include "loops.h"
#include "reader.h"

namespace hetrun::u280 {

namespace {

constexpr uint32_t kTile = 8;  // hls/attend.h: cells whose values a cascade sums

uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

class Step {
public:
    Step(const MemoryTiming& memory, const EngineTiming& engine, const std::vector<Instruction>& program)
        : engine_(engine), loops_(engine), program_(program), lane_free_(engine.channels, 0) {
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
            const std::vector<Unit> units = heads.units(rows_);
            for (size_t command = 0; command < units.size() + 2; ++command) {
                if (command >= 2) ask_values(heads, units[command - 2], at);
                ask_keys(heads, command < units.size() ? &units[command] : nullptr, command >= 1 && command <= units.size() ? &units[command - 1] : nullptr, at);
            }
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

    // Calls each(first beat, cells) for the blocks of a unit.
    template <typename Each>
    static void each_block(const Heads& heads, const Unit& unit, Each each) {
        for (uint32_t first = 0; first < unit.n_old; first += HETRUN_U280_KV_BLOCK)
            each(unit.beat + uint64_t{first / HETRUN_U280_KV_BLOCK} * heads.block_beats(), std::min<uint32_t>(HETRUN_U280_KV_BLOCK, unit.n_old - first));
    }
    // Of a block scales of values of the unit that is weighed, then scales and keys of the other.
    void ask_keys(const Heads& heads, const Unit* keys, const Unit* weights, int64_t at) {
        const uint32_t old_keys = keys ? keys->n_old : 0, old_weights = weights ? weights->n_old : 0;
        for (uint32_t first = 0; first < std::max(old_keys, old_weights); first += HETRUN_U280_KV_BLOCK) {
            const uint64_t block = uint64_t{first / HETRUN_U280_KV_BLOCK} * heads.block_beats();
            if (first < old_weights) ask_all(*weights, {weights->beat + block + 2, 2, at});
            if (first >= old_keys) continue;
            ask_all(*keys, {keys->beat + block, 2, at});
            ask_all(*keys, {keys->beat + block + 4, std::min<uint32_t>(HETRUN_U280_KV_BLOCK, old_keys - first) * heads.code_beats(), at});
        }
    }
    void ask_values(const Heads& heads, const Unit& unit, int64_t at) {
        each_block(heads, unit, [&](uint64_t beat, uint32_t cells) {
            ask_all(unit, {beat + 4 + HETRUN_U280_KV_BLOCK * heads.code_beats(), cells * heads.code_beats(), at});
        });
    }
    void ask_all(const Unit& unit, const Sweep& sweep) {
        for (uint32_t c = 0; c < unit.n_channels; ++c) readers_[c]->add(sweep);
        timing_.kv_beats += int64_t{sweep.n_beats} * unit.n_channels;
    }

    static uint32_t embed_block(const Instruction& op, const Row& row) {
        return static_cast<uint32_t>(row.token) / kLayouts[op.format].block_rows;
    }

    // The vector process works for so many cycles.
    void work(uint64_t n) {
        vector_ += cycles(n * engine_.stall_factor);
        timing_.vector_cycles += static_cast<int64_t>(n) * engine_.stall_factor;
    }

    void run(const Instruction& op) {
        switch (op.op) {
            case HETRUN_U280_OP_END: return;
            case HETRUN_U280_OP_EMBED: return embed(op);
            case HETRUN_U280_OP_MATMUL: return matmul(op);
            case HETRUN_U280_OP_ATTEND: return attend(op);
            default: break;
        }
        if (rows_of(op) != 0) work(loops_.rows(op, rows_of(op)));
        if (op.op != HETRUN_U280_OP_QUANTIZE) return;
        codes_there_ = vector_ + cycles(engine_.crossing_cycles);
        told_ = 0;
    }

    // Rows of the table pass through the FIFO of their channel to the vector process.
    void embed(const Instruction& op) {
        for (const Row& row : rows_) {
            const uint32_t c = embed_block(op, row) % engine_.channels;
            const auto one = [](uint32_t i, uint32_t j) { return j - i; };
            lane_free_[c] = readers_[c]->take(std::max(vector_, lane_free_[c]), kLayouts[op.format].block_beats(op.n_columns) + 1, one);
            lane_free_[c] += cycles(ceil_div(op.n_columns, engine_.stream_floats));
            vector_ = lane_free_[c];
        }
        vector_ += cycles(engine_.finish_cycles);
        told_ = 0;
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
        // Words of results of a block of rows, of all channels; sums that wait for their scales when the next block begins.
        const uint32_t width = op.ddr ? engine_.stream_floats : op.flags & HETRUN_U280_FLAG_GATE ? engine_.gate_floats : engine_.vector_floats;
        const int64_t collect = cycles(n_rows * ceil_div(uint64_t{layout.block_rows} * engine_.channels, width));
        const uint32_t n_held = layout.scale_period ? (n_values - 1) % layout.scale_period + 1 : 0;
        const int64_t held = cycles(uint64_t{n_held} * value), give = cycles(uint64_t{layout.block_rows} * n_rows);
        const uint32_t n_blocks = layout.channel_blocks(op.n_rows, engine_.channels), n_waiting = std::max(1u, engine_.result_beats / n_rows);
        // The lanes know of it since the vector process came to the MATMUL before.
        const int64_t now = vector_ + cycles(engine_.crossing_cycles), start = std::max(told_ ? told_ : now, codes_there_);
        told_ = now;
        std::vector<std::deque<int64_t>> given(engine_.channels);  // when results of a channel's last blocks were out
        std::deque<int64_t> taken;                                 // when those of the last blocks were
        for (uint32_t b = 0; b < n_blocks; ++b) {
            int64_t there = 0;
            for (uint32_t c = 0; c < engine_.channels; ++c) {
                std::deque<int64_t>& out = given[c];
                int64_t lane = std::max(lane_free_[c], start);
                if (out.size() == 2) {  // places for sums
                    lane = std::max(lane, out.front());
                    out.pop_front();
                }
                if (b % layout.group_blocks() == 0) lane = readers_[c]->take(lane, 1, one);
                lane = readers_[c]->take(lane, n_beats, cost);
                int64_t end = std::max(lane + held, out.empty() ? 0 : out.back()) + give;
                if (taken.size() == n_waiting) end = std::max(end, taken.front());
                out.push_back(end);
                lane_free_[c] = b + 1 == n_blocks ? end : lane;
                there = std::max(there, end);
            }
            if (taken.size() == n_waiting) taken.pop_front();
            vector_ = std::max(vector_, there + cycles(engine_.crossing_cycles)) + collect;
            taken.push_back(vector_);
        }
        vector_ += cycles(uint64_t{engine_.finish_cycles} * engine_.stall_factor);
        if (op.ddr) vector_ += cycles(engine_.ddr_cycles);
    }

    // A command has the values of a unit, and beside the keys of the unit two behind it the weights of the one between (hls/attend.h).
    void attend(const Instruction& op) {
        const Heads heads(op, engine_.channels);
        const std::vector<Unit> units = heads.units(rows_);
        const bool rotates = (op.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
        const uint32_t q = heads.queries(), chunks = heads.code_beats(), of_query = 1 + (op.head_dim + 63) / 64;
        const uint64_t row_queries = uint64_t{heads.query_sets()} * op.n_heads;
        told_ = 0;
        const int64_t scales = forward_scales(heads);
        const auto round_row = [&] {
            work(loops_.rounding(2 * op.n_heads_kv, op.head_dim, rotates) + loops_.rounding(row_queries, op.head_dim, rotates));
        };
        work(2 * engine_.channels);
        round_row();
        receive(scales, loops_.scales(rows_.size(), heads.groups(), heads.split()));
        for (size_t command = 0; command < units.size() + 2; ++command) {
            const Unit* const keys = command < units.size() ? &units[command] : nullptr;
            const Unit* const weights = command >= 1 && command <= units.size() ? &units[command - 1] : nullptr;
            const Unit* const values = command >= 2 ? &units[command - 2] : nullptr;
            if (values) work(loops_.exchange(1 + values->n_own * chunks));
            if (weights) work(loops_.exchange(1 + weights->n_own));
            if (keys) work(loops_.exchange(1 + heads.query_sets() * q * of_query + keys->n_own * (1 + chunks)));
            const int64_t summed = values ? sum_values(heads, *values, keys ? 1 + heads.query_sets() * q * of_query : 0) : 0;
            const int64_t scored = keys || weights ? score_and_weigh(heads, keys, weights) : 0;
            if (command == 0) write_row(op.n_heads_kv, heads, rows_[0]);
            if (values) {
                receive(summed, loops_.sums(q, op.head_dim, heads.split()));
                work(loops_.finishing(values->n_heads * q, op.head_dim, rotates));
            }
            if (command + 1 < units.size()) {
                work(engine_.channels);
                if (units[command + 1].first) {
                    round_row();
                    write_row(op.n_heads_kv, heads, rows_[units[command + 1].row]);
                }
            }
            if (weights) receive(scored, loops_.weights(q, weights->n_heads, heads.split()));
            if (keys) receive(scored, engine_.channels + engine_.element_cycles);
        }
    }

    // What the lanes have ready at `there`.
    void receive(int64_t there, uint64_t n) {
        vector_ = std::max(vector_, there + cycles(engine_.crossing_cycles));
        work(n);
    }

    // Cells in tiles of eight, each of which meets its weights while the next comes. Returns when the last channel's sums are out.
    int64_t sum_values(const Heads& heads, const Unit& unit, uint64_t n_words_of_keys) {
        const uint64_t each = beat_cycles(heads), n = (ceil_div(unit.n_cells(), kTile) + 1) * kTile - unit.n_old;
        const uint64_t rest = n * heads.code_beats() * each + n_words_of_keys + kTile * heads.queries() * heads.code_beats();
        const auto cost = [&](uint32_t i, uint32_t j) { return (j - i) * each; };
        return stream(unit.n_channels, [&](uint32_t c, int64_t lane) {
            each_block(heads, unit, [&](uint64_t, uint32_t cells) { lane = readers_[c]->take(lane, cells * heads.code_beats(), cost); });
            return lane + cycles(rest);
        });
    }
    // A key's beat for each query, and beside it a score that becomes a weight; both may have beats of scales before a block.
    int64_t score_and_weigh(const Heads& heads, const Unit* keys, const Unit* weights) {
        const uint64_t each = beat_cycles(heads);
        const uint32_t chunks = heads.code_beats();
        const auto cost = [&](uint32_t scales) {
            return [scales, each](uint32_t i, uint32_t j) {
                const uint32_t of_scales = std::min(j, scales) - std::min(i, scales);
                return of_scales + (j - i - of_scales) * each;
            };
        };
        return stream(std::max(channels_of(keys), channels_of(weights)), [&](uint32_t c, int64_t lane) {
            const bool scores = c < channels_of(keys), weighs = c < channels_of(weights);
            const uint32_t n_keys = scores ? keys->n_cells() : 0, n_weights = weighs ? weights->n_cells() : 0;
            const uint32_t old_keys = scores ? keys->n_old : 0, old_weights = weighs ? weights->n_old : 0;
            for (uint32_t first = 0; first < std::max(old_keys, old_weights); first += HETRUN_U280_KV_BLOCK) {
                const uint32_t of_keys = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, old_keys - std::min(old_keys, first));
                const uint32_t of_weights = std::min<uint32_t>(HETRUN_U280_KV_BLOCK, old_weights - std::min(old_weights, first));
                const uint32_t scales = (of_keys ? 2 : 0) + (of_weights ? 2 : 0);
                lane = readers_[c]->take(lane, scales + of_keys * chunks, cost(scales));
                if (of_weights > of_keys) lane += cycles((of_weights - of_keys) * chunks * each);
            }
            const uint32_t own = std::max(n_keys, n_weights) - std::max(old_keys, old_weights);
            return lane + cycles(own * chunks * each + (uint64_t{scores} + weighs) * heads.queries());
        });
    }
    static uint32_t channels_of(const Unit* unit) { return unit ? unit->n_channels : 0; }
    uint64_t beat_cycles(const Heads& heads) const { return heads.queries() * ceil_div(128, engine_.lanes); }

    // lane(channel, begin): when a channel is done. Returns when all are.
    template <typename Lane>
    int64_t stream(uint32_t n_channels, Lane lane) {
        const int64_t begin = vector_ + cycles(engine_.crossing_cycles);
        int64_t end = 0;
        for (uint32_t c = 0; c < n_channels; ++c) {
            lane_free_[c] = lane(c, std::max(lane_free_[c], begin));
            end = std::max(end, lane_free_[c]);
        }
        return end;
    }
    // The beats of scales that the pass's own stand in pass through the lanes. Returns when the last is there.
    int64_t forward_scales(const Heads& heads) {
        const auto one = [](uint32_t i, uint32_t j) { return j - i; };
        const int64_t begin = vector_ + cycles(engine_.crossing_cycles);
        int64_t end = 0;
        for (const Row& row : rows_) {
            const uint32_t cell = heads.cell(static_cast<uint32_t>(row.position));
            for (uint32_t group = 0; group < heads.groups(); ++group) {
                for (uint32_t c = 0; c < heads.head_channels(group); ++c) {
                    if (!heads.keeps(cell, group, c)) continue;
                    lane_free_[c] = readers_[c]->take(std::max(lane_free_[c], begin), 2, one);
                    end = std::max(end, lane_free_[c]);
                }
            }
        }
        return end;
    }

    // A key, a value and a scale of each: four bursts in every channel that gets a cell of the row, a beat a cycle.
    void write_row(uint32_t n_heads_kv, const Heads& heads, const Row& row) {
        work(uint64_t{n_heads_kv} * 2 * (1 + heads.code_beats()));
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

    const EngineTiming& engine_;
    const Loops loops_;
    const std::vector<Instruction>& program_;
    std::vector<Row> rows_;
    uint32_t n_outputs_ = 0;
    std::vector<std::unique_ptr<Reader>> readers_;
    std::vector<int64_t> lane_free_;
    // When the vector process and the fetcher are free; codes are at the lanes; they know of the next MATMUL, or 0; KV is in HBM; readers
    // may begin a pass.
    int64_t vector_ = 0, fetched_ = 0, codes_there_ = 0, told_ = 0, written_ = 0, fence_ = 0;
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
