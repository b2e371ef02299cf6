// SPDX-License-Identifier: Apache-2.0
//
// The command line of every q3-* program: a table of commands, each with its arguments and options.
// Parsing, --help, --version and the exit codes come from the table alone, so they cannot drift
// apart, and a test compares the man pages with it.
#ifndef Q3_BASE_OPTIONS_H
#define Q3_BASE_OPTIONS_H

#include "cpu.h"
#include "error.h"
#include "workers.h"

#include <stdint.h>

typedef enum q3_option_kind {
    Q3_OPTION_FLAG,   // no value; target is a bool *
    Q3_OPTION_TEXT,   // target is a const char **
    Q3_OPTION_LIST,   // may be given several times; target is a q3_text_list *
    Q3_OPTION_NUMBER, // whole number in [min, max]; target is a uint64_t *
    Q3_OPTION_REAL,   // number in [min, max]; target is a double *
    Q3_OPTION_SIZE,   // bytes with K, M, G or T; target is a uint64_t *
    Q3_OPTION_CHOICE, // one of the words in `value_name`, "raw|zstd"; target is a const char **
    Q3_OPTION_CPU,    // a level of base/cpu.h, which becomes the limit; no target
} q3_option_kind;

enum { Q3_TEXT_LIST_MAX = 64 };
typedef struct q3_text_list {
    const char *item[Q3_TEXT_LIST_MAX];
    unsigned count;
} q3_text_list;

typedef struct q3_option {
    const char *name; // without the dashes
    char letter;      // 0 for none
    q3_option_kind kind;
    const char *value_name; // "N", "FILE"; NULL for a flag
    void *target;
    const char *help;
    double min, max;
    bool *given; // set when the option was given; may be NULL
} q3_option;

// Options that several programs have.
#define Q3_JOBS_OPTION(value)                                                       \
    {                                                                               \
        .name = "jobs", .letter = 'j', .kind = Q3_OPTION_NUMBER, .value_name = "N", \
        .target = (value), .min = 1, .max = Q3_WORKERS_MAX,                         \
        .help = "threads; the default is one for each processor"                    \
    }
#define Q3_QUIET_OPTION(value)                                                     \
    {                                                                              \
        .name = "quiet", .letter = 'q', .kind = Q3_OPTION_FLAG, .target = (value), \
        .help = "print nothing but errors"                                         \
    }
// Of every command that computes much.
#define Q3_CPU_OPTION                                                                           \
    {                                                                                           \
        .name = "cpu", .kind = Q3_OPTION_CPU, .value_name = Q3_CPU_CHOICES,                     \
        .help =                                                                                 \
            "use no instructions beyond this level of processor; the default is the best that " \
            "there is"                                                                          \
    }

typedef struct q3_command {
    const char *name; // "list"; NULL for a program without commands
    // "PACK FILE": the count of words is how many are required. When the last one ends in "...",
    // more of it may follow.
    const char *arguments;
    const char *summary; // one line
    const q3_option *options;
    unsigned option_count;
    int (*run)(const char *const *arguments); // NULL behind the last; returns the exit code
} q3_command;

typedef struct q3_program {
    const char *name, *summary;
    const q3_command *commands;
    unsigned command_count;
    const char *more; // text at the end of --help, may be NULL
} q3_program;

// main of every program: finds the command, parses its options, runs it, returns the exit code.
int q3_program_main(const q3_program *program, int argc, char **argv);

// Prints "PROGRAM: MESSAGE" on standard error and returns the error's code.
int q3_report(const q3_error *err);

// Flushes standard output and reports a failure to write there (a full disk, a closed pipe), which
// would otherwise pass for success. Returns `code`, or Q3_FAILED.
int q3_finish_output(int code);

#endif
