// SPDX-License-Identifier: Apache-2.0
//
// The one thread pool. The thread that calls q3_workers_run works too, so a pool of one thread
// starts none and runs everything in the caller. It never waits for a thread that has not got a
// task in hand, so a thread that the system keeps from running slows nobody down. Threads without
// work wait actively for some 50 microseconds, if there is a processor for each, and then sleep.
#ifndef Q3_BASE_WORKERS_H
#define Q3_BASE_WORKERS_H

#include "error.h"

#include <stdint.h>

typedef struct q3_workers q3_workers;

enum { Q3_WORKERS_MAX = 256 };

// The processors that this process may keep busy (limits.h), at most Q3_WORKERS_MAX; and the cores,
// for arithmetic.
unsigned q3_workers_default(void);
unsigned q3_workers_of_cores(void);

// A pool of `threads` (1 to Q3_WORKERS_MAX), the caller's included.
bool q3_workers_create(unsigned threads, q3_workers **workers, q3_error *err);
void q3_workers_destroy(q3_workers *workers); // NULL is fine
unsigned q3_workers_count(const q3_workers *workers);

// Runs task(context, i, worker) once for each i < count, on all threads, and returns when all are
// done. Indices are handed out in ascending order. `worker` (below the pool's count) tells which
// thread runs it, for scratch memory of its own. One run at a time.
typedef void q3_task(void *context, uint32_t index, unsigned worker);
void q3_workers_run(q3_workers *workers, q3_task *task, void *context, uint32_t count);

// A stream of items through three stages: `next` fills a slot with the next item, in order, one at
// a time; `work` runs on all threads at once; `commit` gets the items in the order of `next`, one
// at a time. At most `slots` items are under way, which bounds the memory. All the stages get
// `worker`.
//
// `next` returns 1 for an item, 0 at the end, -1 on failure. The first failure of any stage, in
// time, ends the stream: no stage is called again once those under way have returned, and its error
// is returned. Each slot is slot_bytes of zeroed memory that its item's stages share and the next
// item finds as it was left; `release`, if given, is called once for each slot at the end.
typedef struct q3_stream {
    void *context;
    size_t slots, slot_bytes;
    int (*next)(void *context, void *slot, q3_error *err);
    bool (*work)(void *context, void *slot, unsigned worker, q3_error *err);
    bool (*commit)(void *context, void *slot, unsigned worker, q3_error *err); // may be NULL
    void (*release)(void *context, void *slot);                                // may be NULL
} q3_stream;

bool q3_workers_stream(q3_workers *workers, const q3_stream *stream, q3_error *err);

#endif
