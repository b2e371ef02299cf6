// SPDX-License-Identifier: Apache-2.0
//
// Codec 2, bit planes: the exponents of bf16 weights in a prefix code of fixed shape that is stored
// as bit planes, 64 weights at a time, so that a group decodes with a few bit operations and byte
// shuffles and without a chain that depends on the data. FORMAT.md defines it to the bit.
//
// The plain C version is the reference; the processor's level (base/cpu.h) chooses a faster one.
// All versions store the same bytes and recover the same bytes, or refuse.
#ifndef Q3_CODEC_BITPLANE_H
#define Q3_CODEC_BITPLANE_H

#include "bitplane_kernels.h"

#include "base/error.h"

// Functions chosen once, and scratch of the encoder that grows on first use.
typedef struct q3_bitplane {
    q3_bitplane_kernels kernels;
    uint32_t *counts; // of exponents: 256 for each segment
    size_t counts_capacity;
    uint8_t *streams;
    size_t streams_capacity;
} q3_bitplane;

// Chooses the functions for q3_cpu_in_use().
void q3_bitplane_init(q3_bitplane *state);
void q3_bitplane_free(q3_bitplane *state);

// Writes at most raw_bytes to stored; *stored_bytes == raw_bytes means that it would not shrink and
// that stored holds nothing of use. `row` is a hint: the length in weights of the matrix's rows,
// whose scales differ; 0 when there are none. The frame should begin with a row.
bool q3_bitplane_encode(q3_bitplane *state, const void *raw, size_t raw_bytes, size_t row,
                        void *stored, size_t *stored_bytes, q3_error *err);

// Recovers raw_bytes from stored bytes of whatever content, or fails (Q3_MALFORMED). `streaming`
// says that raw is not in the cache and will not be read soon: then, and when raw is at a multiple
// of 64, stores go around the caches.
bool q3_bitplane_decode(const q3_bitplane *state, const void *stored, size_t stored_bytes,
                        void *raw, size_t raw_bytes, bool streaming, q3_error *err);

// Checks a stored frame's header and tables and finds its sections. For those who decode it group
// by group.
bool q3_bitplane_parse(const void *stored, size_t stored_bytes, size_t raw_bytes,
                       q3_bitplane_view *view, q3_error *err);
// Once all groups are decoded: did the cursors come to the ends of the streams, and are the bits
// behind them zero?
bool q3_bitplane_finished(const q3_bitplane_view *view, const q3_bitplane_cursors *end,
                          q3_error *err);

#endif
