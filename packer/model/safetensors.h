// SPDX-License-Identifier: Apache-2.0
//
// What a safetensors checkpoint has beside the tensors' bytes: the header of each shard, byte for
// byte as the safetensors library (github.com/huggingface/safetensors) writes it, and the index
// that tells which shard a tensor is in, as transformers writes it. Whoever writes a checkpoint
// takes them from here.
#ifndef Q3_MODEL_SAFETENSORS_H
#define Q3_MODEL_SAFETENSORS_H

#include "base/file.h"
#include "tensor.h"

#define Q3_SAFETENSORS_INDEX "model.safetensors.index.json"

// A header being made: begun, given the tensors in the order of their data, finished.
typedef struct q3_safetensors_header {
    q3_memory text;
    uint64_t data_bytes; // of the tensors so far
} q3_safetensors_header;

bool q3_safetensors_header_begin(q3_safetensors_header *header, q3_error *err);
// The tensor's data follow those of the ones before without a gap.
void q3_safetensors_header_add(q3_safetensors_header *header, const q3_tensor *tensor);
// The first bytes of the shard: the header's length, the header, blanks up to a multiple of 8. The
// caller frees *data. The header is gone afterwards, whatever happens.
bool q3_safetensors_header_finish(q3_safetensors_header *header, char **data, size_t *size,
                                  q3_error *err);

// "model-00002-of-00007.safetensors", counted from 1 in the name and from 0 here; a lone shard is
// "model.safetensors". The names have digits for Q3_SAFETENSORS_SHARDS_MAX.
enum { Q3_SAFETENSORS_SHARDS_MAX = 99999, Q3_SAFETENSORS_NAME_MAX = 64 };
const char *q3_safetensors_shard_name(uint32_t shard, uint32_t count,
                                      char out[Q3_SAFETENSORS_NAME_MAX]);

// A tensor in the index.
typedef struct q3_safetensors_entry {
    const char *name;
    const char *shard; // file name; NULL for one that is counted but not listed
    q3_dtype dtype;
    uint64_t bytes; // counted in the totals
} q3_safetensors_entry;

// Writes the index into the directory, published. Sorts the entries by name.
bool q3_safetensors_publish_index(const char *directory, q3_safetensors_entry *entries,
                                  size_t count, q3_error *err);

#endif
