// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"
#include "cli.h"
#include "set.h"

#include <stdio.h>

static bool list_json(const q3_set *set, q3_error *err)
{
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_string(&out, "codec", q3_codec_name(set->codec));
    q3_json_begin_array(&out, "files");
    for (size_t i = 0; i < set->file_count; i++) {
        char path[Q3_PLACE_PATH_MAX];
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_string(&out, "path", q3_place_path(&set->files[i].place, path));
        q3_json_put_u64(&out, "size", set->files[i].size);
        q3_json_put_u64(&out, "tensors", set->files[i].tensor_count);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    return q3_print_json(&out, err);
}

static void list_text(const q3_set *set)
{
    char path[Q3_PLACE_PATH_MAX], size[Q3_GROUPED_MAX], tensors[Q3_GROUPED_MAX];
    uint64_t total = 0;
    for (size_t i = 0; i < set->file_count; i++) {
        const q3_set_file *file = &set->files[i];
        printf("%-30s %15s %7s\n", q3_place_path(&file->place, path), q3_grouped(file->size, size),
               q3_grouped(file->tensor_count, tensors));
        total += file->size;
    }
    for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
        const q3_set_component *component = &set->components[i];
        if (!component->tensors)
            continue;
        char found[Q3_GROUPED_MAX], expected[Q3_GROUPED_MAX];
        printf("%s: %s of %s tensors\n", q3_component_name((q3_component)i),
               q3_grouped(component->tensors, found),
               q3_grouped(component->expected_tensors, expected));
    }
    char files[Q3_GROUPED_MAX];
    printf("%s files, %s bytes, codec %s\n", q3_grouped(set->file_count, files),
           q3_grouped(total, size), q3_codec_name(set->codec));
}

int q3_command_list(const char *const *arguments)
{
    q3_error err;
    q3_set set;
    if (!q3_set_open(arguments[0], &set, &err))
        return q3_report(&err);
    bool ok = true;
    if (q3_options.json)
        ok = list_json(&set, &err);
    else
        list_text(&set);
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}
