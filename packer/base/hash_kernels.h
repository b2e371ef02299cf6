// SPDX-License-Identifier: Apache-2.0
//
// XXH3 compiled for each level of processor: xxhash.h, inlined, uses the vectors that the compiler
// is told of, and is several times faster so than the shared library, which knows none but SSE2.
//
// A file that defines Q3_HASH_FILL before including this header gets a function of that name that
// fills in versions made with that file's flags. The state is the same for all of them.
#ifndef Q3_BASE_HASH_KERNELS_H
#define Q3_BASE_HASH_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef struct q3_hash_kernels {
    uint64_t (*hash64)(const void *data, size_t size);
    // result: low half, high half.
    void (*hash128)(const void *data, size_t size, uint64_t result[2]);
    void (*reset)(void *state);
    void (*update)(void *state, const void *data, size_t size);
    void (*finish)(const void *state, uint64_t result[2]);
} q3_hash_kernels;

void q3_hash_kernels_fill_c(q3_hash_kernels *kernels);
void q3_hash_kernels_fill_avx2(q3_hash_kernels *kernels);
void q3_hash_kernels_fill_avx512(q3_hash_kernels *kernels);

#ifdef Q3_HASH_FILL

// Frames come from memory, not from a cache: asking further ahead than xxHash would is worth a
// fifth.
#define XXH_PREFETCH_DIST 2048
#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t kernel_hash64(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

static void kernel_hash128(const void *data, size_t size, uint64_t result[2])
{
    const XXH128_hash_t hash = XXH3_128bits(data, size);
    result[0] = hash.low64;
    result[1] = hash.high64;
}

static void kernel_reset(void *state)
{
    XXH3_128bits_reset(state);
}

static void kernel_update(void *state, const void *data, size_t size)
{
    XXH3_128bits_update(state, data, size);
}

static void kernel_finish(const void *state, uint64_t result[2])
{
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    result[0] = hash.low64;
    result[1] = hash.high64;
}

void Q3_HASH_FILL(q3_hash_kernels *kernels)
{
    *kernels = (q3_hash_kernels){kernel_hash64, kernel_hash128, kernel_reset, kernel_update,
                                 kernel_finish};
}

#endif
#endif
