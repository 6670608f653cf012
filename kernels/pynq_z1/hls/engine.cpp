// The engine: two masters read tiles of weights, which are unpacked, multiplied and summed as they arrive.
//
//   memory --HP0--> read_port --+
//                               +--> unpack --> multiply --> finish --> activate --> write --> memory
//   memory --HP2--> read_port --+   (planes)   (integers)   (floats)
//
// Activations of the descriptor wait in block RAM, as gates do that the next descriptor's results meet. Weights are used once and
// never stored. The processes are in weights.h, multiply.h, finish.h and write.h.
//
// Vitis HLS wants of this source: of an array one process that reads or writes it, of a stream one place in the loop that does,
// arrays split by whole dimensions, and nothing but scalars, streams and arrays between processes.
#include "engine.h"

#include "descriptor.h"
#include "fabric/types.h"
#include "finish.h"
#include "flow.h"
#include "load.h"
#include "master.h"
#include "multiply.h"
#include "weights.h"
#include "write.h"
#ifdef HETRUN_PYNQ_FAST
#include HETRUN_PYNQ_FAST  // host/fast.h
#endif

namespace hetrun::pynq {
namespace {

void run(ReadMaster weights0, ReadMaster weights1, uint32_t* results, uint32_t weights_word, uint32_t n_pairs, uint32_t format,
         uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens, uint32_t mode, uint32_t gate_row, uint32_t out, uint32_t out_stride,
         uint32_t out_rows, uint32_t out_scales, uint32_t out_scale_stride, const Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket],
         const Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket], const float scales[kTokenPairs][2][kMaxPackets][2],
         float gates[kTokenPairs][2][kMaxRows], uint32_t& busy, uint32_t& stalls) {
    PairStream port0("PORT0"), port1("PORT1");
    Stream<Packet, 4> packets("PACKETS");
    Stream<Head, 4> heads("HEADS");
    Stream<PartialPair, 8> partials("PARTIALS");
    Stream<ResultPair, 16> sums("SUMS");
    OutputStream outputs("OUTPUTS");
    HETRUN_FABRIC_DATAFLOW(read_port<0>(weights0, weights_word, n_pairs, port0), read_port<1>(weights1, weights_word, n_pairs, port1),
                         unpack(format, n_pairs, port0, port1, packets, heads, busy, stalls),
                         multiply(format, n_rows, n_chunks, n_tokens, codes, code_sums, packets, partials),
                         finish(format, n_rows, n_chunks, n_tokens, scales, heads, partials, sums),
                         activate(mode, gate_row, n_rows, n_tokens, gates, sums, outputs),
                         write(mode, n_rows, n_tokens, out, out_stride, out_rows, out_scales, out_scale_stride, outputs, results))
}

}  // namespace
}  // namespace hetrun::pynq

extern "C" void hetrun_pynq_engine(hetrun::pynq::Weights weights0, hetrun::pynq::Weights weights1, const uint64_t* inputs,
                                   uint32_t* results, uint32_t ring, uint32_t count, uint32_t* version, uint32_t* config,
                                   uint32_t* status, uint32_t* done, uint32_t* busy_cycles, uint32_t* stall_cycles) {
#pragma HLS INTERFACE m_axi port = weights0 bundle = hp0 offset = off max_read_burst_length = 16 num_read_outstanding = HETRUN_PYNQ_OUTSTANDING
#pragma HLS INTERFACE m_axi port = weights1 bundle = hp2 offset = off max_read_burst_length = 16 num_read_outstanding = HETRUN_PYNQ_OUTSTANDING
#pragma HLS INTERFACE m_axi port = inputs bundle = hp1 offset = off max_read_burst_length = 16
#pragma HLS INTERFACE m_axi port = results bundle = hp3 offset = off max_write_burst_length = 16
#pragma HLS INTERFACE s_axilite port = ring
#pragma HLS INTERFACE s_axilite port = count
#pragma HLS INTERFACE s_axilite port = version
#pragma HLS INTERFACE s_axilite port = config
#pragma HLS INTERFACE s_axilite port = status
#pragma HLS INTERFACE s_axilite port = done
#pragma HLS INTERFACE s_axilite port = busy_cycles
#pragma HLS INTERFACE s_axilite port = stall_cycles
#pragma HLS INTERFACE s_axilite port = return
    using namespace hetrun::pynq;
    static Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket];
#pragma HLS ARRAY_PARTITION variable = codes complete dim = 2
#pragma HLS ARRAY_PARTITION variable = codes complete dim = 4
#pragma HLS BIND_STORAGE variable = codes type = ram_2p impl = bram
    static Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket];
#pragma HLS ARRAY_PARTITION variable = code_sums complete dim = 2
#pragma HLS ARRAY_PARTITION variable = code_sums complete dim = 4
    static float scales[kTokenPairs][2][kMaxPackets][2];
#pragma HLS ARRAY_PARTITION variable = scales complete dim = 2
#pragma HLS ARRAY_PARTITION variable = scales complete dim = 4
    static float gates[kTokenPairs][2][kMaxRows];
#pragma HLS ARRAY_PARTITION variable = gates complete dim = 2
    *version = HETRUN_PYNQ_VERSION;
    *config = HETRUN_PYNQ_LANES | HETRUN_PYNQ_PORTS << 8 | HETRUN_PYNQ_TOKENS << 16;
    uint32_t busy = 0, stalls = 0, n_done = 0, state = HETRUN_PYNQ_STATUS_OK;
    Descriptor before{};
    for (uint32_t i = 0; i < count; ++i) {
        Descriptor d;
        fetch(inputs, ring + i * sizeof(Descriptor), d);
        state = problem(d, before);
        if (state != HETRUN_PYNQ_STATUS_OK) break;
        load(inputs, d, codes, code_sums, scales);
        uint32_t own_busy = 0, own_stalls = 0;
#ifdef HETRUN_PYNQ_FAST
        run_in_slabs(d, own_busy, own_stalls, [&](const Descriptor& slab, uint32_t& slab_busy, uint32_t& slab_stalls) {
            run(weights0, weights1, results, slab.weights / 8, pairs_of(slab), slab.format, slab.n_rows, slab.n_chunks, slab.n_tokens,
                slab.mode, slab.gate_row, slab.out, slab.out_stride, slab.out_rows, slab.out_scales, slab.out_scale_stride, codes,
                code_sums, scales, gates, slab_busy, slab_stalls);
        });
#else
        run(weights0, weights1, results, d.weights / 8, pairs_of(d), d.format, d.n_rows, d.n_chunks, d.n_tokens, d.mode, d.gate_row, d.out,
            d.out_stride, d.out_rows, d.out_scales, d.out_scale_stride, codes, code_sums, scales, gates, own_busy, own_stalls);
#endif
        busy += own_busy;
        stalls += own_stalls;
        before = d;
        ++n_done;
    }
    *status = state;
    *done = n_done;
    *busy_cycles = busy;
    *stall_cycles = stalls;
}
