// A kernel of lanes, for Vitis: it has no control of its own, and starts anew when a launch has ended. Each of its channels is a process,
// with activations and attention of its own.
#include "processes.h"

extern "C" void hetrun_u280_lanes(hetrun::u280::CommandStream& commands, hetrun::u280::BeatStream beats[hetrun::u280::kLaneChannels],
                                  hetrun::u280::ResultStream& results) {
#pragma HLS INTERFACE ap_ctrl_none port = return
#pragma HLS INTERFACE axis port = commands
#pragma HLS INTERFACE axis port = beats
#pragma HLS INTERFACE axis port = results
#pragma HLS ARRAY_PARTITION variable = beats complete
    using namespace hetrun::u280;
    static Lanes lanes[kLaneChannels];
#pragma HLS ARRAY_PARTITION variable = lanes complete
    CommandStream to[kLaneChannels];
#pragma HLS ARRAY_PARTITION variable = to complete
    ResultStream from[kLaneChannels];
#pragma HLS ARRAY_PARTITION variable = from complete
    TurnStream turns;
#pragma HLS DATAFLOW
    distribute(commands, to, turns);
    channel(lanes[0], to[0], beats[0], from[0]);
    channel(lanes[1], to[1], beats[1], from[1]);
    channel(lanes[2], to[2], beats[2], from[2]);
    channel(lanes[3], to[3], beats[3], from[3]);
    collect(turns, from, results);
}
