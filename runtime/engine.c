// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include "base/limits.h"
#include "budget.h"
#include "forward.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_CONTEXT = 4096 };

struct q3_engine {
    q3_team team;
    q3_model model;
    q3_expert_pool pool;
    q3_embedding *embedding;
    q3_expert_cache *experts;
    q3_scratch *scratch;
    q3_forward forward;
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

// Shares the memory out and reserves what has been shared.
static bool reserve(q3_engine *engine, uint64_t memory, q3_error *err)
{
    const q3_config *config = engine->model.config;
    uint32_t *slots = q3_alloc(config->num_hidden_layers, sizeof *slots, err);
    if (!slots)
        return false;
    const q3_budget_request request = {
        .config = config,
        .pool_count = engine->pool.count,
        .dense_bytes = engine->model.dense_bytes,
        .embedding_bytes = q3_embedding_bytes(engine->embedding),
        .pack_files = engine->model.set.file_count,
        .context = engine->info.context,
        .sessions = engine->sessions_max,
        .threads = engine->team.count,
        .memory = memory,
        .available = q3_available_memory(),
    };
    bool ok = q3_budget_make(&request, &engine->info.memory, slots, err) &&
              q3_scratch_create(config, engine->info.context, engine->team.count, &engine->scratch,
                                err) &&
              q3_expert_cache_create(&engine->model, &engine->team, slots, &engine->experts, err);
    if (ok) {
        engine->info.slots_min = engine->info.slots_max = slots[0];
        for (uint32_t i = 1; i < config->num_hidden_layers; i++) {
            if (slots[i] < engine->info.slots_min)
                engine->info.slots_min = slots[i];
            if (slots[i] > engine->info.slots_max)
                engine->info.slots_max = slots[i];
        }
    }
    free(slots);
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
    const q3_kernels *kernels = &q3_kernels_c;
    const bool ok = q3_team_create(threads, &engine->team, err) &&
                    q3_model_open(directory, &engine->team, &engine->model, err) &&
                    choose_context(engine, options->context, err) &&
                    q3_expert_pool_create(&engine->model, options->pool, &engine->pool, err) &&
                    q3_embedding_open(&engine->model, kernels, &engine->embedding, err) &&
                    reserve(engine, options->memory, err) &&
                    q3_model_load(&engine->model, &engine->team, err);
    if (!ok) {
        q3_engine_close(engine);
        return false;
    }
    const q3_config *config = engine->model.config;
    engine->info.config = config;
    engine->info.threads = threads;
    engine->info.experts = (uint64_t)config->num_hidden_layers * config->num_experts;
    engine->info.held_experts = engine->model.held_count;
    engine->info.pool_named = engine->pool.named;
    engine->info.pool_experts = engine->pool.total;
    engine->forward = (q3_forward){
        .model = &engine->model,
        .pool = &engine->pool,
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
    q3_expert_pool_destroy(&engine->pool);
    q3_model_close(&engine->model);
    q3_team_destroy(&engine->team);
    free(engine);
}

const q3_engine_info *q3_engine_describe(const q3_engine *engine)
{
    return &engine->info;
}

bool q3_engine_load_file(const q3_engine *engine, const char *name, char **data, size_t *size,
                         q3_error *err)
{
    return q3_set_load_copy(&engine->model.set, name, data, size, err);
}

q3_engine_statistics q3_engine_count(const q3_engine *engine)
{
    const q3_expert_counts experts = q3_expert_cache_counts(engine->experts);
    return (q3_engine_statistics){
        .tokens = engine->tokens,
        .batches = engine->batches,
        .expert_hits = experts.hits,
        .expert_misses = experts.misses,
        .expert_bytes = experts.bytes_read,
        .expert_seconds = experts.seconds,
        .embedding_bytes = q3_embedding_bytes_read(engine->embedding),
    };
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
    if (!session->logits ||
        !q3_kv_cache_create(config, engine->forward.kernels, engine->info.context, false,
                            &session->cache, err)) {
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
static void read_logits(q3_session *session, uint32_t count, const q3_observer *observer, bool last)
{
    const q3_forward *forward = &session->engine->forward;
    const float *logits[Q3_LOGITS_POSITIONS];
    const bool all = observer && observer->logits;
    if (!all && !last)
        return;
    uint32_t chunk = 0;
    for (uint32_t i = all ? 0 : count - 1; i < count; i += chunk) {
        chunk = count - i < Q3_LOGITS_POSITIONS ? count - i : Q3_LOGITS_POSITIONS;
        q3_forward_logits(forward, i, chunk, observer, last && i + chunk == count, logits);
        for (uint32_t j = 0; all && j < chunk; j++)
            observer->logits(observer->context, session->length + i + j, logits[j]);
    }
    if (last)
        memcpy(session->logits, logits[chunk - 1],
               session->engine->model.config->vocab_size * sizeof *session->logits);
}

bool q3_session_feed(q3_session *session, const uint32_t *ids, size_t count,
                     const q3_observer *observer, q3_error *err)
{
    q3_engine *engine = session->engine;
    if (!check_ids(session, ids, count, err))
        return false;
    const uint32_t before = session->length;
    for (size_t done = 0; done < count;) {
        const uint32_t batch =
            count - done < Q3_BATCH_TOKENS ? (uint32_t)(count - done) : Q3_BATCH_TOKENS;
        const bool last = done + batch == count;
        if (!q3_forward_batch(&engine->forward, &session->cache, session->length, ids + done, batch,
                              observer, last, err)) {
            session->length = before;
            return false;
        }
        read_logits(session, batch, observer, last);
        session->length += batch;
        done += batch;
        engine->tokens += batch;
        engine->batches++;
    }
    return true;
}
