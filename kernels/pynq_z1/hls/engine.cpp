// The engine: two masters read tiles of weights, which are unpacked, multiplied and summed as they arrive.
//
//   memory --HP0--> read_port --+
//                               +--> unpack --> multiply --> finish --> write --> memory
//   memory --HP2--> read_port --+       (planes)    (integers)   (floats)
//
// Activations of the descriptor wait in block RAM. Weights are used once and never stored.
#include "engine.h"

#include "formats.h"
#include "master.h"
#include "stream.h"
#include "types.h"

namespace hetrun::pynq {
namespace {

constexpr int kTokens = HETRUN_PYNQ_TOKENS, kMaxColumns = HETRUN_PYNQ_MAX_COLUMNS, kLanes = HETRUN_PYNQ_LANES;
constexpr int kSub = 16;  // columns whose products are summed before a scale meets them
constexpr int kSubsOfPacket = kPacket / kSub;
constexpr uint32_t kWriteRows = HETRUN_PYNQ_WRITE_ROWS;
constexpr uint32_t kPairsOfBurst = HETRUN_PYNQ_BURST_WORDS / 2;

// Two words: what the unpacker takes a cycle, so that both masters together may run at full speed.
struct Pair {
    uint64_t word[2];
};

// 64 codes of a row, with the scales and minima of their four sixteenths (of super-blocks).
struct Packet {
    uint64_t plane[8];
    Int<8> scale[kSubsOfPacket];
    UInt<6> minimum[kSubsOfPacket];
};

// What the floats of one row and chunk need. Super-blocks use entry 0, blocks of 32 one for each of the two.
struct Head {
    uint16_t d[2], m[2];
};

// Integer sums of one row, chunk and token: as in Head.
struct Partial {
    Int<29> isum[2];
    Int<23> msum[2];
};

// The same of two tokens.
struct PartialPair {
    Partial token[2];
};

struct Activations {
    Int<8> codes[kTokens][kMaxColumns];
    Int<12> sums[kTokens][kMaxColumns / kSub];
    float scales[kTokens][kMaxColumns / 32];
};

template <class T, int Depth = 2>
using Stream = hls::stream<T, Depth>;
using PairStream = Stream<Pair, HETRUN_PYNQ_FIFO_WORDS / 2>;

uint32_t pairs_of(const Descriptor& d) {
    return d.n_rows / kTileRows * d.n_chunks * (static_cast<uint32_t>(tile_words(kFormats[d.format])) / 2);
}

// Asks for the port's next burst, if there is one.
void ask(ReadMaster& weights, const Descriptor& d, uint32_t n_pairs, uint32_t& asked) {
#pragma HLS INLINE
    if (asked < n_pairs) {
        const uint32_t left = n_pairs - asked;
        weights.read_request(d.weights / 8 + 2 * asked, 2 * (left < kPairsOfBurst ? left : kPairsOfBurst));
    }
    asked += HETRUN_PYNQ_PORTS * kPairsOfBurst;
}

// Bursts first, first + ports, ... of the weights: the ports take turns, so that both meet all banks of the DRAM. Each is asked for
// while the ones before it are under way, and a word a cycle is read.
void read_port(ReadMaster weights, const Descriptor& d, uint32_t first, PairStream& out) {
    const uint32_t n_pairs = pairs_of(d), skip = (HETRUN_PYNQ_PORTS - 1) * kPairsOfBurst;
    uint32_t asked = first * kPairsOfBurst;
    for (int i = 0; i < HETRUN_PYNQ_OUTSTANDING - 1; ++i) ask(weights, d, n_pairs, asked);
    for (uint32_t pair = first * kPairsOfBurst; pair < n_pairs;) {
#pragma HLS PIPELINE II = 2
        if (pair % kPairsOfBurst == 0) ask(weights, d, n_pairs, asked);
        Pair words;
        words.word[0] = weights.read();
        words.word[1] = weights.read();
        out.write(words);
        if (++pair % kPairsOfBurst == 0) pair += skip;
    }
}

// The header of a tile: fields as formats.h has them.
struct Header {
    uint64_t low[8], second[8], high[4], d[4], m[4];

    void set(const Format& f, int at, uint64_t word) {
        int i = at;
        if (f.super) {
            if (i < 8) {
                low[i] = word;
                return;
            }
            i -= 8;
            if (f.second) {
                if (i < 8) {
                    second[i] = word;
                    return;
                }
                i -= 8;
            }
            if (f.high) {
                if (i < 4) {
                    high[i] = word;
                    return;
                }
                i -= 4;
            }
        }
        const int halves = f.super ? 2 : 4;
        if (i < halves) {
            d[i] = word;
        } else {
            m[i - halves] = word;
        }
    }

    // Scale and minimum of sixteenth `sub` of a row's super-block.
    void scale(const Format& f, int row, int sub, Int<8>& scale, UInt<6>& minimum) const {
        const int own = f.subs == 16 ? sub : sub / 2;
        const auto six = [&](int i) {
            return nibble(low[row], i) | static_cast<uint32_t>(high[row / 2] >> (row % 2 * 32 + 2 * i) & 3) << 4;
        };
        uint32_t value;
        if (f.scale_bits == 4) {
            value = nibble(low[row], own);
        } else if (f.scale_bits == 8) {
            value = nibble(low[row], own) | nibble(second[row], own) << 4;
        } else {
            value = six(own);
        }
        if (f.scale_signed && f.scale_bits == 6) value |= (value & 32) ? 0xc0u : 0;
        scale = static_cast<int8_t>(value);
        minimum = static_cast<uint8_t>(!f.minimum ? 0 : f.subs == 16 ? nibble(second[row], own) : six(8 + own));
    }

    Head head(const Format& f, int row) const {
        if (f.super) return {{half_of(d[row / 4], row % 4), 0}, {half_of(m[row / 4], row % 4), 0}};
        const int i = 2 * row;
        return {{half_of(d[i / 4], i % 4), half_of(d[i / 4], i % 4 + 1)}, {half_of(m[i / 4], i % 4), half_of(m[i / 4], i % 4 + 1)}};
    }
};

void unpack(const Descriptor& d, PairStream& in0, PairStream& in1, Stream<Packet, 4>& packets, Stream<Head, 4>& heads,
            uint32_t& busy, uint32_t& stalls) {
    const Format f = kFormats[d.format];
    const int header = header_words(f), words = tile_words(f), last_packet = packets_of_row(f) - 1;
    const uint32_t n_pairs = pairs_of(d);
    Header h{};
    Packet packet{};
    int at = 0, plane = 0, row = 0, number = 0;  // word of the tile; plane of the packet; its row and number in the row
    uint32_t n_busy = 0, n_stalls = 0;
    while (n_busy < n_pairs) {
#pragma HLS PIPELINE II = 1
        Pair pair;
        const bool second_port = HETRUN_PYNQ_PORTS == 2 && n_busy / kPairsOfBurst % 2 != 0;
        if (!(second_port ? in1 : in0).read_nb(pair)) {
            ++n_stalls;
            continue;
        }
        ++n_busy;
        for (int i = 0; i < 2; ++i) {
#pragma HLS UNROLL
            if (at + i < header) {
                h.set(f, at + i, pair.word[i]);
                continue;
            }
            packet.plane[plane++] = pair.word[i];
            if (plane < f.bits) continue;
            for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
                h.scale(f, row, number * kSubsOfPacket + s, packet.scale[s], packet.minimum[s]);
            }
            packets.write(packet);
            if (number == last_packet) heads.write(h.head(f, row));
            plane = 0;
            number = number == last_packet ? 0 : number + 1;
            row = number == 0 ? row + 1 : row;
        }
        at += 2;
        if (at == words) at = row = 0;
    }
    busy += n_busy;
    stalls += n_stalls;
}

// Two's complement of n bits, or unsigned, from planes.
void codes_of(const Packet& packet, const Format& f, Int<8> codes[kPacket]) {
#pragma HLS INLINE
#if defined(__SYNTHESIS__) || defined(HETRUN_PYNQ_AP)
    for (int k = 0; k < kPacket; ++k) {
#pragma HLS UNROLL
        uint32_t code = 0;
        for (int b = 0; b < 8; ++b) {
#pragma HLS UNROLL
            const int from = b < f.bits ? b : f.bits - 1;  // the sign extends
            if (b < f.bits || f.is_signed) code |= static_cast<uint32_t>(packet.plane[from] >> k & 1) << b;
        }
        codes[k] = static_cast<int8_t>(code);
    }
#else
    // Eight bits become eight bytes at once.
    uint64_t bytes[kPacket / 8] = {};
    for (int b = 0; b < f.bits; ++b) {
        const bool extends = f.is_signed && b == f.bits - 1;
        const uint64_t value = extends ? 0xffu & ~((1u << b) - 1) : 1u << b;
        for (int i = 0; i < kPacket / 8; ++i) {
            const uint64_t copies = (packet.plane[b] >> 8 * i & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
            bytes[i] |= ((copies + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u) * value;
        }
    }
    std::memcpy(codes, bytes, sizeof bytes);
#endif
}

// Sixteen products with one token.
Int<20> dot16(const Int<8>* codes, const Int<8>* x) {
#pragma HLS INLINE
    int sum = 0;
    for (int k = 0; k < kSub; ++k) {
#pragma HLS UNROLL
        const Int<16> product = codes[k] * x[k];
        sum += product;
    }
    return sum;
}

// A packet meets two tokens an iteration, which share a multiplier whose products lie 17 bits apart. One flat loop: a nest would
// fill and drain its pipeline for every packet.
void multiply(const Descriptor& d, const Activations& a, Stream<Packet, 4>& packets, Stream<PartialPair, 8>& partials) {
    const Format f = kFormats[d.format];
    const int last_packet = packets_of_row(f) - 1;
    const uint32_t n_pairs = (d.n_tokens + 1) / 2, columns = d.n_chunks * chunk_columns(f);
    const uint32_t n = d.n_rows * d.n_chunks * packets_of_row(f) * n_pairs;
    Packet packet{};
    Int<8> codes[kPacket];
#pragma HLS ARRAY_PARTITION variable = codes complete
    Partial sums[kTokens];
#pragma HLS ARRAY_PARTITION variable = sums complete
    uint32_t pair = 0, first = 0;  // pair of tokens; first column of the chunk
    int p = 0, row = 0;            // packet of the row, row of the tile
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = HETRUN_PYNQ_PACKET_CYCLES
        if (pair == 0) {
            packet = packets.read();
            codes_of(packet, f, codes);
        }
        const uint32_t column = first + p * kPacket;
        PartialPair out{};
        for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
            const uint32_t t = 2 * pair + h;
            if (t >= d.n_tokens) continue;
            const Int<8>* x = a.codes[t] + column;
            const Int<12>* x_sums = a.sums[t] + column / kSub;
            Int<20> dot[kSubsOfPacket];
            for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
                dot[s] = dot16(codes + s * kSub, x + s * kSub);
            }
            Partial& sum = sums[t];
            if (f.super) {
                Int<29> isum = p == 0 ? Int<29>(0) : sum.isum[0];
                Int<23> msum = p == 0 ? Int<23>(0) : sum.msum[0];
                for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
                    const Int<28> scaled = packet.scale[s] * dot[s];
                    const Int<18> least = packet.minimum[s] * x_sums[s];
                    isum = isum + scaled;
                    msum = msum + least;
                }
                sum.isum[0] = isum;
                sum.msum[0] = msum;
            } else {
                for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                    sum.isum[b] = dot[2 * b] + dot[2 * b + 1];
                    sum.msum[b] = x_sums[2 * b] + x_sums[2 * b + 1];
                }
            }
            out.token[h] = sum;
        }
        if (p == last_packet) partials.write(out);
        if (++pair < n_pairs) continue;
        pair = 0;
        if (++p <= last_packet) continue;
        p = 0;
        if (++row < kTileRows) continue;
        row = 0;
        first += chunk_columns(f);
        if (first == columns) first = 0;
    }
}

// acc = acc + (d * xd) * isum, then, of formats with minima, acc = acc -+ (m * xd) * msum: each operator rounds to nearest even,
// integers that exceed 24 bits too. The columns come in order; the two blocks of a 64-column chunk have a sum each, added last.
// A sum is met again after eight rows, which hides the additions' latency. The sums of a group leave row by row.
void finish(const Descriptor& d, const Activations& a, Stream<Head, 4>& heads, Stream<PartialPair, 8>& partials,
            Stream<float, 16>& results) {
    const Format f = kFormats[d.format];
    const int n_blocks = f.super ? 1 : 2;
    const uint32_t n = d.n_rows * d.n_chunks * d.n_tokens;
    float sums[kTileRows][kTokens][2];
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 3
#pragma HLS DEPENDENCE variable = sums inter RAW distance = HETRUN_PYNQ_TILE_ROWS true
    Head head{};
    PartialPair pair{};
    uint32_t t = 0, chunk = 0;
    int row = 0;
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
        if (t == 0) head = heads.read();
        if (t % 2 == 0) pair = partials.read();
        const Partial partial = pair.token[t % 2];
        float block[2] = {};
        for (int b = 0; b < n_blocks; ++b) {
            const float xd = a.scales[t][chunk * n_blocks + b];
            const float product = times(times(half_to_float(head.d[b]), xd), static_cast<float>(static_cast<int>(partial.isum[b])));
            float sum = chunk == 0 ? product : plus(sums[row][t][b], product);
            if (f.minimum) {
                const float least = times(times(half_to_float(head.m[b]), xd), static_cast<float>(static_cast<int>(partial.msum[b])));
                sum = plus(sum, f.subtracts ? -least : least);
            }
            sums[row][t][b] = sum;
            block[b] = sum;
        }
        if (chunk == d.n_chunks - 1) results.write(f.super ? block[0] : plus(block[0], block[1]));
        if (++t < d.n_tokens) continue;
        t = 0;
        if (++row < kTileRows) continue;
        row = 0;
        chunk = chunk == d.n_chunks - 1 ? 0 : chunk + 1;
    }
}

// The results of a token and some rows leave together.
void write(const Descriptor& d, Stream<float, 16>& results, uint32_t* memory) {
    for (uint32_t first = 0; first < d.n_rows; first += kWriteRows) {
        const uint32_t left = d.n_rows - first, n_rows = left < kWriteRows ? left : kWriteRows;
        uint32_t block[kTokens][kWriteRows];
        uint32_t t = 0, row = 0;
        for (uint32_t i = 0; i < n_rows * d.n_tokens; ++i) {
#pragma HLS PIPELINE II = 1
            block[t][row] = float_bits(results.read());
            t = t == d.n_tokens - 1 ? 0 : t + 1;
            row = t == 0 ? row + 1 : row;
        }
        for (t = 0; t < d.n_tokens; ++t) {
            uint32_t* out = memory + (d.out + t * d.out_stride) / 4 + first;
            for (row = 0; row < n_rows; ++row) {
#pragma HLS PIPELINE II = 1
                if (first + row < d.out_rows) out[row] = block[t][row];
            }
        }
    }
}

void load(const uint64_t* memory, const Descriptor& d, Activations& a) {
    const Format f = kFormats[d.format];
    const uint32_t columns = d.n_chunks * chunk_columns(f), n_scales = columns / (f.super ? 256 : 32);
    for (uint32_t t = 0; t < d.n_tokens; ++t) {
        const uint64_t* codes = memory + (d.codes + t * d.code_stride) / 8;
        Int<12> half = 0;
        for (uint32_t i = 0; i < columns / 8; ++i) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = codes[i];
            Int<12> sum = 0;
            for (int k = 0; k < 8; ++k) {
#pragma HLS UNROLL
                const Int<8> code = static_cast<int8_t>(word >> 8 * k);
                a.codes[t][8 * i + k] = code;
                sum = sum + code;
            }
            if (i % 2 == 0) {
                half = sum;
            } else {
                a.sums[t][i / 2] = half + sum;
            }
        }
        const uint64_t* scales = memory + (d.scales + t * d.scale_stride) / 8;
        for (uint32_t i = 0; i < n_scales; i += 2) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = scales[i / 2];
            a.scales[t][i] = bits_float(static_cast<uint32_t>(word));
            a.scales[t][i + 1] = bits_float(static_cast<uint32_t>(word >> 32));
        }
    }
}

void fetch(const uint64_t* memory, uint32_t address, Descriptor& d) {
    uint32_t fields[16];
    for (int i = 0; i < 8; ++i) {
#pragma HLS PIPELINE II = 1
        const uint64_t word = memory[address / 8 + i];
        fields[2 * i] = static_cast<uint32_t>(word);
        fields[2 * i + 1] = static_cast<uint32_t>(word >> 32);
    }
    d = {fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], fields[7], fields[8], fields[9], fields[10],
         fields[11], {}};
}

uint32_t problem(const Descriptor& d) {
    if (d.format >= HETRUN_PYNQ_FORMATS) return HETRUN_PYNQ_STATUS_BAD_FORMAT;
    const uint32_t most_chunks = kMaxColumns / chunk_columns(kFormats[d.format]);
    if (d.n_rows == 0 || d.n_rows % kTileRows != 0 || d.n_rows > HETRUN_PYNQ_MAX_ROWS || d.n_chunks == 0 || d.n_chunks > most_chunks ||
        d.n_tokens == 0 || d.n_tokens > kTokens || d.out_rows > d.n_rows)
        return HETRUN_PYNQ_STATUS_BAD_SHAPE;
    if (((d.weights | d.codes | d.code_stride | d.scales | d.scale_stride) & 7) != 0 || ((d.out | d.out_stride) & 3) != 0)
        return HETRUN_PYNQ_STATUS_BAD_ADDRESS;
    return HETRUN_PYNQ_STATUS_OK;
}

void run(ReadMaster weights0, ReadMaster weights1, uint32_t* results, const Descriptor& d, const Activations& a,
         uint32_t& busy, uint32_t& stalls) {
    PairStream port0("PORT0"), port1("PORT1");
    Stream<Packet, 4> packets("PACKETS");
    Stream<Head, 4> heads("HEADS");
    Stream<PartialPair, 8> partials("PARTIALS");
    Stream<float, 16> sums("SUMS");
    HETRUN_PYNQ_DATAFLOW(read_port(weights0, d, 0, port0), read_port(weights1, d, 1, port1),
                         unpack(d, port0, port1, packets, heads, busy, stalls), multiply(d, a, packets, partials),
                         finish(d, a, heads, partials, sums), write(d, sums, results))
}

}  // namespace
}  // namespace hetrun::pynq

extern "C" void hetrun_pynq_engine(hetrun::pynq::Weights weights0, hetrun::pynq::Weights weights1, const uint64_t* inputs,
                                   uint32_t* results, uint32_t ring, uint32_t count, uint32_t* version, uint32_t* config,
                                   uint32_t* status, uint32_t* done, uint32_t* busy_cycles, uint32_t* stall_cycles) {
#pragma HLS INTERFACE m_axi port = weights0 bundle = hp0 offset = off max_read_burst_length = 16 num_read_outstanding = HETRUN_PYNQ_OUTSTANDING
#pragma HLS INTERFACE m_axi port = weights1 bundle = hp2 offset = off max_read_burst_length = 16 num_read_outstanding = HETRUN_PYNQ_OUTSTANDING
#pragma HLS INTERFACE m_axi port = inputs bundle = hp1 offset = off max_read_burst_length = 16
#pragma HLS INTERFACE m_axi port = results bundle = hp3 offset = off max_write_burst_length = 16
#pragma HLS INTERFACE s_axilite port = ring
#pragma HLS INTERFACE s_axilite port = count
#pragma HLS INTERFACE s_axilite port = version
#pragma HLS INTERFACE s_axilite port = config
#pragma HLS INTERFACE s_axilite port = status
#pragma HLS INTERFACE s_axilite port = done
#pragma HLS INTERFACE s_axilite port = busy_cycles
#pragma HLS INTERFACE s_axilite port = stall_cycles
#pragma HLS INTERFACE s_axilite port = return
    using namespace hetrun::pynq;
    static Activations activations;
#pragma HLS ARRAY_PARTITION variable = activations.codes cyclic factor = 64 dim = 2
#pragma HLS ARRAY_PARTITION variable = activations.codes cyclic factor = 2 dim = 1
#pragma HLS ARRAY_PARTITION variable = activations.sums cyclic factor = 4 dim = 2
    *version = HETRUN_PYNQ_VERSION;
    *config = HETRUN_PYNQ_LANES | HETRUN_PYNQ_PORTS << 8 | HETRUN_PYNQ_TOKENS << 16;
    uint32_t busy = 0, stalls = 0, i = 0, state = HETRUN_PYNQ_STATUS_OK;
    for (; i < count && state == HETRUN_PYNQ_STATUS_OK; ++i) {
        Descriptor d;
        fetch(inputs, ring + i * sizeof(Descriptor), d);
        state = problem(d);
        if (state != HETRUN_PYNQ_STATUS_OK) break;
        load(inputs, d, activations);
        run(weights0, weights1, results, d, activations, busy, stalls);
    }
    *status = state;
    *done = i;
    *busy_cycles = busy;
    *stall_cycles = stalls;
}
