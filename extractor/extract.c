// SPDX-License-Identifier: Apache-2.0
#include "extract.h"

#include "base/progress.h"
#include "base/text.h"
#include "base/workers.h"
#include "journal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Frames under way: enough to keep all threads at work while one waits for the disk, and 64 MiB.
enum { SLOTS_PER_JOB = 32, SLOTS_MAX = 128, COPY_BYTES_MAX = 256 << 20 };

// What one shard gave to a pack file before the file's other shards came.
typedef struct piece {
    q3_place place;
    uint32_t shard;
    q3_pack pack; // open
} piece;

// One pack file to write, or the piece of one.
typedef struct write_job {
    const q3_plan_file *file;
    uint32_t shard; // whose tensors these are, or Q3_WHOLE_FILE
    const q3_stored_tensor **tensors;
    uint32_t tensor_count;
    q3_pack_writer *writer; // between its first frame and its end
    uint64_t last_item;     // of the stream: its last frame
    uint64_t size;          // once it has its name
    q3_hash128 root;
} write_job;

// What an item of the stream is. A file is finished (synced, read back, renamed) by an item of its
// own, so that one thread can wait for the disk while the others go on. Such an item comes as many
// items after the file's last frame as there are slots: only then is it certain that the frame has
// been written. At the end of the stream, idle items fill that distance.
typedef enum item_kind { ITEM_FRAME, ITEM_FINISH, ITEM_IDLE } item_kind;

// One item on its way.
typedef struct frame_slot {
    item_kind kind;
    write_job *job;
    uint32_t tensor, frame; // in the job, in the tensor
    const q3_pack *source;  // the piece to take it from, or NULL: from its shard
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
    unsigned threads;
    write_job *jobs; // in the order of the source
    size_t job_count, job_capacity;
    size_t job; // the next frame to read
    uint32_t tensor, frame;
    size_t unfinished; // the first job whose end has not been asked for
    uint64_t items;    // of the stream so far
    size_t slots;
    piece *pieces; // that tensors of shards no longer there are taken from
    size_t piece_count, piece_capacity;
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
        if (from->unknown)
            continue; // pack.json has to wait for its shard
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

// What tells the source from another one: its index, or the header of its only shard. The shards of
// an index come and go; their headers are compared one by one as they are kept.
static bool hash_source(const extraction *x, q3_hash128 *hash, q3_error *err)
{
    const q3_checkpoint *checkpoint = &x->plan->checkpoint;
    char *path = q3_checkpoint_path(checkpoint, "model.safetensors.index.json", err);
    char *data = NULL;
    size_t size;
    bool ok = path != NULL;
    *hash = checkpoint->shards[0].header_hash;
    if (ok && q3_path_exists(path)) {
        ok = q3_file_load(path, COPY_BYTES_MAX, &data, &size, err);
        if (ok)
            *hash = q3_hash128_of(data, size);
    }
    free(data);
    free(path);
    return ok;
}

// Lines that say what is asked for, and from what: two requests are the same when these are.
static char *describe_request(const extraction *x, q3_error *err)
{
    const q3_selection *selection = &x->options->selection;
    char hash[Q3_HASH_TEXT], *text = NULL;
    bool ok = append(&text, err, "codec %s\n", q3_codec_name(x->options->codec)) &&
              append(&text, err, "components %s\n", selection->components) &&
              append(&text, err, "layers %s\n", selection->layers ? selection->layers : "all") &&
              (selection->pool ? append(&text, err, "experts of pool %s\n",
                                        q3_hash128_text(q3_pool_hash(&x->plan->pool), hash))
                               : append(&text, err, "experts %s\n",
                                        selection->experts ? selection->experts : "all"));
    for (size_t i = 0; ok && i < x->set.copy_count; i++)
        ok = append(&text, err, "copy %s %s\n", x->set.copies[i].name,
                    q3_hash128_text(x->set.copies[i].hash, hash));
    if (ok) {
        q3_hash128 source;
        ok = hash_source(x, &source, err) &&
             append(&text, err, "source %s\n", q3_hash128_text(source, hash));
    }
    if (!ok) {
        free(text);
        text = NULL;
    }
    return text;
}

// ---- the stream of frames ----

// The piece of a file that has a shard's tensors, or NULL.
static const q3_pack *find_piece(const extraction *x, const q3_place *place, uint32_t shard)
{
    for (size_t i = 0; i < x->piece_count; i++)
        if (x->pieces[i].shard == shard && q3_place_compare(&x->pieces[i].place, place) == 0)
            return &x->pieces[i].pack;
    return NULL;
}

static bool take_frame(extraction *x, frame_slot *slot, q3_error *err)
{
    if (!slot->raw) {
        slot->raw = q3_alloc(2, Q3_FRAME_BYTES, err);
        if (!slot->raw)
            return false;
        slot->stored = slot->raw + Q3_FRAME_BYTES;
    }
    write_job *job = &x->jobs[x->job];
    const q3_stored_tensor *from = job->tensors[x->tensor];
    const q3_tensor *tensor = &from->tensor;
    slot->kind = ITEM_FRAME;
    slot->job = job;
    slot->tensor = x->tensor;
    slot->frame = x->frame;
    slot->source = x->plan->checkpoint.shards[from->shard].present
                       ? NULL
                       : find_piece(x, &job->file->place, from->shard);
    const uint64_t left = tensor->bytes - (uint64_t)x->frame * q3_frame_cut(tensor);
    slot->raw_bytes = left < q3_frame_cut(tensor) ? (size_t)left : q3_frame_cut(tensor);
    if (++x->frame == q3_frame_count(tensor)) {
        x->frame = 0;
        if (++x->tensor == job->tensor_count) {
            x->tensor = 0;
            job->last_item = x->items;
            x->job++;
        }
    }
    return true;
}

static int next_item(void *context, void *slot_memory, q3_error *err)
{
    extraction *x = context;
    frame_slot *slot = slot_memory;
    if (x->unfinished < x->job && x->items >= x->jobs[x->unfinished].last_item + x->slots) {
        slot->kind = ITEM_FINISH;
        slot->job = &x->jobs[x->unfinished++];
    } else if (x->job < x->job_count) {
        if (!take_frame(x, slot, err))
            return -1;
    } else if (x->unfinished < x->job_count) {
        slot->kind = ITEM_IDLE;
    } else {
        return 0;
    }
    x->items++;
    return 1;
}

// Reads a frame's raw bytes, from the shard or from a piece.
static bool read_frame(extraction *x, frame_slot *slot, q3_coder *coder, q3_error *err)
{
    const q3_stored_tensor *from = slot->job->tensors[slot->tensor];
    if (!slot->source) {
        const uint64_t at = from->offset + (uint64_t)slot->frame * q3_frame_cut(&from->tensor);
        return q3_file_read(&x->shards[from->shard], at, slot->raw, slot->raw_bytes, err);
    }
    const q3_pack_tensor *kept = q3_pack_find(slot->source, from->tensor.name);
    if (!kept || kept->frame_bytes != q3_frame_cut(&from->tensor) ||
        kept->tensor.bytes != from->tensor.bytes)
        return q3_fail(err, Q3_MALFORMED, "%s: is not a piece with %s", slot->source->file.path,
                       from->tensor.name);
    return q3_pack_read_frame(slot->source, kept, slot->frame, coder, slot->stored, slot->raw, err);
}

static bool encode_frame(extraction *x, frame_slot *slot, q3_coder *coder, q3_error *err)
{
    const q3_tensor *tensor = &slot->job->tensors[slot->tensor]->tensor;
    const uint64_t row = tensor->rank > 1 ? tensor->shape[tensor->rank - 1] : 0;
    slot->codec = x->options->codec;
    if (!read_frame(x, slot, coder, err) ||
        !q3_codec_encode(coder, &slot->codec, tensor->dtype, row, slot->raw, slot->raw_bytes,
                         slot->stored, &slot->stored_bytes, err))
        return false;
    slot->hash = q3_hash64(slot->stored, slot->stored_bytes);
    return true;
}

// Gives a file whose frames are all written its name.
static bool publish_file(write_job *job, q3_error *err)
{
    q3_pack_writer *writer = job->writer;
    job->writer = NULL;
    return q3_pack_writer_publish(writer, &job->size, &job->root, err);
}

static bool work_item(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    extraction *x = context;
    frame_slot *slot = slot_memory;
    switch (slot->kind) {
    case ITEM_FRAME:
        return encode_frame(x, slot, x->coders[worker], err);
    case ITEM_FINISH:
        return publish_file(slot->job, err);
    case ITEM_IDLE:
        break;
    }
    return true;
}

// The path of a job's file, to free().
static char *job_path(const extraction *x, const write_job *job, q3_error *err)
{
    char name[Q3_PIECE_PATH_MAX];
    if (job->shard == Q3_WHOLE_FILE)
        q3_place_path(&job->file->place, name);
    else
        q3_piece_path(&job->file->place, job->shard, name);
    return q3_set_path(&x->set, name, err);
}

static bool begin_file(extraction *x, write_job *job, q3_error *err)
{
    q3_tensor *tensors = q3_alloc(job->tensor_count, sizeof *tensors, err);
    char *path = tensors ? job_path(x, job, err) : NULL;
    for (uint32_t i = 0; path && i < job->tensor_count; i++)
        tensors[i] = job->tensors[i]->tensor;
    const bool ok =
        path && q3_pack_writer_create(path, tensors, job->tensor_count, &job->writer, err);
    free(path);
    free(tensors);
    return ok;
}

static bool write_frame(extraction *x, const frame_slot *slot, q3_error *err)
{
    write_job *job = slot->job;
    if (slot->tensor == 0 && slot->frame == 0 && !begin_file(x, job, err))
        return false;
    if (!q3_pack_writer_add(job->writer, slot->codec, slot->raw, slot->raw_bytes, slot->stored,
                            slot->stored_bytes, slot->hash, err))
        return false;
    char path[Q3_PLACE_PATH_MAX];
    q3_progress_add(&x->progress, slot->raw_bytes, q3_place_path(&job->file->place, path));
    return true;
}

static bool record_file(extraction *x, const write_job *job, q3_error *err)
{
    if (job->shard == Q3_WHOLE_FILE) {
        q3_set_file *entry = &x->set.files[job->file - x->plan->files];
        entry->size = job->size;
        entry->root = job->root;
    }
    return q3_journal_record(x->journal, &job->file->place, job->shard, job->size, job->root, err);
}

static bool commit_item(void *context, void *slot_memory, unsigned worker, q3_error *err)
{
    (void)worker;
    extraction *x = context;
    const frame_slot *slot = slot_memory;
    switch (slot->kind) {
    case ITEM_FRAME:
        return write_frame(x, slot, err);
    case ITEM_FINISH:
        return record_file(x, slot->job, err);
    case ITEM_IDLE:
        break;
    }
    return true;
}

static void release_slot(void *context, void *slot_memory)
{
    (void)context;
    free(((frame_slot *)slot_memory)->raw);
}

// ---- the whole ----

// Is there room? What compresses takes about two thirds of its bytes; files take whole pages
// beside.
static bool check_space(const extraction *x, uint64_t bytes, q3_error *err)
{
    return q3_directory_check_space(
        x->set.directory, x->options->codec == Q3_CODEC_RAW ? bytes : bytes / 100 * 66, err);
}

static int compare_source(const void *a, const void *b)
{
    const q3_stored_tensor *x = ((const write_job *)a)->tensors[0];
    const q3_stored_tensor *y = ((const write_job *)b)->tensors[0];
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

// Is the file that the journal calls finished there as it was?
static bool is_finished(const extraction *x, q3_set_file *entry)
{
    q3_pack pack;
    q3_error ignored;
    if (!q3_journal_find(x->journal, &entry->place, Q3_WHOLE_FILE, &entry->size, &entry->root) ||
        !q3_set_open_pack(&x->set, entry, &pack, &ignored))
        return false;
    q3_pack_close(&pack);
    return true;
}

// Opens the piece that a shard gave to a file, if an earlier run finished it. *found tells.
static bool open_piece(extraction *x, const q3_place *place, uint32_t shard, bool *found,
                       q3_error *err)
{
    uint64_t size;
    q3_hash128 root;
    *found = find_piece(x, place, shard) != NULL;
    if (*found || !q3_journal_find(x->journal, place, shard, &size, &root))
        return true;
    if (!q3_grow(&x->pieces, &x->piece_capacity, x->piece_count + 1, sizeof *x->pieces, err))
        return false;
    char name[Q3_PIECE_PATH_MAX];
    char *path = q3_set_path(&x->set, q3_piece_path(place, shard, name), err);
    if (!path)
        return false;
    piece *to = &x->pieces[x->piece_count];
    q3_error ignored;
    *to = (piece){.place = *place, .shard = shard};
    // One that is gone or damaged is made again from its shard, or the shard is asked for.
    *found = q3_pack_open(path, &to->pack, &ignored) && to->pack.size == size &&
             q3_hash128_equal(to->pack.root, root);
    if (*found)
        x->piece_count++;
    else
        q3_pack_close(&to->pack);
    free(path);
    return true;
}

// Adds a job for the tensors of a file, or for those of them that are in one shard.
static bool add_job(extraction *x, const q3_plan_file *file, uint32_t shard, q3_error *err)
{
    if (!q3_grow(&x->jobs, &x->job_capacity, x->job_count + 1, sizeof *x->jobs, err))
        return false;
    write_job *job = &x->jobs[x->job_count];
    *job = (write_job){.file = file, .shard = shard};
    job->tensors = q3_alloc(file->tensor_count, sizeof *job->tensors, err);
    if (!job->tensors)
        return false;
    x->job_count++;
    for (uint32_t i = 0; i < file->tensor_count; i++)
        if (file->tensors[i] && (shard == Q3_WHOLE_FILE || file->tensors[i]->shard == shard))
            job->tensors[job->tensor_count++] = file->tensors[i];
    return true;
}

// Decides what of a file can be written now: all of it, or pieces from the shards that are there.
static bool plan_jobs(extraction *x, const q3_plan_file *file, q3_error *err)
{
    const q3_checkpoint *checkpoint = &x->plan->checkpoint;
    const q3_stored_tensor *lost = NULL;
    for (uint32_t i = 0; i < file->tensor_count; i++) {
        const q3_stored_tensor *tensor = file->tensors[i];
        bool found = tensor && checkpoint->shards[tensor->shard].present;
        if (tensor && !found && !open_piece(x, &file->place, tensor->shard, &found, err))
            return false;
        if (tensor && !found)
            lost = tensor;
    }
    if (!lost && !file->unknown)
        return add_job(x, file, Q3_WHOLE_FILE, err);
    if (lost && !x->options->selection.partial)
        return q3_fail(
            err, Q3_INCOMPLETE, "%s/%s: the shard is absent, but the index puts %s there",
            checkpoint->directory, checkpoint->shards[lost->shard].name, lost->tensor.name);
    x->result->waiting_files++;
    for (uint32_t i = 0; i < file->tensor_count; i++) {
        const q3_stored_tensor *tensor = file->tensors[i];
        bool done = !tensor || !checkpoint->shards[tensor->shard].present;
        for (uint32_t k = 0; k < i && !done; k++)
            done = file->tensors[k] && file->tensors[k]->shard == tensor->shard;
        if (!done && !open_piece(x, &file->place, tensor->shard, &done, err))
            return false;
        if (!done && !add_job(x, file, tensor->shard, err))
            return false;
    }
    return true;
}

// Plans what is still to be written, in the order of its bytes in the source.
static bool order_jobs(extraction *x, q3_error *err)
{
    const q3_plan *plan = x->plan;
    for (size_t i = 0; i < plan->file_count; i++) {
        if (!plan->files[i].unknown && is_finished(x, &x->set.files[i])) {
            x->result->resumed_files++;
            continue;
        }
        if (!plan_jobs(x, &plan->files[i], err))
            return false;
    }
    if (x->job_count)
        qsort(x->jobs, x->job_count, sizeof *x->jobs, compare_source);
    uint64_t bytes = 0;
    for (size_t i = 0; i < x->job_count; i++)
        for (uint32_t t = 0; t < x->jobs[i].tensor_count; t++)
            bytes += x->jobs[i].tensors[t]->tensor.bytes;
    q3_progress_begin(&x->progress, "extracting", bytes, x->options->quiet);
    return check_space(x, bytes, err);
}

static bool open_shards(extraction *x, q3_error *err)
{
    const q3_checkpoint *checkpoint = &x->plan->checkpoint;
    x->shards = q3_alloc_zeroed(checkpoint->shard_count, sizeof *x->shards, err);
    if (!x->shards)
        return false;
    for (size_t i = 0; i < x->job_count; i++)
        for (uint32_t t = 0; t < x->jobs[i].tensor_count; t++) {
            const uint32_t shard = x->jobs[i].tensors[t]->shard;
            if (checkpoint->shards[shard].present && !x->shards[shard].path &&
                !q3_checkpoint_open_shard(checkpoint, shard, &x->shards[shard], err))
                return false;
        }
    return true;
}

// Keeps the headers of the shards that are there, for runs after they have been deleted.
static bool keep_headers(extraction *x, q3_error *err)
{
    const q3_checkpoint *checkpoint = &x->plan->checkpoint;
    char *headers = q3_journal_headers(x->set.directory, err);
    bool ok = headers && q3_directory_create(headers, err);
    for (uint32_t i = 0; ok && i < checkpoint->shard_count; i++)
        if (checkpoint->shards[i].present)
            ok = q3_shard_save_header(checkpoint, i, headers, err);
    ok = ok && q3_directory_sync(headers, err);
    free(headers);
    return ok;
}

static bool remove_pieces(const extraction *x, q3_error *err)
{
    bool ok = true;
    for (size_t i = 0; ok && i < x->plan->file_count; i++)
        for (uint32_t shard = 0; ok && shard < x->set.shard_count; shard++) {
            uint64_t size;
            q3_hash128 root;
            const q3_place *place = &x->plan->files[i].place;
            if (!q3_journal_find(x->journal, place, shard, &size, &root))
                continue;
            char name[Q3_PIECE_PATH_MAX];
            char *path = q3_set_path(&x->set, q3_piece_path(place, shard, name), err);
            ok = path && (unlink(path) == 0 || errno == ENOENT ||
                          q3_fail_errno(err, "%s: cannot remove", path));
            free(path);
        }
    return ok;
}

// Makes the directories of all pack files, or syncs them, those above them included.
static bool each_directory(extraction *x, bool (*action)(const char *path, q3_error *err),
                           q3_error *err)
{
    const q3_plan *plan = x->plan;
    char previous[Q3_PLACE_PATH_MAX] = "", name[Q3_PLACE_PATH_MAX];
    for (size_t i = 0; i < plan->file_count; i++) {
        q3_place_path(&plan->files[i].place, name);
        for (char *slash = strchr(name, '/'); slash; slash = strchr(slash + 1, '/')) {
            if (strncmp(previous, name, (size_t)(slash - name) + 1) == 0)
                continue;
            *slash = 0;
            char *path = q3_set_path(&x->set, name, err);
            *slash = '/';
            const bool ok = path && action(path, err);
            free(path);
            if (!ok)
                return false;
        }
        memcpy(previous, name, sizeof previous);
    }
    return action(x->set.directory, err);
}

static bool stream_frames(extraction *x, q3_error *err)
{
    q3_workers *workers;
    x->threads = x->options->jobs;
    x->coders = q3_alloc_zeroed(x->threads, sizeof *x->coders, err);
    if (!x->coders || !q3_workers_create(x->threads, &workers, err))
        return false;
    bool ok = true;
    for (unsigned i = 0; ok && i < x->threads; i++)
        ok = (x->coders[i] = q3_coder_create(err)) != NULL;
    x->slots = x->threads < SLOTS_MAX / SLOTS_PER_JOB ? x->threads * SLOTS_PER_JOB : SLOTS_MAX;
    const q3_stream stream = {
        .context = x,
        .slots = x->slots,
        .slot_bytes = sizeof(frame_slot),
        .next = next_item,
        .work = work_item,
        .commit = commit_item,
        .release = release_slot,
    };
    ok = ok && q3_workers_stream(workers, &stream, err);
    q3_progress_end(&x->progress);
    for (size_t i = 0; i < x->job_count; i++)
        q3_pack_writer_abandon(x->jobs[i].writer);
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
    ok = ok && keep_headers(&x, err) && order_jobs(&x, err) && open_shards(&x, err) &&
         each_directory(&x, q3_directory_create, err) && stream_frames(&x, err) &&
         each_directory(&x, q3_directory_sync, err);
    // From here on shards and pieces may go: what is finished must be known after any crash.
    ok = ok && q3_journal_sync(x.journal, err);
    const bool whole = ok && result->waiting_files == 0;
    if (whole)
        ok = write_copies(&x, err) && remove_pieces(&x, err) && q3_set_write(&x.set, err);
    if (ok && whole)
        ok = q3_journal_finish(x.journal, err);
    else
        q3_journal_close(x.journal);
    if (ok)
        summarize(&x);
    result->seconds = q3_now() - started;
    for (unsigned i = 0; x.coders && i < x.threads; i++)
        q3_coder_destroy(x.coders[i]);
    for (uint32_t i = 0; x.shards && i < plan->checkpoint.shard_count; i++)
        q3_file_close(&x.shards[i]);
    for (size_t i = 0; i < x.job_count; i++)
        free(x.jobs[i].tensors);
    for (size_t i = 0; i < x.piece_count; i++)
        q3_pack_close(&x.pieces[i].pack);
    free(x.pieces);
    free(x.jobs);
    free(x.coders);
    free(x.shards);
    q3_set_close(&x.set);
    return ok;
}

bool q3_extract(const q3_extract_options *options, q3_extract_result *result, q3_error *err)
{
    q3_plan plan;
    bool finished;
    *result = (q3_extract_result){0};
    if (!q3_journal_tidy(options->pack_directory, &finished, err))
        return false;
    if (finished)
        return true;
    char *headers = q3_journal_headers(options->pack_directory, err);
    bool ok =
        headers && q3_plan_make(options->model_directory, headers, &options->selection, &plan, err);
    free(headers);
    if (!ok)
        return false;
    ok = q3_extract_plan(&plan, options, result, err);
    q3_plan_free(&plan);
    return ok;
}
