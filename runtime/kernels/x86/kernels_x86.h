// SPDX-License-Identifier: Apache-2.0
//
// All kernels of a level, in terms of its vectors: included by the source of each, behind its
// vector_*.h (what a vector is) and bitplane_*.h (how a bit-plane group becomes vectors of bf16).
// There is one text for all widths, so what is right for one is right for the others. Everything is
// static: the levels are compiled with different flags and must share no code.
//
// Q3_KERNELS_NAME: the table's name.
#ifndef Q3_KERNELS_X86_KERNELS_X86_H
#define Q3_KERNELS_X86_KERNELS_X86_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

// The loops over a tile's rows and vectors have to vanish, so that its sums stay in registers.
#if defined __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

// Few copies of the body, for loops that would end too often.
#define PRAGMA(text) _Pragma(#text)
#if defined __clang__
#define UNROLL_BY(copies) PRAGMA(clang loop unroll_count(copies))
#else
#define UNROLL_BY(copies) PRAGMA(GCC unroll copies)
#endif

#include <limits.h>

#include "elements.h"
#include "products.h"

#include "attention.h"
#include "bf12.h"
#include "products_many.h"

static const q3_products products = {
    .name = Q3_KERNELS_LEVEL,
    .panel = 1,
    .group_bytes = SIZE_MAX,
    .panel_bytes = panel_bytes,
    .arrange = arrange,
    .multiply = multiply,
    .multiply_frame = multiply_frame,
    .fused_vectors = FUSED_VECTORS,
    .multiply_bf12 = multiply_bf12,
    .bf12_vectors = BF12_VECTORS,
};

static const q3_products many_products = {
    .name = Q3_KERNELS_LEVEL,
    .panel = 1,
    .group_bytes = SIZE_MAX,
    .panel_bytes = many_panel_bytes,
    .arrange = many_arrange,
    .multiply = many_multiply,
    .multiply_bf12 = many_multiply_bf12,
    .bf12_vectors = UINT_MAX,
};

const q3_kernels Q3_KERNELS_NAME = {
    .name = Q3_KERNELS_LEVEL,
    .few = &products,
    .many = &many_products,
    .many_tokens = MANY_TOKENS,
    .bf12 = &bf12_kernels,
    .rms_norm = rms_norm,
    .rotate = rotate,
    .softmax = softmax,
    .silu_multiply = silu_multiply,
    .attend = attend,
    .add_scaled = add_scaled,
    .widen = widen,
    .narrow = narrow,
};

#endif
