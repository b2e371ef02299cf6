// SPDX-License-Identifier: Apache-2.0
#include "companions.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 16 << 20, TOKENIZER_BYTES_MAX = 64 << 20 };

typedef struct companions {
    const char *directory;
    const q3_manifest *manifest;
    q3_findings *report;
    q3_error *err;
} companions;

// A path in the directory, or NULL with the error filled.
static char *path_of(const companions *c, const char *name)
{
    return q3_path_join(c->directory, name, c->err);
}

static bool report_problem(const companions *c, q3_finding_kind kind, const char *file,
                           const q3_error *problem)
{
    if (problem->code == Q3_FAILED)
        kind = Q3_FINDING_UNREADABLE;
    return q3_findings_add(c->report, &(q3_finding){.kind = kind, .file = file}, c->err, "%s",
                           problem->message);
}

// ---- config.json ----

static bool report_difference(const companions *c, const char *what, const char *expected,
                              const char *found)
{
    return q3_findings_add(
        c->report,
        &(q3_finding){
            .kind = Q3_FINDING_CONFIG, .file = "config.json", .expected = expected, .found = found},
        c->err, "config.json: %s: the manifest expects %s, found %s", what, expected, found);
}

static const q3_value *find_value(const q3_inventory *inventory, q3_component component,
                                  const char *name)
{
    for (size_t i = 0; i < inventory->value_count; i++)
        if (inventory->values[i].component == component &&
            strcmp(inventory->values[i].name, name) == 0)
            return &inventory->values[i];
    return NULL;
}

static bool compare_values(const companions *c, const q3_inventory *found, q3_component component)
{
    const q3_inventory *expected = &c->manifest->inventory;
    char what[256], wanted[24], actual[24];
    for (size_t i = 0; i < expected->value_count; i++) {
        const q3_value *value = &expected->values[i];
        const q3_value *other = find_value(found, component, value->name);
        if (value->component != component || !other || other->number == value->number)
            continue;
        snprintf(what, sizeof what, "%s: %s", q3_component_name(component), value->name);
        snprintf(wanted, sizeof wanted, "%" PRIu64, value->number);
        snprintf(actual, sizeof actual, "%" PRIu64, other->number);
        if (!report_difference(c, what, wanted, actual))
            return false;
    }
    return true;
}

static const q3_pattern *next_pattern(const q3_inventory *inventory, q3_component component,
                                      size_t *at)
{
    while (*at < inventory->pattern_count)
        if (inventory->patterns[(*at)++].component == component)
            return &inventory->patterns[*at - 1];
    return NULL;
}

// The first pattern that differs: the number of layers, say, is in many.
static bool compare_patterns(const companions *c, const q3_inventory *found, q3_component component)
{
    size_t e = 0, f = 0;
    for (;;) {
        const q3_pattern *expected = next_pattern(&c->manifest->inventory, component, &e);
        const q3_pattern *other = next_pattern(found, component, &f);
        if (!expected && !other)
            return true;
        if (expected && other && strcmp(expected->name, other->name) == 0)
            continue;
        return report_difference(c, q3_component_name(component),
                                 expected ? expected->name : "nothing more",
                                 other ? other->name : "nothing more");
    }
}

static bool compare_config(const companions *c, const q3_manifest *found)
{
    if (strcmp(c->manifest->model_type, found->model_type) != 0 &&
        !report_difference(c, "model_type", c->manifest->model_type, found->model_type))
        return false;
    if (c->manifest->dtype != found->dtype &&
        !report_difference(c, "dtype", q3_dtype_name(c->manifest->dtype),
                           q3_dtype_name(found->dtype)))
        return false;
    for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
        const bool expected = c->manifest->inventory.has_component[i];
        const bool has = found->inventory.has_component[i];
        const q3_component component = (q3_component)i;
        if (expected != has && !report_difference(c, q3_component_name(component),
                                                  expected ? "the component" : "no such component",
                                                  has ? "it" : "none"))
            return false;
        if (expected && has &&
            (!compare_values(c, &found->inventory, component) ||
             !compare_patterns(c, &found->inventory, component)))
            return false;
    }
    return true;
}

static bool check_config(const companions *c)
{
    char *path = path_of(c, "config.json");
    if (!path)
        return false;
    q3_json json = {0};
    q3_error problem;
    q3_manifest found = {0};
    bool ok;
    if (!q3_path_exists(path))
        ok = q3_findings_add(c->report,
                             &(q3_finding){.kind = Q3_FINDING_ABSENT, .file = "config.json"},
                             c->err, "%s: there is none", path);
    else if (!q3_json_load(path, CONFIG_BYTES_MAX, &json, &problem))
        ok = report_problem(c, Q3_FINDING_MALFORMED, "config.json", &problem);
    else if (!q3_manifest_derive(&json, &found, &problem))
        ok = report_problem(c, Q3_FINDING_CONFIG, "config.json", &problem);
    else
        ok = compare_config(c, &found);
    q3_manifest_free(&found);
    q3_json_free(&json);
    free(path);
    return ok;
}

// ---- tokenizer files ----

// What the base vocabulary says: the token of each id, and the tokens sorted.
typedef struct vocabulary {
    uint64_t size;      // ids that the model has
    const char **of_id; // `size` of them, NULL where no token has the id
    const char **sorted;
    size_t count;
} vocabulary;

static int compare_tokens(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool has_token(const vocabulary *v, const char *token)
{
    return bsearch(&token, v->sorted, v->count, sizeof *v->sorted, compare_tokens) != NULL;
}

static bool report_tokenizer(const companions *c, const char *file, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool report_tokenizer(const companions *c, const char *file, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return q3_findings_add(c->report,
                           &(q3_finding){.kind = Q3_FINDING_TOKENIZER, .file = file, .group = file},
                           c->err, "%s: %s", file, text);
}

// Takes in a table of tokens and their ids.
static bool read_vocabulary(const companions *c, const char *file, const q3_json *json,
                            const cJSON *table, vocabulary *v)
{
    const cJSON *item;
    if (!cJSON_IsObject(table))
        return report_tokenizer(c, file, "expected an object of tokens and their ids");
    const size_t count = (size_t)cJSON_GetArraySize(table);
    v->of_id = q3_alloc_zeroed((size_t)v->size, sizeof *v->of_id, c->err);
    v->sorted = v->of_id ? q3_alloc(count, sizeof *v->sorted, c->err) : NULL;
    if (!v->sorted)
        return false;
    uint64_t beyond = 0, gaps = 0, last = 0;
    cJSON_ArrayForEach(item, table)
    {
        uint64_t id;
        q3_error problem;
        if (!q3_json_item_u64(json, item, 0, UINT32_MAX, &id, &problem))
            return report_problem(c, Q3_FINDING_TOKENIZER, file, &problem);
        v->sorted[v->count++] = item->string;
        if (id >= v->size) {
            beyond++;
            continue;
        }
        if (v->of_id[id] && !report_tokenizer(c, file, "\"%s\" and \"%s\" have the id %" PRIu64,
                                              v->of_id[id], item->string, id))
            return false;
        v->of_id[id] = item->string;
        last = id > last ? id : last;
    }
    for (uint64_t id = 0; id < last; id++)
        gaps += !v->of_id[id];
    qsort(v->sorted, v->count, sizeof *v->sorted, compare_tokens);
    return (!beyond || report_tokenizer(c, file,
                                        "%" PRIu64 " tokens have ids beyond the vocabulary of "
                                        "%" PRIu64,
                                        beyond, v->size)) &&
           (!gaps || report_tokenizer(c, file, "%" PRIu64 " ids below %" PRIu64 " have no token",
                                      gaps, last));
}

static bool check_added(const companions *c, const char *file, const vocabulary *v, uint64_t id,
                        const char *content)
{
    if (id >= v->size)
        return report_tokenizer(c, file,
                                "the added token \"%s\" has the id %" PRIu64
                                ", beyond the vocabulary of %" PRIu64,
                                content, id, v->size);
    if (v->of_id && v->of_id[id] && strcmp(v->of_id[id], content) != 0)
        return report_tokenizer(c, file, "the added token \"%s\" has the id %" PRIu64 " of \"%s\"",
                                content, id, v->of_id[id]);
    return true;
}

static bool check_merges(const companions *c, const char *path, const vocabulary *v)
{
    static const char file[] = "merges.txt";
    char *data, *rest, *line;
    size_t size, number = 0, wrong = 0, first = 0;
    q3_error problem;
    if (!q3_file_load(path, TOKENIZER_BYTES_MAX, &data, &size, &problem))
        return report_problem(c, Q3_FINDING_MALFORMED, file, &problem);
    for (rest = data; (line = strsep(&rest, "\n")) != NULL;) {
        number++;
        line[strcspn(line, "\r")] = 0;
        if (*line == 0 || (number == 1 && strncmp(line, "#version", 8) == 0))
            continue;
        char *blank = strchr(line, ' ');
        bool sound = blank && blank != line && blank[1] && !strchr(blank + 1, ' ');
        if (sound) {
            *blank = 0;
            sound = has_token(v, line) && has_token(v, blank + 1);
            // Both halves side by side are the token that they make.
            memmove(blank, blank + 1, strlen(blank + 1) + 1);
            sound = sound && has_token(v, line);
        }
        if (!sound && wrong++ == 0)
            first = number;
    }
    free(data);
    return wrong == 0 ||
           report_tokenizer(c, file,
                            "%zu merges are malformed or of tokens that vocab.json lacks, the "
                            "first in line %zu",
                            wrong, first);
}

static bool check_added_tokens(const companions *c, const char *path, const vocabulary *v)
{
    static const char file[] = "tokenizer_config.json";
    q3_json json;
    q3_error problem;
    if (!q3_json_load(path, TOKENIZER_BYTES_MAX, &json, &problem))
        return report_problem(c, Q3_FINDING_MALFORMED, file, &problem);
    const cJSON *item, *table = q3_json_find(json.root, "added_tokens_decoder");
    bool ok = !table || cJSON_IsObject(table) ||
              report_tokenizer(c, file, "added_tokens_decoder: expected an object");
    if (!cJSON_IsObject(table))
        table = NULL;
    cJSON_ArrayForEach(item, table)
    {
        char *end;
        const char *content;
        const uint64_t id = strtoull(item->string, &end, 10);
        if (!ok)
            break;
        if (*end || end == item->string)
            ok =
                report_tokenizer(c, file, "the added token's id \"%s\" is no number", item->string);
        else if (!q3_json_string(&json, item, "content", &content, &problem))
            ok = report_problem(c, Q3_FINDING_TOKENIZER, file, &problem);
        else
            ok = check_added(c, file, v, id, content);
    }
    q3_json_free(&json);
    return ok;
}

// tokenizer.json has all in one file.
static bool check_fast_tokenizer(const companions *c, const char *path, uint64_t size)
{
    static const char file[] = "tokenizer.json";
    q3_json json;
    q3_error problem;
    vocabulary v = {.size = size};
    const cJSON *item, *table;
    if (!q3_json_load(path, TOKENIZER_BYTES_MAX, &json, &problem))
        return report_problem(c, Q3_FINDING_MALFORMED, file, &problem);
    bool ok = true;
    if (!q3_json_object(&json, q3_json_find(json.root, "model"), "vocab", &table, &problem))
        ok = report_problem(c, Q3_FINDING_TOKENIZER, file, &problem);
    else
        ok = read_vocabulary(c, file, &json, table, &v);
    cJSON_ArrayForEach(item, q3_json_find(json.root, "added_tokens"))
    {
        uint64_t id;
        const char *content;
        if (!ok)
            break;
        if (!q3_json_u64(&json, item, "id", 0, UINT32_MAX, &id, &problem) ||
            !q3_json_string(&json, item, "content", &content, &problem))
            ok = report_problem(c, Q3_FINDING_TOKENIZER, file, &problem);
        else
            ok = check_added(c, file, &v, id, content);
    }
    free(v.of_id);
    free(v.sorted);
    q3_json_free(&json);
    return ok;
}

static bool check_tokenizer(const companions *c, uint64_t size)
{
    enum { VOCABULARY, MERGES, CONFIG, FAST, FILES };
    static const char *const names[FILES] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                             "tokenizer.json"};
    char *paths[FILES] = {0};
    bool there[FILES] = {false}, any = false, ok = true;
    for (unsigned i = 0; i < FILES && ok; i++) {
        ok = (paths[i] = path_of(c, names[i])) != NULL;
        there[i] = ok && q3_path_exists(paths[i]);
        any = any || there[i];
    }
    if (ok && !any)
        ok = q3_sentences_add(&c->report->notes, c->err,
                              "no tokenizer files: nothing was compared with the vocabulary of "
                              "%" PRIu64,
                              size);
    q3_json json = {0};
    q3_error problem;
    vocabulary v = {.size = size};
    if (ok && there[VOCABULARY]) {
        if (!q3_json_load(paths[VOCABULARY], TOKENIZER_BYTES_MAX, &json, &problem))
            ok = report_problem(c, Q3_FINDING_MALFORMED, names[VOCABULARY], &problem);
        else
            ok = read_vocabulary(c, names[VOCABULARY], &json, json.root, &v) &&
                 (!there[MERGES] || check_merges(c, paths[MERGES], &v));
    }
    ok = ok && (!there[CONFIG] || check_added_tokens(c, paths[CONFIG], &v));
    free(v.of_id);
    free(v.sorted);
    q3_json_free(&json);
    ok = ok && (!there[FAST] || check_fast_tokenizer(c, paths[FAST], size));
    for (unsigned i = 0; i < FILES; i++)
        free(paths[i]);
    return ok;
}

bool q3_companions_check(const char *directory, const q3_manifest *manifest, q3_findings *report,
                         q3_error *err)
{
    const companions c = {
        .directory = directory, .manifest = manifest, .report = report, .err = err};
    const q3_value *size = find_value(&manifest->inventory, Q3_TEXT, "vocab_size");
    // A model of more tokens than this is none.
    const bool known = size && size->number <= 1 << 24;
    return check_config(&c) && (!known || check_tokenizer(&c, size->number));
}
