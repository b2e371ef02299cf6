// SPDX-License-Identifier: Apache-2.0
//
// Which expert a cache gives up: the one with the lowest score. Each use adds one to an expert's
// score, and before each batch the scores of the layer fade by 1/32; an expert keeps its score
// while it is not in memory. Recent use and frequent use count in one number: with fast fading this
// is LRU, with none LFU. Lee et al. 2001, "LRFU: A Spectrum of Policies that Subsumes the Least
// Recently Used and Least Frequently Used Policies"; here in integers, the same on every machine.
#ifndef Q3_RUNTIME_EXPERT_SCORE_H
#define Q3_RUNTIME_EXPERT_SCORE_H

#include <stdint.h>

// A score stays below 2^29 + 2^24: uses of every batch add up to 32 of them.
static inline void q3_scores_fade(uint32_t *scores, uint32_t count)
{
    enum { FADE = 5 };
    for (uint32_t i = 0; i < count; i++)
        scores[i] -= scores[i] >> FADE;
}

static inline void q3_score_use(uint32_t *score)
{
    *score += UINT32_C(1) << 24;
}

#endif
