// SPDX-License-Identifier: Apache-2.0
//
// The checkpoints that other tests stand on: the same bytes everywhere, the order, cuts and headers
// of save_pretrained, and damage where it was asked for.
#include "base/file.h"
#include "base/hash.h"
#include "checkpoint.h"
#include "checkpoint_writer.h"
#include "safetensors.h"
#include "support.h"
#include "weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TINY_CONFIG Q3_TEST_MODEL_DIR "/config.json"

// What cut the tiny model's shards.
enum { TINY_SHARD_BYTES = 1700000, TINY_SHARDS = 7, TINY_TENSORS = 2610 };

// The options of a sound tiny checkpoint in directory/name.
static q3_checkpoint_options tiny(char *path)
{
    return (q3_checkpoint_options){.config = TINY_CONFIG,
                                   .directory = path,
                                   .seed = 1,
                                   .shard_bytes = TINY_SHARD_BYTES,
                                   .jobs = 1};
}

static void write_checkpoint(const q3_checkpoint_options *options, q3_checkpoint_summary *summary)
{
    q3_error error;
    assert_ok(q3_checkpoint_write(options, summary, &error));
}

// The tiny model was saved by the real libraries: headers, index and the small files must equal it.
static void test_like_the_original(void **state)
{
    (void)state;
    q3_error error;
    char *path = q3_test_path("%s/a", q3_test_scratch);
    const q3_checkpoint_options options = tiny(path);
    q3_checkpoint_summary summary;
    write_checkpoint(&options, &summary);
    assert_int_equal(summary.tensors, TINY_TENSORS);
    assert_int_equal(summary.bytes, 11442722);
    assert_int_equal(summary.shards, TINY_SHARDS);
    assert_int_equal(summary.written, TINY_SHARDS);

    q3_checkpoint written, original;
    assert_ok(q3_checkpoint_open(path, &written, &error));
    assert_ok(q3_checkpoint_open(Q3_TEST_MODEL_DIR, &original, &error));
    assert_int_equal(written.tensor_count, TINY_TENSORS);
    assert_int_equal(written.shard_count, original.shard_count);
    for (uint32_t i = 0; i < original.shard_count; i++) {
        assert_string_equal(written.shards[i].name, original.shards[i].name);
        assert_int_equal(written.shards[i].size, original.shards[i].size);
        assert_int_equal(written.shards[i].header_bytes, original.shards[i].header_bytes);
        assert_true(
            q3_hash128_equal(written.shards[i].header_hash, original.shards[i].header_hash));
    }
    q3_checkpoint_close(&original);
    q3_checkpoint_close(&written);

    static const char *const same[] = {"config.json", "generation_config.json", "merges.txt",
                                       "tokenizer_config.json", "vocab.json"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char *copy = q3_test_path("%s/%s", path, same[i]);
        char *source = q3_test_path("%s/%s", Q3_TEST_MODEL_DIR, same[i]);
        size_t copy_size, source_size;
        char *a = q3_test_read(copy, &copy_size), *b = q3_test_read(source, &source_size);
        assert_int_equal(copy_size, source_size);
        assert_memory_equal(a, b, copy_size);
        free(b);
        free(a);
        free(source);
        free(copy);
    }
    char *index = q3_test_path("%s/model.safetensors.index.json", path);
    size_t size, original_size;
    char *a = q3_test_read(index, &size);
    char *b = q3_test_read(Q3_TEST_MODEL_DIR "/model.safetensors.index.json", &original_size);
    // The tiny model's was saved without a line break at the end.
    assert_int_equal(size, original_size + 1);
    assert_memory_equal(a, b, original_size);
    free(b);
    free(a);
    free(index);
    free(path);
}

static void shard_hash(const char *path, unsigned number, char out[Q3_HASH_TEXT])
{
    char *shard = q3_test_path("%s/model-%05u-of-%05d.safetensors", path, number, TINY_SHARDS);
    size_t size;
    char *data = q3_test_read(shard, &size);
    q3_hash128_text(q3_hash128_of(data, size), out);
    free(data);
    free(shard);
}

static void test_same_bytes(void **state)
{
    (void)state;
    char *a = q3_test_path("%s/a", q3_test_scratch), *b = q3_test_path("%s/b", q3_test_scratch);
    q3_checkpoint_options options = tiny(a);
    write_checkpoint(&options, NULL);
    // On every machine.
    char hash[Q3_HASH_TEXT];
    shard_hash(a, 1, hash);
    assert_string_equal(hash, "18a4bad609b00809e61bc140b5a674da");
    shard_hash(a, 7, hash);
    assert_string_equal(hash, "679cd5be31ad21660a3cd6bf146cf307");
    // By any number of threads, and shard by shard.
    options.directory = b;
    options.jobs = 3;
    q3_checkpoint_summary summary;
    options.shards = "2-3,7";
    write_checkpoint(&options, &summary);
    assert_int_equal(summary.written, 3);
    options.shards = "1,4-6";
    write_checkpoint(&options, &summary);
    assert_int_equal(summary.written, 4);
    q3_test_trees_equal(a, b);
    // From another seed other bytes.
    options.shards = "1";
    options.seed = 2;
    write_checkpoint(&options, NULL);
    shard_hash(b, 1, hash);
    assert_string_not_equal(hash, "18a4bad609b00809e61bc140b5a674da");
    free(b);
    free(a);
}

static double bf16_value(const uint8_t *at)
{
    const uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

// Mean and standard deviation of a tensor's numbers.
static void measure(const char *name, unsigned rank, uint64_t rows, uint64_t columns, double *mean,
                    double *deviation)
{
    const q3_tensor tensor = {
        .name = name, .dtype = Q3_BF16, .rank = rank, .shape = {rows, columns}};
    const size_t count = (size_t)(rank == 1 ? rows : rows * columns);
    uint8_t *data = malloc(2 * count);
    assert_non_null(data);
    q3_weights weights;
    q3_weights_describe(&tensor, 1, &weights);
    q3_weights_fill(&weights, 0, count, data);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < count; i++) {
        const double value = bf16_value(data + 2 * i);
        sum += value;
        squares += value * value;
    }
    *mean = sum / (double)count;
    *deviation = sqrt(squares / (double)count - *mean * *mean);
    // A tensor in pieces is the same tensor.
    uint8_t *pieces = malloc(2 * count);
    assert_non_null(pieces);
    for (size_t i = 0; i < count; i += 1000)
        q3_weights_fill(&weights, i, count - i < 1000 ? count - i : 1000, pieces + 2 * i);
    assert_memory_equal(pieces, data, 2 * count);
    free(pieces);
    free(data);
}

static void test_statistics(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        unsigned rank;
        uint64_t rows, columns;
        double mean, deviation;
    } expected[] = {
        // The rows' scales add their own spread: exp(0.09) times 1/sqrt(columns).
        {"a.up_proj.weight", 2, 768, 2048, 0, 0.02418},
        {"a.down_proj.weight", 2, 2048, 768, 0, 0.03948},
        {"a.mlp.gate.weight", 2, 512, 2048, 0, 0.04835},
        {"lm_head.weight", 2, 512, 2048, 0, 0.04835},
        {"a.norm.weight", 1, 100000, 0, 1, 0.0625},
        {"a.bias", 1, 100000, 0, 0, 0.015625},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        double mean, deviation;
        measure(expected[i].name, expected[i].rank, expected[i].rows, expected[i].columns, &mean,
                &deviation);
        if (fabs(mean - expected[i].mean) > 5e-4 ||
            fabs(deviation / expected[i].deviation - 1) > 0.03)
            fail_msg("%s: mean %g, deviation %g", expected[i].name, mean, deviation);
    }
}

static void test_types(void **state)
{
    (void)state;
    uint8_t bf16[2 * 64], f32[4 * 64], bytes[64];
    q3_tensor tensor = {.name = "a.weight", .dtype = Q3_BF16, .rank = 2, .shape = {8, 8}};
    q3_weights weights;
    q3_weights_describe(&tensor, 1, &weights);
    q3_weights_fill(&weights, 0, 64, bf16);
    tensor.dtype = Q3_F32;
    q3_weights_describe(&tensor, 1, &weights);
    q3_weights_fill(&weights, 0, 64, f32);
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(f32[4 * i], 0);
        assert_int_equal(f32[4 * i + 1], 0);
        assert_memory_equal(f32 + 4 * i + 2, bf16 + 2 * i, 2);
    }
    tensor.dtype = Q3_BOOL;
    q3_weights_describe(&tensor, 1, &weights);
    q3_weights_fill(&weights, 0, 64, bytes);
    unsigned ones = 0;
    for (size_t i = 0; i < 64; i++) {
        assert_true(bytes[i] <= 1);
        ones += bytes[i];
    }
    assert_in_range(ones, 16, 48);
}

static void test_layers(void **state)
{
    (void)state;
    q3_error error;
    char *path = q3_test_path("%s/a", q3_test_scratch);
    q3_checkpoint_options options = tiny(path);
    options.layers = 2;
    options.shard_bytes = 0;
    q3_checkpoint_summary summary;
    write_checkpoint(&options, &summary);
    // Four layers of 9 tensors and 3 x 128 of experts less.
    assert_int_equal(summary.tensors, TINY_TENSORS - 4 * (9 + 3 * 128));
    assert_int_equal(summary.shards, 1);
    char *shard = q3_test_path("%s/model.safetensors", path);
    char *index = q3_test_path("%s/model.safetensors.index.json", path);
    assert_true(q3_path_exists(shard));
    assert_false(q3_path_exists(index));
    char *config_path = q3_test_path("%s/config.json", path);
    q3_config config;
    assert_ok(q3_config_load(config_path, &config, NULL, &error));
    assert_int_equal(config.num_hidden_layers, 2);
    assert_int_equal(config.num_experts, 128);
    q3_checkpoint checkpoint;
    assert_ok(q3_checkpoint_open(path, &checkpoint, &error));
    assert_int_equal(checkpoint.tensor_count, summary.tensors);
    q3_checkpoint_close(&checkpoint);
    free(config_path);
    free(index);
    free(shard);
    free(path);
}

// ---- damage ----

#define EXPERT "thinker.model.layers.3.mlp.experts.64."

static void damage(void *context, q3_planned_tensor *tensor)
{
    (void)context;
    if (strcmp(tensor->name, EXPERT "gate_proj.weight") == 0)
        tensor->stored = false;
    else if (strcmp(tensor->name, EXPERT "up_proj.weight") == 0)
        tensor->listed = false;
    else if (strcmp(tensor->name, EXPERT "down_proj.weight") == 0)
        tensor->listed_shard++;
    else if (strcmp(tensor->name, "thinker.model.norm.weight") == 0)
        tensor->listed_shard = TINY_SHARDS;
    else if (strcmp(tensor->name, "thinker.lm_head.weight") == 0) {
        snprintf(tensor->name, sizeof tensor->name, "thinker.lm\t\"head\"");
        tensor->dtype = Q3_F32;
        tensor->rank = 1;
        tensor->shape[0] = 3;
    }
}

static bool hear(void *context, const q3_problem *problem)
{
    unsigned *heard = context;
    static const struct {
        q3_problem_kind kind;
        const char *subject;
    } expected[] = {
        {Q3_PROBLEM_SHARD_ABSENT, "model-00008-of-00007.safetensors"},
        {Q3_PROBLEM_SHARD_LACKS, EXPERT "gate_proj.weight"},
        {Q3_PROBLEM_SHARD_LACKS, EXPERT "down_proj.weight"},
        {Q3_PROBLEM_UNLISTED, EXPERT "up_proj.weight"},
        {Q3_PROBLEM_ELSEWHERE, EXPERT "down_proj.weight"},
        {Q3_PROBLEM_ELSEWHERE, "thinker.model.norm.weight"},
    };
    for (unsigned i = 0; i < sizeof expected / sizeof *expected; i++)
        if (problem->kind == expected[i].kind && strcmp(problem->subject, expected[i].subject) == 0)
            heard[i]++;
    heard[6]++;
    return true;
}

static void test_damage(void **state)
{
    (void)state;
    q3_error error;
    char *path = q3_test_path("%s/a", q3_test_scratch);
    q3_checkpoint_options options = tiny(path);
    options.edit = damage;
    q3_checkpoint_summary summary;
    write_checkpoint(&options, &summary);
    assert_int_equal(summary.tensors, TINY_TENSORS - 1);
    q3_checkpoint checkpoint;
    unsigned heard[7] = {0};
    assert_ok(q3_checkpoint_survey(path, NULL, hear, heard, &checkpoint, &error));
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(heard[i], 1);
    assert_int_equal(heard[6], 6);
    const q3_stored_tensor *renamed = q3_checkpoint_find(&checkpoint, "thinker.lm\t\"head\"");
    assert_non_null(renamed);
    assert_int_equal(renamed->tensor.dtype, Q3_F32);
    assert_int_equal(renamed->tensor.rank, 1);
    assert_int_equal(renamed->tensor.shape[0], 3);
    // The stricter alignment comes first in its shard.
    assert_int_equal(renamed->offset, checkpoint.shards[renamed->shard].header_bytes);
    q3_checkpoint_close(&checkpoint);
    free(path);
}

static void lose_shard(void *context, q3_planned_tensor *tensor)
{
    (void)context;
    tensor->shard = TINY_SHARDS;
}

static void test_refusals(void **state)
{
    (void)state;
    q3_error error;
    char *path = q3_test_path("%s/a", q3_test_scratch);
    q3_checkpoint_options options = tiny(path);
    options.edit = lose_shard;
    assert_false(q3_checkpoint_write(&options, NULL, &error));
    assert_int_equal(error.code, Q3_USAGE);
    assert_string_equal(error.message,
                        "thinker.audio_tower.layers.0.self_attn.k_proj.weight: an edit left no "
                        "size or no shard to write it to");
    options = tiny(path);
    options.shard_bytes = 1;
    options.shards = "2611";
    assert_false(q3_checkpoint_write(&options, NULL, &error));
    assert_int_equal(error.code, Q3_USAGE);
    options.shards = "0-1";
    assert_false(q3_checkpoint_write(&options, NULL, &error));
    assert_int_equal(error.code, Q3_USAGE);
    assert_string_equal(error.message, "shards are counted from 1");
    free(path);
}

// ---- full size ----

// The names in the order of saving.
typedef struct saving_order {
    char (*names)[Q3_NAME_MAX];
    size_t count;
} saving_order;

static void note_name(void *context, q3_planned_tensor *tensor)
{
    saving_order *order = context;
    memcpy(order->names[order->count++], tensor->name, Q3_NAME_MAX);
}

// Name, shape and shard of each row of the list, whose order is the order of saving.
static void test_full_size(void **state)
{
    (void)state;
    const char *reference = getenv("Q3_REFERENCE_DIR");
    if (!reference) {
        print_message("Q3_REFERENCE_DIR is not set\n");
        skip();
    }
    q3_error error;
    char *path = q3_test_path("%s/a", q3_test_scratch);
    char *config = q3_test_path("%s/qwen3-omni-30b-a3b/config.json", reference);
    char *list = q3_test_path("%s/qwen3-omni-30b-a3b/tensors_instruct.tsv", reference);
    saving_order order = {.names = malloc(28010 * sizeof *order.names)};
    assert_non_null(order.names);
    const q3_checkpoint_options options = {.config = config,
                                           .directory = path,
                                           .sparse = true,
                                           .jobs = 1,
                                           .edit = note_name,
                                           .context = &order};
    q3_checkpoint_summary summary;
    write_checkpoint(&options, &summary);
    assert_int_equal(summary.tensors, 28010);
    assert_int_equal(summary.bytes, UINT64_C(70519637090));
    assert_int_equal(summary.shards, 15);
    q3_checkpoint checkpoint;
    assert_ok(q3_checkpoint_open(path, &checkpoint, &error));
    assert_int_equal(checkpoint.tensor_count, 28010);
    assert_int_equal(checkpoint.bytes, UINT64_C(70519637090));

    char *text = q3_test_read(list, NULL), *rest = NULL;
    unsigned rows = 0;
    assert_string_equal(strtok_r(text, "\n", &rest), "name\tdtype\tshape\tbytes\tshard");
    for (char *line; (line = strtok_r(NULL, "\n", &rest)) != NULL; rows++) {
        char name[Q3_NAME_MAX], dtype[8], shape[64], shard[64], found[64] = "";
        uint64_t bytes;
        assert_int_equal(
            sscanf(line, "%255s %7s %63s %" SCNu64 " %63s", name, dtype, shape, &bytes, shard), 5);
        assert_true(rows < order.count);
        assert_string_equal(order.names[rows], name);
        const q3_stored_tensor *tensor = q3_checkpoint_find(&checkpoint, name);
        assert_non_null(tensor);
        for (unsigned d = 0; d < tensor->tensor.rank; d++)
            snprintf(found + strlen(found), sizeof found - strlen(found), "%s%" PRIu64,
                     d ? "x" : "", tensor->tensor.shape[d]);
        assert_string_equal(found, shape);
        assert_string_equal(q3_dtype_name(tensor->tensor.dtype), dtype);
        assert_int_equal(tensor->tensor.bytes, bytes);
        assert_string_equal(checkpoint.shards[tensor->shard].name, shard);
    }
    assert_int_equal(rows, 28010);
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < checkpoint.shard_count; i++) {
        char *shard = q3_test_path("%s/%s", path, checkpoint.shards[i].name);
        struct stat status;
        assert_int_equal(stat(shard, &status), 0);
        blocks += (uint64_t)status.st_blocks;
        free(shard);
    }
    // Headers only: holes take no disk.
    assert_true(blocks * 512 < 16 << 20);
    free(text);
    free(order.names);
    q3_checkpoint_close(&checkpoint);
    free(list);
    free(config);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_like_the_original, q3_test_make_scratch,
                                        q3_test_remove_scratch),
        cmocka_unit_test_setup_teardown(test_same_bytes, q3_test_make_scratch,
                                        q3_test_remove_scratch),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_types),
        cmocka_unit_test_setup_teardown(test_layers, q3_test_make_scratch, q3_test_remove_scratch),
        cmocka_unit_test_setup_teardown(test_damage, q3_test_make_scratch, q3_test_remove_scratch),
        cmocka_unit_test_setup_teardown(test_refusals, q3_test_make_scratch,
                                        q3_test_remove_scratch),
        cmocka_unit_test_setup_teardown(test_full_size, q3_test_make_scratch,
                                        q3_test_remove_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
