// SPDX-License-Identifier: Apache-2.0
//
// What the system lets this process have: memory and processors, within the control groups that it
// is in (a container, a service, a batch job), and what it has taken.
//
// Control groups of both versions count, with every group above the process's own; a limit that
// cannot be read is none.
#ifndef Q3_BASE_LIMITS_H
#define Q3_BASE_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes of memory that this process could take without swapping or being killed: the least of what
// the machine has (MemAvailable of /proc/meminfo) and what each group leaves, its limit minus its
// use, where the file cache counts as free. UINT64_MAX when the system does not say.
uint64_t q3_available_memory(void);

// The processors that this process may keep busy, at least 1: those that it may run on, or fewer
// where a group's quota of processor time (rounded up) is less.
unsigned q3_available_processors(void);

// The same, but of the processors that share a core (hyperthreads) one only. Arithmetic that keeps
// a core busy gains nothing from a second thread on it; with AMX tiles both together do half of
// what one does alone.
unsigned q3_available_cores(void);

// The same with the files of /proc, of /sys and of the control groups looked up under a directory:
// theirs is "/". `most` is the answer where no group has a quota; usable[i] tells whether the
// process may run on processor i.
uint64_t q3_available_memory_under(const char *root);
unsigned q3_quota_processors_under(const char *root, unsigned most);
unsigned q3_cores_under(const char *root, const bool *usable, size_t processors);

// Bytes of memory that this process has in use, and the most that it ever had; 0 when the system
// does not say. Other than getrusage's, the peak begins with the program and not with the process
// that started it.
typedef struct q3_memory_use {
    uint64_t now, peak;
} q3_memory_use;

q3_memory_use q3_memory_used(void);

#endif
