// SPDX-License-Identifier: Apache-2.0
//
// The whole of Qwen3-Omni-30B-A3B-Instruct, with holes in place of weights: every tensor wrong in
// every way is found and named, and mistakes that make thousands of findings are named as one.
#include "checkpoint.h"
#include "checkpoint_writer.h"
#include "damage.h"
#include "shapes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INSTRUCT "qwen3-omni-30b-a3b-instruct.json"

// Every mutation in a release build; with checks that cost time, some.
#ifdef NDEBUG
enum { STEP = 1 };
#else
enum { STEP = 29 };
#endif

enum {
    TENSORS = 28010,
    MUTATIONS = 6 * TENSORS,
    // Vectors and squares, of which a swap would change nothing: they get a dimension of 1 in
    // front.
    SYMMETRIC = 1198,
    NEIGHBOURS = 16,
    WHOLE_EVERY = 500, // as often the whole listing is compared, else the neighbourhood
};

static const bool all_components[Q3_COMPONENTS] = {true, true, true, true, true};

typedef struct world {
    char *scratch, *model;
    q3_manifest manifest;
    q3_expectation expectation;
    q3_checkpoint checkpoint;
    q3_listing_entry *sound, *entries; // of the untouched checkpoint; room to spoil them
    size_t count;
    size_t tried, symmetric;
} world;

static void write_model(const char *directory, void (*edit)(void *, q3_planned_tensor *),
                        void *context)
{
    q3_checkpoint_summary summary;
    q3_error err;
    const q3_checkpoint_options options = {.config = Q3_TEST_CONFIG_DIR "/" INSTRUCT,
                                           .directory = directory,
                                           .shard_bytes = Q3_SHARD_BYTES_DEFAULT,
                                           .sparse = true,
                                           .jobs = 2,
                                           .edit = edit,
                                           .context = context};
    if (!q3_checkpoint_write(&options, &summary, &err))
        fail_msg("%s", err.message);
    assert_int_equal(summary.shards, 15);
    if (!edit)
        assert_int_equal(summary.bytes, 70519637090);
}

static int create_world(void **state)
{
    world *w = calloc(1, sizeof *w);
    q3_error err;
    assert_non_null(w);
    w->scratch = q3_test_directory();
    w->model = q3_test_path("%s/model", w->scratch);
    write_model(w->model, NULL, NULL);
    if (!q3_manifest_load(Q3_TEST_MANIFEST_DIR "/" INSTRUCT, &w->manifest, &err) ||
        !q3_expectation_create(&w->manifest, &w->expectation, &err) ||
        !q3_checkpoint_open(w->model, &w->checkpoint, &err))
        fail_msg("%s", err.message);
    w->count = w->checkpoint.tensor_count;
    w->sound = calloc(w->count, sizeof *w->sound);
    w->entries = calloc(w->count, sizeof *w->entries);
    assert_true(w->sound && w->entries);
    for (size_t i = 0; i < w->count; i++)
        w->sound[i] =
            (q3_listing_entry){.tensor = w->checkpoint.tensors[i].tensor,
                               .file = w->checkpoint.shards[w->checkpoint.tensors[i].shard].name,
                               .presence = Q3_PRESENT};
    *state = w;
    return 0;
}

static int destroy_world(void **state)
{
    world *w = *state;
    q3_checkpoint_close(&w->checkpoint);
    q3_expectation_free(&w->expectation);
    q3_manifest_free(&w->manifest);
    free(w->sound);
    free(w->entries);
    free(w->model);
    q3_test_remove(w->scratch);
    free(w);
    return 0;
}

static void the_untouched_checkpoint(void **state)
{
    world *w = *state;
    q3_findings report = {0};
    q3_error err;
    assert_int_equal(w->count, TENSORS);
    assert_true(q3_shapes_check(w->model, &w->manifest,
                                &(q3_shapes_options){.jobs = 2, .quiet = true}, &report, &err));
    assert_int_equal(report.count, 0);
    assert_int_equal(report.causes.count, 0);
    assert_int_equal(report.tensors, TENSORS);
    assert_int_equal(report.files, 15);
    assert_int_equal(report.bytes, 70519637090);
    q3_findings_free(&report);
}

typedef enum mutation {
    NOT_LISTED,
    NOT_STORED,
    RENAMED,
    LONGER,
    SWAPPED,
    OTHER_DTYPE,
} mutation;

// Exchanges two dimensions that differ; false when there are none and it got one more instead.
static bool swap_dimensions(q3_tensor *tensor)
{
    for (unsigned a = 0; a < tensor->rank; a++)
        for (unsigned b = a + 1; b < tensor->rank; b++)
            if (tensor->shape[a] != tensor->shape[b]) {
                const uint64_t extent = tensor->shape[a];
                tensor->shape[a] = tensor->shape[b];
                tensor->shape[b] = extent;
                return true;
            }
    assert_true(tensor->rank < Q3_RANK_MAX);
    memmove(tensor->shape + 1, tensor->shape, tensor->rank * sizeof *tensor->shape);
    tensor->shape[0] = 1;
    tensor->rank++;
    return false;
}

// What the message must hold: the tensor's name first, then this.
static void assert_named(const world *w, size_t i, mutation how, bool symmetric,
                         const q3_findings *report)
{
    const char *name = w->sound[i].tensor.name, *file = w->sound[i].file;
    char expected[256];
    const q3_finding_kind kinds[] = {
        [NOT_LISTED] = Q3_FINDING_MISSING, [NOT_STORED] = Q3_FINDING_MISSING,
        [RENAMED] = Q3_FINDING_MISSING,    [LONGER] = Q3_FINDING_SHAPE,
        [SWAPPED] = Q3_FINDING_SHAPE,      [OTHER_DTYPE] = Q3_FINDING_DTYPE};
    switch (how) {
    case NOT_LISTED:
    case RENAMED:
        snprintf(expected, sizeof expected, "found nothing: the index does not list it");
        break;
    case NOT_STORED:
        snprintf(expected, sizeof expected, "found nothing: %s lacks it", file);
        break;
    case LONGER:
        snprintf(expected, sizeof expected, "in %s", file);
        break;
    case SWAPPED:
        if (symmetric)
            snprintf(expected, sizeof expected, "in %s", file);
        else
            snprintf(expected, sizeof expected, "are swapped");
        break;
    default:
        snprintf(expected, sizeof expected, "expected dtype BF16, found F16 in %s", file);
    }
    if (report->count != (how == RENAMED ? 2U : 1U))
        fail_msg("%s, mutation %d: %zu findings", name, (int)how, report->count);
    // The renamed one stands before or behind the one that is missing.
    const size_t at = how == RENAMED && report->findings[0].kind == Q3_FINDING_UNKNOWN;
    const q3_finding *finding = &report->findings[at];
    const size_t length = strlen(finding->message), end = strlen(expected);
    assert_int_equal(finding->kind, kinds[how]);
    assert_string_equal(finding->tensor, name);
    assert_memory_equal(finding->message, name, strlen(name));
    assert_true(length > end);
    assert_string_equal(finding->message + length - end, expected);
    if (how == RENAMED)
        assert_int_equal(report->findings[1 - at].kind, Q3_FINDING_UNKNOWN);
}

// Spoils tensor i and compares, in the whole listing or among its neighbours.
static void mutate(world *w, size_t i, mutation how)
{
    const bool whole = (i + how) % WHOLE_EVERY == 0;
    const size_t from = whole || i < NEIGHBOURS ? 0 : i - NEIGHBOURS;
    const size_t to = whole || w->count - i <= NEIGHBOURS ? w->count : i + NEIGHBOURS;
    const q3_expectation expectation = {.tensors = w->expectation.tensors + from,
                                        .count = to - from};
    q3_listing listing = {.index = "the index", .entries = w->entries + from, .count = to - from};
    char name[Q3_NAME_MAX + 8];
    memcpy(listing.entries, w->sound + from, listing.count * sizeof *w->sound);
    q3_listing_entry *entry = &w->entries[i];
    q3_tensor *tensor = &entry->tensor;
    bool symmetric = false;
    switch (how) {
    case NOT_LISTED:
        memmove(entry, entry + 1, (to - i - 1) * sizeof *entry);
        listing.count--;
        break;
    case NOT_STORED:
        entry->presence = Q3_FILE_LACKS;
        break;
    case RENAMED:
        snprintf(name, sizeof name, "%s_old", tensor->name);
        tensor->name = name;
        break;
    case LONGER:
        tensor->shape[w->tried % tensor->rank]++;
        assert_true(q3_tensor_size(tensor));
        break;
    case SWAPPED:
        symmetric = !swap_dimensions(tensor);
        w->symmetric += symmetric;
        break;
    case OTHER_DTYPE:
        tensor->dtype = Q3_F16;
        break;
    }
    q3_findings report = {0};
    q3_error err;
    if (!q3_shapes_compare(&expectation, all_components, &listing, &report, &err))
        fail_msg("%s", err.message);
    assert_named(w, i, how, symmetric, &report);
    q3_findings_free(&report);
    w->tried++;
}

static void every_mutation_is_found_and_named(void **state)
{
    world *w = *state;
    for (size_t i = 0; i < w->count; i += STEP)
        for (mutation how = NOT_LISTED; how <= OTHER_DTYPE; how++)
            mutate(w, i, how);
    if (STEP == 1) {
        assert_int_equal(w->tried, MUTATIONS);
        assert_int_equal(w->symmetric, SYMMETRIC);
    }
}

// ---- one mistake, many findings ----

// Keeps of each layer what lies in the shard in which the layer begins, as a reader does that takes
// one shard a layer.
static void one_shard_a_layer(void *context, q3_planned_tensor *tensor)
{
    uint32_t *first = context; // shard of each layer, counted from 1; 0 until it is known
    unsigned layer;
    if (sscanf(tensor->name, "thinker.model.layers.%u.", &layer) != 1)
        return;
    assert_true(layer < 48);
    if (first[layer] == 0)
        first[layer] = tensor->shard + 1;
    tensor->listed = tensor->shard + 1 == first[layer];
}

static char *printed(const q3_findings *report)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    q3_error error;
    assert_true(q3_findings_print(report, file, &error));
    assert_int_equal(fclose(file), 0);
    return text;
}

static size_t count_lines(const char *text)
{
    size_t lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

static void check(const world *w, const char *model, q3_findings *report)
{
    q3_error err;
    *report = (q3_findings){.command = "shapes", .path = model};
    if (!q3_shapes_check(model, &w->manifest, &(q3_shapes_options){.jobs = 2, .quiet = true},
                         report, &err))
        fail_msg("%s", err.message);
}

static void an_index_of_one_shard_a_layer(void **state)
{
    const world *w = *state;
    uint32_t first[48] = {0};
    char *model = q3_test_path("%s/cut", w->scratch);
    write_model(model, one_shard_a_layer, first);
    q3_findings report;
    check(w, model, &report);
    char *text = printed(&report);
    char *expected = q3_test_path(
        "cause: the index gives each layer to one shard, but layers are cut where a shard ends: "
        "layers 1, 5, 9, …, 45 lack 1,632 tensors, of 540 experts (532 of them wholly); the shards "
        "hold 1,632 tensors that it does not list: use the index that was saved with them\n"
        "missing (1,632):\n"
        "  layers 1, 5, 9, 13, …, 45: input_layernorm.weight, post_attention_layernorm.weight (24 "
        "tensors): not in the index\n"
        "  layers 1, 5, 9, 13, …, 45: experts 76–127, 77–127, 78–127, 80–127, …, 90–127 (1,608 "
        "tensors): not in the index\n"
        "index (1,633):\n"
        "  %s/model.safetensors.index.json: total_size is 70519637090, the tensors take "
        "65461208162 "
        "bytes\n"
        "  layers 1, 5, 9, 13, …, 45: input_layernorm.weight, post_attention_layernorm.weight (24 "
        "tensors): in a shard, but not in the index\n"
        "  layers 1, 5, 9, 13, …, 45: experts 76–127, 77–127, 78–127, 80–127, …, 90–127 (1,608 "
        "tensors): in a shard, but not in the index\n"
        "note: no tokenizer files: nothing was compared with the vocabulary of 152064\n"
        "3,265 differences in 28,010 tensors, 15 files, 65.5 GB (1,632 missing, 1,633 index)\n",
        model);
    assert_string_equal(text, expected);
    free(expected);
    free(text);
    q3_findings_free(&report);
    free(model);
}

static void without_the_fifth_shard(void *context, q3_planned_tensor *tensor)
{
    (void)context;
    tensor->listed = tensor->stored = tensor->shard != 4;
}

static void an_index_that_lacks_a_shard(void **state)
{
    const world *w = *state;
    char *model = q3_test_path("%s/fifth", w->scratch);
    write_model(model, without_the_fifth_shard, NULL);
    q3_findings report;
    check(w, model, &report);
    assert_int_equal(report.causes.count, 1);
    assert_string_equal(report.causes.texts[0],
                        "the index names 14 of 15 shards, and not number 5: is it absent?");
    char *text = printed(&report);
    assert_non_null(strstr(text, "  layer 13: experts 80–127 (144 tensors): not in the index\n"));
    assert_true(count_lines(text) <= 24);
    free(text);
    q3_findings_free(&report);
    free(model);
}

// All that can be wrong with a header at once still fits a screen.
static void all_wrong_at_once(void *context, q3_planned_tensor *tensor)
{
    size_t *number = context;
    switch ((*number)++ % 5) {
    case 0:
        tensor->dtype = Q3_F32;
        break;
    case 1:
        tensor->listed = false;
        break;
    case 2:
        tensor->stored = false;
        break;
    case 3:
        tensor->shape[0]++;
        break;
    default:
        break;
    }
}

static void a_report_fits_a_screen(void **state)
{
    const world *w = *state;
    size_t number = 0;
    char *model = q3_test_path("%s/wrong", w->scratch);
    write_model(model, all_wrong_at_once, &number);
    q3_findings report;
    check(w, model, &report);
    assert_true(report.count >= 4 * (size_t)TENSORS / 5);
    char *text = printed(&report);
    if (count_lines(text) > 24)
        fail_msg("%zu lines:\n%s", count_lines(text), text);
    free(text);
    q3_findings_free(&report);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_untouched_checkpoint),
        cmocka_unit_test(every_mutation_is_found_and_named),
        cmocka_unit_test(an_index_of_one_shard_a_layer),
        cmocka_unit_test(an_index_that_lacks_a_shard),
        cmocka_unit_test(a_report_fits_a_screen),
    };
    return cmocka_run_group_tests(tests, create_world, destroy_world);
}
