// SPDX-License-Identifier: Apache-2.0
//
// From the indices of a bit-plane group to its weights, with AVX-512 (BW): for those who decode to
// memory and for those who multiply.
#ifndef Q3_CODEC_X86_BITPLANE_AVX512_H
#define Q3_CODEC_X86_BITPLANE_AVX512_H

#include "bitplane_group.h"

// High and low byte of exponents' places in a bf16: of a table, or of 64 weights.
typedef struct q3_bitplane_table {
    __m512i high, low;
} q3_bitplane_table;

static inline __m512i q3_bitplane_high_byte(__m512i exponents)
{
    return _mm512_and_si512(_mm512_srli_epi16(exponents, 1), _mm512_set1_epi8(0x7f));
}

static inline __m512i q3_bitplane_low_byte(__m512i exponents)
{
    return _mm512_and_si512(_mm512_slli_epi16(exponents, 7), _mm512_set1_epi8((char)0x80));
}

static inline q3_bitplane_table q3_bitplane_load_table(const uint8_t *table)
{
    const __m512i exponents =
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (q3_bitplane_table){.high = q3_bitplane_high_byte(exponents),
                               .low = q3_bitplane_low_byte(exponents)};
}

static inline q3_bitplane_table q3_bitplane_look_up(const q3_bitplane_indices *indices,
                                                    q3_bitplane_table table)
{
    __m512i index = _mm512_maskz_mov_epi8(indices->bit[0], _mm512_set1_epi8(1));
    for (unsigned k = 1; k < 4; k++)
        index =
            _mm512_mask_add_epi8(index, indices->bit[k], index, _mm512_set1_epi8((char)(1 << k)));
    return (q3_bitplane_table){.high = _mm512_shuffle_epi8(table.high, index),
                               .low = _mm512_shuffle_epi8(table.low, index)};
}

// Adds signs and mantissas: 64 weights in order.
static inline void q3_bitplane_combine(q3_bitplane_table exponents, const uint8_t *low_bytes,
                                       __m512i weights[2])
{
    const __m512i sign = _mm512_set1_epi8((char)0x80), own = _mm512_loadu_si512(low_bytes);
    // (own & sign) | high, and (own & ~sign) | low.
    const __m512i high_byte = _mm512_ternarylogic_epi64(own, sign, exponents.high, 0xea);
    const __m512i low_byte = _mm512_ternarylogic_epi64(own, sign, exponents.low, 0xba);
    weights[0] = _mm512_unpacklo_epi8(low_byte, high_byte);
    weights[1] = _mm512_unpackhi_epi8(low_byte, high_byte);
}

// The 64 weights of a group in order. Those of index 15 want q3_bitplane_patch.
static inline void q3_bitplane_weights(const q3_bitplane_indices *indices, q3_bitplane_table table,
                                       const uint8_t *low_bytes, __m512i weights[2])
{
    q3_bitplane_combine(q3_bitplane_look_up(indices, table), low_bytes, weights);
}

#endif
