// SPDX-License-Identifier: Apache-2.0
#include "expert_cache.h"

#include "base/progress.h"

#include <stdlib.h>
#include <string.h>

enum { EMPTY = UINT32_MAX >> 1 };

typedef struct slot {
    uint32_t expert;   // EMPTY when it holds none
    uint64_t last_use; // 0: never
} slot;

typedef struct layer_set {
    slot *slots;
    uint32_t count;
    uint16_t *memory; // count experts
} layer_set;

// One expert to be read.
typedef struct expert_load {
    uint32_t expert;
    slot *slot;
    uint16_t *memory;
    uint64_t bytes_read;
} expert_load;

struct q3_expert_cache {
    const q3_model *model;
    const q3_team *team;
    layer_set *layers;
    slot *slots; // of all layers
    q3_region memory;
    uint64_t stride; // bytes from an expert to the next
    uint64_t uses;
    q3_expert_counts counts;
    // For one visit: an entry an expert of the model.
    q3_expert *group;
    expert_load *loads;
    uint32_t *missing;
    uint32_t loading_layer;
};

static uint64_t expert_stride(const q3_config *config)
{
    return q3_region_part(q3_model_expert_bytes(config), 1);
}

uint64_t q3_expert_cache_bytes(const q3_config *config, uint64_t slots)
{
    return slots * expert_stride(config);
}

bool q3_expert_cache_create(const q3_model *model, const q3_team *team, const uint32_t *slots,
                            q3_expert_cache **result, q3_error *err)
{
    *result = NULL;
    const q3_config *config = model->config;
    q3_expert_cache *cache = q3_alloc_zeroed(1, sizeof *cache, err);
    if (!cache)
        return false;
    cache->model = model;
    cache->team = team;
    cache->stride = expert_stride(config);
    size_t total = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        total += slots[i];
    bool ok =
        (cache->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *cache->layers, err)) &&
        (cache->slots = q3_alloc_zeroed(total, sizeof *cache->slots, err)) &&
        (cache->group = q3_alloc_zeroed(config->num_experts, sizeof *cache->group, err)) &&
        (cache->loads = q3_alloc_zeroed(config->num_experts, sizeof *cache->loads, err)) &&
        (cache->missing = q3_alloc_zeroed(config->num_experts, sizeof *cache->missing, err)) &&
        q3_region_create(q3_expert_cache_bytes(config, total), &cache->memory, err);
    if (!ok) {
        q3_expert_cache_destroy(cache);
        return false;
    }
    for (size_t i = 0; i < total; i++)
        cache->slots[i].expert = EMPTY;
    slot *next = cache->slots;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        cache->layers[i] = (layer_set){
            .slots = next,
            .count = slots[i],
            .memory = q3_region_take(&cache->memory, slots[i] * cache->stride),
        };
        next += slots[i];
    }
    *result = cache;
    return true;
}

void q3_expert_cache_destroy(q3_expert_cache *cache)
{
    if (!cache)
        return;
    q3_region_destroy(&cache->memory);
    free(cache->layers);
    free(cache->slots);
    free(cache->group);
    free(cache->loads);
    free(cache->missing);
    free(cache);
}

q3_expert_counts q3_expert_cache_counts(const q3_expert_cache *cache)
{
    return cache->counts;
}

static uint16_t *slot_memory(const q3_expert_cache *cache, const layer_set *set, const slot *at)
{
    return set->memory + (size_t)(at - set->slots) * (cache->stride / sizeof(uint16_t));
}

static q3_expert describe(const q3_expert_cache *cache, uint32_t expert, const uint16_t *memory)
{
    const q3_config *config = cache->model->config;
    const uint32_t hidden = config->hidden_size, inner = config->moe_intermediate_size;
    const size_t matrix = (size_t)hidden * inner;
    return (q3_expert){
        .number = expert,
        .gate = {memory, inner, hidden},
        .up = {memory + matrix, inner, hidden},
        .down = {memory + 2 * matrix, hidden, inner},
    };
}

static slot *find_slot(const layer_set *set, uint32_t expert)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert == expert)
            return &set->slots[i];
    return NULL;
}

// The slot to be given up: one used before the visit began. There is one when fewer experts than
// slots are in use.
static slot *find_oldest(const layer_set *set)
{
    slot *oldest = &set->slots[0];
    for (uint32_t i = 1; i < set->count; i++)
        if (set->slots[i].last_use < oldest->last_use)
            oldest = &set->slots[i];
    return oldest;
}

static bool load_expert(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    q3_expert_cache *cache = context;
    expert_load *load = &cache->loads[index];
    return q3_model_read_expert(cache->model, cache->loading_layer, load->expert, reader,
                                load->memory, &load->bytes_read, err);
}

// Reads experts into the oldest slots and appends them to the group.
static bool load_group(q3_expert_cache *cache, layer_set *set, const uint32_t *experts,
                       uint32_t count, uint32_t *in_group, q3_error *err)
{
    const double started = q3_now();
    for (uint32_t i = 0; i < count; i++) {
        slot *to = find_oldest(set);
        // Until it is read whole, the slot holds nothing that anybody could find.
        *to = (slot){.expert = EMPTY, .last_use = ++cache->uses};
        cache->loads[i] =
            (expert_load){.expert = experts[i], .slot = to, .memory = slot_memory(cache, set, to)};
    }
    const bool ok = q3_team_try(cache->team, load_expert, cache, count, err);
    for (uint32_t i = 0; ok && i < count; i++) {
        const expert_load *load = &cache->loads[i];
        load->slot->expert = load->expert;
        cache->counts.bytes_read += load->bytes_read;
        cache->group[(*in_group)++] = describe(cache, load->expert, load->memory);
    }
    cache->counts.misses += count;
    cache->counts.seconds += q3_now() - started;
    return ok;
}

bool q3_expert_cache_visit(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                           uint32_t count, q3_expert_visit *visit, void *context, q3_error *err)
{
    layer_set *set = &cache->layers[layer];
    uint32_t in_group = 0, missing = 0;
    cache->loading_layer = layer;
    for (uint32_t i = 0; i < count; i++) {
        slot *resident = find_slot(set, experts[i]);
        if (!resident) {
            cache->missing[missing++] = experts[i];
            continue;
        }
        resident->last_use = ++cache->uses;
        cache->group[in_group++] = describe(cache, experts[i], slot_memory(cache, set, resident));
    }
    cache->counts.hits += in_group;
    // The resident ones stay in their slots until they have been visited; the first group is filled
    // up with as many of the others as there is room for.
    for (uint32_t done = 0;;) {
        uint32_t load = missing - done;
        load = load > set->count - in_group ? set->count - in_group : load;
        if (load && !load_group(cache, set, cache->missing + done, load, &in_group, err))
            return false;
        done += load;
        if (in_group)
            visit(context, cache->group, in_group);
        if (done == missing)
            return true;
        in_group = 0;
    }
}

void q3_expert_cache_mark(const q3_expert_cache *cache, uint32_t layer, bool *resident)
{
    const layer_set *set = &cache->layers[layer];
    memset(resident, 0, cache->model->config->num_experts * sizeof *resident);
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert != EMPTY)
            resident[set->slots[i].expert] = true;
}
