// SPDX-License-Identifier: Apache-2.0
//
// From a bf12 group to its weights, with AVX2.
#ifndef Q3_KERNELS_X86_BF12_AVX2_H
#define Q3_KERNELS_X86_BF12_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256i bf12_table; // the high byte of a bf16 number for each nibble, in each 16 bytes

static inline bf12_table bf12_load_table(const uint8_t *high_bytes)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)high_bytes));
}

static inline __m256i bf12_load(const uint8_t *from)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)from);
}

// The 64 weights of a group in order, 16 a vector.
static inline void bf12_weights(const uint8_t *group, bf12_table table, __m256i weights[4])
{
    const __m256i nibbles = bf12_load(group), mask = _mm256_set1_epi8(15);
    const __m256i high_first = _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, mask));
    const __m256i high_second =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), mask));
    const __m256i low_first = bf12_load(group + 32), low_second = bf12_load(group + 64);
    weights[0] = _mm256_unpacklo_epi8(low_first, high_first);
    weights[1] = _mm256_unpacklo_epi8(low_second, high_second);
    weights[2] = _mm256_unpackhi_epi8(low_first, high_first);
    weights[3] = _mm256_unpackhi_epi8(low_second, high_second);
}

// 16 bytes of each of 16 rows, `stride` bytes apart: two bytes of all rows after the other, in the
// order in which interleaving their low and high bytes gives rows 0 to 7 and rows 8 to 15.
static inline void bf12_transpose_bytes(const uint8_t *from, size_t stride, __m256i to[8])
{
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++) {
        const uint8_t *row = from + (i % 4 + i / 4 * 8) * stride;
        a[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)row)),
            _mm_loadu_si128((const __m128i *)(const void *)(row + 4 * stride)), 1);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi16(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi32(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi32(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi32(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi32(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++) {
        to[2 * i] = _mm256_unpacklo_epi64(a[i], a[i + 4]);
        to[2 * i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 4]);
    }
}

// A group of each of 16 rows, `stride` bytes apart, transposed: to[p * to_stride + 2 * b] is pair p
// of block b of rows 0 to 7, followed by that of rows 8 to 15.
static inline void bf12_transpose(const uint8_t *groups, size_t stride, bf12_table table,
                                  __m256i *to, size_t to_stride)
{
    const __m256i mask = _mm256_set1_epi8(15);
    for (unsigned half = 0; half < 2; half++) {
        __m256i nibbles[8], first[8], second[8];
        bf12_transpose_bytes(groups + half * 16, stride, nibbles);
        bf12_transpose_bytes(groups + half * 16 + 32, stride, first);
        bf12_transpose_bytes(groups + half * 16 + 64, stride, second);
#pragma GCC unroll 8
        for (unsigned i = 0; i < 8; i++) {
            const __m256i high_first =
                _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles[i], mask));
            const __m256i high_second = _mm256_shuffle_epi8(
                table, _mm256_and_si256(_mm256_srli_epi16(nibbles[i], 4), mask));
            __m256i *at = to + (half * 4 + i % 4) * to_stride + i / 4 * 4;
            at[0] = _mm256_unpacklo_epi8(first[i], high_first);
            at[1] = _mm256_unpackhi_epi8(first[i], high_first);
            at[2] = _mm256_unpacklo_epi8(second[i], high_second);
            at[3] = _mm256_unpackhi_epi8(second[i], high_second);
        }
    }
}

#endif
