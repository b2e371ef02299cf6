// SPDX-License-Identifier: Apache-2.0
//
// Rules that choose a pool from shares: `share` is [layer][expert], each expert's part of its
// layer, as q3_profile_shares makes it (or sums of several of these: only the order within a layer
// and the layers' totals matter). Of experts with equal shares the lower number is better, of
// layers the lower one. The pools are made by these functions, and destroyed by the caller.
#ifndef Q3_POOL_CHOOSE_H
#define Q3_POOL_CHOOSE_H

#include "pool.h"

// The `size` best experts of each layer; size is from 1 to experts.
bool q3_pool_choose_size(const double *share, uint32_t layers, uint32_t experts, uint32_t size,
                         q3_pool *pool, q3_error *err);

// As few of the best experts of each layer as have at least `coverage` (0 to 1) of the layer's
// total together, but `least` at least.
bool q3_pool_choose_coverage(const double *share, uint32_t layers, uint32_t experts,
                             double coverage, uint32_t least, q3_pool *pool, q3_error *err);

// The best split of a budget over all layers: the `least` best experts of each layer, and then,
// over all layers together, those with the largest share a byte that still fit. The layers' shares
// count alike, so this maximises the sum of the layers' coverages, up to the last expert that does
// not fit. `bytes` is each expert's, [layer][expert]; 0 means that it cannot be had. A budget too
// small for the least is Q3_USAGE, a layer that cannot have it Q3_INCOMPLETE.
bool q3_pool_choose_bytes(const double *share, const uint64_t *bytes, uint32_t layers,
                          uint32_t experts, uint64_t budget, uint32_t least, q3_pool *pool,
                          q3_error *err);

// The part of a layer's total that the pool's experts have, 0 to 1.
double q3_pool_coverage(const q3_pool *pool, const double *share, uint32_t layer);

#endif
