// SPDX-License-Identifier: Apache-2.0
//
// Wrong checkpoints and wrong command lines, one by one: q3-extract refuses each with its exit code
// and one message, and writes nothing.
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *directory; // of all the tests
static char *model;     // the checkpoint at hand: links to the tiny model's files
static char *pack;      // where it would go

static const char second_shard[] = "model-00002-of-00007.safetensors";
static const char index_name[] = "model.safetensors.index.json";

// In messages M stands for the checkpoint's directory, P for the pack's.
static char *expand(const char *message)
{
    char *out = calloc(1, 4096);
    for (const char *at = message; *at; at++) {
        const bool alone = (at == message || at[-1] == ' ') &&
                           (at[1] == '/' || at[1] == ':' || at[1] == ' ' || at[1] == 0);
        if (alone && *at == 'M')
            strcat(out, model);
        else if (alone && *at == 'P')
            strcat(out, pack);
        else
            strncat(out, at, 1);
    }
    return out;
}

// ---- changing a checkpoint ----

static char *path_of(const char *name)
{
    return q3_test_path("%s/%s", model, name);
}

// Replaces a file (which is a link to the original) by other bytes.
static void replace_file(const char *name, const void *data, size_t size)
{
    char *path = path_of(name);
    unlink(path);
    q3_test_write(path, data, size);
    free(path);
}

static void replace_text(const char *name, const char *from, const char *to)
{
    char *path = path_of(name);
    char *text = q3_test_read(path, NULL);
    char *at = strstr(text, from);
    if (!at)
        fail_msg("%s has no \"%s\"", path, from);
    char *changed = q3_test_path("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    replace_file(name, changed, strlen(changed));
    free(changed);
    free(text);
    free(path);
}

// Shortens or lengthens a file.
static void resize(const char *name, long change)
{
    char *path = path_of(name);
    size_t size;
    char *data = q3_test_read(path, &size);
    data = realloc(data, size + 64);
    memset(data + size, 0, 64);
    replace_file(name, data, (size_t)((long)size + change));
    free(data);
    free(path);
}

// A shard with `header` instead of its own; the data stay.
static void replace_header(const char *name, const char *header)
{
    char *path = path_of(name);
    size_t size;
    char *data = q3_test_read(path, &size);
    uint64_t old = 0;
    memcpy(&old, data, 8);
    const uint64_t length = strlen(header);
    const size_t rest = size - 8 - (size_t)old;
    char *changed = malloc(8 + length + rest);
    memcpy(changed, &length, 8);
    memcpy(changed + 8, header, length);
    memcpy(changed + 8 + length, data + 8 + old, rest);
    replace_file(name, changed, 8 + (size_t)length + rest);
    free(changed);
    free(data);
    free(path);
}

static char *header_of(const char *name)
{
    char *path = path_of(name);
    char *data = q3_test_read(path, NULL);
    uint64_t length = 0;
    memcpy(&length, data, 8);
    char *header = strndup(data + 8, (size_t)length);
    free(data);
    free(path);
    return header;
}

static void edit_header(const char *name, const char *from, const char *to)
{
    char *header = header_of(name);
    char *at = strstr(header, from);
    if (!at)
        fail_msg("%s has no \"%s\" in its header", name, from);
    char *changed = q3_test_path("%.*s%s%s", (int)(at - header), header, to, at + strlen(from));
    replace_header(name, changed);
    free(changed);
    free(header);
}

// The first tensor of the second shard, which most of the cases below change.
#define TENSOR "thinker.model.layers.0.input_layernorm.weight"
#define ENTRY "\"" TENSOR "\":{\"dtype\":\"BF16\",\"shape\":[128],\"data_offsets\":[0,256]}"
#define NEXT "thinker.model.layers.0.mlp.experts.100.down_proj.weight"

static void empty_shard(void)
{
    replace_file(second_shard, "", 0);
}

static void shard_of_seven_bytes(void)
{
    replace_file(second_shard, "1234567", 7);
}

static void header_longer_than_file(void)
{
    replace_file(second_shard, "\x40\0\0\0\0\0\0\0{}", 10);
}

static void header_over_the_limit(void)
{
    replace_file(second_shard, "\1\xe1\xf5\5\0\0\0\0", 8);
    char *path = path_of(second_shard);
    assert_int_equal(truncate(path, 200000000), 0);
    free(path);
}

static void header_length_wraps(void)
{
    replace_file(second_shard, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
}

static void header_without_brace(void)
{
    replace_header(second_shard, " {}");
}

static void header_not_json(void)
{
    replace_header(second_shard, "{\"a\":}");
}

static void header_with_nul(void)
{
    edit_header(second_shard, "input_layernorm", "input\\u0000layernorm");
}

static void header_name_twice(void)
{
    edit_header(second_shard, ENTRY, ENTRY "," ENTRY);
}

static void header_hole(void)
{
    edit_header(second_shard, "\"shape\":[128],\"data_offsets\":[0,256]",
                "\"shape\":[127],\"data_offsets\":[0,254]");
}

static void header_overlap(void)
{
    edit_header(second_shard, "\"data_offsets\":[256,4352]", "\"data_offsets\":[254,4350]");
}

static void header_end_before_beginning(void)
{
    edit_header(second_shard, "\"data_offsets\":[0,256]", "\"data_offsets\":[256,0]");
}

static void header_shape_against_offsets(void)
{
    edit_header(second_shard, "\"shape\":[128]", "\"shape\":[129]");
}

static void header_unknown_dtype(void)
{
    edit_header(second_shard, "\"dtype\":\"BF16\"", "\"dtype\":\"BF17\"");
}

static void header_fraction(void)
{
    edit_header(second_shard, "\"shape\":[128]", "\"shape\":[128.5]");
}

static void header_negative(void)
{
    edit_header(second_shard, "\"shape\":[128]", "\"shape\":[-128]");
}

static void header_shape_wraps(void)
{
    edit_header(second_shard, "\"shape\":[128]", "\"shape\":[4294967296,4294967296,128]");
}

static void header_nine_dimensions(void)
{
    edit_header(second_shard, "\"shape\":[128]", "\"shape\":[128,1,1,1,1,1,1,1,1]");
}

static void header_three_offsets(void)
{
    edit_header(second_shard, "\"data_offsets\":[0,256]", "\"data_offsets\":[0,256,256]");
}

static void header_extra_field(void)
{
    edit_header(second_shard, "\"data_offsets\":[0,256]", "\"data_offsets\":[0,256],\"x\":1");
}

static void header_metadata_number(void)
{
    edit_header(second_shard, "\"format\":\"pt\"", "\"format\":7");
}

static void header_name_empty(void)
{
    edit_header(second_shard, TENSOR, "");
}

static void shard_truncated(void)
{
    resize(second_shard, -1);
}

static void shard_with_more(void)
{
    resize(second_shard, 1);
}

static void shard_is_directory(void)
{
    char *path = path_of(second_shard);
    unlink(path);
    char *inside = q3_test_path("%s/x", path);
    q3_test_copy_tree(Q3_TEST_SOURCE_DIR "/manifests", path, true);
    free(inside);
    free(path);
}

static void shard_absent(void)
{
    char *path = path_of(second_shard);
    unlink(path);
    free(path);
}

static void shard_lacks(void)
{
    replace_text(index_name, "thinker.model.norm.weight\": \"model-00007-of-00007.safetensors",
                 "thinker.model.norm.weight\": \"model-00006-of-00007.safetensors");
    // And out of the shard that does have it, so that only the lack is wrong.
    edit_header("model-00007-of-00007.safetensors", "thinker.model.norm.weight",
                "thinker.model.norm.other");
    replace_text(index_name, "    \"thinker.model.norm.weight\"",
                 "    \"thinker.model.norm.other\": \"model-00007-of-00007.safetensors\",\n"
                 "    \"thinker.model.norm.weight\"");
}

static void unlisted(void)
{
    replace_text(index_name, "    \"" TENSOR "\": \"model-00002-of-00007.safetensors\",\n", "");
}

static void elsewhere(void)
{
    replace_text(index_name, TENSOR "\": \"model-00002", TENSOR "\": \"model-00003");
}

// Takes the last tensor of the last shard, the final norm, out of the shard and the index.
static void never_listed(void)
{
    static const char last[] = "model-00007-of-00007.safetensors";
    char *header = header_of(last);
    char *entry = strstr(header, ",\"thinker.model.norm.weight\"");
    assert_non_null(entry);
    strcpy(entry, "}");
    replace_header(last, header);
    resize(last, -256);
    free(header);
    replace_text(index_name,
                 ",\n    \"thinker.model.norm.weight\": \"model-00007-of-00007.safetensors\"", "");
}

static void stray_shard(void)
{
    replace_file("extra.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
}

static void unknown_name(void)
{
    edit_header(second_shard, TENSOR, "thinker.model.layers.0.input_layernorm.gamma");
    replace_text(index_name, TENSOR, "thinker.model.layers.0.input_layernorm.gamma");
}

static void unknown_name_with_escapes(void)
{
    edit_header(second_shard, TENSOR, "thinker.\\u001b[31m");
    replace_text(index_name, TENSOR, "thinker.\\u001b[31m");
}

static void attention_bias(void)
{
    edit_header(second_shard, TENSOR, "thinker.model.layers.0.self_attn.q_proj.bias");
    replace_text(index_name, TENSOR, "thinker.model.layers.0.self_attn.q_proj.bias");
}

static void fused_experts(void)
{
    edit_header(second_shard, TENSOR, "thinker.model.layers.0.mlp.experts.gate_up_proj");
    replace_text(index_name, TENSOR, "thinker.model.layers.0.mlp.experts.gate_up_proj");
}

static void dense_layer(void)
{
    edit_header(second_shard, TENSOR, "thinker.model.layers.0.mlp.up_proj.weight");
    replace_text(index_name, TENSOR, "thinker.model.layers.0.mlp.up_proj.weight");
}

static void expert_beyond(void)
{
    edit_header(second_shard, "mlp.experts.100.down_proj", "mlp.experts.128.down_proj");
    replace_text(index_name, NEXT, "thinker.model.layers.0.mlp.experts.128.down_proj.weight");
}

static void shape_against_config(void)
{
    edit_header(second_shard, "\"shape\":[128,16]", "\"shape\":[16,128]");
}

static void tied_head(void)
{
    replace_text("config.json",
                 "\"tie_word_embeddings\": false,\n      \"use_cache\": true,\n"
                 "      \"use_qk_norm\"",
                 "\"tie_word_embeddings\": true,\n      \"use_cache\": true,\n"
                 "      \"use_qk_norm\"");
}

static void more_experts_promised(void)
{
    replace_text("config.json", "\"num_experts\": 128", "\"num_experts\": 129");
}

static void no_index(void)
{
    char *path = path_of(index_name);
    unlink(path);
    free(path);
}

static void index_not_json(void)
{
    replace_file(index_name, "weights", 7);
}

static void index_without_map(void)
{
    replace_file(index_name, "{\"metadata\": {}}", 16);
}

static void index_empty_map(void)
{
    replace_file(index_name, "{\"weight_map\": {}}", 18);
}

static void index_name_twice(void)
{
    replace_text(index_name, "    \"" TENSOR "\"",
                 "    \"" TENSOR "\": \"model-00002-of-00007.safetensors\",\n    \"" TENSOR "\"");
}

static void index_climbs_out(void)
{
    replace_text(index_name, TENSOR "\": \"model-00002-of-00007.safetensors",
                 TENSOR "\": \"../model-00002-of-00007.safetensors");
}

static void index_number_for_shard(void)
{
    replace_text(index_name, TENSOR "\": \"model-00002-of-00007.safetensors\"", TENSOR "\": 2");
}

static void index_with_bom(void)
{
    replace_text(index_name, "{", "\xef\xbb\xbf{");
}

static void no_config(void)
{
    char *path = path_of("config.json");
    unlink(path);
    free(path);
}

static void config_truncated(void)
{
    resize("config.json", -1000);
}

static void config_of_another_model(void)
{
    replace_text("config.json", "\"model_type\": \"qwen3_omni_moe\"", "\"model_type\": \"qwen2\"");
}

static void config_without_width(void)
{
    replace_text("config.json", "\"hidden_size\": 128,\n", "\n");
}

static void config_deep(void)
{
    char text[400];
    memset(text, '[', 200);
    memset(text + 200, ']', 200);
    replace_file("config.json", text, sizeof text);
}

static const struct {
    const char *name;
    void (*damage)(void);
    int code;
    const char *message; // behind "q3-extract: "
} checkpoints[] = {
    {"empty shard", empty_shard, 4,
     "M/model-00002-of-00007.safetensors: expected at least 8 bytes, found 0"},
    {"shard of seven bytes", shard_of_seven_bytes, 4,
     "M/model-00002-of-00007.safetensors: expected at least 8 bytes, found 7"},
    {"header longer than the file", header_longer_than_file, 4,
     "M/model-00002-of-00007.safetensors: the header of 64 bytes does not fit the file of 10 "
     "bytes"},
    {"header over the limit", header_over_the_limit, 4,
     "M/model-00002-of-00007.safetensors: expected a header of at most 100000000 bytes, found "
     "100000001"},
    {"header length that wraps", header_length_wraps, 4,
     "M/model-00002-of-00007.safetensors: expected a header of at most 100000000 bytes, found "
     "18446744073709551615"},
    {"header without brace", header_without_brace, 4,
     "M/model-00002-of-00007.safetensors: the header does not start with '{'"},
    {"header not JSON", header_not_json, 4,
     "M/model-00002-of-00007.safetensors: not valid JSON: not a JSON value at byte 5"},
    {"header with \\u0000", header_with_nul, 4,
     "M/model-00002-of-00007.safetensors: not valid JSON: \\u0000 in a string at byte 67"},
    {"name twice in a header", header_name_twice, 4,
     "M/model-00002-of-00007.safetensors: the key \"" TENSOR "\" stands twice"},
    {"hole between tensors", header_hole, 4,
     "M/model-00002-of-00007.safetensors: " NEXT
     ": expected data from 254 on, found 256 (a hole or an overlap)"},
    {"overlapping tensors", header_overlap, 4,
     "M/model-00002-of-00007.safetensors: " NEXT
     ": expected data from 256 on, found 254 (a hole or an overlap)"},
    {"end before beginning", header_end_before_beginning, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR
     ".data_offsets: the end 0 lies before the beginning 256"},
    {"shape against offsets", header_shape_against_offsets, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR
     ": [129] of BF16 takes 258 bytes, the offsets give 256"},
    {"unknown dtype", header_unknown_dtype, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR ": unknown dtype \"BF17\""},
    {"fraction in a shape", header_fraction, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR
     ".shape[0]: expected an integer from 0 to 9007199254740992, found 128.5"},
    {"negative number in a shape", header_negative, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR
     ".shape[0]: expected an integer from 0 to 9007199254740992, found -128"},
    {"shape that wraps", header_shape_wraps, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR
     ".shape: the size in bytes does not fit 64 bits"},
    {"nine dimensions", header_nine_dimensions, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR ".shape: expected at most 8 dimensions"},
    {"three offsets", header_three_offsets, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR ".data_offsets: expected two offsets"},
    {"extra field", header_extra_field, 4,
     "M/model-00002-of-00007.safetensors: " TENSOR ": expected dtype, shape and data_offsets only"},
    {"number in the metadata", header_metadata_number, 4,
     "M/model-00002-of-00007.safetensors: __metadata__.format: expected a string, found 7"},
    {"empty name", header_name_empty, 4,
     "M/model-00002-of-00007.safetensors: expected a name of 1 to 255 bytes, found 0"},
    {"truncated shard", shard_truncated, 4,
     "M/model-00002-of-00007.safetensors: the header describes a file of 1744072 bytes, found "
     "1744071"},
    {"shard with a byte more", shard_with_more, 4,
     "M/model-00002-of-00007.safetensors: the header describes a file of 1744072 bytes, found "
     "1744073"},
    {"directory for a shard", shard_is_directory, 1,
     "M/model-00002-of-00007.safetensors: not a regular file"},
    {"absent shard", shard_absent, 5,
     "M/model-00002-of-00007.safetensors: the shard is absent, but the index puts "
     "thinker.model.layers.1.self_attn.q_proj.weight there (and 390 more tensors are missing)"},
    {"shard that lacks a tensor", shard_lacks, 5,
     "M/model-00006-of-00007.safetensors: lacks thinker.model.norm.weight, which the index puts "
     "there"},
    {"tensor never listed", never_listed, 5,
     "M: thinker.model.norm.weight is never listed: config.json promises it, but the index names "
     "no "
     "shard for it"},
    {"tensor that the index does not list", unlisted, 4,
     "M/model-00002-of-00007.safetensors: holds " TENSOR ", which the index does not list"},
    {"tensor that the index gives to another shard", elsewhere, 4,
     "M/model-00002-of-00007.safetensors: holds " TENSOR
     ", which the index gives to model-00003-of-00007.safetensors"},
    {"shard that the index does not name", stray_shard, 4,
     "M/extra.safetensors: a shard that the index does not name"},
    {"unknown name", unknown_name, 4,
     "M: thinker.model.layers.0.input_layernorm.gamma: not part of the model that config.json "
     "describes"},
    {"unknown name with escapes", unknown_name_with_escapes, 4,
     "M: thinker.\\x1b[31m: not part of the model that config.json describes"},
    {"attention bias", attention_bias, 4,
     "M: thinker.model.layers.0.self_attn.q_proj.bias: attention biases are not supported"},
    {"fused experts", fused_experts, 4,
     "M: thinker.model.layers.0.mlp.experts.gate_up_proj: fused experts are not supported"},
    {"dense layer", dense_layer, 4,
     "M: thinker.model.layers.0.mlp.up_proj.weight: dense layers are not supported"},
    {"expert beyond the configuration", expert_beyond, 4,
     "M: thinker.model.layers.0.mlp.experts.128.down_proj.weight: not part of the model that "
     "config.json describes"},
    {"shape against the configuration", shape_against_config, 4,
     "M/model-00002-of-00007.safetensors: " NEXT ": expected shape [128, 16], found [16, 128]"},
    {"tied LM head", tied_head, 4,
     "M/config.json: thinker_config.text_config.tie_word_embeddings: not supported, expected "
     "false"},
    {"more experts promised than there are", more_experts_promised, 4,
     "M/model-00001-of-00007.safetensors: thinker.model.layers.0.mlp.gate.weight: expected shape "
     "[129, 128], found [128, 128]"},
    {"no index", no_index, 5, "M: no model.safetensors.index.json: not a checkpoint"},
    {"index not JSON", index_not_json, 4,
     "M/model.safetensors.index.json: not valid JSON: not a JSON value at byte 0"},
    {"index without map", index_without_map, 4,
     "M/model.safetensors.index.json: \"weight_map\" is missing"},
    {"index with an empty map", index_empty_map, 4,
     "M/model.safetensors.index.json: weight_map: lists no tensors"},
    {"name twice in the index", index_name_twice, 4,
     "M/model.safetensors.index.json: weight_map: the key \"" TENSOR "\" stands twice"},
    {"index that climbs out", index_climbs_out, 4,
     "M/model.safetensors.index.json: weight_map." TENSOR
     ": \"../model-00002-of-00007.safetensors\" cannot be the name of a shard in this directory"},
    {"number for a shard", index_number_for_shard, 4,
     "M/model.safetensors.index.json: weight_map." TENSOR ": expected a string, found 2"},
    {"index with a byte order mark", index_with_bom, 4,
     "M/model.safetensors.index.json: not valid JSON: a byte order mark at byte 0"},
    {"no configuration", no_config, 5, "M: no config.json"},
    {"configuration truncated", config_truncated, 4,
     "M/config.json: not valid JSON: the text ends inside a string at byte 8287"},
    {"configuration of another model", config_of_another_model, 4,
     "M/config.json: model_type: expected \"qwen3_omni_moe\" or \"qwen3_moe\", found \"qwen2\""},
    {"configuration without a width", config_without_width, 4,
     "M/config.json: thinker_config.text_config: \"hidden_size\" is missing"},
    {"configuration nested deeply", config_deep, 4,
     "M/config.json: not valid JSON: nested too deeply at byte 64"},
};

static void link_model(void)
{
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, true);
}

static void test_checkpoints(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof checkpoints / sizeof *checkpoints; i++) {
        link_model();
        checkpoints[i].damage();
        char *message = expand(checkpoints[i].message);
        char *expected = q3_test_path("q3-extract: %s\n", message);
        q3_test_result found = q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, NULL);
        if (found.code != checkpoints[i].code || strcmp(found.err, expected) != 0)
            fail_msg("%s: expected %d\n%s found %d\n%s", checkpoints[i].name, checkpoints[i].code,
                     expected, found.code, found.err);
        assert_string_equal(found.out, "");
        assert_int_not_equal(access(pack, F_OK), 0);
        q3_test_result_free(&found);
        free(expected);
        free(message);
        q3_test_remove_tree(model);
    }
}

// What is asked for may do without the rest.
static void test_absent_but_not_needed(void **state)
{
    (void)state;
    link_model();
    // The first shard holds the audio tower and the visual part, and layer 0's beginning.
    shard_absent();
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--components",
                               "visual,code2wav", "--quiet", NULL),
                   0, "");
    q3_test_remove_tree(pack);
    q3_test_remove_tree(model);
}

static void test_command_lines(void **state)
{
    (void)state;
    static const struct {
        const char *arguments[6];
        int code;
        const char *message;
    } table[] = {
        {{NULL}, 2, "expected MODEL_DIR PACK_DIR, found 0 of 2 arguments (see q3-extract --help)"},
        {{"M", NULL},
         2,
         "expected MODEL_DIR PACK_DIR, found 1 of 2 arguments (see q3-extract --help)"},
        {{"M", "P", "x", NULL}, 2, "unexpected argument \"x\" (see q3-extract --help)"},
        {{"M", "P", "--fast", NULL}, 2, "--fast: unknown option (see q3-extract --help)"},
        {{"M", "P", "-z", NULL}, 2, "-z: unknown option (see q3-extract --help)"},
        {{"M", "P", "--jobs", NULL}, 2, "--jobs: a value is missing (see q3-extract --help)"},
        {{"M", "P", "--jobs", "0", NULL},
         2,
         "--jobs: expected a whole number from 1 to 256, found \"0\" (see q3-extract --help)"},
        {{"M", "P", "-j", "two", NULL},
         2,
         "--jobs: expected a whole number from 1 to 256, found \"two\" (see q3-extract --help)"},
        {{"M", "P", "--codec", "lzma", NULL},
         2,
         "--codec: expected one of raw|zstd|bitplane|auto, found \"lzma\" (see q3-extract --help)"},
        {{"M", "P", "--components", "text,speech", NULL},
         2,
         "--components: \"speech\" is none of text, audio_tower, visual, talker, code2wav, all"},
        {{"M", "P", "--components", "", NULL},
         2,
         "--components: \"\" is none of text, audio_tower, visual, talker, code2wav, all"},
        {{"M", "P", "--layers", "0-6", NULL}, 2, "--layers: 6 is out of range, the last is 5"},
        {{"M", "P", "--experts", "7-3", NULL}, 2, "--experts: range 7-3 runs backwards"},
        {{"M", "P", "--experts", "1,,2", NULL},
         2,
         "--experts: \"1,,2\" is not a list of numbers and ranges such as 0-7,12"},
    };
    link_model();
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const char *a[6] = {NULL};
        for (int k = 0; k < 5 && table[i].arguments[k]; k++)
            a[k] = strcmp(table[i].arguments[k], "M") == 0   ? model
                   : strcmp(table[i].arguments[k], "P") == 0 ? pack
                                                             : table[i].arguments[k];
        char *expected = q3_test_path("q3-extract: %s\n", table[i].message);
        q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, a[0], a[1], a[2], a[3], a[4], NULL),
                       table[i].code, expected);
        free(expected);
    }
    // Parts of a component that is left out.
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--components", "visual",
                               "--layers", "0", NULL),
                   2,
                   "q3-extract: --layers, --experts and --pool select parts of the text "
                   "component, which --components leaves out\n");
    assert_int_not_equal(access(pack, F_OK), 0);
    q3_test_remove_tree(model);
}

static void test_targets(void **state)
{
    (void)state;
    link_model();
    // Something that is there already is not written into.
    q3_test_copy_tree(Q3_TEST_SOURCE_DIR "/manifests", pack, true);
    char *expected =
        q3_test_path("q3-extract: %s: is not empty and holds no unfinished extraction\n", pack);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, NULL), 6, expected);
    free(expected);
    q3_test_remove_tree(pack);
    q3_test_write_text(pack, "a file");
    expected = q3_test_path("q3-extract: %s: cannot create the directory: File exists\n", pack);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, NULL), 1, expected);
    free(expected);
    unlink(pack);
    char *absent = q3_test_path("%s/absent", directory);
    expected = q3_test_path("q3-extract: %s: no such directory\n", absent);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, absent, pack, NULL), 1, expected);
    free(expected);
    free(absent);
    q3_test_remove_tree(model);
}

static int make_directory(void **state)
{
    (void)state;
    directory = q3_test_directory();
    model = q3_test_path("%s/model", directory);
    pack = q3_test_path("%s/pack", directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    free(model);
    free(pack);
    q3_test_remove(directory);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoints),
        cmocka_unit_test(test_absent_but_not_needed),
        cmocka_unit_test(test_command_lines),
        cmocka_unit_test(test_targets),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
