// SPDX-License-Identifier: Apache-2.0
//
// A heat map of a model's experts: a row a layer, a cell an expert, the darker the larger its share
// of the layer. Drawn to be read at 48 layers of 128 experts.
#ifndef Q3_POOL_HEATMAP_H
#define Q3_POOL_HEATMAP_H

#include "pool.h"

typedef struct q3_heatmap {
    const char *title, *subtitle; // subtitle may be NULL
    const char *what;             // that the colour shows: "share of its layer's score"
    uint32_t layers, experts;
    const double *share; // [layer][expert], each row sums to 1
    const q3_pool *pool; // its members are outlined; NULL for none
    bool sort;           // each row by share, the largest first, in place of the experts' numbers
} q3_heatmap;

// Draws it as SVG. The text is the caller's, to free().
bool q3_heatmap_draw(const q3_heatmap *map, char **text, size_t *size, q3_error *err);

#endif
