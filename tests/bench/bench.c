// SPDX-License-Identifier: Apache-2.0
#include "bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void bench_die(const char *message)
{
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, message);
    exit(1);
}

unsigned bench_argument(int argc, char **argv, int index, unsigned otherwise, unsigned most,
                        const char *usage)
{
    if (index >= argc)
        return otherwise;
    char *end;
    const long number = strtol(argv[index], &end, 10);
    if (*end || number < 1 || number > (long)most) {
        char message[256];
        snprintf(message, sizeof message, "expected %s", usage);
        bench_die(message);
    }
    return (unsigned)number;
}

void *bench_map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        bench_die("out of memory");
    madvise(memory, size, MADV_HUGEPAGE);
    memset(memory, 0, size);
    return memory;
}

static uint64_t state;

void bench_seed(uint64_t seed)
{
    state = seed;
}

double bench_unit(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return ((double)((z ^ z >> 31) >> 11) + 0.5) * 0x1p-53;
}

double bench_normal(void)
{
    const double radius = sqrt(-2 * log(bench_unit()));
    return radius * cos(6.283185307179586 * bench_unit());
}

static int compare_doubles(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

double bench_median(double *values, unsigned count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return values[count / 2];
}
