// SPDX-License-Identifier: Apache-2.0
//
// A checkpoint's index with two shards, a.safetensors and b.safetensors. An input has up to four
// parts, with a byte 0xff between: the index; of each shard the number of bytes of data and the
// header's JSON, as for the target of safetensors headers; and a kept header of a.safetensors, in
// eight bytes the shard's size and then its first bytes. An empty part is a file that is absent.
#include "checkpoint.h"
#include "fuzz.h"

#include <stdlib.h>
#include <sys/stat.h>

static void write_shard(const char *name, q3_bytes part)
{
    uint8_t head[8];
    uint64_t data_bytes = 0;
    if (part.size == 0) {
        fuzz_remove(name);
        return;
    }
    for (; part.size && *part.data >= '0' && *part.data <= '9'; part.data++, part.size--)
        data_bytes = (data_bytes * 10 + (*part.data - '0')) & 0xffffff;
    uint8_t *bytes = malloc(sizeof head + part.size);
    FUZZ_CHECK(bytes != NULL);
    q3_put_u64(bytes, part.size);
    memcpy(bytes + sizeof head, part.data, part.size);
    const size_t size = sizeof head + part.size;
    fuzz_write(name, (q3_bytes){bytes, size}, size + data_bytes);
    free(bytes);
}

// Hears of every problem and goes on.
static bool hear(void *context, const q3_problem *problem)
{
    size_t *problems = context;
    ++*problems;
    FUZZ_CHECK(problem->error.code != Q3_DONE && *problem->error.message);
    return true;
}

static void check_checkpoint(const q3_checkpoint *checkpoint, bool sound)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < checkpoint->tensor_count; i++) {
        const q3_stored_tensor *tensor = &checkpoint->tensors[i];
        FUZZ_CHECK(tensor->shard < checkpoint->shard_count);
        FUZZ_CHECK(q3_checkpoint_find(checkpoint, tensor->tensor.name) == tensor);
        const q3_shard *shard = &checkpoint->shards[tensor->shard];
        FUZZ_CHECK(shard->read);
        FUZZ_CHECK(tensor->offset >= shard->header_bytes &&
                   tensor->offset + tensor->tensor.bytes <= shard->file_bytes);
        FUZZ_CHECK(!sound || shard->file_bytes == shard->size);
        bytes += tensor->tensor.bytes;
    }
    FUZZ_CHECK(bytes == checkpoint->bytes);
    for (size_t i = 0; i < checkpoint->listed_count; i++) {
        const q3_listed_tensor *listed = &checkpoint->listed[i];
        FUZZ_CHECK(q3_checkpoint_listed(checkpoint, listed->name) == listed);
        FUZZ_CHECK(listed->shard < checkpoint->shard_count);
        FUZZ_CHECK(!sound || listed->found);
        FUZZ_CHECK(listed->found == (q3_checkpoint_find(checkpoint, listed->name) != NULL));
    }
}

// Keeps the headers of all shards that were read, takes the shards away, and surveys again: the
// same tensors.
static void check_kept(const q3_checkpoint *before)
{
    q3_error err;
    char *headers = q3_path_join(fuzz_directory(), "headers", &err);
    FUZZ_CHECK(headers != NULL);
    for (uint32_t i = 0; i < before->shard_count; i++)
        if (before->shards[i].present && !q3_shard_save_header(before, i, headers, &err))
            fuzz_violated(__FILE__, __LINE__, err.message);
    for (uint32_t i = 0; i < before->shard_count; i++)
        fuzz_remove(before->shards[i].name);
    q3_checkpoint after;
    size_t problems = 0;
    if (!q3_checkpoint_survey(fuzz_directory(), &(q3_survey_options){.headers = headers}, hear,
                              &problems, &after, &err))
        fuzz_violated(__FILE__, __LINE__, err.message);
    check_checkpoint(&after, false);
    FUZZ_CHECK(after.tensor_count == before->tensor_count && after.bytes == before->bytes);
    for (size_t i = 0; i < after.tensor_count; i++)
        FUZZ_CHECK(strcmp(after.tensors[i].tensor.name, before->tensors[i].tensor.name) == 0 &&
                   after.tensors[i].offset == before->tensors[i].offset);
    q3_checkpoint_close(&after);
    free(headers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char kept_a[] = "headers/a.safetensors.header";
    static const char kept_b[] = "headers/b.safetensors.header";
    q3_bytes rest = {data, size};
    const q3_bytes index = fuzz_take_part(&rest), a = fuzz_take_part(&rest);
    const q3_bytes b = fuzz_take_part(&rest);
    mkdir(fuzz_path("headers"), 0777);
    fuzz_write("model.safetensors.index.json", index, 0);
    write_shard("a.safetensors", a);
    write_shard("b.safetensors", b);
    fuzz_remove(kept_b);
    if (rest.size)
        fuzz_write(kept_a, rest, 0);
    else
        fuzz_remove(kept_a);
    q3_checkpoint checkpoint;
    q3_error err;
    size_t problems = 0;
    const q3_survey_options options = {.headers = rest.size ? fuzz_path("headers") : NULL,
                                       .headers_only = rest.size % 2};
    const bool surveyed =
        q3_checkpoint_survey(fuzz_directory(), NULL, hear, &problems, &checkpoint, &err);
    if (surveyed)
        check_checkpoint(&checkpoint, problems == 0);
    q3_checkpoint other;
    if (q3_checkpoint_open(fuzz_directory(), &other, &err)) {
        FUZZ_CHECK(surveyed && problems <= 1); // total_size may be wrong
        check_checkpoint(&other, true);
        q3_checkpoint_close(&other);
    } else {
        FUZZ_CHECK(!surveyed || problems > 0);
    }
    size_t others = 0;
    if (rest.size &&
        q3_checkpoint_survey(fuzz_directory(), &options, hear, &others, &other, &err)) {
        check_checkpoint(&other, false);
        q3_checkpoint_close(&other);
    }
    if (surveyed) {
        if (problems == 0 && rest.size == 0)
            check_kept(&checkpoint);
        q3_checkpoint_close(&checkpoint);
    }
    return 0;
}
