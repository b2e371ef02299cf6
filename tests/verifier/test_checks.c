// SPDX-License-Identifier: Apache-2.0
//
// What is checked beside names and shapes: files cut short, weights, the configuration, the
// tokenizer's ids, SHA-256, and variants that are recognised. Each test spoils one thing in a copy
// of the tiny model.
#include "damage.h"
#include "data.h"
#include "diagnosis.h"
#include "shapes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TINY_MANIFEST Q3_TEST_MANIFEST_DIR "/tiny-omni.json"
#define RUN(...) q3_test_run(NULL, Q3_TEST_VERIFY, __VA_ARGS__, NULL)
#define NORM_SHARD "model-00007-of-00007.safetensors"
// Of the first shard, as sha256sum prints it.
#define FIRST_BYTES "1734120"
#define FIRST_SHA256 "acba0cf9b4cc12980f09f23154340d77cbffa0aea8eba23e8a79dbb006b9d880"

// A copy of the tiny checkpoint, made anew for each test.
typedef struct world {
    char *scratch, *model, *index, *config, *shard;
} world;

static int create_world(void **state)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->scratch = q3_test_directory();
    w->model = q3_test_path("%s/model", w->scratch);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, w->model, false);
    w->index = q3_test_path("%s/model.safetensors.index.json", w->model);
    w->config = q3_test_path("%s/config.json", w->model);
    w->shard = q3_test_path("%s/" NORM_SHARD, w->model);
    *state = w;
    return 0;
}

static int destroy_world(void **state)
{
    world *w = *state;
    q3_test_remove(w->scratch);
    free(w->model);
    free(w->index);
    free(w->config);
    free(w->shard);
    free(w);
    return 0;
}

static void check(const world *w, q3_shapes_options options, q3_findings *report)
{
    q3_manifest manifest;
    q3_error err;
    options.jobs = 2;
    options.quiet = true;
    *report = (q3_findings){.command = "shapes", .path = w->model};
    if (!q3_manifest_load(TINY_MANIFEST, &manifest, &err) ||
        !q3_shapes_check(w->model, &manifest, &options, report, &err))
        fail_msg("%s", err.message);
    q3_manifest_free(&manifest);
}

static void spoil_text(const char *directory, const char *name, const char *from, const char *to)
{
    char *path = q3_test_path("%s/%s", directory, name);
    file_replace(path, from, to);
    free(path);
}

static void assert_result(q3_test_result result, int code, const char *out, const char *err)
{
    assert_string_equal(result.err, err);
    assert_string_equal(result.out, out);
    assert_int_equal(result.code, code);
    q3_test_result_free(&result);
}

// Where the bytes of a tensor begin in its shard.
static uint64_t find_data(const world *w, const char *name, char *shard, size_t capacity)
{
    q3_checkpoint checkpoint;
    q3_error err;
    if (!q3_checkpoint_open(w->model, &checkpoint, &err))
        fail_msg("%s", err.message);
    const q3_stored_tensor *stored = q3_checkpoint_find(&checkpoint, name);
    assert_non_null(stored);
    const uint64_t offset = stored->offset;
    snprintf(shard, capacity, "%s/%s", w->model, checkpoint.shards[stored->shard].name);
    q3_checkpoint_close(&checkpoint);
    return offset;
}

static void write_elements(const world *w, const char *name, size_t first, const uint16_t *values,
                           size_t count)
{
    char shard[512];
    const uint64_t offset = find_data(w, name, shard, sizeof shard) + 2 * first;
    FILE *file = fopen(shard, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    assert_int_equal(fwrite(values, sizeof *values, count, file), count);
    assert_int_equal(fclose(file), 0);
}

// ---- files cut short ----

static void a_shard_cut_short(void **state)
{
    world *w = *state;
    size_t size;
    char *data = q3_test_read(w->shard, &size);
    q3_test_write(w->shard, data, size - 3);
    q3_findings report;
    check(w, (q3_shapes_options){0}, &report);
    char *message = q3_test_path("%s: the header describes a file of %zu bytes, found %zu",
                                 w->shard, size, size - 3);
    ASSERT_MESSAGES(&report, message);
    assert_int_equal(report.findings[0].kind, Q3_FINDING_SIZE);
    q3_findings_free(&report);
    free(message);
    // What is not there is not read: only the last tensor lies behind the end.
    check(w, (q3_shapes_options){.data = true}, &report);
    assert_int_equal(report.counts[Q3_FINDING_SIZE], 1);
    assert_int_equal(report.counts[Q3_FINDING_UNREADABLE], 0);
    q3_findings_free(&report);
    free(data);
}

static void headers_alone(void **state)
{
    world *w = *state;
    q3_checkpoint checkpoint;
    q3_error err;
    assert_true(q3_checkpoint_open(w->model, &checkpoint, &err));
    for (uint32_t i = 0; i < checkpoint.shard_count; i++) {
        char *path = q3_checkpoint_path(&checkpoint, checkpoint.shards[i].name, &err);
        // Of one a little more than the header has come.
        assert_int_equal(truncate(path, (off_t)(checkpoint.shards[i].header_bytes + (i ? 0 : 99))),
                         0);
        free(path);
    }
    q3_checkpoint_close(&checkpoint);
    assert_result(RUN("shapes", w->model, "-m", TINY_MANIFEST, "--headers-only"), 0,
                  "note: headers only: whether the shards hold their data was not checked\n"
                  "0 differences in 2,610 tensors, 7 files, 11.4 MB\n",
                  "");
    q3_findings report;
    check(w, (q3_shapes_options){0}, &report);
    assert_int_equal(report.count, 7);
    assert_int_equal(report.counts[Q3_FINDING_SIZE], 7);
    q3_findings_free(&report);
    // A header cut short is no header.
    assert_int_equal(truncate(w->shard, 100), 0);
    check(w, (q3_shapes_options){.headers_only = true}, &report);
    assert_int_equal(report.counts[Q3_FINDING_MALFORMED], 1);
    q3_findings_free(&report);
}

// ---- weights ----

static void runs_of_each_dtype(void **state)
{
    (void)state;
    static const struct {
        q3_dtype dtype;
        uint64_t values[4];
        q3_data_count count;
    } rows[] = {
        {Q3_BF16, {0x3f80, 0x7f80, 0xff80, 0x7f81}, {1, 2, 1, false}},
        {Q3_BF16, {0x0000, 0x8000, 0x0000, 0x8000}, {0, 0, 4, true}},
        {Q3_BF16, {0x7f7f, 0xff7f, 0x0001, 0x8000}, {0, 0, 4, false}},
        {Q3_F16, {0x3c00, 0x3c00, 0xfc00, 0xfe00}, {1, 1, 2, false}},
        {Q3_F32, {0x7fc00000, 0x7f800000, 0, 0}, {1, 1, 0, false}},
        {Q3_F32, {0x7f7fffff, 0, 0, 0x80000000}, {0, 0, 4, false}},
        {Q3_F64, {0, 0x7ff0000000000000, 0xfff8000000000000, 0}, {1, 1, 1, false}},
        {Q3_F8_E4M3, {0x7f, 0xff, 0x7e, 0}, {2, 0, 0, false}},
        {Q3_F8_E5M2, {0x7b, 0x7c, 0xfd, 0}, {1, 1, 1, false}},
        {Q3_I16, {0, 0x8000, 0, 0}, {0, 0, 4, false}},
        {Q3_I16, {0, 0, 0, 0}, {0, 0, 4, true}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t data[32];
        const size_t size = q3_dtype_size(rows[i].dtype);
        for (size_t k = 0; k < 4; k++)
            memcpy(data + k * size, &rows[i].values[k], size);
        const q3_data_count count = q3_data_scan(rows[i].dtype, data, 4);
        assert_int_equal(count.nan, rows[i].count.nan);
        assert_int_equal(count.infinite, rows[i].count.infinite);
        assert_int_equal(count.first, rows[i].count.first);
        assert_int_equal(count.zero, rows[i].count.zero);
    }
}

static void weights_that_no_model_has(void **state)
{
    world *w = *state;
    static const char q_proj[] = "thinker.model.layers.2.self_attn.q_proj.weight";
    static const char gate[] = "thinker.model.layers.1.mlp.gate.weight";
    static const char norm[] = "thinker.model.norm.weight";
    static const char embedding[] = "thinker.model.embed_tokens.weight";
    uint16_t values[128];
    write_elements(w, q_proj, 300, (const uint16_t[]){0x7fc0, 0x7f80, 0xff80, 0xffff}, 4);
    memset(values, 0, sizeof values);
    write_elements(w, norm, 0, values, 128);
    for (size_t i = 0; i < 128; i++)
        values[i] = 0x3c3c;
    // Rows 5 and 6 of the router, and the last one of the embeddings.
    write_elements(w, gate, 5 * 128, values, 128);
    write_elements(w, gate, 6 * 128, values, 128);
    q3_manifest manifest;
    q3_error err;
    assert_true(q3_manifest_load(TINY_MANIFEST, &manifest, &err));
    uint64_t ordinal;
    const uint64_t rows = q3_inventory_find(&manifest.inventory, embedding, &ordinal)->shape[0];
    q3_manifest_free(&manifest);
    write_elements(w, embedding, (size_t)(rows - 1) * 128, values, 128);
    char *last = q3_test_path("%s: 1 of 1,536 rows hold one value each, the first is row %d",
                              embedding, (int)rows - 1);
    assert_int_equal(rows, 1536);
    for (unsigned jobs = 1; jobs <= 4; jobs += 3) {
        q3_findings report = {0};
        assert_true(q3_manifest_load(TINY_MANIFEST, &manifest, &err));
        assert_true(q3_shapes_check(w->model, &manifest,
                                    &(q3_shapes_options){.scope = (const bool[Q3_COMPONENTS]){true},
                                                         .data = true,
                                                         .jobs = jobs,
                                                         .quiet = true},
                                    &report, &err));
        q3_manifest_free(&manifest);
        unsigned found = 0;
        for (size_t i = 0; i < report.count; i++) {
            const q3_finding *finding = &report.findings[i];
            if (strcmp(finding->tensor, q_proj) == 0) {
                assert_int_equal(finding->kind, Q3_FINDING_NAN);
                assert_string_equal(finding->message,
                                    "thinker.model.layers.2.self_attn.q_proj.weight: 2 NaN and 2 "
                                    "infinities in 16,384 elements, the first is element 300");
            } else if (strcmp(finding->tensor, gate) == 0) {
                assert_int_equal(finding->kind, Q3_FINDING_CONSTANT);
                assert_string_equal(finding->message,
                                    "thinker.model.layers.1.mlp.gate.weight: 2 of 128 rows hold "
                                    "one value each, the first is row 5");
            } else if (strcmp(finding->tensor, norm) == 0) {
                assert_int_equal(finding->kind, Q3_FINDING_ZERO);
                assert_string_equal(finding->message,
                                    "thinker.model.norm.weight: all 128 elements are zero");
            } else {
                assert_string_equal(finding->message, last);
            }
            found++;
        }
        assert_int_equal(found, 4);
        q3_findings_free(&report);
    }
    free(last);
}

// ---- config.json ----

static void a_configuration_of_another_model(void **state)
{
    world *w = *state;
    static const struct {
        const char *from, *to, *message;
    } rows[] = {
        {"\"num_experts\": 128", "\"num_experts\": 64",
         "config.json: text: num_experts: the manifest expects 128, found 64"},
        {"\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7",
         "config.json: text: the manifest expects "
         "thinker.model.layers.{0-5}.self_attn.q_proj.weight, found "
         "thinker.model.layers.{0-6}.self_attn.q_proj.weight"},
        {"\"qwen3_omni_moe\"", "\"qwen3_omni_eom\"", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *sound = q3_test_read(w->config, NULL);
        if (!strstr(sound, rows[i].from))
            fail_msg("no %s", rows[i].from);
        file_replace(w->config, rows[i].from, rows[i].to);
        q3_findings report;
        check(w, (q3_shapes_options){0}, &report);
        assert_true(report.count >= 1);
        assert_int_equal(report.counts[Q3_FINDING_CONFIG], report.count);
        assert_string_equal(report.findings[0].file, "config.json");
        if (rows[i].message)
            assert_string_equal(report.findings[0].message, rows[i].message);
        q3_findings_free(&report);
        q3_test_write_text(w->config, sound);
        free(sound);
    }
    assert_int_equal(unlink(w->config), 0);
    q3_findings report;
    check(w, (q3_shapes_options){0}, &report);
    char *message = q3_test_path("%s: there is none", w->config);
    ASSERT_MESSAGES(&report, message);
    assert_int_equal(report.findings[0].kind, Q3_FINDING_ABSENT);
    free(message);
    q3_findings_free(&report);
}

// ---- tokenizer files ----

static void ids_that_do_not_fit(void **state)
{
    world *w = *state;
    q3_findings report;
    char *vocabulary = q3_test_path("%s/vocab.json", w->model);
    char *sound = q3_test_read(vocabulary, NULL);
    // Three ids: one of another token, one far beyond, and so two gaps.
    q3_test_write_text(vocabulary, "{\"a\": 0, \"b\": 3, \"c\": 3, \"ab\": 1536}");
    char *merges = q3_test_path("%s/merges.txt", w->model);
    q3_test_write_text(merges, "#version: 0.2\na b\nb c\na\n");
    char *config = q3_test_path("%s/tokenizer_config.json", w->model);
    q3_test_write_text(config, "{\"added_tokens_decoder\": {\"0\": {\"content\": \"x\"}, \"9999\": "
                               "{\"content\": \"y\"}, \"2\": {\"content\": \"z\"}}}");
    check(w, (q3_shapes_options){0}, &report);
    ASSERT_MESSAGES(
        &report, "vocab.json: \"b\" and \"c\" have the id 3",
        "vocab.json: 1 tokens have ids beyond the vocabulary of 1536",
        "vocab.json: 2 ids below 3 have no token",
        "merges.txt: 2 merges are malformed or of tokens that vocab.json lacks, the first in line "
        "3",
        "tokenizer_config.json: the added token \"x\" has the id 0 of \"a\"",
        "tokenizer_config.json: the added token \"y\" has the id 9999, beyond the vocabulary of "
        "1536");
    assert_int_equal(report.counts[Q3_FINDING_TOKENIZER], 6);
    q3_findings_free(&report);
    // Other shapes of JSON are findings, not crashes.
    q3_test_write_text(vocabulary, "[1]");
    q3_test_write_text(config, "{\"added_tokens_decoder\": [{}]}");
    assert_int_equal(unlink(merges), 0);
    check(w, (q3_shapes_options){0}, &report);
    ASSERT_MESSAGES(&report, "vocab.json: expected an object of tokens and their ids",
                    "tokenizer_config.json: added_tokens_decoder: expected an object");
    q3_findings_free(&report);
    // All in one file.
    assert_int_equal(unlink(vocabulary), 0);
    assert_int_equal(unlink(config), 0);
    char *fast = q3_test_path("%s/tokenizer.json", w->model);
    q3_test_write_text(fast, "{\"model\": {\"vocab\": {\"a\": 0}}, \"added_tokens\": [{\"id\": 1, "
                             "\"content\": \"b\"}, {\"id\": 1536, \"content\": \"c\"}]}");
    check(w, (q3_shapes_options){0}, &report);
    ASSERT_MESSAGES(&report, "tokenizer.json: the added token \"c\" has the id 1536, beyond the "
                             "vocabulary of 1536");
    assert_int_equal(report.notes.count, 0);
    q3_findings_free(&report);
    assert_int_equal(unlink(fast), 0);
    check(w, (q3_shapes_options){0}, &report);
    assert_int_equal(report.count, 0);
    assert_string_equal(report.notes.texts[0],
                        "no tokenizer files: nothing was compared with the vocabulary of 1536");
    q3_findings_free(&report);
    free(sound);
    free(vocabulary);
    free(merges);
    free(config);
    free(fast);
}

// ---- SHA-256 ----

static void digests_of_shards(void **state)
{
    world *w = *state;
    char *manifest = q3_test_path("%s/m.json", w->scratch);
    q3_test_result made = RUN("manifest", w->config, "--shards", w->model, "-j", "2");
    if (made.code == 1 && strstr(made.err, "built without Nettle")) {
        q3_test_result_free(&made);
        free(manifest);
        skip();
    }
    assert_int_equal(made.code, 0);
    assert_string_equal(made.err, "");
    q3_test_write(manifest, made.out, made.out_size);
    const char *digests = strstr(made.out, "\"shards\": [\n");
    assert_non_null(digests);
    assert_non_null(strstr(
        digests, "    {\"name\": \"model-00001-of-00007.safetensors\", \"bytes\": " FIRST_BYTES
                 ", \"sha256\": \"" FIRST_SHA256 "\"},\n"));
    q3_test_result_free(&made);
    static const char sound[] = "0 differences in 2,610 tensors, 7 files, 11.4 MB\n";
    assert_result(RUN("shapes", w->model, "-m", manifest, "--sha256"), 0, sound, "");
    assert_result(RUN("shapes", w->model, "-m", manifest), 0,
                  "note: the shards' SHA-256 were not compared (--sha256 does)\n"
                  "0 differences in 2,610 tensors, 7 files, 11.4 MB\n",
                  "");
    size_t size;
    char *data = q3_test_read(w->shard, &size);
    q3_test_flip(w->shard, size - 1, 3);
    q3_test_result result = RUN("shapes", w->model, "-m", manifest, "--sha256", "--json");
    assert_int_equal(result.code, 3);
    assert_non_null(strstr(result.out, "{\"type\": \"finding\", \"kind\": \"damaged\", \"file\": "
                                       "\"" NORM_SHARD "\", \"expected\": \""));
    q3_test_result_free(&result);
    free(data);
    spoil_text(w->scratch, "m.json", NORM_SHARD, "model-00008-of-00007.safetensors");
    assert_result(RUN("shapes", w->model, "-m", manifest, "-q"), 3,
                  "index (2):\n"
                  "  " NORM_SHARD ": a shard that the manifest does not list\n"
                  "  model-00008-of-00007.safetensors: the manifest lists the shard, the index "
                  "does not name it\n"
                  "note: the shards' SHA-256 were not compared (--sha256 does)\n"
                  "2 differences in 2,610 tensors, 7 files, 11.4 MB (2 index)\n",
                  "");
    free(manifest);
}

// ---- variants ----

static q3_tensor present(const char *name, unsigned rank, uint64_t a, uint64_t b, uint64_t c)
{
    q3_tensor tensor = {.name = name, .dtype = Q3_BF16, .rank = rank, .shape = {a, b, c}};
    assert_true(q3_tensor_size(&tensor));
    return tensor;
}

// The causes of a listing of all tensors that `keep` wants, under the names that it gives them, and
// of `more`.
static void diagnose(bool (*keep)(const char *name, char *renamed), const q3_tensor *more,
                     size_t more_count, q3_findings *report)
{
    static const bool scope[Q3_COMPONENTS] = {true, true, true, true, true};
    q3_manifest manifest;
    q3_expectation expectation;
    q3_error err;
    assert_true(q3_manifest_load(TINY_MANIFEST, &manifest, &err));
    assert_true(q3_expectation_create(&manifest, &expectation, &err));
    q3_listing listing = {.index = "the index"};
    listing.entries = calloc(expectation.count + more_count, sizeof *listing.entries);
    char(*names)[Q3_NAME_MAX] = calloc(expectation.count, sizeof *names);
    assert_true(listing.entries && names);
    for (size_t i = 0; i < expectation.count; i++) {
        const q3_expected_tensor *expected = &expectation.tensors[i];
        snprintf(names[i], sizeof *names, "%s", expected->name);
        if (!keep(expected->name, names[i]))
            continue;
        q3_listing_entry *entry = &listing.entries[listing.count++];
        *entry = (q3_listing_entry){.tensor = {.name = names[i],
                                               .dtype = expected->pattern->dtype,
                                               .rank = expected->pattern->rank,
                                               .bytes = expected->pattern->bytes},
                                    .file = "model.safetensors",
                                    .presence = Q3_PRESENT};
        memcpy(entry->tensor.shape, expected->pattern->shape, sizeof entry->tensor.shape);
    }
    for (size_t i = 0; i < more_count; i++)
        listing.entries[listing.count++] = (q3_listing_entry){
            .tensor = more[i], .file = "model.safetensors", .presence = Q3_PRESENT};
    *report = (q3_findings){0};
    assert_true(q3_shapes_compare(&expectation, scope, &listing, report, &err));
    assert_true(q3_diagnose(&expectation, scope, &listing, report, &err));
    free(listing.entries);
    free(names);
    q3_expectation_free(&expectation);
    q3_manifest_free(&manifest);
}

static bool keep_all(const char *name, char *renamed)
{
    (void)renamed;
    return name[0] != 0;
}

static bool keep_without_head(const char *name, char *renamed)
{
    (void)renamed;
    return strcmp(name, "thinker.lm_head.weight") != 0;
}

static bool keep_without_experts(const char *name, char *renamed)
{
    (void)renamed;
    return strncmp(name, "thinker.model.", 14) != 0 || !strstr(name, ".experts.");
}

static bool keep_half_the_experts(const char *name, char *renamed)
{
    (void)renamed;
    const char *at =
        strncmp(name, "thinker.model.", 14) == 0 ? strstr(name, ".mlp.experts.") : NULL;
    return !at || atoi(at + 13) < 64;
}

static bool keep_text_unprefixed(const char *name, char *renamed)
{
    if (strncmp(name, "thinker.", 8) == 0)
        snprintf(renamed, Q3_NAME_MAX, "%s", name + 8);
    return true;
}

static bool keep_wrapped(const char *name, char *renamed)
{
    snprintf(renamed, Q3_NAME_MAX, "module.%s", name);
    return true;
}

static void variants_are_named(void **state)
{
    (void)state;
    const q3_tensor fused[] = {
        present("thinker.model.layers.0.mlp.experts.gate_up_proj", 3, 128, 32, 128),
        present("thinker.model.layers.0.mlp.experts.down_proj", 3, 128, 128, 16),
        present("thinker.model.layers.1.mlp.experts.gate_up_proj", 3, 128, 128, 32)};
    const struct {
        bool (*keep)(const char *name, char *renamed);
        size_t fused;
        const char *cause;
    } rows[] = {
        {keep_all, 0, NULL},
        {keep_without_head, 0,
         "thinker.lm_head.weight is not there and thinker.model.embed_tokens.weight is: the "
         "embeddings are tied, a variant that is not supported; save the head as a tensor of its "
         "own"},
        {keep_without_experts, 2,
         "the experts are saved fused, in 2 tensors (experts.gate_up_proj and experts.down_proj): "
         "a "
         "variant that is not supported; save the experts one by one"},
        {keep_without_experts, 3,
         "the experts are saved fused, in 3 tensors (experts.gate_up_proj and experts.down_proj), "
         "of which 1 have shapes that do not fit the configuration, such as [128, 128, 32]: a "
         "variant that is not supported; save the experts one by one"},
        {keep_half_the_experts, 0,
         "every layer lacks the same 64 of 128 experts: for a pruned model use the manifest of its "
         "own configuration (q3-verify manifest)"},
        {keep_text_unprefixed, 0,
         "2,445 names would be expected ones with \"thinker.\" before them: is this the text model "
         "alone?"},
        {keep_wrapped, 0,
         "2,610 names would be expected ones without \"module.\" before them: is this another "
         "family's or a wrapped model?"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        q3_findings report;
        diagnose(rows[i].keep, fused, rows[i].fused, &report);
        assert_int_equal(report.causes.count, rows[i].cause ? 1 : 0);
        if (rows[i].cause)
            assert_string_equal(report.causes.texts[0], rows[i].cause);
        q3_findings_free(&report);
    }
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, create_world, destroy_world)
    const struct CMUnitTest tests[] = {
        TEST(a_shard_cut_short),
        TEST(headers_alone),
        cmocka_unit_test(runs_of_each_dtype),
        TEST(weights_that_no_model_has),
        TEST(a_configuration_of_another_model),
        TEST(ids_that_do_not_fit),
        TEST(digests_of_shards),
        cmocka_unit_test(variants_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
