// SPDX-License-Identifier: Apache-2.0
//
// The plan of an extraction: which tensors go to which pack files, decided and checked in full
// before the first byte is written. Every tensor of the checkpoint has a place in the model that
// its configuration describes; every tensor that the configuration promises in what is asked for is
// there and has the right shape.
#ifndef Q3_PLAN_H
#define Q3_PLAN_H

#include "checkpoint.h"
#include "model/config.h"
#include "model/inventory.h"
#include "pool/pool.h"
#include "set.h"

// What to take out of the checkpoint. Strings as on the command line.
typedef struct q3_selection {
    const char *components; // "text", "all", or names separated by commas
    const char *layers;     // of the text model, such as "0-5"; NULL for all
    const char *experts;    // of each layer, such as "0-7,12"; NULL for all
    const char *pool;       // path of a pool file, in place of `experts`; NULL for none
    bool partial;           // go on without shards that have not come yet
} q3_selection;

typedef struct q3_plan_file {
    q3_place place;
    const q3_stored_tensor **tensors; // in the order of the inventory; NULL: its shard is to come
    uint32_t tensor_count;
    uint32_t unknown; // how many are NULL
    uint64_t bytes;   // uncompressed
} q3_plan_file;

typedef struct q3_plan {
    q3_checkpoint checkpoint;
    q3_inventory inventory;
    q3_config config;
    bool wanted[Q3_COMPONENTS];
    q3_pool pool;        // the experts that are asked for, of whatever layers are
    q3_plan_file *files; // sorted by place
    size_t file_count;
    char **copies; // names of the small files to copy, sorted
    size_t copy_count;
    uint64_t tensors, bytes; // in all files
    uint64_t raw_size;       // of all pack files when nothing is compressed: exact, without files
                             // that have unknown tensors
} q3_plan;

// Surveys the checkpoint and plans. Shards that hold nothing of what is asked for may be absent,
// and those whose headers an earlier run has kept in the directory `headers` (which may be NULL or
// absent).
bool q3_plan_make(const char *model_directory, const char *headers, const q3_selection *selection,
                  q3_plan *plan, q3_error *err);
void q3_plan_free(q3_plan *plan); // a zeroed or freed one is fine

#endif
