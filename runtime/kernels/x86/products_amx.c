// SPDX-License-Identifier: Apache-2.0
//
// Products by AMX tiles, for many vectors. The weights are the first operand: a tile is 16 rows of
// 32 columns. Plain ones are loaded as they lie, bf12 is unpacked 64 columns ahead of the tiles.
// The vectors are the second operand: a panel is 16 of them, split in high and low parts
// (bf16_split.h), as the tiles that the processor wants them in.
//
// Each sum runs along the columns in steps of 32, in each step first with the high and then with
// the low parts, and is the same wherever in a tile it stands. Sums leave the tiles for memory and
// come back as float32, so it does not matter either how the steps are cut.
//
// A tile product takes 16 cycles of a unit of its own, and its operands may come from the second
// cache: loads overlap with it. So do fetching and unpacking, when a little of them stands behind
// each product and nothing there depends on a branch.
#include "bf12_avx512.h"
#include "bf16_split.h"
#include "kernels/kernels.h"
#include "tiles.h"

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
};

// A strip is up to so many tiles of rows, which pass over up to so many panels. For that bf12 is
// unpacked once, a chunk of columns at a time: 256 KiB, which the second cache has beside the
// panels. Only sums of several chunks wait in memory.
enum {
    STRIP_TILES = 4,
    STRIP_PANELS = 8,
    GROUP = STRIP_PANELS * TILE,
    CHUNK = 64, // steps, whole groups
};

typedef struct work {
    size_t tiles, panels;
    size_t height;           // rows of a tile
    size_t row[STRIP_TILES]; // the first of each tile
    const uint8_t *panel[STRIP_PANELS];
    const uint8_t *fetch, *fetch_end; // what comes next
    size_t lines_a_turn;
    const q3_bf12 *bf12; // or NULL
    bf12_table table;
    size_t row_bytes, columns;
    // Of each row in each tile; what a tile has not got of 16 rows is the last one again.
    const uint8_t *groups[STRIP_TILES][TILE];
    const q3_bf12_exception *exception[STRIP_TILES][TILE];          // the next,
    _Alignas(64) uint32_t due[STRIP_TILES][TILE];                   // and its column
    _Alignas(64) float sums[STRIP_PANELS][STRIP_TILES][TILE][TILE]; // rows of 16 vectors
    // Tiles that are not loaded from the block: bf12's, and of plain weights those of columns
    // beyond whole steps.
    _Alignas(64) uint8_t unpacked[STRIP_TILES][CHUNK][TILE_BYTES];
} work;

// Some steps of the columns.
typedef struct chunk {
    const uint8_t *tile[STRIP_TILES]; // each tile's first row
    size_t stride, advance;           // bytes from row to row and from step to step
    size_t step, count;
} chunk;

// What is done in turns, one behind each tile product.
typedef struct turns {
    const uint8_t *fetch;
    size_t lines;        // to be fetched in a turn
    size_t tile, at, to; // to be unpacked: the tile, the byte in a row, the step in the chunk
} turns;

// ---- unpacking

// Some rows of the tile in hand, or of one `further`.
ALWAYS_INLINE void unpack_rows(work *w, const turns *t, size_t further, unsigned first,
                               unsigned count)
{
    for (unsigned r = first; r < first + count; r++) {
        __m512i weights[GROUP_STEPS];
        bf12_weights(w->groups[t->tile + further][r] + t->at, w->table, weights);
        uint8_t *line = w->unpacked[t->tile + further][t->to] + r * LINE;
        _mm512_store_si512(line, weights[0]);
        _mm512_store_si512(line + TILE_BYTES, weights[1]);
    }
}

// Puts a tile's exceptions of the group that begins with a step into its unpacked rows.
static void patch_rows(work *w, const turns *t, size_t tile, size_t step, __mmask16 rows)
{
    for (unsigned r = 0; r < TILE; r++) {
        if (!(rows >> r & 1))
            continue;
        const size_t row = (w->row[tile] + r) * w->columns, first = row + step * STEP;
        const q3_bf12_exception *e = w->exception[tile][r];
        for (; e->weight < first + Q3_BF12_GROUP; e++) {
            const size_t at = e->weight - first;
            memcpy(w->unpacked[tile][t->to + at / STEP] + r * LINE + at % STEP * sizeof e->value,
                   &e->value, sizeof e->value);
        }
        w->exception[tile][r] = e;
        w->due[tile][r] = (uint32_t)(e->weight - row);
    }
}

// To be called when all rows of the tile in hand, or of one `further`, are unpacked.
ALWAYS_INLINE void patch_tile(work *w, const turns *t, size_t further)
{
    const size_t tile = t->tile + further;
    const size_t step = t->at / Q3_BF12_GROUP_BYTES * GROUP_STEPS;
    const __m512i end = _mm512_set1_epi32((int)((step + GROUP_STEPS) * STEP));
    const __mmask16 rows = _mm512_cmplt_epu32_mask(_mm512_load_si512(w->due[tile]), end);
    if (__builtin_expect(rows != 0, 0))
        patch_rows(w, t, tile, step, rows);
}

// The tile to be unpacked in turns: the group that begins `ahead` steps after a chunk's first.
ALWAYS_INLINE void aim(turns *t, const chunk *c, size_t tile, size_t ahead)
{
    t->tile = tile;
    t->at = (c->step + ahead) / GROUP_STEPS * Q3_BF12_GROUP_BYTES;
    t->to = ahead;
}

// The first group of some tiles at once.
ALWAYS_INLINE void unpack_first(work *w, turns *t, const chunk *c, size_t tile, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        aim(t, c, tile + i, 0);
        unpack_rows(w, t, 0, 0, TILE);
        patch_tile(w, t, 0);
    }
    settle();
}

// Where the rows of the strip begin, and their exceptions.
static void begin_unpacking(work *w)
{
    const q3_bf12_exception *e = w->bf12->exceptions;
    for (size_t tile = 0; tile < w->tiles; tile++)
        for (size_t r = 0; r < TILE; r++) {
            const size_t row = w->row[tile] + (r < w->height ? r : w->height - 1);
            const size_t first = row * w->columns;
            w->groups[tile][r] = w->bf12->groups + row * w->row_bytes;
            // The last tiles can begin before the end of their neighbours.
            for (; e > w->bf12->exceptions && e[-1].weight >= first; e--)
                ;
            for (; e->weight < first; e++)
                ;
            w->exception[tile][r] = e;
            w->due[tile][r] = r < w->height ? (uint32_t)(e->weight - first) : UINT32_MAX;
        }
}

// ---- products
//
// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 panels. All rows of sums and weights have one
// height. A pass goes along a chunk's columns with up to four sums; with `unpack` it unpacks its
// rows' next group meanwhile.

ALWAYS_INLINE turns begin_turns(const work *w)
{
    return (turns){.fetch = w->fetch, .lines = w->fetch < w->fetch_end ? w->lines_a_turn : 0};
}

// Behind a tile product: fetches some lines, and unpacks some rows.
ALWAYS_INLINE void take_turn(work *w, turns *t, bool unpack, size_t further, unsigned first,
                             unsigned count)
{
    for (size_t i = 0; i < t->lines; i++)
        _mm_prefetch((const char *)t->fetch + i * LINE, _MM_HINT_T1);
    t->fetch += t->lines * LINE;
    if (unpack)
        unpack_rows(w, t, further, first, count);
}

ALWAYS_INLINE void end_step(const work *w, turns *t)
{
    if (t->fetch >= w->fetch_end)
        t->lines = 0;
    settle();
}

typedef struct operands {
    const uint8_t *a[STRIP_TILES], *b[2];
} operands;

ALWAYS_INLINE operands first_operands(const work *w, const chunk *c, size_t tile, size_t tiles,
                                      size_t panel, size_t panels)
{
    operands o;
    for (size_t i = 0; i < tiles; i++)
        o.a[i] = c->tile[tile + i];
    for (size_t i = 0; i < panels; i++)
        o.b[i] = w->panel[panel + i] + c->step * STEP_BYTES;
    return o;
}

ALWAYS_INLINE void next_operands(operands *o, const chunk *c, size_t tiles, size_t panels)
{
    for (size_t i = 0; i < tiles; i++)
        o->a[i] += c->advance;
    for (size_t i = 0; i < panels; i++)
        o->b[i] += STEP_BYTES;
}

ALWAYS_INLINE void step_2_by_2(work *w, turns *t, const operands *o, size_t stride, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], stride);
    _tile_dpbf16ps(0, 4, 6);
    take_turn(w, t, unpack, 0, 0, 2);
    _tile_loadd(5, o->a[1], stride);
    _tile_dpbf16ps(2, 5, 6);
    take_turn(w, t, unpack, 0, 2, 2);
    _tile_loadd(7, o->b[1], 64);
    _tile_dpbf16ps(1, 4, 7);
    take_turn(w, t, unpack, 0, 4, 2);
    _tile_dpbf16ps(3, 5, 7);
    take_turn(w, t, unpack, 0, 6, 2);
    _tile_loadd(6, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 6);
    take_turn(w, t, unpack, 0, 8, 2);
    _tile_dpbf16ps(2, 5, 6);
    take_turn(w, t, unpack, 0, 10, 2);
    _tile_loadd(7, o->b[1] + TILE_BYTES, 64);
    _tile_dpbf16ps(1, 4, 7);
    take_turn(w, t, unpack, 0, 12, 2);
    _tile_dpbf16ps(3, 5, 7);
    take_turn(w, t, unpack, 0, 14, 2);
    end_step(w, t);
}

// Two tiles of rows times two panels.
ALWAYS_INLINE void pass_2_by_2(work *w, const chunk *c, size_t tile, size_t panel, bool unpack)
{
    float(*s0)[TILE][TILE] = &w->sums[panel][tile], (*s1)[TILE][TILE] = &w->sums[panel + 1][tile];
    turns t = begin_turns(w);
    operands o = first_operands(w, c, tile, 2, panel, 2);
    size_t k = 0;
    if (c->step == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, s0[0], 64);
        _tile_loadd(1, s1[0], 64);
        _tile_loadd(2, s0[1], 64);
        _tile_loadd(3, s1[1], 64);
    }
    if (unpack) {
        unpack_first(w, &t, c, tile, 2);
        for (; k + GROUP_STEPS < c->count; k++) {
            aim(&t, c, tile + k % GROUP_STEPS, k - k % GROUP_STEPS + GROUP_STEPS);
            step_2_by_2(w, &t, &o, c->stride, true);
            patch_tile(w, &t, 0);
            settle();
            next_operands(&o, c, 2, 2);
        }
    }
    for (; k < c->count; k++) {
        step_2_by_2(w, &t, &o, c->stride, false);
        next_operands(&o, c, 2, 2);
    }
    _tile_stored(0, s0[0], 64);
    _tile_stored(1, s1[0], 64);
    _tile_stored(2, s0[1], 64);
    _tile_stored(3, s1[1], 64);
    w->fetch = t.fetch;
}

ALWAYS_INLINE void step_4_by_1(work *w, turns *t, const operands *o, size_t stride, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], stride);
    _tile_dpbf16ps(0, 4, 6);
    take_turn(w, t, unpack, 0, 0, 4);
    _tile_loadd(5, o->a[1], stride);
    _tile_dpbf16ps(1, 5, 6);
    take_turn(w, t, unpack, 0, 4, 4);
    _tile_loadd(7, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 7);
    take_turn(w, t, unpack, 0, 8, 4);
    _tile_dpbf16ps(1, 5, 7);
    take_turn(w, t, unpack, 0, 12, 4);
    _tile_loadd(4, o->a[2], stride);
    _tile_dpbf16ps(2, 4, 6);
    take_turn(w, t, unpack, 1, 0, 4);
    _tile_loadd(5, o->a[3], stride);
    _tile_dpbf16ps(3, 5, 6);
    take_turn(w, t, unpack, 1, 4, 4);
    _tile_dpbf16ps(2, 4, 7);
    take_turn(w, t, unpack, 1, 8, 4);
    _tile_dpbf16ps(3, 5, 7);
    take_turn(w, t, unpack, 1, 12, 4);
    end_step(w, t);
}

// Four tiles of rows times one panel.
ALWAYS_INLINE void pass_4_by_1(work *w, const chunk *c, size_t panel, bool unpack)
{
    float(*s)[TILE][TILE] = w->sums[panel];
    turns t = begin_turns(w);
    operands o = first_operands(w, c, 0, 4, panel, 1);
    size_t k = 0;
    if (c->step == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, s[0], 64);
        _tile_loadd(1, s[1], 64);
        _tile_loadd(2, s[2], 64);
        _tile_loadd(3, s[3], 64);
    }
    if (unpack) {
        unpack_first(w, &t, c, 0, 4);
        for (; k + GROUP_STEPS < c->count; k++) {
            aim(&t, c, k % GROUP_STEPS * 2, k - k % GROUP_STEPS + GROUP_STEPS);
            step_4_by_1(w, &t, &o, c->stride, true);
            patch_tile(w, &t, 0);
            patch_tile(w, &t, 1);
            settle();
            next_operands(&o, c, 4, 1);
        }
    }
    for (; k < c->count; k++) {
        step_4_by_1(w, &t, &o, c->stride, false);
        next_operands(&o, c, 4, 1);
    }
    _tile_stored(0, s[0], 64);
    _tile_stored(1, s[1], 64);
    _tile_stored(2, s[2], 64);
    _tile_stored(3, s[3], 64);
    w->fetch = t.fetch;
}

ALWAYS_INLINE void step_2_by_1(work *w, turns *t, const operands *o, size_t stride, bool unpack)
{
    _tile_loadd(6, o->b[0], 64);
    _tile_loadd(4, o->a[0], stride);
    _tile_dpbf16ps(0, 4, 6);
    take_turn(w, t, unpack, 0, 0, 4);
    _tile_loadd(5, o->a[1], stride);
    _tile_dpbf16ps(1, 5, 6);
    take_turn(w, t, unpack, 0, 4, 4);
    _tile_loadd(7, o->b[0] + TILE_BYTES, 64);
    _tile_dpbf16ps(0, 4, 7);
    take_turn(w, t, unpack, 0, 8, 4);
    _tile_dpbf16ps(1, 5, 7);
    take_turn(w, t, unpack, 0, 12, 4);
    end_step(w, t);
}

// Two tiles of rows times one panel.
ALWAYS_INLINE void pass_2_by_1(work *w, const chunk *c, size_t panel, bool unpack)
{
    float(*s)[TILE][TILE] = w->sums[panel];
    turns t = begin_turns(w);
    operands o = first_operands(w, c, 0, 2, panel, 1);
    size_t k = 0;
    if (c->step == 0) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, s[0], 64);
        _tile_loadd(1, s[1], 64);
    }
    if (unpack) {
        unpack_first(w, &t, c, 0, 2);
        for (; k + GROUP_STEPS < c->count; k++) {
            aim(&t, c, k % GROUP_STEPS, k - k % GROUP_STEPS + GROUP_STEPS);
            step_2_by_1(w, &t, &o, c->stride, true);
            patch_tile(w, &t, 0);
            settle();
            next_operands(&o, c, 2, 1);
        }
    }
    for (; k < c->count; k++) {
        step_2_by_1(w, &t, &o, c->stride, false);
        next_operands(&o, c, 2, 1);
    }
    _tile_stored(0, s[0], 64);
    _tile_stored(1, s[1], 64);
    w->fetch = t.fetch;
}

// All sums of a chunk. What is to be unpacked is unpacked by the passes that come first.
ALWAYS_INLINE void multiply_chunk(work *w, const chunk *c, bool unpack)
{
    size_t panel = 0;
    if (w->panels == 1 && w->tiles == STRIP_TILES)
        pass_4_by_1(w, c, 0, unpack);
    else if (w->panels == 1)
        pass_2_by_1(w, c, 0, unpack);
    else
        for (size_t tile = 0; tile < w->tiles; tile += 2)
            pass_2_by_2(w, c, tile, 0, unpack);
    for (panel = 2; panel + 2 <= w->panels; panel += 2)
        for (size_t tile = 0; tile < w->tiles; tile += 2)
            pass_2_by_2(w, c, tile, panel, false);
    if (panel + 1 == w->panels && w->tiles == STRIP_TILES)
        pass_4_by_1(w, c, panel, false);
    else if (panel + 1 == w->panels)
        pass_2_by_1(w, c, panel, false);
    settle();
}

// ---- strips

// Columns 4 * quarter to 4 * quarter + 3 of a 16 by 16 matrix.
static inline void transpose_quarter(float (*matrix)[TILE], unsigned quarter, __m512 out[4])
{
    __m512 part[4]; // rows i, i + 4, i + 8, i + 12
    for (unsigned i = 0; i < 4; i++) {
        const float *at = &matrix[i][4 * quarter];
        __m512 rows = _mm512_castps128_ps512(_mm_load_ps(at));
        rows = _mm512_mask_broadcast_f32x4(rows, 0x00f0, _mm_load_ps(at + 4 * TILE));
        rows = _mm512_mask_broadcast_f32x4(rows, 0x0f00, _mm_load_ps(at + 8 * TILE));
        part[i] = _mm512_mask_broadcast_f32x4(rows, 0xf000, _mm_load_ps(at + 12 * TILE));
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(part[0], part[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(part[0], part[1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(part[2], part[3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(part[2], part[3]));
    out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}

static void store_sums(work *w, size_t vectors, float *const *y, size_t first)
{
    const __mmask16 rows = q3_split_mask(w->height);
    for (size_t v = 0; v < vectors; v += 4)
        for (size_t tile = 0; tile < w->tiles; tile++) {
            __m512 sums[4];
            transpose_quarter(w->sums[v / TILE][tile], v % TILE / 4, sums);
            for (size_t i = 0; i < 4 && v + i < vectors; i++)
                _mm512_mask_storeu_ps(y[v + i] + first + w->row[tile], rows, sums[i]);
        }
}

static void use_unpacked(const work *w, chunk *c)
{
    for (size_t i = 0; i < w->tiles; i++)
        c->tile[i] = w->unpacked[i][0];
    c->stride = LINE;
    c->advance = TILE_BYTES;
}

static void multiply_bf12_strip(work *w)
{
    chunk c = {0};
    const size_t steps = w->columns / STEP;
    begin_unpacking(w);
    use_unpacked(w, &c);
    for (; c.step < steps; c.step += c.count) {
        c.count = steps - c.step < CHUNK ? steps - c.step : CHUNK;
        multiply_chunk(w, &c, true);
    }
}

static void multiply_plain_strip(work *w, const uint16_t *plain)
{
    chunk c = {.stride = 2 * w->columns, .advance = LINE, .count = w->columns / STEP};
    for (size_t i = 0; i < w->tiles; i++)
        c.tile[i] = (const uint8_t *)(plain + w->row[i] * w->columns);
    if (c.count)
        multiply_chunk(w, &c, false);
    const size_t rest = w->columns % STEP;
    if (rest == 0)
        return;
    for (size_t i = 0; i < w->tiles; i++)
        for (size_t r = 0; r < w->height; r++) {
            uint8_t *line = w->unpacked[i][0] + r * LINE;
            memset(line, 0, LINE);
            memcpy(line, c.tile[i] + c.count * LINE + r * c.stride, 2 * rest);
        }
    settle();
    use_unpacked(w, &c);
    c.step = c.count;
    c.count = 1;
    multiply_chunk(w, &c, false);
}

// Of plain weights, or of bf12 without them.
static void multiply_either(const uint16_t *plain, const q3_bf12 *bf12, size_t rows, size_t columns,
                            const void *const *panels, size_t vectors, float *const *y,
                            size_t first, q3_next next)
{
    // An even number of tiles of one height. The last ones lie over their neighbours where the
    // rows do not divide: the same sums twice, for which no other configuration is needed.
    const size_t tiles = 2 * ((rows + 2 * TILE - 1) / (2 * TILE));
    const size_t turns_in_all =
        2 * tiles * ((vectors + TILE - 1) / TILE) * ((columns + STEP - 1) / STEP);
    const size_t lines = next.bytes / LINE;
    work w;
    w.height = (rows + tiles - 1) / tiles;
    w.columns = columns;
    w.bf12 = bf12;
    if (bf12) {
        uint8_t high_bytes[16];
        q3_bf12_high_bytes(bf12->lowest, high_bytes);
        w.table = bf12_load_table(high_bytes);
        w.row_bytes = q3_bf12_groups_bytes(columns);
    }
    w.fetch = next.data;
    w.fetch_end = w.fetch + lines * LINE;
    w.lines_a_turn = (lines + turns_in_all - 1) / turns_in_all;
    configure_tiles(w.height);
    for (size_t tile = 0; tile < tiles; tile += STRIP_TILES) {
        w.tiles = tiles - tile < STRIP_TILES ? tiles - tile : STRIP_TILES;
        for (size_t i = 0; i < w.tiles; i++) {
            const size_t row = (tile + i) * w.height;
            w.row[i] = row < rows - w.height ? row : rows - w.height;
        }
        for (size_t v = 0; v < vectors; v += GROUP) {
            const size_t left = vectors - v;
            const size_t some = left < GROUP ? left : GROUP;
            w.panels = (some + TILE - 1) / TILE;
            for (size_t i = 0; i < w.panels; i++)
                w.panel[i] = panels[v / TILE + i];
            if (bf12)
                multiply_bf12_strip(&w);
            else
                multiply_plain_strip(&w, plain);
            store_sums(&w, some, y + v, first);
        }
    }
    _tile_release();
}

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first,
                     q3_next next)
{
    multiply_either(weights, NULL, rows, columns, panels, vectors, y, first, next);
}

static void multiply_bf12(const q3_bf12 *block, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next)
{
    multiply_either(NULL, block, rows, columns, panels, vectors, y, first, next);
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
                transpose_quarter(part ? low : high, quarter, lines);
                for (unsigned i = 0; i < 4; i++, to += TILE)
                    _mm512_store_ps(to, lines[i]);
            }
    }
}

const q3_products q3_products_amx = {
    .name = "amx",
    .panel = TILE,
    .group = GROUP,
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
    .multiply_bf12 = multiply_bf12,
    .bf12_vectors = UINT_MAX,
};
