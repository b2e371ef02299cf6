// SPDX-License-Identifier: Apache-2.0
//
// Between the layout of a bit-plane frame (bitplane.c) and the loops over its groups, of which
// there is one version for each level of processor. FORMAT.md defines the words used here.
#ifndef Q3_CODEC_BITPLANE_KERNELS_H
#define Q3_CODEC_BITPLANE_KERNELS_H

#include "base/bytes.h"
#include "base/cpu.h"

enum {
    BITPLANE_GROUP = 64,        // weights
    BITPLANE_PLANES_BYTES = 16, // the two planes of a group
    BITPLANE_TABLES_MAX = 4,
    BITPLANE_TABLE_BYTES = 16,
    BITPLANE_CODED = 15, // exponents in a table; index 15 is the escape
    BITPLANE_ESCAPE = 15,
};

// The weight of a group that its byte number `byte` belongs to. In this order the bytes of 64
// exponents and of 64 signs and mantissas need only be interleaved within 16-byte lanes.
static inline unsigned bitplane_weight_of(unsigned byte)
{
    return (byte & 7) + 8 * (byte >> 4) + 32 * (byte >> 3 & 1);
}

// How much of each stream has been read: bits, and bytes of the escapes.
typedef struct bitplane_cursors {
    size_t one, two, three, escapes;
} bitplane_cursors;

// A stored frame whose header and tables have been checked. Everything in it is inside the stored
// bytes, the streams before the low bytes: see BITPLANE_RUN.
typedef struct bitplane_view {
    size_t weights, groups, segment_groups;
    unsigned tables;
    const uint8_t *frame;   // the stored bytes
    const uint8_t *table;   // BITPLANE_TABLE_BYTES each
    const uint8_t *numbers; // two bits a segment; not to be read when there is one table
    q3_bytes one, two, three, escapes;
    const uint8_t *low;    // 64 bytes a group, sign and mantissa
    const uint8_t *planes; // 16 bytes a group
    const uint8_t *tail;   // 2 bytes for each of weights % 64
    // For each table the set of its exponents: bit e % 64 of word e / 64.
    uint64_t coded[BITPLANE_TABLES_MAX][4];
} bitplane_view;

static inline unsigned bitplane_number(const bitplane_view *view, size_t segment)
{
    return view->tables == 1 ? 0 : (unsigned)view->numbers[segment / 4] >> segment % 4 * 2 & 3;
}

static inline bool bitplane_is_coded(const bitplane_view *view, unsigned table, unsigned exponent)
{
    return view->coded[table][exponent / 64] >> exponent % 64 & 1;
}

// Fast versions compare their cursors with the streams' ends once in a run of up to BITPLANE_RUN
// groups. A run that begins inside can overshoot the end of the escapes, the last of the streams,
// by at most 64 bytes a group and a vector's load: that is less than the 80 bytes a group of low
// bytes and planes behind them as soon as there are BITPLANE_RUN groups. The other streams' runs
// are shorter, and they end earlier. Frames of fewer groups go to the plain version.
enum { BITPLANE_RUN = 8 };

// What an encoder has decided, and where its groups go.
typedef struct bitplane_plan {
    size_t groups, segment_groups;
    const uint8_t *numbers; // a byte for each segment
    uint8_t table[BITPLANE_TABLES_MAX][BITPLANE_TABLE_BYTES];
    uint8_t index[BITPLANE_TABLES_MAX][256]; // of each exponent
    unsigned tables;
    uint8_t *low, *planes; // in the stored frame
    // Room for what the plan says that the streams take, and BITPLANE_SLACK bytes more that an
    // encoder may overwrite with anything.
    uint8_t *one, *two, *three, *escapes;
} bitplane_plan;

enum { BITPLANE_SLACK = 64 };

typedef struct bitplane_kernels {
    // Decodes all whole groups to raw (128 bytes a group, of any alignment). False when a cursor
    // leaves its stream or an escape holds an exponent that the table has; then raw has been
    // written to but holds nothing of use. Otherwise *end tells how far the cursors came, none of
    // them behind its stream's end.
    bool (*decode)(const bitplane_view *view, uint8_t *raw, bitplane_cursors *end);
    // The same with stores that go around the caches, for output that is not read soon.
    bool (*decode_streaming)(const bitplane_view *view, uint8_t *raw, bitplane_cursors *end);
    // Encodes all whole groups of raw. The last byte of each stream ends in zero bits.
    void (*encode)(const bitplane_plan *plan, const uint8_t *raw);
} bitplane_kernels;

// The best versions for the level: plain C, replaced by what the level has.
void bitplane_kernels_fill(bitplane_kernels *kernels, q3_cpu_level level);

void bitplane_kernels_fill_c(bitplane_kernels *kernels);
void bitplane_kernels_fill_avx2(bitplane_kernels *kernels);
void bitplane_kernels_fill_avx512(bitplane_kernels *kernels);

bool bitplane_decode_c(const bitplane_view *view, uint8_t *raw, bitplane_cursors *end);

#endif
