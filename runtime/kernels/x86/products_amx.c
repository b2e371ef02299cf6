// SPDX-License-Identifier: Apache-2.0
//
// Products by AMX tiles, for many vectors. The weights are the first operand: a tile is 16 rows of
// 32 columns. The vectors are the second: a panel is 16 of them, split in high and low parts
// (bf16_split.h), as the tiles that the processor wants them in. Each sum runs along the columns in
// steps of 32, in each step first with the high and then with the low parts, and is the same
// wherever in a tile it stands.
//
// A tile product takes 16 cycles of a unit of its own, and as many cycles take the lines that two
// by two tiles need from the second cache: that is the limit. So sums stay in tiles for the whole
// length of a row, and all else is done in turns, a little behind each product, without branches
// that depend on data: the next block is fetched; bf12 is unpacked a group ahead, into a ring that
// the first cache holds, and again in each pass, which reads less than the unpacked rows would; and
// the sums of the last pass go where they belong.
#include "bf12_avx512.h"
#include "bf16_split.h"
#include "kernels/kernels.h"
#include "tiles.h"
#include "vector_avx512.h"

#include "silu.h"
#include "transpose.h"

#include <limits.h>
#include <stdbool.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    LINE = 64,
    STEP = 32, // columns
    // Of a panel: a tile of the high parts, a tile of the low ones. Line p of a tile holds the
    // columns 2p and 2p + 1 of each vector.
    STEP_BYTES = 2 * TILE_BYTES,
    GROUP_STEPS = Q3_BF12_GROUP / STEP,
    STRIP_TILES = 4, // of rows, at most, that pass over the panels together
    SUMS = 4,        // tiles
    GROUP_BYTES = 1280 << 10,
    NONE = STRIP_TILES,
};

// The sums of a pass, and what is still to be done with them: items, each some of the sums' lines.
typedef struct results {
    _Alignas(64) float sums[SUMS][TILE][TILE]; // [tile * panels + panel][row][vector]
    size_t tiles, panels;
    size_t row[STRIP_TILES]; // a tile's first one
    size_t vector;           // the panels' first one
    unsigned item, items;
} results;

typedef struct work {
    size_t height; // rows of a tile
    size_t columns, steps, row_bytes;
    size_t vectors, first;
    float *const *y;    // where sums go, or
    void *const *inner; // the panels for what is gated: then the odd tiles are of `up`
    const void *const *panels;
    const q3_rows *rows[2]; // of the even tiles and of the odd ones
    bf12_table table[2];
    const uint8_t *fetch, *fetch_end; // what comes next,
    q3_next fetch_then;               // and after that
    size_t lines_a_turn;
    // Of the strip: each tile's first row in its block, and for bf12 where each row begins; what a
    // tile has not got of 16 rows is the last one again.
    size_t tiles, row[STRIP_TILES];
    const uint8_t *groups[STRIP_TILES][TILE];
    // Each row's next exception and its column, and those that it begins with.
    _Alignas(64) const q3_bf12_exception *exception[STRIP_TILES][TILE];
    _Alignas(64) const q3_bf12_exception *first_exception[STRIP_TILES][TILE];
    _Alignas(64) uint32_t due[STRIP_TILES][TILE], first_due[STRIP_TILES][TILE];
    // Two groups, of which one is multiplied while the other is unpacked.
    _Alignas(64) uint8_t ring[2][STRIP_TILES][GROUP_STEPS][TILE_BYTES];
    unsigned half; // that the next pass begins with,
    size_t ready;  // where the first group of this tile and the next one is already, or NONE
    results last;
} work;

// What is done in turns between tile products.
typedef struct turns {
    const uint8_t *fetch;
    size_t lines; // to be fetched in a turn, behind every fourth product
    // To be unpacked: the tile, the byte in a row, the half of the ring.
    size_t tile, at;
    unsigned half;
} turns;

// ---- results

// Columns 4 * quarter to 4 * quarter + 3 of a 16 by 16 matrix.
static inline void transpose_quarter(const float *matrix, unsigned quarter, __m512 out[4])
{
    const float *from = matrix + 4 * quarter;
    pairs columns[4];
    transpose_four((const uint8_t *)from, TILE * sizeof *from, columns, 1);
    for (unsigned i = 0; i < 4; i++)
        out[i] = _mm512_castsi512_ps(columns[i]);
}

// Whole lines go past the caches, which do not hold all that is written before it is read again.
static void store_sums(const work *w, unsigned item)
{
    const results *r = &w->last;
    const size_t tile = item % r->tiles, quarter = item / r->tiles % 4;
    const size_t panel = item / r->tiles / 4, v = r->vector + panel * TILE + 4 * quarter;
    const __mmask16 rows = q3_split_mask(w->height);
    __m512 sums[4];
    transpose_quarter(r->sums[tile * r->panels + panel][0], (unsigned)quarter, sums);
    for (size_t i = 0; i < 4 && v + i < w->vectors; i++) {
        float *to = w->y[v + i] + w->first + r->row[tile];
        if (w->height == TILE && (uintptr_t)to % LINE == 0)
            _mm512_stream_ps(to, sums[i]);
        else
            _mm512_mask_storeu_ps(to, rows, sums[i]);
    }
}

// Two lines of sums are two rows, which are a line of a panel.
static void put_gated(const work *w, unsigned item)
{
    const results *r = &w->last;
    const size_t pair = item / 8 / r->panels, panel = item / 8 % r->panels, line = item % 8;
    const float *gate = r->sums[2 * pair * r->panels + panel][2 * line];
    const float *up = r->sums[(2 * pair + 1) * r->panels + panel][2 * line];
    const size_t column = w->first + r->row[2 * pair] + 2 * line;
    uint8_t *to = (uint8_t *)w->inner[r->vector / TILE + panel] + column / STEP * STEP_BYTES +
                  column % STEP / 2 * LINE;
    const q3_split split =
        q3_split_two(silu(load(gate)) * load(up), silu(load(gate + TILE)) * load(up + TILE));
    _mm512_store_si512(to, q3_split_interleave(split.high));
    _mm512_store_si512(to + TILE_BYTES, q3_split_interleave(split.low));
}

// Not inlined, so that the loops that it is called from stay short.
__attribute__((noinline)) static void finish_item(work *w)
{
    const unsigned item = w->last.item++;
    if (w->inner)
        put_gated(w, item);
    else
        store_sums(w, item);
}

static void finish_items(work *w)
{
    while (w->last.item < w->last.items)
        finish_item(w);
}

// ---- unpacking

// If anything is to be unpacked: some rows of the tile in hand, or of one `further`.
ALWAYS_INLINE void unpack_rows(work *w, const turns *t, bool unpack, size_t further, unsigned first,
                               unsigned count)
{
    if (!unpack)
        return;
    const size_t tile = t->tile + further;
    uint8_t *to = w->ring[t->half][tile][0];
    for (unsigned r = first; r < first + count; r++) {
        __m512i weights[GROUP_STEPS];
        bf12_weights(w->groups[tile][r] + t->at, w->table[tile % 2], weights);
        _mm512_store_si512(to + r * LINE, weights[0]);
        _mm512_store_si512(to + TILE_BYTES + r * LINE, weights[1]);
    }
}

// Puts a tile's exceptions of the group in hand into its unpacked rows.
static void patch_rows(work *w, const turns *t, size_t tile, size_t column, __mmask16 rows)
{
    for (unsigned r = 0; r < TILE; r++) {
        if (!(rows >> r & 1))
            continue;
        const size_t row = (w->row[tile] + r) * w->columns, first = row + column;
        const q3_bf12_exception *e = w->exception[tile][r];
        for (; e->weight < first + Q3_BF12_GROUP; e++) {
            const size_t at = e->weight - first;
            memcpy(w->ring[t->half][tile][at / STEP] + r * LINE + at % STEP * sizeof e->value,
                   &e->value, sizeof e->value);
        }
        w->exception[tile][r] = e;
        w->due[tile][r] = e->weight == UINT32_MAX ? UINT32_MAX : (uint32_t)(e->weight - row);
    }
}

// To be called when all rows of the tile in hand, or of one `further`, are unpacked.
ALWAYS_INLINE void patch_tile(work *w, const turns *t, size_t further)
{
    const size_t tile = t->tile + further;
    const size_t column = t->at / Q3_BF12_GROUP_BYTES * Q3_BF12_GROUP;
    const __m512i end = _mm512_set1_epi32((int)(column + Q3_BF12_GROUP));
    const __mmask16 rows = _mm512_cmplt_epu32_mask(_mm512_load_si512(w->due[tile]), end);
    if (__builtin_expect(rows != 0, 0))
        patch_rows(w, t, tile, column, rows);
}

// A tile's first group comes next.
ALWAYS_INLINE void rewind_tile(work *w, size_t tile)
{
    memcpy(w->due[tile], w->first_due[tile], sizeof w->due[tile]);
    memcpy(w->exception[tile], w->first_exception[tile], sizeof w->exception[tile]);
}

// The first group of some tiles at once, if it is not there.
ALWAYS_INLINE void unpack_first(work *w, turns *t, size_t tile, size_t count)
{
    if (w->ready == tile && count == 2)
        return;
    t->at = 0;
    t->half = w->half;
    for (size_t i = 0; i < count; i++) {
        t->tile = tile + i;
        rewind_tile(w, t->tile);
        unpack_rows(w, t, true, 0, 0, TILE);
        patch_tile(w, t, 0);
    }
    settle();
}

// Where the rows of the strip begin, and their exceptions.
static void begin_unpacking(work *w)
{
    for (size_t tile = 0; tile < w->tiles; tile++) {
        const q3_bf12 *bf12 = &w->rows[tile % 2]->bf12;
        const q3_bf12_exception *e = bf12->exceptions;
        for (size_t r = 0; r < TILE; r++) {
            const size_t row = w->row[tile] + (r < w->height ? r : w->height - 1);
            const size_t first = row * w->columns;
            w->groups[tile][r] = bf12->groups + row * w->row_bytes;
            for (; e->weight < first; e++)
                ;
            w->first_exception[tile][r] = e;
            w->first_due[tile][r] = r < w->height && e->weight != UINT32_MAX
                                        ? (uint32_t)(e->weight - first)
                                        : UINT32_MAX;
        }
    }
}

// ---- passes
//
// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 panels. All rows of sums and weights have one
// height. A pass goes along all columns with up to four sums.

ALWAYS_INLINE void begin_fetching(const work *w, turns *t)
{
    t->fetch = w->fetch;
    t->lines = w->fetch < w->fetch_end ? w->lines_a_turn : 0;
}

ALWAYS_INLINE void fetch_lines(turns *t)
{
    for (size_t i = 0; i < t->lines; i++)
        _mm_prefetch((const char *)t->fetch + i * LINE, _MM_HINT_T1);
    t->fetch += t->lines * LINE;
}

static void fetch_from(work *w, q3_next next, q3_next then)
{
    static const uint8_t nothing;
    w->fetch = next.bytes ? next.data : &nothing;
    w->fetch_end = w->fetch + next.bytes / LINE * LINE;
    w->fetch_then = then;
}

// Behind a step.
ALWAYS_INLINE void end_step(work *w, turns *t)
{
    if (t->fetch >= w->fetch_end && t->lines) {
        fetch_from(w, w->fetch_then, (q3_next){0});
        begin_fetching(w, t);
    }
    if (w->last.item < w->last.items)
        finish_item(w);
    settle();
}

// Where the tiles of a step lie, those of weights with so many bytes from row to row.
typedef struct operands {
    const uint8_t *a[STRIP_TILES], *b[2];
    size_t stride;
} operands;

ALWAYS_INLINE void step_2_by_2(work *w, turns *t, const operands *o, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], o->stride);
    _tile_dpbf16ps(0, 4, 6);
    unpack_rows(w, t, unpack, 0, 0, 2);
    _tile_loadd(5, o->a[1], o->stride);
    _tile_dpbf16ps(2, 5, 6);
    unpack_rows(w, t, unpack, 0, 2, 2);
    fetch_lines(t);
    _tile_loadd(7, o->b[1], 64);
    _tile_dpbf16ps(1, 4, 7);
    unpack_rows(w, t, unpack, 0, 4, 2);
    _tile_dpbf16ps(3, 5, 7);
    unpack_rows(w, t, unpack, 0, 6, 2);
    _tile_loadd(6, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 6);
    unpack_rows(w, t, unpack, 0, 8, 2);
    _tile_dpbf16ps(2, 5, 6);
    unpack_rows(w, t, unpack, 0, 10, 2);
    fetch_lines(t);
    _tile_loadd(7, o->b[1] + TILE_BYTES, 64);
    _tile_dpbf16ps(1, 4, 7);
    unpack_rows(w, t, unpack, 0, 12, 2);
    _tile_dpbf16ps(3, 5, 7);
    unpack_rows(w, t, unpack, 0, 14, 2);
    end_step(w, t);
}

ALWAYS_INLINE void step_4_by_1(work *w, turns *t, const operands *o, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], o->stride);
    _tile_dpbf16ps(0, 4, 6);
    unpack_rows(w, t, unpack, 0, 0, 4);
    _tile_loadd(5, o->a[1], o->stride);
    _tile_dpbf16ps(1, 5, 6);
    unpack_rows(w, t, unpack, 0, 4, 4);
    fetch_lines(t);
    _tile_loadd(7, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 7);
    unpack_rows(w, t, unpack, 0, 8, 4);
    _tile_dpbf16ps(1, 5, 7);
    unpack_rows(w, t, unpack, 0, 12, 4);
    _tile_loadd(4, o->a[2], o->stride);
    _tile_dpbf16ps(2, 4, 6);
    unpack_rows(w, t, unpack, 1, 0, 4);
    _tile_loadd(5, o->a[3], o->stride);
    _tile_dpbf16ps(3, 5, 6);
    unpack_rows(w, t, unpack, 1, 4, 4);
    fetch_lines(t);
    _tile_dpbf16ps(2, 4, 7);
    unpack_rows(w, t, unpack, 1, 8, 4);
    _tile_dpbf16ps(3, 5, 7);
    unpack_rows(w, t, unpack, 1, 12, 4);
    end_step(w, t);
}

ALWAYS_INLINE void step_2_by_1(work *w, turns *t, const operands *o, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], o->stride);
    _tile_dpbf16ps(0, 4, 6);
    unpack_rows(w, t, unpack, 0, 0, 4);
    _tile_loadd(5, o->a[1], o->stride);
    _tile_dpbf16ps(1, 5, 6);
    unpack_rows(w, t, unpack, 0, 4, 4);
    fetch_lines(t);
    _tile_loadd(7, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 7);
    unpack_rows(w, t, unpack, 0, 8, 4);
    _tile_dpbf16ps(1, 5, 7);
    unpack_rows(w, t, unpack, 0, 12, 4);
    end_step(w, t);
}

ALWAYS_INLINE void step(work *w, turns *t, operands *o, size_t tiles, size_t panels, bool unpack)
{
    if (panels == 2)
        step_2_by_2(w, t, o, unpack);
    else if (tiles == 4)
        step_4_by_1(w, t, o, unpack);
    else
        step_2_by_1(w, t, o, unpack);
    for (size_t j = 0; j < panels; j++)
        o->b[j] += STEP_BYTES;
}

// Multiplies the group in the half of the ring that is in hand while the next one is unpacked to
// the other, if there is one.
ALWAYS_INLINE void multiply_group(work *w, turns *t, operands *o, size_t tile, size_t tiles,
                                  size_t panels, bool unpack)
{
    const size_t tiles_a_step = tiles / GROUP_STEPS, target = t->tile;
    const unsigned half = w->half;
    t->half = half ^ 1;
    for (size_t k = 0; k < GROUP_STEPS; k++) {
        for (size_t i = 0; i < tiles; i++)
            o->a[i] = w->ring[half][tile + i][k];
        t->tile = target + k * tiles_a_step;
        step(w, t, o, tiles, panels, unpack);
        if (unpack) {
            for (size_t i = 0; i < tiles_a_step; i++)
                patch_tile(w, t, i);
            settle();
        }
    }
    w->half = half ^ 1;
}

ALWAYS_INLINE void pass_over_bf12(work *w, turns *t, operands *o, size_t tile, size_t tiles,
                                  size_t panels, size_t next)
{
    const size_t groups = w->steps / GROUP_STEPS;
    o->stride = LINE;
    unpack_first(w, t, tile, tiles);
    for (size_t group = 1; group < groups; group++) {
        t->tile = tile;
        t->at = group * Q3_BF12_GROUP_BYTES;
        multiply_group(w, t, o, tile, tiles, panels, true);
    }
    w->ready = tiles == 2 ? next : NONE;
    t->at = 0;
    t->tile = w->ready;
    if (w->ready == NONE) {
        multiply_group(w, t, o, tile, tiles, panels, false);
    } else {
        rewind_tile(w, next);
        rewind_tile(w, next + 1);
        multiply_group(w, t, o, tile, tiles, panels, true);
    }
}

ALWAYS_INLINE void pass_over_plain(work *w, turns *t, operands *o, size_t tile, size_t tiles,
                                   size_t panels)
{
    o->stride = 2 * w->columns;
    for (size_t i = 0; i < tiles; i++)
        o->a[i] = (const uint8_t *)(w->rows[(tile + i) % 2]->plain + w->row[tile + i] * w->columns);
    for (size_t k = 0; k < w->columns / STEP; k++) {
        step(w, t, o, tiles, panels, false);
        for (size_t i = 0; i < tiles; i++)
            o->a[i] += LINE;
    }
    const size_t rest = w->columns % STEP;
    if (rest == 0)
        return;
    // Weights of columns that fill no step are not loaded from where they lie.
    for (size_t i = 0; i < tiles; i++) {
        uint8_t *to = w->ring[0][i][0];
        for (size_t r = 0; r < w->height; r++) {
            memset(to + r * LINE, 0, LINE);
            memcpy(to + r * LINE, o->a[i] + r * o->stride, 2 * rest);
        }
        o->a[i] = to;
    }
    settle();
    o->stride = LINE;
    step(w, t, o, tiles, panels, false);
}

// Multiplies `tiles` tiles of rows by one panel, or two by two. The tiles from `next` on, if there
// are any, come in the pass after it.
ALWAYS_INLINE void pass(work *w, size_t tile, size_t tiles, size_t panel, size_t panels,
                        size_t next)
{
    results *last = &w->last;
    turns t;
    operands o;
    begin_fetching(w, &t);
    for (size_t j = 0; j < panels; j++)
        o.b[j] = w->panels[panel + j];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (w->rows[0]->plain)
        pass_over_plain(w, &t, &o, tile, tiles, panels);
    else
        pass_over_bf12(w, &t, &o, tile, tiles, panels, next);
    finish_items(w);
    settle();
    _tile_stored(0, last->sums[0], 64);
    _tile_stored(1, last->sums[1], 64);
    if (tiles * panels == SUMS) {
        _tile_stored(2, last->sums[2], 64);
        _tile_stored(3, last->sums[3], 64);
    }
    settle();
    last->tiles = tiles;
    last->panels = panels;
    for (size_t i = 0; i < tiles; i++)
        last->row[i] = w->row[tile + i];
    last->vector = panel * TILE;
    last->item = 0;
    last->items = (unsigned)(tiles * panels * 4);
    w->fetch = t.fetch;
}

static void pass_2_by_2(work *w, size_t tile, size_t panel, size_t next)
{
    pass(w, tile, 2, panel, 2, next);
}

static void pass_4_by_1(work *w, size_t panel)
{
    pass(w, 0, 4, panel, 1, NONE);
}

static void pass_2_by_1(work *w, size_t panel)
{
    pass(w, 0, 2, panel, 1, NONE);
}

// ---- blocks

static void multiply_strip(work *w)
{
    const size_t panels = (w->vectors + TILE - 1) / TILE;
    size_t panel = 0;
    w->ready = NONE;
    if (!w->rows[0]->plain)
        begin_unpacking(w);
    for (; panel + 2 <= panels; panel += 2)
        for (size_t tile = 0; tile < w->tiles; tile += 2)
            pass_2_by_2(w, tile, panel,
                        tile + 2 < w->tiles   ? tile + 2
                        : panel + 4 <= panels ? 0
                                              : (size_t)NONE);
    if (panel < panels && w->tiles == STRIP_TILES)
        pass_4_by_1(w, panel);
    else if (panel < panels)
        pass_2_by_1(w, panel);
}

// Rows of one matrix, or of two in turns, by all vectors. There is an even number of tiles, all of
// one height. The last ones lie over their neighbours where the rows do not divide: the same sums
// twice, for which no other configuration is needed.
static void multiply_block(work *w, const q3_rows *even, const q3_rows *odd, size_t rows,
                           q3_next next, q3_next then)
{
    const size_t sides = even == odd ? 1 : 2;
    const size_t tiles = 2 * ((sides * rows + 2 * TILE - 1) / (2 * TILE));
    const size_t lines = (next.bytes + then.bytes) / LINE;
    w->steps = (w->columns + STEP - 1) / STEP;
    const size_t turns_in_all = tiles * ((w->vectors + TILE - 1) / TILE) * w->steps / 2;
    w->lines_a_turn = (lines + turns_in_all - 1) / turns_in_all;
    fetch_from(w, next, then);
    w->height = (sides * rows + tiles - 1) / tiles;
    w->row_bytes = q3_bf12_groups_bytes(w->columns);
    w->rows[0] = even;
    w->rows[1] = odd;
    for (unsigned i = 0; i < 2; i++) {
        uint8_t high_bytes[16];
        q3_bf12_high_bytes(w->rows[i]->bf12.lowest, high_bytes);
        w->table[i] = bf12_load_table(high_bytes);
    }
    w->half = 0;
    w->last.item = w->last.items = 0;
    configure_tiles(w->height);
    for (size_t tile = 0; tile < tiles; tile += STRIP_TILES) {
        w->tiles = tiles - tile < STRIP_TILES ? tiles - tile : STRIP_TILES;
        for (size_t i = 0; i < w->tiles; i++) {
            const size_t row = (tile + i) / sides * w->height;
            w->row[i] = row < rows - w->height ? row : rows - w->height;
        }
        multiply_strip(w);
    }
    _tile_release();
    finish_items(w);
    _mm_sfence();
}

static void multiply_rows(const q3_rows *weights, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next)
{
    work w;
    w.columns = columns;
    w.panels = panels;
    w.vectors = vectors;
    w.y = y;
    w.inner = NULL;
    w.first = first;
    multiply_block(&w, weights, weights, rows, next, (q3_next){0});
}

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next)
{
    const q3_rows plain = {.plain = weights};
    multiply_rows(&plain, rows, columns, panels, vectors, y, first, next);
}

static void multiply_bf12(const q3_bf12 *block, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next)
{
    const q3_rows shorter = {.bf12 = *block};
    multiply_rows(&shorter, rows, columns, panels, vectors, y, first, next);
}

static void multiply_gated(const q3_rows *gate, const q3_rows *up, size_t rows, size_t columns,
                           const void *const *panels, size_t vectors, void *const *inner,
                           size_t first, const q3_next next[2])
{
    work w;
    w.columns = columns;
    w.panels = panels;
    w.vectors = vectors;
    w.y = NULL;
    w.inner = inner;
    w.first = first;
    multiply_block(&w, gate, up, rows, next[0], next[1]);
}

static size_t panel_bytes(size_t columns)
{
    return (columns + STEP - 1) / STEP * STEP_BYTES;
}

static void arrange(const float *const *x, unsigned count, size_t columns, void *panel)
{
    _Alignas(64) float high[TILE][TILE] = {{0}}, low[TILE][TILE] = {{0}}; // a line a vector
    float *to = panel;
    for (size_t at = 0; at < columns; at += STEP) {
        for (unsigned v = 0; v < count; v++) {
            const q3_split split = q3_split_load(x[v] + at, columns - at);
            _mm512_store_ps(high[v], _mm512_castsi512_ps(split.high));
            _mm512_store_ps(low[v], _mm512_castsi512_ps(split.low));
        }
        for (unsigned part = 0; part < 2; part++)
            for (unsigned quarter = 0; quarter < 4; quarter++) {
                __m512 lines[4];
                transpose_quarter(part ? low[0] : high[0], quarter, lines);
                for (unsigned i = 0; i < 4; i++, to += TILE)
                    _mm512_store_ps(to, lines[i]);
            }
    }
}

const q3_products q3_products_amx = {
    .name = "amx",
    .panel = TILE,
    .group_bytes = GROUP_BYTES,
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
    .multiply_bf12 = multiply_bf12,
    .bf12_vectors = UINT_MAX,
    .multiply_gated = multiply_gated,
    .gated_rows = STEP,
};
