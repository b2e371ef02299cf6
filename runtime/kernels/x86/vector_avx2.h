// SPDX-License-Identifier: Apache-2.0
//
// The vectors that the kernels are written in, with AVX2 and FMA: 8 numbers.
#ifndef Q3_KERNELS_VECTOR_AVX2_H
#define Q3_KERNELS_VECTOR_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WIDTH 8

typedef __m256 floats;   // WIDTH float32; + - * / work on them
typedef __m256i pairs;   // WIDTH pairs of bf16
typedef __m128i narrows; // WIDTH bf16

static inline floats zero(void)
{
    return _mm256_setzero_ps();
}

static inline floats set_all(float value)
{
    return _mm256_set1_ps(value);
}

static inline floats load(const float *from)
{
    return _mm256_loadu_ps(from);
}

static inline void store(float *to, floats values)
{
    _mm256_storeu_ps(to, values);
}

// -1 in the lanes below `count`.
static inline __m256i lanes_below(size_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `count` numbers, at most WIDTH, and zeros.
static inline floats load_some(const float *from, size_t count)
{
    return _mm256_maskload_ps(from, lanes_below(count));
}

static inline void store_some(float *to, floats values, size_t count)
{
    _mm256_maskstore_ps(to, lanes_below(count), values);
}

// `values` where the lane is below `count`, else `other`.
static inline floats keep_some(floats values, size_t count, floats other)
{
    return _mm256_blendv_ps(other, values, _mm256_castsi256_ps(lanes_below(count)));
}

// a * b + c, rounded once; and c - a * b.
static inline floats multiply_add(floats a, floats b, floats c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline floats multiply_subtract_from(floats a, floats b, floats c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

// In each lane a > b ? a : b.
static inline floats larger(floats a, floats b)
{
    return _mm256_max_ps(a, b);
}

static inline floats smaller(floats a, floats b)
{
    return _mm256_min_ps(a, b);
}

static inline floats zero_where_less(floats values, floats a, floats b)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), values);
}

// a where it is not a number, else `values`.
static inline floats keep_not_numbers(floats values, floats a)
{
    return _mm256_blendv_ps(values, a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

// 2^k for whole k from -126 to 127.
static inline floats power_of_two(floats k)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23));
}

// The sums of four vectors' lanes, each added up in the same order:
// ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
static inline __m128 sum_four(floats a, floats b, floats c, floats d)
{
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

static inline float sum_lanes(floats values)
{
    return _mm_cvtss_f32(sum_four(values, values, values, values));
}

static inline float largest_lane(floats values)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// The numbers at even places of a and b one after the other, and those at odd places.
static inline void split_pairs(floats a, floats b, floats *evens, floats *odds)
{
    *evens = _mm256_castpd_ps(
        _mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
    *odds = _mm256_castpd_ps(
        _mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
}

// ---- bf16 ----

static inline pairs load_pairs(const uint16_t *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

// The first `count` numbers, at most 2 * WIDTH, and zeros.
static inline pairs load_some_pairs(const uint16_t *from, size_t count)
{
    const __m256i whole =
        _mm256_maskload_epi32((const int *)(const void *)from, lanes_below(count / 2));
    if (count % 2 == 0)
        return whole;
    const __m256i last = _mm256_cmpeq_epi32(_mm256_set1_epi32((int)(count / 2)),
                                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_or_si256(whole, _mm256_and_si256(last, _mm256_set1_epi32(from[count - 1])));
}

// Two times 16 bytes, `apart` bytes from each other.
static inline pairs load_lanes(const uint8_t *from, size_t apart)
{
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from)),
        _mm_loadu_si128((const __m128i *)(const void *)(from + apart)), 1);
}

// In each 16 bytes: one number of so many bits of a, one of b, and so on, of their lower halves,
// and of their upper ones.
#define INTERLEAVE_LOW_8 _mm256_unpacklo_epi8
#define INTERLEAVE_LOW_16 _mm256_unpacklo_epi16
#define INTERLEAVE_LOW_32 _mm256_unpacklo_epi32
#define INTERLEAVE_LOW_64 _mm256_unpacklo_epi64
#define INTERLEAVE_HIGH_8 _mm256_unpackhi_epi8
#define INTERLEAVE_HIGH_16 _mm256_unpackhi_epi16
#define INTERLEAVE_HIGH_32 _mm256_unpackhi_epi32
#define INTERLEAVE_HIGH_64 _mm256_unpackhi_epi64

// The first numbers of the pairs, and the second ones.
static inline floats even(pairs weights)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(weights, 16));
}

static inline floats odd(pairs weights)
{
    return _mm256_castsi256_ps(_mm256_and_si256(weights, _mm256_set1_epi32(-0x10000)));
}

static inline floats widened(narrows values)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(values), 16));
}

static inline floats load_narrow(const uint16_t *from)
{
    return widened(_mm_loadu_si128((const __m128i *)(const void *)from));
}

// The first `count` numbers, at most WIDTH, and zeros.
static inline floats load_some_narrow(const uint16_t *from, size_t count)
{
    uint16_t all[WIDTH] = {0};
    memcpy(all, from, count * sizeof *from);
    return load_narrow(all);
}

// The nearest bf16, ties to even; what is not a number stays so.
static inline narrows narrowed(floats values)
{
    const __m256i bits = _mm256_castps_si256(values);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i to_even = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), to_even), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

static inline void store_narrow(uint16_t *to, narrows values)
{
    _mm_storeu_si128((__m128i *)(void *)to, values);
}

static inline void store_some_narrow(uint16_t *to, narrows values, size_t count)
{
    uint16_t all[WIDTH];
    store_narrow(all, values);
    memcpy(to, all, count * sizeof *to);
}

#endif
