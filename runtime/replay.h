// SPDX-License-Identifier: Apache-2.0
//
// What a cache of experts would have done with a trace, under several policies, without the model:
// which of the experts that a batch needed in a layer would have been in memory. Every layer has
// slots of its own, as in expert_cache.h, and begins with empty ones.
#ifndef Q3_RUNTIME_REPLAY_H
#define Q3_RUNTIME_REPLAY_H

#include "trace.h"

typedef enum q3_policy {
    // Gives up the least recently used. Of the experts of one batch those that were there count as
    // used first, then those that were read, in ascending order.
    Q3_POLICY_LRU,
    // Gives up the one with the lowest score of expert_score.h, among equals the least recently
    // used; experts of the batch in hand go after all others, in the order of use. What
    // expert_cache.h does, exactly; but where all experts fit, it reads one again when it is used
    // the second time.
    Q3_POLICY_LRFU,
    // Knows the future: of what was there and what was read, keeps what is needed soonest. No
    // policy has more hits. Belady 1966, "A Study of Replacement Algorithms for a Virtual-Storage
    // Computer".
    Q3_POLICY_OPTIMAL,
    Q3_POLICIES
} q3_policy;

const char *q3_policy_name(q3_policy policy); // "lru", "lrfu", "optimal"

// Experts that a batch needed in a layer: there, or to be read.
typedef struct q3_replay_counts {
    uint64_t hits, misses;
} q3_replay_counts;

// hits / (hits + misses); 1 when nothing was needed.
double q3_replay_rate(q3_replay_counts counts);

// Replays a trace. slots: of each layer, at least 1. step: how many tokens a batch has at most,
// larger ones being cut; 0 leaves them as they are.
bool q3_replay(const q3_trace *trace, q3_policy policy, const uint32_t *slots, uint32_t step,
               q3_replay_counts *counts, q3_error *err);

#endif
