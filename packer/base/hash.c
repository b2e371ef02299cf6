// SPDX-License-Identifier: Apache-2.0
#define Q3_HASH_FILL q3_hash_kernels_fill_c
#include "hash_kernels.h"

#include "cpu.h"
#include "hash.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static q3_hash_kernels kernels[Q3_CPU_LEVELS];
static pthread_once_t fill_once = PTHREAD_ONCE_INIT;

static void fill(void)
{
    for (unsigned level = 0; level < Q3_CPU_LEVELS; level++)
        q3_hash_kernels_fill_c(&kernels[level]);
#if defined __x86_64__
    q3_hash_kernels_fill_avx2(&kernels[Q3_CPU_AVX2]);
    for (unsigned level = Q3_CPU_AVX512; level < Q3_CPU_LEVELS; level++)
        q3_hash_kernels_fill_avx512(&kernels[level]);
#endif
}

static const q3_hash_kernels *in_use(void)
{
    pthread_once(&fill_once, fill);
    return &kernels[q3_cpu_in_use()];
}

uint64_t q3_hash64(const void *data, size_t size)
{
    return in_use()->hash64(data, size);
}

q3_hash128 q3_hash128_of(const void *data, size_t size)
{
    uint64_t result[2];
    in_use()->hash128(data, size, result);
    return (q3_hash128){.low = result[0], .high = result[1]};
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

struct q3_hasher {
    XXH3_state_t state; // whose alignment of 64 malloc does not promise
};

q3_hasher *q3_hasher_create(q3_error *err)
{
    void *hasher = NULL;
    if (posix_memalign(&hasher, 64, sizeof(q3_hasher)) != 0) {
        q3_fail_memory(err, sizeof(q3_hasher));
        return NULL;
    }
    q3_hasher_reset(hasher);
    return hasher;
}

void q3_hasher_reset(q3_hasher *hasher)
{
    in_use()->reset(&hasher->state);
}

void q3_hasher_update(q3_hasher *hasher, const void *data, size_t size)
{
    in_use()->update(&hasher->state, data, size);
}

q3_hash128 q3_hasher_finish(const q3_hasher *hasher)
{
    uint64_t result[2];
    in_use()->finish(&hasher->state, result);
    return (q3_hash128){.low = result[0], .high = result[1]};
}

void q3_hasher_destroy(q3_hasher *hasher)
{
    free(hasher);
}
