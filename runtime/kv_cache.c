// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.h"

#include <string.h>

static size_t number_bytes(bool narrow)
{
    return narrow ? sizeof(uint16_t) : sizeof(float);
}

uint64_t q3_kv_cache_bytes(const q3_config *config, uint32_t context, bool narrow)
{
    return 2 * number_bytes(narrow) * config->num_hidden_layers *
           (uint64_t)config->num_key_value_heads * q3_score_stride(context) * config->head_dim;
}

bool q3_kv_cache_create(const q3_config *config, const q3_kernels *kernels, uint32_t context,
                        bool narrow, q3_kv_cache *cache, q3_error *err)
{
    *cache = (q3_kv_cache){
        .kernels = kernels,
        .heads = config->num_key_value_heads,
        .head_dim = config->head_dim,
        .context = (uint32_t)q3_score_stride(context),
        .narrow = narrow,
    };
    return q3_region_create(q3_kv_cache_bytes(config, context, narrow), &cache->memory, err);
}

void q3_kv_cache_destroy(q3_kv_cache *cache)
{
    q3_region_destroy(&cache->memory);
}

static uint8_t *run_at(const q3_kv_cache *cache, uint64_t run)
{
    return cache->memory.data +
           run * cache->context * cache->head_dim * number_bytes(cache->narrow);
}

const void *q3_kv_cache_keys(const q3_kv_cache *cache, uint32_t layer, uint32_t head)
{
    return run_at(cache, (uint64_t)2 * layer * cache->heads + head);
}

const void *q3_kv_cache_values(const q3_kv_cache *cache, uint32_t layer, uint32_t head)
{
    return run_at(cache, ((uint64_t)2 * layer + 1) * cache->heads + head);
}

void q3_kv_cache_put(const q3_kv_cache *cache, uint32_t layer, uint32_t head, uint32_t position,
                     const float *key, const float *value)
{
    const size_t dim = cache->head_dim;
    const size_t panel = position / Q3_KEY_PANEL * Q3_KEY_PANEL * dim,
                 lane = position % Q3_KEY_PANEL;
    uint8_t *keys = run_at(cache, (uint64_t)2 * layer * cache->heads + head);
    uint8_t *values = run_at(cache, ((uint64_t)2 * layer + 1) * cache->heads + head);
    if (cache->narrow) {
        uint16_t *to = (uint16_t *)(void *)keys + panel + lane;
        for (size_t d = 0; d < dim; d++)
            cache->kernels->narrow(&key[d], 1, &to[d * Q3_KEY_PANEL]);
        cache->kernels->narrow(value, dim, (uint16_t *)(void *)values + position * dim);
    } else {
        float *to = (float *)(void *)keys + panel + lane;
        for (size_t d = 0; d < dim; d++)
            to[d * Q3_KEY_PANEL] = key[d];
        memcpy((float *)(void *)values + position * dim, value, dim * sizeof *value);
    }
}
