// SPDX-License-Identifier: Apache-2.0
//
// q3-run logits and q3-run score: what the model says about given tokens.
#include "cli.h"

#include "base/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static bool say_logits(const q3_loaded *loaded, q3_error *err)
{
    const float *logits = q3_session_logits(loaded->session);
    const uint32_t count = q3_engine_describe(loaded->engine)->config->vocab_size;
    q3_json_writer json = {0};
    q3_json_inline(&json);
    q3_json_begin_object(&json, NULL);
    q3_json_begin_array(&json, "logits");
    for (uint32_t i = 0; i < count; i++)
        q3_json_put_float(&json, NULL, logits[i]);
    q3_json_end_array(&json);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

int q3_command_logits(const char *const *arguments)
{
    q3_error err;
    q3_loaded loaded = {0};
    q3_ids ids = {0};
    if (!q3_options.ids) {
        q3_fail(&err, Q3_USAGE, "expected --ids");
        return q3_report(&err);
    }
    const bool ok = q3_parse_ids(q3_options.ids, &ids, &err) &&
                    q3_loaded_open(arguments[0], false, &loaded, &err) &&
                    q3_check_length(&loaded, "the list of ids", ids.count, &err) &&
                    q3_session_feed(loaded.session, ids.ids, ids.count, NULL, &err) &&
                    say_logits(&loaded, &err);
    q3_ids_free(&ids);
    q3_loaded_close(&loaded);
    return ok ? Q3_DONE : q3_report(&err);
}

double q3_log_sum(const float *logits, uint32_t count)
{
    double largest = (double)logits[0], sum = 0;
    for (uint32_t i = 1; i < count; i++)
        largest = (double)logits[i] > largest ? (double)logits[i] : largest;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

typedef struct scoring {
    const q3_ids *ids;
    uint32_t vocabulary;
    double sum; // of -ln p over the tokens but the first
} scoring;

static void score_position(void *context, uint32_t position, const float *logits)
{
    scoring *score = context;
    if (position + 1 >= score->ids->count)
        return;
    score->sum +=
        q3_log_sum(logits, score->vocabulary) - (double)logits[score->ids->ids[position + 1]];
}

static bool say_score(const scoring *score, q3_error *err)
{
    const size_t tokens = score->ids->count - 1;
    const double mean = score->sum / (double)tokens;
    if (!q3_options.json) {
        printf("%.6f nats a token, perplexity %.4f, %zu tokens\n", mean, exp(mean), tokens);
        return true;
    }
    q3_json_writer json = {0};
    q3_json_inline(&json);
    q3_json_begin_object(&json, NULL);
    q3_json_put_double(&json, "mean_nll", mean);
    q3_json_put_double(&json, "perplexity", exp(mean));
    q3_json_put_u64(&json, "tokens", tokens);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

static bool read_text(const q3_loaded *loaded, q3_ids *ids, q3_error *err)
{
    if (q3_options.ids)
        return q3_parse_ids(q3_options.ids, ids, err);
    return q3_load_text(loaded, q3_options.file, ids, err);
}

static bool score(const q3_loaded *loaded, q3_ids *ids, q3_error *err)
{
    scoring result = {.ids = ids,
                      .vocabulary = q3_engine_describe(loaded->engine)->config->vocab_size};
    const q3_observer observer = {.context = &result, .logits = score_position};
    if (!read_text(loaded, ids, err) || !q3_check_length(loaded, "the text", ids->count, err))
        return false;
    if (ids->count < 2)
        return q3_fail(err, Q3_USAGE, "expected at least 2 tokens to score, found %zu", ids->count);
    q3_run_statistics run = {.load_seconds = loaded->seconds, .prompt_tokens = ids->count};
    const double started = q3_now();
    const size_t step = q3_options.step ? (size_t)q3_options.step : ids->count;
    for (size_t at = 0; at < ids->count; at += step)
        if (!q3_session_feed(loaded->session, ids->ids + at,
                             ids->count - at < step ? ids->count - at : step, &observer, err))
            return false;
    run.prompt_seconds = q3_now() - started;
    return say_score(&result, err) && q3_statistics_show(loaded, &run, err);
}

int q3_command_score(const char *const *arguments)
{
    q3_error err;
    q3_loaded loaded = {0};
    q3_ids ids = {0};
    if (!q3_options.file == !q3_options.ids) {
        q3_fail(&err, Q3_USAGE, "expected one of --file and --ids");
        return q3_report(&err);
    }
    bool ok = q3_loaded_open(arguments[0], true, &loaded, &err) && score(&loaded, &ids, &err);
    ok = q3_loaded_end_trace(&loaded, ok, &err);
    if (ok)
        q3_warn_of_pool(&loaded);
    q3_ids_free(&ids);
    q3_loaded_close(&loaded);
    return ok ? Q3_DONE : q3_report(&err);
}
