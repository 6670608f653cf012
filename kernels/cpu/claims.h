// Who does which rows of a matmul: a thread takes its own share from the front, and once that is used up what others have
// left from the back. So threads end together where one has the slower core or memory, and each reads one stream of weights.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hetrun::cpu {

struct Range {
    size_t begin, end;
};

// The share of one thread, in units of rows.
class alignas(128) Claims {
public:
    static constexpr size_t kMostUnits = (1 << 20) - 1;

    // By the owner: its units of a matmul. `turn` tells matmuls apart, each from those before and after it.
    void begin(uint32_t turn, size_t n_units) { state_.store(state(turn, 0, n_units), std::memory_order_relaxed); }

    // Up to `most` units, fewer towards the end; none where nothing is left, or the owner is at another matmul. Any thread may
    // do any unit, so nothing but who gets it passes through here.
    Range take(uint32_t turn, bool owner, size_t most) {
        uint64_t now = state_.load(std::memory_order_relaxed);
        for (;;) {
            const size_t first = now >> 20 & kMostUnits, last = now & kMostUnits;
            if (now >> 40 != (turn & kTurns) || first == last) return {0, 0};
            const size_t n = std::min(most, (last - first + 3) / 4);
            const Range taken = owner ? Range{first, first + n} : Range{last - n, last};
            const uint64_t then = owner ? state(turn, first + n, last) : state(turn, first, last - n);
            if (state_.compare_exchange_weak(now, then, std::memory_order_relaxed)) return taken;
        }
    }

private:
    static constexpr uint32_t kTurns = (1 << 24) - 1;

    static uint64_t state(uint32_t turn, size_t first, size_t last) {
        return static_cast<uint64_t>(turn & kTurns) << 40 | static_cast<uint64_t>(first) << 20 | last;
    }

    std::atomic<uint64_t> state_{0};
};

}  // namespace hetrun::cpu
