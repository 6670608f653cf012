// A kernel of lanes, for Vitis: it has no control of its own, and starts anew when a launch has ended.
#include "attend.h"
#include "processes.h"

extern "C" void hetrun_u280_lanes(hetrun::u280::CommandStream& commands, hetrun::u280::BeatStream beats[hetrun::u280::kLaneChannels],
                                  hetrun::u280::ResultStream& results) {
#pragma HLS INTERFACE ap_ctrl_none port = return
#pragma HLS INTERFACE axis port = commands
#pragma HLS INTERFACE axis port = beats
#pragma HLS INTERFACE axis port = results
#pragma HLS ARRAY_PARTITION variable = beats complete
    using namespace hetrun::u280;
    static Lanes lanes;
#pragma HLS ARRAY_PARTITION variable = lanes.codes complete dim = 2
#pragma HLS ARRAY_PARTITION variable = lanes.codes cyclic factor = 64 dim = 3
#pragma HLS ARRAY_PARTITION variable = lanes.attention complete
    while (lanes_step(lanes, commands, beats, results)) {
    }
}
