// SPDX-License-Identifier: Apache-2.0
#include "damage.h"

#include "extract.h"

#include <stdlib.h>
#include <string.h>

void file_replace(const char *path, const char *from, const char *to)
{
    size_t size;
    char *data = q3_test_read(path, &size);
    const char *at = memmem(data, size, from, strlen(from));
    assert_non_null(at);
    const size_t before = (size_t)(at - data), removed = strlen(from), added = strlen(to);
    char *changed = malloc(size - removed + added + 1);
    assert_non_null(changed);
    memcpy(changed, data, before);
    memcpy(changed + before, to, added);
    memcpy(changed + before + added, at + removed, size - before - removed);
    q3_test_write(path, changed, size - removed + added);
    free(changed);
    free(data);
}

void pack_create(const char *pack, const char *components, const char *layers, const char *experts,
                 q3_codec codec)
{
    const q3_extract_options options = {
        .model_directory = Q3_TEST_MODEL_DIR,
        .pack_directory = pack,
        .selection = {.components = components, .layers = layers, .experts = experts},
        .codec = codec,
        .jobs = 2,
        .quiet = true};
    q3_extract_result result;
    q3_error err;
    if (!q3_extract(&options, &result, &err))
        fail_msg("%s", err.message);
}

void assert_messages(const q3_findings *report, const char *const *messages, size_t count)
{
    for (size_t i = 0; i < count && i < report->count; i++)
        assert_string_equal(report->findings[i].message, messages[i]);
    if (report->count != count)
        fail_msg("expected %zu findings, found %zu; the first beyond: %s", count, report->count,
                 report->count > count ? report->findings[count].message : "none");
}
