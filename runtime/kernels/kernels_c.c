// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <limits.h>
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
static void multiply_row_by_many(const uint16_t *row, size_t columns, const float *x0,
                                 const float *x1, float *sums)
{
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

// A panel is one vector as it is.
static size_t panel_bytes(size_t columns)
{
    return (columns * sizeof(float) + 63) & ~(size_t)63;
}

static void arrange(const float *const *x, unsigned count, size_t columns, void *panel)
{
    (void)count;
    memcpy(panel, x[0], columns * sizeof(float));
}

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next)
{
    (void)next;
    for (size_t r = 0; r < rows; r++) {
        const uint16_t *row = weights + r * columns;
        size_t v = 0;
        for (; v + VECTORS <= vectors; v += VECTORS) {
            float sums[VECTORS];
            multiply_row_by_many(row, columns, panels[v], panels[v + 1], sums);
            for (unsigned j = 0; j < VECTORS; j++)
                y[v + j][first + r] = sums[j];
        }
        for (; v < vectors; v++)
            y[v][first + r] = multiply_row(row, columns, panels[v]);
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

// A number of the KV cache.
static inline float read_kept(const q3_attention *a, const void *numbers, size_t at)
{
    return a->narrow ? widen(((const uint16_t *)numbers)[at]) : ((const float *)numbers)[at];
}

static void attend(const q3_attention *a)
{
    const size_t stride = q3_score_stride(a->positions + a->tokens - 1);
    for (size_t t = 0; t < a->tokens; t++) {
        const size_t positions = a->positions + t;
        for (size_t h = 0; h < a->heads; h++) {
            const float *query = a->query + t * a->query_stride + h * a->head_dim;
            float *out = a->out + t * a->out_stride + h * a->head_dim;
            float *scores = a->scores + (t * a->heads + h) * stride;
            for (size_t p = 0; p < positions; p++) {
                const size_t at = p / Q3_KEY_PANEL * Q3_KEY_PANEL * a->head_dim + p % Q3_KEY_PANEL;
                float sum = 0;
                for (size_t d = 0; d < a->head_dim; d++)
                    sum += query[d] * read_kept(a, a->keys, at + d * Q3_KEY_PANEL);
                scores[p] = a->scale * sum;
            }
            softmax(scores, positions);
            memset(out, 0, a->head_dim * sizeof *out);
            for (size_t p = 0; p < positions; p++)
                for (size_t d = 0; d < a->head_dim; d++)
                    out[d] += scores[p] * read_kept(a, a->values, p * a->head_dim + d);
        }
    }
}

static void widen_all(const uint16_t *in, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = widen(in[i]);
}

static void narrow_all(const float *in, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &in[i], sizeof bits);
        const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        out[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

static const q3_products products = {
    .name = "c",
    .panel = 1,
    .group_bytes = SIZE_MAX,
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
};

const q3_kernels q3_kernels_c = {
    .name = "c",
    .few = &products,
    .many = &products,
    .many_tokens = 1,
    .bf12 = &q3_bf12_kernels_c,
    .rms_norm = rms_norm,
    .rotate = rotate,
    .softmax = softmax,
    .silu_multiply = silu_multiply,
    .attend = attend,
    .add_scaled = add_scaled,
    .widen = widen_all,
    .narrow = narrow_all,
};
