// SPDX-License-Identifier: Apache-2.0
//
// q3-run generate: one prompt, one answer.
#include "cli.h"

#include "base/progress.h"
#include "base/text.h"

#include <stdlib.h>
#include <string.h>

static bool say_piece(void *context, q3_bytes text, q3_error *err)
{
    (void)context;
    return q3_say(text.data, text.size, err);
}

bool q3_check_stops(q3_error *err)
{
    for (unsigned i = 0; i < q3_options.stop.count; i++) {
        const char *stop = q3_options.stop.item[i];
        size_t left = strlen(stop);
        if (left == 0)
            return q3_fail(err, Q3_USAGE, "--stop: the text is empty");
        for (size_t length; left; stop += length, left -= length) {
            length = q3_utf8_length((const uint8_t *)stop, left);
            if (length == 0)
                return q3_fail(err, Q3_USAGE, "--stop: \"%s\" is not UTF-8",
                               q3_options.stop.item[i]);
        }
    }
    return true;
}

bool q3_answer(const q3_loaded *loaded, bool quiet, q3_generation *result, q3_error *err)
{
    const q3_generation_options options = {
        .max_tokens = q3_options.max_tokens_given ? q3_options.max_tokens : UINT64_MAX,
        .stop_ids = loaded->stop_ids.ids,
        .stop_id_count = loaded->stop_ids.count,
        .stop_texts = q3_options.stop.item,
        .stop_text_count = q3_options.stop.count,
        .say = quiet ? NULL : say_piece,
    };
    *result = (q3_generation){0};
    return q3_generate(loaded->session, loaded->tokenizer, loaded->sampler, &options, result, err);
}

static bool read_prompt(const q3_loaded *loaded, q3_ids *ids, q3_error *err)
{
    if (q3_options.ids) {
        if (q3_options.system)
            return q3_fail(err, Q3_USAGE,
                           "--system does not go with --ids, which are fed as given");
        return q3_parse_ids(q3_options.ids, ids, err);
    }
    char *input = NULL;
    size_t size = strlen(q3_options.prompt);
    if (strcmp(q3_options.prompt, "-") == 0 && !q3_read_input(&input, &size, err))
        return false;
    const q3_bytes text = {(const uint8_t *)(input ? input : q3_options.prompt), size};
    const q3_bytes system = {(const uint8_t *)q3_options.system,
                             q3_options.system ? strlen(q3_options.system) : 0};
    const bool ok =
        q3_options.raw
            ? q3_tokenizer_encode(loaded->tokenizer, text, ids, err)
            : q3_chat_first(loaded->tokenizer, q3_options.system ? &system : NULL, text, ids, err);
    free(input);
    return ok && (ids->count || q3_fail(err, Q3_USAGE, "the prompt is empty"));
}

static bool say_result(const q3_loaded *loaded, const q3_generation *result,
                       const q3_run_statistics *run, q3_error *err)
{
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_inline(&json);
    q3_json_begin_array(&json, "ids");
    for (size_t i = 0; i < result->ids.count; i++)
        q3_json_put_u64(&json, NULL, result->ids.ids[i]);
    q3_json_end_array(&json);
    q3_json_put_bytes(&json, "text", result->text ? result->text : "", result->text_size);
    q3_json_put_string(&json, "stop_reason", q3_stop_reason_name(result->reason));
    q3_json_begin_object(&json, "statistics");
    q3_statistics_put(loaded, run, &json);
    q3_json_end_object(&json);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

static bool generate(const q3_loaded *loaded, q3_ids *prompt, q3_generation *result, q3_error *err)
{
    q3_run_statistics run = {.load_seconds = loaded->seconds};
    if (!read_prompt(loaded, prompt, err) ||
        !q3_check_length(loaded, "the prompt", prompt->count, err))
        return false;
    const double started = q3_now();
    if (!q3_session_feed(loaded->session, prompt->ids, prompt->count, NULL, err))
        return false;
    run.prompt_seconds = q3_now() - started;
    run.prompt_tokens = prompt->count;
    q3_sampler_see(loaded->sampler, prompt->ids, prompt->count);
    if (!q3_answer(loaded, q3_options.json, result, err))
        return false;
    run.answer_seconds = result->seconds;
    run.answer_tokens = result->ids.count;
    run.answer_ids = result->ids.ids;
    return (q3_options.json ? say_result(loaded, result, &run, err) : q3_say("\n", 1, err)) &&
           q3_statistics_show(loaded, &run, err);
}

int q3_command_generate(const char *const *arguments)
{
    q3_error err;
    q3_loaded loaded = {0};
    q3_ids prompt = {0};
    q3_generation result = {0};
    if (!q3_options.prompt == !q3_options.ids) {
        q3_fail(&err, Q3_USAGE, "expected one of --prompt and --ids");
        return q3_report(&err);
    }
    bool ok = q3_check_stops(&err) && q3_loaded_open(arguments[0], true, &loaded, &err) &&
              generate(&loaded, &prompt, &result, &err);
    ok = q3_loaded_end_trace(&loaded, ok, &err);
    if (ok)
        q3_warn_of_pool(&loaded);
    const bool interrupted = result.reason == Q3_STOP_INTERRUPTED;
    q3_generation_free(&result);
    q3_ids_free(&prompt);
    q3_loaded_close(&loaded);
    return !ok ? q3_report(&err) : interrupted ? Q3_INTERRUPTED : Q3_DONE;
}
