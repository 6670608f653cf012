// The controller, for Vitis: fetch, readers, vector and writer, which have all the ports to memory. Its lanes are kernels of their own
// (lanes.cpp), linked by streams.
//
// Vitis HLS wants of this source: of a port to memory one process that reads it and one that writes it.
#include "processes.h"

// X(channel) for all.
#define HETRUN_U280_EACH_CHANNEL(X)                                                                                                 \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) \
    X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define HETRUN_U280_PRAGMA(...) _Pragma(#__VA_ARGS__)

namespace hetrun::u280 {
namespace {

#define HETRUN_U280_CHANNEL(c) Beat* channel##c,
void write_channels(HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL) WriteStream& writes, DoneStream& done) {
#undef HETRUN_U280_CHANNEL
    writer(writes, done, [&](const HbmWrite& write) {
        switch (write.channel) {
#define HETRUN_U280_CHANNEL(c) \
    case c: channel##c[write.beat] = write.data; return;
            HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL)
#undef HETRUN_U280_CHANNEL
            default: return;
        }
    });
}

}  // namespace
}  // namespace hetrun::u280

#define HETRUN_U280_CHANNEL(c) hetrun::u280::Beat* channel##c,
extern "C" void hetrun_u280_controller(HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL) const hetrun::u280::Beat* ddr, int32_t version, int32_t program,
                                       int32_t rows, int32_t n_tokens, int32_t token, int32_t position, int32_t slot, int32_t output, int32_t report,
                                       hetrun::u280::Beat* ddr_vector, hetrun::u280::BeatStream beats[hetrun::u280::kChannels],
                                       hetrun::u280::CommandStream commands[hetrun::u280::kLaneKernels],
                                       hetrun::u280::ResultStream results[hetrun::u280::kLaneKernels]) {
#undef HETRUN_U280_CHANNEL
#define HETRUN_U280_CHANNEL(c)                                                                                                            \
    HETRUN_U280_PRAGMA(HLS INTERFACE m_axi port = channel##c bundle = hbm##c offset = slave max_read_burst_length = HETRUN_U280_BURST_BEATS \
                       num_read_outstanding = HETRUN_U280_OUTSTANDING)
    HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL)
#undef HETRUN_U280_CHANNEL
#pragma HLS INTERFACE m_axi port = ddr bundle = ddr0 offset = slave
#pragma HLS INTERFACE m_axi port = ddr_vector bundle = ddr1 offset = slave max_read_burst_length = 64 max_write_burst_length = 64
#pragma HLS INTERFACE axis port = beats
#pragma HLS INTERFACE axis port = commands
#pragma HLS INTERFACE axis port = results
#pragma HLS ARRAY_PARTITION variable = beats complete
#pragma HLS ARRAY_PARTITION variable = commands complete
#pragma HLS ARRAY_PARTITION variable = results complete
    using namespace hetrun::u280;
    static Vector vector;
    // Words of 64 floats: 32 banks of pairs, two accesses a cycle each.
#pragma HLS AGGREGATE variable = vector.memory compact = bit
#pragma HLS ARRAY_PARTITION variable = vector.memory complete dim = 3
#pragma HLS BIND_STORAGE variable = vector.memory type = ram_t2p impl = uram
#pragma HLS AGGREGATE variable = vector.constants compact = bit
#pragma HLS ARRAY_PARTITION variable = vector.constants complete dim = 2
#pragma HLS BIND_STORAGE variable = vector.constants type = ram_2p impl = bram
#pragma HLS AGGREGATE variable = vector.attending.heads compact = bit
#pragma HLS ARRAY_PARTITION variable = vector.attending.heads complete dim = 2
#pragma HLS BIND_STORAGE variable = vector.attending.heads type = ram_t2p impl = bram
    // Attention: what the kernels of lanes are told side by side is apart.
#pragma HLS ARRAY_PARTITION variable = vector.attending.own.word block factor = 8 dim = 4
#pragma HLS ARRAY_PARTITION variable = vector.attending.own.codes block factor = 8 dim = 4
#pragma HLS BIND_STORAGE variable = vector.attending.own.codes type = ram_2p impl = bram
#pragma HLS ARRAY_PARTITION variable = vector.attending.own.scales block factor = 8 dim = 4
#pragma HLS BIND_STORAGE variable = vector.attending.own.scales type = ram_2p impl = bram
#pragma HLS ARRAY_PARTITION variable = vector.attending.queries.beats complete dim = 1
#pragma HLS BIND_STORAGE variable = vector.attending.queries.beats type = ram_t2p impl = bram
#pragma HLS ARRAY_PARTITION variable = vector.attending.units complete dim = 0
#pragma HLS ARRAY_PARTITION variable = vector.attending.largest complete dim = 1
#pragma HLS ARRAY_PARTITION variable = vector.attending.inverse complete dim = 1
#pragma HLS BIND_STORAGE variable = vector.attending.largest type = ram_s2p impl = lutram
#pragma HLS BIND_STORAGE variable = vector.attending.inverse type = ram_s2p impl = lutram
#pragma HLS ARRAY_PARTITION variable = vector.attending.partial complete dim = 3
#pragma HLS ARRAY_PARTITION variable = vector.attending.partial block factor = 8 dim = 1
#pragma HLS ARRAY_PARTITION variable = vector.attending.partial cyclic factor = 5 dim = 2
#pragma HLS ARRAY_PARTITION variable = vector.attending.sums complete dim = 2
#pragma HLS ARRAY_RESHAPE variable = vector.attending.sums complete dim = 3
#pragma HLS BIND_STORAGE variable = vector.attending.sums type = ram_2p impl = bram
    OrderStream orders[kChannels + 1];
#pragma HLS ARRAY_PARTITION variable = orders complete
    // 256 KiB of a reader, which it fills ahead: eight URAMs side by side.
    FifoStream fifos[kChannels];
#pragma HLS ARRAY_PARTITION variable = fifos complete
#pragma HLS BIND_STORAGE variable = fifos type = fifo impl = uram
    RunStream runs[kChannels];
#pragma HLS ARRAY_PARTITION variable = runs complete
#pragma HLS BIND_STORAGE variable = runs type = fifo impl = bram
    WriteStream writes;
    DoneStream done;
    constexpr Limits limits{HETRUN_U280_CHANNEL_BYTES / HETRUN_U280_BEAT_BYTES, HETRUN_U280_DDR_BYTES / HETRUN_U280_BEAT_BYTES};
    const Launch launch{version, program, rows, n_tokens, token, position, slot, output, report};
#pragma HLS DATAFLOW
    fetcher(ddr, launch, limits, orders[0], done);
#define HETRUN_U280_CHANNEL(c)                                              \
    reader(channel##c, c, orders[c], orders[c + 1], runs[c], fifos[c]); \
    pass_beats(runs[c], fifos[c], beats[c]);
    HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL)
#undef HETRUN_U280_CHANNEL
    vector_process(vector, ddr_vector, static_cast<uint32_t>(report), orders[kChannels], commands, results, writes);
#define HETRUN_U280_CHANNEL(c) channel##c,
    write_channels(HETRUN_U280_EACH_CHANNEL(HETRUN_U280_CHANNEL) writes, done);
#undef HETRUN_U280_CHANNEL
}
