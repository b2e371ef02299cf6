// SPDX-License-Identifier: Apache-2.0
//
// Products by AVX-512 BF16, for few vectors. A panel is one vector: for each 32 columns their high
// parts, then their low ones (bf16_split.h), with zeros behind the last.
//
// Each sum runs in four registers: high and low parts apart, and of each the even and the odd steps
// of 32 columns.
#include "bf16_split.h"
#include "kernels/kernels.h"

enum { STEP = 32, STEP_BYTES = 128 };

typedef struct sum {
    __m512 high[2], low[2];
} sum;

static inline __attribute__((always_inline)) void add_step(sum *s, unsigned parity, __m512i weights,
                                                           const uint8_t *panel)
{
    s->high[parity] = _mm512_dpbf16_ps(s->high[parity], (__m512bh)weights,
                                       (__m512bh)_mm512_load_si512((const void *)panel));
    s->low[parity] = _mm512_dpbf16_ps(s->low[parity], (__m512bh)weights,
                                      (__m512bh)_mm512_load_si512((const void *)(panel + 64)));
}

static inline float total(const sum *s)
{
    const __m512 all =
        _mm512_add_ps(_mm512_add_ps(s->high[0], s->high[1]), _mm512_add_ps(s->low[0], s->low[1]));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// ROWS rows times VECTORS vectors, both of them constants.
static inline __attribute__((always_inline)) void
multiply_block(const uint16_t *weights, size_t columns, const void *const *panels, float *const *y,
               size_t at, unsigned rows, unsigned vectors)
{
    enum { MOST = 3 };
    sum sums[MOST][MOST];
    const uint8_t *panel[MOST];
    const uint16_t *row[MOST];
    for (unsigned v = 0; v < vectors; v++)
        panel[v] = panels[v];
    for (unsigned r = 0; r < rows; r++) {
        row[r] = weights + r * columns;
        for (unsigned v = 0; v < vectors; v++)
            for (unsigned i = 0; i < 2; i++)
                sums[r][v].high[i] = sums[r][v].low[i] = _mm512_setzero_ps();
    }
    size_t k = 0;
    for (; k + 2 * STEP <= columns; k += 2 * STEP)
        for (unsigned i = 0; i < 2; i++)
            for (unsigned r = 0; r < rows; r++) {
                const __m512i some = _mm512_loadu_si512((const void *)(row[r] + k + i * STEP));
                for (unsigned v = 0; v < vectors; v++)
                    add_step(&sums[r][v], i, some, panel[v] + (k / STEP + i) * STEP_BYTES);
            }
    for (unsigned i = 0; i < 2 && k < columns; i++, k += STEP) {
        const size_t left = columns - k;
        const __mmask32 mask = left < STEP ? (1u << left) - 1 : 0xffffffff;
        for (unsigned r = 0; r < rows; r++) {
            const __m512i some = _mm512_maskz_loadu_epi16(mask, row[r] + k);
            for (unsigned v = 0; v < vectors; v++)
                add_step(&sums[r][v], i, some, panel[v] + k / STEP * STEP_BYTES);
        }
    }
    for (unsigned r = 0; r < rows; r++)
        for (unsigned v = 0; v < vectors; v++)
            y[v][at + r] = total(&sums[r][v]);
}

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next)
{
    (void)next;
    if (vectors == 1) { // row by row, as they lie in memory
        for (size_t r = 0; r < rows; r++)
            multiply_block(weights + r * columns, columns, panels, y, first + r, 1, 1);
        return;
    }
    for (size_t r = 0; r < rows; r += 2) {
        const uint16_t *row = weights + r * columns;
        size_t v = 0;
        if (r + 2 <= rows) {
            for (; v + 3 <= vectors; v += 3)
                multiply_block(row, columns, panels + v, y + v, first + r, 2, 3);
            for (; v + 2 <= vectors; v += 2)
                multiply_block(row, columns, panels + v, y + v, first + r, 2, 2);
            for (; v < vectors; v++)
                multiply_block(row, columns, panels + v, y + v, first + r, 2, 1);
        } else {
            for (; v + 2 <= vectors; v += 2)
                multiply_block(row, columns, panels + v, y + v, first + r, 1, 2);
            for (; v < vectors; v++)
                multiply_block(row, columns, panels + v, y + v, first + r, 1, 1);
        }
    }
}

static size_t panel_bytes(size_t columns)
{
    return (columns + STEP - 1) / STEP * STEP_BYTES;
}

static void arrange(const float *const *x, unsigned count, size_t columns, void *panel)
{
    (void)count;
    uint8_t *to = panel;
    for (size_t at = 0; at < columns; at += STEP, to += STEP_BYTES) {
        const q3_split split = q3_split_load(x[0] + at, columns - at);
        _mm512_store_si512((void *)to, split.high);
        _mm512_store_si512((void *)(to + 64), split.low);
    }
}

const q3_products q3_products_bf16 = {
    .name = "bf16",
    .panel = 1,
    .group_bytes = 1 << 20,
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
};
