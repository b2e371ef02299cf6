// SPDX-License-Identifier: Apache-2.0
//
// q3-run ladder: what a model loses with pools of several sizes, chosen in several ways.
//
// The full model and up to LANES pools run through the text side by side, a few positions at a
// time, so that only that many rows of logits are kept whatever the text's length.
#include "cli.h"

#include "base/file.h"
#include "base/progress.h"
#include "base/text.h"
#include "plot/chart.h"
#include "pool/choose.h"
#include "pool/profile.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 4, STEP = 64, CHOICES_MAX = 6 };

static const char default_sizes[] = "8,16,32,48,64,96,128";

typedef enum choice {
    CHOICE_OWN,      // the best by the first profile, as many in every layer
    CHOICE_COVERAGE, // as many in all, where each layer's coverage is the same
    CHOICE_BYTES,    // as many in all, where they cover most
    CHOICE_ALL,      // the best by all the profiles together
    CHOICE_FIRST,    // the lowest numbers
    CHOICE_RANDOM,
} choice;

static const char *const choice_names[] = {
    [CHOICE_OWN] = "own", [CHOICE_COVERAGE] = "coverage", [CHOICE_BYTES] = "bytes",
    [CHOICE_ALL] = "all", [CHOICE_FIRST] = "first",       [CHOICE_RANDOM] = "random",
};

// Sums over the positions scored.
typedef struct measured {
    double nll; // -ln p of the next token
    double kl;  // of the full model's distribution and the pool's, in nats
    q3_outside outside;
    uint64_t agree; // positions where the likeliest token is the full model's
} measured;

typedef struct rung {
    uint32_t size;
    choice choice;
    q3_pool pool;
    size_t same_as; // an earlier rung with the same pool, or this one
    measured measured;
} rung;

// A run of ids that is fed to an empty session.
typedef struct window {
    size_t start;
    uint32_t length;
} window;

typedef struct ladder {
    q3_loaded loaded;
    const q3_config *config;
    q3_session *lane[LANES];
    uint32_t sizes[Q3_SIZES_MAX];
    unsigned size_count;
    choice choices[CHOICES_MAX];
    unsigned choice_count;
    double *own, *all; // shares, [layer][expert]
    rung *rungs;       // [size][choice]
    size_t rung_count;
    q3_ids ids; // of all the texts
    window *windows;
    size_t window_count, window_capacity;
    uint64_t scored; // positions
    measured full;
    // The full model's rows at the positions in hand.
    float *logits; // [STEP][vocab_size]
    double log_sum[STEP];
    uint32_t best[STEP];
    // What the positions in hand are.
    const uint32_t *fed; // the window's ids
    uint32_t length, first;
    measured *into;
    bool count_full;
    q3_progress progress;
} ladder;

// ---- texts ----

// Cuts a text that begins at `start` of the ids into windows of the context.
static bool cut_text(ladder *l, size_t start, q3_error *err)
{
    const size_t context = q3_session_context(l->loaded.session);
    for (size_t at = start; at < l->ids.count; at += context) {
        if (!q3_grow(&l->windows, &l->window_capacity, l->window_count + 1, sizeof *l->windows,
                     err))
            return false;
        const size_t left = l->ids.count - at;
        l->windows[l->window_count++] =
            (window){.start = at, .length = (uint32_t)(left < context ? left : context)};
    }
    return true;
}

static bool read_texts(ladder *l, q3_error *err)
{
    for (unsigned i = 0; i < q3_options.files.count; i++) {
        const char *path = q3_options.files.item[i];
        const size_t start = l->ids.count;
        if (!q3_load_text(&l->loaded, path, &l->ids, err))
            return false;
        if (l->ids.count - start < 2)
            return q3_fail(err, Q3_USAGE, "%s: expected at least 2 tokens to score, found %zu",
                           path, l->ids.count - start);
        if (!cut_text(l, start, err))
            return false;
    }
    return true;
}

// ---- pools ----

// The shares of the first profile, and the sums of all.
static bool read_profiles(ladder *l, q3_error *err)
{
    const size_t count = (size_t)l->config->num_hidden_layers * l->config->num_experts;
    const q3_text_list *paths = &q3_options.profiles;
    double *share = NULL;
    const char *by = q3_options.by ? q3_options.by : "score";
    const char *phase = q3_options.phase ? q3_options.phase : "all";
    const unsigned phases = strcmp(phase, "prompt") == 0   ? 1 << Q3_PHASE_PROMPT
                            : strcmp(phase, "answer") == 0 ? 1 << Q3_PHASE_ANSWER
                                                           : Q3_PHASES_ALL;
    q3_measure measure = Q3_MEASURE_SCORE;
    q3_hash128 model;
    bool ok = q3_measure_parse(by, &measure) &&
              q3_profile_model_hash(q3_engine_pack(l->loaded.engine), &model, err) &&
              (l->own = q3_alloc_zeroed(count, sizeof *l->own, err)) &&
              (l->all = q3_alloc_zeroed(count, sizeof *l->all, err)) &&
              (share = q3_alloc(count, sizeof *share, err));
    for (unsigned i = 0; ok && i < paths->count; i++) {
        q3_profile profile;
        ok = q3_profile_read(paths->item[i], &profile, err);
        if (!ok)
            break;
        ok = q3_profile_check_model(&profile, paths->item[i], model, err) &&
             q3_profile_shares(&profile, paths->item[i], measure, phases, share, err);
        for (size_t j = 0; ok && j < count; j++)
            l->all[j] += share[j];
        if (ok && i == 0)
            memcpy(l->own, share, count * sizeof *share);
        q3_profile_destroy(&profile);
    }
    free(share);
    return ok;
}

// As many experts in every layer of the lowest numbers, or of any.
static bool choose_blindly(const ladder *l, uint32_t size, bool random, q3_pool *pool,
                           q3_error *err)
{
    const uint32_t layers = l->config->num_hidden_layers, experts = l->config->num_experts;
    uint32_t *order = q3_alloc(experts, sizeof *order, err);
    if (!order || !q3_pool_create(layers, experts, pool, err)) {
        free(order);
        return false;
    }
    q3_random draws;
    q3_random_seed(&draws, q3_options.seed);
    for (uint32_t layer = 0; layer < layers; layer++) {
        for (uint32_t e = 0; e < experts; e++)
            order[e] = e;
        // The draws do not depend on the size: a smaller pool is part of a larger one.
        for (uint32_t e = 0; random && e + 1 < experts; e++) {
            const uint32_t other = e + (uint32_t)(q3_random_next(&draws) % (experts - e));
            const uint32_t number = order[e];
            order[e] = order[other];
            order[other] = number;
        }
        for (uint32_t e = 0; e < size; e++)
            q3_pool_add(pool, layer, order[e]);
    }
    free(order);
    return true;
}

// The highest coverage that takes no more than so many experts.
static bool choose_by_coverage(const ladder *l, uint64_t total, uint32_t least, q3_pool *pool,
                               q3_error *err)
{
    enum { HALVINGS = 40 };
    const uint32_t layers = l->config->num_hidden_layers, experts = l->config->num_experts;
    double low = 0, high = 1;
    for (unsigned i = 0; i < HALVINGS; i++) {
        const double middle = (low + high) / 2;
        if (!q3_pool_choose_coverage(l->own, layers, experts, middle, least, pool, err))
            return false;
        *(pool->total <= total ? &low : &high) = middle;
        q3_pool_destroy(pool);
    }
    return q3_pool_choose_coverage(l->own, layers, experts, low, least, pool, err);
}

static bool choose_by_bytes(const ladder *l, uint64_t total, uint32_t least, q3_pool *pool,
                            q3_error *err)
{
    const uint32_t layers = l->config->num_hidden_layers, experts = l->config->num_experts;
    const size_t count = (size_t)layers * experts;
    uint64_t *bytes = q3_alloc(count, sizeof *bytes, err);
    for (size_t i = 0; bytes && i < count; i++)
        bytes[i] = 1;
    const bool ok =
        bytes && q3_pool_choose_bytes(l->own, bytes, layers, experts, total, least, pool, err);
    free(bytes);
    return ok;
}

static bool choose(const ladder *l, uint32_t size, choice how, q3_pool *pool, q3_error *err)
{
    const uint32_t layers = l->config->num_hidden_layers, experts = l->config->num_experts;
    const uint32_t top_k = l->config->num_experts_per_tok, least = size < top_k ? size : top_k;
    const uint64_t total = (uint64_t)size * layers;
    switch (how) {
    case CHOICE_OWN:
        return q3_pool_choose_size(l->own, layers, experts, size, pool, err);
    case CHOICE_COVERAGE:
        return choose_by_coverage(l, total, least, pool, err);
    case CHOICE_BYTES:
        return choose_by_bytes(l, total, least, pool, err);
    case CHOICE_ALL:
        return q3_pool_choose_size(l->all, layers, experts, size, pool, err);
    case CHOICE_FIRST:
    case CHOICE_RANDOM:
        break;
    }
    return choose_blindly(l, size, how == CHOICE_RANDOM, pool, err);
}

static bool make_rungs(ladder *l, q3_error *err)
{
    const size_t members = (size_t)l->config->num_hidden_layers * l->config->num_experts;
    l->choices[l->choice_count++] = CHOICE_OWN;
    if (q3_options.compare_rules) {
        l->choices[l->choice_count++] = CHOICE_COVERAGE;
        l->choices[l->choice_count++] = CHOICE_BYTES;
    }
    if (q3_options.profiles.count > 1)
        l->choices[l->choice_count++] = CHOICE_ALL;
    l->choices[l->choice_count++] = CHOICE_FIRST;
    l->choices[l->choice_count++] = CHOICE_RANDOM;
    l->rungs = q3_alloc_zeroed((size_t)l->size_count * l->choice_count, sizeof *l->rungs, err);
    for (unsigned i = 0; l->rungs && i < l->size_count * l->choice_count; i++) {
        rung *r = &l->rungs[i];
        r->size = l->sizes[i / l->choice_count];
        r->choice = l->choices[i % l->choice_count];
        if (!choose(l, r->size, r->choice, &r->pool, err))
            return false;
        l->rung_count++;
        while (r->same_as < i &&
               memcmp(l->rungs[r->same_as].pool.members, r->pool.members, members) != 0)
            r->same_as++;
    }
    return l->rungs != NULL;
}

// ---- measuring ----

static uint32_t likeliest(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void see_full(void *context, uint32_t position, const float *logits)
{
    ladder *l = context;
    const uint32_t vocabulary = l->config->vocab_size, row = position - l->first;
    if (position + 1 == l->length)
        return;
    memcpy(l->logits + (size_t)row * vocabulary, logits, vocabulary * sizeof *logits);
    l->log_sum[row] = q3_log_sum(logits, vocabulary);
    l->best[row] = likeliest(logits, vocabulary);
    if (!l->count_full)
        return;
    l->full.nll += l->log_sum[row] - (double)logits[l->fed[position + 1]];
    l->full.agree++;
    l->scored++;
}

static void see_pool(void *context, uint32_t position, const float *logits)
{
    ladder *l = context;
    const uint32_t vocabulary = l->config->vocab_size, row = position - l->first;
    if (position + 1 == l->length)
        return;
    const float *full = l->logits + (size_t)row * vocabulary;
    const double log_sum = q3_log_sum(logits, vocabulary);
    double kl = log_sum - l->log_sum[row];
    for (uint32_t i = 0; i < vocabulary; i++)
        kl += exp((double)full[i] - l->log_sum[row]) * ((double)full[i] - (double)logits[i]);
    l->into->kl += kl;
    l->into->nll += log_sum - (double)logits[l->fed[position + 1]];
    l->into->agree += likeliest(logits, vocabulary) == l->best[row];
}

// Feeds the positions in hand, with a pool or with all that the pack holds.
static bool feed(ladder *l, q3_session *session, const bool *members, uint32_t count,
                 const q3_observer *observer, q3_error *err)
{
    const q3_engine_statistics before = q3_engine_count(l->loaded.engine);
    if (!q3_engine_set_pool(l->loaded.engine, members, err) ||
        !q3_session_feed(session, l->fed + l->first, count, observer, err))
        return false;
    const q3_engine_statistics after = q3_engine_count(l->loaded.engine);
    if (l->into) {
        l->into->outside.sum += after.outside.sum - before.outside.sum;
        l->into->outside.routed += after.outside.routed - before.outside.routed;
    }
    q3_progress_add(&l->progress, count, "");
    return true;
}

// Runs the full model and some pools through the window.
static bool run_window(ladder *l, rung *const *group, unsigned count, q3_error *err)
{
    const q3_observer full = {.context = l, .logits = see_full};
    const q3_observer pool = {.context = l, .logits = see_pool};
    q3_session_truncate(l->loaded.session, 0);
    for (unsigned i = 0; i < count; i++)
        q3_session_truncate(l->lane[i], 0);
    for (l->first = 0; l->first < l->length; l->first += STEP) {
        const uint32_t left = l->length - l->first, step = left < STEP ? left : STEP;
        l->into = l->count_full ? &l->full : NULL;
        if (!feed(l, l->loaded.session, NULL, step, &full, err))
            return false;
        for (unsigned i = 0; i < count; i++) {
            l->into = &group[i]->measured;
            if (!feed(l, l->lane[i], group[i]->pool.members, step, &pool, err))
                return false;
        }
    }
    return true;
}

static bool run_group(ladder *l, rung *const *group, unsigned count, q3_error *err)
{
    for (size_t i = 0; i < l->window_count; i++) {
        l->fed = l->ids.ids + l->windows[i].start;
        l->length = l->windows[i].length;
        if (!run_window(l, group, count, err))
            return false;
    }
    l->count_full = false;
    return true;
}

static bool measure(ladder *l, q3_error *err)
{
    rung *group[LANES];
    unsigned in_group = 0;
    uint64_t different = 0;
    for (size_t i = 0; i < l->rung_count; i++)
        different += l->rungs[i].same_as == i;
    l->logits = q3_alloc((size_t)STEP * l->config->vocab_size, sizeof *l->logits, err);
    if (!l->logits)
        return false;
    for (unsigned i = 0; i < LANES; i++)
        if (!q3_session_create(l->loaded.engine, &l->lane[i], err))
            return false;
    const uint64_t rounds = (different + LANES - 1) / LANES;
    q3_progress_begin(&l->progress, "measuring", (different + rounds) * l->ids.count, false);
    l->progress.unit = "tokens";
    l->count_full = true;
    bool ok = true;
    for (size_t i = 0; ok && i < l->rung_count; i++) {
        if (l->rungs[i].same_as == i)
            group[in_group++] = &l->rungs[i];
        if (in_group == LANES || (in_group && i + 1 == l->rung_count)) {
            ok = run_group(l, group, in_group, err);
            in_group = 0;
        }
    }
    q3_progress_end(&l->progress);
    for (size_t i = 0; i < l->rung_count; i++)
        l->rungs[i].measured = l->rungs[l->rungs[i].same_as].measured;
    return ok;
}

// ---- results ----

typedef struct result {
    double nll, perplexity, agreement, kl, outside;
} result;

static result mean(const ladder *l, const measured *m)
{
    const double scored = (double)l->scored;
    return (result){
        .nll = m->nll / scored,
        .perplexity = exp(m->nll / scored),
        .agreement = (double)m->agree / scored,
        .kl = m->kl / scored,
        .outside = m->outside.sum / (double)m->outside.routed,
    };
}

static void print_row(const char *size, const char *how, result r)
{
    printf("%4s %-8s %8.4f %10.2f %7.1f %8.4f %9.1f\n", size, how, r.nll, r.perplexity,
           100 * r.agreement, r.kl, 100 * r.outside);
}

static void print_table(const ladder *l)
{
    printf("%4s %-8s %8s %10s %7s %8s %9s\n", "size", "pool", "NLL", "perplexity", "top-1 %", "KL",
           "outside %");
    print_row("all", "full", mean(l, &l->full));
    for (size_t i = 0; i < l->rung_count; i++) {
        char size[16];
        snprintf(size, sizeof size, "%" PRIu32, l->rungs[i].size);
        print_row(size, choice_names[l->rungs[i].choice], mean(l, &l->rungs[i].measured));
    }
}

static void put_result(q3_json_writer *json, result r)
{
    q3_json_put_double(json, "mean_nll", r.nll);
    q3_json_put_double(json, "perplexity", r.perplexity);
    q3_json_put_double(json, "top1_agreement", r.agreement);
    q3_json_put_double(json, "kl", r.kl);
    q3_json_put_double(json, "outside_share", r.outside);
}

static bool say_json(const ladder *l, q3_error *err)
{
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_begin_array(&json, "texts");
    for (unsigned i = 0; i < q3_options.files.count; i++)
        q3_json_put_string(&json, NULL, q3_options.files.item[i]);
    q3_json_end_array(&json);
    q3_json_put_u64(&json, "tokens", l->scored);
    q3_json_put_string(&json, "by", q3_options.by ? q3_options.by : "score");
    q3_json_begin_array(&json, "profiles");
    for (unsigned i = 0; i < q3_options.profiles.count; i++)
        q3_json_put_string(&json, NULL, q3_options.profiles.item[i]);
    q3_json_end_array(&json);
    q3_json_inline(&json);
    q3_json_begin_object(&json, "full");
    put_result(&json, mean(l, &l->full));
    q3_json_end_object(&json);
    q3_json_begin_array(&json, "pools");
    for (size_t i = 0; i < l->rung_count; i++) {
        const rung *r = &l->rungs[i];
        q3_json_inline(&json);
        q3_json_begin_object(&json, NULL);
        q3_json_put_u64(&json, "size", r->size);
        q3_json_put_string(&json, "chosen", choice_names[r->choice]);
        q3_json_put_u64(&json, "experts", r->pool.total);
        put_result(&json, mean(l, &r->measured));
        q3_json_end_object(&json);
    }
    q3_json_end_array(&json);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

static bool draw(const ladder *l, q3_error *err)
{
    static const char *const names[] = {
        [CHOICE_OWN] = "chosen for this text's domain",
        [CHOICE_COVERAGE] = "the same, by coverage",
        [CHOICE_BYTES] = "the same, by bytes",
        [CHOICE_ALL] = "chosen over all domains",
        [CHOICE_FIRST] = "the first n",
        [CHOICE_RANDOM] = "random n",
    };
    double x[Q3_SIZES_MAX], y[CHOICES_MAX + 1][Q3_SIZES_MAX];
    q3_series series[CHOICES_MAX + 1];
    const unsigned choices = l->choice_count, sizes = l->size_count;
    for (unsigned i = 0; i < sizes; i++) {
        x[i] = (double)l->sizes[i];
        y[choices][i] = mean(l, &l->full).nll;
        for (unsigned j = 0; j < choices; j++)
            y[j][i] = mean(l, &l->rungs[(size_t)i * choices + j].measured).nll;
    }
    for (unsigned j = 0; j < choices; j++)
        series[j] = (q3_series){.name = names[l->choices[j]], .x = x, .y = y[j], .count = sizes};
    series[choices] = (q3_series){
        .name = "the full model", .x = x, .y = y[choices], .count = sizes, .reference = true};
    char subtitle[256];
    char tokens[Q3_GROUPED_MAX], more[32] = "";
    if (q3_options.files.count > 1)
        snprintf(more, sizeof more, " and %u more", q3_options.files.count - 1);
    snprintf(subtitle, sizeof subtitle, "%s tokens of %.180s%s", q3_grouped(l->scored, tokens),
             q3_options.files.item[0], more);
    const q3_chart chart = {
        .title = "What pools of experts lose",
        .subtitle = subtitle,
        .x_label = "experts in each layer",
        .y_label = "mean -ln p of a token (nats)",
        .x_scale = Q3_SCALE_LOG2,
        .from_zero = true,
        .series = series,
        .series_count = choices + 1,
    };
    char *text;
    size_t size;
    if (!q3_chart_draw(&chart, &text, &size, err))
        return false;
    const bool ok = q3_file_publish(q3_options.output, text, size, err);
    free(text);
    return ok;
}

static bool climb(ladder *l, q3_error *err)
{
    l->config = q3_engine_describe(l->loaded.engine)->config;
    if (!q3_parse_sizes("--sizes", q3_options.sizes, default_sizes, l->config->num_experts,
                        l->sizes, &l->size_count, err) ||
        !read_profiles(l, err) || !make_rungs(l, err) || !read_texts(l, err))
        return false;
    if (!measure(l, err))
        return false;
    if (q3_options.json && !say_json(l, err))
        return false;
    if (!q3_options.json)
        print_table(l);
    return !q3_options.output || draw(l, err);
}

int q3_command_ladder(const char *const *arguments)
{
    q3_error err;
    ladder l = {.rung_count = 0};
    if (!q3_options.files.count || !q3_options.profiles.count) {
        q3_fail(&err, Q3_USAGE, "expected --file and --profile");
        return q3_report(&err);
    }
    const bool ok =
        q3_loaded_open_for(arguments[0], true, LANES + 1, STEP, &l.loaded, &err) && climb(&l, &err);
    for (unsigned i = 0; i < LANES; i++)
        q3_session_destroy(l.lane[i]);
    for (size_t i = 0; i < l.rung_count; i++)
        q3_pool_destroy(&l.rungs[i].pool);
    free(l.rungs);
    free(l.own);
    free(l.all);
    free(l.logits);
    free(l.windows);
    q3_ids_free(&l.ids);
    q3_loaded_close(&l.loaded);
    return ok ? Q3_DONE : q3_report(&err);
}
