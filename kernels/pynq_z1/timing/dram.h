// The board's memory: one controller and one chip of DDR3, which serve a burst at a time.
#pragma once

#include <algorithm>
#include <vector>

#include "timing.h"

namespace hetrun::pynq {

// Serves bursts in the order in which they come, between refreshes and lines of the processor.
class Dram {
public:
    explicit Dram(const BoardTiming& board) : board_(board), open_row_(board.dram_banks, -1) {
        interval_ = board.processor_bytes_per_s
                        ? 1'000'000'000'000 / (board.processor_bytes_per_s / board.processor_line_bytes)
                        : 0;
        next_line_ = interval_;
        next_refresh_ = board.refresh_interval_ps;
    }

    // When the last byte of a burst that arrives at `at` has left the pins.
    int64_t serve(int64_t at, uint32_t address, uint32_t nbytes) {
        for (;;) {  // what came before it; a refresh goes first, but waits for the burst under way
            const int64_t start = std::max(at, free_);
            if (next_refresh_ <= start) {
                free_ = std::max(free_, next_refresh_) + board_.refresh_ps;
                next_refresh_ += board_.refresh_interval_ps;
                std::fill(open_row_.begin(), open_row_.end(), -1);
            } else if (interval_ && next_line_ <= at) {
                // A line of the processor, in rows of its own.
                free_ = std::max(free_, next_line_) + take(kProcessorAddress + line_++ * 8192, board_.processor_line_bytes);
                next_line_ += interval_;
            } else {
                free_ = start + take(address, nbytes);
                return free_;
            }
        }
    }
    int64_t busy_ps() const { return busy_; }

private:
    static constexpr uint32_t kProcessorAddress = 1u << 28;

    int64_t take(uint32_t address, uint32_t nbytes) {
        const int64_t row = address / board_.dram_row_bytes;
        int64_t& open = open_row_[static_cast<size_t>(row % board_.dram_banks)];
        const int64_t miss = open == row ? 0 : board_.dram_row_miss_ps;
        open = row;
        const int64_t time = miss + board_.dram_burst_ps + nbytes * board_.dram_byte_fs / 1000;
        busy_ += time;
        return time;
    }

    const BoardTiming& board_;
    std::vector<int64_t> open_row_;
    int64_t free_ = 0, interval_ = 0, next_line_ = 0, next_refresh_ = 0, busy_ = 0;
    uint32_t line_ = 0;
};

}  // namespace hetrun::pynq
