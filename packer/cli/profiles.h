// SPDX-License-Identifier: Apache-2.0
//
// The profiles that q3-pack pool and q3-pack heatmap are given, as shares.
#ifndef Q3_PACKER_CLI_PROFILES_H
#define Q3_PACKER_CLI_PROFILES_H

#include "pool/profile.h"

typedef struct q3_profiles {
    q3_profile first;  // the model's sizes, and the texts of the first
    const char **path; // borrowed
    double **share;    // of each profile, [layer][expert], by --by and --phase
    size_t count;
    double *sum; // of the shares: every profile counts alike, however long its texts
} q3_profiles;

// Reads profiles (paths up to NULL), all of one model.
bool q3_profiles_read(const char *const *paths, q3_profiles *profiles, q3_error *err);
void q3_profiles_free(q3_profiles *profiles); // a zeroed one is fine

// Writes the result to --output, published, or to standard output.
bool q3_write_result(const void *data, size_t size, q3_error *err);

#endif
