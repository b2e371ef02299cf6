// SPDX-License-Identifier: Apache-2.0
//
// XXH3 (xxHash 0.8), seed 0: 64 bits for headers and frames, 128 bits for tensors and files. As
// text a 128-bit hash is its canonical form, high half first: the 32 digits that `xxhsum -H2`
// prints.
#ifndef Q3_BASE_HASH_H
#define Q3_BASE_HASH_H

#include "error.h"

#include <stdint.h>

typedef struct q3_hash128 {
    uint64_t low, high;
} q3_hash128;

uint64_t q3_hash64(const void *data, size_t size);
q3_hash128 q3_hash128_of(const void *data, size_t size);
bool q3_hash128_equal(q3_hash128 a, q3_hash128 b);

enum { Q3_HASH_TEXT = 33 };
const char *q3_hash128_text(q3_hash128 hash, char out[Q3_HASH_TEXT]);
// False unless text is exactly 32 lower-case hexadecimal digits.
bool q3_hash128_parse(const char *text, q3_hash128 *hash);

// A hash over data that comes in pieces.
typedef struct q3_hasher q3_hasher;
q3_hasher *q3_hasher_create(q3_error *err);
void q3_hasher_reset(q3_hasher *hasher);
void q3_hasher_update(q3_hasher *hasher, const void *data, size_t size);
q3_hash128 q3_hasher_finish(const q3_hasher *hasher);
void q3_hasher_destroy(q3_hasher *hasher); // NULL is fine

#endif
