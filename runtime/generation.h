// SPDX-License-Identifier: Apache-2.0
//
// An answer: sample a token, say what can be said of its text, feed it, until something ends it.
#ifndef Q3_RUNTIME_GENERATION_H
#define Q3_RUNTIME_GENERATION_H

#include "engine.h"
#include "sampler.h"
#include "text_stream.h"

typedef enum q3_stop_reason {
    Q3_STOP_TOKEN,       // a stop id was sampled; it is the last of the ids
    Q3_STOP_LENGTH,      // as many tokens as were asked for
    Q3_STOP_CONTEXT,     // the session is full
    Q3_STOP_TEXT,        // a stop text came; the text ends before it
    Q3_STOP_INTERRUPTED, // a signal came
} q3_stop_reason;

// "stop", "length", "context", "stop_text", "interrupted".
const char *q3_stop_reason_name(q3_stop_reason reason);

typedef struct q3_generation_options {
    uint64_t max_tokens;
    const uint32_t *stop_ids;
    size_t stop_id_count;
    const char *const *stop_texts; // none empty
    size_t stop_text_count;
    // Called with the text as it becomes certain: whole characters, nothing that could be the
    // beginning of a stop text, special tokens left out. May be NULL. A failure ends the answer.
    bool (*say)(void *context, q3_bytes text, q3_error *err);
    void *context;
    const q3_observer *observer; // of the tokens that are fed; may be NULL
} q3_generation_options;

typedef struct q3_generation {
    q3_ids ids;
    char *text; // all that was said, with a NUL behind it
    size_t text_size;
    q3_stop_reason reason;
    bool last_unfed; // the last id belongs to the answer, but the session has not been fed it
    double seconds;
} q3_generation;

// Generates from the session's logits on. The result is to be freed after a failure too.
bool q3_generate(q3_session *session, const q3_tokenizer *tokenizer, q3_sampler *sampler,
                 const q3_generation_options *options, q3_generation *result, q3_error *err);
void q3_generation_free(q3_generation *result); // a zeroed one is fine

#endif
