// What follows the unpacker: lanes, float tail, activation and writer, with the streams between them (run() in hls/engine.cpp).
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
        : clock_(board.clock_ps), way_(board.read_latency_ps / 2), packet_ps_(64 / engine.lanes * board.clock_ps), engine_(engine),
          work_(work), dram_(dram), multiply_free_(begin), finish_free_(begin), activate_free_(begin), write_free_(begin) {}

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
        while (!sums_.empty() && std::max(activate_free_, sums_.next()) <= at) activate();
        while (to_write_ ? leaves() + way_ <= at : !outputs_.empty()) write();
    }
    // When the last result is in the memory.
    int64_t end() {
        while (!packets_.empty()) multiply();
        while (!heads_.empty()) finish();
        while (!sums_.empty()) activate();
        while (to_write_ || !outputs_.empty()) write();
        return std::max(activate_free_, write_free_);
    }

private:
    static constexpr uint32_t kOutAddress = 3u << 26, kLeastPairs = HETRUN_PYNQ_SUM_DISTANCE / HETRUN_PYNQ_TILE_ROWS;

    uint32_t pairs() const { return (work_.n_tokens + 1) / 2; }
    bool finishes() const { return !heads_.empty() && partials_.n_written - partials_.n_read >= pairs(); }
    bool coded() const { return work_.mode == HETRUN_PYNQ_MODE_CODES_32 || work_.mode == HETRUN_PYNQ_MODE_CODES_256; }
    uint32_t block_rows() const {
        return std::min(work_.mode == HETRUN_PYNQ_MODE_CODES_256 ? 256u : HETRUN_PYNQ_WRITE_ROWS, work_.n_rows - first_);
    }

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

    // A row, a slot for two tokens, at least so many that its sums are added in time; its results in the last chunk.
    void finish() {
        while (!finishes()) multiply();
        finish_free_ = std::max(finish_free_, heads_.next());
        heads_.read(finish_free_);
        for (uint32_t pair = 0; pair < std::max(pairs(), kLeastPairs); ++pair) {
            if (pair < pairs()) {
                finish_free_ = std::max(finish_free_, partials_.next());
                partials_.read(finish_free_);
            }
            finish_free_ += engine_.slot_cycles * clock_;
            if (pair >= pairs() || chunk_ != work_.n_chunks - 1) continue;
            while (sums_.full()) activate();
            finish_free_ = std::max(finish_free_, sums_.room());
            sums_.write(finish_free_);
        }
        if (heads_.n_read % work_.tile_rows == 0) chunk_ = chunk_ == work_.n_chunks - 1 ? 0 : chunk_ + 1;
    }

    // Two tokens of a row: on they go, or they stay; or they take the operators in turn, and come out some time later.
    void activate() {
        const bool passes = work_.mode == HETRUN_PYNQ_MODE_WRITE, stays = work_.mode == HETRUN_PYNQ_MODE_GATE;
        activate_free_ = std::max(activate_free_, sums_.next());
        sums_.read(activate_free_);
        activate_free_ += (passes || stays ? 1 : 2) * clock_;
        if (stays) return;
        while (outputs_.full()) write();
        activate_free_ = std::max(activate_free_, outputs_.room());
        outputs_.write(activate_free_ + (passes ? 0 : engine_.activate_cycles * clock_));
    }

    // The writer collects some rows, then sends those of a token, a word a cycle, or of codes in two, and waits until they are in the
    // memory; scales at the end.
    void write() {
        const uint32_t rows = block_rows();
        if (to_write_ == 0) {
            write_free_ = std::max(write_free_, outputs_.next());
            outputs_.read(write_free_);
            write_free_ += clock_;
            if (++collected_ == rows * pairs()) to_write_ = work_.n_tokens;
            return;
        }
        const uint32_t n = burst_words(), token = work_.n_tokens - to_write_;
        const uint32_t address = kOutAddress + (token * work_.n_rows + first_) * (codes() ? 1 : 4) + sent_ * 4;
        write_free_ = leaves();
        const int64_t served = dram_.serve(write_free_ + way_, address, n * 4);
        sent_ += n;
        if (sent_ != words()) return;
        sent_ = 0;
        write_free_ = (served + way_ + clock_ - 1) / clock_ * clock_;
        if (--to_write_ != 0 || scales_) return;
        collected_ = 0;
        ++n_blocks_;
        first_ += rows;
        scales_ = coded() && first_ == work_.n_rows;
        if (scales_) to_write_ = work_.n_tokens;
    }

    // Of what a token sends, and of the next burst of it; when that has left.
    bool codes() const { return coded() && !scales_; }
    uint32_t words() const { return scales_ ? n_blocks_ : codes() ? block_rows() / 4 : block_rows(); }
    uint32_t burst_words() const { return std::min(engine_.burst_words, words() - sent_); }
    int64_t leaves() const {
        const bool divides = codes() && sent_ == 0 && to_write_ == work_.n_tokens;
        return write_free_ + ((divides ? engine_.divide_cycles + work_.n_tokens : 0) + burst_words() * (codes() ? 2 : 1)) * clock_;
    }

    const int64_t clock_, way_, packet_ps_;
    const EngineTiming& engine_;
    const Work& work_;
    Dram& dram_;
    int64_t multiply_free_, finish_free_, activate_free_, write_free_;
    Times<4> packets_, heads_;
    Times<8> partials_;  // pairs of tokens, as those that follow
    Times<16> sums_;
    Times<HETRUN_PYNQ_OUTPUT_PAIRS> outputs_;
    uint32_t chunk_ = 0;
    // Of rows that are written: the first of them, pairs collected, tokens to go, words sent; blocks before them; at their scales.
    uint32_t first_ = 0, collected_ = 0, to_write_ = 0, sent_ = 0, n_blocks_ = 0;
    bool scales_ = false;
};

}  // namespace hetrun::pynq
