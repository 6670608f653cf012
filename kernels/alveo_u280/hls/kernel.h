// A kernel of lanes around its four channels: who gets which beats of a command, and in which order their results leave.
#pragma once

#include "flow.h"

namespace hetrun::u280 {

// What of the ATTEND that it is in a kernel must know of its channels.
struct Shares {
    uint32_t count[kLaneChannels], n_own[kLaneChannels];
};

// `n` results of a channel come next.
struct Turn {
    uint32_t channel, n;
};
constexpr uint32_t kNoMore = kLaneChannels;

// One command to the channels that it is for, and to turns what they will give. False at the end.
template <class Commands, class Out, class Turns>
bool distribute_step(Shares& shares, Commands& commands, Out* out, Turns& turns) {
    Command command = command_of(commands.read());
    const auto to_all = [&](const Beat& beat) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            out[c].write(beat);
        }
    };
    const auto pass_on = [&](uint32_t channel, uint32_t n) {
        for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
            out[channel].write(commands.read());
        }
    };
    const uint32_t n_queries = command.n_queries, chunks = command.chunks, floats = divided(n_queries, kFloats);
    if (command.kind == kCommandEmbed) {
        const Format f = kFormats[command.format];
        out[command.channel].write(beat_of(command));
        turns.write({command.channel, value_beats(f, command.n_columns) * f.columns / kFloats});
        return true;
    }
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Command own = command;
        own.n_forward[0] = command.n_forward[c];
        out[c].write(beat_of(own));
    }
    switch (command.kind) {
        case kCommandActivations: {
            const uint32_t n_blocks = command.n_columns / kBlock, n = 1 + command.n_tokens * (divided(n_blocks, kCodes) + command.n_columns / kCodes);
            for (uint32_t i = 0; i < n; ++i) {
#pragma HLS PIPELINE II = 1
                to_all(commands.read());
            }
            return true;
        }
        case kCommandMultiply:
            for (uint32_t b = 0; b < command.n_blocks; b += group_blocks(kFormats[command.format])) {
                for (uint32_t c = 0; c < kLaneChannels; ++c) turns.write({c, command.n_tokens});
            }
            return true;
        case kCommandForward:
            for (uint32_t c = 0; c < kLaneChannels; ++c) turns.write({c, command.n_forward[c]});
            return true;
        case kCommandKeys:
            for (uint32_t c = 0; c < kLaneChannels; ++c) {
                const Beat beat = commands.read();
                const Cells cells = cells_of(beat);
                out[c].write(beat);
                shares.count[c] = cells.count();
                shares.n_own[c] = cells.n_own;
                if (cells.count() == 0) continue;
                pass_on(c, command.n_sets * n_queries * (1 + 2 * chunks) + cells.n_own * (1 + chunks));
            }
            for (uint32_t c = 0; c < kLaneChannels; ++c) turns.write({c, shares.count[c] == 0 ? 0 : floats});
            return true;
        case kCommandWeights:
        case kCommandValues:
            for (uint32_t c = 0; c < kLaneChannels; ++c) {
                if (shares.count[c] != 0) pass_on(c, floats + shares.n_own[c] * (command.kind == kCommandWeights ? 1 : chunks));
            }
            for (uint32_t c = 0; c < kLaneChannels; ++c) {
                turns.write({c, shares.count[c] == 0 ? 0 : n_queries * (command.kind == kCommandWeights ? 1 : chunks * 128 / kFloats)});
            }
            return true;
        default: turns.write({kNoMore, 0}); return false;
    }
}

// The results of one turn. False at the end.
template <class Turns, class In, class Results>
bool collect_step(Turns& turns, In* in, Results& results) {
    const Turn turn = turns.read();
    if (turn.channel == kNoMore) return false;
    for (uint32_t i = 0; i < turn.n; ++i) {
#pragma HLS PIPELINE II = 1
        results.write(in[turn.channel].read());
    }
    return true;
}

}  // namespace hetrun::u280
