// SPDX-License-Identifier: Apache-2.0
//
// A record of the experts that were not in memory when a layer needed them, for reading them again.
#ifndef Q3_RUNTIME_MISSES_H
#define Q3_RUNTIME_MISSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct q3_miss {
    uint32_t layer, expert;
    bool first; // of those that the layer needed at once
} q3_miss;

typedef struct q3_misses {
    q3_miss *list; // the owner's to free
    size_t count, room;
} q3_misses;

#endif
