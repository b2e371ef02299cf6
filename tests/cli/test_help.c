// SPDX-License-Identifier: Apache-2.0
//
// What the programs say of themselves: --help and --version everywhere, lines that fit a terminal,
// man pages that name exactly the options that there are, and the same answers to a senseless
// command line.
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *path, *name, *page;
    const char *commands[16]; // none for a program without commands
} programs[] = {
    {Q3_TEST_EXTRACT, "q3-extract", "extractor/q3-extract.1", {NULL}},
    {Q3_TEST_PACK,
     "q3-pack",
     "packer/q3-pack.1",
     {"list", "show", "cat", "unpack", "pool", "heatmap", "export"}},
    {Q3_TEST_VERIFY, "q3-verify", "verifier/q3-verify.1", {"shapes", "packs", "manifest"}},
    {Q3_TEST_RUN,
     "q3-run",
     "runtime/q3-run.1",
     {"generate", "chat", "tokenize", "logits", "score", "profile", "plan", "replay", "bench",
      "ladder"}},
};

enum { PROGRAMS = sizeof programs / sizeof *programs };

// The help of a program and of all its commands, to free().
static char *all_help(size_t program)
{
    q3_test_result help = q3_test_run(NULL, programs[program].path, "--help", NULL);
    assert_int_equal(help.code, 0);
    assert_string_equal(help.err, "");
    char *text = q3_test_path("%s", help.out);
    q3_test_result_free(&help);
    for (size_t c = 0; programs[program].commands[c]; c++) {
        help = q3_test_run(NULL, programs[program].path, programs[program].commands[c], "--help",
                           NULL);
        assert_int_equal(help.code, 0);
        assert_string_equal(help.err, "");
        char *longer = q3_test_path("%s%s", text, help.out);
        free(text);
        text = longer;
        q3_test_result_free(&help);
    }
    return text;
}

// The name behind a "--", at most 31 characters.
static void take_name(const char *at, char name[32])
{
    const size_t length = strspn(at, "abcdefghijklmnopqrstuvwxyz-");
    snprintf(name, 32, "%.*s", (int)(length < 31 ? length : 31), at);
}

static void test_man_pages(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROGRAMS; p++) {
        char *help = all_help(p);
        char *path = q3_test_path("%s/%s", Q3_TEST_SOURCE_DIR, programs[p].page);
        char *page = q3_test_read(path, NULL);
        // In a man page a dash of an option is written "\-".
        char *plain = page;
        for (const char *from = page; *from; from++)
            if (!(from[0] == '\\' && from[1] == '-'))
                *plain++ = *from;
        *plain = 0;
        char name[32], wanted[40];
        for (const char *at = help; (at = strstr(at, "--")) != NULL; at += 2) {
            take_name(at + 2, name);
            snprintf(wanted, sizeof wanted, "--%s", name);
            if (*name && !strstr(page, wanted))
                fail_msg("%s does not mention %s", programs[p].page, wanted);
        }
        for (const char *at = page; (at = strstr(at, "--")) != NULL; at += 2) {
            take_name(at + 2, name);
            snprintf(wanted, sizeof wanted, "--%s", name);
            if (*name && !strstr(help, wanted))
                fail_msg("%s mentions %s, which %s does not have", programs[p].page, wanted,
                         programs[p].name);
        }
        for (size_t c = 0; programs[p].commands[c]; c++)
            assert_non_null(strstr(page, programs[p].commands[c]));
        free(page);
        free(path);
        free(help);
    }
}

static void test_help_fits(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROGRAMS; p++) {
        char *help = all_help(p);
        for (const char *line = help; *line;) {
            const size_t length = strcspn(line, "\n");
            if (length >= 80)
                fail_msg("%s: a line of %zu characters: %.*s", programs[p].name, length,
                         (int)length, line);
            line += length + (line[length] == '\n');
        }
        free(help);
    }
}

static void test_version(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROGRAMS; p++) {
        q3_test_result version = q3_test_run(NULL, programs[p].path, "--version", NULL);
        char *expected = q3_test_path("%s " Q3_VERSION "\n", programs[p].name);
        assert_string_equal(version.out, expected);
        q3_test_expect(version, 0, "");
        free(expected);
    }
}

// Does the usage line say that more arguments may follow?
static bool takes_any_number(const char *path, const char *command)
{
    q3_test_result help = q3_test_run(NULL, path, command, "--help", NULL);
    const bool any = memmem(help.out, strcspn(help.out, "\n"), "...", 3) != NULL;
    q3_test_result_free(&help);
    return any;
}

static void test_senseless(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROGRAMS; p++) {
        const char *name = programs[p].name;
        if (programs[p].commands[0]) {
            char *expected = q3_test_path("%s: no command given (see %s --help)\n", name, name);
            q3_test_expect(q3_test_run(NULL, programs[p].path, NULL), 2, expected);
            free(expected);
            expected = q3_test_path("%s: unknown command \"x\" (see %s --help)\n", name, name);
            q3_test_expect(q3_test_run(NULL, programs[p].path, "x", NULL), 2, expected);
            free(expected);
        }
        for (size_t c = 0; programs[p].commands[c]; c++) {
            const char *command = programs[p].commands[c];
            char *expected = q3_test_path("%s: --fast: unknown option (see %s %s --help)\n", name,
                                          name, command);
            q3_test_expect(q3_test_run(NULL, programs[p].path, command, "a", "--fast", NULL), 2,
                           expected);
            free(expected);
            q3_test_result result =
                q3_test_run(NULL, programs[p].path, command, "a", "b", "c", "d", NULL);
            assert_int_equal(result.code, 2);
            if (takes_any_number(programs[p].path, command))
                assert_null(strstr(result.err, ": unexpected argument \""));
            else
                assert_non_null(strstr(result.err, ": unexpected argument \""));
            q3_test_result_free(&result);
        }
    }
}

// A full disk behind standard output must not pass for success.
static void test_output_that_cannot_be_written(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROGRAMS; p++) {
        char *command = q3_test_path("exec %s --help >/dev/full", programs[p].path);
        char *expected = q3_test_path(
            "%s: standard output: cannot write: No space left on device\n", programs[p].name);
        q3_test_expect(q3_test_run(NULL, "/bin/sh", "-c", command, NULL), 1, expected);
        free(expected);
        free(command);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_man_pages),
        cmocka_unit_test(test_help_fits),
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_senseless),
        cmocka_unit_test(test_output_that_cannot_be_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
