// SPDX-License-Identifier: Apache-2.0
//
// From logits to the next token's id.
//
// Greedy unless the temperature is above 0: the id with the highest logit, the lower id among
// equals. Otherwise the steps of Hugging Face's logits processors, in their order:
//   1. repeat_penalty p: an id that stands in the context, prompt included, has its logit divided
//   by
//      p when positive and multiplied by p when not. (This step alone also applies when greedy.)
//   2. temperature t: all logits are divided by t.
//   3. top_k k: those below the k-th highest go; all that equal it stay.
//   4. top_p p: of the ids by falling probability (softmax over what is left), the fewest whose sum
//      reaches p stay, at least one; the lower id goes first among equals.
//   5. min_p p: ids less probable than p times the most probable one (softmax over what is left)
//   go.
// One of the rest is drawn by its probability.
//
// Only ids below the tokenizer's count take part: padding ids are never sampled, however high their
// logits.
//
// Draws come from xoshiro256** (Blackman and Vigna), its state filled by SplitMix64 from the seed;
// one draw takes one number, its upper 53 bits. Sums run in double in a fixed order, so a seed
// gives the same text wherever the logits are the same and the C library's exp() agrees to the last
// bit (where it does not, a draw differs about once in 10^13).
#ifndef Q3_RUNTIME_SAMPLER_H
#define Q3_RUNTIME_SAMPLER_H

#include "base/error.h"

#include <stdint.h>

enum { Q3_STOP_IDS_MAX = 16 };

typedef struct q3_sampling {
    double temperature;    // 0: greedy
    uint32_t top_k;        // 0: off
    double top_p;          // 1: off
    double min_p;          // 0: off
    double repeat_penalty; // 1: off
    uint64_t seed;
    uint32_t stop_ids[Q3_STOP_IDS_MAX]; // not the sampler's business: eos_token_id, for the caller
    uint32_t stop_count;
} q3_sampling;

// Greedy, nothing filtered, seed 0, no stop ids.
q3_sampling q3_sampling_default(void);

// Changes *sampling by what a generation_config.json says. With do_sample false, or absent while
// there is no "temperature", it is greedy; otherwise it samples with "temperature" (1 when absent),
// "top_k", "top_p", "min_p" (off when absent). "repetition_penalty" and "eos_token_id" (a number or
// a list) count in both cases; null is absent; all other keys are of other parts of the model. A
// file that does not exist changes nothing.
bool q3_sampling_load(const char *path, q3_sampling *sampling, q3_error *err);

// Are all values in their ranges? temperature 0 or 0.001 to 100, top_p and min_p 0 to 1,
// repeat_penalty 0.01 to 100. The failure (Q3_USAGE) names the first that is not.
bool q3_sampling_check(const q3_sampling *sampling, q3_error *err);

typedef struct q3_sampler q3_sampler;

// `count` is the tokenizer's: logits have at least that many values, the rest is not looked at.
bool q3_sampler_create(const q3_sampling *sampling, uint32_t count, q3_sampler **sampler,
                       q3_error *err);
void q3_sampler_destroy(q3_sampler *sampler);

// Notes ids that enter the context without having been sampled (the prompt). Ids at or above count
// do not matter.
void q3_sampler_see(q3_sampler *sampler, const uint32_t *ids, size_t count);

// The next id; it counts as seen from then on. The logits stay as they are. Q3_FAILED when one is
// NaN or plus infinity, or all are minus infinity.
bool q3_sampler_next(q3_sampler *sampler, const float *logits, uint32_t *id, q3_error *err);

// Forgets what it has seen and starts the draws again from the seed.
void q3_sampler_reset(q3_sampler *sampler);

// The generator by itself.
typedef struct q3_random {
    uint64_t state[4];
} q3_random;

void q3_random_seed(q3_random *random, uint64_t seed);
uint64_t q3_random_next(q3_random *random);

#endif
