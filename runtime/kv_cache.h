// SPDX-License-Identifier: Apache-2.0
//
// The keys and values of a session's past positions: float32, laid out
// [layer][key or value][head][position][head_dim], so that what one head attends to is one run.
// Memory is reserved for the whole context and taken as positions are filled.
#ifndef Q3_RUNTIME_KV_CACHE_H
#define Q3_RUNTIME_KV_CACHE_H

#include "model/config.h"
#include "region.h"

typedef struct q3_kv_cache {
    q3_region memory;
    uint32_t heads, context, head_dim;
} q3_kv_cache;

bool q3_kv_cache_create(const q3_config *config, uint32_t context, q3_kv_cache *cache,
                        q3_error *err);
void q3_kv_cache_destroy(q3_kv_cache *cache); // a zeroed one is fine
uint64_t q3_kv_cache_bytes(const q3_config *config, uint32_t context);

// Position 0 of a head in a layer; each further position head_dim numbers on.
float *q3_kv_cache_keys(const q3_kv_cache *cache, uint32_t layer, uint32_t head);
float *q3_kv_cache_values(const q3_kv_cache *cache, uint32_t layer, uint32_t head);

#endif
