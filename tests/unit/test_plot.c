// SPDX-License-Identifier: Apache-2.0
//
// Pictures: the bytes of small ones, the structure of larger ones, and numbers as people read them.
#include "plot/chart.h"
#include "pool/heatmap.h"
#include "support.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static q3_error error;

#define HEAD(width, height)                                                          \
    "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" width "\" height=\"" height \
    "\" viewBox=\"0 0 " width " " height "\" role=\"img\" font-family=\"system-ui, " \
    "-apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif\">\n"

static void test_svg(void **state)
{
    (void)state;
    static const q3_font font = {12, false, "#333333"}, bold = {16.5, true, "#000000"};
    static const q3_stroke thin = {"#e4e6ea", 0.5, NULL}, dashed = {"#0072b2", 2, "5 3"};
    q3_svg svg;
    char *text;
    size_t size;
    assert_ok(q3_svg_begin(&svg, 100, 50.25, "a < b", &error));
    q3_svg_text(&svg, 1, 2.005, Q3_ANCHOR_START, &font, "<&>\"' \xc3\xa9 \xff \x01 \xef\xbf\xbf");
    q3_svg_text(&svg, -0.001, 1e3, Q3_ANCHOR_MIDDLE, &bold, "");
    q3_svg_text_upwards(&svg, 10, 20, Q3_ANCHOR_END, &font, "up");
    q3_svg_rect(&svg, 0.1, 0.25, 1.0 / 3, 2, "#ff0000");
    q3_svg_frame(&svg, 1, 2, 3, 4, &thin);
    q3_svg_circle(&svg, 5, 6, 3.5, "#00ff00");
    q3_svg_line(&svg, -1.5, 0, 1, NAN, &dashed);
    q3_svg_polyline(&svg, (const double[]){0, 1, 2.5, 3.125}, 2, &dashed);
    q3_svg_fill_begin(&svg, "#abcdef");
    q3_svg_path_rect(&svg, 0, 1, 2, 3);
    q3_svg_path_end(&svg);
    q3_svg_stroke_begin(&svg, &thin);
    q3_svg_path_line(&svg, 0, 0.5, 2, 0.5);
    q3_svg_path_end(&svg);
    assert_ok(q3_svg_end(&svg, &text, &size, &error));
    assert_int_equal(strlen(text), size);
    assert_string_equal(
        text, HEAD("100", "50.25") //
        "<title>a &lt; b</title>\n"
        "<rect x=\"0\" y=\"0\" width=\"100\" height=\"50.25\" fill=\"#ffffff\"/>\n"
        "<text x=\"1\" y=\"2.01\" font-size=\"12\" fill=\"#333333\">&lt;&amp;&gt;&quot;' "
        "\xc3\xa9 \xef\xbf\xbd \xef\xbf\xbd \xef\xbf\xbd</text>\n"
        "<text x=\"0\" y=\"1000\" text-anchor=\"middle\" font-size=\"16.5\" font-weight=\"600\" "
        "fill=\"#000000\"></text>\n"
        "<text x=\"10\" y=\"20\" transform=\"rotate(-90 10 20)\" text-anchor=\"end\" "
        "font-size=\"12\" fill=\"#333333\">up</text>\n"
        "<rect x=\"0.1\" y=\"0.25\" width=\"0.33\" height=\"2\" fill=\"#ff0000\"/>\n"
        "<rect x=\"1\" y=\"2\" width=\"3\" height=\"4\" fill=\"none\" stroke=\"#e4e6ea\" "
        "stroke-width=\"0.5\"/>\n"
        "<circle cx=\"5\" cy=\"6\" r=\"3.5\" fill=\"#00ff00\"/>\n"
        "<line x1=\"-1.5\" y1=\"0\" x2=\"1\" y2=\"0\" fill=\"none\" stroke=\"#0072b2\" "
        "stroke-width=\"2\" stroke-dasharray=\"5 3\"/>\n"
        "<polyline points=\"0,1 2.5,3.13\" fill=\"none\" stroke=\"#0072b2\" stroke-width=\"2\" "
        "stroke-dasharray=\"5 3\" stroke-linejoin=\"round\" stroke-linecap=\"round\"/>\n"
        "<path shape-rendering=\"crispEdges\" fill=\"#abcdef\" d=\"M0 1h2v3h-2z\"/>\n"
        "<path fill=\"none\" stroke=\"#e4e6ea\" stroke-width=\"0.5\" stroke-linecap=\"square\" "
        "d=\"M0 0.5L2 0.5\"/>\n"
        "</svg>\n");
    free(text);
    assert_ok(q3_svg_begin(&svg, 1, 1, "", &error));
    q3_svg_abandon(&svg);
}

static void test_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        int digits;
        const char *text;
    } cases[] = {
        {0, 4, "0"},           {-0.0, 4, "0"},          {0.25, 4, "0.25"},
        {1, 1, "1"},           {128, 4, "128"},         {123.456, 4, "123.5"},
        {-3.5, 4, "-3.5"},     {1000000, 4, "1000000"}, {1234567, 3, "1230000"},
        {1e7, 4, "1e7"},       {2.5e10, 4, "2.5e10"},   {2e-9, 4, "2e-9"},
        {0.0001, 4, "0.0001"}, {0.00001, 4, "1e-5"},    {9.99996, 4, "10"},
        {0.1 + 0.2, 6, "0.3"}, {INFINITY, 4, "-"},
    };
    char text[Q3_SVG_NUMBER_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(q3_svg_number(cases[i].value, cases[i].digits, text), cases[i].text);
    // A locale with another point changes nothing, where the system has one.
    if (setlocale(LC_ALL, "de_DE.UTF-8"))
        assert_string_equal(q3_svg_number(0.25, 4, text), "0.25");
    setlocale(LC_ALL, "C");
    assert_true(q3_svg_tick_step(0, 1, 5) == 0.2);
    assert_true(q3_svg_tick_step(0, 9, 7) == 1);
    assert_true(q3_svg_tick_step(8, 128, 9) == 10);
    assert_true(q3_svg_tick_step(0, 40, 8) == 5);
}

static unsigned occurrences(const char *text, const char *wanted)
{
    unsigned count = 0;
    for (; (text = strstr(text, wanted)) != NULL; text++)
        count++;
    return count;
}

static const double sizes[] = {8, 16, 32, 64, 128}, nll[] = {5, 3, 2, 1, 0.5},
                    holed[] = {6, 4, NAN, 2, 1}, ends[] = {8, 128}, full[] = {0.5, 0.5};

static const q3_series series[] = {
    {.name = "chosen & kept", .x = sizes, .y = nll, .count = 5},
    {.name = "random", .x = sizes, .y = holed, .count = 5},
    {.name = "full model", .x = ends, .y = full, .count = 2, .reference = true},
};

static char *draw(const q3_chart *chart)
{
    char *text;
    size_t size;
    assert_ok(q3_chart_draw(chart, &text, &size, &error));
    assert_int_equal(strlen(text), size);
    return text;
}

static void test_chart(void **state)
{
    (void)state;
    q3_chart chart = {
        .title = "NLL",
        .x_label = "experts",
        .y_label = "nats",
        .x_scale = Q3_SCALE_LOG2,
        .from_zero = true,
        .series = series,
        .series_count = 3,
        .width = 600,
        .height = 300,
    };
    char *text = draw(&chart), *again = draw(&chart);
    assert_string_equal(text, again);
    free(again);
    // 5 + 4 marks, and one in the legend for each; a line for the whole series, one for each side
    // of the gap, one for the reference.
    assert_int_equal(occurrences(text, "<circle"), 5 + 4 + 2);
    assert_int_equal(occurrences(text, "<polyline"), 1 + 2 + 1);
    assert_int_equal(occurrences(text, "stroke-dasharray=\"6 4\""), 2);
    assert_non_null(strstr(text, ">chosen &amp; kept</text>"));
    static const char *const ticks[] = {">8<",  ">12<",  ">16<", ">24<", ">32<", ">48<", ">64<",
                                        ">96<", ">128<", ">0<",  ">1<",  ">5<",  ">6<"};
    for (size_t i = 0; i < sizeof ticks / sizeof *ticks; i++)
        if (!strstr(text, ticks[i]))
            fail_msg("no tick %s", ticks[i]);
    assert_null(strstr(text, ">7<"));
    // Marks stand where the axes say: octaves are equally far apart.
    double x[5], y[5];
    const char *at = text;
    for (unsigned i = 0; i < 5; i++) {
        at = strstr(at + 1, "<circle");
        assert_int_equal(sscanf(at, "<circle cx=\"%lf\" cy=\"%lf\"", &x[i], &y[i]), 2);
    }
    for (unsigned i = 2; i < 5; i++)
        assert_true(fabs((x[i] - x[i - 1]) - (x[1] - x[0])) < 0.03);
    assert_true(fabs((y[1] - y[0]) - 2 * (y[2] - y[1])) < 0.05);
    assert_true(fabs((y[3] - y[2]) - 2 * (y[4] - y[3])) < 0.05);
    free(text);

    // On a logarithmic y axis equal factors are equal distances.
    chart.y_scale = Q3_SCALE_LOG10;
    text = draw(&chart);
    at = text;
    for (unsigned i = 0; i < 5; i++) {
        at = strstr(at + 1, "<circle");
        assert_int_equal(sscanf(at, "<circle cx=\"%lf\" cy=\"%lf\"", &x[i], &y[i]), 2);
    }
    assert_true(fabs((y[4] - y[3]) - (y[3] - y[2])) < 0.03);
    assert_non_null(strstr(text, ">0.5<"));
    assert_non_null(strstr(text, ">2<"));
    free(text);
}

// One point, and all points at one height: an axis around them.
static void test_chart_edges(void **state)
{
    (void)state;
    static const q3_scale scales[] = {Q3_SCALE_LINEAR, Q3_SCALE_LOG2, Q3_SCALE_LOG10};
    const double one = 3, none = 0;
    q3_series s = {.name = "s", .x = &one, .y = &one, .count = 1};
    q3_chart chart = {
        .title = "t", .x_label = "x", .y_label = "y", .series = &s, .series_count = 1};
    for (unsigned i = 0; i < 3; i++) {
        chart.x_scale = chart.y_scale = scales[i];
        char *text = draw(&chart);
        assert_null(strstr(text, "nan"));
        assert_null(strstr(text, "inf"));
        assert_int_equal(occurrences(text, "<circle"), 2);
        free(text);
    }
    char *text;
    size_t size;
    s.y = &none;
    assert_false(q3_chart_draw(&chart, &text, &size, &error));
    assert_string_equal(error.message, "t: s: 0 has no place on a logarithmic axis");
    assert_int_equal(error.code, Q3_USAGE);
    assert_null(text);
    s.count = 0;
    assert_false(q3_chart_draw(&chart, &text, &size, &error));
    assert_string_equal(error.message, "t: nothing to draw");
    // Ten series: the colours come again, dashed.
    q3_series many[10];
    for (unsigned i = 0; i < 10; i++)
        many[i] = (q3_series){.name = "s", .x = sizes, .y = nll, .count = 5};
    chart.series = many;
    chart.series_count = 10;
    text = draw(&chart);
    assert_int_equal(occurrences(text, "stroke-dasharray=\"5 3\""), 2 * 2);
    free(text);
}

static void test_heatmap(void **state)
{
    (void)state;
    static const double share[] = {1, 0, 0, 0.25, 0.25, 0.5};
    q3_pool pool;
    assert_ok(q3_pool_create(2, 3, &pool, &error));
    q3_pool_add(&pool, 0, 0);
    q3_pool_add(&pool, 1, 0);
    q3_pool_add(&pool, 1, 2);
    q3_heatmap map = {
        .title = "T", .what = "share", .layers = 2, .experts = 3, .share = share, .pool = &pool};
    char *text, *again;
    size_t size;
    assert_ok(q3_heatmap_draw(&map, &text, &size, &error));
    assert_int_equal(strlen(text), size);
    // Cells of 24 by 24 from (64, 46): the darkest is layer 0, expert 0; halves and quarters by the
    // root.
    assert_non_null(strstr(text, "fill=\"#1d2432\" d=\"M64 46h24v24h-24z\"/>"));
    assert_non_null(strstr(text, "fill=\"#2b5493\" d=\"M112 70h24v24h-24z\"/>"));
    assert_non_null(strstr(text, "fill=\"#4680cf\" d=\"M64 70h48v24h-48z\"/>"));
    // Around the pool: experts 0 of both layers in one outline, expert 2 of layer 1 in another.
    assert_non_null(strstr(text, "d=\"M64 46L88 46M112 70L136 70M64 94L88 94M112 94L136 94"
                                 "M64 46L64 94M88 46L88 94M112 70L112 94M136 70L136 94\"/>"));
    assert_non_null(strstr(text, ">in the pool</text>"));
    assert_int_equal(occurrences(text, "<path"), 3 + 1);
    free(text);

    // Sorted: the largest of each layer first, the pool goes with its experts.
    map.sort = true;
    assert_ok(q3_heatmap_draw(&map, &text, &size, &error));
    assert_non_null(strstr(text, "fill=\"#2b5493\" d=\"M64 70h24v24h-24z\"/>"));
    assert_non_null(strstr(text, "d=\"M64 46L88 46M88 70L112 70M64 94L112 94M64 46L64 94"
                                 "M88 46L88 70M112 70L112 94\"/>"));
    assert_non_null(strstr(text, ">rank of the expert in its layer</text>"));
    free(text);
    map.pool = NULL;
    assert_ok(q3_heatmap_draw(&map, &text, &size, &error));
    assert_ok(q3_heatmap_draw(&map, &again, &size, &error));
    assert_string_equal(text, again);
    assert_null(strstr(text, "pool"));
    free(again);
    free(text);
    q3_pool_destroy(&pool);
}

// At the real model's size: labels every 8 layers and every 16 experts, one path a colour.
static void test_large_heatmap(void **state)
{
    (void)state;
    static double share[48 * 128];
    for (unsigned layer = 0; layer < 48; layer++)
        for (unsigned expert = 0; expert < 128; expert++)
            share[layer * 128 + expert] = (double)(expert * 37 % 128) / (64 * 127);
    const q3_heatmap map = {
        .title = "T", .subtitle = "s", .what = "w", .layers = 48, .experts = 128, .share = share};
    char *text;
    size_t size;
    assert_ok(q3_heatmap_draw(&map, &text, &size, &error));
    assert_int_equal(occurrences(text, "<path"), 19);
    for (unsigned i = 0; i < 128; i += 16) {
        char label[16];
        snprintf(label, sizeof label, ">%u</text>", i);
        assert_non_null(strstr(text, label));
    }
    assert_non_null(strstr(text, ">8</text>"));
    assert_non_null(strstr(text, ">40</text>"));
    assert_null(strstr(text, ">41</text>"));
    // 6,144 cells in 896 by 528 pixels.
    assert_non_null(strstr(text, "<rect x=\"64\" y=\"66\" width=\"896\" height=\"528\""));
    assert_true(size < 200000);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_svg),     cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_chart),   cmocka_unit_test(test_chart_edges),
        cmocka_unit_test(test_heatmap), cmocka_unit_test(test_large_heatmap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
