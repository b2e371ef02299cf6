// SPDX-License-Identifier: Apache-2.0
#include "packs.h"

#include "base/progress.h"
#include "base/workers.h"
#include "checkpoint.h"
#include "set.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SLOTS_PER_THREAD = 4, COPY_BYTES_MAX = 256 << 20 };

// What a run of q3-extract that is ended leaves behind.
static const char part_suffix[] = ".part", journal_name[] = "extract.journal";

// The checkpoint that the pack was made from.
typedef struct source {
    q3_checkpoint checkpoint;
    q3_file *shards; // open where the pack needs them and they are sound
} source;

// One pack file under way. It is opened by `next` and closed when its last item is committed.
typedef struct reading {
    size_t number; // of the file in the set
    const q3_set_file *file;
    char path[Q3_PLACE_PATH_MAX]; // inside the directory
    q3_pack pack;
    bool opened;
    bool meant;                       // it is the file that pack.json means
    q3_error problem;                 // when it is not opened or not meant
    const q3_stored_tensor **sources; // for each tensor, or NULL: nothing to compare with
} reading;

typedef enum item_kind {
    ITEM_FILE,    // a pack file has been opened, or could not be
    ITEM_FRAME,   // one frame of a tensor
    ITEM_NOTHING, // a tensor without bytes
    ITEM_PADDING, // what lies between the frames; the last of a file
} item_kind;

typedef struct item {
    item_kind kind;
    reading *reading;
    uint32_t tensor, frame;
    uint8_t *stored, *raw, *original;
    size_t stored_capacity, raw_capacity, original_capacity;
    // What the work found.
    bool sound, comparable;
    q3_error problem, source_problem;
    uint64_t differing, first; // bytes that differ from the source, and where the first lies
    uint8_t expected, found;   // its values
} item;

typedef struct check {
    const q3_set *set;
    const q3_packs_options *options;
    q3_findings *report;
    q3_inventory inventory; // of the copied configuration
    source *source;         // NULL without one
    q3_coder **coders;      // one a worker
    q3_hasher *hasher;
    bool *seen; // by ordinal of the inventory
    // Where `next` stands.
    size_t next_file;
    reading **readings; // for each file of the set, NULL unless under way
    reading *current;
    uint32_t next_tensor, next_frame;
    // The tensor whose frames are being committed.
    bool tensor_sound;
    uint64_t differing, first;
    uint8_t expected, found;
    // What pack.json says a component holds is compared with these.
    q3_set_component held[Q3_COMPONENTS];
    bool all_sound[Q3_COMPONENTS];
    q3_progress progress;
} check;

static q3_finding_kind kind_of(const q3_error *problem)
{
    return problem->code == Q3_INCOMPLETE ? Q3_FINDING_ABSENT
           : problem->code == Q3_FAILED   ? Q3_FINDING_UNREADABLE
                                          : Q3_FINDING_DAMAGED;
}

static const char *pattern_name(const check *c, const char *tensor)
{
    uint64_t ordinal;
    const q3_pattern *pattern = q3_inventory_find(&c->inventory, tensor, &ordinal);
    return pattern ? pattern->name : NULL;
}

// ---- the stream: opening files and handing out frames ----

static bool open_next(check *c, q3_error *err)
{
    const size_t number = c->next_file++;
    const q3_set_file *file = &c->set->files[number];
    reading *r = q3_alloc_zeroed(1, sizeof *r, err);
    if (!r)
        return false;
    c->readings[number] = c->current = r;
    c->next_tensor = c->next_frame = 0;
    r->number = number;
    r->file = file;
    r->pack.file.fd = -1;
    q3_place_path(&file->place, r->path);
    r->opened = r->meant = q3_set_open_pack(c->set, file, &r->pack, &r->problem);
    if (!r->opened && r->problem.code == Q3_MALFORMED) {
        // Perhaps a sound file, but another one. What it says of itself can be checked then.
        q3_error ignored;
        char *path = q3_set_path(c->set, r->path, err);
        if (!path)
            return false;
        r->opened = q3_pack_open(path, &r->pack, &ignored);
        free(path);
    }
    if (!r->opened || !c->source)
        return true;
    r->sources = q3_alloc_zeroed(r->pack.tensor_count, sizeof *r->sources, err);
    for (uint32_t t = 0; r->sources && t < r->pack.tensor_count; t++) {
        const q3_tensor *tensor = &r->pack.tensors[t].tensor;
        const q3_stored_tensor *stored = q3_checkpoint_find(&c->source->checkpoint, tensor->name);
        if (stored && stored->tensor.dtype == tensor->dtype &&
            q3_shape_equal(stored->tensor.rank, stored->tensor.shape, tensor->rank,
                           tensor->shape) &&
            c->source->shards[stored->shard].path)
            r->sources[t] = stored;
    }
    return r->sources != NULL;
}

static void close_reading(check *c, size_t number)
{
    reading *r = c->readings[number];
    if (!r)
        return;
    c->readings[number] = NULL;
    q3_pack_close(&r->pack);
    free(r->sources);
    free(r);
}

static int next_item(void *context, void *slot, q3_error *err)
{
    check *c = context;
    item *next = slot;
    if (!c->current) {
        if (c->next_file == c->set->file_count)
            return 0;
        if (!open_next(c, err))
            return -1;
        next->kind = ITEM_FILE;
        next->reading = c->current;
        if (!c->current->opened)
            c->current = NULL;
        return 1;
    }
    reading *r = c->current;
    next->reading = r;
    if (c->next_tensor == r->pack.tensor_count) {
        next->kind = ITEM_PADDING;
        c->current = NULL;
        return 1;
    }
    const q3_pack_tensor *tensor = &r->pack.tensors[c->next_tensor];
    next->tensor = c->next_tensor;
    next->frame = c->next_frame++;
    next->kind = tensor->frame_count ? ITEM_FRAME : ITEM_NOTHING;
    if (c->next_frame >= tensor->frame_count) {
        c->next_tensor++;
        c->next_frame = 0;
    }
    return 1;
}

// ---- the stream: reading and comparing, on all threads ----

static void compare_bytes(item *at, size_t size)
{
    at->differing = 0;
    if (memcmp(at->raw, at->original, size) == 0)
        return;
    for (size_t i = 0; i < size; i++)
        if (at->raw[i] != at->original[i] && at->differing++ == 0) {
            at->first = i;
            at->expected = at->original[i];
            at->found = at->raw[i];
        }
}

static bool work_item(void *context, void *slot, unsigned worker, q3_error *err)
{
    const check *c = context;
    item *at = slot;
    reading *r = at->reading;
    at->comparable = false;
    if (at->kind == ITEM_PADDING)
        at->sound = q3_pack_check_padding(&r->pack, &at->problem);
    if (at->kind != ITEM_FRAME)
        return true;
    const q3_pack_tensor *tensor = &r->pack.tensors[at->tensor];
    const q3_frame *frame = &r->pack.frames[tensor->first_frame + at->frame];
    if (!q3_grow(&at->stored, &at->stored_capacity, frame->stored_bytes, 1, err) ||
        !q3_grow(&at->raw, &at->raw_capacity, frame->raw_bytes, 1, err))
        return false;
    at->sound = q3_pack_read_frame(&r->pack, tensor, at->frame, c->coders[worker], at->stored,
                                   at->raw, &at->problem);
    const q3_stored_tensor *original = r->sources ? r->sources[at->tensor] : NULL;
    if (!at->sound || !original)
        return true;
    if (!q3_grow(&at->original, &at->original_capacity, frame->raw_bytes, 1, err))
        return false;
    at->comparable = true;
    at->source_problem.code = Q3_DONE;
    if (q3_file_read(&c->source->shards[original->shard],
                     original->offset + (uint64_t)at->frame * tensor->frame_bytes, at->original,
                     frame->raw_bytes, &at->source_problem))
        compare_bytes(at, frame->raw_bytes);
    return true;
}

// ---- the stream: findings, in order ----

static bool commit_place(check *c, const reading *r, const q3_tensor *tensor, q3_error *err)
{
    uint64_t ordinal;
    char path[Q3_PLACE_PATH_MAX];
    const q3_pattern *pattern = q3_inventory_find(&c->inventory, tensor->name, &ordinal);
    q3_finding finding = {.kind = Q3_FINDING_INDEX, .tensor = tensor->name, .file = r->path};
    if (!pattern) {
        finding.kind = Q3_FINDING_UNKNOWN;
        return q3_findings_add(c->report, &finding, err,
                               "%s: holds %s, which the model of config.json does not have",
                               r->path, tensor->name);
    }
    finding.group = pattern->name;
    if (c->seen[ordinal]) {
        finding.kind = Q3_FINDING_DUPLICATE;
        return q3_findings_add(c->report, &finding, err, "%s: holds %s, which has been seen before",
                               r->path, tensor->name);
    }
    c->seen[ordinal] = true;
    const q3_place place = q3_pattern_place(pattern, ordinal);
    if (q3_place_compare(&place, &r->file->place) == 0)
        return true;
    finding.expected = q3_place_path(&place, path);
    finding.found = r->path;
    return q3_findings_add(c->report, &finding, err, "%s: holds %s, which belongs in %s", r->path,
                           tensor->name, path);
}

// Is the tensor in the source, alike, and where pack.json says?
static bool commit_source(check *c, const reading *r, uint32_t number, q3_error *err)
{
    const q3_tensor *tensor = &r->pack.tensors[number].tensor;
    const q3_checkpoint *checkpoint = &c->source->checkpoint;
    const q3_stored_tensor *stored = q3_checkpoint_find(checkpoint, tensor->name);
    char expected[Q3_SHAPE_TEXT_MAX + Q3_NAME_MAX], found[Q3_SHAPE_TEXT_MAX + Q3_NAME_MAX];
    char text[Q3_SHAPE_TEXT_MAX];
    q3_finding finding = {.kind = Q3_FINDING_SOURCE,
                          .tensor = tensor->name,
                          .file = r->path,
                          .group = pattern_name(c, tensor->name)};
    if (!stored) {
        const q3_listed_tensor *listed = q3_checkpoint_listed(checkpoint, tensor->name);
        const q3_shard *shard = listed ? &checkpoint->shards[listed->shard] : NULL;
        return q3_findings_add(c->report, &finding, err,
                               "%s: %s: the source does not have it: %s %s", r->path, tensor->name,
                               shard ? shard->name : "its index",
                               !shard            ? "does not list it"
                               : !shard->present ? "is absent"
                               : !shard->read    ? "has no sound header"
                                                 : "lacks it");
    }
    finding.expected = expected;
    finding.found = found;
    if (stored->tensor.dtype != tensor->dtype ||
        !q3_shape_equal(stored->tensor.rank, stored->tensor.shape, tensor->rank, tensor->shape)) {
        snprintf(expected, sizeof expected, "%s %s", q3_dtype_name(stored->tensor.dtype),
                 q3_shape_text(stored->tensor.rank, stored->tensor.shape, text));
        snprintf(found, sizeof found, "%s %s", q3_dtype_name(tensor->dtype),
                 q3_shape_text(tensor->rank, tensor->shape, text));
        return q3_findings_add(c->report, &finding, err, "%s: %s: the source has %s, found %s",
                               r->path, tensor->name, expected, found);
    }
    if (!r->meant)
        return true;
    const q3_set_tensor *claim = &r->file->tensors[number];
    const char *shard = checkpoint->shards[stored->shard].name;
    if (claim->offset == stored->offset && strcmp(c->set->shards[claim->shard].name, shard) == 0)
        return true;
    snprintf(expected, sizeof expected, "%.255s at %" PRIu64, shard, stored->offset);
    snprintf(found, sizeof found, "%.255s at %" PRIu64, c->set->shards[claim->shard].name,
             claim->offset);
    return q3_findings_add(c->report, &finding, err,
                           "%s: %s: the source has it in %s, pack.json says %s", r->path,
                           tensor->name, expected, found);
}

static bool begin_tensor(check *c, const item *at, q3_error *err)
{
    const reading *r = at->reading;
    const q3_tensor *tensor = &r->pack.tensors[at->tensor].tensor;
    q3_hasher_reset(c->hasher);
    c->tensor_sound = true;
    c->differing = 0;
    c->held[r->file->place.component].tensors++;
    c->held[r->file->place.component].bytes += tensor->bytes;
    return commit_place(c, r, tensor, err) && (!c->source || commit_source(c, r, at->tensor, err));
}

static bool end_tensor(check *c, const item *at, q3_error *err)
{
    const reading *r = at->reading;
    const q3_pack_tensor *entry = &r->pack.tensors[at->tensor];
    const char *name = entry->tensor.name;
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    q3_finding finding = {.kind = Q3_FINDING_DAMAGED,
                          .tensor = name,
                          .file = r->path,
                          .expected = expected,
                          .found = found,
                          .group = pattern_name(c, name)};
    if (c->tensor_sound) {
        const q3_hash128 hash = q3_hasher_finish(c->hasher);
        q3_hash128_text(entry->hash, expected);
        q3_hash128_text(hash, found);
        if (!q3_hash128_equal(hash, entry->hash) &&
            !q3_findings_add(c->report, &finding, err,
                             "%s: %s: the tensor is damaged: expected hash %s, found %s",
                             r->pack.file.path, name, expected, found))
            return false;
    }
    if (c->differing == 0)
        return true;
    finding.kind = Q3_FINDING_SOURCE;
    snprintf(expected, sizeof expected, "0x%02x", c->expected);
    snprintf(found, sizeof found, "0x%02x", c->found);
    return q3_findings_add(
        c->report, &finding, err,
        "%s: %s: %" PRIu64 " of %" PRIu64 " bytes differ from the source, the first at %" PRIu64
        ": expected %s, found %s",
        r->path, name, c->differing, entry->tensor.bytes, c->first, expected, found);
}

static bool commit_frame(check *c, const item *at, q3_error *err)
{
    const reading *r = at->reading;
    const q3_pack_tensor *entry = &r->pack.tensors[at->tensor];
    const q3_frame *frame = &r->pack.frames[entry->first_frame + at->frame];
    if (!at->sound) {
        c->tensor_sound = false;
        return q3_findings_add(c->report,
                               &(q3_finding){.kind = kind_of(&at->problem),
                                             .tensor = entry->tensor.name,
                                             .file = r->path,
                                             .group = pattern_name(c, entry->tensor.name)},
                               err, "%s", at->problem.message);
    }
    q3_hasher_update(c->hasher, at->raw, frame->raw_bytes);
    if (!at->comparable)
        return true;
    if (at->source_problem.code != Q3_DONE)
        return q3_findings_add(c->report,
                               &(q3_finding){.kind = Q3_FINDING_UNREADABLE,
                                             .tensor = entry->tensor.name,
                                             .file = r->path},
                               err, "%s", at->source_problem.message);
    if (at->differing && c->differing == 0) {
        c->first = (uint64_t)at->frame * entry->frame_bytes + at->first;
        c->expected = at->expected;
        c->found = at->found;
    }
    c->differing += at->differing;
    return true;
}

static bool commit_file(check *c, const reading *r, q3_error *err)
{
    if (!r->meant)
        c->all_sound[r->file->place.component] = false;
    if (!r->opened)
        q3_progress_add(&c->progress, r->file->size, r->path);
    return r->meant ||
           q3_findings_add(c->report, &(q3_finding){.kind = kind_of(&r->problem), .file = r->path},
                           err, "%s", r->problem.message);
}

static bool commit_item(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    check *c = context;
    item *at = slot;
    reading *r = at->reading;
    bool ok = true;
    if (at->kind == ITEM_FILE) {
        ok = commit_file(c, r, err);
    } else if (at->kind == ITEM_PADDING) {
        ok = at->sound ||
             q3_findings_add(c->report,
                             &(q3_finding){.kind = kind_of(&at->problem), .file = r->path}, err,
                             "%s", at->problem.message);
        uint64_t frames = 0;
        for (uint32_t i = 0; i < r->pack.frame_count; i++)
            frames += r->pack.frames[i].stored_bytes;
        q3_progress_add(&c->progress, r->pack.size - frames, r->path);
    } else {
        const q3_pack_tensor *entry = &r->pack.tensors[at->tensor];
        if (at->frame == 0)
            ok = begin_tensor(c, at, err);
        if (at->kind == ITEM_FRAME) {
            ok = ok && commit_frame(c, at, err);
            q3_progress_add(&c->progress,
                            r->pack.frames[entry->first_frame + at->frame].stored_bytes, r->path);
        }
        if (at->frame + 1 >= entry->frame_count)
            ok = ok && end_tensor(c, at, err);
    }
    if (at->kind == ITEM_PADDING || (at->kind == ITEM_FILE && !r->opened))
        close_reading(c, r->number);
    return ok;
}

static void release_item(void *context, void *slot)
{
    (void)context;
    item *at = slot;
    free(at->stored);
    free(at->raw);
    free(at->original);
}

static bool check_files(check *c, q3_workers *workers, q3_error *err)
{
    uint64_t total = 0;
    const unsigned threads = q3_workers_count(workers);
    for (size_t i = 0; i < c->set->file_count; i++)
        total += c->set->files[i].size;
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        c->all_sound[i] = true;
    c->coders = q3_alloc_zeroed(threads, sizeof *c->coders, err);
    bool ok = c->coders &&
              (c->readings = q3_alloc_zeroed(c->set->file_count, sizeof *c->readings, err)) &&
              (c->hasher = q3_hasher_create(err)) &&
              (c->seen = q3_alloc_zeroed((size_t)c->inventory.tensors, sizeof *c->seen, err));
    for (unsigned i = 0; ok && i < threads; i++)
        ok = (c->coders[i] = q3_coder_create(err)) != NULL;
    if (ok) {
        q3_progress_begin(&c->progress, "verifying", total, c->options->quiet);
        ok = q3_workers_stream(workers,
                               &(q3_stream){.context = c,
                                            .slots = (size_t)SLOTS_PER_THREAD * threads,
                                            .slot_bytes = sizeof(item),
                                            .next = next_item,
                                            .work = work_item,
                                            .commit = commit_item,
                                            .release = release_item},
                               err);
        q3_progress_end(&c->progress);
    }
    for (unsigned i = 0; c->coders && i < threads; i++)
        q3_coder_destroy(c->coders[i]);
    for (size_t i = 0; c->readings && i < c->set->file_count; i++)
        close_reading(c, i);
    free(c->readings);
    free(c->coders);
    free(c->seen);
    q3_hasher_destroy(c->hasher);
    return ok;
}

// ---- what pack.json says of the components ----

static bool check_count(check *c, const char *component, const char *unit, const char *where,
                        uint64_t expected, uint64_t found, q3_error *err)
{
    char wanted[24], actual[24];
    if (expected == found)
        return true;
    snprintf(wanted, sizeof wanted, "%" PRIu64, expected);
    snprintf(actual, sizeof actual, "%" PRIu64, found);
    return q3_findings_add(
        c->report,
        &(q3_finding){
            .kind = Q3_FINDING_INDEX, .file = "pack.json", .expected = wanted, .found = actual},
        err, "pack.json: component %s: expected %s %s %s, found %s", component, wanted, unit, where,
        actual);
}

static bool check_components(check *c, q3_error *err)
{
    q3_set_component whole[Q3_COMPONENTS] = {0};
    for (size_t i = 0; i < c->inventory.pattern_count; i++) {
        const q3_pattern *pattern = &c->inventory.patterns[i];
        whole[pattern->component].expected_tensors += pattern->count;
        whole[pattern->component].expected_bytes += pattern->count * pattern->bytes;
    }
    for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
        const q3_set_component *stated = &c->set->components[i];
        const char *name = q3_component_name((q3_component)i);
        if (!check_count(c, name, "tensors", "in the whole of it", whole[i].expected_tensors,
                         stated->expected_tensors, err) ||
            !check_count(c, name, "bytes", "in the whole of it", whole[i].expected_bytes,
                         stated->expected_bytes, err))
            return false;
        // With a damaged file the sums say nothing new.
        if (c->all_sound[i] && (!check_count(c, name, "tensors", "as in the pack files",
                                             c->held[i].tensors, stated->tensors, err) ||
                                !check_count(c, name, "bytes", "as in the pack files",
                                             c->held[i].bytes, stated->bytes, err)))
            return false;
    }
    return true;
}

// ---- copies ----

// The size and hash of a file against what is expected of it.
static bool check_copy(check *c, const char *path, const q3_set_copy *copy, bool is_source,
                       q3_error *err)
{
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT], *text;
    size_t size;
    q3_error problem;
    q3_finding finding = {.kind = is_source ? Q3_FINDING_SOURCE : Q3_FINDING_DAMAGED,
                          .file = copy->name,
                          .expected = expected,
                          .found = found};
    q3_hash128_text(copy->hash, expected);
    if (!q3_file_load(path, COPY_BYTES_MAX, &text, &size, &problem)) {
        finding.found = NULL;
        if (!q3_path_exists(path)) {
            if (!is_source)
                finding.kind = Q3_FINDING_ABSENT;
            return q3_findings_add(c->report, &finding, err, "%s: listed in pack.json, but absent",
                                   path);
        }
        finding.kind = kind_of(&problem);
        return q3_findings_add(c->report, &finding, err, "%s", problem.message);
    }
    const q3_hash128 hash = q3_hash128_of(text, size);
    free(text);
    if (size == copy->size && q3_hash128_equal(hash, copy->hash))
        return true;
    q3_hash128_text(hash, found);
    return q3_findings_add(c->report, &finding, err,
                           "%s: pack.json expects %" PRIu64
                           " bytes with hash %s, found %zu with %s",
                           path, copy->size, expected, size, found);
}

static bool check_copies(check *c, q3_error *err)
{
    for (size_t i = 0; i < c->set->copy_count; i++) {
        const q3_set_copy *copy = &c->set->copies[i];
        char *path = q3_set_path(c->set, copy->name, err);
        bool ok = path && check_copy(c, path, copy, false, err);
        free(path);
        path = ok && c->source ? q3_checkpoint_path(&c->source->checkpoint, copy->name, err) : NULL;
        ok = ok && (!c->source || (path && check_copy(c, path, copy, true, err)));
        free(path);
        if (!ok)
            return false;
    }
    return true;
}

// ---- files that do not belong ----

typedef struct path_list {
    char **paths;
    size_t count, capacity;
} path_list;

// Takes over the path, NULL included.
static bool push_path(path_list *list, char *path, q3_error *err)
{
    if (path && q3_grow(&list->paths, &list->capacity, list->count + 1, sizeof *list->paths, err)) {
        list->paths[list->count++] = path;
        return true;
    }
    free(path);
    return false;
}

static void free_paths(path_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->paths[i]);
    free(list->paths);
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// Adds the entries of one directory, relative to the pack directory: to `folders` or to `files`.
static bool list_directory(check *c, const char *folder, path_list *folders, path_list *files,
                           q3_error *err)
{
    char *full = q3_set_path(c->set, folder, err);
    if (!full)
        return false;
    DIR *directory = opendir(full);
    bool ok = true;
    if (!directory) {
        q3_error problem;
        q3_fail_errno(&problem, "%s: cannot list the directory", full);
        ok =
            q3_findings_add(c->report, &(q3_finding){.kind = Q3_FINDING_UNREADABLE, .file = folder},
                            err, "%s", problem.message);
    }
    const struct dirent *entry;
    while (ok && directory && (entry = readdir(directory))) {
        struct stat status;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        const bool is_folder =
            fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(status.st_mode);
        ok = push_path(is_folder ? folders : files,
                       q3_format(err, "%s%s%s", folder, *folder ? "/" : "", entry->d_name), err);
    }
    if (directory)
        closedir(directory);
    free(full);
    return ok;
}

static bool list_known(const q3_set *set, path_list *known, q3_error *err)
{
    bool ok = push_path(known, q3_format(err, "pack.json"), err);
    for (size_t i = 0; ok && i < set->copy_count; i++)
        ok = push_path(known, q3_format(err, "%s", set->copies[i].name), err);
    for (size_t i = 0; ok && i < set->file_count; i++) {
        char path[Q3_PLACE_PATH_MAX];
        q3_place_path(&set->files[i].place, path);
        ok = push_path(known, q3_format(err, "%s", path), err);
    }
    if (ok)
        qsort(known->paths, known->count, sizeof *known->paths, compare_paths);
    return ok;
}

static bool check_strays(check *c, q3_error *err)
{
    path_list known = {0}, folders = {0}, files = {0};
    bool ok = list_known(c->set, &known, err) && push_path(&folders, q3_format(err, "%s", ""), err);
    for (size_t i = 0; ok && i < folders.count; i++)
        ok = list_directory(c, folders.paths[i], &folders, &files, err);
    if (ok && files.count)
        qsort(files.paths, files.count, sizeof *files.paths, compare_paths);
    for (size_t i = 0; ok && i < files.count; i++) {
        const char *path = files.paths[i];
        if (bsearch(&path, known.paths, known.count, sizeof *known.paths, compare_paths))
            continue;
        const size_t length = strlen(path), suffix = sizeof part_suffix - 1;
        const bool is_part =
            (length > suffix && strcmp(path + length - suffix, part_suffix) == 0) ||
            strcmp(path, journal_name) == 0;
        ok = q3_findings_add(c->report, &(q3_finding){.kind = Q3_FINDING_STRAY, .file = path}, err,
                             "%s/%s: %s", c->set->directory, path,
                             is_part ? "left over from an extraction that was ended"
                                     : "pack.json does not list it");
    }
    free_paths(&known);
    free_paths(&folders);
    free_paths(&files);
    return ok;
}

// ---- the source ----

typedef struct problems {
    q3_error error[16]; // of shards with malformed headers; what is beyond is counted by tensors
    char shard[16][256];
    unsigned count;
} problems;

// Of what is wrong with the source only what the pack needs counts, and tensors tell that. But why
// a header is not sound is said only here.
static bool hear_problem(void *context, const q3_problem *problem)
{
    problems *heard = context;
    if (problem->kind != Q3_PROBLEM_MALFORMED || heard->count == 16)
        return true;
    snprintf(heard->shard[heard->count], sizeof *heard->shard, "%s", problem->subject);
    heard->error[heard->count++] = problem->error;
    return true;
}

static const q3_shard *find_shard(const q3_checkpoint *checkpoint, const char *name, uint32_t *at)
{
    for (*at = 0; *at < checkpoint->shard_count; ++*at)
        if (strcmp(checkpoint->shards[*at].name, name) == 0)
            return &checkpoint->shards[*at];
    return NULL;
}

static bool check_shard(check *c, const q3_set_shard *stated, const problems *heard, q3_error *err)
{
    q3_checkpoint *checkpoint = &c->source->checkpoint;
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    q3_error problem;
    uint32_t number;
    q3_finding finding = {.kind = Q3_FINDING_SOURCE, .file = stated->name};
    const q3_shard *shard = find_shard(checkpoint, stated->name, &number);
    if (!shard)
        return q3_findings_add(c->report, &finding, err,
                               "%s: pack.json names the shard %s, the source's index does not",
                               checkpoint->directory, stated->name);
    if (!shard->present)
        return q3_findings_add(c->report, &finding, err, "%s/%s: the shard is absent",
                               checkpoint->directory, stated->name);
    if (!shard->read) {
        finding.kind = Q3_FINDING_MALFORMED;
        const char *message = "the header is not sound";
        for (unsigned i = 0; i < heard->count; i++)
            if (strcmp(heard->shard[i], stated->name) == 0)
                message = heard->error[i].message;
        return q3_findings_add(c->report, &finding, err, "%s", message);
    }
    if (!q3_checkpoint_open_shard(checkpoint, number, &c->source->shards[number], &problem)) {
        finding.kind = Q3_FINDING_UNREADABLE;
        return q3_findings_add(c->report, &finding, err, "%s", problem.message);
    }
    finding.expected = expected;
    finding.found = found;
    if (shard->size != stated->size) {
        snprintf(expected, sizeof expected, "%" PRIu64, stated->size);
        snprintf(found, sizeof found, "%" PRIu64, shard->size);
        if (!q3_findings_add(c->report, &finding, err,
                             "%s/%s: pack.json expects %s bytes, found %s", checkpoint->directory,
                             stated->name, expected, found))
            return false;
    }
    if (q3_hash128_equal(shard->header_hash, stated->header_hash))
        return true;
    q3_hash128_text(stated->header_hash, expected);
    q3_hash128_text(shard->header_hash, found);
    return q3_findings_add(c->report, &finding, err,
                           "%s/%s: pack.json expects a header with hash %s, found %s",
                           checkpoint->directory, stated->name, expected, found);
}

// Surveys the source and opens the shards that the pack's tensors come from.
static bool open_source(check *c, source *from, q3_error *err)
{
    problems *heard = q3_alloc_zeroed(1, sizeof *heard, err);
    bool *used = q3_alloc_zeroed(c->set->shard_count, sizeof *used, err);
    bool ok = heard && used &&
              q3_checkpoint_survey(c->options->source, NULL, hear_problem, heard, &from->checkpoint, err);
    if (ok) {
        c->source = from;
        from->shards = q3_alloc_zeroed(from->checkpoint.shard_count, sizeof *from->shards, err);
        ok = from->shards != NULL;
    }
    for (size_t i = 0; ok && i < c->set->file_count; i++)
        for (uint32_t t = 0; t < c->set->files[i].tensor_count; t++)
            used[c->set->files[i].tensors[t].shard] = true;
    for (uint32_t i = 0; ok && i < c->set->shard_count; i++)
        ok = !used[i] || check_shard(c, &c->set->shards[i], heard, err);
    free(used);
    free(heard);
    return ok;
}

static void close_source(source *from)
{
    for (uint32_t i = 0; from->shards && i < from->checkpoint.shard_count; i++)
        q3_file_close(&from->shards[i]);
    free(from->shards);
    q3_checkpoint_close(&from->checkpoint);
}

static bool load_inventory(check *c, q3_error *err)
{
    char *text = NULL, *path = NULL;
    size_t size;
    q3_json json = {0};
    const bool ok = q3_set_load_copy(c->set, "config.json", &text, &size, err) &&
                    (path = q3_set_path(c->set, "config.json", err)) &&
                    q3_json_parse(path, (q3_bytes){(const uint8_t *)text, size}, &json, err) &&
                    q3_inventory_derive(&json, &c->inventory, err);
    q3_json_free(&json);
    free(path);
    free(text);
    return ok;
}

bool q3_packs_check(const char *directory, const q3_packs_options *options, q3_findings *report,
                    q3_error *err)
{
    q3_set set;
    source from = {0};
    q3_workers *workers = NULL;
    if (!q3_set_open(directory, &set, err))
        return false;
    check c = {.set = &set, .options = options, .report = report};
    report->files = set.file_count + set.copy_count;
    for (size_t i = 0; i < set.file_count; i++) {
        report->tensors += set.files[i].tensor_count;
        report->bytes += set.files[i].size;
    }
    for (size_t i = 0; i < set.copy_count; i++)
        report->bytes += set.copies[i].size;
    const bool ok =
        load_inventory(&c, err) && (!options->source || open_source(&c, &from, err)) &&
        check_strays(&c, err) && check_copies(&c, err) &&
        q3_workers_create(options->jobs ? options->jobs : q3_workers_default(), &workers, err) &&
        check_files(&c, workers, err) && check_components(&c, err);
    q3_workers_destroy(workers);
    close_source(&from);
    q3_inventory_free(&c.inventory);
    q3_set_close(&set);
    return ok;
}
