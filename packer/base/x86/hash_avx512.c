// SPDX-License-Identifier: Apache-2.0
#define Q3_HASH_FILL q3_hash_kernels_fill_avx512
#include "base/hash_kernels.h"
