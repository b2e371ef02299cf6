// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "tokenizer_tables.h"

#include <inttypes.h>
#include <stdlib.h>

// Several times what Qwen ships (2.8 MB, 1.7 MB, 11 kB).
enum { FILE_BYTES_MAX = 64 << 20 };

// GPT-2's spelling reaches from U+0000 to U+0143.
enum { SPELLING_END = 0x144 };

// Unicode's White_Space property, spelt out: what \s means differs from one regular expression
// library to the next.
#define WHITE_SPACE                                                                             \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"

// The pre-tokenizer of Qwen2's tokenizer; `\s+(?!\S)` keeps the last blank for the word behind it.
static const char splitter_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
                                       "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
                                       "|\\p{N}"
                                       "| ?[^" WHITE_SPACE "\\p{L}\\p{N}]+[\\r\\n]*"
                                       "|[" WHITE_SPACE "]*[\\r\\n]+"
                                       "|[" WHITE_SPACE "]+(?![^" WHITE_SPACE "])"
                                       "|[" WHITE_SPACE "]+";

bool q3_ids_append(q3_ids *list, uint32_t id, q3_error *err)
{
    if (list->count == list->capacity &&
        !q3_grow(&list->ids, &list->capacity, list->count + 1, sizeof *list->ids, err))
        return false;
    list->ids[list->count++] = id;
    return true;
}

void q3_ids_free(q3_ids *list)
{
    free(list->ids);
    *list = (q3_ids){0};
}

// ---- look-up by content ----

bool q3_tokenizer_find(const q3_tokenizer *tokenizer, q3_bytes content, uint32_t *id)
{
    const q3_indexed *found = q3_string_index_find(&tokenizer->by_content, content);
    if (!found)
        return false;
    *id = found->number;
    return true;
}

static bool find_base(const q3_tokenizer *tokenizer, q3_bytes content, uint32_t *id)
{
    return q3_tokenizer_find(tokenizer, content, id) && *id < tokenizer->base_count;
}

uint32_t q3_tokenizer_count(const q3_tokenizer *tokenizer)
{
    return tokenizer->count;
}

uint32_t q3_tokenizer_base_count(const q3_tokenizer *tokenizer)
{
    return tokenizer->base_count;
}

bool q3_tokenizer_content(const q3_tokenizer *tokenizer, uint32_t id, q3_bytes *content)
{
    if (id >= tokenizer->count)
        return false;
    *content = tokenizer->tokens[id].content;
    return true;
}

bool q3_tokenizer_is_special(const q3_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->count && tokenizer->tokens[id].special;
}

// ---- GPT-2's spelling of bytes ----

// byte_of[c]: the byte that the character c spells, or -1. Printable Latin-1 spells itself; the
// other bytes, in order, are spelt by the characters from U+0100 on.
static void make_spelling(int16_t byte_of[SPELLING_END])
{
    for (size_t c = 0; c < SPELLING_END; c++)
        byte_of[c] = -1;
    size_t other = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        const bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        byte_of[itself ? byte : other++] = (int16_t)byte;
    }
}

// Turns spelling into bytes at `to`, which has room for spelling.size. False when a character there
// spells no byte.
static bool read_spelling(const int16_t byte_of[SPELLING_END], q3_bytes spelling, uint8_t *to,
                          size_t *size)
{
    *size = 0;
    for (size_t at = 0; at < spelling.size;) {
        const size_t length = q3_utf8_length(spelling.data + at, spelling.size - at);
        unsigned character = spelling.data[at];
        if (length == 2)
            character = (character & 0x1fu) << 6 | (spelling.data[at + 1] & 0x3fu);
        else if (length != 1)
            return false;
        if (character >= SPELLING_END || byte_of[character] < 0)
            return false;
        to[(*size)++] = (uint8_t)byte_of[character];
        at += length;
    }
    return true;
}

// ---- vocab.json ----

static bool read_vocab(q3_tokenizer *tokenizer, const q3_json *json, size_t text_size,
                       const int16_t byte_of[SPELLING_END], q3_error *err)
{
    if (!cJSON_IsObject(json->root))
        return q3_json_fail(json, json->root, Q3_MALFORMED, err,
                            "expected an object of tokens and their ids");
    uint32_t count = 0; // fits: a member takes several of at most FILE_BYTES_MAX bytes
    for (const cJSON *member = json->root->child; member; member = member->next)
        count++;
    if (count < 256)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected a token for each of the 256 bytes, found %" PRIu32 " tokens",
                       json->name, count);
    tokenizer->base_count = count;
    tokenizer->tokens = q3_alloc_zeroed(count, sizeof *tokenizer->tokens, err);
    // A spelling is never shorter than what it spells.
    tokenizer->base_bytes = q3_alloc(text_size, 1, err);
    if (!tokenizer->tokens || !tokenizer->base_bytes)
        return false;
    uint8_t *to = tokenizer->base_bytes;
    for (const cJSON *member = json->root->child; member; member = member->next) {
        uint64_t id;
        if (!q3_json_item_u64(json, member, 0, UINT32_MAX, &id, err))
            return false;
        if (id >= count)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: token \"%s\": expected an id below %" PRIu32
                           " (that many tokens, no gap), found %" PRIu64,
                           json->name, member->string, count, id);
        const q3_bytes spelling = {(const uint8_t *)member->string, strlen(member->string)};
        size_t size;
        if (spelling.size == 0)
            return q3_fail(err, Q3_MALFORMED, "%s: token %" PRIu64 " is empty", json->name, id);
        if (!read_spelling(byte_of, spelling, to, &size))
            return q3_fail(err, Q3_MALFORMED,
                           "%s: token \"%s\" (id %" PRIu64
                           "): expected only characters that spell bytes as in GPT-2",
                           json->name, member->string, id);
        if (tokenizer->tokens[id].content.data)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: token \"%s\": id %" PRIu64 " is already another token's",
                           json->name, member->string, id);
        tokenizer->tokens[id].content = (q3_bytes){to, size};
        to += size;
    }
    return true;
}

// ---- tokenizer_config.json ----

// A switch that must be off: absent, null or false.
static bool require_off(const q3_json *json, const cJSON *object, const char *key, q3_error *err)
{
    const cJSON *item = q3_json_find(object, key);
    if (!item || cJSON_IsNull(item))
        return true;
    bool on;
    if (!q3_json_bool(json, object, key, &on, err))
        return false;
    return !on || q3_json_fail(json, item, Q3_MALFORMED, err, "true is not supported");
}

static bool check_switches(const q3_json *json, q3_error *err)
{
    static const char *const switches[] = {"add_bos_token", "add_eos_token", "add_prefix_space",
                                           "split_special_tokens"};
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if (!require_off(json, json->root, switches[i], err))
            return false;
    const cJSON *class = q3_json_find(json->root, "tokenizer_class");
    if (!class || cJSON_IsNull(class))
        return true;
    const char *name;
    if (!q3_json_item_string(json, class, &name, err))
        return false;
    return strcmp(name, "Qwen2Tokenizer") == 0 || strcmp(name, "Qwen2TokenizerFast") == 0 ||
           q3_json_fail(json, class, Q3_MALFORMED, err,
                        "expected \"Qwen2Tokenizer\" or \"Qwen2TokenizerFast\", found \"%s\"",
                        name);
}

static bool read_added_token(q3_tokenizer *tokenizer, const cJSON *entry, q3_error *err)
{
    static const char *const switches[] = {"lstrip", "rstrip", "single_word", "normalized"};
    const q3_json *json = &tokenizer->config;
    uint64_t id;
    if (!q3_parse_u64(entry->string, 0, UINT32_MAX, &id))
        return q3_json_fail(json, entry, Q3_MALFORMED, err,
                            "expected a token id as the key, found \"%s\"", entry->string);
    if (id < tokenizer->base_count || id >= tokenizer->count)
        return q3_json_fail(json, entry, Q3_MALFORMED, err,
                            "expected ids from %" PRIu32 " to %" PRIu32
                            " (behind the vocabulary, no gap), found %" PRIu64,
                            tokenizer->base_count, tokenizer->count - 1, id);
    token *added = &tokenizer->tokens[id];
    if (added->content.data)
        return q3_json_fail(json, entry, Q3_MALFORMED, err, "id %" PRIu64 " is given twice", id);
    const char *content;
    if (!q3_json_string(json, entry, "content", &content, err))
        return false;
    if (*content == 0)
        return q3_json_fail(json, entry, Q3_MALFORMED, err, "the content is empty");
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++)
        if (!require_off(json, entry, switches[i], err))
            return false;
    if (q3_json_find(entry, "special") &&
        !q3_json_bool(json, entry, "special", &added->special, err))
        return false;
    added->content = (q3_bytes){(const uint8_t *)content, strlen(content)};
    return true;
}

// An added token, in the order in which encoding tries them.
typedef struct added_token {
    q3_bytes content;
    uint32_t id;
} added_token;

static int compare_added(const void *left, const void *right)
{
    const added_token *a = left, *b = right;
    if (a->content.data[0] != b->content.data[0])
        return a->content.data[0] < b->content.data[0] ? -1 : 1;
    return (a->content.size < b->content.size) - (a->content.size > b->content.size);
}

static bool index_added(q3_tokenizer *tokenizer, q3_error *err)
{
    const uint32_t count = tokenizer->count - tokenizer->base_count;
    added_token *all = q3_alloc(count, sizeof *all, err);
    tokenizer->added = q3_alloc(count, sizeof *tokenizer->added, err);
    if (!all || !tokenizer->added) {
        free(all);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t id = tokenizer->base_count + i;
        all[i] = (added_token){tokenizer->tokens[id].content, id};
        tokenizer->added_from[all[i].content.data[0] + 1]++;
    }
    qsort(all, count, sizeof *all, compare_added);
    for (uint32_t i = 0; i < count; i++)
        tokenizer->added[i] = all[i].id;
    for (size_t byte = 0; byte < 256; byte++)
        tokenizer->added_from[byte + 1] += tokenizer->added_from[byte];
    free(all);
    return true;
}

static bool read_config(q3_tokenizer *tokenizer, q3_error *err)
{
    const q3_json *json = &tokenizer->config;
    const cJSON *entries;
    if (!q3_json_object(json, json->root, "added_tokens_decoder", &entries, err) ||
        !check_switches(json, err))
        return false;
    uint32_t added = 0;
    for (const cJSON *entry = entries->child; entry; entry = entry->next)
        added++;
    tokenizer->count = tokenizer->base_count + added;
    size_t capacity = tokenizer->base_count;
    if (!q3_grow(&tokenizer->tokens, &capacity, tokenizer->count, sizeof *tokenizer->tokens, err))
        return false;
    memset(tokenizer->tokens + tokenizer->base_count, 0, added * sizeof *tokenizer->tokens);
    for (const cJSON *entry = entries->child; entry; entry = entry->next)
        if (!read_added_token(tokenizer, entry, err))
            return false;
    return index_added(tokenizer, err);
}

// ---- the index over both ----

static bool index_tokens(q3_tokenizer *tokenizer, const q3_tokenizer_files *files, q3_error *err)
{
    if (!q3_string_index_create(tokenizer->count, &tokenizer->by_content, err))
        return false;
    for (uint32_t id = 0; id < tokenizer->count; id++) {
        const q3_bytes content = tokenizer->tokens[id].content;
        const q3_indexed *same = q3_string_index_add(&tokenizer->by_content, content, id);
        // Spellings differ when their bytes do, so this one is an added one.
        if (same)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: added token %" PRIu32 " has the content \"%.*s\" of token %" PRIu32,
                           files->config_name, id, content.size < 200 ? (int)content.size : 200,
                           (const char *)content.data, same->number);
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        const uint8_t content = (uint8_t)byte;
        if (!find_base(tokenizer, (q3_bytes){&content, 1}, &tokenizer->byte_token[byte]))
            return q3_fail(err, Q3_MALFORMED, "%s: no token for the byte 0x%02x", files->vocab_name,
                           byte);
    }
    return true;
}

// ---- merges.txt ----

typedef struct merge {
    uint32_t left, right, line;
} merge;

// Takes the next line off *rest, without its end (LF or CRLF). False when there is none.
static bool next_line(q3_bytes *rest, q3_bytes *line)
{
    if (rest->size == 0)
        return false;
    const uint8_t *end = memchr(rest->data, '\n', rest->size);
    const size_t size = end ? (size_t)(end - rest->data) : rest->size;
    *line = (q3_bytes){rest->data, size};
    if (size && line->data[size - 1] == '\r')
        line->size--;
    const size_t taken = end ? size + 1 : size;
    rest->data += taken;
    rest->size -= taken;
    return true;
}

static bool fail_merge(const q3_tokenizer_files *files, uint32_t line, q3_bytes text,
                       const char *problem, q3_error *err)
{
    return q3_fail(err, Q3_MALFORMED, "%s: line %" PRIu32 ": %s, found \"%.*s\"",
                   files->merges_name, line, problem, text.size < 200 ? (int)text.size : 200,
                   (const char *)text.data);
}

// What one line says. `scratch` has room for the bytes of any line.
static bool read_merge(q3_tokenizer *tokenizer, const q3_tokenizer_files *files,
                       const int16_t byte_of[SPELLING_END], q3_bytes line, uint8_t *scratch,
                       merge *pair, uint32_t *merged, q3_error *err)
{
    const uint8_t *blank = memchr(line.data, ' ', line.size);
    const size_t at = blank ? (size_t)(blank - line.data) : 0;
    if (at == 0 || at + 1 == line.size)
        return fail_merge(files, pair->line, line, "expected two tokens with a blank between them",
                          err);
    const q3_bytes left = {line.data, at}, right = {line.data + at + 1, line.size - at - 1};
    size_t left_size, right_size;
    if (!read_spelling(byte_of, left, scratch, &left_size) ||
        !find_base(tokenizer, (q3_bytes){scratch, left_size}, &pair->left))
        return fail_merge(files, pair->line, left, "expected a token of the vocabulary", err);
    if (!read_spelling(byte_of, right, scratch + left_size, &right_size) ||
        !find_base(tokenizer, (q3_bytes){scratch + left_size, right_size}, &pair->right))
        return fail_merge(files, pair->line, right, "expected a token of the vocabulary", err);
    const q3_bytes both = {scratch, left_size + right_size};
    // Trainers number tokens as they merge them: where to look first.
    const uint64_t likely = 256 + (uint64_t)tokenizer->merge_count;
    if (likely < tokenizer->base_count) {
        const q3_bytes content = tokenizer->tokens[likely].content;
        *merged = (uint32_t)likely;
        if (content.size == both.size && memcmp(content.data, both.data, both.size) == 0)
            return true;
    }
    if (!find_base(tokenizer, both, merged))
        return fail_merge(files, pair->line, line,
                          "expected a merge into a token of the vocabulary", err);
    return true;
}

static int compare_right(const void *left, const void *right)
{
    const pair_rank *a = left, *b = right;
    return (a->right > b->right) - (a->right < b->right);
}

static bool index_merges(q3_tokenizer *tokenizer, const q3_tokenizer_files *files,
                         const merge *merges, q3_error *err)
{
    uint32_t *from = q3_alloc_zeroed((size_t)tokenizer->base_count + 2, sizeof *from, err);
    tokenizer->pairs_from = from;
    tokenizer->pairs = q3_alloc(tokenizer->merge_count, sizeof *tokenizer->pairs, err);
    if (!from || !tokenizer->pairs)
        return false;
    // One place further than final, so that filling moves each start to where it belongs.
    for (uint32_t rank = 0; rank < tokenizer->merge_count; rank++)
        from[merges[rank].left + 2]++;
    for (uint32_t id = 0; id < tokenizer->base_count; id++)
        from[id + 2] += from[id + 1];
    for (uint32_t rank = 0; rank < tokenizer->merge_count; rank++)
        tokenizer->pairs[from[merges[rank].left + 1]++] = (pair_rank){merges[rank].right, rank};
    for (uint32_t id = 0; id < tokenizer->base_count; id++) {
        pair_rank *pairs = tokenizer->pairs + from[id];
        const uint32_t count = from[id + 1] - from[id];
        qsort(pairs, count, sizeof *pairs, compare_right);
        for (uint32_t i = 1; i < count; i++) {
            if (pairs[i - 1].right != pairs[i].right)
                continue;
            const uint32_t a = merges[pairs[i - 1].rank].line, b = merges[pairs[i].rank].line;
            return q3_fail(err, Q3_MALFORMED,
                           "%s: line %" PRIu32 " repeats the merge of line %" PRIu32,
                           files->merges_name, a > b ? a : b, a < b ? a : b);
        }
    }
    return true;
}

static bool read_merges(q3_tokenizer *tokenizer, const q3_tokenizer_files *files,
                        const int16_t byte_of[SPELLING_END], q3_error *err)
{
    bool ok = false;
    merge *merges = NULL;
    size_t merge_capacity = 0, merged_capacity = 0;
    uint8_t *scratch = q3_alloc(files->merges.size, 1, err);
    if (!scratch)
        return false;
    q3_bytes rest = files->merges, line;
    for (uint32_t number = 1; next_line(&rest, &line); number++) {
        static const char header[] = "#version";
        if (line.size == 0 || (number == 1 && line.size >= sizeof header - 1 &&
                               memcmp(line.data, header, sizeof header - 1) == 0))
            continue;
        const uint32_t rank = tokenizer->merge_count;
        merge pair = {.line = number};
        if (!q3_grow(&merges, &merge_capacity, (size_t)rank + 1, sizeof *merges, err) ||
            !q3_grow(&tokenizer->merged, &merged_capacity, (size_t)rank + 1,
                     sizeof *tokenizer->merged, err) ||
            !read_merge(tokenizer, files, byte_of, line, scratch, &pair, &tokenizer->merged[rank],
                        err))
            goto done;
        merges[rank] = pair;
        tokenizer->merge_count++;
    }
    ok = index_merges(tokenizer, files, merges, err);
done:
    free(scratch);
    free(merges);
    return ok;
}

// ---- opening ----

static bool compile_splitter(q3_tokenizer *tokenizer, q3_error *err)
{
    int problem;
    PCRE2_SIZE where;
    // Anchored: the alternatives cover every character, so pieces follow each other without a hole.
    tokenizer->splitter = pcre2_compile((PCRE2_SPTR)splitter_pattern, PCRE2_ZERO_TERMINATED,
                                        PCRE2_UTF | PCRE2_ANCHORED, &problem, &where, NULL);
    if (!tokenizer->splitter)
        return q3_fail(err, Q3_FAILED,
                       "PCRE2 does not take the pre-tokenizer's expression: error %d at %zu",
                       problem, where);
    // Where the system forbids machine code made at run time, the interpreter does the same,
    // slower.
    (void)pcre2_jit_compile(tokenizer->splitter, PCRE2_JIT_COMPLETE);
    return true;
}

bool q3_tokenizer_open_memory(const q3_tokenizer_files *files, q3_tokenizer **tokenizer,
                              q3_error *err)
{
    int16_t byte_of[SPELLING_END];
    make_spelling(byte_of);
    q3_json vocab = {0};
    q3_tokenizer *opened = q3_alloc_zeroed(1, sizeof *opened, err);
    const bool ok = opened && q3_json_parse(files->vocab_name, files->vocab, &vocab, err) &&
                    read_vocab(opened, &vocab, files->vocab.size, byte_of, err) &&
                    q3_json_parse(files->config_name, files->config, &opened->config, err) &&
                    read_config(opened, err) && index_tokens(opened, files, err) &&
                    read_merges(opened, files, byte_of, err) && compile_splitter(opened, err);
    q3_json_free(&vocab);
    if (!ok) {
        q3_tokenizer_close(opened);
        return false;
    }
    *tokenizer = opened;
    return true;
}

static bool load_file(const char *directory, const char *name, char **path, char **data,
                      q3_bytes *bytes, q3_error *err)
{
    *path = q3_path_join(directory, name, err);
    size_t size;
    if (!*path || !q3_file_load(*path, FILE_BYTES_MAX, data, &size, err))
        return false;
    *bytes = (q3_bytes){(const uint8_t *)*data, size};
    return true;
}

bool q3_tokenizer_open(const char *directory, q3_tokenizer **tokenizer, q3_error *err)
{
    char *paths[3] = {0}, *data[3] = {0};
    q3_tokenizer_files files = {0};
    bool ok =
        load_file(directory, "vocab.json", &paths[0], &data[0], &files.vocab, err) &&
        load_file(directory, "merges.txt", &paths[1], &data[1], &files.merges, err) &&
        load_file(directory, "tokenizer_config.json", &paths[2], &data[2], &files.config, err);
    if (ok) {
        files.vocab_name = paths[0];
        files.merges_name = paths[1];
        files.config_name = paths[2];
        ok = q3_tokenizer_open_memory(&files, tokenizer, err);
    }
    for (size_t i = 0; i < 3; i++) {
        free(paths[i]);
        free(data[i]);
    }
    return ok;
}

void q3_tokenizer_close(q3_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    pcre2_code_free(tokenizer->splitter);
    q3_json_free(&tokenizer->config);
    free(tokenizer->base_bytes);
    free(tokenizer->tokens);
    q3_string_index_free(&tokenizer->by_content);
    free(tokenizer->pairs_from);
    free(tokenizer->pairs);
    free(tokenizer->merged);
    free(tokenizer->added);
    free(tokenizer);
}
