// Readers: each turns instructions into the beats of its channel that the lanes will want, in their order.
#pragma once

#include "cells.h"
#include "flow.h"

namespace hetrun::u280 {

// A walk over the places of cells of the cache, a part of a block at a time.
struct Places {
    Cells cells;
    RunWalk runs;

    explicit Places(const Cells& of) : cells(of), runs(of) {}
    uint32_t place() const { return runs.place(cells); }
    // To the end of the block, or of the run; 0 behind the last.
    uint32_t left() const {
        if (runs.ended()) return 0;
        const uint32_t of_block = HETRUN_U280_KV_BLOCK - place() % HETRUN_U280_KV_BLOCK, of_run = cells.n[runs.run] - runs.in_run;
        return of_block < of_run ? of_block : of_run;
    }
    bool begins() const { return !runs.ended() && runs.begins_block(cells); }
    void next(uint32_t n) { runs.next(cells, n); }
};

// Calls emit(beat, n) for runs of beats of the channel, in order.
template <class Emit>
void route_attend(const Order& order, uint32_t channel, Emit emit) {
    const Instruction& i = order.instruction;
    const Cache cache(i);
    const KvLayout& kv = cache.layout;
    // The scales that the pass's own keys and values will share beats with, for the writer.
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        const Row& r = order.pass.row[row];
        const uint32_t position = static_cast<uint32_t>(r.position), place = cache.place(position);
        for (uint32_t group = 0; group < kv.groups; ++group) {
            if (!cache.owns(r, channel, group)) continue;
            const uint32_t from = i.hbm + kv.region(static_cast<uint32_t>(r.slot), group), half = place % HETRUN_U280_KV_BLOCK / kFloats;
            emit(from + kv.key_scales(place) + half, 1);
            emit(from + kv.value_scales(place) + half, 1);
        }
    }
    const uint32_t n_units = order.pass.n_rows * kv.groups;
    const auto cells_of_unit = [&](uint32_t unit, bool there) {
        return there ? visible_cells(cache, order.pass, unit / kv.groups, channel, unit % kv.groups) : Cells{};
    };
    const auto region = [&](uint32_t unit) {
        return i.hbm + kv.region(static_cast<uint32_t>(order.pass.row[unit / kv.groups].slot), unit % kv.groups);
    };
    for (uint32_t command = 0; command < n_units + 2; ++command) {  // attend.h
        for (Places values(cells_of_unit(command - 2, command >= 2)); values.left() != 0; values.next(values.left()))
            emit(region(command - 2) + kv.value(values.place()), values.left() * kv.chunks);
        Places weights(cells_of_unit(command - 1, command >= 1 && command <= n_units)), keys(cells_of_unit(command, command < n_units));
        while (weights.left() != 0 || keys.left() != 0) {
            if (weights.begins()) emit(region(command - 1) + kv.value_scales(weights.place()), 2);
            if (keys.begins()) emit(region(command) + kv.key_scales(keys.place()), 2);
            const uint32_t of_weights = weights.left(), of_keys = keys.left();
            const uint32_t n = of_keys == 0 || (of_weights != 0 && of_weights < of_keys) ? of_weights : of_keys;
            if (of_keys != 0) emit(region(command) + kv.key(keys.place()), n * kv.chunks);
            if (of_weights != 0) weights.next(n);
            if (of_keys != 0) keys.next(n);
        }
    }
}

template <class Emit>
void route(const Order& order, uint32_t channel, Emit emit) {
    const Instruction& i = order.instruction;
    if (order.pass.rows_of(i.rows) == 0) return;
    if (i.op == HETRUN_U280_OP_MATMUL) emit(i.hbm, weight_beats(kFormats[i.format], i.n_rows, i.n_columns));
    if (i.op == HETRUN_U280_OP_ATTEND) route_attend(order, channel, emit);
    if (i.op != HETRUN_U280_OP_EMBED) return;
    const Format f = kFormats[i.format];
    for (uint32_t row = 0; row < order.pass.n_rows; ++row) {
        const uint32_t block = static_cast<uint32_t>(order.pass.row[row].token) / f.rows;
        if (block % kChannels != channel) continue;
        emit(i.hbm + scales_beat(f, i.n_columns, block / kChannels), 1);
        emit(i.hbm + first_beat(f, i.n_columns, block / kChannels), block_beats(f, i.n_columns));
    }
}

}  // namespace hetrun::u280
