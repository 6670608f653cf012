// The processes of the engine (hls/) as SystemC modules: each takes the cycles that its loops take, and waits where its streams
// make it wait. No values move, only their times.
#pragma once

#include "../hls/formats.h"
#include "memory.h"

namespace hetrun::pynq::model {

// What of a descriptor decides its time.
struct Job {
    Format format;
    uint32_t n_rows, n_chunks, n_tokens, mode;
    uint32_t weights, codes, scales, out;  // addresses

    uint32_t token_pairs() const { return (n_tokens + 1) / 2; }
    bool activates() const { return mode > HETRUN_PYNQ_MODE_GATE; }
    bool is_coded() const { return mode > HETRUN_PYNQ_MODE_ACTIVATE; }

    uint32_t n_pairs() const { return n_rows / kTileRows * n_chunks * (static_cast<uint32_t>(tile_words(format)) / 2); }
};

// Values of streams.
using Token = char;
using Fifo = sc_core::sc_fifo<Token>;

class Process : public sc_core::sc_module {
public:
    sc_core::sc_fifo<const Job*> jobs{1};

protected:
    Process(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine)
        : sc_module(name), board_(board), engine_(engine), clock_(picoseconds(board.clock_ps)), way_(picoseconds(board.read_latency_ps / 2)) {}

    void cycles(uint64_t n) { wait(static_cast<double>(n) * clock_); }
    // Until an edge of the clock at or after `at`.
    void until(sc_time at) {
        const sc_time now = sc_core::sc_time_stamp();
        if (at <= now) return;
        const uint64_t ps = static_cast<uint64_t>(board_.clock_ps), edge = (at.value() + ps - 1) / ps * ps;
        wait(sc_time::from_value(edge) - now);
    }

    const BoardTiming board_;
    const EngineTiming engine_;
    const sc_time clock_, way_;  // one way to the memory
};

// read_port: asks for bursts ahead, as many as may be outstanding and as the FIFO has room for; a word a cycle comes back.
class ReadPort : public Process {
public:
    SC_HAS_PROCESS(ReadPort);
    ReadPort(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Memory& memory, uint32_t first)
        : Process(name, board, engine), out(static_cast<int>(engine.fifo_words / 2)), memory_(memory), first_(first) {
        SC_THREAD(ask);
        SC_THREAD(receive);
    }

    Fifo out;  // pairs of words

    // The unpacker has taken a pair.
    void taken() {
        --reserved_;
        changed_.notify(sc_core::SC_ZERO_TIME);
    }

private:
    void ask() {
        for (;;) {
            const Job& job = *jobs.read();
            const uint32_t of_burst = engine_.burst_words / 2, n_pairs = job.n_pairs();
            for (uint32_t pair = first_ * of_burst; pair < n_pairs; pair += engine_.ports * of_burst) {
                const uint32_t n = std::min(of_burst, n_pairs - pair);
                while (outstanding_ == engine_.outstanding || reserved_ + n > engine_.fifo_words / 2) wait(changed_);
                ++outstanding_;
                reserved_ += n;
                lengths_.push_back(n);
                memory_.post({job.weights + pair * 16, n * 16, false, &replies_}, way_);
                cycles(1);
            }
        }
    }

    void receive() {
        for (;;) {
            until(replies_.read() + way_);
            const uint32_t n = lengths_.front();
            lengths_.pop_front();
            for (uint32_t i = 0; i < n; ++i) {
                cycles(2);
                out.write(Token());
            }
            --outstanding_;
            changed_.notify(sc_core::SC_ZERO_TIME);
        }
    }

    Memory& memory_;
    const uint32_t first_;
    uint32_t outstanding_ = 0, reserved_ = 0;
    std::deque<uint32_t> lengths_;
    sc_core::sc_fifo<sc_time> replies_{64};
    sc_core::sc_event changed_;
};

// unpack: a pair a cycle, eight from each port in turn.
class Unpack : public Process {
public:
    SC_HAS_PROCESS(Unpack);
    Unpack(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, std::vector<ReadPort*> ports)
        : Process(name, board, engine), ports_(std::move(ports)) {
        SC_THREAD(run);
    }

    Fifo packets{4}, heads{4};
    uint64_t busy = 0, memory_stalls = 0;
    sc_time held;  // by the lanes

private:
    void run() {
        for (;;) {
            const Job& job = *jobs.read();
            const Format& f = job.format;
            const int header = header_words(f), words = tile_words(f);
            int at = 0, plane = 0, packet = 0;
            for (uint32_t pair = 0; pair < job.n_pairs(); ++pair) {
                ReadPort& port = *ports_[pair / (engine_.burst_words / 2) % ports_.size()];
                Token token;
                while (!port.out.nb_read(token)) {
                    ++memory_stalls;
                    cycles(1);
                }
                port.taken();
                ++busy;
                for (int i = 0; i < 2; ++i, ++at) {
                    if (at < header || ++plane < f.bits) continue;
                    plane = 0;
                    const sc_time before = sc_core::sc_time_stamp();
                    packets.write(Token());
                    if (++packet == packets_of_row(f)) {
                        packet = 0;
                        heads.write(Token());
                    }
                    held += sc_core::sc_time_stamp() - before;
                }
                if (at == words) at = 0;
                cycles(1);
            }
        }
    }

    std::vector<ReadPort*> ports_;
};

// multiply: a packet and two tokens every 64 / lanes cycles.
class Multiply : public Process {
public:
    SC_HAS_PROCESS(Multiply);
    Multiply(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Fifo& packets)
        : Process(name, board, engine), packets_(packets) {
        SC_THREAD(run);
    }

    Fifo partials{8};  // pairs of tokens

private:
    void run() {
        for (;;) {
            const Job& job = *jobs.read();
            const int last = packets_of_row(job.format) - 1;
            for (uint32_t row = 0; row < job.n_rows * job.n_chunks; ++row) {
                for (int packet = 0; packet <= last; ++packet) {
                    packets_.read();
                    for (uint32_t token = 0; token < job.n_tokens; token += 2) {
                        cycles(kPacket / engine_.lanes);
                        if (packet == last) partials.write(Token());
                    }
                }
            }
        }
    }

    Fifo& packets_;
};

// finish: a row and two tokens an iteration, with idle ones beside a single pair; results in the last chunk.
class Finish : public Process {
public:
    SC_HAS_PROCESS(Finish);
    Finish(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Fifo& heads, Fifo& partials)
        : Process(name, board, engine), heads_(heads), partials_(partials) {
        SC_THREAD(run);
    }

    Fifo sums{16};  // pairs of tokens

private:
    void run() {
        for (;;) {
            const Job& job = *jobs.read();
            const uint32_t n_slots = std::max<uint32_t>(job.token_pairs(), HETRUN_PYNQ_SUM_DISTANCE / HETRUN_PYNQ_TILE_ROWS);
            for (uint32_t row = 0; row < job.n_rows * job.n_chunks; ++row) {
                const bool last = row / kTileRows % job.n_chunks == job.n_chunks - 1;
                heads_.read();
                for (uint32_t slot = 0; slot < n_slots; ++slot) {
                    const bool is_there = slot < job.token_pairs();
                    if (is_there) partials_.read();
                    cycles(engine_.slot_cycles);
                    if (is_there && last) sums.write(Token());
                }
            }
        }
    }

    Fifo &heads_, &partials_;
};

// activate: a row and two tokens a cycle, or where gates meet them in two, which leave a pipeline later.
class Activate : public Process {
public:
    SC_HAS_PROCESS(Activate);
    Activate(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Fifo& sums)
        : Process(name, board, engine), sums_(sums) {
        SC_THREAD(run);
        SC_THREAD(leave);
    }

    Fifo outputs{HETRUN_PYNQ_OUTPUT_PAIRS};
    sc_core::sc_fifo<Token> stayed{1};  // all gates of a job are there

private:
    void run() {
        for (;;) {
            const Job& job = *jobs.read();
            for (uint32_t i = 0; i < job.n_rows * job.token_pairs(); ++i) {
                sums_.read();
                cycles(job.activates() ? 2 : 1);
                if (job.activates()) in_pipeline_.write(sc_core::sc_time_stamp() + static_cast<double>(engine_.activate_cycles) * clock_);
                else if (job.mode == HETRUN_PYNQ_MODE_WRITE) outputs.write(Token());
            }
            if (job.mode == HETRUN_PYNQ_MODE_GATE) stayed.write(Token());
        }
    }
    void leave() {
        for (;;) {
            until(in_pipeline_.read());
            outputs.write(Token());
        }
    }

    Fifo& sums_;
    sc_core::sc_fifo<sc_time> in_pipeline_{64};  // of two cycles each: no more than activate_cycles / 2 are on the way
};

// write: collects some rows, then sends those of a token, a word a cycle, or of codes in two after the divisions, and waits until they
// are in the memory; scales at the end.
class Write : public Process {
public:
    SC_HAS_PROCESS(Write);
    Write(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Memory& memory, Fifo& results)
        : Process(name, board, engine), memory_(memory), results_(results) {
        SC_THREAD(run);
    }

    sc_core::sc_fifo<Token> done{1};

private:
    void run() {
        for (;;) {
            const Job& job = *jobs.read();
            const uint32_t block = job.mode == HETRUN_PYNQ_MODE_CODES_256 ? 256 : HETRUN_PYNQ_WRITE_ROWS;
            for (uint32_t row = 0; row < job.n_rows; row += block) {
                const uint32_t n_rows = std::min<uint32_t>(block, job.n_rows - row);
                for (uint32_t i = 0; i < n_rows * job.token_pairs(); ++i) {
                    results_.read();
                    cycles(1);
                }
                if (job.is_coded()) cycles(engine_.divide_cycles + job.n_tokens);
                for (uint32_t token = 0; token < job.n_tokens; ++token) {
                    if (job.is_coded()) {
                        send(job.out + token * job.n_rows + row, n_rows / 4, 2);
                    } else {
                        send(job.out + (token * job.n_rows + row) * 4, n_rows, 1);
                    }
                }
            }
            for (uint32_t token = 0; token < job.n_tokens && job.is_coded(); ++token)
                send(job.out + (token + 1) * job.n_rows * 4, (job.n_rows + block - 1) / block, 1);
            done.write(Token());
        }
    }

    // Words in a row, bursts one after the other, and their answers.
    void send(uint32_t address, uint32_t n_words, uint32_t word_cycles) {
        uint32_t unanswered = 0;
        for (uint32_t i = 0; i < n_words; i += engine_.burst_words, ++unanswered) {
            const uint32_t n = std::min(engine_.burst_words, n_words - i);
            cycles(n * word_cycles);
            memory_.post({address + i * 4, n * 4, true, &replies_}, way_);
        }
        for (; unanswered; --unanswered) until(replies_.read() + way_);
    }

    Memory& memory_;
    Fifo& results_;
    sc_core::sc_fifo<sc_time> replies_{256};
};

// The engine's outer loop: fetch, load, run, for each descriptor of a ring.
class Engine : public Process {
public:
    SC_HAS_PROCESS(Engine);
    Engine(sc_core::sc_module_name name, const BoardTiming& board, const EngineTiming& engine, Memory& memory, std::vector<Job> ring)
        : Process(name, board, engine), memory_(memory), ring_(std::move(ring)), ports_(make_ports()),
          unpack_("unpack", board, engine, {ports_.begin(), ports_.end()}), multiply_("multiply", board, engine, unpack_.packets),
          finish_("finish", board, engine, unpack_.heads, multiply_.partials), activate_("activate", board, engine, finish_.sums),
          write_("write", board, engine, memory, activate_.outputs) {
        SC_THREAD(run);
    }
    ~Engine() override {
        for (ReadPort* port : ports_) delete port;
    }

    // Cycles of the whole ring; of them, those in which weights moved, and those in which the unpacker waited.
    uint64_t total() const { return (end_.value() + static_cast<uint64_t>(board_.clock_ps) - 1) / static_cast<uint64_t>(board_.clock_ps); }
    uint64_t busy() const { return unpack_.busy; }
    uint64_t memory_stalls() const { return unpack_.memory_stalls; }
    uint64_t lane_stalls() const { return unpack_.held.value() / static_cast<uint64_t>(board_.clock_ps); }

private:
    static constexpr uint32_t kInputsOutstanding = 16;  // what Vitis HLS gives a master by default

    std::vector<ReadPort*> make_ports() {
        std::vector<ReadPort*> ports;
        for (uint32_t i = 0; i < engine_.ports; ++i)
            ports.push_back(new ReadPort(("port" + std::to_string(i)).c_str(), board_, engine_, memory_, i));
        return ports;
    }

    // One loop over words in a row: bursts asked for ahead, a word a cycle.
    void read(uint32_t address, uint32_t n_words) {
        std::deque<uint32_t> lengths;
        for (uint32_t asked = 0, got = 0; got < n_words;) {
            while (asked < n_words && lengths.size() < kInputsOutstanding) {
                const uint32_t n = std::min(engine_.burst_words, n_words - asked);
                memory_.post({address + asked * 8, n * 8, false, &replies_}, way_);
                lengths.push_back(n);
                asked += n;
            }
            until(replies_.read() + way_);
            cycles(lengths.front());
            got += lengths.front();
            lengths.pop_front();
        }
    }

    void run() {
        for (const Job& job : ring_) {
            read(1u << 26, 8);
            cycles(engine_.fetch_cycles);
            const uint32_t columns = job.n_chunks * static_cast<uint32_t>(chunk_columns(job.format));
            const uint32_t n_scales = columns / (job.format.super ? 256 : 32);
            for (uint32_t token = 0; token < job.n_tokens; ++token) {
                read(job.codes + token * columns, columns / 8);
                read(job.scales + token * (n_scales + 1) / 2 * 8, (n_scales + 1) / 2);
            }
            for (ReadPort* port : ports_) port->jobs.write(&job);
            for (Process* process : {static_cast<Process*>(&unpack_), static_cast<Process*>(&multiply_), static_cast<Process*>(&finish_),
                                     static_cast<Process*>(&activate_)})
                process->jobs.write(&job);
            if (job.mode == HETRUN_PYNQ_MODE_GATE) {
                activate_.stayed.read();
            } else {
                write_.jobs.write(&job);
                write_.done.read();
            }
            cycles(engine_.pipeline_cycles);
        }
        end_ = sc_core::sc_time_stamp();
        sc_core::sc_stop();
    }

    Memory& memory_;
    const std::vector<Job> ring_;
    std::vector<ReadPort*> ports_;
    Unpack unpack_;
    Multiply multiply_;
    Finish finish_;
    Activate activate_;
    Write write_;
    sc_core::sc_fifo<sc_time> replies_{kInputsOutstanding};
    sc_time end_;
};

}  // namespace hetrun::pynq::model
