// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <math.h>
#include <string.h>

// Sums run in this many independent lanes (element i in lane i % LANES), which are then added in
// pairs. The products keep the lanes in QUADS short vectors, an extension of gcc and clang: left to
// itself the compiler shuffles them through memory.
enum { QUADS = 4, LANES = 4 * QUADS, VECTORS = 2 };

typedef float quad __attribute__((vector_size(16)));
typedef uint32_t quad_bits __attribute__((vector_size(16)));
typedef uint16_t quad_weights __attribute__((vector_size(8)));

static inline quad load(const float *at)
{
    quad value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline quad load_weights(const uint16_t *at)
{
    quad_weights weights;
    memcpy(&weights, at, sizeof weights);
    return (quad)(__builtin_convertvector(weights, quad_bits) << 16);
}

static inline float widen(uint16_t weight)
{
    const uint32_t bits = (uint32_t)weight << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float add_lanes(const float *lane)
{
    float half[LANES / 2];
    for (unsigned i = 0; i < LANES / 2; i++)
        half[i] = lane[i] + lane[i + LANES / 2];
    for (unsigned i = 0; i < LANES / 4; i++)
        half[i] = half[i] + half[i + LANES / 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

// One row times VECTORS vectors: the weights are widened once for all of them.
static void multiply_row_by_many(const uint16_t *row, size_t columns, const float *const *x,
                                 float *sums)
{
    const float *x0 = x[0], *x1 = x[1];
    quad quad0[QUADS] = {{0}}, quad1[QUADS] = {{0}};
    size_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        for (unsigned j = 0; j < QUADS; j++) {
            const quad weights = load_weights(row + i + 4 * j);
            quad0[j] += weights * load(x0 + i + 4 * j);
            quad1[j] += weights * load(x1 + i + 4 * j);
        }
    float lane0[LANES], lane1[LANES];
    memcpy(lane0, quad0, sizeof lane0);
    memcpy(lane1, quad1, sizeof lane1);
    for (unsigned j = 0; i < columns; i++, j++) {
        lane0[j] += widen(row[i]) * x0[i];
        lane1[j] += widen(row[i]) * x1[i];
    }
    sums[0] = add_lanes(lane0);
    sums[1] = add_lanes(lane1);
}

static float multiply_row(const uint16_t *row, size_t columns, const float *x)
{
    quad quads[QUADS] = {{0}};
    size_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        for (unsigned j = 0; j < QUADS; j++)
            quads[j] += load_weights(row + i + 4 * j) * load(x + i + 4 * j);
    float lane[LANES];
    memcpy(lane, quads, sizeof lane);
    for (unsigned j = 0; i < columns; i++, j++)
        lane[j] += widen(row[i]) * x[i];
    return add_lanes(lane);
}

static void multiply(const uint16_t *matrix, size_t columns, size_t first, size_t rows,
                     const float *const *x, float *const *y, size_t vectors)
{
    for (size_t r = first; r < first + rows; r++) {
        const uint16_t *row = matrix + r * columns;
        size_t v = 0;
        for (; v + VECTORS <= vectors; v += VECTORS) {
            float sums[VECTORS];
            multiply_row_by_many(row, columns, x + v, sums);
            for (unsigned j = 0; j < VECTORS; j++)
                y[v + j][r] = sums[j];
        }
        for (; v < vectors; v++)
            y[v][r] = multiply_row(row, columns, x[v]);
    }
}

static float dot(const float *a, const float *b, size_t n)
{
    quad quads[QUADS] = {{0}};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (unsigned j = 0; j < QUADS; j++)
            quads[j] += load(a + i + 4 * j) * load(b + i + 4 * j);
    float lane[LANES];
    memcpy(lane, quads, sizeof lane);
    for (unsigned j = 0; i < n; i++, j++)
        lane[j] += a[i] * b[i];
    return add_lanes(lane);
}

static void rms_norm(const float *x, const uint16_t *weight, float epsilon, size_t n, float *y)
{
    const float factor = 1.0f / sqrtf(dot(x, x, n) / (float)n + epsilon);
    for (size_t i = 0; i < n; i++)
        y[i] = widen(weight[i]) * (x[i] * factor);
}

static void rotate(float *x, const float *cosine, const float *sine, size_t half)
{
    for (size_t j = 0; j < half; j++) {
        const float a = x[j], b = x[j + half];
        x[j] = a * cosine[j] - b * sine[j];
        x[j + half] = b * cosine[j] + a * sine[j];
    }
}

// exp(x) to within 2 units in the last place: exp(x) = 2^k exp(r) with |r| <= ln(2)/2, exp(r) by
// its series to r^7. Not the C library's, so that it is the same everywhere and can be vectorized.
// Below -87 (where a float32 loses digits) it is 0; above 88 it is exp(88). Not-a-number stays.
static inline float exponential(float x)
{
    const float round = 12582912.0f; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    const float bounded = x > -87.0f ? (x < 88.0f ? x : 88.0f) : -87.0f;
    const float k = (bounded * 1.44269504f + round) - round;
    // ln(2) in two parts: k times the first is exact.
    const float r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
    float sum = 1.98412698e-4f;
    sum = sum * r + 1.38888889e-3f;
    sum = sum * r + 8.33333333e-3f;
    sum = sum * r + 4.16666667e-2f;
    sum = sum * r + 1.66666667e-1f;
    sum = sum * r + 0.5f;
    sum = sum * r * r + r + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : x == x ? sum * power : x;
}

static void softmax(float *x, size_t n)
{
    float largest = x[0];
    for (size_t i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (size_t i = 0; i < n; i++)
        x[i] = exponential(x[i] - largest);
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (unsigned j = 0; j < LANES; j++)
            lane[j] += x[i + j];
    for (unsigned j = 0; i < n; i++, j++)
        lane[j] += x[i];
    const float sum = add_lanes(lane);
    for (i = 0; i < n; i++)
        x[i] = x[i] / sum;
}

static void silu_multiply(float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

static void add_scaled(float *restrict y, const float *restrict x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += factor * x[i];
}

static void attend(const float *query, size_t heads, const float *keys, const float *values,
                   size_t positions, size_t head_dim, float scale, float *scores, float *out)
{
    for (size_t h = 0; h < heads; h++, scores += positions) {
        const float *q = query + h * head_dim;
        float *o = out + h * head_dim;
        for (size_t p = 0; p < positions; p++)
            scores[p] = scale * dot(q, keys + p * head_dim, head_dim);
        softmax(scores, positions);
        memset(o, 0, head_dim * sizeof *o);
        for (size_t p = 0; p < positions; p++)
            add_scaled(o, values + p * head_dim, scores[p], head_dim);
    }
}

static void widen_all(const uint16_t *in, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = widen(in[i]);
}

const q3_kernels q3_kernels_c = {
    .name = "c",
    .multiply = multiply,
    .rms_norm = rms_norm,
    .rotate = rotate,
    .softmax = softmax,
    .silu_multiply = silu_multiply,
    .attend = attend,
    .add_scaled = add_scaled,
    .widen = widen_all,
};
