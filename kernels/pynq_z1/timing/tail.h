// What follows the unpacker: lanes, float tail and writer, with the streams between them (run() in hls/engine.cpp).
#pragma once

#include <algorithm>

#include "../hls/engine.h"
#include "dram.h"
#include "timing.h"

namespace hetrun::pynq {

// A stream of so many values: when each was written and read.
template <uint32_t Depth>
struct Times {
    uint32_t n_written = 0, n_read = 0;

    bool full() const { return n_written - n_read == Depth; }
    bool empty() const { return n_written == n_read; }
    void write(int64_t at) { written_[n_written++ % Depth] = at; }
    void read(int64_t at) { read_[n_read++ % Depth] = at; }
    int64_t next() const { return written_[n_read % Depth]; }     // when the next to be read was written
    int64_t room() const { return read_[n_written % Depth]; }  // when there was room for the next to be written

private:
    int64_t written_[Depth] = {}, read_[Depth] = {};
};

// Each stage is worked out when one before it waits for it, or when time has come so far: then the memory sees the results that are
// written between the bursts that are read.
class Tail {
public:
    Tail(const BoardTiming& board, const EngineTiming& engine, const Work& work, Dram& dram, int64_t begin)
        : clock_(board.clock_ps), way_(board.read_latency_ps / 2), packet_ps_(64 / engine.lanes * board.clock_ps),
          burst_words_(engine.burst_words), work_(work), dram_(dram), multiply_free_(begin), finish_free_(begin), write_free_(begin) {}

    // The unpacker has a packet at `at`: when it is rid of it, with the head of a row behind the row's last packet.
    int64_t packet(int64_t at) {
        while (packets_.full()) multiply();
        at = std::max(at, packets_.room());
        packets_.write(at);
        if (packets_.n_written % work_.row_packets != 0) return at;
        while (heads_.full()) finish();
        at = std::max(at, heads_.room());
        heads_.write(at);
        return at;
    }

    // All that begins until `at`.
    void advance(int64_t at) {
        while (!packets_.empty() && std::max(multiply_free_, packets_.next()) <= at) multiply();
        while (finishes() && std::max(finish_free_, heads_.next()) <= at) finish();
        while (to_write_ ? write_free_ + burst_words_ * clock_ + way_ <= at : !results_.empty()) write();
    }
    // When the last result is in the memory.
    int64_t end() {
        while (!packets_.empty()) multiply();
        while (!heads_.empty()) finish();
        while (to_write_ || !results_.empty()) write();
        return write_free_;
    }

private:
    static constexpr uint32_t kRows = HETRUN_PYNQ_TILE_ROWS, kWriteRows = HETRUN_PYNQ_WRITE_ROWS, kOutAddress = 3u << 26;

    uint32_t pairs() const { return (work_.n_tokens + 1) / 2; }
    bool finishes() const { return !heads_.empty() && partials_.n_written - partials_.n_read >= pairs(); }

    // A packet, against two tokens at a time.
    void multiply() {
        multiply_free_ = std::max(multiply_free_, packets_.next());
        packets_.read(multiply_free_);
        const bool last = packets_.n_read % work_.row_packets == 0;
        for (uint32_t pair = 0; pair < pairs(); ++pair) {
            multiply_free_ += packet_ps_;
            if (!last) continue;
            while (partials_.full()) finish();
            multiply_free_ = std::max(multiply_free_, partials_.room());
            partials_.write(multiply_free_);
        }
    }

    // A row, a token a cycle; its results in the last chunk.
    void finish() {
        while (!finishes()) multiply();
        finish_free_ = std::max(finish_free_, heads_.next());
        heads_.read(finish_free_);
        for (uint32_t token = 0; token < work_.n_tokens; ++token) {
            if (token % 2 == 0) {
                finish_free_ = std::max(finish_free_, partials_.next());
                partials_.read(finish_free_);
            }
            finish_free_ += clock_;
            if (chunk_ != work_.n_chunks - 1) continue;
            while (results_.full()) write();
            finish_free_ = std::max(finish_free_, results_.room());
            results_.write(finish_free_);
        }
        if (heads_.n_read % kRows == 0) chunk_ = chunk_ == work_.n_chunks - 1 ? 0 : chunk_ + 1;
    }

    // The writer collects some rows, then sends those of a token, a word a cycle, and waits until they are in the memory.
    void write() {
        const uint32_t n_rows = std::min(kWriteRows, work_.n_rows - first_);
        if (to_write_ == 0) {
            write_free_ = std::max(write_free_, results_.next());
            results_.read(write_free_);
            write_free_ += clock_;
            if (++collected_ == n_rows * work_.n_tokens) to_write_ = work_.n_tokens;
            return;
        }
        const uint32_t n = std::min(burst_words_, n_rows - sent_);
        const uint32_t address = kOutAddress + ((work_.n_tokens - to_write_) * work_.n_rows + first_ + sent_) * 4;
        write_free_ += n * clock_;
        const int64_t served = dram_.serve(write_free_ + way_, address, n * 4);
        sent_ += n;
        if (sent_ != n_rows) return;
        sent_ = 0;
        write_free_ = (served + way_ + clock_ - 1) / clock_ * clock_;
        if (--to_write_ != 0) return;
        collected_ = 0;
        first_ += n_rows;
    }

    const int64_t clock_, way_, packet_ps_;
    const uint32_t burst_words_;
    const Work& work_;
    Dram& dram_;
    int64_t multiply_free_, finish_free_, write_free_;
    Times<4> packets_, heads_;
    Times<8> partials_;  // pairs of tokens
    Times<16> results_;
    uint32_t chunk_ = 0;
    uint32_t first_ = 0, collected_ = 0, to_write_ = 0, sent_ = 0;  // of rows that are written: first, results, tokens to go, rows sent
};

}  // namespace hetrun::pynq
