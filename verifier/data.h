// SPDX-License-Identifier: Apache-2.0
//
// The weights themselves: what no trained model holds. NaN and infinities, tensors that are all
// zero, and rows of one value (a row is what belongs to one index of the first dimension).
#ifndef Q3_DATA_H
#define Q3_DATA_H

#include "checkpoint.h"
#include "report.h"

// Reads every tensor of the components in scope, and those that the inventory does not have, and
// reports with counts and the first place. Memory is bounded by a few MiB a thread. Tensors that
// lie behind the end of a file that was cut short are passed over: their shard has been reported.
// jobs: threads, 0 for one a processor.
bool q3_data_check(const q3_checkpoint *checkpoint, const q3_inventory *inventory,
                   const bool scope[Q3_COMPONENTS], unsigned jobs, bool quiet, q3_findings *report,
                   q3_error *err);

// What one run of elements holds.
typedef struct q3_data_count {
    uint64_t nan, infinite;
    uint64_t first; // the element that is the first of these
    bool zero;      // all are zero
} q3_data_count;

// Counts in `count` elements of a dtype; of integers nothing is NaN.
q3_data_count q3_data_scan(q3_dtype dtype, const uint8_t *data, size_t count);

#endif
