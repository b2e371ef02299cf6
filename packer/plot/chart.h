// SPDX-License-Identifier: Apache-2.0
//
// Line charts as SVG: several series over one x axis, with ticks at round numbers, light grid lines
// and a legend at the right, in the order of the series. Colours are told apart by colour-blind
// eyes (Okabe and Ito 2008); after eight series they come again with a dashed line.
#ifndef Q3_CHART_H
#define Q3_CHART_H

#include "svg.h"

typedef enum q3_scale {
    Q3_SCALE_LINEAR,
    Q3_SCALE_LOG2,  // ticks at powers of two
    Q3_SCALE_LOG10, // ticks at powers of ten, and between them where these are few
} q3_scale;

typedef struct q3_series {
    const char *name;
    const double *x, *y;
    size_t count;
    // A point that is not finite in x or y is left out, and the line has a gap there.
    bool reference; // a level to compare with: dashed, grey, no marks
} q3_series;

typedef struct q3_chart {
    const char *title, *subtitle, *x_label, *y_label; // subtitle may be NULL
    q3_scale x_scale, y_scale;
    bool from_zero; // a linear y axis begins at 0
    const q3_series *series;
    unsigned series_count;
    double width, height; // 0 for 880 and 500
} q3_chart;

// Draws the chart. The text is the caller's, to free(). A series without any finite point is only
// in the legend; when no series has one, or a logarithmic axis has a number that is not positive,
// it is a failure (Q3_USAGE).
bool q3_chart_draw(const q3_chart *chart, char **text, size_t *size, q3_error *err);

#endif
