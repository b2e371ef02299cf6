// SPDX-License-Identifier: Apache-2.0
//
// Products by AMX tiles, for many vectors. The weights are the first operand: a tile is 16 rows of
// 32 columns. Plain ones are loaded as they lie, bf12 is unpacked a few columns ahead of the tiles.
// The vectors are the second operand: a panel is 16 of them, split in high and low parts
// (bf16_split.h), as the tiles that the processor wants them in.
//
// Each sum runs along the columns in steps of 32, in each step first with the high and then with
// the low parts, and is the same wherever in a tile it stands. Sums leave the tiles for memory and
// come back as float32, so it does not matter either how the steps are cut.
//
// A tile product takes 16 cycles of a unit of its own. What else there is to do, fetching and
// unpacking, is done in small turns between them.
#include "bf12_avx512.h"
#include "bf16_split.h"
#include "kernels/kernels.h"
#include "tiles.h"

#include <limits.h>
#include <string.h>

enum {
    LINE = 64,
    STEP = 32, // columns
    // Of a panel: a tile of the high parts, a tile of the low ones. Line p of a tile holds the
    // columns 2p and 2p + 1 of each vector.
    STEP_BYTES = 2 * TILE_BYTES,
};

// One piece of work: up to so many tiles of rows times up to so many panels. Their sums wait in
// memory while the work goes along the columns in chunks, so that a chunk of two panels (32 KiB)
// stays in the first cache for all the rows.
enum {
    WORK_TILES = 12,
    WORK_PANELS = 8,
    GROUP = WORK_PANELS * TILE,
    CHUNK = 8, // steps
};

// Unpacking the columns of a chunk, row by row.
typedef struct unpacking {
    size_t tile, row;   // the next, `row` in the tile
    size_t step, count; // of the chunk; 0 steps: there is nothing to do
    uint8_t (*to)[CHUNK][TILE_BYTES];
    size_t rows_a_turn;
} unpacking;

typedef struct work {
    size_t tiles, panels;
    size_t height;          // rows of a tile
    size_t row[WORK_TILES]; // the first of each tile
    const uint8_t *panel[WORK_PANELS];
    const uint8_t *fetch; // what comes next: so many lines, so many of them in a turn
    size_t lines_left, lines_a_turn;
    const q3_bf12 *bf12; // or NULL
    bf12_table table;
    size_t row_bytes, columns;
    unpacking unpacking;
    const q3_bf12_exception *exception[WORK_TILES][TILE];         // the next of each row
    _Alignas(64) float sums[WORK_PANELS][WORK_TILES][TILE][TILE]; // rows of 16 vectors
    // Tiles that are not loaded from the block: bf12's, of this chunk and the next, and of plain
    // weights those of columns beyond whole steps.
    _Alignas(64) uint8_t unpacked[2][WORK_TILES][CHUNK][TILE_BYTES];
} work;

// Some steps of the columns.
typedef struct chunk {
    const uint8_t *tile[WORK_TILES]; // each tile's first row
    size_t stride, advance;          // bytes from row to row and from step to step
    size_t step, count;
} chunk;

// ---- what is done in turns

static inline void fetch_lines(work *w)
{
    const size_t lines = w->lines_left < w->lines_a_turn ? w->lines_left : w->lines_a_turn;
    for (size_t i = 0; i < lines; i++)
        _mm_prefetch((const char *)w->fetch + i * LINE, _MM_HINT_T1);
    if (lines)
        w->fetch += lines * LINE;
    w->lines_left -= lines;
}

// A row's columns of the chunk that is being unpacked.
static inline void unpack_row(work *w)
{
    unpacking *u = &w->unpacking;
    uint8_t(*to)[TILE_BYTES] = u->to[u->tile];
    const size_t row = w->row[u->tile] + u->row, line = u->row * LINE, count = u->count;
    const bf12_table table = w->table;
    const uint8_t *group =
        w->bf12->groups + row * w->row_bytes + u->step * STEP / Q3_BF12_GROUP * Q3_BF12_GROUP_BYTES;
    for (size_t i = 0; i < count; i += 2, group += Q3_BF12_GROUP_BYTES) {
        __m512i weights[2];
        bf12_weights(group, table, weights);
        _mm512_store_si512(to[i] + line, weights[0]);
        _mm512_store_si512(to[i + 1] + line, weights[1]);
    }
    const size_t first = row * w->columns + u->step * STEP;
    const q3_bf12_exception *e = w->exception[u->tile][u->row];
    for (; e->weight < first + u->count * STEP; e++) {
        const size_t at = e->weight - first;
        memcpy(to[at / STEP] + line + at % STEP * sizeof e->value, &e->value, sizeof e->value);
    }
    w->exception[u->tile][u->row] = e;
    if (++u->row == w->height) {
        u->row = 0;
        u->count = ++u->tile == w->tiles ? 0 : u->count;
    }
}

static inline void take_turn(work *w)
{
    fetch_lines(w);
    for (size_t i = 0; i < w->unpacking.rows_a_turn && w->unpacking.count; i++)
        unpack_row(w);
}

// ---- products
//
// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 panels. All rows of sums and weights have one
// height.

// Two tiles of rows times two panels.
static inline void multiply_2_by_2(work *w, const chunk *c, size_t tile, size_t panel)
{
    const uint8_t *a0 = c->tile[tile], *a1 = c->tile[tile + 1];
    const uint8_t *b0 = w->panel[panel] + c->step * STEP_BYTES;
    const uint8_t *b1 = w->panel[panel + 1] + c->step * STEP_BYTES;
    float(*s0)[TILE][TILE] = &w->sums[panel][tile], (*s1)[TILE][TILE] = &w->sums[panel + 1][tile];
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
    for (size_t k = 0; k < c->count; k++) {
        _tile_loadd(6, b0, 64);
        _tile_loadd(4, a0, c->stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, c->stride);
        _tile_dpbf16ps(2, 5, 6);
        take_turn(w);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        take_turn(w);
        _tile_loadd(6, b0 + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        take_turn(w);
        _tile_loadd(7, b1 + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        take_turn(w);
        a0 += c->advance;
        a1 += c->advance;
        b0 += STEP_BYTES;
        b1 += STEP_BYTES;
    }
    _tile_stored(0, s0[0], 64);
    _tile_stored(1, s1[0], 64);
    _tile_stored(2, s0[1], 64);
    _tile_stored(3, s1[1], 64);
}

// One tile of rows times three panels: nearly as many sums under way as above.
static inline void multiply_1_by_3(work *w, const chunk *c, size_t tile, size_t panel)
{
    const uint8_t *a = c->tile[tile];
    const uint8_t *b0 = w->panel[panel] + c->step * STEP_BYTES;
    const uint8_t *b1 = w->panel[panel + 1] + c->step * STEP_BYTES;
    const uint8_t *b2 = w->panel[panel + 2] + c->step * STEP_BYTES;
    float(*s0)[TILE] = w->sums[panel][tile], (*s1)[TILE] = w->sums[panel + 1][tile];
    float(*s2)[TILE] = w->sums[panel + 2][tile];
    if (c->step == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
    } else {
        _tile_loadd(0, s0, 64);
        _tile_loadd(1, s1, 64);
        _tile_loadd(2, s2, 64);
    }
    for (size_t k = 0; k < c->count; k++) {
        _tile_loadd(6, b0, 64);
        _tile_loadd(4, a, c->stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        take_turn(w);
        _tile_loadd(6, b2, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(7, b0 + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 7);
        take_turn(w);
        _tile_loadd(6, b1 + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, b2 + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 4, 7);
        take_turn(w);
        a += c->advance;
        b0 += STEP_BYTES;
        b1 += STEP_BYTES;
        b2 += STEP_BYTES;
    }
    _tile_stored(0, s0, 64);
    _tile_stored(1, s1, 64);
    _tile_stored(2, s2, 64);
}

// Four tiles of rows times one panel.
static inline void multiply_4_by_1(work *w, const chunk *c, size_t tile, size_t panel)
{
    const uint8_t *a0 = c->tile[tile], *a1 = c->tile[tile + 1];
    const uint8_t *a2 = c->tile[tile + 2], *a3 = c->tile[tile + 3];
    const uint8_t *b = w->panel[panel] + c->step * STEP_BYTES;
    float(*s)[TILE][TILE] = &w->sums[panel][tile];
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
    for (size_t k = 0; k < c->count; k++) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a0, c->stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_BYTES, 64);
        _tile_loadd(5, a1, c->stride);
        _tile_dpbf16ps(1, 5, 6);
        take_turn(w);
        _tile_dpbf16ps(0, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
        take_turn(w);
        _tile_loadd(4, a2, c->stride);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, a3, c->stride);
        _tile_dpbf16ps(3, 5, 6);
        take_turn(w);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        take_turn(w);
        a0 += c->advance;
        a1 += c->advance;
        a2 += c->advance;
        a3 += c->advance;
        b += STEP_BYTES;
    }
    _tile_stored(0, s[0], 64);
    _tile_stored(1, s[1], 64);
    _tile_stored(2, s[2], 64);
    _tile_stored(3, s[3], 64);
}

static inline void multiply_2_by_1(work *w, const chunk *c, size_t tile, size_t panel)
{
    const uint8_t *a0 = c->tile[tile], *a1 = c->tile[tile + 1];
    const uint8_t *b = w->panel[panel] + c->step * STEP_BYTES;
    float(*s)[TILE][TILE] = &w->sums[panel][tile];
    if (c->step == 0) {
        _tile_zero(0);
        _tile_zero(1);
    } else {
        _tile_loadd(0, s[0], 64);
        _tile_loadd(1, s[1], 64);
    }
    for (size_t k = 0; k < c->count; k++) {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a0, c->stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, c->stride);
        _tile_dpbf16ps(1, 5, 6);
        take_turn(w);
        _tile_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
        take_turn(w);
        a0 += c->advance;
        a1 += c->advance;
        b += STEP_BYTES;
    }
    _tile_stored(0, s[0], 64);
    _tile_stored(1, s[1], 64);
}

static void multiply_chunk(work *w, const chunk *c)
{
    size_t panel = 0, tile = 0;
    if (w->panels == 1) {
        for (; tile + 4 <= w->tiles; tile += 4)
            multiply_4_by_1(w, c, tile, 0);
        if (tile < w->tiles)
            multiply_2_by_1(w, c, tile, 0);
        return;
    }
    if (w->panels % 2) {
        for (; tile < w->tiles; tile++)
            multiply_1_by_3(w, c, tile, 0);
        panel = 3;
    }
    for (; panel < w->panels; panel += 2)
        for (tile = 0; tile < w->tiles; tile += 2)
            multiply_2_by_2(w, c, tile, panel);
}

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

// Begins to unpack the chunk from a step on.
static void begin_unpacking(work *w, size_t step, size_t steps)
{
    const size_t count = steps - step < CHUNK ? steps - step : CHUNK;
    const size_t turns = w->panels * (count ? count : 1); // of a tile
    w->unpacking = (unpacking){
        .step = step,
        .count = count,
        .to = w->unpacked[step / CHUNK % 2],
        .rows_a_turn = (w->height + turns - 1) / turns,
    };
}

static void end_unpacking(work *w)
{
    while (w->unpacking.count)
        unpack_row(w);
    settle();
}

// Where each row's exceptions begin.
static void find_exceptions(work *w)
{
    const q3_bf12_exception *e = w->bf12->exceptions;
    for (size_t tile = 0; tile < w->tiles; tile++)
        for (size_t r = 0; r < w->height; r++) {
            const size_t first = (w->row[tile] + r) * w->columns;
            // The last tiles can begin before the end of their neighbours.
            for (; e > w->bf12->exceptions && e[-1].weight >= first; e--)
                ;
            for (; e->weight < first; e++)
                ;
            w->exception[tile][r] = e;
        }
}

static void use_unpacked(work *w, chunk *c, unsigned which)
{
    for (size_t i = 0; i < w->tiles; i++)
        c->tile[i] = w->unpacked[which][i][0];
    c->stride = LINE;
    c->advance = TILE_BYTES;
}

static void do_work(work *w, const uint16_t *plain)
{
    chunk c = {.stride = 2 * w->columns, .advance = LINE};
    const size_t steps = w->columns / STEP;
    if (w->bf12) {
        find_exceptions(w);
        begin_unpacking(w, 0, steps);
        end_unpacking(w);
    } else {
        for (size_t i = 0; i < w->tiles; i++)
            c.tile[i] = (const uint8_t *)(plain + w->row[i] * w->columns);
    }
    for (; c.step < steps; c.step += c.count) {
        c.count = steps - c.step < CHUNK ? steps - c.step : CHUNK;
        if (w->bf12) {
            use_unpacked(w, &c, c.step / CHUNK % 2);
            begin_unpacking(w, c.step + c.count, steps);
        }
        multiply_chunk(w, &c);
        end_unpacking(w);
        for (size_t i = 0; i < w->tiles; i++)
            c.tile[i] += c.advance * c.count;
    }
    const size_t rest = w->columns % STEP;
    if (rest == 0)
        return;
    for (size_t i = 0; i < w->tiles; i++)
        for (size_t r = 0; r < w->height; r++) {
            uint8_t *line = w->unpacked[0][i][0] + r * LINE;
            memset(line, 0, LINE);
            memcpy(line, c.tile[i] + r * c.stride, 2 * rest);
        }
    settle();
    use_unpacked(w, &c, 0);
    c.count = 1;
    multiply_chunk(w, &c);
}

// Of plain weights, or of bf12 without them.
static void multiply_either(const uint16_t *plain, const q3_bf12 *bf12, size_t rows, size_t columns,
                            const void *const *panels, size_t vectors, float *const *y,
                            size_t first, q3_next next)
{
    // An even number of tiles of one height. The last ones lie over their neighbours where the
    // rows do not divide: the same sums twice, for which no other configuration is needed.
    const size_t tiles = 2 * ((rows + 2 * TILE - 1) / (2 * TILE));
    const size_t turns = tiles * ((vectors + TILE - 1) / TILE) * ((columns + STEP - 1) / STEP);
    work w;
    w.height = (rows + tiles - 1) / tiles;
    w.columns = columns;
    w.bf12 = bf12;
    w.unpacking.count = w.unpacking.rows_a_turn = 0;
    if (bf12) {
        uint8_t high_bytes[16];
        q3_bf12_high_bytes(bf12->lowest, high_bytes);
        w.table = bf12_load_table(high_bytes);
        w.row_bytes = q3_bf12_groups_bytes(columns);
    }
    w.fetch = next.data;
    w.lines_left = next.bytes / LINE;
    w.lines_a_turn = (w.lines_left + turns - 1) / turns;
    configure_tiles(w.height);
    for (size_t tile = 0; tile < tiles; tile += WORK_TILES) {
        w.tiles = tiles - tile < WORK_TILES ? tiles - tile : WORK_TILES;
        for (size_t i = 0; i < w.tiles; i++) {
            const size_t row = (tile + i) * w.height;
            w.row[i] = row < rows - w.height ? row : rows - w.height;
        }
        for (size_t v = 0; v < vectors; v += WORK_PANELS * TILE) {
            const size_t left = vectors - v;
            const size_t some = left < WORK_PANELS * TILE ? left : WORK_PANELS * TILE;
            w.panels = (some + TILE - 1) / TILE;
            for (size_t i = 0; i < w.panels; i++)
                w.panel[i] = panels[v / TILE + i];
            do_work(&w, plain);
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
