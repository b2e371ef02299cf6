// SPDX-License-Identifier: Apache-2.0
//
// The keys and values of a session's past positions, float32 or bf16, laid out for
// q3_kernels.attend: for each layer and head one run of keys, in panels of Q3_KEY_PANEL positions,
// and one of values. Memory is reserved for the whole context and taken as positions are filled.
#ifndef Q3_RUNTIME_KV_CACHE_H
#define Q3_RUNTIME_KV_CACHE_H

#include "kernels/kernels.h"
#include "model/config.h"
#include "region.h"

typedef struct q3_kv_cache {
    q3_region memory;
    const q3_kernels *kernels;
    uint32_t heads, head_dim;
    uint32_t context; // positions that there is room for: whole panels
    bool narrow;      // bf16
} q3_kv_cache;

bool q3_kv_cache_create(const q3_config *config, const q3_kernels *kernels, uint32_t context,
                        bool narrow, q3_kv_cache *cache, q3_error *err);
void q3_kv_cache_destroy(q3_kv_cache *cache); // a zeroed one is fine
uint64_t q3_kv_cache_bytes(const q3_config *config, uint32_t context, bool narrow);

// The keys, or values, of a head in a layer.
const void *q3_kv_cache_keys(const q3_kv_cache *cache, uint32_t layer, uint32_t head);
const void *q3_kv_cache_values(const q3_kv_cache *cache, uint32_t layer, uint32_t head);

// Puts a position's key and value, head_dim numbers each, into their places.
void q3_kv_cache_put(const q3_kv_cache *cache, uint32_t layer, uint32_t head, uint32_t position,
                     const float *key, const float *value);

#endif
