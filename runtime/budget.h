// SPDX-License-Identifier: Apache-2.0
//
// How memory is shared out: what every token needs is counted first, and what is left of the budget
// becomes slots for experts, the same number in every layer (fewer where a layer has fewer
// experts). The plan holds for the resident memory of the whole process.
#ifndef Q3_RUNTIME_BUDGET_H
#define Q3_RUNTIME_BUDGET_H

#include "engine.h"
#include "expert_pool.h"
#include "forward.h"

typedef struct q3_budget_request {
    const q3_config *config;
    const uint32_t *pool_count; // experts of each layer that may be chosen
    const uint64_t *slot_bytes; // of an expert slot in each layer
    uint64_t dense_bytes, embedding_bytes;
    uint64_t pack_files; // listed in pack.json
    q3_scratch_shape scratch;
    uint32_t sessions;
    bool narrow;            // the KV cache is bf16
    unsigned readers;       // threads of the expert cache
    unsigned ahead;         // experts that may be read ahead where not all fit, if there is room
    unsigned passing;       // experts that may pass where all fit, if there is room: in memory of
    uint64_t passing_bytes; // so many bytes each, and for their files in the page cache, which
    uint64_t file_bytes;    // have so many
    bool decodes;           // readers decode experts whole, or by zstd
    uint64_t readers_bytes; // that they want for it beside that
    bool tokenizer;         // the process has the tokenizer and a sampler, too
    uint32_t kept_logits;   // rows of logits beside the sessions'
    uint64_t memory;        // the budget asked for; 0 for none
    uint64_t available;     // memory that the machine has free, used when none was asked for
} q3_budget_request;

// Tokens of a batch, Q3_BATCH_LEAST to Q3_BATCH_MOST: an expert that is not in memory is read once
// for all tokens of a batch, so the more the better, but what they take beyond the least shall be
// no more than a 32nd of the budget, which would else hold experts.
uint32_t q3_budget_batch(const q3_budget_request *request);

// The plan's sum with so many slots a layer (fewer where a layer has fewer experts), without memory
// for what is read ahead or passes.
uint64_t q3_budget_total(const q3_budget_request *request, uint32_t slots);

// Fills the plan, and slots[layer]. A budget in which not one expert a layer fits is Q3_REFUSED.
// Without one, three quarters of what is available count as the budget, or all of it when one
// expert a layer needs that.
bool q3_budget_make(const q3_budget_request *request, q3_memory_plan *plan, uint32_t *slots,
                    q3_error *err);

#endif
