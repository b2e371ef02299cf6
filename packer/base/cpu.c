// SPDX-License-Identifier: Apache-2.0
#include "cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const names[Q3_CPU_LEVELS] = {
    [Q3_CPU_C] = "c",       [Q3_CPU_AVX2] = "avx2", [Q3_CPU_AVX512] = "avx512",
    [Q3_CPU_BF16] = "bf16", [Q3_CPU_AMX] = "amx",
};

const char *q3_cpu_name(q3_cpu_level level)
{
    return names[level];
}

bool q3_cpu_parse(const char *name, q3_cpu_level *level)
{
    for (unsigned i = 0; i < Q3_CPU_LEVELS; i++)
        if (strcmp(name, names[i]) == 0) {
            *level = (q3_cpu_level)i;
            return true;
        }
    return false;
}

static q3_cpu_level detected;
static pthread_once_t detect_once = PTHREAD_ONCE_INIT;

#if defined __x86_64__
// Tiles are 8 KiB of registers that a process has to ask Linux for; it may refuse. CPUID leaf 7:
// EDX bits 22 (AMX-BF16) and 24 (AMX-TILE).
static bool can_use_tiles(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_BF16 && d & AMX_TILE &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static void detect(void)
{
#if defined __x86_64__
    // These ask the operating system too (XGETBV). PDEP and PEXT, which BMI2 brings, are microcoded
    // and slow on AMD before Zen 3: right there as well, but no faster than plain C.
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2") ||
        !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("popcnt"))
        return;
    detected = Q3_CPU_AVX2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vbmi") ||
        !__builtin_cpu_supports("avx512vbmi2"))
        return;
    detected = Q3_CPU_AVX512;
    if (!__builtin_cpu_supports("avx512bf16"))
        return;
    detected = Q3_CPU_BF16;
    if (can_use_tiles())
        detected = Q3_CPU_AMX;
#endif
}

q3_cpu_level q3_cpu_detected(void)
{
    pthread_once(&detect_once, detect);
    return detected;
}

static atomic_uint limit = Q3_CPU_LEVELS; // none

q3_cpu_level q3_cpu_in_use(void)
{
    const unsigned asked = atomic_load(&limit);
    const q3_cpu_level best = q3_cpu_detected();
    if (asked < Q3_CPU_LEVELS)
        return (q3_cpu_level)asked;
    // Where AVX-512 BF16 was measured (Sapphire Rapids) its products run at half the speed of plain
    // AVX-512: activations in two parts take two of them, and they are not issued faster.
    return best == Q3_CPU_BF16 ? Q3_CPU_AVX512 : best;
}

bool q3_cpu_limit(q3_cpu_level level, q3_error *err)
{
    if (level > q3_cpu_detected())
        return q3_fail(err, Q3_FAILED, "this processor has no %s: its best level is %s",
                       q3_cpu_name(level), q3_cpu_name(q3_cpu_detected()));
    atomic_store(&limit, level);
    return true;
}
