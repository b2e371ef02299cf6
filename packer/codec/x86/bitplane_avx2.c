// SPDX-License-Identifier: Apache-2.0
//
// Bit-plane groups with AVX2 and BMI2: 32 weights at a time.
#include "bitplane_avx2.h"

static inline void store(uint8_t *to, __m256i weights)
{
    _mm256_storeu_si256((__m256i *)(void *)to, weights);
}

// Writes a run around the cache: whole lines one after the other, which half a line at a time
// between loads would not be.
static inline void stream_run(uint8_t *to, const uint8_t *run, size_t size)
{
    for (size_t i = 0; i < size; i += 32)
        _mm256_stream_si256((__m256i *)(void *)(to + i),
                            _mm256_load_si256((const __m256i *)(const void *)(run + i)));
}

static inline __attribute__((always_inline)) bool decode(const q3_bitplane_view *view, uint8_t *raw,
                                                         bool streaming, q3_bitplane_cursors *end)
{
    if (view->groups < Q3_BITPLANE_RUN)
        return q3_bitplane_decode_c(view, raw, end);
    const uint8_t *const frame = view->frame;
    const uint8_t *low = view->low, *planes = view->planes;
    q3_bitplane_cursors at = q3_bitplane_begin(view);
    _Alignas(32) uint8_t side[Q3_BITPLANE_RUN * 2 * Q3_BITPLANE_GROUP];
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
            uint8_t *to = streaming ? side : raw;
            q3_bitplane_prefetch(low, planes, run);
            for (size_t i = 0; i < run; i++) {
                const q3_bitplane_indices indices = q3_bitplane_read_group(planes, frame, &at);
                __m256i weights[4];
                q3_bitplane_weights(&indices, table, low, weights);
                for (int j = 0; j < 4; j++)
                    store(to + 32 * j, weights[j]);
                if (__builtin_expect(indices.escapes != 0, 0)) {
                    const uint8_t *escapes = frame + at.escapes;
                    const size_t count = (size_t)_mm_popcnt_u64(indices.escapes);
                    q3_bitplane_patch(indices.escapes, escapes, to);
                    if (!q3_bitplane_escapes_allowed(view, number, escapes, count))
                        return false;
                    at.escapes += count;
                }
                low += Q3_BITPLANE_GROUP;
                planes += Q3_BITPLANE_PLANES_BYTES;
                to += 2 * Q3_BITPLANE_GROUP;
            }
            if (streaming)
                stream_run(raw, side, run * 2 * Q3_BITPLANE_GROUP);
            raw += run * 2 * Q3_BITPLANE_GROUP;
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

// ---- encoding ----

// A table the other way round: for each value of an exponent's high four bits that the table has,
// a row of 16 for the low four bits. 15 - index, so that what is in no row is the escape.
typedef struct rows {
    __m256i row[Q3_BITPLANE_CODED], high[Q3_BITPLANE_CODED];
    unsigned count;
} rows;

static void make_rows(const uint8_t index[256], rows *r)
{
    r->count = 0;
    for (unsigned high = 0; high < 16; high++) {
        uint8_t row[16];
        bool any = false;
        for (unsigned low = 0; low < 16; low++) {
            row[low] = (uint8_t)(Q3_BITPLANE_ESCAPE - index[16 * high + low]);
            any = any || row[low];
        }
        if (!any)
            continue;
        r->row[r->count] =
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)row));
        r->high[r->count++] = _mm256_set1_epi8((char)(high << 4));
    }
}

// 15 - the index of each exponent.
static inline __m256i look_up(const rows *r, __m256i exponents)
{
    __m256i result = _mm256_setzero_si256();
    for (unsigned i = 0; i < r->count; i++) {
        // Below 16 in this row alone; then the sum keeps the low four bits, else it sets the bit
        // that makes the shuffle give zero.
        const __m256i in_row = _mm256_xor_si256(exponents, r->high[i]);
        const __m256i place = _mm256_adds_epu8(in_row, _mm256_set1_epi8(0x70));
        result = _mm256_or_si256(result, _mm256_shuffle_epi8(r->row[i], place));
    }
    return result;
}

// Splits the weights of bytes 32 * half and on into exponents and low bytes.
static inline __m256i split(const uint8_t *raw, int half, __m256i *low)
{
    const __m256i byte = _mm256_set1_epi16(0xff);
    const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(raw + 32 * half));
    const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(raw + 64 + 32 * half));
    const __m256i low_bytes =
        _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    const __m256i high_bytes =
        _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    *low =
        _mm256_or_si256(_mm256_and_si256(high_bytes, sign), _mm256_andnot_si256(sign, low_bytes));
    return _mm256_packus_epi16(_mm256_and_si256(_mm256_srli_epi16(a, 7), byte),
                               _mm256_and_si256(_mm256_srli_epi16(b, 7), byte));
}

static void encode(const q3_bitplane_plan *plan, const uint8_t *raw)
{
    rows tables[Q3_BITPLANE_TABLES_MAX];
    for (unsigned t = 0; t < plan->tables; t++)
        make_rows(plan->index[t], &tables[t]);
    q3_bitplane_writers writers = {{.to = plan->one}, {.to = plan->two}, {.to = plan->three}};
    uint8_t *escape = plan->escapes, *low = plan->low, *planes = plan->planes;
    size_t left = plan->groups;
    for (size_t segment = 0; left; segment++) {
        const rows *table = &tables[plan->numbers[segment]];
        const size_t groups = left < plan->segment_groups ? left : plan->segment_groups;
        left -= groups;
        for (size_t i = 0; i < groups; i++) {
            uint64_t bit[4] = {0};
            __m256i exponents[2];
            for (int half = 0; half < 2; half++) {
                __m256i low_bytes;
                exponents[half] = split(raw, half, &low_bytes);
                _mm256_storeu_si256((__m256i *)(void *)(low + 32 * half), low_bytes);
                __m256i inverted = look_up(table, exponents[half]);
                inverted = _mm256_slli_epi16(inverted, 4);
                for (int k = 3; k >= 0; k--) {
                    const uint32_t mask = ~(uint32_t)_mm256_movemask_epi8(inverted);
                    bit[k] |= (uint64_t)mask << 32 * half;
                    inverted = _mm256_add_epi8(inverted, inverted);
                }
            }
            uint64_t escapes = q3_bitplane_write_group(bit, planes, &writers);
            if (__builtin_expect(escapes != 0, 0)) {
                uint8_t all[Q3_BITPLANE_GROUP];
                _mm256_storeu_si256((__m256i *)(void *)all, exponents[0]);
                _mm256_storeu_si256((__m256i *)(void *)(all + 32), exponents[1]);
                for (; escapes; escapes &= escapes - 1)
                    *escape++ = all[__builtin_ctzll(escapes)];
            }
            raw += 2 * Q3_BITPLANE_GROUP;
            low += Q3_BITPLANE_GROUP;
            planes += Q3_BITPLANE_PLANES_BYTES;
        }
    }
}

void q3_bitplane_kernels_fill_avx2(q3_bitplane_kernels *kernels)
{
    *kernels = (q3_bitplane_kernels){
        .decode = decode_cached,
        .decode_streaming = decode_streaming,
        .encode = encode,
    };
}
