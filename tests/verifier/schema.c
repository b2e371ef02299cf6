// SPDX-License-Identifier: Apache-2.0
#include "schema.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <string.h>

typedef struct checker {
    const cJSON *root;
    q3_error *err;
} checker;

static bool check(const checker *c, const cJSON *schema, const cJSON *value, unsigned depth);

static bool fail(const checker *c, const cJSON *value, const char *what, const char *wanted)
{
    return q3_fail(c->err, Q3_MISMATCH, "%s: %s %s", value->string ? value->string : "an item",
                   what, wanted);
}

static bool is_integer(const cJSON *value)
{
    return cJSON_IsNumber(value) && floor(value->valuedouble) == value->valuedouble;
}

static bool has_type(const cJSON *value, const char *type)
{
    return strcmp(type, "object") == 0    ? cJSON_IsObject(value)
           : strcmp(type, "array") == 0   ? cJSON_IsArray(value)
           : strcmp(type, "string") == 0  ? cJSON_IsString(value)
           : strcmp(type, "integer") == 0 ? is_integer(value)
           : strcmp(type, "number") == 0  ? cJSON_IsNumber(value)
                                          : false;
}

static bool matches(const checker *c, const char *pattern, const char *text, bool *known)
{
    int number;
    PCRE2_SIZE offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &number, &offset, NULL);
    *known = code != NULL;
    if (!code)
        return q3_fail(c->err, Q3_MALFORMED, "the pattern %s is malformed", pattern);
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, NULL);
    const bool ok =
        data && pcre2_match(code, (PCRE2_SPTR)text, strlen(text), 0, 0, data, NULL) >= 0;
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    return ok;
}

static size_t characters(const char *text)
{
    size_t count = 0;
    for (; *text; text++)
        count += (*text & 0xc0) != 0x80;
    return count;
}

static bool check_reference(const checker *c, const char *reference, const cJSON *value,
                            unsigned depth)
{
    static const char prefix[] = "#/$defs/";
    const cJSON *definition =
        strncmp(reference, prefix, sizeof prefix - 1) == 0
            ? q3_json_find(q3_json_find(c->root, "$defs"), reference + sizeof prefix - 1)
            : NULL;
    return definition ? check(c, definition, value, depth + 1)
                      : q3_fail(c->err, Q3_MALFORMED, "no %s", reference);
}

// Members that `properties` does not name.
static bool check_additional(const checker *c, const cJSON *schema, const cJSON *additional,
                             const cJSON *value, unsigned depth)
{
    const cJSON *member;
    cJSON_ArrayForEach(member, value)
    {
        if (q3_json_find(q3_json_find(schema, "properties"), member->string))
            continue;
        if (cJSON_IsFalse(additional))
            return fail(c, member, "is not", "allowed");
        if (cJSON_IsObject(additional) && !check(c, additional, member, depth + 1))
            return false;
    }
    return true;
}

static bool check_one_of(const checker *c, const cJSON *choices, const cJSON *value, unsigned depth)
{
    unsigned fitting = 0;
    const cJSON *choice;
    cJSON_ArrayForEach(choice, choices)
    {
        fitting += check(c, choice, value, depth + 1);
    }
    return fitting == 1 || fail(c, value, "fits not exactly one of", "oneOf");
}

static bool check_keyword(const checker *c, const cJSON *schema, const cJSON *keyword,
                          const cJSON *value, unsigned depth)
{
    const char *key = keyword->string;
    const cJSON *item;
    const double number = keyword->valuedouble;
    const bool is_text = cJSON_IsString(value), is_list = cJSON_IsArray(value);
    const bool is_object = cJSON_IsObject(value), is_number = cJSON_IsNumber(value);
    static const char *const silent[] = {"$schema", "$id", "$defs", "title", "description"};
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++)
        if (strcmp(key, silent[i]) == 0)
            return true;
    if (strcmp(key, "type") == 0)
        return has_type(value, keyword->valuestring) ||
               fail(c, value, "is no", keyword->valuestring);
    if (strcmp(key, "$ref") == 0)
        return check_reference(c, keyword->valuestring, value, depth);
    if (strcmp(key, "const") == 0)
        return cJSON_Compare(keyword, value, true) || fail(c, value, "is not the", "const");
    if (strcmp(key, "enum") == 0) {
        cJSON_ArrayForEach(item, keyword)
        {
            if (cJSON_Compare(item, value, true))
                return true;
        }
        return fail(c, value, "is not in the", "enum");
    }
    if (strcmp(key, "minimum") == 0)
        return !is_number || value->valuedouble >= number || fail(c, value, "is below the", key);
    if (strcmp(key, "maximum") == 0)
        return !is_number || value->valuedouble <= number || fail(c, value, "is above the", key);
    if (strcmp(key, "maxLength") == 0)
        return !is_text || (double)characters(value->valuestring) <= number ||
               fail(c, value, "is above", key);
    if (strcmp(key, "pattern") == 0) {
        bool known = true;
        return !is_text || matches(c, keyword->valuestring, value->valuestring, &known) ||
               (known && fail(c, value, "does not match", keyword->valuestring));
    }
    if (strcmp(key, "minItems") == 0)
        return !is_list || cJSON_GetArraySize(value) >= number || fail(c, value, "is below", key);
    if (strcmp(key, "maxItems") == 0)
        return !is_list || cJSON_GetArraySize(value) <= number || fail(c, value, "is above", key);
    if (strcmp(key, "maxProperties") == 0)
        return !is_object || cJSON_GetArraySize(value) <= number || fail(c, value, "is above", key);
    if (strcmp(key, "required") == 0) {
        cJSON_ArrayForEach(item, keyword)
        {
            if (is_object && !q3_json_find(value, item->valuestring))
                return fail(c, value, "lacks", item->valuestring);
        }
        return true;
    }
    if (strcmp(key, "properties") == 0) {
        cJSON_ArrayForEach(item, keyword)
        {
            const cJSON *member = q3_json_find(value, item->string);
            if (member && !check(c, item, member, depth + 1))
                return false;
        }
        return true;
    }
    if (strcmp(key, "additionalProperties") == 0)
        return !is_object || check_additional(c, schema, keyword, value, depth);
    if (strcmp(key, "propertyNames") == 0) {
        for (item = is_object ? value->child : NULL; item; item = item->next) {
            cJSON *name = cJSON_CreateString(item->string);
            const bool ok = name && check(c, keyword, name, depth + 1);
            cJSON_Delete(name);
            if (!ok)
                return false;
        }
        return true;
    }
    if (strcmp(key, "items") == 0) {
        for (item = is_list ? value->child : NULL; item; item = item->next) {
            if (!check(c, keyword, item, depth + 1))
                return false;
        }
        return true;
    }
    if (strcmp(key, "oneOf") == 0)
        return check_one_of(c, keyword, value, depth);
    if (strcmp(key, "not") == 0)
        return !check(c, keyword, value, depth + 1) || fail(c, value, "is what it must", "not be");
    return q3_fail(c->err, Q3_MALFORMED, "the schema has the unknown keyword %s", key);
}

static bool check(const checker *c, const cJSON *schema, const cJSON *value, unsigned depth)
{
    enum { DEPTH_MAX = 64 };
    if (depth > DEPTH_MAX)
        return q3_fail(c->err, Q3_MALFORMED, "the schema refers to itself");
    const cJSON *keyword;
    cJSON_ArrayForEach(keyword, schema)
    {
        if (!check_keyword(c, schema, keyword, value, depth))
            return false;
    }
    return true;
}

bool schema_check(const cJSON *root, const cJSON *schema, const cJSON *value, q3_error *err)
{
    const checker c = {.root = root, .err = err};
    return check(&c, schema, value, 0);
}
