// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.h"

uint64_t q3_kv_cache_bytes(const q3_config *config, uint32_t context)
{
    return 2 * sizeof(float) * config->num_hidden_layers * (uint64_t)config->num_key_value_heads *
           context * config->head_dim;
}

bool q3_kv_cache_create(const q3_config *config, uint32_t context, q3_kv_cache *cache,
                        q3_error *err)
{
    *cache = (q3_kv_cache){
        .heads = config->num_key_value_heads, .context = context, .head_dim = config->head_dim};
    return q3_region_create(q3_kv_cache_bytes(config, context), &cache->memory, err);
}

void q3_kv_cache_destroy(q3_kv_cache *cache)
{
    q3_region_destroy(&cache->memory);
}

static float *run_at(const q3_kv_cache *cache, uint64_t run)
{
    return (float *)(void *)cache->memory.data + run * cache->context * cache->head_dim;
}

float *q3_kv_cache_keys(const q3_kv_cache *cache, uint32_t layer, uint32_t head)
{
    return run_at(cache, (uint64_t)2 * layer * cache->heads + head);
}

float *q3_kv_cache_values(const q3_kv_cache *cache, uint32_t layer, uint32_t head)
{
    return run_at(cache, ((uint64_t)2 * layer + 1) * cache->heads + head);
}
