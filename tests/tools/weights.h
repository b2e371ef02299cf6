// SPDX-License-Identifier: Apache-2.0
//
// The numbers of a tensor that does not exist: what checkpoint_writer.h says of the weights.
#ifndef Q3_TESTS_WEIGHTS_H
#define Q3_TESTS_WEIGHTS_H

#include "model/tensor.h"

typedef struct q3_weights {
    uint64_t key; // of the seed and the tensor's name
    q3_dtype dtype;
    size_t element_bytes;
    uint64_t row; // elements that share a scale; 0: the tensor is a vector
    // An element is center + deviation * g, g of variance 1, in units of 2^-28 and of 2^-20.
    int64_t center, deviation;
} q3_weights;

void q3_weights_describe(const q3_tensor *tensor, uint64_t seed, q3_weights *weights);

// Writes the bytes of elements first to first + count - 1.
void q3_weights_fill(const q3_weights *weights, uint64_t first, size_t count, uint8_t *out);

#endif
