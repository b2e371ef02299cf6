// SPDX-License-Identifier: Apache-2.0
//
// Products with many vectors: included behind products.h and bf12.h. To the bit what they are
// there, in another order of the work.
//
// A lane of an output's sums takes one place of each block, in the order of the columns. There the
// lanes of a register are the places; here they are rows, and the places come one after the other:
// block by block, weights of many rows at one place are multiplied by one number of a vector. So a
// tile has WIDTH times the outputs, and less goes through the first cache for each product. The
// weights have to be packed for it, which pays from some ten vectors on: the pairs of a band of
// rows are transposed, so that the same pair of all rows and blocks lies together. Vectors are
// arranged alike: [place in a block][block].
#ifndef Q3_KERNELS_X86_PRODUCTS_MANY_H
#define Q3_KERNELS_X86_PRODUCTS_MANY_H

#include "transpose.h"

#include <limits.h>

enum {
    MANY_TOKENS = 96, // six or so for each expert of a model
    // Packed, wider rows would be too large. They are multiplied as if by few vectors.
    MANY_COLUMNS = 4096,
    // A tile: its sums, the weights and a number fill the registers, 16 of them with AVX2, 32 with
    // AVX-512.
    LONG_ROWS = 2 * WIDTH,
    LONG_VECTORS = WIDTH == 8 ? 6 : 12,
    // Tiles that are computed together: the first cache has room for their trees.
    GROUP_TILES = WIDTH == 8 ? 16 : 4,
    // Blocks packed at a time, so that what is written makes whole lines of the cache.
    PACKED_BLOCKS = 16,
    // Vectors of pairs after each pair's place: places are not a multiple of 4 KiB apart.
    GAP = 6,
    LEVELS = WIDTH == 8 ? 5 : 6, // of the tree in which places are added, with its root
};

static bool takes_many(size_t columns)
{
    return columns <= MANY_COLUMNS;
}

static size_t blocks_of(size_t columns)
{
    return (columns + BLOCK - 1) / BLOCK;
}

// An odd number of KiB: vectors that follow each other do not lie a multiple of 4 KiB apart.
static size_t many_panel_bytes(size_t columns)
{
    const size_t bytes = panel_bytes(columns);
    return takes_many(columns) ? ((bytes + 1023) / 1024 | 1) * 1024 : bytes;
}

static void many_arrange(const float *const *x, unsigned count, size_t columns, void *panel)
{
    if (!takes_many(columns)) {
        arrange(x, count, columns, panel);
        return;
    }
    const size_t blocks = blocks_of(columns);
    float *to = panel;
    for (size_t place = 0; place < BLOCK; place++)
        for (size_t at = place; at < blocks * BLOCK; at += BLOCK)
            *to++ = at < columns ? x[0][at] : 0;
}

// LONG_ROWS rows of weights: [pair in a block][block][row], a pair `stride` after the last.
typedef struct packed {
    size_t blocks, stride;
    pairs pairs[WIDTH * (2 * (MANY_COLUMNS / BLOCK) + GAP)];
} packed;

// Transposes the pairs of WIDTH rows of a block: to[j * to_stride] is pair j of all of them.
static inline void transpose(const uint16_t *from, size_t stride, pairs *to, size_t to_stride)
{
    UNROLL
    for (unsigned i = 0; i < WIDTH / 4; i++)
        transpose_four((const uint8_t *)(from + 8 * i), stride * sizeof *from,
                       to + 4 * i * to_stride, to_stride);
}

// WIDTH rows and some blocks.
static void pack_blocks(const uint16_t *weights, size_t columns, size_t blocks, pairs *to,
                        size_t stride)
{
    for (size_t i = 0; i < blocks; i++)
        transpose(weights + i * BLOCK, columns, to + 2 * i, stride);
}

// The same where rows or columns end.
static void pack_rest(const uint16_t *weights, size_t columns, size_t rows, size_t left, pairs *to,
                      size_t stride)
{
    uint16_t some[WIDTH * BLOCK] = {0};
    for (size_t r = 0; r < rows; r++)
        memcpy(some + r * BLOCK, weights + r * columns, left * sizeof *some);
    transpose(some, BLOCK, to, stride);
}

// PACKED_BLOCKS blocks from number `block` on, or the last ones of the `left` columns that there
// are. `weights` are those of the first of them, `columns` apart from row to row.
static void pack_columns(const uint16_t *weights, size_t columns, size_t rows, size_t left,
                         size_t block, packed *to)
{
    for (size_t half = 0; half < 2; half++) {
        const size_t below = rows > half * WIDTH ? rows - half * WIDTH : 0;
        const uint16_t *from = weights + (below ? half * WIDTH * columns : 0);
        pairs *at = to->pairs + 2 * block + half;
        size_t done = 0;
        if (below >= WIDTH) {
            done = left / BLOCK < PACKED_BLOCKS ? left / BLOCK : PACKED_BLOCKS;
            pack_blocks(from, columns, done, at, to->stride);
        }
        for (; done < PACKED_BLOCKS && done * BLOCK < left; done++) {
            const size_t some = left - done * BLOCK;
            pack_rest(from + done * BLOCK, columns, below < WIDTH ? below : WIDTH,
                      some < BLOCK ? some : BLOCK, at + 2 * done, to->stride);
        }
    }
}

static void begin_packed(size_t columns, packed *to)
{
    to->blocks = blocks_of(columns);
    to->stride = 2 * to->blocks + GAP;
}

static void pack(const uint16_t *weights, size_t rows, size_t columns, packed *to)
{
    begin_packed(columns, to);
    for (size_t i = 0; i < to->blocks; i += PACKED_BLOCKS)
        pack_columns(weights + i * BLOCK, columns, rows, columns - i * BLOCK, i, to);
}

// 16 bytes of each of LONG_ROWS rows, `stride` bytes apart: two bytes of all rows after the other,
// in the order in which interleaving their low and high bytes gives the first WIDTH rows and the
// others.
static inline void transpose_bytes(const uint8_t *from, size_t stride, pairs to[8])
{
    pairs a[8], b[8];
    UNROLL
    for (unsigned i = 0; i < 8; i++)
        a[i] = load_lanes(from + (i % 4 + i / 4 * WIDTH) * stride, 4 * stride);
    UNROLL
    for (unsigned i = 0; i < 8; i += 2) {
        b[i] = INTERLEAVE_LOW_16(a[i], a[i + 1]);
        b[i + 1] = INTERLEAVE_HIGH_16(a[i], a[i + 1]);
    }
    UNROLL
    for (unsigned i = 0; i < 8; i += 4) {
        a[i] = INTERLEAVE_LOW_32(b[i], b[i + 2]);
        a[i + 1] = INTERLEAVE_HIGH_32(b[i], b[i + 2]);
        a[i + 2] = INTERLEAVE_LOW_32(b[i + 1], b[i + 3]);
        a[i + 3] = INTERLEAVE_HIGH_32(b[i + 1], b[i + 3]);
    }
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        to[2 * i] = INTERLEAVE_LOW_64(a[i], a[i + 4]);
        to[2 * i + 1] = INTERLEAVE_HIGH_64(a[i], a[i + 4]);
    }
}

// Puts a pair of weights of LONG_ROWS rows, the first of which is that of byte `byte`, where it
// belongs in the packed group.
static inline void put_pairs(pairs low, pairs high, unsigned byte, pairs *to, size_t to_stride)
{
    const unsigned weight = q3_bitplane_weight_of(byte);
    pairs *at = to + weight % BLOCK / 2 * to_stride + weight / BLOCK * 2;
    at[0] = INTERLEAVE_LOW_8(low, high);
    at[1] = INTERLEAVE_HIGH_8(low, high);
}

// A group of bf12 of each of LONG_ROWS rows, `stride` bytes apart.
static inline void transpose_group(const uint8_t *group, size_t stride, bf12_table table, pairs *to,
                                   size_t to_stride)
{
    enum { HALF = Q3_BF12_GROUP / 2 };
    for (unsigned first = 0; first < HALF; first += 16) {
        pairs nibbles[8], lower[8], upper[8];
        transpose_bytes(group + first, stride, nibbles);
        transpose_bytes(group + first + HALF, stride, lower);
        transpose_bytes(group + first + 2 * HALF, stride, upper);
        UNROLL
        for (unsigned i = 0; i < 8; i++) {
            const unsigned byte = first + 2 * i;
            put_pairs(lower[i], bf12_high_of_lower(nibbles[i], table), byte, to, to_stride);
            put_pairs(upper[i], bf12_high_of_upper(nibbles[i], table), HALF + byte, to, to_stride);
        }
    }
}

// Rows of bf12 from `row` on. *exception is the first that is not before them, and becomes that
// behind them.
static void pack_bf12(const q3_bf12 *block, size_t row, size_t rows, size_t columns,
                      const q3_bf12_exception **exception, packed *to)
{
    const bf12_table table = bf12_table_of(block);
    const size_t row_bytes = q3_bf12_groups_bytes(columns);
    const uint8_t *from = block->groups + row * row_bytes;
    begin_packed(columns, to);
    for (size_t i = 0; i < columns / Q3_BF12_GROUP; i++, from += Q3_BF12_GROUP_BYTES) {
        pairs *at = to->pairs + i * 2 * GROUP_BLOCKS;
        if (rows == LONG_ROWS) {
            transpose_group(from, row_bytes, table, at, to->stride);
            continue;
        }
        uint8_t some[LONG_ROWS][Q3_BF12_GROUP_BYTES] = {{0}};
        for (size_t r = 0; r < rows; r++)
            memcpy(some[r], from + r * row_bytes, Q3_BF12_GROUP_BYTES);
        transpose_group(some[0], Q3_BF12_GROUP_BYTES, table, at, to->stride);
    }
    const size_t first = row * columns;
    for (; (*exception)->weight < first + rows * columns; (*exception)++) {
        const size_t r = ((*exception)->weight - first) / columns;
        const size_t column = ((*exception)->weight - first) % columns;
        pairs *at = to->pairs + column % BLOCK / 2 * to->stride + column / BLOCK * 2 + r / WIDTH;
        memcpy((uint8_t *)at + (r % WIDTH * 2 + column % 2) * sizeof(uint16_t),
               &(*exception)->value, sizeof(uint16_t));
    }
}

// The sums of a tile: [vector][row].
typedef struct long_sums {
    floats of[LONG_VECTORS * 2];
} long_sums;

// Two registers of weights with a number of each vector.
ALWAYS_INLINE void add_numbers(floats above, floats below, const float *const *x, size_t at,
                               unsigned vectors, floats *sum)
{
    UNROLL
    for (unsigned v = 0; v < vectors; v++) {
        const floats number = set_all(x[v][at]);
        sum[2 * v] = multiply_add(above, number, sum[2 * v]);
        sum[2 * v + 1] = multiply_add(below, number, sum[2 * v + 1]);
    }
}

// Where a tile has the float32 weights of a place from: made of the pairs, or left by the first
// tile.
typedef enum tile_kind {
    ONLY_TILE,
    FIRST_TILE, // leaves its weights as float32 to the others
    OTHER_TILE,
} tile_kind;

ALWAYS_INLINE void sum_pairs(const pairs *pair, const float *const *x, size_t blocks,
                             unsigned vectors, bool is_odd, bool leaves, floats *wide, floats *sum)
{
    UNROLL_BY(2)
    for (size_t i = 0; i < blocks; i++) {
        const floats above = is_odd ? odd(pair[2 * i]) : even(pair[2 * i]);
        const floats below = is_odd ? odd(pair[2 * i + 1]) : even(pair[2 * i + 1]);
        if (leaves) {
            wide[2 * i] = above;
            wide[2 * i + 1] = below;
        }
        add_numbers(above, below, x, i, vectors, sum);
    }
}

ALWAYS_INLINE void sum_wide(const floats *wide, const float *const *x, size_t blocks,
                            unsigned vectors, floats *sum)
{
    UNROLL_BY(2)
    for (size_t i = 0; i < blocks; i++)
        add_numbers(wide[2 * i], wide[2 * i + 1], x, i, vectors, sum);
}

// The place that comes as number `turn` in the tree: the odd numbers of a lane follow the even
// ones, and lanes each other as sum_four adds them.
static inline unsigned place_of(unsigned turn)
{
    const unsigned lane = turn / 2;
    return 2 * (WIDTH == 8 ? lane : lane / 2 + lane % 2 * 8) + turn % 2;
}

// Adds what the weights of one place give with the numbers of the vectors there to a tile's tree:
// levels[l * stride] is the sum of 2^l places that waits for the next such one.
ALWAYS_INLINE void add_place(const packed *weights, tile_kind kind, floats *wide,
                             const float *const *x, unsigned turn, unsigned vectors,
                             long_sums *levels, size_t stride)
{
    const size_t blocks = weights->blocks;
    const unsigned place = place_of(turn);
    const pairs *pair = weights->pairs + place / 2 * weights->stride;
    floats sum[LONG_VECTORS * 2];
    const float *from[LONG_VECTORS];
    UNROLL
    for (unsigned v = 0; v < vectors; v++) {
        from[v] = x[v] + place * blocks;
        sum[2 * v] = sum[2 * v + 1] = zero();
    }
    if (kind == OTHER_TILE)
        sum_wide(wide, from, blocks, vectors, sum);
    else if (place % 2)
        sum_pairs(pair, from, blocks, vectors, true, kind == FIRST_TILE, wide, sum);
    else
        sum_pairs(pair, from, blocks, vectors, false, kind == FIRST_TILE, wide, sum);
    for (; turn % 2; turn /= 2, levels += stride) {
        UNROLL
        for (unsigned n = 0; n < 2 * vectors; n++)
            sum[n] = levels->of[n] + sum[n];
    }
    UNROLL
    for (unsigned n = 0; n < 2 * vectors; n++)
        levels->of[n] = sum[n];
}

typedef void add_place_some(const packed *weights, floats *wide, const float *const *x,
                            unsigned turn, long_sums *levels, size_t stride);

#define ADD_PLACE(name, kind, vectors)                                                       \
    static void name##_##vectors(const packed *weights, floats *wide, const float *const *x, \
                                 unsigned turn, long_sums *levels, size_t stride)            \
    {                                                                                        \
        add_place(weights, kind, wide, x, turn, vectors, levels, stride);                    \
    }
#define ADD_PLACES(vectors)                         \
    ADD_PLACE(add_only_place, ONLY_TILE, vectors)   \
    ADD_PLACE(add_first_place, FIRST_TILE, vectors) \
    ADD_PLACE(add_other_place, OTHER_TILE, vectors)

ADD_PLACES(1)
ADD_PLACES(2)
ADD_PLACES(3)
ADD_PLACES(4)
ADD_PLACES(5)
ADD_PLACES(6)
#if WIDTH == 16
ADD_PLACES(7)
ADD_PLACES(8)
ADD_PLACES(9)
ADD_PLACES(10)
ADD_PLACES(11)
ADD_PLACES(12)
#endif

// By the number of vectors and the kind of tile.
#define PLACES_OF(vectors)                                                             \
    {                                                                                  \
        add_only_place_##vectors, add_first_place_##vectors, add_other_place_##vectors \
    }
static add_place_some *const add_place_of[][3] = {
    [1] = PLACES_OF(1),   [2] = PLACES_OF(2),   [3] = PLACES_OF(3),
    [4] = PLACES_OF(4),   [5] = PLACES_OF(5),   [6] = PLACES_OF(6),
#if WIDTH == 16
    [7] = PLACES_OF(7),   [8] = PLACES_OF(8),   [9] = PLACES_OF(9),
    [10] = PLACES_OF(10), [11] = PLACES_OF(11), [12] = PLACES_OF(12),
#endif
};

// The first vector of a tile, of tiles of nearly equal size.
static size_t tile_begin(size_t vectors, size_t tiles, size_t tile)
{
    return vectors * tile / tiles;
}

static void finish_tile(const long_sums *tile, size_t vectors, size_t rows, float *const *y,
                        size_t first)
{
    for (size_t v = 0; v < vectors; v++)
        for (size_t half = 0; half < 2 && half * WIDTH < rows; half++) {
            const size_t below = rows - half * WIDTH;
            float *to = y[v] + first + half * WIDTH;
            if (below < WIDTH)
                store_some(to, tile->of[2 * v + half], below);
            else
                store(to, tile->of[2 * v + half]);
        }
}

// Packed rows and a group of vectors. What comes next is fetched meanwhile to the second cache, as
// the first has no room for it; for each place a part, because more lines at once than a core can
// wait for (12 to 16) make all loads wait.
static void multiply_packed(const packed *weights, size_t rows, const float *const *x,
                            size_t vectors, float *const *y, size_t first, q3_next next)
{
    long_sums levels[LEVELS][GROUP_TILES];
    const size_t tiles = (vectors + LONG_VECTORS - 1) / LONG_VECTORS;
    floats wide[2 * (MANY_COLUMNS / BLOCK)];
    const size_t each = (next.bytes / (2 * WIDTH * tiles) + 63) / 64 * 64;
    const char *fetch = next.data;
    for (unsigned turn = 0; turn < 2 * WIDTH; turn++)
        for (size_t i = 0; i < tiles; i++, fetch += each) {
            const tile_kind kind = tiles == 1 ? ONLY_TILE : i == 0 ? FIRST_TILE : OTHER_TILE;
            const size_t v = tile_begin(vectors, tiles, i);
            const size_t some = tile_begin(vectors, tiles, i + 1) - v;
            for (size_t byte = 0; byte < each; byte += 64)
                _mm_prefetch(fetch + byte, _MM_HINT_T1);
            add_place_of[some][kind](weights, wide, x + v, turn, &levels[0][i], GROUP_TILES);
        }
    for (size_t i = 0; i < tiles; i++) {
        const size_t v = tile_begin(vectors, tiles, i);
        finish_tile(&levels[LEVELS - 1][i], tile_begin(vectors, tiles, i + 1) - v, rows, y + v,
                    first);
    }
}

// The same with any number of vectors.
static void multiply_band_by_all(const packed *weights, size_t rows, const float *const *x,
                                 size_t vectors, float *const *y, size_t first, q3_next next)
{
    enum { GROUP = GROUP_TILES * LONG_VECTORS };
    for (size_t v = 0, group; v < vectors; v += group, next.bytes = 0) {
        group = vectors - v < GROUP ? vectors - v : GROUP;
        multiply_packed(weights, rows, x + v, group, y + v, first, next);
    }
}

// Rows of a band from row r on, and of the band behind it.
static size_t band_rows(size_t rows, size_t r)
{
    return rows - r < LONG_ROWS ? rows - r : LONG_ROWS;
}

// What comes after the rows before row r: the next band, or as much of what follows the last one.
static q3_next after_band(const void *block, size_t rows, size_t r, size_t row_bytes, q3_next next)
{
    const size_t band_bytes = LONG_ROWS * row_bytes;
    if (r < rows)
        return (q3_next){(const uint8_t *)block + r * row_bytes, band_rows(rows, r) * row_bytes};
    if (next.bytes == 0)
        return (q3_next){block, 0};
    return (q3_next){next.data, next.bytes < band_bytes ? next.bytes : band_bytes};
}

static void many_multiply(const uint16_t *weights, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next)
{
    if (!takes_many(columns)) {
        multiply(weights, rows, columns, panels, vectors, y, first, next);
        return;
    }
    packed band;
    for (size_t r = 0, some; r < rows; r += some) {
        some = band_rows(rows, r);
        pack(weights + r * columns, some, columns, &band);
        multiply_band_by_all(&band, some, (const float *const *)panels, vectors, y, first + r,
                             after_band(weights, rows, r + some, columns * sizeof *weights, next));
    }
}

static void many_multiply_bf12(const q3_bf12 *block, size_t rows, size_t columns,
                               const void *const *panels, size_t vectors, float *const *y,
                               size_t first, q3_next next)
{
    if (!takes_many(columns)) {
        for (size_t v = 0; v < vectors; v += BF12_VECTORS)
            multiply_bf12(block, rows, columns, panels + v,
                          vectors - v < BF12_VECTORS ? vectors - v : BF12_VECTORS, y + v, first,
                          next);
        return;
    }
    packed band;
    const size_t row_bytes = q3_bf12_groups_bytes(columns);
    const q3_bf12_exception *exception = block->exceptions;
    for (size_t r = 0, some; r < rows; r += some) {
        some = band_rows(rows, r);
        pack_bf12(block, r, some, columns, &exception, &band);
        multiply_band_by_all(&band, some, (const float *const *)panels, vectors, y, first + r,
                             after_band(block->groups, rows, r + some, row_bytes, next));
    }
}

#endif
