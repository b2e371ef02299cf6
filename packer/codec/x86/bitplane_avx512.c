// SPDX-License-Identifier: Apache-2.0
//
// Bit-plane groups with AVX-512 (BW, VBMI, VBMI2) and BMI2: a group is one register.
#include "bitplane_avx512.h"

static inline void store(uint8_t *to, __m512i weights, bool streaming)
{
    if (streaming)
        _mm512_stream_si512((void *)to, weights);
    else
        _mm512_storeu_si512(to, weights);
}

static inline __attribute__((always_inline)) bool decode(const q3_bitplane_view *view, uint8_t *raw,
                                                         bool streaming, q3_bitplane_cursors *end)
{
    if (view->groups < Q3_BITPLANE_RUN)
        return q3_bitplane_decode_c(view, raw, end);
    const uint8_t *const frame = view->frame;
    const uint8_t *low = view->low, *planes = view->planes;
    q3_bitplane_cursors at = q3_bitplane_begin(view);
    size_t left = view->groups;
    for (size_t segment = 0; left; segment++) {
        const unsigned number = q3_bitplane_number(view, segment);
        const q3_bitplane_table table =
            q3_bitplane_load_table(view->table + number * Q3_BITPLANE_TABLE_BYTES);
        size_t in_segment = left < view->segment_groups ? left : view->segment_groups;
        left -= in_segment;
        while (in_segment) {
            const size_t run = in_segment < Q3_BITPLANE_RUN ? in_segment : Q3_BITPLANE_RUN;
            in_segment -= run;
            q3_bitplane_prefetch(low, planes, run);
            for (size_t i = 0; i < run; i++) {
                const q3_bitplane_indices indices = q3_bitplane_read_group(planes, frame, &at);
                q3_bitplane_table bytes = q3_bitplane_look_up(&indices, table);
                if (__builtin_expect(indices.escapes != 0, 0)) {
                    const uint8_t *escapes = frame + at.escapes;
                    const size_t count = (size_t)_mm_popcnt_u64(indices.escapes);
                    const __m512i exponents =
                        _mm512_maskz_expand_epi8(indices.escapes, _mm512_loadu_si512(escapes));
                    bytes.high = _mm512_mask_mov_epi8(bytes.high, indices.escapes,
                                                      q3_bitplane_high_byte(exponents));
                    bytes.low = _mm512_mask_mov_epi8(bytes.low, indices.escapes,
                                                     q3_bitplane_low_byte(exponents));
                    if (!q3_bitplane_escapes_allowed(view, number, escapes, count))
                        return false;
                    at.escapes += count;
                }
                __m512i weights[2];
                q3_bitplane_combine(bytes, low, weights);
                store(raw, weights[0], streaming);
                store(raw + 64, weights[1], streaming);
                low += Q3_BITPLANE_GROUP;
                planes += Q3_BITPLANE_PLANES_BYTES;
                raw += 2 * Q3_BITPLANE_GROUP;
            }
            if (!q3_bitplane_inside(view, &at))
                return false;
        }
    }
    *end = q3_bitplane_end(view, at);
    return true;
}

static bool decode_cached(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end)
{
    return decode(view, raw, false, end);
}

static bool decode_streaming(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end)
{
    const bool inside = decode(view, raw, true, end);
    _mm_sfence(); // other threads see the weights no later than what is stored from here on
    return inside;
}

static void encode(const q3_bitplane_plan *plan, const uint8_t *raw)
{
    const __m512i byte = _mm512_set1_epi16(0xff);
    q3_bitplane_writers writers = {{.to = plan->one}, {.to = plan->two}, {.to = plan->three}};
    uint8_t *escape = plan->escapes, *low = plan->low, *planes = plan->planes;
    size_t left = plan->groups;
    for (size_t segment = 0; left; segment++) {
        const uint8_t *index_of = plan->index[plan->numbers[segment]];
        __m512i table[4];
        for (unsigned i = 0; i < 4; i++)
            table[i] = _mm512_loadu_si512(index_of + 64 * i);
        const size_t groups = left < plan->segment_groups ? left : plan->segment_groups;
        left -= groups;
        for (size_t i = 0; i < groups; i++) {
            const __m512i a = _mm512_loadu_si512(raw), b = _mm512_loadu_si512(raw + 64);
            const __m512i exponents =
                _mm512_packus_epi16(_mm512_and_si512(_mm512_srli_epi16(a, 7), byte),
                                    _mm512_and_si512(_mm512_srli_epi16(b, 7), byte));
            const __m512i low_bytes =
                _mm512_packus_epi16(_mm512_and_si512(a, byte), _mm512_and_si512(b, byte));
            const __m512i high_bytes =
                _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
            // The sign from the high byte, the rest from the low one.
            _mm512_storeu_si512(low, _mm512_ternarylogic_epi64(_mm512_set1_epi8((char)0x80),
                                                               high_bytes, low_bytes, 0xca));
            const __m512i index =
                _mm512_mask_blend_epi8(_mm512_movepi8_mask(exponents),
                                       _mm512_permutex2var_epi8(table[0], exponents, table[1]),
                                       _mm512_permutex2var_epi8(table[2], exponents, table[3]));
            uint64_t bit[4];
            for (unsigned k = 0; k < 4; k++)
                bit[k] = _mm512_test_epi8_mask(index, _mm512_set1_epi8((char)(1 << k)));
            const uint64_t escapes = q3_bitplane_write_group(bit, planes, &writers);
            if (__builtin_expect(escapes != 0, 0)) {
                _mm512_mask_compressstoreu_epi8(escape, escapes, exponents);
                escape += _mm_popcnt_u64(escapes);
            }
            raw += 2 * Q3_BITPLANE_GROUP;
            low += Q3_BITPLANE_GROUP;
            planes += Q3_BITPLANE_PLANES_BYTES;
        }
    }
}

void q3_bitplane_kernels_fill_avx512(q3_bitplane_kernels *kernels)
{
    *kernels = (q3_bitplane_kernels){
        .decode = decode_cached,
        .decode_streaming = decode_streaming,
        .encode = encode,
    };
}
