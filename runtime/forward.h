// SPDX-License-Identifier: Apache-2.0
//
// The forward pass: a batch of tokens at consecutive positions, layer by layer. In each layer the
// router is run for the whole batch first, so that an expert is fetched once for all the tokens
// that chose it. What an expert gives for a token is kept apart until all are there and is then
// added in ascending order of the experts: neither the batch nor the cache's order can be seen in
// the result.
#ifndef Q3_RUNTIME_FORWARD_H
#define Q3_RUNTIME_FORWARD_H

#include "embedding.h"
#include "engine.h"
#include "expert_cache.h"
#include "kernels/kernels.h"
#include "kv_cache.h"
#include "routing.h"
#include "team.h"
#include "trace.h"

enum {
    // Tokens of a batch: what is chosen among when nothing is asked for (see q3_budget_batch), and
    // the most that can be.
    Q3_BATCH_LEAST = 512,
    Q3_BATCH_MOST = 2048,
    Q3_BATCH_MAX = 8192,
    Q3_LOGITS_POSITIONS = 8, // positions whose logits are computed together
};

// Buffers for one batch; see forward.c for what is in them.
typedef struct q3_scratch q3_scratch;

typedef struct q3_forward {
    const q3_model *model;
    q3_routing *routing;
    q3_embedding *embedding;
    q3_expert_cache *experts;
    const q3_team *team;
    const q3_kernels *kernels;
    q3_scratch *scratch;
    q3_trace_writer *trace; // where choices of experts are recorded, or NULL
} q3_forward;

// What the buffers are for: batches of up to `batch` (or `context`, if less) tokens.
typedef struct q3_scratch_shape {
    const q3_config *config;
    const q3_kernels *kernels;
    uint32_t context, batch;
    unsigned threads;
} q3_scratch_shape;

bool q3_scratch_create(const q3_scratch_shape *shape, q3_scratch **scratch, q3_error *err);
void q3_scratch_destroy(q3_scratch *scratch); // NULL is fine
uint64_t q3_scratch_bytes(const q3_scratch_shape *shape);

typedef struct q3_batch {
    const uint32_t *ids;
    uint32_t count;  // 1 to what scratch is for
    uint32_t start;  // position of the first
    size_t fed;      // tokens that it is a part of, fed together
    bool last;       // there is none behind it
    uint32_t wanted; // of how many tokens, the last ones, the last layer's output is asked for
} q3_batch;

// Runs a batch and fills its places in the KV cache. The last layer computes keys and values alone
// of what is not wanted. observer->hidden is called for the last token of the last batch, if it is
// wanted; what is of experts for every token, in the last layer for those wanted.
bool q3_forward_batch(const q3_forward *forward, const q3_kv_cache *cache, const q3_batch *batch,
                      const q3_observer *observer, q3_error *err);

// Bytes that computing has gone through so far: weights as they lie in memory, once for each
// product however many vectors it is for, keys and values once for the tokens of each task.
uint64_t q3_forward_bytes(const q3_forward *forward);

// Logits of the tokens [first, first + count) of those wanted of the batch that was run last, count
// at most Q3_LOGITS_POSITIONS: logits[i] points to those of token first + i, in scratch.
// observer->hidden is called with the final norm's output of the last of them if `last`.
bool q3_forward_logits(const q3_forward *forward, uint32_t first, uint32_t count,
                       const q3_observer *observer, bool last,
                       const float *logits[Q3_LOGITS_POSITIONS], q3_error *err);

#endif
