// SPDX-License-Identifier: Apache-2.0
#define ZSTD_STATIC_LINKING_ONLY // ZSTD_compressSequences
#include "split_zstd.h"

#include "codec.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum {
    BLOCK_BYTES = ZSTD_BLOCKSIZE_MAX,
    BLOCKS_MAX = Q3_FRAME_BYTES_MAX / 2 / BLOCK_BYTES,
};

void q3_split_zstd_free(q3_split_zstd *state)
{
    ZSTD_freeCCtx(state->compress);
    ZSTD_freeDCtx(state->decompress);
    free(state->plane);
    *state = (q3_split_zstd){0};
}

// value rotated left by one: the exponent becomes the high byte, mantissa and sign the low byte.
static inline uint16_t rotate_left(uint16_t value)
{
    return (uint16_t)(value << 1 | value >> 15);
}

static inline uint16_t rotate_right(uint16_t value)
{
    return (uint16_t)(value >> 1 | value << 15);
}

static bool prepare_encoder(q3_split_zstd *state, q3_error *err)
{
    if (!state->compress) {
        state->compress = ZSTD_createCCtx();
        if (!state->compress)
            return q3_fail(err, Q3_FAILED, "out of memory (a zstd context)");
    }
    ZSTD_CCtx *context = state->compress;
    // The level matters only for tables that literals never touch; the least one sets up fastest.
    const size_t results[] = {
        ZSTD_CCtx_reset(context, ZSTD_reset_session_and_parameters),
        ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, 1),
        ZSTD_CCtx_setParameter(context, ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters),
        ZSTD_CCtx_setParameter(context, ZSTD_c_literalCompressionMode, ZSTD_ps_enable),
        ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, 1),
        ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 0),
    };
    for (size_t i = 0; i < sizeof results / sizeof *results; i++)
        if (ZSTD_isError(results[i]))
            return q3_fail(err, Q3_FAILED, "zstd: %s", ZSTD_getErrorName(results[i]));
    return true;
}

bool q3_split_zstd_encode(q3_split_zstd *state, const void *raw, size_t raw_bytes, void *stored,
                          size_t *stored_bytes, q3_error *err)
{
    const size_t count = raw_bytes / 2;
    *stored_bytes = raw_bytes;
    if (count == 0)
        return true;
    // Compressed with room to spare and moved if it pays: with a tight target some versions of zstd
    // fail in ways that cannot be told from real errors.
    const size_t bound = ZSTD_compressBound(count);
    if (!q3_grow(&state->plane, &state->plane_capacity, count + bound, 1, err) ||
        !prepare_encoder(state, err))
        return false;
    const uint8_t *from = raw;
    uint8_t *low = stored, *high = state->plane;
    for (size_t i = 0; i < count; i++) {
        const uint16_t rotated = rotate_left((uint16_t)(from[2 * i] | from[2 * i + 1] << 8));
        low[i] = (uint8_t)rotated;
        high[i] = (uint8_t)(rotated >> 8);
    }
    // A sequence without a match ends a block of literals.
    ZSTD_Sequence blocks[BLOCKS_MAX];
    size_t block_count = 0;
    for (size_t done = 0; done < count; done += BLOCK_BYTES) {
        const size_t left = count - done;
        blocks[block_count++] =
            (ZSTD_Sequence){.litLength = (unsigned)(left < BLOCK_BYTES ? left : BLOCK_BYTES)};
    }
    const size_t size = ZSTD_compressSequences(state->compress, high + count, bound, blocks,
                                               block_count, high, count);
    if (ZSTD_isError(size))
        return q3_fail(err, Q3_FAILED, "zstd: %s", ZSTD_getErrorName(size));
    if (size < count) {
        memcpy(low + count, high + count, size);
        *stored_bytes = count + size;
    }
    return true;
}

bool q3_split_zstd_decode(q3_split_zstd *state, const void *stored, size_t stored_bytes, void *raw,
                          size_t raw_bytes, q3_error *err)
{
    const size_t count = raw_bytes / 2;
    if (raw_bytes % 2 || stored_bytes < count || count == 0)
        return q3_fail(err, Q3_MALFORMED,
                       "zstd frame: %zu stored bytes cannot make %zu bytes of bf16", stored_bytes,
                       raw_bytes);
    if (!state->decompress) {
        state->decompress = ZSTD_createDCtx();
        if (!state->decompress)
            return q3_fail(err, Q3_FAILED, "out of memory (a zstd context)");
    }
    if (!q3_grow(&state->plane, &state->plane_capacity, count, 1, err))
        return false;
    const uint8_t *low = stored;
    const size_t size = ZSTD_decompressDCtx(state->decompress, state->plane, count, low + count,
                                            stored_bytes - count);
    if (ZSTD_isError(size))
        return q3_fail(err, Q3_MALFORMED, "zstd frame: %s", ZSTD_getErrorName(size));
    if (size != count)
        return q3_fail(err, Q3_MALFORMED, "zstd frame: expected %zu exponents, found %zu", count,
                       size);
    const uint8_t *high = state->plane;
    uint8_t *to = raw;
    for (size_t i = 0; i < count; i++) {
        const uint16_t value = rotate_right((uint16_t)(low[i] | high[i] << 8));
        to[2 * i] = (uint8_t)value;
        to[2 * i + 1] = (uint8_t)(value >> 8);
    }
    return true;
}
