// SPDX-License-Identifier: Apache-2.0
//
// The extraction: a checkpoint in, a pack directory out. Frames stream through in the order in
// which the source holds them: read and encoded on all threads, written in order, so that the
// result does not depend on the number of threads and the memory does not depend on the size of
// anything.
#ifndef Q3_EXTRACT_H
#define Q3_EXTRACT_H

#include "plan.h"

typedef struct q3_extract_options {
    const char *model_directory, *pack_directory;
    q3_selection selection;
    q3_codec codec;
    unsigned jobs; // threads
    bool quiet;    // no progress line
} q3_extract_options;

typedef struct q3_extract_result {
    uint64_t files, tensors, bytes; // of the whole pack, bytes uncompressed
    uint64_t stored;                // bytes of all the pack files
    uint64_t resumed_files;         // that an earlier run had finished
    uint64_t waiting_files;         // that need shards which have not come; 0: finished
    double seconds;
} q3_extract_result;

// Plans and extracts. A pack directory that exists must be empty or hold an unfinished extraction
// of the same request, which is taken up. On failure and interruption what is finished stays.
//
// With selection.partial, shards may come one at a time: what is there is packed, and once the call
// has returned true every shard that was present may be deleted, because all that is wanted of it
// is packed and synced. A file that a shard boundary cuts waits in pieces for its other shards.
// result->waiting_files tells whether another call is needed.
bool q3_extract(const q3_extract_options *options, q3_extract_result *result, q3_error *err);

// The same for a plan that was made before.
bool q3_extract_plan(const q3_plan *plan, const q3_extract_options *options,
                     q3_extract_result *result, q3_error *err);

#endif
