// SPDX-License-Identifier: Apache-2.0
#include "pool.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdlib.h>

enum { POOL_BYTES_MAX = 64 << 20 };

bool q3_pool_create(uint32_t layers, uint32_t experts, q3_pool *pool, q3_error *err)
{
    *pool = (q3_pool){.layers = layers, .experts = experts};
    pool->members = q3_alloc_zeroed(layers, experts, err);
    pool->count = pool->members ? q3_alloc_zeroed(layers, sizeof *pool->count, err) : NULL;
    if (!pool->count)
        q3_pool_destroy(pool);
    return pool->count != NULL;
}

void q3_pool_destroy(q3_pool *pool)
{
    free(pool->members);
    free(pool->count);
    *pool = (q3_pool){0};
}

bool q3_pool_has(const q3_pool *pool, uint32_t layer, uint32_t expert)
{
    return pool->members[(size_t)layer * pool->experts + expert];
}

void q3_pool_add(q3_pool *pool, uint32_t layer, uint32_t expert)
{
    if (q3_pool_has(pool, layer, expert))
        return;
    pool->members[(size_t)layer * pool->experts + expert] = true;
    pool->count[layer]++;
    pool->total++;
}

void q3_pool_add_all(q3_pool *pool, const q3_pool *other)
{
    for (uint32_t layer = 0; layer < pool->layers; layer++)
        for (uint32_t expert = 0; expert < pool->experts; expert++)
            if (q3_pool_has(other, layer, expert))
                q3_pool_add(pool, layer, expert);
}

static bool read_members(const q3_json *json, q3_pool *pool, q3_error *err)
{
    const cJSON *layers, *list, *item;
    if (!q3_json_array(json, json->root, "layers", &layers, err))
        return false;
    if ((uint32_t)cJSON_GetArraySize(layers) != pool->layers)
        return q3_json_fail(json, layers, Q3_MALFORMED, err,
                            "expected the model's %" PRIu32 " layers, found %d", pool->layers,
                            cJSON_GetArraySize(layers));
    uint32_t layer = 0;
    cJSON_ArrayForEach(list, layers)
    {
        if (!cJSON_IsArray(list) || !list->child)
            return q3_json_fail(json, list, Q3_MALFORMED, err,
                                "expected a list of at least one expert");
        cJSON_ArrayForEach(item, list)
        {
            uint64_t expert;
            if (!q3_json_item_u64(json, item, 0, pool->experts - 1, &expert, err))
                return false;
            if (q3_pool_has(pool, layer, (uint32_t)expert))
                return q3_json_fail(json, item, Q3_MALFORMED, err,
                                    "expert %" PRIu64 " is there twice", expert);
            q3_pool_add(pool, layer, (uint32_t)expert);
        }
        layer++;
    }
    return true;
}

bool q3_pool_read(const char *path, uint32_t layers, uint32_t experts, q3_pool *pool, q3_error *err)
{
    q3_json json;
    *pool = (q3_pool){0};
    if (!q3_json_load(path, POOL_BYTES_MAX, &json, err))
        return false;
    bool ok = q3_pool_create(layers, experts, pool, err);
    if (ok && !read_members(&json, pool, err)) {
        q3_pool_destroy(pool);
        ok = false;
    }
    q3_json_free(&json);
    return ok;
}

void q3_pool_put(const q3_pool *pool, q3_json_writer *out)
{
    q3_json_begin_array(out, "layers");
    for (uint32_t layer = 0; layer < pool->layers; layer++) {
        q3_json_inline(out);
        q3_json_begin_array(out, NULL);
        for (uint32_t expert = 0; expert < pool->experts; expert++)
            if (q3_pool_has(pool, layer, expert))
                q3_json_put_u64(out, NULL, expert);
        q3_json_end_array(out);
    }
    q3_json_end_array(out);
}

bool q3_pool_write(const q3_pool *pool, const char *path, q3_error *err)
{
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_pool_put(pool, &out);
    q3_json_end_object(&out);
    const bool ok = q3_json_finish(&out, err) && q3_file_publish(path, out.text, out.size, err);
    q3_json_writer_free(&out);
    return ok;
}

q3_hash128 q3_pool_hash(const q3_pool *pool)
{
    return q3_hash128_of(pool->members, (size_t)pool->layers * pool->experts);
}
