// SPDX-License-Identifier: Apache-2.0
//
// Codec 1, rotated split. A bf16 is a sign, 8 exponent bits and 7 mantissa bits. The sign and the
// mantissa look random and are kept, one byte a weight; the exponents of trained weights crowd
// around few values and compress to about a third of their size. Match finding only makes them
// larger and slower, so each block of the zstd frame holds literals alone: Huffman coding and
// nothing else. Any zstd decoder reads it.
#ifndef Q3_CODEC_SPLIT_ZSTD_H
#define Q3_CODEC_SPLIT_ZSTD_H

#include "base/error.h"

#include <stdint.h>

// Contexts and scratch that grow on first use; zeroed at the start.
typedef struct q3_split_zstd {
    struct ZSTD_CCtx_s *compress;
    struct ZSTD_DCtx_s *decompress;
    uint8_t *plane;
    size_t plane_capacity;
} q3_split_zstd;

void q3_split_zstd_free(q3_split_zstd *state);

// Writes at most raw_bytes to stored; *stored_bytes == raw_bytes means that it did not shrink and
// that stored holds nothing of use.
bool q3_split_zstd_encode(q3_split_zstd *state, const void *raw, size_t raw_bytes, void *stored,
                          size_t *stored_bytes, q3_error *err);
bool q3_split_zstd_decode(q3_split_zstd *state, const void *stored, size_t stored_bytes, void *raw,
                          size_t raw_bytes, q3_error *err);

#endif
