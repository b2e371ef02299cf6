// SPDX-License-Identifier: Apache-2.0
//
// q3-pack export as a person uses it: a whole checkpoint is the one that was packed; a pruned one
// has the chosen experts under new numbers and runs as the pool did; a GGUF file says and holds
// what it must; and what cannot be exported is refused.
#include "base/json.h"
#include "checkpoint_writer.h"
#include "engine.h"
#include "json.h"
#include "set.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LAYERS = 6, EXPERTS = 128, VOCABULARY = 1536, HIDDEN = 128, INNER = 16, KEPT = 64 };

static char *all, *text, *pool_path;
static uint32_t kept[LAYERS][EXPERTS]; // the pool, ascending
static uint32_t every[LAYERS][EXPERTS];

static char *scratch(const char *name)
{
    return q3_test_path("%s/%s", q3_test_scratch, name);
}

// Runs q3-pack export with up to four more arguments (NULL for none) and expects success.
static void export_to(const char *pack, const char *to, const char *format, const char *a,
                      const char *b, const char *c, const char *d)
{
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", pack, to, "--format", format,
                               "--quiet", a, b, c, d, NULL),
                   0, "");
}

static char *extract(const char *model, const char *name, const char *option, const char *value)
{
    char *pack = scratch(name);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--quiet", option, value, NULL),
                   0, "");
    return pack;
}

static char *read_in(const char *directory, const char *name)
{
    char *path = q3_test_path("%s/%s", directory, name);
    char *data = q3_test_read(path, NULL);
    free(path);
    return data;
}

static bool has(const char *directory, const char *name)
{
    char *path = q3_test_path("%s/%s", directory, name);
    const bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

// `text` with the only `from` replaced by `to`, to free().
static char *replaced(const char *from_text, const char *from, const char *to)
{
    const char *at = strstr(from_text, from);
    if (!at || strstr(at + 1, from))
        fail_msg("not one \"%s\"", from);
    return q3_test_path("%.*s%s%s", (int)(at - from_text), from_text, to, at + strlen(from));
}

// A pool file of the layers' first count[layer] members of `numbers`.
static void write_pool(const char *path, uint32_t numbers[LAYERS][EXPERTS],
                       const uint32_t count[LAYERS])
{
    q3_json_writer out = {0};
    q3_error error;
    q3_json_begin_object(&out, NULL);
    q3_json_begin_array(&out, "layers");
    for (size_t layer = 0; layer < LAYERS; layer++) {
        q3_json_inline(&out);
        q3_json_begin_array(&out, NULL);
        // Falling: the order in the file must not matter.
        for (uint32_t i = count[layer]; i-- > 0;)
            q3_json_put_u64(&out, NULL, numbers[layer][i]);
        q3_json_end_array(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    assert_ok(q3_json_finish(&out, &error));
    q3_test_write(path, out.text, out.size);
    q3_json_writer_free(&out);
}

// ---- tensors ----

static q3_set open_set(const char *pack)
{
    q3_error error;
    q3_set set;
    assert_ok(q3_set_open(pack, &set, &error));
    return set;
}

// A tensor's bytes, to free(). The name is a format with the layer and the expert.
static uint8_t *read_tensor(const q3_set *set, q3_part part, uint32_t layer, uint32_t expert,
                            const char *prefix, const char *name, size_t *size)
{
    q3_error error;
    q3_pack pack;
    const q3_place place = {.component = Q3_TEXT, .part = part, .layer = layer, .expert = expert};
    const q3_set_file *file = q3_set_find(set, &place);
    assert_non_null(file);
    assert_ok(q3_set_open_pack(set, file, &pack, &error));
    char *full = part == Q3_EXPERT ? q3_test_path("%smodel.layers.%u.mlp.experts.%u.%s.weight",
                                                  prefix, layer, expert, name)
                 : part == Q3_ATTENTION || part == Q3_NORMS || part == Q3_ROUTER
                     ? q3_test_path("%smodel.layers.%u.%s.weight", prefix, layer, name)
                     : q3_test_path("%s%s.weight", prefix, name);
    const q3_pack_tensor *tensor = q3_pack_find(&pack, full);
    if (!tensor)
        fail_msg("no %s", full);
    q3_coder *coder = q3_coder_create(&error);
    uint8_t *raw = q3_alloc(tensor->tensor.bytes, 1, &error);
    uint8_t *stored = q3_alloc(q3_pack_longest_frame(&pack), 1, &error);
    assert_ok(q3_pack_read_tensor(&pack, tensor, coder, stored, raw, &error));
    *size = tensor->tensor.bytes;
    q3_coder_destroy(coder);
    free(stored);
    free(full);
    q3_pack_close(&pack);
    return raw;
}

static void expect_tensor(const q3_set *found, const char *found_prefix, const q3_set *expected,
                          q3_part part, uint32_t layer, uint32_t new_expert, uint32_t expert,
                          const char *name)
{
    size_t size, expected_size;
    uint8_t *a = read_tensor(found, part, layer, new_expert, found_prefix, name, &size);
    uint8_t *b = read_tensor(expected, part, layer, expert, "thinker.", name, &expected_size);
    assert_int_equal(size, expected_size);
    assert_memory_equal(a, b, size);
    free(a);
    free(b);
}

// ---- whole ----

// The same pack files, so the same tensors; only where they lay in the shards differs.
static void expect_same_packs(const char *found, const char *expected)
{
    char *from = q3_test_path("%s/pack.json", expected), *to = q3_test_path("%s/pack.json", found);
    size_t size;
    char *data = q3_test_read(from, &size);
    q3_test_write(to, data, size);
    q3_test_trees_equal(found, expected);
    free(data);
    free(to);
    free(from);
}

static void test_whole(void **state)
{
    (void)state;
    char *out = scratch("whole");
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "export", all, out, "--format",
                                        "safetensors", "--jobs", "1", NULL);
    assert_string_equal(result.err, "");
    assert_memory_equal(result.out, "2,610 tensors, 11.4 MB, in 1 file in ",
                        strlen("2,610 tensors, 11.4 MB, in 1 file in "));
    assert_null(strstr(result.out, "note"));
    q3_test_result_free(&result);
    assert_true(has(out, "model.safetensors"));
    assert_false(has(out, "model.safetensors.index.json"));
    char *again = extract(out, "again", "--components", "all");
    expect_same_packs(again, all);
    q3_test_remove_tree(again);
    free(again);
    q3_test_remove_tree(out);

    export_to(all, out, "safetensors", "--shard-size", "2M", "--jobs", "3");
    assert_true(has(out, "model-00006-of-00006.safetensors"));
    assert_false(has(out, "model-00007-of-00006.safetensors"));
    char *index = read_in(out, "model.safetensors.index.json");
    assert_non_null(strstr(index, "\"total_size\": 11"));
    free(index);
    again = extract(out, "again", "--components", "all");
    expect_same_packs(again, all);
    q3_test_remove_tree(again);
    free(again);
    q3_test_remove_tree(out);
    free(out);
}

static void test_text_only(void **state)
{
    (void)state;
    char *out = scratch("text-only");
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_PACK, "export", text, out, "--format", "safetensors", NULL);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out,
                           "note: the pack does not have all of audio_tower, visual, talker, "
                           "code2wav: programs that load the whole model miss it; --as qwen3_moe "
                           "writes the text model alone\n"));
    q3_test_result_free(&result);
    // Nobody may expect a talker.
    char *config = read_in(out, "config.json"),
         *original = q3_test_read(Q3_TEST_MODEL_DIR "/config.json", NULL);
    char *expected =
        replaced(original, "\"enable_audio_output\": true", "\"enable_audio_output\": false");
    char *line = q3_test_path("%s\n", expected);
    assert_string_equal(config, line);
    char *again = extract(out, "again", "--components", "text");
    char *copy = q3_test_path("%s/config.json", again);
    q3_test_write_text(copy, original);
    expect_same_packs(again, text);
    q3_test_remove_tree(again);
    q3_test_remove_tree(out);
    free(copy);
    free(again);
    free(line);
    free(expected);
    free(original);
    free(config);
    free(out);
}

// ---- pruned ----

static void check_pruned_tensors(const q3_set *found, const char *prefix, const q3_set *source)
{
    static const char *const matrices[] = {"gate_proj", "up_proj", "down_proj"};
    static const char *const attention[] = {"self_attn.q_proj", "self_attn.k_proj",
                                            "self_attn.v_proj", "self_attn.o_proj",
                                            "self_attn.q_norm", "self_attn.k_norm"};
    static const char *const norms[] = {"input_layernorm", "post_attention_layernorm"};
    expect_tensor(found, prefix, source, Q3_EMBEDDING, 0, 0, 0, "model.embed_tokens");
    expect_tensor(found, prefix, source, Q3_FINAL_NORM, 0, 0, 0, "model.norm");
    expect_tensor(found, prefix, source, Q3_LM_HEAD, 0, 0, 0, "lm_head");
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (size_t i = 0; i < 6; i++)
            expect_tensor(found, prefix, source, Q3_ATTENTION, layer, 0, 0, attention[i]);
        for (size_t i = 0; i < 2; i++)
            expect_tensor(found, prefix, source, Q3_NORMS, layer, 0, 0, norms[i]);
        for (uint32_t i = 0; i < KEPT; i++)
            for (size_t m = 0; m < 3; m++)
                expect_tensor(found, prefix, source, Q3_EXPERT, layer, i, kept[layer][i],
                              matrices[m]);
        size_t size, whole_size;
        uint8_t *router = read_tensor(found, Q3_ROUTER, layer, 0, prefix, "mlp.gate", &size);
        uint8_t *whole =
            read_tensor(source, Q3_ROUTER, layer, 0, "thinker.", "mlp.gate", &whole_size);
        assert_int_equal(size, KEPT * HIDDEN * 2);
        assert_int_equal(whole_size, EXPERTS * HIDDEN * 2);
        for (size_t i = 0; i < KEPT; i++)
            assert_memory_equal(router + i * HIDDEN * 2,
                                whole + (size_t)kept[layer][i] * HIDDEN * 2, HIDDEN * 2);
        free(router);
        free(whole);
    }
}

// The logits behind each of some ids, as bytes.
static float *run(const char *pack, const char *pool)
{
    // A question and the beginning of its answer.
    static const uint32_t ids[] = {1401, 282, 198,  447, 369, 256, 418, 360,
                                   1402, 198, 1401, 281, 198, 375, 417, 256};
    enum { IDS = sizeof ids / sizeof *ids };
    q3_error error;
    q3_engine *engine;
    q3_session *session;
    const q3_engine_options options = {.pool = pool, .threads = 2};
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    assert_ok(q3_session_create(engine, &session, &error));
    float *logits = q3_alloc(IDS, VOCABULARY * sizeof *logits, &error);
    for (size_t i = 0; i < IDS; i++) {
        assert_ok(q3_session_feed(session, ids + i, 1, NULL, &error));
        memcpy(logits + i * VOCABULARY, q3_session_logits(session), VOCABULARY * sizeof *logits);
    }
    q3_session_destroy(session);
    q3_engine_close(engine);
    // Enough of them to see a difference.
    assert_memory_not_equal(logits, logits + VOCABULARY, VOCABULARY * sizeof *logits);
    return logits;
}

// The same but for the order in which the router's softmax adds.
static void expect_same_logits(const float *found, const float *expected)
{
    for (size_t i = 0; i < 16; i++) {
        size_t best = 0, expected_best = 0;
        for (size_t j = 0; j < VOCABULARY; j++) {
            const float *a = found + i * VOCABULARY, *b = expected + i * VOCABULARY;
            assert_true(fabsf(a[j] - b[j]) < 1e-4F);
            best = a[j] > a[best] ? j : best;
            expected_best = b[j] > b[expected_best] ? j : expected_best;
        }
        assert_int_equal(best, expected_best);
    }
}

static void test_pruned(void **state)
{
    (void)state;
    char *out = scratch("pruned"), *plain = scratch("plain");
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_PACK, "export", all, out, "--format", "safetensors", "--pool",
                    pool_path, "--shard-size", "2M", NULL);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out, " s\nnote: 64 of 128 experts in each layer\n"));
    q3_test_result_free(&result);

    // Only the number of experts changes, and the talker's stays.
    char *config = read_in(out, "config.json"),
         *original = q3_test_read(Q3_TEST_MODEL_DIR "/config.json", NULL);
    char *expected = replaced(original, "\"num_experts\": 128", "\"num_experts\": 64");
    char *line = q3_test_path("%s\n", expected);
    assert_string_equal(config, line);

    char *pack = extract(out, "pruned-pack", "--components", "all");
    q3_set set = open_set(pack), source = open_set(all);
    check_pruned_tensors(&set, "thinker.", &source);
    for (unsigned i = Q3_TEXT + 1; i < Q3_COMPONENTS; i++) {
        const q3_place place = {.component = (q3_component)i, .part = Q3_WHOLE};
        const q3_set_file *a = q3_set_find(&set, &place), *b = q3_set_find(&source, &place);
        assert_true(q3_hash128_equal(a->root, b->root));
        assert_int_equal(a->size, b->size);
    }
    assert_int_equal(set.file_count, source.file_count - LAYERS * (EXPERTS - KEPT));

    // The text model alone.
    export_to(all, plain, "safetensors", "--pool", pool_path, "--as", "qwen3_moe");
    char *plain_pack = extract(plain, "plain-pack", "--components", "all");
    q3_set alone = open_set(plain_pack);
    check_pruned_tensors(&alone, "", &source);
    assert_int_equal(alone.file_count, set.file_count - (Q3_COMPONENTS - 1));
    assert_false(alone.components[Q3_TALKER].expected_tensors);

    // What the router may choose from is the same, so all that follows is.
    float *by_pool = run(all, pool_path), *pruned = run(pack, NULL), *bare = run(plain_pack, NULL);
    expect_same_logits(pruned, by_pool);
    expect_same_logits(bare, by_pool);
    free(by_pool);
    free(pruned);
    free(bare);

    q3_set_close(&alone);
    q3_set_close(&source);
    q3_set_close(&set);
    q3_test_remove_tree(plain_pack);
    q3_test_remove_tree(pack);
    q3_test_remove_tree(plain);
    q3_test_remove_tree(out);
    free(plain_pack);
    free(pack);
    free(line);
    free(expected);
    free(original);
    free(config);
    free(plain);
    free(out);
}

static void test_text_model_config(void **state)
{
    (void)state;
    char *out = scratch("text-model");
    export_to(text, out, "safetensors", "--as", "qwen3_moe", "--top-k", "6");
    char *path = q3_test_path("%s/config.json", out);
    q3_error error;
    q3_config config, original;
    q3_json json, source;
    assert_ok(q3_config_load(path, &config, &json, &error));
    assert_ok(q3_config_load(Q3_TEST_MODEL_DIR "/config.json", &original, &source, &error));
    assert_string_equal(config.family->model_type, "qwen3_moe");
    assert_int_equal(config.num_experts_per_tok, 6);
    config.family = original.family;
    config.num_experts_per_tok = original.num_experts_per_tok;
    assert_memory_equal(&config, &original, sizeof config);
    static const char beginning[] = "{\n  \"architectures\": [\n    \"Qwen3MoeForCausalLM\"\n  ],\n"
                                    "  \"model_type\": \"qwen3_moe\",\n  \"dtype\": \"bfloat16\",\n"
                                    "  \"eos_token_id\": 1402,\n  \"rope_theta\": 1000000,\n"
                                    "  \"rope_scaling\": null,\n";
    char *found = q3_test_read(path, NULL);
    assert_memory_equal(found, beginning, strlen(beginning));
    assert_non_null(strstr(found, "\"attention_dropout\": 0.0,\n"));
    assert_non_null(strstr(found, "\"rms_norm_eps\": 1e-06,\n"));
    assert_null(strstr(found, "mrope"));
    // All other members are the original's, in its order.
    const cJSON *section = q3_json_find(q3_json_find(source.root, "thinker_config"), "text_config");
    const cJSON *at = q3_json_find(json.root, "rope_scaling")->next;
    const cJSON *item;
    cJSON_ArrayForEach(item, section)
    {
        static const char *const replaced_keys[] = {"dtype", "eos_token_id", "model_type",
                                                    "rope_scaling", "rope_theta"};
        bool skipped = false;
        for (size_t i = 0; i < 5; i++)
            skipped = skipped || strcmp(item->string, replaced_keys[i]) == 0;
        if (skipped)
            continue;
        assert_non_null(at);
        assert_string_equal(at->string, item->string);
        assert_true(cJSON_Compare(at, item, true) ||
                    strcmp(item->string, "num_experts_per_tok") == 0);
        at = at->next;
    }
    assert_null(at);
    free(found);
    q3_json_free(&source);
    q3_json_free(&json);
    free(path);
    q3_test_remove_tree(out);
    free(out);
}

// Fewer experts than the model takes for a token.
static void test_small_pool(void **state)
{
    (void)state;
    char *out = scratch("small"), *pool = scratch("small.json");
    write_pool(pool, kept, (const uint32_t[LAYERS]){4, 4, 4, 4, 4, 4});
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "export", all, out, "--format",
                                        "safetensors", "--pool", pool, NULL);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out, "note: 4 of 128 experts in each layer\n"
                                       "note: 4 experts a token instead of 8\n"));
    q3_test_result_free(&result);
    char *config = read_in(out, "config.json");
    char *original = q3_test_read(Q3_TEST_MODEL_DIR "/config.json", NULL);
    char *fewer = replaced(original, "\"num_experts\": 128", "\"num_experts\": 4");
    char *expected = replaced(fewer, "\"num_experts_per_tok\": 8", "\"num_experts_per_tok\": 4");
    char *line = q3_test_path("%s\n", expected);
    assert_string_equal(config, line);
    char *pack = extract(out, "small-pack", "--components", "text");
    float *by_pool = run(all, pool), *pruned = run(pack, NULL);
    expect_same_logits(pruned, by_pool);
    free(by_pool);
    free(pruned);
    q3_test_remove_tree(pack);
    q3_test_remove_tree(out);
    free(pack);
    free(line);
    free(expected);
    free(fewer);
    free(original);
    free(config);

    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", all, out, "--format", "safetensors",
                               "--pool", pool, "--top-k", "5", NULL),
                   2, "q3-pack: --top-k 5: only 4 experts are kept\n");
    assert_false(has(q3_test_scratch, "small"));
    free(pool);
    free(out);
}

// A pack that was made with some experts: with nothing asked for, these.
static void test_partial_pack(void **state)
{
    (void)state;
    char *part = extract(Q3_TEST_MODEL_DIR, "part", "--experts", "1-64"), *out = scratch("of-part");
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_PACK, "export", part, out, "--format", "safetensors", NULL);
    assert_string_equal(result.err, "");
    assert_non_null(strstr(result.out, "note: 64 of 128 experts in each layer, which are those "
                                       "that the pack has\n"));
    q3_test_result_free(&result);
    char *same = scratch("of-pool"), *pool = scratch("part.json");
    uint32_t numbers[LAYERS][EXPERTS];
    for (uint32_t i = 0; i < LAYERS; i++)
        for (uint32_t j = 0; j < KEPT; j++)
            numbers[i][j] = j + 1;
    write_pool(pool, numbers, (const uint32_t[LAYERS]){KEPT, KEPT, KEPT, KEPT, KEPT, KEPT});
    export_to(text, same, "safetensors", "--pool", pool, NULL, NULL);
    q3_test_trees_equal(out, same);
    q3_test_remove_tree(out);
    q3_test_remove_tree(same);

    write_pool(pool, every, (const uint32_t[LAYERS]){8, 8, 8, 8, 8, 8});
    char *expected = q3_test_path(
        "q3-pack: %s: layer 0: the pool has expert 0, which %s does not have\n", pool, part);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", part, out, "--format", "gguf",
                               "--pool", pool, NULL),
                   5, expected);
    free(expected);
    q3_test_remove_tree(part);
    free(pool);
    free(same);
    free(out);
    free(part);
}

// ---- GGUF ----

// A reader of the format's version 3 (docs/gguf.md of github.com/ggml-org/ggml), which trusts.
typedef struct gguf {
    uint8_t *bytes;
    size_t size, at;
    uint64_t tensors, pairs;
} gguf;

static uint64_t take(gguf *file, unsigned bytes)
{
    uint64_t value = 0;
    assert_true(file->at + bytes <= file->size);
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)file->bytes[file->at + i] << 8 * i;
    file->at += bytes;
    return value;
}

// Fails unless the next string is this one.
static void take_string(gguf *file, const char *expected)
{
    const uint64_t length = take(file, 8);
    if (length != strlen(expected) || file->size - file->at < length ||
        memcmp(file->bytes + file->at, expected, length) != 0)
        fail_msg("expected \"%s\", found \"%.*s\"", expected, (int)length,
                 (const char *)file->bytes + file->at);
    file->at += length;
}

static void expect_pair(gguf *file, const char *key, uint32_t type)
{
    file->pairs--;
    take_string(file, key);
    assert_int_equal(take(file, 4), type);
}

static void expect_u32(gguf *file, const char *key, uint32_t value)
{
    expect_pair(file, key, 4);
    assert_int_equal(take(file, 4), value);
}

static void expect_f32(gguf *file, const char *key, float value)
{
    expect_pair(file, key, 6);
    const uint32_t bits = (uint32_t)take(file, 4);
    assert_memory_equal(&bits, &value, sizeof bits);
}

static void expect_text(gguf *file, const char *key, const char *value)
{
    expect_pair(file, key, 8);
    take_string(file, value);
}

static void expect_array(gguf *file, const char *key, uint32_t type, uint64_t count)
{
    expect_pair(file, key, 9);
    assert_int_equal(take(file, 4), type);
    assert_int_equal(take(file, 8), count);
}

static void check_tokenizer(gguf *file)
{
    enum { BASE = 1400, TOKENS = 1433 };
    static const char *tokens[VOCABULARY];
    static uint32_t types[VOCABULARY];
    char padding[VOCABULARY - TOKENS][16];
    cJSON *vocab = q3_test_load_json(Q3_TEST_MODEL_DIR "/vocab.json");
    cJSON *config = q3_test_load_json(Q3_TEST_MODEL_DIR "/tokenizer_config.json");
    const cJSON *item;
    assert_int_equal(cJSON_GetArraySize(vocab), BASE);
    cJSON_ArrayForEach(item, vocab)
    {
        tokens[item->valueint] = item->string;
        types[item->valueint] = 1;
    }
    cJSON_ArrayForEach(item, q3_test_member(config, "added_tokens_decoder"))
    {
        const int id = atoi(item->string);
        tokens[id] = q3_test_string(item, "content");
        types[id] = cJSON_IsTrue(q3_test_member(item, "special")) ? 3 : 4;
    }
    for (unsigned i = TOKENS; i < VOCABULARY; i++) {
        assert_null(tokens[i]);
        snprintf(padding[i - TOKENS], sizeof padding[0], "[PAD%u]", i);
        tokens[i] = padding[i - TOKENS];
        types[i] = 5;
    }
    expect_text(file, "tokenizer.ggml.model", "gpt2");
    expect_text(file, "tokenizer.ggml.pre", "qwen2");
    expect_array(file, "tokenizer.ggml.tokens", 8, VOCABULARY);
    for (unsigned i = 0; i < VOCABULARY; i++)
        take_string(file, tokens[i]);
    expect_array(file, "tokenizer.ggml.token_type", 5, VOCABULARY);
    for (unsigned i = 0; i < VOCABULARY; i++)
        assert_int_equal(take(file, 4), types[i]);
    char *merges = q3_test_read(Q3_TEST_MODEL_DIR "/merges.txt", NULL);
    char *rest = NULL, *line = strtok_r(merges, "\n", &rest);
    assert_memory_equal(line, "#version", 8);
    expect_array(file, "tokenizer.ggml.merges", 8, BASE - 256);
    while ((line = strtok_r(NULL, "\n", &rest)) != NULL)
        take_string(file, line);
    expect_text(file, "tokenizer.chat_template", q3_test_string(config, "chat_template"));
    expect_u32(file, "tokenizer.ggml.eos_token_id", 1402);
    expect_u32(file, "tokenizer.ggml.padding_token_id", 1400);
    expect_u32(file, "tokenizer.ggml.bos_token_id", 1400);
    expect_pair(file, "tokenizer.ggml.add_bos_token", 7);
    assert_int_equal(take(file, 1), 0);
    memset(tokens, 0, sizeof tokens);
    free(merges);
    cJSON_Delete(config);
    cJSON_Delete(vocab);
}

// A tensor as it must be: where it comes from, and its dimensions, slowest first, 0 for none.
typedef struct expected_tensor {
    char *name;
    q3_part part;
    uint32_t layer;
    const char *source;
    uint32_t type; // 0 F32, 30 BF16
    uint64_t shape[3];
} expected_tensor;

static size_t list_tensors(expected_tensor list[16 * LAYERS], uint32_t experts)
{
    static const struct {
        const char *name, *source;
        q3_part part;
        uint32_t type;
        uint64_t shape[3]; // 1 stands for the number of experts
    } layer_tensors[] = {
        {"attn_norm", "input_layernorm", Q3_NORMS, 0, {HIDDEN}},
        {"attn_q", "self_attn.q_proj", Q3_ATTENTION, 30, {128, HIDDEN}},
        {"attn_k", "self_attn.k_proj", Q3_ATTENTION, 30, {64, HIDDEN}},
        {"attn_v", "self_attn.v_proj", Q3_ATTENTION, 30, {64, HIDDEN}},
        {"attn_output", "self_attn.o_proj", Q3_ATTENTION, 30, {HIDDEN, 128}},
        {"attn_q_norm", "self_attn.q_norm", Q3_ATTENTION, 0, {32}},
        {"attn_k_norm", "self_attn.k_norm", Q3_ATTENTION, 0, {32}},
        {"ffn_norm", "post_attention_layernorm", Q3_NORMS, 0, {HIDDEN}},
        {"ffn_gate_inp", "mlp.gate", Q3_ROUTER, 0, {1, HIDDEN}},
        {"ffn_gate_exps", "gate_proj", Q3_EXPERT, 30, {1, INNER, HIDDEN}},
        {"ffn_up_exps", "up_proj", Q3_EXPERT, 30, {1, INNER, HIDDEN}},
        {"ffn_down_exps", "down_proj", Q3_EXPERT, 30, {1, HIDDEN, INNER}},
    };
    size_t count = 0;
    list[count++] = (expected_tensor){q3_test_path("token_embd.weight"),
                                      Q3_EMBEDDING,
                                      0,
                                      "model.embed_tokens",
                                      30,
                                      {VOCABULARY, HIDDEN}};
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < sizeof layer_tensors / sizeof *layer_tensors; i++) {
            expected_tensor *to = &list[count++];
            *to = (expected_tensor){q3_test_path("blk.%u.%s.weight", layer, layer_tensors[i].name),
                                    layer_tensors[i].part,
                                    layer,
                                    layer_tensors[i].source,
                                    layer_tensors[i].type,
                                    {0}};
            memcpy(to->shape, layer_tensors[i].shape, sizeof to->shape);
            if (to->shape[0] == 1)
                to->shape[0] = experts;
        }
    list[count++] = (expected_tensor){
        q3_test_path("output_norm.weight"), Q3_FINAL_NORM, 0, "model.norm", 0, {HIDDEN}};
    list[count++] = (expected_tensor){q3_test_path("output.weight"), Q3_LM_HEAD, 0, "lm_head", 30,
                                      {VOCABULARY, HIDDEN}};
    return count;
}

// Compares `size` bytes of BF16 with what is in the file, as it is or as F32.
static const uint8_t *expect_values(const uint8_t *found, const uint8_t *source, size_t size,
                                    uint32_t type)
{
    if (type == 30) {
        assert_memory_equal(found, source, size);
        return found + size;
    }
    for (size_t i = 0; i < size; i += 2, found += 4) {
        const uint8_t wide[4] = {0, 0, source[i], source[i + 1]};
        assert_memory_equal(found, wide, 4);
    }
    return found;
}

static void check_data(const uint8_t *found, const expected_tensor *tensor, const q3_set *source,
                       uint32_t experts, uint32_t numbers[LAYERS][EXPERTS])
{
    size_t size;
    const uint32_t *chosen = numbers[tensor->layer];
    if (tensor->part == Q3_EXPERT) {
        for (uint32_t i = 0; i < experts; i++) {
            uint8_t *raw = read_tensor(source, Q3_EXPERT, tensor->layer, chosen[i], "thinker.",
                                       tensor->source, &size);
            found = expect_values(found, raw, size, tensor->type);
            free(raw);
        }
        return;
    }
    uint8_t *raw =
        read_tensor(source, tensor->part, tensor->layer, 0, "thinker.", tensor->source, &size);
    if (tensor->part == Q3_ROUTER)
        for (uint32_t i = 0; i < experts; i++)
            found = expect_values(found, raw + (size_t)chosen[i] * HIDDEN * 2, HIDDEN * 2,
                                  tensor->type);
    else
        expect_values(found, raw, size, tensor->type);
    free(raw);
}

static void check_gguf(const char *path, uint32_t experts, uint32_t top_k,
                       uint32_t numbers[LAYERS][EXPERTS])
{
    gguf file = {0};
    file.bytes = (uint8_t *)q3_test_read(path, &file.size);
    assert_memory_equal(file.bytes, "GGUF", 4);
    file.at = 4;
    assert_int_equal(take(&file, 4), 3);
    file.tensors = take(&file, 8);
    file.pairs = take(&file, 8);
    expect_text(&file, "general.architecture", "qwen3moe");
    expect_text(&file, "general.type", "model");
    expect_u32(&file, "general.file_type", 32);
    expect_u32(&file, "general.alignment", 32);
    expect_u32(&file, "qwen3moe.block_count", LAYERS);
    expect_u32(&file, "qwen3moe.context_length", 4096);
    expect_u32(&file, "qwen3moe.embedding_length", HIDDEN);
    expect_u32(&file, "qwen3moe.feed_forward_length", INNER * top_k);
    expect_u32(&file, "qwen3moe.vocab_size", VOCABULARY);
    expect_u32(&file, "qwen3moe.attention.head_count", 4);
    expect_u32(&file, "qwen3moe.attention.head_count_kv", 2);
    expect_u32(&file, "qwen3moe.attention.key_length", 32);
    expect_u32(&file, "qwen3moe.attention.value_length", 32);
    expect_u32(&file, "qwen3moe.rope.dimension_count", 32);
    expect_u32(&file, "qwen3moe.expert_count", experts);
    expect_u32(&file, "qwen3moe.expert_used_count", top_k);
    expect_u32(&file, "qwen3moe.expert_feed_forward_length", INNER);
    expect_f32(&file, "qwen3moe.rope.freq_base", 1e6F);
    expect_f32(&file, "qwen3moe.attention.layer_norm_rms_epsilon", 1e-6F);
    check_tokenizer(&file);
    assert_int_equal(file.pairs, 0);

    expected_tensor list[16 * LAYERS];
    const size_t count = list_tensors(list, experts);
    uint64_t offsets[16 * LAYERS], next = 0;
    assert_int_equal(file.tensors, count);
    for (size_t i = 0; i < count; i++) {
        unsigned rank = 0;
        uint64_t bytes = list[i].type == 30 ? 2 : 4;
        for (; rank < 3 && list[i].shape[rank]; rank++)
            bytes *= list[i].shape[rank];
        take_string(&file, list[i].name);
        assert_int_equal(take(&file, 4), rank);
        for (unsigned d = rank; d-- > 0;)
            assert_int_equal(take(&file, 8), list[i].shape[d]);
        assert_int_equal(take(&file, 4), list[i].type);
        offsets[i] = take(&file, 8);
        assert_int_equal(offsets[i], (next + 31) / 32 * 32);
        next = offsets[i] + bytes;
    }
    const size_t data = (file.at + 31) / 32 * 32;
    for (size_t i = file.at; i < data; i++)
        assert_int_equal(file.bytes[i], 0);
    assert_int_equal(file.size, data + (next + 31) / 32 * 32);
    q3_set source = open_set(all);
    for (size_t i = 0; i < count; i++) {
        check_data(file.bytes + data + offsets[i], &list[i], &source, experts, numbers);
        free(list[i].name);
    }
    q3_set_close(&source);
    free(file.bytes);
}

static void test_gguf(void **state)
{
    (void)state;
    char *one = scratch("one.gguf"), *three = scratch("three.gguf"), *pruned = scratch("64.gguf");
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_PACK, "export", text, one, "--format", "gguf", NULL);
    assert_string_equal(result.err, "");
    assert_memory_equal(result.out, "75 tensors, 11.2 MB, in 1 file in ",
                        strlen("75 tensors, 11.2 MB, in 1 file in "));
    assert_null(strstr(result.out, "note"));
    q3_test_result_free(&result);
    check_gguf(one, EXPERTS, 8, every);
    // The same bytes whatever the pack holds beside and whatever the number of threads.
    export_to(all, three, "gguf", "--jobs", "3", NULL, NULL);
    size_t size, other;
    char *a = q3_test_read(one, &size), *b = q3_test_read(three, &other);
    assert_int_equal(size, other);
    assert_memory_equal(a, b, size);
    free(a);
    free(b);
    export_to(all, pruned, "gguf", "--pool", pool_path, "--top-k", "5");
    check_gguf(pruned, KEPT, 5, kept);

    char *expected = q3_test_path("q3-pack: %s: exists already\n", one);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", text, one, "--format", "gguf", NULL),
                   6, expected);
    free(expected);
    q3_test_remove_tree(one);
    q3_test_remove_tree(three);
    q3_test_remove_tree(pruned);
    free(one);
    free(three);
    free(pruned);
}

// Where a template comes from, and what padding and special tokens do without one.
static void test_templates(void **state)
{
    (void)state;
    char *model = scratch("templates"), *out = scratch("templates.gguf");
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, false);
    char *path = q3_test_path("%s/tokenizer_config.json", model);
    char *jinja = q3_test_path("%s/chat_template.jinja", model),
         *processor = q3_test_path("%s/chat_template.json", model);
    cJSON *config = q3_test_load_json(path);
    q3_test_write_text(processor, "{\"chat_template\": \"from the processor\"}");
    const struct {
        const char *tokenizer, *jinja, *expected;
    } table[] = {
        {"\"from the tokenizer\"", NULL, "from the tokenizer"},
        {"[{\"name\": \"tool\", \"template\": \"x\"}, {\"name\": \"default\", \"template\": "
         "\"y\"}]",
         NULL, "y"},
        {NULL, NULL, "from the processor"},
        {"\"from the tokenizer\"", "from a file", "from a file"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        cJSON_DeleteItemFromObject(config, "chat_template");
        if (table[i].tokenizer)
            cJSON_AddItemToObject(config, "chat_template", cJSON_Parse(table[i].tokenizer));
        char *written = cJSON_Print(config);
        q3_test_write_text(path, written);
        cJSON_free(written);
        if (table[i].jinja)
            q3_test_write_text(jinja, table[i].jinja);
        char *pack = extract(model, "templates-pack", "--codec", "raw");
        export_to(pack, out, "gguf", NULL, NULL, NULL, NULL);
        gguf file = {0};
        file.bytes = (uint8_t *)q3_test_read(out, &file.size);
        static const char key[] = "tokenizer.chat_template";
        const uint8_t *at = memmem(file.bytes, file.size, key, sizeof key - 1);
        assert_non_null(at);
        file.at = (size_t)(at - file.bytes) + sizeof key - 1;
        assert_int_equal(take(&file, 4), 8);
        take_string(&file, table[i].expected);
        free(file.bytes);
        q3_test_remove_tree(out);
        q3_test_remove_tree(pack);
        free(pack);
    }
    cJSON_Delete(config);
    q3_test_remove_tree(model);
    free(jinja);
    free(processor);
    free(path);
    free(out);
    free(model);
}

// ---- refused ----

static void expect_refused(const char *pack, const char *format, const char *option,
                           const char *value, int code, const char *message)
{
    char *out = scratch("refused");
    char *expected = q3_test_path("q3-pack: %s\n", message);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", pack, out, "--format", format, option,
                               value, NULL),
                   code, expected);
    assert_false(has(q3_test_scratch, "refused"));
    free(expected);
    free(out);
}

// Makes a pack of the text model that lacks one expert.
static void remove_expert(const char *pack, uint32_t layer, uint32_t expert)
{
    q3_error error;
    q3_test_copy_tree(text, pack, true);
    q3_set set = open_set(pack);
    const q3_place place = {
        .component = Q3_TEXT, .part = Q3_EXPERT, .layer = layer, .expert = expert};
    const q3_set_file *found = q3_set_find(&set, &place);
    assert_non_null(found);
    const size_t index = (size_t)(found - set.files);
    const q3_set_file removed = *found;
    set.file_count--;
    memmove(&set.files[index], &set.files[index + 1], (set.file_count - index) * sizeof *set.files);
    set.components[Q3_TEXT].tensors -= removed.tensor_count;
    set.components[Q3_TEXT].bytes -= (uint64_t)removed.tensor_count * INNER * HIDDEN * 2;
    assert_ok(q3_set_write(&set, &error));
    set.files[set.file_count++] = removed; // to be freed
    q3_set_close(&set);
}

static void test_refused(void **state)
{
    (void)state;
    char *out = scratch("refused"), *unequal = scratch("unequal.json");
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "export", all, out, NULL), 2,
                   "q3-pack: --format safetensors or --format gguf is needed\n");
    expect_refused(all, "gguf", "--as", "qwen3_moe", 2, "--as is for --format safetensors");
    expect_refused(all, "gguf", "--shard-size", "1G", 2,
                   "--shard-size is for --format safetensors");
    expect_refused(all, "safetensors", "--top-k", "129", 2,
                   "--top-k 129: only 128 experts are kept");

    // The first layer that differs from the first.
    write_pool(unequal, kept, (const uint32_t[LAYERS]){8, 8, 8, 9, 8, 7});
    char *expected =
        q3_test_path("%s: layer 0 has 8 experts, layer 3 has 9; an exported model needs the same "
                     "number in every layer",
                     unequal);
    expect_refused(all, "safetensors", "--pool", unequal, 4, expected);
    expect_refused(all, "gguf", "--pool", unequal, 4, expected);
    free(expected);
    char *pack = scratch("unequal");
    remove_expert(pack, 3, 77);
    expected = q3_test_path("%s: layer 0 has 128 experts, layer 3 has 127; an exported model needs "
                            "the same number in every layer",
                            pack);
    expect_refused(pack, "gguf", NULL, NULL, 5, expected);
    free(expected);
    q3_test_remove_tree(pack);
    free(pack);

    pack = extract(Q3_TEST_MODEL_DIR, "two-layers", "--layers", "0-1");
    expected = q3_test_path("%s: cannot be exported: the pack lacks layers/02/attention.q3p and "
                            "11 more files of the text model",
                            pack);
    expect_refused(pack, "safetensors", NULL, NULL, 5, expected);
    free(expected);
    q3_test_remove_tree(pack);
    free(pack);

    // What is there stays as it is.
    expected = q3_test_path("q3-pack: %s: is not empty\n", all);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "export", text, all, "--format", "safetensors", NULL), 6,
        expected);
    assert_true(has(all, "pack.json"));
    free(expected);
    free(unequal);
    free(out);
}

// A byte of one frame is wrong: nothing is left of what had been written by then.
static void test_damaged(void **state)
{
    (void)state;
    char *pack = scratch("damaged"), *out = scratch("of-damaged"), *file = scratch("damaged.gguf");
    q3_test_copy_tree(text, pack, false);
    char *path = q3_test_path("%s/lm_head.q3p", pack);
    size_t size;
    char *data = q3_test_read(path, &size);
    data[size / 2] = (char)~data[size / 2];
    q3_test_write(path, data, size);
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "export", pack, out, "--format",
                                        "safetensors", "--shard-size", "1M", NULL);
    assert_int_equal(result.code, 4);
    assert_non_null(strstr(result.err, "lm_head.q3p: thinker.lm_head.weight: "));
    q3_test_result_free(&result);
    assert_int_equal(rmdir(out), 0); // so it was empty
    result = q3_test_run(NULL, Q3_TEST_PACK, "export", pack, file, "--format", "gguf", NULL);
    assert_int_equal(result.code, 4);
    q3_test_result_free(&result);
    assert_false(has(q3_test_scratch, "damaged.gguf"));
    assert_false(has(q3_test_scratch, "damaged.gguf.part"));
    q3_test_remove_tree(pack);
    free(data);
    free(path);
    free(file);
    free(out);
    free(pack);
}

// ---- what GGUF cannot say ----

#define MODEL                                                                            \
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", "     \
    "\"head_dim\": 16, \"hidden_size\": 32, \"max_position_embeddings\": 64, "           \
    "\"moe_intermediate_size\": 32, \"num_attention_heads\": 2, \"num_experts\": 3, "    \
    "\"num_experts_per_tok\": 2, \"num_hidden_layers\": 2, \"num_key_value_heads\": 1, " \
    "\"rms_norm_eps\": 1e-06, \"rope_theta\": 10000, \"vocab_size\": 40"

static void test_not_for_gguf(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        const char *vocab, *merges, *tokenizer; // NULL for no such file
        int code;
        const char *message; // P stands for the pack
    } table[] = {
        {MODEL ", \"norm_topk_prob\": false}", "{}", "", "{}", 4,
         "P/config.json: norm_topk_prob: false cannot be said in GGUF: the architecture qwen3moe "
         "always divides by the sum of the top k"},
        {MODEL ", \"norm_topk_prob\": true}", NULL, NULL, NULL, 5,
         "P: pack.json lists no vocab.json"},
        {MODEL ", \"norm_topk_prob\": true}", "[]", "", "{}", 4,
         "P/vocab.json: expected an object of tokens and their ids"},
        {MODEL ", \"norm_topk_prob\": true}", "{\"a\": 40}", "", "{\"added_tokens_decoder\": {}}",
         4, "P/vocab.json: a: id 40: the model has only 40 (vocab_size)"},
        {MODEL ", \"norm_topk_prob\": true}", "{\"a\": 4, \"b\": 4}", "",
         "{\"added_tokens_decoder\": {}}", 4, "P/vocab.json: b: id 4 is already another token's"},
        {MODEL ", \"norm_topk_prob\": true}", "{\"a\": 4}", "",
         "{\"added_tokens_decoder\": {\"x\": {}}}", 4,
         "P/tokenizer_config.json: added_tokens_decoder.x: expected a token id as the key, found "
         "\"x\""},
        {MODEL ", \"norm_topk_prob\": true}", "{\"a\": 4}", "#version\n\na b\nab\n",
         "{\"added_tokens_decoder\": {}}", 4,
         "P/merges.txt: rule 2: expected two tokens and a blank between"},
        {MODEL ", \"dtype\": \"float32\", \"norm_topk_prob\": true}", "{\"a\": 4}", "a b\n",
         "{\"added_tokens_decoder\": {}}", 4,
         "P: model.embed_tokens.weight: expected BF16, found F32, which is not exported as GGUF"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *directory = q3_test_directory();
        const struct {
            const char *name, *content;
        } files[] = {{"config.json", table[i].config},
                     {"vocab.json", table[i].vocab},
                     {"merges.txt", table[i].merges},
                     {"tokenizer_config.json", table[i].tokenizer}};
        for (size_t f = 0; f < 4; f++) {
            char *path = q3_test_path("%s/%s", directory, files[f].name);
            if (files[f].content)
                q3_test_write_text(path, files[f].content);
            free(path);
        }
        char *config = q3_test_path("%s/config.json", directory);
        char *model = q3_test_path("%s/model", directory);
        const q3_checkpoint_options options = {
            .config = config, .directory = model, .seed = 3, .jobs = 1};
        q3_error error;
        assert_ok(q3_checkpoint_write(&options, NULL, &error));
        char *pack = extract(model, "not-for-gguf", "--codec", "raw");
        const char *message = table[i].message;
        char *expected = q3_test_path("%s%s", pack, message + 1);
        expect_refused(pack, "gguf", NULL, NULL, table[i].code, expected);
        free(expected);
        // As safetensors all of them can be had.
        char *out = scratch("for-safetensors");
        export_to(pack, out, "safetensors", NULL, NULL, NULL, NULL);
        q3_test_remove_tree(out);
        q3_test_remove_tree(pack);
        free(out);
        free(pack);
        free(model);
        free(config);
        q3_test_remove(directory);
    }
}

// ---- the group ----

static int prepare(void **state)
{
    q3_test_make_scratch(state);
    all = extract(Q3_TEST_MODEL_DIR, "all", "--components", "all");
    text = extract(Q3_TEST_MODEL_DIR, "text", "--components", "text");
    pool_path = scratch("pool.json");
    cJSON *reference = q3_test_load_json(Q3_TEST_REFERENCE);
    const cJSON *pool, *layer, *item;
    cJSON_ArrayForEach(pool, q3_test_member(reference, "pools"))
    {
        if (q3_test_number(pool, "size") != KEPT)
            continue;
        uint32_t at = 0;
        cJSON_ArrayForEach(layer, q3_test_member(pool, "experts"))
        {
            bool in[EXPERTS] = {false};
            uint32_t count = 0;
            cJSON_ArrayForEach(item, layer) in[item->valueint] = true;
            for (uint32_t i = 0; i < EXPERTS; i++)
                if (in[i])
                    kept[at][count++] = i;
            assert_int_equal(count, KEPT);
            at++;
        }
        assert_int_equal(at, LAYERS);
    }
    cJSON_Delete(reference);
    for (uint32_t i = 0; i < LAYERS; i++)
        for (uint32_t j = 0; j < EXPERTS; j++)
            every[i][j] = j;
    write_pool(pool_path, kept, (const uint32_t[LAYERS]){KEPT, KEPT, KEPT, KEPT, KEPT, KEPT});
    return 0;
}

static int clean_up(void **state)
{
    free(pool_path);
    free(text);
    free(all);
    return q3_test_remove_scratch(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),        cmocka_unit_test(test_text_only),
        cmocka_unit_test(test_pruned),       cmocka_unit_test(test_text_model_config),
        cmocka_unit_test(test_small_pool),   cmocka_unit_test(test_partial_pack),
        cmocka_unit_test(test_gguf),         cmocka_unit_test(test_templates),
        cmocka_unit_test(test_refused),      cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_not_for_gguf),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
