#include "timing.h"

namespace hetrun::u280 {

MemoryTiming memory_timing() {
    return {
        69'565,      // UG1393: 14.375 GB/s, 256 bits at 450 MHz
        160,         // calibrated: a stream of 512-byte bursts sustains 13.27 GB/s (arXiv 2005.04324)
        106'700,     // measured: arXiv 2005.04324, page hit
        15'500,      // measured: the same, a closed page takes 122.2 ns
        15'600,      // measured: the same, a page miss takes 137.8 ns
        47'000,      // JESD235: tRC
        2048,        // JESD235: a page of 1 KB; two bank groups by turns (PG276's default order of address bits)
        8,           // JESD235: 16 banks of a pseudo-channel, in such pairs
        3'900'000,   // JESD235: tREFI
        260'000,     // JESD235: tRFC of 4 Gb a channel
        15'000,      // analytic: tWTR and the latencies of reads and writes apart, some 14 clocks of 900 MHz; an assumption
        4,           // PG276: 4 masters x 4 pseudo-channels
        2,           // PG276: between neighbours, each way; each as fast as a pseudo-channel
        8'900,       // analytic: two clocks of 450 MHz each way, an assumption
    };
}

EngineTiming engine_timing() {
    return {
        1'000'000'000'000 / HETRUN_U280_CLOCK_HZ,
        HETRUN_U280_CHANNELS,
        HETRUN_U280_LANES,
        HETRUN_U280_OUTSTANDING,
        HETRUN_U280_BURST_BEATS,
        HETRUN_U280_FIFO_BEATS,
        HETRUN_U280_PASS_TOKENS,
        64,    // analytic: 32 URAMs of 64 bits side by side; twice as many would take 7% more of the card's LUTs
        8,     // hls/vector.h: kGates
        16,    // a beat of 512 bits
        4,     // hls/attention.h: send_part and take_*
        32,    // hls/processes.h: depth of the stream of results
        1,
        4,     // analytic: two beats of DDR, checks, the broadcast
        20,    // analytic: register slices between SLR0's logic and the ports, and the way to 450 MHz and back; an assumption
        12,    // analytic: four registers in each of two SLRs and a FIFO's latency, an assumption
        60,    // analytic: 240 ns at 250 MHz, DDR4 through the shell's interconnect; an assumption
        24,    // analytic: a conversion, two products and a write
        140,   // analytic: trees of additions of 7 cycles, a root and a quotient of 28 each, a product
        60,    // analytic: a quotient and the tree of maxima
        20,    // analytic: a product, a sum, read and write
        60,    // analytic: an exponential, a sum, a quotient, a product
        80,    // analytic: an exponential and the last sums; or maxima of a head's channels and a quotient
    };
}

uint64_t weight_beats(const Layout& layout, uint64_t n_rows, uint64_t n_columns, uint32_t channels) {
    const uint32_t n = layout.channel_blocks(n_rows, channels), of_group = layout.group_blocks();
    return uint64_t{n} * layout.block_beats(static_cast<uint32_t>(n_columns)) + (n + of_group - 1) / of_group;
}

}  // namespace hetrun::u280
