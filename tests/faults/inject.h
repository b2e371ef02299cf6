// SPDX-License-Identifier: Apache-2.0
//
// Faults on purpose. inject.c stands between a program and the C library: it counts the program's
// calls, kind by kind, and at the k-th of a kind kills the process, fails the call or cuts the
// transfer short. It is preloaded (LD_PRELOAD) into the programs, and linked into tests that call
// the libraries.
//
// What to do, and what was done, stands in one record that both sides share: for a program a file,
// named by the environment variable Q3_INJECT, that is mapped before main; so the counts outlive a
// process that was killed. Calls that the C library makes itself (stdio's writes, the stacks of
// threads) are not seen; its allocations are.
#ifndef Q3_TESTS_INJECT_H
#define Q3_TESTS_INJECT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum q3_inject_kind {
    Q3_INJECT_WRITE, // write, pwrite
    Q3_INJECT_SYNC,  // fsync, fdatasync
    Q3_INJECT_RENAME,
    Q3_INJECT_UNLINK, // unlink, unlinkat, rmdir
    Q3_INJECT_TRUNCATE,
    Q3_INJECT_MKDIR,
    Q3_INJECT_OPEN, // open, openat
    Q3_INJECT_READ, // read, pread
    Q3_INJECT_CLOSE,
    Q3_INJECT_ALLOCATE, // malloc, calloc, realloc and the aligned ones
    Q3_INJECT_MAP,      // mmap
    Q3_INJECT_THREAD,   // pthread_create
    Q3_INJECT_EXIT,     // the process's end
    Q3_INJECT_KINDS
} q3_inject_kind;

static inline const char *q3_inject_name(q3_inject_kind kind)
{
    static const char *const names[Q3_INJECT_KINDS] = {
        "write", "sync",  "rename",     "unlink", "truncate", "mkdir", "open",
        "read",  "close", "allocation", "map",    "thread",   "exit"};
    return names[kind];
}

typedef enum q3_inject_action {
    Q3_INJECT_NOTHING, // only count
    Q3_INJECT_KILL_BEFORE,
    Q3_INJECT_KILL_AFTER,
    Q3_INJECT_FAIL,   // with the errno `number`; close does its work all the same, as on Linux
    Q3_INJECT_SHORT,  // half of the bytes; nothing where there are fewer than two
    Q3_INJECT_SIGNAL, // send the process the signal `number`, then call
    Q3_INJECT_POWER,  // lose power before the call: `number` says what (power.h)
} q3_inject_action;

typedef struct q3_inject_record {
    uint32_t kind, action; // what to do
    int32_t number;        // an errno, a signal, or what is lost
    uint32_t forever;      // not only the k-th call, but all from there on
    uint64_t at;           // k, counted from 1
    atomic_uint_fast64_t calls[Q3_INJECT_KINDS];
    atomic_uint_fast64_t fired; // calls that were meddled with
} q3_inject_record;

// For a test that links inject.c: the record to follow from now on; NULL for none.
void q3_inject_follow(q3_inject_record *record);
// Blocks of memory that were allocated since tracking began and not freed.
void q3_inject_track(bool on);
size_t q3_inject_live(void);

#endif
