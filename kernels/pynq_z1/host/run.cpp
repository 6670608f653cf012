// A launch: activations are quantised, descriptors written, the engine started and awaited. Nothing here knows whether registers
// and memory are a board's or simulated.
#include <cstring>
#include <vector>

#include "../hls/engine.h"
#include "../hls/formats.h"
#include "fabric/activation.h"
#include "launch.h"

namespace hetrun::pynq {
using namespace fabric;
namespace {

constexpr uint32_t kTokens = HETRUN_PYNQ_TOKENS, kMaxRows = HETRUN_PYNQ_MAX_ROWS, kTile = HETRUN_PYNQ_TILE_ROWS;

uint32_t rounded_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

// Memory of the window, front to back.
class Cursor {
public:
    explicit Cursor(const hetrun_pynq_window& window) : window_(window) {}
    // Null where there is no room; `address` is the physical one.
    uint8_t* take(uint64_t nbytes, uint32_t& address) {
        const uint64_t begin = at_;
        at_ += (nbytes + 63) / 64 * 64;
        address = window_.address + static_cast<uint32_t>(begin);
        return at_ <= window_.nbytes ? window_.data + begin : nullptr;
    }
    uint64_t used() const { return at_; }

private:
    const hetrun_pynq_window& window_;
    uint64_t at_ = 0;
};

// Quantised rows of one input, by blocks of 256 or of 32.
struct Prepared {
    uint32_t codes, code_stride, scales, scale_stride;
    bool done;
    uint8_t *host_codes, *host_scales;  // the same as codes and scales
};

struct Sizes {
    uint32_t padded, code_stride, scale_stride;

    Sizes(uint32_t width, bool super) {
        padded = rounded_up(width, super ? 256 : 64);
        code_stride = padded;
        scale_stride = rounded_up(padded / (super ? 256 : 32) * 4, 8);
    }
    uint64_t nbytes(uint32_t rows) const { return static_cast<uint64_t>(rows) * (code_stride + scale_stride) + 128; }
};

uint32_t slabs_of(uint32_t n_rows) { return (n_rows + kMaxRows - 1) / kMaxRows; }

uint32_t groups_of(uint32_t n_tokens) { return (n_tokens + kTokens - 1) / kTokens; }

// One launch: a ring of descriptors and the activations that it reads, put into the window from its front on.
class Ring {
public:
    Ring(const hetrun_pynq_seam& seam, const hetrun_pynq_window& window, const hetrun_pynq_input* inputs, uint32_t n_inputs,
         uint32_t n_tokens, uint32_t n_outputs)
        : seam_(seam), cursor_(window), inputs_(inputs), prepared_(2 * size_t{n_inputs}), rows_{n_tokens, n_outputs} {}

    uint32_t rows(uint32_t rows_are_outputs) const { return rows_[rows_are_outputs != 0]; }
    // False where the window has no room, as of the others.
    bool begin(uint32_t max_descriptors) {
        descriptors_ = reinterpret_cast<Descriptor*>(cursor_.take(max_descriptors * sizeof(Descriptor), address));
        return descriptors_ != nullptr;
    }

    // A matmul, or two: of mode GATE with the one behind it.
    bool add(const hetrun_pynq_matmul* m) {
        const bool gated = m->mode == HETRUN_PYNQ_MODE_GATE;
        const hetrun_pynq_matmul& last = gated ? m[1] : *m;
        const Prepared *x = prepare(*m), *x_last = prepare(last);
        const bool coded = last.mode == HETRUN_PYNQ_MODE_CODES_32 || last.mode == HETRUN_PYNQ_MODE_CODES_256;
        const Prepared* codes = coded ? blank(last) : nullptr;
        if (x == nullptr || x_last == nullptr || (coded && codes == nullptr)) return false;
        const uint32_t n_rows = rows(m->rows_are_outputs);
        // Slab by slab of rows, group by group of tokens: the engine keeps the gates of one.
        for (uint32_t first = 0; first < m->n_rows; first += kMaxRows) {
            for (uint32_t t = 0; t < n_rows; t += kTokens) {
                const uint32_t tokens = n_rows - t < kTokens ? n_rows - t : kTokens;
                if (gated) descriptors_[count++] = describe(*m, *x, first, t, tokens);
                descriptors_[count] = describe(last, *x_last, first, t, tokens);
                if (coded) write_codes(descriptors_[count], *codes, last.mode, last.first_row + first, t);
                ++count;
            }
        }
        return true;
    }
    const Descriptor* descriptors() const { return descriptors_; }
    uint32_t used() const { return static_cast<uint32_t>(cursor_.used()); }

    uint32_t address = 0, count = 0;  // of the descriptors

private:
    // The input of a matmul as codes; null where there is no room.
    const Prepared* prepare(const hetrun_pynq_matmul& m) {
        const bool super = kFormats[m.format].super;
        const hetrun_pynq_input& x = inputs_[m.input];
        Prepared& p = prepared_[2 * m.input + super];
        if (p.done) return &p;
        const uint32_t n_rows = rows(x.rows_are_outputs);
        if (x.address) seam_.invalidate(seam_.context, x.address, n_rows * x.width * 4);
        if (take(m.input, super) == nullptr) return nullptr;
        for (uint32_t t = 0; t < n_rows; ++t)
            hetrun_pynq_quantize(x.data + uint64_t{t} * x.width, x.width, p.code_stride, super ? 256 : 32,
                                 reinterpret_cast<int8_t*>(p.host_codes + t * p.code_stride),
                                 reinterpret_cast<float*>(p.host_scales + t * p.scale_stride));
        return &p;
    }

    // Room for the codes that a matmul writes, once for all its parts. It writes none beyond the input's width: there they are zero.
    const Prepared* blank(const hetrun_pynq_matmul& m) {
        const bool super = m.mode == HETRUN_PYNQ_MODE_CODES_256;
        const Prepared& p = prepared_[2 * m.out + super];
        if (p.done) return &p;
        if (take(m.out, super) == nullptr) return nullptr;
        std::memset(p.host_codes, 0, size_t{rows(m.rows_are_outputs)} * p.code_stride);
        std::memset(p.host_scales, 0, size_t{rows(m.rows_are_outputs)} * p.scale_stride);
        return &p;
    }

    // Room for an input's codes.
    const Prepared* take(uint32_t input, bool super) {
        const hetrun_pynq_input& x = inputs_[input];
        const Sizes sizes(x.width, super);
        const uint64_t n_rows = rows(x.rows_are_outputs);
        Prepared& p = prepared_[2 * input + super];
        p = {0, sizes.code_stride, 0, sizes.scale_stride, true, nullptr, nullptr};
        p.host_codes = cursor_.take(n_rows * sizes.code_stride, p.codes);
        p.host_scales = cursor_.take(n_rows * sizes.scale_stride, p.scales);
        return p.host_codes == nullptr || p.host_scales == nullptr ? nullptr : &p;
    }

    static Descriptor describe(const hetrun_pynq_matmul& m, const Prepared& x, uint32_t first, uint32_t t, uint32_t tokens) {
        const Format& f = kFormats[m.format];
        const uint32_t columns = static_cast<uint32_t>(chunk_columns(f)), n_chunks = rounded_up(m.n_columns, columns) / columns;
        const uint32_t tile_bytes = 8 * static_cast<uint32_t>(tile_words(f)), out_stride = 4 * m.out_width;
        const uint32_t own = m.n_rows - first < kMaxRows ? m.n_rows - first : kMaxRows;
        return {m.format, rounded_up(own, kTile), n_chunks, tokens, m.weights + first / kTile * n_chunks * tile_bytes,
                x.codes + t * x.code_stride, x.code_stride, x.scales + t * x.scale_stride, x.scale_stride,
                m.mode == HETRUN_PYNQ_MODE_GATE ? 0 : m.out + t * out_stride + 4 * (m.first_row + first), out_stride, own, m.mode, 0, 0, 0};
    }

    static void write_codes(Descriptor& d, const Prepared& to, uint32_t mode, uint32_t first, uint32_t t) {
        const uint32_t block = mode == HETRUN_PYNQ_MODE_CODES_256 ? 256 : 32;
        d.out = to.codes + t * to.code_stride + first;
        d.out_stride = to.code_stride;
        d.out_scales = to.scales + t * to.scale_stride + first / block * 4;
        d.out_scale_stride = to.scale_stride;
    }

    const hetrun_pynq_seam& seam_;
    Cursor cursor_;
    const hetrun_pynq_input* inputs_;
    std::vector<Prepared> prepared_;  // by input, in blocks of 32 and of 256
    const uint32_t rows_[2];
    Descriptor* descriptors_ = nullptr;
};

bool writes_floats(const hetrun_pynq_matmul& m) { return m.mode == HETRUN_PYNQ_MODE_WRITE || m.mode == HETRUN_PYNQ_MODE_ACTIVATE; }

}  // namespace
}  // namespace hetrun::pynq

using namespace hetrun::pynq;

uint64_t hetrun_pynq_window_bytes(const hetrun_pynq_matmul* matmuls, uint32_t n_matmuls, const hetrun_pynq_input* inputs,
                                  uint32_t n_inputs, uint32_t max_tokens) {
    uint64_t nbytes = 64;
    for (uint32_t i = 0; i < n_inputs; ++i)
        nbytes += Sizes(inputs[i].width, false).nbytes(max_tokens) + Sizes(inputs[i].width, true).nbytes(max_tokens);
    for (uint32_t i = 0; i < n_matmuls; ++i)
        nbytes += uint64_t{slabs_of(matmuls[i].n_rows)} * groups_of(max_tokens) * sizeof(Descriptor);
    return nbytes + 64 * (4 * uint64_t{n_inputs} + n_matmuls);
}

int32_t hetrun_pynq_run(const hetrun_pynq_seam* seam, const hetrun_pynq_window* window, const hetrun_pynq_matmul* matmuls,
                        uint32_t n_matmuls, const hetrun_pynq_input* inputs, uint32_t n_inputs, const hetrun_pynq_gated* gated,
                        uint32_t n_gated, uint32_t n_tokens, uint32_t n_outputs, const hetrun_pynq_staging* staging,
                        double timeout_s, hetrun_pynq_report* report) {
    *report = {};
    const Launcher launcher(*seam, timeout_s, *report);
    const auto flush = [&](uint32_t address, uint32_t nbytes) { seam->flush(seam->context, address, nbytes); };
    const auto invalidate = [&](uint32_t address, uint32_t nbytes) { seam->invalidate(seam->context, address, nbytes); };
    for (uint32_t wave = 0, at = 0, act = 0; at < n_matmuls || act < n_gated; ++wave) {
        Ring ring(*seam, *window, inputs, n_inputs, n_tokens, n_outputs);
        for (; act < n_gated && gated[act].wave == wave; ++act) {
            const hetrun_pynq_gated& g = gated[act];
            const uint32_t n = ring.rows(g.rows_are_outputs) * g.width;
            if (g.gate_address) invalidate(g.gate_address, n * 4);
            if (g.up_address) invalidate(g.up_address, n * 4);
            for (uint32_t i = 0; i < n; ++i) g.out[i] = silu_times(g.gate[i], g.up[i]);
        }
        const uint32_t first = at;
        uint32_t max_descriptors = 0;
        for (; at < n_matmuls && matmuls[at].wave == wave; ++at)
            max_descriptors += slabs_of(matmuls[at].n_rows) * groups_of(ring.rows(matmuls[at].rows_are_outputs));
        if (!ring.begin(max_descriptors)) return HETRUN_PYNQ_NO_ROOM;
        for (uint32_t i = first; i < at; i += matmuls[i].mode == HETRUN_PYNQ_MODE_GATE ? 2 : 1) {
            if (ring.rows(matmuls[i].rows_are_outputs) != 0 && !ring.add(matmuls + i)) return HETRUN_PYNQ_NO_ROOM;
        }
        if (ring.count == 0) continue;
        flush(window->address, ring.used());
        const auto of_results = [&](const auto& keep) {
            for (uint32_t i = first; i < at; ++i) {
                const uint32_t n_rows = ring.rows(matmuls[i].rows_are_outputs);
                const hetrun_pynq_matmul& m = matmuls[i];
                if (n_rows && writes_floats(m)) keep(m.out + 4 * m.first_row, 4 * ((n_rows - 1) * m.out_width + m.n_rows));
            }
        };
        of_results(flush);  // what the host wrote to the results' lines must not be written back over them later
        const int32_t status = staging == nullptr ? launcher.run(ring.address, ring.count)
                                                  : stream(launcher, *staging, ring.descriptors(), ring.address, ring.count);
        if (status != HETRUN_PYNQ_OK) return status;
        of_results(invalidate);
    }
    return HETRUN_PYNQ_OK;
}
