// SPDX-License-Identifier: Apache-2.0
//
// Samples of tensors: a share of the bytes, or one of several parts that together are everything.
// Both are spread over the whole and the same at every run.
#ifndef Q3_SAMPLE_H
#define Q3_SAMPLE_H

#include "base/error.h"

#include <stdint.h>

enum { Q3_SAMPLE_PARTS_MAX = 1000 };

typedef struct q3_sample {
    double share;         // of the bytes, in (0, 1]; 0 for a part
    unsigned part, parts; // the part-th of so many, counted from 1
} q3_sample;

// "5%", "0.5%" or "2/7".
bool q3_sample_parse(const char *text, q3_sample *sample, q3_error *err);

// Goes through the tensors in one order and says of each whether it is taken.
typedef struct q3_sampler {
    q3_sample sample;
    double credit;                      // bytes that are still to be taken
    uint64_t load[Q3_SAMPLE_PARTS_MAX]; // bytes of each part
} q3_sampler;

bool q3_sampler_take(q3_sampler *sampler, uint64_t bytes);

#endif
