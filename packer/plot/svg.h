// SPDX-License-Identifier: Apache-2.0
//
// A small writer of SVG 1.1 pictures. Coordinates are pixels from the top left corner. The same
// calls give the same bytes on every machine: numbers are written with at most two decimals and a
// point, whatever the locale. The background is white, so that a picture can be read on any page;
// text is in the reader's own sans-serif font.
#ifndef Q3_SVG_H
#define Q3_SVG_H

#include "base/file.h"

typedef struct q3_svg {
    q3_memory memory;
} q3_svg;

typedef enum q3_anchor { Q3_ANCHOR_START, Q3_ANCHOR_MIDDLE, Q3_ANCHOR_END } q3_anchor;

// How a line is drawn. Colours are "#rrggbb"; dash is NULL for a solid line, else "4 3".
typedef struct q3_stroke {
    const char *color;
    double width;
    const char *dash;
} q3_stroke;

// Starts a picture; `title` is read to those who cannot see it. Running out of memory is remembered
// and reported at the end.
bool q3_svg_begin(q3_svg *svg, double width, double height, const char *title, q3_error *err);
// Ends it. The text is the caller's, to free(), with a NUL behind it that *size does not count.
bool q3_svg_end(q3_svg *svg, char **text, size_t *size, q3_error *err);
// Gives up.
void q3_svg_abandon(q3_svg *svg);

// Text may hold any bytes: what XML keeps for itself is escaped, what it does not allow becomes
// U+FFFD. y is the base line. `bold` and size are the font's.
typedef struct q3_font {
    double size;
    bool bold;
    const char *color;
} q3_font;
void q3_svg_text(q3_svg *svg, double x, double y, q3_anchor anchor, const q3_font *font,
                 const char *text);
// The same, running upwards.
void q3_svg_text_upwards(q3_svg *svg, double x, double y, q3_anchor anchor, const q3_font *font,
                         const char *text);

void q3_svg_rect(q3_svg *svg, double x, double y, double width, double height, const char *fill);
void q3_svg_frame(q3_svg *svg, double x, double y, double width, double height,
                  const q3_stroke *stroke);
void q3_svg_circle(q3_svg *svg, double x, double y, double radius, const char *fill);
void q3_svg_line(q3_svg *svg, double x1, double y1, double x2, double y2, const q3_stroke *stroke);
// points: x and y by turns.
void q3_svg_polyline(q3_svg *svg, const double *points, size_t count, const q3_stroke *stroke);

// Many rectangles of one colour, or many lines of one stroke, as one element: begin, add, end.
// Sharp edges: neighbours touch without a seam.
void q3_svg_fill_begin(q3_svg *svg, const char *fill);
void q3_svg_stroke_begin(q3_svg *svg, const q3_stroke *stroke);
void q3_svg_path_rect(q3_svg *svg, double x, double y, double width, double height);
void q3_svg_path_line(q3_svg *svg, double x1, double y1, double x2, double y2);
void q3_svg_path_end(q3_svg *svg);

// The step between ticks of an axis over [low, high] (low < high) that gives about `count` of them:
// 1, 2 or 5 times a power of ten.
double q3_svg_tick_step(double low, double high, unsigned count);
// A number for a tick or a legend, with at most `digits` significant digits and no needless zeros:
// "0.25", "1000000", "2e-9".
enum { Q3_SVG_NUMBER_MAX = 32 };
const char *q3_svg_number(double value, int digits, char out[Q3_SVG_NUMBER_MAX]);

#endif
