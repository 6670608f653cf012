// A pseudo-channel of HBM as a SystemC module: banks open rows for what has arrived, data leave in the order of arrival.
//
// The same constants as timing/hbm.h, and the same refreshes; how they act is written anew.
#pragma once

#define SC_INCLUDE_DYNAMIC_PROCESSES
#include <systemc>

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "../timing/timing.h"

namespace hetrun::u280::model {

using sc_core::sc_time;
using sc_core::sc_time_stamp;

inline sc_time picoseconds(int64_t n) { return sc_time::from_value(static_cast<sc_dt::uint64>(n)); }

// A FIFO that is never full.
template <typename T>
class Queue {
public:
    void write(const T& value) {
        values_.push_back(value);
        written_.notify(sc_core::SC_ZERO_TIME);
    }
    T read() {
        while (values_.empty()) sc_core::wait(written_);
        const T value = values_.front();
        values_.pop_front();
        return value;
    }

private:
    std::deque<T> values_;
    sc_core::sc_event written_;
};

using Replies = Queue<sc_time>;

struct Request {
    uint64_t address;
    uint32_t nbytes;
    bool is_write;
    Replies* reply;  // of a read: when its data begin; of a write: when they are in the memory
};

class Channel : public sc_core::sc_module {
public:
    SC_HAS_PROCESS(Channel);
    Channel(sc_core::sc_module_name name, const MemoryTiming& memory, uint32_t number, uint32_t of)
        : sc_module(name), memory_(memory), next_refresh_(picoseconds(memory.refresh_interval_ps * (number + 1) / of)) {
        for (uint32_t i = 0; i < memory.banks; ++i) banks_.push_back(std::make_unique<Bank>());
        SC_THREAD(move_data);
        SC_METHOD(arrive);
        sensitive << travelled_;
        dont_initialize();
        for (auto& bank : banks_) sc_core::sc_spawn([this, &bank] { open_rows(*bank); });
    }

    // A request that the controller sees after `delay`.
    void post(const Request& request, sc_time delay) {
        travelling_.insert({sc_time_stamp() + delay, request});
        travelled_.notify(delay);
    }

private:
    struct Bank {
        std::deque<int64_t> wanted;  // rows, in order
        int64_t open = -1;
        bool was_open = false;
        sc_time activated;
        sc_core::sc_event changed, opened;
    };

    int64_t row_of(const Request& r) const { return static_cast<int64_t>(r.address / memory_.row_bytes); }
    Bank& bank_of(int64_t row) { return *banks_[static_cast<size_t>(row) % banks_.size()]; }

    void arrive() {
        while (!travelling_.empty() && travelling_.begin()->first <= sc_time_stamp()) {
            const Request request = travelling_.begin()->second;
            travelling_.erase(travelling_.begin());
            queue_.push_back(request);
            Bank& bank = bank_of(row_of(request));
            bank.wanted.push_back(row_of(request));
            bank.changed.notify(sc_core::SC_ZERO_TIME);
            arrived_.notify(sc_core::SC_ZERO_TIME);
        }
    }

    // Opens the row of the bank's next request, unless a refresh comes between.
    void open_rows(Bank& bank) {
        for (;;) {
            if (refreshing_ || bank.wanted.empty() || bank.open == bank.wanted.front()) {
                wait(bank.changed);
                continue;
            }
            const uint64_t refreshes = n_refreshes_;
            if (bank.open >= 0) {
                wait(picoseconds(memory_.precharge_ps));
                bank.open = -1;
            }
            const sc_time soonest = bank.was_open ? bank.activated + picoseconds(memory_.row_cycle_ps) : sc_core::SC_ZERO_TIME;
            if (sc_time_stamp() < soonest) wait(soonest - sc_time_stamp());
            if (refreshing_ || refreshes != n_refreshes_) continue;
            bank.activated = sc_time_stamp();
            bank.was_open = true;
            wait(picoseconds(memory_.activate_ps));
            if (refreshing_ || refreshes != n_refreshes_) continue;
            bank.open = bank.wanted.front();
            bank.opened.notify(sc_core::SC_ZERO_TIME);
        }
    }

    void refresh() {
        refreshing_ = true;
        for (auto& bank : banks_) bank->open = -1;
        wait(picoseconds(memory_.refresh_ps));
        refreshing_ = false;
        ++n_refreshes_;
        next_refresh_ += picoseconds(memory_.refresh_interval_ps);
        for (auto& bank : banks_) bank->changed.notify(sc_core::SC_ZERO_TIME);
    }

    void move_data() {
        for (;;) {
            if (sc_time_stamp() >= next_refresh_) {
                refresh();
                continue;
            }
            if (queue_.empty()) {
                wait(next_refresh_ - sc_time_stamp(), arrived_);
                continue;
            }
            const Request request = queue_.front();
            Bank& bank = bank_of(row_of(request));
            while (bank.open != row_of(request)) wait(bank.opened);
            const sc_time turned = moved_ + picoseconds(request.is_write != writing_ ? memory_.turn_ps : 0);
            if (sc_time_stamp() < turned) wait(turned - sc_time_stamp());
            writing_ = request.is_write;
            queue_.pop_front();
            wait(picoseconds(memory_.burst_ps));
            if (!request.is_write) request.reply->write(sc_time_stamp());
            wait(picoseconds(request.nbytes * memory_.byte_fs / 1000));
            moved_ = sc_time_stamp();
            if (request.is_write) request.reply->write(sc_time_stamp());
            bank.wanted.pop_front();
            bank.changed.notify(sc_core::SC_ZERO_TIME);
        }
    }

    const MemoryTiming memory_;
    std::vector<std::unique_ptr<Bank>> banks_;
    std::multimap<sc_time, Request> travelling_;
    std::deque<Request> queue_;
    sc_core::sc_event_queue travelled_;
    sc_core::sc_event arrived_;
    sc_time next_refresh_, moved_;
    bool refreshing_ = false, writing_ = false;
    uint64_t n_refreshes_ = 0;
};

}  // namespace hetrun::u280::model
