// SPDX-License-Identifier: Apache-2.0
#include "bf12_avx2.h"
#include "codec/x86/bitplane_avx2.h"
#include "vector_avx2.h"

#define Q3_KERNELS_NAME q3_kernels_avx2
#define Q3_KERNELS_LEVEL "avx2"
#include "kernels_x86.h"
