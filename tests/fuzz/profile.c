// SPDX-License-Identifier: Apache-2.0
//
// Profile files. One that is accepted adds up, comes back from being written, and gives pools.
#include "pool/profile.h"
#include "fuzz.h"
#include "pool/choose.h"

#include <math.h>
#include <stdlib.h>

static void check_sums(const q3_profile *profile)
{
    uint64_t tokens[Q3_PHASES] = {0};
    for (size_t i = 0; i < profile->text_count; i++)
        for (unsigned phase = 0; phase < Q3_PHASES; phase++)
            tokens[phase] += profile->texts[i].tokens[phase];
    for (unsigned phase = 0; phase < Q3_PHASES; phase++) {
        FUZZ_CHECK(tokens[phase] == profile->tokens[phase]);
        for (uint32_t layer = 0; layer < profile->layers; layer++) {
            uint64_t chosen = 0;
            for (uint32_t expert = 0; expert < profile->experts; expert++) {
                const size_t at = q3_profile_index(profile, (q3_phase)phase, layer, expert);
                FUZZ_CHECK(profile->chosen[at] <= tokens[phase]);
                FUZZ_CHECK(profile->weight[at] >= 0 && isfinite(profile->weight[at]));
                FUZZ_CHECK(profile->score[at] >= 0 && isfinite(profile->score[at]));
                FUZZ_CHECK(profile->mass[at] >= 0 && isfinite(profile->mass[at]));
                chosen += profile->chosen[at];
            }
            FUZZ_CHECK(chosen <= tokens[phase] * profile->top_k);
        }
    }
}

static void check_choice(const q3_profile *profile)
{
    const size_t count = (size_t)profile->layers * profile->experts;
    double *share = malloc(count * sizeof *share);
    q3_error err;
    q3_pool pool;
    FUZZ_CHECK(share != NULL);
    for (unsigned measure = 0; measure < Q3_MEASURES; measure++) {
        if (!q3_profile_shares(profile, "profile", (q3_measure)measure, Q3_PHASES_ALL, share, &err))
            continue;
        for (size_t i = 0; i < count; i++)
            FUZZ_CHECK(share[i] >= 0 && share[i] <= 1);
        FUZZ_CHECK(q3_pool_choose_coverage(share, profile->layers, profile->experts, 0.9,
                                           profile->top_k, &pool, &err));
        for (uint32_t layer = 0; layer < profile->layers; layer++) {
            FUZZ_CHECK(pool.count[layer] >= profile->top_k);
            FUZZ_CHECK(q3_pool_coverage(&pool, share, layer) > 0.9 - 1e-9);
        }
        q3_pool_destroy(&pool);
    }
    free(share);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_profile profile, again;
    fuzz_write("profile.json", (q3_bytes){data, size}, 0);
    if (!q3_profile_read(fuzz_path("profile.json"), &profile, &err)) {
        FUZZ_CHECK(profile.chosen == NULL && profile.texts == NULL);
        return 0;
    }
    check_sums(&profile);
    check_choice(&profile);
    FUZZ_CHECK(q3_profile_write(&profile, fuzz_path("again.json"), &err));
    if (!q3_profile_read(fuzz_path("again.json"), &again, &err))
        fuzz_violated(__FILE__, __LINE__, err.message);
    const size_t numbers = (size_t)Q3_PHASES * profile.layers * profile.experts;
    FUZZ_CHECK(memcmp(profile.chosen, again.chosen, numbers * sizeof *again.chosen) == 0);
    FUZZ_CHECK(memcmp(profile.weight, again.weight, numbers * sizeof(double)) == 0);
    FUZZ_CHECK(memcmp(profile.score, again.score, numbers * sizeof(double)) == 0);
    FUZZ_CHECK(memcmp(profile.mass, again.mass, numbers * sizeof(double)) == 0);
    if (q3_profile_merge(&profile, &again, "again", &err))
        check_sums(&profile);
    q3_profile_destroy(&again);
    q3_profile_destroy(&profile);
    return 0;
}
