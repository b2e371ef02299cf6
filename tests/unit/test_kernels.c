// SPDX-License-Identifier: Apache-2.0
//
// The plain C kernels: against double arithmetic on random numbers of every awkward length, and the
// promise that an output does not depend on how the work is cut.
#include "kernels/kernels.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const q3_kernels *const kernels = &q3_kernels_c;

enum { GUARD = 8 };
static const float guard = 12345.0f;

// A small generator: the same numbers in every run.
static uint64_t random_state;

static double random_unit(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-53;
}

static float random_float(void)
{
    return (float)(2 * random_unit() - 1);
}

static uint16_t random_weight(void)
{
    const float value = random_float();
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static double weight_value(uint16_t weight)
{
    const uint32_t bits = (uint32_t)weight << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

// Numbers with guards on both sides, one element off any larger alignment.
static float *make_floats(size_t count)
{
    float *memory = malloc((count + 2 * GUARD + 1) * sizeof *memory);
    assert_non_null(memory);
    for (size_t i = 0; i < count + 2 * GUARD + 1; i++)
        memory[i] = guard;
    for (size_t i = 0; i < count; i++)
        memory[GUARD + 1 + i] = random_float();
    return memory + GUARD + 1;
}

static void free_floats(float *floats, size_t count)
{
    for (size_t i = 1; i <= GUARD; i++)
        assert_true(floats[-(ptrdiff_t)i] == guard && floats[count + i - 1] == guard);
    free(floats - GUARD - 1);
}

static uint16_t *make_weights(size_t count)
{
    uint16_t *weights = malloc((count + 1) * sizeof *weights);
    assert_non_null(weights);
    for (size_t i = 0; i <= count; i++)
        weights[i] = random_weight();
    return weights;
}

// |found - expected| within `units` roundings of float32 at the given size.
static void assert_near(double expected, float found, double size, double units)
{
    if (!(fabs(expected - (double)found) <= units * 0x1p-24 * (size + 1e-30)))
        fail_msg("expected %.9g, found %.9g", expected, (double)found);
}

static const size_t lengths[] = {1,  2,  3,   15,  16,  17,  31,  32,
                                 33, 64, 100, 127, 128, 129, 768, 2048};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static void test_multiply(void **state)
{
    (void)state;
    enum { ROWS = 7, VECTORS = 9 };
    for (size_t n = 0; n < LENGTHS; n++) {
        const size_t columns = lengths[n];
        uint16_t *memory = make_weights(ROWS * columns), *matrix = memory + 1; // misaligned
        const float *x[VECTORS];
        float *in[VECTORS], *y[VECTORS], *again[VECTORS];
        for (size_t v = 0; v < VECTORS; v++) {
            x[v] = in[v] = make_floats(columns);
            y[v] = make_floats(ROWS);
            again[v] = make_floats(ROWS);
        }
        kernels->few->multiply(matrix, ROWS, columns, (const void *const *)x, VECTORS, y, 0);
        for (size_t v = 0; v < VECTORS; v++)
            for (size_t r = 0; r < ROWS; r++) {
                double sum = 0, size = 0;
                for (size_t i = 0; i < columns; i++) {
                    const double term = weight_value(matrix[r * columns + i]) * (double)x[v][i];
                    sum += term;
                    size += fabs(term);
                }
                assert_near(sum, y[v][r], size, 16 + (double)columns / 16);
            }
        // One row and one vector at a time: the same bytes.
        for (size_t v = 0; v < VECTORS; v++)
            for (size_t r = 0; r < ROWS; r++)
                kernels->few->multiply(matrix + r * columns, 1, columns,
                                       (const void *const *)(x + v), 1, again + v, r);
        for (size_t v = 0; v < VECTORS; v++) {
            assert_memory_equal(y[v], again[v], ROWS * sizeof(float));
            free_floats(in[v], columns);
            free_floats(y[v], ROWS);
            free_floats(again[v], ROWS);
        }
        free(memory);
    }
}

static void test_rms_norm(void **state)
{
    (void)state;
    for (size_t n = 0; n < LENGTHS; n++) {
        const size_t count = lengths[n];
        float *x = make_floats(count), *y = make_floats(count);
        uint16_t *weight = make_weights(count);
        double sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += (double)x[i] * (double)x[i];
        const double factor = 1 / sqrt(sum / (double)count + 1e-6);
        kernels->rms_norm(x, weight, 1e-6f, count, y);
        for (size_t i = 0; i < count; i++) {
            const double expected = weight_value(weight[i]) * (double)x[i] * factor;
            assert_near(expected, y[i], fabs(expected), 16 + (double)count / 32);
        }
        kernels->rms_norm(x, weight, 1e-6f, count, x);
        assert_memory_equal(x, y, count * sizeof *x);
        free_floats(x, count);
        free_floats(y, count);
        free(weight);
    }
}

static void test_rotate(void **state)
{
    (void)state;
    for (size_t n = 0; n < LENGTHS; n++) {
        const size_t half = lengths[n];
        float *x = make_floats(2 * half), *cosine = make_floats(half), *sine = make_floats(half);
        double *expected = malloc(2 * half * sizeof *expected);
        assert_non_null(expected);
        for (size_t j = 0; j < half; j++) {
            const double a = (double)x[j], b = (double)x[j + half];
            expected[j] = a * (double)cosine[j] - b * (double)sine[j];
            expected[j + half] = b * (double)cosine[j] + a * (double)sine[j];
        }
        kernels->rotate(x, cosine, sine, half);
        for (size_t j = 0; j < 2 * half; j++)
            assert_near(expected[j], x[j], 2, 2);
        free(expected);
        free_floats(x, 2 * half);
        free_floats(cosine, half);
        free_floats(sine, half);
    }
}

static void test_softmax(void **state)
{
    (void)state;
    for (size_t n = 0; n < LENGTHS; n++) {
        const size_t count = lengths[n];
        float *x = make_floats(count);
        double *expected = malloc(count * sizeof *expected);
        assert_non_null(expected);
        double sum = 0, largest = -INFINITY;
        for (size_t i = 0; i < count; i++) {
            x[i] *= 20;
            if (i % 5 == 3)
                x[i] = -INFINITY;
            largest = fmax(largest, (double)x[i]);
        }
        for (size_t i = 0; i < count; i++)
            sum += expected[i] = exp((double)x[i] - largest);
        kernels->softmax(x, count);
        for (size_t i = 0; i < count; i++) {
            if (i % 5 == 3)
                assert_true(x[i] == 0.0f);
            // The argument is rounded before exp: up to 40 / 2 units more.
            assert_near(expected[i] / sum, x[i], expected[i] / sum, 32 + (double)count / 16);
        }
        free(expected);
        free_floats(x, count);
    }
    float far[] = {1000.0f, 0.0f, -1000.0f, 1000.0f};
    kernels->softmax(far, 4);
    assert_true(far[0] == 0.5f && far[1] == 0.0f && far[2] == 0.0f && far[3] == 0.5f);
    float broken[] = {0.0f, NAN, 1.0f};
    kernels->softmax(broken, 3);
    assert_true(isnan(broken[0]) && isnan(broken[1]) && isnan(broken[2]));
}

static void test_silu_multiply(void **state)
{
    (void)state;
    enum { COUNT = 4001 };
    float *gate = make_floats(COUNT), *up = make_floats(COUNT);
    double expected[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        gate[i] = (float)((double)i / 20 - 100);
        const double x = (double)gate[i];
        expected[i] = x / (1 + exp(-x)) * (double)up[i];
    }
    kernels->silu_multiply(gate, up, COUNT);
    for (size_t i = 0; i < COUNT; i++)
        // Beyond -87 the result is below 1e-35, and how far is of no interest.
        assert_near(expected[i], gate[i], fabs(expected[i]) + (i < 260 ? 1e-28 : 0), 8);
    free_floats(gate, COUNT);
    free_floats(up, COUNT);
}

static void test_attend(void **state)
{
    (void)state;
    static const size_t dims[] = {2, 16, 30, 128};
    static const size_t positions[] = {1, 2, 17, 300};
    enum { HEADS = 3 };
    for (size_t a = 0; a < 4; a++)
        for (size_t b = 0; b < 4; b++) {
            const size_t dim = dims[a], count = positions[b];
            float *query = make_floats(HEADS * dim), *out = make_floats(HEADS * dim);
            float *keys = make_floats(count * dim), *values = make_floats(count * dim);
            const size_t stride = q3_score_stride(count);
            float *scores = make_floats(HEADS * stride), *alone = make_floats(dim);
            float *panels = make_floats(stride * dim);
            for (size_t p = 0; p < count; p++)
                for (size_t d = 0; d < dim; d++)
                    panels[p / Q3_KEY_PANEL * Q3_KEY_PANEL * dim + d * Q3_KEY_PANEL +
                           p % Q3_KEY_PANEL] = keys[p * dim + d];
            const double scale = 1 / sqrt((double)dim);
            q3_attention attention = {
                .query = query,
                .out = out,
                .tokens = 1,
                .heads = HEADS,
                .head_dim = dim,
                .positions = count,
                .keys = panels,
                .values = values,
                .scale = (float)scale,
                .scores = scores,
            };
            kernels->attend(&attention);
            for (size_t h = 0; h < HEADS; h++) {
                double *weight = malloc(count * sizeof *weight), sum = 0;
                assert_non_null(weight);
                for (size_t p = 0; p < count; p++) {
                    double dot = 0;
                    for (size_t i = 0; i < dim; i++)
                        dot += (double)query[h * dim + i] * (double)keys[p * dim + i];
                    sum += weight[p] = exp(scale * dot);
                }
                for (size_t i = 0; i < dim; i++) {
                    double expected = 0;
                    for (size_t p = 0; p < count; p++)
                        expected += weight[p] / sum * (double)values[p * dim + i];
                    assert_near(expected, out[h * dim + i], 1, 32);
                }
                free(weight);
                // A head by itself: the same bytes.
                attention.query = query + h * dim;
                attention.heads = 1;
                attention.out = alone;
                kernels->attend(&attention);
                assert_memory_equal(alone, out + h * dim, dim * sizeof *alone);
            }
            free_floats(query, HEADS * dim);
            free_floats(out, HEADS * dim);
            free_floats(keys, count * dim);
            free_floats(values, count * dim);
            free_floats(scores, HEADS * stride);
            free_floats(panels, stride * dim);
            free_floats(alone, dim);
        }
}

static void test_simple(void **state)
{
    (void)state;
    for (size_t n = 0; n < LENGTHS; n++) {
        const size_t count = lengths[n];
        float *x = make_floats(count), *y = make_floats(count), *before = make_floats(count);
        uint16_t *weights = make_weights(count);
        memcpy(before, y, count * sizeof *y);
        kernels->add_scaled(y, x, 0.75f, count);
        for (size_t i = 0; i < count; i++)
            assert_near((double)before[i] + 0.75 * (double)x[i], y[i], 2, 2);
        kernels->widen(weights, count, y);
        for (size_t i = 0; i < count; i++)
            assert_true((double)y[i] == weight_value(weights[i]));
        free_floats(x, count);
        free_floats(y, count);
        free_floats(before, count);
        free(weights);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_multiply),      cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_rotate),        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_silu_multiply), cmocka_unit_test(test_attend),
        cmocka_unit_test(test_simple),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
