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

// High bytes for the lower nibbles of some bytes, and for the upper ones.
static inline __m256i bf12_high_of_lower(__m256i nibbles, bf12_table table)
{
    return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}

static inline __m256i bf12_high_of_upper(__m256i nibbles, bf12_table table)
{
    return bf12_high_of_lower(_mm256_srli_epi16(nibbles, 4), table);
}

// The 64 weights of a group in order, 16 a vector.
static inline void bf12_weights(const uint8_t *group, bf12_table table, __m256i weights[4])
{
    const __m256i nibbles = bf12_load(group);
    const __m256i high_first = bf12_high_of_lower(nibbles, table);
    const __m256i high_second = bf12_high_of_upper(nibbles, table);
    const __m256i low_first = bf12_load(group + 32), low_second = bf12_load(group + 64);
    weights[0] = _mm256_unpacklo_epi8(low_first, high_first);
    weights[1] = _mm256_unpacklo_epi8(low_second, high_second);
    weights[2] = _mm256_unpackhi_epi8(low_first, high_first);
    weights[3] = _mm256_unpackhi_epi8(low_second, high_second);
}

#endif
