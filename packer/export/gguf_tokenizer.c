// SPDX-License-Identifier: Apache-2.0
#include "gguf_tokenizer.h"

#include "base/json.h"
#include "base/text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// The kinds of tokens (tokenizer.ggml.token_type in the specification).
typedef enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
} token_type;

typedef struct vocabulary {
    q3_json tokens, config; // vocab.json, tokenizer_config.json
    const char **text;      // [id], in these; NULL for padding
    token_type *type;       // [id]
    uint32_t size;
} vocabulary;

static bool load_json(const q3_set *set, const char *name, q3_json *json, q3_error *err)
{
    char *data = NULL;
    size_t size;
    char *path = q3_set_path(set, name, err);
    const bool ok = path && q3_set_load_copy(set, name, &data, &size, err) &&
                    q3_json_parse(path, (q3_bytes){(const uint8_t *)data, size}, json, err);
    free(data);
    free(path);
    return ok;
}

static bool has_copy(const q3_set *set, const char *name)
{
    for (size_t i = 0; i < set->copy_count; i++)
        if (strcmp(set->copies[i].name, name) == 0)
            return true;
    return false;
}

// ---- tokens ----

static bool set_token(vocabulary *v, const q3_json *json, const cJSON *item, uint64_t id,
                      const char *text, token_type type, q3_error *err)
{
    if (id >= v->size)
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "id %" PRIu64 ": the model has only %" PRIu32 " (vocab_size)", id,
                            v->size);
    if (v->text[id] && strcmp(v->text[id], text) != 0)
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "id %" PRIu64 " is already another token's", id);
    v->text[id] = text;
    v->type[id] = type;
    return true;
}

static bool read_tokens(vocabulary *v, q3_error *err)
{
    if (!cJSON_IsObject(v->tokens.root))
        return q3_json_fail(&v->tokens, v->tokens.root, Q3_MALFORMED, err,
                            "expected an object of tokens and their ids");
    for (const cJSON *item = v->tokens.root->child; item; item = item->next) {
        uint64_t id;
        if (!q3_json_item_u64(&v->tokens, item, 0, UINT32_MAX, &id, err) ||
            !set_token(v, &v->tokens, item, id, item->string, TOKEN_NORMAL, err))
            return false;
    }
    return true;
}

static bool read_added_tokens(vocabulary *v, q3_error *err)
{
    const q3_json *json = &v->config;
    const cJSON *added;
    if (!q3_json_object(json, json->root, "added_tokens_decoder", &added, err))
        return false;
    for (const cJSON *item = added->child; item; item = item->next) {
        uint64_t id;
        const char *content;
        if (!q3_parse_u64(item->string, 0, UINT32_MAX, &id))
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "expected a token id as the key, found \"%s\"", item->string);
        if (!q3_json_string(json, item, "content", &content, err) ||
            !set_token(v, json, item, id, content,
                       cJSON_IsTrue(q3_json_find(item, "special")) ? TOKEN_CONTROL
                                                                   : TOKEN_USER_DEFINED,
                       err))
            return false;
    }
    return true;
}

static void put_tokens(q3_gguf_writer *writer, const vocabulary *v)
{
    q3_gguf_begin_array(writer, "tokenizer.ggml.tokens", Q3_GGUF_STRING, v->size);
    for (uint32_t id = 0; id < v->size; id++) {
        char padding[32];
        snprintf(padding, sizeof padding, "[PAD%" PRIu32 "]", id);
        const char *text = v->text[id] ? v->text[id] : padding;
        q3_gguf_add_string(writer, (q3_bytes){(const uint8_t *)text, strlen(text)});
    }
    q3_gguf_begin_array(writer, "tokenizer.ggml.token_type", Q3_GGUF_I32, v->size);
    for (uint32_t id = 0; id < v->size; id++)
        q3_gguf_add_i32(writer, (int32_t)(v->text[id] ? v->type[id] : TOKEN_UNUSED));
}

// ---- merges ----

// The next rule of merges.txt, or false at the end. Blank lines and a "#version" line at the top
// are none.
static bool next_merge(q3_bytes text, size_t *at, q3_bytes *line)
{
    while (*at < text.size) {
        const bool top = *at == 0;
        const uint8_t *from = text.data + *at;
        const uint8_t *end = memchr(from, '\n', text.size - *at);
        size_t size = end ? (size_t)(end - from) : text.size - *at;
        *at += size + 1;
        if (size && from[size - 1] == '\r')
            size--;
        if (size == 0 || (top && size >= 8 && memcmp(from, "#version", 8) == 0))
            continue;
        *line = (q3_bytes){from, size};
        return true;
    }
    return false;
}

static bool put_merges(q3_gguf_writer *writer, const q3_set *set, q3_error *err)
{
    char *data = NULL;
    q3_bytes text = {0}, line;
    if (!q3_set_load_copy(set, "merges.txt", &data, &text.size, err))
        return false;
    text.data = (const uint8_t *)data;
    uint64_t count = 0;
    bool ok = true;
    for (size_t at = 0; ok && next_merge(text, &at, &line);) {
        count++;
        const uint8_t *blank = memchr(line.data, ' ', line.size);
        if (!blank || blank == line.data || blank + 1 == line.data + line.size)
            ok = q3_fail(err, Q3_MALFORMED,
                         "%s/merges.txt: rule %" PRIu64 ": expected two tokens and a blank between",
                         set->directory, count);
    }
    if (ok) {
        q3_gguf_begin_array(writer, "tokenizer.ggml.merges", Q3_GGUF_STRING, count);
        for (size_t at = 0; next_merge(text, &at, &line);)
            q3_gguf_add_string(writer, line);
    }
    free(data);
    return ok;
}

// ---- the rest ----

// The id of a token that tokenizer_config.json names, as a string or as an object with `content`;
// false when it names none.
static bool find_named(const vocabulary *v, const char *key, uint32_t *id)
{
    const cJSON *item = q3_json_find(v->config.root, key);
    if (cJSON_IsObject(item))
        item = q3_json_find(item, "content");
    if (!cJSON_IsString(item))
        return false;
    for (*id = 0; *id < v->size; ++*id)
        if (v->text[*id] && strcmp(v->text[*id], item->valuestring) == 0)
            return true;
    return false;
}

static void put_named(q3_gguf_writer *writer, const vocabulary *v)
{
    uint32_t eos, padding, bos;
    const bool has_eos = find_named(v, "eos_token", &eos);
    const bool has_padding = find_named(v, "pad_token", &padding);
    const bool has_bos = find_named(v, "bos_token", &bos);
    if (has_eos)
        q3_gguf_put_u32(writer, "tokenizer.ggml.eos_token_id", eos);
    if (has_padding)
        q3_gguf_put_u32(writer, "tokenizer.ggml.padding_token_id", padding);
    // Qwen has none, and without one readers would take GPT-2's number.
    if (has_bos || has_padding)
        q3_gguf_put_u32(writer, "tokenizer.ggml.bos_token_id", has_bos ? bos : padding);
    q3_gguf_put_bool(writer, "tokenizer.ggml.add_bos_token", false);
}

// A template is a string, or a list of {"name", "template"} of which "default" is meant.
static const char *find_template(const cJSON *item)
{
    if (cJSON_IsString(item))
        return item->valuestring;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, item)
    {
        const cJSON *name = q3_json_find(entry, "name"), *text = q3_json_find(entry, "template");
        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0 &&
            cJSON_IsString(text))
            return text->valuestring;
    }
    return NULL;
}

// chat_template.jinja goes before tokenizer_config.json, as in transformers; chat_template.json is
// of the whole model's processor and comes last.
static bool put_template(q3_gguf_writer *writer, const q3_set *set, const vocabulary *v,
                         q3_error *err)
{
    static const char key[] = "tokenizer.chat_template";
    const char *text = find_template(q3_json_find(v->config.root, "chat_template"));
    bool ok = true;
    if (has_copy(set, "chat_template.jinja")) {
        char *data;
        size_t size;
        ok = q3_set_load_copy(set, "chat_template.jinja", &data, &size, err);
        if (ok) {
            q3_gguf_put_string(writer, key, data);
            free(data);
        }
    } else if (text) {
        q3_gguf_put_string(writer, key, text);
    } else if (has_copy(set, "chat_template.json")) {
        q3_json json = {0};
        ok = load_json(set, "chat_template.json", &json, err);
        text = ok ? find_template(q3_json_find(json.root, "chat_template")) : NULL;
        if (text)
            q3_gguf_put_string(writer, key, text);
        q3_json_free(&json);
    }
    return ok;
}

bool q3_gguf_put_tokenizer(q3_gguf_writer *writer, const q3_set *set, q3_error *err)
{
    vocabulary v = {.size = set->config.vocab_size};
    v.text = q3_alloc_zeroed(v.size, sizeof *v.text, err);
    v.type = v.text ? q3_alloc_zeroed(v.size, sizeof *v.type, err) : NULL;
    bool ok = v.type && load_json(set, "vocab.json", &v.tokens, err) &&
              load_json(set, "tokenizer_config.json", &v.config, err) && read_tokens(&v, err) &&
              read_added_tokens(&v, err);
    if (ok) {
        // Byte-level BPE with the words cut as Qwen2 cuts them.
        q3_gguf_put_string(writer, "tokenizer.ggml.model", "gpt2");
        q3_gguf_put_string(writer, "tokenizer.ggml.pre", "qwen2");
        put_tokens(writer, &v);
        ok = put_merges(writer, set, err) && put_template(writer, set, &v, err);
        put_named(writer, &v);
    }
    q3_json_free(&v.config);
    q3_json_free(&v.tokens);
    free(v.type);
    free(v.text);
    return ok;
}
