// SPDX-License-Identifier: Apache-2.0
//
// The part of a bit-plane group that general registers do, the same for every vector width: from
// planes and streams to the four bits of each weight's index, and back. Needs BMI2 and POPCNT.
//
// PDEP puts a stream's bits at the places of a mask, PEXT collects them again: one instruction each
// on Intel since Haswell and on AMD since Zen 3, dozens of micro-operations on AMD before.
//
// Whoever decodes (to memory, or straight into a product) does, for each segment and each run of up
// to BITPLANE_RUN groups in it: bitplane_read_group for each group, then bitplane_inside once.
#ifndef Q3_CODEC_X86_BITPLANE_GROUP_H
#define Q3_CODEC_X86_BITPLANE_GROUP_H

#include "codec/bitplane_kernels.h"

#include <immintrin.h>

// Bit b of bit[k] is bit k of the index of the weight of byte b.
typedef struct bitplane_indices {
    uint64_t bit[4];
    uint64_t escapes; // weights of index 15
} bitplane_indices;

// Streams as bare pointers, to keep them in registers.
typedef struct bitplane_streams {
    const uint8_t *one, *two, *three, *escapes;
} bitplane_streams;

static inline uint64_t bitplane_load(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

// At least 57 bits of a stream, from bit `at` on.
static inline uint64_t bitplane_peek(const uint8_t *stream, size_t at)
{
    return bitplane_load(stream + at / 8) >> at % 8;
}

static inline uint64_t bitplane_peek_64(const uint8_t *stream, size_t at)
{
    const uint64_t above = stream[at / 8 + 8];
    return bitplane_peek(stream, at) | above << 1 << (63 - at % 8);
}

// Are the cursors still inside their streams?
static inline bool bitplane_inside(const bitplane_view *view, const bitplane_cursors *at)
{
    return at->one <= 8 * view->one.size && at->two <= 8 * view->two.size &&
           at->three <= 8 * view->three.size && at->escapes <= view->escapes.size;
}

// Reads the group whose planes are at `planes`. Moves all cursors but that of the escapes.
static inline bitplane_indices bitplane_read_group(const uint8_t *planes, bitplane_streams streams,
                                                   bitplane_cursors *at)
{
    const uint64_t first = bitplane_load(planes), second = bitplane_load(planes + 8);
    const size_t ones = (size_t)_mm_popcnt_u64(second);
    const uint64_t third =
        _pdep_u64(__builtin_expect(ones > 57, 0) ? bitplane_peek_64(streams.one, at->one)
                                                 : bitplane_peek(streams.one, at->one),
                  second);
    at->one += ones;
    const uint64_t beyond_4 = first & second & third;
    const size_t twos = (size_t)_mm_popcnt_u64(beyond_4);
    uint64_t two[2];
    if (__builtin_expect(twos > 28, 0)) {
        two[0] = _pdep_u64(bitplane_peek_64(streams.two, at->two), beyond_4);
        two[1] = _pdep_u64(bitplane_peek_64(streams.two, at->two + twos), beyond_4);
    } else {
        const uint64_t bits = bitplane_peek(streams.two, at->two);
        two[0] = _pdep_u64(bits, beyond_4);
        two[1] = _pdep_u64(bits >> twos, beyond_4);
    }
    at->two += 2 * twos;
    const uint64_t beyond_7 = two[0] & two[1];
    const size_t threes = (size_t)_mm_popcnt_u64(beyond_7);
    uint64_t three[3];
    if (__builtin_expect(threes > 19, 0)) {
        for (unsigned i = 0; i < 3; i++)
            three[i] = _pdep_u64(bitplane_peek_64(streams.three, at->three + i * threes), beyond_7);
    } else {
        const uint64_t bits = bitplane_peek(streams.three, at->three);
        three[0] = _pdep_u64(bits, beyond_7);
        three[1] = _pdep_u64(bits >> threes, beyond_7);
        three[2] = _pdep_u64(bits >> 2 * threes, beyond_7);
    }
    at->three += 3 * threes;
    // The sum first + 2 second + 2 third + two + three, bit by bit. It is 5 before `two` is added
    // and 8 before `three` is.
    return (bitplane_indices){
        .bit = {first ^ two[0] ^ three[0], (second & ~third) | (two[0] ^ two[1]) | three[1],
                (third ^ beyond_7) | three[2], beyond_7},
        .escapes = three[0] & three[1] & three[2],
    };
}

// Does none of the `count` escapes hold an exponent that the table has?
static inline bool bitplane_escapes_allowed(const bitplane_view *view, unsigned table,
                                            const uint8_t *escapes, size_t count)
{
    bool allowed = true;
    for (size_t i = 0; i < count; i++)
        allowed = allowed && !bitplane_is_coded(view, table, escapes[i]);
    return allowed;
}

// A stream being written. Overwrites up to 8 bytes behind its end.
typedef struct bitplane_writer {
    uint8_t *to;
    uint64_t pending;
    unsigned filled; // less than 8
} bitplane_writer;

// Appends `bits`, which has no more than `count` bits. count is at most 56. The last byte is always
// in memory, so that there is nothing to do at the end.
static inline void bitplane_put_some(bitplane_writer *writer, uint64_t bits, unsigned count)
{
    writer->pending |= bits << writer->filled;
    memcpy(writer->to, &writer->pending, sizeof writer->pending);
    const unsigned filled = writer->filled + count;
    writer->to += filled / 8;
    writer->pending >>= filled & ~7u;
    writer->filled = filled % 8;
}

static inline void bitplane_put(bitplane_writer *writer, uint64_t bits, unsigned count)
{
    if (__builtin_expect(count > 56, 0)) {
        bitplane_put_some(writer, bits & 0xffffffff, 32);
        bitplane_put_some(writer, bits >> 32, count - 32);
    } else {
        bitplane_put_some(writer, bits, count);
    }
}

typedef struct bitplane_writers {
    bitplane_writer one, two, three;
} bitplane_writers;

// Writes planes and streams of a group. Returns the weights of index 15, whose exponents the caller
// appends to the escapes.
static inline uint64_t bitplane_write_group(const uint64_t bit[4], uint8_t *planes,
                                            bitplane_writers *writers)
{
    const uint64_t beyond_7 = bit[3];
    const uint64_t beyond_4 = beyond_7 | (bit[2] & (bit[0] | bit[1]));
    const uint64_t first = bit[0] | beyond_4, second = bit[1] | bit[2] | bit[3];
    memcpy(planes, &first, sizeof first);
    memcpy(planes + 8, &second, sizeof second);
    const unsigned ones = (unsigned)_mm_popcnt_u64(second);
    bitplane_put(&writers->one, _pext_u64(bit[2] | bit[3], second), ones);
    const unsigned twos = (unsigned)_mm_popcnt_u64(beyond_4);
    bitplane_put(&writers->two, _pext_u64(beyond_7 | ~bit[0], beyond_4), twos);
    bitplane_put(&writers->two, _pext_u64(beyond_7 | (bit[0] & bit[1]), beyond_4), twos);
    if (beyond_7 == 0)
        return 0;
    const unsigned threes = (unsigned)_mm_popcnt_u64(beyond_7);
    for (unsigned i = 0; i < 3; i++)
        bitplane_put(&writers->three, _pext_u64(bit[i], beyond_7), threes);
    return bit[0] & bit[1] & bit[2] & bit[3];
}

#endif
