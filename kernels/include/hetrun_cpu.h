/* C ABI of the cpu device (libhetrun_cpu.so). Little-endian hosts, 32 and 64 bit; all structs have the same layout on both.

   A segment is a table of steps over values, weights, KV states and rope tables; every field of a step that names one of them
   is an index into the table of that kind, or -1. hetrun_cpu_run() runs all steps of a segment on one batch in one call.

   Steps with HETRUN_BARRIER wait until every thread has finished the steps before them. Values are float32 [rows, width]. */
#ifndef HETRUN_CPU_H
#define HETRUN_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HETRUN_CPU_ABI 6
#define HETRUN_API __attribute__((visibility("default")))

enum hetrun_status {
    HETRUN_OK = 0,
    HETRUN_NO_MEMORY = 1,
    HETRUN_NO_THREADS = 2,    /* the system refused to start a worker */
    HETRUN_NO_ISA = 3,        /* this machine lacks the instruction set asked for */
    HETRUN_BAD_PROGRAM = 4,   /* the step table contradicts itself; detail: index of the step */
    HETRUN_TOO_MANY_ROWS = 5, /* more tokens or outputs than the segment was compiled for */
    HETRUN_BAD_TOKEN = 6,     /* detail: index in the batch, for this and the next four */
    HETRUN_BAD_POSITION = 7,
    HETRUN_BAD_SLOT = 8,
    HETRUN_BAD_OUTPUT = 9,    /* outputs must ascend and name tokens of the batch */
    HETRUN_CHUNK_TOO_LONG = 10, /* a chunk longer than the slack of a windowed cache would overwrite keys still seen */
    HETRUN_BAD_ARGUMENT = 11
};

enum hetrun_isa {
    HETRUN_ISA_GENERIC = 0,
    HETRUN_ISA_AVX2 = 1,   /* with FMA and F16C */
    HETRUN_ISA_AVXVNNI = 2, /* that with AVX-VNNI */
    HETRUN_ISA_AVX512 = 3,  /* F, BW, VL, DQ and VNNI */
    HETRUN_ISA_NEON = 4,
    HETRUN_ISA_DOTPROD = 5,     /* NEON with SDOT */
    HETRUN_ISA_I8MM = 6,        /* NEON with SDOT, USDOT and SMMLA */
    HETRUN_ISA_AVX512_BF16 = 7, /* AVX-512 as above with BF16 */
    HETRUN_ISA_AMX = 8,         /* that with AMX-INT8 */
    HETRUN_ISA_COUNT = 9
};

enum hetrun_step_kind {
    HETRUN_EMBED = 0,      /* out = rows of weight[0] for the batch's tokens */
    HETRUN_ROPE_TABLE = 1, /* cosines and sines of rope[0] for the batch's positions */
    HETRUN_PREPARE = 2,    /* scratch = in[0], RMS-normalised with weight[0] and f0 = eps where weight[0] >= 0, quantised to int8
                              (HETRUN_PREPARE_INT8) and kept as float (HETRUN_PREPARE_FLOAT): input of the MATMUL steps after it.
                              out names the scratch: a value as wide as a prepared row and its share of a panel (kernels/cpu/kernels.h)
                              have floats, with memory for rows in eights */
    HETRUN_MATMUL = 3,     /* out = in[0] weight[0]^T + bias[0] + in[1]; in[0] is the scratch of a PREPARE. With weight[1] >= 0:
                              out = function(in[0] weight[0]^T + bias[0]) * (in[0] weight[1]^T + bias[1]), and in[1] is the
                              scratch of the PREPARE that alone reads out: of many tokens, out may be left unwritten and the
                              scratch be filled at once */
    HETRUN_NORM = 4,       /* out = in[0] RMS-normalised in groups of the width of weight[0]; f0 = eps */
    HETRUN_ROPE = 5,       /* out = in[0] rotated by rope[0]; head_dim */
    HETRUN_KV_STORE = 6,   /* state <- in[0] (keys, rotated by rope[0] where that is >= 0), in[1] (values) */
    HETRUN_ATTEND = 7,     /* out = attention of in[0] (rotated by rope[0] where that is >= 0) over state; f0 = scale, f1 = soft
                              cap. in[1] >= 0: what meets the state's sinks instead of in[0], rotated by rope[1] */
    HETRUN_GATED = 8,      /* out = function(in[0]) * in[1] */
    HETRUN_ADD = 9,        /* out = in[0] + in[1] */
    HETRUN_BIAS = 10,      /* out = in[0] + weight[0] */
    HETRUN_SCALE = 11,     /* out = in[0] * f0 */
    HETRUN_SOFT_CAP = 12,  /* out = f0 * tanh(in[0] / f0) */
    HETRUN_SELECT = 13,    /* out = rows of in[0] that the batch's outputs name */
    HETRUN_ROUTE = 14,     /* out = softmax of each row of in[0] where it is among the n_used largest, 0 elsewhere; divided by the
                              sum of what is kept (HETRUN_ROUTE_NORMALISE), times f0 */
    HETRUN_EXPERTS_UP = 15, /* out = function(in[0] weight[0][e]^T) * (in[0] weight[1][e]^T) for the experts e of a row, whose
                              routes in in[1] are not 0, side by side in ascending order: [rows, n_used * n_ff]. Weights hold
                              the matrices of all experts, one after the other */
    HETRUN_EXPERTS_DOWN = 16, /* out = sum over the experts e of a row, in ascending order, of in[1][e] * in[0][e's part]
                              weight[0][e]^T; NaN where a row has more than n_used */
    HETRUN_STEP_KINDS = 17
};

enum hetrun_step_flag {
    HETRUN_BARRIER = 1,
    HETRUN_BARRIER_IF_SHARED = 2, /* only where the PREPARE before it was shared out among the threads */
    HETRUN_PREPARE_INT8 = 4,
    HETRUN_PREPARE_FLOAT = 8,
    HETRUN_ROPE_HALF = 16, /* pairs (i, i + n_pairs) instead of (2i, 2i + 1) */
    HETRUN_ROUTE_NORMALISE = 32
};

enum hetrun_function { HETRUN_SILU = 0, HETRUN_GELU = 1 };
enum hetrun_kv_format {
    HETRUN_KV_F32 = 0,
    HETRUN_KV_F16 = 1,
    HETRUN_KV_Q8_0 = 2,
    HETRUN_KV_KV4 = 3, /* 4 bit, a scale and a minimum a key (and a value) */
    HETRUN_KV_KV4H = 4 /* the same after a Hadamard transform; head_dim is a power of two */
};

struct hetrun_step { /* 68 bytes */
    uint32_t kind;
    uint32_t flags;
    int32_t in[2];
    int32_t out;
    int32_t weight[2];
    int32_t bias[2];
    int32_t state;
    int32_t rope[2];
    uint32_t head_dim;
    uint32_t function;
    float f0;
    float f1;
    uint32_t n_used; /* experts of a row */
};

struct hetrun_value {
    uint64_t address;      /* of memory that the caller keeps, or 0: arena_offset counts */
    uint64_t arena_offset; /* a multiple of 64 */
    uint32_t width;        /* elements a row */
    uint32_t outputs;      /* 1: one row an output, 0: one row a token */
    uint64_t nbytes;       /* of the memory behind it */
};

struct hetrun_weight {
    uint64_t address; /* of raw GGUF blocks, no alignment assumed */
    uint64_t nbytes;
    uint64_t n_rows; /* 1 for vectors */
    uint64_t n_columns;
    uint32_t type; /* GGUF type number */
    uint32_t flags;
    uint64_t packed; /* address that hetrun_cpu_pack gave, for matmul; 0: none */
};

enum hetrun_weight_flag {
    HETRUN_WEIGHT_OF_FILE = 1 /* in a mapped file: hetrun_cpu_pack may give its pages back */
};

struct hetrun_rope {
    uint64_t arena_offset; /* of [max_tokens, 2 * n_pairs] float: cosines, then sines */
    uint32_t first;        /* index of its first frequency */
    uint32_t n_pairs;
    float magnitude;
    int32_t max_position; /* positions beyond it count as it */
};

struct hetrun_kv_spec {
    uint64_t n_slots;
    uint64_t n_ctx;
    uint64_t n_cells;
    uint64_t n_heads;
    uint64_t head_dim;
    uint64_t sink;
    uint64_t window;
    uint64_t slack;
    uint64_t format;
};

struct hetrun_program_spec {
    const struct hetrun_step *steps;
    const struct hetrun_value *values;
    const struct hetrun_weight *weights;
    const struct hetrun_rope *ropes;
    const double *frequencies;      /* radians a position */
    void *const *states;            /* of hetrun_cpu_state_create */
    uint32_t n_steps, n_values, n_weights, n_ropes, n_frequencies, n_states;
    uint64_t max_tokens, max_outputs;
    uint64_t arena_bytes;
};

struct hetrun_batch {
    const int32_t *tokens;
    const int32_t *positions;
    const int32_t *slots;
    const int32_t *outputs;
    uint64_t n_tokens;
    uint64_t n_outputs;
};

struct hetrun_report {
    double seconds;     /* steady clock, all of the run */
    uint64_t detail;    /* what an error speaks of */
    uint64_t step_s;    /* given by the caller: address of n_steps doubles, or 0 where steps are not to be timed. Filled with
                           seconds from when the calling thread began each step to when it began the next one, so that waiting
                           for other threads counts to the step they are late with; the last ends with the run */
};

/* The number HETRUN_CPU_ABI of the library. */
HETRUN_API uint32_t hetrun_cpu_abi(void);
/* Bit i is set where this machine has instruction set i and the library has kernels for it. */
HETRUN_API uint32_t hetrun_cpu_isa_mask(void);

/* n_threads: the caller's thread and n_threads - 1 workers.   isa: a hetrun_isa, or -1 for the best. */
HETRUN_API int hetrun_cpu_device_create(uint32_t n_threads, int32_t isa, void **device);
HETRUN_API void hetrun_cpu_device_destroy(void *device);

HETRUN_API int hetrun_cpu_state_create(const struct hetrun_kv_spec *spec, void **state);
HETRUN_API int hetrun_cpu_state_copy(void *state, uint64_t from_slot, uint64_t to_slot, uint64_t n_tokens);
HETRUN_API void hetrun_cpu_state_destroy(void *state);

/* Packs weights for matmul, and fills in `packed` of each: 0 where its type has no packed form on this device, which then
   reads the blocks themselves. The packed weights live in `pack`, which must outlive the programs that use them. Embeddings
   and vectors are always read at `address`. */
HETRUN_API int hetrun_cpu_pack_create(void *device, struct hetrun_weight *weights, uint64_t n_weights, void **pack);
HETRUN_API void hetrun_cpu_pack_destroy(void *pack);

/* The tables are copied; memory behind addresses and states must outlive the program. */
HETRUN_API int hetrun_cpu_program_create(void *device, const struct hetrun_program_spec *spec, uint64_t *detail, void **program);
HETRUN_API void hetrun_cpu_program_destroy(void *program);

/* Not reentrant for one device. An error leaves values and states as they were: a batch is checked before the first step. */
HETRUN_API int hetrun_cpu_run(void *program, const struct hetrun_batch *batch, struct hetrun_report *report);

/* For tests: out[n] = int8 codes and scales[n / 32] of x[n] as PREPARE makes them. n is a multiple of 32. */
HETRUN_API int hetrun_cpu_quantize(void *device, const float *x, uint64_t n, int8_t *codes, float *scales);

#ifdef __cplusplus
}
#endif

#endif
