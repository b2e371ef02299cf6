// SPDX-License-Identifier: Apache-2.0
//
// draw-chart: a small text table in, a line chart as SVG out, drawn by plot/chart.h. The same table
// gives the same bytes. The plots of runtime/PERFORMANCE.md are made with it, from the tables in
// runtime/plots.
//
// A table has a line for each thing that it says; what a line may say is in the help text below.
// The table is at most 1 MiB and 64 series, and in UTF-8.
#include "base/file.h"
#include "base/options.h"
#include "base/text.h"
#include "plot/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TABLE_MAX = 1 << 20, SERIES_MAX = 64 };

static const double number_max = 1e300;

static const char help[] =
    "A table is a text file. Each line has a word and what the word says:\n"
    "\n"
    "  title TEXT         subtitle TEXT\n"
    "  x-label TEXT       x-scale linear|log2|log10\n"
    "  y-label TEXT       y-scale linear|zero|log2|log10   (zero: linear, from 0)\n"
    "  series NAME        begins a line of the chart\n"
    "  reference NAME     begins a level to compare with: grey, dashed\n"
    "  X Y                a point of it, Y may be - for a gap\n"
    "\n"
    "Empty lines, and those that begin with #, say nothing. Scales are linear if\n"
    "nothing is said; title, x-label, y-label and a series must be there.\n";

// One line of the chart; x and y are this one's own.
typedef struct line {
    const char *name;
    bool reference;
    double *x, *y;
    size_t count, x_capacity, y_capacity;
} line;

typedef struct table {
    const char *path;
    unsigned at; // the number of the line in hand, from 1
    char *text;  // names and labels point into it
    const char *title, *subtitle, *x_label, *y_label, *x_scale, *y_scale;
    line lines[SERIES_MAX];
    unsigned line_count;
} table;

static bool refuse(const table *t, q3_error *err, const char *what, const char *found)
{
    return q3_fail(err, Q3_MALFORMED, "%s:%u: %s\"%s\"", t->path, t->at, what, found);
}

static bool begin_line(table *t, const char *name, bool reference, q3_error *err)
{
    if (t->line_count == SERIES_MAX)
        return q3_fail(err, Q3_MALFORMED, "%s:%u: more than %d series", t->path, t->at, SERIES_MAX);
    t->lines[t->line_count++] = (line){.name = name, .reference = reference};
    return true;
}

static bool add_point(table *t, const char *first, const char *second, q3_error *err)
{
    double x, y = NAN;
    if (!q3_parse_double(first, -number_max, number_max, &x))
        return refuse(t, err, "expected a word of the table or a number, found ", first);
    if (strcmp(second, "-") != 0 && !q3_parse_double(second, -number_max, number_max, &y))
        return refuse(t, err, "expected a number or -, found ", second);
    if (!t->line_count)
        return q3_fail(err, Q3_MALFORMED, "%s:%u: a point before any series", t->path, t->at);
    line *l = &t->lines[t->line_count - 1];
    if (!q3_grow(&l->x, &l->x_capacity, l->count + 1, sizeof *l->x, err) ||
        !q3_grow(&l->y, &l->y_capacity, l->count + 1, sizeof *l->y, err))
        return false;
    l->x[l->count] = x;
    l->y[l->count++] = y;
    return true;
}

// `text` is a line without its end and without blanks around it.
static bool read_line(table *t, char *text, q3_error *err)
{
    if (!*text || *text == '#')
        return true;
    char *rest = text + strcspn(text, " \t");
    if (*rest)
        *rest++ = 0;
    rest += strspn(rest, " \t");
    if (!*rest)
        return refuse(t, err, "expected more behind ", text);
    const struct {
        const char *word, **value;
    } words[] = {
        {"title", &t->title},     {"subtitle", &t->subtitle}, {"x-label", &t->x_label},
        {"y-label", &t->y_label}, {"x-scale", &t->x_scale},   {"y-scale", &t->y_scale},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(text, words[i].word) != 0)
            continue;
        if (*words[i].value)
            return refuse(t, err, "a second ", text);
        *words[i].value = rest;
        return true;
    }
    if (strcmp(text, "series") == 0 || strcmp(text, "reference") == 0)
        return begin_line(t, rest, *text == 'r', err);
    return add_point(t, text, rest, err);
}

static bool read_table(table *t, q3_error *err)
{
    size_t size;
    if (!q3_file_load(t->path, TABLE_MAX, &t->text, &size, err))
        return false;
    if (strlen(t->text) != size)
        return q3_fail(err, Q3_MALFORMED, "%s: holds a NUL byte", t->path);
    for (char *text = t->text; text;) {
        char *next = strchr(text, '\n');
        if (next)
            *next++ = 0;
        t->at++;
        text += strspn(text, " \t");
        size_t length = strlen(text);
        while (length && strchr(" \t\r", text[length - 1]))
            text[--length] = 0;
        if (!read_line(t, text, err))
            return false;
        text = next;
    }
    const char *missing = !t->title        ? "title"
                          : !t->x_label    ? "x-label"
                          : !t->y_label    ? "y-label"
                          : !t->line_count ? "series"
                                           : NULL;
    return !missing || q3_fail(err, Q3_MALFORMED, "%s: no %s", t->path, missing);
}

static bool parse_scale(const table *t, const char *axis, const char *name, bool *from_zero,
                        q3_scale *scale, q3_error *err)
{
    *scale = Q3_SCALE_LINEAR;
    if (!name || strcmp(name, "linear") == 0)
        return true;
    if (from_zero && strcmp(name, "zero") == 0)
        return *from_zero = true;
    if (strcmp(name, "log2") == 0)
        *scale = Q3_SCALE_LOG2;
    else if (strcmp(name, "log10") == 0)
        *scale = Q3_SCALE_LOG10;
    else
        return q3_fail(err, Q3_MALFORMED, "%s: unknown %s-scale \"%s\"", t->path, axis, name);
    return true;
}

static bool draw(const table *t, const char *path, q3_error *err)
{
    q3_series series[SERIES_MAX];
    for (unsigned i = 0; i < t->line_count; i++) {
        const line *l = &t->lines[i];
        series[i] = (q3_series){
            .name = l->name, .x = l->x, .y = l->y, .count = l->count, .reference = l->reference};
    }
    q3_chart chart = {
        .title = t->title,
        .subtitle = t->subtitle,
        .x_label = t->x_label,
        .y_label = t->y_label,
        .series = series,
        .series_count = t->line_count,
    };
    char *text;
    size_t size;
    if (!parse_scale(t, "x", t->x_scale, NULL, &chart.x_scale, err) ||
        !parse_scale(t, "y", t->y_scale, &chart.from_zero, &chart.y_scale, err) ||
        !q3_chart_draw(&chart, &text, &size, err))
        return false;
    const bool ok = q3_file_publish(path, text, size, err);
    free(text);
    return ok;
}

static int run(const char *const *arguments)
{
    table t = {.path = arguments[0]};
    q3_error err;
    const bool ok = read_table(&t, &err) && draw(&t, arguments[1], &err);
    for (unsigned i = 0; i < t.line_count; i++) {
        free(t.lines[i].x);
        free(t.lines[i].y);
    }
    free(t.text);
    return ok ? Q3_DONE : q3_report(&err);
}

int main(int argc, char **argv)
{
    static const q3_command command = {
        .arguments = "TABLE SVG", .summary = "draw a table of numbers as lines", .run = run};
    static const q3_program program = {
        .name = "draw-chart", .commands = &command, .command_count = 1, .more = help};
    return q3_program_main(&program, argc, argv);
}
