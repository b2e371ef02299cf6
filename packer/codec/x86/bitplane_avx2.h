// SPDX-License-Identifier: Apache-2.0
//
// From the indices of a bit-plane group to its weights, with AVX2: for those who decode to memory
// and for those who multiply.
#ifndef Q3_CODEC_X86_BITPLANE_AVX2_H
#define Q3_CODEC_X86_BITPLANE_AVX2_H

#include "bitplane_group.h"

// What decoding needs of a table: high and low byte of each exponent's place in a bf16.
typedef struct q3_bitplane_table {
    __m256i high, low;
} q3_bitplane_table;

static inline q3_bitplane_table q3_bitplane_load_table(const uint8_t *table)
{
    const __m256i exponents =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (q3_bitplane_table){
        .high = _mm256_and_si256(_mm256_srli_epi16(exponents, 1), _mm256_set1_epi8(0x7f)),
        .low = _mm256_and_si256(_mm256_slli_epi16(exponents, 7), _mm256_set1_epi8((char)0x80)),
    };
}

// 2^k in the bytes whose bits of a plane are one, else 0. `plane` are the same 64 bits four times;
// `places` says from which byte of them each byte takes its bit.
static inline __m256i q3_bitplane_add_plane(__m256i index, uint64_t plane, int k, __m256i places)
{
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    // The sign of a byte with its own bit alone: that of bit 7 is negative, so its value is too.
    const __m256i value = _mm256_sign_epi8(_mm256_set1_epi8((char)(1 << k)), bit);
    const __m256i bits =
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi64x((int64_t)plane), places), bit);
    return _mm256_add_epi8(index, _mm256_sign_epi8(value, bits));
}

// Half a group, the bytes from 32 * half on: 16 weights from 16 * half on, and 16 from
// 32 + 16 * half on.
static inline void q3_bitplane_combine(const q3_bitplane_indices *indices, q3_bitplane_table table,
                                       const uint8_t *low_bytes, int half, __m256i *first,
                                       __m256i *second)
{
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    const __m256i places = _mm256_add_epi8(
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303),
        _mm256_set1_epi8((char)(4 * half)));
    __m256i index = _mm256_setzero_si256();
    for (int k = 0; k < 4; k++)
        index = q3_bitplane_add_plane(index, indices->bit[k], k, places);
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(low_bytes + 32 * half));
    const __m256i high_byte =
        _mm256_or_si256(_mm256_shuffle_epi8(table.high, index), _mm256_and_si256(low, sign));
    const __m256i low_byte =
        _mm256_or_si256(_mm256_shuffle_epi8(table.low, index), _mm256_andnot_si256(sign, low));
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
