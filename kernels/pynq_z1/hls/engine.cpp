// The engine: two masters read tiles of weights, which are unpacked, multiplied and summed as they arrive.
//
//   memory --HP0--> read_port --+
//                               +--> unpack --> multiply --> finish --> activate --> write --> memory
//   memory --HP2--> read_port --+   (planes)   (integers)   (floats)
//
// Activations of the descriptor wait in block RAM, as gates do that the next descriptor's results meet. Weights are used once and
// never stored.
//
// Vitis HLS wants of this source: of an array one process that reads or writes it, of a stream one place in the loop that does,
// arrays split by whole dimensions, and nothing but scalars, streams and arrays between processes.
#include "engine.h"

#include <cstring>

#include "activation.h"
#include "formats.h"
#include "master.h"
#include "stream.h"
#include "types.h"
#ifdef HETRUN_PYNQ_FAST
#include HETRUN_PYNQ_FAST  // host/fast.h
#endif

namespace hetrun::pynq {
namespace {

constexpr uint32_t kTokens = HETRUN_PYNQ_TOKENS, kMaxRows = HETRUN_PYNQ_MAX_ROWS;
constexpr int kSub = 16;  // columns whose products are summed before a scale meets them
constexpr int kSubsOfPacket = kPacket / kSub;
constexpr uint32_t kTokenPairs = kTokens / 2, kMaxPackets = HETRUN_PYNQ_MAX_COLUMNS / kPacket;
constexpr uint32_t kWriteRows = HETRUN_PYNQ_WRITE_ROWS, kMaxBlockRows = 256;
constexpr uint32_t kPairsOfBurst = HETRUN_PYNQ_BURST_WORDS / 2;
// Pairs of tokens, idle ones among them, for which a row passes the float tail: a sum is met again late enough.
constexpr uint32_t kLeastPairs = HETRUN_PYNQ_SUM_DISTANCE / HETRUN_PYNQ_TILE_ROWS;

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

// Of a row.
struct ResultPair {
    float token[2];
};

template <class T, int Depth = 2>
using Stream = hls::stream<T, Depth>;
using PairStream = Stream<Pair, HETRUN_PYNQ_FIFO_WORDS / 2>;
using OutputStream = Stream<ResultPair, HETRUN_PYNQ_OUTPUT_PAIRS>;

uint32_t pairs_of(const Descriptor& d) {
    return d.n_rows / kTileRows * d.n_chunks * (static_cast<uint32_t>(tile_words(kFormats[d.format])) / 2);
}

// Asks for the port's next burst, if there is one.   weights_word: where all begin.
void ask(ReadMaster& weights, uint32_t weights_word, uint32_t n_pairs, uint32_t& asked) {
#pragma HLS INLINE
    if (asked < n_pairs) {
        const uint32_t left = n_pairs - asked;
        weights.read_request(weights_word + 2 * asked, 2 * (left < kPairsOfBurst ? left : kPairsOfBurst));
    }
    asked += HETRUN_PYNQ_PORTS * kPairsOfBurst;
}

// Bursts First, First + ports, ... of the weights: the ports take turns, so that both meet all banks of the DRAM. Each is asked for
// while the ones before it are under way, and a word a cycle is read.
template <uint32_t First>
void read_port(ReadMaster weights, uint32_t weights_word, uint32_t n_pairs, PairStream& out) {
    constexpr uint32_t kSkip = (HETRUN_PYNQ_PORTS - 1) * kPairsOfBurst;
    if (First >= HETRUN_PYNQ_PORTS) return;
    uint32_t asked = First * kPairsOfBurst;
    for (int i = 0; i < HETRUN_PYNQ_OUTSTANDING - 1; ++i) ask(weights, weights_word, n_pairs, asked);
    for (uint32_t pair = First * kPairsOfBurst; pair < n_pairs;) {
#pragma HLS PIPELINE II = 2
        if (pair % kPairsOfBurst == 0) ask(weights, weights_word, n_pairs, asked);
        Pair words;
        words.word[0] = weights.read();
        words.word[1] = weights.read();
        out.write(words);
        if (++pair % kPairsOfBurst == 0) pair += kSkip;
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

void unpack(uint32_t format, uint32_t n_pairs, PairStream& in0, PairStream& in1, Stream<Packet, 4>& packets, Stream<Head, 4>& heads,
            uint32_t& busy, uint32_t& stalls) {
    const Format f = kFormats[format];
    const int header = header_words(f), words = tile_words(f), last_packet = packets_of_row(f) - 1;
    Header h{};
#pragma HLS ARRAY_PARTITION variable = h.low complete
#pragma HLS ARRAY_PARTITION variable = h.second complete
#pragma HLS ARRAY_PARTITION variable = h.high complete
#pragma HLS ARRAY_PARTITION variable = h.d complete
#pragma HLS ARRAY_PARTITION variable = h.m complete
    uint64_t planes[8] = {};
#pragma HLS ARRAY_PARTITION variable = planes complete
    int at = 0, plane = 0, row = 0, number = 0;  // word of the tile; plane of the packet; its row and number in the row
    uint32_t n_busy = 0, n_stalls = 0;
    while (n_busy < n_pairs) {
#pragma HLS PIPELINE II = 1
        Pair pair;
        bool came;
        if (HETRUN_PYNQ_PORTS == 2 && n_busy / kPairsOfBurst % 2 != 0) {
            came = in1.read_nb(pair);
        } else {
            came = in0.read_nb(pair);
        }
        if (!came) {
            ++n_stalls;
            continue;
        }
        ++n_busy;
        Packet packet{};
        bool complete = false;  // a packet: at most one of the two words ends one, since codes have two bits at least
        for (int i = 0; i < 2; ++i) {
#pragma HLS UNROLL
            if (at + i < header) {
                h.set(f, at + i, pair.word[i]);
                continue;
            }
            planes[plane++] = pair.word[i];
            if (plane < f.bits) continue;
            for (int b = 0; b < 8; ++b) {
#pragma HLS UNROLL
                packet.plane[b] = planes[b];
            }
            complete = true;
            plane = 0;
        }
        at += 2;
        if (at == words) at = 0;
        if (!complete) continue;
        for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
            h.scale(f, row, number * kSubsOfPacket + s, packet.scale[s], packet.minimum[s]);
        }
        packets.write(packet);
        if (number != last_packet) {
            ++number;
            continue;
        }
        heads.write(h.head(f, row));
        number = 0;
        row = row == kTileRows - 1 ? 0 : row + 1;
    }
    busy = n_busy;
    stalls = n_stalls;
}

// Two's complement of n bits, or unsigned, from planes.
void codes_of(const Packet& packet, const Format& f, Int<8> codes[kPacket]) {
#pragma HLS INLINE
#ifdef HETRUN_PYNQ_FAST
    codes_of_planes(packet.plane, f.bits, f.is_signed, codes);
#else
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
#endif
}

// Sixteen products with each of two tokens.   n: of the two, those that are there.
void dot16(const Int<8>* weights, const Int<8>* x0, const Int<8>* x1, uint32_t n, Int<20>& dot0, Int<20>& dot1) {
#pragma HLS INLINE
#ifdef HETRUN_PYNQ_AP
    // A multiplier takes both tokens, 17 bits apart: a lower product below zero has borrowed one from the upper.
    (void)n;
    Int<20> low = 0, high = 0;
    for (int k = 0; k < kSub; ++k) {
#pragma HLS UNROLL
        const Int<25> both = (Int<25>(x1[k]) << 17) + x0[k];
        const Int<33> product = both * weights[k];
#pragma HLS BIND_OP variable = product op = mul impl = dsp
        const Int<17> lower = product;
        low += lower;
        high += Int<16>((product >> 17) + product[16]);
    }
    dot0 = low;
    dot1 = high;
#elif defined(HETRUN_PYNQ_FAST)
    dot0 = dot_of_sixteen(weights, x0);
    dot1 = n == 2 ? dot_of_sixteen(weights, x1) : 0;
#else
    int low = 0, high = 0;
    for (int k = 0; k < kSub; ++k) low += weights[k] * x0[k];
    for (int k = 0; k < kSub && n == 2; ++k) high += weights[k] * x1[k];
    dot0 = low;
    dot1 = high;
#endif
}

// A packet meets two tokens an iteration. One flat loop: a nest would fill and drain its pipeline for every packet.
void multiply(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens,
              const Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket], const Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket],
              Stream<Packet, 4>& packets, Stream<PartialPair, 8>& partials) {
    const Format f = kFormats[format];
    const uint32_t n_packets = static_cast<uint32_t>(packets_of_row(f)), n_pairs = (n_tokens + 1) / 2, row_packets = n_chunks * n_packets;
    const uint32_t n = n_rows * row_packets * n_pairs;
    Packet packet{};
    Int<8> weights[kPacket] = {};
#pragma HLS ARRAY_PARTITION variable = weights complete
    Partial sums[kTokenPairs][2] = {};
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 0
    uint32_t pair = 0, first = 0;  // pair of tokens; first packet of the chunk
    uint32_t p = 0;                // packet of the row in its chunk
    int row = 0;                   // of the tile
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = HETRUN_PYNQ_PACKET_CYCLES
        if (pair == 0) {
            packet = packets.read();
            codes_of(packet, f, weights);
        }
        const uint32_t at = first + p, here = n_tokens - 2 * pair;
        Int<20> dot[2][kSubsOfPacket];
        for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
            dot16(weights + s * kSub, codes[pair][0][at] + s * kSub, codes[pair][1][at] + s * kSub, here < 2 ? 1 : 2, dot[0][s], dot[1][s]);
        }
        PartialPair out{};
        for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
            if (h >= here) continue;
            Partial sum = sums[pair][h];
            if (f.super) {
                Int<29> isum = 0;
                Int<23> msum = 0;
                for (int s = 0; s < kSubsOfPacket; ++s) {
#pragma HLS UNROLL
                    const Int<28> scaled = packet.scale[s] * dot[h][s];
                    const Int<18> least = packet.minimum[s] * code_sums[pair][h][at][s];
                    isum = isum + scaled;
                    msum = msum + least;
                }
                sum.isum[0] = p == 0 ? isum : Int<29>(sum.isum[0] + isum);
                sum.msum[0] = p == 0 ? msum : Int<23>(sum.msum[0] + msum);
            } else {
                for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                    sum.isum[b] = dot[h][2 * b] + dot[h][2 * b + 1];
                    sum.msum[b] = code_sums[pair][h][at][2 * b] + code_sums[pair][h][at][2 * b + 1];
                }
            }
            sums[pair][h] = sum;
            out.token[h] = sum;
        }
        if (p == n_packets - 1) partials.write(out);
        if (++pair < n_pairs) continue;
        pair = 0;
        if (++p < n_packets) continue;
        p = 0;
        if (++row < kTileRows) continue;
        row = 0;
        first += n_packets;
        if (first == row_packets) first = 0;
    }
}

// acc = acc + (d * xd) * isum, then, of formats with minima, acc = acc -+ (m * xd) * msum: each operator rounds to nearest even,
// integers that exceed 24 bits too. The columns come in order; the two blocks of a 64-column chunk have a sum each, added last.
// Two tokens an iteration. A sum is met again after SUM_DISTANCE of them, which hides the latency of two additions: a single pair
// of tokens has an idle iteration beside it, which costs nothing, since rows come no faster. The sums of a group leave row by row.
void finish(uint32_t format, uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens,
            const float scales[kTokenPairs][2][kMaxPackets][2], Stream<Head, 4>& heads, Stream<PartialPair, 8>& partials,
            Stream<ResultPair, 16>& results) {
    const Format f = kFormats[format];
    const uint32_t n_pairs = (n_tokens + 1) / 2, n_slots = n_pairs < kLeastPairs ? kLeastPairs : n_pairs;
    const uint32_t n = n_rows * n_chunks * n_slots;
    float sums[kTileRows][kTokenPairs][2][2];  // by row, pair, token and block
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 3
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 4
#pragma HLS DEPENDENCE variable = sums inter RAW distance = HETRUN_PYNQ_SUM_DISTANCE true
    float head_d[2] = {}, head_m[2] = {};
    uint32_t slot = 0, chunk = 0;
    int row = 0;
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
        if (slot == 0) {
            const Head head = heads.read();
            for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                head_d[b] = half_to_float(head.d[b]);
                head_m[b] = half_to_float(head.m[b]);
            }
        }
        if (slot < n_pairs) {
            const PartialPair pair = partials.read();
            ResultPair result{};
            for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
                if (2 * slot + h >= n_tokens) continue;
                // A word of two scales: of two super-blocks, or of the two blocks of a chunk.
                const uint32_t word = f.super ? chunk / 2 : chunk;
                const float even = scales[slot][h][word][0], odd = scales[slot][h][word][1];
                float block[2] = {};
                for (int b = 0; b < 2; ++b) {
#pragma HLS UNROLL
                    if (f.super && b != 0) continue;
                    const float xd = (f.super ? chunk % 2 != 0 : b != 0) ? odd : even;
                    const Partial& partial = pair.token[h];
                    const float product = times(times(head_d[b], xd), static_cast<float>(static_cast<int>(partial.isum[b])));
                    float sum = chunk == 0 ? product : plus(sums[row][slot][h][b], product);
                    if (f.minimum) {
                        const float least = times(times(head_m[b], xd), static_cast<float>(static_cast<int>(partial.msum[b])));
                        sum = plus(sum, f.subtracts ? -least : least);
                    }
                    sums[row][slot][h][b] = sum;
                    block[b] = sum;
                }
                result.token[h] = f.super ? block[0] : plus(block[0], block[1]);
            }
            if (chunk == n_chunks - 1) results.write(result);
        }
        if (++slot < n_slots) continue;
        slot = 0;
        if (++row < kTileRows) continue;
        row = 0;
        chunk = chunk == n_chunks - 1 ? 0 : chunk + 1;
    }
}

// Results pass, or stay as gates, or meet the gates of the descriptor before.
void activate(uint32_t mode, uint32_t gate_row, uint32_t n_rows, uint32_t n_tokens, float gates[kTokenPairs][2][kMaxRows],
              Stream<ResultPair, 16>& in, OutputStream& out) {
    const uint32_t n_pairs = (n_tokens + 1) / 2, n = n_rows * n_pairs;
    uint32_t pair = 0, row = gate_row;
    if (mode == HETRUN_PYNQ_MODE_WRITE || mode == HETRUN_PYNQ_MODE_GATE) {
        for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
            const ResultPair result = in.read();
            if (mode == HETRUN_PYNQ_MODE_WRITE) {
                out.write(result);
            } else {
                gates[pair][0][row] = result.token[0];
                gates[pair][1][row] = result.token[1];
            }
            pair = pair == n_pairs - 1 ? 0 : pair + 1;
            row = pair == 0 ? row + 1 : row;
        }
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 2  // the two tokens share the operators
        ResultPair result = in.read();
        for (uint32_t h = 0; h < 2; ++h) {
#pragma HLS UNROLL
            if (2 * pair + h < n_tokens) result.token[h] = silu_times(gates[pair][h][row], result.token[h]);
        }
        out.write(result);
        pair = pair == n_pairs - 1 ? 0 : pair + 1;
        row = pair == 0 ? row + 1 : row;
    }
}

// The results of a token and some rows leave together: floats of WRITE_ROWS, or the codes of a block.
void write(uint32_t mode, uint32_t n_rows, uint32_t n_tokens, uint32_t out, uint32_t out_stride, uint32_t out_rows, uint32_t out_scales,
           uint32_t out_scale_stride, OutputStream& results, uint32_t* memory) {
    const bool coded = mode == HETRUN_PYNQ_MODE_CODES_32 || mode == HETRUN_PYNQ_MODE_CODES_256;
    const uint32_t n_pairs = (n_tokens + 1) / 2, block_rows = mode == HETRUN_PYNQ_MODE_CODES_256 ? kMaxBlockRows : kWriteRows;
    float block[kTokenPairs][2][kMaxBlockRows];
#pragma HLS ARRAY_PARTITION variable = block complete dim = 2
#pragma HLS ARRAY_PARTITION variable = block cyclic factor = 2 dim = 3
    uint32_t largest[kTokenPairs][2];
#pragma HLS ARRAY_PARTITION variable = largest complete dim = 0
    float inverses[kTokens], scales[kTokens][kMaxRows / kWriteRows];
    uint32_t n_blocks = 0;
    for (uint32_t first = 0; first < n_rows && mode != HETRUN_PYNQ_MODE_GATE; first += block_rows) {
        const uint32_t left = n_rows - first, rows = left < block_rows ? left : block_rows;
        uint32_t pair = 0, row = 0;
        for (uint32_t i = 0; i < rows * n_pairs; ++i) {
#pragma HLS PIPELINE II = 1
            const ResultPair result = results.read();
            for (int h = 0; h < 2; ++h) {
#pragma HLS UNROLL
                // Magnitudes compare as their bits do, infinities and NaN above all others.
                const uint32_t magnitude = float_bits(result.token[h]) & 0x7fffffffu;
                block[pair][h][row] = result.token[h];
                largest[pair][h] = row == 0 || magnitude > largest[pair][h] ? magnitude : largest[pair][h];
            }
            pair = pair == n_pairs - 1 ? 0 : pair + 1;
            row = pair == 0 ? row + 1 : row;
        }
        for (uint32_t t = 0; t < n_tokens && coded; ++t) {
#pragma HLS PIPELINE II = 1
            const uint32_t most = largest[t / 2][t % 2];
            const bool finite = most < 0x7f800000u, usable = finite && most >= kLeastUsable;
            const float value = usable ? bits_float(most) : 1.0f, inverse = over(127.0f, value), scale = over(value, 127.0f);
            inverses[t] = usable ? inverse : 0.0f;
            scales[t][n_blocks] = usable ? scale : bits_float(finite ? 0 : 0x7fc00000u);
        }
        for (uint32_t t = 0; t < n_tokens; ++t) {
            if (!coded) {
                const uint32_t to = (out + t * out_stride) / 4 + first, n = first >= out_rows ? 0 : out_rows - first < rows ? out_rows - first : rows;
                for (row = 0; row < n; ++row) {
#pragma HLS PIPELINE II = 1
                    memory[to + row] = float_bits(block[t / 2][t % 2][row]);
                }
                continue;
            }
            const uint32_t to = (out + t * out_stride + first) / 4;
            const float inverse = inverses[t];
            for (uint32_t word = 0; word < rows / 4; ++word) {
#pragma HLS PIPELINE II = 2
                uint32_t codes = 0;
                for (uint32_t k = 0; k < 4; ++k) {
#pragma HLS UNROLL
                    const float x = block[t / 2][t % 2][4 * word + k];
                    codes |= static_cast<uint32_t>(code_of(times(x, inverse))) << 8 * k;
                }
                memory[to + word] = codes;
            }
        }
        ++n_blocks;
    }
    for (uint32_t t = 0; t < n_tokens && coded; ++t) {
        const uint32_t to = (out_scales + t * out_scale_stride) / 4;
        for (uint32_t i = 0; i < n_blocks; ++i) {
#pragma HLS PIPELINE II = 1
            memory[to + i] = float_bits(scales[t][i]);
        }
    }
}

void load(const uint64_t* memory, const Descriptor& d, Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket],
          Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket], float scales[kTokenPairs][2][kMaxPackets][2]) {
    const Format f = kFormats[d.format];
    const uint32_t n_words = d.n_chunks * static_cast<uint32_t>(chunk_columns(f) / 8);
    const uint32_t n_scale_words = f.super ? (d.n_chunks + 1) / 2 : d.n_chunks;
    for (uint32_t t = 0; t < d.n_tokens; ++t) {
        const uint32_t codes_word = (d.codes + t * d.code_stride) / 8;
        Int<12> half = 0;
        for (uint32_t i = 0; i < n_words; ++i) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = memory[codes_word + i];
            Int<12> sum = 0;
            for (int k = 0; k < 8; ++k) {
#pragma HLS UNROLL
                const Int<8> code = static_cast<int8_t>(word >> 8 * k);
                for (uint32_t octet = 0; octet < 8; ++octet) {  // a bank is written in one place
#pragma HLS UNROLL
                    if (octet == i % 8) codes[t / 2][t % 2][i / 8][8 * octet + static_cast<uint32_t>(k)] = code;
                }
                sum = sum + code;
            }
            if (i % 2 == 0) {
                half = sum;
            } else {
                code_sums[t / 2][t % 2][i / 8][i / 2 % 4] = half + sum;
            }
        }
        const uint32_t scales_word = (d.scales + t * d.scale_stride) / 8;
        for (uint32_t i = 0; i < n_scale_words; ++i) {
#pragma HLS PIPELINE II = 1
            const uint64_t word = memory[scales_word + i];
            scales[t / 2][t % 2][i][0] = bits_float(static_cast<uint32_t>(word));
            scales[t / 2][t % 2][i][1] = bits_float(static_cast<uint32_t>(word >> 32));
        }
    }
}

void fetch(const uint64_t* memory, uint32_t address, Descriptor& d) {
    uint32_t fields[16];
#pragma HLS ARRAY_PARTITION variable = fields complete
    for (uint32_t i = 0; i < 8; ++i) {
#pragma HLS PIPELINE II = 1
        const uint64_t word = memory[address / 8 + i];
        fields[2 * i] = static_cast<uint32_t>(word);
        fields[2 * i + 1] = static_cast<uint32_t>(word >> 32);
    }
    d = {fields[0], fields[1], fields[2],  fields[3],  fields[4],  fields[5],  fields[6],  fields[7],
         fields[8], fields[9], fields[10], fields[11], fields[12], fields[13], fields[14], fields[15]};
}

// before: the descriptor that ran last.
uint32_t problem(const Descriptor& d, const Descriptor& before) {
    if (d.format >= HETRUN_PYNQ_FORMATS) return HETRUN_PYNQ_STATUS_BAD_FORMAT;
    const uint32_t most_chunks = kFormats[d.format].super ? kMaxPackets / 4 : kMaxPackets;
    if (d.n_rows == 0 || d.n_rows % kTileRows != 0 || d.n_rows > kMaxRows || d.n_chunks == 0 || d.n_chunks > most_chunks ||
        d.n_tokens == 0 || d.n_tokens > kTokens || d.out_rows > d.n_rows)
        return HETRUN_PYNQ_STATUS_BAD_SHAPE;
    if (((d.weights | d.codes | d.code_stride | d.scales | d.scale_stride) & 7) != 0 ||
        ((d.out | d.out_stride | d.out_scales | d.out_scale_stride) & 3) != 0)
        return HETRUN_PYNQ_STATUS_BAD_ADDRESS;
    if (d.mode == HETRUN_PYNQ_MODE_WRITE) return HETRUN_PYNQ_STATUS_OK;
    if (d.mode > HETRUN_PYNQ_MODE_CODES_256 || d.gate_row > kMaxRows - d.n_rows) return HETRUN_PYNQ_STATUS_BAD_MODE;
    if (d.mode == HETRUN_PYNQ_MODE_GATE) return HETRUN_PYNQ_STATUS_OK;
    const uint32_t block_rows = d.mode == HETRUN_PYNQ_MODE_CODES_256 ? kMaxBlockRows : kWriteRows;
    const bool blocks = d.mode == HETRUN_PYNQ_MODE_ACTIVATE || (d.n_rows % block_rows == 0 && d.out_rows == d.n_rows);
    const bool gated = before.mode == HETRUN_PYNQ_MODE_GATE && before.gate_row == d.gate_row && before.n_rows == d.n_rows &&
                       before.n_tokens == d.n_tokens;
    return blocks && gated ? HETRUN_PYNQ_STATUS_OK : HETRUN_PYNQ_STATUS_BAD_MODE;
}

void run(ReadMaster weights0, ReadMaster weights1, uint32_t* results, uint32_t weights_word, uint32_t n_pairs, uint32_t format,
         uint32_t n_rows, uint32_t n_chunks, uint32_t n_tokens, uint32_t mode, uint32_t gate_row, uint32_t out, uint32_t out_stride,
         uint32_t out_rows, uint32_t out_scales, uint32_t out_scale_stride, const Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket],
         const Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket], const float scales[kTokenPairs][2][kMaxPackets][2],
         float gates[kTokenPairs][2][kMaxRows], uint32_t& busy, uint32_t& stalls) {
    PairStream port0("PORT0"), port1("PORT1");
    Stream<Packet, 4> packets("PACKETS");
    Stream<Head, 4> heads("HEADS");
    Stream<PartialPair, 8> partials("PARTIALS");
    Stream<ResultPair, 16> sums("SUMS");
    OutputStream outputs("OUTPUTS");
    HETRUN_PYNQ_DATAFLOW(read_port<0>(weights0, weights_word, n_pairs, port0), read_port<1>(weights1, weights_word, n_pairs, port1),
                         unpack(format, n_pairs, port0, port1, packets, heads, busy, stalls),
                         multiply(format, n_rows, n_chunks, n_tokens, codes, code_sums, packets, partials),
                         finish(format, n_rows, n_chunks, n_tokens, scales, heads, partials, sums),
                         activate(mode, gate_row, n_rows, n_tokens, gates, sums, outputs),
                         write(mode, n_rows, n_tokens, out, out_stride, out_rows, out_scales, out_scale_stride, outputs, results))
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
    static Int<8> codes[kTokenPairs][2][kMaxPackets][kPacket];
#pragma HLS ARRAY_PARTITION variable = codes complete dim = 2
#pragma HLS ARRAY_PARTITION variable = codes complete dim = 4
#pragma HLS BIND_STORAGE variable = codes type = ram_2p impl = bram
    static Int<12> code_sums[kTokenPairs][2][kMaxPackets][kSubsOfPacket];
#pragma HLS ARRAY_PARTITION variable = code_sums complete dim = 2
#pragma HLS ARRAY_PARTITION variable = code_sums complete dim = 4
    static float scales[kTokenPairs][2][kMaxPackets][2];
#pragma HLS ARRAY_PARTITION variable = scales complete dim = 2
#pragma HLS ARRAY_PARTITION variable = scales complete dim = 4
    static float gates[kTokenPairs][2][kMaxRows];
#pragma HLS ARRAY_PARTITION variable = gates complete dim = 2
    *version = HETRUN_PYNQ_VERSION;
    *config = HETRUN_PYNQ_LANES | HETRUN_PYNQ_PORTS << 8 | HETRUN_PYNQ_TOKENS << 16;
    uint32_t busy = 0, stalls = 0, n_done = 0, state = HETRUN_PYNQ_STATUS_OK;
    Descriptor before{};
    for (uint32_t i = 0; i < count; ++i) {
        Descriptor d;
        fetch(inputs, ring + i * sizeof(Descriptor), d);
        state = problem(d, before);
        if (state != HETRUN_PYNQ_STATUS_OK) break;
        load(inputs, d, codes, code_sums, scales);
        uint32_t own_busy = 0, own_stalls = 0;
#ifdef HETRUN_PYNQ_FAST
        run_in_slabs(d, own_busy, own_stalls, [&](const Descriptor& slab, uint32_t& slab_busy, uint32_t& slab_stalls) {
            run(weights0, weights1, results, slab.weights / 8, pairs_of(slab), slab.format, slab.n_rows, slab.n_chunks, slab.n_tokens,
                slab.mode, slab.gate_row, slab.out, slab.out_stride, slab.out_rows, slab.out_scales, slab.out_scale_stride, codes,
                code_sums, scales, gates, slab_busy, slab_stalls);
        });
#else
        run(weights0, weights1, results, d.weights / 8, pairs_of(d), d.format, d.n_rows, d.n_chunks, d.n_tokens, d.mode, d.gate_row, d.out,
            d.out_stride, d.out_rows, d.out_scales, d.out_scale_stride, codes, code_sums, scales, gates, own_busy, own_stalls);
#endif
        busy += own_busy;
        stalls += own_stalls;
        before = d;
        ++n_done;
    }
    *status = state;
    *done = n_done;
    *busy_cycles = busy;
    *stall_cycles = stalls;
}
