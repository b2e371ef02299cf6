// SPDX-License-Identifier: Apache-2.0
#include "hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
#ifdef Q3_XXHASH_DISPATCH
// The same functions, each chosen at run time for the processor's vector instructions.
#include <xxh_x86dispatch.h>
#endif

uint64_t q3_hash64(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

static q3_hash128 from_xxh(XXH128_hash_t hash)
{
    return (q3_hash128){.low = hash.low64, .high = hash.high64};
}

q3_hash128 q3_hash128_of(const void *data, size_t size)
{
    return from_xxh(XXH3_128bits(data, size));
}

bool q3_hash128_equal(q3_hash128 a, q3_hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

const char *q3_hash128_text(q3_hash128 hash, char out[Q3_HASH_TEXT])
{
    snprintf(out, Q3_HASH_TEXT, "%016" PRIx64 "%016" PRIx64, hash.high, hash.low);
    return out;
}

bool q3_hash128_parse(const char *text, q3_hash128 *hash)
{
    if (strlen(text) != 32 || strspn(text, "0123456789abcdef") != 32)
        return false;
    uint64_t half[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        const char c = text[i];
        half[i / 16] = half[i / 16] << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    *hash = (q3_hash128){.high = half[0], .low = half[1]};
    return true;
}

static XXH3_state_t *state_of(q3_hasher *hasher)
{
    return (XXH3_state_t *)(void *)hasher;
}

q3_hasher *q3_hasher_create(q3_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    if (!state) {
        q3_fail(err, Q3_FAILED, "out of memory (a hash)");
        return NULL;
    }
    XXH3_128bits_reset(state);
    return (q3_hasher *)(void *)state;
}

void q3_hasher_reset(q3_hasher *hasher)
{
    XXH3_128bits_reset(state_of(hasher));
}

void q3_hasher_update(q3_hasher *hasher, const void *data, size_t size)
{
    XXH3_128bits_update(state_of(hasher), data, size);
}

q3_hash128 q3_hasher_finish(const q3_hasher *hasher)
{
    return from_xxh(XXH3_128bits_digest((const XXH3_state_t *)(const void *)hasher));
}

void q3_hasher_destroy(q3_hasher *hasher)
{
    XXH3_freeState(state_of(hasher));
}
