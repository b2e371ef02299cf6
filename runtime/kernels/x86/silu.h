// SPDX-License-Identifier: Apache-2.0
//
// The exponential and silu for any width of vector: included behind vector_*.h. What they compute
// is defined by kernels_c.c.
#ifndef Q3_KERNELS_X86_SILU_H
#define Q3_KERNELS_X86_SILU_H

// See kernels_c.c: the same series, with products and sums rounded together.
static inline floats exponential(floats x)
{
    const floats round = set_all(12582912.0f), lowest = set_all(-87.0f);
    const floats bounded = smaller(larger(x, lowest), set_all(88.0f));
    const floats k = multiply_add(bounded, set_all(1.44269504f), round) - round;
    floats r = multiply_subtract_from(k, set_all(0.693359375f), bounded);
    r = multiply_add(k, set_all(2.12194440e-4f), r);
    floats sum = set_all(1.98412698e-4f);
    sum = multiply_add(sum, r, set_all(1.38888889e-3f));
    sum = multiply_add(sum, r, set_all(8.33333333e-3f));
    sum = multiply_add(sum, r, set_all(4.16666667e-2f));
    sum = multiply_add(sum, r, set_all(1.66666667e-1f));
    sum = multiply_add(sum, r, set_all(0.5f));
    sum = multiply_add(sum * r, r, r) + set_all(1.0f);
    return keep_not_numbers(zero_where_less(sum * power_of_two(k), x, lowest), x);
}

static inline floats silu(floats gate)
{
    return gate / (set_all(1.0f) + exponential(zero() - gate));
}

#endif
