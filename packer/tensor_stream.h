// SPDX-License-Identifier: Apache-2.0
//
// The raw bytes of many tensors of a pack directory, in any order that is asked for: frames are
// read and decoded on all threads, and handed over one at a time, in order. Every frame's and every
// tensor's hash is checked on the way. Memory is bounded by the number of threads.
#ifndef Q3_TENSOR_STREAM_H
#define Q3_TENSOR_STREAM_H

#include "set.h"

// Which tensor: the index of its file in the set, and its own in the file.
typedef struct q3_tensor_place {
    uint32_t file, index;
} q3_tensor_place;

// Some of a tensor's bytes. Pieces of a tensor come in order; one without bytes has one empty
// piece. The last one comes once the whole tensor's hash has been found right.
typedef struct q3_tensor_piece {
    size_t which;    // index into the list of tensors
    uint64_t offset; // in the tensor
    const uint8_t *data;
    size_t size;
    bool last;
} q3_tensor_piece;

typedef struct q3_tensor_stream {
    const q3_set *set;
    const q3_tensor_place *tensors; // neighbours of one file are read with one opening of it
    size_t count;
    unsigned jobs;    // threads
    const char *verb; // of the progress line: "unpacking"
    uint64_t bytes;   // of all the tensors, for the progress line
    bool quiet;       // no progress line
    void *context;
    bool (*put)(void *context, const q3_tensor_piece *piece, q3_error *err);
} q3_tensor_stream;

bool q3_tensor_stream_run(const q3_tensor_stream *stream, q3_error *err);

#endif
