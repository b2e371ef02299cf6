// SPDX-License-Identifier: Apache-2.0
//
// q3-run profile: which experts a model uses on given texts. What is counted is in pool/profile.h.
#include "cli.h"

#include "base/file.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "base/text.h"
#include "pool/profile.h"
#include "router_bias.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_TOKENS = 256 };

typedef struct profiling {
    q3_loaded loaded;
    q3_profile profile;
    q3_phase phase; // of what is fed now
    q3_observer observer;
    q3_progress progress;
    const char *name; // of the text at work
} profiling;

static void count_computed(void *context, uint32_t position, uint32_t layer,
                           const uint32_t *experts, const float *weights, const float *norms,
                           uint32_t count)
{
    (void)position;
    profiling *p = context;
    for (uint32_t i = 0; i < count; i++)
        q3_profile_add_chosen(&p->profile, p->phase, layer, experts[i], (double)weights[i],
                              (double)norms[i]);
}

static void count_wanted(void *context, uint32_t position, uint32_t layer,
                         const float *probabilities, uint32_t count)
{
    (void)position;
    (void)count;
    profiling *p = context;
    q3_profile_add_mass(&p->profile, p->phase, layer, probabilities);
    if (layer + 1 == p->profile.layers && p->phase == Q3_PHASE_PROMPT)
        q3_progress_add(&p->progress, 1, p->name);
}

static bool feed(profiling *p, const uint32_t *ids, size_t count, q3_error *err)
{
    q3_session_truncate(p->loaded.session, 0);
    p->phase = Q3_PHASE_PROMPT;
    return q3_session_feed(p->loaded.session, ids, count, &p->observer, err);
}

// A text as it stands, in windows of the context.
static bool count_text(profiling *p, const char *path, q3_error *err)
{
    q3_ids ids = {0};
    bool ok = q3_load_text(&p->loaded, path, &ids, err) &&
              (ids.count || q3_fail(err, Q3_USAGE, "%s: the text is empty", path));
    const size_t context = q3_session_context(p->loaded.session);
    p->name = path;
    q3_progress_begin(&p->progress, "profiling", ids.count, false);
    p->progress.unit = "tokens";
    for (size_t at = 0; ok && at < ids.count; at += context)
        ok = feed(p, ids.ids + at, ids.count - at < context ? ids.count - at : context, err);
    q3_progress_end(&p->progress);
    ok = ok && q3_profile_add_text(&p->profile, path, ids.count, 0, err);
    q3_ids_free(&ids);
    return ok;
}

// Feeds the prompt in `ids` and lets the model answer. Adds how many tokens of the answer were fed.
static bool count_answer(profiling *p, const q3_ids *ids, uint64_t *answered, q3_error *err)
{
    q3_loaded *loaded = &p->loaded;
    q3_generation result = {0};
    const q3_generation_options options = {
        .max_tokens = q3_options.max_tokens_given ? q3_options.max_tokens : ANSWER_TOKENS,
        .stop_ids = loaded->stop_ids.ids,
        .stop_id_count = loaded->stop_ids.count,
        .observer = &p->observer,
    };
    q3_sampler_reset(loaded->sampler);
    q3_sampler_see(loaded->sampler, ids->ids, ids->count);
    bool ok = feed(p, ids->ids, ids->count, err);
    p->phase = Q3_PHASE_ANSWER;
    ok = ok &&
         q3_generate(loaded->session, loaded->tokenizer, loaded->sampler, &options, &result, err);
    if (ok && result.reason == Q3_STOP_INTERRUPTED)
        ok = q3_check_interrupt(err);
    *answered += ok ? q3_session_length(loaded->session) - ids->count : 0;
    q3_generation_free(&result);
    return ok;
}

// A prompt in the chat template, and its answer.
static bool count_prompt(profiling *p, q3_bytes text, uint64_t *prompted, uint64_t *answered,
                         q3_error *err)
{
    q3_ids ids = {0};
    const q3_bytes system = {(const uint8_t *)q3_options.system,
                             q3_options.system ? strlen(q3_options.system) : 0};
    const bool ok =
        q3_chat_first(p->loaded.tokenizer, q3_options.system ? &system : NULL, text, &ids, err) &&
        q3_check_length(&p->loaded, "the prompt", ids.count, err) &&
        count_answer(p, &ids, answered, err);
    *prompted += ids.count;
    q3_ids_free(&ids);
    return ok;
}

// A file with a prompt a line; empty lines are none.
static bool count_prompts(profiling *p, const char *path, q3_error *err)
{
    char *text;
    size_t size;
    uint64_t prompted = 0, answered = 0;
    if (!q3_file_load(path, Q3_TEXT_BYTES_MAX, &text, &size, err))
        return false;
    bool ok = true;
    p->name = path;
    for (size_t at = 0; ok && at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t length = end ? (size_t)(end - text) - at : size - at;
        const size_t next = at + length + 1;
        if (length && text[at + length - 1] == '\r')
            length--;
        if (length)
            ok = count_prompt(p, (q3_bytes){(const uint8_t *)text + at, length}, &prompted,
                              &answered, err);
        at = next;
    }
    free(text);
    if (ok && !prompted)
        return q3_fail(err, Q3_USAGE, "%s: no prompts", path);
    return ok && q3_profile_add_text(&p->profile, path, prompted, answered, err);
}

static bool merge(profiling *p, const char *path, q3_hash128 model, q3_error *err)
{
    q3_profile other;
    if (!q3_profile_read(path, &other, err))
        return false;
    const bool ok = q3_profile_check_model(&other, path, model, err) &&
                    q3_profile_merge(&p->profile, &other, path, err);
    q3_profile_destroy(&other);
    return ok;
}

static bool count_all(profiling *p, q3_error *err)
{
    const q3_run_options *o = &q3_options;
    q3_hash128 model;
    bool ok =
        q3_profile_model_hash(q3_engine_pack(p->loaded.engine), &model, err) &&
        q3_profile_create(q3_engine_describe(p->loaded.engine)->config, model, &p->profile, err);
    for (unsigned i = 0; ok && i < o->merge.count; i++)
        ok = merge(p, o->merge.item[i], model, err);
    for (unsigned i = 0; ok && i < o->files.count; i++)
        ok = count_text(p, o->files.item[i], err);
    for (unsigned i = 0; ok && i < o->prompt_files.count; i++)
        ok = count_prompts(p, o->prompt_files.item[i], err);
    for (unsigned i = 0; ok && i < o->prompts.count; i++) {
        uint64_t prompted = 0, answered = 0;
        const char *text = o->prompts.item[i];
        ok = count_prompt(p, (q3_bytes){(const uint8_t *)text, strlen(text)}, &prompted, &answered,
                          err) &&
             q3_profile_add_text(&p->profile, text, prompted, answered, err);
    }
    return ok;
}

static bool write_bias(const profiling *p, q3_error *err)
{
    const uint32_t layers = p->profile.layers, experts = p->profile.experts;
    const size_t count = (size_t)layers * experts;
    double *share = q3_alloc(count, sizeof *share, err);
    float *bias = share ? q3_alloc(count, sizeof *bias, err) : NULL;
    const bool ok = bias && q3_profile_shares(&p->profile, q3_options.router_bias_out,
                                              Q3_MEASURE_SCORE, Q3_PHASES_ALL, share, err);
    for (uint32_t i = 0; ok && i < layers; i++)
        q3_router_bias_from_scores(share + (size_t)i * experts, experts, q3_options.strength,
                                   bias + (size_t)i * experts);
    const bool saved =
        ok && q3_router_bias_save(q3_options.router_bias_out, layers, experts, bias, err);
    free(bias);
    free(share);
    return saved;
}

static bool write_profile(const profiling *p, q3_error *err)
{
    char a[Q3_GROUPED_MAX], b[Q3_GROUPED_MAX];
    if (q3_options.output && !q3_profile_write(&p->profile, q3_options.output, err))
        return false;
    if (q3_options.router_bias_out && !write_bias(p, err))
        return false;
    printf("%zu text%s, %s tokens of prompts, %s of answers\n", p->profile.text_count,
           p->profile.text_count == 1 ? "" : "s", q3_grouped(p->profile.tokens[Q3_PHASE_PROMPT], a),
           q3_grouped(p->profile.tokens[Q3_PHASE_ANSWER], b));
    return true;
}

static bool check_options(q3_error *err)
{
    const q3_run_options *o = &q3_options;
    if (!o->output && !o->router_bias_out)
        return q3_fail(err, Q3_USAGE, "expected --output or --router-bias-out");
    if (!o->files.count && !o->prompt_files.count && !o->prompts.count && !o->merge.count)
        return q3_fail(err, Q3_USAGE, "expected --file, --prompts, --prompt or --merge");
    return true;
}

int q3_command_profile(const char *const *arguments)
{
    q3_error err;
    profiling p = {.phase = Q3_PHASE_PROMPT};
    p.observer = (q3_observer){.context = &p, .computed = count_computed, .wanted = count_wanted};
    // Answers are greedy, whatever the pack says: a profile can be made again.
    q3_options.temperature_given = q3_options.repeat_penalty_given = true;
    const bool ok = check_options(&err) && q3_loaded_open(arguments[0], true, &p.loaded, &err) &&
                    count_all(&p, &err) && write_profile(&p, &err);
    q3_profile_destroy(&p.profile);
    q3_loaded_close(&p.loaded);
    return ok ? Q3_DONE : q3_report(&err);
}
