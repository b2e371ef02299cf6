// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include "base/interrupt.h"
#include "base/limits.h"
#include "budget.h"
#include "forward.h"
#include "router_bias.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CONTEXT = 4096, DEFAULT_READERS = 4 };

struct q3_engine {
    q3_team team;
    q3_model model;
    q3_expert_pool pool; // as opened
    q3_routing routing;
    q3_embedding *embedding;
    q3_expert_cache *experts;
    q3_scratch *scratch;
    q3_forward forward;
    const q3_kernels *kernels;
    bool narrow_kv;
    q3_engine_info info;
    uint32_t sessions, sessions_max;
    uint64_t tokens, batches;
};

struct q3_session {
    q3_engine *engine;
    q3_kv_cache cache;
    uint32_t length;
    float *logits;
};

static bool choose_context(q3_engine *engine, uint32_t wanted, q3_error *err)
{
    const uint32_t max = engine->model.config->max_position_embeddings;
    if (wanted > max)
        return q3_fail(err, Q3_REFUSED,
                       "%s: a context of %" PRIu32 " tokens is more than the model's %" PRIu32,
                       engine->model.set.directory, wanted, max);
    engine->info.context = wanted ? wanted : max < DEFAULT_CONTEXT ? max : DEFAULT_CONTEXT;
    return true;
}

// Makes the rules by which experts are chosen.
static bool set_rules(q3_engine *engine, const q3_engine_options *options, q3_error *err)
{
    q3_routing *routing = &engine->routing;
    const q3_config *config = engine->model.config;
    if (!q3_routing_create(config, engine->model.held, routing, err))
        return false;
    if (options->router_bias) {
        const size_t count = (size_t)config->num_hidden_layers * config->num_experts;
        routing->bias = q3_alloc(count, sizeof *routing->bias, err);
        if (!routing->bias ||
            !q3_router_bias_load(options->router_bias, config, routing->bias, err))
            return false;
    }
    routing->soft = options->soft_pool;
    routing->pool_bias = options->pool_bias;
    routing->resident_bias = options->resident_bias;
    return q3_engine_set_pool(engine, engine->pool.allowed, err);
}

static bool make_budget(q3_engine *engine, q3_form form, q3_budget_request *request,
                        uint32_t *slots, uint64_t *slot_bytes, q3_error *err)
{
    engine->model.form = form;
    request->dense_bytes = q3_model_dense_bytes(&engine->model);
    q3_expert_cache_slots(&engine->model, engine->model.held, slot_bytes);
    return q3_budget_make(request, &engine->info.memory, slots, err);
}

// Decoded weights are multiplied faster, so they are decoded where all of them fit; where they do
// not, stored ones give half as many slots again.
static bool choose_form(q3_engine *engine, const q3_engine_options *options,
                        q3_budget_request *request, uint32_t *slots, uint64_t *slot_bytes,
                        q3_error *err)
{
    if (options->weights != Q3_WEIGHTS_STORED) {
        q3_error too_small;
        bool all = make_budget(engine, Q3_FORM_PLAIN, request, slots, slot_bytes, &too_small);
        if (options->weights == Q3_WEIGHTS_PLAIN) {
            *err = too_small;
            return all;
        }
        for (uint32_t i = 0; all && i < engine->model.config->num_hidden_layers; i++)
            all = slots[i] == request->pool_count[i];
        if (all)
            return true;
    }
    return make_budget(engine, Q3_FORM_STORED, request, slots, slot_bytes, err);
}

// Shares the memory out and reserves what has been shared. numbers has room for a slot count and a
// slot size of each layer.
static bool share(q3_engine *engine, const q3_engine_options *options, uint32_t *slots,
                  uint64_t *slot_bytes, q3_error *err)
{
    const q3_config *config = engine->model.config;
    const unsigned readers = options->readers ? options->readers : DEFAULT_READERS;
    q3_budget_request request = {
        .config = config,
        .pool_count = engine->routing.allowed,
        .slot_bytes = slot_bytes,
        .embedding_bytes = q3_embedding_bytes(engine->embedding),
        .pack_files = engine->model.set.file_count,
        .scratch = {.config = config,
                    .kernels = engine->kernels,
                    .context = engine->info.context,
                    .batch = engine->info.batch,
                    .threads = engine->team.count},
        .sessions = engine->sessions_max,
        .narrow = options->narrow_kv,
        .readers = readers,
        .kept_logits = options->kept_logits,
        .memory = options->memory,
        .available = q3_available_memory(),
    };
    const q3_expert_cache_options cache = {.readers = readers,
                                           .direct = options->io == Q3_ENGINE_IO_DIRECT};
    if (!choose_form(engine, options, &request, slots, slot_bytes, err) ||
        !q3_scratch_create(&request.scratch, &engine->scratch, err) ||
        !q3_expert_cache_create(&engine->model, &cache, slots, slot_bytes, &engine->experts, err))
        return false;
    engine->info.slots_min = engine->info.slots_max = slots[0];
    for (uint32_t i = 1; i < config->num_hidden_layers; i++) {
        if (slots[i] < engine->info.slots_min)
            engine->info.slots_min = slots[i];
        if (slots[i] > engine->info.slots_max)
            engine->info.slots_max = slots[i];
    }
    return true;
}

static bool reserve(q3_engine *engine, const q3_engine_options *options, q3_error *err)
{
    const uint32_t layers = engine->model.config->num_hidden_layers;
    uint32_t *slots = q3_alloc(layers, sizeof *slots, err);
    uint64_t *slot_bytes = slots ? q3_alloc(layers, sizeof *slot_bytes, err) : NULL;
    const bool ok = slot_bytes && share(engine, options, slots, slot_bytes, err);
    free(slots);
    free(slot_bytes);
    return ok;
}

bool q3_engine_open(const char *directory, const q3_engine_options *options, q3_engine **result,
                    q3_error *err)
{
    *result = NULL;
    q3_engine *engine = q3_alloc_zeroed(1, sizeof *engine, err);
    if (!engine)
        return false;
    const unsigned threads = options->threads ? options->threads : q3_workers_default();
    engine->sessions_max = options->sessions ? options->sessions : 1;
    const q3_kernels *kernels = engine->kernels = q3_kernels_for(q3_cpu_in_use());
    engine->info.batch = options->batch ? options->batch : Q3_BATCH_TOKENS;
    engine->narrow_kv = options->narrow_kv;
    const bool ok = q3_team_create(threads, &engine->team, err) &&
                    q3_model_open(directory, &engine->team, &engine->model, err) &&
                    choose_context(engine, options->context, err) &&
                    q3_expert_pool_create(&engine->model, options->pool, &engine->pool, err) &&
                    set_rules(engine, options, err) &&
                    q3_embedding_open(&engine->model, kernels, &engine->embedding, err) &&
                    reserve(engine, options, err) &&
                    q3_model_load(&engine->model, &engine->team, err);
    if (!ok) {
        q3_engine_close(engine);
        return false;
    }
    const q3_config *config = engine->model.config;
    engine->info.config = config;
    engine->info.threads = threads;
    engine->info.kernels = kernels->name;
    engine->info.plain = engine->model.form == Q3_FORM_PLAIN;
    engine->info.experts = (uint64_t)config->num_hidden_layers * config->num_experts;
    engine->info.held_experts = engine->model.held_count;
    engine->info.pool_named = engine->pool.named;
    engine->info.pool_experts = engine->pool.total;
    engine->forward = (q3_forward){
        .model = &engine->model,
        .routing = &engine->routing,
        .embedding = engine->embedding,
        .experts = engine->experts,
        .team = &engine->team,
        .kernels = kernels,
        .scratch = engine->scratch,
    };
    *result = engine;
    return true;
}

void q3_engine_close(q3_engine *engine)
{
    if (!engine)
        return;
    q3_expert_cache_destroy(engine->experts);
    q3_scratch_destroy(engine->scratch);
    q3_embedding_close(engine->embedding);
    q3_routing_destroy(&engine->routing);
    q3_expert_pool_destroy(&engine->pool);
    q3_model_close(&engine->model);
    q3_team_destroy(&engine->team);
    free(engine);
}

static bool visit_nothing(void *context, const q3_expert *group, uint32_t count, q3_error *err)
{
    (void)context;
    (void)group;
    (void)count;
    return q3_check_interrupt(err);
}

bool q3_engine_preload(q3_engine *engine, q3_error *err)
{
    const q3_config *config = engine->model.config;
    uint32_t *experts = q3_alloc(config->num_experts, sizeof *experts, err);
    bool ok = experts != NULL;
    for (uint32_t i = 0; ok && i < config->num_hidden_layers; i++) {
        const q3_route_rules rules = q3_routing_rules(&engine->routing, i);
        uint32_t count = 0;
        for (uint32_t j = 0; j < config->num_experts; j++)
            if (rules.allowed[j] && count < engine->info.slots_min)
                experts[count++] = j;
        ok = q3_expert_cache_visit(engine->experts, i, experts, count, visit_nothing, NULL, err);
    }
    free(experts);
    return ok;
}

const q3_engine_info *q3_engine_describe(const q3_engine *engine)
{
    return &engine->info;
}

const q3_set *q3_engine_pack(const q3_engine *engine)
{
    return &engine->model.set;
}

bool q3_engine_load_file(const q3_engine *engine, const char *name, char **data, size_t *size,
                         q3_error *err)
{
    return q3_set_load_copy(&engine->model.set, name, data, size, err);
}

q3_engine_statistics q3_engine_count(const q3_engine *engine)
{
    const q3_expert_counts experts = q3_expert_cache_counts(engine->experts);
    double outside = 0;
    for (uint32_t i = 0; i < engine->model.config->num_hidden_layers; i++)
        outside += engine->routing.outside[i];
    return (q3_engine_statistics){
        .tokens = engine->tokens,
        .batches = engine->batches,
        .expert_hits = experts.hits,
        .expert_misses = experts.misses,
        .expert_bytes = experts.bytes_read,
        .expert_seconds = experts.waiting_seconds,
        .embedding_bytes = q3_embedding_bytes_read(engine->embedding),
        .computed_bytes = q3_forward_bytes(&engine->forward),
        .routed_tokens = engine->routing.tokens,
        .outside_sum = outside,
    };
}

const double *q3_engine_outside(const q3_engine *engine)
{
    return engine->routing.outside;
}

bool q3_engine_set_pool(q3_engine *engine, const bool *members, q3_error *err)
{
    uint32_t layer;
    return q3_routing_set_pool(&engine->routing, members, &layer) ||
           q3_fail(err, Q3_INCOMPLETE, "layer %" PRIu32 ": %s has none of the pool's experts",
                   layer, engine->model.set.directory);
}

// ---- sessions ----

bool q3_session_create(q3_engine *engine, q3_session **result, q3_error *err)
{
    *result = NULL;
    if (engine->sessions == engine->sessions_max)
        return q3_fail(err, Q3_REFUSED,
                       "a session more than the %" PRIu32 " that the memory budget counts",
                       engine->sessions_max);
    const q3_config *config = engine->model.config;
    q3_session *session = q3_alloc_zeroed(1, sizeof *session, err);
    if (!session)
        return false;
    session->logits = q3_alloc_zeroed(config->vocab_size, sizeof *session->logits, err);
    if (!session->logits || !q3_kv_cache_create(config, engine->kernels, engine->info.context,
                                                engine->narrow_kv, &session->cache, err)) {
        free(session->logits);
        free(session);
        return false;
    }
    session->engine = engine;
    engine->sessions++;
    *result = session;
    return true;
}

void q3_session_destroy(q3_session *session)
{
    if (!session)
        return;
    session->engine->sessions--;
    q3_kv_cache_destroy(&session->cache);
    free(session->logits);
    free(session);
}

uint32_t q3_session_length(const q3_session *session)
{
    return session->length;
}

uint32_t q3_session_context(const q3_session *session)
{
    return session->engine->info.context;
}

void q3_session_truncate(q3_session *session, uint32_t length)
{
    if (length < session->length)
        session->length = length;
}

const float *q3_session_logits(const q3_session *session)
{
    return session->logits;
}

static bool check_ids(const q3_session *session, const uint32_t *ids, size_t count, q3_error *err)
{
    const uint32_t vocabulary = session->engine->model.config->vocab_size;
    if (count > session->engine->info.context - session->length)
        return q3_fail(err, Q3_USAGE,
                       "%zu tokens after %" PRIu32 " do not fit a context of %" PRIu32 " tokens",
                       count, session->length, session->engine->info.context);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocabulary)
            return q3_fail(err, Q3_USAGE,
                           "token id %" PRIu32 " is not in the vocabulary of %" PRIu32, ids[i],
                           vocabulary);
    return true;
}

// The logits of a batch: all of them for an observer, the last one's for the session.
static bool read_logits(q3_session *session, uint32_t count, const q3_observer *observer, bool last,
                        q3_error *err)
{
    const q3_forward *forward = &session->engine->forward;
    const float *logits[Q3_LOGITS_POSITIONS];
    const bool all = observer && observer->logits;
    if (!all && !last)
        return true;
    uint32_t chunk = 0;
    for (uint32_t i = all ? 0 : count - 1; i < count; i += chunk) {
        chunk = count - i < Q3_LOGITS_POSITIONS ? count - i : Q3_LOGITS_POSITIONS;
        if (!q3_forward_logits(forward, i, chunk, observer, last && i + chunk == count, logits,
                               err))
            return false;
        for (uint32_t j = 0; all && j < chunk; j++)
            observer->logits(observer->context, session->length + i + j, logits[j]);
    }
    if (last)
        memcpy(session->logits, logits[chunk - 1],
               session->engine->model.config->vocab_size * sizeof *session->logits);
    return true;
}

bool q3_session_feed(q3_session *session, const uint32_t *ids, size_t count,
                     const q3_observer *observer, q3_error *err)
{
    q3_engine *engine = session->engine;
    if (!check_ids(session, ids, count, err))
        return false;
    const uint32_t before = session->length;
    for (size_t done = 0; done < count;) {
        const uint32_t most = engine->info.batch;
        const uint32_t batch = count - done < most ? (uint32_t)(count - done) : most;
        const bool last = done + batch == count;
        if (!q3_forward_batch(&engine->forward, &session->cache, session->length, ids + done, batch,
                              observer, last, err) ||
            !read_logits(session, batch, observer, last, err)) {
            session->length = before;
            return false;
        }
        session->length += batch;
        done += batch;
        engine->tokens += batch;
        engine->batches++;
    }
    return true;
}
