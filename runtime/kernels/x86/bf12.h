// SPDX-License-Identifier: Apache-2.0
//
// bf12 (kernels/bf12.h) for any width of vector: included once, behind products.h and bf12_*.h, by
// the source of each level.
#ifndef Q3_KERNELS_X86_BF12_H
#define Q3_KERNELS_X86_BF12_H

#include "kernels/bf12.h"

// ---- packing, the same for all widths: it is done once where products are done again and again

// Weights with the lowest exponent taken off, the sign left where it was; with bits of `beyond`
// when they are outside the window.
static const int bf12_beyond = 0xf800;

static inline __m256i bf12_shorten(const uint16_t *weights, __m256i start)
{
    const __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)weights);
    return _mm256_sub_epi16(_mm256_and_si256(all, _mm256_set1_epi16(0x7fff)), start);
}

static inline __m256i bf12_start(unsigned lowest)
{
    return _mm256_set1_epi16((int16_t)(lowest << 7));
}

static size_t bf12_outside(const uint16_t *weights, size_t count, unsigned lowest)
{
    const __m256i start = bf12_start(lowest), beyond = _mm256_set1_epi16((int16_t)bf12_beyond);
    size_t inside = 0;
    for (size_t i = 0; i < count; i += 16) {
        const __m256i bits = _mm256_and_si256(bf12_shorten(weights + i, start), beyond);
        const __m256i is_inside = _mm256_cmpeq_epi16(bits, _mm256_setzero_si256());
        inside += (size_t)_mm_popcnt_u32((unsigned)_mm256_movemask_epi8(is_inside));
    }
    return count - inside / 2;
}

// Of 16 weights each: low bytes (below 256), nibbles (below 16), bits that tell what is outside.
typedef struct bf12_parts {
    __m256i low, nibble, outside;
} bf12_parts;

static inline bf12_parts bf12_split(const uint16_t *weights, __m256i start)
{
    const __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)weights);
    const __m256i bits = bf12_shorten(weights, start);
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(all, 12), _mm256_set1_epi16(8));
    return (bf12_parts){
        .low = _mm256_and_si256(bits, _mm256_set1_epi16(0xff)),
        .nibble = _mm256_or_si256(
            sign, _mm256_and_si256(_mm256_srli_epi16(bits, 8), _mm256_set1_epi16(7))),
        .outside = _mm256_and_si256(bits, _mm256_set1_epi16((int16_t)bf12_beyond)),
    };
}

static void bf12_pack(const uint16_t *weights, size_t count, unsigned lowest, void *block)
{
    const __m256i start = bf12_start(lowest);
    uint8_t *group = block;
    q3_bf12_exception *exception = q3_bf12_exceptions(block, count);
    for (size_t first = 0; first < count; first += Q3_BF12_GROUP, group += Q3_BF12_GROUP_BYTES) {
        bf12_parts parts[4];
        UNROLL
        for (unsigned i = 0; i < 4; i++)
            parts[i] = bf12_split(weights + first + 16 * i, start);
        const __m256i nibbles = _mm256_or_si256(
            _mm256_packus_epi16(parts[0].nibble, parts[2].nibble),
            _mm256_slli_epi16(_mm256_packus_epi16(parts[1].nibble, parts[3].nibble), 4));
        __m256i *to = (__m256i *)(void *)group;
        _mm256_storeu_si256(to, nibbles);
        _mm256_storeu_si256(to + 1, _mm256_packus_epi16(parts[0].low, parts[2].low));
        _mm256_storeu_si256(to + 2, _mm256_packus_epi16(parts[1].low, parts[3].low));
        const __m256i outside =
            _mm256_or_si256(_mm256_or_si256(parts[0].outside, parts[1].outside),
                            _mm256_or_si256(parts[2].outside, parts[3].outside));
        if (__builtin_expect(_mm256_testz_si256(outside, outside), 1))
            continue;
        for (size_t i = first; i < first + Q3_BF12_GROUP; i++)
            if ((weights[i] >> 7 & 0xffu) - lowest >= Q3_BF12_WINDOW)
                *exception++ = (q3_bf12_exception){.weight = (uint32_t)i, .value = weights[i]};
    }
    *exception = (q3_bf12_exception){.weight = UINT32_MAX};
}

// ---- and back

static inline bf12_table bf12_table_of(const q3_bf12 *block)
{
    uint8_t high_bytes[16];
    q3_bf12_high_bytes(block->lowest, high_bytes);
    return bf12_load_table(high_bytes);
}

static void bf12_unpack(const q3_bf12 *block, size_t count, uint16_t *weights)
{
    const bf12_table table = bf12_table_of(block);
    const uint8_t *group = block->groups;
    for (size_t i = 0; i < count; i += Q3_BF12_GROUP, group += Q3_BF12_GROUP_BYTES) {
        pairs all[GROUP_BLOCKS];
        bf12_weights(group, table, all);
        memcpy(weights + i, all, sizeof all);
    }
    for (const q3_bf12_exception *e = block->exceptions; e->weight != UINT32_MAX; e++)
        weights[e->weight] = e->value;
}

static const q3_bf12_kernels bf12_kernels = {
    .outside = bf12_outside, .pack = bf12_pack, .unpack = bf12_unpack};

// ---- products

enum { BF12_VECTORS = 4, BF12_TILE = 4 }; // at most, vectors and sums of each kind

// A few rows, `apart` rows from each other, for a few vectors. Sums: [row][vector].
typedef struct bf12_tile {
    const q3_bf12 *block;
    const float *const *x;
    size_t columns, row, apart;
    const q3_bf12_exception **next; // [row], not before the row
    floats evens[BF12_TILE], odds[BF12_TILE];
} bf12_tile;

ALWAYS_INLINE const uint8_t *bf12_group_of(const bf12_tile *t, unsigned r, size_t group)
{
    const size_t groups = t->columns / Q3_BF12_GROUP;
    return t->block->groups + ((t->row + r * t->apart) * groups + group) * Q3_BF12_GROUP_BYTES;
}

// Groups [from, to) of the rows, which have no exceptions there.
ALWAYS_INLINE void bf12_add_groups(bf12_tile *t, bf12_table table, size_t from, size_t to,
                                   unsigned rows, unsigned vectors)
{
    floats evens[BF12_TILE], odds[BF12_TILE];
    const uint8_t *at[BF12_TILE];
    const float *x[BF12_VECTORS];
    UNROLL
    for (unsigned i = 0; i < rows * vectors; i++) {
        evens[i] = t->evens[i];
        odds[i] = t->odds[i];
    }
    UNROLL
    for (unsigned r = 0; r < rows; r++)
        at[r] = bf12_group_of(t, r, from);
    UNROLL
    for (unsigned v = 0; v < vectors; v++)
        x[v] = t->x[v];
    for (size_t group = from; group < to; group++) {
        UNROLL
        for (unsigned r = 0; r < rows; r++) {
            pairs weights[GROUP_BLOCKS];
            bf12_weights(at[r], table, weights);
            at[r] += Q3_BF12_GROUP_BYTES;
            add_weights(weights, x, group * Q3_BF12_GROUP, vectors, evens + r * vectors,
                        odds + r * vectors);
        }
    }
    UNROLL
    for (unsigned i = 0; i < rows * vectors; i++) {
        t->evens[i] = evens[i];
        t->odds[i] = odds[i];
    }
}

// The same of one group in which a row has exceptions.
ALWAYS_INLINE void bf12_add_patched(bf12_tile *t, bf12_table table, size_t group, unsigned rows,
                                    unsigned vectors)
{
    for (unsigned r = 0; r < rows; r++) {
        pairs weights[GROUP_BLOCKS];
        uint16_t patched[Q3_BF12_GROUP];
        const size_t first = (t->row + r * t->apart) * t->columns + group * Q3_BF12_GROUP;
        bf12_weights(bf12_group_of(t, r, group), table, weights);
        memcpy(patched, weights, sizeof patched);
        for (; t->next[r]->weight - first < Q3_BF12_GROUP; t->next[r]++)
            patched[t->next[r]->weight - first] = t->next[r]->value;
        memcpy(weights, patched, sizeof patched);
        add_weights(weights, t->x, group * Q3_BF12_GROUP, vectors, t->evens + r * vectors,
                    t->odds + r * vectors);
    }
}

ALWAYS_INLINE void bf12_tile_rows(bf12_tile *t, bf12_table table, unsigned rows, unsigned vectors,
                                  float *const *y, size_t first)
{
    for (unsigned i = 0; i < rows * vectors; i++)
        t->evens[i] = t->odds[i] = zero();
    const size_t groups = t->columns / Q3_BF12_GROUP;
    for (size_t from = 0; from < groups;) {
        size_t to = groups;
        for (unsigned r = 0; r < rows; r++) {
            const size_t group =
                (t->next[r]->weight - (t->row + r * t->apart) * t->columns) / Q3_BF12_GROUP;
            to = group < to ? group : to;
        }
        bf12_add_groups(t, table, from, to, rows, vectors);
        if (to < groups)
            bf12_add_patched(t, table, to, rows, vectors);
        from = to + 1;
    }
    for (unsigned r = 0; r < rows; r++)
        for (unsigned v = 0; v < vectors; v++)
            y[v][first + t->row + r * t->apart] =
                sum_lanes(t->evens[r * vectors + v] + t->odds[r * vectors + v]);
}

// As with multiply_one, a tile's rows are from different parts of the block.
ALWAYS_INLINE void bf12_multiply_by(const q3_bf12 *block, size_t rows, size_t columns,
                                    const float *const *x, unsigned tile, unsigned vectors,
                                    float *const *y, size_t first)
{
    const bf12_table table = bf12_table_of(block);
    const q3_bf12_exception *next[BF12_TILE] = {block->exceptions};
    bf12_tile t = {.block = block, .x = x, .columns = columns, .apart = rows / tile, .next = next};
    for (unsigned r = 1; r < tile; r++)
        for (next[r] = next[r - 1]; next[r]->weight < r * t.apart * columns;)
            next[r]++;
    for (; t.row < t.apart; t.row++)
        bf12_tile_rows(&t, table, tile, vectors, y, first);
    next[0] = next[tile - 1];
    for (t.row = t.apart * tile; t.row < rows; t.row++)
        bf12_tile_rows(&t, table, 1, vectors, y, first);
}

static void multiply_bf12(const q3_bf12 *block, size_t rows, size_t columns,
                          const void *const *panels, size_t vectors, float *const *y, size_t first,
                          q3_next next)
{
    (void)next;
    const float *const *x = (const float *const *)panels;
    switch (vectors) {
    case 1:
        bf12_multiply_by(block, rows, columns, x, 4, 1, y, first);
        break;
    case 2:
        bf12_multiply_by(block, rows, columns, x, 2, 2, y, first);
        break;
    case 3:
        bf12_multiply_by(block, rows, columns, x, 1, 3, y, first);
        break;
    default:
        bf12_multiply_by(block, rows, columns, x, 1, 4, y, first);
    }
}

#endif
