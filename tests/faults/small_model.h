// SPDX-License-Identifier: Apache-2.0
//
// The checkpoint that faults are tried on: as small as one can be that has everything. Two layers
// of three experts, cut into three shards so that experts lie across the cuts; 15 pack files.
#ifndef Q3_TESTS_SMALL_MODEL_H
#define Q3_TESTS_SMALL_MODEL_H

#include "base/error.h"

enum { Q3_SMALL_SHARDS = 3, Q3_SMALL_FILES = 15 };

// Token ids for it, as on a command line.
#define Q3_SMALL_IDS "3 1 4 1 5 9"

// Writes it to `directory`, which is made.
bool q3_small_model_write(const char *directory, q3_error *err);

#endif
