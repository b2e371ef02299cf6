// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the forward pass, as one table of functions that is chosen once for the
// processor's level (base/cpu.h). The plain C table is always there and is what every other one is
// compared with.
//
// Reproducible: within one table an output number depends on the numbers that it is computed from
// and on nothing else. Each sum is taken in one fixed order, the same for one vector and for many,
// from plain and from compressed weights, for any range of rows and wherever the buffers lie. So
// the engine may cut its work as it likes. Tables differ from each other by rounding.
//
// Weights are bfloat16 (the upper half of a float32), all else is float32. Buffers need only the
// alignment of their elements unless it says otherwise. Inputs and outputs do not overlap unless it
// says so.
#ifndef Q3_KERNELS_H
#define Q3_KERNELS_H

#include "bf12.h"

#include "base/cpu.h"
#include "codec/bitplane_kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Memory that the caller is likely to go through next, to be brought near meanwhile; 0 bytes where
// it cannot tell. No result depends on it.
typedef struct q3_next {
    const void *data;
    size_t bytes;
} q3_next;

// Rows of a matrix, one after the other, in either form.
typedef struct q3_rows {
    const uint16_t *plain; // or NULL:
    q3_bf12 bf12;
} q3_rows;

// Products of a bf16 matrix with vectors. The vectors are first arranged, once for all the rows
// that they meet, into panels of up to `panel` vectors: an order (or a pair of bf16 numbers for
// each float32) that suits the processor. Panels lie at multiples of 64 bytes.
typedef struct q3_products {
    const char *name;
    unsigned panel; // vectors that are arranged together
    // Panels of so many bytes stay in a core's second cache while the rows of a matrix pass over
    // them: more are better multiplied in groups.
    size_t group_bytes;
    // Bytes of a panel for vectors of so many numbers: a multiple of 64.
    size_t (*panel_bytes)(size_t columns);
    // Arranges `count` vectors, 1 to `panel`; those that a panel has not got are zeros in it.
    void (*arrange)(const float *const *x, unsigned count, size_t columns, void *panel);

    // Rows of plain bf16: y[v][first + r] becomes row r times vector v, for r < rows and
    // v < vectors. Vector v is number v % panel of panels[v / panel].
    void (*multiply)(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next);

    // The same straight from a bit-plane frame that holds rows * columns weights, decoded in
    // registers: to the bit what `multiply` makes of the decoded rows. columns is a multiple of 64,
    // vectors at most fused_vectors, rows * columns at least Q3_BITPLANE_RUN groups. False when the
    // frame's streams do not fit its groups. NULL where there is none.
    bool (*multiply_frame)(const q3_bitplane_view *frame, size_t rows, size_t columns,
                           const void *const *panels, size_t vectors, float *const *y,
                           size_t first);
    unsigned fused_vectors; // beyond so many vectors decoding first is faster

    // And from a block of bf12 (bf12.h): to the bit what `multiply` makes of the unpacked rows.
    // columns is a multiple of 64, vectors at most bf12_vectors. NULL where there is none.
    void (*multiply_bf12)(const q3_bf12 *block, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next);
    unsigned bf12_vectors; // beyond so many vectors unpacking first is faster

    // What a gated pair of matrices hands on, as the panels that the next product takes: numbers
    // `first` to first + rows - 1 of vector v in `inner` become silu(gate x) * (up x), to the bit
    // what `multiply`, the level's silu_multiply and `arrange` make of them. Both have the same
    // form; rows and first are multiples of gated_rows. NULL where there is none.
    void (*multiply_gated)(const q3_rows *gate, const q3_rows *up, size_t rows, size_t columns,
                           const void *const *panels, size_t vectors, void *const *inner,
                           size_t first, const q3_next next[2]);
    unsigned gated_rows;
} q3_products;

enum {
    Q3_KEY_PANEL = 16,    // positions
    Q3_ATTEND_TOKENS = 4, // at most
};

// Attention of some tokens' query heads that share a key head.
typedef struct q3_attention {
    const float *query; // [token][head][head_dim], a token query_stride numbers after the last
    float *out;         // laid out like the query
    size_t query_stride, out_stride;
    size_t tokens, heads; // tokens: 1 to Q3_ATTEND_TOKENS, or to q3_attend_many.tokens
    size_t head_dim;
    size_t positions; // that the first token sees; each further one sees one more
    // float32, or bf16 if `narrow`:
    const void *keys;   // [position / Q3_KEY_PANEL][head_dim][position % Q3_KEY_PANEL], to the end
                        // of the last panel, where anything finite may be
    const void *values; // [position][head_dim]
    bool narrow;
    float scale;
    // Scratch: tokens * heads rows of q3_score_stride(positions + tokens - 1), or what
    // q3_attend_many asks for.
    float *scores;
} q3_attention;

// Attention of many tokens at once, from keys and values that are arranged for all of them.
typedef struct q3_attend_many {
    unsigned tokens; // at most
    // Bytes of scratch memory, at a multiple of 64, for up to so many tokens at any positions.
    size_t (*scratch_bytes)(size_t heads, size_t head_dim);
    void (*attend)(const q3_attention *attention);
} q3_attend_many;

// Numbers from a row of scores to the next, for so many positions.
static inline size_t q3_score_stride(size_t positions)
{
    return (positions + Q3_KEY_PANEL - 1) / Q3_KEY_PANEL * Q3_KEY_PANEL;
}

typedef struct q3_kernels {
    const char *name;
    // Products of a few tokens, and of `many_tokens` or more. They may be the same; else the second
    // has no multiply_frame. Where they round differently it is the tokens fed together that count,
    // for all batches of these: how they are cut must not be seen.
    const q3_products *few, *many;
    unsigned many_tokens;
    bool many_rounds_differently;

    const q3_bf12_kernels *bf12;

    // y = weight * x / sqrt(mean(x^2) + epsilon), n numbers. y may be x.
    void (*rms_norm)(const float *x, const uint16_t *weight, float epsilon, size_t n, float *y);

    // Rotates the pairs (x[j], x[j + half]) by the angles whose cosines and sines are given.
    void (*rotate)(float *x, const float *cosine, const float *sine, size_t half);

    // x = exp(x - max(x)) / sum, in place. Minus infinity gives 0; one number must be finite.
    void (*softmax)(float *x, size_t n);

    // gate = silu(gate) * up, where silu(t) = t / (1 + exp(-t)).
    void (*silu_multiply)(float *gate, const float *up, size_t n);

    // out = sum over the positions of softmax(scale * query . key) * value.
    void (*attend)(const q3_attention *attention);
    // The same of many_tokens or more, or NULL: as of fewer.
    const q3_attend_many *attend_many;

    // y = y + factor * x.
    void (*add_scaled)(float *y, const float *x, float factor, size_t n);

    // out = in as float32, and the nearest bf16 of float32 (ties to even).
    void (*widen)(const uint16_t *in, size_t n, float *out);
    void (*narrow)(const float *in, size_t n, uint16_t *out);
} q3_kernels;

// The table for a level: the best versions up to it.
const q3_kernels *q3_kernels_for(q3_cpu_level level);

// Plain C, for any processor.
extern const q3_kernels q3_kernels_c;

// Parts of other levels, in libraries of their own (kernels/x86/).
extern const q3_kernels q3_kernels_avx2, q3_kernels_avx512;
extern const q3_products q3_products_bf16; // AVX-512 BF16
extern const q3_products q3_products_amx;  // AMX tiles
extern const q3_attend_many q3_attend_many_amx;

#endif
