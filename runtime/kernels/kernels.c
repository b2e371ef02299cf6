// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

const q3_kernels *q3_kernels_for(q3_cpu_level level)
{
#if defined __x86_64__
    if (level >= Q3_CPU_AVX512)
        return &q3_kernels_avx512;
    if (level >= Q3_CPU_AVX2)
        return &q3_kernels_avx2;
#else
    (void)level;
#endif
    return &q3_kernels_c;
}
