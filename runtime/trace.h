// SPDX-License-Identifier: Apache-2.0
//
// A trace: which experts the router chose for every token in every layer, in the batches in which
// the tokens went through the model. What a cache of experts does with them can be found out
// without the model (replay.h).
//
// The file, all numbers little-endian:
//
//   0   8  "q3trace\n"
//   8   4  version, 1
//   12  4  layers
//   16  4  experts of a layer
//   20  4  top k: experts of a token, at most
//   24 16  the model: q3_profile_model_hash, low half first
//   40  8  tokens in all batches
//   48  8  batches
//   56 16  XXH3, 128 bits, low half first, of all that follows the header
//   72  8  XXH3, 64 bits, of bytes 0 to 71
//   80     the batches, each:
//            4 position of its first token
//            4 tokens, at least 1
//              for each layer, for each token: top k numbers of experts, ascending, of 1 byte each
//              for up to 255 experts and of 2 bytes for more; where fewer than top k were chosen
//              (at least one is), the rest has all bits set
#ifndef Q3_RUNTIME_TRACE_H
#define Q3_RUNTIME_TRACE_H

#include "base/bytes.h"
#include "base/hash.h"
#include "model/config.h"

enum { Q3_TRACE_VERSION = 1, Q3_TRACE_HEADER = 80 };

// ---- writing ----

typedef struct q3_trace_writer q3_trace_writer;

// The file appears under its name when it is published. Batches are on the disk before; at most one
// is in memory.
bool q3_trace_create(const char *path, const q3_config *config, q3_hash128 model,
                     q3_trace_writer **writer, q3_error *err);
// Begins a batch. One whose layers have not all been added is forgotten: what was computed of it
// came to nothing.
void q3_trace_begin(q3_trace_writer *writer, uint32_t position, uint32_t tokens);
// The next layer of the batch: for each token top_k numbers of experts, of which the first count
// (at least 1) are chosen.
void q3_trace_add(q3_trace_writer *writer, const uint32_t *chosen, const uint32_t *counts);
// Publishes what has been added, and frees the writer. A failure while adding is told of here.
bool q3_trace_publish(q3_trace_writer *writer, q3_error *err);
// Frees the writer and leaves no file; NULL is fine.
void q3_trace_abandon(q3_trace_writer *writer);

// ---- reading ----

typedef struct q3_trace_batch {
    uint32_t position, tokens;
    const uint8_t *chosen; // in q3_trace.data
} q3_trace_batch;

typedef struct q3_trace {
    uint32_t layers, experts, top_k;
    q3_hash128 model;
    uint64_t tokens;
    q3_trace_batch *batches;
    size_t batch_count, batch_capacity;
    char *data;
} q3_trace;

// Reads a trace (1 GiB at most) and checks all of it. Without batches it is fine, too.
bool q3_trace_read(const char *path, q3_trace *trace, q3_error *err);
void q3_trace_free(q3_trace *trace); // a zeroed one is fine

// Q3_MISMATCH, with a message that names `path`, unless the trace is of this model.
bool q3_trace_check_model(const q3_trace *trace, const char *path, q3_hash128 model, q3_error *err);

// The experts of a token of a batch in a layer; `experts` has room for top_k. Returns how many.
uint32_t q3_trace_chosen(const q3_trace *trace, const q3_trace_batch *batch, uint32_t layer,
                         uint32_t token, uint32_t *experts);

#endif
