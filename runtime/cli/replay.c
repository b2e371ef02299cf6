// SPDX-License-Identifier: Apache-2.0
//
// q3-run replay: what caches of experts of several sizes, under several policies, would have done
// with a trace.
#include "cli.h"

#include "base/text.h"
#include "opened.h"
#include "pool/profile.h"
#include "replay.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct row {
    uint32_t slots; // the most of any layer
    q3_replay_counts counts[Q3_POLICIES];
} row;

typedef struct replaying {
    q3_opened opened;
    q3_trace trace;
    uint32_t *slots; // [layer]
    row rows[Q3_SIZES_MAX];
    unsigned row_count;
} replaying;

bool q3_open_trace(const q3_set *set, const char *path, q3_trace *trace, q3_error *err)
{
    q3_hash128 model;
    if (!q3_profile_model_hash(set, &model, err) || !q3_trace_read(path, trace, err))
        return false;
    const bool ok = q3_trace_check_model(trace, path, model, err) &&
                    ((trace->layers == set->config.num_hidden_layers &&
                      trace->experts == set->config.num_experts) ||
                     q3_fail(err, Q3_MALFORMED,
                             "%s: expected %" PRIu32 " layers of %" PRIu32
                             " experts, found %" PRIu32 " of %" PRIu32,
                             path, set->config.num_hidden_layers, set->config.num_experts,
                             trace->layers, trace->experts)) &&
                    (trace->tokens || q3_fail(err, Q3_INCOMPLETE, "%s: has no tokens", path));
    if (!ok)
        q3_trace_free(trace);
    return ok;
}

// One row: with as many slots in each layer as r->slots says.
static bool run_row(const replaying *r, row *to, q3_error *err)
{
    for (unsigned p = 0; p < Q3_POLICIES; p++)
        if (!q3_replay(&r->trace, (q3_policy)p, r->slots, (uint32_t)q3_options.step, &to->counts[p],
                       err))
            return false;
    return true;
}

static bool run_rows(replaying *r, q3_error *err)
{
    const uint32_t layers = r->trace.layers;
    if (q3_options.memory) {
        for (uint32_t i = 0; i < layers; i++)
            r->slots[i] = r->opened.slots[i];
        r->rows[0].slots = r->opened.info.slots_max;
        r->row_count = 1;
        return run_row(r, &r->rows[0], err);
    }
    uint32_t sizes[Q3_SIZES_MAX];
    if (!q3_parse_sizes("--slots", q3_options.slots, Q3_REPLAY_SLOTS, r->trace.experts, sizes,
                        &r->row_count, err))
        return false;
    for (unsigned i = 0; i < r->row_count; i++) {
        for (uint32_t j = 0; j < layers; j++)
            r->slots[j] = sizes[i];
        r->rows[i].slots = sizes[i];
        if (!run_row(r, &r->rows[i], err))
            return false;
    }
    return true;
}

static void print_table(const replaying *r)
{
    char tokens[Q3_GROUPED_MAX], batches[Q3_GROUPED_MAX];
    printf("%s tokens in %s batches; %% of the experts needed that were there\n",
           q3_grouped(r->trace.tokens, tokens), q3_grouped(r->trace.batch_count, batches));
    printf("%8s", "slots");
    for (unsigned p = 0; p < Q3_POLICIES; p++)
        printf(" %8s", q3_policy_name((q3_policy)p));
    putchar('\n');
    for (unsigned i = 0; i < r->row_count; i++) {
        printf("%8" PRIu32, r->rows[i].slots);
        for (unsigned p = 0; p < Q3_POLICIES; p++)
            printf(" %8.2f", 100 * q3_replay_rate(r->rows[i].counts[p]));
        putchar('\n');
    }
}

static bool say_json(const replaying *r, q3_error *err)
{
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_put_u64(&json, "tokens", r->trace.tokens);
    q3_json_put_u64(&json, "batches", r->trace.batch_count);
    q3_json_put_u64(&json, "step", q3_options.step);
    q3_json_begin_array(&json, "slots");
    for (unsigned i = 0; i < r->row_count; i++) {
        q3_json_begin_object(&json, NULL);
        q3_json_put_u64(&json, "slots", r->rows[i].slots);
        for (unsigned p = 0; p < Q3_POLICIES; p++) {
            const q3_replay_counts counts = r->rows[i].counts[p];
            q3_json_begin_object(&json, q3_policy_name((q3_policy)p));
            q3_json_put_u64(&json, "hits", counts.hits);
            q3_json_put_u64(&json, "misses", counts.misses);
            q3_json_put_double(&json, "hit_rate", q3_replay_rate(counts));
            q3_json_end_object(&json);
        }
        q3_json_end_object(&json);
    }
    q3_json_end_array(&json);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

static bool replay(replaying *r, const char *const *arguments, q3_error *err)
{
    q3_engine_options options;
    if (q3_options.memory && q3_options.slots)
        return q3_fail(err, Q3_USAGE, "expected one of --memory and --slots");
    if (!q3_engine_options_given(&options, err))
        return false;
    // What the budget leaves for experts where text is generated.
    options.tokenizer = true;
    if (!q3_opened_create(arguments[0], &options, &r->opened, err) ||
        !q3_open_trace(&r->opened.model.set, arguments[1], &r->trace, err) ||
        !(r->slots = q3_alloc(r->trace.layers, sizeof *r->slots, err)) || !run_rows(r, err))
        return false;
    if (q3_options.json)
        return say_json(r, err);
    print_table(r);
    return true;
}

int q3_command_replay(const char *const *arguments)
{
    q3_error err;
    replaying r = {.row_count = 0};
    const bool ok = replay(&r, arguments, &err);
    free(r.slots);
    q3_trace_free(&r.trace);
    q3_opened_destroy(&r.opened);
    return ok ? Q3_DONE : q3_report(&err);
}
