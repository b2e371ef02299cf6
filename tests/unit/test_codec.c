// SPDX-License-Identifier: Apache-2.0
//
// Codecs: every frame that goes in comes out, whatever its bytes; what does not shrink is stored
// raw; stored bytes of any content never read or write outside.
#include "codec/codec.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static uint64_t random_state = 1;

static uint32_t random_number(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

// Exponents around that of 0.02, as trained weights have them.
static void fill_weights(uint8_t *raw, size_t weights)
{
    for (size_t i = 0; i < weights; i++) {
        const uint32_t bits = random_number();
        const uint32_t exponent = 121 - (uint32_t)__builtin_ctz(bits | 1 << 8);
        const uint32_t value = (bits >> 9 & 1) << 15 | exponent << 7 | (bits >> 10 & 127);
        raw[2 * i] = (uint8_t)value;
        raw[2 * i + 1] = (uint8_t)(value >> 8);
    }
}

// Encodes exactly and decodes exactly: both buffers end where AddressSanitizer would notice.
static size_t round_trip(q3_coder *coder, q3_codec codec, q3_dtype dtype, const uint8_t *raw,
                         size_t size, q3_codec *used)
{
    q3_error err;
    uint8_t *stored = malloc(size), *back = malloc(size);
    size_t stored_bytes = 0;
    *used = codec;
    if (!q3_codec_encode(coder, used, dtype, 0, raw, size, stored, &stored_bytes, &err))
        fail_msg("%s", err.message);
    assert_true(stored_bytes <= size);
    if (*used == Q3_CODEC_RAW)
        assert_int_equal(stored_bytes, size);
    else
        assert_true(stored_bytes < size);
    if (!q3_codec_decode(coder, *used, stored, stored_bytes, back, size, &err))
        fail_msg("%s", err.message);
    assert_memory_equal(raw, back, size);
    free(stored);
    free(back);
    return stored_bytes;
}

static void test_round_trip(void **state)
{
    (void)state;
    q3_error err;
    q3_coder *coder = q3_coder_create(&err);
    static const size_t weights[] = {1,    2,    31,    32,     33,     64,    127,
                                     1000, 4096, 65535, 131072, 131073, 300000};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        const size_t size = 2 * weights[i];
        uint8_t *raw = malloc(size);
        q3_codec used;
        fill_weights(raw, weights[i]);
        const size_t stored = round_trip(coder, Q3_CODEC_ZSTD, Q3_BF16, raw, size, &used);
        if (weights[i] >= 4096)
            assert_true(stored < size * 7 / 10);
        round_trip(coder, Q3_CODEC_RAW, Q3_BF16, raw, size, &used);
        assert_int_equal(used, Q3_CODEC_RAW);
        for (size_t k = 0; k < size; k++)
            raw[k] = (uint8_t)random_number();
        round_trip(coder, Q3_CODEC_ZSTD, Q3_BF16, raw, size, &used);
        assert_int_equal(used, Q3_CODEC_RAW); // noise does not shrink
        memset(raw, 0, size);
        round_trip(coder, Q3_CODEC_ZSTD, Q3_BF16, raw, size, &used);
        round_trip(coder, Q3_CODEC_ZSTD, Q3_F32, raw, size & ~(size_t)3, &used);
        assert_int_equal(used, Q3_CODEC_RAW); // zstd is for bf16 alone
        free(raw);
    }
    q3_coder_destroy(coder);
}

static void test_every_exponent(void **state)
{
    (void)state;
    q3_error err;
    q3_coder *coder = q3_coder_create(&err);
    enum { SIZE = 2 * 65536 };
    uint8_t *raw = malloc(SIZE);
    for (size_t i = 0; i < 65536; i++) {
        raw[2 * i] = (uint8_t)i;
        raw[2 * i + 1] = (uint8_t)(i >> 8);
    }
    q3_codec used;
    round_trip(coder, Q3_CODEC_ZSTD, Q3_BF16, raw, SIZE, &used);
    free(raw);
    q3_coder_destroy(coder);
}

static void test_refusals(void **state)
{
    (void)state;
    q3_error err;
    q3_coder *coder = q3_coder_create(&err);
    uint8_t raw[8192], stored[8192], back[8192];
    fill_weights(raw, 4096);
    q3_codec codec = Q3_CODEC_ZSTD;
    size_t size;
    assert_true(q3_codec_encode(coder, &codec, Q3_BF16, 0, raw, sizeof raw, stored, &size, &err));
    assert_int_equal(codec, Q3_CODEC_ZSTD);

    assert_false(q3_codec_decode(coder, Q3_CODEC_RAW, stored, 100, back, 101, &err));
    assert_string_equal(err.message, "raw frame: expected 101 stored bytes, found 100");
    assert_int_equal(err.code, Q3_MALFORMED);
    assert_false(q3_codec_decode(coder, Q3_CODEC_ZSTD, stored, 4095, back, 8192, &err));
    assert_string_equal(err.message,
                        "zstd frame: 4095 stored bytes cannot make 8192 bytes of bf16");
    assert_false(q3_codec_decode(coder, Q3_CODEC_ZSTD, stored, size, back, 8191, &err));
    assert_false(q3_codec_decode(coder, Q3_CODEC_ZSTD, stored, size, back, 8190, &err));
    assert_false(q3_codec_decode(coder, (q3_codec)9, stored, size, back, 8192, &err));
    assert_string_equal(err.message, "unknown codec 9");
    // An exponent plane of fewer weights than the frame has.
    uint8_t *longer = malloc(size + 1);
    memcpy(longer, stored, 4096);
    longer[4096] = 0;
    memcpy(longer + 4097, stored + 4096, size - 4096);
    assert_false(q3_codec_decode(coder, Q3_CODEC_ZSTD, longer, size + 1, back, 8192, &err));
    assert_int_equal(err.code, Q3_MALFORMED);
    free(longer);
    q3_coder_destroy(coder);
}

// Damaged frames decode to something or fail, and never touch what is not theirs.
static void test_damage(void **state)
{
    (void)state;
    q3_error err;
    q3_coder *coder = q3_coder_create(&err);
    enum { SIZE = 2048 };
    uint8_t raw[SIZE];
    fill_weights(raw, SIZE / 2);
    uint8_t stored[SIZE];
    size_t size, failures = 0;
    q3_codec codec = Q3_CODEC_ZSTD;
    assert_true(q3_codec_encode(coder, &codec, Q3_BF16, 0, raw, SIZE, stored, &size, &err));
    for (size_t bit = 8 * SIZE / 2; bit < 8 * size; bit++) {
        uint8_t *copy = malloc(size), *back = malloc(SIZE);
        memcpy(copy, stored, size);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (!q3_codec_decode(coder, codec, copy, size, back, SIZE, &err)) {
            assert_int_equal(err.code, Q3_MALFORMED);
            failures++;
        }
        free(copy);
        free(back);
    }
    assert_true(failures > 0);
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *copy = malloc(cut ? cut : 1), *back = malloc(SIZE);
        memcpy(copy, stored, cut);
        assert_false(q3_codec_decode(coder, codec, copy, cut, back, SIZE, &err));
        free(copy);
        free(back);
    }
    q3_coder_destroy(coder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_every_exponent),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
