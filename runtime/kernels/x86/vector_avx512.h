// SPDX-License-Identifier: Apache-2.0
//
// The vectors that the kernels are written in, with AVX-512 (F, BW, DQ, VL): 16 numbers.
#ifndef Q3_KERNELS_VECTOR_AVX512_H
#define Q3_KERNELS_VECTOR_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define WIDTH 16

typedef __m512 floats;   // WIDTH float32; + - * / work on them
typedef __m512i pairs;   // WIDTH pairs of bf16
typedef __m256i narrows; // WIDTH bf16

static inline floats zero(void)
{
    return _mm512_setzero_ps();
}

static inline floats set_all(float value)
{
    return _mm512_set1_ps(value);
}

static inline floats load(const float *from)
{
    return _mm512_loadu_ps(from);
}

static inline void store(float *to, floats values)
{
    _mm512_storeu_ps(to, values);
}

static inline __mmask16 lanes_below(size_t count)
{
    return (__mmask16)((1u << count) - 1);
}

// The first `count` numbers, at most WIDTH, and zeros.
static inline floats load_some(const float *from, size_t count)
{
    return _mm512_maskz_loadu_ps(lanes_below(count), from);
}

static inline void store_some(float *to, floats values, size_t count)
{
    _mm512_mask_storeu_ps(to, lanes_below(count), values);
}

// `values` where the lane is below `count`, else `other`.
static inline floats keep_some(floats values, size_t count, floats other)
{
    return _mm512_mask_mov_ps(other, lanes_below(count), values);
}

// a * b + c, rounded once; and c - a * b.
static inline floats multiply_add(floats a, floats b, floats c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline floats multiply_subtract_from(floats a, floats b, floats c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

// In each lane a > b ? a : b.
static inline floats larger(floats a, floats b)
{
    return _mm512_max_ps(a, b);
}

static inline floats smaller(floats a, floats b)
{
    return _mm512_min_ps(a, b);
}

static inline floats zero_where_less(floats values, floats a, floats b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), values);
}

// a where it is not a number, else `values`.
static inline floats keep_not_numbers(floats values, floats a)
{
    return _mm512_mask_mov_ps(values, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

// 2^k for whole k from -126 to 127.
static inline floats power_of_two(floats k)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(k), _mm512_set1_epi32(127)), 23));
}

// The sums of four vectors' lanes, each added up in the same order: the upper half to the lower,
// then ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
static inline __m256 fold(floats values)
{
    return _mm256_add_ps(_mm512_castps512_ps256(values), _mm512_extractf32x8_ps(values, 1));
}

static inline __m128 sum_four(floats a, floats b, floats c, floats d)
{
    const __m256 sums =
        _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

static inline float sum_lanes(floats values)
{
    return _mm_cvtss_f32(sum_four(values, values, values, values));
}

static inline float largest_lane(floats values)
{
    return _mm512_reduce_max_ps(values);
}

// The numbers at even places of a and b one after the other, and those at odd places.
static inline void split_pairs(floats a, floats b, floats *evens, floats *odds)
{
    const __m512i places =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *evens = _mm512_permutex2var_ps(a, places, b);
    *odds = _mm512_permutex2var_ps(a, _mm512_add_epi32(places, _mm512_set1_epi32(1)), b);
}

// ---- bf16 ----

static inline pairs load_pairs(const uint16_t *from)
{
    return _mm512_loadu_si512(from);
}

// The first `count` numbers, at most 2 * WIDTH, and zeros.
static inline pairs load_some_pairs(const uint16_t *from, size_t count)
{
    return _mm512_maskz_loadu_epi16((__mmask32)((UINT64_C(1) << count) - 1), from);
}

// Four times 16 bytes, `apart` bytes from each other.
static inline pairs load_lanes(const uint8_t *from, size_t apart)
{
    const __m128i *lanes[4];
    for (unsigned i = 0; i < 4; i++)
        lanes[i] = (const __m128i *)(const void *)(from + i * apart);
    pairs all = _mm512_castsi128_si512(_mm_loadu_si128(lanes[0]));
    all = _mm512_inserti32x4(all, _mm_loadu_si128(lanes[1]), 1);
    all = _mm512_inserti32x4(all, _mm_loadu_si128(lanes[2]), 2);
    return _mm512_inserti32x4(all, _mm_loadu_si128(lanes[3]), 3);
}

// In each 16 bytes: one number of so many bits of a, one of b, and so on, of their lower halves,
// and of their upper ones.
#define INTERLEAVE_LOW_8 _mm512_unpacklo_epi8
#define INTERLEAVE_LOW_16 _mm512_unpacklo_epi16
#define INTERLEAVE_LOW_32 _mm512_unpacklo_epi32
#define INTERLEAVE_LOW_64 _mm512_unpacklo_epi64
#define INTERLEAVE_HIGH_8 _mm512_unpackhi_epi8
#define INTERLEAVE_HIGH_16 _mm512_unpackhi_epi16
#define INTERLEAVE_HIGH_32 _mm512_unpackhi_epi32
#define INTERLEAVE_HIGH_64 _mm512_unpackhi_epi64

// The first numbers of the pairs, and the second ones.
static inline floats even(pairs weights)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
}

static inline floats odd(pairs weights)
{
    return _mm512_castsi512_ps(_mm512_and_si512(weights, _mm512_set1_epi32(-0x10000)));
}

static inline floats widened(narrows values)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

static inline floats load_narrow(const uint16_t *from)
{
    return widened(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

// The first `count` numbers, at most WIDTH, and zeros.
static inline floats load_some_narrow(const uint16_t *from, size_t count)
{
    return widened(_mm256_maskz_loadu_epi16(lanes_below(count), from));
}

// The nearest bf16, ties to even; what is not a number stays so.
static inline narrows narrowed(floats values)
{
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i high = _mm512_srli_epi32(bits, 16);
    const __m512i to_even = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), to_even), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}

static inline void store_narrow(uint16_t *to, narrows values)
{
    _mm256_storeu_si256((__m256i *)(void *)to, values);
}

static inline void store_some_narrow(uint16_t *to, narrows values, size_t count)
{
    _mm256_mask_storeu_epi16(to, lanes_below(count), values);
}

#endif
