// A read master whose bursts are asked for well before their words are read: hls::burst_maxi, and its stand-in on a host.
#pragma once

#include <cstdint>

#ifdef __SYNTHESIS__

#include <hls_burst_maxi.h>

namespace hetrun::pynq {
using ReadMaster = hls::burst_maxi<uint64_t>;
}

#else

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#include "engine.h"

namespace hetrun::pynq {

// Words come in the order in which their bursts were asked for. A read without a request, or more requests than may be
// outstanding, would hang the fabric: here they end the program.
class ReadMaster {
public:
    ReadMaster(const uint64_t* memory) : memory_(memory) {}

    void read_request(size_t offset, size_t n_words) {
        if (asked_ - done_ == HETRUN_PYNQ_OUTSTANDING) fail("too many bursts are outstanding");
        bursts_[asked_++ % HETRUN_PYNQ_OUTSTANDING] = {memory_ + offset, n_words};
    }
    uint64_t read() {
        if (asked_ == done_) fail("a word is read that was not asked for");
        Burst& burst = bursts_[done_ % HETRUN_PYNQ_OUTSTANDING];
        const uint64_t word = *burst.next++;
        if (--burst.left == 0) ++done_;
        return word;
    }

private:
    struct Burst {
        const uint64_t* next;
        size_t left;
    };
    [[noreturn]] static void fail(const char* what) {
        std::fprintf(stderr, "read master: %s\n", what);
        std::abort();
    }

    const uint64_t* memory_;
    Burst bursts_[HETRUN_PYNQ_OUTSTANDING] = {};
    uint32_t asked_ = 0, done_ = 0;
};

}  // namespace hetrun::pynq

#endif
