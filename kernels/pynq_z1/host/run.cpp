// A launch: activations are quantised, descriptors written, the engine started and awaited. Nothing here knows whether registers
// and memory are a board's or simulated.
#include "../hls/engine.h"
#include "../hls/formats.h"
#include "launch.h"

namespace hetrun::pynq {
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

// From the first result of a matmul to its last.
uint32_t result_bytes(const hetrun_pynq_matmul& m, uint32_t rows) { return 4 * ((rows - 1) * m.out_width + m.n_rows); }

// A descriptor for each slab of rows and each group of tokens.
uint32_t describe(const hetrun_pynq_matmul& m, const Prepared& x, uint32_t rows, Descriptor* out) {
    const Format& f = kFormats[m.format];
    const uint32_t columns = static_cast<uint32_t>(chunk_columns(f)), n_chunks = rounded_up(m.n_columns, columns) / columns;
    const uint32_t tile_bytes = 8 * static_cast<uint32_t>(tile_words(f)), out_stride = 4 * m.out_width;
    uint32_t n = 0;
    for (uint32_t first = 0; first < m.n_rows; first += kMaxRows) {
        const uint32_t own = m.n_rows - first < kMaxRows ? m.n_rows - first : kMaxRows;
        for (uint32_t t = 0; t < rows; t += kTokens) {
            const uint32_t tokens = rows - t < kTokens ? rows - t : kTokens;
            out[n++] = {m.format, rounded_up(own, kTile), n_chunks, tokens, m.weights + first / kTile * n_chunks * tile_bytes,
                        x.codes + t * x.code_stride, x.code_stride, x.scales + t * x.scale_stride, x.scale_stride,
                        m.out + t * out_stride + 4 * first, out_stride, own, {}};
        }
    }
    return n;
}

}  // namespace
}  // namespace hetrun::pynq

using namespace hetrun::pynq;

uint64_t hetrun_pynq_window_bytes(const hetrun_pynq_matmul* matmuls, uint32_t n_matmuls, const hetrun_pynq_input* inputs,
                                  uint32_t n_inputs, uint32_t max_tokens) {
    uint64_t nbytes = 64;
    for (uint32_t i = 0; i < n_inputs; ++i)
        nbytes += Sizes(inputs[i].width, false).nbytes(max_tokens) + Sizes(inputs[i].width, true).nbytes(max_tokens);
    for (uint32_t i = 0; i < n_matmuls; ++i)
        nbytes += uint64_t{slabs_of(matmuls[i].n_rows)} * ((max_tokens + kTokens - 1) / kTokens) * sizeof(Descriptor);
    return nbytes + 64 * (4 * uint64_t{n_inputs} + n_matmuls);
}

int32_t hetrun_pynq_run(const hetrun_pynq_seam* seam, const hetrun_pynq_window* window, const hetrun_pynq_matmul* matmuls,
                        uint32_t n_matmuls, const hetrun_pynq_input* inputs, uint32_t n_inputs, uint32_t n_tokens,
                        uint32_t n_outputs, const hetrun_pynq_staging* staging, double timeout_s, hetrun_pynq_report* report) {
    *report = {};
    const Launcher launcher(*seam, timeout_s, *report);
    const uint32_t n_waves = n_matmuls ? matmuls[n_matmuls - 1].wave + 1 : 0;
    for (uint32_t wave = 0, at = 0; wave < n_waves; ++wave) {
        Cursor cursor(*window);
        uint32_t last = at, n_descriptors = 0;
        for (; last < n_matmuls && matmuls[last].wave == wave; ++last) {
            const uint32_t rows = matmuls[last].rows_are_outputs ? n_outputs : n_tokens;
            n_descriptors += slabs_of(matmuls[last].n_rows) * ((rows + kTokens - 1) / kTokens);
        }
        uint32_t ring = 0;
        Descriptor* descriptors = reinterpret_cast<Descriptor*>(cursor.take(n_descriptors * sizeof(Descriptor), ring));
        if (descriptors == nullptr) return HETRUN_PYNQ_NO_ROOM;
        uint32_t n = 0;
        for (uint32_t input = 0; input < n_inputs; ++input) {
            const hetrun_pynq_input& x = inputs[input];
            const uint32_t rows = x.rows_are_outputs ? n_outputs : n_tokens;
            Prepared prepared[2] = {};
            for (uint32_t i = at; i < last && rows; ++i) {
                if (matmuls[i].input != input) continue;
                const bool super = kFormats[matmuls[i].format].super;
                Prepared& p = prepared[super];
                if (!p.done) {
                    const Sizes sizes(x.width, super);
                    if (x.address) seam->invalidate(seam->context, x.address, rows * x.width * 4);
                    p = {0, sizes.code_stride, 0, sizes.scale_stride, true};
                    uint8_t* codes = cursor.take(uint64_t{rows} * sizes.code_stride, p.codes);
                    uint8_t* scales = cursor.take(uint64_t{rows} * sizes.scale_stride, p.scales);
                    if (codes == nullptr || scales == nullptr) return HETRUN_PYNQ_NO_ROOM;
                    for (uint32_t t = 0; t < rows; ++t)
                        hetrun_pynq_quantize(x.data + uint64_t{t} * x.width, x.width, sizes.padded, super ? 256 : 32,
                                             reinterpret_cast<int8_t*>(codes + t * sizes.code_stride),
                                             reinterpret_cast<float*>(scales + t * sizes.scale_stride));
                }
                n += describe(matmuls[i], p, rows, descriptors + n);
            }
        }
        if (n != 0) {
            seam->flush(seam->context, window->address, static_cast<uint32_t>(cursor.used()));
            // What the host wrote to the results' lines must not be written back over them later.
            for (uint32_t i = at; i < last; ++i) {
                const uint32_t rows = matmuls[i].rows_are_outputs ? n_outputs : n_tokens;
                if (rows) seam->flush(seam->context, matmuls[i].out, result_bytes(matmuls[i], rows));
            }
            const int32_t status = staging ? stream(launcher, *staging, descriptors, ring, n) : launcher.run(ring, n);
            if (status != HETRUN_PYNQ_OK) return status;
            for (uint32_t i = at; i < last; ++i) {
                const uint32_t rows = matmuls[i].rows_are_outputs ? n_outputs : n_tokens;
                if (rows) seam->invalidate(seam->context, matmuls[i].out, result_bytes(matmuls[i], rows));
            }
        }
        at = last;
    }
    return HETRUN_PYNQ_OK;
}
