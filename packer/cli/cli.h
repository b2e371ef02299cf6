// SPDX-License-Identifier: Apache-2.0
//
// What the commands of q3-pack share: the options, and how JSON is printed.
#ifndef Q3_PACKER_CLI_H
#define Q3_PACKER_CLI_H

#include "base/json.h"
#include "base/options.h"

// The command line, filled by the option tables of main.c.
typedef struct q3_pack_options {
    uint64_t jobs; // 0: the default
    bool json, quiet;
    const char *output; // NULL: standard output
    // profiles and pools
    const char *by, *phase, *pack, *pool;
    uint64_t size, bytes;
    double coverage;
    bool size_given, coverage_given, bytes_given, unite, sort;
    // export
    const char *format, *as;
    uint64_t top_k, shard_size; // 0: the default
} q3_pack_options;

extern q3_pack_options q3_options;

// One function for each command; see main.c for what they do. They return the exit code.
int q3_command_list(const char *const *arguments);
int q3_command_show(const char *const *arguments);
int q3_command_cat(const char *const *arguments);
int q3_command_unpack(const char *const *arguments);
int q3_command_pool(const char *const *arguments);
int q3_command_heatmap(const char *const *arguments);
int q3_command_export(const char *const *arguments);

// Ends a JSON document, writes it to standard output and frees it.
bool q3_print_json(q3_json_writer *out, q3_error *err);

#endif
