// SPDX-License-Identifier: Apache-2.0
#include "extract.h"

#include "base/progress.h"
#include "base/workers.h"
#include "journal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Frames under way: enough to keep all threads at work while one waits for the disk, and 64 MiB.
enum { SLOTS_PER_JOB = 32, SLOTS_MAX = 128, COPY_BYTES_MAX = 256 << 20 };

// One frame on its way.
typedef struct frame_slot {
    size_t file;            // index into extraction.order
    uint32_t tensor, frame; // in the file, in the tensor
    uint8_t *raw, *stored;  // Q3_FRAME_BYTES each
    size_t raw_bytes, stored_bytes;
    q3_codec codec;
    uint64_t hash;
} frame_slot;

typedef struct extraction {
    const q3_plan *plan;
    const q3_extract_options *options;
    q3_set set; // what pack.json will say
    q3_journal *journal;
    q3_file *shards; // open where something is taken from them
    q3_coder **coders;
    unsigned jobs;
    const q3_plan_file **order; // files to write, as the source holds them
    size_t order_count;
    size_t file; // the next frame to read
    uint32_t tensor, frame;
    q3_pack_writer *writer; // of the file being written
    q3_progress progress;
    q3_extract_result *result;
} extraction;

// ---- what pack.json will say ----

static bool fill_shards(extraction *x, q3_error *err)
{
    const q3_checkpoint *checkpoint = &x->plan->checkpoint;
    x->set.shards = q3_alloc_zeroed(checkpoint->shard_count, sizeof *x->set.shards, err);
    if (!x->set.shards)
        return false;
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        const q3_shard *shard = &checkpoint->shards[i];
        q3_set_shard *to = &x->set.shards[i];
        to->size = shard->size;
        to->header_hash = shard->header_hash;
        to->name = q3_format(err, "%s", shard->name);
        if (!to->name)
            return false;
        x->set.shard_count++;
    }
    return true;
}

static bool fill_files(extraction *x, q3_error *err)
{
    const q3_plan *plan = x->plan;
    x->set.files = q3_alloc_zeroed(plan->file_count, sizeof *x->set.files, err);
    if (!x->set.files)
        return false;
    for (size_t i = 0; i < plan->file_count; i++) {
        const q3_plan_file *from = &plan->files[i];
        q3_set_file *to = &x->set.files[x->set.file_count++];
        to->place = from->place;
        to->tensors = q3_alloc_zeroed(from->tensor_count, sizeof *to->tensors, err);
        if (!to->tensors)
            return false;
        for (uint32_t t = 0; t < from->tensor_count; t++) {
            q3_set_tensor *tensor = &to->tensors[to->tensor_count];
            tensor->shard = from->tensors[t]->shard;
            tensor->offset = from->tensors[t]->offset;
            tensor->name = q3_format(err, "%s", from->tensors[t]->tensor.name);
            if (!tensor->name)
                return false;
            to->tensor_count++;
        }
        q3_set_component *component = &x->set.components[from->place.component];
        component->tensors += from->tensor_count;
        component->bytes += from->bytes;
    }
    for (size_t i = 0; i < plan->inventory.pattern_count; i++) {
        const q3_pattern *pattern = &plan->inventory.patterns[i];
        x->set.components[pattern->component].expected_tensors += pattern->count;
        x->set.components[pattern->component].expected_bytes += pattern->count * pattern->bytes;
    }
    return true;
}

static bool fill_copies(extraction *x, q3_error *err)
{
    const q3_plan *plan = x->plan;
    x->set.copies = q3_alloc_zeroed(plan->copy_count, sizeof *x->set.copies, err);
    if (!x->set.copies)
        return false;
    for (size_t i = 0; i < plan->copy_count; i++) {
        q3_set_copy *copy = &x->set.copies[i];
        char *path = q3_checkpoint_path(&plan->checkpoint, plan->copies[i], err);
        char *data = NULL;
        size_t size;
        const bool ok = path && q3_file_load(path, COPY_BYTES_MAX, &data, &size, err);
        free(path);
        if (!ok)
            return false;
        copy->size = size;
        copy->hash = q3_hash128_of(data, size);
        free(data);
        copy->name = q3_format(err, "%s", plan->copies[i]);
        if (!copy->name)
            return false;
        x->set.copy_count++;
    }
    return true;
}

// Copies the small files. They are read again: what is written must be what was hashed.
static bool write_copies(extraction *x, q3_error *err)
{
    for (size_t i = 0; i < x->set.copy_count; i++) {
        const q3_set_copy *copy = &x->set.copies[i];
        char *from = q3_checkpoint_path(&x->plan->checkpoint, copy->name, err);
        char *to = from ? q3_set_path(&x->set, copy->name, err) : NULL;
        char *data = NULL;
        size_t size;
        bool ok = to && q3_file_load(from, COPY_BYTES_MAX, &data, &size, err);
        if (ok && !q3_hash128_equal(q3_hash128_of(data, size), copy->hash))
            ok = q3_fail(err, Q3_FAILED, "%s: the file changed while it was read", from);
        ok = ok && q3_file_publish(to, data, size, err);
        free(data);
        free(from);
        free(to);
        if (!ok)
            return false;
    }
    return true;
}

// ---- the request, as the journal keeps it ----

// Appends to a growing string; *text is NULL at the start and after a failure.
static bool append(char **text, q3_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool append(char **text, q3_error *err, const char *format, ...)
{
    char line[Q3_ERROR_MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    char *longer = q3_format(err, "%s%s", *text ? *text : "", line);
    free(*text);
    *text = longer;
    return longer != NULL;
}

// Lines that say what is asked for, and from what: two requests are the same when these are.
static char *describe_request(const extraction *x, q3_error *err)
{
    const q3_selection *selection = &x->options->selection;
    char hash[Q3_HASH_TEXT], *text = NULL;
    bool ok = append(&text, err, "codec %s\n", q3_codec_name(x->options->codec)) &&
              append(&text, err, "components %s\n", selection->components) &&
              append(&text, err, "layers %s\n", selection->layers ? selection->layers : "all") &&
              append(&text, err, "experts %s\n", selection->experts ? selection->experts : "all");
    for (size_t i = 0; ok && i < x->set.copy_count; i++)
        ok = append(&text, err, "copy %s %s\n", x->set.copies[i].name,
                    q3_hash128_text(x->set.copies[i].hash, hash));
    for (uint32_t i = 0; ok && i < x->set.shard_count; i++)
        ok = append(&text, err, "shard %s %" PRIu64 " %s\n", x->set.shards[i].name,
                    x->set.shards[i].size, q3_hash128_text(x->set.shards[i].header_hash, hash));
    return text;
}

// ---- the stream of frames ----

static int next_frame(void *context, void *slot_memory, q3_error *err)
{
    extraction *x = context;
    frame_slot *slot = slot_memory;
    if (x->file == x->order_count)
        return 0;
    if (!slot->raw) {
        slot->raw = q3_alloc(2, Q3_FRAME_BYTES, err);
        if (!slot->raw)
            return -1;
        slot->stored = slot->raw + Q3_FRAME_BYTES;
    }
    const q3_plan_file *file = x->order[x->file];
    const q3_tensor *tensor = &file->tensors[x->tensor]->tensor;
    slot->file = x->file;
    slot->tensor = x->tensor;
    slot->frame = x->frame;
    const uint64_t left = tensor->bytes - (uint64_t)x->frame * q3_frame_cut(tensor);
    slot->raw_bytes = left < q3_frame_cut(tensor) ? (size_t)left : q3_frame_cut(tensor);
    if (++x->frame == q3_frame_count(tensor)) {
        x->frame = 0;
        if (++x->tensor == file->tensor_count) {
            x->tensor = 0;
            x->file++;
        }
    }
    return 1;
}

static bool encode_frame(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    extraction *x = context;
    frame_slot *slot = slot_memory;
    const q3_stored_tensor *from = x->order[slot->file]->tensors[slot->tensor];
    const uint64_t at = from->offset + (uint64_t)slot->frame * q3_frame_cut(&from->tensor);
    slot->codec = x->options->codec;
    const q3_tensor *tensor = &from->tensor;
    const uint64_t row = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 0;
    if (!q3_file_read(&x->shards[from->shard], at, slot->raw, slot->raw_bytes, err) ||
        !q3_codec_encode(x->coders[worker], &slot->codec, tensor->dtype, row, slot->raw,
                         slot->raw_bytes, slot->stored, &slot->stored_bytes, err))
        return false;
    slot->hash = q3_hash64(slot->stored, slot->stored_bytes);
    return true;
}

static bool begin_file(extraction *x, const q3_plan_file *file, q3_error *err)
{
    char name[Q3_PLACE_PATH_MAX];
    q3_tensor *tensors = q3_alloc(file->tensor_count, sizeof *tensors, err);
    char *path = tensors ? q3_set_path(&x->set, q3_place_path(&file->place, name), err) : NULL;
    for (uint32_t i = 0; path && i < file->tensor_count; i++)
        tensors[i] = file->tensors[i]->tensor;
    const bool ok =
        path && q3_pack_writer_create(path, tensors, file->tensor_count, &x->writer, err);
    free(path);
    free(tensors);
    return ok;
}

static bool finish_file(extraction *x, const q3_plan_file *file, q3_error *err)
{
    q3_pack_writer *writer = x->writer;
    q3_set_file *entry = &x->set.files[file - x->plan->files];
    x->writer = NULL;
    return q3_pack_writer_publish(writer, &entry->size, &entry->root, err) &&
           q3_journal_record(x->journal, &file->place, entry->size, entry->root, err);
}

static bool write_frame(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    (void)worker;
    extraction *x = context;
    const frame_slot *slot = slot_memory;
    const q3_plan_file *file = x->order[slot->file];
    const q3_tensor *tensor = &file->tensors[slot->tensor]->tensor;
    if (slot->tensor == 0 && slot->frame == 0 && !begin_file(x, file, err))
        return false;
    if (!q3_pack_writer_add(x->writer, slot->codec, slot->raw, slot->raw_bytes, slot->stored,
                            slot->stored_bytes, slot->hash, err))
        return false;
    char path[Q3_PLACE_PATH_MAX];
    q3_progress_add(&x->progress, slot->raw_bytes, q3_place_path(&file->place, path));
    const bool last =
        slot->tensor + 1 == file->tensor_count && slot->frame + 1 == q3_frame_count(tensor);
    return !last || finish_file(x, file, err);
}

static void release_slot(void *context, void *slot_memory)
{
    (void)context;
    free(((frame_slot *)slot_memory)->raw);
}

// ---- the whole ----

static int compare_source(const void *a, const void *b)
{
    const q3_stored_tensor *x = (*(const q3_plan_file *const *)a)->tensors[0];
    const q3_stored_tensor *y = (*(const q3_plan_file *const *)b)->tensors[0];
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

// Is the file that the journal calls finished there as it was?
static bool is_finished(const extraction *x, q3_set_file *entry)
{
    q3_pack pack;
    q3_error ignored;
    if (!q3_journal_find(x->journal, &entry->place, &entry->size, &entry->root) ||
        !q3_set_open_pack(&x->set, entry, &pack, &ignored))
        return false;
    q3_pack_close(&pack);
    return true;
}

// Puts the files that are still to be written in the order of their bytes in the source.
static bool order_files(extraction *x, q3_error *err)
{
    const q3_plan *plan = x->plan;
    uint64_t bytes = 0;
    x->order = q3_alloc(plan->file_count, sizeof *x->order, err);
    if (!x->order)
        return false;
    for (size_t i = 0; i < plan->file_count; i++) {
        if (is_finished(x, &x->set.files[i])) {
            x->result->resumed_files++;
            continue;
        }
        x->order[x->order_count++] = &plan->files[i];
        bytes += plan->files[i].bytes;
    }
    if (x->order_count)
        qsort(x->order, x->order_count, sizeof *x->order, compare_source);
    q3_progress_begin(&x->progress, "extracting", bytes, x->options->quiet);
    return true;
}

static bool open_shards(extraction *x, q3_error *err)
{
    const q3_plan *plan = x->plan;
    x->shards = q3_alloc_zeroed(plan->checkpoint.shard_count, sizeof *x->shards, err);
    if (!x->shards)
        return false;
    for (size_t i = 0; i < x->order_count; i++)
        for (uint32_t t = 0; t < x->order[i]->tensor_count; t++) {
            const uint32_t shard = x->order[i]->tensors[t]->shard;
            if (!x->shards[shard].path &&
                !q3_checkpoint_open_shard(&plan->checkpoint, shard, &x->shards[shard], err))
                return false;
        }
    return true;
}

// Makes the directories of all pack files, or syncs them.
static bool each_directory(extraction *x, bool (*action)(const char *path, q3_error *err),
                           q3_error *err)
{
    const q3_plan *plan = x->plan;
    char previous[Q3_PLACE_PATH_MAX] = "";
    for (size_t i = 0; i < plan->file_count; i++) {
        char name[Q3_PLACE_PATH_MAX];
        q3_place_path(&plan->files[i].place, name);
        char *slash = strrchr(name, '/');
        if (!slash)
            continue;
        *slash = 0;
        if (strcmp(name, previous) == 0)
            continue;
        memcpy(previous, name, sizeof previous);
        char *path = q3_set_path(&x->set, name, err);
        const bool ok = path && action(path, err);
        free(path);
        if (!ok)
            return false;
    }
    return true;
}

static bool stream_frames(extraction *x, q3_error *err)
{
    q3_workers *workers;
    x->jobs = x->options->jobs;
    x->coders = q3_alloc_zeroed(x->jobs, sizeof *x->coders, err);
    if (!x->coders || !q3_workers_create(x->jobs, &workers, err))
        return false;
    bool ok = true;
    for (unsigned i = 0; ok && i < x->jobs; i++)
        ok = (x->coders[i] = q3_coder_create(err)) != NULL;
    const q3_stream stream = {
        .context = x,
        .slots = x->jobs < SLOTS_MAX / SLOTS_PER_JOB ? x->jobs * SLOTS_PER_JOB : SLOTS_MAX,
        .slot_bytes = sizeof(frame_slot),
        .next = next_frame,
        .work = encode_frame,
        .commit = write_frame,
        .release = release_slot,
    };
    ok = ok && q3_workers_stream(workers, &stream, err);
    q3_progress_end(&x->progress);
    q3_pack_writer_abandon(x->writer);
    q3_workers_destroy(workers);
    return ok;
}

static void summarize(const extraction *x)
{
    q3_extract_result *result = x->result;
    result->files = x->set.file_count;
    result->tensors = x->plan->tensors;
    result->bytes = x->plan->bytes;
    for (size_t i = 0; i < x->set.file_count; i++)
        result->stored += x->set.files[i].size;
}

bool q3_extract_plan(const q3_plan *plan, const q3_extract_options *options,
                     q3_extract_result *result, q3_error *err)
{
    const double started = q3_now();
    *result = (q3_extract_result){0};
    extraction x = {.plan = plan, .options = options, .result = result};
    x.set.config = plan->config;
    x.set.codec = options->codec;
    x.set.directory = q3_format(err, "%s", options->pack_directory);
    bool ok =
        x.set.directory && fill_shards(&x, err) && fill_files(&x, err) && fill_copies(&x, err);
    char *request = ok ? describe_request(&x, err) : NULL;
    ok = request && q3_journal_open(options->pack_directory, request, &x.journal, err);
    free(request);
    ok = ok && order_files(&x, err) && open_shards(&x, err) &&
         each_directory(&x, q3_directory_create, err) && stream_frames(&x, err) &&
         write_copies(&x, err) && each_directory(&x, q3_directory_sync, err) &&
         q3_set_write(&x.set, err);
    if (ok)
        ok = q3_journal_finish(x.journal, err) && q3_directory_sync(x.set.directory, err);
    else
        q3_journal_close(x.journal);
    if (ok)
        summarize(&x);
    result->seconds = q3_now() - started;
    for (unsigned i = 0; x.coders && i < x.jobs; i++)
        q3_coder_destroy(x.coders[i]);
    for (uint32_t i = 0; x.shards && i < plan->checkpoint.shard_count; i++)
        q3_file_close(&x.shards[i]);
    free(x.coders);
    free(x.shards);
    free(x.order);
    q3_set_close(&x.set);
    return ok;
}

bool q3_extract(const q3_extract_options *options, q3_extract_result *result, q3_error *err)
{
    q3_plan plan;
    if (!q3_plan_make(options->model_directory, &options->selection, &plan, err))
        return false;
    const bool ok = q3_extract_plan(&plan, options, result, err);
    q3_plan_free(&plan);
    return ok;
}
