// The engine: fetch tells readers and lanes what comes, the vector process does one instruction after the other. No values move, only
// their times.
#pragma once

#include "channel.h"

namespace hetrun::u280::model {

class Engine : public Process {
public:
    SC_HAS_PROCESS(Engine);
    Engine(sc_core::sc_module_name name, const MemoryTiming& memory, const EngineTiming& engine, std::vector<Instruction> program, std::vector<Row> rows)
        : Process(name, memory, engine), program_(std::move(program)), rows_(std::move(rows)) {
        for (uint32_t c = 0; c < engine.channels; ++c) {
            const std::string number = std::to_string(c);
            channels_.push_back(std::make_unique<Channel>(("channel" + number).c_str(), memory, c, engine.channels));
            readers_.push_back(std::make_unique<ReadProcess>(("reader" + number).c_str(), memory, engine, *channels_.back(), passes_written_, written_));
            lanes_.push_back(std::make_unique<LaneProcess>(("lanes" + number).c_str(), memory, engine, *readers_.back(), started_));
            results_.push_back(std::make_unique<Results>(static_cast<int>(engine.result_groups)));
            done_.push_back(std::make_unique<Queue<sc_time>>());
        }
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
        uint32_t n_channels, cells, n_old;  // cells of a channel; of them, those that are read
        uint64_t region;
        sc_time largest = LaneProcess::never(), inverse = LaneProcess::never();  // when the lanes have them
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
        const uint32_t cycles = layout.value_cycles(n_rows(op, pass), engine_.lanes);
        const sc_time* codes = codes_.empty() ? &sc_core::SC_ZERO_TIME : &codes_.back();
        for (uint32_t c = 0; c < engine_.channels; ++c) {
            for (uint32_t i = 0; i < n_blocks; ++i) {
                const bool ends = (i + 1) % of_16_rows == 0 || i + 1 == n_blocks;
                lanes_[c]->blocks.write({i % of_16_rows == 0, layout.value_beats(op.n_columns), cycles, layout.scale_period, layout.scale_beats, 0,
                                         codes, ends ? results_[c].get() : nullptr, nullptr});
            }
            read(*readers_[c], {op.hbm, n_blocks * layout.block_beats(op.n_columns) + up(n_blocks, of_16_rows)});
        }
    }

    // Scales that the pass's own will stand among; then keys, scales of values and values of each row and group.
    void tell_attend(const Instruction& op, const Pass& pass) {
        rounded_.push_back(LaneProcess::never());
        queries_.push_back(LaneProcess::never());
        for (const Row& row : pass.rows) {
            const uint32_t place = cell_of(op, row) / apart(op);
            for (uint32_t head = 0; head < op.n_heads_kv; ++head) {
                const uint32_t number = head * apart(op) + cell_of(op, row) % apart(op), c = number % engine_.channels;
                const uint64_t beat = block_of(op, row, number / engine_.channels) + place % 32 / 16;
                read(*readers_[c], {beat, 1});
                read(*readers_[c], {beat + 2, 1});
                lanes_[c]->blocks.write({2, 0, 0, 0, 0, 0, &rounded_.back(), nullptr, done_[c].get()});
            }
        }
        for (const Row& row : pass.rows) {
            uint32_t own = 0;
            for (const Row& other : pass.rows) own += other.slot == row.slot && other.position <= row.position;
            const uint32_t seen = op.window ? std::min<uint32_t>(uint32_t(row.position) + 1, op.sink + op.window) : uint32_t(row.position) + 1;
            own = std::min(own, seen);
            for (uint32_t group = 0; group < n_groups(op); ++group) {
                const uint32_t n_channels = std::min(engine_.channels, op.n_heads_kv * apart(op) - group * engine_.channels);
                const uint32_t n_old = up(seen - own, apart(op));
                units_.push_back({n_channels, n_old + up(own, apart(op)), n_old, region_of(op, row, group)});
                tell_unit(op, units_.back());
            }
        }
    }
    void tell_unit(const Instruction& op, const Unit& unit) {
        const uint32_t n_queries = op.n_heads / op.n_heads_kv, each = n_queries * up(128, engine_.lanes), beats = key_beats(op);
        const uint64_t own = uint64_t{unit.cells - unit.n_old} * beats * each, weighing = up(uint64_t{unit.cells} * n_queries, engine_.softmax_scores);
        for (uint32_t c = 0; c < unit.n_channels; ++c) {
            auto& blocks = lanes_[c]->blocks;
            for (uint32_t part = 0; part < 3; ++part) {
                const sc_time* start = part == 0 ? &queries_.back() : part == 1 ? &unit.largest : &unit.inverse;
                for (uint32_t cell = 0; cell < unit.n_old; cell += 32) {
                    const uint32_t n = std::min(32u, unit.n_old - cell) * beats;
                    const uint64_t block = unit.region + uint64_t{cell / 32} * block_beats(op);
                    if (part < 2) read(*readers_[c], {block + 2 * part, 2});
                    if (part != 1) read(*readers_[c], {block + 4 + (part == 2 ? 32 * beats : 0), n});
                    blocks.write({part < 2 ? 2u : 0u, part == 1 ? 0 : n, each, 0, 0, 0, start, nullptr, nullptr});
                }
                blocks.write({0, 0, 0, 0, 0, part == 1 ? weighing : own, start, nullptr, done_[c].get()});
            }
        }
    }

    // The vector process. Whatever it does takes longer by the factor that HLS may need.
    void work(uint64_t n) { cycles(n * engine_.stall_factor); }
    void each_row(const Instruction& op, const Pass& pass, uint64_t n, uint32_t floats, uint32_t pipeline) {
        if (n_rows(op, pass)) work(uint64_t{n_rows(op, pass)} * up(n, floats) + pipeline);
    }
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
        const EngineTiming& e = engine_;
        switch (op.op) {
            case HETRUN_U280_OP_LOAD:
            case HETRUN_U280_OP_STORE:
                if (n_rows(op, pass)) cycles(uint64_t{n_rows(op, pass)} * up(op.n, e.stream_floats) + e.ddr_cycles);
                break;
            case HETRUN_U280_OP_EMBED:
                for (const Row& row : pass.rows) {
                    const uint32_t block = uint32_t(row.token) / kLayouts[op.format].block_rows;
                    for (uint32_t i = 0; i < kLayouts[op.format].block_beats(op.n_columns); ++i) {
                        readers_[block % e.channels]->take();
                        cycles(1);
                    }
                }
                cycles(e.finish_cycles);
                break;
            case HETRUN_U280_OP_NORM: each_row(op, pass, 2 * uint64_t{op.n}, e.vector_floats, e.norm_cycles); break;
            case HETRUN_U280_OP_GATE: each_row(op, pass, op.n, e.gate_floats, e.gate_cycles); break;
            case HETRUN_U280_OP_QUANTIZE:
                each_row(op, pass, 2 * uint64_t{op.n}, e.vector_floats, e.quantize_cycles);
                start(codes_[n_codes_++]);
                break;
            case HETRUN_U280_OP_MATMUL: collect(op, pass); break;
            case HETRUN_U280_OP_ATTEND: attend(op, pass, writes); break;
            case HETRUN_U280_OP_END: break;
            default: each_row(op, pass, op.n, e.vector_floats, e.element_cycles);
        }
    }
    // What the vector process sends is at the lanes after the way between SLRs.
    void start(sc_time& what) {
        what = sc_time_stamp() + static_cast<double>(engine_.crossing_cycles) * clock_;
        started_.notify(sc_core::SC_ZERO_TIME);
    }
    template <typename From>
    void come(From& from) { until(from.read() + static_cast<double>(engine_.crossing_cycles) * clock_); }

    void collect(const Instruction& op, const Pass& pass) {
        if (n_rows(op, pass) == 0) return;
        for (uint32_t group = 0; group < up(op.n_rows, uint64_t{16} * engine_.channels); ++group) {
            for (uint32_t c = 0; c < engine_.channels; ++c) {
                come(*results_[c]);
                cycles(up(uint64_t{16} * n_rows(op, pass), engine_.stream_floats));
            }
        }
        cycles(uint64_t{engine_.finish_cycles} * engine_.stall_factor + (op.ddr ? engine_.ddr_cycles : 0));
    }

    void attend(const Instruction& op, const Pass& pass, uint64_t& writes) {
        each_row(op, pass, uint64_t{4} * op.n_heads_kv * op.head_dim, engine_.vector_floats, engine_.quantize_cycles);
        start(rounded_[n_attends_]);
        for (const Row& row : pass.rows)
            for (uint32_t head = 0; head < op.n_heads_kv; ++head) come(*done_[(head * apart(op) + cell_of(op, row) % apart(op)) % engine_.channels]);
        for (const Row& row : pass.rows) writes += write_row(op, row);
        const uint64_t queries = op.n_heads * op.head_dim * (op.d == op.a ? 1 : 2);
        each_row(op, pass, 2 * queries, engine_.vector_floats, engine_.quantize_cycles);
        start(queries_[n_attends_++]);
        for (size_t i = 0; i < pass.rows.size() * n_groups(op); ++i) {
            Unit& unit = units_[n_units_++];
            for (sc_time* next : {&unit.largest, &unit.inverse}) {
                for (uint32_t c = 0; c < unit.n_channels; ++c) come(*done_[c]);
                work(engine_.softmax_cycles);
                start(*next);
            }
            for (uint32_t c = 0; c < unit.n_channels; ++c) come(*done_[c]);
            const uint64_t floats = uint64_t{unit.n_channels} * (op.n_heads / op.n_heads_kv) * op.head_dim;
            work(up(floats, engine_.vector_floats) + engine_.element_cycles);
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

    const std::vector<Instruction> program_;
    const std::vector<Row> rows_;
    uint32_t passes_written_ = 0;
    sc_core::sc_event written_, started_;
    std::vector<std::unique_ptr<Channel>> channels_;
    std::vector<std::unique_ptr<ReadProcess>> readers_;
    std::vector<std::unique_ptr<LaneProcess>> lanes_;
    std::vector<std::unique_ptr<Results>> results_;
    std::vector<std::unique_ptr<Queue<sc_time>>> done_;  // parts of attention that wait for no room
    Queue<std::pair<const Instruction*, sc_time>> fetched_;
    std::deque<sc_time> codes_, rounded_, queries_;  // when the lanes have codes of a QUANTIZE; of an ATTEND, leave to send scales, and queries
    std::deque<Unit> units_;
    size_t n_codes_ = 0, n_attends_ = 0, n_units_ = 0;
    Replies replies_;
    Queue<uint64_t> n_writes_;
    uint64_t beats_ = 0;
    sc_time end_;
};

}  // namespace hetrun::u280::model
