// SPDX-License-Identifier: Apache-2.0
//
// Between the layout of a bit-plane frame (bitplane.c) and the loops over its groups, of which
// there is one version for each level of processor. FORMAT.md defines the words used here.
#ifndef Q3_CODEC_BITPLANE_KERNELS_H
#define Q3_CODEC_BITPLANE_KERNELS_H

#include "base/bytes.h"
#include "base/cpu.h"

enum {
    Q3_BITPLANE_GROUP = 64,        // weights
    Q3_BITPLANE_PLANES_BYTES = 16, // the two planes of a group
    Q3_BITPLANE_TABLES_MAX = 4,
    Q3_BITPLANE_TABLE_BYTES = 16,
    Q3_BITPLANE_CODED = 15, // exponents in a table; index 15 is the escape
    Q3_BITPLANE_ESCAPE = 15,
};

// The weight of a group that its byte number `byte` belongs to. In this order the bytes of 64
// exponents and of 64 signs and mantissas need only be interleaved within 16-byte lanes.
static inline unsigned q3_bitplane_weight_of(unsigned byte)
{
    return (byte & 7) + 8 * (byte >> 4) + 32 * (byte >> 3 & 1);
}

// How much of each stream has been read: bits, and bytes of the escapes.
typedef struct q3_bitplane_cursors {
    size_t one, two, three, escapes;
} q3_bitplane_cursors;

// A stored frame whose header and tables have been checked. Everything in it is inside the stored
// bytes, the streams before the low bytes: see Q3_BITPLANE_RUN.
typedef struct q3_bitplane_view {
    size_t weights, groups, segment_groups;
    unsigned tables;
    const uint8_t *frame;   // the stored bytes
    const uint8_t *table;   // Q3_BITPLANE_TABLE_BYTES each
    const uint8_t *numbers; // two bits a segment; not to be read when there is one table
    q3_bytes one, two, three, escapes;
    const uint8_t *low;    // 64 bytes a group, sign and mantissa
    const uint8_t *planes; // 16 bytes a group
    const uint8_t *tail;   // 2 bytes for each of weights % 64
    // For each table the set of its exponents: bit e % 64 of word e / 64.
    uint64_t coded[Q3_BITPLANE_TABLES_MAX][4];
} q3_bitplane_view;

static inline unsigned q3_bitplane_number(const q3_bitplane_view *view, size_t segment)
{
    return view->tables == 1 ? 0 : (unsigned)view->numbers[segment / 4] >> segment % 4 * 2 & 3;
}

static inline bool q3_bitplane_is_coded(const q3_bitplane_view *view, unsigned table,
                                        unsigned exponent)
{
    return view->coded[table][exponent / 64] >> exponent % 64 & 1;
}

// Fast versions compare their cursors with the streams' ends once in a run of up to Q3_BITPLANE_RUN
// groups. A run that begins inside can overshoot the end of the escapes, the last of the streams,
// by at most 64 bytes a group and a vector's load: that is less than the 80 bytes a group of low
// bytes and planes behind them as soon as there are Q3_BITPLANE_RUN groups. The other streams' runs
// are shorter, and they end earlier. Frames of fewer groups go to the plain version.
enum { Q3_BITPLANE_RUN = 8 };

// What an encoder has decided, and where its groups go.
typedef struct q3_bitplane_plan {
    size_t groups, segment_groups;
    const uint8_t *numbers; // a byte for each segment
    uint8_t table[Q3_BITPLANE_TABLES_MAX][Q3_BITPLANE_TABLE_BYTES];
    uint8_t index[Q3_BITPLANE_TABLES_MAX][256]; // of each exponent
    unsigned tables;
    uint8_t *low, *planes; // in the stored frame
    // Room for what the plan says that the streams take, and Q3_BITPLANE_SLACK bytes more that an
    // encoder may overwrite with anything.
    uint8_t *one, *two, *three, *escapes;
} q3_bitplane_plan;

enum { Q3_BITPLANE_SLACK = 64 };

typedef struct q3_bitplane_kernels {
    // Decodes all whole groups to raw (128 bytes a group, of any alignment). False when a cursor
    // leaves its stream or an escape holds an exponent that the table has; then raw has been
    // written to but holds nothing of use. Otherwise *end tells how far the cursors came, none of
    // them behind its stream's end.
    bool (*decode)(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end);
    // The same with stores that go around the caches, for output that is not read soon.
    bool (*decode_streaming)(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end);
    // Encodes all whole groups of raw. The last byte of each stream ends in zero bits.
    void (*encode)(const q3_bitplane_plan *plan, const uint8_t *raw);
} q3_bitplane_kernels;

// The best versions for the level: plain C, replaced by what the level has.
void q3_bitplane_kernels_fill(q3_bitplane_kernels *kernels, q3_cpu_level level);

void q3_bitplane_kernels_fill_c(q3_bitplane_kernels *kernels);
void q3_bitplane_kernels_fill_avx2(q3_bitplane_kernels *kernels);
void q3_bitplane_kernels_fill_avx512(q3_bitplane_kernels *kernels);

bool q3_bitplane_decode_c(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end);

#endif
