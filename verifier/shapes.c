// SPDX-License-Identifier: Apache-2.0
#include "shapes.h"

#include "base/interrupt.h"
#include "checkpoint.h"
#include "companions.h"
#include "data.h"
#include "diagnosis.h"
#include "set.h"
#include "shards.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// ---- what is expected ----

static int compare_expected(const void *a, const void *b)
{
    return strcmp(((const q3_expected_tensor *)a)->name, ((const q3_expected_tensor *)b)->name);
}

bool q3_expectation_create(const q3_manifest *manifest, q3_expectation *expectation, q3_error *err)
{
    const q3_inventory *inventory = &manifest->inventory;
    char name[Q3_NAME_MAX];
    size_t bytes = 0;
    *expectation = (q3_expectation){0};
    for (uint64_t i = 0; i < inventory->tensors; i++) {
        q3_inventory_at(inventory, i, name);
        bytes += strlen(name) + 1;
    }
    expectation->names = q3_alloc(bytes, 1, err);
    expectation->tensors =
        expectation->names ? q3_alloc((size_t)inventory->tensors, sizeof *expectation->tensors, err)
                           : NULL;
    if (!expectation->tensors) {
        q3_expectation_free(expectation);
        return false;
    }
    char *to = expectation->names;
    for (uint64_t i = 0; i < inventory->tensors; i++) {
        const q3_pattern *pattern = q3_inventory_at(inventory, i, name);
        const size_t size = strlen(name) + 1;
        memcpy(to, name, size);
        expectation->tensors[expectation->count++] = (q3_expected_tensor){to, pattern};
        to += size;
    }
    qsort(expectation->tensors, expectation->count, sizeof *expectation->tensors, compare_expected);
    return true;
}

void q3_expectation_free(q3_expectation *expectation)
{
    free(expectation->tensors);
    free(expectation->names);
    *expectation = (q3_expectation){0};
}

// ---- the comparison ----

enum { TENSOR_TEXT_MAX = 16 + Q3_SHAPE_TEXT_MAX };

// "BF16 [768, 2048]".
static const char *describe(q3_dtype dtype, unsigned rank, const uint64_t *shape,
                            char out[TENSOR_TEXT_MAX])
{
    char text[Q3_SHAPE_TEXT_MAX];
    snprintf(out, TENSOR_TEXT_MAX, "%s %s", q3_dtype_name(dtype), q3_shape_text(rank, shape, text));
    return out;
}

static bool report_missing(const q3_expected_tensor *expected, const q3_listing_entry *entry,
                           const q3_listing *listing, q3_findings *report, q3_error *err)
{
    const q3_pattern *pattern = expected->pattern;
    char text[TENSOR_TEXT_MAX], reason[1024];
    char detail[1024];
    if (!entry) {
        snprintf(reason, sizeof reason, "%s does not list it", listing->index);
        snprintf(detail, sizeof detail, "not in %s", listing->index);
    } else if (entry->presence == Q3_FILE_LACKS) {
        snprintf(reason, sizeof reason, "%s lacks it", entry->file);
        snprintf(detail, sizeof detail, "listed, but not in %s", entry->file);
    } else {
        snprintf(reason, sizeof reason,
                 entry->presence == Q3_FILE_ABSENT ? "%s is absent"
                                                   : "the header of %s is not sound",
                 entry->file);
        snprintf(detail, sizeof detail, "%s", reason);
    }
    describe(pattern->dtype, pattern->rank, pattern->shape, text);
    const bool unread = entry && entry->presence == Q3_FILE_UNREADABLE;
    return q3_findings_add(
        report,
        &(q3_finding){.kind = unread ? Q3_FINDING_UNREADABLE : Q3_FINDING_MISSING,
                      .tensor = expected->name,
                      .file = entry ? entry->file : NULL,
                      .expected = text,
                      .group = pattern->name,
                      .detail = detail},
        err, "%s: expected %s, found nothing: %s", expected->name, text, reason);
}

static bool report_unknown(const q3_listing_entry *entry, const q3_listing *listing,
                           q3_findings *report, q3_error *err)
{
    const q3_tensor *tensor = &entry->tensor;
    const char *reason = q3_name_unsupported(tensor->name);
    char text[TENSOR_TEXT_MAX];
    if (entry->presence == Q3_PRESENT)
        describe(tensor->dtype, tensor->rank, tensor->shape, text);
    else
        snprintf(text, sizeof text, "the name alone");
    return q3_findings_add(report,
                           &(q3_finding){.kind = Q3_FINDING_UNKNOWN,
                                         .tensor = tensor->name,
                                         .file = entry->file,
                                         .found = text,
                                         .group = entry->file,
                                         .detail = reason},
                           err, "%s: the manifest has no such tensor, found %s in %s%s%s",
                           tensor->name, text,
                           entry->presence == Q3_PRESENT ? entry->file : listing->index,
                           reason ? ": " : "", reason ? reason : "");
}

// Says so when two shapes differ by an exchange of two dimensions.
static void describe_swap(unsigned rank, const uint64_t *expected, const uint64_t *found, char *out,
                          size_t capacity)
{
    unsigned at[2] = {0}, differing = 0;
    for (unsigned i = 0; i < rank; i++)
        if (expected[i] != found[i]) {
            if (differing < 2)
                at[differing] = i;
            differing++;
        }
    *out = 0;
    if (differing == 2 && expected[at[0]] == found[at[1]] && expected[at[1]] == found[at[0]])
        snprintf(out, capacity, ": dimensions %u and %u are swapped", at[0], at[1]);
}

static bool compare_tensor(const q3_expected_tensor *expected, const q3_listing_entry *entry,
                           q3_findings *report, q3_error *err)
{
    const q3_pattern *pattern = expected->pattern;
    const q3_tensor *tensor = &entry->tensor;
    char wanted[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX], swap[64] = "";
    char detail[2 * Q3_SHAPE_TEXT_MAX + 128];
    q3_finding finding = {.tensor = expected->name,
                          .file = entry->file,
                          .expected = wanted,
                          .found = found,
                          .group = pattern->name,
                          .detail = detail};
    const bool same_dtype = tensor->dtype == pattern->dtype;
    const bool same_shape =
        q3_shape_equal(pattern->rank, pattern->shape, tensor->rank, tensor->shape);
    if (!same_dtype) {
        snprintf(wanted, sizeof wanted, "%s", q3_dtype_name(pattern->dtype));
        snprintf(found, sizeof found, "%s", q3_dtype_name(tensor->dtype));
        snprintf(detail, sizeof detail, "expected %s, found %s", wanted, found);
        finding.kind = Q3_FINDING_DTYPE;
        if (!q3_findings_add(report, &finding, err, "%s: expected dtype %s, found %s in %s",
                             expected->name, wanted, found, entry->file))
            return false;
    }
    if (!same_shape) {
        q3_shape_text(pattern->rank, pattern->shape, wanted);
        q3_shape_text(tensor->rank, tensor->shape, found);
        if (pattern->rank == tensor->rank)
            describe_swap(pattern->rank, pattern->shape, tensor->shape, swap, sizeof swap);
        snprintf(detail, sizeof detail, "expected %s, found %s%s", wanted, found, swap);
        finding.kind = Q3_FINDING_SHAPE;
        if (!q3_findings_add(report, &finding, err, "%s: expected shape %s, found %s in %s%s",
                             expected->name, wanted, found, entry->file, swap))
            return false;
    }
    // Another dtype or shape makes another size by itself.
    if (same_dtype && same_shape && tensor->bytes != pattern->bytes) {
        snprintf(wanted, sizeof wanted, "%" PRIu64, pattern->bytes);
        snprintf(found, sizeof found, "%" PRIu64, tensor->bytes);
        snprintf(detail, sizeof detail, "expected %s bytes, found %s", wanted, found);
        finding.kind = Q3_FINDING_BYTES;
        if (!q3_findings_add(report, &finding, err, "%s: expected %s bytes, found %s in %s",
                             expected->name, wanted, found, entry->file))
            return false;
    }
    return true;
}

static bool report_duplicate(const q3_listing_entry *entry, const q3_listing_entry *again,
                             q3_findings *report, q3_error *err)
{
    return q3_findings_add(report,
                           &(q3_finding){.kind = Q3_FINDING_DUPLICATE,
                                         .tensor = entry->tensor.name,
                                         .file = again->file,
                                         .expected = entry->file,
                                         .found = again->file,
                                         .group = again->file},
                           err, "%s: expected once, found in %s and in %s", entry->tensor.name,
                           entry->file, again->file);
}

static int compare_entry(const void *a, const void *b)
{
    const q3_listing_entry *left = a, *right = b;
    const int order = strcmp(left->tensor.name, right->tensor.name);
    return order ? order : strcmp(left->file, right->file);
}

// Most listings come sorted.
static void sort_listing(q3_listing *listing)
{
    for (size_t i = 1; i < listing->count; i++)
        if (compare_entry(&listing->entries[i - 1], &listing->entries[i]) > 0) {
            qsort(listing->entries, listing->count, sizeof *listing->entries, compare_entry);
            return;
        }
}

bool q3_shapes_compare(const q3_expectation *expectation, const bool scope[Q3_COMPONENTS],
                       q3_listing *listing, q3_findings *report, q3_error *err)
{
    sort_listing(listing);
    // Both are sorted by name, so one pass over the two meets every difference.
    size_t e = 0, l = 0;
    while (e < expectation->count || l < listing->count) {
        const q3_expected_tensor *expected =
            e < expectation->count ? &expectation->tensors[e] : NULL;
        const q3_listing_entry *entry = l < listing->count ? &listing->entries[l] : NULL;
        const int order = !entry ? -1 : !expected ? 1 : strcmp(expected->name, entry->tensor.name);
        if (order > 0) {
            if (!report_unknown(entry, listing, report, err))
                return false;
            l++;
            continue;
        }
        e++;
        const bool wanted = scope[expected->pattern->component];
        report->tensors += wanted;
        if (order < 0) {
            if (wanted && !report_missing(expected, NULL, listing, report, err))
                return false;
            continue;
        }
        for (l++;
             l < listing->count && strcmp(listing->entries[l].tensor.name, expected->name) == 0;
             l++)
            if (wanted && !report_duplicate(entry, &listing->entries[l], report, err))
                return false;
        if (!wanted)
            continue;
        if (entry->presence == Q3_PRESENT) {
            report->bytes += entry->tensor.bytes;
            if (!compare_tensor(expected, entry, report, err))
                return false;
        } else if (!report_missing(expected, entry, listing, report, err)) {
            return false;
        }
    }
    return true;
}

// ---- checkpoints ----

typedef struct problem_sink {
    const q3_inventory *inventory;
    q3_findings *report;
    q3_error *err;
    bool failed;
} problem_sink;

static bool hear_problem(void *context, const q3_problem *problem)
{
    static const q3_finding_kind kinds[] = {
        [Q3_PROBLEM_MALFORMED] = Q3_FINDING_MALFORMED, [Q3_PROBLEM_SIZE] = Q3_FINDING_SIZE,
        [Q3_PROBLEM_SHARD_ABSENT] = Q3_FINDING_ABSENT, [Q3_PROBLEM_SHARD_LACKS] = Q3_FINDING_INDEX,
        [Q3_PROBLEM_UNLISTED] = Q3_FINDING_INDEX,      [Q3_PROBLEM_ELSEWHERE] = Q3_FINDING_INDEX,
        [Q3_PROBLEM_TOTAL] = Q3_FINDING_INDEX,
    };
    problem_sink *sink = context;
    // The comparison names these, with what was expected.
    if (problem->kind == Q3_PROBLEM_SHARD_LACKS)
        return true;
    q3_finding finding = {.kind = kinds[problem->kind]};
    if (finding.kind == Q3_FINDING_MALFORMED && problem->error.code == Q3_FAILED)
        finding.kind = Q3_FINDING_UNREADABLE;
    finding.file = problem->subject;
    if (problem->shard && strcmp(problem->shard, problem->subject) != 0) {
        uint64_t ordinal;
        const q3_pattern *pattern = q3_inventory_find(sink->inventory, problem->subject, &ordinal);
        finding.tensor = problem->subject;
        finding.file = problem->shard;
        finding.group = pattern ? pattern->name : problem->shard;
        finding.detail = problem->kind == Q3_PROBLEM_UNLISTED
                             ? "in a shard, but not in the index"
                             : "in another shard than the index says";
    }
    sink->failed =
        !q3_findings_add(sink->report, &finding, sink->err, "%s", problem->error.message);
    return !sink->failed;
}

// The listing of a surveyed checkpoint.
static bool list_checkpoint(const q3_checkpoint *checkpoint, q3_listing *listing, q3_error *err)
{
    *listing = (q3_listing){.index = "the index", .count = checkpoint->listed_count};
    listing->entries = q3_alloc_zeroed(listing->count, sizeof *listing->entries, err);
    if (!listing->entries)
        return false;
    // The stored tensors are sorted by name as the listed ones are, and are a part of them.
    size_t stored = 0;
    for (size_t i = 0; i < checkpoint->listed_count; i++) {
        const q3_listed_tensor *listed = &checkpoint->listed[i];
        const q3_shard *shard = &checkpoint->shards[listed->shard];
        q3_listing_entry *entry = &listing->entries[i];
        *entry = (q3_listing_entry){.tensor.name = listed->name,
                                    .file = shard->name,
                                    .presence = !shard->present     ? Q3_FILE_ABSENT
                                                : shard->unreadable ? Q3_FILE_UNREADABLE
                                                : !shard->read      ? Q3_FILE_UNSOUND
                                                                    : Q3_FILE_LACKS};
        if (listed->found) {
            entry->tensor = checkpoint->tensors[stored++].tensor;
            entry->presence = Q3_PRESENT;
        }
    }
    return true;
}

static bool check_checkpoint(const char *path, const q3_manifest *manifest,
                             const q3_shapes_options *options, q3_findings *report, q3_error *err)
{
    const bool *const scope = options->scope ? options->scope : manifest->inventory.has_component;
    q3_checkpoint checkpoint;
    q3_expectation expectation = {0};
    q3_listing listing = {0};
    problem_sink sink = {.inventory = &manifest->inventory, .report = report, .err = err};
    q3_error stopped;
    const q3_survey_options survey = {.headers_only = options->headers_only};
    if (!q3_checkpoint_survey(path, &survey, hear_problem, &sink, &checkpoint, &stopped)) {
        if (!sink.failed)
            *err = stopped;
        return false;
    }
    report->files = checkpoint.shard_count;
    bool ok = q3_expectation_create(manifest, &expectation, err) &&
              list_checkpoint(&checkpoint, &listing, err) &&
              q3_shapes_compare(&expectation, scope, &listing, report, err) &&
              q3_diagnose(&expectation, scope, &listing, report, err);
    free(listing.entries);
    q3_expectation_free(&expectation);
    ok = ok &&
         q3_shards_check(&checkpoint, manifest, options->headers_only, options->sha256,
                         options->jobs, options->quiet, report, err) &&
         (!options->data || q3_data_check(&checkpoint, &manifest->inventory, scope, options->jobs,
                                          options->quiet, report, err));
    q3_checkpoint_close(&checkpoint);
    if (ok && options->headers_only)
        ok = q3_sentences_add(&report->notes, err,
                              "headers only: whether the shards hold their data was not checked");
    return ok;
}

// ---- pack directories ----

// The pack files that have been read: their listing borrows the names.
typedef struct pack_reading {
    const q3_set *set;
    q3_pack *packs; // one for each file of the set; zeroed when it could not be opened
    q3_listing listing;
    char (*paths)[Q3_PLACE_PATH_MAX];
} pack_reading;

static bool report_pack(const pack_reading *reading, size_t number, const q3_error *reason,
                        q3_findings *report, q3_error *err)
{
    const enum q3_exit code = (enum q3_exit)reason->code;
    return q3_findings_add(report,
                           &(q3_finding){.kind = code == Q3_INCOMPLETE ? Q3_FINDING_ABSENT
                                                 : code == Q3_FAILED   ? Q3_FINDING_UNREADABLE
                                                                       : Q3_FINDING_DAMAGED,
                                         .file = reading->paths[number]},
                           err, "%s", reason->message);
}

static bool read_packs(pack_reading *reading, q3_findings *report, q3_error *err)
{
    const q3_set *set = reading->set;
    for (size_t i = 0; i < set->file_count; i++) {
        const q3_set_file *file = &set->files[i];
        q3_pack *pack = &reading->packs[i];
        q3_error reason = {0};
        q3_place_path(&file->place, reading->paths[i]);
        if (!q3_check_interrupt(err))
            return false;
        const bool opened = q3_set_open_pack(set, file, pack, &reason);
        if (opened)
            q3_file_close(&pack->file);
        else if (!report_pack(reading, i, &reason, report, err))
            return false;
        for (uint32_t t = 0; t < file->tensor_count; t++) {
            q3_listing_entry *entry = &reading->listing.entries[reading->listing.count++];
            *entry = (q3_listing_entry){.tensor.name = file->tensors[t].name,
                                        .file = reading->paths[i],
                                        .presence = reason.code == Q3_INCOMPLETE ? Q3_FILE_ABSENT
                                                    : reason.code == Q3_FAILED ? Q3_FILE_UNREADABLE
                                                                               : Q3_FILE_UNSOUND};
            if (opened) {
                entry->tensor = pack->tensors[t].tensor;
                entry->presence = Q3_PRESENT;
            }
        }
    }
    return true;
}

static bool check_pack(const char *path, const q3_manifest *manifest, const bool *scope,
                       q3_findings *report, q3_error *err)
{
    q3_set set;
    q3_expectation expectation;
    if (!q3_set_open(path, &set, err))
        return false;
    if (!q3_expectation_create(manifest, &expectation, err)) {
        q3_set_close(&set);
        return false;
    }
    bool held[Q3_COMPONENTS];
    size_t tensors = 0;
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        held[i] = set.components[i].tensors != 0;
    for (size_t i = 0; i < set.file_count; i++) {
        held[set.files[i].place.component] = true;
        tensors += set.files[i].tensor_count;
    }
    report->files = set.file_count;
    pack_reading reading = {.set = &set, .listing.index = "pack.json"};
    bool ok = (reading.packs = q3_alloc_zeroed(set.file_count, sizeof *reading.packs, err)) != NULL;
    for (size_t i = 0; ok && i < set.file_count; i++)
        reading.packs[i].file.fd = -1;
    ok = ok && (reading.paths = q3_alloc(set.file_count, sizeof *reading.paths, err)) &&
         (reading.listing.entries =
              q3_alloc_zeroed(tensors, sizeof *reading.listing.entries, err)) &&
         read_packs(&reading, report, err) &&
         q3_shapes_compare(&expectation, scope ? scope : held, &reading.listing, report, err) &&
         q3_diagnose(&expectation, scope ? scope : held, &reading.listing, report, err);
    for (size_t i = 0; reading.packs && i < set.file_count; i++)
        q3_pack_close(&reading.packs[i]);
    free(reading.packs);
    free(reading.paths);
    free(reading.listing.entries);
    q3_expectation_free(&expectation);
    q3_set_close(&set);
    return ok;
}

bool q3_shapes_check(const char *path, const q3_manifest *manifest,
                     const q3_shapes_options *options, q3_findings *report, q3_error *err)
{
    char *set = q3_path_join(path, "pack.json", err);
    bool ok = set != NULL;
    if (ok && q3_path_exists(set)) {
        ok = options->data || options->sha256 || options->headers_only
                 ? q3_fail(err, Q3_USAGE,
                           "%s: a pack directory; --data, --sha256 and --headers-only are for "
                           "checkpoints",
                           path)
                 : check_pack(path, manifest, options->scope, report, err);
    } else if (ok) {
        ok = check_checkpoint(path, manifest, options, report, err);
    }
    free(set);
    return ok && q3_companions_check(path, manifest, report, err);
}
