// SPDX-License-Identifier: Apache-2.0
//
// Manifests: the ones of the repository follow from configurations, what is written is read back,
// and what is malformed is refused with a message that says where and why.
#include "damage.h"
#include "manifest.h"
#include "schema.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_64 "abcdefghijklmnopabcdefghijklmnopabcdefghijklmnopabcdefghijklmnop"

static void load_json(const char *path, q3_json *json)
{
    q3_error err;
    if (!q3_json_load(path, 16 << 20, json, &err))
        fail_msg("%s", err.message);
}

static void derive(const q3_json *config, q3_manifest *manifest)
{
    q3_error err;
    if (!q3_manifest_derive(config, manifest, &err))
        fail_msg("%s", err.message);
}

static void write(const q3_manifest *manifest, q3_json_writer *writer)
{
    q3_error err;
    *writer = (q3_json_writer){0};
    if (!q3_manifest_write(manifest, writer, &err))
        fail_msg("%s", err.message);
}

static void load(const char *name, q3_manifest *manifest)
{
    q3_error err;
    char *path = q3_test_path(Q3_TEST_MANIFEST_DIR "/%s", name);
    if (!q3_manifest_load(path, manifest, &err))
        fail_msg("%s", err.message);
    free(path);
}

static bool read_text(const char *text, q3_manifest *manifest, q3_error *err)
{
    q3_json json;
    if (!q3_json_parse("m.json", (q3_bytes){(const uint8_t *)text, strlen(text)}, &json, err))
        return false;
    const bool ok = q3_manifest_read(&json, manifest, err);
    q3_json_free(&json);
    return ok;
}

// Asserts that the manifest of a configuration is, byte for byte, a file of manifests/.
static void assert_derived(const q3_json *config, const char *name)
{
    q3_manifest manifest;
    q3_json_writer writer;
    derive(config, &manifest);
    write(&manifest, &writer);
    char *path = q3_test_path(Q3_TEST_MANIFEST_DIR "/%s", name);
    size_t size;
    char *file = q3_test_read(path, &size);
    assert_int_equal(writer.size, size);
    assert_memory_equal(writer.text, file, size);
    free(file);
    free(path);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
}

// Instruct's configuration made into Thinking's: nothing that speaks.
static void silence(q3_json *config)
{
    assert_true(cJSON_ReplaceItemInObjectCaseSensitive(config->root, "enable_audio_output",
                                                       cJSON_CreateFalse()));
}

static void manifests_follow_from_configurations(void **state)
{
    (void)state;
    q3_json config;
    load_json(Q3_TEST_MODEL_DIR "/config.json", &config);
    assert_derived(&config, "tiny-omni.json");
    q3_json_free(&config);
    load_json(Q3_TEST_CONFIG_DIR "/qwen3-omni-30b-a3b-instruct.json", &config);
    assert_derived(&config, "qwen3-omni-30b-a3b-instruct.json");
    silence(&config);
    assert_derived(&config, "qwen3-omni-30b-a3b-thinking.json");
    assert_derived(&config, "qwen3-omni-30b-a3b-captioner.json");
    q3_json_free(&config);
    load_json(Q3_TEST_CONFIG_DIR "/qwen3-30b-a3b.json", &config);
    assert_derived(&config, "qwen3-30b-a3b.json");
    q3_json_free(&config);
}

static void manifests_follow_from_published_configuration(void **state)
{
    (void)state;
    const char *reference = getenv("Q3_REFERENCE_DIR");
    if (!reference || !*reference)
        skip();
    char *path = q3_test_path("%s/qwen3-omni-30b-a3b/config.json", reference);
    q3_json config;
    load_json(path, &config);
    assert_derived(&config, "qwen3-omni-30b-a3b-instruct.json");
    silence(&config);
    assert_derived(&config, "qwen3-omni-30b-a3b-thinking.json");
    assert_derived(&config, "qwen3-omni-30b-a3b-captioner.json");
    q3_json_free(&config);
    free(path);
}

static void totals_are_the_published_ones(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        q3_totals whole;
        uint64_t tensors[Q3_COMPONENTS];
    } rows[] = {
        {"tiny-omni.json", {2610, 5721361, 11442722}, {2361, 45, 39, 79, 86}},
        {"qwen3-omni-30b-a3b-instruct.json",
         {28010, 35259818545, 70519637090},
         {18867, 525, 351, 8037, 230}},
        {"qwen3-omni-30b-a3b-thinking.json",
         {19743, 31719205488, 63438410976},
         {18867, 525, 351, 0, 0}},
        {"qwen3-omni-30b-a3b-captioner.json",
         {19743, 31719205488, 63438410976},
         {18867, 525, 351, 0, 0}},
        {"qwen3-30b-a3b.json", {18867, 30532122624, 61064245248}, {18867, 0, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        q3_manifest manifest;
        load(rows[i].name, &manifest);
        const q3_totals totals = q3_manifest_totals(&manifest, manifest.inventory.has_component);
        assert_int_equal(totals.tensors, rows[i].whole.tensors);
        assert_int_equal(totals.parameters, rows[i].whole.parameters);
        assert_int_equal(totals.bytes, rows[i].whole.bytes);
        for (unsigned c = 0; c < Q3_COMPONENTS; c++) {
            bool scope[Q3_COMPONENTS] = {false};
            scope[c] = true;
            assert_int_equal(q3_manifest_totals(&manifest, scope).tensors, rows[i].tensors[c]);
        }
        q3_manifest_free(&manifest);
    }
}

static void assert_equal_manifests(const q3_manifest *a, const q3_manifest *b)
{
    const q3_inventory *left = &a->inventory, *right = &b->inventory;
    assert_string_equal(a->model_type, b->model_type);
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(left->tensors, right->tensors);
    assert_int_equal(left->bytes, right->bytes);
    assert_memory_equal(left->has_component, right->has_component, sizeof left->has_component);
    assert_int_equal(left->value_count, right->value_count);
    for (size_t i = 0; i < left->value_count; i++) {
        assert_string_equal(left->values[i].name, right->values[i].name);
        assert_int_equal(left->values[i].component, right->values[i].component);
        assert_int_equal(left->values[i].number, right->values[i].number);
    }
    assert_int_equal(left->pattern_count, right->pattern_count);
    for (size_t i = 0; i < left->pattern_count; i++) {
        const q3_pattern *l = &left->patterns[i], *r = &right->patterns[i];
        assert_string_equal(l->name, r->name);
        assert_int_equal(l->component, r->component);
        assert_int_equal(l->dtype, r->dtype);
        assert_int_equal(l->rank, r->rank);
        for (unsigned d = 0; d < l->rank; d++) {
            assert_string_equal(l->dimension[d], r->dimension[d]);
            assert_int_equal(l->shape[d], r->shape[d]);
        }
        assert_int_equal(l->ranges, r->ranges);
        assert_memory_equal(l->range, r->range, sizeof l->range);
        assert_int_equal(l->first, r->first);
        assert_int_equal(l->count, r->count);
        assert_int_equal(l->bytes, r->bytes);
        assert_int_equal(r->part, Q3_WHOLE);
    }
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    static const char *const configs[] = {Q3_TEST_MODEL_DIR "/config.json",
                                          Q3_TEST_CONFIG_DIR "/qwen3-omni-30b-a3b-instruct.json",
                                          Q3_TEST_CONFIG_DIR "/qwen3-30b-a3b.json"};
    for (size_t i = 0; i < 3; i++) {
        q3_json config;
        q3_manifest derived, read;
        q3_json_writer first, second;
        q3_error err;
        load_json(configs[i], &config);
        derive(&config, &derived);
        write(&derived, &first);
        if (!read_text(first.text, &read, &err))
            fail_msg("%s", err.message);
        assert_equal_manifests(&derived, &read);
        write(&read, &second);
        assert_string_equal(first.text, second.text);
        q3_json_writer_free(&first);
        q3_json_writer_free(&second);
        q3_manifest_free(&derived);
        q3_manifest_free(&read);
        q3_json_free(&config);
    }
}

// Two components, a pattern of another dtype, a scalar.
static const char sample[] =
    "{\n"
    "  \"format\": \"q3-manifest\",\n"
    "  \"version\": 1,\n"
    "  \"model_type\": \"sample\",\n"
    "  \"dtype\": \"BF16\",\n"
    "  \"totals\": {\"tensors\": 6, \"parameters\": 61, \"bytes\": 130},\n"
    "  \"components\": [\n"
    "    {\n"
    "      \"name\": \"text\",\n"
    "      \"tensors\": 5,\n"
    "      \"parameters\": 57,\n"
    "      \"bytes\": 114,\n"
    "      \"values\": {\n"
    "        \"width\": 4,\n"
    "        \"depth\": 3\n"
    "      },\n"
    "      \"patterns\": [\n"
    "        {\"name\": \"a.{0-3}.w\", \"shape\": [\"depth\", \"width\"]},\n"
    "        {\"name\": \"a.norm\", \"shape\": [\"width*depth/4\", 3]}\n"
    "      ]\n"
    "    },\n"
    "    {\n"
    "      \"name\": \"visual\",\n"
    "      \"tensors\": 1,\n"
    "      \"parameters\": 4,\n"
    "      \"bytes\": 16,\n"
    "      \"values\": {},\n"
    "      \"patterns\": [\n"
    "        {\"name\": \"b\", \"dtype\": \"F32\", \"shape\": [4]}\n"
    "      ]\n"
    "    }\n"
    "  ]\n"
    "}\n";

static void a_manifest_by_hand(void **state)
{
    (void)state;
    q3_manifest manifest;
    q3_json_writer writer;
    q3_error err;
    if (!read_text(sample, &manifest, &err))
        fail_msg("%s", err.message);
    const q3_inventory *inventory = &manifest.inventory;
    assert_int_equal(inventory->tensors, 6);
    assert_int_equal(inventory->patterns[1].shape[0], 3);
    assert_int_equal(inventory->patterns[2].dtype, Q3_F32);
    uint64_t ordinal;
    assert_ptr_equal(q3_inventory_find(inventory, "a.3.w", &ordinal), &inventory->patterns[0]);
    assert_int_equal(ordinal, 3);
    assert_null(q3_inventory_find(inventory, "a.4.w", &ordinal));
    write(&manifest, &writer);
    assert_string_equal(writer.text, sample);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
}

#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define SHARD(name, digest) "{\"name\": \"" name "\", \"bytes\": 7, \"sha256\": \"" digest "\"}"

// The sample with one text replaced, and what reading it must say.
static void bad_manifests_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } rows[] = {
        {"{\n", "[", "m.json: not valid JSON: expected a comma or the end at byte 11"},
        {"\"q3-manifest\"", "\"q3-pack\"",
         "m.json: format: expected \"q3-manifest\", found \"q3-pack\""},
        {"\"format\"", "\"fromat\"", "m.json: \"format\" is missing"},
        {"\"version\": 1", "\"version\": 2",
         "m.json: version: expected an integer from 1 to 1, found 2"},
        {"\"model_type\": \"sample\"", "\"model_type\": \"sample\", \"note\": \"x\"",
         "m.json: unknown key \"note\""},
        {"\"sample\"", "\"Sam ple\"", "m.json: model_type: \"Sam ple\" is no model type"},
        {"\"dtype\": \"BF16\"", "\"dtype\": \"bf16\"", "m.json: dtype: \"bf16\" is no dtype"},
        {"\"totals\": {\"tensors\": 6", "\"totals\": {\"tensors\": 7",
         "m.json: totals.tensors: expected 6 as the patterns give, found 7"},
        {"\"bytes\": 130}", "\"bytes\": 131}",
         "m.json: totals.bytes: expected 130 as the patterns give, found 131"},
        {"\"bytes\": 130}", "\"bytes\": 130, \"shards\": 1}",
         "m.json: totals: unknown key \"shards\""},
        {"\"components\": [", "\"shards\": [], \"components\": [",
         "m.json: shards: expected 1 to 10000 shards, found 0"},
        {"\"components\": [", "\"shards\": [" SHARD("a/b", DIGEST) "], \"components\": [",
         "m.json: shards[0].name: \"a/b\" cannot be the name of a shard"},
        {"\"components\": [", "\"shards\": [" SHARD("a", "12") "], \"components\": [",
         "m.json: shards[0].sha256: expected 64 lower-case hexadecimal digits, found \"12\""},
        {"\"components\": [",
         "\"shards\": [" SHARD("b", DIGEST) ", " SHARD("a", DIGEST) "], \"components\": [",
         "m.json: shards[1].name: expected shards sorted by name and each once, found \"a\""},
        {"\"parameters\": 57", "\"parameters\": 58",
         "m.json: components[0].parameters: expected 57 as the patterns give, found 58"},
        {"\"parameters\": 57", "\"parameters\": -57",
         "m.json: components[0].parameters: expected an integer from 1 to 9007199254740992, found "
         "-57"},
        {"\"name\": \"text\"", "\"name\": \"txet\"",
         "m.json: components[0].name: \"txet\" is no component"},
        {"\"name\": \"visual\"", "\"name\": \"text\"",
         "m.json: components[1].name: the component \"text\" stands twice"},
        {"\"values\": {}", "\"values\": {}, \"parts\": 1",
         "m.json: components[1]: unknown key \"parts\""},
        {"\"width\": 4", "\"width\": 0",
         "m.json: components[0].values.width: expected an integer from 1 to 9007199254740992, "
         "found 0"},
        {"\"width\": 4", "\"4\": 4",
         "m.json: components[0].values.4: expected a name of a-z, 0-9 and _ that begins with a "
         "letter"},
        {"\"width\": 4", "\"depth\": 4",
         "m.json: components[0].values: the key \"depth\" stands twice"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"height\"]",
         "m.json: components[0].patterns[0]: a.{0-3}.w: the dimension \"height\" cannot be "
         "evaluated"},
        {"width*depth/4", WORD_64 "*" WORD_64,
         "m.json: components[0].patterns[1]: a.norm: expected dimensions of at most 127 bytes, "
         "found 129"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"width*\"]",
         "m.json: components[0].patterns[0]: a.{0-3}.w: the dimension \"width*\" cannot be "
         "evaluated"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"depth/width\"]",
         "m.json: components[0].patterns[0]: a.{0-3}.w: the dimension \"depth/width\" is 0, "
         "expected at least 1"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"4\"]",
         "m.json: components[0].patterns[0].shape[1]: expected a number, or an expression with the "
         "name of a value, found \"4\""},
        {"[\"depth\", \"width\"]", "[1, 1, 1, 1, 1, 1, 1, 1, 1]",
         "m.json: components[0].patterns[0].shape: expected at most 8 dimensions, found 9"},
        {"[\"depth\", \"width\"]", "[4611686018427387904, 2]",
         "m.json: components[0].patterns[0].shape[0]: expected an integer from 1 to "
         "9007199254740992, found 4.6116860184273879e+18"},
        {"[\"depth\", \"width\"]", "[9007199254740992, 1024]",
         "m.json: components[0].patterns[0]: a.{0-3}.w: the size in bytes does not fit 64 bits"},
        {"[\"depth\", \"width\"]", "\"depth\"",
         "m.json: components[0].patterns[0].shape: expected an array, found \"depth\""},
        {"a.{0-3}.w", "a.{3-0}.w",
         "m.json: components[0].patterns[0].name: expected a name of parts between dots, each a "
         "word or a range such as {0-47}, found \"a.{3-0}.w\""},
        {"a.{0-3}.w", "a.x{0-3}.w",
         "m.json: components[0].patterns[0].name: expected a name of parts between dots, each a "
         "word or a range such as {0-47}, found \"a.x{0-3}.w\""},
        {"a.{0-3}.w", "a.{-1-3}.w",
         "m.json: components[0].patterns[0].name: expected a name of parts between dots, each a "
         "word or a range such as {0-47}, found \"a.{-1-3}.w\""},
        {"a.{0-3}.w", "a..w",
         "m.json: components[0].patterns[0].name: expected a name of parts between dots, each a "
         "word or a range such as {0-47}, found \"a..w\""},
        {"a.{0-3}.w", "{0-3}.{0-3}.{0-3}.{0-3}",
         "m.json: components[0].patterns[0]: the name pattern \"{0-3}.{0-3}.{0-3}.{0-3}\" is "
         "malformed, expected ranges such as {0-47}"},
        {"a.{0-3}.w", "a.{0-999999999}.w",
         "m.json: components[0].patterns[0]: the name pattern \"a.{0-999999999}.w\" names too many "
         "tensors"},
        {"a.{0-3}.w", "a.{0-2000000}.w",
         "m.json: components[0].patterns[0]: more than 1048576 "
         "tensors"},
        {"\"a.norm\"", "\"a.3.w\"",
         "m.json: components[0].patterns[1].name: \"a.3.w\" and \"a.{0-3}.w\" can name the same "
         "tensor"},
        {"\"name\": \"b\"", "\"name\": \"a.{3-9}.{0-1}\", \"part\": 1",
         "m.json: components[1].patterns[0]: unknown key \"part\""},
        {"\"F32\"", "\"F33\"", "m.json: components[1].patterns[0].dtype: \"F33\" is no dtype"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *at = strstr(sample, rows[i].from);
        assert_non_null(at);
        char *text = q3_test_path("%.*s%s%s", (int)(at - sample), sample, rows[i].to,
                                  at + strlen(rows[i].from));
        q3_manifest manifest;
        q3_error err;
        if (read_text(text, &manifest, &err))
            fail_msg("accepted: %s", rows[i].message);
        assert_string_equal(err.message, rows[i].message);
        assert_int_equal(err.code, Q3_MALFORMED);
        free(text);
    }
}

static void shards_are_read_and_written(void **state)
{
    (void)state;
    const char *at = strstr(sample, "  \"components\"");
    char *text = q3_test_path(
        "%.*s  \"shards\": [\n    " SHARD("a", DIGEST) ",\n    " SHARD("b", DIGEST) "\n  ],\n%s",
        (int)(at - sample), sample, at);
    q3_manifest manifest;
    q3_json_writer writer;
    q3_error err;
    if (!read_text(text, &manifest, &err))
        fail_msg("%s", err.message);
    assert_int_equal(manifest.shard_count, 2);
    assert_string_equal(manifest.shards[1].name, "b");
    assert_int_equal(manifest.shards[1].bytes, 7);
    assert_int_equal(manifest.shards[1].sha256[7], 0xef);
    write(&manifest, &writer);
    assert_string_equal(writer.text, text);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
    free(text);
}

// ---- the schema ----

static bool fits_schema(const q3_json *schema, const char *text, q3_error *err)
{
    q3_json json;
    if (!q3_json_parse("m.json", (q3_bytes){(const uint8_t *)text, strlen(text)}, &json, err))
        return false;
    const bool ok = schema_check(schema->root, schema->root, json.root, err);
    q3_json_free(&json);
    return ok;
}

static void manifests_are_as_the_schema_says(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-omni.json", "qwen3-omni-30b-a3b-instruct.json",
                                        "qwen3-omni-30b-a3b-thinking.json",
                                        "qwen3-omni-30b-a3b-captioner.json", "qwen3-30b-a3b.json"};
    q3_json schema;
    q3_error err;
    load_json(Q3_TEST_MANIFEST_DIR "/manifest.schema.json", &schema);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *path = q3_test_path(Q3_TEST_MANIFEST_DIR "/%s", names[i]);
        char *text = q3_test_read(path, NULL);
        if (!fits_schema(&schema, text, &err))
            fail_msg("%s: %s", names[i], err.message);
        free(text);
        free(path);
    }
    if (!fits_schema(&schema, sample, &err))
        fail_msg("%s", err.message);
    q3_json_free(&schema);
}

// What the schema refuses, and says where.
static void what_the_schema_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } rows[] = {
        {"\"q3-manifest\"", "\"q3-pack\"", "format: is not the const"},
        {"\"format\"", "\"fromat\"", "an item: lacks format"},
        {"\"sample\"", "\"Sam ple\"", "model_type: does not match ^[a-z][a-z0-9_]{0,62}$"},
        {"\"sample\"", "7", "model_type: is no string"},
        {"\"dtype\": \"BF16\"", "\"dtype\": \"bf16\"", "dtype: is not in the enum"},
        {"\"bytes\": 130}", "\"bytes\": 130, \"shards\": 1}", "shards: is not allowed"},
        {"\"parameters\": 57", "\"parameters\": 0", "parameters: is below the minimum"},
        {"\"parameters\": 57", "\"parameters\": 57.5", "parameters: is no integer"},
        {"\"name\": \"text\"", "\"name\": \"txet\"", "name: is not in the enum"},
        {"\"width\": 4", "\"4\": 4", "an item: does not match ^[a-z][a-z0-9_]{0,62}$"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"width*\"]",
         "an item: fits not exactly one of oneOf"},
        {"[\"depth\", \"width\"]", "[\"depth\", \"4\"]", "an item: fits not exactly one of oneOf"},
        {"[\"depth\", \"width\"]", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "shape: is above maxItems"},
        {"\"components\": [", "\"shards\": [], \"components\": [", "shards: is below minItems"},
        {"\"components\": [", "\"shards\": [" SHARD("a", "12") "], \"components\": [",
         "sha256: does not match ^[0-9a-f]{64}$"},
    };
    q3_json schema;
    q3_error err;
    load_json(Q3_TEST_MANIFEST_DIR "/manifest.schema.json", &schema);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *at = strstr(sample, rows[i].from);
        assert_non_null(at);
        char *text = q3_test_path("%.*s%s%s", (int)(at - sample), sample, rows[i].to,
                                  at + strlen(rows[i].from));
        if (fits_schema(&schema, text, &err))
            fail_msg("accepted: %s", rows[i].message);
        assert_string_equal(err.message, rows[i].message);
        free(text);
    }
    // Shards as they are meant.
    const char *at = strstr(sample, "  \"components\"");
    char *text = q3_test_path("%.*s\"shards\": [" SHARD("a", DIGEST) "], %s", (int)(at - sample),
                              sample, at);
    if (!fits_schema(&schema, text, &err))
        fail_msg("%s", err.message);
    free(text);
    q3_json_free(&schema);
}

static void ambiguity_is_found(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second;
        bool ambiguous;
    } rows[] = {
        {"x.{0-3}.w", "x.{3-9}.w", true},
        {"x.{0-3}.w", "x.{4-9}.w", false},
        {"x.{0-3}.w", "x.2.w", true},
        {"x.{0-3}.w", "x.02.w", false},
        {"x.{0-3}.w", "x.4.w", false},
        {"x.{0-3}.w", "x.two.w", false},
        {"x.{0-3}.w", "x.{0-3}.v", false},
        {"x.{0-3}", "x.{0-3}.w", false},
        {"{0-3}.{0-3}", "{2-5}.{3-3}", true},
        {"{0-3}.{0-3}", "{2-5}.{4-5}", false},
        {"x.w", "x.w", true},
        {"x.w", "x.ww", false},
        {"x.3.{0-1}", "x.{0-3}.1", true},
        {"x.3.{0-1}", "x.{0-2}.1", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        q3_manifest manifest;
        q3_error err;
        // The totals stay wrong: they are looked at last.
        char *text =
            q3_test_path("{\"format\": \"q3-manifest\", \"version\": 1, \"model_type\": \"m\", "
                         "\"dtype\": \"BF16\", \"totals\": {}, \"components\": [{\"name\": "
                         "\"text\", \"values\": {}, \"patterns\": [{\"name\": \"%s\", "
                         "\"shape\": []}, {\"name\": \"%s\", \"shape\": []}]}]}",
                         rows[i].first, rows[i].second);
        assert_false(read_text(text, &manifest, &err));
        char *message =
            rows[i].ambiguous
                ? q3_test_path(
                      "m.json: components[0].patterns[1].name: \"%s\" and \"%s\" can name the "
                      "same tensor",
                      rows[i].second, rows[i].first)
                : q3_test_path("m.json: components[0]: \"tensors\" is missing");
        assert_string_equal(err.message, message);
        free(message);
        free(text);
    }
}

static void files_that_cannot_be_read(void **state)
{
    (void)state;
    q3_manifest manifest;
    q3_error err;
    assert_false(q3_manifest_load(Q3_TEST_MANIFEST_DIR "/absent.json", &manifest, &err));
    assert_int_equal(err.code, Q3_FAILED);
    assert_string_equal(err.message, Q3_TEST_MANIFEST_DIR
                        "/absent.json: cannot open: No such file or directory");
    assert_false(q3_manifest_load(Q3_TEST_MODEL_DIR "/config.json", &manifest, &err));
    assert_int_equal(err.code, Q3_MALFORMED);
    assert_string_equal(err.message, Q3_TEST_MODEL_DIR "/config.json: \"format\" is missing");
}

// "768x2048", or nothing for a scalar.
static unsigned parse_shape(const char *text, uint64_t shape[Q3_RANK_MAX])
{
    unsigned rank = 0;
    while (*text && rank < Q3_RANK_MAX) {
        char *end;
        shape[rank++] = strtoull(text, &end, 10);
        text = *end == 'x' ? end + 1 : end;
    }
    return rank;
}

static void instruct_names_every_published_tensor(void **state)
{
    (void)state;
    const char *reference = getenv("Q3_REFERENCE_DIR");
    if (!reference || !*reference)
        skip();
    q3_manifest manifest;
    load("qwen3-omni-30b-a3b-instruct.json", &manifest);
    bool *seen = calloc((size_t)manifest.inventory.tensors, sizeof *seen);
    assert_non_null(seen);
    char *path = q3_test_path("%s/qwen3-omni-30b-a3b/tensors_instruct.tsv", reference);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char *line = NULL;
    size_t capacity = 0, rows = 0;
    assert_true(getline(&line, &capacity, file) > 0);
    assert_string_equal(line, "name\tdtype\tshape\tbytes\tshard\n");
    while (getline(&line, &capacity, file) > 0) {
        char *rest = line;
        const char *name = strsep(&rest, "\t"), *dtype = strsep(&rest, "\t");
        const char *shape_text = strsep(&rest, "\t"), *bytes = strsep(&rest, "\t");
        assert_non_null(rest);
        uint64_t ordinal, shape[Q3_RANK_MAX];
        const unsigned rank = parse_shape(shape_text, shape);
        const q3_pattern *pattern = q3_inventory_find(&manifest.inventory, name, &ordinal);
        if (!pattern)
            fail_msg("%s is not in the manifest", name);
        assert_false(seen[ordinal]);
        seen[ordinal] = true;
        assert_string_equal(q3_dtype_name(pattern->dtype), dtype);
        if (!q3_shape_equal(pattern->rank, pattern->shape, rank, shape))
            fail_msg("%s has another shape", name);
        assert_int_equal(pattern->bytes, strtoull(bytes, NULL, 10));
        rows++;
    }
    assert_int_equal(rows, 28010);
    assert_int_equal(manifest.inventory.tensors, 28010);
    free(line);
    fclose(file);
    free(path);
    free(seen);
    q3_manifest_free(&manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(manifests_follow_from_configurations),
        cmocka_unit_test(manifests_follow_from_published_configuration),
        cmocka_unit_test(totals_are_the_published_ones),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_manifest_by_hand),
        cmocka_unit_test(bad_manifests_are_refused),
        cmocka_unit_test(shards_are_read_and_written),
        cmocka_unit_test(manifests_are_as_the_schema_says),
        cmocka_unit_test(what_the_schema_refuses),
        cmocka_unit_test(ambiguity_is_found),
        cmocka_unit_test(files_that_cannot_be_read),
        cmocka_unit_test(instruct_names_every_published_tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
