// SPDX-License-Identifier: Apache-2.0
//
// From the indices of a bit-plane group to its weights, with AVX2: for those who decode to memory
// and for those who multiply.
#ifndef Q3_CODEC_X86_BITPLANE_AVX2_H
#define Q3_CODEC_X86_BITPLANE_AVX2_H

#include "bitplane_group.h"

// What decoding needs of a table: high and low byte of each exponent's place in a bf16. And the
// constants that a loop wants in registers beside it.
typedef struct q3_bitplane_table {
    __m256i high, low;
    __m256i bit, sign;
} q3_bitplane_table;

// A constant that the compiler does not see through: it would make it anew in every round.
static inline __m256i q3_bitplane_constant(uint64_t bits)
{
    __m256i constant = _mm256_set1_epi64x((int64_t)bits);
    __asm__("" : "+x"(constant));
    return constant;
}

static inline q3_bitplane_table q3_bitplane_load_table(const uint8_t *table)
{
    const __m256i exponents =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (q3_bitplane_table){
        .high = _mm256_and_si256(_mm256_srli_epi16(exponents, 1), _mm256_set1_epi8(0x7f)),
        .low = _mm256_and_si256(_mm256_slli_epi16(exponents, 7), _mm256_set1_epi8((char)0x80)),
        .bit = q3_bitplane_constant(0x8040201008040201),
        .sign = q3_bitplane_constant(0x8080808080808080),
    };
}

// -1 in the bytes whose bits of a plane are one, else 0. `plane` are the same 64 bits four times;
// `places` says from which byte of them each byte takes its bit.
static inline __m256i q3_bitplane_to_bytes(__m256i plane, __m256i places, __m256i bit)
{
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(plane, places), bit), bit);
}

// Half a group, the bytes from 32 * half on: 16 weights from 16 * half on, and 16 from
// 32 + 16 * half on.
static inline void q3_bitplane_combine(const q3_bitplane_indices *indices, q3_bitplane_table table,
                                       const uint8_t *low_bytes, int half, __m256i *first,
                                       __m256i *second)
{
    const __m256i places = _mm256_add_epi8(
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303),
        _mm256_set1_epi8((char)(4 * half)));
    __m256i index = _mm256_setzero_si256(); // negative
    for (int k = 3; k >= 0; k--)
        index = _mm256_add_epi8(
            _mm256_add_epi8(index, index),
            q3_bitplane_to_bytes(_mm256_set1_epi64x((int64_t)indices->bit[k]), places, table.bit));
    index = _mm256_abs_epi8(index);
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(low_bytes + 32 * half));
    const __m256i high_byte =
        _mm256_or_si256(_mm256_shuffle_epi8(table.high, index), _mm256_and_si256(table.sign, low));
    const __m256i low_byte = _mm256_or_si256(_mm256_shuffle_epi8(table.low, index),
                                             _mm256_andnot_si256(table.sign, low));
    *first = _mm256_unpacklo_epi8(low_byte, high_byte);
    *second = _mm256_unpackhi_epi8(low_byte, high_byte);
}

// The 64 weights of a group, 16 a vector. Those of index 15 want q3_bitplane_patch.
static inline void q3_bitplane_weights(const q3_bitplane_indices *indices, q3_bitplane_table table,
                                       const uint8_t *low_bytes, __m256i weights[4])
{
    q3_bitplane_combine(indices, table, low_bytes, 0, &weights[0], &weights[2]);
    q3_bitplane_combine(indices, table, low_bytes, 1, &weights[1], &weights[3]);
}

#endif
