// What stands at each pseudo-channel: a reader, which runs ahead into its FIFO, and lanes, which take its beats.
#pragma once

#include "memory.h"

namespace hetrun::u280::model {

class Process : public sc_core::sc_module {
protected:
    Process(sc_core::sc_module_name name, const MemoryTiming& memory, const EngineTiming& engine)
        : sc_module(name), memory_(memory), engine_(engine), clock_(picoseconds(engine.clock_ps)),
          way_(picoseconds((memory.hit_ps + engine.port_cycles * engine.clock_ps) / 2)) {}

    void cycles(uint64_t n) { wait(static_cast<double>(n) * clock_); }
    void until(sc_time at) {
        if (at > sc_time_stamp()) wait(at - sc_time_stamp());
    }
    // An edge of the clock at or after `at`.
    void until_edge(sc_time at) {
        const sc_dt::uint64 ps = static_cast<sc_dt::uint64>(engine_.clock_ps);
        until(sc_time::from_value((at.value() + ps - 1) / ps * ps));
    }

    const MemoryTiming memory_;
    const EngineTiming engine_;
    const sc_time clock_, way_;  // one way to the memory
};

// Results of blocks on their way to the vector process: when each was out. Room is made when it has taken them.
class Results {
public:
    void write(size_t room) {
        while (out_.size() >= room) sc_core::wait(changed_);
        out_.push_back(sc_time_stamp());
        changed_.notify(sc_core::SC_ZERO_TIME);
    }
    sc_time first() {
        while (out_.empty()) sc_core::wait(changed_);
        return out_.front();
    }
    void take() {
        out_.pop_front();
        changed_.notify(sc_core::SC_ZERO_TIME);
    }

private:
    std::deque<sc_time> out_;
    sc_core::sc_event changed_;
};

// Beats in a row. n_beats = 0: the pass ends here, and the next may begin when its KV is written.
struct Span {
    uint64_t beat;
    uint32_t n_beats;
};

class ReadProcess : public Process {
public:
    SC_HAS_PROCESS(ReadProcess);
    ReadProcess(sc_core::sc_module_name name, const MemoryTiming& memory, const EngineTiming& engine, Channel& channel, const uint32_t& passes_written,
                const sc_core::sc_event& written)
        : Process(name, memory, engine), channel_(channel), passes_written_(passes_written), written_(written) {
        SC_THREAD(ask);
        SC_THREAD(receive);
    }

    Queue<std::pair<sc_time, Span>> spans;  // and when the instruction is there

    // The next beat, when it is there.
    void take() {
        beats_.read();
        --held_;
        changed_.notify(sc_core::SC_ZERO_TIME);
    }

private:
    void ask() {
        uint32_t pass = 0;
        for (;;) {
            std::pair<sc_time, Span> next = spans.read();
            until(next.first);
            Span span = next.second;
            if (span.n_beats == 0)
                for (++pass; passes_written_ < pass;) wait(written_);
            while (span.n_beats) {
                const uint32_t n = std::min(span.n_beats, engine_.burst_beats - static_cast<uint32_t>(span.beat % engine_.burst_beats));
                while (under_way_ == engine_.outstanding || held_ + n > engine_.fifo_beats) wait(changed_);
                ++under_way_;
                held_ += n;
                lengths_.push_back(n);
                channel_.post({span.beat * HETRUN_U280_BEAT_BYTES, n * HETRUN_U280_BEAT_BYTES, false, &replies_}, way_);
                span.beat += n;
                span.n_beats -= n;
                cycles(1);
            }
        }
    }

    void receive() {
        const sc_time data = picoseconds(HETRUN_U280_BEAT_BYTES * memory_.byte_fs / 1000);
        for (;;) {
            const sc_time begun = replies_.read();
            const uint32_t n = lengths_.front();
            lengths_.pop_front();
            for (uint32_t i = 1; i <= n; ++i) {
                cycles(1);
                until_edge(begun + static_cast<double>(i) * data + way_);
                beats_.write(0);
            }
            --under_way_;
            changed_.notify(sc_core::SC_ZERO_TIME);
        }
    }

    Channel& channel_;
    const uint32_t& passes_written_;
    const sc_core::sc_event& written_;
    uint32_t under_way_ = 0, held_ = 0;
    std::deque<uint32_t> lengths_;
    Replies replies_;
    Queue<char> beats_;
    sc_core::sc_event changed_;
};

// Results of a block of rows: what they take behind its beats, and how many blocks may wait.
struct Giving {
    uint64_t held, cycles;  // until all sums have met their scales; then, one block after the other
    size_t room;            // 0: the block gives nothing
    bool last;              // the lanes wait for its results
};

// A block of rows, or of keys or values of a head: what the lanes take in one go.
struct Block {
    uint32_t n_before;                 // beats of scales that come first
    uint32_t n_values, value_cycles;
    uint32_t scale_period, n_scales;   // beats of scales behind so many of values
    uint64_t n_idle;                   // cycles at the end that take no beats
    const sc_time *start, *also;       // not before either
    Giving giving;
    Queue<sc_time>* done;              // when it is; or null
};

class LaneProcess : public Process {
public:
    SC_HAS_PROCESS(LaneProcess);
    LaneProcess(sc_core::sc_module_name name, const MemoryTiming& memory, const EngineTiming& engine, ReadProcess& reader, const sc_core::sc_event& started)
        : Process(name, memory, engine), reader_(reader), started_(started) {
        SC_THREAD(run);
        SC_THREAD(give);
    }

    Queue<Block> blocks;
    Results results;
    static sc_time never() { return sc_core::sc_max_time(); }

private:
    void run() {
        for (;;) {
            const Block block = blocks.read();
            for (const sc_time* start : {block.start, block.also}) {
                while (*start == never()) wait(started_);
                until(*start);
            }
            while (block.giving.room && n_summed_ == 2) wait(given_);
            beats(block.n_before, 1);
            for (uint32_t value = 1; value <= block.n_values; ++value) {
                beats(1, block.value_cycles);
                if (block.scale_period && (value % block.scale_period == 0 || value == block.n_values)) beats(block.n_scales, 1);
            }
            cycles(block.n_idle);
            if (block.giving.room) {
                ++n_summed_;
                summed_.write({sc_time_stamp(), block.giving});
            }
            while (block.giving.last && n_summed_ != 0) wait(given_);
            if (block.done) block.done->write(sc_time_stamp());
        }
    }
    void give() {
        for (;;) {
            const std::pair<sc_time, Giving> next = summed_.read();
            until(next.first + static_cast<double>(next.second.held) * clock_);
            cycles(next.second.cycles);
            results.write(next.second.room);
            --n_summed_;
            given_.notify(sc_core::SC_ZERO_TIME);
        }
    }
    void beats(uint32_t n, uint32_t each) {
        for (uint32_t i = 0; i < n; ++i) {
            reader_.take();
            cycles(each);
        }
    }

    ReadProcess& reader_;
    const sc_core::sc_event& started_;
    uint32_t n_summed_ = 0;  // blocks whose results are not out
    Queue<std::pair<sc_time, Giving>> summed_;
    sc_core::sc_event given_;
};

}  // namespace hetrun::u280::model
