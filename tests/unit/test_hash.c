// SPDX-License-Identifier: Apache-2.0
//
// XXH3: known values, and the same hashes from every level of this processor, at once and in
// pieces.
#include "base/cpu.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BYTES = 5000 };

static uint8_t data[BYTES];
static unsigned levels;

static int set_up(void **state)
{
    (void)state;
    // The high bytes of a product with powers of a prime: no two stripes alike.
    uint64_t number = 2654435761;
    for (size_t i = 0; i < BYTES; i++, number *= UINT64_C(11400714785074694797))
        data[i] = (uint8_t)(number >> 56);
    levels = q3_cpu_detected() + 1;
    return 0;
}

static void use(unsigned level)
{
    q3_error err;
    assert_true(q3_cpu_limit((q3_cpu_level)level, &err));
}

// What the shared library of xxHash 0.8.1 gives.
static void known_values(void **state)
{
    (void)state;
    char text[Q3_HASH_TEXT];
    for (unsigned level = 0; level < levels; level++) {
        use(level);
        assert_int_equal(q3_hash64("", 0), UINT64_C(0x2d06800538d394c2));
        assert_string_equal(q3_hash128_text(q3_hash128_of("", 0), text),
                            "99aa06d3014798d86001c324468d497f");
        assert_int_equal(q3_hash64("abc", 3), UINT64_C(0x78af5f94892f3950));
        assert_string_equal(q3_hash128_text(q3_hash128_of("abc", 3), text),
                            "06b05ab6733a618578af5f94892f3950");
        assert_int_equal(q3_hash64(data, BYTES), UINT64_C(0x1c246c7bfe003a78));
        assert_string_equal(q3_hash128_text(q3_hash128_of(data, BYTES), text),
                            "3d26bfdbe2ad891e1c246c7bfe003a78");
    }
}

static void levels_agree(void **state)
{
    (void)state;
    for (size_t size = 0; size <= BYTES; size += size < 600 ? 1 : 37) {
        use(0);
        const uint64_t short_hash = q3_hash64(data, size);
        const q3_hash128 long_hash = q3_hash128_of(data, size);
        for (unsigned level = 1; level < levels; level++) {
            use(level);
            assert_int_equal(q3_hash64(data, size), short_hash);
            assert_true(q3_hash128_equal(q3_hash128_of(data, size), long_hash));
        }
    }
}

static void pieces(void **state)
{
    (void)state;
    q3_error err;
    const q3_hash128 whole = q3_hash128_of(data, BYTES);
    q3_hasher *hasher = q3_hasher_create(&err);
    assert_non_null(hasher);
    for (size_t piece = 1; piece <= BYTES; piece = piece * 3 / 2 + 1) {
        q3_hasher_reset(hasher);
        unsigned level = 0;
        for (size_t done = 0; done < BYTES; level++) {
            // A state is the same for all levels.
            use(level % levels);
            const size_t size = BYTES - done < piece ? BYTES - done : piece;
            q3_hasher_update(hasher, data + done, size);
            done += size;
        }
        assert_true(q3_hash128_equal(q3_hasher_finish(hasher), whole));
    }
    q3_hasher_destroy(hasher);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_values),
        cmocka_unit_test(levels_agree),
        cmocka_unit_test(pieces),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
