#include "pack.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>

#include "gguf_blocks.h"

namespace hetrun::cpu {

namespace {

// Bytes [offset, offset + nbytes) of a GGUF block, dealt out in pieces of `unit` bytes.
struct Field {
    uint16_t offset, nbytes;
    uint8_t unit;
    uint8_t flip;  // XORed to every byte
};

struct Layout {
    uint16_t elements, bytes;
    Field fields[4];
    int high_bits = -1;  // the field that holds fifth bits of 32 codes
};

const Layout* layout_of(uint32_t type) {
    static const Layout q4_0{32, 18, {{0, 2, 2, 0}, {2, 16, 4, 0}}};
    static const Layout q4_1{32, 20, {{0, 4, 2, 0}, {4, 16, 4, 0}}};
    static const Layout q5_0{32, 22, {{0, 2, 2, 0}, {2, 4, 4, 0}, {6, 16, 4, 0}}, 1};
    static const Layout q5_1{32, 24, {{0, 4, 2, 0}, {4, 4, 4, 0}, {8, 16, 4, 0}}, 1};
    static const Layout q8_0{32, 34, {{0, 2, 2, 0}, {2, 32, 4, 0x80}}};
    static const Layout q2_k{256, 84, {{80, 4, 2, 0}, {0, 16, 1, 0}, {16, 64, 4, 0}}};
    static const Layout q3_k{256, 110, {{108, 2, 2, 0}, {96, 12, 1, 0}, {0, 32, 4, 0}, {32, 64, 4, 0}}};
    static const Layout q4_k{256, 144, {{0, 4, 2, 0}, {4, 12, 1, 0}, {16, 128, 4, 0}}};
    static const Layout q5_k{256, 176, {{0, 4, 2, 0}, {4, 12, 1, 0}, {16, 32, 4, 0}, {48, 128, 4, 0}}};
    static const Layout q6_k{256, 210, {{208, 2, 2, 0}, {192, 16, 1, 0}, {128, 64, 4, 0}, {0, 128, 4, 0}}};
    switch (static_cast<TensorType>(type)) {
        case TensorType::Q4_0: return &q4_0;
        case TensorType::Q4_1: return &q4_1;
        case TensorType::Q5_0: return &q5_0;
        case TensorType::Q5_1: return &q5_1;
        case TensorType::Q8_0: return &q8_0;
        case TensorType::Q2_K: return &q2_k;
        case TensorType::Q3_K: return &q3_k;
        case TensorType::Q4_K: return &q4_k;
        case TensorType::Q5_K: return &q5_k;
        case TensorType::Q6_K: return &q6_k;
        default: return nullptr;
    }
}

uint32_t transposed_bits(uint32_t bits) {
    uint32_t out = 0;
    for (uint32_t i = 0; i < 32; ++i) out |= (bits >> i & 1u) << (8 * (i % 4) + i / 4);
    return out;
}

template <size_t Unit>
uint8_t* deal(const uint8_t* const* rows, size_t nbytes, uint8_t* out) {
    for (size_t i = 0; i < nbytes; i += Unit)
        for (size_t r = 0; r < kGroup; ++r, out += Unit) std::memcpy(out, rows[r] + i, Unit);
    return out;
}

void pack_group(const Layout& layout, const uint8_t* const* rows, size_t n_blocks, uint8_t* out) {
    for (size_t b = 0; b < n_blocks; ++b) {
        for (int i = 0; i < 4; ++i) {
            const Field& f = layout.fields[i];
            if (f.nbytes == 0) break;
            const uint8_t* from[kGroup];
            for (size_t r = 0; r < kGroup; ++r) from[r] = rows[r] + b * layout.bytes + f.offset;
            uint8_t* begin = out;
            out = f.unit == 1 ? deal<1>(from, f.nbytes, out) : f.unit == 2 ? deal<2>(from, f.nbytes, out) : deal<4>(from, f.nbytes, out);
            if (f.flip)
                for (uint8_t* p = begin; p < out; ++p) *p ^= f.flip;
            if (i == layout.high_bits) {
                for (uint8_t* p = begin; p < out; p += 4) {
                    uint32_t bits;
                    std::memcpy(&bits, p, 4);
                    bits = transposed_bits(bits);
                    std::memcpy(p, &bits, 4);
                }
            }
        }
    }
}

struct Span {
    uintptr_t begin, end;
};

// Mappings of files that cannot be written to: their pages come back from the file when they are asked for again.
std::vector<Span> file_mappings() {
    std::vector<Span> found;
    const std::unique_ptr<FILE, int (*)(FILE*)> maps(std::fopen("/proc/self/maps", "re"), std::fclose);
    if (!maps) return found;
    char line[512];
    bool fresh = true;  // paths may be longer than a line that is read
    while (std::fgets(line, sizeof line, maps.get())) {
        uint64_t begin, end, inode;
        char rights[8];
        if (fresh && std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %*s %*s %" SCNu64, &begin, &end, rights, &inode) == 4 &&
            rights[1] == '-' && inode != 0)
            found.push_back({static_cast<uintptr_t>(begin), static_cast<uintptr_t>(end)});
        fresh = std::strchr(line, '\n') != nullptr;
    }
    return found;
}

void give_back(uintptr_t begin, uintptr_t end) {
    static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

// Source bytes that a thread has packed before it gives their pages back.
constexpr size_t kReleaseBytes = 1 << 20;
constexpr size_t kHugePage = 2 << 20;

}  // namespace

size_t packed_group_bytes(uint32_t type, size_t n_columns) {
    const Layout* layout = layout_of(type);
    return layout ? round_up(n_columns / layout->elements * layout->bytes * kGroup, 64) : 0;
}

int Pack::build(const Kernels& kernels, Pool& pool, hetrun_weight* weights, size_t n) {
    const std::vector<Span> files = file_mappings();
    uint64_t total = 0;
    for (size_t i = 0; i < n; ++i) {
        hetrun_weight& w = weights[i];
        w.packed = 0;
        const Layout* layout = layout_of(w.type);
        if (layout == nullptr || kernels.types[w.type]->gemv == nullptr) continue;
        if (w.n_columns % layout->elements != 0 || w.n_columns < 1 || w.n_columns > UINT32_MAX || w.address == 0)
            return HETRUN_BAD_ARGUMENT;
        const uint64_t row_bytes = w.n_columns / layout->elements * layout->bytes;
        if (w.nbytes < product(row_bytes, w.n_rows)) return HETRUN_BAD_ARGUMENT;
        const uintptr_t begin = static_cast<uintptr_t>(w.address), end = begin + static_cast<uintptr_t>(w.nbytes);
        const bool release = (w.flags & HETRUN_WEIGHT_OF_FILE) && std::any_of(files.begin(), files.end(), [&](const Span& s) {
                                 return s.begin <= begin && end <= s.end;
                             });
        const size_t group_bytes = packed_group_bytes(w.type, static_cast<size_t>(w.n_columns));
        w.packed = total + 1;  // its place, until the memory is there
        total += product(group_bytes, (w.n_rows + kGroup - 1) / kGroup);
        jobs_.push_back({&w, group_bytes, static_cast<size_t>(row_bytes), release});
    }
    if (jobs_.empty()) return HETRUN_OK;
    if (!memory_.allocate(total + kHugePage)) return HETRUN_NO_MEMORY;
    const uintptr_t base = round_up(reinterpret_cast<uintptr_t>(memory_.data()), kHugePage);
    madvise(reinterpret_cast<void*>(base), static_cast<size_t>(total), MADV_HUGEPAGE);
    for (const Job& job : jobs_) const_cast<hetrun_weight*>(job.weight)->packed += base - 1;
    for (const Job& job : jobs_) zeros_.resize(std::max(zeros_.size(), job.row_bytes));
    pool_ = &pool;
    Pool::Record record;
    pool.run(entry, this, record);
    for (const Job& job : jobs_) {
        const uintptr_t begin = static_cast<uintptr_t>(job.weight->address);
        if (job.release) give_back(begin, begin + static_cast<uintptr_t>(job.weight->nbytes));
    }
    jobs_.clear();
    return HETRUN_OK;
}

void Pack::entry(void* self, uint32_t thread) { static_cast<const Pack*>(self)->work(thread); }

void Pack::work(uint32_t thread) const {
    for (const Job& job : jobs_) {
        const hetrun_weight& w = *job.weight;
        const Layout& layout = *layout_of(w.type);
        const uint8_t* source = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(w.address));
        uint8_t* packed = reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(w.packed));
        const size_t n_rows = static_cast<size_t>(w.n_rows), groups = (n_rows + kGroup - 1) / kGroup;
        const size_t threads = pool_->active();
        const size_t begin = groups * thread / threads, end = groups * (thread + 1) / threads;
        size_t kept = begin;  // the first group whose source is still held
        for (size_t g = begin; g < end; ++g) {
            const uint8_t* rows[kGroup];
            for (size_t r = 0; r < kGroup; ++r) {
                const size_t row = g * kGroup + r;
                rows[r] = row < n_rows ? source + row * job.row_bytes : zeros_.data();
            }
            pack_group(layout, rows, static_cast<size_t>(w.n_columns) / layout.elements, packed + g * job.group_bytes);
            const size_t held = (std::min(n_rows, (g + 1) * kGroup) - kept * kGroup) * job.row_bytes;
            if (job.release && (held >= kReleaseBytes || g + 1 == end)) {
                const uintptr_t from = reinterpret_cast<uintptr_t>(source) + kept * kGroup * job.row_bytes;
                give_back(from, from + held);
                kept = g + 1;
            }
        }
    }
}

}  // namespace hetrun::cpu
