// SPDX-License-Identifier: Apache-2.0
#include "chat.h"

#include <stdlib.h>

static const char start[] = "<|im_start|>", end[] = "<|im_end|>", end_of_text[] = "<|endoftext|>";

static q3_bytes bytes_of(const char *text)
{
    return (q3_bytes){(const uint8_t *)text, strlen(text)};
}

static bool find_added(const q3_tokenizer *tokenizer, const char *content, uint32_t *id)
{
    return q3_tokenizer_find(tokenizer, bytes_of(content), id) &&
           *id >= q3_tokenizer_base_count(tokenizer);
}

static bool require(const q3_tokenizer *tokenizer, const char *content, q3_error *err)
{
    uint32_t id;
    return find_added(tokenizer, content, &id) ||
           q3_fail(err, Q3_MALFORMED, "chat: expected the tokenizer to have the added token \"%s\"",
                   content);
}

// Encodes the parts as the one text that they make.
static bool encode_parts(const q3_tokenizer *tokenizer, const q3_bytes *parts, size_t count,
                         q3_ids *ids, q3_error *err)
{
    if (!require(tokenizer, start, err) || !require(tokenizer, end, err))
        return false;
    q3_bytes text = {NULL, 0};
    for (size_t i = 0; i < count; i++)
        text.size += parts[i].size;
    uint8_t *data = q3_alloc(text.size, 1, err);
    if (!data)
        return false;
    uint8_t *to = data;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].size)
            memcpy(to, parts[i].data, parts[i].size);
        to += parts[i].size;
    }
    text.data = data;
    const bool ok = q3_tokenizer_encode(tokenizer, text, ids, err);
    free(data);
    return ok;
}

bool q3_chat_first(const q3_tokenizer *tokenizer, const q3_bytes *system, q3_bytes user,
                   q3_ids *ids, q3_error *err)
{
    const q3_bytes parts[] = {
        bytes_of(system ? "<|im_start|>system\n" : ""),
        system ? *system : bytes_of(""),
        bytes_of(system ? "<|im_end|>\n" : ""),
        bytes_of("<|im_start|>user\n"),
        user,
        bytes_of("<|im_end|>\n<|im_start|>assistant\n"),
    };
    return encode_parts(tokenizer, parts, sizeof parts / sizeof *parts, ids, err);
}

bool q3_chat_next(const q3_tokenizer *tokenizer, q3_bytes user, q3_ids *ids, q3_error *err)
{
    const q3_bytes parts[] = {
        bytes_of("<|im_end|>\n<|im_start|>user\n"),
        user,
        bytes_of("<|im_end|>\n<|im_start|>assistant\n"),
    };
    return encode_parts(tokenizer, parts, sizeof parts / sizeof *parts, ids, err);
}

bool q3_chat_stop_ids(const q3_tokenizer *tokenizer, q3_ids *ids, q3_error *err)
{
    static const char *const stops[] = {end, end_of_text};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        uint32_t id;
        if (find_added(tokenizer, stops[i], &id) && !q3_ids_append(ids, id, err))
            return false;
    }
    return true;
}
