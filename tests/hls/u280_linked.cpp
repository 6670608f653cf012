// A card whose processes run beside one another, linked by streams: what hetrun_alveo_u280.h says of a card, for tests.
//
// A thread is a process; with __SYNTHESIS__ the controller is one, as Vitis would have it, and nobody bounds the memories.
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "../../kernels/alveo_u280/hls/processes.h"
#include "hetrun_alveo_u280.h"

using namespace hetrun::u280;

#ifdef HETRUN_FABRIC_COUNT
// Of the last launch: what the loops of vector have taken, and those of each channel's lanes.
uint64_t counted[1 + kChannels];
extern "C" uint64_t hetrun_u280_counted(uint32_t process) { return counted[process]; }
#define COUNTED(process) counted[process] = pipeline_cycles()
#else
#define COUNTED(process) static_cast<void>(process)
#endif

struct hetrun_u280_card {
    Beat* channels[kChannels];
    Beat* ddr;
    Limits limits;
};

namespace {

struct Links {
    BeatStream beats[kChannels];
    CommandStream commands[kLaneKernels], to[kChannels];
    ResultStream results[kLaneKernels], from[kChannels];
    TurnStream turns[kLaneKernels];
    std::unique_ptr<Lanes> lanes[kChannels];

    // The processes of all kernels of lanes.
    std::vector<std::function<void()>> processes() {
        std::vector<std::function<void()>> all;
        for (uint32_t k = 0; k < kLaneKernels; ++k) {
            all.push_back([this, k] { distribute(commands[k], to + k * kLaneChannels, turns[k]); });
            all.push_back([this, k] { collect(turns[k], from + k * kLaneChannels, results[k]); });
        }
        for (uint32_t c = 0; c < kChannels; ++c) {
            lanes[c].reset(new Lanes);
            all.push_back([this, c] {
                channel(*lanes[c], to[c], beats[c], from[c]);
                COUNTED(1 + c);
            });
        }
        return all;
    }
};

#ifdef __SYNTHESIS__

extern "C" void hetrun_u280_controller(Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*,
                                       Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*, Beat*,
                                       Beat*, Beat*, const Beat*, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t,
                                       Beat*, BeatStream*, CommandStream*, ResultStream*);

void run(hetrun_u280_card& card, const Launch& l) {
    auto links = std::make_unique<Links>();
    std::vector<std::thread> kernels;
    for (const auto& process : links->processes()) kernels.emplace_back(process);
    Beat* const* c = card.channels;
    hetrun_u280_controller(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15], c[16], c[17],
                           c[18], c[19], c[20], c[21], c[22], c[23], c[24], c[25], c[26], c[27], c[28], c[29], c[30], c[31], card.ddr, l.version,
                           l.program, l.rows, l.n_tokens, l.token, l.position, l.slot, l.output, l.report, card.ddr, links->beats,
                           links->commands, links->results);
    for (std::thread& kernel : kernels) kernel.join();
}

#else

void run(hetrun_u280_card& card, const Launch& launch) {
    auto links = std::make_unique<Links>();
    auto vector = std::make_unique<Vector>();
    OrderStream orders[kChannels + 1];
    FifoStream fifos[kChannels];
    RunStream runs[kChannels];
    WriteStream writes;
    DoneStream done;
    std::vector<std::function<void()>> processes = links->processes();
    processes.push_back([&] { fetcher(card.ddr, launch, card.limits, orders[0], done); });
    for (uint32_t c = 0; c < kChannels; ++c) {
        processes.push_back([&, c] { reader(card.channels[c], c, orders[c], orders[c + 1], runs[c], fifos[c]); });
        processes.push_back([&, c] { pass_beats(runs[c], fifos[c], links->beats[c]); });
    }
    processes.push_back([&] {
        vector_process(*vector, card.ddr, bits_of(launch.report), orders[kChannels], links->commands, links->results, writes);
        COUNTED(0);
    });
    processes.push_back([&] {
        writer(writes, done, [&](const HbmWrite& write) { card.channels[write.channel][write.beat] = write.data; });
    });
    hls::dataflow(processes);
}

#endif

}  // namespace

hetrun_u280_card* hetrun_u280_card_create(uint8_t* const channels[32], uint64_t channel_bytes, uint8_t* ddr, uint64_t ddr_bytes, uint32_t) {
    auto* card = new hetrun_u280_card{{}, reinterpret_cast<Beat*>(ddr), {channel_bytes / sizeof(Beat), ddr_bytes / sizeof(Beat)}};
    for (uint32_t c = 0; c < kChannels; ++c) card->channels[c] = reinterpret_cast<Beat*>(channels[c]);
    return card;
}

void hetrun_u280_card_destroy(hetrun_u280_card* card) { delete card; }

void hetrun_u280_card_run(hetrun_u280_card* card, const int32_t* args) {
    run(*card, {args[HETRUN_U280_ARG_VERSION], args[HETRUN_U280_ARG_PROGRAM], args[HETRUN_U280_ARG_ROWS], args[HETRUN_U280_ARG_N_TOKENS],
                args[HETRUN_U280_ARG_TOKEN], args[HETRUN_U280_ARG_POSITION], args[HETRUN_U280_ARG_SLOT], args[HETRUN_U280_ARG_OUTPUT],
                args[HETRUN_U280_ARG_REPORT]});
}
