// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include "interrupt.h"
#include "text.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef Q3_VERSION
#define Q3_VERSION "unknown"
#endif

enum { OPTIONS_MAX = 48, ARGUMENTS_MAX = 64, HELP_COLUMN = 28, HELP_WIDTH = 79 };

static const char *program_name = "q3";

int q3_report(const q3_error *err)
{
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", program_name, err->message);
    return err->code;
}

int q3_finish_output(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    q3_error err;
    q3_fail_errno(&err, "standard output: cannot write");
    return code == Q3_DONE ? q3_report(&err) : code;
}

static unsigned count_words(const char *text)
{
    unsigned words = 0;
    for (const char *at = text; *at; at++)
        words += *at != ' ' && (at == text || at[-1] == ' ');
    return words;
}

// Writes text from column on, broken at blanks so that no line passes HELP_WIDTH.
static void print_wrapped(const char *text, int column)
{
    int at = column;
    while (*text) {
        const int length = (int)strcspn(text, " ");
        if (at > column && at + 1 + length > HELP_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        } else if (at > column) {
            putchar(' ');
            at++;
        }
        printf("%.*s", length, text);
        at += length;
        text += length;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_usage(const q3_program *program, const q3_command *command)
{
    printf("usage: %s", program->name);
    if (command->name)
        printf(" %s", command->name);
    if (*command->arguments)
        printf(" %s", command->arguments);
    puts(command->option_count ? " [OPTIONS]" : "");
}

static void print_option(const q3_option *option)
{
    char left[80];
    snprintf(left, sizeof left, "  %c%c%s--%s%s%s", option->letter ? '-' : ' ',
             option->letter ? option->letter : ' ', option->letter ? ", " : "  ", option->name,
             option->value_name ? " " : "", option->value_name ? option->value_name : "");
    if (strlen(left) + 2 > HELP_COLUMN)
        printf("%s\n%*s", left, HELP_COLUMN, "");
    else
        printf("%-*s", HELP_COLUMN, left);
    print_wrapped(option->help, HELP_COLUMN);
}

static void print_command_help(const q3_program *program, const q3_command *command)
{
    print_usage(program, command);
    putchar('\n');
    print_wrapped(command->summary, 0);
    if (command->option_count) {
        puts("\noptions:");
        for (unsigned i = 0; i < command->option_count; i++)
            print_option(&command->options[i]);
    }
}

static void print_program_help(const q3_program *program)
{
    if (program->command_count == 1 && !program->commands->name) {
        print_command_help(program, program->commands);
        print_option(&(q3_option){.name = "help", .letter = 'h', .help = "print this text"});
        print_option(&(q3_option){.name = "version", .help = "print the version"});
    } else {
        printf("usage: %s COMMAND ARGUMENTS [OPTIONS]\n\n", program->name);
        print_wrapped(program->summary, 0);
        puts("\ncommands:");
        for (unsigned i = 0; i < program->command_count; i++) {
            char left[80];
            snprintf(left, sizeof left, "  %s %s", program->commands[i].name,
                     program->commands[i].arguments);
            printf("%-*s", HELP_COLUMN, left);
            if (strlen(left) + 2 > HELP_COLUMN)
                printf("\n%*s", HELP_COLUMN, "");
            print_wrapped(program->commands[i].summary, HELP_COLUMN);
        }
        printf("\n%s COMMAND --help lists a command's options.\n"
               "%s --version prints the version.\n",
               program->name, program->name);
    }
    if (program->more)
        printf("\n%s", program->more);
    puts("\nexit codes: 0 done, 1 operation failed, 2 usage, 3 mismatch found, 4 malformed,\n"
         "unsafe or unsupported input, 5 incomplete input, 6 refused, 130 interrupted");
}

static bool is_choice(const char *choices, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = choices;; at++) {
        const size_t span = strcspn(at, "|");
        if (length == span && strncmp(at, word, span) == 0)
            return true;
        at += span;
        if (!*at)
            return false;
    }
}

static bool set_option(const q3_option *option, const char *value, q3_error *err)
{
    uint64_t number;
    q3_cpu_level level;
    if (option->given)
        *option->given = true;
    switch (option->kind) {
    case Q3_OPTION_FLAG:
        *(bool *)option->target = true;
        return true;
    case Q3_OPTION_TEXT:
        *(const char **)option->target = value;
        return true;
    case Q3_OPTION_LIST: {
        q3_text_list *list = option->target;
        if (list->count == Q3_TEXT_LIST_MAX)
            return q3_fail(err, Q3_USAGE, "--%s: given more than %d times", option->name,
                           Q3_TEXT_LIST_MAX);
        list->item[list->count++] = value;
        return true;
    }
    case Q3_OPTION_NUMBER:
        if (!q3_parse_u64(value, (uint64_t)option->min, (uint64_t)option->max, &number))
            return q3_fail(err, Q3_USAGE,
                           "--%s: expected a whole number from %.0f to %.0f, found \"%s\"",
                           option->name, option->min, option->max, value);
        *(uint64_t *)option->target = number;
        return true;
    case Q3_OPTION_REAL:
        if (!q3_parse_double(value, option->min, option->max, option->target))
            return q3_fail(err, Q3_USAGE, "--%s: expected a number from %g to %g, found \"%s\"",
                           option->name, option->min, option->max, value);
        return true;
    case Q3_OPTION_SIZE:
        if (!q3_parse_size(value, option->target))
            return q3_fail(err, Q3_USAGE, "--%s: expected a size such as 800M or 4G, found \"%s\"",
                           option->name, value);
        return true;
    case Q3_OPTION_CHOICE:
        if (!is_choice(option->value_name, value))
            return q3_fail(err, Q3_USAGE, "--%s: expected one of %s, found \"%s\"", option->name,
                           option->value_name, value);
        *(const char **)option->target = value;
        return true;
    case Q3_OPTION_CPU:
        if (!q3_cpu_parse(value, &level))
            return q3_fail(err, Q3_USAGE, "--%s: expected one of %s, found \"%s\"", option->name,
                           option->value_name, value);
        return q3_cpu_limit(level, err);
    }
    return true;
}

static int usage_error(const q3_program *program, const q3_command *command, q3_error *err)
{
    char hint[160];
    snprintf(hint, sizeof hint, " (see %s%s%s --help)", program->name,
             command && command->name ? " " : "", command && command->name ? command->name : "");
    const size_t length = strlen(err->message);
    snprintf(err->message + length, sizeof err->message - length, "%s", hint);
    return q3_report(err);
}

static int run_command(const q3_program *program, const q3_command *command, int argc, char **argv)
{
    struct option table[OPTIONS_MAX + 3];
    char letters[2 * OPTIONS_MAX + 8] = ":h";
    const unsigned count = command->option_count;
    q3_error err = {0};
    for (unsigned i = 0; i < count; i++) {
        const q3_option *option = &command->options[i];
        const int has_value = option->kind == Q3_OPTION_FLAG ? no_argument : required_argument;
        table[i] = (struct option){option->name, has_value, NULL, (int)(256 + i)};
        if (option->letter) {
            const size_t used = strlen(letters);
            letters[used] = option->letter;
            letters[used + 1] = has_value == required_argument ? ':' : 0;
            letters[used + 2] = 0;
        }
    }
    table[count] = (struct option){"help", no_argument, NULL, 'h'};
    table[count + 1] = (struct option){"version", no_argument, NULL, 255};
    table[count + 2] = (struct option){0};
    opterr = 0;
    optind = 1;
    for (;;) {
        const int found = getopt_long(argc, argv, letters, table, NULL);
        if (found < 0)
            break;
        const q3_option *option = NULL;
        if (found == 'h') {
            if (command->name)
                print_command_help(program, command);
            else
                print_program_help(program);
            return q3_finish_output(Q3_DONE);
        }
        if (found == 255) {
            printf("%s %s\n", program->name, Q3_VERSION);
            return q3_finish_output(Q3_DONE);
        }
        if (found >= 256)
            option = &command->options[found - 256];
        for (unsigned i = 0; i < count && !option; i++)
            if (command->options[i].letter && command->options[i].letter == found)
                option = &command->options[i];
        if (!option) {
            // A letter is told in optopt; a long name is the word just passed.
            const char letter[] = {'-', (char)optopt, 0};
            const char *word = optopt > 0 && optopt < 255 ? letter : argv[optind - 1];
            q3_fail(&err, Q3_USAGE, "%s: %s", word,
                    found == ':' ? "a value is missing" : "unknown option");
            return usage_error(program, command, &err);
        }
        if (!set_option(option, optarg, &err))
            return err.code == Q3_USAGE ? usage_error(program, command, &err) : q3_report(&err);
    }
    const unsigned required = count_words(command->arguments);
    const unsigned given = (unsigned)(argc - optind);
    const size_t length = strlen(command->arguments);
    const bool more = length > 3 && strcmp(command->arguments + length - 3, "...") == 0;
    const unsigned most = more ? ARGUMENTS_MAX : required;
    if (given < required || given > most) {
        if (given > required && more)
            q3_fail(&err, Q3_USAGE, "more than %d arguments", ARGUMENTS_MAX);
        else if (given > required)
            q3_fail(&err, Q3_USAGE, "unexpected argument \"%s\"", argv[optind + (int)required]);
        else
            q3_fail(&err, Q3_USAGE, "expected %s, found %u of %u arguments", command->arguments,
                    given, required);
        return usage_error(program, command, &err);
    }
    const char *arguments[ARGUMENTS_MAX + 1] = {NULL};
    for (unsigned i = 0; i < given && i < ARGUMENTS_MAX; i++)
        arguments[i] = argv[optind + (int)i];
    return q3_finish_output(command->run(arguments));
}

int q3_program_main(const q3_program *program, int argc, char **argv)
{
    program_name = program->name;
    q3_interrupt_install();
    if (program->command_count == 1 && !program->commands->name)
        return run_command(program, program->commands, argc, argv);
    q3_error err = {0};
    if (argc < 2) {
        q3_fail(&err, Q3_USAGE, "no command given");
        return usage_error(program, NULL, &err);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_program_help(program);
        return q3_finish_output(Q3_DONE);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("%s %s\n", program->name, Q3_VERSION);
        return q3_finish_output(Q3_DONE);
    }
    for (unsigned i = 0; i < program->command_count; i++)
        if (strcmp(argv[1], program->commands[i].name) == 0)
            return run_command(program, &program->commands[i], argc - 1, argv + 1);
    q3_fail(&err, Q3_USAGE, "unknown command \"%s\"", argv[1]);
    return usage_error(program, NULL, &err);
}
