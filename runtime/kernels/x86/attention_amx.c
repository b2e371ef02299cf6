// SPDX-License-Identifier: Apache-2.0
//
// Attention by AMX tiles, for many tokens. Rows of the tiles are the queries, a head of a token
// each; keys and values are rearranged, a chunk of positions at a time, once for all the rows of a
// call. Every row goes through the chunks from position 0 on and keeps the largest score so far,
// the sum of the weights relative to it, and the sum of weight * value; the latter two are scaled
// when a larger score comes. A row's sums run in one order that only its positions decide: what
// else is in the call, and positions that it does not see, add exact zeros or are left out.
//
// Scores are exponents, so that what they err by stays: queries and keys are split in three parts
// of bf16, high, middle and low, that are exactly the float32 together, and the six products that
// reach 2^-24 of the whole are taken. A score is as good as a sum of float32. Weights and values
// are split in a high and a low part (bf16_split.h), with all four products: weight * value errs by
// no more than 2^-16 of itself, usually by ten times less. Keys and values in bf16 are one part.
#include "bf16_split.h"
#include "kernels/kernels.h"
#include "tiles.h"
#include "vector_avx512.h"

#include <math.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    TOKENS = 64,
    NUMBERS = TILE * TILE,
    STEP = 32, // dimensions of queries and keys, positions of weights and values
    // What is multiplied lies in steps, a tile for each part, from high to low.
    SCORE_STEP = 3 * TILE_BYTES,
    VALUE_STEP = 2 * TILE_BYTES,
    PAIR = 2 * TILE, // rows that are computed together
    CHUNK = 128,     // positions
    PANELS = CHUNK / TILE,
    VALUE_STEPS = CHUNK / STEP,
};

// A pair of row tiles whose scores are to become weights, in turns: each tile's largest scores are
// an item, then each of its rows.
typedef struct weighing {
    float *scores;
    size_t tile, from, steps;
    unsigned item, items;
} weighing;

// The parts of the scratch memory. Tiles of queries and weights hold 32 numbers of each row; line i
// of those of keys and values holds numbers 2i and 2i + 1, dimensions or positions, of each
// position or dimension.
typedef struct work {
    const q3_attention *attention;
    size_t rows, tiles; // tiles: even
    size_t steps;       // of the dimensions: what the last one lacks is zeros
    uint8_t *query;     // [row tile][step][part][row][32], scaled
    float *out;         // [row tile][dimension / 16][row][16]
    float *sums;        // [row][16]: the weights of every 16th position
    float *largest;     // [row]
    uint8_t *keys;      // [panel][step][part][pair of dimensions][16 positions]
    uint8_t *values;    // [dimension / 16][step][part][pair of positions][16 dimensions]
    // Of two pairs of row tiles, one whose scores are computed while those of the other become
    // weights: scores, [row tile][panel][row][16]. Two panels become a step of weights,
    // [row tile][step][part][row][32].
    float *scores[2];
    unsigned half; // of a pair that is to be weighed
    weighing next;
} work;

static size_t count_tiles(size_t rows)
{
    return 2 * ((rows + PAIR - 1) / PAIR);
}

static size_t count_steps(size_t dimensions)
{
    return (dimensions + STEP - 1) / STEP;
}

static size_t scratch_bytes(size_t heads, size_t head_dim)
{
    const size_t tiles = count_tiles(TOKENS * heads), steps = count_steps(head_dim);
    return tiles * (2 * steps * TILE_BYTES + TILE_BYTES + TILE * sizeof(float)) +
           4 * PANELS * TILE_BYTES + (tiles + PANELS) * steps * SCORE_STEP +
           2 * steps * VALUE_STEPS * VALUE_STEP;
}

static work lay_out(const q3_attention *a)
{
    work w = {.attention = a, .rows = a->tokens * a->heads, .steps = count_steps(a->head_dim)};
    w.tiles = count_tiles(w.rows);
    w.out = a->scores;
    w.sums = w.out + w.tiles * 2 * w.steps * NUMBERS;
    w.largest = w.sums + w.tiles * NUMBERS;
    w.scores[0] = w.largest + w.tiles * TILE;
    w.scores[1] = w.scores[0] + 2 * PANELS * NUMBERS;
    w.query = (uint8_t *)(w.scores[1] + 2 * PANELS * NUMBERS);
    w.keys = w.query + w.tiles * w.steps * SCORE_STEP;
    w.values = w.keys + PANELS * w.steps * SCORE_STEP;
    return w;
}

// Positions that a row sees; rows that fill up the last tiles see what the last one does.
static size_t positions_of(const work *w, size_t row)
{
    return w->attention->positions + (row < w->rows ? row : w->rows - 1) / w->attention->heads;
}

// ---- arranging ----

// 32 numbers in three parts.
typedef struct parts {
    __m512i part[3];
} parts;

static inline parts split_in_three(floats a, floats b)
{
    parts p;
    for (unsigned i = 0; i < 3; i++) {
        const __m512i part = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        a = a - widened(_mm512_castsi512_si256(part));
        b = b - widened(_mm512_extracti64x4_epi64(part, 1));
        p.part[i] = part;
    }
    return p;
}

// Scores are made in powers of 2 instead of e.
static void arrange_query(const work *w)
{
    const q3_attention *a = w->attention;
    const floats scale = set_all(a->scale * 1.44269504f);
    for (size_t row = 0; row < w->tiles * TILE; row++) {
        const float *query =
            a->query + row / a->heads * a->query_stride + row % a->heads * a->head_dim;
        uint8_t *to = w->query + row / TILE * w->steps * SCORE_STEP + row % TILE * 64;
        for (size_t at = 0; at < a->head_dim; at += STEP, to += SCORE_STEP) {
            const size_t left = row < w->rows ? a->head_dim - at : 0;
            const size_t beyond = left > TILE ? left - TILE : 0;
            const floats first = _mm512_maskz_loadu_ps(q3_split_mask(left), query + at);
            const floats second = _mm512_maskz_loadu_ps(q3_split_mask(beyond), query + at + TILE);
            const parts split = split_in_three(first * scale, second * scale);
            for (unsigned i = 0; i < 3; i++)
                _mm512_store_si512(to + i * TILE_BYTES, split.part[i]);
        }
    }
}

// Puts two vectors of keys, or of values, into a line of each of their parts' tiles.
static inline void put_keys(uint8_t *line, floats a, floats b)
{
    const parts split = split_in_three(a, b);
    for (unsigned i = 0; i < 3; i++)
        _mm512_store_si512(line + i * TILE_BYTES, q3_split_interleave(split.part[i]));
}

static inline void put_values(uint8_t *line, floats a, floats b)
{
    const q3_split split = q3_split_two(a, b);
    _mm512_store_si512(line, q3_split_interleave(split.high));
    _mm512_store_si512(line + TILE_BYTES, q3_split_interleave(split.low));
}

static inline void put_narrow(uint8_t *line, __m256i a, __m256i b)
{
    _mm512_store_si512(line,
                       q3_split_interleave(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
}

// The keys of a chunk's positions. A panel without positions is zeros, as is a dimension too many.
ALWAYS_INLINE void arrange_keys(const work *w, size_t from, size_t count, bool is_narrow)
{
    const size_t dim = w->attention->head_dim;
    uint8_t *to = w->keys;
    for (size_t p = 0; p < count; p += 2 * TILE)
        for (size_t panel = p; panel < p + 2 * TILE; panel += TILE) {
            const size_t at = (from + panel) * dim;
            for (size_t d = 0; d < w->steps * STEP; d += 2) {
                uint8_t *line = to + d / STEP * SCORE_STEP + d % STEP / 2 * 64;
                const unsigned here = panel < count && d < dim ? 0xffff : 0;
                const unsigned both = panel < count && d + 1 < dim ? 0xffff : 0;
                const size_t first = at + d * TILE, second = first + TILE;
                if (is_narrow) {
                    const uint16_t *keys = w->attention->keys;
                    put_narrow(line, _mm256_maskz_loadu_epi16((__mmask16)here, keys + first),
                               _mm256_maskz_loadu_epi16((__mmask16)both, keys + second));
                } else {
                    const float *keys = w->attention->keys;
                    put_keys(line, _mm512_maskz_loadu_ps((__mmask16)here, keys + first),
                             _mm512_maskz_loadu_ps((__mmask16)both, keys + second));
                }
            }
            to += w->steps * SCORE_STEP;
        }
}

// The values of a chunk's positions, and zeros up to a whole step.
ALWAYS_INLINE void arrange_values(const work *w, size_t from, size_t count, bool is_narrow)
{
    const size_t dim = w->attention->head_dim;
    for (size_t p = 0; p < (count + STEP - 1) / STEP * STEP; p += 2)
        for (size_t d = 0; d < w->steps * STEP; d += TILE) {
            uint8_t *line =
                w->values + (d / TILE * VALUE_STEPS + p / STEP) * VALUE_STEP + p % STEP / 2 * 64;
            const __mmask16 lanes = q3_split_mask(d < dim ? dim - d : 0);
            const __mmask16 here = p < count ? lanes : 0, both = p + 1 < count ? lanes : 0;
            const size_t first = (from + p) * dim + d, second = first + dim;
            if (is_narrow) {
                const uint16_t *values = w->attention->values;
                put_narrow(line, _mm256_maskz_loadu_epi16(here, values + first),
                           _mm256_maskz_loadu_epi16(both, values + second));
            } else {
                const float *values = w->attention->values;
                put_values(line, _mm512_maskz_loadu_ps(here, values + first),
                           _mm512_maskz_loadu_ps(both, values + second));
            }
        }
}

// ---- weights ----

// 2^x for x <= 0: 2^x = 2^k 2^r with |r| <= 1/2, 2^r by its series to r^7. Below -126 it is 0. Not
// a number stays.
static inline floats power_of_two_below(floats x)
{
    const floats round = set_all(12582912.0f); // see kernels_c.c
    const __mmask16 is_zero = _mm512_cmp_ps_mask(x, set_all(-126.0f), _CMP_LT_OQ);
    const floats k = (x + round) - round, r = x - k;
    floats sum = set_all(1.52527338e-5f);
    sum = multiply_add(sum, r, set_all(1.54035304e-4f));
    sum = multiply_add(sum, r, set_all(1.33335581e-3f));
    sum = multiply_add(sum, r, set_all(9.61812911e-3f));
    sum = multiply_add(sum, r, set_all(5.55041087e-2f));
    sum = multiply_add(sum, r, set_all(2.40226507e-1f));
    sum = multiply_add(sum, r, set_all(6.93147181e-1f));
    sum = multiply_add(sum, r, set_all(1.0f));
    return _mm512_maskz_scalef_ps((__mmask16)~is_zero, sum, k);
}

// The largest lane of each of 16 vectors, in their order.
static inline floats largest_lanes(const floats v[TILE])
{
    floats fours[4]; // a lane of 128 bits: four vectors, each quarter of theirs
    for (unsigned i = 0; i < 4; i++) {
        const floats *x = v + 4 * i;
        const floats a = larger(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        const floats b = larger(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
        fours[i] = larger(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                          _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
    floats eights[2];
    for (unsigned i = 0; i < 2; i++) {
        const floats a = fours[2 * i], b = fours[2 * i + 1];
        eights[i] = larger(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return larger(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
                  _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

// Which of a vector's positions are among the first `count`, which may be none or negative.
static inline __mmask16 lanes_seen(ptrdiff_t count)
{
    return count <= 0 ? 0 : q3_split_mask((size_t)count);
}

// Some positions' scores of a row, minus infinity for those that it does not see.
ALWAYS_INLINE floats load_scores(const float *scores, ptrdiff_t seen, bool is_masked)
{
    const floats all = _mm512_load_ps(scores);
    return is_masked ? _mm512_mask_mov_ps(set_all(-INFINITY), lanes_seen(seen), all) : all;
}

// Scales what rows of a tile have summed up.
static void scale_rows(const work *w, size_t tile, const float *factor, unsigned rows)
{
    const size_t height = 2 * w->steps * NUMBERS;
    for (; rows; rows &= rows - 1) {
        const unsigned row = (unsigned)__builtin_ctz(rows);
        const floats by = set_all(factor[row]);
        float *out = w->out + tile * height + row * TILE;
        for (size_t d = 0; d < height; d += NUMBERS)
            _mm512_store_ps(out + d, _mm512_load_ps(out + d) * by);
        float *sums = w->sums + (tile * TILE + row) * TILE;
        _mm512_store_ps(sums, _mm512_load_ps(sums) * by);
    }
}

// A tile's largest scores so far; what its rows have summed up is scaled to them.
ALWAYS_INLINE void find_largest(const work *w, const weighing *now, size_t tile, bool is_masked)
{
    const float *scores = now->scores + tile % 2 * PANELS * NUMBERS;
    floats most[TILE];
    for (size_t row = 0; row < TILE; row++) {
        const float *at = scores + row * TILE;
        const ptrdiff_t seen = (ptrdiff_t)positions_of(w, tile * TILE + row) - (ptrdiff_t)now->from;
        floats largest = load_scores(at, seen, is_masked);
        for (size_t panel = 1; panel < 2 * now->steps; panel++)
            largest = larger(largest, load_scores(at + panel * NUMBERS,
                                                  seen - (ptrdiff_t)(panel * TILE), is_masked));
        most[row] = largest;
    }
    float *largest = w->largest + tile * TILE;
    floats most_of_rows = largest_lanes(most);
    if (now->from) {
        const floats before = _mm512_load_ps(largest);
        most_of_rows = larger(before, most_of_rows);
        _Alignas(64) float factor[TILE];
        _mm512_store_ps(factor, power_of_two_below(before - most_of_rows));
        const __mmask16 changed =
            _mm512_cmp_ps_mask(_mm512_load_ps(factor), set_all(1.0f), _CMP_NEQ_UQ);
        if (changed)
            scale_rows(w, tile, factor, changed);
    }
    _mm512_store_ps(largest, most_of_rows);
}

// Turns a row's scores into weights.
ALWAYS_INLINE void weigh_row(const work *w, const weighing *now, size_t tile, size_t row,
                             bool is_masked)
{
    float *at = now->scores + tile % 2 * PANELS * NUMBERS + row * TILE;
    float *sums = w->sums + (tile * TILE + row) * TILE;
    const floats largest = set_all(w->largest[tile * TILE + row]);
    ptrdiff_t left = (ptrdiff_t)positions_of(w, tile * TILE + row) - (ptrdiff_t)now->from;
    floats sum = now->from ? _mm512_load_ps(sums) : zero();
    for (size_t step = 0; step < now->steps; step++, at += 2 * NUMBERS, left -= STEP) {
        const floats a = power_of_two_below(load_scores(at, left, is_masked) - largest);
        const floats b =
            power_of_two_below(load_scores(at + NUMBERS, left - TILE, is_masked) - largest);
        sum = sum + (a + b);
        const q3_split split = q3_split_two(a, b);
        _mm512_store_ps(at, _mm512_castsi512_ps(split.high));
        _mm512_store_ps(at + NUMBERS, _mm512_castsi512_ps(split.low));
    }
    _mm512_store_ps(sums, sum);
}

ALWAYS_INLINE void weigh_part(const work *w, const weighing *now, size_t tile, unsigned part,
                              bool is_masked)
{
    if (part == 0)
        find_largest(w, now, tile, is_masked);
    else
        weigh_row(w, now, tile, part - 1, is_masked);
}

// Not inlined, so that the loops that it is called from stay short.
__attribute__((noinline)) static void weigh_item(work *w)
{
    const weighing *now = &w->next;
    const unsigned item = w->next.item++;
    const size_t tile = now->tile + item / (1 + TILE);
    if (positions_of(w, tile * TILE) >= now->from + CHUNK)
        weigh_part(w, now, tile, item % (1 + TILE), false);
    else
        weigh_part(w, now, tile, item % (1 + TILE), true);
}

ALWAYS_INLINE void take_turn(work *w)
{
    if (w->next.item < w->next.items)
        weigh_item(w);
}

// ---- tiles: 0 to 3 are sums, 4 and 5 the second operand, 6 and 7 rows ----

// Loads the same part of two tiles of rows, `apart` bytes from each other, or of two of the second
// operand, and adds the products of all that is loaded to the sums.
ALWAYS_INLINE void next_rows(const uint8_t *a, size_t apart)
{
    _tile_loadd(6, a, 64);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    _tile_loadd(7, a + apart, 64);
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
}

ALWAYS_INLINE void next_columns(const uint8_t *b, size_t apart)
{
    _tile_loadd(4, b, 64);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(2, 7, 4);
    _tile_loadd(5, b + apart, 64);
    _tile_dpbf16ps(1, 6, 5);
    _tile_dpbf16ps(3, 7, 5);
}

ALWAYS_INLINE void first_columns(const uint8_t *b, size_t apart)
{
    _tile_loadd(4, b, 64);
    _tile_loadd(5, b + apart, 64);
}

static inline void clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void load_sums(const float *from, size_t row, size_t column)
{
    _tile_loadd(0, from, 64);
    _tile_loadd(1, from + column, 64);
    _tile_loadd(2, from + row, 64);
    _tile_loadd(3, from + row + column, 64);
}

static inline void store_sums(float *to, size_t row, size_t column)
{
    _tile_stored(0, to, 64);
    _tile_stored(1, to + column, 64);
    _tile_stored(2, to + row, 64);
    _tile_stored(3, to + row + column, 64);
}

// The scores of a pair of row tiles for the first `steps` steps of the chunk's positions, while
// another's are weighed in turns.
ALWAYS_INLINE void score(work *w, size_t tile, size_t steps, bool is_narrow)
{
    enum { MIDDLE = TILE_BYTES, LOW = 2 * TILE_BYTES };
    const size_t apart = w->steps * SCORE_STEP;
    for (size_t panel = 0; panel < 2 * steps; panel += 2) {
        const uint8_t *a = w->query + tile * apart, *b = w->keys + panel * apart;
        clear_sums();
        for (size_t k = 0; k < w->steps; k++, a += SCORE_STEP, b += SCORE_STEP) {
            first_columns(b, apart);
            next_rows(a + LOW, apart);
            take_turn(w);
            if (is_narrow) {
                next_rows(a + MIDDLE, apart);
                take_turn(w);
                next_rows(a, apart);
                continue;
            }
            next_rows(a, apart);
            next_columns(b + LOW, apart);
            take_turn(w);
            next_columns(b + MIDDLE, apart);
            next_rows(a + MIDDLE, apart);
            take_turn(w);
            next_columns(b, apart);
        }
        store_sums(w->scores[w->half] + panel * NUMBERS, PANELS * NUMBERS, NUMBERS);
    }
}

// Adds weight * value of the first `steps` steps of the chunk's positions to a pair of row tiles.
ALWAYS_INLINE void add_values(const work *w, size_t tile, size_t steps, bool is_first,
                              bool is_narrow)
{
    enum { LOW = TILE_BYTES };
    const size_t height = 2 * w->steps * NUMBERS; // from a tile's sums to the next one's
    const size_t apart = VALUE_STEPS * VALUE_STEP;
    for (size_t d = 0; d < 2 * w->steps; d += 2) {
        const uint8_t *a = (const uint8_t *)w->next.scores, *b = w->values + d * apart;
        float *sums = w->out + tile * height + d * NUMBERS;
        if (is_first)
            clear_sums();
        else
            load_sums(sums, height, NUMBERS);
        for (size_t k = 0; k < steps; k++, a += VALUE_STEP, b += VALUE_STEP) {
            first_columns(b, apart);
            next_rows(a + LOW, apart);
            next_rows(a, apart);
            if (is_narrow)
                continue;
            next_columns(b + LOW, apart);
            next_rows(a + LOW, apart);
        }
        store_sums(sums, height, NUMBERS);
    }
}

// Sums below what the tiles would keep become zero, whatever came after them.
static void store_rows(const work *w)
{
    const q3_attention *a = w->attention;
    const floats smallest = set_all(0x1p-126f);
    for (size_t row = 0; row < w->rows; row++) {
        const floats by = set_all(1.0f / sum_lanes(_mm512_load_ps(w->sums + row * TILE)));
        const float *from = w->out + row / TILE * 2 * w->steps * NUMBERS + row % TILE * TILE;
        float *to = a->out + row / a->heads * a->out_stride + row % a->heads * a->head_dim;
        for (size_t d = 0; d < a->head_dim; d += TILE, from += NUMBERS) {
            const floats sum = _mm512_load_ps(from);
            const __mmask16 is_large =
                _mm512_cmp_ps_mask(_mm512_abs_ps(sum), smallest, _CMP_NLT_UQ);
            _mm512_mask_storeu_ps(to + d, q3_split_mask(a->head_dim - d),
                                  _mm512_maskz_mul_ps(is_large, sum, by));
        }
    }
}

// Steps of the chunk that a pair of row tiles sees.
static size_t steps_of(const work *w, size_t tile, size_t from)
{
    const size_t seen = positions_of(w, (tile + 2) * TILE - 1) - from;
    return ((seen < CHUNK ? seen : CHUNK) + STEP - 1) / STEP;
}

ALWAYS_INLINE void attend_to(const q3_attention *a, bool is_narrow)
{
    work w = lay_out(a);
    const size_t positions = a->positions + a->tokens - 1;
    configure_tiles(TILE);
    arrange_query(&w);
    for (size_t from = 0; from < positions; from += CHUNK) {
        const size_t count = positions - from < CHUNK ? positions - from : CHUNK;
        arrange_keys(&w, from, count, is_narrow);
        arrange_values(&w, from, count, is_narrow);
        // The first rows may see none of the chunk.
        size_t tile = 0;
        while (positions_of(&w, (tile + 2) * TILE - 1) <= from)
            tile += 2;
        settle();
        score(&w, tile, steps_of(&w, tile, from), is_narrow);
        for (; tile < w.tiles; tile += 2) {
            const size_t steps = steps_of(&w, tile, from);
            w.next = (weighing){.scores = w.scores[w.half],
                                .tile = tile,
                                .from = from,
                                .steps = steps,
                                .items = 2 * (1 + TILE)};
            w.half ^= 1;
            if (tile + 2 < w.tiles)
                score(&w, tile + 2, steps_of(&w, tile + 2, from), is_narrow);
            while (w.next.item < w.next.items)
                weigh_item(&w);
            settle();
            add_values(&w, tile, steps, from == 0, is_narrow);
        }
    }
    _tile_release();
    store_rows(&w);
}

static void attend(const q3_attention *attention)
{
    if (attention->narrow)
        attend_to(attention, true);
    else
        attend_to(attention, false);
}

const q3_attend_many q3_attend_many_amx = {
    .tokens = TOKENS,
    .scratch_bytes = scratch_bytes,
    .attend = attend,
};
