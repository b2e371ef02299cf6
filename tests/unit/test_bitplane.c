// SPDX-License-Identifier: Apache-2.0
//
// The bit-plane codec: every level of this processor against plain C, and plain C against a decoder
// that reads FORMAT.md literally, one bit at a time. Buffers end where memory that cannot be
// touched begins.
#include "base/cpu.h"
#include "base/hash.h"
#include "codec/bitplane.h"
#include "codec/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

enum { WEIGHTS_MAX = 16 * 1024, BYTES_MAX = 2 * WEIGHTS_MAX };

static q3_bitplane coders[Q3_CPU_LEVELS];
static unsigned levels;
static uint8_t *ends[4]; // of four buffers of BYTES_MAX, before memory that cannot be touched

static uint64_t random_state;

static uint64_t random_bits(void)
{
    // SplitMix64 (Steele, Lea, Flood 2014).
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int set_up(void **state)
{
    (void)state;
    q3_error err;
    levels = q3_cpu_detected() + 1;
    for (unsigned level = 0; level < levels; level++) {
        assert_true(q3_cpu_limit((q3_cpu_level)level, &err));
        q3_bitplane_init(&coders[level]);
    }
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (unsigned i = 0; i < 4; i++) {
        uint8_t *memory =
            mmap(NULL, BYTES_MAX + 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(memory != MAP_FAILED);
        assert_int_equal(mprotect(memory + page, BYTES_MAX + page, PROT_READ | PROT_WRITE), 0);
        ends[i] = memory + BYTES_MAX + 2 * page;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (unsigned level = 0; level < levels; level++)
        q3_bitplane_free(&coders[level]);
    for (unsigned i = 0; i < 4; i++)
        munmap(ends[i] - BYTES_MAX - 2 * page, BYTES_MAX + 3 * page);
    return 0;
}

// ---- FORMAT.md, literally ----

static unsigned next_bit(const uint8_t *stream, size_t *cursor)
{
    const unsigned bit = stream[*cursor / 8] >> *cursor % 8 & 1;
    (*cursor)++;
    return bit;
}

static size_t number_at(const uint8_t *at)
{
    return at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
}

static void decode_literally(const uint8_t *stored, uint8_t *raw)
{
    const size_t weights = number_at(stored), groups = weights / 64;
    const size_t segment_groups = number_at(stored + 4);
    const size_t segments = (groups + segment_groups - 1) / segment_groups;
    const unsigned tables = stored[24];
    const uint8_t *numbers = stored + 32 + 16 * tables;
    const uint8_t *one = numbers + (tables == 1 ? 0 : (segments + 3) / 4);
    const uint8_t *two = one + number_at(stored + 8), *three = two + number_at(stored + 12);
    const uint8_t *escapes = three + number_at(stored + 16);
    const uint8_t *low = escapes + number_at(stored + 20);
    low += (64 - (size_t)(low - stored) % 64) % 64;
    const uint8_t *planes = low + 64 * groups;
    size_t at_one = 0, at_two = 0, at_three = 0;
    for (size_t g = 0; g < groups; g++) {
        unsigned index[64];
        size_t cursor = 128 * g;
        for (unsigned b = 0; b < 64; b++)
            index[b] = next_bit(planes, &cursor);
        for (unsigned b = 0; b < 64; b++)
            if (next_bit(planes, &cursor))
                index[b] += 2;
        for (unsigned b = 0; b < 64; b++)
            if (index[b] >= 2 && next_bit(one, &at_one))
                index[b] += 2;
        unsigned more[64] = {0};
        for (unsigned value = 1; value <= 2; value *= 2)
            for (unsigned b = 0; b < 64; b++)
                if (index[b] == 5)
                    more[b] += next_bit(two, &at_two) * value;
        for (unsigned b = 0; b < 64; b++)
            index[b] += more[b];
        memset(more, 0, sizeof more);
        for (unsigned value = 1; value <= 4; value *= 2)
            for (unsigned b = 0; b < 64; b++)
                if (index[b] == 8)
                    more[b] += next_bit(three, &at_three) * value;
        const size_t segment = g / segment_groups;
        const unsigned numbers_byte = tables == 1 ? 0 : numbers[segment / 4];
        const unsigned number = numbers_byte >> 2 * (segment % 4) & 3;
        for (unsigned b = 0; b < 64; b++) {
            const unsigned i = index[b] + more[b];
            const unsigned exponent = i == 15 ? *escapes++ : stored[32 + 16 * number + i];
            const unsigned byte = low[64 * g + b];
            const unsigned value = (byte & 0x80) << 8 | exponent << 7 | (byte & 0x7f);
            const size_t weight = 64 * g + b % 8 + b / 16 * 8 + (b / 8 % 2) * 32;
            raw[2 * weight] = (uint8_t)value;
            raw[2 * weight + 1] = (uint8_t)(value >> 8);
        }
    }
    memcpy(raw + 128 * groups, planes + 16 * groups, weights % 64 * 2);
}

// ---- round trips ----

// Decodes at all levels, through and around the cache. They must agree: true and the same bytes, or
// false. The bytes are in ends[1] then.
static bool decode_everywhere(const uint8_t *stored, size_t stored_bytes, size_t raw_bytes)
{
    q3_error err, first_error = {0};
    uint8_t *expected = ends[1] - raw_bytes, *raw = ends[2] - raw_bytes;
    memset(expected, 0x55, raw_bytes);
    const bool decoded = q3_bitplane_decode(&coders[0], stored, stored_bytes, expected, raw_bytes,
                                            false, &first_error);
    for (unsigned level = 0; level < levels; level++)
        for (unsigned streaming = 0; streaming < 2; streaming++) {
            memset(raw - 64, 0xaa, raw_bytes + 64);
            assert_int_equal(q3_bitplane_decode(&coders[level], stored, stored_bytes, raw,
                                                raw_bytes, streaming, &err),
                             decoded);
            for (unsigned i = 1; i <= 64; i++)
                assert_int_equal(raw[0 - (ptrdiff_t)i], 0xaa);
            if (decoded)
                assert_memory_equal(raw, expected, raw_bytes);
        }
    return decoded;
}

// Encodes ends[0] - raw_bytes at all levels into the same bytes, and back. The stored bytes end at
// ends[3] then. Returns how many they are, or 0 when the frame would not shrink.
static size_t round_trip(size_t raw_bytes, uint64_t row)
{
    q3_error err;
    const uint8_t *raw = ends[0] - raw_bytes;
    uint8_t *stored = ends[1] - raw_bytes;
    size_t stored_bytes = 0;
    assert_true(q3_bitplane_encode(&coders[0], raw, raw_bytes, row, stored, &stored_bytes, &err));
    assert_true(stored_bytes <= raw_bytes);
    const bool shrunk = stored_bytes < raw_bytes;
    if (shrunk)
        memcpy(ends[3] - stored_bytes, stored, stored_bytes);
    for (unsigned level = 1; level < levels; level++) {
        size_t again = 0;
        memset(stored, 0xaa, raw_bytes);
        assert_true(q3_bitplane_encode(&coders[level], raw, raw_bytes, row, stored, &again, &err));
        assert_int_equal(again, stored_bytes);
        if (shrunk)
            assert_memory_equal(stored, ends[3] - stored_bytes, stored_bytes);
    }
    if (!shrunk)
        return 0;
    stored = ends[3] - stored_bytes;
    decode_literally(stored, ends[1] - raw_bytes);
    assert_memory_equal(ends[1] - raw_bytes, raw, raw_bytes);
    assert_true(decode_everywhere(stored, stored_bytes, raw_bytes));
    assert_memory_equal(ends[1] - raw_bytes, raw, raw_bytes);
    return stored_bytes;
}

static void put_weight(uint8_t *raw, size_t weight, unsigned exponent, uint64_t rest)
{
    const unsigned value = (unsigned)(rest & 0x8000) | exponent << 7 | (unsigned)(rest & 0x7f);
    raw[2 * weight] = (uint8_t)value;
    raw[2 * weight + 1] = (uint8_t)(value >> 8);
}

// Exponents as trained weights have them: each step down half as likely, a scale for each row.
static void fill_like_weights(size_t weights, size_t row)
{
    uint8_t *raw = ends[0] - 2 * weights;
    for (size_t i = 0; i < weights; i++) {
        const unsigned top = 110 + 6 * (unsigned)(i / row % 4);
        const uint64_t bits = random_bits();
        const unsigned below = (unsigned)__builtin_ctzll(bits >> 20 | UINT64_C(1) << 40);
        put_weight(raw, i, top - below, bits);
    }
}

static const size_t sizes[] = {0,    1,    63,   64,   65,   127,        128,  129,
                               191,  448,  511,  512,  513,  575,        1000, 1023,
                               1024, 1025, 4096, 5000, 8192, WEIGHTS_MAX};
static const size_t rows[] = {0, 1, 3, 64, 96, 192, 512, 768, 2048, 1 << 20};
enum { SIZES = sizeof sizes / sizeof *sizes, ROWS = sizeof rows / sizeof *rows };

static void like_weights(void **state)
{
    (void)state;
    random_state = 1;
    for (unsigned s = 0; s < SIZES; s++)
        for (unsigned r = 0; r < ROWS; r++) {
            fill_like_weights(sizes[s], rows[r] < 512 ? 512 : rows[r]);
            const size_t stored_bytes = round_trip(2 * sizes[s], rows[r]);
            // A header, a table and padding want to be paid for.
            assert_int_equal(stored_bytes != 0, sizes[s] >= 128);
        }
    // What these sizes come to: 64 KiB in four tables.
    random_state = 2;
    fill_like_weights(WEIGHTS_MAX, 2048);
    assert_int_equal(round_trip(BYTES_MAX, 2048), 21312);
    assert_int_equal(ends[3][24 - 21312], 4);
}

// The stored bytes are part of the format: they never change.
static void bytes_stay(void **state)
{
    (void)state;
    random_state = 3;
    fill_like_weights(5000, 512);
    const size_t stored_bytes = round_trip(10000, 512);
    assert_int_equal(stored_bytes, 6576);
    assert_int_equal(q3_hash64(ends[3] - stored_bytes, stored_bytes), UINT64_C(0x479e9a32acc30647));
}

static void one_exponent(void **state)
{
    (void)state;
    // Two groups of 1.0, 1.0078125 and so on, then a tail of one weight.
    uint8_t *raw = ends[0] - 258;
    for (unsigned i = 0; i < 129; i++)
        put_weight(raw, i, 127, i % 128);
    assert_int_equal(round_trip(258, 0), 226);
    uint8_t expected[226] = {129, 0, 0, 0, 2};
    expected[24] = 1;
    expected[32] = 127;
    for (unsigned i = 1; i < 15; i++)
        expected[32 + i] = (uint8_t)(i - 1);
    for (unsigned i = 0; i < 128; i++)
        expected[64 + i] = (uint8_t)(i / 64 * 64 + i % 8 + i % 64 / 16 * 8 + i / 8 % 2 * 32);
    expected[224] = 0x80;
    expected[225] = 0x3f;
    assert_memory_equal(ends[3] - 226, expected, 226);

    static const unsigned exponents[] = {0, 1, 14, 15, 16, 127, 128, 254, 255};
    for (unsigned i = 0; i < sizeof exponents / sizeof *exponents; i++)
        for (unsigned s = 0; s < SIZES; s++) {
            for (size_t k = 0; k < sizes[s]; k++)
                put_weight(ends[0] - 2 * sizes[s], k, exponents[i], random_bits());
            assert_int_equal(round_trip(2 * sizes[s], 512) != 0, sizes[s] >= 128);
        }
}

// Every code in one group, against bits written by hand.
static void every_code(void **state)
{
    (void)state;
    // Exponent 100 + i has index i. Weight 8 * (i / 8) + i % 8 of a group belongs to byte i for i <
    // 8 and to byte 16 + i - 8 for the others, so the first weights have indices 0 to 15; all that
    // follow make the lower indices frequent.
    enum { COUNT = 1024 };
    uint8_t *raw = ends[0] - 2 * COUNT;
    for (size_t k = 0; k < COUNT; k++)
        put_weight(raw, k, 100 + (k < 16 ? (unsigned)k : 0), 0);
    for (unsigned i = 1; i < 15; i++)
        for (unsigned n = 0; n < 15 - i; n++)
            put_weight(raw, 64 * i + n, 100 + i, 0);
    const size_t stored_bytes = round_trip(2 * COUNT, 0);
    const uint8_t *stored = ends[3] - stored_bytes;
    assert_int_equal(stored[24], 1);
    for (unsigned i = 0; i < 15; i++)
        assert_int_equal(stored[32 + i], 100 + i);
    // Indices 2 to 15 of the first group in stream one: 2, 3: 0; 4 and more: 1.
    const size_t two_at = 48 + number_at(stored + 8), three_at = two_at + number_at(stored + 12);
    assert_int_equal(stored[48], 0xfc);
    assert_int_equal(stored[49] & 0x3f, 0x3f);
    // 5 to 15 in stream two: low bits 0, 1, 0 and 1 for the rest, high bits 0, 0, 1 and 1.
    assert_int_equal(stored[two_at], 0xfa);
    assert_int_equal(stored[two_at + 1], 0xe7);
    assert_int_equal(stored[two_at + 2] & 0x3f, 0x3f);
    // 8 to 15 in stream three: bits 0, 1 and 2 of 0 to 7.
    assert_int_equal(stored[three_at], 0xaa);
    assert_int_equal(stored[three_at + 1], 0xcc);
    assert_int_equal(stored[three_at + 2], 0xf0);
    const size_t escape_at = three_at + number_at(stored + 16);
    assert_int_equal(number_at(stored + 20), 1);
    assert_int_equal(stored[escape_at], 115);
    // The planes: bytes 0 to 7 have indices 0 to 7, bytes 16 to 23 have 8 to 15.
    const uint8_t *planes = stored + stored_bytes - 16 * (COUNT / 64);
    static const uint8_t expected[16] = {0xea, 0, 0xff, 0, 0, 0, 0, 0, 0xfc, 0, 0xff};
    assert_memory_equal(planes, expected, 16);
}

// Frames that do not look like weights at all.
static void adversarial(void **state)
{
    (void)state;
    random_state = 4;
    for (unsigned s = 0; s < SIZES; s++) {
        const size_t weights = sizes[s];
        uint8_t *raw = ends[0] - 2 * weights;
        // Random bits: all exponents, and never smaller.
        for (size_t k = 0; k < 2 * weights; k++)
            raw[k] = (uint8_t)random_bits();
        assert_int_equal(round_trip(2 * weights, 512), 0);
        // All exponents in order.
        for (size_t k = 0; k < weights; k++)
            put_weight(raw, k, k % 256, random_bits());
        assert_int_equal(round_trip(2 * weights, 0), 0);
        // NaN, infinities, zeros and denormals.
        for (size_t k = 0; k < weights; k++)
            put_weight(raw, k, random_bits() % 2 ? 255 : 0, random_bits() % 2 ? random_bits() : 0);
        assert_int_equal(round_trip(2 * weights, 64) != 0, weights >= 128);
        // As many escapes as can be, in bursts: whole groups of them, and of each other index.
        for (size_t k = 0; k < weights; k++) {
            const uint64_t burst = k / 64 * 2654435761 >> 7;
            const unsigned index = burst % 4 ? (unsigned)(burst / 4 % 3) : (unsigned)(burst / 4);
            put_weight(raw, k, index % 16 == 15 ? random_bits() % 256 : index % 16, random_bits());
        }
        round_trip(2 * weights, 64);
        // Groups of one index alone, each index in turn, so that every stream is read at every
        // length; the lower indices are made frequent at the end.
        for (size_t k = 0; k < weights; k++)
            put_weight(raw, k, 0, random_bits());
        for (size_t k = 0; k < weights / 4; k++)
            put_weight(raw, k, 7 + (unsigned)(k / 64 % 16) * 15, random_bits());
        for (size_t k = 0; k < weights / 8; k += 5)
            put_weight(raw, k, 7 + (unsigned)(random_bits() % 16) * 15, random_bits());
        round_trip(2 * weights, 0);
    }
    // One group of n escapes among zeros, for each n.
    for (unsigned n = 0; n <= 64; n++) {
        uint8_t *raw = ends[0] - 2 * 2048;
        for (size_t k = 0; k < 2048; k++)
            put_weight(raw, k, k < 15 * 8 ? (unsigned)(k / 8) : 0, random_bits());
        for (size_t k = 0; k < n; k++)
            put_weight(raw, 1024 + k, 100 + (unsigned)(random_bits() % 100), random_bits());
        assert_true(round_trip(2 * 2048, 0) != 0);
    }
}

// The largest frame, with more rows than the encoder takes segments.
static void largest(void **state)
{
    (void)state;
    q3_error err;
    const size_t bytes = Q3_FRAME_BYTES_MAX;
    uint8_t *raw = malloc(bytes), *stored = malloc(bytes), *again = malloc(bytes);
    assert_true(raw && stored && again);
    random_state = 8;
    for (size_t k = 0; k < bytes / 2; k += 4) {
        const uint64_t bits = random_bits();
        for (unsigned i = 0; i < 4; i++)
            put_weight(raw, k + i, 100 + (unsigned)(k / 512 % 7 + (bits >> 60 & 3 & bits >> 8)),
                       bits >> 16 * i);
    }
    size_t first_bytes = 0;
    uint64_t first_hash = 0;
    for (unsigned level = 0; level < levels; level++) {
        size_t stored_bytes = 0;
        assert_true(
            q3_bitplane_encode(&coders[level], raw, bytes, 512, stored, &stored_bytes, &err));
        const uint64_t hash = q3_hash64(stored, stored_bytes);
        if (level == 0) {
            first_bytes = stored_bytes;
            first_hash = hash;
        }
        assert_int_equal(number_at(stored + 4), 128); // 8 groups a row, 1024 segments
        assert_int_equal(stored_bytes, first_bytes);
        assert_int_equal(hash, first_hash);
        memset(again, 0, bytes);
        assert_true(
            q3_bitplane_decode(&coders[level], stored, stored_bytes, again, bytes, false, &err));
        assert_memory_equal(again, raw, bytes);
    }
    free(raw);
    free(stored);
    free(again);
}

static void odd_bytes_are_left(void **state)
{
    (void)state;
    q3_error err;
    size_t stored_bytes = 0;
    fill_like_weights(1000, 512);
    assert_true(q3_bitplane_encode(&coders[0], ends[0] - 2000, 1999, 0, ends[1] - 1999,
                                   &stored_bytes, &err));
    assert_int_equal(stored_bytes, 1999);
}

// ---- damage ----

// A frame of four tables with escapes and a tail, at ends[3].
enum { VICTIM = 2052, VICTIM_BYTES = 2 * VICTIM, VICTIM_STREAMS = 32 + 4 * 16 + 1 };

static size_t make_victim(void)
{
    random_state = 5;
    fill_like_weights(VICTIM, 512);
    for (size_t k = 0; k < VICTIM; k += 50)
        put_weight(ends[0] - VICTIM_BYTES, k, 200 + (unsigned)(k / 50), 0);
    const size_t stored_bytes = round_trip(VICTIM_BYTES, 512);
    const uint8_t *stored = ends[3] - stored_bytes;
    assert_int_equal(stored[24], 4);
    assert_true(number_at(stored + 20) >= 16);
    return stored_bytes;
}

static void truncations(void **state)
{
    (void)state;
    const size_t stored_bytes = make_victim();
    // From the front, so that the guard stands behind what is left.
    uint8_t *copy = malloc(stored_bytes);
    assert_non_null(copy);
    memcpy(copy, ends[3] - stored_bytes, stored_bytes);
    for (size_t size = 0; size < stored_bytes; size++) {
        memcpy(ends[3] - size, copy, size);
        assert_false(decode_everywhere(ends[3] - size, size, VICTIM_BYTES));
    }
    free(copy);
}

static void single_bits(void **state)
{
    (void)state;
    const size_t stored_bytes = make_victim();
    uint8_t *stored = ends[3] - stored_bytes;
    size_t accepted = 0;
    for (size_t bit = 0; bit < 8 * stored_bytes; bit++) {
        stored[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (decode_everywhere(stored, stored_bytes, VICTIM_BYTES)) {
            accepted++;
            // With the same tables, numbers and segments no two frames hold the same weights.
            if (bit >= 8 * VICTIM_STREAMS)
                assert_memory_not_equal(ends[1] - VICTIM_BYTES, ends[0] - VICTIM_BYTES,
                                        VICTIM_BYTES);
        }
        stored[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    // Every bit of the signs, mantissas and the tail, and some others.
    assert_true(accepted > 8 * VICTIM && accepted < 8 * stored_bytes);
}

// Valid headers before garbage: cursors that run away, and tables and numbers of any kind.
static void garbage(void **state)
{
    (void)state;
    const size_t stored_bytes = make_victim();
    uint8_t *stored = ends[3] - stored_bytes, *copy = malloc(stored_bytes);
    assert_non_null(copy);
    memcpy(copy, stored, stored_bytes);
    const size_t planes_at = stored_bytes - 8 - 16 * 32;
    unsigned accepted = 0;
    for (unsigned round = 0; round < 3000; round++) {
        memcpy(stored, copy, stored_bytes);
        const unsigned kind = round % 6;
        if (kind == 0) // all planes say "more"
            memset(stored + planes_at, 0xff, 16 * 32);
        if (kind <= 1) // and the streams too
            for (size_t i = VICTIM_STREAMS; i < planes_at - 64 * 32; i++)
                stored[i] = random_bits() % 4 ? 0xff : (uint8_t)random_bits();
        if (kind == 2) // random planes
            for (size_t i = planes_at; i < stored_bytes; i++)
                stored[i] = (uint8_t)random_bits();
        if (kind == 3) // a run that leaves the streams behind
            memset(stored + planes_at + 16 * (round / 6 % 25), 0xff, 16 * 8);
        if (kind >= 4) // a few bytes anywhere
            for (unsigned i = 0; i < kind; i++)
                stored[random_bits() % stored_bytes] = (uint8_t)random_bits();
        accepted += decode_everywhere(stored, stored_bytes, VICTIM_BYTES);
    }
    assert_in_range(accepted, 1, 2999);
    // No streams at all, and planes that ask for all of them.
    for (unsigned groups = 1; groups < 40; groups++) {
        const size_t size = 64 + 80 * groups;
        stored = ends[3] - size;
        memset(stored, 0, 64);
        memset(stored + 64, 0xff, 80 * groups);
        q3_put_u32(stored, 64 * groups);
        q3_put_u32(stored + 4, groups);
        stored[24] = 1;
        for (unsigned i = 0; i < 15; i++)
            stored[32 + i] = (uint8_t)i;
        assert_false(decode_everywhere(stored, size, 128 * groups));
    }
    free(copy);
}

static void refuses(const char *message, size_t stored_bytes, size_t raw_bytes)
{
    q3_error err;
    for (unsigned level = 0; level < levels; level++) {
        assert_false(q3_bitplane_decode(&coders[level], ends[3] - stored_bytes, stored_bytes,
                                        ends[1] - raw_bytes, raw_bytes, false, &err));
        assert_string_equal(err.message, message);
        assert_int_equal(err.code, Q3_MALFORMED);
    }
}

// Sets a byte of the victim for the time of one refusal.
static void refuses_byte(const char *message, size_t stored_bytes, size_t at, unsigned value)
{
    uint8_t *byte = ends[3] - stored_bytes + at;
    const uint8_t before = *byte;
    assert_int_not_equal(before, value);
    *byte = (uint8_t)value;
    refuses(message, stored_bytes, VICTIM_BYTES);
    *byte = before;
}

static void messages(void **state)
{
    (void)state;
    const size_t size = make_victim();
    const uint8_t *stored = ends[3] - size;
    refuses("bit-plane frame: expected weights of 4102 bytes, found 2052 weights", size,
            VICTIM_BYTES - 2);
    refuses("bit-plane frame: expected weights of 4105 bytes, found 2052 weights", size,
            VICTIM_BYTES + 1);
    refuses_byte("bit-plane frame: expected 1 to 4 tables, found 0", size, 24, 0);
    refuses_byte("bit-plane frame: expected 1 to 4 tables, found 5", size, 24, 5);
    refuses_byte("bit-plane frame: segments of 0 groups are impossible for 32 groups and 4 tables",
                 size, 4, 0);
    refuses_byte("bit-plane frame: segments of 33 groups are impossible for 32 groups and 4 tables",
                 size, 4, 33);
    refuses_byte("bit-plane frame: segments of 8 groups are impossible for 32 groups and 1 tables",
                 size, 24, 1);
    for (unsigned i = 25; i < 32; i++)
        refuses_byte("bit-plane frame: reserved bytes are not zero", size, i, 1);
    char text[200];
    snprintf(text, sizeof text, "bit-plane frame: its sections take %zu bytes, found %zu",
             size + ((size_t)1 << 24), size);
    refuses_byte(text, size, 11, 1);
    snprintf(text, sizeof text, "bit-plane frame: table 1 has the exponent %u twice", stored[48]);
    refuses_byte(text, size, 49, stored[48]);
    refuses_byte("bit-plane frame: the last byte of table 3 is not zero", size, 32 + 63, 1);
    // Four segments in a byte, the streams, up to 63 zeros, the low bytes.
    const size_t one_at = VICTIM_STREAMS, two_at = one_at + number_at(stored + 8);
    const size_t three_at = two_at + number_at(stored + 12);
    const size_t escapes_at = three_at + number_at(stored + 16);
    const size_t escapes_end = escapes_at + number_at(stored + 20);
    assert_int_not_equal(escapes_end % 64, 0);
    refuses_byte("bit-plane frame: bytes between the streams and the low bytes are not zero", size,
                 escapes_end, 1);
    refuses_byte("bit-plane frame: bytes between the streams and the low bytes are not zero", size,
                 escapes_end | 63, 0x80);
    // The first escape is in the first segment. An exponent of its table is not to be escaped.
    const unsigned number = stored[96] & 3;
    refuses_byte("bit-plane frame: the streams do not hold what the planes say", size, escapes_at,
                 stored[32 + 16 * number + 3]);
    // Bits behind the ends of streams.
    const size_t stream_ends[3] = {two_at, three_at, escapes_at};
    for (unsigned i = 0; i < 3; i++)
        refuses_byte("bit-plane frame: the streams do not end where the planes say", size,
                     stream_ends[i] - 1, stored[stream_ends[i] - 1] | 0x80);
    // Another plane bit takes another count of bits.
    refuses_byte("bit-plane frame: the streams do not end where the planes say", size,
                 size - 8 - 16 * 32 + 8, 0);
    memmove(ends[3] - 31, stored, 31);
    refuses("bit-plane frame: expected a header of 32 bytes, found 31 bytes", 31, VICTIM_BYTES);
}

static void less_than_a_group(void **state)
{
    (void)state;
    uint8_t *stored = ends[3] - 174;
    memset(stored, 0, 174);
    stored[0] = 63;
    stored[24] = 1;
    refuses("bit-plane frame: 63 weights are less than a group", 174, 126);
}

static void numbers_are_checked(void **state)
{
    (void)state;
    // Three tables and five segments of 8 groups: two bytes of numbers.
    random_state = 6;
    uint8_t *raw = ends[0] - 2 * 40 * 64;
    for (size_t k = 0; k < 40 * 64; k++)
        put_weight(raw, k, 20 * (1 + (unsigned)(k / 512 % 3)) + (unsigned)(random_bits() % 3), 0);
    const size_t size = round_trip(2 * 40 * 64, 512);
    uint8_t *stored = ends[3] - size;
    assert_int_equal(stored[24], 3);
    assert_int_equal(stored[4], 8);
    const uint8_t first = stored[32 + 48], second = stored[32 + 49];
    stored[32 + 48] = (uint8_t)(first | 0x0c);
    refuses("bit-plane frame: segment 1 asks for table 3 of 3", size, 2 * 40 * 64);
    stored[32 + 48] = first;
    stored[32 + 49] = (uint8_t)(second | 0x04);
    refuses("bit-plane frame: bits behind the last table number are not zero", size, 2 * 40 * 64);
}

// ---- as a codec ----

static void codec(void **state)
{
    (void)state;
    q3_error err;
    q3_codec which;
    assert_true(q3_codec_parse("bitplane", &which));
    assert_int_equal(which, 2);
    assert_string_equal(q3_codec_name(2), "bitplane");
    assert_null(q3_codec_name(3));
    assert_true(q3_codec_takes(Q3_CODEC_BITPLANE, Q3_BF16));
    assert_false(q3_codec_takes(Q3_CODEC_BITPLANE, Q3_F16));
    q3_coder *coder = q3_coder_create(&err);
    assert_non_null(coder);
    random_state = 7;
    fill_like_weights(4096, 512);
    const uint8_t *raw = ends[0] - 8192;
    uint8_t *stored = ends[3] - 8192, *again = ends[1] - 8192;
    size_t stored_bytes = 0;
    for (unsigned streaming = 0; streaming < 2; streaming++) {
        which = Q3_CODEC_BITPLANE;
        assert_true(
            q3_codec_encode(coder, &which, Q3_BF16, 512, raw, 8192, stored, &stored_bytes, &err));
        assert_int_equal(which, Q3_CODEC_BITPLANE);
        assert_in_range(stored_bytes, 5000, 5800);
        q3_coder_set_streaming(coder, streaming);
        memset(again, 0, 8192);
        assert_true(q3_codec_decode(coder, which, stored, stored_bytes, again, 8192, &err));
        assert_memory_equal(again, raw, 8192);
    }
    // Other types, and what does not shrink, are stored raw.
    which = Q3_CODEC_BITPLANE;
    assert_true(
        q3_codec_encode(coder, &which, Q3_F16, 512, raw, 8192, stored, &stored_bytes, &err));
    assert_int_equal(which, Q3_CODEC_RAW);
    assert_int_equal(stored_bytes, 8192);
    for (size_t i = 0; i < 8192; i++)
        ends[0][(ptrdiff_t)i - 8192] = (uint8_t)random_bits();
    which = Q3_CODEC_BITPLANE;
    assert_true(
        q3_codec_encode(coder, &which, Q3_BF16, 512, raw, 8192, stored, &stored_bytes, &err));
    assert_int_equal(which, Q3_CODEC_RAW);
    assert_memory_equal(stored, raw, 8192);
    q3_coder_destroy(coder);
}

static void cpu_levels(void **state)
{
    (void)state;
    static const char *const names[] = {"c", "avx2", "avx512", "bf16", "amx"};
    q3_error err;
    q3_cpu_level level;
    for (unsigned i = 0; i < Q3_CPU_LEVELS; i++) {
        assert_string_equal(q3_cpu_name((q3_cpu_level)i), names[i]);
        assert_true(q3_cpu_parse(names[i], &level));
        assert_int_equal(level, i);
    }
    assert_false(q3_cpu_parse("AVX2", &level));
    for (unsigned i = 0; i < Q3_CPU_LEVELS; i++) {
        const bool has = i <= q3_cpu_detected();
        assert_int_equal(q3_cpu_limit((q3_cpu_level)i, &err), has);
        if (has) {
            assert_int_equal(q3_cpu_in_use(), i);
        } else {
            char text[100];
            snprintf(text, sizeof text, "this processor has no %s: its best level is %s", names[i],
                     names[q3_cpu_detected()]);
            assert_string_equal(err.message, text);
            assert_int_equal(q3_cpu_in_use(), q3_cpu_detected());
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(like_weights),
        cmocka_unit_test(bytes_stay),
        cmocka_unit_test(one_exponent),
        cmocka_unit_test(every_code),
        cmocka_unit_test(adversarial),
        cmocka_unit_test(largest),
        cmocka_unit_test(odd_bytes_are_left),
        cmocka_unit_test(truncations),
        cmocka_unit_test(single_bits),
        cmocka_unit_test(garbage),
        cmocka_unit_test(messages),
        cmocka_unit_test(less_than_a_group),
        cmocka_unit_test(numbers_are_checked),
        cmocka_unit_test(codec),
        cmocka_unit_test(cpu_levels),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
