// Weights that the engine's memory does not hold: copied piece by piece through a staging area, the next one while the engine
// reads the last.
#include <cstring>

#include "../hls/formats.h"
#include "launch.h"

namespace hetrun::pynq {
namespace {

constexpr uint32_t kRing = 64;  // descriptors of the staging area: what one start runs of a piece
constexpr uint32_t kTile = HETRUN_PYNQ_TILE_ROWS;

uint32_t half_bytes(uint32_t area_bytes) {
    const uint32_t ring_bytes = kRing * sizeof(Descriptor);
    return area_bytes > ring_bytes ? (area_bytes - ring_bytes) / 2 / 64 * 64 : 0;
}

uint32_t row_of_tiles_bytes(uint32_t format, uint32_t n_chunks) {
    return n_chunks * 8 * static_cast<uint32_t>(tile_words(kFormats[format]));
}

// Descriptors [first, last) that one start can run: resident ones, or rows [row, row + rows) of a streamed weight.
struct Piece {
    uint32_t first, last, row, rows;
    const uint8_t* source;  // null: resident
    uint32_t nbytes;
};

class Pieces {
public:
    Pieces(const hetrun_pynq_staging& staging, const Descriptor* descriptors, uint32_t n)
        : staging_(staging), descriptors_(descriptors), n_(n), half_(half_bytes(staging.area.nbytes)) {}

    // False at the end, and where not even a row of tiles fits (`stuck`).
    bool next(Piece& piece) {
        if (at_ == n_ || stuck_) return false;
        const uint8_t* source = source_of(at_);
        uint32_t last = at_ + 1;
        if (source == nullptr) {
            while (last < n_ && source_of(last) == nullptr) ++last;
            piece = {at_, last, 0, 0, nullptr, 0};
            at_ = last;
            return true;
        }
        const Descriptor& d = descriptors_[at_];
        while (last < n_ && descriptors_[last].weights == d.weights) ++last;  // groups of tokens
        const uint32_t tiles = row_of_tiles_bytes(d.format, d.n_chunks), left = d.n_rows - row_, most = half_ / tiles * kTile;
        stuck_ = most == 0;
        const uint32_t rows = left < most ? left : most;
        piece = {at_, last, row_, rows, source + row_ / kTile * tiles, rows / kTile * tiles};
        row_ += rows;
        if (row_ == d.n_rows) {
            at_ = last;
            row_ = 0;
        }
        return !stuck_;
    }
    bool stuck() const { return stuck_; }
    uint32_t half() const { return half_; }

private:
    const uint8_t* source_of(uint32_t i) const {
        const uint32_t address = descriptors_[i].weights;
        for (uint32_t w = 0; w < staging_.n_weights; ++w) {
            const hetrun_pynq_streamed& weight = staging_.weights[w];
            if (address - weight.address < weight.nbytes) return weight.stream + (address - weight.address);
        }
        return nullptr;
    }

    const hetrun_pynq_staging& staging_;
    const Descriptor* descriptors_;
    uint32_t n_, half_, at_ = 0, row_ = 0;
    bool stuck_ = false;
};

}  // namespace

int32_t stream(const Launcher& launcher, const hetrun_pynq_staging& staging, const Descriptor* descriptors, uint32_t ring,
               uint32_t n) {
    Pieces pieces(staging, descriptors, n);
    const uint32_t ring_bytes = kRing * sizeof(Descriptor);
    Descriptor* own = reinterpret_cast<Descriptor*>(staging.area.data);
    uint32_t filled = 0;  // half that was filled last
    Piece now, next;
    const auto fill = [&](const Piece& piece) {
        if (piece.source == nullptr) return;
        filled ^= 1;
        const uint32_t at = ring_bytes + filled * pieces.half();
        std::memcpy(staging.area.data + at, piece.source, piece.nbytes);
        launcher.flush(staging.area.address + at, piece.nbytes);
        launcher.report().copied_bytes += piece.nbytes;
    };
    bool more = pieces.next(next);
    if (more) fill(next);
    while (more) {
        now = next;
        const uint32_t weights = staging.area.address + ring_bytes + filled * pieces.half();
        for (uint32_t from = now.first; from < now.last;) {
            uint32_t start = ring + from * static_cast<uint32_t>(sizeof(Descriptor)), count = now.last - from;
            if (now.source != nullptr) {
                count = count < kRing ? count : kRing;
                for (uint32_t i = 0; i < count; ++i) {
                    const Descriptor& whole = descriptors[from + i];
                    Descriptor part = whole;
                    part.n_rows = now.rows;
                    part.weights = weights;
                    part.out = whole.out + 4 * now.row;
                    const uint32_t own_rows = whole.out_rows - now.row;
                    part.out_rows = own_rows < now.rows ? own_rows : now.rows;
                    own[i] = part;
                }
                launcher.flush(staging.area.address, count * static_cast<uint32_t>(sizeof(Descriptor)));
                start = staging.area.address;
            }
            launcher.begin(start, count);
            if (from == now.first) {
                more = pieces.next(next);
                if (more) fill(next);
            }
            const int32_t status = launcher.await();
            if (status != HETRUN_PYNQ_OK) return status;
            from += count;
        }
    }
    return pieces.stuck() ? HETRUN_PYNQ_NO_ROOM : HETRUN_PYNQ_OK;
}

}  // namespace hetrun::pynq

uint32_t hetrun_pynq_staged_rows(uint32_t format, uint32_t n_columns, uint32_t nbytes) {
    using namespace hetrun::pynq;
    const uint32_t columns = static_cast<uint32_t>(chunk_columns(kFormats[format]));
    const uint32_t tiles = row_of_tiles_bytes(format, (n_columns + columns - 1) / columns);
    return tiles ? half_bytes(nbytes) / tiles * kTile : 0;
}
