// SPDX-License-Identifier: Apache-2.0
//
// Large zeroed memory of a size that is known beforehand, so that a budget can count it to the
// byte: one mapping (of no file), its pages taken from the system when they are first written.
// Parts are handed out from the front and freed all together.
#ifndef Q3_RUNTIME_REGION_H
#define Q3_RUNTIME_REGION_H

#include "base/error.h"

#include <stdint.h>

typedef struct q3_region {
    uint8_t *data;
    uint64_t size, used;
} q3_region;

// Reserves `size` bytes, on huge pages where the system has them.
bool q3_region_create(uint64_t size, q3_region *region, q3_error *err);
void q3_region_destroy(q3_region *region); // a zeroed or destroyed one is fine

// The next `bytes` bytes, aligned to Q3_REGION_ALIGNMENT. The caller has counted with
// q3_region_part what it takes: there is always room.
enum { Q3_REGION_ALIGNMENT = 64 };
void *q3_region_take(q3_region *region, uint64_t bytes);

// How much of a region a part of count * size bytes takes. Sizes come from a checked configuration,
// whose largest products stay far below 2^64.
static inline uint64_t q3_region_part(uint64_t count, uint64_t size)
{
    return (count * size + Q3_REGION_ALIGNMENT - 1) & ~(uint64_t)(Q3_REGION_ALIGNMENT - 1);
}

#endif
