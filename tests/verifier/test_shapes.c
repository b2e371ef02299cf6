// SPDX-License-Identifier: Apache-2.0
//
// Names, dtypes and shapes: nothing is reported of what is right, and everything that is wrong is
// named. The comparison is tried in memory with every tensor of the tiny model wrong in every way,
// and the readers before it with checkpoints and packs on disk.
#include "checkpoint.h"
#include "damage.h"
#include "set.h"
#include "shapes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Facts about the tiny checkpoint.
enum {
    DIMENSIONS = 5094, // of all tensors
    SWAPS = 2446,      // pairs of different dimensions in one tensor
    VISUAL_TENSORS = 39,
    NORM_SHARD_TENSORS = 333,
};
#define NORM_SHARD "model-00007-of-00007.safetensors"

static const char tiny_manifest[] = Q3_TEST_MANIFEST_DIR "/tiny-omni.json";
static const bool all_components[Q3_COMPONENTS] = {true, true, true, true, true};

static void load(const char *path, q3_manifest *manifest)
{
    q3_error err;
    if (!q3_manifest_load(path, manifest, &err))
        fail_msg("%s", err.message);
}

// ---- in memory ----

typedef struct world {
    q3_manifest manifest;
    q3_expectation expectation;
    q3_checkpoint checkpoint;
    q3_listing_entry *sound; // the listing of the untouched checkpoint, sorted
    size_t count;
    q3_listing_entry *entries; // scratch: room for one more
    q3_expectation compared;   // all that is expected, or a part of it
    char *scratch, *pack;      // a pack directory of everything
} world;

static int create_world(void **state)
{
    world *w = calloc(1, sizeof *w);
    q3_error err;
    assert_non_null(w);
    load(tiny_manifest, &w->manifest);
    if (!q3_expectation_create(&w->manifest, &w->expectation, &err) ||
        !q3_checkpoint_open(Q3_TEST_MODEL_DIR, &w->checkpoint, &err))
        fail_msg("%s", err.message);
    w->count = w->checkpoint.tensor_count;
    assert_int_equal(w->count, 2610);
    w->sound = calloc(w->count, sizeof *w->sound);
    w->entries = calloc(w->count + 1, sizeof *w->entries);
    assert_true(w->sound && w->entries);
    for (size_t i = 0; i < w->count; i++)
        w->sound[i] =
            (q3_listing_entry){.tensor = w->checkpoint.tensors[i].tensor,
                               .file = w->checkpoint.shards[w->checkpoint.tensors[i].shard].name,
                               .presence = Q3_PRESENT};
    w->scratch = q3_test_directory();
    w->pack = q3_test_path("%s/pack", w->scratch);
    pack_create(w->pack, "all", NULL, NULL, Q3_CODEC_ZSTD);
    *state = w;
    return 0;
}

static int destroy_world(void **state)
{
    world *w = *state;
    free(w->sound);
    free(w->entries);
    q3_checkpoint_close(&w->checkpoint);
    q3_expectation_free(&w->expectation);
    q3_manifest_free(&w->manifest);
    q3_test_remove(w->scratch);
    free(w->pack);
    free(w);
    return 0;
}

// A fresh copy of the listing to spoil.
static q3_listing fresh(world *w)
{
    w->compared = w->expectation;
    memcpy(w->entries, w->sound, w->count * sizeof *w->entries);
    return (q3_listing){.index = "the index", .entries = w->entries, .count = w->count};
}

// The same of tensor i and its neighbours only, for what is tried tens of thousands of times. Names
// that are expected and listed stand at the same places of the two sorted lists.
static q3_listing fresh_near(world *w, size_t i)
{
    enum { NEIGHBOURS = 32 };
    const size_t from = i > NEIGHBOURS ? i - NEIGHBOURS : 0;
    const size_t to = w->count - i > NEIGHBOURS ? i + NEIGHBOURS : w->count;
    w->compared = (q3_expectation){.tensors = w->expectation.tensors + from, .count = to - from};
    memcpy(w->entries + from, w->sound + from, (to - from) * sizeof *w->entries);
    return (q3_listing){.index = "the index", .entries = w->entries + from, .count = to - from};
}

static void compare(world *w, q3_listing *listing, q3_findings *report)
{
    q3_error err;
    *report = (q3_findings){0};
    if (!q3_shapes_compare(&w->compared, all_components, listing, report, &err))
        fail_msg("%s", err.message);
    assert_int_equal(report->tensors, w->compared.count);
}

// Compares, and asserts that there is exactly one finding: of this kind and tensor, with this
// message.
static void assert_found(world *w, q3_listing *listing, q3_finding_kind kind, const char *name,
                         const char *format, ...) __attribute__((format(printf, 5, 6)));

static void assert_found(world *w, q3_listing *listing, q3_finding_kind kind, const char *name,
                         const char *format, ...)
{
    char message[1024];
    q3_findings report;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    compare(w, listing, &report);
    if (report.count != 1)
        fail_msg("%zu findings instead of: %s", report.count, message);
    assert_int_equal(report.findings[0].kind, kind);
    assert_string_equal(report.findings[0].tensor, name);
    assert_string_equal(report.findings[0].message, message);
    q3_findings_free(&report);
}

static const char *shape_of(const q3_tensor *tensor, char out[Q3_SHAPE_TEXT_MAX])
{
    return q3_shape_text(tensor->rank, tensor->shape, out);
}

static void nothing_is_reported_of_a_sound_listing(void **state)
{
    world *w = *state;
    q3_listing listing = fresh(w);
    q3_findings report;
    compare(w, &listing, &report);
    assert_int_equal(report.count, 0);
    assert_int_equal(report.bytes, 11442722);
    assert_int_equal(q3_findings_exit_code(&report), Q3_DONE);
}

static void each_tensor_missing(void **state)
{
    world *w = *state;
    char shape[Q3_SHAPE_TEXT_MAX];
    for (size_t i = 0; i < w->count; i++) {
        const q3_tensor *tensor = &w->sound[i].tensor;
        q3_listing listing = fresh(w);
        memmove(&w->entries[i], &w->entries[i + 1], (w->count - i - 1) * sizeof *w->entries);
        listing.count--;
        assert_found(w, &listing, Q3_FINDING_MISSING, tensor->name,
                     "%s: expected BF16 %s, found nothing: the index does not list it",
                     tensor->name, shape_of(tensor, shape));
        static const struct {
            q3_presence presence;
            const char *before, *after;
        } rows[] = {{Q3_FILE_LACKS, "", " lacks it"},
                    {Q3_FILE_ABSENT, "", " is absent"},
                    {Q3_FILE_UNSOUND, "the header of ", " is not sound"}};
        for (size_t k = 0; k < 3; k++) {
            listing = fresh_near(w, i);
            w->entries[i].presence = rows[k].presence;
            assert_found(w, &listing, Q3_FINDING_MISSING, tensor->name,
                         "%s: expected BF16 %s, found nothing: %s%s%s", tensor->name,
                         shape_of(tensor, shape), rows[k].before, w->sound[i].file, rows[k].after);
        }
    }
}

static void each_tensor_renamed(void **state)
{
    world *w = *state;
    char shape[Q3_SHAPE_TEXT_MAX], name[Q3_NAME_MAX + 8], missing[1024], unknown[1024];
    for (size_t i = 0; i < w->count; i++) {
        const q3_tensor *tensor = &w->sound[i].tensor;
        q3_listing listing = fresh_near(w, i);
        snprintf(name, sizeof name, "%s_renamed", tensor->name);
        w->entries[i].tensor.name = name;
        snprintf(missing, sizeof missing,
                 "%s: expected BF16 %s, found nothing: the index does not list it", tensor->name,
                 shape_of(tensor, shape));
        snprintf(unknown, sizeof unknown,
                 "%s: the manifest has no such tensor, found BF16 %s in %s", name, shape,
                 w->sound[i].file);
        q3_findings report;
        compare(w, &listing, &report);
        ASSERT_MESSAGES(&report, missing, unknown);
        assert_int_equal(report.findings[0].kind, Q3_FINDING_MISSING);
        assert_int_equal(report.findings[1].kind, Q3_FINDING_UNKNOWN);
        q3_findings_free(&report);
    }
}

static void each_dimension_changed(void **state)
{
    world *w = *state;
    char expected[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX];
    size_t tried = 0;
    for (size_t i = 0; i < w->count; i++) {
        const q3_tensor *tensor = &w->sound[i].tensor;
        for (unsigned d = 0; d < tensor->rank; d++) {
            q3_listing listing = fresh_near(w, i);
            w->entries[i].tensor.shape[d]++;
            assert_true(q3_tensor_size(&w->entries[i].tensor));
            assert_found(w, &listing, Q3_FINDING_SHAPE, tensor->name,
                         "%s: expected shape %s, found %s in %s", tensor->name,
                         shape_of(tensor, expected), shape_of(&w->entries[i].tensor, found),
                         w->sound[i].file);
            tried++;
        }
        // One dimension more, of extent 1: the same bytes.
        q3_listing listing = fresh_near(w, i);
        q3_tensor *longer = &w->entries[i].tensor;
        longer->shape[longer->rank++] = 1;
        assert_found(w, &listing, Q3_FINDING_SHAPE, tensor->name,
                     "%s: expected shape %s, found %s in %s", tensor->name,
                     shape_of(tensor, expected), shape_of(longer, found), w->sound[i].file);
    }
    assert_int_equal(tried, DIMENSIONS);
}

static void each_pair_of_dimensions_swapped(void **state)
{
    world *w = *state;
    char expected[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX];
    size_t tried = 0;
    for (size_t i = 0; i < w->count; i++) {
        const q3_tensor *tensor = &w->sound[i].tensor;
        for (unsigned a = 0; a < tensor->rank; a++)
            for (unsigned b = a + 1; b < tensor->rank; b++) {
                // Of equal dimensions a swap leaves nothing to be seen.
                if (tensor->shape[a] == tensor->shape[b])
                    continue;
                q3_listing listing = fresh_near(w, i);
                uint64_t *shape = w->entries[i].tensor.shape;
                shape[a] = tensor->shape[b];
                shape[b] = tensor->shape[a];
                assert_found(w, &listing, Q3_FINDING_SHAPE, tensor->name,
                             "%s: expected shape %s, found %s in %s: dimensions %u and %u are "
                             "swapped",
                             tensor->name, shape_of(tensor, expected),
                             shape_of(&w->entries[i].tensor, found), w->sound[i].file, a, b);
                tried++;
            }
    }
    assert_int_equal(tried, SWAPS);
}

static void each_tensor_of_another_dtype(void **state)
{
    world *w = *state;
    static const struct {
        q3_dtype dtype;
        const char *name;
    } rows[] = {{Q3_F16, "F16"}, {Q3_F32, "F32"}};
    for (size_t i = 0; i < w->count; i++)
        for (size_t k = 0; k < 2; k++) {
            q3_listing listing = fresh_near(w, i);
            w->entries[i].tensor.dtype = rows[k].dtype;
            assert_true(q3_tensor_size(&w->entries[i].tensor));
            assert_found(w, &listing, Q3_FINDING_DTYPE, w->sound[i].tensor.name,
                         "%s: expected dtype BF16, found %s in %s", w->sound[i].tensor.name,
                         rows[k].name, w->sound[i].file);
        }
}

static void each_tensor_of_another_size(void **state)
{
    world *w = *state;
    for (size_t i = 0; i < w->count; i++) {
        q3_listing listing = fresh_near(w, i);
        w->entries[i].tensor.bytes += 2;
        assert_found(w, &listing, Q3_FINDING_BYTES, w->sound[i].tensor.name,
                     "%s: expected %" PRIu64 " bytes, found %" PRIu64 " in %s",
                     w->sound[i].tensor.name, w->sound[i].tensor.bytes,
                     w->sound[i].tensor.bytes + 2, w->sound[i].file);
    }
}

static void each_tensor_twice(void **state)
{
    world *w = *state;
    for (size_t i = 0; i < w->count; i++) {
        q3_listing listing = fresh_near(w, i);
        q3_listing_entry *again = &listing.entries[listing.count++];
        *again = w->sound[i];
        again->file = "other.safetensors";
        assert_found(w, &listing, Q3_FINDING_DUPLICATE, w->sound[i].tensor.name,
                     "%s: expected once, found in %s and in other.safetensors",
                     w->sound[i].tensor.name, w->sound[i].file);
    }
}

static void all_that_is_wrong_is_reported_at_once(void **state)
{
    world *w = *state;
    q3_listing listing = fresh(w);
    for (size_t i = 0; i < w->count; i++) {
        w->entries[i].tensor.dtype = Q3_F32;
        w->entries[i].tensor.shape[0]++;
        assert_true(q3_tensor_size(&w->entries[i].tensor));
    }
    q3_findings report;
    compare(w, &listing, &report);
    assert_int_equal(report.count, 2 * 2610);
    assert_int_equal(report.counts[Q3_FINDING_DTYPE], 2610);
    assert_int_equal(report.counts[Q3_FINDING_SHAPE], 2610);
    for (size_t i = 0; i < report.count; i++)
        assert_string_equal(report.findings[i].tensor, w->sound[i / 2].tensor.name);
    assert_int_equal(q3_findings_exit_code(&report), Q3_MISMATCH);
    q3_findings_free(&report);
}

static void scope_narrows_the_comparison(void **state)
{
    world *w = *state;
    const bool only_visual[Q3_COMPONENTS] = {[Q3_VISUAL] = true};
    q3_listing listing = {.index = "the index", .entries = w->entries, .count = 0};
    q3_findings report = {0};
    q3_error err;
    assert_true(q3_shapes_compare(&w->expectation, only_visual, &listing, &report, &err));
    assert_int_equal(report.count, VISUAL_TENSORS);
    assert_int_equal(report.tensors, VISUAL_TENSORS);
    for (size_t i = 0; i < report.count; i++)
        assert_memory_equal(report.findings[i].tensor, "thinker.visual.", 15);
    q3_findings_free(&report);
}

static void unsupported_variants_are_named(void **state)
{
    world *w = *state;
    q3_listing listing = fresh(w);
    w->entries[w->count] =
        (q3_listing_entry){.tensor = {.name = "thinker.model.layers.0.mlp.experts.gate_up_proj",
                                      .dtype = Q3_BF16,
                                      .rank = 3,
                                      .shape = {128, 32, 128}},
                           .file = "model.safetensors",
                           .presence = Q3_PRESENT};
    listing.count++;
    assert_found(w, &listing, Q3_FINDING_UNKNOWN, "thinker.model.layers.0.mlp.experts.gate_up_proj",
                 "thinker.model.layers.0.mlp.experts.gate_up_proj: the manifest has no such "
                 "tensor, found BF16 [128, 32, 128] in model.safetensors: fused experts are not "
                 "supported");
}

// ---- on disk ----

// A copy of the tiny checkpoint to spoil, in *path, and its scratch directory.
typedef struct copy {
    char *scratch, *path;
} copy;

static copy copy_create(void)
{
    copy c = {.scratch = q3_test_directory()};
    c.path = q3_test_path("%s/model", c.scratch);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, c.path, false);
    return c;
}

static void copy_remove(copy *c)
{
    q3_test_remove(c->scratch);
    free(c->path);
}

static void check(const char *path, const bool *scope, q3_findings *report)
{
    q3_manifest manifest;
    q3_error err;
    load(tiny_manifest, &manifest);
    *report = (q3_findings){0};
    const q3_shapes_options options = {.scope = scope, .jobs = 2, .quiet = true};
    if (!q3_shapes_check(path, &manifest, &options, report, &err))
        fail_msg("%s", err.message);
    q3_manifest_free(&manifest);
}

static void sound_checkpoint_and_pack(void **state)
{
    const world *w = *state;
    q3_findings report;
    check(Q3_TEST_MODEL_DIR, NULL, &report);
    assert_int_equal(report.count, 0);
    assert_int_equal(report.tensors, 2610);
    assert_int_equal(report.files, 7);
    assert_int_equal(report.bytes, 11442722);
    check(w->pack, NULL, &report);
    assert_int_equal(report.count, 0);
    assert_int_equal(report.tensors, 2610);
    assert_int_equal(report.files, 793);
    assert_int_equal(report.bytes, 11442722);
}

static const char norm[] = "thinker.model.norm.weight";
static const char norm_shard[] = NORM_SHARD;

static void what_the_index_does_not_list(void **state)
{
    (void)state;
    copy c = copy_create();
    char *index = q3_test_path("%s/model.safetensors.index.json", c.path);
    file_replace(index, "\"thinker.model.norm.weight\"", "\"thinker.model.morn.weight\"");
    q3_findings report;
    check(c.path, NULL, &report);
    char *unlisted =
        q3_test_path("%s/%s: holds %s, which the index does not list", c.path, norm_shard, norm);
    ASSERT_MESSAGES(&report, unlisted,
                    "thinker.model.morn.weight: the manifest has no such tensor, found the name "
                    "alone in the index",
                    "thinker.model.norm.weight: expected BF16 [128], found nothing: the index does "
                    "not list it");
    assert_int_equal(report.findings[0].kind, Q3_FINDING_INDEX);
    assert_int_equal(q3_findings_exit_code(&report), Q3_MISMATCH);
    q3_findings_free(&report);
    free(unlisted);
    free(index);
    copy_remove(&c);
}

static void what_a_shard_lacks(void **state)
{
    (void)state;
    copy c = copy_create();
    char *shard = q3_test_path("%s/%s", c.path, norm_shard);
    file_replace(shard, "\"thinker.model.norm.weight\"", "\"thinker.model.morn.weight\"");
    q3_findings report;
    check(c.path, NULL, &report);
    char *unlisted =
        q3_test_path("%s: holds thinker.model.morn.weight, which the index does not list", shard);
    ASSERT_MESSAGES(&report, unlisted,
                    "thinker.model.norm.weight: expected BF16 [128], found nothing: " NORM_SHARD
                    " lacks it");
    q3_findings_free(&report);
    free(unlisted);
    free(shard);
    copy_remove(&c);
}

static void what_lies_in_another_shard(void **state)
{
    (void)state;
    copy c = copy_create();
    char *index = q3_test_path("%s/model.safetensors.index.json", c.path);
    file_replace(index, "\"thinker.model.norm.weight\": \"" NORM_SHARD "\"",
                 "\"thinker.model.norm.weight\": \"model-00001-of-00007.safetensors\"");
    q3_findings report;
    check(c.path, NULL, &report);
    char *elsewhere = q3_test_path("%s/%s: holds %s, which the index gives to "
                                   "model-00001-of-00007.safetensors",
                                   c.path, norm_shard, norm);
    ASSERT_MESSAGES(&report, elsewhere,
                    "thinker.model.norm.weight: expected BF16 [128], found nothing: "
                    "model-00001-of-00007.safetensors lacks it");
    q3_findings_free(&report);
    free(elsewhere);
    free(index);
    copy_remove(&c);
}

static void an_absent_shard(void **state)
{
    (void)state;
    copy c = copy_create();
    char *shard = q3_test_path("%s/%s", c.path, norm_shard);
    assert_int_equal(unlink(shard), 0);
    q3_findings report;
    check(c.path, NULL, &report);
    assert_int_equal(report.count, 1 + NORM_SHARD_TENSORS);
    char *absent = q3_test_path("%s: the shard is absent; the index puts %d tensors there", shard,
                                NORM_SHARD_TENSORS);
    assert_string_equal(report.findings[0].message, absent);
    assert_int_equal(report.findings[0].kind, Q3_FINDING_ABSENT);
    assert_int_equal(report.causes.count, 0);
    bool named = false;
    for (size_t i = 1; i < report.count; i++) {
        assert_int_equal(report.findings[i].kind, Q3_FINDING_MISSING);
        assert_string_equal(report.findings[i].file, norm_shard);
        named = named ||
                strcmp(report.findings[i].message,
                       "thinker.model.norm.weight: expected BF16 [128], found nothing: " NORM_SHARD
                       " is absent") == 0;
    }
    assert_true(named);
    q3_findings_free(&report);
    free(absent);
    free(shard);
    copy_remove(&c);
}

static void headers_that_differ(void **state)
{
    (void)state;
    copy c = copy_create();
    char *shard = q3_test_path("%s/%s", c.path, norm_shard);
    // As many bytes of header as before, so that only these tensors change.
    file_replace(shard, "\"thinker.model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[128]",
                 "\"thinker.model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[64]  ");
    q3_findings report;
    check(c.path, NULL, &report);
    ASSERT_MESSAGES(&report,
                    "thinker.model.norm.weight: expected dtype BF16, found F32 in " NORM_SHARD,
                    "thinker.model.norm.weight: expected shape [128], found [64] in " NORM_SHARD);
    q3_findings_free(&report);
    free(shard);
    copy_remove(&c);
}

static void a_wrong_total(void **state)
{
    (void)state;
    copy c = copy_create();
    char *index = q3_test_path("%s/model.safetensors.index.json", c.path);
    file_replace(index, "11442722", "11442724");
    q3_findings report;
    check(c.path, NULL, &report);
    char *message =
        q3_test_path("%s: total_size is 11442724, the tensors take 11442722 bytes", index);
    ASSERT_MESSAGES(&report, message);
    q3_findings_free(&report);
    free(message);
    free(index);
    copy_remove(&c);
}

static void packs_that_hold_a_part(void **state)
{
    (void)state;
    char *scratch = q3_test_directory(), *pack = q3_test_path("%s/pack", scratch);
    q3_findings report;
    pack_create(pack, "text", NULL, "0-7", Q3_CODEC_RAW);
    // Other components are not asked about; the experts that are not there are.
    check(pack, NULL, &report);
    assert_int_equal(report.tensors, 2361);
    assert_int_equal(report.count, 6 * 120 * 3);
    assert_int_equal(report.counts[Q3_FINDING_MISSING], report.count);
    assert_string_equal(report.findings[0].message,
                        "thinker.model.layers.0.mlp.experts.10.down_proj.weight: expected BF16 "
                        "[128, 16], found nothing: pack.json does not list it");
    q3_findings_free(&report);
    check(pack, all_components, &report);
    assert_int_equal(report.tensors, 2610);
    assert_int_equal(report.count, 6 * 120 * 3 + 2610 - 2361);
    q3_findings_free(&report);
    q3_test_remove(scratch);
    free(pack);
}

static void packs_that_are_damaged(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = q3_test_path("%s/pack", scratch);
    char *gone = q3_test_path("%s/layers/00/router.q3p", pack);
    char *damaged = q3_test_path("%s/layers/00/norms.q3p", pack);
    q3_findings report;
    q3_test_copy_tree(w->pack, pack, false);
    assert_int_equal(unlink(gone), 0);
    q3_test_flip(damaged, 12, 0);
    check(pack, NULL, &report);
    assert_int_equal(report.count, 5);
    assert_int_equal(report.findings[0].kind, Q3_FINDING_DAMAGED);
    assert_string_equal(report.findings[0].file, "layers/00/norms.q3p");
    char *absent = q3_test_path("%s: listed in pack.json, but absent", gone);
    assert_string_equal(report.findings[1].message, absent);
    assert_int_equal(report.findings[1].kind, Q3_FINDING_ABSENT);
    assert_string_equal(report.findings[2].message,
                        "thinker.model.layers.0.input_layernorm.weight: expected BF16 [128], found "
                        "nothing: the header of layers/00/norms.q3p is not sound");
    assert_string_equal(report.findings[3].message,
                        "thinker.model.layers.0.mlp.gate.weight: expected BF16 [128, 128], found "
                        "nothing: layers/00/router.q3p is absent");
    q3_findings_free(&report);
    free(absent);
    free(gone);
    free(damaged);
    q3_test_remove(scratch);
    free(pack);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_reported_of_a_sound_listing),
        cmocka_unit_test(each_tensor_missing),
        cmocka_unit_test(each_tensor_renamed),
        cmocka_unit_test(each_dimension_changed),
        cmocka_unit_test(each_pair_of_dimensions_swapped),
        cmocka_unit_test(each_tensor_of_another_dtype),
        cmocka_unit_test(each_tensor_of_another_size),
        cmocka_unit_test(each_tensor_twice),
        cmocka_unit_test(all_that_is_wrong_is_reported_at_once),
        cmocka_unit_test(scope_narrows_the_comparison),
        cmocka_unit_test(unsupported_variants_are_named),
        cmocka_unit_test(sound_checkpoint_and_pack),
        cmocka_unit_test(what_the_index_does_not_list),
        cmocka_unit_test(what_a_shard_lacks),
        cmocka_unit_test(what_lies_in_another_shard),
        cmocka_unit_test(an_absent_shard),
        cmocka_unit_test(headers_that_differ),
        cmocka_unit_test(a_wrong_total),
        cmocka_unit_test(packs_that_hold_a_part),
        cmocka_unit_test(packs_that_are_damaged),
    };
    return cmocka_run_group_tests(tests, create_world, destroy_world);
}
