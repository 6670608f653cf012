/* C ABI of the core's native library: choosing the next token from logits. */
#ifndef HETRUN_CORE_H
#define HETRUN_CORE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HETRUN_CORE_API __attribute__((visibility("default")))

/* temperature <= 0: the most likely token. top_k <= 0, top_p >= 1, min_p <= 0 and repeat_penalty == 1 switch a filter off. */
typedef struct {
  float temperature;
  float top_p;
  float min_p;
  float repeat_penalty;
  int32_t top_k;
} hetrun_sampling;

/* The chosen token id, or -1 where no logit is a number.
   logits: [n_vocab]. recent: the ids that repeat_penalty applies to. rng_state: advanced by one draw where one is made. */
HETRUN_CORE_API int32_t hetrun_core_sample(const float* logits, int32_t n_vocab, const hetrun_sampling* sampling,
                                           const int32_t* recent, int32_t n_recent, uint64_t* rng_state);

/* masked: the logits, with NaN (which is never chosen) where the token's bit is 0, and for tokens that have no bit.
   logits, masked: [n_vocab]. mask: bit i of the bits of 32-bit words, the lowest first. */
HETRUN_CORE_API void hetrun_core_mask(const float* logits, int32_t n_vocab, const uint32_t* mask, int32_t n_bits,
                                      float* masked);

#ifdef __cplusplus
}
#endif

#endif
