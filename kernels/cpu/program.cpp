#include "program.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "experts.h"
#include "gguf_blocks.h"
#include "pack.h"

namespace hetrun::cpu {

namespace {

struct BlockSize {
    size_t elements, bytes, row_tail = 0;
};

BlockSize block_size(uint32_t type) {
    switch (static_cast<TensorType>(type)) {
        case TensorType::F32: return {1, 4};
        case TensorType::F16:
        case TensorType::BF16: return {1, 2};
        case TensorType::Q4_0: return {32, sizeof(BlockQ4_0)};
        case TensorType::Q4_1: return {32, sizeof(BlockQ4_1)};
        case TensorType::Q5_0: return {32, sizeof(BlockQ5_0)};
        case TensorType::Q5_1: return {32, sizeof(BlockQ5_1)};
        case TensorType::Q8_0: return {32, sizeof(BlockQ8_0)};
        case TensorType::Q2_K: return {256, sizeof(BlockQ2_K)};
        case TensorType::Q3_K: return {256, sizeof(BlockQ3_K)};
        case TensorType::Q4_K: return {256, sizeof(BlockQ4_K)};
        case TensorType::Q5_K: return {256, sizeof(BlockQ5_K)};
        case TensorType::Q6_K: return {256, sizeof(BlockQ6_K)};
        case TensorType::IQ4_NL: return {32, sizeof(BlockIQ4_NL)};
        case TensorType::IQ4_XS: return {256, sizeof(BlockIQ4_XS)};
        case TensorType::TQ1_0: return {256, sizeof(BlockTQ1_0)};
        case TensorType::TQ2_0: return {256, sizeof(BlockTQ2_0)};
        case TensorType::MXFP4: return {32, sizeof(BlockMXFP4)};
        case TensorType::W2S24: return {64, sizeof(BlockW2S24), kRowScaleBytes};
        case TensorType::W2: return {64, sizeof(BlockW2), kRowScaleBytes};
    }
    return {0, 0};
}

template <class T>
T* at(uint64_t address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

}  // namespace

int Device::start(uint32_t n_threads) {
    try {
        pool = std::make_unique<Pool>(n_threads);
    } catch (const std::system_error&) {
        return HETRUN_NO_THREADS;
    }
    pid = getpid();
    return HETRUN_OK;
}

int Device::own_threads() {
    if (pid == getpid()) return HETRUN_OK;
    // A fork has left the workers behind: the child starts its own, and must not join those.
    const uint32_t n_threads = pool->size();
    static_cast<void>(pool.release());
    return start(n_threads);
}

int Program::build(uint64_t& detail) {
    detail = spec_.n_steps;
    if (const int status = resolve_tables()) return status;
    steps_.resize(spec_.n_steps);
    for (uint32_t i = 0; i < spec_.n_steps; ++i) {
        detail = i;
        if (const int status = resolve_step(spec_.steps[i], steps_[i])) return status;
    }
    Step* prepare = nullptr;
    for (Step& s : steps_) {
        if (s.kind == HETRUN_PREPARE) prepare = &s;
        if (s.kind != HETRUN_MATMUL) continue;
        // Every PREPARE stands before the matmuls that read it, and these before the next one.
        if (prepare == nullptr || prepare->out != s.in[0]) return HETRUN_BAD_PROGRAM;
        for (int i = 0; i < 2 && s.weight[i]; ++i) (s.weight[i]->packed ? prepare->panels_read : prepare->rows_read) = true;
    }
    for (Step& s : steps_) {
        if (s.kind != HETRUN_MATMUL || s.weight[1] == nullptr || s.in[1] == nullptr) continue;
        if (const int status = resolve_filling(s)) return status;
    }
    const Step* next = nullptr;
    for (size_t i = steps_.size(); i-- > 0;) {
        steps_[i].next_matmul = next;
        if (steps_[i].kind == HETRUN_MATMUL && steps_[i].weight[0]->packed) next = &steps_[i];
    }
    return allocate_scratch();
}

// A gated matmul that names a scratch: fills its panels where nothing else is wanted of the PREPARE that reads its result.
int Program::resolve_filling(Step& matmul) {
    Step* found = nullptr;
    size_t n_readers = 0;
    for (Step& s : steps_) {
        n_readers += (s.in[0] == matmul.out) + (s.in[1] == matmul.out);
        if (s.kind == HETRUN_PREPARE && s.out == matmul.in[1] && s.in[0] == matmul.out) found = &s;
    }
    if (found == nullptr || found < &matmul || n_readers != 1 || found->weight[0] != nullptr) return HETRUN_BAD_PROGRAM;
    const bool fills = found->panels_read && !found->rows_read && !(found->flags & HETRUN_PREPARE_FLOAT);
    matmul.fills_panels = found->fills_panels = fills;
    return HETRUN_OK;
}

int Program::resolve_tables() {
    if (!arena_.allocate(spec_.arena_bytes)) return HETRUN_NO_MEMORY;
    const uint64_t max_rows = std::max(spec_.max_tokens, spec_.max_outputs);
    if (max_rows > (1u << 24)) return HETRUN_BAD_PROGRAM;

    for (uint32_t i = 0; i < spec_.n_values; ++i) {
        const hetrun_value& v = spec_.values[i];
        const bool in_arena = v.address == 0;
        const uint64_t rows = v.outputs ? spec_.max_outputs : spec_.max_tokens;
        if (v.width < 1 || v.nbytes < product(rows, v.width * uint64_t{sizeof(float)})) return HETRUN_BAD_PROGRAM;
        if (in_arena && (v.arena_offset % 64 != 0 || v.arena_offset > spec_.arena_bytes ||
                         v.nbytes > spec_.arena_bytes - v.arena_offset))
            return HETRUN_BAD_PROGRAM;
        if (!in_arena && v.address % sizeof(float) != 0) return HETRUN_BAD_PROGRAM;
        uint8_t* data = in_arena ? arena_.data() + v.arena_offset : at<uint8_t>(v.address);
        values_.push_back({data, v.width, v.outputs != 0, {}, nullptr});
    }

    for (uint32_t i = 0; i < spec_.n_weights; ++i) {
        const hetrun_weight& w = spec_.weights[i];
        const BlockSize block = block_size(w.type);
        if (block.elements == 0 || w.n_columns % block.elements != 0 || w.n_columns < 1 || w.address == 0 ||
            w.n_columns > UINT32_MAX)
            return HETRUN_BAD_PROGRAM;
        const uint64_t row_bytes = w.n_columns / block.elements * block.bytes + block.row_tail;
        if (w.nbytes < product(row_bytes, w.n_rows)) return HETRUN_BAD_PROGRAM;
        weights_.push_back({at<const uint8_t>(w.address), static_cast<size_t>(row_bytes), static_cast<size_t>(w.n_rows),
                            static_cast<size_t>(w.n_columns), w.type});
        if (w.packed != 0) {
            if (device_.kernels->types[w.type]->gemv == nullptr) return HETRUN_BAD_PROGRAM;
            weights_.back().packed = at<const uint8_t>(w.packed);
            weights_.back().group_bytes = packed_group_bytes(w.type, static_cast<size_t>(w.n_columns));
        }
    }

    frequencies_.assign(spec_.frequencies, spec_.frequencies + spec_.n_frequencies);
    for (uint32_t i = 0; i < spec_.n_ropes; ++i) {
        const hetrun_rope& r = spec_.ropes[i];
        const uint64_t nbytes = product(product(spec_.max_tokens, r.n_pairs), 2 * sizeof(float));
        if (r.first > spec_.n_frequencies || r.n_pairs > spec_.n_frequencies - r.first || r.arena_offset % 64 != 0 ||
            r.arena_offset > spec_.arena_bytes || nbytes > spec_.arena_bytes - r.arena_offset)
            return HETRUN_BAD_PROGRAM;
        ropes_.push_back({reinterpret_cast<float*>(arena_.data() + r.arena_offset), frequencies_.data() + r.first, r.n_pairs,
                          r.magnitude, r.max_position});
    }

    for (uint32_t i = 0; i < spec_.n_states; ++i) states_.push_back(static_cast<State*>(spec_.states[i]));
    return HETRUN_OK;
}

// A vector as aligned float32; -1 gives null.
int Program::vector_of(int32_t index, size_t width, const float*& out) {
    out = nullptr;
    if (index < 0) return HETRUN_OK;
    if (static_cast<size_t>(index) >= weights_.size()) return HETRUN_BAD_PROGRAM;
    WeightView& w = weights_[static_cast<size_t>(index)];
    if (w.n_rows != 1 || (width != 0 && w.n_columns != width)) return HETRUN_BAD_PROGRAM;
    if (w.floats == nullptr) {
        if (w.type == static_cast<uint32_t>(TensorType::F32) && reinterpret_cast<uintptr_t>(w.data) % alignof(float) == 0) {
            w.floats = reinterpret_cast<const float*>(w.data);
        } else {
            vectors_.emplace_back(w.n_columns);
            device_.kernels->types[w.type]->dequantize(w.data, w.n_columns, vectors_.back().data());
            w.floats = vectors_.back().data();
        }
    }
    out = w.floats;
    return HETRUN_OK;
}

int Program::resolve_step(const hetrun_step& raw, Step& s) {
    s = Step{};
    s.kind = raw.kind;
    s.flags = raw.flags;
    s.function = raw.function;
    s.head_dim = raw.head_dim;
    s.f0 = raw.f0;
    s.f1 = raw.f1;
    s.n_used = raw.n_used;
    const auto pick = [](auto& table, int32_t index, auto& out) {
        if (index >= static_cast<int64_t>(table.size())) return false;
        if (index >= 0) out = &table[static_cast<size_t>(index)];
        return true;
    };
    const bool found = pick(values_, raw.in[0], s.in[0]) && pick(values_, raw.in[1], s.in[1]) && pick(values_, raw.out, s.out) &&
                       pick(weights_, raw.weight[0], s.weight[0]) && pick(weights_, raw.weight[1], s.weight[1]) &&
                       pick(ropes_, raw.rope[0], s.rope[0]) && pick(ropes_, raw.rope[1], s.rope[1]) && raw.state < static_cast<int64_t>(states_.size());
    if (!found) return HETRUN_BAD_PROGRAM;
    s.state = raw.state < 0 ? nullptr : states_[static_cast<size_t>(raw.state)];

    const auto same = [](const Value* a, const Value* b) { return a && b && a->width == b->width && a->outputs == b->outputs; };
    const auto heads = [](const Value* v, size_t dim) { return v && dim > 0 && v->width % dim == 0; };
    const auto rope_fits = [&](size_t dim) {
        const auto one = [&](const RopeTable* rope) { return rope == nullptr || 2 * rope->n_pairs <= dim; };
        return one(s.rope[0]) && one(s.rope[1]);
    };
    bool good = false;
    const float* vector = nullptr;
    switch (s.kind) {
        case HETRUN_EMBED:
            good = s.weight[0] && s.out && !s.out->outputs && s.weight[0]->n_columns == s.out->width;
            if (good) n_vocab_ = n_vocab_ == 0 ? s.weight[0]->n_rows : std::min(n_vocab_, s.weight[0]->n_rows);
            break;
        case HETRUN_ROPE_TABLE: good = s.rope[0] != nullptr; break;
        case HETRUN_PREPARE: {
            good = s.in[0] && s.out && s.in[0]->outputs == s.out->outputs;
            if (!good) break;
            const bool int8 = (s.flags & HETRUN_PREPARE_INT8) != 0, floats = (s.flags & HETRUN_PREPARE_FLOAT) != 0;
            const size_t width = s.in[0]->width;
            const PreparedLayout layout(width, int8, floats);
            const uint64_t max_rows = s.out->outputs ? spec_.max_outputs : spec_.max_tokens;
            const uint64_t row_bytes = layout.stride + layout.panel / kPanelTokens;
            good = (int8 || floats) && (!int8 || width % 32 == 0) && s.out->width * sizeof(float) == row_bytes &&
                   spec_.values[raw.out].nbytes >= product(row_bytes, round_up(static_cast<size_t>(max_rows), kPreparedRows));
            if (good && s.weight[0]) {
                if (const int status = vector_of(raw.weight[0], width, vector)) return status;
            }
            Value& scratch = values_[static_cast<size_t>(raw.out)];
            scratch.prepared = layout;
            scratch.panels = scratch.data + round_up(static_cast<size_t>(max_rows), kPreparedRows) * layout.stride;
            break;
        }
        case HETRUN_MATMUL: {
            const PreparedLayout* layout = s.in[0] ? &s.in[0]->prepared : nullptr;
            good = layout && layout->stride > 0 && s.out && s.weight[0] && s.in[0]->outputs == s.out->outputs &&
                   (s.in[1] == nullptr || s.weight[1] || same(s.in[1], s.out)) && s.function <= HETRUN_GELU;
            for (int i = 0; good && i < 2; ++i) {
                const WeightView* w = s.weight[i];
                if (w == nullptr) continue;
                const bool quantised = block_size(w->type).elements > 1;
                good = w->n_columns == layout->n && w->n_rows == s.out->width &&
                       (quantised ? layout->has_codes() : layout->has_floats());
                if (good) {
                    if (const int status = vector_of(raw.bias[i], s.out->width, s.bias[i])) return status;
                }
            }
            break;
        }
        case HETRUN_NORM:
            good = same(s.in[0], s.out) && s.weight[0];
            if (good) {
                if (const int status = vector_of(raw.weight[0], 0, vector)) return status;
                good = s.out->width % s.weight[0]->n_columns == 0;
            }
            break;
        case HETRUN_ROPE:
            good = same(s.in[0], s.out) && s.rope[0] && heads(s.out, s.head_dim) && rope_fits(s.head_dim) && !s.out->outputs;
            break;
        case HETRUN_KV_STORE:
        case HETRUN_ATTEND: {
            if (s.state == nullptr || s.in[0] == nullptr || s.in[0]->outputs) break;
            const size_t dim = static_cast<size_t>(s.state->spec().head_dim);
            const size_t width = dim * static_cast<size_t>(s.state->spec().n_heads);
            good = rope_fits(dim);
            if (s.kind == HETRUN_KV_STORE) {
                good = good && same(s.in[0], s.in[1]) && s.in[0]->width == width;
            } else {
                good = good && same(s.in[0], s.out) && s.in[0]->width % width == 0 && (s.in[1] == nullptr || same(s.in[1], s.out));
            }
            break;
        }
        case HETRUN_GATED: good = same(s.in[0], s.out) && same(s.in[1], s.out) && s.function <= HETRUN_GELU; break;
        case HETRUN_ADD: good = same(s.in[0], s.out) && same(s.in[1], s.out); break;
        case HETRUN_BIAS:
            good = same(s.in[0], s.out) && raw.weight[0] >= 0;
            if (good) return vector_of(raw.weight[0], s.out->width, s.bias[0]);
            break;
        case HETRUN_SCALE: good = same(s.in[0], s.out); break;
        case HETRUN_SOFT_CAP: good = same(s.in[0], s.out) && s.f0 > 0; break;
        case HETRUN_SELECT:
            good = s.in[0] && s.out && !s.in[0]->outputs && s.out->outputs && s.in[0]->width == s.out->width;
            break;
        case HETRUN_ROUTE: good = same(s.in[0], s.out) && s.n_used >= 1 && s.n_used <= s.out->width; break;
        case HETRUN_EXPERTS_UP:
        case HETRUN_EXPERTS_DOWN: good = resolve_experts(s); break;
        default: break;
    }
    return good ? HETRUN_OK : HETRUN_BAD_PROGRAM;
}

bool Program::resolve_experts(Step& s) {
    const bool up = s.kind == HETRUN_EXPERTS_UP;
    if (!s.in[0] || !s.in[1] || !s.out || !s.weight[0] || (up && !s.weight[1])) return false;
    const size_t n_experts = s.in[1]->width, n_columns = s.weight[0]->n_columns, n_rows = s.weight[0]->n_rows / n_experts;
    if (s.in[0]->outputs != s.out->outputs || s.in[1]->outputs != s.out->outputs || s.function > HETRUN_GELU) return false;
    if (s.n_used < 1 || s.n_used > n_experts || n_rows < 1) return false;
    bool int8 = false, floats = false;
    for (int i = 0; i < (up ? 2 : 1); ++i) {
        const WeightView& w = *s.weight[i];
        if (w.n_rows != n_experts * n_rows || w.n_columns != n_columns) return false;
        (block_size(w.type).elements > 1 ? int8 : floats) = true;
    }
    s.expert_input = PreparedLayout(n_columns, int8, floats);
    return up ? s.in[0]->width == n_columns && s.out->width == s.n_used * n_rows
              : s.in[0]->width == s.n_used * n_columns && s.out->width == n_rows;
}

int Program::allocate_scratch() {
    const size_t max_rows = static_cast<size_t>(std::max(spec_.max_tokens, spec_.max_outputs));
    size_t prepared = 0, matmul = 0, row = 0, queries = 0, sums = 0, attend = 0, parts = 0, experts = 0, n_slots = 0;
    size_t tiles = 0;  // gate and up take two
    for (const Step& s : steps_) {
        if (s.kind == HETRUN_PREPARE) {
            prepared = std::max(prepared, s.out->prepared.stride * kPrivateRows);
            row = std::max(row, s.in[0]->width * sizeof(float));
        } else if (s.kind == HETRUN_MATMUL) {
            matmul = std::max({matmul, matmul_scratch_bytes(s.in[0]->prepared.n), kGemmScratchBytes});
            tiles = std::max<size_t>(tiles, s.weight[1] ? 2 : 1);
        } else if (s.kind == HETRUN_EXPERTS_UP || s.kind == HETRUN_EXPERTS_DOWN) {
            matmul = std::max(matmul, matmul_scratch_bytes(s.expert_input.n));
            experts = std::max(experts, experts_scratch_bytes(s, max_rows));
        } else if (s.kind == HETRUN_KV_STORE || s.kind == HETRUN_ATTEND) {
            const hetrun_kv_spec& kv = s.state->spec();
            const size_t dim = static_cast<size_t>(kv.head_dim);
            row = std::max(row, 2 * dim * sizeof(float));
            n_slots = std::max(n_slots, static_cast<size_t>(kv.n_slots));
            if (s.kind == HETRUN_ATTEND) {
                const size_t shared = s.in[0]->width / dim / static_cast<size_t>(kv.n_heads);
                const size_t n_rows = std::max(kAttendRows, shared);
                const size_t sets = s.in[1] ? 2 : 1;  // of queries
                queries = std::max(queries, sets * attend_query_bytes(dim, n_rows));
                sums = std::max(sums, sets * attend_part_floats(dim, n_rows) * sizeof(float));
                attend = std::max(attend, attend_scratch_floats(dim, n_rows) * sizeof(float));
                const size_t splits = (static_cast<size_t>(kv.n_cells) + kAttendSplit - 1) / kAttendSplit;
                const size_t items = splits * static_cast<size_t>(kv.n_heads) * std::min(kSplitTokens, max_rows);
                if (splits > 1) parts = std::max(parts, items * attend_part_floats(dim, shared) * sizeof(float));
            }
        }
    }
    const size_t tile = tiles * std::max(kGroupRows * max_rows, kGroupRowsFew * kPrivateRows) * sizeof(float);
    size_t end = 0;
    std::vector<size_t> ends;  // of each part, and where the next one begins
    const auto place = [&](size_t nbytes) {
        const size_t begin = end;
        end += round_up(nbytes, 64) + kRedzone;
        ends.insert(ends.end(), {begin + nbytes, end});
        return begin;
    };
    layout_ = {place(prepared), place(matmul), place(tile), place(row), place(queries), place(sums), place(attend), place(parts), place(experts), 0};
    layout_.stride = round_up(end, 4096);
    chunks_.resize(n_slots);
    claims_ = std::vector<Claims>(device_.pool->size());
    ahead_ = std::vector<Ahead>(device_.pool->size());
    if (!scratch_.allocate(product(layout_.stride, device_.pool->size()))) return HETRUN_NO_MEMORY;
    for (size_t thread = 0; thread < device_.pool->size(); ++thread) {
        const uint8_t* own = scratch_.data() + thread * layout_.stride;
        for (size_t i = 0; i < ends.size(); i += 2) forbid(own + ends[i], own + ends[i + 1]);
    }
    return HETRUN_OK;
}

int Program::check(const hetrun_batch& batch, uint64_t& detail) {
    detail = 0;
    if (batch.n_tokens > spec_.max_tokens || batch.n_outputs > spec_.max_outputs) return HETRUN_TOO_MANY_ROWS;
    std::fill(chunks_.begin(), chunks_.end(), Chunk{0, 0});
    for (size_t t = 0; t < batch.n_tokens; ++t) {
        detail = t;
        const int64_t token = batch.tokens[t], position = batch.positions[t], slot = batch.slots[t];
        if (token < 0 || (n_vocab_ != 0 && static_cast<uint64_t>(token) >= n_vocab_)) return HETRUN_BAD_TOKEN;
        if (position < 0) return HETRUN_BAD_POSITION;
        if (slot < 0) return HETRUN_BAD_SLOT;
        for (const State* state : states_) {
            if (static_cast<uint64_t>(slot) >= state->spec().n_slots) return HETRUN_BAD_SLOT;
            if (static_cast<uint64_t>(position) >= state->spec().n_ctx) return HETRUN_BAD_POSITION;
        }
        if (states_.empty()) continue;
        Chunk& chunk = chunks_[static_cast<size_t>(slot)];
        if (chunk.count == 0) chunk.first = position;
        if (position != chunk.first + chunk.count) return HETRUN_BAD_POSITION;
        ++chunk.count;
        for (const State* state : states_) {
            if (state->ring() && static_cast<uint64_t>(chunk.count) > state->spec().slack + 1) return HETRUN_CHUNK_TOO_LONG;
        }
    }
    for (size_t i = 0; i < batch.n_outputs; ++i) {
        detail = i;
        const int64_t output = batch.outputs[i];
        if (output < 0 || static_cast<uint64_t>(output) >= batch.n_tokens || (i > 0 && output <= batch.outputs[i - 1]))
            return HETRUN_BAD_OUTPUT;
    }
    return HETRUN_OK;
}

}  // namespace hetrun::cpu
