// SPDX-License-Identifier: Apache-2.0
//
// Writes checkpoints to practise on: every tensor that a configuration promises, as safetensors
// shards with an index, in the order and with the cuts of transformers' save_pretrained, headers
// byte for byte as the safetensors library writes them.
//
// The weights come from a seed and the tensor's name alone, by integer arithmetic, so that every
// machine, compiler and number of threads writes the same bytes, and a tensor is the same whatever
// shard it is in. They look like trained ones: Gaussian, each row with a scale of its own
// (lognormal, sigma 0.3), with a standard deviation of 1/sqrt(inputs), twice that for routers and
// LM heads, so that routing and the next token are decided and not degenerate; norms lie around 1,
// other vectors around 0. Only BF16 and F32 tensors (which hold BF16 numbers) are numbers of that
// kind; those of other types get arbitrary bytes.
#ifndef Q3_TESTS_CHECKPOINT_WRITER_H
#define Q3_TESTS_CHECKPOINT_WRITER_H

#include "base/error.h"
#include "model/tensor.h"

// save_pretrained's limit of old ("5GB"), which cut the original checkpoint.
#define Q3_SHARD_BYTES_DEFAULT UINT64_C(5000000000)

// What is about to be written, for a test to damage.
typedef struct q3_planned_tensor {
    char name[Q3_NAME_MAX];
    q3_dtype dtype;
    unsigned rank;
    uint64_t shape[Q3_RANK_MAX];
    uint32_t shard;        // that holds it, counted from 0
    uint32_t listed_shard; // that the index gives it to; need not exist
    bool stored, listed;   // in a shard, in the index
} q3_planned_tensor;

typedef struct q3_checkpoint_options {
    const char *config;    // path of a config.json
    const char *directory; // made if need be; files of the same names are replaced
    uint64_t seed;
    uint64_t shard_bytes; // the most that a shard's tensors take, unless one alone takes more
    uint32_t layers;      // of the text model; 0 for as many as the configuration says
    const char *shards;   // "1-3,5": write only these, counted from 1; NULL for all
    bool sparse;          // the data are a hole: zeros that take no disk
    unsigned jobs;        // threads
    // Called for each tensor, in the order of saving, when all shards are cut; may change anything.
    // NULL for a sound checkpoint.
    void (*edit)(void *context, q3_planned_tensor *tensor);
    void *context;
} q3_checkpoint_options;

typedef struct q3_checkpoint_summary {
    uint64_t tensors, bytes; // of the whole checkpoint
    uint32_t shards;         // likewise
    uint32_t written;        // of them
} q3_checkpoint_summary;

// Writes the shards asked for, model.safetensors.index.json (or model.safetensors alone, when all
// fits one shard, as save_pretrained does) and config.json; and copies tokenizer and generation
// files that lie beside the configuration. *summary may be NULL.
bool q3_checkpoint_write(const q3_checkpoint_options *options, q3_checkpoint_summary *summary,
                         q3_error *err);

#endif
