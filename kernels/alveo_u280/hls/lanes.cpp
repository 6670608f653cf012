// A kernel of lanes, for Vitis: it has no control of its own, and starts anew when a launch has ended. Each of its channels is a process,
// with activations and attention of its own.
#include "processes.h"

#define HETRUN_U280_PRAGMA(...) _Pragma(#__VA_ARGS__)
// Of a channel. Codes: 64 columns of two tokens a cycle, in RAM of the kind that is left. Scores: 8 URAMs, a read and a write a cycle.
#define HETRUN_U280_STORAGE(lanes, of_codes)                                                          \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.codes complete dim = 2)                   \
    HETRUN_U280_PRAGMA(HLS ARRAY_RESHAPE variable = lanes.codes cyclic factor = 64 dim = 3)           \
    HETRUN_U280_PRAGMA(HLS BIND_STORAGE variable = lanes.codes type = ram_s2p impl = of_codes)        \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.exponents cyclic factor = 2 dim = 1)      \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.exponents cyclic factor = 2 dim = 2)      \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.sums cyclic factor = 2 dim = 1)           \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.sums cyclic factor = 2 dim = 2)           \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.scales complete)                          \
    HETRUN_U280_PRAGMA(HLS ARRAY_PARTITION variable = lanes.attention.scores complete dim = 1)        \
    HETRUN_U280_PRAGMA(HLS ARRAY_RESHAPE variable = lanes.attention.scores cyclic factor = 2 dim = 2) \
    HETRUN_U280_PRAGMA(HLS BIND_STORAGE variable = lanes.attention.scores type = ram_t2p impl = uram) \
    HETRUN_U280_PRAGMA(HLS ARRAY_RESHAPE variable = lanes.attention.query complete dim = 3)           \
    HETRUN_U280_PRAGMA(HLS BIND_STORAGE variable = lanes.attention.query type = ram_s2p impl = lutram) \
    HETRUN_U280_PRAGMA(HLS ARRAY_RESHAPE variable = lanes.attention.sums complete dim = 3)            \
    HETRUN_U280_PRAGMA(HLS BIND_STORAGE variable = lanes.attention.sums type = ram_s2p impl = lutram)

extern "C" void hetrun_u280_lanes(hetrun::u280::CommandStream& commands, hetrun::u280::BeatStream beats[hetrun::u280::kLaneChannels],
                                  hetrun::u280::ResultStream& results) {
#pragma HLS INTERFACE ap_ctrl_none port = return
#pragma HLS INTERFACE axis port = commands
#pragma HLS INTERFACE axis port = beats
#pragma HLS INTERFACE axis port = results
#pragma HLS ARRAY_PARTITION variable = beats complete
    using namespace hetrun::u280;
    static Lanes lanes0, lanes1, lanes2, lanes3;
    HETRUN_U280_STORAGE(lanes0, uram)  // so that both kinds of memory are used: of each four channels one
    HETRUN_U280_STORAGE(lanes1, bram)
    HETRUN_U280_STORAGE(lanes2, bram)
    HETRUN_U280_STORAGE(lanes3, bram)
    CommandStream to[kLaneChannels];
#pragma HLS ARRAY_PARTITION variable = to complete
    ResultStream from[kLaneChannels];
#pragma HLS ARRAY_PARTITION variable = from complete
    TurnStream turns;
#pragma HLS DATAFLOW
    distribute(commands, to, turns);
    channel(lanes0, to[0], beats[0], from[0]);
    channel(lanes1, to[1], beats[1], from[1]);
    channel(lanes2, to[2], beats[2], from[2]);
    channel(lanes3, to[3], beats[3], from[3]);
    collect(turns, from, results);
}
