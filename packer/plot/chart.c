// SPDX-License-Identifier: Apache-2.0
#include "chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TICKS_MAX = 24, TICKS_X = 9, TICKS_Y = 7, COLORS = 8 };

// Okabe and Ito's colours, the yellow and the sky blue darkened to be seen as thin lines on white.
static const char *const colors[COLORS] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                           "#e69f00", "#3d94c8", "#7a5195", "#222222"};

static const q3_font title_font = {16, true, "#1a1a1a"}, subtitle_font = {12, false, "#5a5a5a"},
                     label_font = {13, false, "#333333"}, tick_font = {12, false, "#555555"};
static const q3_stroke grid_stroke = {"#e4e6ea", 1, NULL}, axis_stroke = {"#8a8f98", 1, NULL};

// One axis: from numbers to pixels.
typedef struct axis {
    q3_scale scale;
    double low, high;       // of the numbers, transformed: logarithms on a logarithmic axis
    double begin, end;      // in pixels
    double tick[TICKS_MAX]; // transformed
    unsigned ticks;
} axis;

static double transform(q3_scale scale, double value)
{
    return scale == Q3_SCALE_LOG2 ? log2(value) : scale == Q3_SCALE_LOG10 ? log10(value) : value;
}

static double number_at(q3_scale scale, double at)
{
    return scale == Q3_SCALE_LOG2 ? exp2(at) : scale == Q3_SCALE_LOG10 ? pow(10, at) : at;
}

static double place(const axis *a, double value)
{
    return a->begin +
           (transform(a->scale, value) - a->low) / (a->high - a->low) * (a->end - a->begin);
}

// The range of all series; false when there is no point at all.
static bool find_range(const q3_chart *chart, bool of_x, axis *a, q3_error *err)
{
    a->low = INFINITY;
    a->high = -INFINITY;
    for (unsigned s = 0; s < chart->series_count; s++) {
        const q3_series *series = &chart->series[s];
        for (size_t i = 0; i < series->count; i++) {
            if (!isfinite(series->x[i]) || !isfinite(series->y[i]))
                continue;
            const double value = of_x ? series->x[i] : series->y[i];
            if (a->scale != Q3_SCALE_LINEAR && !(value > 0))
                return q3_fail(err, Q3_USAGE, "%s: %s: %g has no place on a logarithmic axis",
                               chart->title, series->name, value);
            a->low = fmin(a->low, transform(a->scale, value));
            a->high = fmax(a->high, transform(a->scale, value));
        }
    }
    if (!(a->low <= a->high))
        return q3_fail(err, Q3_USAGE, "%s: nothing to draw", chart->title);
    return true;
}

static void add_tick(axis *a, double at)
{
    if (a->ticks < TICKS_MAX)
        a->tick[a->ticks++] = at;
}

// Ticks at multiples of a round step; the ends of the axis move out to ticks where `widen` says so.
static void tick_linear(axis *a, unsigned count, bool widen)
{
    const double step = q3_svg_tick_step(a->low, a->high, count);
    double first = ceil(a->low / step - 1e-9), last = floor(a->high / step + 1e-9);
    if (widen) {
        first = floor(a->low / step + 1e-9);
        last = ceil(a->high / step - 1e-9);
        a->low = first * step;
        a->high = last * step;
    }
    for (double i = first; i <= last && a->ticks < TICKS_MAX; i++)
        add_tick(a, i * step);
}

// Ticks at powers of two, or of every so many; with few of them also half-way, at 1.5 times.
static void tick_log2(axis *a)
{
    const double octaves = floor(a->high + 1e-9) - ceil(a->low - 1e-9) + 1;
    const double every = fmax(1, ceil(octaves / 12));
    for (double i = floor(a->low); i <= a->high + 1e-9; i += every) {
        if (i >= a->low - 1e-9)
            add_tick(a, i);
        const double between = i + log2(1.5);
        if (octaves <= 6 && between >= a->low - 1e-9 && between <= a->high + 1e-9)
            add_tick(a, between);
    }
}

static void tick_log10(axis *a)
{
    const double decades = a->high - a->low;
    const double every = fmax(1, ceil(decades / 8));
    static const double few[] = {1, 2, 5}, many[] = {1, 1.5, 2, 3, 4, 5, 6, 8};
    const double *const parts = decades > 0.8 ? few : many;
    const unsigned count = decades > 3 ? 1 : decades > 0.8 ? 3 : 8;
    for (double i = floor(a->low); i <= a->high + 1e-9; i += every)
        for (unsigned k = 0; k < count; k++) {
            const double at = i + log10(parts[k]);
            if (at >= a->low - 1e-9 && at <= a->high + 1e-9)
                add_tick(a, at);
        }
}

static bool make_axis(const q3_chart *chart, bool of_x, axis *a, q3_error *err)
{
    a->scale = of_x ? chart->x_scale : chart->y_scale;
    if (!find_range(chart, of_x, a, err))
        return false;
    if (!of_x && a->scale == Q3_SCALE_LINEAR && chart->from_zero && a->low > 0)
        a->low = 0;
    if (a->high - a->low < 1e-12 * fmax(1, fabs(a->high))) {
        const double margin = a->scale != Q3_SCALE_LINEAR ? 1
                              : a->high != 0              ? fabs(a->high) / 2
                                                          : 1;
        a->low -= margin;
        a->high += margin;
    }
    if (a->scale == Q3_SCALE_LINEAR) {
        tick_linear(a, of_x ? TICKS_X : TICKS_Y, !of_x);
        return true;
    }
    // Room beyond the outermost marks.
    const double margin = (a->high - a->low) * (of_x ? 0.02 : 0.05);
    a->low -= margin;
    a->high += margin;
    if (a->scale == Q3_SCALE_LOG2)
        tick_log2(a);
    else
        tick_log10(a);
    return true;
}

static void draw_axes(q3_svg *svg, const q3_chart *chart, const axis *x, const axis *y)
{
    char text[Q3_SVG_NUMBER_MAX];
    for (unsigned i = 0; i < y->ticks; i++) {
        const double number = number_at(y->scale, y->tick[i]), at = place(y, number);
        q3_svg_line(svg, x->begin, at, x->end, at, &grid_stroke);
        q3_svg_text(svg, x->begin - 8, at + 4, Q3_ANCHOR_END, &tick_font,
                    q3_svg_number(number, 4, text));
    }
    for (unsigned i = 0; i < x->ticks; i++) {
        const double number = number_at(x->scale, x->tick[i]), at = place(x, number);
        q3_svg_line(svg, at, y->begin, at, y->end, &grid_stroke);
        q3_svg_text(svg, at, y->begin + 18, Q3_ANCHOR_MIDDLE, &tick_font,
                    q3_svg_number(number, 4, text));
    }
    q3_svg_line(svg, x->begin, y->begin, x->end, y->begin, &axis_stroke);
    q3_svg_line(svg, x->begin, y->begin, x->begin, y->end, &axis_stroke);
    q3_svg_text(svg, (x->begin + x->end) / 2, y->begin + 40, Q3_ANCHOR_MIDDLE, &label_font,
                chart->x_label);
    q3_svg_text_upwards(svg, 20, (y->begin + y->end) / 2, Q3_ANCHOR_MIDDLE, &label_font,
                        chart->y_label);
}

static q3_stroke stroke_of(const q3_series *series, unsigned number)
{
    if (series->reference)
        return (q3_stroke){"#777777", 1.5, "6 4"};
    return (q3_stroke){colors[number % COLORS], 2, number / COLORS % 2 ? "5 3" : NULL};
}

// A series as lines between its gaps, and a mark at each point. points has room for all of them.
static void draw_series(q3_svg *svg, const q3_series *series, const q3_stroke *stroke,
                        const axis *x, const axis *y, double *points)
{
    size_t count = 0;
    for (size_t i = 0; i <= series->count; i++) {
        if (i < series->count && isfinite(series->x[i]) && isfinite(series->y[i])) {
            points[2 * count] = place(x, series->x[i]);
            points[2 * count + 1] = place(y, series->y[i]);
            count++;
            continue;
        }
        if (count > 1)
            q3_svg_polyline(svg, points, count, stroke);
        for (size_t k = 0; k < count && !series->reference; k++)
            q3_svg_circle(svg, points[2 * k], points[2 * k + 1], 3.5, stroke->color);
        count = 0;
    }
}

static void draw_legend(q3_svg *svg, const q3_chart *chart, double left, double top)
{
    unsigned number = 0;
    for (unsigned s = 0; s < chart->series_count; s++) {
        const q3_series *series = &chart->series[s];
        const q3_stroke stroke = stroke_of(series, number);
        const double y = top + 8 + 22 * s;
        q3_svg_line(svg, left, y, left + 24, y, &stroke);
        if (!series->reference)
            q3_svg_circle(svg, left + 12, y, 3.5, stroke.color);
        q3_svg_text(svg, left + 32, y + 4, Q3_ANCHOR_START, &tick_font, series->name);
        number += !series->reference;
    }
}

// About how wide a text of the legend is: no font can be measured here.
static double text_width(const char *text)
{
    size_t characters = 0;
    for (; *text; text++)
        characters += (*text & 0xc0) != 0x80;
    return 7 * (double)characters;
}

bool q3_chart_draw(const q3_chart *chart, char **text, size_t *size, q3_error *err)
{
    *text = NULL;
    axis x = {0}, y = {0};
    if (!make_axis(chart, true, &x, err) || !make_axis(chart, false, &y, err))
        return false;
    const double width = chart->width > 0 ? chart->width : 880;
    const double height = chart->height > 0 ? chart->height : 500;
    size_t longest = 0;
    double legend = 0;
    for (unsigned s = 0; s < chart->series_count; s++) {
        legend = fmax(legend, text_width(chart->series[s].name));
        longest = chart->series[s].count > longest ? chart->series[s].count : longest;
    }
    legend = fmin(legend + 56, width / 2);
    x.begin = 76;
    x.end = width - legend - 8;
    y.begin = height - 56;
    y.end = chart->subtitle ? 68 : 48;
    double *points = q3_alloc(longest, 2 * sizeof *points, err);
    q3_svg svg;
    if (!points || !q3_svg_begin(&svg, width, height, chart->title, err)) {
        free(points);
        return false;
    }
    q3_svg_text(&svg, 20, 28, Q3_ANCHOR_START, &title_font, chart->title);
    if (chart->subtitle)
        q3_svg_text(&svg, 20, 48, Q3_ANCHOR_START, &subtitle_font, chart->subtitle);
    draw_axes(&svg, chart, &x, &y);
    // References first, so that the series lie over them.
    for (unsigned pass = 0; pass < 2; pass++)
        for (unsigned s = 0, number = 0; s < chart->series_count; s++) {
            const q3_series *series = &chart->series[s];
            const q3_stroke stroke = stroke_of(series, number);
            number += !series->reference;
            if (series->reference == (pass == 0))
                draw_series(&svg, series, &stroke, &x, &y, points);
        }
    draw_legend(&svg, chart, x.end + 16, y.end);
    free(points);
    return q3_svg_end(&svg, text, size, err);
}
