// SPDX-License-Identifier: Apache-2.0
//
// Number by number functions for any width of vector: included once, behind vector_*.h, by the
// source of each level. What they compute is defined by kernels_c.c.
#ifndef Q3_KERNELS_X86_ELEMENTS_H
#define Q3_KERNELS_X86_ELEMENTS_H

#include "kernels/kernels.h"
#include "silu.h"

#include <math.h>

static void rms_norm(const float *x, const uint16_t *weight, float epsilon, size_t n, float *y)
{
    floats squares[4];
    UNROLL
    for (unsigned j = 0; j < 4; j++)
        squares[j] = zero();
    size_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
        UNROLL
        for (unsigned j = 0; j < 4; j++) {
            const floats part = load(x + i + j * WIDTH);
            squares[j] = multiply_add(part, part, squares[j]);
        }
    }
    for (; i < n; i += WIDTH) {
        const floats part = n - i < WIDTH ? load_some(x + i, n - i) : load(x + i);
        squares[0] = multiply_add(part, part, squares[0]);
    }
    const float sum = sum_lanes((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const floats factor = set_all(1.0f / sqrtf(sum / (float)n + epsilon));
    for (i = 0; i + WIDTH <= n; i += WIDTH)
        store(y + i, load_narrow(weight + i) * (load(x + i) * factor));
    if (i < n)
        store_some(y + i, load_some_narrow(weight + i, n - i) * (load_some(x + i, n - i) * factor),
                   n - i);
}

static void rotate(float *x, const float *cosine, const float *sine, size_t half)
{
    size_t j = 0;
    for (; j + WIDTH <= half; j += WIDTH) {
        const floats a = load(x + j), b = load(x + j + half);
        const floats c = load(cosine + j), s = load(sine + j);
        store(x + j, multiply_subtract_from(b, s, a * c));
        store(x + j + half, multiply_add(a, s, b * c));
    }
    if (j < half) {
        const size_t left = half - j;
        const floats a = load_some(x + j, left), b = load_some(x + j + half, left);
        const floats c = load_some(cosine + j, left), s = load_some(sine + j, left);
        store_some(x + j, multiply_subtract_from(b, s, a * c), left);
        store_some(x + j + half, multiply_add(a, s, b * c), left);
    }
}

static void softmax(float *x, size_t n)
{
    floats most = set_all(x[0]);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        most = larger(load(x + i), most);
    if (i < n)
        most = larger(keep_some(load_some(x + i, n - i), n - i, most), most);
    const floats largest = set_all(largest_lane(most));
    floats sums = zero();
    for (i = 0; i + WIDTH <= n; i += WIDTH) {
        const floats powers = exponential(load(x + i) - largest);
        store(x + i, powers);
        sums = sums + powers;
    }
    if (i < n) {
        const floats powers = exponential(load_some(x + i, n - i) - largest);
        store_some(x + i, powers, n - i);
        sums = sums + keep_some(powers, n - i, zero());
    }
    const floats sum = set_all(sum_lanes(sums));
    for (i = 0; i + WIDTH <= n; i += WIDTH)
        store(x + i, load(x + i) / sum);
    if (i < n)
        store_some(x + i, load_some(x + i, n - i) / sum, n - i);
}

static void silu_multiply(float *gate, const float *up, size_t n)
{
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        store(gate + i, silu(load(gate + i)) * load(up + i));
    if (i < n)
        store_some(gate + i, silu(load_some(gate + i, n - i)) * load_some(up + i, n - i), n - i);
}

static void add_scaled(float *y, const float *x, float factor, size_t n)
{
    const floats all = set_all(factor);
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        store(y + i, multiply_add(all, load(x + i), load(y + i)));
    if (i < n)
        store_some(y + i, multiply_add(all, load_some(x + i, n - i), load_some(y + i, n - i)),
                   n - i);
}

static void widen(const uint16_t *in, size_t n, float *out)
{
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        store(out + i, load_narrow(in + i));
    if (i < n)
        store_some(out + i, load_some_narrow(in + i, n - i), n - i);
}

static void narrow(const float *in, size_t n, uint16_t *out)
{
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        store_narrow(out + i, narrowed(load(in + i)));
    if (i < n)
        store_some_narrow(out + i, narrowed(load_some(in + i, n - i)), n - i);
}

#endif
