// SPDX-License-Identifier: Apache-2.0
//
// A checkpoint's index with two shards, a.safetensors and b.safetensors. An input has up to three
// parts, with a byte 0xff between: the index, and of each shard the number of bytes of data and the
// header's JSON, as for the target of safetensors headers. An empty part is a file that is absent.
#include "checkpoint.h"
#include "fuzz.h"

#include <stdlib.h>

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
        FUZZ_CHECK(tensor->offset + tensor->tensor.bytes <= checkpoint->shards[tensor->shard].size);
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_bytes rest = {data, size};
    const q3_bytes index = fuzz_take_part(&rest), a = fuzz_take_part(&rest);
    fuzz_write("model.safetensors.index.json", index, 0);
    write_shard("a.safetensors", a);
    write_shard("b.safetensors", rest);
    q3_checkpoint checkpoint;
    q3_error err;
    size_t problems = 0;
    const bool surveyed =
        q3_checkpoint_survey(fuzz_directory(), hear, &problems, &checkpoint, &err);
    if (surveyed) {
        check_checkpoint(&checkpoint, problems == 0);
        q3_checkpoint_close(&checkpoint);
    }
    if (q3_checkpoint_open(fuzz_directory(), &checkpoint, &err)) {
        FUZZ_CHECK(surveyed && problems <= 1); // total_size may be wrong
        check_checkpoint(&checkpoint, true);
        q3_checkpoint_close(&checkpoint);
    } else {
        FUZZ_CHECK(!surveyed || problems > 0);
    }
    return 0;
}
