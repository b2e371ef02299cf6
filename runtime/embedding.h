// SPDX-License-Identifier: Apache-2.0
//
// Rows of the embedding, read when a token needs them: a text uses few of the vocabulary's rows, so
// the matrix is never in memory as a whole. The frames used last are kept decoded.
#ifndef Q3_RUNTIME_EMBEDDING_H
#define Q3_RUNTIME_EMBEDDING_H

#include "kernels/kernels.h"
#include "model.h"

typedef struct q3_embedding q3_embedding;

bool q3_embedding_open(const q3_model *model, const q3_kernels *kernels, q3_embedding **embedding,
                       q3_error *err);
void q3_embedding_close(q3_embedding *embedding); // NULL is fine
// Memory that it takes at most.
uint64_t q3_embedding_bytes(const q3_embedding *embedding);
// Bytes read from its file so far.
uint64_t q3_embedding_bytes_read(const q3_embedding *embedding);

// The rows of tokens (ids below the vocabulary's size), hidden_size float32 each, one after the
// other. A frame that several of them need is read once, different frames on all threads.
bool q3_embedding_rows(q3_embedding *embedding, const uint32_t *ids, uint32_t count,
                       const q3_team *team, float *rows, q3_error *err);

#endif
