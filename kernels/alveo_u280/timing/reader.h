// A reader and its FIFO: bursts of a pseudo-channel, asked for as far ahead as there is room.
#pragma once

#include <deque>

#include "hbm.h"

namespace hetrun::u280 {

// Beats that follow one another in a channel.   not_before: the instruction that wants them is not known earlier.
struct Sweep {
    uint64_t beat;
    uint32_t n_beats;
    int64_t not_before;
};

// Bursts are worked out when the lanes come to them, or when time has come so far: then the memory sees writes between them.
class Reader {
public:
    Reader(const MemoryTiming& memory, const EngineTiming& engine, uint32_t number)
        : memory_(memory), engine_(engine), channel_(memory, number, engine.channels), way_((memory.hit_ps + engine.port_cycles * engine.clock_ps) / 2),
          beat_ps_(std::max(engine.clock_ps, HETRUN_U280_BEAT_BYTES * memory.byte_fs / 1000)), done_(engine.outstanding, 0) {}

    void add(const Sweep& sweep) {
        if (sweep.n_beats) sweeps_.push_back(sweep);
    }

    // Takes `n` beats from `now` on, a beat when it is there and the one before is done. cost(i, j): cycles for beats i to j of them.
    // Returns when the last is done.
    template <typename Cost>
    int64_t take(int64_t now, uint32_t n, Cost cost) {
        for (uint32_t i = 0; i < n;) {
            while (bursts_.empty()) issue(INT64_MAX);
            Burst& burst = bursts_.front();
            const uint32_t m = std::min(n - i, burst.n);
            const int64_t cycles = cost(i, i + m) * engine_.clock_ps, last = cost(i + m - 1, i + m) * engine_.clock_ps;
            const int64_t first_there = burst.last_there - (burst.n - 1) * beat_ps_;
            const int64_t last_there = first_there + (m - 1) * beat_ps_;
            const int64_t end = std::max(std::max(now, first_there) + cycles, last_there + last);
            stalls_ += end - now - cycles;
            now = end;
            i += m;
            taken_ += m;
            takes_.push_back({taken_, end - last});
            burst.n -= m;
            if (burst.n == 0) bursts_.pop_front();
        }
        return now;
    }

    // A burst that the vector process writes at `at`: when it is in the memory and the master knows.
    int64_t write(int64_t at, uint64_t beat, uint32_t n_beats) {
        while (issue(at)) {}
        return channel_.serve(at + way_, beat * HETRUN_U280_BEAT_BYTES, n_beats * HETRUN_U280_BEAT_BYTES, true) + way_;
    }

    int64_t stalls_ps() const { return stalls_; }

private:
    struct Burst {
        uint32_t n;          // beats that are not taken yet
        int64_t last_there;  // when its last beat is in the FIFO
    };
    struct Take {
        uint64_t until;      // beats that were taken then
        int64_t at;
    };

    // Asks for the next burst, if that is known to happen until `limit`.
    bool issue(int64_t limit) {
        if (sweeps_.empty()) return false;
        Sweep& sweep = sweeps_.front();
        const uint32_t to_edge = engine_.burst_beats - static_cast<uint32_t>(sweep.beat % engine_.burst_beats);
        const uint32_t n = std::min(to_edge, sweep.n_beats);
        int64_t at = std::max({sweep.not_before, asked_ + engine_.clock_ps, done_[n_bursts_ % done_.size()]});
        if (issued_ + n > engine_.fifo_beats) {
            const uint64_t needed = issued_ + n - engine_.fifo_beats;
            if (needed > taken_) return false;
            while (takes_.front().until < needed) takes_.pop_front();
            at = std::max(at, takes_.front().at);
        }
        if (at > limit) return false;
        const int64_t served = channel_.serve(at + way_, sweep.beat * HETRUN_U280_BEAT_BYTES, n * HETRUN_U280_BEAT_BYTES);
        const int64_t there = (served + way_ + engine_.clock_ps - 1) / engine_.clock_ps * engine_.clock_ps;
        port_free_ = std::max(there, port_free_ + n * engine_.clock_ps);
        done_[n_bursts_++ % done_.size()] = port_free_;
        bursts_.push_back({n, port_free_});
        asked_ = at;
        issued_ += n;
        sweep.beat += n;
        sweep.n_beats -= n;
        if (sweep.n_beats == 0) sweeps_.pop_front();
        return true;
    }

    const MemoryTiming& memory_;
    const EngineTiming& engine_;
    PseudoChannel channel_;
    const int64_t way_, beat_ps_;
    std::deque<Sweep> sweeps_;
    std::deque<Burst> bursts_;
    std::deque<Take> takes_;
    std::vector<int64_t> done_;  // of the bursts that may be outstanding: when each is in the FIFO
    uint64_t issued_ = 0, taken_ = 0, n_bursts_ = 0;
    int64_t asked_ = 0, port_free_ = 0, stalls_ = 0;
};

}  // namespace hetrun::u280
