// SPDX-License-Identifier: Apache-2.0
#include "budget.h"

#include "base/text.h"
#include "expert_cache.h"
#include "forward.h"
#include "kv_cache.h"
#include "team.h"

#include <inttypes.h>

// What a process takes beside the engine's own buffers. Measured with the real vocabulary and a
// pack of 6,000 files; see the comments.
static uint64_t process_bytes(const q3_budget_request *request)
{
    enum {
        PROGRAM = 8 << 20,    // code, libraries, the C library's heap
        A_TOKEN = 224,        // tokenizer tables, and the JSON tree that they are made from
        A_FILE = 2048,        // pack.json, parsed and checked
        A_THREAD = 768 << 10, // stack, a stored frame, and the decoder's state
    };
    return PROGRAM + (uint64_t)A_TOKEN * request->config->vocab_size +
           A_FILE * request->pack_files +
           (uint64_t)A_THREAD * (request->scratch.threads + request->readers);
}

static uint64_t experts_bytes(const q3_budget_request *request, uint32_t a_layer)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < request->config->num_hidden_layers; i++)
        total += request->slot_bytes[i] *
                 (request->pool_count[i] < a_layer ? request->pool_count[i] : a_layer);
    return total;
}

static bool refuse(const q3_budget_request *request, const q3_memory_plan *plan, q3_error *err)
{
    char budget[Q3_GROUPED_MAX], minimum[Q3_GROUPED_MAX], dense[Q3_GROUPED_MAX];
    char kv[Q3_GROUPED_MAX], rest[Q3_GROUPED_MAX], experts[Q3_GROUPED_MAX];
    return q3_fail(err, Q3_REFUSED,
                   "memory budget of %s bytes: at least %s are needed: dense weights %s, KV cache "
                   "for %" PRIu32 " positions %s, one expert a layer %s, program and scratch %s",
                   q3_grouped(plan->budget, budget), q3_grouped(plan->minimum, minimum),
                   q3_grouped(plan->dense, dense), request->scratch.context,
                   q3_grouped(plan->kv_cache, kv), q3_grouped(experts_bytes(request, 1), experts),
                   q3_grouped(plan->process + plan->scratch + plan->embedding, rest));
}

bool q3_budget_make(const q3_budget_request *request, q3_memory_plan *plan, uint32_t *slots,
                    q3_error *err)
{
    const q3_config *config = request->config;
    *plan = (q3_memory_plan){
        .process = process_bytes(request),
        .dense = request->dense_bytes,
        .embedding = request->embedding_bytes,
        .kv_cache = request->sessions *
                    q3_kv_cache_bytes(config, request->scratch.context, request->narrow),
        // Each session keeps the logits of its last position.
        .scratch = q3_scratch_bytes(&request->scratch) + q3_team_bytes(request->scratch.threads) +
                   ((uint64_t)request->sessions + request->kept_logits) * config->vocab_size *
                       sizeof(float),
    };
    const uint64_t fixed =
        plan->process + plan->dense + plan->embedding + plan->kv_cache + plan->scratch;
    plan->minimum = fixed + experts_bytes(request, 1);
    plan->budget = request->memory;
    if (!plan->budget) {
        plan->budget = request->available / 4 * 3;
        if (plan->budget < plan->minimum)
            plan->budget = request->available;
    }
    if (plan->budget < plan->minimum)
        return refuse(request, plan, err);
    uint32_t a_layer = 1;
    while (a_layer < config->num_experts &&
           experts_bytes(request, a_layer + 1) <= plan->budget - fixed)
        a_layer++;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++)
        slots[i] = request->pool_count[i] < a_layer ? request->pool_count[i] : a_layer;
    plan->experts = experts_bytes(request, a_layer);
    plan->total = fixed + plan->experts;
    return true;
}
