// SPDX-License-Identifier: Apache-2.0
//
// float32 for instructions that multiply bf16: x becomes high + low, high the bf16 nearest to x and
// low the one nearest to x - high. |x - high - low| <= 2^-17 |x| (7.6e-6), as long as |x| lies
// between 2^-100 and bf16's largest number. Weights are bf16 anyway, so a sum of products errs by
// no more than that part of the sum of |weight * x|, and the rounding of float32 sums; over many
// columns the parts have either sign and a sum of its usual size errs by some 2e-6.
//
// These instructions take numbers, weights too, below 2^-126 as zero and make none, and round to
// nearest whatever the thread has set.
#ifndef Q3_KERNELS_X86_BF16_SPLIT_H
#define Q3_KERNELS_X86_BF16_SPLIT_H

#include <immintrin.h>
#include <stddef.h>

typedef struct q3_split {
    __m512i high, low; // 32 bf16 in order
} q3_split;

static inline __m512 q3_split_widen(__m256i numbers)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

// The first `count` of 16 lanes.
static inline __mmask16 q3_split_mask(size_t count)
{
    return (__mmask16)(count < 16 ? (1u << count) - 1 : 0xffff);
}

// 16 numbers and the 16 that follow.
static inline q3_split q3_split_two(__m512 a, __m512 b)
{
    const __m512i high = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 a_high = q3_split_widen(_mm512_castsi512_si256(high));
    const __m512 b_high = q3_split_widen(_mm512_extracti64x4_epi64(high, 1));
    const __m512i low =
        (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(b, b_high), _mm512_sub_ps(a, a_high));
    return (q3_split){.high = high, .low = low};
}

// The first numbers of both halves, then the second ones, and so on.
static inline __m512i q3_split_interleave(__m512i halves)
{
    const __m512i evens = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i order = _mm512_or_si512(
        evens, _mm512_slli_epi32(_mm512_add_epi32(evens, _mm512_set1_epi32(16)), 16));
    return _mm512_permutexvar_epi16(order, halves);
}

// The first 32 of `count` numbers; what is missing becomes zero and is not read.
static inline q3_split q3_split_load(const float *x, size_t count)
{
    return q3_split_two(_mm512_maskz_loadu_ps(q3_split_mask(count), x),
                        _mm512_maskz_loadu_ps(q3_split_mask(count > 16 ? count - 16 : 0), x + 16));
}

#endif
