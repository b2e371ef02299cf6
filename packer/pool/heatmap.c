// SPDX-License-Identifier: Apache-2.0
#include "heatmap.h"

#include "plot/svg.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

// One hue, its lightness falling evenly from 0.975 to 0.26 in OKLab (Ottosson 2020, "A perceptual
// color space for image processing"), so that equal steps look equal.
enum { LEVELS = 20 };
static const char *const levels[LEVELS] = {"#f3f7fc", "#ddecfd", "#c7e1fe", "#b1d5fe", "#9ccaff",
                                           "#87bdfe", "#75b1f9", "#67a5f1", "#5a98e7", "#508cdb",
                                           "#4680cf", "#3c75c2", "#3569b4", "#2f5ea4", "#2b5493",
                                           "#274981", "#24406e", "#21365b", "#1f2d47", "#1d2432"};

static const q3_font title_font = {16, true, "#1a1a1a"}, subtitle_font = {12, false, "#5a5a5a"},
                     label_font = {13, false, "#333333"}, tick_font = {11, false, "#555555"};
static const q3_stroke outline_stroke = {"#e8590c", 1.2, NULL}, edge_stroke = {"#8a8f98", 1, NULL};

enum { LEFT = 64, RIGHT = 28, BAR_WIDTH = 260, BAR_HEIGHT = 12, LABEL_ROOM = 36 };

typedef struct drawing {
    const q3_heatmap *map;
    q3_svg svg;
    double top, cell_width, cell_height, width, height; // of the cells
    double largest;                                     // share
    uint32_t *order;                                    // [layer][place]: which expert stands there
} drawing;

// A row's place and its share, to sort by.
typedef struct placed {
    double share;
    uint32_t expert;
} placed;

static int compare(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    if (x->share != y->share)
        return x->share > y->share ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static bool make_order(drawing *d, q3_error *err)
{
    const q3_heatmap *map = d->map;
    const uint32_t experts = map->experts;
    d->order = q3_alloc((size_t)map->layers * experts, sizeof *d->order, err);
    placed *row = d->order ? q3_alloc(experts, sizeof *row, err) : NULL;
    for (uint32_t layer = 0; row && layer < map->layers; layer++) {
        for (uint32_t i = 0; i < experts; i++) {
            row[i] = (placed){map->share[(size_t)layer * experts + i], i};
            d->largest = fmax(d->largest, row[i].share);
        }
        if (map->sort)
            qsort(row, experts, sizeof *row, compare);
        for (uint32_t i = 0; i < experts; i++)
            d->order[(size_t)layer * experts + i] = row[i].expert;
    }
    free(row);
    return row != NULL;
}

// A few experts have much and most have little: the root keeps these apart.
static double darkness(const drawing *d, double share)
{
    return d->largest > 0 ? sqrt(share / d->largest) : 0;
}

static unsigned level_at(const drawing *d, uint32_t layer, uint32_t at)
{
    const size_t row = (size_t)layer * d->map->experts;
    const double dark = darkness(d, d->map->share[row + d->order[row + at]]);
    return (unsigned)fmin(LEVELS - 1, floor(dark * LEVELS));
}

// Cells of one colour at a time, neighbours in a row as one.
static void draw_cells(drawing *d)
{
    const q3_heatmap *map = d->map;
    q3_svg_rect(&d->svg, LEFT, d->top, d->width, d->height, levels[0]);
    bool used[LEVELS] = {false};
    for (uint32_t layer = 0; layer < map->layers; layer++)
        for (uint32_t i = 0; i < map->experts; i++)
            used[level_at(d, layer, i)] = true;
    for (unsigned level = 1; level < LEVELS; level++) {
        if (!used[level])
            continue;
        q3_svg_fill_begin(&d->svg, levels[level]);
        for (uint32_t layer = 0; layer < map->layers; layer++)
            for (uint32_t i = 0; i < map->experts;) {
                uint32_t next = i + 1;
                if (level_at(d, layer, i) != level) {
                    i = next;
                    continue;
                }
                while (next < map->experts && level_at(d, layer, next) == level)
                    next++;
                q3_svg_path_rect(&d->svg, LEFT + i * d->cell_width, d->top + layer * d->cell_height,
                                 (next - i) * d->cell_width, d->cell_height);
                i = next;
            }
        q3_svg_path_end(&d->svg);
    }
    q3_svg_frame(&d->svg, LEFT - 0.5, d->top - 0.5, d->width + 1, d->height + 1, &edge_stroke);
}

// Is the cell at a place a member? Places outside are not.
static bool member_at(const drawing *d, int64_t layer, int64_t at)
{
    const q3_heatmap *map = d->map;
    if (layer < 0 || at < 0 || layer >= map->layers || at >= map->experts)
        return false;
    const uint32_t row = (uint32_t)layer,
                   expert = d->order[row * (size_t)map->experts + (size_t)at];
    return q3_pool_has(map->pool, row, expert);
}

// The borders between members and others, each run of them as one line.
static void draw_outlines(drawing *d)
{
    const int64_t layers = d->map->layers, experts = d->map->experts;
    q3_svg_stroke_begin(&d->svg, &outline_stroke);
    for (int64_t layer = 0; layer <= layers; layer++)
        for (int64_t i = 0; i < experts; i++) {
            const int64_t from = i;
            while (i < experts && member_at(d, layer - 1, i) != member_at(d, layer, i))
                i++;
            const double y = d->top + (double)layer * d->cell_height;
            if (i > from)
                q3_svg_path_line(&d->svg, LEFT + (double)from * d->cell_width, y,
                                 LEFT + (double)i * d->cell_width, y);
        }
    for (int64_t i = 0; i <= experts; i++)
        for (int64_t layer = 0; layer < layers; layer++) {
            const int64_t from = layer;
            while (layer < layers && member_at(d, layer, i - 1) != member_at(d, layer, i))
                layer++;
            const double x = LEFT + (double)i * d->cell_width;
            if (layer > from)
                q3_svg_path_line(&d->svg, x, d->top + (double)from * d->cell_height, x,
                                 d->top + (double)layer * d->cell_height);
        }
    q3_svg_path_end(&d->svg);
}

// How many apart labels stand so that none is nearer than `least` pixels to the next: a power of
// two.
static uint32_t label_step(double cell, double least)
{
    uint32_t step = 1;
    while (step * cell < least)
        step *= 2;
    return step;
}

static void draw_labels(drawing *d)
{
    const q3_heatmap *map = d->map;
    char text[16];
    const uint32_t layer_step = label_step(d->cell_height, map->layers > 16 ? 80 : 12);
    for (uint32_t layer = 0; layer < map->layers; layer += layer_step) {
        const double y = d->top + (layer + 0.5) * d->cell_height;
        snprintf(text, sizeof text, "%" PRIu32, layer);
        q3_svg_text(&d->svg, LEFT - 8, y + 4, Q3_ANCHOR_END, &tick_font, text);
        q3_svg_line(&d->svg, LEFT - 5, y, LEFT - 1, y, &edge_stroke);
    }
    const uint32_t expert_step = label_step(d->cell_width, map->experts > 32 ? 96 : 24);
    const double bottom = d->top + d->height;
    // Numbers 0, 16, 32, …; ranks 1, 16, 32, …
    const bool ranks = map->sort && expert_step > 1;
    for (uint32_t expert = 0; expert < map->experts;
         expert += ranks && expert == 0 ? expert_step - 1 : expert_step) {
        const double x = LEFT + (expert + 0.5) * d->cell_width;
        snprintf(text, sizeof text, "%" PRIu32, map->sort ? expert + 1 : expert);
        q3_svg_text(&d->svg, x, bottom + 18, Q3_ANCHOR_MIDDLE, &tick_font, text);
        q3_svg_line(&d->svg, x, bottom + 1, x, bottom + 5, &edge_stroke);
    }
    q3_svg_text_upwards(&d->svg, 22, d->top + d->height / 2, Q3_ANCHOR_MIDDLE, &label_font,
                        "layer");
    q3_svg_text(&d->svg, LEFT + d->width / 2, bottom + 38, Q3_ANCHOR_MIDDLE, &label_font,
                map->sort ? "rank of the expert in its layer" : "expert");
}

static void draw_legend(drawing *d)
{
    char number[Q3_SVG_NUMBER_MAX], text[Q3_SVG_NUMBER_MAX + 4];
    const double top = d->top + d->height + 62, each = (double)BAR_WIDTH / LEVELS;
    for (unsigned i = 0; i < LEVELS; i++)
        q3_svg_rect(&d->svg, LEFT + i * each, top, each, BAR_HEIGHT, levels[i]);
    q3_svg_frame(&d->svg, LEFT - 0.5, top - 0.5, BAR_WIDTH + 1, BAR_HEIGHT + 1, &edge_stroke);
    const double step = d->largest > 0 ? q3_svg_tick_step(0, d->largest, 4) : 1;
    double labelled = 0;
    for (unsigned i = 0; i * step <= d->largest * (1 + 1e-9); i++) {
        const double x = LEFT + darkness(d, i * step) * BAR_WIDTH;
        if (x - labelled < LABEL_ROOM)
            continue;
        labelled = x;
        snprintf(text, sizeof text, "%s %%", q3_svg_number(100 * i * step, 3, number));
        q3_svg_line(&d->svg, x, top + BAR_HEIGHT + 1, x, top + BAR_HEIGHT + 5, &edge_stroke);
        q3_svg_text(&d->svg, x, top + BAR_HEIGHT + 18, Q3_ANCHOR_MIDDLE, &tick_font, text);
    }
    q3_svg_text(&d->svg, LEFT + BAR_WIDTH + 24, top + 10, Q3_ANCHOR_START, &tick_font,
                d->map->what);
    if (!d->map->pool)
        return;
    q3_svg_frame(&d->svg, LEFT + BAR_WIDTH + 24, top + 20, 12, 10, &outline_stroke);
    q3_svg_text(&d->svg, LEFT + BAR_WIDTH + 44, top + 29, Q3_ANCHOR_START, &tick_font,
                "in the pool");
}

bool q3_heatmap_draw(const q3_heatmap *map, char **text, size_t *size, q3_error *err)
{
    *text = NULL;
    drawing d = {.map = map, .top = map->subtitle ? 66 : 46};
    // Whole pixels, so that all cells are alike: about 900 wide and at most 530 high.
    d.cell_width = fmin(24, fmax(1, floor(900.0 / map->experts)));
    d.cell_height = fmin(24, fmax(2, floor(530.0 / map->layers)));
    d.width = d.cell_width * map->experts;
    d.height = d.cell_height * map->layers;
    bool ok = make_order(&d, err);
    const double width = LEFT + fmax(d.width, 560) + RIGHT;
    ok = ok && q3_svg_begin(&d.svg, width, d.top + d.height + 104, map->title, err);
    if (ok) {
        q3_svg_text(&d.svg, 20, 28, Q3_ANCHOR_START, &title_font, map->title);
        if (map->subtitle)
            q3_svg_text(&d.svg, 20, 48, Q3_ANCHOR_START, &subtitle_font, map->subtitle);
        draw_cells(&d);
        if (map->pool)
            draw_outlines(&d);
        draw_labels(&d);
        draw_legend(&d);
        ok = q3_svg_end(&d.svg, text, size, err);
    }
    free(d.order);
    return ok;
}
