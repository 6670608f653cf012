// A pseudo-channel of HBM: a controller and banks, which serve a burst at a time.
#pragma once

#include <algorithm>
#include <vector>

#include "timing.h"

namespace hetrun::u280 {

// Serves bursts in the order in which they come, between refreshes. Rows of other banks are opened ahead while data moves.
class PseudoChannel {
public:
    // number: of `of`, whose refreshes are spread evenly.
    PseudoChannel(const MemoryTiming& memory, uint32_t number, uint32_t of)
        : memory_(memory), banks_(memory.banks), next_refresh_(memory.refresh_interval_ps * (number + 1) / of) {}

    // When the last byte of a burst that arrives at `at` has left the pins.
    int64_t serve(int64_t at, uint64_t address, uint32_t nbytes, bool write = false) {
        while (next_refresh_ <= std::max(at, free_)) {  // it waits for the burst under way
            free_ = std::max(free_, next_refresh_) + memory_.refresh_ps;
            next_refresh_ += memory_.refresh_interval_ps;
            for (Bank& bank : banks_) bank = {-1, bank.activated_at, free_};
        }
        const int64_t row = static_cast<int64_t>(address / memory_.row_bytes);
        Bank& bank = banks_[static_cast<size_t>(row) % banks_.size()];
        int64_t ready = at;
        if (bank.row != row) {
            ready = std::max(at, bank.used_until) + (bank.row < 0 ? 0 : memory_.precharge_ps);
            ready = std::max(ready, bank.activated_at + memory_.row_cycle_ps);
            bank.row = row;
            bank.activated_at = ready;
            ready += memory_.activate_ps;
        }
        if (write != writing_) free_ += memory_.turn_ps;
        writing_ = write;
        free_ = std::max(ready, free_) + memory_.burst_ps + nbytes * memory_.byte_fs / 1000;
        bank.used_until = free_;
        return free_;
    }

private:
    struct Bank {
        int64_t row = -1, activated_at = -(int64_t{1} << 40), used_until = 0;
    };

    const MemoryTiming& memory_;
    std::vector<Bank> banks_;
    int64_t free_ = 0, next_refresh_;
    bool writing_ = false;
};

}  // namespace hetrun::u280
