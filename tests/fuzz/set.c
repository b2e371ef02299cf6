// SPDX-License-Identifier: Apache-2.0
//
// pack.json. The input is the document up to its checksum, which the target adds; the config.json
// beside it is a fixed one (the first file of the corpus agrees with it). What is accepted and
// written again is accepted again and gives the same text.
#include "set.h"
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>

static const char config[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":64,\"hidden_size\":8,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":4,\"num_experts\":4,"
    "\"num_experts_per_tok\":2,\"moe_intermediate_size\":4,\"max_position_embeddings\":32,"
    "\"norm_topk_prob\":true,\"rms_norm_eps\":1e-06,\"rope_theta\":10000}\n";

static void write_signed(q3_bytes text)
{
    char hash[Q3_HASH_TEXT], *file;
    const int size = asprintf(&file, "%.*s,\n  \"checksum\": \"%s\"\n}\n", (int)text.size,
                              (const char *)text.data,
                              q3_hash128_text(q3_hash128_of(text.data, text.size), hash));
    FUZZ_CHECK(size >= 0);
    fuzz_write("pack.json", (q3_bytes){(uint8_t *)file, (size_t)size}, 0);
    free(file);
}

static void check_set(const q3_set *set)
{
    for (size_t i = 0; i < set->file_count; i++) {
        const q3_set_file *file = &set->files[i];
        FUZZ_CHECK(q3_set_find(set, &file->place) == file);
        FUZZ_CHECK(file->place.layer < set->config.num_hidden_layers);
        FUZZ_CHECK(file->place.expert < set->config.num_experts);
        for (uint32_t t = 0; t < file->tensor_count; t++) {
            uint32_t index;
            const q3_set_file *found = q3_set_find_tensor(set, file->tensors[t].name, &index);
            FUZZ_CHECK(found && strcmp(found->tensors[index].name, file->tensors[t].name) == 0);
            FUZZ_CHECK(file->tensors[t].shard < set->shard_count);
        }
        q3_error err;
        q3_pack pack;
        FUZZ_CHECK(!q3_set_open_pack(set, file, &pack, &err) && err.code == Q3_INCOMPLETE);
    }
    for (size_t i = 0; i < set->copy_count; i++)
        FUZZ_CHECK(q3_safe_file_name(set->copies[i].name));
    for (uint32_t i = 0; i < set->shard_count; i++)
        FUZZ_CHECK(q3_safe_file_name(set->shards[i].name));
}

// Writes the set and returns the text.
static char *rewrite(const q3_set *set)
{
    q3_error err;
    char *text;
    size_t size;
    FUZZ_CHECK(q3_set_write(set, &err));
    FUZZ_CHECK(q3_file_load(fuzz_path("pack.json"), 1 << 24, &text, &size, &err));
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_set set, again;
    // Text ends at a NUL, which no JSON holds.
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    fuzz_write("config.json", (q3_bytes){(const uint8_t *)config, sizeof config - 1}, 0);
    write_signed((q3_bytes){data, end ? (size_t)(end - data) : size});
    if (!q3_set_open(fuzz_directory(), &set, &err))
        return 0;
    check_set(&set);
    char *first = rewrite(&set);
    if (!q3_set_open(fuzz_directory(), &again, &err))
        fuzz_violated(__FILE__, __LINE__, err.message);
    check_set(&again);
    char *second = rewrite(&again);
    FUZZ_CHECK(strcmp(first, second) == 0);
    free(first);
    free(second);
    q3_set_close(&again);
    q3_set_close(&set);
    return 0;
}
