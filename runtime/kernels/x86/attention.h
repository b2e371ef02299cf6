// SPDX-License-Identifier: Apache-2.0
//
// Attention for any width of vector: included once, behind vector_*.h and elements.h, by the source
// of each level.
//
// A score is one chain of multiply_add over the dimensions, an output one over the positions; so
// they are the same whatever is computed beside them.
#ifndef Q3_KERNELS_X86_ATTENTION_H
#define Q3_KERNELS_X86_ATTENTION_H

enum {
    HEADS = WIDTH == 8 ? 4 : 8, // of a tile
    // Vectors of a tile, positions or dimensions: keys or values are loaded once for all its heads,
    // and what is broadcast of a head once for its vectors.
    SCORE_VECTORS = 3,
    VALUE_VECTORS = 2, // 16 vectors with AVX2 make a head of 128
    // Positions whose values stay in the first cache while all heads take them.
    VALUES_CHUNK = 32,
};

// WIDTH numbers of the KV cache.
ALWAYS_INLINE floats load_kept(const void *numbers, size_t at, bool is_narrow)
{
    return is_narrow ? load_narrow((const uint16_t *)numbers + at)
                     : load((const float *)numbers + at);
}

ALWAYS_INLINE floats load_some_kept(const void *numbers, size_t at, size_t count, bool is_narrow)
{
    return is_narrow ? load_some_narrow((const uint16_t *)numbers + at, count)
                     : load_some((const float *)numbers + at, count);
}

// The scores of some heads for `vectors` vectors of positions.
ALWAYS_INLINE void score_tile(const q3_attention *a, const float *query, float *scores,
                              size_t stride, size_t position, unsigned heads, unsigned vectors,
                              bool is_narrow)
{
    floats sum[HEADS * SCORE_VECTORS];
    UNROLL
    for (unsigned i = 0; i < heads * vectors; i++)
        sum[i] = zero();
    const size_t dim = a->head_dim;
    size_t at[SCORE_VECTORS];
    UNROLL
    for (unsigned v = 0; v < vectors; v++) {
        const size_t p = position + v * WIDTH;
        at[v] = p / Q3_KEY_PANEL * Q3_KEY_PANEL * dim + p % Q3_KEY_PANEL;
    }
    for (size_t d = 0; d < dim; d++) {
        floats keys[SCORE_VECTORS];
        UNROLL
        for (unsigned v = 0; v < vectors; v++)
            keys[v] = load_kept(a->keys, at[v] + d * Q3_KEY_PANEL, is_narrow);
        UNROLL
        for (unsigned h = 0; h < heads; h++) {
            const floats number = set_all(query[h * dim + d]);
            UNROLL
            for (unsigned v = 0; v < vectors; v++)
                sum[h * vectors + v] = multiply_add(number, keys[v], sum[h * vectors + v]);
        }
    }
    const floats scale = set_all(a->scale);
    UNROLL
    for (unsigned h = 0; h < heads; h++) {
        UNROLL
        for (unsigned v = 0; v < vectors; v++)
            store(scores + h * stride + position + v * WIDTH, sum[h * vectors + v] * scale);
    }
}

ALWAYS_INLINE void score_positions(const q3_attention *a, size_t stride, size_t position,
                                   unsigned vectors, bool is_narrow)
{
    for (size_t t = 0; t < a->tokens; t++) {
        const float *query = a->query + t * a->query_stride;
        float *scores = a->scores + t * a->heads * stride;
        size_t left = a->heads;
        for (; left >= HEADS; left -= HEADS) {
            score_tile(a, query, scores, stride, position, HEADS, vectors, is_narrow);
            query += HEADS * a->head_dim;
            scores += HEADS * stride;
        }
        for (; left; left--) {
            score_tile(a, query, scores, stride, position, 1, vectors, is_narrow);
            query += a->head_dim;
            scores += stride;
        }
    }
}

// Adds to the outputs of some heads, for `vectors` vectors of dimensions from `d` on, what
// positions [from, to) give. The last vector may have only `left` dimensions.
ALWAYS_INLINE void value_tile(const q3_attention *a, const float *scores, size_t stride, float *out,
                              size_t from, size_t to, size_t d, size_t left, unsigned heads,
                              unsigned vectors, bool is_narrow)
{
    const size_t dim = a->head_dim;
    floats sum[HEADS * VALUE_VECTORS];
    UNROLL
    for (unsigned h = 0; h < heads; h++) {
        UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            const float *at = out + h * dim + d + v * WIDTH;
            sum[h * vectors + v] = from == 0       ? zero()
                                   : left == WIDTH ? load(at)
                                                   : load_some(at, left);
        }
    }
    for (size_t p = from; p < to; p++) {
        floats values[VALUE_VECTORS];
        UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            const size_t at = p * dim + d + v * WIDTH;
            values[v] = left == WIDTH ? load_kept(a->values, at, is_narrow)
                                      : load_some_kept(a->values, at, left, is_narrow);
        }
        UNROLL
        for (unsigned h = 0; h < heads; h++) {
            const floats weight = set_all(scores[h * stride + p]);
            UNROLL
            for (unsigned v = 0; v < vectors; v++)
                sum[h * vectors + v] = multiply_add(weight, values[v], sum[h * vectors + v]);
        }
    }
    UNROLL
    for (unsigned h = 0; h < heads; h++) {
        UNROLL
        for (unsigned v = 0; v < vectors; v++) {
            float *at = out + h * dim + d + v * WIDTH;
            if (left == WIDTH)
                store(at, sum[h * vectors + v]);
            else
                store_some(at, sum[h * vectors + v], left);
        }
    }
}

ALWAYS_INLINE void value_heads(const q3_attention *a, const float *scores, size_t stride,
                               float *out, size_t from, size_t to, unsigned heads, bool is_narrow)
{
    size_t d = 0;
    for (; d + VALUE_VECTORS * WIDTH <= a->head_dim; d += VALUE_VECTORS * WIDTH)
        value_tile(a, scores, stride, out, from, to, d, WIDTH, heads, VALUE_VECTORS, is_narrow);
    for (; d + WIDTH <= a->head_dim; d += WIDTH)
        value_tile(a, scores, stride, out, from, to, d, WIDTH, heads, 1, is_narrow);
    if (d < a->head_dim)
        value_tile(a, scores, stride, out, from, to, d, a->head_dim - d, heads, 1, is_narrow);
}

ALWAYS_INLINE void value_token(const q3_attention *a, size_t stride, size_t token, size_t from,
                               size_t to, bool is_narrow)
{
    const float *scores = a->scores + token * a->heads * stride;
    float *out = a->out + token * a->out_stride;
    size_t left = a->heads;
    for (; left >= HEADS; left -= HEADS) {
        value_heads(a, scores, stride, out, from, to, HEADS, is_narrow);
        scores += HEADS * stride;
        out += HEADS * a->head_dim;
    }
    for (; left; left--) {
        value_heads(a, scores, stride, out, from, to, 1, is_narrow);
        scores += stride;
        out += a->head_dim;
    }
}

ALWAYS_INLINE void attend_to(const q3_attention *a, bool is_narrow)
{
    const size_t stride = q3_score_stride(a->positions + a->tokens - 1);
    size_t position = 0;
    for (; position + SCORE_VECTORS * WIDTH <= stride; position += SCORE_VECTORS * WIDTH)
        score_positions(a, stride, position, SCORE_VECTORS, is_narrow);
    for (; position < stride; position += WIDTH)
        score_positions(a, stride, position, 1, is_narrow);
    for (size_t t = 0; t < a->tokens; t++)
        for (size_t h = 0; h < a->heads; h++)
            softmax(a->scores + (t * a->heads + h) * stride, a->positions + t);
    for (size_t from = 0; from < a->positions; from += VALUES_CHUNK) {
        const size_t rest = a->positions - from;
        const size_t to = from + (rest < VALUES_CHUNK ? rest : VALUES_CHUNK);
        for (size_t t = 0; t < a->tokens; t++)
            value_token(a, stride, t, from, to, is_narrow);
    }
    // What later tokens see besides.
    for (size_t t = 1; t < a->tokens; t++)
        value_token(a, stride, t, a->positions, a->positions + t, is_narrow);
}

static void attend_wide(const q3_attention *a)
{
    attend_to(a, false);
}

static void attend_narrow(const q3_attention *a)
{
    attend_to(a, true);
}

static void attend(const q3_attention *attention)
{
    (attention->narrow ? attend_narrow : attend_wide)(attention);
}

#endif
