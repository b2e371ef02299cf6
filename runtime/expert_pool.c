// SPDX-License-Identifier: Apache-2.0
#include "expert_pool.h"

#include "pool/pool.h"

#include <inttypes.h>
#include <stdlib.h>

bool q3_expert_pool_create(const q3_model *model, const char *path, q3_expert_pool *pool,
                           q3_error *err)
{
    const q3_config *config = model->config;
    *pool = (q3_expert_pool){.layers = config->num_hidden_layers, .experts = config->num_experts};
    q3_pool named = {0};
    if (path && !q3_pool_read(path, pool->layers, pool->experts, &named, err))
        return false;
    pool->named = named.total;
    pool->allowed = q3_alloc_zeroed(pool->layers, pool->experts, err);
    pool->count = pool->allowed ? q3_alloc_zeroed(pool->layers, sizeof *pool->count, err) : NULL;
    bool ok = pool->count != NULL;
    for (uint32_t i = 0; ok && i < pool->layers; i++) {
        for (uint32_t j = 0; j < pool->experts; j++) {
            const size_t at = (size_t)i * pool->experts + j;
            pool->allowed[at] = model->held[at] && (!path || named.members[at]);
            pool->count[i] += pool->allowed[at];
        }
        pool->total += pool->count[i];
        if (pool->count[i] == 0)
            ok = q3_fail(err, Q3_INCOMPLETE,
                         "%s: layer %" PRIu32 ": %s has none of the pool's experts", path, i,
                         model->set.directory);
    }
    q3_pool_destroy(&named);
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
