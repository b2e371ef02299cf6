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

// Writes it to `directory`, which is made. Rows have 32 weights, or 64, which can lie in memory as
// bf12; the counts above are those of the first.
enum { Q3_SMALL_WIDTH = 32, Q3_SMALL_WIDTH_BF12 = 64 };
bool q3_small_model_write(const char *directory, unsigned width, q3_error *err);

#endif
