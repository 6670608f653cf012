#include "pack.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>

#include "gguf_blocks.h"
#include "isa/decode.h"
#include "isa/decode_256.h"

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
    void (*arrange)(const uint8_t* block, uint8_t* out) = nullptr;  // of the codes, whose field begins at 0
    uint16_t row_tail = 0;                                          // bytes behind the blocks of a row

    size_t row_bytes(size_t n_columns) const { return n_columns / elements * bytes + row_tail; }
    // Bytes of a row in a group.
    size_t packed_bytes(size_t n_columns) const {
        size_t block = 0;
        for (const Field& f : fields) block += f.nbytes;
        return n_columns / elements * block + row_tail;
    }
};

// 32 codes, a byte each.
typedef uint8_t Codes __attribute__((vector_size(32)));

void load_codes(const uint8_t* from, Codes& to) { std::memcpy(&to, from, sizeof to); }

// Three words of each four columns, one behind the other.
void store_words(const Codes* words, uint8_t* out) {
    for (size_t j = 0; j < 8; ++j)
        for (size_t i = 0; i < 3; ++i) std::memcpy(out + 4 * (3 * j + i), reinterpret_cast<const uint8_t*>(words + i) + 4 * j, 4);
}

void arrange_q3_k(const uint8_t* block, uint8_t* out) {
    const auto* b = reinterpret_cast<const BlockQ3_K*>(block);
    Codes high, low[2], code[8];
    load_codes(b->hmask, high);
    for (int i = 0; i < 2; ++i) load_codes(b->qs + 32 * i, low[i]);
    for (int s = 0; s < 8; ++s) code[s] = (low[s / 4] >> 2 * (s % 4) & 3) | (high >> s & 1) << 2;
    const Codes words[3] = {code[0] | code[1] << 3 | (code[6] & 6) << 5, code[2] | code[3] << 3 | (code[7] & 6) << 5,
                            code[4] | code[5] << 3 | (code[6] & 1) << 6 | (code[7] & 1) << 7};
    store_words(words, out);
}

void arrange_q6_k(const uint8_t* block, uint8_t* out) {
    const auto* b = reinterpret_cast<const BlockQ6_K*>(block);
    for (int half = 0; half < 2; ++half) {
        Codes high, low[2], code[4];
        load_codes(b->qh + 32 * half, high);
        for (int i = 0; i < 2; ++i) load_codes(b->ql + 64 * half + 32 * i, low[i]);
        for (int q = 0; q < 4; ++q) code[q] = (q < 2 ? low[q] & 15 : low[q - 2] >> 4) | (high >> 2 * q & 3) << 4;
        const Codes words[3] = {code[0] | (code[3] & 3) << 6, code[1] | (code[3] & 12) << 4, code[2] | (code[3] & 48) << 2};
        store_words(words, out + 96 * half);
    }
}

// 4 N codes of 2 bits: those of columns p, p + N, p + 2 N and p + 3 N in byte p, from the lowest bits on.
template <size_t N, class Code>
void store_quarters(const Code* codes, uint8_t* out) {
    for (size_t p = 0; p < N; ++p)
        out[p] = static_cast<uint8_t>(codes[p] | codes[p + N] << 2 | codes[p + 2 * N] << 4 | codes[p + 3 * N] << 6);
}

void arrange_tq1_0(const uint8_t* block, uint8_t* out) {
    int8_t codes[CodecTQ1_0::kBlock];
    float scales[CodecTQ1_0::kBlock / CodecTQ1_0::kSub];
    CodecTQ1_0::decode<1>(*reinterpret_cast<const BlockTQ1_0*>(block), codes, scales, nullptr);
    for (size_t half = 0; half < 2; ++half) store_quarters<32>(codes + 128 * half, out + 32 * half);
}

void arrange_w2(const uint8_t* block, uint8_t* out) {
    uint8_t codes[64];
    for (size_t i = 0; i < 64; ++i) codes[i] = block[i / 4] >> (2 * (i % 4)) & 3;
    store_quarters<16>(codes, out);
}

void arrange_w2s24(const uint8_t* block, uint8_t* out) {
    const auto* b = reinterpret_cast<const BlockW2S24*>(block);
    uint8_t codes[64];
    std::memset(codes, b->scale_zero[1] >> 6, sizeof codes);
    for (unsigned i = 0; i < 16; ++i) {
        const uint8_t* pair = kKeptPairs[pattern_of(*b, i)];
        if (pair[0] == pair[1]) continue;
        for (unsigned k = 0; k < 2; ++k) codes[4 * i + pair[k]] = b->qs[i / 2] >> (4 * (i % 2) + 2 * k) & 3;
    }
    store_quarters<16>(codes, out);
}

const Layout* layout_of(uint32_t type) {
    static const Layout q4_0{32, 18, {{0, 2, 2, 0}, {2, 16, 4, 0}}};
    static const Layout q4_1{32, 20, {{0, 4, 2, 0}, {4, 16, 4, 0}}};
    static const Layout q5_0{32, 22, {{0, 2, 2, 0}, {2, 4, 4, 0}, {6, 16, 4, 0}}, 1};
    static const Layout q5_1{32, 24, {{0, 4, 2, 0}, {4, 4, 4, 0}, {8, 16, 4, 0}}, 1};
    static const Layout q8_0{32, 34, {{0, 2, 2, 0}, {2, 32, 4, 0x80}}};
    static const Layout q2_k{256, 84, {{80, 4, 2, 0}, {0, 16, 2, 0}, {16, 64, 4, 0}}};
    static const Layout q3_k{256, 110, {{108, 2, 2, 0}, {96, 12, 2, 0}, {0, 96, 4, 0}}, -1, arrange_q3_k};
    static const Layout q4_k{256, 144, {{0, 4, 2, 0}, {4, 12, 1, 0}, {16, 128, 4, 0}}};
    static const Layout q5_k{256, 176, {{0, 4, 2, 0}, {4, 12, 1, 0}, {16, 32, 4, 0}, {48, 128, 4, 0}}};
    static const Layout q6_k{256, 210, {{208, 2, 2, 0}, {192, 16, 1, 0}, {0, 192, 4, 0}}, -1, arrange_q6_k};
    static const Layout iq4_xs{256, 136, {{0, 2, 2, 0}, {2, 2, 2, 0}, {4, 4, 4, 0}, {8, 128, 4, 0}}};
    static const Layout tq1_0{256, 54, {{52, 2, 2, 0}, {0, 64, 4, 0}}, -1, arrange_tq1_0};
    static const Layout tq2_0{256, 66, {{64, 2, 2, 0}, {0, 64, 4, 0}}};
    static const Layout mxfp4{32, 17, {{0, 1, 1, 0}, {1, 16, 4, 0}}};
    static const Layout w2{64, 18, {{16, 2, 2, 0}, {0, 16, 4, 0}}, -1, arrange_w2, kRowScaleBytes};
    static const Layout w2s24{64, 16, {{14, 2, 2, 0}, {0, 16, 4, 0}}, -1, arrange_w2s24, kRowScaleBytes};
    switch (static_cast<TensorType>(type)) {
        case TensorType::W2: return &w2;
        case TensorType::W2S24: return &w2s24;
        case TensorType::Q4_0:
        case TensorType::IQ4_NL: return &q4_0;
        case TensorType::Q4_1: return &q4_1;
        case TensorType::Q5_0: return &q5_0;
        case TensorType::Q5_1: return &q5_1;
        case TensorType::Q8_0: return &q8_0;
        case TensorType::Q2_K: return &q2_k;
        case TensorType::Q3_K: return &q3_k;
        case TensorType::Q4_K: return &q4_k;
        case TensorType::Q5_K: return &q5_k;
        case TensorType::Q6_K: return &q6_k;
        case TensorType::IQ4_XS: return &iq4_xs;
        case TensorType::TQ1_0: return &tq1_0;
        case TensorType::TQ2_0: return &tq2_0;
        case TensorType::MXFP4: return &mxfp4;
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
    uint8_t arranged[kGroup][192];
    for (size_t b = 0; b < n_blocks; ++b) {
        for (int i = 0; i < 4; ++i) {
            const Field& f = layout.fields[i];
            if (f.nbytes == 0) break;
            const uint8_t* from[kGroup];
            for (size_t r = 0; r < kGroup; ++r) {
                from[r] = rows[r] + b * layout.bytes + f.offset;
                if (layout.arrange && f.offset == 0) {
                    layout.arrange(from[r], arranged[r]);
                    from[r] = arranged[r];
                }
            }
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
    for (size_t r = 0; r < kGroup && layout.row_tail; ++r, out += layout.row_tail)
        std::memcpy(out, rows[r] + n_blocks * layout.bytes, layout.row_tail);
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
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kHugePage = 1;  // no room behind the last group, where a step too far would not be seen
#else
constexpr size_t kHugePage = 2 << 20;
#endif

}  // namespace

size_t packed_group_bytes(uint32_t type, size_t n_columns) {
    const Layout* layout = layout_of(type);
    return layout ? round_up(layout->packed_bytes(n_columns) * kGroup, 64) : 0;
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
        const uint64_t row_bytes = layout->row_bytes(static_cast<size_t>(w.n_columns));
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
