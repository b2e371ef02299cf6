// SPDX-License-Identifier: Apache-2.0
//
// q3-pack: looks into pack directories and turns them back into checkpoints.
#include "base/json.h"
#include "base/options.h"
#include "base/text.h"
#include "base/workers.h"
#include "set.h"
#include "unpack.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool json, quiet;
static uint64_t jobs;

static bool print_json(q3_json_writer *out, q3_error *err)
{
    const bool ok = q3_json_finish(out, err);
    if (ok)
        fputs(out->text, stdout);
    q3_json_writer_free(out);
    return ok;
}

// ---- list ----

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
    return print_json(&out, err);
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

static int run_list(const char *const *arguments)
{
    q3_error err;
    q3_set set;
    if (!q3_set_open(arguments[0], &set, &err))
        return q3_report(&err);
    bool ok = true;
    if (json)
        ok = list_json(&set, &err);
    else
        list_text(&set);
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}

// ---- show ----

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
    return print_json(&out, err);
}

static int run_show(const char *const *arguments)
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
        if (json)
            ok = show_json(&set, file, &pack, &err);
        else
            show_text(&set, file, &pack);
        q3_pack_close(&pack);
    }
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}

// ---- cat ----

static bool write_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_error *err)
{
    q3_coder *coder = q3_coder_create(err);
    q3_hasher *hasher = coder ? q3_hasher_create(err) : NULL;
    const size_t scratch = q3_pack_longest_frame(pack);
    uint8_t *stored = hasher ? q3_alloc(scratch, 1, err) : NULL;
    uint8_t *raw = stored ? q3_alloc(tensor->frame_bytes, 1, err) : NULL;
    bool ok = raw != NULL;
    for (uint32_t i = 0; ok && i < tensor->frame_count; i++) {
        const size_t size = pack->frames[tensor->first_frame + i].raw_bytes;
        ok = q3_pack_read_frame(pack, tensor, i, coder, stored, raw, err) &&
             q3_write_all(STDOUT_FILENO, "standard output", raw, size, err);
        if (ok)
            q3_hasher_update(hasher, raw, size);
    }
    ok = ok && q3_pack_check_tensor(pack, tensor, q3_hasher_finish(hasher), err);
    free(raw);
    free(stored);
    q3_hasher_destroy(hasher);
    q3_coder_destroy(coder);
    return ok;
}

static int run_cat(const char *const *arguments)
{
    q3_error err;
    q3_set set;
    uint32_t index;
    if (!q3_set_open(arguments[0], &set, &err))
        return q3_report(&err);
    const q3_set_file *file = q3_set_find_tensor(&set, arguments[1], &index);
    bool ok = file || q3_fail(&err, Q3_USAGE, "%s: has no tensor %s", arguments[0], arguments[1]);
    q3_pack pack;
    if (ok && (ok = q3_set_open_pack(&set, file, &pack, &err))) {
        ok = write_tensor(&pack, &pack.tensors[index], &err);
        q3_pack_close(&pack);
    }
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}

// ---- unpack ----

static int run_unpack(const char *const *arguments)
{
    q3_error err;
    const q3_unpack_options options = {
        .pack_directory = arguments[0],
        .output_directory = arguments[1],
        .jobs = jobs ? (unsigned)jobs : q3_workers_default(),
        .quiet = quiet,
    };
    q3_unpack_result result;
    if (!q3_unpack(&options, &result, &err))
        return q3_report(&err);
    char tensors[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
    if (!quiet)
        printf("%s tensors, %s, in %" PRIu64 " shards in %.1f s\n",
               q3_grouped(result.tensors, tensors), q3_human_bytes(result.bytes, bytes),
               result.shards, result.seconds);
    return Q3_DONE;
}

static const q3_option output_options[] = {
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &json, .help = "print JSON"},
};

static const q3_option unpack_options[] = {
    Q3_JOBS_OPTION(&jobs),
    Q3_QUIET_OPTION(&quiet),
    Q3_CPU_OPTION,
};

static const q3_command commands[] = {
    {.name = "list",
     .arguments = "PACK",
     .summary = "Lists the pack files of a pack directory: path, bytes, tensors.",
     .options = output_options,
     .option_count = 1,
     .run = run_list},
    {.name = "show",
     .arguments = "PACK FILE",
     .summary = "Shows the tensors of one pack file: type, shape, hash, how they are stored, where "
                "they came from. FILE is a path as list prints it.",
     .options = output_options,
     .option_count = 1,
     .run = run_show},
    {.name = "cat",
     .arguments = "PACK TENSOR",
     .summary = "Writes a tensor's raw bytes to standard output, every checksum checked.",
     .run = run_cat},
    {.name = "unpack",
     .arguments = "PACK OUT_DIR",
     .summary =
         "Turns a pack directory back into safetensors shards with their index and the other "
         "files. OUT_DIR must not exist or be empty.",
     .options = unpack_options,
     .option_count = sizeof unpack_options / sizeof *unpack_options,
     .run = run_unpack},
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-pack",
        .summary = "Looks into pack directories and turns them back into checkpoints.",
        .commands = commands,
        .command_count = sizeof commands / sizeof *commands,
    };
    return q3_program_main(&program, argc, argv);
}
