// SPDX-License-Identifier: Apache-2.0
#include "choose.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdlib.h>

// An expert to choose: the better `value` is first.
typedef struct candidate {
    double value;
    uint32_t layer, expert;
} candidate;

static int compare(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

// A layer's experts, the best first.
static void rank(const double *share, uint32_t layer, uint32_t experts, candidate *ranked)
{
    for (uint32_t expert = 0; expert < experts; expert++)
        ranked[expert] = (candidate){
            .value = share[(size_t)layer * experts + expert], .layer = layer, .expert = expert};
    qsort(ranked, experts, sizeof *ranked, compare);
}

static bool choose(const double *share, uint32_t layers, uint32_t experts, double coverage,
                   uint32_t least, q3_pool *pool, q3_error *err)
{
    *pool = (q3_pool){0};
    candidate *ranked = q3_alloc(experts, sizeof *ranked, err);
    const bool ok = ranked && q3_pool_create(layers, experts, pool, err);
    for (uint32_t layer = 0; ok && layer < layers; layer++) {
        rank(share, layer, experts, ranked);
        // Summed in this order both times, so that the whole reaches a coverage of 1.
        double total = 0, sum = 0;
        for (uint32_t i = 0; i < experts; i++)
            total += ranked[i].value;
        for (uint32_t i = 0; i < experts && (i < least || sum < coverage * total); i++) {
            q3_pool_add(pool, layer, ranked[i].expert);
            sum += ranked[i].value;
        }
    }
    free(ranked);
    return ok;
}

bool q3_pool_choose_size(const double *share, uint32_t layers, uint32_t experts, uint32_t size,
                         q3_pool *pool, q3_error *err)
{
    return choose(share, layers, experts, 0, size, pool, err);
}

bool q3_pool_choose_coverage(const double *share, uint32_t layers, uint32_t experts,
                             double coverage, uint32_t least, q3_pool *pool, q3_error *err)
{
    return choose(share, layers, experts, coverage, least, pool, err);
}

// The least best experts of each layer; *used becomes their bytes.
static bool choose_least(const double *share, const uint64_t *bytes, candidate *ranked,
                         uint32_t least, q3_pool *pool, uint64_t *used, q3_error *err)
{
    const uint32_t experts = pool->experts;
    *used = 0;
    for (uint32_t layer = 0; layer < pool->layers; layer++) {
        rank(share, layer, experts, ranked);
        for (uint32_t i = 0; i < experts && pool->count[layer] < least; i++) {
            const uint64_t size = bytes[(size_t)layer * experts + ranked[i].expert];
            if (size == 0)
                continue;
            if (!q3_add(*used, size, used))
                *used = UINT64_MAX;
            q3_pool_add(pool, layer, ranked[i].expert);
        }
        if (pool->count[layer] < least)
            return q3_fail(err, Q3_INCOMPLETE,
                           "layer %" PRIu32 ": expected at least %" PRIu32
                           " experts to choose from, found %" PRIu32,
                           layer, least, pool->count[layer]);
    }
    return true;
}

bool q3_pool_choose_bytes(const double *share, const uint64_t *bytes, uint32_t layers,
                          uint32_t experts, uint64_t budget, uint32_t least, q3_pool *pool,
                          q3_error *err)
{
    const size_t count = (size_t)layers * experts;
    *pool = (q3_pool){0};
    candidate *ranked = q3_alloc(count, sizeof *ranked, err);
    uint64_t used = 0;
    bool ok = ranked && q3_pool_create(layers, experts, pool, err) &&
              choose_least(share, bytes, ranked, least, pool, &used, err);
    if (ok && used > budget) {
        char found[Q3_GROUPED_MAX], needed[Q3_GROUPED_MAX];
        ok = q3_fail(err, Q3_USAGE,
                     "a budget of %s bytes: at least %s are needed, for the %" PRIu32
                     " best of each of %" PRIu32 " layers",
                     q3_grouped(budget, found), q3_grouped(used, needed), least, layers);
    }
    size_t left = 0;
    for (size_t at = 0; ok && at < count; at++)
        if (!pool->members[at] && bytes[at] && share[at] > 0)
            ranked[left++] = (candidate){.value = share[at] / (double)bytes[at],
                                         .layer = (uint32_t)(at / experts),
                                         .expert = (uint32_t)(at % experts)};
    if (ok && left)
        qsort(ranked, left, sizeof *ranked, compare);
    for (size_t i = 0; ok && i < left; i++) {
        const uint64_t size = bytes[(size_t)ranked[i].layer * experts + ranked[i].expert];
        if (size > budget - used)
            continue;
        used += size;
        q3_pool_add(pool, ranked[i].layer, ranked[i].expert);
    }
    free(ranked);
    if (!ok)
        q3_pool_destroy(pool);
    return ok;
}

double q3_pool_coverage(const q3_pool *pool, const double *share, uint32_t layer)
{
    double total = 0, sum = 0;
    for (uint32_t expert = 0; expert < pool->experts; expert++) {
        const double part = share[(size_t)layer * pool->experts + expert];
        total += part;
        if (q3_pool_has(pool, layer, expert))
            sum += part;
    }
    return total > 0 ? sum / total : 0;
}
