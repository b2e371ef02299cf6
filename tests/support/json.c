// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <stdlib.h>

cJSON *q3_test_parse_json(const char *text)
{
    cJSON *json = cJSON_ParseWithOpts(text, NULL, true);
    if (!json)
        fail_msg("not JSON: %.200s", text);
    return json;
}

cJSON *q3_test_load_json(const char *path)
{
    char *text = q3_test_read(path, NULL);
    cJSON *json = cJSON_ParseWithOpts(text, NULL, true);
    if (!json)
        fail_msg("%s: not JSON", path);
    free(text);
    return json;
}

const cJSON *q3_test_member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item)
        fail_msg("no \"%s\"", key);
    return item;
}

double q3_test_number(const cJSON *object, const char *key)
{
    const cJSON *item = q3_test_member(object, key);
    if (!cJSON_IsNumber(item))
        fail_msg("\"%s\" is no number", key);
    return item->valuedouble;
}

const char *q3_test_string(const cJSON *object, const char *key)
{
    const cJSON *item = q3_test_member(object, key);
    if (!cJSON_IsString(item))
        fail_msg("\"%s\" is no string", key);
    return item->valuestring;
}

const cJSON *q3_test_element(const cJSON *array, int index)
{
    const cJSON *item = cJSON_IsArray(array) ? cJSON_GetArrayItem(array, index) : NULL;
    if (!item)
        fail_msg("no element %d", index);
    return item;
}

size_t q3_test_ids(const cJSON *array, uint32_t *ids, size_t most)
{
    size_t count = 0;
    if (!cJSON_IsArray(array))
        fail_msg("no array of ids");
    for (const cJSON *item = array->child; item; item = item->next, count++) {
        if (count == most || !cJSON_IsNumber(item) || !(item->valuedouble >= 0) ||
            item->valuedouble > UINT32_MAX || item->valuedouble != (uint32_t)item->valuedouble)
            fail_msg("element %zu is no id, or one too many", count);
        ids[count] = (uint32_t)item->valuedouble;
    }
    return count;
}
