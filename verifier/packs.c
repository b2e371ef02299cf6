// SPDX-License-Identifier: Apache-2.0
#include "packs.h"

#include "base/interrupt.h"
#include "base/progress.h"
#include "base/text.h"
#include "base/workers.h"
#include "checkpoint.h"
#include "set.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// Slots are small: what is read is each thread's own. So many that the others go on while one
// thread reads the largest tensor.
enum { SLOTS_PER_THREAD = 128, COPY_BYTES_MAX = 256 << 20 };

// What a run of q3-extract that is ended leaves behind.
static const char part_suffix[] = ".part", journal_name[] = "extract.journal";

// The checkpoint that the pack was made from.
typedef struct source {
    q3_checkpoint checkpoint;
    q3_file *shards; // open where the pack needs them and they are sound
} source;

// One pack file under way. The first of its items to be worked on opens it, the commit of the last
// one closes it.
typedef struct reading {
    size_t number; // of the file in the set
    const q3_set_file *file;
    char path[Q3_PLACE_PATH_MAX]; // inside the directory
    pthread_mutex_t opening;
    bool tried; // to open it
    q3_pack pack;
    bool opened;
    bool meant;       // it is the file that pack.json means
    q3_error problem; // when it is not opened or not meant
    bool lead_sound;  // the padding before the first frame
    q3_error lead_problem;
    const q3_stored_tensor **sources; // for each tensor, or NULL: nothing to compare with
} reading;

// One tensor of a pack file, or a file of which no tensor is looked at.
typedef struct item {
    reading *reading;
    uint32_t tensor;
    bool has_tensor, first, last; // of the file's items
    // What the work found.
    q3_error *problems; // of frames and the padding behind them, in order
    size_t problem_count, problem_capacity;
    q3_hash128 hash; // of the raw bytes, where all frames decoded
    bool hashed;
    q3_error source_problem;
    bool source_unreadable;
    uint64_t differing, at;  // bytes that differ from the source, and where the first lies
    uint8_t expected, found; // its values
} item;

// Each thread's own.
typedef struct scratch {
    q3_coder *coder;
    q3_hasher *hasher;
    uint8_t *stored, *raw, *original;
    size_t stored_capacity, raw_capacity, original_capacity;
} scratch;

typedef struct check {
    const q3_set *set;
    const q3_packs_options *options;
    q3_findings *report;
    q3_inventory inventory; // of the copied configuration
    source *source;         // NULL without one
    scratch *scratch;       // one a worker
    bool *seen;             // by ordinal of the inventory
    bool *taken;            // by tensor, in the order of the set: it is in the sample
    // Where `next` stands.
    size_t next_file, taken_at; // taken_at: the place of the current file's first tensor in `taken`
    reading **readings;         // for each file of the set, NULL unless under way
    reading *current;
    uint32_t next_tensor;
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

// ---- the stream: handing out tensors ----

// The next tensor of the current file that is looked at, from `from` on; tensor_count when none is.
static uint32_t find_taken(const check *c, uint32_t from)
{
    const uint32_t count = c->current->file->tensor_count;
    while (from < count && !c->taken[c->taken_at + from])
        from++;
    return from;
}

static int next_item(void *context, void *slot, q3_error *err)
{
    check *c = context;
    item *next = slot;
    next->first = !c->current;
    if (!c->current) {
        if (c->next_file == c->set->file_count)
            return 0;
        const size_t number = c->next_file++;
        reading *r = q3_alloc_zeroed(1, sizeof *r, err);
        if (!r)
            return -1;
        c->readings[number] = c->current = r;
        r->number = number;
        r->file = &c->set->files[number];
        r->pack.file.fd = -1;
        pthread_mutex_init(&r->opening, NULL);
        q3_place_path(&r->file->place, r->path);
        c->next_tensor = find_taken(c, 0);
    }
    const uint32_t count = c->current->file->tensor_count;
    next->reading = c->current;
    next->tensor = c->next_tensor;
    next->has_tensor = c->next_tensor < count;
    c->next_tensor = next->has_tensor ? find_taken(c, c->next_tensor + 1) : count;
    next->last = c->next_tensor == count;
    if (next->last) {
        c->taken_at += count;
        c->current = NULL;
    }
    return 1;
}

// ---- the stream: reading and comparing, on all threads ----

static bool find_sources(const check *c, reading *r, q3_error *err)
{
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

static bool open_reading(const check *c, reading *r, q3_error *err)
{
    r->tried = true;
    r->opened = r->meant = q3_set_open_pack(c->set, r->file, &r->pack, &r->problem);
    if (!r->opened && r->problem.code == Q3_MALFORMED) {
        // Perhaps a sound file, but another one. What it says of itself can be checked then.
        q3_error ignored;
        char *path = q3_set_path(c->set, r->path, err);
        if (!path)
            return false;
        r->opened = q3_pack_open(path, &r->pack, &ignored);
        free(path);
    }
    r->lead_sound = !r->opened || q3_pack_check_lead(&r->pack, &r->lead_problem);
    const bool ok = !r->opened || !c->source || find_sources(c, r, err);
    r->opened = r->opened && ok;
    return ok;
}

static void close_reading(check *c, size_t number)
{
    reading *r = c->readings[number];
    if (!r)
        return;
    c->readings[number] = NULL;
    q3_pack_close(&r->pack);
    pthread_mutex_destroy(&r->opening);
    free(r->sources);
    free(r);
}

static bool add_problem(item *at, const q3_error *problem, q3_error *err)
{
    if (!q3_grow(&at->problems, &at->problem_capacity, at->problem_count + 1, sizeof *at->problems,
                 err))
        return false;
    at->problems[at->problem_count++] = *problem;
    return true;
}

// The raw bytes of one frame against the source's.
static bool compare_frame(const check *c, item *at, uint32_t number, const uint8_t *raw,
                          size_t size, scratch *own, q3_error *err)
{
    const q3_stored_tensor *original = at->reading->sources[at->tensor];
    const uint64_t offset = (uint64_t)number * at->reading->pack.tensors[at->tensor].frame_bytes;
    if (!original || at->source_unreadable)
        return true;
    if (!q3_grow(&own->original, &own->original_capacity, size, 1, err))
        return false;
    if (!q3_file_read(&c->source->shards[original->shard], original->offset + offset, own->original,
                      size, &at->source_problem)) {
        at->source_unreadable = true;
        return true;
    }
    if (memcmp(raw, own->original, size) == 0)
        return true;
    for (size_t i = 0; i < size; i++)
        if (raw[i] != own->original[i] && at->differing++ == 0) {
            at->at = offset + i;
            at->expected = own->original[i];
            at->found = raw[i];
        }
    return true;
}

static bool work_tensor(const check *c, item *at, scratch *own, q3_error *err)
{
    const q3_pack *pack = &at->reading->pack;
    const q3_pack_tensor *tensor = &pack->tensors[at->tensor];
    const bool decodes = c->options->deep || c->source;
    at->problem_count = 0;
    at->source_unreadable = false;
    at->differing = 0;
    q3_hasher_reset(own->hasher);
    for (uint32_t i = 0; i < tensor->frame_count; i++) {
        const q3_frame *frame = &pack->frames[tensor->first_frame + i];
        q3_error problem;
        if (!q3_check_interrupt(err) ||
            !q3_grow(&own->stored, &own->stored_capacity, (size_t)q3_pack_span(pack, tensor, i), 1,
                     err) ||
            !q3_grow(&own->raw, &own->raw_capacity, frame->raw_bytes, 1, err))
            return false;
        const uint8_t *raw = own->stored;
        bool sound = q3_pack_check_frame(pack, tensor, i, own->stored, &problem);
        if (sound && decodes && frame->codec != Q3_CODEC_RAW) {
            raw = own->raw;
            sound =
                q3_pack_decode_frame(pack, tensor, i, own->coder, own->stored, own->raw, &problem);
        }
        if (!sound) {
            if (!add_problem(at, &problem, err))
                return false;
            continue;
        }
        if (!decodes)
            continue;
        q3_hasher_update(own->hasher, raw, frame->raw_bytes);
        if (c->source && !compare_frame(c, at, i, raw, frame->raw_bytes, own, err))
            return false;
    }
    at->hashed = decodes && at->problem_count == 0;
    if (at->hashed)
        at->hash = q3_hasher_finish(own->hasher);
    return true;
}

static bool work_item(void *context, void *slot, unsigned worker, q3_error *err)
{
    const check *c = context;
    item *at = slot;
    reading *r = at->reading;
    pthread_mutex_lock(&r->opening);
    const bool ok = r->tried || open_reading(c, r, err);
    pthread_mutex_unlock(&r->opening);
    if (!ok || !r->opened || !at->has_tensor || at->tensor >= r->pack.tensor_count)
        return ok;
    return work_tensor(c, at, &c->scratch[worker], err);
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
    finding.detail = "in a file where they do not belong";
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
        if (shard && shard->unreadable) {
            finding.kind = Q3_FINDING_UNREADABLE;
            return q3_findings_add(c->report, &finding, err,
                                   "%s: %s: not compared: %s could not be read", r->path,
                                   tensor->name, shard->name);
        }
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

// The file itself, and what its directory says, whether its tensors are in the sample or not.
static bool commit_file(check *c, const reading *r, q3_error *err)
{
    if (!r->meant) {
        c->all_sound[r->file->place.component] = false;
        if (!q3_findings_add(c->report,
                             &(q3_finding){.kind = kind_of(&r->problem), .file = r->path}, err,
                             "%s", r->problem.message))
            return false;
    }
    if (!r->opened)
        return true;
    if (!r->lead_sound &&
        !q3_findings_add(c->report,
                         &(q3_finding){.kind = kind_of(&r->lead_problem), .file = r->path}, err,
                         "%s", r->lead_problem.message))
        return false;
    for (uint32_t t = 0; t < r->pack.tensor_count; t++) {
        const q3_tensor *tensor = &r->pack.tensors[t].tensor;
        c->held[r->file->place.component].tensors++;
        c->held[r->file->place.component].bytes += tensor->bytes;
        if (!commit_place(c, r, tensor, err) || (c->source && !commit_source(c, r, t, err)))
            return false;
    }
    return true;
}

static bool commit_tensor(check *c, const item *at, q3_error *err)
{
    const reading *r = at->reading;
    const q3_pack_tensor *entry = &r->pack.tensors[at->tensor];
    const char *name = entry->tensor.name;
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    q3_finding finding = {
        .tensor = name, .file = r->path, .group = pattern_name(c, name), .detail = "damaged"};
    for (size_t i = 0; i < at->problem_count; i++) {
        finding.kind = kind_of(&at->problems[i]);
        if (!q3_findings_add(c->report, &finding, err, "%s", at->problems[i].message))
            return false;
    }
    finding.kind = Q3_FINDING_DAMAGED;
    finding.expected = expected;
    finding.found = found;
    if (at->hashed && !q3_hash128_equal(at->hash, entry->hash)) {
        q3_hash128_text(entry->hash, expected);
        q3_hash128_text(at->hash, found);
        if (!q3_findings_add(c->report, &finding, err,
                             "%s: %s: the tensor is damaged: expected hash %s, found %s",
                             r->pack.file.path, name, expected, found))
            return false;
    }
    if (at->source_unreadable &&
        !q3_findings_add(
            c->report,
            &(q3_finding){.kind = Q3_FINDING_UNREADABLE, .tensor = name, .file = r->path}, err,
            "%s", at->source_problem.message))
        return false;
    if (at->differing == 0)
        return true;
    finding.kind = Q3_FINDING_SOURCE;
    finding.detail = "other bytes than in the source";
    snprintf(expected, sizeof expected, "0x%02x", at->expected);
    snprintf(found, sizeof found, "0x%02x", at->found);
    return q3_findings_add(
        c->report, &finding, err,
        "%s: %s: %" PRIu64 " of %" PRIu64 " bytes differ from the source, the first at %" PRIu64
        ": expected %s, found %s",
        r->path, name, at->differing, entry->tensor.bytes, at->at, expected, found);
}

static bool commit_item(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    check *c = context;
    item *at = slot;
    reading *r = at->reading;
    bool ok = !at->first || commit_file(c, r, err);
    if (ok && r->opened && at->has_tensor && at->tensor < r->pack.tensor_count) {
        ok = commit_tensor(c, at, err);
        q3_progress_add(&c->progress, r->pack.tensors[at->tensor].tensor.bytes, r->path);
    }
    if (at->last)
        close_reading(c, r->number);
    return ok;
}

static void release_item(void *context, void *slot)
{
    (void)context;
    item *at = slot;
    free(at->problems);
}

// Chooses the tensors to look at; *bytes receives about how many bytes they take, uncompressed.
static bool choose_tensors(check *c, uint64_t *bytes, q3_error *err)
{
    size_t count = 0, taken = 0;
    char some[Q3_GROUPED_MAX], all[Q3_GROUPED_MAX];
    for (size_t i = 0; i < c->set->file_count; i++)
        count += c->set->files[i].tensor_count;
    q3_sampler *sampler = q3_alloc_zeroed(1, sizeof *sampler, err);
    c->taken = sampler ? q3_alloc_zeroed(count, sizeof *c->taken, err) : NULL;
    if (!c->taken) {
        free(sampler);
        return false;
    }
    if (c->options->sample)
        sampler->sample = *c->options->sample;
    *bytes = 0;
    size_t at = 0;
    for (size_t i = 0; i < c->set->file_count; i++)
        for (uint32_t t = 0; t < c->set->files[i].tensor_count; t++, at++) {
            uint64_t ordinal;
            const q3_pattern *pattern =
                q3_inventory_find(&c->inventory, c->set->files[i].tensors[t].name, &ordinal);
            const uint64_t size = pattern ? pattern->bytes : 1;
            c->taken[at] = !c->options->sample || q3_sampler_take(sampler, size);
            taken += c->taken[at];
            *bytes += c->taken[at] ? size : 0;
        }
    free(sampler);
    if (c->options->sample && !q3_sentences_add(&c->report->notes, err,
                                                "a sample: the bytes of %s of %s tensors were read",
                                                q3_grouped(taken, some), q3_grouped(count, all)))
        return false;
    return c->options->deep || c->source ||
           q3_sentences_add(&c->report->notes, err,
                            "stored bytes were checked; --deep also decodes them and checks the "
                            "tensors' own hashes");
}

static bool create_scratch(check *c, unsigned threads, q3_error *err)
{
    c->scratch = q3_alloc_zeroed(threads, sizeof *c->scratch, err);
    for (unsigned i = 0; c->scratch && i < threads; i++)
        if (!(c->scratch[i].coder = q3_coder_create(err)) ||
            !(c->scratch[i].hasher = q3_hasher_create(err)))
            return false;
    return c->scratch != NULL;
}

static void free_scratch(check *c, unsigned threads)
{
    for (unsigned i = 0; c->scratch && i < threads; i++) {
        q3_coder_destroy(c->scratch[i].coder);
        q3_hasher_destroy(c->scratch[i].hasher);
        free(c->scratch[i].stored);
        free(c->scratch[i].raw);
        free(c->scratch[i].original);
    }
    free(c->scratch);
}

static bool check_files(check *c, q3_workers *workers, q3_error *err)
{
    uint64_t total = 0;
    const unsigned threads = q3_workers_count(workers);
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        c->all_sound[i] = true;
    const bool ok = choose_tensors(c, &total, err) && create_scratch(c, threads, err) &&
                    (c->readings = q3_alloc_zeroed(c->set->file_count, sizeof *c->readings, err)) &&
                    (c->seen = q3_alloc_zeroed((size_t)c->inventory.tensors, sizeof *c->seen, err));
    bool done = false;
    if (ok) {
        q3_progress_begin(&c->progress, "verifying", total, c->options->quiet);
        done = q3_workers_stream(workers,
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
    for (size_t i = 0; c->readings && i < c->set->file_count; i++)
        close_reading(c, i);
    free(c->readings);
    free(c->seen);
    free(c->taken);
    free_scratch(c, threads);
    return done;
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
        const char *reason =
            is_part ? "left over from an extraction that was ended" : "pack.json does not list it";
        ok = q3_findings_add(
            c->report, &(q3_finding){.kind = Q3_FINDING_STRAY, .file = path, .detail = reason}, err,
            "%s/%s: %s", c->set->directory, path, reason);
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
        finding.kind = shard->unreadable ? Q3_FINDING_UNREADABLE : Q3_FINDING_MALFORMED;
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
    bool ok =
        heard && used &&
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
