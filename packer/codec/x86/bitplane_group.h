// SPDX-License-Identifier: Apache-2.0
//
// The part of a bit-plane group that general registers do, the same for every vector width: from
// planes and streams to the four bits of each weight's index, and back. Needs BMI2 and POPCNT.
//
// PDEP puts a stream's bits at the places of a mask, PEXT collects them again: one instruction each
// on Intel since Haswell and on AMD since Zen 3, dozens of micro-operations on AMD before.
//
// Whoever decodes (to memory, or straight into a product) starts with q3_bitplane_begin and does,
// for each segment and each run of up to Q3_BITPLANE_RUN groups in it: q3_bitplane_read_group for
// each group, then q3_bitplane_inside once. q3_bitplane_end closes.
#ifndef Q3_CODEC_X86_BITPLANE_GROUP_H
#define Q3_CODEC_X86_BITPLANE_GROUP_H

#include "codec/bitplane_kernels.h"

#include <immintrin.h>

// Bit b of bit[k] is bit k of the index of the weight of byte b.
typedef struct q3_bitplane_indices {
    uint64_t bit[4];
    uint64_t escapes; // weights of index 15
} q3_bitplane_indices;

// Here cursors count from the beginning of the frame, so that one register serves all streams.
static inline q3_bitplane_cursors q3_bitplane_begin(const q3_bitplane_view *view)
{
    return (q3_bitplane_cursors){.one = 8 * (size_t)(view->one.data - view->frame),
                                 .two = 8 * (size_t)(view->two.data - view->frame),
                                 .three = 8 * (size_t)(view->three.data - view->frame),
                                 .escapes = (size_t)(view->escapes.data - view->frame)};
}

// Are the cursors still inside their streams?
static inline bool q3_bitplane_inside(const q3_bitplane_view *view, const q3_bitplane_cursors *at)
{
    const q3_bitplane_cursors start = q3_bitplane_begin(view);
    return at->one <= start.one + 8 * view->one.size && at->two <= start.two + 8 * view->two.size &&
           at->three <= start.three + 8 * view->three.size &&
           at->escapes <= start.escapes + view->escapes.size;
}

// The cursors as others count them.
static inline q3_bitplane_cursors q3_bitplane_end(const q3_bitplane_view *view,
                                                  q3_bitplane_cursors at)
{
    const q3_bitplane_cursors start = q3_bitplane_begin(view);
    return (q3_bitplane_cursors){.one = at.one - start.one,
                                 .two = at.two - start.two,
                                 .three = at.three - start.three,
                                 .escapes = at.escapes - start.escapes};
}

static inline uint64_t q3_bitplane_load(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

// At least 57 bits of a stream, from bit `at` on.
static inline uint64_t q3_bitplane_peek(const uint8_t *frame, size_t at)
{
    return q3_bitplane_load(frame + at / 8) >> at % 8;
}

static inline uint64_t q3_bitplane_peek_64(const uint8_t *frame, size_t at)
{
    const uint64_t above = frame[at / 8 + 8];
    return q3_bitplane_peek(frame, at) | above << 1 << (63 - at % 8);
}

// At the beginning of a run: asks for what a run reads Q3_BITPLANE_AHEAD groups later, which the
// processor does not guess soon enough when a frame comes from memory. All at once, because between
// stores that go around the cache these reads would compete with them for the same buffers. Beyond
// the frame it does nothing.
enum { Q3_BITPLANE_AHEAD = 48 };

static inline void q3_bitplane_prefetch(const uint8_t *low, const uint8_t *planes, size_t run)
{
    for (size_t i = 0; i < run; i++)
        _mm_prefetch((const char *)low + (Q3_BITPLANE_AHEAD + i) * Q3_BITPLANE_GROUP, _MM_HINT_T0);
    for (size_t i = 0; i < run; i += 64 / Q3_BITPLANE_PLANES_BYTES) // once for each line
        _mm_prefetch((const char *)planes + (Q3_BITPLANE_AHEAD + i) * Q3_BITPLANE_PLANES_BYTES,
                     _MM_HINT_T0);
}

// For groups that need more than 57 bits of one stream. They are so rare in weights that this stays
// out of the way of the others, which may have moved the first two cursors already.
static __attribute__((noinline, cold)) q3_bitplane_indices
q3_bitplane_read_long(const uint8_t *planes, const uint8_t *frame, q3_bitplane_cursors *at,
                      bool moved)
{
    const uint64_t p = q3_bitplane_load(planes), q = q3_bitplane_load(planes + 8);
    const size_t ones = (size_t)_mm_popcnt_u64(q);
    if (moved)
        at->one -= ones;
    const uint64_t c = _pdep_u64(q3_bitplane_peek_64(frame, at->one), q);
    at->one += ones;
    uint64_t d[2], f[3];
    const uint64_t beyond_4 = p & q & c;
    const size_t twos = (size_t)_mm_popcnt_u64(beyond_4);
    if (moved)
        at->two -= 2 * twos;
    for (unsigned i = 0; i < 2; i++, at->two += twos)
        d[i] = _pdep_u64(q3_bitplane_peek_64(frame, at->two), beyond_4);
    const uint64_t beyond_7 = d[0] & d[1];
    for (unsigned i = 0; i < 3; i++, at->three += (size_t)_mm_popcnt_u64(beyond_7))
        f[i] = _pdep_u64(q3_bitplane_peek_64(frame, at->three), beyond_7);
    return (q3_bitplane_indices){
        .bit = {p ^ d[0] ^ f[0], (q & ~c) | (d[0] ^ d[1]) | f[1], (c ^ beyond_7) | f[2], beyond_7},
        .escapes = f[0] & f[1] & f[2],
    };
}

// Reads the group whose planes are at `planes`. Moves all cursors but that of the escapes.
//
// The sum p + 2q + 2c + d0 + 2 d1 + f0 + 2 f1 + 4 f2 of FORMAT.md is built bit by bit as its
// parts come, which needs the fewest registers. It is 5 before d is added and 8 before f is.
static inline __attribute__((always_inline)) q3_bitplane_indices
q3_bitplane_read_group(const uint8_t *planes, const uint8_t *frame, q3_bitplane_cursors *at)
{
    q3_bitplane_indices sum;
    bool moved = false;
    const uint64_t p = q3_bitplane_load(planes), q = q3_bitplane_load(planes + 8);
    const size_t ones = (size_t)_mm_popcnt_u64(q);
    const uint64_t c = _pdep_u64(q3_bitplane_peek(frame, at->one), q);
    const uint64_t beyond_4 = p & q & c;
    const size_t twos = (size_t)_mm_popcnt_u64(beyond_4);
    if (__builtin_expect(ones > 57 || twos > 28, 0))
        goto is_long;
    at->one += ones;
    const uint64_t two = q3_bitplane_peek(frame, at->two);
    at->two += 2 * twos;
    const uint64_t d0 = _pdep_u64(two, beyond_4), d1 = _pdep_u64(two >> twos, beyond_4);
    const uint64_t beyond_7 = d0 & d1;
    sum.bit[0] = p ^ d0;
    sum.bit[1] = (q & ~c) | (d0 ^ d1);
    sum.bit[2] = c ^ beyond_7;
    sum.bit[3] = beyond_7;
    const size_t threes = (size_t)_mm_popcnt_u64(beyond_7);
    moved = true;
    if (__builtin_expect(threes > 19, 0))
        goto is_long;
    uint64_t three = q3_bitplane_peek(frame, at->three);
    at->three += 3 * threes;
    sum.escapes = _pdep_u64(three, beyond_7);
    sum.bit[0] ^= sum.escapes;
    three >>= threes;
    const uint64_t f1 = _pdep_u64(three, beyond_7);
    sum.bit[1] |= f1;
    const uint64_t f2 = _pdep_u64(three >> threes, beyond_7);
    sum.bit[2] |= f2;
    sum.escapes &= f1 & f2;
    return sum;

is_long:;
    q3_bitplane_cursors copy = *at; // so that the cursors themselves can stay in registers
    sum = q3_bitplane_read_long(planes, frame, &copy, moved);
    *at = copy;
    return sum;
}

// Does none of the `count` escapes hold an exponent that the table has?
static inline bool q3_bitplane_escapes_allowed(const q3_bitplane_view *view, unsigned table,
                                               const uint8_t *escapes, size_t count)
{
    bool allowed = true;
    for (size_t i = 0; i < count; i++)
        allowed = allowed && !q3_bitplane_is_coded(view, table, escapes[i]);
    return allowed;
}

// Puts the escapes of a group into its weights: rare, and done weight by weight.
static inline void q3_bitplane_patch(uint64_t places, const uint8_t *escapes, uint8_t *raw)
{
    for (; places; places &= places - 1, escapes++) {
        const unsigned byte = (unsigned)__builtin_ctzll(places);
        uint8_t *weight = raw + 2 * q3_bitplane_weight_of(byte);
        weight[0] = (uint8_t)((weight[0] & 0x7f) | *escapes << 7);
        weight[1] = (uint8_t)((weight[1] & 0x80) | *escapes >> 1);
    }
}

// A stream being written. Overwrites up to 8 bytes behind its end.
typedef struct q3_bitplane_writer {
    uint8_t *to;
    uint64_t pending;
    unsigned filled; // less than 8
} q3_bitplane_writer;

// Appends `bits`, which has no more than `count` bits. count is at most 56. The last byte is always
// in memory, so that there is nothing to do at the end.
static inline void q3_bitplane_put_some(q3_bitplane_writer *writer, uint64_t bits, unsigned count)
{
    writer->pending |= bits << writer->filled;
    memcpy(writer->to, &writer->pending, sizeof writer->pending);
    const unsigned filled = writer->filled + count;
    writer->to += filled / 8;
    writer->pending >>= filled & ~7u;
    writer->filled = filled % 8;
}

static inline void q3_bitplane_put(q3_bitplane_writer *writer, uint64_t bits, unsigned count)
{
    if (__builtin_expect(count > 56, 0)) {
        q3_bitplane_put_some(writer, bits & 0xffffffff, 32);
        q3_bitplane_put_some(writer, bits >> 32, count - 32);
    } else {
        q3_bitplane_put_some(writer, bits, count);
    }
}

typedef struct q3_bitplane_writers {
    q3_bitplane_writer one, two, three;
} q3_bitplane_writers;

// Writes planes and streams of a group. Returns the weights of index 15, whose exponents the caller
// appends to the escapes.
static inline uint64_t q3_bitplane_write_group(const uint64_t bit[4], uint8_t *planes,
                                               q3_bitplane_writers *writers)
{
    const uint64_t beyond_7 = bit[3];
    const uint64_t beyond_4 = beyond_7 | (bit[2] & (bit[0] | bit[1]));
    const uint64_t first = bit[0] | beyond_4, second = bit[1] | bit[2] | bit[3];
    memcpy(planes, &first, sizeof first);
    memcpy(planes + 8, &second, sizeof second);
    const unsigned ones = (unsigned)_mm_popcnt_u64(second);
    q3_bitplane_put(&writers->one, _pext_u64(bit[2] | bit[3], second), ones);
    const unsigned twos = (unsigned)_mm_popcnt_u64(beyond_4);
    q3_bitplane_put(&writers->two, _pext_u64(beyond_7 | ~bit[0], beyond_4), twos);
    q3_bitplane_put(&writers->two, _pext_u64(beyond_7 | (bit[0] & bit[1]), beyond_4), twos);
    if (beyond_7 == 0)
        return 0;
    const unsigned threes = (unsigned)_mm_popcnt_u64(beyond_7);
    for (unsigned i = 0; i < 3; i++)
        q3_bitplane_put(&writers->three, _pext_u64(bit[i], beyond_7), threes);
    return bit[0] & bit[1] & bit[2] & bit[3];
}

#endif
