// Readers: each turns instructions into the beats of its channel that the lanes will want, in their order.
#pragma once

#include "cells.h"
#include "flow.h"

namespace hetrun::u280 {

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
    // What a row and group want of their cells: keys with their scales, scales of values, or values.
    const auto emit_part = [&](uint32_t unit, uint32_t part) {
        const uint32_t row = unit / kv.groups, group = unit % kv.groups;
        const Cells cells = visible_cells(cache, order.pass, row, channel, group);
        const uint32_t from = i.hbm + kv.region(static_cast<uint32_t>(order.pass.row[row].slot), group);
        for (uint32_t run = 0; run < kRuns; ++run) {
            const uint32_t end = cells.place[run] + cells.n[run];
            for (uint32_t place = cells.place[run]; place < end;) {
                const uint32_t next = (place / HETRUN_U280_KV_BLOCK + 1) * HETRUN_U280_KV_BLOCK, n = (next < end ? next : end) - place;
                if (part == kPartKeys) emit(from + kv.key_scales(place), 2);
                if (part == kPartKeys) emit(from + kv.key(place), n * kv.chunks);
                if (part == kPartWeights) emit(from + kv.value_scales(place), 2);
                if (part == kPartValues) emit(from + kv.value(place), n * kv.chunks);
                place += n;
            }
        }
    };
    const uint32_t n_units = order.pass.n_rows * kv.groups;
    for (uint32_t command = 0; command < n_units + 2; ++command) {  // attend.h
        if (command >= 2) emit_part(command - 2, kPartValues);
        if (command >= 1 && command <= n_units) emit_part(command - 1, kPartWeights);
        if (command < n_units) emit_part(command, kPartKeys);
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
