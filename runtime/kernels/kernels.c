// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#if defined __x86_64__

#include <pthread.h>

enum { MANY_TOKENS = 16 };

static q3_kernels bf16, amx;
static pthread_once_t derive_once = PTHREAD_ONCE_INIT;

// These levels have products of their own; all else is as with AVX-512.
static void derive(void)
{
    bf16 = q3_kernels_avx512;
    bf16.name = "bf16";
    bf16.many = &q3_products_bf16;
    bf16.many_tokens = MANY_TOKENS;
    bf16.many_rounds_differently = true;
    amx = q3_kernels_avx512;
    amx.name = "amx";
    amx.many = &q3_products_amx;
    amx.many_tokens = MANY_TOKENS;
    amx.many_rounds_differently = true;
    amx.attend_many = &q3_attend_many_amx;
}

const q3_kernels *q3_kernels_for(q3_cpu_level level)
{
    pthread_once(&derive_once, derive);
    switch (level) {
    case Q3_CPU_AMX:
        return &amx;
    case Q3_CPU_BF16:
        return &bf16;
    case Q3_CPU_AVX512:
        return &q3_kernels_avx512;
    case Q3_CPU_AVX2:
        return &q3_kernels_avx2;
    default:
        return &q3_kernels_c;
    }
}

#else

const q3_kernels *q3_kernels_for(q3_cpu_level level)
{
    (void)level;
    return &q3_kernels_c;
}

#endif
