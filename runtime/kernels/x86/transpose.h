// SPDX-License-Identifier: Apache-2.0
//
// Rows to columns, for any width of vector: included behind vector_*.h.
#ifndef Q3_KERNELS_X86_TRANSPOSE_H
#define Q3_KERNELS_X86_TRANSPOSE_H

// Four numbers of 32 bits of each of WIDTH rows, `stride` bytes apart: to[j * to_stride] is number
// j of all of them.
static inline void transpose_four(const uint8_t *from, size_t stride, pairs *to, size_t to_stride)
{
    const size_t apart = 4 * stride; // a vector: a row and those that are 4, 8, ... further
    const pairs a = load_lanes(from, apart), b = load_lanes(from + stride, apart);
    const pairs c = load_lanes(from + 2 * stride, apart), d = load_lanes(from + 3 * stride, apart);
    const pairs ab_low = INTERLEAVE_LOW_32(a, b), cd_low = INTERLEAVE_LOW_32(c, d);
    to[0] = INTERLEAVE_LOW_64(ab_low, cd_low);
    to[to_stride] = INTERLEAVE_HIGH_64(ab_low, cd_low);
    const pairs ab_high = INTERLEAVE_HIGH_32(a, b), cd_high = INTERLEAVE_HIGH_32(c, d);
    to[2 * to_stride] = INTERLEAVE_LOW_64(ab_high, cd_high);
    to[3 * to_stride] = INTERLEAVE_HIGH_64(ab_high, cd_high);
}

#endif
