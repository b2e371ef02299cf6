// SPDX-License-Identifier: Apache-2.0
#include "profiles.h"

#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned phases_asked_for(void)
{
    for (unsigned phase = 0; phase < Q3_PHASES; phase++)
        if (strcmp(q3_options.phase, q3_phase_name((q3_phase)phase)) == 0)
            return 1u << phase;
    return Q3_PHASES_ALL;
}

static bool read_one(const char *path, q3_profiles *profiles, q3_error *err)
{
    q3_measure measure = Q3_MEASURE_SCORE;
    q3_measure_parse(q3_options.by, &measure); // one of the option's choices
    q3_profile profile;
    if (!q3_profile_read(path, &profile, err))
        return false;
    bool ok = profiles->count == 0 || q3_profile_check_same(&profile, path, &profiles->first, err);
    const size_t size = (size_t)profile.layers * profile.experts;
    double *share = ok ? q3_alloc(size, sizeof *share, err) : NULL;
    ok = share && q3_profile_shares(&profile, path, measure, phases_asked_for(), share, err);
    if (ok) {
        profiles->path[profiles->count] = path;
        profiles->share[profiles->count++] = share;
    } else {
        free(share);
    }
    if (ok && profiles->count == 1)
        profiles->first = profile;
    else
        q3_profile_destroy(&profile);
    return ok;
}

bool q3_profiles_read(const char *const *paths, q3_profiles *profiles, q3_error *err)
{
    *profiles = (q3_profiles){0};
    size_t count = 0;
    while (paths[count])
        count++;
    profiles->path = q3_alloc(count, sizeof *profiles->path, err);
    profiles->share = profiles->path ? q3_alloc(count, sizeof *profiles->share, err) : NULL;
    bool ok = profiles->share != NULL;
    for (size_t i = 0; ok && i < count; i++)
        ok = read_one(paths[i], profiles, err);
    if (ok) {
        const size_t size = (size_t)profiles->first.layers * profiles->first.experts;
        profiles->sum = q3_alloc_zeroed(size, sizeof *profiles->sum, err);
        ok = profiles->sum != NULL;
        for (size_t i = 0; ok && i < count; i++)
            for (size_t k = 0; k < size; k++)
                profiles->sum[k] += profiles->share[i][k];
    }
    if (!ok)
        q3_profiles_free(profiles);
    return ok;
}

void q3_profiles_free(q3_profiles *profiles)
{
    for (size_t i = 0; i < profiles->count; i++)
        free(profiles->share[i]);
    free(profiles->path);
    free(profiles->share);
    free(profiles->sum);
    q3_profile_destroy(&profiles->first);
    *profiles = (q3_profiles){0};
}

bool q3_write_result(const void *data, size_t size, q3_error *err)
{
    if (q3_options.output)
        return q3_file_publish(q3_options.output, data, size, err);
    return q3_write_all(STDOUT_FILENO, "standard output", data, size, err);
}
