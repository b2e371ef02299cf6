// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks share. Time is q3_now's.
#ifndef Q3_BENCH_H
#define Q3_BENCH_H

#include "base/progress.h"

#include <stddef.h>
#include <stdint.h>

// Ends the program with code 1 and "PROGRAM: MESSAGE".
_Noreturn void bench_die(const char *message);

// The command line's argument at `index`, a number from 1 to `most`; `otherwise` when it is not
// given. Anything else ends the program with "expected USAGE".
unsigned bench_argument(int argc, char **argv, int index, unsigned otherwise, unsigned most,
                        const char *usage);

// Zeroed memory in large pages that have all been touched; to munmap().
void *bench_map(size_t size);

// The same numbers in every run, from a seed: SplitMix64 (Steele, Lea, Flood 2014), between 0 and
// 1, and Gaussian of variance 1.
void bench_seed(uint64_t seed);
double bench_unit(void);
double bench_normal(void);

// Sorts the values.
double bench_median(double *values, unsigned count);

#endif
