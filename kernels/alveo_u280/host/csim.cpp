// A card whose fabric is the engine's source, and whose memories are the caller's. The processes' steps run one after the other; the
// kernels of lanes share threads.
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../hls/attend.h"
#include "../hls/fetch.h"
#include "../hls/kernel.h"
#include "../hls/reader.h"
#include "../hls/vector.h"
#include "fabric/host/helpers.h"
#include "hetrun_alveo_u280.h"

namespace hetrun::u280 {
namespace {

// Beats of a channel as its reader would send them.
class ChannelBeats {
public:
    const Beat* memory = nullptr;

    void add(uint32_t beat, uint32_t n) { runs_.push_back({beat, n}); }
    const Beat& read() {
        Run& run = runs_[next_];
        const Beat& beat = memory[run.beat++];
        if (--run.n == 0 && ++next_ == runs_.size()) clear();
        return beat;
    }
    void clear() {
        runs_.clear();
        next_ = 0;
    }

private:
    struct Run {
        uint32_t beat, n;
    };
    std::vector<Run> runs_;
    size_t next_ = 0;
};

// What a stream would hold.
template <class T>
class Queue {
public:
    void write(const T& value) { values_.push_back(value); }
    T read() {
        const T value = values_[next_++];
        if (next_ == values_.size()) {
            values_.clear();
            next_ = 0;
        }
        return value;
    }
    bool empty() const { return values_.empty(); }

private:
    std::vector<T> values_;
    size_t next_ = 0;
};

class Array;

// Of a kernel. Who reads what is not there yet makes the array run.
class Results {
public:
    Array* array = nullptr;

    void write(const Beat& beat) { beats_.write(beat); }
    Beat read();
    bool empty() const { return beats_.empty(); }

private:
    Queue<Beat> beats_;
};

// A kernel of lanes: its processes, one after the other.
struct Kernel {
    std::unique_ptr<Lanes> lanes[kLaneChannels];
    Shares shares{};
    Queue<Beat> commands[kLaneChannels], results[kLaneChannels];
    Queue<Turn> turns;

    Kernel() {
        for (auto& each : lanes) each.reset(new Lanes);  // its state is written before it is read
    }
    // Until there are results: the beats of a command behind them may not be there yet.
    void run(Queue<Beat>& from, ChannelBeats* beats, Results& to) {
        while (!from.empty() && to.empty()) {
            distribute_step(shares, from, commands, turns);
            for (uint32_t c = 0; c < kLaneChannels; ++c) {
                while (!commands[c].empty()) channel_step(*lanes[c], commands[c], beats[c], results[c]);
            }
            while (!turns.empty()) collect_step(turns, results, to);
        }
    }
};

class Array {
public:
    ChannelBeats beats[kChannels];
    Queue<Beat> commands[kLaneKernels];
    Results results[kLaneKernels];

    explicit Array(uint32_t threads) {
        for (Results& each : results) each.array = this;
        if (threads > 1) helpers_ = std::make_unique<Helpers>(threads - 1);
    }
    void run() {
        const auto job = [](void* array, uint32_t kernel) { static_cast<Array*>(array)->run(kernel); };
        if (helpers_) return helpers_->share(job, this, kLaneKernels);
        for (uint32_t kernel = 0; kernel < kLaneKernels; ++kernel) job(this, kernel);
    }

private:
    void run(uint32_t kernel) { kernels_[kernel].run(commands[kernel], beats + kernel * kLaneChannels, results[kernel]); }

    Kernel kernels_[kLaneKernels];
    std::unique_ptr<Helpers> helpers_;
};

Beat Results::read() {
    if (beats_.empty()) array->run();
    return beats_.read();
}

// Writes of the pass into channels.
struct Writes {
    Beat* const* channels;

    void write(const HbmWrite& write) const { channels[write.channel][write.beat] = write.data; }
};

}  // namespace
}  // namespace hetrun::u280

using namespace hetrun::u280;

struct hetrun_u280_card {
    Beat* channels[kChannels];
    Beat* ddr;
    Limits limits;
    Array array;
    std::unique_ptr<Vector> vector;

    hetrun_u280_card(uint8_t* const* memories, uint64_t channel_bytes, uint8_t* ddr_bytes, uint64_t n_ddr_bytes, uint32_t threads)
        : ddr(reinterpret_cast<Beat*>(ddr_bytes)),
          limits{channel_bytes / HETRUN_U280_BEAT_BYTES, n_ddr_bytes / HETRUN_U280_BEAT_BYTES},
          array(threads),
          vector(new Vector()) {
        vector->lanes_know = false;
        for (uint32_t c = 0; c < kChannels; ++c) {
            channels[c] = reinterpret_cast<Beat*>(memories[c]);
            array.beats[c].memory = channels[c];
        }
    }

    Report run(const Launch& launch) {
        uint64_t weight_beats = 0, kv_beats = 0;
        Writes writes{channels};
        const auto emit = [&](const Order& order, const Beat*) {
            uint64_t& counted = order.instruction.op == HETRUN_U280_OP_ATTEND ? kv_beats : weight_beats;
            for (uint32_t c = 0; c < kChannels; ++c) {
                route(order, c, [&](uint32_t beat, uint32_t n) {
                    array.beats[c].add(beat, n);
                    counted += n;
                });
            }
            vector_step(order, *vector, ddr, array.commands, array.results, writes);
        };
        Report report = fetch(ddr, launch, limits, [](const Pass&) {}, emit, [] {});
        // Activations that no matmul asked for.
        array.run();
        report.weight_beats = weight_beats;
        report.kv_beats = kv_beats;
        return report;
    }
};

hetrun_u280_card* hetrun_u280_card_create(uint8_t* const channels[32], uint64_t channel_bytes, uint8_t* ddr, uint64_t ddr_bytes,
                                          uint32_t threads) {
    try {
        return new hetrun_u280_card(channels, channel_bytes, ddr, ddr_bytes, threads);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void hetrun_u280_card_destroy(hetrun_u280_card* card) { delete card; }

void hetrun_u280_card_run(hetrun_u280_card* card, const int32_t* args) {
    const Launch launch{args[HETRUN_U280_ARG_VERSION],  args[HETRUN_U280_ARG_PROGRAM], args[HETRUN_U280_ARG_ROWS],
                        args[HETRUN_U280_ARG_N_TOKENS], args[HETRUN_U280_ARG_TOKEN],   args[HETRUN_U280_ARG_POSITION],
                        args[HETRUN_U280_ARG_SLOT],     args[HETRUN_U280_ARG_OUTPUT],  args[HETRUN_U280_ARG_REPORT]};
    if (bits_of(launch.report) >= card->limits.ddr) return;
    const Report report = card->run(launch);
    std::memcpy(card->ddr + bits_of(launch.report), &report, sizeof report);
}
