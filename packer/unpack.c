// SPDX-License-Identifier: Apache-2.0
#include "unpack.h"

#include "base/json.h"
#include "base/progress.h"
#include "base/workers.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_PER_JOB = 8 };

// One tensor on its way back.
typedef struct returned {
    q3_tensor tensor;     // the name belongs to the set
    uint32_t file, index; // in the set, in the file
    uint32_t shard;
    uint64_t source; // where it lay in the shard: tells its order there
    uint64_t offset; // where it will lie
} returned;

// One frame on its way.
typedef struct frame_slot {
    uint32_t file, tensor, frame;
    q3_pack *pack;
    uint8_t *raw, *stored;
    size_t capacity;
} frame_slot;

typedef struct unpacking {
    const q3_unpack_options *options;
    q3_unpack_result *result;
    q3_set set;
    returned *tensors; // in the order of the shards
    size_t count;
    size_t **position;  // [file][tensor]: where in `tensors`
    q3_output *outputs; // of each shard
    q3_coder **coders;
    q3_hasher *hasher; // over the tensor being written
    // The frame that comes next.
    uint32_t file, tensor, frame;
    q3_pack *packs; // of each file, open while frames of it are under way
    bool open;      // packs[file] is
    q3_progress progress;
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
    u->position = u->tensors ? q3_alloc_zeroed(set->file_count, sizeof *u->position, err) : NULL;
    if (!u->position)
        return false;
    for (size_t f = 0; f < set->file_count; f++) {
        const q3_set_file *file = &set->files[f];
        q3_pack pack;
        if (!q3_set_open_pack(set, file, &pack, err))
            return false;
        for (uint32_t t = 0; t < file->tensor_count; t++) {
            returned *to = &u->tensors[u->count++];
            *to = (returned){.tensor = pack.tensors[t].tensor,
                             .file = (uint32_t)f,
                             .index = t,
                             .shard = file->tensors[t].shard,
                             .source = file->tensors[t].offset};
            to->tensor.name = file->tensors[t].name;
            u->result->bytes += to->tensor.bytes;
        }
        q3_pack_close(&pack);
        u->position[f] = q3_alloc_zeroed(file->tensor_count, sizeof **u->position, err);
        if (!u->position[f])
            return false;
    }
    u->result->tensors = u->count;
    qsort(u->tensors, u->count, sizeof *u->tensors, compare_returned);
    for (size_t i = 0; i < u->count; i++)
        u->position[u->tensors[i].file][u->tensors[i].index] = i;
    return true;
}

// The JSON header of a shard as the safetensors library writes it: no blanks, tensors in the order
// of their data, blanks at the end up to a multiple of 8.
static bool put_header(unpacking *u, size_t first, size_t end, q3_output *output, q3_error *err)
{
    q3_memory text;
    if (!q3_memory_open(&text, err))
        return false;
    FILE *stream = text.stream;
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", stream);
    uint64_t offset = 0;
    for (size_t i = first; i < end; i++) {
        const q3_tensor *tensor = &u->tensors[i].tensor;
        // Names come from pack.json, where they were JSON strings; escape what JSON must.
        fputs(",\"", stream);
        for (const char *c = tensor->name; *c; c++) {
            if (*c == '"' || *c == '\\')
                fprintf(stream, "\\%c", *c);
            else if ((unsigned char)*c < 0x20)
                fprintf(stream, "\\u%04x", (unsigned)*c);
            else
                fputc(*c, stream);
        }
        fprintf(stream, "\":{\"dtype\":\"%s\",\"shape\":[", q3_dtype_name(tensor->dtype));
        for (unsigned d = 0; d < tensor->rank; d++)
            fprintf(stream, "%s%" PRIu64, d ? "," : "", tensor->shape[d]);
        fprintf(stream, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", offset,
                offset + tensor->bytes);
        u->tensors[i].offset = offset;
        offset += tensor->bytes;
    }
    fputc('}', stream);
    fflush(stream); // so that text.size is right
    fprintf(stream, "%*s", (int)(7 - (text.size + 7) % 8), "");
    if (!q3_memory_close(&text, err))
        return false;
    uint8_t length[8];
    q3_put_u64(length, text.size);
    const bool ok = q3_output_append(output, length, sizeof length, err) &&
                    q3_output_append(output, text.data, text.size, err);
    free(text.data);
    for (size_t i = first; i < end; i++)
        u->tensors[i].offset += output->size;
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

// ---- the stream of frames ----

static int next_frame(void *context, void *slot_memory, q3_error *err)
{
    unpacking *u = context;
    frame_slot *slot = slot_memory;
    while (!u->open) {
        if (u->file == u->set.file_count)
            return 0;
        if (!q3_set_open_pack(&u->set, &u->set.files[u->file], &u->packs[u->file], err))
            return -1;
        u->open = u->packs[u->file].tensor_count != 0;
        u->file += !u->open;
    }
    slot->pack = &u->packs[u->file];
    slot->file = u->file;
    slot->tensor = u->tensor;
    slot->frame = u->frame;
    const q3_pack_tensor *tensor = &slot->pack->tensors[u->tensor];
    if (++u->frame >= tensor->frame_count) {
        u->frame = 0;
        if (++u->tensor == slot->pack->tensor_count) {
            u->tensor = 0;
            u->file++;
            u->open = false;
        }
    }
    if (slot->capacity < tensor->frame_bytes) {
        free(slot->raw);
        slot->capacity = 0;
        slot->raw = q3_alloc(2, tensor->frame_bytes, err);
        if (!slot->raw)
            return -1;
        slot->capacity = tensor->frame_bytes;
        slot->stored = slot->raw + slot->capacity;
    }
    return 1;
}

static bool decode_frame(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    unpacking *u = context;
    frame_slot *slot = slot_memory;
    const q3_pack_tensor *tensor = &slot->pack->tensors[slot->tensor];
    return tensor->frame_count == 0 ||
           q3_pack_read_frame(slot->pack, tensor, slot->frame, u->coders[worker], slot->stored,
                              slot->raw, err);
}

static bool write_frame(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    (void)worker;
    unpacking *u = context;
    const frame_slot *slot = slot_memory;
    const q3_pack_tensor *tensor = &slot->pack->tensors[slot->tensor];
    const returned *to = &u->tensors[u->position[slot->file][slot->tensor]];
    bool ok = true;
    if (tensor->frame_count) {
        const q3_frame *frame = &slot->pack->frames[tensor->first_frame + slot->frame];
        q3_hasher_update(u->hasher, slot->raw, frame->raw_bytes);
        ok = q3_output_write_at(&u->outputs[to->shard],
                                to->offset + (uint64_t)slot->frame * tensor->frame_bytes, slot->raw,
                                frame->raw_bytes, err);
        q3_progress_add(&u->progress, frame->raw_bytes, to->tensor.name);
    }
    if (ok && slot->frame + 1 >= tensor->frame_count) {
        ok = q3_pack_check_tensor(slot->pack, tensor, q3_hasher_finish(u->hasher), err);
        q3_hasher_reset(u->hasher);
        if (slot->tensor + 1 == slot->pack->tensor_count)
            q3_pack_close(slot->pack);
    }
    return ok;
}

static void release_slot(void *context, void *slot_memory)
{
    (void)context;
    free(((frame_slot *)slot_memory)->raw);
}

static bool stream_frames(unpacking *u, q3_error *err)
{
    const unsigned jobs = u->options->jobs;
    q3_workers *workers = NULL;
    u->hasher = q3_hasher_create(err);
    u->coders = u->hasher ? q3_alloc_zeroed(jobs, sizeof *u->coders, err) : NULL;
    u->packs = u->coders ? q3_alloc(u->set.file_count, sizeof *u->packs, err) : NULL;
    for (size_t f = 0; u->packs && f < u->set.file_count; f++)
        u->packs[f] = (q3_pack){.file = {.fd = -1}};
    bool ok = u->packs && q3_workers_create(jobs, &workers, err);
    for (unsigned i = 0; ok && i < jobs; i++)
        ok = (u->coders[i] = q3_coder_create(err)) != NULL;
    const q3_stream stream = {
        .context = u,
        .slots = (size_t)jobs * SLOTS_PER_JOB,
        .slot_bytes = sizeof(frame_slot),
        .next = next_frame,
        .work = decode_frame,
        .commit = write_frame,
        .release = release_slot,
    };
    q3_progress_begin(&u->progress, "unpacking", u->result->bytes, u->options->quiet);
    ok = ok && q3_workers_stream(workers, &stream, err);
    q3_progress_end(&u->progress);
    q3_workers_destroy(workers);
    for (unsigned i = 0; u->coders && i < jobs; i++)
        q3_coder_destroy(u->coders[i]);
    for (size_t f = 0; u->packs && f < u->set.file_count; f++)
        q3_pack_close(&u->packs[f]);
    free(u->packs);
    free(u->coders);
    q3_hasher_destroy(u->hasher);
    return ok;
}

// ---- the small files ----

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const returned *const *)a)->tensor.name,
                  (*(const returned *const *)b)->tensor.name);
}

static bool write_index(const unpacking *u, q3_error *err)
{
    // A lone model.safetensors needs no index.
    if (u->result->shards == 1 && strcmp(u->set.shards[0].name, "model.safetensors") == 0)
        return true;
    const returned **sorted = q3_alloc(u->count, sizeof *sorted, err);
    if (!sorted)
        return false;
    uint64_t parameters = 0;
    for (size_t i = 0; i < u->count; i++) {
        sorted[i] = &u->tensors[i];
        parameters += u->tensors[i].tensor.bytes / q3_dtype_size(u->tensors[i].tensor.dtype);
    }
    qsort(sorted, u->count, sizeof *sorted, compare_names);
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_begin_object(&json, "metadata");
    q3_json_put_u64(&json, "total_parameters", parameters);
    q3_json_put_u64(&json, "total_size", u->result->bytes);
    q3_json_end_object(&json);
    q3_json_begin_object(&json, "weight_map");
    for (size_t i = 0; i < u->count; i++)
        q3_json_put_string(&json, sorted[i]->tensor.name, u->set.shards[sorted[i]->shard].name);
    q3_json_end_object(&json);
    q3_json_end_object(&json);
    char *path = q3_path_join(u->options->output_directory, "model.safetensors.index.json", err);
    const bool ok =
        path && q3_json_finish(&json, err) && q3_file_publish(path, json.text, json.size, err);
    free(path);
    q3_json_writer_free(&json);
    free(sorted);
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
              create_shards(&u, err) && stream_frames(&u, err);
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
    for (size_t f = 0; u.position && f < u.set.file_count; f++)
        free(u.position[f]);
    free(u.position);
    free(u.outputs);
    free(u.tensors);
    q3_set_close(&u.set);
    result->seconds = q3_now() - started;
    return ok;
}
