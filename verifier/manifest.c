// SPDX-License-Identifier: Apache-2.0
#include "manifest.h"

#include "base/bytes.h"
#include "base/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MANIFEST_BYTES_MAX = 16 << 20,
    // Patterns are compared in pairs. The largest model of the family takes 162 of them.
    PATTERNS_MAX = 4096,
    // Those who use a manifest hold all its names in memory.
    TENSORS_MAX = 1 << 20,
    VALUES_MAX = 1024,
    SHARDS_MAX = 10000,
};

static const uint64_t json_integer_max = UINT64_C(1) << 53;
static const char digits[] = "0123456789";
static const char lower_case[] = "abcdefghijklmnopqrstuvwxyz";
static const char word_characters[] = "abcdefghijklmnopqrstuvwxyz0123456789_";

static q3_totals add_pattern(q3_totals totals, const q3_pattern *pattern)
{
    // Cannot wrap: the inventory has checked the bytes, and parameters are not more.
    totals.tensors += pattern->count;
    totals.parameters += pattern->count * (pattern->bytes / q3_dtype_size(pattern->dtype));
    totals.bytes += pattern->count * pattern->bytes;
    return totals;
}

q3_totals q3_manifest_totals(const q3_manifest *manifest, const bool scope[Q3_COMPONENTS])
{
    q3_totals totals = {0};
    for (size_t i = 0; i < manifest->inventory.pattern_count; i++)
        if (scope[manifest->inventory.patterns[i].component])
            totals = add_pattern(totals, &manifest->inventory.patterns[i]);
    return totals;
}

void q3_manifest_free(q3_manifest *manifest)
{
    q3_inventory_free(&manifest->inventory);
    for (size_t i = 0; i < manifest->shard_count; i++)
        free(manifest->shards[i].name);
    free(manifest->shards);
    free(manifest->model_type);
    *manifest = (q3_manifest){0};
}

bool q3_manifest_add_shard(q3_manifest *manifest, const char *name, uint64_t bytes,
                           const uint8_t sha256[Q3_SHA256_BYTES], q3_error *err)
{
    if (!q3_grow(&manifest->shards, &manifest->shard_capacity, manifest->shard_count + 1,
                 sizeof *manifest->shards, err))
        return false;
    q3_manifest_shard *shard = &manifest->shards[manifest->shard_count];
    *shard = (q3_manifest_shard){.name = q3_format(err, "%s", name), .bytes = bytes};
    memcpy(shard->sha256, sha256, Q3_SHA256_BYTES);
    manifest->shard_count += shard->name != NULL;
    return shard->name != NULL;
}

bool q3_manifest_derive(const q3_json *config, q3_manifest *manifest, q3_error *err)
{
    *manifest = (q3_manifest){0};
    const char *type;
    if (!q3_json_string(config, config->root, "model_type", &type, err) ||
        !q3_inventory_derive(config, &manifest->inventory, err))
        return false;
    // All the patterns of a derived inventory have the configuration's dtype.
    manifest->dtype = manifest->inventory.patterns[0].dtype;
    manifest->model_type = q3_format(err, "%s", type);
    if (manifest->model_type)
        return true;
    q3_manifest_free(manifest);
    return false;
}

// ---- writing ----

static void write_totals(q3_json_writer *writer, q3_totals totals)
{
    q3_json_put_u64(writer, "tensors", totals.tensors);
    q3_json_put_u64(writer, "parameters", totals.parameters);
    q3_json_put_u64(writer, "bytes", totals.bytes);
}

static void write_shards(q3_json_writer *writer, const q3_manifest *manifest)
{
    char text[Q3_SHA256_TEXT];
    q3_json_begin_array(writer, "shards");
    for (size_t i = 0; i < manifest->shard_count; i++) {
        q3_json_inline(writer);
        q3_json_begin_object(writer, NULL);
        q3_json_put_string(writer, "name", manifest->shards[i].name);
        q3_json_put_u64(writer, "bytes", manifest->shards[i].bytes);
        q3_json_put_string(writer, "sha256", q3_sha256_text(manifest->shards[i].sha256, text));
        q3_json_end_object(writer);
    }
    q3_json_end_array(writer);
}

static void write_pattern(q3_json_writer *writer, const q3_pattern *pattern, q3_dtype dtype)
{
    q3_json_inline(writer);
    q3_json_begin_object(writer, NULL);
    q3_json_put_string(writer, "name", pattern->name);
    if (pattern->dtype != dtype)
        q3_json_put_string(writer, "dtype", q3_dtype_name(pattern->dtype));
    q3_json_begin_array(writer, "shape");
    for (unsigned i = 0; i < pattern->rank; i++) {
        const char *dimension = pattern->dimension[i];
        if (dimension[strspn(dimension, digits)] == 0)
            q3_json_put_u64(writer, NULL, pattern->shape[i]);
        else
            q3_json_put_string(writer, NULL, dimension);
    }
    q3_json_end_array(writer);
    q3_json_end_object(writer);
}

static void write_component(q3_json_writer *writer, const q3_manifest *manifest,
                            q3_component component)
{
    const q3_inventory *inventory = &manifest->inventory;
    bool scope[Q3_COMPONENTS] = {false};
    scope[component] = true;
    q3_json_begin_object(writer, NULL);
    q3_json_put_string(writer, "name", q3_component_name(component));
    write_totals(writer, q3_manifest_totals(manifest, scope));
    q3_json_begin_object(writer, "values");
    for (size_t i = 0; i < inventory->value_count; i++)
        if (inventory->values[i].component == component)
            q3_json_put_u64(writer, inventory->values[i].name, inventory->values[i].number);
    q3_json_end_object(writer);
    q3_json_begin_array(writer, "patterns");
    for (size_t i = 0; i < inventory->pattern_count; i++)
        if (inventory->patterns[i].component == component)
            write_pattern(writer, &inventory->patterns[i], manifest->dtype);
    q3_json_end_array(writer);
    q3_json_end_object(writer);
}

bool q3_manifest_write(const q3_manifest *manifest, q3_json_writer *writer, q3_error *err)
{
    q3_json_begin_object(writer, NULL);
    q3_json_put_string(writer, "format", "q3-manifest");
    q3_json_put_u64(writer, "version", Q3_MANIFEST_VERSION);
    q3_json_put_string(writer, "model_type", manifest->model_type);
    q3_json_put_string(writer, "dtype", q3_dtype_name(manifest->dtype));
    q3_json_inline(writer);
    q3_json_begin_object(writer, "totals");
    write_totals(writer, q3_manifest_totals(manifest, manifest->inventory.has_component));
    q3_json_end_object(writer);
    if (manifest->shard_count)
        write_shards(writer, manifest);
    q3_json_begin_array(writer, "components");
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        if (manifest->inventory.has_component[i])
            write_component(writer, manifest, (q3_component)i);
    q3_json_end_array(writer);
    q3_json_end_object(writer);
    return q3_json_finish(writer, err);
}

// ---- reading ----

// Refuses members whose key is not in `keys`, which ends in NULL.
static bool check_keys(const q3_json *json, const cJSON *object, const char *const *keys,
                       q3_error *err)
{
    const cJSON *member;
    cJSON_ArrayForEach(member, object)
    {
        const char *const *key = keys;
        while (*key && strcmp(*key, member->string) != 0)
            key++;
        if (!*key)
            return q3_json_fail(json, object, Q3_MALFORMED, err, "unknown key \"%s\"",
                                member->string);
    }
    return true;
}

static bool read_dtype(const q3_json *json, const cJSON *object, q3_dtype *dtype, q3_error *err)
{
    const char *name;
    if (!q3_json_string(json, object, "dtype", &name, err))
        return false;
    return q3_dtype_parse(name, dtype) ||
           q3_json_fail(json, q3_json_find(object, "dtype"), Q3_MALFORMED, err,
                        "\"%s\" is no dtype", name);
}

static bool check_totals(const q3_json *json, const cJSON *object, q3_totals actual, q3_error *err)
{
    const struct {
        const char *key;
        uint64_t actual;
    } rows[] = {
        {"tensors", actual.tensors}, {"parameters", actual.parameters}, {"bytes", actual.bytes}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t stated;
        if (!q3_json_u64(json, object, rows[i].key, 1, json_integer_max, &stated, err))
            return false;
        if (stated != rows[i].actual)
            return q3_json_fail(json, q3_json_find(object, rows[i].key), Q3_MALFORMED, err,
                                "expected %" PRIu64 " as the patterns give, found %" PRIu64,
                                rows[i].actual, stated);
    }
    return true;
}

static bool is_identifier(const char *text)
{
    return *text && strchr(lower_case, *text) && text[strspn(text, word_characters)] == 0 &&
           strlen(text) < 64;
}

static bool read_values(const q3_json *json, const cJSON *object, q3_component component,
                        q3_inventory *inventory, q3_error *err)
{
    const cJSON *values, *item;
    if (!q3_json_object(json, object, "values", &values, err))
        return false;
    // Each definition is compared with those before it.
    if (cJSON_GetArraySize(values) > VALUES_MAX)
        return q3_json_fail(json, values, Q3_MALFORMED, err, "expected at most %d values",
                            VALUES_MAX);
    cJSON_ArrayForEach(item, values)
    {
        uint64_t number;
        if (!is_identifier(item->string))
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "expected a name of a-z, 0-9 and _ that begins with a letter");
        if (!q3_json_item_u64(json, item, 1, json_integer_max, &number, err) ||
            !q3_inventory_add_value(inventory, component, item->string, number, err))
            return false;
    }
    return true;
}

// One part of a name pattern, between dots: a literal, or a range.
typedef struct segment {
    const char *text;
    size_t length;
    bool is_range;
    uint32_t first, last;
} segment;

// Reads a number in its one spelling: up to nine digits, no leading zero.
static bool take_number(const char *text, size_t length, uint32_t *number)
{
    if (length == 0 || length > 9 || strspn(text, digits) < length || (length > 1 && *text == '0'))
        return false;
    *number = (uint32_t)strtoul(text, NULL, 10);
    return true;
}

// The segment at *at, which moves behind it and its dot, or becomes NULL at the end. False when
// braces are used otherwise than for one range that fills the segment.
static bool take_segment(const char **at, segment *part)
{
    const char *text = *at;
    const size_t length = strcspn(text, ".");
    *part = (segment){.text = text, .length = length};
    *at = text[length] ? text + length + 1 : NULL;
    if (length == 0)
        return false;
    if (strcspn(text, "{}") >= length)
        return true;
    const size_t dash = strcspn(text, "-");
    part->is_range = true;
    return *text == '{' && text[length - 1] == '}' && dash < length &&
           take_number(text + 1, dash - 1, &part->first) &&
           take_number(text + dash + 1, length - dash - 2, &part->last) &&
           part->first <= part->last;
}

static bool check_name(const char *name)
{
    for (const char *at = name; *at; at++)
        if (*at <= ' ' || *at > '~')
            return false;
    segment part;
    for (const char *at = name; at;)
        if (!take_segment(&at, &part))
            return false;
    return true;
}

// Can two patterns, both well-formed, name the same tensor?
static bool overlap(const char *a, const char *b)
{
    while (a && b) {
        segment left, right;
        uint32_t number;
        take_segment(&a, &left);
        take_segment(&b, &right);
        if (!left.is_range && !right.is_range) {
            if (left.length != right.length || memcmp(left.text, right.text, left.length) != 0)
                return false;
            continue;
        }
        segment *const literal = left.is_range ? &right : &left;
        if (!literal->is_range) {
            if (!take_number(literal->text, literal->length, &number))
                return false;
            literal->first = literal->last = number;
        }
        if (left.first > right.last || right.first > left.last)
            return false;
    }
    return !a && !b;
}

static bool read_shape(const q3_json *json, const cJSON *object, unsigned *rank,
                       char text[Q3_RANK_MAX][24], const char *dimension[Q3_RANK_MAX],
                       q3_error *err)
{
    const cJSON *shape, *item;
    if (!q3_json_array(json, object, "shape", &shape, err))
        return false;
    if (cJSON_GetArraySize(shape) > Q3_RANK_MAX)
        return q3_json_fail(json, shape, Q3_MALFORMED, err,
                            "expected at most %d dimensions, found %d", Q3_RANK_MAX,
                            cJSON_GetArraySize(shape));
    *rank = 0;
    cJSON_ArrayForEach(item, shape)
    {
        const unsigned i = (*rank)++;
        if (cJSON_IsString(item)) {
            dimension[i] = item->valuestring;
            if (dimension[i][strspn(dimension[i], digits)] == 0)
                return q3_json_fail(json, item, Q3_MALFORMED, err,
                                    "expected a number, or an expression with the name of a value, "
                                    "found \"%s\"",
                                    dimension[i]);
            continue;
        }
        uint64_t number;
        if (!q3_json_item_u64(json, item, 1, json_integer_max, &number, err))
            return false;
        snprintf(text[i], sizeof text[i], "%" PRIu64, number);
        dimension[i] = text[i];
    }
    return true;
}

static bool read_pattern(const q3_json *json, const cJSON *object, q3_component component,
                         q3_manifest *manifest, q3_error *err)
{
    static const char *const keys[] = {"name", "dtype", "shape", NULL};
    q3_inventory *inventory = &manifest->inventory;
    const char *name, *dimension[Q3_RANK_MAX];
    char text[Q3_RANK_MAX][24];
    unsigned rank = 0;
    q3_dtype dtype = manifest->dtype;
    if (!q3_json_string(json, object, "name", &name, err) || !check_keys(json, object, keys, err) ||
        (q3_json_find(object, "dtype") && !read_dtype(json, object, &dtype, err)) ||
        !read_shape(json, object, &rank, text, dimension, err))
        return false;
    const cJSON *name_item = q3_json_find(object, "name");
    if (!check_name(name))
        return q3_json_fail(json, name_item, Q3_MALFORMED, err,
                            "expected a name of parts between dots, each a word or a range such as "
                            "{0-47}, found \"%s\"",
                            name);
    if (inventory->pattern_count == PATTERNS_MAX)
        return q3_json_fail(json, object, Q3_MALFORMED, err, "more than %d patterns", PATTERNS_MAX);
    for (size_t i = 0; i < inventory->pattern_count; i++)
        if (overlap(inventory->patterns[i].name, name))
            return q3_json_fail(json, name_item, Q3_MALFORMED, err,
                                "\"%s\" and \"%s\" can name the same tensor", name,
                                inventory->patterns[i].name);
    q3_error reason;
    if (!q3_inventory_add(inventory, component, Q3_WHOLE, dtype, name, rank, dimension, &reason))
        return q3_json_fail(json, object, (enum q3_exit)reason.code, err, "%s", reason.message);
    const q3_pattern *pattern = &inventory->patterns[inventory->pattern_count - 1];
    for (unsigned i = 0; i < rank; i++)
        if (pattern->shape[i] == 0)
            return q3_json_fail(json, object, Q3_MALFORMED, err,
                                "%s: the dimension \"%s\" is 0, expected at least 1", name,
                                pattern->dimension[i]);
    if (inventory->tensors > TENSORS_MAX)
        return q3_json_fail(json, object, Q3_MALFORMED, err, "more than %d tensors", TENSORS_MAX);
    return true;
}

static bool read_component(const q3_json *json, const cJSON *object, q3_manifest *manifest,
                           q3_error *err)
{
    static const char *const keys[] = {"name",   "tensors",  "parameters", "bytes",
                                       "values", "patterns", NULL};
    const char *name;
    q3_component component;
    const cJSON *patterns, *item;
    if (!q3_json_string(json, object, "name", &name, err) || !check_keys(json, object, keys, err))
        return false;
    if (!q3_component_parse(name, &component))
        return q3_json_fail(json, q3_json_find(object, "name"), Q3_MALFORMED, err,
                            "\"%s\" is no component", name);
    if (manifest->inventory.has_component[component])
        return q3_json_fail(json, q3_json_find(object, "name"), Q3_MALFORMED, err,
                            "the component \"%s\" stands twice", name);
    if (!read_values(json, object, component, &manifest->inventory, err) ||
        !q3_json_array(json, object, "patterns", &patterns, err))
        return false;
    cJSON_ArrayForEach(item, patterns)
    {
        if (!read_pattern(json, item, component, manifest, err))
            return false;
    }
    if (!manifest->inventory.has_component[component])
        return q3_json_fail(json, patterns, Q3_MALFORMED, err, "expected at least one pattern");
    bool scope[Q3_COMPONENTS] = {false};
    scope[component] = true;
    return check_totals(json, object, q3_manifest_totals(manifest, scope), err);
}

static bool read_shards(const q3_json *json, q3_manifest *manifest, q3_error *err)
{
    static const char *const keys[] = {"name", "bytes", "sha256", NULL};
    const cJSON *shards, *item;
    if (!q3_json_array(json, json->root, "shards", &shards, err))
        return false;
    if (!shards->child || cJSON_GetArraySize(shards) > SHARDS_MAX)
        return q3_json_fail(json, shards, Q3_MALFORMED, err, "expected 1 to %d shards, found %d",
                            SHARDS_MAX, cJSON_GetArraySize(shards));
    cJSON_ArrayForEach(item, shards)
    {
        const char *name, *text;
        uint64_t bytes;
        uint8_t sha256[Q3_SHA256_BYTES];
        if (!q3_json_string(json, item, "name", &name, err) || !check_keys(json, item, keys, err) ||
            !q3_json_u64(json, item, "bytes", 1, json_integer_max, &bytes, err) ||
            !q3_json_string(json, item, "sha256", &text, err))
            return false;
        if (!q3_safe_file_name(name))
            return q3_json_fail(json, q3_json_find(item, "name"), Q3_MALFORMED, err,
                                "\"%s\" cannot be the name of a shard", name);
        if (manifest->shard_count &&
            strcmp(manifest->shards[manifest->shard_count - 1].name, name) >= 0)
            return q3_json_fail(json, q3_json_find(item, "name"), Q3_MALFORMED, err,
                                "expected shards sorted by name and each once, found \"%s\"", name);
        if (!q3_sha256_parse(text, sha256))
            return q3_json_fail(json, q3_json_find(item, "sha256"), Q3_MALFORMED, err,
                                "expected 64 lower-case hexadecimal digits, found \"%s\"", text);
        if (!q3_manifest_add_shard(manifest, name, bytes, sha256, err))
            return false;
    }
    return true;
}

static bool read_manifest(const q3_json *json, q3_manifest *manifest, q3_error *err)
{
    static const char *const keys[] = {"format", "version", "model_type", "dtype",
                                       "totals", "shards",  "components", NULL};
    static const char *const total_keys[] = {"tensors", "parameters", "bytes", NULL};
    const char *format, *type;
    uint32_t version;
    const cJSON *totals, *components, *item;
    if (!q3_json_string(json, json->root, "format", &format, err))
        return false;
    if (strcmp(format, "q3-manifest") != 0)
        return q3_json_fail(json, q3_json_find(json->root, "format"), Q3_MALFORMED, err,
                            "expected \"q3-manifest\", found \"%s\"", format);
    if (!q3_json_u32(json, json->root, "version", Q3_MANIFEST_VERSION, Q3_MANIFEST_VERSION,
                     &version, err) ||
        !check_keys(json, json->root, keys, err) ||
        !q3_json_string(json, json->root, "model_type", &type, err) ||
        !read_dtype(json, json->root, &manifest->dtype, err) ||
        !q3_json_object(json, json->root, "totals", &totals, err) ||
        !check_keys(json, totals, total_keys, err) ||
        (q3_json_find(json->root, "shards") && !read_shards(json, manifest, err)) ||
        !q3_json_array(json, json->root, "components", &components, err))
        return false;
    if (!is_identifier(type))
        return q3_json_fail(json, q3_json_find(json->root, "model_type"), Q3_MALFORMED, err,
                            "\"%s\" is no model type", type);
    manifest->model_type = q3_format(err, "%s", type);
    if (!manifest->model_type)
        return false;
    cJSON_ArrayForEach(item, components)
    {
        if (!read_component(json, item, manifest, err))
            return false;
    }
    return check_totals(json, totals,
                        q3_manifest_totals(manifest, manifest->inventory.has_component), err);
}

bool q3_manifest_read(const q3_json *json, q3_manifest *manifest, q3_error *err)
{
    *manifest = (q3_manifest){0};
    if (read_manifest(json, manifest, err))
        return true;
    q3_manifest_free(manifest);
    return false;
}

bool q3_manifest_load(const char *path, q3_manifest *manifest, q3_error *err)
{
    *manifest = (q3_manifest){0};
    q3_json json;
    if (!q3_json_load(path, MANIFEST_BYTES_MAX, &json, err))
        return false;
    const bool ok = q3_manifest_read(&json, manifest, err);
    q3_json_free(&json);
    return ok;
}
