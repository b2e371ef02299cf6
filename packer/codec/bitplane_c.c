// SPDX-License-Identifier: Apache-2.0
//
// The plain C encoder and decoder of bit-plane groups: the reference. It follows FORMAT.md step
// by step and checks every read by itself.
#include "bitplane_kernels.h"

#include "base/bytes.h"

static inline uint64_t load(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static unsigned count_bits(uint64_t bits)
{
    return (unsigned)__builtin_popcountll(bits);
}

// The lowest bits of `bits`, one after the other, at the places where `mask` has a one.
static uint64_t spread(uint64_t bits, uint64_t mask)
{
    uint64_t result = 0;
    for (; mask; mask &= mask - 1, bits >>= 1)
        result |= (mask & (0 - mask)) & (0 - (bits & 1));
    return result;
}

// The next `count` (at most 64) bits of a stream; false when it has not got them.
static inline bool take(q3_bytes stream, size_t *cursor, unsigned count, uint64_t *bits)
{
    if (count > 8 * stream.size - *cursor)
        return false;
    const size_t byte = *cursor / 8;
    const unsigned shift = *cursor % 8;
    *cursor += count;
    if (stream.size - byte > 8) {
        const uint8_t *from = stream.data + byte;
        *bits = load(from) >> shift | (shift ? (uint64_t)from[8] << (64 - shift) : 0);
        return true;
    }
    *bits = 0;
    for (size_t i = byte; i < stream.size; i++)
        *bits |= (uint64_t)stream.data[i] << 8 * (i - byte);
    *bits >>= shift;
    return true;
}

// The bits of a byte as bytes of 0 or 1, the lowest bit in the lowest byte.
static inline uint64_t bits_to_bytes(uint64_t bits)
{
    const uint64_t chosen = (bits & 0xff) * 0x0101010101010101 & 0x8040201008040201;
    return (chosen + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;
}

// What streams two and three say of the weights in `beyond_4`, about one in ten: their indices, and
// in *escapes those of index 15.
static bool take_rare(const q3_bitplane_view *view, q3_bitplane_cursors *at, uint64_t beyond_4,
                      uint8_t indices[Q3_BITPLANE_GROUP], uint64_t *escapes)
{
    const unsigned count = count_bits(beyond_4);
    const uint64_t all = count < 64 ? (UINT64_C(1) << count) - 1 : UINT64_MAX;
    uint64_t two[2], three[3] = {0};
    for (unsigned i = 0; i < 2; i++)
        if (!take(view->two, &at->two, count, &two[i]))
            return false;
    const unsigned beyond_7 = count_bits(two[0] & two[1] & all);
    for (unsigned i = 0; beyond_7 && i < 3; i++)
        if (!take(view->three, &at->three, beyond_7, &three[i]))
            return false;
    *escapes = 0;
    for (; beyond_4; beyond_4 &= beyond_4 - 1, two[0] >>= 1, two[1] >>= 1) {
        const unsigned byte = (unsigned)__builtin_ctzll(beyond_4);
        unsigned index = 5 + (unsigned)(two[0] & 1) + 2 * (unsigned)(two[1] & 1);
        if (index == 8)
            for (unsigned i = 0; i < 3; i++, three[i - 1] >>= 1)
                index += (unsigned)(three[i] & 1) << i;
        indices[byte] = (uint8_t)index;
        *escapes |= (uint64_t)(index == Q3_BITPLANE_ESCAPE) << byte;
    }
    return true;
}

bool q3_bitplane_decode_c(const q3_bitplane_view *view, uint8_t *raw, q3_bitplane_cursors *end)
{
    q3_bitplane_cursors at = {0};
    unsigned number = 0;
    uint16_t exponent_bits[16] = {0}; // of each index, at their place in a bf16
    for (size_t group = 0; group < view->groups; group++) {
        if (group % view->segment_groups == 0) {
            number = q3_bitplane_number(view, group / view->segment_groups);
            for (unsigned i = 0; i < Q3_BITPLANE_CODED; i++)
                exponent_bits[i] =
                    (uint16_t)(view->table[number * Q3_BITPLANE_TABLE_BYTES + i] << 7);
        }
        const uint64_t first = load(view->planes + group * Q3_BITPLANE_PLANES_BYTES);
        const uint64_t second = load(view->planes + group * Q3_BITPLANE_PLANES_BYTES + 8);
        uint64_t bits, escapes;
        if (!take(view->one, &at.one, count_bits(second), &bits))
            return false;
        const uint64_t third = spread(bits, second);
        uint8_t indices[Q3_BITPLANE_GROUP];
        for (unsigned byte = 0; byte < Q3_BITPLANE_GROUP; byte += 8)
            q3_put_u64(indices + byte, bits_to_bytes(first >> byte) +
                                           2 * bits_to_bytes(second >> byte) +
                                           2 * bits_to_bytes(third >> byte));
        if (!take_rare(view, &at, first & second & third, indices, &escapes))
            return false;
        const uint8_t *low = view->low + group * Q3_BITPLANE_GROUP;
        uint8_t *to = raw + group * Q3_BITPLANE_GROUP * 2;
        for (unsigned byte = 0; byte < Q3_BITPLANE_GROUP; byte += 8)
            for (unsigned i = 0; i < 8; i++)
                q3_put_u16(to + 2 * (q3_bitplane_weight_of(byte) + i),
                           (uint16_t)((low[byte + i] & 0x80) << 8 | (low[byte + i] & 0x7f) |
                                      exponent_bits[indices[byte + i]]));
        for (; escapes; escapes &= escapes - 1, at.escapes++) {
            if (at.escapes == view->escapes.size ||
                q3_bitplane_is_coded(view, number, view->escapes.data[at.escapes]))
                return false;
            uint8_t *weight = to + 2 * q3_bitplane_weight_of((unsigned)__builtin_ctzll(escapes));
            weight[0] |= (uint8_t)(view->escapes.data[at.escapes] << 7);
            weight[1] |= view->escapes.data[at.escapes] >> 1;
        }
    }
    *end = at;
    return true;
}

// Appends the lowest `count` (at most 64) bits to a stream. What is behind its end is overwritten.
typedef struct bit_writer {
    uint8_t *to;
    uint64_t pending;
    unsigned filled; // of pending: less than 8 between calls
} bit_writer;

static void put(bit_writer *writer, uint64_t bits, unsigned count)
{
    while (count) {
        const unsigned some = count < 32 ? count : 32;
        writer->pending |= (bits & ((UINT64_C(1) << some) - 1)) << writer->filled;
        writer->filled += some;
        for (; writer->filled >= 8; writer->filled -= 8, writer->pending >>= 8)
            *writer->to++ = (uint8_t)writer->pending;
        bits >>= some;
        count -= some;
    }
}

static void finish(bit_writer *writer)
{
    if (writer->filled)
        *writer->to = (uint8_t)writer->pending;
}

static void encode_c(const q3_bitplane_plan *plan, const uint8_t *raw)
{
    bit_writer one = {.to = plan->one}, two = {.to = plan->two}, three = {.to = plan->three};
    uint8_t *escape = plan->escapes;
    for (size_t group = 0; group < plan->groups; group++) {
        const uint8_t *index = plan->index[plan->numbers[group / plan->segment_groups]];
        const uint8_t *from = raw + group * Q3_BITPLANE_GROUP * 2;
        uint8_t *low = plan->low + group * Q3_BITPLANE_GROUP;
        uint64_t first = 0, second = 0, third = 0, of_two[2] = {0}, of_three[3] = {0};
        unsigned thirds = 0, twos = 0, threes = 0;
        for (unsigned byte = 0; byte < Q3_BITPLANE_GROUP; byte++) {
            const uint8_t *weight = from + q3_bitplane_weight_of(byte) * 2;
            const unsigned value = weight[0] | (unsigned)weight[1] << 8;
            const unsigned exponent = value >> 7 & 0xff;
            low[byte] = (uint8_t)((value >> 8 & 0x80) | (value & 0x7f));
            const unsigned i = index[exponent];
            // Added up as the decoder does, what a weight has not got is zero.
            const unsigned in_two = i < 5 ? 0 : i < 8 ? i - 5 : 3;
            const unsigned in_three = i < 8 ? 0 : i - 8;
            first |= (uint64_t)(i >= 5 || (i & 1 && i < 4)) << byte;
            second |= (uint64_t)(i >= 2) << byte;
            third |= (uint64_t)(i >= 4) << thirds;
            of_two[0] |= (uint64_t)(in_two & 1) << twos;
            of_two[1] |= (uint64_t)(in_two >> 1) << twos;
            of_three[0] |= (uint64_t)(in_three & 1) << threes;
            of_three[1] |= (uint64_t)(in_three >> 1 & 1) << threes;
            of_three[2] |= (uint64_t)(in_three >> 2) << threes;
            thirds += i >= 2;
            twos += i >= 5;
            threes += i >= 8;
            if (i == Q3_BITPLANE_ESCAPE)
                *escape++ = (uint8_t)exponent;
        }
        q3_put_u64(plan->planes + group * Q3_BITPLANE_PLANES_BYTES, first);
        q3_put_u64(plan->planes + group * Q3_BITPLANE_PLANES_BYTES + 8, second);
        put(&one, third, thirds);
        put(&two, of_two[0], twos);
        put(&two, of_two[1], twos);
        for (unsigned i = 0; i < 3; i++)
            put(&three, of_three[i], threes);
    }
    finish(&one);
    finish(&two);
    finish(&three);
}

void q3_bitplane_kernels_fill_c(q3_bitplane_kernels *kernels)
{
    *kernels = (q3_bitplane_kernels){
        .decode = q3_bitplane_decode_c,
        .decode_streaming = q3_bitplane_decode_c,
        .encode = encode_c,
    };
}
