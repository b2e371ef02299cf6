// SPDX-License-Identifier: Apache-2.0
//
// Which experts an export keeps, and the numbers that they get.
#ifndef Q3_EXPORT_KEPT_H
#define Q3_EXPORT_KEPT_H

#include "set.h"

typedef struct q3_kept {
    uint32_t layers;   // of the model
    uint32_t count;    // experts kept in each layer
    uint32_t *experts; // [layer][count], ascending: expert experts[i] gets the number i
} q3_kept;

// Chooses the experts of a pool file, all of which the pack must have, or without one (NULL) those
// that the pack has. A different number in two layers is Q3_MALFORMED for a pool and Q3_INCOMPLETE
// for a pack.
bool q3_kept_choose(const q3_set *set, const char *pool_path, q3_kept *kept, q3_error *err);
void q3_kept_free(q3_kept *kept); // a zeroed one is fine

// The experts that stay in a layer: kept->count numbers.
const uint32_t *q3_kept_of(const q3_kept *kept, uint32_t layer);
// The new number of an expert, or false when it goes.
bool q3_kept_number(const q3_kept *kept, uint32_t layer, uint32_t expert, uint32_t *number);

#endif
