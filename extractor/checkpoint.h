// SPDX-License-Identifier: Apache-2.0
//
// A checkpoint as Hugging Face saves it: safetensors shards and the index that says which shard
// holds which tensor. The index is the only authority on where a tensor is; the shards' headers say
// what it is. Nothing of the weights is read here.
//
// A checkpoint can be wrong in many places at once, and a verifier wants to hear of all of them. So
// what is wrong is told to a listener, one problem at a time, each with a message that stands
// alone; q3_checkpoint_open fails with the first.
#ifndef Q3_CHECKPOINT_H
#define Q3_CHECKPOINT_H

#include "base/file.h"
#include "base/hash.h"
#include "model/inventory.h"

// A tensor of the checkpoint: what its shard's header says.
typedef struct q3_stored_tensor {
    q3_tensor tensor; // the name is owned by the checkpoint
    uint32_t shard;   // index into shards
    uint64_t offset;  // of its bytes, from the beginning of the shard
} q3_stored_tensor;

typedef struct q3_shard {
    char *name;
    bool present;           // false: the file does not exist
    bool read;              // its header is known and sound: its tensors are in the list
    bool unreadable;        // present, and the system could not read it
    uint64_t size;          // of the file
    uint64_t file_bytes;    // that the header describes
    uint64_t header_bytes;  // where the data begin: 8 + the header's length
    q3_hash128 header_hash; // of those bytes
} q3_shard;

// An entry of the index.
typedef struct q3_listed_tensor {
    const char *name;
    uint32_t shard; // index into shards
    bool found;     // the shard's header has it
} q3_listed_tensor;

typedef struct q3_checkpoint {
    char *directory;
    q3_listed_tensor *listed; // sorted by name: what the index says
    size_t listed_count;
    q3_shard *shards; // sorted by name
    uint32_t shard_count;
    q3_stored_tensor *tensors; // sorted by name, no name twice
    size_t tensor_count;
    uint64_t bytes; // of all tensors
    char **names;   // what the names above point to
    size_t name_count, name_capacity;
} q3_checkpoint;

typedef enum q3_problem_kind {
    Q3_PROBLEM_MALFORMED, // an index or shard that breaks its format's rules
    Q3_PROBLEM_SIZE,      // a shard's header is sound, the file is shorter or longer than it says
    Q3_PROBLEM_SHARD_ABSENT, // a shard that the index names does not exist; subject is the shard
    Q3_PROBLEM_SHARD_LACKS,  // the index puts a tensor in a shard that does not hold it
    Q3_PROBLEM_UNLISTED,  // a shard holds a tensor, or the directory a shard, that the index does
                          // not list
    Q3_PROBLEM_ELSEWHERE, // a shard holds a tensor that the index gives to another shard
    Q3_PROBLEM_TOTAL,     // the index's total_size is not the sum of the tensors' sizes
} q3_problem_kind;

typedef struct q3_problem {
    q3_problem_kind kind;
    const char *subject; // the tensor or shard
    const char *shard;   // the name of the shard that it is about, or NULL
    q3_error error;      // code and message
} q3_problem;

// Returns true to go on and hear of further problems, false to stop.
typedef bool q3_problem_listener(void *context, const q3_problem *problem);

typedef struct q3_survey_options {
    // A directory of headers that q3_shard_save_header kept, or NULL: a shard that is absent but
    // has its header there is described as it was, and is no problem.
    const char *headers;
    bool headers_only; // shards of which only the first bytes are there pass
} q3_survey_options;

// Reads the index (model.safetensors.index.json, or a lone model.safetensors) and all the shards'
// headers. False, with *err, only when going on makes no sense (no index, no memory, the listener
// said stop). With problems told and not stopped, the checkpoint holds whatever is sound. options
// may be NULL for none.
bool q3_checkpoint_survey(const char *directory, const q3_survey_options *options,
                          q3_problem_listener *listener, void *context, q3_checkpoint *checkpoint,
                          q3_error *err);

// The same for those who need all of it to be right: fails with the first problem (but lets a wrong
// total_size pass: it is a comment of the index, and nothing depends on it).
bool q3_checkpoint_open(const char *directory, q3_checkpoint *checkpoint, q3_error *err);
void q3_checkpoint_close(q3_checkpoint *checkpoint); // a zeroed or closed one is fine

// What the index says of this name, or NULL: the index does not list it.
const q3_listed_tensor *q3_checkpoint_listed(const q3_checkpoint *checkpoint, const char *name);
// The tensor with this name, or NULL: never listed, its shard absent, or its shard lacks it.
const q3_stored_tensor *q3_checkpoint_find(const q3_checkpoint *checkpoint, const char *name);
// Path of a file in the checkpoint's directory, to free().
char *q3_checkpoint_path(const q3_checkpoint *checkpoint, const char *name, q3_error *err);

// Keeps a present shard's header in a directory, for later surveys without the shard. A header that
// is there already must be of the same shard, else Q3_REFUSED.
bool q3_shard_save_header(const q3_checkpoint *checkpoint, uint32_t shard, const char *headers,
                          q3_error *err);

// Opens a shard for reading tensors' bytes, and checks that its size is still the one seen.
bool q3_checkpoint_open_shard(const q3_checkpoint *checkpoint, uint32_t shard, q3_file *file,
                              q3_error *err);

#endif
