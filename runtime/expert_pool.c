// SPDX-License-Identifier: Apache-2.0
#include "expert_pool.h"

#include "base/json.h"

#include <inttypes.h>
#include <stdlib.h>

enum { POOL_BYTES_MAX = 64 << 20 };

// Marks the experts that the file names in members[layer][expert].
static bool read_members(const q3_json *json, const q3_config *config, bool *members, q3_error *err)
{
    const cJSON *layers, *layer, *item;
    const uint32_t experts = config->num_experts;
    if (!q3_json_array(json, json->root, "layers", &layers, err))
        return false;
    if ((uint32_t)cJSON_GetArraySize(layers) != config->num_hidden_layers)
        return q3_json_fail(json, layers, Q3_MALFORMED, err,
                            "expected the model's %" PRIu32 " layers, found %d",
                            config->num_hidden_layers, cJSON_GetArraySize(layers));
    cJSON_ArrayForEach(layer, layers)
    {
        if (!cJSON_IsArray(layer) || cJSON_GetArraySize(layer) == 0)
            return q3_json_fail(json, layer, Q3_MALFORMED, err,
                                "expected a list of at least one expert");
        cJSON_ArrayForEach(item, layer)
        {
            uint64_t expert;
            if (!q3_json_item_u64(json, item, 0, experts - 1, &expert, err))
                return false;
            if (members[expert])
                return q3_json_fail(json, item, Q3_MALFORMED, err,
                                    "expert %" PRIu64 " is there twice", expert);
            members[expert] = true;
        }
        members += experts;
    }
    return true;
}

static bool load_members(const char *path, const q3_config *config, bool *members, q3_error *err)
{
    q3_json json;
    if (!q3_json_load(path, POOL_BYTES_MAX, &json, err))
        return false;
    const bool ok = read_members(&json, config, members, err);
    q3_json_free(&json);
    return ok;
}

bool q3_expert_pool_create(const q3_model *model, const char *path, q3_expert_pool *pool,
                           q3_error *err)
{
    const q3_config *config = model->config;
    *pool = (q3_expert_pool){.layers = config->num_hidden_layers, .experts = config->num_experts};
    pool->allowed = q3_alloc_zeroed(pool->layers, pool->experts, err);
    pool->count = pool->allowed ? q3_alloc_zeroed(pool->layers, sizeof *pool->count, err) : NULL;
    bool ok = pool->count && (!path || load_members(path, config, pool->allowed, err));
    for (uint32_t i = 0; ok && i < pool->layers; i++) {
        for (uint32_t j = 0; j < pool->experts; j++) {
            const size_t at = (size_t)i * pool->experts + j;
            pool->named += pool->allowed[at];
            pool->allowed[at] = model->held[at] && (!path || pool->allowed[at]);
            pool->count[i] += pool->allowed[at];
        }
        pool->total += pool->count[i];
        if (pool->count[i] == 0)
            ok = q3_fail(err, Q3_INCOMPLETE,
                         "%s: layer %" PRIu32 ": %s has none of the pool's experts", path, i,
                         model->set.directory);
    }
    if (!ok)
        q3_expert_pool_destroy(pool);
    return ok;
}

void q3_expert_pool_destroy(q3_expert_pool *pool)
{
    free(pool->allowed);
    free(pool->count);
    *pool = (q3_expert_pool){0};
}
