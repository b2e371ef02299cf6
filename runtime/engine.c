// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include "base/interrupt.h"
#include "forward.h"
#include "opened.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct q3_engine {
    q3_opened opened;
    q3_expert_cache *experts;
    q3_scratch *scratch;
    q3_forward forward;
    uint32_t sessions;
    uint64_t tokens, batches;
};

struct q3_session {
    q3_engine *engine;
    q3_kv_cache cache;
    uint32_t length;
    float *logits;
};

// Decides how experts are read: as the options say, else by a short probe of the disk, but when all
// of them stay in memory.
static bool choose_io(q3_engine *engine, const q3_engine_options *options, q3_error *err)
{
    static const double probe_seconds = 0.4;
    q3_engine_info *info = &engine->opened.info;
    info->io = options->io == Q3_IO_AUTO ? Q3_IO_BUFFERED : options->io;
    info->readers = options->readers ? options->readers : Q3_READERS_DEFAULT;
    if ((options->io != Q3_IO_AUTO && options->readers) || info->memory.all_fit)
        return true;
    q3_disk_probe probe;
    if (!q3_opened_probe_disk(&engine->opened, probe_seconds, &probe, err))
        return false;
    const q3_io_choice choice = q3_opened_choose_io(&engine->opened, options, &probe);
    info->io = choice.mode;
    info->readers = choice.readers;
    info->io_probed = true;
    return true;
}

// Takes the memory that has been shared out.
static bool reserve(q3_engine *engine, q3_error *err)
{
    q3_opened *opened = &engine->opened;
    const q3_expert_cache_options options = {.readers = opened->info.readers,
                                             .direct = opened->info.io == Q3_IO_DIRECT,
                                             .ahead = opened->info.memory.ahead,
                                             .passing = opened->info.memory.passing_experts};
    return q3_scratch_create(&opened->budget.scratch, &engine->scratch, err) &&
           q3_expert_cache_create(&opened->model, &options, opened->slots, opened->slot_bytes,
                                  &engine->experts, err);
}

bool q3_engine_open(const char *directory, const q3_engine_options *options, q3_engine **result,
                    q3_error *err)
{
    *result = NULL;
    q3_engine *engine = q3_alloc_zeroed(1, sizeof *engine, err);
    if (!engine)
        return false;
    q3_opened *opened = &engine->opened;
    const bool ok = q3_opened_create(directory, options, opened, err) &&
                    choose_io(engine, options, err) && reserve(engine, err) &&
                    q3_model_load(&opened->model, &opened->team, err);
    if (!ok) {
        q3_engine_close(engine);
        return false;
    }
    engine->forward = (q3_forward){
        .model = &opened->model,
        .routing = &opened->routing,
        .embedding = opened->embedding,
        .experts = engine->experts,
        .team = &opened->team,
        .kernels = opened->kernels,
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
    q3_opened_destroy(&engine->opened);
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
    const q3_config *config = engine->opened.model.config;
    uint32_t *experts = q3_alloc(config->num_experts, sizeof *experts, err);
    bool ok = experts != NULL;
    for (uint32_t i = 0; ok && i < config->num_hidden_layers; i++) {
        const q3_route_rules rules = q3_routing_rules(&engine->opened.routing, i);
        uint32_t count = 0;
        for (uint32_t j = 0; j < config->num_experts; j++)
            if (rules.allowed[j] && count < engine->opened.slots[i])
                experts[count++] = j;
        ok = q3_expert_cache_visit(engine->experts, i, experts, count, false, visit_nothing, NULL,
                                   err);
    }
    free(experts);
    return ok;
}

const char *q3_weights_name(q3_engine_weights weights)
{
    static const char *const names[] = {"auto", "bf12", "stored", "plain"};
    return names[weights];
}

const q3_engine_info *q3_engine_describe(const q3_engine *engine)
{
    return &engine->opened.info;
}

const q3_set *q3_engine_pack(const q3_engine *engine)
{
    return &engine->opened.model.set;
}

bool q3_engine_load_file(const q3_engine *engine, const char *name, char **data, size_t *size,
                         q3_error *err)
{
    return q3_set_load_copy(&engine->opened.model.set, name, data, size, err);
}

q3_engine_statistics q3_engine_count(const q3_engine *engine)
{
    const q3_expert_counts experts = q3_expert_cache_counts(engine->experts);
    q3_outside outside = {0};
    for (uint32_t i = 0; i < engine->opened.model.config->num_hidden_layers; i++) {
        const q3_outside layer = q3_engine_outside(engine, i);
        outside.routed += layer.routed;
        outside.sum += layer.sum;
    }
    return (q3_engine_statistics){
        .tokens = engine->tokens,
        .batches = engine->batches,
        .expert_hits = experts.hits,
        .expert_misses = experts.misses,
        .experts_passed = experts.passed,
        .expert_bytes = experts.bytes_read,
        .expert_seconds = experts.waiting_seconds,
        .delivered_bytes = experts.delivered,
        .reading_seconds = experts.reading_seconds,
        .experts_ahead = experts.ahead,
        .experts_ahead_used = experts.ahead_used,
        .unused_bytes = experts.ahead_unused_bytes,
        .embedding_bytes = q3_embedding_bytes_read(engine->opened.embedding),
        .computed_bytes = q3_forward_bytes(&engine->forward),
        .outside = outside,
    };
}

void q3_engine_record(q3_engine *engine, q3_misses *misses)
{
    q3_expert_cache_record(engine->experts, misses);
}

bool q3_engine_replay(q3_engine *engine, const q3_misses *misses, double *rate, q3_error *err)
{
    return q3_expert_cache_replay(engine->experts, misses, rate, err);
}

q3_outside q3_engine_outside(const q3_engine *engine, uint32_t layer)
{
    return engine->opened.routing.outside[layer];
}

bool q3_engine_set_pool(q3_engine *engine, const bool *members, q3_error *err)
{
    uint32_t layer;
    return q3_routing_set_pool(&engine->opened.routing, members, &layer) ||
           q3_fail(err, Q3_INCOMPLETE, "layer %" PRIu32 ": %s has none of the pool's experts",
                   layer, engine->opened.model.set.directory);
}

void q3_engine_set_trace(q3_engine *engine, q3_trace_writer *trace)
{
    engine->forward.trace = trace;
}

// ---- sessions ----

bool q3_session_create(q3_engine *engine, q3_session **result, q3_error *err)
{
    *result = NULL;
    if (engine->sessions == engine->opened.budget.sessions)
        return q3_fail(err, Q3_REFUSED,
                       "a session more than the %" PRIu32 " that the memory budget counts",
                       engine->opened.budget.sessions);
    const q3_config *config = engine->opened.model.config;
    q3_session *session = q3_alloc_zeroed(1, sizeof *session, err);
    if (!session)
        return false;
    session->logits = q3_alloc_zeroed(config->vocab_size, sizeof *session->logits, err);
    if (!session->logits ||
        !q3_kv_cache_create(config, engine->opened.kernels, engine->opened.info.context,
                            engine->opened.budget.narrow, &session->cache, err)) {
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
    return session->engine->opened.info.context;
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
    const uint32_t vocabulary = session->engine->opened.model.config->vocab_size;
    if (count > session->engine->opened.info.context - session->length)
        return q3_fail(err, Q3_USAGE,
                       "%zu tokens after %" PRIu32 " do not fit a context of %" PRIu32 " tokens",
                       count, session->length, session->engine->opened.info.context);
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocabulary)
            return q3_fail(err, Q3_USAGE,
                           "token id %" PRIu32 " is not in the vocabulary of %" PRIu32, ids[i],
                           vocabulary);
    return true;
}

// Of how many tokens of a batch the last layer's output is asked for.
static uint32_t count_wanted(const q3_engine *engine, const q3_batch *batch,
                             const q3_observer *observer)
{
    if (engine->forward.trace || (observer && (observer->logits || observer->routed ||
                                               observer->wanted || observer->computed)))
        return batch->count;
    return batch->last ? 1 : 0;
}

// The logits of a batch: all of them for an observer, the last one's for the session.
static bool read_logits(q3_session *session, const q3_batch *batch, const q3_observer *observer,
                        q3_error *err)
{
    const q3_forward *forward = &session->engine->forward;
    const float *logits[Q3_LOGITS_POSITIONS];
    const uint32_t count = batch->wanted;
    const bool all = observer && observer->logits;
    if (!all && !batch->last)
        return true;
    uint32_t chunk = 0;
    for (uint32_t i = all ? 0 : count - 1; i < count; i += chunk) {
        chunk = count - i < Q3_LOGITS_POSITIONS ? count - i : Q3_LOGITS_POSITIONS;
        if (!q3_forward_logits(forward, i, chunk, observer, batch->last && i + chunk == count,
                               logits, err))
            return false;
        for (uint32_t j = 0; all && j < chunk; j++)
            observer->logits(observer->context, batch->start + i + j, logits[j]);
    }
    if (batch->last)
        memcpy(session->logits, logits[chunk - 1],
               session->engine->opened.model.config->vocab_size * sizeof *session->logits);
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
        const uint32_t most = engine->opened.info.batch;
        q3_batch batch = {.ids = ids + done,
                          .count = count - done < most ? (uint32_t)(count - done) : most,
                          .start = session->length,
                          .fed = count};
        batch.last = done + batch.count == count;
        batch.wanted = count_wanted(engine, &batch, observer);
        if (!q3_forward_batch(&engine->forward, &session->cache, &batch, observer, err) ||
            !read_logits(session, &batch, observer, err)) {
            session->length = before;
            return false;
        }
        session->length += batch.count;
        done += batch.count;
        engine->tokens += batch.count;
        engine->batches++;
    }
    return true;
}
