// SPDX-License-Identifier: Apache-2.0
//
// Token ids to text. A token can end in the middle of a character, so the text comes out of a
// stream that holds an incomplete character back until the next token completes it. Bytes that can
// no longer become a character come out as U+FFFD, one for each maximal part of a sequence (the
// Unicode Standard, section 3.9; also what Python and Rust do). However the ids are cut into
// pushes, the text is the same.
#ifndef Q3_RUNTIME_TEXT_STREAM_H
#define Q3_RUNTIME_TEXT_STREAM_H

#include "tokenizer.h"

typedef struct q3_text_stream q3_text_stream;

// The tokenizer must outlive the stream. With skip_special, special tokens leave no trace.
bool q3_text_stream_create(const q3_tokenizer *tokenizer, bool skip_special,
                           q3_text_stream **stream, q3_error *err);
void q3_text_stream_destroy(q3_text_stream *stream);

// Takes a token; *text is what can be said now: whole characters, perhaps none. It stays the
// stream's and is good until its next call. An id without a token is Q3_MALFORMED.
bool q3_text_stream_push(q3_text_stream *stream, uint32_t id, q3_bytes *text, q3_error *err);

// *text is the rest, U+FFFD for a character that was never completed. The stream is then as new.
bool q3_text_stream_finish(q3_text_stream *stream, q3_bytes *text, q3_error *err);

// A whole list of ids at once. The text ends with a NUL that *size does not count (tokens can stand
// for NUL bytes, too); the caller frees it.
bool q3_tokenizer_decode(const q3_tokenizer *tokenizer, const uint32_t *ids, size_t count,
                         bool skip_special, char **text, size_t *size, q3_error *err);

#endif
