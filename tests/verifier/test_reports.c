// SPDX-License-Identifier: Apache-2.0
//
// Reports: what is alike becomes one line, and what programs read keeps to its rules whatever a
// finding says.
#include "damage.h"

#include <inttypes.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add(q3_findings *report, const q3_finding *finding, const char *message)
{
    q3_error err;
    if (!q3_findings_add(report, finding, &err, "%s", message))
        fail_msg("%s", err.message);
}

// A finding of a tensor of the pattern layers.{0-47}.mlp.experts.{0-127}.NAME.
static void add_expert(q3_findings *report, unsigned layer, unsigned expert, const char *name,
                       const char *detail)
{
    char *tensor = q3_test_path("thinker.model.layers.%u.mlp.experts.%u.%s", layer, expert, name);
    char *group = q3_test_path("thinker.model.layers.{0-47}.mlp.experts.{0-127}.%s", name);
    add(report,
        &(q3_finding){
            .kind = Q3_FINDING_MISSING, .tensor = tensor, .group = group, .detail = detail},
        tensor);
    free(tensor);
    free(group);
}

static void assert_lines(const q3_findings *report, size_t limit, const char *const *lines,
                         size_t count)
{
    q3_summary summary;
    q3_error err;
    assert_true(q3_summary_create(report, limit, &summary, &err));
    for (size_t i = 0; i < summary.count && i < count; i++)
        assert_string_equal(summary.lines[i].text, lines[i]);
    assert_int_equal(summary.count, count);
    q3_summary_free(&summary);
}
#define ASSERT_LINES(report, limit, ...)                                     \
    do {                                                                     \
        const char *const wanted[] = {__VA_ARGS__};                          \
        assert_lines(report, limit, wanted, sizeof wanted / sizeof *wanted); \
    } while (0)

static void what_is_alike_is_one_line(void **state)
{
    (void)state;
    static const char *const names[] = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
    q3_findings report = {0};
    for (unsigned layer = 1; layer <= 9; layer += 4)
        for (unsigned expert = 76; expert < 128; expert++)
            for (size_t k = 0; k < 3; k++)
                add_expert(&report, layer, expert, names[k], "not in the index");
    ASSERT_LINES(&report, 18, "layers 1, 5, 9: experts 76–127 (468 tensors): not in the index");
    // Another reason is another line, and a finding alone keeps its message.
    add_expert(&report, 2, 3, names[1], "b.safetensors is absent");
    add_expert(&report, 2, 4, names[1], "listed, but not in a.safetensors");
    add_expert(&report, 3, 4, names[1], "listed, but not in a.safetensors");
    ASSERT_LINES(
        &report, 18, "thinker.model.layers.2.mlp.experts.3.up_proj.weight",
        "layers 2, 3: expert 4 up_proj.weight (2 tensors): listed, but not in a.safetensors",
        "layers 1, 5, 9: experts 76–127 (468 tensors): not in the index");
    ASSERT_LINES(&report, 2, "thinker.model.layers.2.mlp.experts.3.up_proj.weight",
                 "and 470 more (--json lists all)");
    ASSERT_LINES(&report, 1,
                 "thinker.model.layers.2.mlp.experts.3.up_proj.weight; and 470 more "
                 "(--json lists all)");
    q3_findings_free(&report);
    // Sets that differ from layer to layer.
    for (unsigned layer = 0; layer < 8; layer++)
        for (unsigned expert = layer; expert < 9; expert++)
            add_expert(&report, layer, expert, names[0], NULL);
    ASSERT_LINES(&report, 18,
                 "layers 0–7: experts 0–8, 1–8, 2–8, 3–8, …, 7, 8 gate_proj.weight (44 tensors)");
    q3_findings_free(&report);
    for (unsigned expert = 0; expert < 20; expert += 2)
        add_expert(&report, 0, expert, names[0], "gone");
    ASSERT_LINES(&report, 18,
                 "layer 0: experts 0, 2, 4, 6, …, 18 gate_proj.weight (10 tensors): gone");
    q3_findings_free(&report);
}

static void files_that_are_alike(void **state)
{
    (void)state;
    q3_findings report = {0};
    for (unsigned i = 0; i < 1000; i++) {
        char *path = q3_test_path("p/%u.part", i);
        add(&report, &(q3_finding){.kind = Q3_FINDING_STRAY, .file = path, .detail = "left over"},
            path);
        free(path);
    }
    add(&report, &(q3_finding){.kind = Q3_FINDING_DAMAGED, .file = "x"}, "x is damaged");
    ASSERT_LINES(&report, 18, "x is damaged", "p/0.part", "p/1.part", "and 998 more like these");
    q3_findings_free(&report);
}

// A report with everything in it that a format could trip over.
static void make_nasty(q3_findings *report)
{
    q3_error err;
    *report = (q3_findings){.command = "shapes",
                            .path = "models/<a> & \"b\" 50%\n\x01\xff,c:d",
                            .against = "m.json",
                            .tensors = 7,
                            .files = 2,
                            .seconds = 1.5};
    add(report,
        &(q3_finding){.kind = Q3_FINDING_MALFORMED, .file = "a,b:c%d.safetensors", .tensor = "]]>"},
        "]]> <failure> & \"quoted\" 'single' 100% sure\r\nnext line\x02 \xc3\xa9 \xff, a:b");
    for (unsigned i = 0; i < 40; i++)
        add_expert(report, i, i, "up_proj.weight", i % 2 ? "50% lost" : "lost");
    add(report, &(q3_finding){.kind = Q3_FINDING_UNREADABLE, .file = "d"}, "d: Input/output error");
    add(report, &(q3_finding){.kind = Q3_FINDING_ZERO, .file = "e"}, "e: all 3 elements are zero");
    report->allowed[Q3_FINDING_ZERO] = true;
    assert_true(q3_sentences_add(&report->causes, &err, "a <cause> & more: 5%%\n"));
    assert_true(q3_sentences_add(&report->notes, &err, "a ]]> note"));
}

static void junit_is_valid(void **state)
{
    (void)state;
    char *scratch = q3_test_directory(), *path = q3_test_path("%s/report.xml", scratch);
    q3_findings report;
    q3_error err;
    make_nasty(&report);
    for (unsigned i = 0; i < 2; i++) {
        assert_true(q3_findings_write_junit(&report, path, &err));
        char *text = q3_test_read(path, NULL);
        if (i == 0) {
            assert_non_null(
                strstr(text, "tests=\"19\" failures=\"2\" errors=\"1\" time=\"1.500\""));
            assert_non_null(strstr(text, "<testcase name=\"zero\" classname=\"q3-verify.shapes\" "
                                         "time=\"0\"/>"));
            assert_non_null(strstr(
                text,
                "<failure message=\"1 malformed\" type=\"malformed\">]]&gt; &lt;failure&gt; "
                "&amp; &quot;quoted&quot; 'single' 100% sure\\x0d\\x0anext line\\x02 \xc3\xa9 "
                "\\xff, a:b\n</failure>"));
            assert_non_null(strstr(text, "<error message=\"1 unreadable\" type=\"unreadable\">d: "
                                         "Input/output error\n</error>"));
            assert_non_null(strstr(text, "cause: a &lt;cause&gt; &amp; more: 5%\\x0a\n"));
        } else {
            assert_non_null(
                strstr(text, "tests=\"19\" failures=\"0\" errors=\"0\" time=\"0.000\""));
        }
        free(text);
#ifdef Q3_TEST_XMLLINT
        q3_test_result result = q3_test_run(NULL, Q3_TEST_XMLLINT, "--noout", "--schema",
                                            Q3_TEST_JUNIT_SCHEMA, path, NULL);
        char *valid = q3_test_path("%s validates\n", path);
        q3_test_expect(result, 0, valid);
        free(valid);
#endif
        // And one without findings.
        q3_findings_free(&report);
        report = (q3_findings){.command = "packs", .path = "p"};
    }
    free(path);
    path = q3_test_path("%s/absent/report.xml", scratch);
    assert_false(q3_findings_write_junit(&report, path, &err));
    assert_int_equal(err.code, Q3_FAILED);
    free(path);
    q3_test_remove(scratch);
}

// The grammar of workflow commands: ::NAME KEY=VALUE,KEY=VALUE::MESSAGE, with %, CR and LF escaped
// everywhere and : and , in values too.
static void annotations_keep_to_the_grammar(void **state)
{
    (void)state;
    q3_findings report;
    q3_error error;
    char *text = NULL;
    size_t size = 0;
    make_nasty(&report);
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    assert_true(q3_findings_annotate(&report, file, &error));
    assert_int_equal(fclose(file), 0);
    regex_t grammar;
#define VALUE "([^%:,[:cntrl:]]|%(25|0D|0A|3A|2C))+"
    assert_int_equal(regcomp(&grammar,
                             "^::(error|warning) (file=" VALUE ",)?title=" VALUE
                             "::([^%[:cntrl:]]|%(25|0D|0A))+$",
                             REG_EXTENDED | REG_NOSUB),
                     0);
    unsigned lines = 0, warnings = 0;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) != NULL && *line) {
        if (regexec(&grammar, line, 0, NULL, 0) != 0)
            fail_msg("not a workflow command: %s", line);
        warnings += strncmp(line, "::warning ", 10) == 0;
        if (lines == 0)
            assert_string_equal(line, "::error title=q3-verify shapes%3A cause::a <cause> & more: "
                                      "5%25\\x0a");
        lines++;
    }
    assert_true(lines > 3 && lines <= Q3_ANNOTATIONS_MAX);
    assert_int_equal(warnings, 1);
    regfree(&grammar);
    free(text);
    q3_findings_free(&report);
    // Nothing to say, nothing said.
    file = open_memstream(&text, &size);
    assert_non_null(file);
    assert_true(q3_findings_annotate(&report, file, &error));
    assert_int_equal(fclose(file), 0);
    assert_int_equal(size, 0);
    free(text);
}

static void an_annotation_in_full(void **state)
{
    (void)state;
    q3_findings report = {.command = "packs", .path = "out,1"};
    q3_error error;
    char *text = NULL;
    size_t size = 0;
    add(&report, &(q3_finding){.kind = Q3_FINDING_DAMAGED, .file = "layers/00/norms.q3p"},
        "out,1/layers/00/norms.q3p: 50% damaged");
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    assert_true(q3_findings_annotate(&report, file, &error));
    assert_int_equal(fclose(file), 0);
    assert_string_equal(text, "::error file=out%2C1/layers/00/norms.q3p,title=q3-verify packs%3A "
                              "damaged::out,1/layers/00/norms.q3p: 50%25 damaged\n");
    free(text);
    q3_findings_free(&report);
}

static void json_lines_are_json(void **state)
{
    (void)state;
    q3_findings report;
    q3_json_writer writer = {0};
    q3_error err;
    make_nasty(&report);
    assert_true(q3_findings_write(&report, &writer, &err));
    static const char *const order[] = {"finding", "cause", "note", "summary"};
    unsigned counts[4] = {0}, at = 0;
    char *rest = writer.text, *line;
    while ((line = strsep(&rest, "\n")) != NULL && *line) {
        q3_json json;
        const char *type;
        if (!q3_json_parse("line", (q3_bytes){(const uint8_t *)line, strlen(line)}, &json, &err) ||
            !q3_json_string(&json, json.root, "type", &type, &err))
            fail_msg("%s", err.message);
        while (at < 4 && strcmp(order[at], type) != 0)
            at++;
        assert_true(at < 4);
        counts[at]++;
        q3_json_free(&json);
    }
    assert_int_equal(counts[0], 43);
    assert_int_equal(counts[1], 1);
    assert_int_equal(counts[2], 1);
    assert_int_equal(counts[3], 1);
    q3_json_writer_free(&writer);
    q3_findings_free(&report);
}

static void allowed_kinds_are_no_difference(void **state)
{
    (void)state;
    q3_findings report = {0};
    add(&report, &(q3_finding){.kind = Q3_FINDING_ZERO}, "z");
    add(&report, &(q3_finding){.kind = Q3_FINDING_UNREADABLE}, "u");
    assert_int_equal(q3_findings_exit_code(&report), Q3_MISMATCH);
    report.allowed[Q3_FINDING_ZERO] = true;
    assert_int_equal(q3_findings_differences(&report), 1);
    assert_int_equal(q3_findings_exit_code(&report), Q3_FAILED);
    report.allowed[Q3_FINDING_UNREADABLE] = true;
    assert_int_equal(q3_findings_exit_code(&report), Q3_DONE);
    q3_findings_free(&report);
    for (unsigned i = 0; i < Q3_FINDING_KINDS; i++) {
        q3_finding_kind kind;
        assert_true(q3_finding_kind_parse(q3_finding_kind_name((q3_finding_kind)i), &kind));
        assert_int_equal(kind, i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_alike_is_one_line),
        cmocka_unit_test(files_that_are_alike),
        cmocka_unit_test(junit_is_valid),
        cmocka_unit_test(annotations_keep_to_the_grammar),
        cmocka_unit_test(an_annotation_in_full),
        cmocka_unit_test(json_lines_are_json),
        cmocka_unit_test(allowed_kinds_are_no_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
