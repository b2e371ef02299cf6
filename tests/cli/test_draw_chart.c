// SPDX-License-Identifier: Apache-2.0
//
// draw-chart: the chart of a table, and what it says of tables that are none.
#include "plot/chart.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LABELS "title T\nx-label across\ny-label up\n"

static char *table, *picture;

static int make_paths(void **state)
{
    if (q3_test_make_scratch(state) != 0)
        return -1;
    table = q3_test_path("%s/t", q3_test_scratch);
    picture = q3_test_path("%s/t.svg", q3_test_scratch);
    return 0;
}

static int free_paths(void **state)
{
    free(table);
    free(picture);
    return q3_test_remove_scratch(state);
}

static void test_chart(void **state)
{
    (void)state;
    static const double x[] = {1, 2, 4}, y[] = {3, NAN, -0.5}, level[] = {2, 2, 2};
    const q3_series series[] = {
        {.name = "one  and two", .x = x, .y = y, .count = 3},
        {.name = "level", .x = x, .y = level, .count = 2, .reference = true},
    };
    const q3_chart chart = {
        .title = "T",
        .subtitle = "of # all",
        .x_label = "across",
        .y_label = "up",
        .x_scale = Q3_SCALE_LOG2,
        .from_zero = true,
        .series = series,
        .series_count = 2,
    };
    char *expected;
    size_t size, drawn_size;
    q3_error err;
    assert_true(q3_chart_draw(&chart, &expected, &size, &err));
    q3_test_write_text(table, "# a table\n\n" LABELS "subtitle \tof # all \r\n"
                              "x-scale log2\ny-scale zero\n  series one  and two\n"
                              "1 3\n2 -\n4\t-5e-1\nreference level\n1 2\n2 2");
    q3_test_expect(q3_test_run(NULL, Q3_TEST_DRAW_CHART, table, picture, NULL), 0, "");
    char *drawn = q3_test_read(picture, &drawn_size);
    assert_string_equal(drawn, expected);
    assert_int_equal(drawn_size, size);
    free(drawn);
    free(expected);
}

// `message` is what stands behind "draw-chart: PATH".
static void expect_refused(const char *text, const char *message)
{
    q3_test_write_text(table, text);
    q3_test_remove_tree(picture);
    char *expected = q3_test_path("draw-chart: %s%s\n", table, message);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_DRAW_CHART, table, picture, NULL), 4, expected);
    free(expected);
    FILE *file = fopen(picture, "r");
    assert_null(file);
}

static void test_bad_tables(void **state)
{
    (void)state;
    expect_refused("", ": no title");
    expect_refused("title T\nx-label x\n", ": no y-label");
    expect_refused(LABELS, ": no series");
    expect_refused("title\n", ":1: expected more behind \"title\"");
    expect_refused("title a\n\ntitle b\n", ":3: a second \"title\"");
    expect_refused("colour red\n",
                   ":1: expected a word of the table or a number, found \"colour\"");
    expect_refused("1 2\n", ":1: a point before any series");
    expect_refused("series s\n1 2 3\n", ":2: expected a number or -, found \"2 3\"");
    expect_refused("series s\n1 nan\n", ":2: expected a number or -, found \"nan\"");
    expect_refused("series s\n1 1e301\n", ":2: expected a number or -, found \"1e301\"");
    expect_refused(LABELS "x-scale zero\nseries s\n1 2\n", ": unknown x-scale \"zero\"");
    expect_refused(LABELS "y-scale log\nseries s\n1 2\n", ": unknown y-scale \"log\"");
    char many[65 * 9 + 1];
    for (unsigned i = 0; i < 65; i++)
        memcpy(many + i * 9, "series s\n", 10);
    expect_refused(many, ":65: more than 64 series");
    q3_test_write(table, "title T\0T\n", 10);
    char *expected = q3_test_path("draw-chart: %s: holds a NUL byte\n", table);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_DRAW_CHART, table, picture, NULL), 4, expected);
    free(expected);
    q3_test_write_text(table, LABELS "y-scale log10\nseries s\n1 0\n");
    q3_test_expect(q3_test_run(NULL, Q3_TEST_DRAW_CHART, table, picture, NULL), 2,
                   "draw-chart: T: s: 0 has no place on a logarithmic axis\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chart),
        cmocka_unit_test(test_bad_tables),
    };
    return cmocka_run_group_tests(tests, make_paths, free_paths);
}
