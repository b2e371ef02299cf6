// SPDX-License-Identifier: Apache-2.0
//
// From a bf12 group to its weights, with AVX-512 (BW, VBMI).
#ifndef Q3_KERNELS_X86_BF12_AVX512_H
#define Q3_KERNELS_X86_BF12_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512i bf12_table; // the high byte of a bf16 number for each nibble, in each 16 bytes

static inline bf12_table bf12_load_table(const uint8_t *high_bytes)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)high_bytes));
}

// High bytes for the lower nibbles of some bytes, and for the upper ones. The table repeats every
// 16 bytes, so that it does not matter which two bits are above a nibble.
static inline __m512i bf12_high_of_lower(__m512i nibbles, bf12_table table)
{
    return _mm512_permutexvar_epi8(nibbles, table);
}

static inline __m512i bf12_high_of_upper(__m512i nibbles, bf12_table table)
{
    return bf12_high_of_lower(_mm512_srli_epi16(nibbles, 4), table);
}

// The 64 weights of a group in order, 32 a vector.
static inline void bf12_weights(const uint8_t *group, bf12_table table, __m512i weights[2])
{
    const __m256i *from = (const __m256i *)(const void *)group;
    const __m512i nibbles = _mm512_broadcast_i64x4(_mm256_loadu_si256(from));
    const __m512i fours = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i both = _mm512_srlv_epi16(nibbles, fours);
    const __m512i high = bf12_high_of_lower(both, table);
    const __m512i low = _mm512_loadu_si512(group + 32);
    weights[0] = _mm512_unpacklo_epi8(low, high);
    weights[1] = _mm512_unpackhi_epi8(low, high);
}

#endif
