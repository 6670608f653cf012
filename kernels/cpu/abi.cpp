// The C ABI: no exception and no C++ type crosses it.
#include <unistd.h>

#include <cstring>
#include <new>

#include "pack.h"
#include "program.h"

using namespace hetrun::cpu;

namespace {

// The status of f(), or NO_MEMORY where it throws: nothing else is thrown in here.
template <class F>
int guarded(F f) {
    try {
        return f();
    } catch (...) {
        return HETRUN_NO_MEMORY;
    }
}

constexpr uint32_t kMaxThreads = 1024;

}  // namespace

extern "C" {

uint32_t hetrun_cpu_abi(void) { return HETRUN_CPU_ABI; }

uint32_t hetrun_cpu_isa_mask(void) { return isa_mask(); }

int hetrun_cpu_device_create(uint32_t n_threads, int32_t isa, void** out) {
    return guarded([&] {
        *out = nullptr;
        if (n_threads < 1 || n_threads > kMaxThreads) return static_cast<int>(HETRUN_BAD_ARGUMENT);
        const uint32_t mask = isa_mask();
        if (isa == -1) isa = 31 - __builtin_clz(mask);
        if (isa < 0 || isa >= HETRUN_ISA_COUNT || !(mask >> isa & 1)) return static_cast<int>(HETRUN_NO_ISA);
        auto device = std::make_unique<Device>();
        device->kernels = kernels_of(isa);
        if (const int status = device->start(n_threads)) return status;
        *out = device.release();
        return static_cast<int>(HETRUN_OK);
    });
}

void hetrun_cpu_device_destroy(void* device) {
    Device* d = static_cast<Device*>(device);
    if (d == nullptr) return;
    if (d->pid != getpid()) static_cast<void>(d->pool.release());  // after a fork there are no threads to join
    delete d;
}

int hetrun_cpu_state_create(const struct hetrun_kv_spec* spec, void** out) {
    return guarded([&] {
        *out = nullptr;
        auto state = std::make_unique<State>(*spec);
        if (const int status = state->allocate()) return status;
        *out = state.release();
        return static_cast<int>(HETRUN_OK);
    });
}

int hetrun_cpu_state_copy(void* state, uint64_t from_slot, uint64_t to_slot, uint64_t n_tokens) {
    return static_cast<State*>(state)->copy(from_slot, to_slot, n_tokens);
}

void hetrun_cpu_state_destroy(void* state) { delete static_cast<State*>(state); }

int hetrun_cpu_pack_create(void* device, struct hetrun_weight* weights, uint64_t n_weights, void** out) {
    return guarded([&] {
        *out = nullptr;
        Device& d = *static_cast<Device*>(device);
        if (const int status = d.own_threads()) return status;
        auto pack = std::make_unique<Pack>();
        if (const int status = pack->build(*d.kernels, *d.pool, weights, static_cast<size_t>(n_weights))) return status;
        *out = pack.release();
        return static_cast<int>(HETRUN_OK);
    });
}

void hetrun_cpu_pack_destroy(void* pack) { delete static_cast<Pack*>(pack); }

int hetrun_cpu_program_create(void* device, const struct hetrun_program_spec* spec, uint64_t* detail, void** out) {
    return guarded([&] {
        *out = nullptr;
        auto program = std::make_unique<Program>(*static_cast<Device*>(device), *spec);
        if (const int status = program->build(*detail)) return status;
        *out = program.release();
        return static_cast<int>(HETRUN_OK);
    });
}

void hetrun_cpu_program_destroy(void* program) { delete static_cast<Program*>(program); }

int hetrun_cpu_run(void* program, const struct hetrun_batch* batch, struct hetrun_report* report) {
    return guarded([&] { return static_cast<Program*>(program)->run(*batch, *report); });
}

int hetrun_cpu_quantize(void* device, const float* x, uint64_t n, int8_t* codes, float* scales) {
    return guarded([&] {
        if (n % 32 != 0) return static_cast<int>(HETRUN_BAD_ARGUMENT);
        const PreparedLayout layout(static_cast<size_t>(n), true, false);
        std::vector<uint8_t> row(layout.stride + 64);
        static_cast<Device*>(device)->kernels->prepare_int8(x, layout, row.data());
        std::memcpy(codes, row.data(), layout.n);
        std::memcpy(scales, row.data() + layout.scale, layout.n / 32 * sizeof(float));
        return static_cast<int>(HETRUN_OK);
    });
}

}  // extern "C"
