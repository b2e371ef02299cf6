// SPDX-License-Identifier: Apache-2.0
//
// q3-run tokenize: text to ids and back, without a model.
#include "cli.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_ids(const q3_ids *ids)
{
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%" PRIu32, i ? " " : "", ids->ids[i]);
    putchar('\n');
}

static bool print_json(q3_json_writer *json, q3_error *err)
{
    const bool ok = q3_json_finish(json, err);
    if (ok)
        fwrite(json->text, 1, json->size, stdout);
    q3_json_writer_free(json);
    return ok;
}

// ---- JSON strings ----

// The four hexadecimal digits of a \u escape; false when they are not.
static bool take_hex(q3_bytes line, size_t at, uint32_t *value)
{
    *value = 0;
    if (at + 4 > line.size)
        return false;
    for (size_t i = at; i < at + 4; i++) {
        const int c = line.data[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            return false;
        *value = *value << 4 | (uint32_t)digit;
    }
    return true;
}

static size_t put_utf8(uint32_t c, uint8_t *to)
{
    if (c < 0x80) {
        to[0] = (uint8_t)c;
        return 1;
    }
    const size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i; i--, c >>= 6)
        to[i] = (uint8_t)(0x80 | (c & 0x3f));
    to[0] = (uint8_t)((0xf00 >> length & 0xff) | c);
    return length;
}

// Decodes the escape behind the backslash at *at, which moves behind it. Returns how many bytes it
// makes, 0 for one that is malformed or half a surrogate pair.
static size_t take_escape(q3_bytes line, size_t *at, uint8_t *to)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const uint8_t name = *at + 1 < line.size ? line.data[*at + 1] : 0;
    const char *simple = name ? strchr(names, name) : NULL;
    uint32_t c, low;
    if (simple) {
        *at += 2;
        to[0] = (uint8_t)values[simple - names];
        return 1;
    }
    if (name != 'u' || !take_hex(line, *at + 2, &c))
        return 0;
    *at += 6;
    if (c >= 0xd800 && c < 0xdc00) {
        if (*at + 2 > line.size || line.data[*at] != '\\' || line.data[*at + 1] != 'u' ||
            !take_hex(line, *at + 2, &low) || low < 0xdc00 || low > 0xdfff)
            return 0;
        *at += 6;
        return put_utf8(0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00), to);
    }
    return c >= 0xdc00 && c < 0xe000 ? 0 : put_utf8(c, to);
}

// Decodes a line that is one JSON string, in place. (The strict reader of base/json.h refuses
// \u0000, which is a character like any other here.)
static bool decode_string(q3_bytes line, uint64_t number, uint8_t *to, size_t *size, q3_error *err)
{
    bool ok = line.size >= 2 && line.data[0] == '"' && line.data[line.size - 1] == '"';
    *size = 0;
    line.size -= ok;
    for (size_t at = 1; ok && at < line.size;) {
        const uint8_t c = line.data[at];
        size_t length;
        if (c == '\\') {
            length = take_escape(line, &at, to + *size);
        } else {
            length = c == '"' || c < 0x20 ? 0 : q3_utf8_length(line.data + at, line.size - at);
            memmove(to + *size, line.data + at, length);
            at += length;
        }
        ok = length > 0;
        *size += length;
    }
    return ok || q3_fail(err, Q3_MALFORMED,
                         "standard input: line %" PRIu64 ": expected one JSON string", number);
}

// ---- one text or one line ----

// Puts the line in front of what was wrong with it.
static bool fail_line(uint64_t number, q3_error *err)
{
    const q3_error reason = *err;
    return q3_fail(err, (enum q3_exit)reason.code, "standard input: line %" PRIu64 ": %s", number,
                   reason.message);
}

static bool encode_line(const q3_tokenizer *tokenizer, char *line, size_t size, uint64_t number,
                        q3_error *err)
{
    uint8_t *text = (uint8_t *)line;
    q3_ids ids = {0};
    size_t length;
    bool ok = decode_string((q3_bytes){text, size}, number, text, &length, err) &&
              (q3_tokenizer_encode(tokenizer, (q3_bytes){text, length}, &ids, err) ||
               fail_line(number, err));
    q3_json_writer json = {0};
    if (ok) {
        q3_json_inline(&json);
        q3_json_begin_array(&json, NULL);
        for (size_t i = 0; i < ids.count; i++)
            q3_json_put_u64(&json, NULL, ids.ids[i]);
        q3_json_end_array(&json);
        ok = print_json(&json, err);
    }
    q3_ids_free(&ids);
    return ok;
}

static bool decode_line(const q3_tokenizer *tokenizer, char *line, size_t size, uint64_t number,
                        q3_error *err)
{
    char name[64], *text = NULL;
    size_t length;
    q3_json json;
    q3_ids ids = {0};
    snprintf(name, sizeof name, "standard input: line %" PRIu64, number);
    if (!q3_json_parse(name, (q3_bytes){(const uint8_t *)line, size}, &json, err))
        return false;
    bool ok = cJSON_IsArray(json.root) ||
              q3_json_fail(&json, json.root, Q3_MALFORMED, err, "expected an array of ids");
    const cJSON *item;
    cJSON_ArrayForEach(item, json.root)
    {
        uint64_t id;
        ok = ok && q3_json_item_u64(&json, item, 0, UINT32_MAX, &id, err) &&
             q3_ids_append(&ids, (uint32_t)id, err);
    }
    ok = ok && (q3_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &text, &length, err) ||
                fail_line(number, err));
    if (ok) {
        q3_json_writer out = {0};
        q3_json_put_bytes(&out, NULL, text, length);
        ok = print_json(&out, err);
    }
    free(text);
    q3_ids_free(&ids);
    q3_json_free(&json);
    return ok;
}

static bool convert_lines(const q3_tokenizer *tokenizer, q3_error *err)
{
    q3_lines lines = {0};
    char *line;
    size_t size;
    int more;
    bool ok = true;
    for (uint64_t number = 1; ok && (more = q3_next_line(&lines, &line, &size, err)) != 0; number++)
        ok = more > 0 &&
             (q3_options.decode ? decode_line : encode_line)(tokenizer, line, size, number, err);
    q3_lines_free(&lines);
    return ok;
}

static bool convert_text(const q3_tokenizer *tokenizer, const char *text, size_t length,
                         q3_error *err)
{
    q3_ids ids = {0};
    char *decoded = NULL;
    size_t size;
    bool ok;
    if (q3_options.decode) {
        ok = q3_parse_ids(text, &ids, err) &&
             q3_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &decoded, &size, err) &&
             q3_say(decoded, size, err);
    } else {
        ok = q3_tokenizer_encode(tokenizer, (q3_bytes){(const uint8_t *)text, length}, &ids, err);
        if (ok)
            print_ids(&ids);
    }
    free(decoded);
    q3_ids_free(&ids);
    return ok;
}

int q3_command_tokenize(const char *const *arguments)
{
    q3_error err;
    q3_tokenizer *tokenizer = NULL;
    char *input = NULL;
    const char *text = q3_options.text;
    size_t size = text ? strlen(text) : 0;
    if (text && q3_options.json_lines) {
        q3_fail(&err, Q3_USAGE, "--json-lines reads standard input, it does not go with --text");
        return q3_report(&err);
    }
    bool ok = q3_tokenizer_open(arguments[0], &tokenizer, &err);
    if (ok && q3_options.json_lines)
        ok = convert_lines(tokenizer, &err);
    else if (ok)
        ok = (text || q3_read_input(&input, &size, &err)) &&
             convert_text(tokenizer, text ? text : input, size, &err);
    free(input);
    q3_tokenizer_close(tokenizer);
    return ok ? Q3_DONE : q3_report(&err);
}
