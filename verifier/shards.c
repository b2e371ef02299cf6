// SPDX-License-Identifier: Apache-2.0
#include "shards.h"

#include "base/progress.h"
#include "base/workers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Hashing all shards that are there, one a task.
typedef struct hashing {
    const q3_checkpoint *checkpoint;
    uint32_t next;
    q3_progress progress;
    // What to do with a digest, in the order of the shards.
    bool (*take)(void *context, const q3_shard *shard, const uint8_t *digest,
                 const q3_error *problem, q3_error *err);
    void *context;
} hashing;

typedef struct slot {
    const q3_shard *shard;
    uint8_t digest[Q3_SHA256_BYTES];
    uint64_t size;
    q3_error problem;
    bool done;
} slot;

static int next_shard(void *context, void *memory, q3_error *err)
{
    (void)err;
    hashing *h = context;
    slot *s = memory;
    while (h->next < h->checkpoint->shard_count && !h->checkpoint->shards[h->next].present)
        h->next++;
    if (h->next == h->checkpoint->shard_count)
        return 0;
    s->shard = &h->checkpoint->shards[h->next++];
    return 1;
}

static bool hash_shard(void *context, void *memory, unsigned worker, q3_error *err)
{
    (void)worker;
    const hashing *h = context;
    slot *s = memory;
    char *path = q3_checkpoint_path(h->checkpoint, s->shard->name, err);
    if (!path)
        return false;
    s->done = q3_sha256_file(path, s->digest, &s->size, &s->problem);
    free(path);
    if (!s->done && s->problem.code == Q3_INTERRUPTED) {
        *err = s->problem;
        return false;
    }
    return true;
}

static bool commit_shard(void *context, void *memory, unsigned worker, q3_error *err)
{
    (void)worker;
    hashing *h = context;
    slot *s = memory;
    q3_progress_add(&h->progress, s->size, s->shard->name);
    return h->take(h->context, s->shard, s->digest, s->done ? NULL : &s->problem, err);
}

static bool hash_shards(hashing *h, unsigned jobs, bool quiet, q3_error *err)
{
    uint64_t total = 0;
    q3_workers *workers = NULL;
    for (uint32_t i = 0; i < h->checkpoint->shard_count; i++)
        total += h->checkpoint->shards[i].size;
    if (!q3_workers_create(jobs ? jobs : q3_workers_default(), &workers, err))
        return false;
    q3_progress_begin(&h->progress, "hashing", total, quiet);
    const bool ok = q3_workers_stream(workers,
                                      &(q3_stream){.context = h,
                                                   .slots = q3_workers_count(workers),
                                                   .slot_bytes = sizeof(slot),
                                                   .next = next_shard,
                                                   .work = hash_shard,
                                                   .commit = commit_shard},
                                      err);
    q3_progress_end(&h->progress);
    q3_workers_destroy(workers);
    return ok;
}

// ---- against a manifest ----

typedef struct comparison {
    const q3_manifest *manifest;
    q3_findings *report;
} comparison;

static int compare_shard(const void *key, const void *shard)
{
    return strcmp(key, ((const q3_manifest_shard *)shard)->name);
}

static const q3_manifest_shard *find_stated(const q3_manifest *manifest, const char *name)
{
    return bsearch(name, manifest->shards, manifest->shard_count, sizeof *manifest->shards,
                   compare_shard);
}

static bool take_digest(void *context, const q3_shard *shard, const uint8_t *digest,
                        const q3_error *problem, q3_error *err)
{
    const comparison *c = context;
    const q3_manifest_shard *stated = find_stated(c->manifest, shard->name);
    char expected[Q3_SHA256_TEXT], found[Q3_SHA256_TEXT];
    if (!stated)
        return true;
    if (problem)
        return q3_findings_add(c->report,
                               &(q3_finding){.kind = Q3_FINDING_UNREADABLE, .file = shard->name},
                               err, "%s", problem->message);
    if (memcmp(digest, stated->sha256, Q3_SHA256_BYTES) == 0)
        return true;
    q3_sha256_text(stated->sha256, expected);
    q3_sha256_text(digest, found);
    return q3_findings_add(
        c->report,
        &(q3_finding){
            .kind = Q3_FINDING_DAMAGED, .file = shard->name, .expected = expected, .found = found},
        err, "%s: expected SHA-256 %s, found %s", shard->name, expected, found);
}

static bool compare_files(const q3_checkpoint *checkpoint, const q3_manifest *manifest,
                          bool headers_only, q3_findings *report, q3_error *err)
{
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        const q3_shard *shard = &checkpoint->shards[i];
        const q3_manifest_shard *stated = find_stated(manifest, shard->name);
        char expected[24], found[24];
        if (!stated) {
            if (!q3_findings_add(report,
                                 &(q3_finding){.kind = Q3_FINDING_INDEX, .file = shard->name}, err,
                                 "%s: a shard that the manifest does not list", shard->name))
                return false;
            continue;
        }
        // What the header describes, where the file itself is not all there.
        const uint64_t bytes = headers_only ? shard->file_bytes : shard->size;
        if (!shard->read || bytes == stated->bytes)
            continue;
        snprintf(expected, sizeof expected, "%" PRIu64, stated->bytes);
        snprintf(found, sizeof found, "%" PRIu64, bytes);
        if (!q3_findings_add(report,
                             &(q3_finding){.kind = Q3_FINDING_SIZE,
                                           .file = shard->name,
                                           .expected = expected,
                                           .found = found},
                             err, "%s: the manifest expects a file of %s bytes, found %s",
                             shard->name, expected, found))
            return false;
    }
    for (size_t i = 0; i < manifest->shard_count; i++) {
        const char *name = manifest->shards[i].name;
        bool known = false;
        for (uint32_t k = 0; k < checkpoint->shard_count && !known; k++)
            known = strcmp(checkpoint->shards[k].name, name) == 0;
        if (!known &&
            !q3_findings_add(report, &(q3_finding){.kind = Q3_FINDING_INDEX, .file = name}, err,
                             "%s: the manifest lists the shard, the index does not name it", name))
            return false;
    }
    return true;
}

bool q3_shards_check(const q3_checkpoint *checkpoint, const q3_manifest *manifest,
                     bool headers_only, bool sha256, unsigned jobs, bool quiet, q3_findings *report,
                     q3_error *err)
{
    if (manifest->shard_count == 0)
        return !sha256 || q3_fail(err, Q3_USAGE,
                                  "--sha256: the manifest lists no shards (see q3-verify manifest "
                                  "--shards)");
    comparison c = {.manifest = manifest, .report = report};
    hashing h = {.checkpoint = checkpoint, .take = take_digest, .context = &c};
    if (!compare_files(checkpoint, manifest, headers_only, report, err))
        return false;
    return sha256 ? hash_shards(&h, jobs, quiet, err)
                  : q3_sentences_add(&report->notes, err,
                                     "the shards' SHA-256 were not compared (--sha256 does)");
}

// ---- into a manifest ----

static bool describe_digest(void *context, const q3_shard *shard, const uint8_t *digest,
                            const q3_error *problem, q3_error *err)
{
    if (!problem)
        return q3_manifest_add_shard(context, shard->name, shard->size, digest, err);
    *err = *problem;
    return false;
}

bool q3_shards_describe(const q3_checkpoint *checkpoint, unsigned jobs, bool quiet,
                        q3_manifest *manifest, q3_error *err)
{
    hashing h = {.checkpoint = checkpoint, .take = describe_digest, .context = manifest};
    return hash_shards(&h, jobs, quiet, err);
}
