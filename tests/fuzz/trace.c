// SPDX-License-Identifier: Apache-2.0
//
// Traces. The checksums of the input are put right first. One that is accepted has the tokens and
// the ascending experts that it promises; written again it is the same file; and no policy finds
// more in a cache than the optimal one.
#include "trace.h"
#include "base/file.h"
#include "fuzz.h"
#include "replay.h"

#include <stdlib.h>

static void put_hash(uint8_t *at, q3_hash128 hash)
{
    q3_put_u64(at, hash.low);
    q3_put_u64(at + 8, hash.high);
}

static void write_sealed(const uint8_t *data, size_t size)
{
    uint8_t *copy = fuzz_copy((q3_bytes){data, size});
    if (size >= Q3_TRACE_HEADER) {
        put_hash(copy + 56, q3_hash128_of(copy + Q3_TRACE_HEADER, size - Q3_TRACE_HEADER));
        q3_put_u64(copy + 72, q3_hash64(copy, 72));
    }
    fuzz_write("trace", (q3_bytes){copy, size}, 0);
    free(copy);
}

// Checks a batch and adds it to the copy.
static void check_batch(const q3_trace *trace, const q3_trace_batch *batch, q3_trace_writer *writer)
{
    q3_error err;
    uint32_t *chosen = q3_alloc_zeroed(batch->tokens, trace->top_k * sizeof *chosen, &err);
    uint32_t *counts = q3_alloc(batch->tokens, sizeof *counts, &err);
    FUZZ_CHECK(chosen != NULL && counts != NULL);
    q3_trace_begin(writer, batch->position, batch->tokens);
    for (uint32_t layer = 0; layer < trace->layers; layer++) {
        for (uint32_t t = 0; t < batch->tokens; t++) {
            uint32_t *experts = chosen + (size_t)t * trace->top_k;
            counts[t] = q3_trace_chosen(trace, batch, layer, t, experts);
            FUZZ_CHECK(counts[t] >= 1 && counts[t] <= trace->top_k);
            for (uint32_t i = 0; i < counts[t]; i++)
                FUZZ_CHECK(experts[i] < trace->experts && (i == 0 || experts[i] > experts[i - 1]));
        }
        q3_trace_add(writer, chosen, counts);
    }
    free(chosen);
    free(counts);
}

static void check_copy(const q3_trace *trace, const uint8_t *data, size_t size)
{
    q3_error err;
    q3_trace_writer *writer;
    char *again;
    size_t again_size;
    const q3_config config = {.num_hidden_layers = trace->layers,
                              .num_experts = trace->experts,
                              .num_experts_per_tok = trace->top_k};
    FUZZ_CHECK(q3_trace_create(fuzz_path("again"), &config, trace->model, &writer, &err));
    uint64_t tokens = 0;
    for (size_t i = 0; i < trace->batch_count; i++) {
        check_batch(trace, &trace->batches[i], writer);
        tokens += trace->batches[i].tokens;
    }
    FUZZ_CHECK(tokens == trace->tokens);
    FUZZ_CHECK(q3_trace_publish(writer, &err));
    FUZZ_CHECK(q3_file_load(fuzz_path("again"), size, &again, &again_size, &err));
    FUZZ_CHECK(again_size == size);
    FUZZ_CHECK(memcmp(again + Q3_TRACE_HEADER, data + Q3_TRACE_HEADER, size - Q3_TRACE_HEADER) ==
               0);
    free(again);
    fuzz_remove("again");
}

static void check_replay(const q3_trace *trace)
{
    q3_error err;
    uint32_t slots[1024];
    for (uint32_t i = 0; i < trace->layers; i++)
        slots[i] = 1 + i % 5;
    q3_replay_counts counts[Q3_POLICIES];
    for (unsigned p = 0; p < Q3_POLICIES; p++)
        FUZZ_CHECK(q3_replay(trace, (q3_policy)p, slots, 2, &counts[p], &err));
    for (unsigned p = 0; p < Q3_POLICIES; p++) {
        FUZZ_CHECK(counts[p].hits <= counts[Q3_POLICY_OPTIMAL].hits);
        FUZZ_CHECK(counts[p].hits + counts[p].misses ==
                   counts[Q3_POLICY_OPTIMAL].hits + counts[Q3_POLICY_OPTIMAL].misses);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_trace trace;
    write_sealed(data, size);
    if (!q3_trace_read(fuzz_path("trace"), &trace, &err)) {
        FUZZ_CHECK(trace.batches == NULL && trace.data == NULL);
        return 0;
    }
    check_copy(&trace, data, size);
    check_replay(&trace);
    q3_trace_free(&trace);
    return 0;
}
