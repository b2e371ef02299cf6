// SPDX-License-Identifier: Apache-2.0
//
// A profile: how much a model's router used each expert on given texts. It is what pools are chosen
// from. POOLS.md defines the file.
//
// Tokens of the prompt and of the answer are kept apart: a layer behaves differently where the
// model reads and where it writes. Profiles of the same model can be added up.
#ifndef Q3_PROFILE_H
#define Q3_PROFILE_H

#include "base/hash.h"
#include "base/json.h"
#include "set.h"

typedef enum q3_phase {
    Q3_PHASE_PROMPT, // tokens that were given
    Q3_PHASE_ANSWER, // tokens that the model generated and that were fed to it
    Q3_PHASES
} q3_phase;

// Which of the four numbers of an expert.
typedef enum q3_measure {
    Q3_MEASURE_CHOSEN, // for how many tokens it was among the chosen
    Q3_MEASURE_WEIGHT, // sum of its routing weights, over the tokens that chose it
    // Sum of routing weight times the L2 norm of the expert's output, over the tokens that chose
    // it. Lasby et al. 2025, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression",
    // takes the mean over these tokens; the sum counts how often, too.
    Q3_MEASURE_SCORE,
    Q3_MEASURE_MASS, // sum of the router's full softmax, chosen or not: what the router wants
    Q3_MEASURES
} q3_measure;

// "chosen", "weight", "score", "mass"; "prompt", "answer".
const char *q3_measure_name(q3_measure measure);
bool q3_measure_parse(const char *name, q3_measure *measure);
const char *q3_phase_name(q3_phase phase);

// A text that was counted.
typedef struct q3_profile_text {
    char *name;
    uint64_t tokens[Q3_PHASES];
} q3_profile_text;

typedef struct q3_profile {
    uint32_t layers, experts, top_k;
    uint64_t expert_bytes; // of one expert, uncompressed
    q3_hash128 model;      // q3_profile_model_hash
    q3_profile_text *texts;
    size_t text_count, text_capacity;
    uint64_t tokens[Q3_PHASES]; // of all texts
    // [phase][layer][expert]; q3_profile_index gives the place.
    uint64_t *chosen;
    double *weight, *score, *mass;
} q3_profile;

// What tells the model of a pack from others, whatever part of it the pack holds and however it is
// stored: the hash of the hashes of all routers' weights. Opens the routers' files, and reads no
// weights. A pack that lacks a router is Q3_INCOMPLETE.
bool q3_profile_model_hash(const q3_set *set, q3_hash128 *hash, q3_error *err);

// An empty profile (all zero, no texts) of a model. To be destroyed; after a failure that is not
// needed, here and in reading.
bool q3_profile_create(const q3_config *config, q3_hash128 model, q3_profile *profile,
                       q3_error *err);
void q3_profile_destroy(q3_profile *profile); // a zeroed or destroyed one is fine

static inline size_t q3_profile_index(const q3_profile *profile, q3_phase phase, uint32_t layer,
                                      uint32_t expert)
{
    return ((size_t)phase * profile->layers + layer) * profile->experts + expert;
}

// Adds a text and its tokens to the totals. The name is copied.
bool q3_profile_add_text(q3_profile *profile, const char *name, uint64_t prompt_tokens,
                         uint64_t answer_tokens, q3_error *err);
// Counts an expert chosen for a token, with its routing weight and the L2 norm of its output
// (before the weight). Layers may be counted by different threads.
static inline void q3_profile_add_chosen(q3_profile *profile, q3_phase phase, uint32_t layer,
                                         uint32_t expert, double weight, double norm)
{
    const size_t at = q3_profile_index(profile, phase, layer, expert);
    profile->chosen[at]++;
    profile->weight[at] += weight;
    profile->score[at] += weight * norm;
}
// Adds the router's softmax over all experts, of one token.
void q3_profile_add_mass(q3_profile *profile, q3_phase phase, uint32_t layer, const float *mass);

// Reads a profile file (256 MiB at most) and checks it: sizes, numbers finite and not negative,
// tokens and choices that add up.
bool q3_profile_read(const char *path, q3_profile *profile, q3_error *err);
// Writes one, published. Doubles have as many digits as it takes to read the same number again.
bool q3_profile_write(const q3_profile *profile, const char *path, q3_error *err);

// Adds what `other` counted, texts included. `name` is what messages call it. Another model is
// Q3_MISMATCH; *profile is then as it was.
bool q3_profile_merge(q3_profile *profile, const q3_profile *other, const char *name,
                      q3_error *err);
// Q3_MISMATCH, with a message that names `path`, unless the profile is of this model.
bool q3_profile_check_model(const q3_profile *profile, const char *path, q3_hash128 model,
                            q3_error *err);

// Q3_MISMATCH, with a message that names `path`, unless the profile is of the same model as
// `other`.
bool q3_profile_check_same(const q3_profile *profile, const char *path, const q3_profile *other,
                           q3_error *err);

// One measure as each expert's share of its layer, [layer][expert]: every layer sums to 1, so that
// layers and texts of different lengths can be compared. `phases` has bit 1 << phase for each phase
// that counts. A layer without anything is Q3_INCOMPLETE, with a message that names `path`.
enum { Q3_PHASES_ALL = (1 << Q3_PHASES) - 1 };
bool q3_profile_shares(const q3_profile *profile, const char *path, q3_measure measure,
                       unsigned phases, double *share, q3_error *err);

#endif
