// SPDX-License-Identifier: Apache-2.0
#include "bf12_avx512.h"
#include "codec/x86/bitplane_avx512.h"
#include "vector_avx512.h"

#define Q3_KERNELS_NAME q3_kernels_avx512
#define Q3_KERNELS_LEVEL "avx512"
#include "kernels_x86.h"
