// The loops of the controller's processes, and the streams between them.
//
// What fetch sends passes through all readers on its way to vector, so that no wire fans out: of each pass a beat with the number of its
// rows, the first of them and whether another pass follows, and two beats of rows; then the two beats of each instruction, to END. A pass of
// no rows ends the launch: behind its number stands what the Report says, to which each reader has added its beats.
#pragma once

#include "attend.h"
#include "fetch.h"
#include "flow.h"
#include "kernel.h"
#include "reader.h"
#include "vector.h"

namespace hetrun::u280 {

#ifdef __SYNTHESIS__
#define HETRUN_U280_STREAM(type, element, depth, name) using type = hls::stream<element, depth>
#else
#define HETRUN_U280_STREAM(type, element, depth, name)                        \
    struct type : hls::stream<element, depth> {                               \
        type() : hls::stream<element, depth>(name) {}                         \
    }
#endif

HETRUN_U280_STREAM(FifoStream, Beat, HETRUN_U280_FIFO_BEATS, "FIFO");   // of a reader, within the controller
HETRUN_U280_STREAM(RunStream, uint32_t, 1024, "RUNS");                  // how many of them come next; 0: no more
HETRUN_U280_STREAM(BeatStream, Beat, 32, "BEATS");                      // of a reader to its lanes
HETRUN_U280_STREAM(CommandStream, Beat, 32, "COMMANDS");                // to a kernel of lanes
HETRUN_U280_STREAM(ResultStream, Beat, 32, "RESULTS");                  // of it
HETRUN_U280_STREAM(OrderStream, Beat, 16, "ORDERS");                    // of fetch, of a reader
HETRUN_U280_STREAM(WriteStream, HbmWrite, 64, "WRITES");
HETRUN_U280_STREAM(DoneStream, uint8_t, 2, "DONE");                     // passes whose writes have arrived

HETRUN_U280_STREAM(TurnStream, Turn, 128, "TURNS");                     // within a kernel

constexpr uint32_t kRowBeats = kTokens * sizeof(Row) / HETRUN_U280_BEAT_BYTES;
// Words of the last pass.
constexpr uint32_t kEndStatus = 1, kEndInstruction = 2, kEndPasses = 3, kEndWeightBeats = 4, kEndKvBeats = 6;

inline uint64_t long_of(const Beat& beat, uint32_t i) { return word_of(beat, i) | uint64_t{word_of(beat, i + 1)} << 32; }
inline void set_long(Beat& beat, uint32_t i, uint64_t value) {
    set_word(beat, i, static_cast<uint32_t>(value));
    set_word(beat, i + 1, static_cast<uint32_t>(value >> 32));
}

inline void fetcher(const Beat* ddr, const Launch& launch, const Limits& limits, OrderStream& orders, DoneStream& done) {
    const auto begin = [&](const Pass& pass) {
        Beat head{};
        set_word(head, 0, pass.n_rows);
        set_word(head, 1, pass.first);
        set_word(head, 2, pass.followed);
        orders.write(head);
        for (uint32_t b = 0; b < kRowBeats; ++b) {
            Beat beat{};
            for (uint32_t k = 0; k < kFloats / 4; ++k) {
                const Row& row = pass.row[b * (kFloats / 4) + k];
                const int32_t words[4] = {row.token, row.position, row.slot, row.output};
                for (uint32_t w = 0; w < 4; ++w) set_word(beat, 4 * k + w, static_cast<uint32_t>(words[w]));
            }
            orders.write(beat);
        }
    };
    const auto emit = [&](const Order&, const Beat* beats) {
        orders.write(beats[0]);
        orders.write(beats[1]);
    };
    const Report report = fetch(ddr, launch, limits, begin, emit, [&] { done.read(); });
    Beat end{};
    set_word(end, kEndStatus, report.status);
    set_word(end, kEndInstruction, report.instruction);
    set_word(end, kEndPasses, report.n_passes);
    orders.write(end);
}

// Takes orders to the end: step(order) for each instruction, with all beats given to pass_on as they come. Returns the last pass.
template <class PassOn, class Step>
Beat follow(OrderStream& orders, PassOn pass_on, Step step) {
    for (;;) {
        const Beat head = orders.read();
        const uint32_t n_rows = word_of(head, 0);
        if (n_rows == 0) return head;
        pass_on(head);
        Row rows[kTokens];
        for (uint32_t b = 0; b < kRowBeats; ++b) {
            const Beat beat = orders.read();
            pass_on(beat);
            for (uint32_t k = 0; k < kFloats / 4; ++k) rows[b * (kFloats / 4) + k] = row_of(beat, k);
        }
        Order order{};
        order.pass = pass_of(rows, n_rows, word_of(head, 1), word_of(head, 2));
        do {
            const Beat first = orders.read(), second = orders.read();
            pass_on(first);
            pass_on(second);
            order.instruction = instruction_of(first, second);
            step(order);
        } while (order.instruction.op != HETRUN_U280_OP_END);
    }
}

// An instruction goes on before its beats are read: who is behind never waits for this channel's memory.
inline void reader(const Beat* memory, uint32_t channel, OrderStream& orders, OrderStream& next, RunStream& runs, FifoStream& fifo) {
    uint64_t weight_beats = 0, kv_beats = 0;
    Beat end = follow(orders, [&](const Beat& beat) { next.write(beat); }, [&](const Order& order) {
        route(order, channel, [&](uint32_t from, uint32_t n) {
            runs.write(n);
            for (uint32_t i = 0; i < n; ++i) {
                HETRUN_FABRIC_PIPELINE(1);
                fifo.write(memory[from + i]);
            }
            if (order.instruction.op == HETRUN_U280_OP_ATTEND) {
                kv_beats += n;
            } else {
                weight_beats += n;
            }
        });
    });
    set_long(end, kEndWeightBeats, long_of(end, kEndWeightBeats) + weight_beats);
    set_long(end, kEndKvBeats, long_of(end, kEndKvBeats) + kv_beats);
    next.write(end);
    runs.write(0);
}

// From the FIFO that a reader fills ahead to its lanes.
inline void pass_beats(RunStream& runs, FifoStream& fifo, BeatStream& beats) {
    for (uint32_t n = runs.read(); n != 0; n = runs.read()) {
        for (uint32_t i = 0; i < n; ++i) {
            HETRUN_FABRIC_PIPELINE(1);
            beats.write(fifo.read());
        }
    }
}

// report: its beat of the DDR.
inline void vector_process(Vector& vector, Beat* ddr, uint32_t report, OrderStream& orders, CommandStream* commands, ResultStream* results, WriteStream& writes) {
    vector.lanes_know = false;
    const Beat end = follow(orders, [](const Beat&) {}, [&](const Order& order) {
        vector_step(order, vector, ddr, commands, results, writes);
        if (order.instruction.op == HETRUN_U280_OP_END && order.pass.followed != 0) writes.write({kPassDone, 0, {}});
    });
    writes.write({kLaunchDone, 0, {}});
    send_all(commands, Beat{});  // kCommandEnd
    Beat out{};
    set_word(out, 0, HETRUN_U280_VERSION);
    for (uint32_t i = kEndStatus; i <= kEndPasses; ++i) set_word(out, i, word_of(end, i));
    set_long(out, 6, long_of(end, kEndWeightBeats));  // behind the cycles, which nobody counts here
    set_long(out, 8, long_of(end, kEndKvBeats));
    ddr[report] = out;
}

// put(write) puts a beat into its channel.
template <class Put>
void writer(WriteStream& writes, DoneStream& done, Put put) {
    for (;;) {
        const HbmWrite write = writes.read();
        if (write.channel == kLaunchDone) return;
        if (write.channel == kPassDone) {
            done.write(1);
        } else {
            put(write);
        }
    }
}

// The processes of a kernel of lanes.
inline void distribute(CommandStream& commands, CommandStream* out, TurnStream& turns) {
    Shares shares{};
    while (distribute_step(shares, commands, out, turns)) {
    }
}
inline void channel(Lanes& lanes, CommandStream& commands, BeatStream& beats, ResultStream& results) {
    while (channel_step(lanes, commands, beats, results)) {
    }
}
inline void collect(TurnStream& turns, ResultStream* in, ResultStream& results) {
    while (collect_step(turns, in, results)) {
    }
}

}  // namespace hetrun::u280
