// SPDX-License-Identifier: Apache-2.0
#include "replay.h"

#include "expert_score.h"

#include <stdlib.h>
#include <string.h>

const char *q3_policy_name(q3_policy policy)
{
    static const char *const names[Q3_POLICIES] = {
        [Q3_POLICY_LRU] = "lru",
        [Q3_POLICY_LRFU] = "lrfu",
        [Q3_POLICY_OPTIMAL] = "optimal",
    };
    return names[policy];
}

double q3_replay_rate(q3_replay_counts counts)
{
    const uint64_t needed = counts.hits + counts.misses;
    return needed ? (double)counts.hits / (double)needed : 1;
}

// What a layer needs, batch after batch.
typedef struct requests {
    uint32_t *experts;  // of all batches, ascending within each
    uint64_t *next_use; // of each: the batch that needs it next, UINT64_MAX for none
    size_t count, capacity, next_capacity;
    size_t *ends; // [batch]: behind its experts
    size_t batches, ends_capacity;
} requests;

typedef struct state {
    uint32_t experts, slots, resident_count;
    uint32_t *residents;  // those in slots
    bool *resident;       // [expert]
    uint64_t *last_use;   // [expert]: counted over all uses
    uint64_t *last_batch; // [expert]: that used it, counted from 1
    uint64_t *next_use;   // [expert]: the batch that needs it next
    uint32_t *score;      // [expert]
    uint64_t uses;
} state;

static void free_requests(requests *r)
{
    free(r->experts);
    free(r->next_use);
    free(r->ends);
}

static void free_state(state *s)
{
    free(s->residents);
    free(s->resident);
    free(s->last_use);
    free(s->last_batch);
    free(s->next_use);
    free(s->score);
}

static bool make_state(uint32_t experts, state *s, q3_error *err)
{
    *s = (state){.experts = experts};
    return (s->residents = q3_alloc(experts, sizeof *s->residents, err)) &&
           (s->resident = q3_alloc(experts, sizeof *s->resident, err)) &&
           (s->last_use = q3_alloc(experts, sizeof *s->last_use, err)) &&
           (s->last_batch = q3_alloc(experts, sizeof *s->last_batch, err)) &&
           (s->next_use = q3_alloc(experts, sizeof *s->next_use, err)) &&
           (s->score = q3_alloc(experts, sizeof *s->score, err));
}

static void clear_state(state *s, uint32_t slots)
{
    s->slots = slots < s->experts ? slots : s->experts;
    s->resident_count = 0;
    s->uses = 0;
    memset(s->resident, 0, s->experts * sizeof *s->resident);
    memset(s->last_use, 0, s->experts * sizeof *s->last_use);
    memset(s->last_batch, 0, s->experts * sizeof *s->last_batch);
    memset(s->score, 0, s->experts * sizeof *s->score);
}

// Adds what the tokens [first, first + count) of a batch need. needed: [expert], all false; chosen:
// [top_k].
static bool add_batch(const q3_trace *trace, const q3_trace_batch *batch, uint32_t layer,
                      uint32_t first, uint32_t count, bool *needed, uint32_t *chosen, requests *r,
                      q3_error *err)
{
    if (!q3_grow(&r->experts, &r->capacity, r->count + trace->experts, sizeof *r->experts, err) ||
        !q3_grow(&r->ends, &r->ends_capacity, r->batches + 1, sizeof *r->ends, err))
        return false;
    for (uint32_t t = first; t < first + count; t++) {
        const uint32_t top = q3_trace_chosen(trace, batch, layer, t, chosen);
        for (uint32_t i = 0; i < top; i++)
            needed[chosen[i]] = true;
    }
    for (uint32_t e = 0; e < trace->experts; e++)
        if (needed[e]) {
            needed[e] = false;
            r->experts[r->count++] = e;
        }
    r->ends[r->batches++] = r->count;
    return true;
}

// Fills in when each is needed next.
static bool look_ahead(uint32_t experts, requests *r, q3_error *err)
{
    uint64_t *next = q3_alloc(experts, sizeof *next, err);
    if (!next || !q3_grow(&r->next_use, &r->next_capacity, r->count, sizeof *r->next_use, err)) {
        free(next);
        return false;
    }
    for (uint32_t e = 0; e < experts; e++)
        next[e] = UINT64_MAX;
    for (size_t b = r->batches, at = r->count; b-- > 0;)
        for (const size_t begin = b ? r->ends[b - 1] : 0; at > begin;) {
            at--;
            r->next_use[at] = next[r->experts[at]];
            next[r->experts[at]] = b;
        }
    free(next);
    return true;
}

static bool list_requests(const q3_trace *trace, uint32_t layer, uint32_t step, requests *r,
                          q3_error *err)
{
    r->count = r->batches = 0;
    bool *needed = q3_alloc_zeroed(trace->experts, sizeof *needed, err);
    uint32_t *chosen = needed ? q3_alloc(trace->top_k, sizeof *chosen, err) : NULL;
    bool ok = chosen != NULL;
    for (size_t b = 0; ok && b < trace->batch_count; b++) {
        const uint32_t tokens = trace->batches[b].tokens;
        const uint32_t most = step && step < tokens ? step : tokens;
        for (uint32_t at = 0; ok && at < tokens; at += most)
            ok = add_batch(trace, &trace->batches[b], layer, at,
                           tokens - at < most ? tokens - at : most, needed, chosen, r, err);
    }
    free(needed);
    free(chosen);
    return ok && look_ahead(trace->experts, r, err);
}

// Is `a` to be given up rather than `b`, in this batch?
static bool goes_before(const state *s, q3_policy policy, uint64_t batch, uint32_t a, uint32_t b)
{
    if (policy == Q3_POLICY_OPTIMAL && s->next_use[a] != s->next_use[b])
        return s->next_use[a] > s->next_use[b];
    if (policy == Q3_POLICY_LRFU) {
        const bool a_now = s->last_batch[a] == batch, b_now = s->last_batch[b] == batch;
        if (a_now != b_now)
            return b_now;
        if (!a_now && s->score[a] != s->score[b])
            return s->score[a] < s->score[b];
    }
    return s->last_use[a] < s->last_use[b];
}

static void give_up_one(state *s, q3_policy policy, uint64_t batch)
{
    uint32_t worst = 0;
    for (uint32_t i = 1; i < s->resident_count; i++)
        if (goes_before(s, policy, batch, s->residents[i], s->residents[worst]))
            worst = i;
    s->resident[s->residents[worst]] = false;
    s->residents[worst] = s->residents[--s->resident_count];
}

static void use(state *s, uint64_t batch, uint32_t expert)
{
    s->last_use[expert] = ++s->uses;
    s->last_batch[expert] = batch;
}

static void run_batch(state *s, q3_policy policy, uint64_t batch, const uint32_t *experts,
                      const uint64_t *next_use, size_t count, q3_replay_counts *counts)
{
    if (policy == Q3_POLICY_LRFU) {
        q3_scores_fade(s->score, s->experts);
        for (size_t i = 0; i < count; i++)
            q3_score_use(&s->score[experts[i]]);
    }
    for (size_t i = 0; i < count; i++) {
        s->next_use[experts[i]] = next_use[i];
        if (s->resident[experts[i]]) {
            use(s, batch, experts[i]);
            counts->hits++;
        }
    }
    for (size_t i = 0; i < count; i++) {
        // What was there at the beginning has been used already.
        if (s->last_batch[experts[i]] == batch)
            continue;
        counts->misses++;
        use(s, batch, experts[i]);
        // The optimal policy may give up at once what it has read.
        if (s->resident_count == s->slots && policy != Q3_POLICY_OPTIMAL)
            give_up_one(s, policy, batch);
        s->resident[experts[i]] = true;
        s->residents[s->resident_count++] = experts[i];
    }
    while (s->resident_count > s->slots)
        give_up_one(s, policy, batch);
}

static void run_layer(state *s, q3_policy policy, const requests *r, q3_replay_counts *counts)
{
    for (size_t b = 0, at = 0; b < r->batches; at = r->ends[b++])
        run_batch(s, policy, b + 1, r->experts + at, r->next_use + at, r->ends[b] - at, counts);
}

bool q3_replay(const q3_trace *trace, q3_policy policy, const uint32_t *slots, uint32_t step,
               q3_replay_counts *counts, q3_error *err)
{
    requests r = {0};
    state s;
    *counts = (q3_replay_counts){0};
    bool ok = make_state(trace->experts, &s, err);
    for (uint32_t layer = 0; ok && layer < trace->layers; layer++) {
        ok = list_requests(trace, layer, step, &r, err);
        clear_state(&s, slots[layer]);
        if (ok)
            run_layer(&s, policy, &r, counts);
    }
    free_requests(&r);
    free_state(&s);
    return ok;
}
