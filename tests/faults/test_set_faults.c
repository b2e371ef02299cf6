// SPDX-License-Identifier: Apache-2.0
//
// Wrong pack.json files with a right checksum, and wrong journals, one by one: each is refused with
// its exit code and its message.
#include "base/hash.h"
#include "journal.h"
#include "set.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static void write_file(const char *name, const void *data, size_t size)
{
    char *path = q3_test_path("%s/%s", q3_test_scratch, name);
    q3_test_write(path, data, size);
    free(path);
}

// In messages a P at the beginning stands for the directory.
static void expect_message(const char *name, const q3_error *err, int code, const char *message)
{
    char *expected = q3_test_path("%s%s", *message == 'P' ? q3_test_scratch : "",
                                  *message == 'P' ? message + 1 : message);
    if (strcmp(err->message, expected) != 0 || err->code != code)
        fail_msg("%s: expected code %d and\n%s\nfound %d and\n%s", name, code, expected, err->code,
                 err->message);
    free(expected);
}

// `text` with the first `from` replaced by `to`, to free().
static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("no \"%s\"", from);
    return q3_test_path("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

// ---- pack.json ----

#define MODEL                                                                                     \
    "\"vocab_size\": 64, \"hidden_size\": 8, \"num_hidden_layers\": 2, \"num_attention_heads\": " \
    "2, \"num_key_value_heads\": 1, \"head_dim\": 4, \"num_experts\": 4, "                        \
    "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 4, \"max_position_embeddings\": 32, " \
    "\"norm_topk_prob\": true, \"rms_norm_eps\": 1e-06, \"rope_theta\": 10000}"
#define DIGITS "0123456789abcdef0123456789abcdef"
#define NAME_64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char config[] = "{\"model_type\": \"qwen3_moe\", " MODEL;

// A whole pack.json without its checksum, to free(). The model has 2 layers of 4 experts.
static char *sound_text(void)
{
    char hash[Q3_HASH_TEXT];
    return q3_test_path(
        "{\"format\": \"q3-pack\", \"version\": 1, \"model\": {\"model_type\": "
        "\"qwen3_moe\", " MODEL
        ", \"codec\": \"raw\", \"components\": [{\"name\": \"text\", \"complete\": true, "
        "\"tensors\": 3, \"bytes\": 100, \"expected_tensors\": 3, \"expected_bytes\": 100}], "
        "\"shards\": [{\"name\": \"a.safetensors\", \"size\": 1000, \"header\": \"" DIGITS "\"}], "
        "\"copies\": [{\"name\": \"config.json\", \"size\": %zu, \"hash\": \"%s\"}], "
        "\"files\": [{\"path\": \"embedding.q3p\", \"size\": 4096, \"root\": \"" DIGITS "\", "
        "\"tensors\": [{\"name\": \"e\", \"shard\": 0, \"offset\": 8}]}, "
        "{\"path\": \"layers/01/experts/003.q3p\", \"size\": 8192, \"root\": \"" DIGITS "\", "
        "\"tensors\": [{\"name\": \"g\", \"shard\": 0, \"offset\": 16}]}]",
        sizeof config - 1, q3_hash128_text(q3_hash128_of(config, sizeof config - 1), hash));
}

// The text with its checksum, as pack.json; `size` receives the file's.
static char *sign(const char *text)
{
    char hash[Q3_HASH_TEXT];
    return q3_test_path("%s,\n  \"checksum\": \"%s\"\n}\n", text,
                        q3_hash128_text(q3_hash128_of(text, strlen(text)), hash));
}

static void expect_set(const char *name, const char *text, int code, const char *message)
{
    q3_error err = {.message = "accepted"};
    q3_set set;
    write_file("pack.json", text, strlen(text));
    if (q3_set_open(q3_test_scratch, &set, &err))
        q3_set_close(&set);
    expect_message(name, &err, code, message);
}

static void test_sets(void **state)
{
    (void)state;
    static const struct {
        const char *name, *from, *to;
        int code;
        const char *message;
    } table[] = {
        {"another format", "q3-pack", "q3-puck", 4,
         "P/pack.json: format: expected \"q3-pack\", found \"q3-puck\""},
        {"a later version", "\"version\": 1", "\"version\": 2", 4,
         "P/pack.json: version: expected an integer from 1 to 1, found 2"},
        {"no format", "{\"format\": \"q3-pack\", ", "{", 4, "P/pack.json: \"format\" is missing"},
        {"an array", "{\"format\": \"q3-pack\"", "[{}", 4,
         "P/pack.json: not valid JSON: expected a comma or the end at byte 14"},
        {"a codec that is none", "\"raw\"", "\"rar\"", 4,
         "P/pack.json: codec: \"rar\" is no codec"},
        {"no model", "\"model\": {", "\"modal\": {", 4, "P/pack.json: \"model\" is missing"},
        {"another model than config.json's", "\"num_experts\": 4", "\"num_experts\": 5", 4,
         "P/pack.json: model: does not agree with config.json"},
        {"a model that says more", "\"model\": {", "\"model\": {\"x\": 1, ", 4,
         "P/pack.json: model: does not agree with config.json"},
        {"a component that is none", "\"name\": \"text\"", "\"name\": \"smell\"", 4,
         "P/pack.json: components[0]: \"smell\" is no component, or stands twice"},
        {"a component twice", "\"components\": [",
         "\"components\": [{\"name\": \"text\", \"complete\": false, \"tensors\": 0, \"bytes\": 0, "
         "\"expected_tensors\": 1, \"expected_bytes\": 1}, ",
         4, "P/pack.json: components[1]: \"text\" is no component, or stands twice"},
        {"complete, but tensors lack", "\"tensors\": 3,", "\"tensors\": 2,", 4,
         "P/pack.json: components[0]: \"complete\" contradicts the numbers of tensors"},
        {"more tensors than the component has", "\"tensors\": 3,", "\"tensors\": 4,", 4,
         "P/pack.json: components[0].tensors: expected an integer from 0 to 3, found 4"},
        {"more bytes than the component has", "\"bytes\": 100,", "\"bytes\": 101,", 4,
         "P/pack.json: components[0].bytes: expected an integer from 0 to 100, found 101"},
        {"a component of no tensors", "\"expected_tensors\": 3", "\"expected_tensors\": 0", 4,
         "P/pack.json: components[0].expected_tensors: expected an integer from 1 to "
         "9007199254740992, found 0"},
        {"a word for complete", "\"complete\": true", "\"complete\": \"yes\"", 4,
         "P/pack.json: components[0].complete: expected true or false, found \"yes\""},
        {"a shard that climbs out", "\"a.safetensors\"", "\"../a.safetensors\"", 4,
         "P/pack.json: shards[0].name: \"../a.safetensors\" cannot be the name of a file here"},
        {"a shard without a name", "\"a.safetensors\"", "\"\"", 4,
         "P/pack.json: shards[0].name: \"\" cannot be the name of a file here"},
        {"a shard of negative size", "\"size\": 1000", "\"size\": -1", 4,
         "P/pack.json: shards[0].size: expected an integer from 0 to 9007199254740992, found -1"},
        {"half a hash of a header", "\"header\": \"" DIGITS "\"", "\"header\": \"0123\"", 4,
         "P/pack.json: shards[0].header: expected 32 hexadecimal digits, found \"0123\""},
        {"a copy that climbs out", "\"name\": \"config.json\"", "\"name\": \"/etc/passwd\"", 4,
         "P/pack.json: copies[0].name: \"/etc/passwd\" cannot be the name of a file here"},
        {"a copy that is the directory", "\"name\": \"config.json\"", "\"name\": \"..\"", 4,
         "P/pack.json: copies[0].name: \"..\" cannot be the name of a file here"},
        {"a copy twice", "\"copies\": [",
         "\"copies\": [{\"name\": \"config.json\", \"size\": 1, \"hash\": \"" DIGITS "\"}, ", 4,
         "P/pack.json: copies[1]: \"config.json\" is out of order, names must ascend"},
        {"a copy of 256 MiB and a byte", "\"copies\": [",
         "\"copies\": [{\"name\": \"b\", \"size\": 268435457, \"hash\": \"" DIGITS "\"}, ", 4,
         "P/pack.json: copies[0].size: expected an integer from 0 to 268435456, found 268435457"},
        {"no config.json among the copies", "\"name\": \"config.json\"", "\"name\": \"a.json\"", 5,
         "P: pack.json lists no config.json"},
        {"no files", "\"files\"", "\"flies\"", 4, "P/pack.json: \"files\" is missing"},
        {"files as an object", "\"files\": [", "\"files\": {}, \"more\": [", 4,
         "P/pack.json: files: expected an array, found an object"},
        {"a file that climbs out", "\"embedding.q3p\"", "\"../embedding.q3p\"", 4,
         "P/pack.json: files[0]: \"../embedding.q3p\" is no path of a pack file"},
        {"a file with other digits", "layers/01/experts/003.q3p", "layers/1/experts/003.q3p", 4,
         "P/pack.json: files[1]: \"layers/1/experts/003.q3p\" is no path of a pack file"},
        {"a file behind a number that wraps", "layers/01/experts/003.q3p",
         "layers/4294967296/experts/003.q3p", 4,
         "P/pack.json: files[1]: \"layers/4294967296/experts/003.q3p\" is no path of a pack file"},
        {"a file twice", "layers/01/experts/003.q3p", "embedding.q3p", 4,
         "P/pack.json: files[1]: \"embedding.q3p\" is out of order"},
        {"files out of order", "\"embedding.q3p\"", "\"lm_head.q3p\"", 4,
         "P/pack.json: files[1]: \"layers/01/experts/003.q3p\" is out of order"},
        {"a layer beyond the model's", "layers/01/experts/003.q3p", "layers/02/experts/003.q3p", 4,
         "P/pack.json: files[1]: \"layers/02/experts/003.q3p\" is beyond the model's 2 layers of 4 "
         "experts"},
        {"an expert beyond the model's", "layers/01/experts/003.q3p", "layers/01/experts/004.q3p",
         4,
         "P/pack.json: files[1]: \"layers/01/experts/004.q3p\" is beyond the model's 2 layers of 4 "
         "experts"},
        {"a fraction of a file", "\"size\": 8192", "\"size\": 8192.5", 4,
         "P/pack.json: files[1].size: expected an integer from 0 to 9007199254740992, found "
         "8192.5"},
        {"a root in capitals", "\"size\": 4096, \"root\": \"" DIGITS "\"",
         "\"size\": 4096, \"root\": \"0123456789ABCDEF0123456789abcdef\"", 4,
         "P/pack.json: files[0].root: expected 32 hexadecimal digits, found "
         "\"0123456789ABCDEF0123456789abcdef\""},
        {"a tensor of a shard that is not listed", "\"shard\": 0", "\"shard\": 1", 4,
         "P/pack.json: files[0].tensors[0].shard: expected an integer from 0 to 0, found 1"},
        {"a tensor inside the header's length", "\"offset\": 8}", "\"offset\": 7}", 4,
         "P/pack.json: files[0].tensors[0].offset: expected an integer from 8 to 9007199254740992, "
         "found 7"},
        {"a tensor without a name", "\"name\": \"e\"", "\"name\": \"\"", 4,
         "P/pack.json: files[0].tensors[0]: malformed tensor name or shard"},
        {"a tensor's name of 256 bytes", "\"name\": \"e\"",
         "\"name\": \"" NAME_64 NAME_64 NAME_64 NAME_64 "\"", 4,
         "P/pack.json: files[0].tensors[0]: malformed tensor name or shard"},
        {"a number for a tensor's name", "\"name\": \"g\"", "\"name\": 7", 4,
         "P/pack.json: files[1].tensors[0].name: expected a string, found 7"},
        {"a key twice", "\"codec\": \"raw\"", "\"codec\": \"raw\", \"codec\": \"zstd\"", 4,
         "P/pack.json: the key \"codec\" stands twice"},
        {"a name with \\u0000", "\"a.safetensors\"", "\"a\\u0000\"", 4,
         "P/pack.json: not valid JSON: \\u0000 in a string at byte 542"},
        {"tensors without shards",
         "{\"name\": \"a.safetensors\", \"size\": 1000, \"header\": "
         "\"" DIGITS "\"}",
         "", 4, "P/pack.json: files[0].tensors[0]: malformed tensor name or shard"},
    };
    write_file("config.json", config, sizeof config - 1);
    char *text = sound_text(), *whole = sign(text);
    expect_set("a sound one", whole, 0, "accepted");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *changed = replaced(text, table[i].from, table[i].to), *file = sign(changed);
        expect_set(table[i].name, file, table[i].code, table[i].message);
        free(file);
        free(changed);
    }
    free(whole);
    free(text);
}

static void test_checksums(void **state)
{
    (void)state;
    write_file("config.json", config, sizeof config - 1);
    char *text = sound_text(), *whole = sign(text), *changed;
    const size_t size = strlen(whole);

    expect_set("an empty file", "", 4, "P/pack.json: does not end in a checksum");
    expect_set("no checksum", "{}\n", 4, "P/pack.json: does not end in a checksum");
    changed = q3_test_path("%.*s", (int)size - 1, whole);
    expect_set("a byte less", changed, 4, "P/pack.json: does not end in a checksum");
    free(changed);
    changed = q3_test_path("%s\n", whole);
    expect_set("a byte more", changed, 4, "P/pack.json: does not end in a checksum");
    free(changed);

    char hash[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    changed = replaced(whole, "\"size\": 4096", "\"size\": 4097");
    char *message = q3_test_path("P/pack.json: is damaged: expected checksum %s, found %s",
                                 q3_hash128_text(q3_hash128_of(text, strlen(text)), hash),
                                 q3_hash128_text(q3_hash128_of(changed, strlen(text)), found));
    expect_set("a digit changed", changed, 4, message);
    free(message);
    free(changed);

    // A config.json that is another, and one that is absent.
    write_file("config.json", config, sizeof config - 2);
    message = q3_test_path("P/config.json: pack.json expects hash %s, found %s",
                           q3_hash128_text(q3_hash128_of(config, sizeof config - 1), hash),
                           q3_hash128_text(q3_hash128_of(config, sizeof config - 2), found));
    expect_set("another config.json", whole, 4, message);
    free(message);
    char *path = q3_test_path("%s/config.json", q3_test_scratch);
    q3_test_remove_tree(path);
    free(path);
    expect_set("no config.json", whole, 5, "P/config.json: listed in pack.json, but absent");
    free(whole);
    free(text);
}

// ---- extract.journal ----

#define FIRST "q3-extract journal 1\n"
#define REQUEST "codec raw\nsource 1\n"
#define FILE_LINE "file layers/01/experts/003.q3p 8192 " DIGITS "\n"

static void test_journals(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        size_t size; // 0: the text's length
        int code;
        const char *message;
    } table[] = {
        {"an empty one", "", 0, 4, "P/extract.journal: not a journal of q3-extract"},
        {"another first line", "q3-extract journal 2\n" REQUEST, 0, 4,
         "P/extract.journal: not a journal of q3-extract"},
        {"a NUL in it", FIRST REQUEST "\0" FILE_LINE, sizeof FIRST REQUEST "\0" FILE_LINE - 1, 4,
         "P/extract.journal: not a journal of q3-extract"},
        {"another request", FIRST "codec zstd\nsource 1\n", 0, 6,
         "P/extract.journal: an unfinished extraction was asked for otherwise: before \"codec "
         "zstd\", now \"codec raw\""},
        {"another source", FIRST "codec raw\nsource 2\n", 0, 6,
         "P/extract.journal: an unfinished extraction was asked for otherwise: before \"source "
         "2\", now \"source 1\""},
        {"half a request", FIRST "codec raw\n", 0, 6,
         "P/extract.journal: an unfinished extraction was asked for otherwise"},
        {"an empty line", FIRST REQUEST "\n" FILE_LINE, 0, 4,
         "P/extract.journal: damaged line \"\""},
        {"an unknown word", FIRST REQUEST "fail x 1 " DIGITS "\n", 0, 4,
         "P/extract.journal: damaged line \"fail x 1 " DIGITS "\""},
        {"a path that climbs out", FIRST REQUEST "file ../x.q3p 1 " DIGITS "\n", 0, 4,
         "P/extract.journal: damaged line \"file ../x.q3p 1 " DIGITS "\""},
        {"a size that wraps", FIRST REQUEST "file lm_head.q3p 18446744073709551616 " DIGITS "\n", 0,
         4, "P/extract.journal: damaged line \"file lm_head.q3p 18446744073709551616 " DIGITS "\""},
        {"half a root", FIRST REQUEST "file lm_head.q3p 1 0123\n", 0, 4,
         "P/extract.journal: damaged line \"file lm_head.q3p 1 0123\""},
        {"a word more", FIRST REQUEST "file lm_head.q3p 1 " DIGITS " x\n", 0, 4,
         "P/extract.journal: damaged line \"file lm_head.q3p 1 " DIGITS " x\""},
        {"a sound one", FIRST REQUEST FILE_LINE, 0, 0, "accepted"},
        {"a torn last line", FIRST REQUEST FILE_LINE "file lm_head.q3p 1 0123", 0, 0, "accepted"},
    };
    char *path = q3_test_path("%s/pack.json", q3_test_scratch);
    q3_test_remove_tree(path);
    free(path);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        q3_error err = {.message = "accepted"};
        q3_journal *journal;
        write_file("extract.journal", table[i].text,
                   table[i].size ? table[i].size : strlen(table[i].text));
        if (q3_journal_open(q3_test_scratch, REQUEST, &journal, &err)) {
            const q3_place place = {.part = Q3_EXPERT, .layer = 1, .expert = 3};
            uint64_t size;
            q3_hash128 root;
            char digits[Q3_HASH_TEXT];
            assert_true(q3_journal_find(journal, &place, Q3_WHOLE_FILE, &size, &root));
            assert_int_equal(size, 8192);
            assert_string_equal(q3_hash128_text(root, digits), DIGITS);
            q3_journal_close(journal);
        }
        expect_message(table[i].name, &err, table[i].code, table[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sets),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_journals),
    };
    return cmocka_run_group_tests(tests, q3_test_make_scratch, q3_test_remove_scratch);
}
