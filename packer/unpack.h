// SPDX-License-Identifier: Apache-2.0
//
// The way back: from a pack directory to safetensors shards. Each tensor goes to the shard that it
// came from, in its order there, so that unpacking a pack of all components gives the original
// shards byte for byte (when they were written as the safetensors library writes them). A pack of
// some components gives a smaller checkpoint with the shards' original names.
#ifndef Q3_UNPACK_H
#define Q3_UNPACK_H

#include "set.h"

typedef struct q3_unpack_options {
    const char *pack_directory, *output_directory; // the output must not exist, or be empty
    unsigned jobs;
    bool quiet; // no progress line
} q3_unpack_options;

typedef struct q3_unpack_result {
    uint64_t shards, tensors, bytes; // bytes of the tensors
    double seconds;
} q3_unpack_result;

// Unpacks everything: shards, index, copies. Every frame and every tensor's hash is checked on the
// way.
bool q3_unpack(const q3_unpack_options *options, q3_unpack_result *result, q3_error *err);

#endif
