// A board whose fabric is the engine's source, and whose DDR is a piece of this process.
#include <memory>
#include <mutex>
#include <new>

#include "../hls/engine.h"
#include "fabric/host/helpers.h"
#include "hetrun_pynq_z1.h"

struct hetrun_pynq_csim {
    uint8_t* memory;
    uint64_t nbytes;
    uint32_t ring, count, version, config, status, done, busy_cycles, stall_cycles;
    std::unique_ptr<hetrun::fabric::Helpers> helpers;
};

namespace {

thread_local hetrun_pynq_csim* running = nullptr;

// The engine's block RAM is static, as in a fabric of its own: all boards of a process take turns.
std::mutex fabric;

}  // namespace

extern "C" void hetrun_pynq_csim_share(void (*job)(void* argument, uint32_t i), void* argument, uint32_t n) {
    if (running != nullptr && running->helpers && n > 1) return running->helpers->share(job, argument, n);
    for (uint32_t i = 0; i < n; ++i) job(argument, i);
}

hetrun_pynq_csim* hetrun_pynq_csim_create(uint8_t* memory, uint64_t nbytes) {
    return new (std::nothrow) hetrun_pynq_csim{memory, nbytes, 0, 0, 0, 0, 0, 0, 0, 0, nullptr};
}

void hetrun_pynq_csim_threads(hetrun_pynq_csim* board, uint32_t n) {
    board->helpers = n > 1 ? std::make_unique<hetrun::fabric::Helpers>(n - 1) : nullptr;
}

void hetrun_pynq_csim_destroy(hetrun_pynq_csim* board) { delete board; }

uint32_t hetrun_pynq_csim_read(void* context, uint32_t offset) {
    const hetrun_pynq_csim& board = *static_cast<const hetrun_pynq_csim*>(context);
    switch (offset) {
        case HETRUN_PYNQ_REG_CTRL: return 2 | 4;  // idle and ready: it runs within the write that starts it
        case HETRUN_PYNQ_REG_RING: return board.ring;
        case HETRUN_PYNQ_REG_COUNT: return board.count;
        case HETRUN_PYNQ_REG_VERSION: return board.version;
        case HETRUN_PYNQ_REG_CONFIG: return board.config;
        case HETRUN_PYNQ_REG_STATUS: return board.status;
        case HETRUN_PYNQ_REG_DONE: return board.done;
        case HETRUN_PYNQ_REG_BUSY_CYCLES: return board.busy_cycles;
        case HETRUN_PYNQ_REG_STALL_CYCLES: return board.stall_cycles;
        default: return 0;
    }
}

void hetrun_pynq_csim_write(void* context, uint32_t offset, uint32_t value) {
    hetrun_pynq_csim& board = *static_cast<hetrun_pynq_csim*>(context);
    if (offset == HETRUN_PYNQ_REG_RING) board.ring = value;
    if (offset == HETRUN_PYNQ_REG_COUNT) board.count = value;
    if (offset != HETRUN_PYNQ_REG_CTRL || (value & 1) == 0) return;
    const uint64_t* words = reinterpret_cast<const uint64_t*>(board.memory);
    const std::lock_guard<std::mutex> turn(fabric);
    running = &board;
    hetrun_pynq_engine(words, words, words, reinterpret_cast<uint32_t*>(board.memory), board.ring, board.count, &board.version,
                       &board.config, &board.status, &board.done, &board.busy_cycles, &board.stall_cycles);
    running = nullptr;
}

void hetrun_pynq_csim_cache(void*, uint32_t, uint32_t) {}
