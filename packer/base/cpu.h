// SPDX-License-Identifier: Apache-2.0
//
// What the processor can do, as a ladder: each level has all of the one before. Code with several
// versions of a function asks once for the level and takes the best version up to it. Plain C is
// always there and is what the others are compared with.
//
// The ladder grows at its end; a level beyond the processor's (or the operating system's, which
// must save the registers) cannot be chosen.
#ifndef Q3_BASE_CPU_H
#define Q3_BASE_CPU_H

#include "error.h"

typedef enum q3_cpu_level {
    Q3_CPU_C,      // nothing but the language
    Q3_CPU_AVX2,   // x86-64 with AVX2, BMI2, FMA, POPCNT
    Q3_CPU_AVX512, // and AVX-512 F, BW, CD, DQ, VL, VBMI, VBMI2 (Ice Lake, Zen 4)
    Q3_CPU_BF16,   // and AVX-512 BF16 (Cooper Lake, Zen 4)
    Q3_CPU_AMX,    // and AMX tiles with BF16, which the system has let this process use
    Q3_CPU_LEVELS
} q3_cpu_level;

// For an option `--cpu LEVEL` of kind Q3_OPTION_CHOICE.
#define Q3_CPU_CHOICES "c|avx2|avx512|bf16|amx"

const char *q3_cpu_name(q3_cpu_level level);
bool q3_cpu_parse(const char *name, q3_cpu_level *level);

// The best level of this processor.
q3_cpu_level q3_cpu_detected(void);

// The level to use: the one set below, else the best one (but for Q3_CPU_BF16, which has to be
// asked for).
q3_cpu_level q3_cpu_in_use(void);

// Uses nothing beyond `level` from now on: what is set up later asks for the level then. Fails
// (Q3_FAILED) when the processor has not got it, so that nobody measures the wrong thing.
bool q3_cpu_limit(q3_cpu_level level, q3_error *err);

#endif
