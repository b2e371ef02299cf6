// SPDX-License-Identifier: Apache-2.0
//
// Tests that run once for each level of processor.
#ifndef Q3_TEST_LEVEL_H
#define Q3_TEST_LEVEL_H

#include "base/cpu.h"
#include "support.h"

enum { Q3_TEST_SKIPPED = 77 }; // exit code, for Meson

// The level to use may be given as an argument; without it the best one is used. False, and said,
// when this processor has not got it.
static inline bool q3_test_has_level(int argc, char **argv)
{
    q3_cpu_level level;
    q3_error error;
    if (argc < 2 || (q3_cpu_parse(argv[1], &level) && q3_cpu_limit(level, &error)))
        return true;
    print_message("skipped: there is no %s here\n", argv[1]);
    return false;
}

#endif
