// SPDX-License-Identifier: Apache-2.0
#include "kept.h"

#include "pool/pool.h"

#include <inttypes.h>
#include <stdlib.h>

static bool collect_held(const q3_set *set, q3_pool *held, q3_error *err)
{
    if (!q3_pool_create(set->config.num_hidden_layers, set->config.num_experts, held, err))
        return false;
    for (size_t i = 0; i < set->file_count; i++) {
        const q3_place *place = &set->files[i].place;
        if (place->component == Q3_TEXT && place->part == Q3_EXPERT)
            q3_pool_add(held, place->layer, place->expert);
    }
    return true;
}

static bool check_covered(const q3_set *set, const char *path, const q3_pool *wanted,
                          const q3_pool *held, q3_error *err)
{
    for (uint32_t layer = 0; layer < wanted->layers; layer++)
        for (uint32_t expert = 0; expert < wanted->experts; expert++)
            if (q3_pool_has(wanted, layer, expert) && !q3_pool_has(held, layer, expert))
                return q3_fail(err, Q3_INCOMPLETE,
                               "%s: layer %" PRIu32 ": the pool has expert %" PRIu32
                               ", which %s does not have",
                               path, layer, expert, set->directory);
    return true;
}

static bool check_equal(const q3_set *set, const char *path, const q3_pool *wanted, q3_error *err)
{
    for (uint32_t layer = 0; layer < wanted->layers; layer++) {
        if (wanted->count[layer] == 0)
            return q3_fail(err, Q3_INCOMPLETE, "%s: has no expert of layer %" PRIu32,
                           set->directory, layer);
        if (wanted->count[layer] != wanted->count[0])
            return q3_fail(err, path ? Q3_MALFORMED : Q3_INCOMPLETE,
                           "%s: layer 0 has %" PRIu32 " experts, layer %" PRIu32 " has %" PRIu32
                           "; an exported model needs the same number in every layer",
                           path ? path : set->directory, wanted->count[0], layer,
                           wanted->count[layer]);
    }
    return true;
}

bool q3_kept_choose(const q3_set *set, const char *pool_path, q3_kept *kept, q3_error *err)
{
    const q3_config *config = &set->config;
    q3_pool held = {0}, pool = {0};
    *kept = (q3_kept){.layers = config->num_hidden_layers};
    bool ok = collect_held(set, &held, err);
    const q3_pool *wanted = &held;
    if (ok && pool_path) {
        wanted = &pool;
        ok = q3_pool_read(pool_path, config->num_hidden_layers, config->num_experts, &pool, err) &&
             check_covered(set, pool_path, &pool, &held, err);
    }
    ok = ok && check_equal(set, pool_path, wanted, err);
    if (ok) {
        kept->count = wanted->count[0];
        kept->experts = q3_alloc((size_t)kept->layers * kept->count, sizeof *kept->experts, err);
        ok = kept->experts != NULL;
    }
    uint32_t *to = kept->experts;
    for (uint32_t layer = 0; ok && layer < kept->layers; layer++)
        for (uint32_t expert = 0; expert < config->num_experts; expert++)
            if (q3_pool_has(wanted, layer, expert))
                *to++ = expert;
    q3_pool_destroy(&pool);
    q3_pool_destroy(&held);
    return ok;
}

void q3_kept_free(q3_kept *kept)
{
    free(kept->experts);
    *kept = (q3_kept){0};
}

const uint32_t *q3_kept_of(const q3_kept *kept, uint32_t layer)
{
    return kept->experts + (size_t)layer * kept->count;
}

static int compare_numbers(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

bool q3_kept_number(const q3_kept *kept, uint32_t layer, uint32_t expert, uint32_t *number)
{
    const uint32_t *experts = q3_kept_of(kept, layer);
    const uint32_t *found =
        bsearch(&expert, experts, kept->count, sizeof *experts, compare_numbers);
    if (found)
        *number = (uint32_t)(found - experts);
    return found != NULL;
}
