// SPDX-License-Identifier: Apache-2.0
#include "codec.h"

#include "bitplane.h"
#include "split_zstd.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
    [Q3_CODEC_RAW] = "raw",
    [Q3_CODEC_ZSTD] = "zstd",
    [Q3_CODEC_BITPLANE] = "bitplane",
};

enum { CODECS = sizeof names / sizeof *names };

bool q3_codec_is_stored(unsigned codec)
{
    return codec < CODECS;
}

const char *q3_codec_name(unsigned codec)
{
    return codec == Q3_CODEC_AUTO ? "auto" : q3_codec_is_stored(codec) ? names[codec] : NULL;
}

bool q3_codec_parse(const char *name, q3_codec *codec)
{
    *codec = Q3_CODEC_AUTO;
    for (unsigned i = 0; i < CODECS; i++)
        if (strcmp(name, names[i]) == 0)
            *codec = (q3_codec)i;
    return strcmp(name, q3_codec_name(*codec)) == 0;
}

bool q3_codec_takes(q3_codec codec, q3_dtype dtype)
{
    return codec == Q3_CODEC_RAW || dtype == Q3_BF16;
}

struct q3_coder {
    q3_split_zstd zstd;
    q3_bitplane bitplane;
    bool streaming;
    uint8_t *other; // a frame as another codec stores it
    size_t other_capacity;
};

q3_coder *q3_coder_create(q3_error *err)
{
    q3_coder *coder = q3_alloc_zeroed(1, sizeof(q3_coder), err);
    if (coder)
        q3_bitplane_init(&coder->bitplane);
    return coder;
}

void q3_coder_destroy(q3_coder *coder)
{
    if (!coder)
        return;
    q3_split_zstd_free(&coder->zstd);
    q3_bitplane_free(&coder->bitplane);
    free(coder->other);
    free(coder);
}

void q3_coder_set_streaming(q3_coder *coder, bool streaming)
{
    coder->streaming = streaming;
}

// Either of the codecs that compress. *stored_bytes == raw_bytes: it did not shrink.
static bool compress(q3_coder *coder, q3_codec codec, uint64_t row, const void *raw,
                     size_t raw_bytes, void *stored, size_t *stored_bytes, q3_error *err)
{
    return codec == Q3_CODEC_ZSTD
               ? q3_split_zstd_encode(&coder->zstd, raw, raw_bytes, stored, stored_bytes, err)
               : q3_bitplane_encode(&coder->bitplane, raw, raw_bytes, row, stored, stored_bytes,
                                    err);
}

// The smaller of both. Between equals the one that is faster to decode.
static bool compress_best(q3_coder *coder, q3_codec *codec, uint64_t row, const void *raw,
                          size_t raw_bytes, void *stored, size_t *stored_bytes, q3_error *err)
{
    size_t other_bytes;
    if (!q3_grow(&coder->other, &coder->other_capacity, raw_bytes, 1, err) ||
        !compress(coder, Q3_CODEC_BITPLANE, row, raw, raw_bytes, stored, stored_bytes, err) ||
        !compress(coder, Q3_CODEC_ZSTD, row, raw, raw_bytes, coder->other, &other_bytes, err))
        return false;
    *codec = Q3_CODEC_BITPLANE;
    if (other_bytes < *stored_bytes) {
        memcpy(stored, coder->other, other_bytes);
        *stored_bytes = other_bytes;
        *codec = Q3_CODEC_ZSTD;
    }
    return true;
}

bool q3_codec_encode(q3_coder *coder, q3_codec *codec, q3_dtype dtype, uint64_t row,
                     const void *raw, size_t raw_bytes, void *stored, size_t *stored_bytes,
                     q3_error *err)
{
    if (*codec != Q3_CODEC_RAW && q3_codec_takes(*codec, dtype)) {
        const bool ok =
            *codec == Q3_CODEC_AUTO
                ? compress_best(coder, codec, row, raw, raw_bytes, stored, stored_bytes, err)
                : compress(coder, *codec, row, raw, raw_bytes, stored, stored_bytes, err);
        if (!ok)
            return false;
        if (*stored_bytes < raw_bytes)
            return true;
    }
    *codec = Q3_CODEC_RAW;
    *stored_bytes = raw_bytes;
    memcpy(stored, raw, raw_bytes);
    return true;
}

bool q3_codec_decode(q3_coder *coder, q3_codec codec, const void *stored, size_t stored_bytes,
                     void *raw, size_t raw_bytes, q3_error *err)
{
    switch (codec) {
    case Q3_CODEC_RAW:
        if (stored_bytes != raw_bytes)
            return q3_fail(err, Q3_MALFORMED, "raw frame: expected %zu stored bytes, found %zu",
                           raw_bytes, stored_bytes);
        memcpy(raw, stored, raw_bytes);
        return true;
    case Q3_CODEC_ZSTD:
        return q3_split_zstd_decode(&coder->zstd, stored, stored_bytes, raw, raw_bytes, err);
    case Q3_CODEC_BITPLANE:
        return q3_bitplane_decode(&coder->bitplane, stored, stored_bytes, raw, raw_bytes,
                                  coder->streaming, err);
    case Q3_CODEC_AUTO:
        break;
    }
    return q3_fail(err, Q3_MALFORMED, "unknown codec %u", (unsigned)codec);
}
