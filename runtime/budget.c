// SPDX-License-Identifier: Apache-2.0
#include "budget.h"

#include "base/text.h"
#include "expert_cache.h"
#include "forward.h"
#include "kv_cache.h"
#include "team.h"

#include <inttypes.h>

// What a process takes beside the engine's own buffers. Measured on Linux (glibc 2.36, x86-64) as
// the peak of resident memory, with the real vocabulary of 152,064 tokens and packs of 770 and of
// 6,000 files; what one more thread or reader adds, from runs with 1, 8 and 64 of them.
static uint64_t process_bytes(const q3_budget_request *request)
{
    enum {
        PROGRAM = 6 << 20,    // code, libraries, the C library's heap
        A_TOKEN = 264,        // tokenizer tables and the JSON tree they are made from, the sampler
        A_FILE = 2048,        // pack.json, parsed and checked
        A_THREAD = 768 << 10, // stack, a stored frame, and the decoder's state
        A_READER = 32 << 10,  // stack and the decoder's handle: it reads straight into slots
    };
    const uint64_t tokens = request->tokenizer ? request->config->vocab_size : 0;
    const uint64_t reader = request->decodes ? A_THREAD : A_READER;
    return PROGRAM + A_TOKEN * tokens + A_FILE * request->pack_files +
           (uint64_t)A_THREAD * request->scratch.threads + reader * request->readers;
}

static uint64_t experts_bytes(const q3_budget_request *request, uint32_t a_layer)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < request->config->num_hidden_layers; i++)
        total += request->slot_bytes[i] *
                 (request->pool_count[i] < a_layer ? request->pool_count[i] : a_layer);
    return total;
}

// As many experts may be read ahead as what the slots leave has room for.
static unsigned count_ahead(const q3_budget_request *request, uint64_t left, uint32_t a_layer,
                            uint64_t *slot_bytes)
{
    *slot_bytes = 0;
    for (uint32_t i = 0; i < request->config->num_hidden_layers; i++)
        if (request->slot_bytes[i] > *slot_bytes)
            *slot_bytes = request->slot_bytes[i];
    if (a_layer >= request->config->num_experts || *slot_bytes == 0)
        return 0;
    const uint64_t room = left / *slot_bytes;
    return room < request->ahead ? (unsigned)room : request->ahead;
}

// What passes is to be read again from the page cache.
static unsigned count_passing(const q3_budget_request *request, uint64_t total, uint64_t left)
{
    const uint64_t bytes = request->passing * request->passing_bytes;
    return bytes > 0 && bytes <= left && total + bytes <= request->available &&
                   request->available - total - bytes >= request->file_bytes
               ? request->passing
               : 0;
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

// All but experts, filled in; returns the sum.
static uint64_t count_fixed(const q3_budget_request *request, q3_memory_plan *plan)
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
                       sizeof(float) +
                   request->readers_bytes,
    };
    return plan->process + plan->dense + plan->embedding + plan->kv_cache + plan->scratch;
}

uint64_t q3_budget_total(const q3_budget_request *request, uint32_t slots)
{
    q3_memory_plan plan;
    return count_fixed(request, &plan) + experts_bytes(request, slots);
}

// What was asked for, or three quarters of what there is.
static uint64_t budget_of(const q3_budget_request *request)
{
    return request->memory ? request->memory : request->available / 4 * 3;
}

uint32_t q3_budget_batch(const q3_budget_request *request)
{
    q3_scratch_shape shape = request->scratch;
    shape.batch = Q3_BATCH_LEAST;
    const uint64_t least = q3_scratch_bytes(&shape);
    for (shape.batch = Q3_BATCH_MOST; shape.batch > Q3_BATCH_LEAST; shape.batch /= 2)
        if (q3_scratch_bytes(&shape) - least <= budget_of(request) / 32)
            break;
    return shape.batch;
}

bool q3_budget_make(const q3_budget_request *request, q3_memory_plan *plan, uint32_t *slots,
                    q3_error *err)
{
    const q3_config *config = request->config;
    const uint64_t fixed = count_fixed(request, plan);
    plan->minimum = fixed + experts_bytes(request, 1);
    plan->budget = budget_of(request);
    if (!request->memory && plan->budget < plan->minimum)
        plan->budget = request->available;
    if (plan->budget < plan->minimum)
        return refuse(request, plan, err);
    uint32_t a_layer = 1;
    while (a_layer < config->num_experts &&
           experts_bytes(request, a_layer + 1) <= plan->budget - fixed)
        a_layer++;
    // Reading one ahead is worth more than one slot of many.
    enum { MANY = 16, FEW_AHEAD = 2 };
    uint64_t left = plan->budget - fixed - experts_bytes(request, a_layer), ahead_bytes;
    plan->ahead = count_ahead(request, left, a_layer, &ahead_bytes);
    if (plan->ahead < FEW_AHEAD && plan->ahead < request->ahead && a_layer >= MANY &&
        a_layer < config->num_experts) {
        a_layer--;
        left = plan->budget - fixed - experts_bytes(request, a_layer);
        plan->ahead = count_ahead(request, left, a_layer, &ahead_bytes);
    }
    plan->all_fit = true;
    for (uint32_t i = 0; i < config->num_hidden_layers; i++) {
        slots[i] = request->pool_count[i] < a_layer ? request->pool_count[i] : a_layer;
        plan->all_fit = plan->all_fit && slots[i] == request->pool_count[i];
    }
    plan->experts = experts_bytes(request, a_layer) + plan->ahead * ahead_bytes;
    if (plan->all_fit)
        plan->passing_experts = count_passing(request, fixed + plan->experts, left);
    plan->passing = plan->passing_experts * request->passing_bytes;
    plan->total = fixed + plan->experts + plan->passing;
    return true;
}
