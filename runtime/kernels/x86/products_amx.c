// SPDX-License-Identifier: Apache-2.0
//
// Products by AMX tiles, for many vectors. The weights are the first operand and are loaded as they
// lie: a tile is 16 rows of 32 columns. The vectors are the second operand: a panel is 16 of them,
// split in high and low parts (bf16_split.h), as the tiles that the processor wants them in.
//
// Each sum runs along the columns in steps of 32, in each step first with the high and then with
// the low parts, and is the same wherever in a tile it stands. Sums leave the tiles for memory and
// come back as float32, so it does not matter either how the steps are cut.
#include "bf16_split.h"
#include "kernels/kernels.h"

#include <string.h>

enum {
    TILE = 16,         // rows, vectors, pairs of columns
    TILE_BYTES = 1024, // 16 rows of 64 bytes
    STEP = 32,         // columns
    // Of a panel: a tile of the high parts, a tile of the low ones. Line p of a tile holds the
    // columns 2p and 2p + 1 of each vector.
    STEP_BYTES = 2 * TILE_BYTES,
};

// One piece of work: up to so many tiles of rows times up to so many panels. Their sums wait in
// memory while the work goes along the columns in chunks, so that a chunk of two panels (32 KiB)
// stays in the first cache for all the rows, and so that weights that come from memory can be
// fetched a chunk ahead while all the panels are multiplied.
enum {
    WORK_TILES = 12,
    WORK_PANELS = 8,
    CHUNK = 8, // steps
};

typedef struct work {
    size_t tiles, panels;
    size_t height;          // rows of a tile
    size_t row[WORK_TILES]; // the first of each tile
    const uint8_t *panel[WORK_PANELS];
    _Alignas(64) float sums[WORK_PANELS][WORK_TILES][TILE][TILE]; // rows of 16 vectors
    _Alignas(64) uint16_t tail[WORK_TILES][TILE][STEP];           // columns beyond whole steps
} work;

// Some steps of the columns.
typedef struct chunk {
    const uint8_t *tile[WORK_TILES]; // each tile's first row
    size_t stride;                   // bytes from row to row
    size_t step, count;
    bool ahead; // fetch the steps that follow, as many
} chunk;

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 panels; all rows of sums and weights have one
// height.
static void configure(size_t height)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } config = {.palette = 1};
    for (unsigned i = 0; i < 8; i++) {
        config.line_bytes[i] = 64;
        config.lines[i] = (uint8_t)(i < 6 ? height : TILE);
    }
    // gcc's _tile_loadconfig does not say that it reads memory.
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// gcc's _tile_loadd does not say so either: to be called between stores to memory and tile loads.
static inline void settle(void)
{
    __asm__ volatile("" ::: "memory");
}

static inline void fetch_ahead(const chunk *c, size_t tile, size_t height, size_t step)
{
    for (size_t i = 0; i < height; i++)
        _mm_prefetch((const char *)c->tile[tile] + i * c->stride + (c->count + step) * 64,
                     _MM_HINT_T1);
}

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
    const size_t stride = c->stride, count = c->count;
    size_t fetched = c->ahead ? panel / 2 : count;
    for (size_t k = 0; k < count; k++) {
        if (k == fetched) {
            fetched += (w->panels + 1) / 2;
            fetch_ahead(c, tile, w->height, k);
            fetch_ahead(c, tile + 1, w->height, k);
        }
        _tile_loadd(6, b0, 64);
        _tile_loadd(4, a0, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b0 + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b1 + TILE_BYTES, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        a0 += 64;
        a1 += 64;
        b0 += STEP_BYTES;
        b1 += STEP_BYTES;
    }
    _tile_stored(0, s0[0], 64);
    _tile_stored(1, s1[0], 64);
    _tile_stored(2, s0[1], 64);
    _tile_stored(3, s1[1], 64);
}

// Four tiles of rows times one panel: as many sums under way as above.
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
    const size_t stride = c->stride, count = c->count;
    size_t fetched = c->ahead ? panel / 2 : count;
    for (size_t k = 0; k < count; k++) {
        if (k == fetched) {
            fetched += (w->panels + 1) / 2;
            for (size_t i = 0; i < 4; i++)
                fetch_ahead(c, tile + i, w->height, k);
        }
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a0, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
        _tile_loadd(4, a2, stride);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, a3, stride);
        _tile_dpbf16ps(3, 5, 6);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        a0 += 64;
        a1 += 64;
        a2 += 64;
        a3 += 64;
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
    const size_t stride = c->stride, count = c->count;
    size_t fetched = c->ahead ? panel / 2 : count;
    for (size_t k = 0; k < count; k++) {
        if (k == fetched) {
            fetched += (w->panels + 1) / 2;
            fetch_ahead(c, tile, w->height, k);
            fetch_ahead(c, tile + 1, w->height, k);
        }
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a0, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a1, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(0, 4, 7);
        _tile_dpbf16ps(1, 5, 7);
        a0 += 64;
        a1 += 64;
        b += STEP_BYTES;
    }
    _tile_stored(0, s[0], 64);
    _tile_stored(1, s[1], 64);
}

static void multiply_chunk(work *w, const chunk *c)
{
    size_t panel = 0;
    for (; panel + 2 <= w->panels; panel += 2)
        for (size_t tile = 0; tile < w->tiles; tile += 2)
            multiply_2_by_2(w, c, tile, panel);
    if (panel == w->panels)
        return;
    size_t tile = 0;
    for (; tile + 4 <= w->tiles; tile += 4)
        multiply_4_by_1(w, c, tile, panel);
    if (tile < w->tiles)
        multiply_2_by_1(w, c, tile, panel);
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

static void do_work(work *w, const uint16_t *weights, size_t columns)
{
    chunk c = {.stride = 2 * columns};
    for (size_t i = 0; i < w->tiles; i++)
        c.tile[i] = (const uint8_t *)(weights + w->row[i] * columns);
    const size_t steps = columns / STEP;
    while (c.step < steps) {
        c.count = steps - c.step < CHUNK ? steps - c.step : CHUNK;
        c.ahead = c.step + 2 * c.count <= steps;
        multiply_chunk(w, &c);
        c.step += c.count;
        for (size_t i = 0; i < w->tiles; i++)
            c.tile[i] += 64 * c.count;
    }
    const size_t rest = columns % STEP;
    if (rest == 0)
        return;
    memset(w->tail, 0, sizeof w->tail);
    for (size_t i = 0; i < w->tiles; i++) {
        for (size_t r = 0; r < w->height; r++)
            memcpy(w->tail[i][r], c.tile[i] + r * c.stride, 2 * rest);
        c.tile[i] = (const uint8_t *)w->tail[i];
    }
    settle();
    c.stride = 2 * STEP;
    c.count = 1;
    c.ahead = false;
    multiply_chunk(w, &c);
}

static void multiply(const uint16_t *weights, size_t rows, size_t columns,
                     const void *const *panels, size_t vectors, float *const *y, size_t first)
{
    // An even number of tiles of one height. The last ones lie over their neighbours where the
    // rows do not divide: the same sums twice, for which no other configuration is needed.
    const size_t tiles = 2 * ((rows + 2 * TILE - 1) / (2 * TILE));
    const size_t height = (rows + tiles - 1) / tiles;
    work w;
    w.height = height;
    configure(height);
    for (size_t tile = 0; tile < tiles; tile += WORK_TILES) {
        w.tiles = tiles - tile < WORK_TILES ? tiles - tile : WORK_TILES;
        for (size_t i = 0; i < w.tiles; i++) {
            const size_t row = (tile + i) * height;
            w.row[i] = row < rows - height ? row : rows - height;
        }
        for (size_t v = 0; v < vectors; v += WORK_PANELS * TILE) {
            const size_t left = vectors - v;
            const size_t some = left < WORK_PANELS * TILE ? left : WORK_PANELS * TILE;
            w.panels = (some + TILE - 1) / TILE;
            for (size_t i = 0; i < w.panels; i++)
                w.panel[i] = panels[v / TILE + i];
            do_work(&w, weights, columns);
            store_sums(&w, some, y + v, first);
        }
    }
    _tile_release();
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
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
};
