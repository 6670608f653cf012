// What flows from process to process of the engine, and the sizes that they share.
//
// This, descriptor.h, load.h and the processes (weights.h, multiply.h, finish.h, write.h) are parts of engine.cpp, which alone
// includes them: their names are its own.
#pragma once

#include <cstdint>

#include "fabric/stream.h"
#include "fabric/types.h"
#include "formats.h"

namespace hetrun::pynq {
using namespace fabric;
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

}  // namespace
}  // namespace hetrun::pynq
