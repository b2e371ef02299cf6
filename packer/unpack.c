// SPDX-License-Identifier: Apache-2.0
#include "unpack.h"

#include "base/progress.h"
#include "model/safetensors.h"
#include "tensor_stream.h"

#include <stdlib.h>
#include <string.h>

// One tensor on its way back.
typedef struct returned {
    q3_tensor tensor; // the name belongs to the set
    q3_tensor_place place;
    uint32_t shard;
    uint64_t source; // where it lay in the shard: tells its order there
} returned;

typedef struct unpacking {
    const q3_unpack_options *options;
    q3_unpack_result *result;
    q3_set set;
    returned *tensors; // in the order of the shards
    size_t count;
    q3_output *outputs; // of each shard
} unpacking;

static int compare_returned(const void *a, const void *b)
{
    const returned *x = a, *y = b;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    return (x->source > y->source) - (x->source < y->source);
}

// Reads every pack file's directory: what all the tensors are, and where they belong.
static bool collect(unpacking *u, q3_error *err)
{
    const q3_set *set = &u->set;
    size_t total = 0;
    for (size_t f = 0; f < set->file_count; f++)
        total += set->files[f].tensor_count;
    u->tensors = q3_alloc_zeroed(total, sizeof *u->tensors, err);
    if (!u->tensors)
        return false;
    for (size_t f = 0; f < set->file_count; f++) {
        const q3_set_file *file = &set->files[f];
        q3_pack pack;
        if (!q3_set_open_pack(set, file, &pack, err))
            return false;
        for (uint32_t t = 0; t < file->tensor_count; t++) {
            returned *to = &u->tensors[u->count++];
            *to = (returned){.tensor = pack.tensors[t].tensor,
                             .place = {.file = (uint32_t)f, .index = t},
                             .shard = file->tensors[t].shard,
                             .source = file->tensors[t].offset};
            to->tensor.name = file->tensors[t].name;
            u->result->bytes += to->tensor.bytes;
        }
        q3_pack_close(&pack);
    }
    u->result->tensors = u->count;
    qsort(u->tensors, u->count, sizeof *u->tensors, compare_returned);
    return true;
}

static bool put_header(const unpacking *u, size_t first, size_t end, q3_output *output,
                       q3_error *err)
{
    q3_safetensors_header header;
    char *data;
    size_t size;
    if (!q3_safetensors_header_begin(&header, err))
        return false;
    for (size_t i = first; i < end; i++)
        q3_safetensors_header_add(&header, &u->tensors[i].tensor);
    if (!q3_safetensors_header_finish(&header, &data, &size, err))
        return false;
    const bool ok = q3_output_append(output, data, size, err);
    free(data);
    return ok;
}

static bool create_shards(unpacking *u, q3_error *err)
{
    u->outputs = q3_alloc_zeroed(u->set.shard_count, sizeof *u->outputs, err);
    if (!u->outputs)
        return false;
    for (size_t i = 0; i < u->count;) {
        const uint32_t shard = u->tensors[i].shard;
        size_t end = i;
        while (end < u->count && u->tensors[end].shard == shard)
            end++;
        char *path = q3_path_join(u->options->output_directory, u->set.shards[shard].name, err);
        const bool ok = path && q3_output_create(path, &u->outputs[shard], err) &&
                        put_header(u, i, end, &u->outputs[shard], err);
        free(path);
        if (!ok)
            return false;
        u->result->shards++;
        i = end;
    }
    return true;
}

// ---- the tensors ----

static bool put_piece(void *context, const q3_tensor_piece *piece, q3_error *err)
{
    unpacking *u = context;
    return q3_output_append(&u->outputs[u->tensors[piece->which].shard], piece->data, piece->size,
                            err);
}

static bool stream_tensors(unpacking *u, q3_error *err)
{
    q3_tensor_place *places = q3_alloc(u->count, sizeof *places, err);
    if (!places)
        return false;
    for (size_t i = 0; i < u->count; i++)
        places[i] = u->tensors[i].place;
    const q3_tensor_stream stream = {
        .set = &u->set,
        .tensors = places,
        .count = u->count,
        .jobs = u->options->jobs,
        .verb = "unpacking",
        .bytes = u->result->bytes,
        .quiet = u->options->quiet,
        .context = u,
        .put = put_piece,
    };
    const bool ok = q3_tensor_stream_run(&stream, err);
    free(places);
    return ok;
}

// ---- the small files ----

static bool write_index(const unpacking *u, q3_error *err)
{
    // A lone model.safetensors needs no index.
    if (u->result->shards == 1 && strcmp(u->set.shards[0].name, "model.safetensors") == 0)
        return true;
    q3_safetensors_entry *entries = q3_alloc(u->count, sizeof *entries, err);
    if (!entries)
        return false;
    for (size_t i = 0; i < u->count; i++)
        entries[i] = (q3_safetensors_entry){.name = u->tensors[i].tensor.name,
                                            .shard = u->set.shards[u->tensors[i].shard].name,
                                            .dtype = u->tensors[i].tensor.dtype,
                                            .bytes = u->tensors[i].tensor.bytes};
    const bool ok =
        q3_safetensors_publish_index(u->options->output_directory, entries, u->count, err);
    free(entries);
    return ok;
}

static bool write_copies(const unpacking *u, q3_error *err)
{
    for (size_t i = 0; i < u->set.copy_count; i++) {
        const char *name = u->set.copies[i].name;
        char *data = NULL;
        size_t size;
        char *path = q3_path_join(u->options->output_directory, name, err);
        const bool ok = path && q3_set_load_copy(&u->set, name, &data, &size, err) &&
                        q3_file_publish(path, data, size, err);
        free(data);
        free(path);
        if (!ok)
            return false;
    }
    return true;
}

static bool prepare_output(const char *path, q3_error *err)
{
    if (!q3_directory_create(path, err))
        return false;
    bool empty;
    if (!q3_directory_empty(path, NULL, &empty, err))
        return false;
    return empty || q3_fail(err, Q3_REFUSED, "%s: is not empty", path);
}

bool q3_unpack(const q3_unpack_options *options, q3_unpack_result *result, q3_error *err)
{
    const double started = q3_now();
    *result = (q3_unpack_result){0};
    unpacking u = {.options = options, .result = result};
    bool ok = q3_set_open(options->pack_directory, &u.set, err) &&
              prepare_output(options->output_directory, err) && collect(&u, err) &&
              create_shards(&u, err) && stream_tensors(&u, err);
    for (uint32_t i = 0; u.outputs && i < u.set.shard_count; i++) {
        if (!u.outputs[i].path)
            continue;
        if (ok)
            ok = q3_output_publish(&u.outputs[i], err);
        else
            q3_output_abandon(&u.outputs[i]);
    }
    // The index comes last: without it a directory is no checkpoint.
    ok = ok && write_copies(&u, err) && write_index(&u, err) &&
         q3_directory_sync(options->output_directory, err);
    free(u.outputs);
    free(u.tensors);
    q3_set_close(&u.set);
    result->seconds = q3_now() - started;
    return ok;
}
