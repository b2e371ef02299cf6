// SPDX-License-Identifier: Apache-2.0
#include "generation.h"

#include "base/interrupt.h"
#include "base/progress.h"

#include <stdlib.h>
#include <string.h>

const char *q3_stop_reason_name(q3_stop_reason reason)
{
    static const char *const names[] = {
        [Q3_STOP_TOKEN] = "stop",
        [Q3_STOP_LENGTH] = "length",
        [Q3_STOP_CONTEXT] = "context",
        [Q3_STOP_TEXT] = "stop_text",
        [Q3_STOP_INTERRUPTED] = "interrupted",
    };
    return names[reason];
}

// The text so far. What lies behind `said` is held back.
typedef struct speech {
    const q3_generation_options *options;
    char *text;
    size_t size, capacity, said;
    bool stopped; // a stop text was found and cut off, with all behind it
} speech;

// Where the first stop text begins in what has not been said, or the end of the text.
static size_t find_stop(const speech *s)
{
    size_t first = s->size;
    for (size_t i = 0; i < s->options->stop_text_count; i++) {
        const char *stop = s->options->stop_texts[i];
        const char *found = memmem(s->text + s->said, s->size - s->said, stop, strlen(stop));
        if (found && (size_t)(found - s->text) < first)
            first = (size_t)(found - s->text);
    }
    return first;
}

// How much may be said: up to the longest end of the text that begins a stop text.
static size_t find_certain(const speech *s)
{
    size_t certain = s->size;
    for (size_t i = 0; i < s->options->stop_text_count; i++) {
        const char *stop = s->options->stop_texts[i];
        size_t length = strlen(stop) - 1;
        if (length > s->size - s->said)
            length = s->size - s->said;
        while (length && memcmp(s->text + s->size - length, stop, length) != 0)
            length--;
        if (s->size - length < certain)
            certain = s->size - length;
    }
    return certain;
}

// Takes more text and says what has become certain; all of it at the end.
static bool add_text(speech *s, q3_bytes more, bool end, q3_error *err)
{
    if (!q3_grow(&s->text, &s->capacity, s->size + more.size + 1, 1, err))
        return false;
    if (more.size)
        memcpy(s->text + s->size, more.data, more.size);
    s->size += more.size;
    const size_t stop = find_stop(s);
    s->stopped = stop < s->size;
    s->size = stop;
    const size_t certain = s->stopped || end ? s->size : find_certain(s);
    s->text[s->size] = 0;
    const q3_bytes text = {(const uint8_t *)s->text + s->said, certain - s->said};
    s->said = certain;
    return text.size == 0 || !s->options->say || s->options->say(s->options->context, text, err);
}

static bool is_stop_id(const q3_generation_options *options, uint32_t id)
{
    for (size_t i = 0; i < options->stop_id_count; i++)
        if (options->stop_ids[i] == id)
            return true;
    return false;
}

// Samples, says and feeds until the end.
static bool run(q3_session *session, q3_sampler *sampler, const q3_generation_options *options,
                q3_text_stream *stream, speech *s, q3_generation *result, q3_error *err)
{
    for (;;) {
        uint32_t id;
        q3_bytes text;
        if (q3_interrupted()) {
            result->reason = Q3_STOP_INTERRUPTED;
            return true;
        }
        if (result->ids.count >= options->max_tokens) {
            result->reason = Q3_STOP_LENGTH;
            return true;
        }
        if (result->last_unfed) {
            if (q3_session_length(session) == q3_session_context(session)) {
                result->reason = Q3_STOP_CONTEXT;
                return true;
            }
            id = result->ids.ids[result->ids.count - 1];
            if (!q3_session_feed(session, &id, 1, options->observer, err)) {
                result->reason = Q3_STOP_INTERRUPTED;
                return err->code == Q3_INTERRUPTED;
            }
            result->last_unfed = false;
        }
        if (!q3_sampler_next(sampler, q3_session_logits(session), &id, err) ||
            !q3_ids_append(&result->ids, id, err))
            return false;
        if (is_stop_id(options, id)) {
            result->reason = Q3_STOP_TOKEN;
            return true;
        }
        result->last_unfed = true;
        if (!q3_text_stream_push(stream, id, &text, err) || !add_text(s, text, false, err))
            return false;
        if (s->stopped) {
            result->reason = Q3_STOP_TEXT;
            return true;
        }
    }
}

bool q3_generate(q3_session *session, const q3_tokenizer *tokenizer, q3_sampler *sampler,
                 const q3_generation_options *options, q3_generation *result, q3_error *err)
{
    *result = (q3_generation){.reason = Q3_STOP_LENGTH};
    const double started = q3_now();
    speech s = {.options = options};
    q3_text_stream *stream;
    if (!q3_text_stream_create(tokenizer, true, &stream, err))
        return false;
    bool ok = run(session, sampler, options, stream, &s, result, err);
    // What was held back is said now, unless it was cut off.
    q3_bytes rest = {NULL, 0};
    if (ok && !s.stopped)
        ok = q3_text_stream_finish(stream, &rest, err) && add_text(&s, rest, true, err);
    if (ok && s.stopped)
        result->reason = Q3_STOP_TEXT;
    q3_text_stream_destroy(stream);
    result->text = s.text;
    result->text_size = s.size;
    result->seconds = q3_now() - started;
    return ok;
}

void q3_generation_free(q3_generation *result)
{
    q3_ids_free(&result->ids);
    free(result->text);
    *result = (q3_generation){0};
}
