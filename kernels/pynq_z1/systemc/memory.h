// The board's DRAM as a SystemC module: requests queue in the order in which they arrive and are served one at a time.
//
// The same trace as in timing/dram.h, from the same constants: a refresh every interval, which closes all rows, and a line of the
// processors every so often, each in a row of its own.
#pragma once

#include <systemc>

#include <deque>
#include <map>
#include <vector>

#include "../timing/timing.h"

namespace hetrun::pynq::model {

using sc_core::sc_time;

inline sc_time picoseconds(int64_t n) { return sc_time(static_cast<double>(n), sc_core::SC_PS); }

struct Request {
    uint32_t address, nbytes;
    bool is_write;
    // When the first byte leaves the memory, of a write when the last is in it. None: nobody waits.
    sc_core::sc_fifo<sc_time>* reply;
};

class Memory : public sc_core::sc_module {
public:
    SC_HAS_PROCESS(Memory);
    Memory(sc_core::sc_module_name name, const BoardTiming& board)
        : sc_module(name), board_(board), open_row_(board.dram_banks, -1), next_refresh_(picoseconds(board.refresh_interval_ps)) {
        SC_THREAD(serve);
        SC_METHOD(arrive);
        sensitive << travelled_;
        dont_initialize();
        if (board.processor_bytes_per_s) SC_THREAD(processors);
    }

    // A request that the controller sees after `delay`.
    void post(const Request& request, sc_time delay) {
        travelling_.insert({sc_core::sc_time_stamp() + delay, request});
        travelled_.notify(delay);
    }

private:
    void arrive() {
        const sc_time now = sc_core::sc_time_stamp();
        while (!travelling_.empty() && travelling_.begin()->first <= now) {
            queue_.push_back(travelling_.begin()->second);
            travelling_.erase(travelling_.begin());
        }
        arrived_.notify();
    }

    void processors() {
        const int64_t lines_per_s = board_.processor_bytes_per_s / board_.processor_line_bytes;
        for (uint32_t line = 0;; ++line) {
            wait(picoseconds(1'000'000'000'000 / lines_per_s));
            queue_.push_back({(1u << 28) + line * 8192, board_.processor_line_bytes, false, nullptr});
            arrived_.notify();
        }
    }

    void serve() {
        for (;;) {
            if (sc_core::sc_time_stamp() >= next_refresh_) {
                wait(picoseconds(board_.refresh_ps));
                open_row_.assign(open_row_.size(), -1);
                next_refresh_ += picoseconds(board_.refresh_interval_ps);
            } else if (queue_.empty()) {
                wait(next_refresh_ - sc_core::sc_time_stamp(), arrived_);
            } else {
                const Request request = queue_.front();
                queue_.pop_front();
                const int64_t row = request.address / board_.dram_row_bytes;
                int64_t& open = open_row_[static_cast<size_t>(row) % open_row_.size()];
                wait(picoseconds(board_.dram_burst_ps + (open == row ? 0 : board_.dram_row_miss_ps)));
                open = row;
                if (request.reply && !request.is_write) request.reply->write(sc_core::sc_time_stamp());
                wait(picoseconds(request.nbytes * board_.dram_byte_fs / 1000));
                if (request.reply && request.is_write) request.reply->write(sc_core::sc_time_stamp());
            }
        }
    }

    const BoardTiming board_;
    std::vector<int64_t> open_row_;
    sc_time next_refresh_;
    std::multimap<sc_time, Request> travelling_;
    std::deque<Request> queue_;
    sc_core::sc_event_queue travelled_;
    sc_core::sc_event arrived_;
};

}  // namespace hetrun::pynq::model
