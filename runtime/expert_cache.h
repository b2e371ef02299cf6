// SPDX-License-Identifier: Apache-2.0
//
// The experts in memory: for each layer a set of slots of its own, least recently used out first (a
// token sweeps all the layers, so one set for all of them would forget each layer before it comes
// round again). A slot's memory is first touched when an expert is first loaded into it. Each
// expert's checksums are verified as it is loaded.
//
// The forward pass does not ask for experts one by one. It names all that a layer needs now, and
// the cache calls back with groups of them in the order that suits it: what is resident first, then
// what has to be read. So the cache may hold experts in other forms, or read some while others are
// computed, without the forward pass knowing.
#ifndef Q3_RUNTIME_EXPERT_CACHE_H
#define Q3_RUNTIME_EXPERT_CACHE_H

#include "model.h"

typedef struct q3_expert_cache q3_expert_cache;

typedef struct q3_expert {
    uint32_t number;
    q3_matrix gate, up, down;
} q3_expert;

typedef struct q3_expert_counts {
    uint64_t hits, misses; // experts that a batch needed in a layer: resident, or read
    uint64_t bytes_read;   // from the pack files
    double seconds;        // spent reading and decoding
} q3_expert_counts;

// slots: for each layer, at least 1. The model and the team must outlive the cache.
bool q3_expert_cache_create(const q3_model *model, const q3_team *team, const uint32_t *slots,
                            q3_expert_cache **cache, q3_error *err);
void q3_expert_cache_destroy(q3_expert_cache *cache); // NULL is fine

// Memory that slots for `slots` experts in all take.
uint64_t q3_expert_cache_bytes(const q3_config *config, uint64_t slots);

// Calls `visit` with groups of the layer's `experts` (ascending, none twice), each expert once; the
// matrices are good during that call. Ends with the first failure.
typedef void q3_expert_visit(void *context, const q3_expert *group, uint32_t count);
bool q3_expert_cache_visit(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                           uint32_t count, q3_expert_visit *visit, void *context, q3_error *err);

// Sets resident[expert] for each expert of the model: is it in memory in this layer?
void q3_expert_cache_mark(const q3_expert_cache *cache, uint32_t layer, bool *resident);

q3_expert_counts q3_expert_cache_counts(const q3_expert_cache *cache);

#endif
