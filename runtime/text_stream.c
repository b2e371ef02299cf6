// SPDX-License-Identifier: Apache-2.0
#include "text_stream.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdlib.h>

static const uint8_t replacement[3] = {0xef, 0xbf, 0xbd}; // U+FFFD

struct q3_text_stream {
    const q3_tokenizer *tokenizer;
    bool skip_special;
    uint8_t *text; // characters to hand out
    size_t size, capacity;
    uint8_t pending[4]; // the start of a character
    size_t pending_size;
};

bool q3_text_stream_create(const q3_tokenizer *tokenizer, bool skip_special,
                           q3_text_stream **stream, q3_error *err)
{
    *stream = q3_alloc_zeroed(1, sizeof **stream, err);
    if (!*stream)
        return false;
    (*stream)->tokenizer = tokenizer;
    (*stream)->skip_special = skip_special;
    return true;
}

void q3_text_stream_destroy(q3_text_stream *stream)
{
    if (!stream)
        return;
    free(stream->text);
    free(stream);
}

// Can these bytes, which are no character yet, become one? Of the second bytes that a lead byte
// allows, 0x80 or 0xbf is always one; after that any continuation byte goes.
static bool can_become_character(const uint8_t bytes[4], size_t size)
{
    uint8_t low[4], high[4];
    memset(low, 0x80, sizeof low);
    memset(high, 0xbf, sizeof high);
    memcpy(low, bytes, size);
    memcpy(high, bytes, size);
    return size < 4 && (q3_utf8_length(low, 4) > size || q3_utf8_length(high, 4) > size);
}

static bool put(q3_text_stream *stream, const uint8_t *bytes, size_t size, q3_error *err)
{
    if (!q3_grow(&stream->text, &stream->capacity, stream->size + size, 1, err))
        return false;
    memcpy(stream->text + stream->size, bytes, size);
    stream->size += size;
    return true;
}

static bool add_byte(q3_text_stream *stream, uint8_t byte, q3_error *err)
{
    uint8_t *pending = stream->pending;
    pending[stream->pending_size++] = byte;
    if (q3_utf8_length(pending, stream->pending_size) == stream->pending_size) {
        const size_t size = stream->pending_size;
        stream->pending_size = 0;
        return put(stream, pending, size, err);
    }
    if (can_become_character(pending, stream->pending_size))
        return true;
    // What stood before this byte is broken off; the byte itself may start anew.
    const bool alone = stream->pending_size == 1;
    stream->pending_size = 0;
    return put(stream, replacement, sizeof replacement, err) &&
           (alone || add_byte(stream, byte, err));
}

bool q3_text_stream_push(q3_text_stream *stream, uint32_t id, q3_bytes *text, q3_error *err)
{
    q3_bytes content;
    stream->size = 0;
    if (!q3_tokenizer_content(stream->tokenizer, id, &content))
        return q3_fail(err, Q3_MALFORMED, "token %" PRIu32 ": expected an id below %" PRIu32, id,
                       q3_tokenizer_count(stream->tokenizer));
    if (!stream->skip_special || !q3_tokenizer_is_special(stream->tokenizer, id))
        for (size_t i = 0; i < content.size; i++)
            if (!add_byte(stream, content.data[i], err))
                return false;
    *text = (q3_bytes){stream->text, stream->size};
    return true;
}

bool q3_text_stream_finish(q3_text_stream *stream, q3_bytes *text, q3_error *err)
{
    stream->size = 0;
    if (stream->pending_size && !put(stream, replacement, sizeof replacement, err))
        return false;
    stream->pending_size = 0;
    *text = (q3_bytes){stream->text, stream->size};
    return true;
}

static bool append(char **text, size_t *size, size_t *capacity, q3_bytes part, q3_error *err)
{
    if (!q3_grow(text, capacity, *size + part.size + 1, 1, err))
        return false;
    if (part.size)
        memcpy(*text + *size, part.data, part.size);
    *size += part.size;
    (*text)[*size] = 0;
    return true;
}

bool q3_tokenizer_decode(const q3_tokenizer *tokenizer, const uint32_t *ids, size_t count,
                         bool skip_special, char **text, size_t *size, q3_error *err)
{
    q3_text_stream *stream;
    if (!q3_text_stream_create(tokenizer, skip_special, &stream, err))
        return false;
    char *whole = NULL;
    size_t used = 0, capacity = 0;
    q3_bytes part;
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++)
        ok = q3_text_stream_push(stream, ids[i], &part, err) &&
             append(&whole, &used, &capacity, part, err);
    ok = ok && q3_text_stream_finish(stream, &part, err) &&
         append(&whole, &used, &capacity, part, err);
    q3_text_stream_destroy(stream);
    if (!ok) {
        free(whole);
        return false;
    }
    *text = whole;
    *size = used;
    return true;
}
