// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"
#include "cli.h"
#include "set.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { CODECS_MAX = 8 };

// Sum of a tensor's stored bytes, and how many of its frames each codec stored.
static uint64_t stored_bytes(const q3_pack *pack, const q3_pack_tensor *tensor,
                             uint32_t frames[CODECS_MAX])
{
    uint64_t sum = 0;
    memset(frames, 0, CODECS_MAX * sizeof *frames);
    for (uint32_t i = 0; i < tensor->frame_count; i++) {
        const q3_frame *frame = &pack->frames[tensor->first_frame + i];
        sum += frame->stored_bytes;
        frames[frame->codec]++;
    }
    return sum;
}

static void show_text(const q3_set *set, const q3_set_file *file, const q3_pack *pack)
{
    char path[Q3_PLACE_PATH_MAX], hash[Q3_HASH_TEXT], shape[Q3_SHAPE_TEXT_MAX];
    char size[Q3_GROUPED_MAX], stored[Q3_GROUPED_MAX];
    printf("%s: %s bytes, %" PRIu32 " tensors in %" PRIu32 " frames, root %s\n",
           q3_place_path(&file->place, path), q3_grouped(pack->size, size), pack->tensor_count,
           pack->frame_count, q3_hash128_text(pack->root, hash));
    for (uint32_t i = 0; i < pack->tensor_count; i++) {
        const q3_pack_tensor *tensor = &pack->tensors[i];
        const q3_set_tensor *source = &file->tensors[i];
        uint32_t frames[CODECS_MAX];
        const uint64_t sum = stored_bytes(pack, tensor, frames);
        printf("\n%s\n", tensor->tensor.name);
        printf("  %s %s, %s bytes, hash %s\n", q3_dtype_name(tensor->tensor.dtype),
               q3_shape_text(tensor->tensor.rank, tensor->tensor.shape, shape),
               q3_grouped(tensor->tensor.bytes, size), q3_hash128_text(tensor->hash, hash));
        printf("  stored in %s bytes, frames:", q3_grouped(sum, stored));
        for (unsigned codec = 0; q3_codec_is_stored(codec); codec++)
            if (frames[codec])
                printf(" %" PRIu32 " %s", frames[codec], q3_codec_name(codec));
        putchar('\n');
        printf("  from %s at %" PRIu64 "\n", set->shards[source->shard].name, source->offset);
    }
}

static bool show_json(const q3_set *set, const q3_set_file *file, const q3_pack *pack,
                      q3_error *err)
{
    char path[Q3_PLACE_PATH_MAX], hash[Q3_HASH_TEXT];
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_string(&out, "path", q3_place_path(&file->place, path));
    q3_json_put_u64(&out, "size", pack->size);
    q3_json_put_string(&out, "root", q3_hash128_text(pack->root, hash));
    q3_json_begin_array(&out, "tensors");
    for (uint32_t i = 0; i < pack->tensor_count; i++) {
        const q3_pack_tensor *tensor = &pack->tensors[i];
        uint32_t frames[CODECS_MAX];
        const uint64_t sum = stored_bytes(pack, tensor, frames);
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_string(&out, "name", tensor->tensor.name);
        q3_json_put_string(&out, "dtype", q3_dtype_name(tensor->tensor.dtype));
        q3_json_begin_array(&out, "shape");
        for (unsigned d = 0; d < tensor->tensor.rank; d++)
            q3_json_put_u64(&out, NULL, tensor->tensor.shape[d]);
        q3_json_end_array(&out);
        q3_json_put_u64(&out, "bytes", tensor->tensor.bytes);
        q3_json_put_string(&out, "hash", q3_hash128_text(tensor->hash, hash));
        q3_json_put_u64(&out, "stored_bytes", sum);
        q3_json_begin_object(&out, "frames");
        for (unsigned codec = 0; q3_codec_is_stored(codec); codec++)
            if (frames[codec])
                q3_json_put_u64(&out, q3_codec_name(codec), frames[codec]);
        q3_json_end_object(&out);
        q3_json_put_string(&out, "shard", set->shards[file->tensors[i].shard].name);
        q3_json_put_u64(&out, "offset", file->tensors[i].offset);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    return q3_print_json(&out, err);
}

int q3_command_show(const char *const *arguments)
{
    q3_error err;
    q3_set set;
    q3_place place;
    if (!q3_set_open(arguments[0], &set, &err))
        return q3_report(&err);
    const q3_set_file *file =
        q3_place_parse(arguments[1], &place) ? q3_set_find(&set, &place) : NULL;
    bool ok = file || q3_fail(&err, Q3_USAGE, "%s: has no file %s (q3-pack list shows them)",
                              arguments[0], arguments[1]);
    q3_pack pack;
    if (ok && (ok = q3_set_open_pack(&set, file, &pack, &err))) {
        if (q3_options.json)
            ok = show_json(&set, file, &pack, &err);
        else
            show_text(&set, file, &pack);
        q3_pack_close(&pack);
    }
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}
