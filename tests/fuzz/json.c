// SPDX-License-Identifier: Apache-2.0
//
// The strict JSON reader. What it accepts, cJSON alone reads to the last byte and gives the same
// tree; printed by cJSON and read again, it is the same document; and every string survives our
// own writer.
#include "base/json.h"
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

// Each item in turn, by way of its parent's list; the depth is bounded by Q3_JSON_DEPTH_MAX.
static void check_items(const q3_json *json)
{
    const cJSON *stack[Q3_JSON_DEPTH_MAX + 1] = {json->root};
    unsigned depth = 1, seen = 0;
    while (depth) {
        const cJSON *item = stack[depth - 1];
        q3_error err;
        uint64_t number;
        if (++seen < 50)
            q3_json_fail(json, item, Q3_MALFORMED, &err, "nothing");
        if (q3_json_item_u64(json, item, 0, UINT64_C(1) << 53, &number, &err))
            FUZZ_CHECK((double)number == item->valuedouble);
        if (cJSON_IsString(item)) {
            q3_json_writer writer = {0};
            q3_json again;
            q3_json_put_string(&writer, NULL, item->valuestring);
            FUZZ_CHECK(q3_json_finish(&writer, &err));
            FUZZ_CHECK(q3_json_parse("again", (q3_bytes){(uint8_t *)writer.text, writer.size},
                                     &again, &err));
            FUZZ_CHECK(cJSON_IsString(again.root));
            FUZZ_CHECK(strcmp(again.root->valuestring, item->valuestring) == 0);
            q3_json_free(&again);
            q3_json_writer_free(&writer);
        }
        if (item->child) {
            FUZZ_CHECK(depth <= Q3_JSON_DEPTH_MAX);
            stack[depth++] = item->child;
            continue;
        }
        while (depth && !stack[depth - 1]->next)
            depth--;
        if (depth)
            stack[depth - 1] = stack[depth - 1]->next;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_json json, again;
    uint8_t *text = fuzz_copy((q3_bytes){data, size});
    if (q3_json_parse("input", (q3_bytes){text, size}, &json, &err)) {
        const char *end = NULL;
        cJSON *lone = cJSON_ParseWithLengthOpts((const char *)text, size, &end, false);
        FUZZ_CHECK(lone != NULL);
        for (; end < (const char *)text + size; end++)
            FUZZ_CHECK(strchr(" \t\r\n", *end) && *end);
        FUZZ_CHECK(cJSON_Compare(lone, json.root, true));
        cJSON_Delete(lone);
        check_items(&json);
        char *printed = cJSON_PrintUnformatted(json.root);
        FUZZ_CHECK(printed != NULL);
        FUZZ_CHECK(q3_json_parse("printed", (q3_bytes){(uint8_t *)printed, strlen(printed)}, &again,
                                 &err));
        FUZZ_CHECK(cJSON_Compare(again.root, json.root, true));
        q3_json_free(&again);
        cJSON_free(printed);
        q3_json_free(&json);
    }
    free(text);
    return 0;
}
