// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of the forward pass, as one table of functions that is chosen once. The plain C
// table is always there and is what every other one is compared with.
//
// Reproducible: an output number depends on the numbers that it is computed from and on nothing
// else. Each sum is taken in one fixed order, the same for one vector and for many, for any range
// of rows and wherever the buffers lie. So the engine may cut its work as it likes.
//
// Weights are bfloat16 (the upper half of a float32), all else is float32. Buffers need only the
// alignment of their elements. Inputs and outputs do not overlap unless it says so.
#ifndef Q3_KERNELS_H
#define Q3_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef struct q3_kernels {
    const char *name;

    // Rows [first, first + rows) of y = W x for several vectors x: the matrix is row-major with
    // `columns` columns and starts at row 0, and y[v][r] becomes row r times x[v].
    void (*multiply)(const uint16_t *matrix, size_t columns, size_t first, size_t rows,
                     const float *const *x, float *const *y, size_t vectors);

    // y = weight * x / sqrt(mean(x^2) + epsilon), n numbers. y may be x.
    void (*rms_norm)(const float *x, const uint16_t *weight, float epsilon, size_t n, float *y);

    // Rotates the pairs (x[j], x[j + half]) by the angles whose cosines and sines are given.
    void (*rotate)(float *x, const float *cosine, const float *sine, size_t half);

    // x = exp(x - max(x)) / sum, in place. Minus infinity gives 0; one number must be finite.
    void (*softmax)(float *x, size_t n);

    // gate = silu(gate) * up, where silu(t) = t / (1 + exp(-t)).
    void (*silu_multiply)(float *gate, const float *up, size_t n);

    // Attention of `heads` query heads, one after the other in `query`, over the same `positions`
    // keys and values of head_dim numbers each: out = sum of softmax(scale * query . key) * value,
    // laid out like the query. `scores` is scratch of heads * positions numbers.
    void (*attend)(const float *query, size_t heads, const float *keys, const float *values,
                   size_t positions, size_t head_dim, float scale, float *scores, float *out);

    // y = y + factor * x.
    void (*add_scaled)(float *y, const float *x, float factor, size_t n);

    // out = in as float32.
    void (*widen)(const uint16_t *in, size_t n, float *out);
} q3_kernels;

// Plain C, for any processor.
extern const q3_kernels q3_kernels_c;

#endif
