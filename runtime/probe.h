// SPDX-License-Identifier: Apache-2.0
//
// Short measurements of the machine, to tell beforehand how fast a model can run on it and how its
// files are best read: what bandwidth the threads get from memory, and what rate the disk (or the
// page cache) gives for whole expert files read at random.
#ifndef Q3_RUNTIME_PROBE_H
#define Q3_RUNTIME_PROBE_H

#include "base/workers.h"
#include "io_mode.h"

// ---- memory ----

typedef struct q3_memory_probe {
    double bytes_per_second; // the median of the passes
    uint64_t bytes;          // read in each pass
    uint32_t passes;
    uint64_t sum; // of all 64-bit words read: passes * n * (n - 1) / 2 for n words, modulo 2^64
} q3_memory_probe;

// Sums a buffer of `bytes` bytes (rounded up to whole MiB) again and again with all threads of the
// pool for about `seconds`, three passes at least. For the memory's speed it must be larger than
// every cache: Q3_PROBE_MEMORY_BYTES is, but on the largest servers. The buffer lives only as long
// as the call.
#define Q3_PROBE_MEMORY_BYTES (UINT64_C(256) << 20)
bool q3_probe_memory(q3_workers *workers, uint64_t bytes, double seconds, q3_memory_probe *probe,
                     q3_error *err);

// ---- disk ----

// Numbers of concurrent readers that are tried: 1, 2, 4, 8.
enum { Q3_PROBE_READERS = 4, Q3_PROBE_READERS_MAX = 8 };
static inline unsigned q3_probe_readers(unsigned step)
{
    return 1U << step;
}

typedef struct q3_disk_rate {
    double bytes_per_second; // of all readers together; 0 when nothing was read
    uint64_t bytes;          // read for it
    double
        cached; // share of these bytes that was in the page cache before, 0 to 1. (The system
                // tells it only of files that the process owns or may write, and says 1 of others.)
} q3_disk_rate;

typedef struct q3_disk_probe {
    bool direct_works; // the file system takes O_DIRECT
    q3_disk_rate buffered[Q3_PROBE_READERS], direct[Q3_PROBE_READERS];
} q3_disk_probe;

typedef struct q3_disk_sample {
    const char *const *paths; // files to choose from, best all of a size
    size_t count;
    uint64_t file_bytes; // of the largest; 0 when that is not known
    double seconds;      // for all the rates together
    bool drop;     // take each file out of the page cache before reading it, for a cold figure
    uint64_t seed; // of the order in which the files are read
} q3_disk_sample;

// Reads files in a random order, each as a whole, with both modes and every number of readers. No
// file is read twice before all have been; nothing is dropped from the page cache unless asked for,
// and then only the files that are read.
bool q3_probe_disk(const q3_disk_sample *sample, q3_disk_probe *probe, q3_error *err);

// ---- the rule ----

typedef struct q3_io_choice {
    q3_io_mode mode; // not Q3_IO_AUTO
    unsigned readers;
    double bytes_per_second; // to be expected of the disk; 0 when the probe has not seen it
} q3_io_choice;

// How to read experts of `expert_bytes` in all when the page cache can hold `cache_bytes` of them
// (memory that is available beyond the budget). A mode that is wanted is taken; with Q3_IO_AUTO
// this decides:
//
// A share h = cache_bytes / expert_bytes (1 at most) of the reads will be served by the page cache,
// if it is used. So buffered reads go at their measured rate B / (1 - h), and direct ones at their
// rate D always. But buffered ones are copied by processors that are to compute: with these busy
// they came to 0.4 of B, direct ones to 0.9 of D. So direct is chosen when the file system takes
// it, h is below 1, and D > B / 2 / (1 - h). B and D are the best over the numbers of readers. A
// rate counts as the disk's when at most a tenth of its bytes was cached; where B was never seen
// like that, direct is chosen when h is below one half. The number of readers is the smallest that
// reaches 0.95 of the mode's best rate, but two instead of one if they reach 0.8; 4 when none was
// measured.
q3_io_choice q3_choose_io(const q3_disk_probe *probe, q3_io_mode wanted, uint64_t expert_bytes,
                          uint64_t cache_bytes);

// What the disk gives, by the best rate of either mode that is the disk's; when none was, the best
// rate of all, and *cached says that it is the page cache's.
double q3_disk_speed(const q3_disk_probe *probe, bool *cached);

#endif
