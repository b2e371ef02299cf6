// SPDX-License-Identifier: Apache-2.0
//
// Which experts the router may choose, in each layer: those that the pack has, and of these, when a
// pool file (pool/pool.h) is given, those that it names. The others' logits are masked before the
// softmax.
#ifndef Q3_RUNTIME_EXPERT_POOL_H
#define Q3_RUNTIME_EXPERT_POOL_H

#include "model.h"

typedef struct q3_expert_pool {
    uint32_t layers, experts;
    bool *allowed;   // [layer][expert]
    uint32_t *count; // of the allowed ones of each layer, at least 1
    uint64_t total;
    uint64_t named; // in the file, held or not; 0 without a file
} q3_expert_pool;

// path: a pool file, or NULL for all that the pack has. A pool of which the pack has no expert in
// some layer is Q3_INCOMPLETE.
bool q3_expert_pool_create(const q3_model *model, const char *path, q3_expert_pool *pool,
                           q3_error *err);
void q3_expert_pool_destroy(q3_expert_pool *pool); // a zeroed one is fine

#endif
