// The wait for the engine: registers are polled, or the process sleeps on a UIO device.
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <ctime>

#include "launch.h"

namespace hetrun::pynq {
namespace {

constexpr uint32_t kStart = 1, kDone = 2;

double now_s() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The kernel masks a UIO interrupt when it comes, until a 1 is written.
bool unmask(int32_t interrupt) {
    const uint32_t on = 1;
    return write(interrupt, &on, sizeof on) == static_cast<ssize_t>(sizeof on);
}

}  // namespace

void Launcher::begin(uint32_t ring, uint32_t count) const {
    write(HETRUN_PYNQ_REG_RING, ring);
    write(HETRUN_PYNQ_REG_COUNT, count);
    if (seam_.interrupt >= 0) {
        write(HETRUN_PYNQ_REG_IER, 1);  // of the end of a run
        write(HETRUN_PYNQ_REG_GIE, 1);
        unmask(seam_.interrupt);
    }
    write(HETRUN_PYNQ_REG_CTRL, kStart);
}

int32_t Launcher::await() const {
    const double limit_s = now_s() + timeout_s_;
    const int32_t status = seam_.interrupt >= 0 ? sleep_until(limit_s) : poll_until(limit_s);
    if (status != HETRUN_PYNQ_OK) return status;
    report_.n_launches += 1;
    report_.n_descriptors += read(HETRUN_PYNQ_REG_DONE);
    report_.busy_cycles += read(HETRUN_PYNQ_REG_BUSY_CYCLES);
    report_.stall_cycles += read(HETRUN_PYNQ_REG_STALL_CYCLES);
    report_.status = read(HETRUN_PYNQ_REG_STATUS);
    return report_.status == HETRUN_PYNQ_STATUS_OK ? HETRUN_PYNQ_OK : HETRUN_PYNQ_ENGINE_ERROR;
}

bool Launcher::done() const { return (read(HETRUN_PYNQ_REG_CTRL) & kDone) != 0; }

int32_t Launcher::poll_until(double limit_s) const {
    while (!done()) {
        if (now_s() > limit_s) return HETRUN_PYNQ_TIMEOUT;
    }
    return HETRUN_PYNQ_OK;
}

// An interrupt may be an earlier run's, so what counts is the register.
int32_t Launcher::sleep_until(double limit_s) const {
    for (;;) {
        const double left_s = limit_s - now_s();
        pollfd waited = {seam_.interrupt, POLLIN, 0};
        const int found = left_s > 0 ? poll(&waited, 1, static_cast<int>(std::ceil(left_s * 1e3))) : 0;
        if (found < 0 && errno == EINTR) continue;
        if (found <= 0) return done() ? HETRUN_PYNQ_NO_INTERRUPT : HETRUN_PYNQ_TIMEOUT;
        uint32_t count;
        if (::read(seam_.interrupt, &count, sizeof count) != static_cast<ssize_t>(sizeof count)) return HETRUN_PYNQ_NO_INTERRUPT;
        write(HETRUN_PYNQ_REG_ISR, read(HETRUN_PYNQ_REG_ISR));  // ones toggle
        if (done()) return HETRUN_PYNQ_OK;
        unmask(seam_.interrupt);
    }
}

}  // namespace hetrun::pynq
