// SPDX-License-Identifier: Apache-2.0
//
// The engine's threads: the worker pool, and for each worker what reading a frame and
// multiplying with it needs. Work that is too small to be shared stays in the caller.
#ifndef Q3_RUNTIME_TEAM_H
#define Q3_RUNTIME_TEAM_H

#include "base/workers.h"
#include "pack.h"
#include "region.h"

typedef struct q3_frame_reader {
    q3_coder *coder;
    uint8_t *stored; // a frame as it lies in the file
    size_t capacity;
    void *block; // scratch for q3_matrix_multiply: Q3_BLOCK_BYTES_MAX bytes at a multiple of 64
} q3_frame_reader;

typedef struct q3_team {
    q3_workers *workers;
    unsigned count;
    q3_frame_reader *readers; // one for each worker
    q3_region blocks;         // the memory of their blocks
} q3_team;

// Memory of the blocks of so many threads.
uint64_t q3_team_bytes(unsigned threads);

// threads: 1 to Q3_WORKERS_MAX.
bool q3_team_create(unsigned threads, q3_team *team, q3_error *err);
void q3_team_destroy(q3_team *team); // a zeroed one is fine

// q3_workers_run for `operations` multiply-adds in all, or things that take as long.
void q3_team_run(const q3_team *team, q3_task *task, void *context, uint32_t count,
                 uint64_t operations);

// Runs tasks that can fail. The error is that of the lowest index that fails; tasks behind it may
// not have run.
typedef bool q3_team_task(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err);
bool q3_team_try(const q3_team *team, q3_team_task *task, void *context, uint32_t count,
                 q3_error *err);

// Reads one frame, or a whole tensor, with the reader's scratch, which grows as it must.
bool q3_reader_frame(q3_frame_reader *reader, const q3_pack *pack, const q3_pack_tensor *tensor,
                     uint32_t frame, void *raw, q3_error *err);
bool q3_reader_tensor(q3_frame_reader *reader, const q3_pack *pack, const q3_pack_tensor *tensor,
                      void *raw, q3_error *err);

#endif
