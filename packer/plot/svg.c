// SPDX-License-Identifier: Apache-2.0
#include "svg.h"

#include "base/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// A coordinate, in hundredths of a pixel, without the zeros that say nothing.
static void put_number(q3_svg *svg, double value)
{
    const long long number = isfinite(value) && fabs(value) < 1e12 ? llround(value * 100) : 0;
    const long long whole = llabs(number) / 100, part = llabs(number) % 100;
    fprintf(svg->memory.stream, "%s%lld", number < 0 ? "-" : "", whole);
    if (part % 10)
        fprintf(svg->memory.stream, ".%02lld", part);
    else if (part)
        fprintf(svg->memory.stream, ".%lld", part / 10);
}

static void put(q3_svg *svg, const char *text)
{
    fputs(text, svg->memory.stream);
}

static void put_attribute(q3_svg *svg, const char *name, double value)
{
    fprintf(svg->memory.stream, " %s=\"", name);
    put_number(svg, value);
    put(svg, "\"");
}

static void put_escaped(q3_svg *svg, const char *text)
{
    for (size_t size = strlen(text); size;) {
        const unsigned char c = (unsigned char)*text;
        const size_t length = q3_utf8_length((const uint8_t *)text, size);
        // U+FFFE and U+FFFF are no characters of XML.
        const bool outside =
            length == 0 || (c < 0x20 && c != '\t' && c != '\n') ||
            (length == 3 && memcmp(text, "\xef\xbf", 2) == 0 && (unsigned char)text[2] >= 0xbe);
        if (outside)
            put(svg, "\xef\xbf\xbd");
        else if (c == '&')
            put(svg, "&amp;");
        else if (c == '<')
            put(svg, "&lt;");
        else if (c == '>')
            put(svg, "&gt;");
        else if (c == '"')
            put(svg, "&quot;");
        else
            fwrite(text, 1, length, svg->memory.stream);
        text += length ? length : 1;
        size -= length ? length : 1;
    }
}

static void put_stroke(q3_svg *svg, const q3_stroke *stroke)
{
    fprintf(svg->memory.stream, " fill=\"none\" stroke=\"%s\"", stroke->color);
    put_attribute(svg, "stroke-width", stroke->width);
    if (stroke->dash)
        fprintf(svg->memory.stream, " stroke-dasharray=\"%s\"", stroke->dash);
}

bool q3_svg_begin(q3_svg *svg, double width, double height, const char *title, q3_error *err)
{
    *svg = (q3_svg){0};
    if (!q3_memory_open(&svg->memory, err))
        return false;
    put(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\"");
    put_attribute(svg, "width", width);
    put_attribute(svg, "height", height);
    put(svg, " viewBox=\"0 0 ");
    put_number(svg, width);
    put(svg, " ");
    put_number(svg, height);
    put(svg, "\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto "
             "Sans', 'DejaVu Sans', sans-serif\">\n<title>");
    put_escaped(svg, title);
    put(svg, "</title>\n");
    q3_svg_rect(svg, 0, 0, width, height, "#ffffff");
    return true;
}

bool q3_svg_end(q3_svg *svg, char **text, size_t *size, q3_error *err)
{
    *text = NULL;
    put(svg, "</svg>\n");
    fputc(0, svg->memory.stream);
    if (!q3_memory_close(&svg->memory, err))
        return false;
    *text = svg->memory.data;
    *size = svg->memory.size - 1;
    *svg = (q3_svg){0};
    return true;
}

void q3_svg_abandon(q3_svg *svg)
{
    q3_error ignored;
    if (svg->memory.stream && q3_memory_close(&svg->memory, &ignored))
        free(svg->memory.data);
    *svg = (q3_svg){0};
}

static void put_text(q3_svg *svg, double x, double y, bool upwards, q3_anchor anchor,
                     const q3_font *font, const char *text)
{
    static const char *const anchors[] = {NULL, "middle", "end"};
    put(svg, "<text");
    put_attribute(svg, "x", x);
    put_attribute(svg, "y", y);
    if (upwards) {
        put(svg, " transform=\"rotate(-90 ");
        put_number(svg, x);
        put(svg, " ");
        put_number(svg, y);
        put(svg, ")\"");
    }
    if (anchors[anchor])
        fprintf(svg->memory.stream, " text-anchor=\"%s\"", anchors[anchor]);
    put_attribute(svg, "font-size", font->size);
    if (font->bold)
        put(svg, " font-weight=\"600\"");
    fprintf(svg->memory.stream, " fill=\"%s\">", font->color);
    put_escaped(svg, text);
    put(svg, "</text>\n");
}

void q3_svg_text(q3_svg *svg, double x, double y, q3_anchor anchor, const q3_font *font,
                 const char *text)
{
    put_text(svg, x, y, false, anchor, font, text);
}

void q3_svg_text_upwards(q3_svg *svg, double x, double y, q3_anchor anchor, const q3_font *font,
                         const char *text)
{
    put_text(svg, x, y, true, anchor, font, text);
}

static void put_box(q3_svg *svg, double x, double y, double width, double height)
{
    put(svg, "<rect");
    put_attribute(svg, "x", x);
    put_attribute(svg, "y", y);
    put_attribute(svg, "width", width);
    put_attribute(svg, "height", height);
}

void q3_svg_rect(q3_svg *svg, double x, double y, double width, double height, const char *fill)
{
    put_box(svg, x, y, width, height);
    fprintf(svg->memory.stream, " fill=\"%s\"/>\n", fill);
}

void q3_svg_frame(q3_svg *svg, double x, double y, double width, double height,
                  const q3_stroke *stroke)
{
    put_box(svg, x, y, width, height);
    put_stroke(svg, stroke);
    put(svg, "/>\n");
}

void q3_svg_circle(q3_svg *svg, double x, double y, double radius, const char *fill)
{
    put(svg, "<circle");
    put_attribute(svg, "cx", x);
    put_attribute(svg, "cy", y);
    put_attribute(svg, "r", radius);
    fprintf(svg->memory.stream, " fill=\"%s\"/>\n", fill);
}

void q3_svg_line(q3_svg *svg, double x1, double y1, double x2, double y2, const q3_stroke *stroke)
{
    put(svg, "<line");
    put_attribute(svg, "x1", x1);
    put_attribute(svg, "y1", y1);
    put_attribute(svg, "x2", x2);
    put_attribute(svg, "y2", y2);
    put_stroke(svg, stroke);
    put(svg, "/>\n");
}

void q3_svg_polyline(q3_svg *svg, const double *points, size_t count, const q3_stroke *stroke)
{
    put(svg, "<polyline points=\"");
    for (size_t i = 0; i < count; i++) {
        put(svg, i ? " " : "");
        put_number(svg, points[2 * i]);
        put(svg, ",");
        put_number(svg, points[2 * i + 1]);
    }
    put(svg, "\"");
    put_stroke(svg, stroke);
    put(svg, " stroke-linejoin=\"round\" stroke-linecap=\"round\"/>\n");
}

void q3_svg_fill_begin(q3_svg *svg, const char *fill)
{
    fprintf(svg->memory.stream, "<path shape-rendering=\"crispEdges\" fill=\"%s\" d=\"", fill);
}

void q3_svg_stroke_begin(q3_svg *svg, const q3_stroke *stroke)
{
    put(svg, "<path");
    put_stroke(svg, stroke);
    put(svg, " stroke-linecap=\"square\" d=\"");
}

void q3_svg_path_rect(q3_svg *svg, double x, double y, double width, double height)
{
    put(svg, "M");
    put_number(svg, x);
    put(svg, " ");
    put_number(svg, y);
    put(svg, "h");
    put_number(svg, width);
    put(svg, "v");
    put_number(svg, height);
    put(svg, "h");
    put_number(svg, -width);
    put(svg, "z");
}

void q3_svg_path_line(q3_svg *svg, double x1, double y1, double x2, double y2)
{
    put(svg, "M");
    put_number(svg, x1);
    put(svg, " ");
    put_number(svg, y1);
    put(svg, "L");
    put_number(svg, x2);
    put(svg, " ");
    put_number(svg, y2);
}

void q3_svg_path_end(q3_svg *svg)
{
    put(svg, "\"/>\n");
}

double q3_svg_tick_step(double low, double high, unsigned count)
{
    const double rough = (high - low) / count;
    const double power = pow(10, floor(log10(rough)));
    const double step = rough / power;
    return power * (step <= 1.5 ? 1 : step <= 3.5 ? 2 : step <= 7.5 ? 5 : 10);
}

const char *q3_svg_number(double value, int digits, char out[Q3_SVG_NUMBER_MAX])
{
    char text[Q3_SVG_NUMBER_MAX];
    if (value == 0 || !isfinite(value)) {
        snprintf(out, Q3_SVG_NUMBER_MAX, "%s", value == 0 ? "0" : "-");
        return out;
    }
    // The digits and the exponent, so that the point is put by us and not by the locale.
    digits = digits < 1 ? 1 : digits > 15 ? 15 : digits;
    snprintf(text, sizeof text, "%.*e", digits - 1, fabs(value));
    char figures[20];
    int count = 0;
    const char *at = text;
    for (; *at && *at != 'e'; at++)
        if (*at >= '0' && *at <= '9')
            figures[count++] = *at;
    while (count > 1 && figures[count - 1] == '0')
        count--;
    const int exponent = atoi(at + 1);
    char *to = out;
    if (value < 0)
        *to++ = '-';
    const bool scientific = exponent < -4 || exponent > 6;
    // The figures stand from `first` on, where 0 is the first digit before a point behind `point`.
    const int point = scientific ? 1 : exponent + 1, first = point < 1 ? point - 1 : 0;
    for (int i = first; i < count || i < point; i++) {
        if (i == point && i > first)
            *to++ = '.';
        *to++ = i >= 0 && i < count ? figures[i] : '0';
    }
    *to = 0;
    if (scientific)
        snprintf(to, 8, "e%d", exponent);
    return out;
}
