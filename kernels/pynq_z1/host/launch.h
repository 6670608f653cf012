// One start of the engine and the wait for its end; and a list of descriptors whose weights pass through a staging area.
#pragma once

#include "../hls/engine.h"
#include "hetrun_pynq_z1.h"

namespace hetrun::pynq {

class Launcher {
public:
    Launcher(const hetrun_pynq_seam& seam, double timeout_s, hetrun_pynq_report& report)
        : seam_(seam), timeout_s_(timeout_s), report_(report) {}

    // `count` descriptors from address `ring` on; the engine runs when it returns.
    void begin(uint32_t ring, uint32_t count) const;
    // HETRUN_PYNQ_*. It looks at registers or sleeps on the interrupt: it leaves the memory to the engine.
    int32_t await() const;
    int32_t run(uint32_t ring, uint32_t count) const {
        begin(ring, count);
        return await();
    }

    void flush(uint32_t address, uint32_t nbytes) const { seam_.flush(seam_.context, address, nbytes); }
    hetrun_pynq_report& report() const { return report_; }

private:
    uint32_t read(uint32_t offset) const { return seam_.read(seam_.context, offset); }
    void write(uint32_t offset, uint32_t value) const { seam_.write(seam_.context, offset, value); }
    bool done() const;
    int32_t poll_until(double limit_s) const;
    int32_t sleep_until(double limit_s) const;

    const hetrun_pynq_seam& seam_;
    double timeout_s_;
    hetrun_pynq_report& report_;
};

// Runs n descriptors, which stand at address `ring`; those of streamed weights piece by piece.
int32_t stream(const Launcher& launcher, const hetrun_pynq_staging& staging, const Descriptor* descriptors, uint32_t ring,
               uint32_t n);

}  // namespace hetrun::pynq
