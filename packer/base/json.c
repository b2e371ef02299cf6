// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include "file.h"
#include "string_index.h"
#include "text.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the strict pass ----

typedef struct scanner {
    const uint8_t *text;
    size_t size, at;
} scanner;

// The grammar is walked with one bit of memory a level (object or array), not by recursion: nesting
// comes from the file.
typedef enum expectation {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, // after '['
    EXPECT_KEY,          // after ',' in an object
    EXPECT_KEY_OR_END,   // after '{'
    EXPECT_COMMA_OR_END, // after a value
} expectation;

static void skip_blanks(scanner *scan)
{
    while (scan->at < scan->size && strchr(" \t\r\n", scan->text[scan->at]) &&
           scan->text[scan->at] != 0)
        scan->at++;
}

static int peek(const scanner *scan)
{
    return scan->at < scan->size ? scan->text[scan->at] : -1;
}

static bool hex4(const scanner *scan, size_t at, unsigned *value)
{
    if (scan->size - at < 4)
        return false;
    *value = 0;
    for (size_t i = 0; i < 4; i++) {
        const uint8_t c = scan->text[at + i];
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = c - '0';
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (c | 0x20) - 'a' + 10u;
        else
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

// What is wrong with the string at scan->at (the opening quote), or NULL and scan->at behind it.
static const char *scan_string(scanner *scan)
{
    for (scan->at++;;) {
        const int c = peek(scan);
        if (c < 0)
            return "the text ends inside a string";
        if (c == '"') {
            scan->at++;
            return NULL;
        }
        if (c < 0x20)
            return "a control character in a string";
        if (c != '\\') {
            const size_t length = q3_utf8_length(scan->text + scan->at, scan->size - scan->at);
            if (length == 0)
                return "bytes that are not UTF-8";
            scan->at += length;
            continue;
        }
        scan->at++;
        const int escape = peek(scan);
        if (escape < 0)
            return "the text ends inside a string";
        scan->at++;
        if (escape != 'u') {
            if (escape == 0 || !strchr("\"\\/bfnrt", escape))
                return "an unknown escape in a string";
            continue;
        }
        unsigned unit, low;
        if (!hex4(scan, scan->at, &unit))
            return "\\u without four hexadecimal digits";
        scan->at += 4;
        if (unit == 0)
            return "\\u0000 in a string";
        if (unit >= 0xdc00 && unit <= 0xdfff)
            return "a lone surrogate in a string";
        if (unit >= 0xd800 && unit <= 0xdbff) {
            if (scan->size - scan->at < 6 || scan->text[scan->at] != '\\' ||
                scan->text[scan->at + 1] != 'u' || !hex4(scan, scan->at + 2, &low) ||
                low < 0xdc00 || low > 0xdfff)
                return "a lone surrogate in a string";
            scan->at += 6;
        }
    }
}

static size_t scan_digits(scanner *scan)
{
    const size_t start = scan->at;
    while (peek(scan) >= '0' && peek(scan) <= '9')
        scan->at++;
    return scan->at - start;
}

static const char *scan_number(scanner *scan)
{
    const size_t start = scan->at;
    if (peek(scan) == '-')
        scan->at++;
    const int lead = peek(scan);
    const size_t digits = scan_digits(scan);
    if (digits == 0 || (lead == '0' && digits > 1))
        return "not a JSON number";
    if (peek(scan) == '.') {
        scan->at++;
        if (scan_digits(scan) == 0)
            return "not a JSON number";
    }
    if (peek(scan) == 'e' || peek(scan) == 'E') {
        scan->at++;
        if (peek(scan) == '+' || peek(scan) == '-')
            scan->at++;
        if (scan_digits(scan) == 0)
            return "not a JSON number";
    }
    // cJSON copies a number into 64 bytes and drops the rest.
    char number[64];
    const size_t length = scan->at - start;
    if (length >= sizeof number)
        return "a number of more than 63 characters";
    memcpy(number, scan->text + start, length);
    number[length] = 0;
    if (!isfinite(strtod(number, NULL)))
        return "a number beyond the range of a double";
    return NULL;
}

static const char *scan_word(scanner *scan)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const size_t length = strlen(words[i]);
        if (scan->size - scan->at >= length &&
            memcmp(scan->text + scan->at, words[i], length) == 0) {
            scan->at += length;
            return NULL;
        }
    }
    return "not a JSON value";
}

// What is wrong with the text, or NULL; scan->at then says where.
static const char *scan_document(scanner *scan)
{
    bool in_object[Q3_JSON_DEPTH_MAX];
    unsigned depth = 0;
    expectation expect = EXPECT_VALUE;
    if (scan->size >= 3 && memcmp(scan->text, "\xef\xbb\xbf", 3) == 0)
        return "a byte order mark";
    for (;;) {
        skip_blanks(scan);
        const int c = peek(scan);
        if (expect == EXPECT_COMMA_OR_END) {
            if (depth == 0)
                return c < 0 ? NULL : "bytes after the end of the document";
            if (c == ',') {
                scan->at++;
                expect = in_object[depth - 1] ? EXPECT_KEY : EXPECT_VALUE;
                continue;
            }
            if (c != (in_object[depth - 1] ? '}' : ']'))
                return c < 0 ? "the text ends too early" : "expected a comma or the end";
            scan->at++;
            depth--;
            continue;
        }
        if (c < 0)
            return "the text ends too early";
        if ((expect == EXPECT_KEY_OR_END && c == '}') ||
            (expect == EXPECT_VALUE_OR_END && c == ']')) {
            scan->at++;
            depth--;
            expect = EXPECT_COMMA_OR_END;
            continue;
        }
        const char *problem = NULL;
        if (expect == EXPECT_KEY || expect == EXPECT_KEY_OR_END) {
            if (c != '"')
                return "expected a key in quotes";
            problem = scan_string(scan);
            if (problem)
                return problem;
            skip_blanks(scan);
            if (peek(scan) != ':')
                return "expected a colon after a key";
            scan->at++;
            expect = EXPECT_VALUE;
            continue;
        }
        if (c == '{' || c == '[') {
            if (depth == Q3_JSON_DEPTH_MAX)
                return "nested too deeply";
            in_object[depth++] = c == '{';
            scan->at++;
            expect = c == '{' ? EXPECT_KEY_OR_END : EXPECT_VALUE_OR_END;
            continue;
        }
        if (c == '"')
            problem = scan_string(scan);
        else if (c == '-' || (c >= '0' && c <= '9'))
            problem = scan_number(scan);
        else
            problem = scan_word(scan);
        if (problem)
            return problem;
        expect = EXPECT_COMMA_OR_END;
    }
}

// ---- walking a tree without recursion ----

// The path from the root to an item: item[0] is the root, item[depth - 1] the current one.
typedef struct walk {
    cJSON *item[Q3_JSON_DEPTH_MAX + 1];
    unsigned depth;
} walk;

static bool is_container(const cJSON *item)
{
    return cJSON_IsObject(item) || cJSON_IsArray(item);
}

// The next item in document order, or NULL at the end.
static cJSON *walk_next(walk *w)
{
    cJSON *item = w->item[w->depth - 1];
    if (item->child && is_container(item))
        return w->item[w->depth++] = item->child;
    while (w->depth > 1) {
        item = w->item[w->depth - 1];
        if (item->next)
            return w->item[w->depth - 1] = item->next;
        w->depth--;
    }
    return NULL;
}

bool q3_json_keep_spelling(q3_json *json, q3_bytes text, q3_error *err)
{
    // The numbers of the text and those of the tree come in the same order. cJSON leaves the string
    // of a number alone, but frees it.
    scanner scan = {.text = text.data, .size = text.size};
    walk w = {.item = {json->root}, .depth = 1};
    cJSON *item = json->root;
    for (; item; item = walk_next(&w)) {
        if (!cJSON_IsNumber(item))
            continue;
        for (int c; (c = peek(&scan)) >= 0 && c != '-' && !(c >= '0' && c <= '9');) {
            if (c == '"')
                scan_string(&scan);
            else
                scan.at++;
        }
        const size_t start = scan.at;
        scan_number(&scan);
        item->valuestring =
            q3_format(err, "%.*s", (int)(scan.at - start), (const char *)text.data + start);
        if (!item->valuestring)
            return false;
    }
    return true;
}

// Where the item stands, such as "thinker_config.layers[3]"; empty for the root.
static void describe_path(cJSON *root, const cJSON *wanted, char *out, size_t capacity)
{
    out[0] = 0;
    if (!root || !wanted || root == wanted)
        return;
    walk w = {.item = {root}, .depth = 1};
    const cJSON *item = root;
    while (item && item != wanted)
        item = walk_next(&w);
    size_t used = 0;
    for (unsigned i = 1; item && i < w.depth && used < capacity; i++) {
        int written;
        if (cJSON_IsArray(w.item[i - 1])) {
            size_t index = 0;
            for (const cJSON *at = w.item[i - 1]->child; at != w.item[i]; at = at->next)
                index++;
            written = snprintf(out + used, capacity - used, "[%zu]", index);
        } else {
            written = snprintf(out + used, capacity - used, "%s%s", used ? "." : "",
                               w.item[i]->string ? w.item[i]->string : "");
        }
        if (written < 0)
            return;
        used += (size_t)written;
    }
}

bool q3_json_fail(const q3_json *json, const cJSON *item, enum q3_exit code, q3_error *err,
                  const char *format, ...)
{
    char path[1024], text[2048];
    describe_path(json->root, item, path, sizeof path);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return q3_fail(err, code, "%s: %s%s%s", json->name, path, *path ? ": " : "", text);
}

static bool check_names(const q3_json *json, const cJSON *object, size_t count, q3_error *err)
{
    q3_string_index names;
    if (!q3_string_index_create(count, &names, err))
        return false;
    bool ok = true;
    for (const cJSON *member = object->child; ok && member; member = member->next) {
        const q3_bytes name = {(const uint8_t *)member->string, strlen(member->string)};
        ok = !q3_string_index_add(&names, name, 0) ||
             q3_json_fail(json, object, Q3_MALFORMED, err, "the key \"%s\" stands twice",
                          member->string);
    }
    q3_string_index_free(&names);
    return ok;
}

// No key twice in one object: readers would differ in which one they take.
static bool check_duplicates(const q3_json *json, q3_error *err)
{
    walk w = {.item = {json->root}, .depth = 1};
    for (const cJSON *object = json->root; object; object = walk_next(&w)) {
        if (!cJSON_IsObject(object))
            continue;
        size_t count = 0;
        for (const cJSON *member = object->child; member; member = member->next)
            count++;
        if (count > 1 && !check_names(json, object, count, err))
            return false;
    }
    return true;
}

bool q3_json_parse(const char *name, q3_bytes text, q3_json *json, q3_error *err)
{
    *json = (q3_json){0};
    scanner scan = {.text = text.data, .size = text.size};
    const char *problem = scan_document(&scan);
    if (problem)
        return q3_fail(err, Q3_MALFORMED, "%s: not valid JSON: %s at byte %zu", name, problem,
                       scan.at);
    json->name = q3_format(err, "%s", name);
    if (!json->name)
        return false;
    json->root = cJSON_ParseWithLength((const char *)text.data, text.size);
    if (!json->root) {
        // The grammar is right, so memory is what ran out.
        q3_fail_memory(err, text.size);
        q3_json_free(json);
        return false;
    }
    if (!check_duplicates(json, err)) {
        q3_json_free(json);
        return false;
    }
    return true;
}

bool q3_json_load(const char *path, uint64_t max_bytes, q3_json *json, q3_error *err)
{
    *json = (q3_json){0};
    char *text;
    size_t size;
    if (!q3_file_load(path, max_bytes, &text, &size, err))
        return false;
    const bool ok = q3_json_parse(path, (q3_bytes){(const uint8_t *)text, size}, json, err);
    free(text);
    return ok;
}

void q3_json_free(q3_json *json)
{
    cJSON_Delete(json->root);
    free(json->name);
    *json = (q3_json){0};
}

// ---- getters ----

const cJSON *q3_json_find(const cJSON *object, const char *key)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

// A short form of a value for a message.
static void describe_value(const cJSON *item, char *out, size_t capacity)
{
    if (!item)
        snprintf(out, capacity, "nothing");
    else if (cJSON_IsObject(item))
        snprintf(out, capacity, "an object");
    else if (cJSON_IsArray(item))
        snprintf(out, capacity, "an array of %d", cJSON_GetArraySize(item));
    else if (cJSON_IsString(item))
        snprintf(out, capacity, "\"%.60s\"", item->valuestring);
    else if (cJSON_IsNumber(item))
        snprintf(out, capacity, "%.17g", item->valuedouble);
    else
        snprintf(out, capacity, "%s",
                 cJSON_IsTrue(item)    ? "true"
                 : cJSON_IsFalse(item) ? "false"
                                       : "null");
}

static bool fail_value(const q3_json *json, const cJSON *item, q3_error *err, const char *expected)
{
    char found[128];
    describe_value(item, found, sizeof found);
    return q3_json_fail(json, item, Q3_MALFORMED, err, "expected %s, found %s", expected, found);
}

static bool require(const q3_json *json, const cJSON *object, const char *key, const cJSON **item,
                    q3_error *err)
{
    if (!cJSON_IsObject(object))
        return fail_value(json, object, err, "an object");
    *item = q3_json_find(object, key);
    if (!*item)
        return q3_json_fail(json, object, Q3_MALFORMED, err, "\"%s\" is missing", key);
    return true;
}

bool q3_json_object(const q3_json *json, const cJSON *object, const char *key, const cJSON **value,
                    q3_error *err)
{
    return require(json, object, key, value, err) &&
           (cJSON_IsObject(*value) || fail_value(json, *value, err, "an object"));
}

bool q3_json_array(const q3_json *json, const cJSON *object, const char *key, const cJSON **value,
                   q3_error *err)
{
    return require(json, object, key, value, err) &&
           (cJSON_IsArray(*value) || fail_value(json, *value, err, "an array"));
}

bool q3_json_item_string(const q3_json *json, const cJSON *item, const char **value, q3_error *err)
{
    if (!cJSON_IsString(item))
        return fail_value(json, item, err, "a string");
    *value = item->valuestring;
    return true;
}

bool q3_json_string(const q3_json *json, const cJSON *object, const char *key, const char **value,
                    q3_error *err)
{
    const cJSON *item;
    return require(json, object, key, &item, err) && q3_json_item_string(json, item, value, err);
}

bool q3_json_item_u64(const q3_json *json, const cJSON *item, uint64_t min, uint64_t max,
                      uint64_t *value, q3_error *err)
{
    // valueint saturates at 2^31 - 1; the double is exact up to 2^53.
    const double number = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(number >= (double)min && number <= (double)max) || number != floor(number)) {
        char expected[80];
        snprintf(expected, sizeof expected, "an integer from %" PRIu64 " to %" PRIu64, min, max);
        return fail_value(json, item, err, expected);
    }
    *value = (uint64_t)number;
    return true;
}

bool q3_json_u64(const q3_json *json, const cJSON *object, const char *key, uint64_t min,
                 uint64_t max, uint64_t *value, q3_error *err)
{
    const cJSON *item;
    return require(json, object, key, &item, err) &&
           q3_json_item_u64(json, item, min, max, value, err);
}

bool q3_json_u32(const q3_json *json, const cJSON *object, const char *key, uint32_t min,
                 uint32_t max, uint32_t *value, q3_error *err)
{
    uint64_t wide;
    if (!q3_json_u64(json, object, key, min, max, &wide, err))
        return false;
    *value = (uint32_t)wide;
    return true;
}

bool q3_json_double(const q3_json *json, const cJSON *object, const char *key, double min,
                    double max, double *value, q3_error *err)
{
    const cJSON *item;
    if (!require(json, object, key, &item, err))
        return false;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max)) {
        char expected[80];
        snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
        return fail_value(json, item, err, expected);
    }
    *value = item->valuedouble;
    return true;
}

bool q3_json_bool(const q3_json *json, const cJSON *object, const char *key, bool *value,
                  q3_error *err)
{
    const cJSON *item;
    if (!require(json, object, key, &item, err))
        return false;
    if (!cJSON_IsBool(item))
        return fail_value(json, item, err, "true or false");
    *value = cJSON_IsTrue(item);
    return true;
}

// ---- writer ----

static void put(q3_json_writer *writer, const char *text, size_t size)
{
    if (writer->failed)
        return;
    q3_error ignored;
    if (!q3_grow(&writer->text, &writer->capacity, writer->size + size + 1, 1, &ignored)) {
        writer->failed = true;
        return;
    }
    memcpy(writer->text + writer->size, text, size);
    writer->size += size;
    writer->text[writer->size] = 0;
}

static void put_text(q3_json_writer *writer, const char *text)
{
    put(writer, text, strlen(text));
}

static void put_quoted(q3_json_writer *writer, const char *value, size_t size)
{
    put(writer, "\"", 1);
    for (size_t i = 0; i < size;) {
        const size_t length = q3_utf8_length((const uint8_t *)value + i, size - i);
        const unsigned char c = (unsigned char)value[i];
        char escape[8];
        if (length == 0) {
            put_text(writer, "\xef\xbf\xbd");
        } else if (c == '"' || c == '\\') {
            const char pair[2] = {'\\', (char)c};
            put(writer, pair, 2);
        } else if (c == '\n') {
            put_text(writer, "\\n");
        } else if (c < 0x20 || c == 0x7f) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            put_text(writer, escape);
        } else {
            put(writer, value + i, length);
        }
        i += length ? length : 1;
    }
    put(writer, "\"", 1);
}

static void new_line(q3_json_writer *writer)
{
    if (writer->inline_depth && writer->depth >= writer->inline_depth)
        return;
    put(writer, "\n", 1);
    for (unsigned i = 0; i < writer->depth; i++)
        put(writer, "  ", 2);
}

static bool on_one_line(const q3_json_writer *writer)
{
    return writer->inline_depth && writer->depth >= writer->inline_depth;
}

// What stands before every value: comma, line break, key.
static void before_value(q3_json_writer *writer, const char *key)
{
    if (writer->comma)
        put_text(writer, on_one_line(writer) ? ", " : ",");
    if (writer->depth)
        new_line(writer);
    if (key) {
        put_quoted(writer, key, strlen(key));
        put(writer, ": ", 2);
    }
    writer->comma = true;
}

static void begin(q3_json_writer *writer, const char *key, const char *bracket)
{
    // The line break before this value belongs to the level above, which is not inline yet.
    const bool starts_inline = writer->inline_depth == writer->depth + 1;
    if (starts_inline)
        writer->inline_depth = 0;
    before_value(writer, key);
    if (starts_inline)
        writer->inline_depth = writer->depth + 1;
    put(writer, bracket, 1);
    writer->depth++;
    writer->comma = false;
}

static void end(q3_json_writer *writer, const char *bracket)
{
    const bool empty = !writer->comma, one_line = on_one_line(writer);
    if (writer->inline_depth == writer->depth)
        writer->inline_depth = 0;
    writer->depth--;
    if (!empty && !one_line)
        new_line(writer);
    put(writer, bracket, 1);
    writer->comma = true;
}

void q3_json_begin_object(q3_json_writer *writer, const char *key)
{
    begin(writer, key, "{");
}

void q3_json_begin_array(q3_json_writer *writer, const char *key)
{
    begin(writer, key, "[");
}

void q3_json_end_object(q3_json_writer *writer)
{
    end(writer, "}");
}

void q3_json_end_array(q3_json_writer *writer)
{
    end(writer, "]");
}

void q3_json_inline(q3_json_writer *writer)
{
    if (!writer->inline_depth)
        writer->inline_depth = writer->depth + 1;
}

void q3_json_put_bytes(q3_json_writer *writer, const char *key, const char *value, size_t size)
{
    before_value(writer, key);
    put_quoted(writer, value, size);
}

void q3_json_put_string(q3_json_writer *writer, const char *key, const char *value)
{
    q3_json_put_bytes(writer, key, value, strlen(value));
}

void q3_json_put_u64(q3_json_writer *writer, const char *key, uint64_t value)
{
    char number[24];
    snprintf(number, sizeof number, "%" PRIu64, value);
    before_value(writer, key);
    put_text(writer, number);
}

void q3_json_put_bool(q3_json_writer *writer, const char *key, bool value)
{
    before_value(writer, key);
    put_text(writer, value ? "true" : "false");
}

void q3_json_put_null(q3_json_writer *writer, const char *key)
{
    before_value(writer, key);
    put_text(writer, "null");
}

void q3_json_put_double(q3_json_writer *writer, const char *key, double value)
{
    char number[40];
    if (!isfinite(value)) {
        q3_json_put_null(writer, key);
        return;
    }
    snprintf(number, sizeof number, "%.15g", value);
    if (strtod(number, NULL) != value)
        snprintf(number, sizeof number, "%.17g", value);
    before_value(writer, key);
    put_text(writer, number);
}

void q3_json_put_float(q3_json_writer *writer, const char *key, float value)
{
    char number[40];
    if (!isfinite(value)) {
        q3_json_put_null(writer, key);
        return;
    }
    snprintf(number, sizeof number, "%.9g", (double)value);
    before_value(writer, key);
    put_text(writer, number);
}

static void put_leaf(q3_json_writer *writer, const char *key, const cJSON *item)
{
    if (cJSON_IsString(item)) {
        q3_json_put_string(writer, key, item->valuestring);
    } else if (cJSON_IsBool(item)) {
        q3_json_put_bool(writer, key, cJSON_IsTrue(item));
    } else if (cJSON_IsNumber(item) && item->valuestring) {
        before_value(writer, key);
        put_text(writer, item->valuestring);
    } else if (cJSON_IsNumber(item)) {
        q3_json_put_double(writer, key, item->valuedouble);
    } else {
        q3_json_put_null(writer, key);
    }
}

void q3_json_put_item(q3_json_writer *writer, const char *key, cJSON *item)
{
    walk w = {.item = {item}, .depth = 1};
    for (cJSON *at = item; at;) {
        const char *name = at == item ? key : at->string;
        if (cJSON_IsObject(at))
            q3_json_begin_object(writer, name);
        else if (cJSON_IsArray(at))
            q3_json_begin_array(writer, name);
        else
            put_leaf(writer, name, at);
        const walk before = w;
        at = walk_next(&w);
        // What lies on the old path and not on the new one has ended, innermost first.
        for (unsigned d = before.depth; d >= w.depth; d--) {
            if (cJSON_IsObject(before.item[d - 1]))
                q3_json_end_object(writer);
            else if (cJSON_IsArray(before.item[d - 1]))
                q3_json_end_array(writer);
        }
    }
}

bool q3_json_finish(q3_json_writer *writer, q3_error *err)
{
    put(writer, "\n", 1);
    writer->comma = false;
    if (writer->failed)
        return q3_fail(err, Q3_FAILED, "out of memory (JSON text)");
    return true;
}

void q3_json_writer_free(q3_json_writer *writer)
{
    free(writer->text);
    *writer = (q3_json_writer){0};
}
