// A kernel of lanes around its four channels: who gets which beats of a command, and in which order their results leave.
#pragma once

#include "fabric/pipeline.h"
#include "flow.h"

namespace hetrun::u280 {

// What of the ATTEND that it is in a kernel must know of its channels: the cells of the three units that are under way.
struct Shares {
    uint32_t count[3][kLaneChannels], n_own[3][kLaneChannels];
};

// `n` results of a channel come next. kTogether: so many of each, of whose first `rows` floats one beat is made.
struct Turn {
    uint32_t channel, n, rows;
};
constexpr uint32_t kTogether = kLaneChannels, kNoMore = kLaneChannels + 1;

// `n` beats to a channel.
template <class Commands, class Out>
void pass_on(uint32_t n, Commands& commands, Out& out) {
    for (uint32_t i = 0; i < n; ++i) {
        HETRUN_FABRIC_PIPELINE(1);
        out.write(commands.read());
    }
}

// The parts of an Attend, each for one channel after the other (attend.h).
template <class Commands, class Out, class Turns>
void distribute_units(Shares& shares, const Command& command, Commands& commands, Out* out, Turns& turns) {
    const uint32_t n_queries = command.n_queries;
    const auto has = [&](uint32_t part) { return (command.parts & part) != 0; };
    for (uint32_t c = 0; c < kLaneChannels && has(kPartValues); ++c) {
        if (shares.count[0][c] != 0) pass_on(1 + shares.n_own[0][c] * command.chunks, commands, out[c]);
    }
    for (uint32_t c = 0; c < kLaneChannels && has(kPartWeights); ++c) {
        if (shares.count[1][c] != 0) pass_on(1 + shares.n_own[1][c], commands, out[c]);
    }
    for (uint32_t c = 0; c < kLaneChannels && has(kPartKeys); ++c) {
        const Beat beat = commands.read();
        const Cells cells = cells_of(beat);
        out[c].write(beat);
        shares.count[2][c] = cells.count();
        shares.n_own[2][c] = cells.n_own;
        if (cells.count() == 0) continue;
        pass_on(command.n_sets * n_queries * query_beats(command.n_columns) + cells.n_own * (1 + command.chunks), commands, out[c]);
    }
    const uint32_t n_results[3] = {n_queries * divided(command.n_columns, kFloats), divided(n_queries, kTriplets), 1};
    for (uint32_t unit = 0; unit < 3; ++unit) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
            if (has(1u << unit)) turns.write({c, shares.count[unit][c] == 0 ? 0 : n_results[unit], 0});
        }
    }
    for (uint32_t unit = 0; unit < 2; ++unit) {
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
            shares.count[unit][c] = shares.count[unit + 1][c];
            shares.n_own[unit][c] = shares.n_own[unit + 1][c];
        }
    }
}

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
    if (command.kind == kCommandEmbed) {
        const Format f = kFormats[command.format];
        out[command.channel].write(beat_of(command));
        turns.write({command.channel, value_beats(f, command.n_columns) * f.columns / kFloats, 0});
        return true;
    }
    for (uint32_t c = 0; c < kLaneChannels; ++c) {
        Command own = command;
        own.n_forward[0] = command.n_forward[c];
        out[c].write(beat_of(own));
    }
    switch (command.kind) {
        case kCommandActivations: {
            const uint32_t codes = command.n_columns / kCodes, n = 1 + command.n_tokens * (divided(codes, kShared) + codes);
            for (uint32_t i = 0; i < n; ++i) {
                HETRUN_FABRIC_PIPELINE(1);
                to_all(commands.read());
            }
            return true;
        }
        case kCommandMultiply:
            turns.write({kTogether, command.n_blocks * command.n_tokens, kFormats[command.format].rows});
            return true;
        case kCommandForward:
            for (uint32_t c = 0; c < kLaneChannels; ++c) turns.write({c, command.n_forward[c], 0});
            return true;
        case kCommandAttend: distribute_units(shares, command, commands, out, turns); return true;
        default: turns.write({kNoMore, 0, 0}); return false;
    }
}

// The results of one turn. False at the end.
template <class Turns, class In, class Results>
bool collect_step(Turns& turns, In* in, Results& results) {
    const Turn turn = turns.read();
    if (turn.channel == kNoMore) return false;
    for (uint32_t i = 0; i < turn.n; ++i) {
        HETRUN_FABRIC_PIPELINE(1);
        if (turn.channel != kTogether) {
            results.write(in[turn.channel].read());
            continue;
        }
        Beat out{};
        for (uint32_t c = 0; c < kLaneChannels; ++c) {
#pragma HLS UNROLL
            const Beat own = in[c].read();
            for (uint32_t r = 0; r < kFloats / kLaneChannels; ++r) {
#pragma HLS UNROLL
                if (r < turn.rows) set_word(out, c * turn.rows + r, word_of(own, r));
            }
        }
        results.write(out);
    }
    return true;
}

}  // namespace hetrun::u280
