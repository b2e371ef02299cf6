// SPDX-License-Identifier: Apache-2.0
//
// Products with bf16 weights for any width of vector: included once, behind vector_*.h and
// weights_*.h, by the source of each level.
//
// A vector of bf16 weights holds pairs. Shifted left by 16 its lanes are the even weights as
// float32, with the lower halves cleared the odd ones. So an arranged vector has, for each BLOCK of
// its numbers, the even ones first and then the odd ones, and the weights need no shuffles. Its end
// is filled up with zeros.
//
// Each row times each vector has two sums of WIDTH lanes, of the even and of the odd numbers, taken
// in the order of the columns; at the end the lanes of the one are added to those of the other and
// then added up by sum_four. Whatever is computed at the same time is up to speed alone.
#ifndef Q3_KERNELS_X86_PRODUCTS_H
#define Q3_KERNELS_X86_PRODUCTS_H

#include "codec/bitplane.h"
#include "kernels/kernels.h"

enum {
    BLOCK = 2 * WIDTH,
    // A tile's sums of one kind, its vectors' numbers and a weight fill the registers: 16 of them
    // with AVX2, 32 with AVX-512.
    TILE_ROWS = 4,
    TILE_VECTORS = WIDTH == 8 ? 3 : 6,
    // Rows that are computed together, and bytes of a few vectors that stay in the first cache
    // meanwhile.
    BAND_ROWS = 32,
    CHUNK_BYTES = 12 << 10,
};

static size_t panel_bytes(size_t columns)
{
    return (columns + BLOCK - 1) / BLOCK * BLOCK * sizeof(float);
}

static void arrange(const float *const *x, unsigned count, size_t columns, void *panel)
{
    (void)count; // a panel is one vector
    const float *from = x[0];
    float *to = panel;
    floats evens, odds;
    size_t i = 0;
    for (; i + BLOCK <= columns; i += BLOCK) {
        split_pairs(load(from + i), load(from + i + WIDTH), &evens, &odds);
        store(to + i, evens);
        store(to + i + WIDTH, odds);
    }
    if (i == columns)
        return;
    const size_t left = columns - i;
    split_pairs(load_some(from + i, left < WIDTH ? left : WIDTH),
                left < WIDTH ? zero() : load_some(from + i + WIDTH, left - WIDTH), &evens, &odds);
    store(to + i, evens);
    store(to + i + WIDTH, odds);
}

// Sums of a tile: [vector][row].
typedef struct sums {
    floats even[TILE_VECTORS * TILE_ROWS], odd[TILE_VECTORS * TILE_ROWS];
} sums;

// Adds one block of columns to the sums of the even or of the odd numbers. Of the last block a row
// may have only `left` columns.
ALWAYS_INLINE void add_block(const uint16_t *weights, size_t columns, const float *const *x,
                             size_t at, size_t left, unsigned rows, unsigned vectors, bool is_odd,
                             floats *sum)
{
    floats numbers[TILE_VECTORS];
    UNROLL
    for (unsigned v = 0; v < vectors; v++)
        numbers[v] = load(x[v] + at + (is_odd ? WIDTH : 0));
    UNROLL
    for (unsigned r = 0; r < rows; r++) {
        const uint16_t *from = weights + r * columns + at;
        const pairs both = left == BLOCK ? load_pairs(from) : load_some_pairs(from, left);
        const floats weight = is_odd ? odd(both) : even(both);
        UNROLL
        for (unsigned v = 0; v < vectors; v++)
            sum[v * rows + r] = multiply_add(weight, numbers[v], sum[v * rows + r]);
    }
}

// Adds columns [from, to) in two passes, because the registers hold the sums of one kind. `to` is
// the end of a block or of the rows.
ALWAYS_INLINE void add_columns(const uint16_t *weights, size_t columns, const float *const *x,
                               size_t from, size_t to, unsigned rows, unsigned vectors, bool is_odd,
                               floats *all)
{
    floats sum[TILE_VECTORS * TILE_ROWS];
    UNROLL
    for (unsigned i = 0; i < rows * vectors; i++)
        sum[i] = all[i];
    size_t at = from;
    for (; at + BLOCK <= to; at += BLOCK)
        add_block(weights, columns, x, at, BLOCK, rows, vectors, is_odd, sum);
    if (at < to)
        add_block(weights, columns, x, at, to - at, rows, vectors, is_odd, sum);
    UNROLL
    for (unsigned i = 0; i < rows * vectors; i++)
        all[i] = sum[i];
}

ALWAYS_INLINE void add_tile(const uint16_t *weights, size_t columns, const float *const *x,
                            size_t from, size_t to, unsigned rows, unsigned vectors, sums *s)
{
    add_columns(weights, columns, x, from, to, rows, vectors, false, s->even);
    add_columns(weights, columns, x, from, to, rows, vectors, true, s->odd);
}

// Four rows in a row.
static inline void finish_four(const floats *evens, const floats *odds, float *y)
{
    _mm_storeu_ps(y, sum_four(evens[0] + odds[0], evens[1] + odds[1], evens[2] + odds[2],
                              evens[3] + odds[3]));
}

// One to TILE_VECTORS vectors times a band of rows.
ALWAYS_INLINE void multiply_band(const uint16_t *weights, size_t rows, size_t columns,
                                 const float *const *x, unsigned vectors, float *const *y,
                                 size_t first)
{
    sums all[BAND_ROWS / TILE_ROWS], rest[TILE_ROWS - 1];
    memset(all, 0, sizeof all);
    memset(rest, 0, sizeof rest);
    // Pieces of equal length, so that none is much too short.
    const size_t most = CHUNK_BYTES / sizeof(float) / vectors;
    const size_t blocks = (columns + BLOCK - 1) / BLOCK;
    const size_t pieces = (columns + most - 1) / most;
    const size_t piece = (blocks + pieces - 1) / pieces * BLOCK;
    for (size_t from = 0; from < columns; from += piece) {
        const size_t to = columns - from < piece ? columns : from + piece;
        size_t r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            add_tile(weights + r * columns, columns, x, from, to, TILE_ROWS, vectors,
                     &all[r / TILE_ROWS]);
        for (; r < rows; r++)
            add_tile(weights + r * columns, columns, x, from, to, 1, vectors, &rest[r % TILE_ROWS]);
    }
    for (unsigned v = 0; v < vectors; v++) {
        size_t r = 0;
        for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
            finish_four(all[r / TILE_ROWS].even + v * TILE_ROWS,
                        all[r / TILE_ROWS].odd + v * TILE_ROWS, y[v] + first + r);
        for (; r < rows; r++)
            y[v][first + r] = sum_lanes(rest[r % TILE_ROWS].even[v] + rest[r % TILE_ROWS].odd[v]);
    }
}

// One vector: weights are read once, so both kinds of sums are taken on the way. The rows of a tile
// are `apart` rows from each other.
ALWAYS_INLINE void multiply_rows(const uint16_t *weights, size_t apart, size_t columns,
                                 const float *x, unsigned rows, float *y)
{
    floats evens[TILE_ROWS], odds[TILE_ROWS];
    UNROLL
    for (unsigned r = 0; r < rows; r++)
        evens[r] = odds[r] = zero();
    size_t at = 0;
    for (; at + BLOCK <= columns; at += BLOCK) {
        UNROLL
        for (unsigned r = 0; r < rows; r++) {
            const pairs both = load_pairs(weights + r * apart * columns + at);
            evens[r] = multiply_add(even(both), load(x + at), evens[r]);
            odds[r] = multiply_add(odd(both), load(x + at + WIDTH), odds[r]);
        }
    }
    if (at < columns) {
        UNROLL
        for (unsigned r = 0; r < rows; r++) {
            const pairs both = load_some_pairs(weights + r * apart * columns + at, columns - at);
            evens[r] = multiply_add(even(both), load(x + at), evens[r]);
            odds[r] = multiply_add(odd(both), load(x + at + WIDTH), odds[r]);
        }
    }
    if (rows == TILE_ROWS) {
        float four[TILE_ROWS];
        finish_four(evens, odds, four);
        for (unsigned r = 0; r < TILE_ROWS; r++)
            y[r * apart] = four[r];
        return;
    }
    for (unsigned r = 0; r < rows; r++)
        y[r * apart] = sum_lanes(evens[r] + odds[r]);
}

// A tile takes a row from each quarter of the rows. So memory is read in as many streams, each as
// long as a quarter, which the processor foresees; those of neighbouring rows would be as short as
// a row, and come to it as one that jumps to and fro.
static void multiply_one(const uint16_t *weights, size_t rows, size_t columns, const float *x,
                         float *y)
{
    const size_t quarter = rows / TILE_ROWS;
    for (size_t r = 0; r < quarter; r++)
        multiply_rows(weights + r * columns, quarter, columns, x, TILE_ROWS, y + r);
    for (size_t r = quarter * TILE_ROWS; r < rows; r++)
        multiply_rows(weights + r * columns, 1, columns, x, 1, y + r);
}

typedef void multiply_some(const uint16_t *weights, size_t rows, size_t columns,
                           const float *const *x, float *const *y, size_t first);

#define MULTIPLY_SOME(vectors)                                                           \
    static void multiply_##vectors(const uint16_t *weights, size_t rows, size_t columns, \
                                   const float *const *x, float *const *y, size_t first) \
    {                                                                                    \
        multiply_band(weights, rows, columns, x, vectors, y, first);                     \
    }

MULTIPLY_SOME(2)
MULTIPLY_SOME(3)
#if WIDTH == 16
MULTIPLY_SOME(4)
MULTIPLY_SOME(5)
MULTIPLY_SOME(6)
#endif

static multiply_some *const multiply_by[] = {
    [2] = multiply_2, [3] = multiply_3,
#if WIDTH == 16
    [4] = multiply_4, [5] = multiply_5, [6] = multiply_6,
#endif
};

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next)
{
    (void)next;
    const float *const *x = (const float *const *)panels;
    if (vectors == 1) {
        multiply_one(weights, rows, columns, x[0], y[0] + first);
        return;
    }
    for (size_t r = 0; r < rows; r += BAND_ROWS) {
        const size_t band = rows - r < BAND_ROWS ? rows - r : BAND_ROWS;
        // Tiles of nearly equal size: none of one vector beside full ones.
        size_t tiles = (vectors + TILE_VECTORS - 1) / TILE_VECTORS;
        for (size_t v = 0, some; v < vectors; v += some, tiles--) {
            some = (vectors - v + tiles - 1) / tiles;
            multiply_by[some](weights + r * columns, band, columns, x + v, y + v, first + r);
        }
    }
}

// ---- straight from a bit-plane frame ----

enum { FUSED_VECTORS = 4, GROUP_BLOCKS = Q3_BITPLANE_GROUP / BLOCK };

// The escapes of a group: rare, so out of the way of registers.
static __attribute__((noinline, cold)) void patch(uint64_t places, const uint8_t *escapes,
                                                  const pairs *weights, pairs *patched)
{
    uint8_t raw[2 * Q3_BITPLANE_GROUP];
    memcpy(raw, weights, sizeof raw);
    q3_bitplane_patch(places, escapes, raw);
    memcpy(patched, raw, sizeof raw);
}

// Adds what 64 weights of a row give with as many numbers of each vector, from `column` on.
ALWAYS_INLINE void add_weights(const pairs weights[GROUP_BLOCKS], const float *const *x,
                               size_t column, unsigned vectors, floats *evens, floats *odds)
{
    UNROLL
    for (unsigned b = 0; b < GROUP_BLOCKS; b++) {
        const floats evens_of = even(weights[b]), odds_of = odd(weights[b]);
        UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            const float *numbers = x[v] + column + b * BLOCK;
            evens[v] = multiply_add(evens_of, load(numbers), evens[v]);
            odds[v] = multiply_add(odds_of, load(numbers + WIDTH), odds[v]);
        }
    }
}

ALWAYS_INLINE bool multiply_frame_by(const q3_bitplane_view *view, size_t rows, size_t columns,
                                     const float *const *x, unsigned vectors, float *const *y,
                                     size_t first)
{
    if (view->groups < Q3_BITPLANE_RUN || view->weights != rows * columns)
        return false;
    const uint8_t *const frame = view->frame;
    const uint8_t *low = view->low, *planes = view->planes;
    q3_bitplane_cursors at = q3_bitplane_begin(view);
    size_t segment = 0, in_segment = 0;
    unsigned number = 0;
    q3_bitplane_table table = {0};
    for (size_t row = 0; row < rows; row++) {
        floats evens[FUSED_VECTORS], odds[FUSED_VECTORS];
        UNROLL
        for (unsigned v = 0; v < vectors; v++)
            evens[v] = odds[v] = zero();
        for (size_t column = 0; column < columns;) {
            if (in_segment == 0) {
                number = q3_bitplane_number(view, segment++);
                table = q3_bitplane_load_table(view->table + number * Q3_BITPLANE_TABLE_BYTES);
                in_segment = view->segment_groups;
            }
            size_t run = (columns - column) / Q3_BITPLANE_GROUP;
            run = run < in_segment ? run : in_segment;
            run = run < Q3_BITPLANE_RUN ? run : Q3_BITPLANE_RUN;
            in_segment -= run;
            q3_bitplane_prefetch(low, planes, run);
            q3_bitplane_indices next = q3_bitplane_read_group(planes, frame, &at);
            for (; run; run--) {
                const q3_bitplane_indices indices = next;
                planes += Q3_BITPLANE_PLANES_BYTES;
                if (run > 1)
                    next = q3_bitplane_read_group(planes, frame, &at);
                pairs weights[GROUP_BLOCKS];
                q3_bitplane_weights(&indices, table, low, weights);
                if (__builtin_expect(indices.escapes != 0, 0)) {
                    const uint8_t *escapes = frame + at.escapes;
                    const size_t count = (size_t)_mm_popcnt_u64(indices.escapes);
                    if (!q3_bitplane_escapes_allowed(view, number, escapes, count))
                        return false;
                    pairs before[GROUP_BLOCKS], after[GROUP_BLOCKS];
                    memcpy(before, weights, sizeof before);
                    patch(indices.escapes, escapes, before, after);
                    memcpy(weights, after, sizeof after);
                    at.escapes += count;
                }
                add_weights(weights, x, column, vectors, evens, odds);
                low += Q3_BITPLANE_GROUP;
                column += Q3_BITPLANE_GROUP;
            }
            if (!q3_bitplane_inside(view, &at))
                return false;
        }
        UNROLL
        for (unsigned v = 0; v < vectors; v++)
            y[v][first + row] = sum_lanes(evens[v] + odds[v]);
    }
    const q3_bitplane_cursors end = q3_bitplane_end(view, at);
    q3_error err;
    return q3_bitplane_finished(view, &end, &err);
}

static bool multiply_frame(const q3_bitplane_view *view, size_t rows, size_t columns,
                           const void *const *panels, size_t vectors, float *const *y, size_t first)
{
    const float *const *x = (const float *const *)panels;
    switch (vectors) {
    case 1:
        return multiply_frame_by(view, rows, columns, x, 1, y, first);
    case 2:
        return multiply_frame_by(view, rows, columns, x, 2, y, first);
    case 3:
        return multiply_frame_by(view, rows, columns, x, 3, y, first);
    default:
        return multiply_frame_by(view, rows, columns, x, 4, y, first);
    }
}

#endif
