// SPDX-License-Identifier: Apache-2.0
#include "expert_cache.h"

#include "base/progress.h"
#include "expert_score.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { EMPTY = UINT32_MAX >> 1 };

typedef struct slot {
    q3_expert expert;  // .number is EMPTY when it holds none that may be used
    uint64_t last_use; // 0: never
    uint64_t visit;    // the last one that used it
    bool busy;         // being read into, or about to be visited
    uint8_t *memory;
} slot;

typedef struct layer_set {
    slot *slots;
    uint32_t count;
    uint32_t *scores; // [expert]
} layer_set;

// An expert that is being read. Those of a visit are numbered in the order in which they were
// asked for.
typedef struct expert_load {
    uint32_t expert;
    slot *to;
    bool done, failed;
    uint64_t bytes_read;
    double seconds;
    q3_error error;
} expert_load;

struct q3_expert_cache {
    const q3_model *model;
    bool direct;
    layer_set *layers;
    slot *slots;      // of all layers
    uint32_t *scores; // of all layers
    q3_region memory;
    uint64_t uses, visits;
    q3_expert_counts counts;
    // For one visit: an entry an expert of the model.
    q3_expert *group;
    slot **group_slots;
    uint32_t *missing;

    pthread_t *threads;
    q3_frame_reader *readers;
    q3_region blocks; // the memory of theirs
    unsigned readers_wanted, reader_count, started;
    pthread_mutex_t lock;
    pthread_cond_t work, arrival;
    // Under the lock:
    expert_load *loads; // of the visit in hand
    uint32_t layer, asked, taken, finished;
    bool closing;
};

// ---- reading ----

static void read_load(const q3_expert_cache *cache, uint32_t layer, expert_load *load,
                      q3_frame_reader *reader)
{
    const double started = q3_now();
    load->failed =
        !q3_model_read_expert(cache->model, layer, load->expert, cache->direct, reader,
                              load->to->memory, &load->to->expert, &load->bytes_read, &load->error);
    load->seconds = q3_now() - started;
}

static void *run_reader(void *argument)
{
    q3_expert_cache *cache = argument;
    pthread_mutex_lock(&cache->lock);
    q3_frame_reader *reader = &cache->readers[cache->started++];
    while (!cache->closing) {
        if (cache->taken == cache->asked) {
            pthread_cond_wait(&cache->work, &cache->lock);
            continue;
        }
        expert_load *load = &cache->loads[cache->taken++];
        const uint32_t layer = cache->layer;
        pthread_mutex_unlock(&cache->lock);
        read_load(cache, layer, load, reader);
        pthread_mutex_lock(&cache->lock);
        load->done = true;
        cache->finished++;
        pthread_cond_signal(&cache->arrival);
    }
    pthread_mutex_unlock(&cache->lock);
    return NULL;
}

uint64_t q3_expert_readers_bytes(const q3_model *model, unsigned readers)
{
    return readers * q3_region_part(q3_model_block_bytes(model), 1);
}

static bool start_readers(q3_expert_cache *cache, unsigned count, q3_error *err)
{
    cache->readers_wanted = count;
    cache->threads = q3_alloc_zeroed(count, sizeof *cache->threads, err);
    cache->readers = cache->threads ? q3_alloc_zeroed(count, sizeof *cache->readers, err) : NULL;
    if (!cache->readers)
        return false;
    const uint64_t block = q3_model_block_bytes(cache->model);
    if (block &&
        !q3_region_create(q3_expert_readers_bytes(cache->model, count), &cache->blocks, err))
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (!(cache->readers[i].coder = q3_coder_create(err)))
            return false;
        if (block)
            cache->readers[i].block = q3_region_take(&cache->blocks, block);
    }
    // Readers need little stack, and there may be many.
    enum { STACK_BYTES = 512 << 10 };
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int error = 0;
    while (!error && cache->reader_count < count) {
        error =
            pthread_create(&cache->threads[cache->reader_count], &attributes, run_reader, cache);
        cache->reader_count += !error;
    }
    pthread_attr_destroy(&attributes);
    return !error || q3_fail(err, Q3_FAILED, "cannot start reader %u of %u: %s",
                             cache->reader_count + 1, count, strerror(error));
}

static void stop_readers(q3_expert_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->closing = true;
    pthread_cond_broadcast(&cache->work);
    pthread_mutex_unlock(&cache->lock);
    for (unsigned i = 0; i < cache->reader_count; i++)
        pthread_join(cache->threads[i], NULL);
    for (unsigned i = 0; cache->readers && i < cache->readers_wanted; i++) {
        q3_coder_destroy(cache->readers[i].coder);
        free(cache->readers[i].stored);
    }
    q3_region_destroy(&cache->blocks);
    free(cache->readers);
    free(cache->threads);
}

// ---- making ----

void q3_expert_cache_slots(const q3_model *model, const bool *members, uint64_t *slot_bytes)
{
    const q3_config *config = model->config;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        slot_bytes[i] = 0;
        for (uint32_t j = 0; j < config->num_experts; j++) {
            const size_t at = (size_t)i * config->num_experts + j;
            const uint64_t bytes = members[at] ? q3_model_expert_bytes(model, i, j) : 0;
            if (bytes > slot_bytes[i])
                slot_bytes[i] = bytes;
        }
    }
}

bool q3_expert_cache_create(const q3_model *model, const q3_expert_cache_options *options,
                            const uint32_t *slots, const uint64_t *slot_bytes,
                            q3_expert_cache **result, q3_error *err)
{
    *result = NULL;
    const q3_config *config = model->config;
    q3_expert_cache *cache = q3_alloc_zeroed(1, sizeof *cache, err);
    if (!cache)
        return false;
    cache->model = model;
    cache->direct = options->direct;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->work, NULL);
    pthread_cond_init(&cache->arrival, NULL);
    size_t total = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        total += slots[i];
        bytes += slots[i] * slot_bytes[i];
    }
    bool ok =
        (cache->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *cache->layers, err)) &&
        (cache->slots = q3_alloc_zeroed(total, sizeof *cache->slots, err)) &&
        (cache->scores = q3_alloc_zeroed((size_t)config->num_hidden_layers * config->num_experts,
                                         sizeof *cache->scores, err)) &&
        (cache->group = q3_alloc_zeroed(config->num_experts, sizeof *cache->group, err)) &&
        (cache->group_slots =
             q3_alloc_zeroed(config->num_experts, sizeof *cache->group_slots, err)) &&
        (cache->loads = q3_alloc_zeroed(config->num_experts, sizeof *cache->loads, err)) &&
        (cache->missing = q3_alloc_zeroed(config->num_experts, sizeof *cache->missing, err)) &&
        q3_region_create(bytes, &cache->memory, err) && start_readers(cache, options->readers, err);
    if (!ok) {
        q3_expert_cache_destroy(cache);
        return false;
    }
    slot *next = cache->slots;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        cache->layers[i] = (layer_set){.slots = next,
                                       .count = slots[i],
                                       .scores = cache->scores + (size_t)i * config->num_experts};
        for (uint32_t j = 0; j < slots[i]; j++, next++)
            *next = (slot){.expert = {.number = EMPTY},
                           .memory = q3_region_take(&cache->memory, slot_bytes[i])};
    }
    *result = cache;
    return true;
}

void q3_expert_cache_destroy(q3_expert_cache *cache)
{
    if (!cache)
        return;
    stop_readers(cache);
    pthread_cond_destroy(&cache->work);
    pthread_cond_destroy(&cache->arrival);
    pthread_mutex_destroy(&cache->lock);
    q3_region_destroy(&cache->memory);
    free(cache->layers);
    free(cache->slots);
    free(cache->scores);
    free(cache->group);
    free(cache->group_slots);
    free(cache->loads);
    free(cache->missing);
    free(cache);
}

q3_expert_counts q3_expert_cache_counts(const q3_expert_cache *cache)
{
    return cache->counts;
}

// ---- visiting ----

static slot *find_slot(const layer_set *set, uint32_t expert)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert.number == expert)
            return &set->slots[i];
    return NULL;
}

// Is `a` to be given up rather than `b`? What this visit has used goes last and in the order of
// use: which of it is busy depends on the readers' pace, and the choice must not.
static bool goes_before(const layer_set *set, uint64_t visit, const slot *a, const slot *b)
{
    const bool a_now = a->visit == visit, b_now = b->visit == visit;
    if (a_now != b_now)
        return b_now;
    if (!a_now && set->scores[a->expert.number] != set->scores[b->expert.number])
        return set->scores[a->expert.number] < set->scores[b->expert.number];
    return a->last_use < b->last_use;
}

// The slot to be given up, an empty one if there is, or NULL when all are in use.
static slot *find_slot_to_fill(const layer_set *set, uint64_t visit)
{
    slot *worst = NULL;
    for (uint32_t i = 0; i < set->count; i++) {
        slot *other = &set->slots[i];
        if (other->busy)
            continue;
        if (other->expert.number == EMPTY)
            return other;
        if (!worst || goes_before(set, visit, other, worst))
            worst = other;
    }
    return worst;
}

// One call of q3_expert_cache_visit.
typedef struct visiting {
    q3_expert_cache *cache;
    layer_set *set;
    uint32_t missing, asked; // of cache->missing
    uint32_t collected;      // of cache->loads
    uint32_t in_group;
} visiting;

static void add_to_group(visiting *v, slot *from)
{
    from->last_use = ++v->cache->uses;
    from->visit = v->cache->visits;
    from->busy = true;
    v->cache->group_slots[v->in_group] = from;
    v->cache->group[v->in_group++] = from->expert;
}

// Asks the readers for as many of the missing experts as there are slots for.
static void ask(visiting *v)
{
    q3_expert_cache *cache = v->cache;
    slot *to;
    const uint32_t before = v->asked;
    pthread_mutex_lock(&cache->lock);
    while (v->asked < v->missing && (to = find_slot_to_fill(v->set, cache->visits))) {
        // Until it is read whole, the slot holds nothing that anybody could find.
        to->expert.number = EMPTY;
        to->busy = true;
        cache->loads[v->asked] = (expert_load){.expert = cache->missing[v->asked], .to = to};
        v->asked++;
    }
    cache->asked = v->asked;
    if (v->asked > before)
        pthread_cond_broadcast(&cache->work);
    pthread_mutex_unlock(&cache->lock);
}

// Takes over what has been read, in the order in which it was asked for, so that which expert a
// slot holds afterwards does not depend on the readers' pace. Waits for the first. False after a
// failure.
static bool collect(visiting *v)
{
    q3_expert_cache *cache = v->cache;
    bool ok = true;
    pthread_mutex_lock(&cache->lock);
    if (!cache->loads[v->collected].done) {
        const double started = q3_now();
        while (!cache->loads[v->collected].done)
            pthread_cond_wait(&cache->arrival, &cache->lock);
        cache->counts.waiting_seconds += q3_now() - started;
    }
    while (ok && v->collected < v->asked && cache->loads[v->collected].done) {
        const expert_load *load = &cache->loads[v->collected];
        ok = !load->failed;
        if (!ok)
            break;
        cache->counts.bytes_read += load->bytes_read;
        cache->counts.read_seconds += load->seconds;
        add_to_group(v, load->to);
        v->collected++;
    }
    pthread_mutex_unlock(&cache->lock);
    return ok;
}

static bool visit_group(visiting *v, q3_expert_visit *visit, void *context, q3_error *err)
{
    const uint32_t count = v->in_group;
    const bool ok = count == 0 || visit(context, v->cache->group, count, err);
    for (uint32_t i = 0; i < count; i++)
        v->cache->group_slots[i]->busy = false;
    v->in_group = 0;
    return ok;
}

// After a failure: lets what is under way arrive, and tells of the first expert that could not be
// read.
static void give_up(visiting *v, q3_error *err)
{
    q3_expert_cache *cache = v->cache;
    pthread_mutex_lock(&cache->lock);
    cache->asked = cache->taken;
    while (cache->finished < cache->taken)
        pthread_cond_wait(&cache->arrival, &cache->lock);
    pthread_mutex_unlock(&cache->lock);
    for (uint32_t i = v->asked; i-- > v->collected;) {
        expert_load *load = &cache->loads[i];
        load->to->busy = false;
        load->to->expert.number = EMPTY;
        if (load->done && load->failed)
            *err = load->error;
    }
    for (uint32_t i = 0; i < v->in_group; i++)
        cache->group_slots[i]->busy = false;
}

bool q3_expert_cache_visit(q3_expert_cache *cache, uint32_t layer, const uint32_t *experts,
                           uint32_t count, q3_expert_visit *visit, void *context, q3_error *err)
{
    visiting v = {.cache = cache, .set = &cache->layers[layer]};
    cache->visits++;
    q3_scores_fade(v.set->scores, cache->model->config->num_experts);
    for (uint32_t i = 0; i < count; i++) {
        q3_score_use(&v.set->scores[experts[i]]);
        slot *resident = find_slot(v.set, experts[i]);
        if (resident)
            add_to_group(&v, resident);
        else
            cache->missing[v.missing++] = experts[i];
    }
    cache->counts.hits += v.in_group;
    cache->counts.misses += v.missing;
    pthread_mutex_lock(&cache->lock);
    cache->layer = layer;
    cache->asked = cache->taken = cache->finished = 0;
    pthread_mutex_unlock(&cache->lock);
    ask(&v);
    bool ok = visit_group(&v, visit, context, err);
    while (ok && v.collected < v.missing) {
        ask(&v);
        ok = collect(&v) && visit_group(&v, visit, context, err);
    }
    if (!ok)
        give_up(&v, err);
    return ok;
}

void q3_expert_cache_mark(const q3_expert_cache *cache, uint32_t layer, bool *resident)
{
    const layer_set *set = &cache->layers[layer];
    memset(resident, 0, cache->model->config->num_experts * sizeof *resident);
    for (uint32_t i = 0; i < set->count; i++)
        if (set->slots[i].expert.number != EMPTY)
            resident[set->slots[i].expert.number] = true;
}
