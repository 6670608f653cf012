// The engine: fetch tells readers and lanes what comes, the vector process does one instruction after the other. No values move, only
// their times.
#pragma once

#include "../timing/loops.h"
#include "channel.h"

namespace hetrun::u280::model {

class Engine : public Process {
public:
    SC_HAS_PROCESS(Engine);
    Engine(sc_core::sc_module_name name, const MemoryTiming& memory, const EngineTiming& engine, std::vector<Instruction> program, std::vector<Row> rows)
        : Process(name, memory, engine), loops_(engine_), program_(std::move(program)), rows_(std::move(rows)) {
        for (uint32_t c = 0; c < engine.channels; ++c) {
            const std::string number = std::to_string(c);
            channels_.push_back(std::make_unique<Channel>(("channel" + number).c_str(), memory, c, engine.channels));
            readers_.push_back(std::make_unique<ReadProcess>(("reader" + number).c_str(), memory, engine, *channels_.back(), passes_written_, written_));
            lanes_.push_back(std::make_unique<LaneProcess>(("lanes" + number).c_str(), memory, engine, *readers_.back(), started_));
            done_.push_back(std::make_unique<Queue<sc_time>>());
        }
        for (const Pass& pass : passes()) list_matmuls(pass);
        SC_THREAD(fetch);
        SC_THREAD(vector);
        SC_THREAD(count_writes);
    }

    uint64_t total() const { return (end_.value() + static_cast<uint64_t>(engine_.clock_ps) - 1) / static_cast<uint64_t>(engine_.clock_ps); }
    uint64_t beats_read() const { return beats_; }

private:
    // Of a pass: its rows.
    struct Pass {
        std::vector<Row> rows;
        uint32_t n_outputs = 0;
    };
    // A row of an ATTEND and a group of its heads.
    struct Unit {
        uint32_t n_channels, n_heads, cells, n_own, n_old;  // KV heads; cells of a channel; of them, the pass's and those that are read
        uint64_t region;
        bool begins_row;
    };
    // A MATMUL: when the lanes know of it; whether they hear of it at the one before.
    struct Matmul {
        sc_time known;
        bool chained;
    };

    std::vector<Pass> passes() const {
        std::vector<Pass> all;
        for (size_t i = 0; i < rows_.size(); ++i) {
            if (i % engine_.pass_tokens == 0) all.emplace_back();
            all.back().rows.push_back(rows_[i]);
            all.back().n_outputs += rows_[i].output >= 0;
        }
        return all;
    }
    void list_matmuls(const Pass& pass) {
        bool chained = false;
        for (const Instruction& op : program_) {
            if (op.op == HETRUN_U280_OP_MATMUL && n_rows(op, pass)) {
                matmuls_.push_back({LaneProcess::never(), chained});
                chained = true;
            }
            if (op.op == HETRUN_U280_OP_QUANTIZE || op.op == HETRUN_U280_OP_EMBED || op.op == HETRUN_U280_OP_ATTEND) chained = false;
        }
    }
    static uint32_t n_rows(const Instruction& op, const Pass& pass) {
        return op.rows == HETRUN_U280_ROWS_OUTPUTS ? pass.n_outputs : static_cast<uint32_t>(pass.rows.size());
    }
    static uint32_t up(uint64_t a, uint64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

    // Channels that share a head's cells; groups of heads that share all channels.
    uint32_t apart(const Instruction& op) const { return std::max(1u, engine_.channels / op.n_heads_kv); }
    uint32_t n_groups(const Instruction& op) const { return up(op.n_heads_kv * apart(op), engine_.channels); }
    static uint32_t key_beats(const Instruction& op) { return up(op.head_dim, 128); }
    static uint32_t block_beats(const Instruction& op) { return 4 + 64 * key_beats(op); }
    static uint32_t cell_of(const Instruction& op, const Row& row) {
        const uint32_t position = uint32_t(row.position);
        return op.n_cells == op.n_ctx || position < op.sink ? position : op.sink + (position - op.sink) % (op.n_cells - op.sink);
    }
    uint64_t block_of(const Instruction& op, const Row& row, uint32_t group) const {
        return region_of(op, row, group) + uint64_t{cell_of(op, row) / apart(op) / 32} * block_beats(op);
    }
    uint64_t region_of(const Instruction& op, const Row& row, uint32_t group) const {
        const uint32_t blocks = up(up(op.n_cells, apart(op)), 32);
        return op.hbm + (uint64_t(row.slot) * n_groups(op) + group) * blocks * block_beats(op);
    }

    // Instructions come from DDR, and go to readers and lanes; the vector process has them too.
    void fetch() {
        cycles(2 * engine_.ddr_cycles);
        for (const Pass& pass : passes()) {
            for (const Instruction& op : program_) {
                cycles(engine_.fetch_cycles);
                if (op.op == HETRUN_U280_OP_EMBED) tell_embed(op, pass);
                if (op.op == HETRUN_U280_OP_MATMUL && n_rows(op, pass)) tell_matmul(op, pass);
                if (op.op == HETRUN_U280_OP_QUANTIZE) codes_.push_back(LaneProcess::never());
                if (op.op == HETRUN_U280_OP_ATTEND) tell_attend(op, pass);
                fetched_.write({&op, sc_time_stamp()});
            }
            for (auto& reader : readers_) read(*reader, {0, 0});
        }
    }
    void read(ReadProcess& reader, Span span) {
        reader.spans.write({sc_time_stamp(), span});
        beats_ += span.n_beats;
    }
    void tell_embed(const Instruction& op, const Pass& pass) {
        const Layout& layout = kLayouts[op.format];
        for (const Row& row : pass.rows) {
            const uint32_t block = uint32_t(row.token) / layout.block_rows, n = layout.block_beats(op.n_columns);
            read(*readers_[block % engine_.channels], {op.hbm, 1});
            read(*readers_[block % engine_.channels], {op.hbm + uint64_t{block / engine_.channels} * n, n});
        }
    }
    void tell_matmul(const Instruction& op, const Pass& pass) {
        const Layout& layout = kLayouts[op.format];
        const uint32_t n_blocks = up(op.n_rows, uint64_t{layout.block_rows} * engine_.channels), of_16_rows = 16 / layout.block_rows;
        const uint32_t tokens = n_rows(op, pass), cycles = layout.value_cycles(tokens, engine_.lanes), values = layout.value_beats(op.n_columns);
        // Dots of the last beats have still to meet their scales.
        const uint32_t left = layout.scale_period == 0 ? 0 : values % layout.scale_period == 0 ? layout.scale_period : values % layout.scale_period;
        const sc_time* codes = codes_.empty() ? &sc_core::SC_ZERO_TIME : &codes_.back();
        const sc_time* known = &matmuls_[n_told_++].known;
        for (uint32_t c = 0; c < engine_.channels; ++c) {
            for (uint32_t i = 0; i < n_blocks; ++i) {
                const Giving giving = {uint64_t{left} * cycles, uint64_t{layout.block_rows} * tokens, std::max(1u, engine_.result_beats / tokens), i + 1 == n_blocks};
                lanes_[c]->blocks.write({i % of_16_rows == 0, values, cycles, layout.scale_period, layout.scale_beats, 0, codes, known, giving, nullptr});
            }
            read(*readers_[c], {op.hbm, n_blocks * layout.block_beats(op.n_columns) + up(n_blocks, of_16_rows)});
        }
    }

    // Scales that the pass's own will stand among; then commands: values of a unit, weights of the next with keys of the one behind it.
    void tell_attend(const Instruction& op, const Pass& pass) {
        sent_.push_back(LaneProcess::never());
        for (const Row& row : pass.rows) {
            const uint32_t place = cell_of(op, row) / apart(op);
            for (uint32_t head = 0; head < op.n_heads_kv; ++head) {
                const uint32_t number = head * apart(op) + cell_of(op, row) % apart(op), c = number % engine_.channels;
                const uint64_t beat = block_of(op, row, number / engine_.channels) + place % 32 / 16;
                read(*readers_[c], {beat, 1});
                read(*readers_[c], {beat + 2, 1});
                lanes_[c]->blocks.write({2, 0, 0, 0, 0, 0, &sent_.back(), &sent_.back(), {}, done_[c].get()});
            }
        }
        std::deque<Unit> units;
        for (const Row& row : pass.rows) {
            uint32_t own = 0;
            for (const Row& other : pass.rows) own += other.slot == row.slot && other.position <= row.position;
            const uint32_t seen = op.window ? std::min<uint32_t>(uint32_t(row.position) + 1, op.sink + op.window) : uint32_t(row.position) + 1;
            own = std::min(own, seen);
            for (uint32_t group = 0; group < n_groups(op); ++group) {
                const uint32_t n_channels = std::min(engine_.channels, op.n_heads_kv * apart(op) - group * engine_.channels);
                const uint32_t n_old = up(seen - own, apart(op)), n_own = up(own, apart(op));
                units.push_back({n_channels, n_channels / apart(op), n_old + n_own, n_own, n_old, region_of(op, row, group), group == 0});
            }
        }
        const size_t n = units.size();
        for (size_t command = 0; command < n + 2; ++command) {
            sent_.push_back(LaneProcess::never());
            if (command >= 2) tell_values(op, units[command - 2], command < n);
            if (command <= n) tell_scores(op, command < n ? &units[command] : nullptr, command > 0 ? &units[command - 1] : nullptr);
        }
        units_.insert(units_.end(), units.begin(), units.end());
    }
    uint32_t each(const Instruction& op) const { return op.n_heads / op.n_heads_kv * up(128, engine_.lanes); }
    void tell_values(const Instruction& op, const Unit& unit, bool keys_follow) {
        const uint32_t beats = key_beats(op), queries = op.n_heads / op.n_heads_kv;
        // One tile of eight more, the queries of the keys, and sums on their way out.
        uint64_t idle = uint64_t{up(unit.cells, 8) * 8 + 8 - unit.n_old} * beats * each(op) + uint64_t{8} * queries * beats;
        if (keys_follow) idle += 1 + query_words(op);
        for (uint32_t c = 0; c < unit.n_channels; ++c) {
            for (uint32_t cell = 0; cell < unit.n_old; cell += 32) {
                const uint32_t n = std::min(32u, unit.n_old - cell) * beats;
                read(*readers_[c], {unit.region + uint64_t{cell / 32} * block_beats(op) + 4 + 32 * beats, n});
                lanes_[c]->blocks.write({0, n, each(op), 0, 0, 0, &sent_.back(), &sent_.back(), {}, nullptr});
            }
            lanes_[c]->blocks.write({0, 0, 0, 0, 0, idle, &sent_.back(), &sent_.back(), {}, done_[c].get()});
        }
    }
    static uint32_t channels_of(const Unit* keys, const Unit* weights) {
        return std::max(keys ? keys->n_channels : 0, weights ? weights->n_channels : 0);
    }
    void tell_scores(const Instruction& op, const Unit* of_keys, const Unit* of_weights) {
        const uint32_t beats = key_beats(op), queries = op.n_heads / op.n_heads_kv;
        for (uint32_t c = 0; c < channels_of(of_keys, of_weights); ++c) {
            const Unit* const keys = of_keys && c < of_keys->n_channels ? of_keys : nullptr;
            const Unit* const weights = of_weights && c < of_weights->n_channels ? of_weights : nullptr;
            uint32_t cell = 0;  // of both
            const auto left = [&](const Unit* unit) { return unit && cell < unit->n_old ? std::min(32u, unit->n_old - cell) : 0u; };
            for (; left(keys) + left(weights) != 0; cell += 32) {
                const uint64_t block = uint64_t{cell / 32} * block_beats(op);
                if (left(weights)) read(*readers_[c], {weights->region + block + 2, 2});
                if (left(keys)) read(*readers_[c], {keys->region + block, 2});
                if (left(keys)) read(*readers_[c], {keys->region + block + 4, left(keys) * beats});
                const uint32_t scales = 2 * (left(keys) != 0) + 2 * (left(weights) != 0);
                const uint64_t alone = left(weights) > left(keys) ? uint64_t{left(weights) - left(keys)} * beats * each(op) : 0;
                lanes_[c]->blocks.write({scales, left(keys) * beats, each(op), 0, 0, alone, &sent_.back(), &sent_.back(), {}, nullptr});
            }
            const uint32_t old = std::max(keys ? keys->n_old : 0, weights ? weights->n_old : 0), all = std::max(keys ? keys->cells : 0, weights ? weights->cells : 0);
            const uint64_t idle = uint64_t{all - old} * beats * each(op) + queries * ((keys ? 1u : 0u) + (weights ? 1u : 0u));
            lanes_[c]->blocks.write({0, 0, 0, 0, 0, idle, &sent_.back(), &sent_.back(), {}, done_[c].get()});
        }
    }
    static uint32_t n_sets(const Instruction& op) { return op.sink != 0 && op.d != op.a ? 2 : 1; }
    // A head word and 64 codes each, of the queries of a head.
    static uint32_t query_words(const Instruction& op) { return n_sets(op) * (op.n_heads / op.n_heads_kv) * (1 + up(op.head_dim, 64)); }

    // The vector process. Whatever it does takes longer by the factor that HLS may need.
    void work(uint64_t n) { cycles(n * engine_.stall_factor); }
    void vector() {
        for (const Pass& pass : passes()) {
            uint64_t writes = 0;
            for (size_t i = 0; i < program_.size(); ++i) {
                const auto next = fetched_.read();
                until(next.second);
                run(*next.first, pass, writes);
            }
            n_writes_.write(writes);
        }
        while (passes_written_ < passes().size()) wait(written_);
        cycles(engine_.ddr_cycles);
        end_ = sc_time_stamp();
        sc_core::sc_stop();
    }
    void run(const Instruction& op, const Pass& pass, uint64_t& writes) {
        switch (op.op) {
            case HETRUN_U280_OP_END: return;
            case HETRUN_U280_OP_EMBED: return embed(op, pass);
            case HETRUN_U280_OP_MATMUL: return collect(op, pass);
            case HETRUN_U280_OP_ATTEND: return attend(op, pass, writes);
            default: break;
        }
        if (n_rows(op, pass)) work(loops_.rows(op, n_rows(op, pass)));
        if (op.op == HETRUN_U280_OP_QUANTIZE) start(codes_[n_codes_++]);
    }
    void embed(const Instruction& op, const Pass& pass) {
        for (const Row& row : pass.rows) {
            const uint32_t block = uint32_t(row.token) / kLayouts[op.format].block_rows;
            for (uint32_t i = 0; i <= kLayouts[op.format].block_beats(op.n_columns); ++i) {
                readers_[block % engine_.channels]->take();
                cycles(1);
            }
            cycles(up(op.n_columns, engine_.stream_floats));
        }
        cycles(engine_.finish_cycles);
    }
    // What the vector process sends is at the lanes after the way between SLRs.
    void start(sc_time& what) {
        what = sc_time_stamp() + static_cast<double>(engine_.crossing_cycles) * clock_;
        started_.notify(sc_core::SC_ZERO_TIME);
    }
    template <typename From>
    void come(From& from) { until(from.read() + static_cast<double>(engine_.crossing_cycles) * clock_); }

    void collect(const Instruction& op, const Pass& pass) {
        const uint32_t tokens = n_rows(op, pass);
        if (tokens == 0) return;
        Matmul& own = matmuls_[n_matmuls_++];
        if (own.known == LaneProcess::never()) start(own.known);
        if (n_matmuls_ < matmuls_.size() && matmuls_[n_matmuls_].chained) start(matmuls_[n_matmuls_].known);
        const uint32_t rows = kLayouts[op.format].block_rows * engine_.channels;
        const uint32_t floats = op.ddr ? engine_.stream_floats : (op.flags & HETRUN_U280_FLAG_GATE) ? engine_.gate_floats : engine_.vector_floats;
        for (uint32_t block = 0; block < up(op.n_rows, rows); ++block) {
            for (auto& lanes : lanes_) until(lanes->results.first() + static_cast<double>(engine_.crossing_cycles) * clock_);
            cycles(uint64_t{tokens} * up(rows, floats));
            for (auto& lanes : lanes_) lanes->results.take();
        }
        cycles(uint64_t{engine_.finish_cycles} * engine_.stall_factor + (op.ddr ? engine_.ddr_cycles : 0));
    }

    void attend(const Instruction& op, const Pass& pass, uint64_t& writes) {
        const bool rotates = (op.flags & HETRUN_U280_FLAG_HADAMARD) != 0;
        const uint32_t queries = op.n_heads / op.n_heads_kv, beats = key_beats(op);
        const size_t n = pass.rows.size() * n_groups(op);
        const auto round = [&] {
            work(loops_.rounding(uint64_t{n_sets(op)} * op.n_heads, op.head_dim, rotates) + loops_.rounding(2 * op.n_heads_kv, op.head_dim, rotates));
        };
        size_t n_written = 0;
        const auto write = [&] {
            work(2 * op.n_heads_kv * (1 + beats));
            writes += write_row(op, pass.rows[n_written++]);
        };
        start(sent_[n_sent_++]);
        work(2 * engine_.channels);
        round();
        for (const Row& row : pass.rows)
            for (uint32_t head = 0; head < op.n_heads_kv; ++head) come(*done_[(head * apart(op) + cell_of(op, row) % apart(op)) % engine_.channels]);
        work(loops_.scales(pass.rows.size(), n_groups(op), apart(op)));
        const auto first = units_.begin() + static_cast<std::ptrdiff_t>(n_units_);
        const std::vector<Unit> of_pass(first, first + static_cast<std::ptrdiff_t>(n));
        n_units_ += n;
        for (size_t command = 0; command < n + 2; ++command) {
            const Unit* const keys = command < n ? &of_pass[command] : nullptr;
            const Unit* const weights = command > 0 && command <= n ? &of_pass[command - 1] : nullptr;
            const Unit* const values = command > 1 ? &of_pass[command - 2] : nullptr;
            if (values) work(loops_.exchange(1 + values->n_own * beats));
            if (weights) work(loops_.exchange(1 + weights->n_own));
            if (keys) work(loops_.exchange(1 + query_words(op) + keys->n_own * (1 + beats)));
            start(sent_[n_sent_++]);
            if (command == 0) write();
            if (values) {
                for (uint32_t c = 0; c < values->n_channels; ++c) come(*done_[c]);
                work(loops_.sums(queries, op.head_dim, apart(op)));
                work(loops_.finishing(values->n_heads * queries, op.head_dim, rotates));
            }
            if (command + 1 < n) work(engine_.channels);
            if (command + 1 < n && of_pass[command + 1].begins_row) {
                round();
                write();
            }
            if (keys || weights)
                for (uint32_t c = 0; c < channels_of(keys, weights); ++c) come(*done_[c]);
            if (weights) work(loops_.weights(queries, weights->n_heads, apart(op)));
            if (keys) work(engine_.channels + engine_.element_cycles);
        }
    }
    uint64_t write_row(const Instruction& op, const Row& row) {
        const uint32_t place = cell_of(op, row) / apart(op) % 32, n = key_beats(op);
        for (uint32_t head = 0; head < op.n_heads_kv; ++head) {
            const uint32_t number = head * apart(op) + cell_of(op, row) % apart(op);
            const uint64_t block = block_of(op, row, number / engine_.channels);
            Channel& channel = *channels_[number % engine_.channels];
            for (const uint64_t beat : {block + place / 16, block + 2 + place / 16}) channel.post({beat * 64, 64, true, &replies_}, way_);
            for (const uint64_t beat : {block + 4 + place * n, block + 4 + (32 + place) * n}) channel.post({beat * 64, n * 64, true, &replies_}, way_);
        }
        return 4 * op.n_heads_kv;
    }

    void count_writes() {
        for (;;) {
            for (uint64_t n = n_writes_.read(); n > 0; --n) until(replies_.read() + way_);
            ++passes_written_;
            written_.notify(sc_core::SC_ZERO_TIME);
        }
    }

    const Loops loops_;
    const std::vector<Instruction> program_;
    const std::vector<Row> rows_;
    uint32_t passes_written_ = 0;
    sc_core::sc_event written_, started_;
    std::vector<std::unique_ptr<Channel>> channels_;
    std::vector<std::unique_ptr<ReadProcess>> readers_;
    std::vector<std::unique_ptr<LaneProcess>> lanes_;
    std::vector<std::unique_ptr<Queue<sc_time>>> done_;  // parts of attention that wait for no room
    Queue<std::pair<const Instruction*, sc_time>> fetched_;
    std::deque<sc_time> codes_, sent_;  // when the lanes have codes of a QUANTIZE; commands of an ATTEND, the first for scales
    std::deque<Unit> units_;
    std::deque<Matmul> matmuls_;
    size_t n_codes_ = 0, n_sent_ = 0, n_units_ = 0, n_matmuls_ = 0, n_told_ = 0;
    Replies replies_;
    Queue<uint64_t> n_writes_;
    uint64_t beats_ = 0;
    sc_time end_;
};

}  // namespace hetrun::u280::model
