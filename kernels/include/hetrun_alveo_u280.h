// C ABI of libhetrun_alveo_u280.so: weights into the form of the U280 engine, and the engine itself (kernels/alveo_u280/hls) compiled
// for this machine.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HETRUN_U280_ABI 1
#define HETRUN_U280_NO_FORMAT 0xffffffffu

uint32_t hetrun_u280_abi(void);

// The engine's format (HETRUN_U280_FORMAT_*) of a tensor type, by its number (hetrun::TensorType); HETRUN_U280_NO_FORMAT for a type
// that it does not take.
uint32_t hetrun_u280_format(uint32_t type);

// Beats of 64 bytes that a weight [n_rows, n_columns] takes in every channel. 0 where the type is not taken, columns are no whole
// blocks of it or are more than the engine holds, or the beats would exceed a channel.
uint64_t hetrun_u280_channel_beats(uint32_t type, uint64_t n_rows, uint64_t n_columns);

// Writes the beats of one channel. blocks: the weight as its file has it.
// A GGUF block's scales (and minima) d become round(d / r) with r = largest magnitude of the row / 32767: a weight is off by at most
// r / 2 times its code (of minima r / 2 more), and by 2^-23 of itself. Rows whose scales are no numbers give no number. W2S24 and W2
// stay what they are.
void hetrun_u280_pack(uint32_t type, uint64_t n_rows, uint64_t n_columns, const uint8_t* blocks, uint32_t channel, uint8_t* beats);

// Beats that a KV cache takes in every channel; 0 where the engine does not take it.
uint64_t hetrun_u280_kv_beats(uint32_t n_slots, uint32_t n_cells, uint32_t n_heads_kv, uint32_t head_dim);

// A card that is simulated by the engine's own source. Its memories are the caller's, aligned to 64 bytes: 32 channels of
// channel_bytes each, and the DDR. threads: that share its work. Null where memory runs out.
typedef struct hetrun_u280_card hetrun_u280_card;
hetrun_u280_card* hetrun_u280_card_create(uint8_t* const channels[32], uint64_t channel_bytes, uint8_t* ddr, uint64_t ddr_bytes,
                                          uint32_t threads);
void hetrun_u280_card_destroy(hetrun_u280_card* card);

// One launch. args: scalars of the kernel at their numbers (HETRUN_U280_ARG_*), those of buffers are not looked at. Fills the Report in
// the DDR, cycles zero; does nothing where the Report would lie beyond it.
void hetrun_u280_card_run(hetrun_u280_card* card, const int32_t* args);

#ifdef __cplusplus
}
#endif
