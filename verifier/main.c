// SPDX-License-Identifier: Apache-2.0
//
// q3-verify: options in, one library call, a report out.
#include "base/file.h"
#include "base/options.h"
#include "manifest.h"
#include "packs.h"
#include "report.h"
#include "shapes.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *manifest_path, *components, *source;
static uint64_t jobs;
static bool as_json, quiet;

// Prints the report and gives its exit code.
static int finish(q3_findings *report)
{
    int code = q3_findings_exit_code(report);
    if (as_json) {
        q3_json_writer writer = {0};
        q3_error err;
        if (!q3_findings_write(report, &writer, &err) ||
            !q3_write_all(STDOUT_FILENO, "standard output", writer.text, writer.size, &err))
            code = q3_report(&err);
        q3_json_writer_free(&writer);
    } else {
        q3_findings_print(report, stdout);
    }
    q3_findings_free(report);
    return code;
}

static bool parse_scope(const q3_manifest *manifest, bool scope[Q3_COMPONENTS], q3_error *err)
{
    const bool *const has = manifest->inventory.has_component;
    memset(scope, 0, Q3_COMPONENTS * sizeof *scope);
    if (strcmp(components, "all") == 0) {
        memcpy(scope, has, Q3_COMPONENTS * sizeof *scope);
        return true;
    }
    for (const char *at = components;; at++) {
        char name[32];
        q3_component component;
        const size_t length = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : 0), at);
        if (!q3_component_parse(name, &component))
            return q3_fail(err, Q3_USAGE, "--components: \"%.*s\" is no component", (int)length,
                           at);
        if (!has[component])
            return q3_fail(err, Q3_USAGE, "--components: the manifest has no component \"%s\"",
                           name);
        scope[component] = true;
        at += length;
        if (!*at)
            return true;
    }
}

static int run_shapes(const char *const *arguments)
{
    q3_error err;
    q3_manifest manifest;
    bool scope[Q3_COMPONENTS];
    q3_findings report = {.command = "shapes", .path = arguments[0], .against = manifest_path};
    if (!manifest_path) {
        q3_fail(&err, Q3_USAGE, "shapes: --manifest is missing (see q3-verify shapes --help)");
        return q3_report(&err);
    }
    if (!q3_manifest_load(manifest_path, &manifest, &err))
        return q3_report(&err);
    const bool ok =
        (!components || parse_scope(&manifest, scope, &err)) &&
        q3_shapes_check(arguments[0], &manifest, components ? scope : NULL, &report, &err);
    q3_manifest_free(&manifest);
    if (ok)
        return finish(&report);
    q3_findings_free(&report);
    return q3_report(&err);
}

static int run_packs(const char *const *arguments)
{
    q3_error err;
    q3_findings report = {.command = "packs", .path = arguments[0], .against = source};
    const q3_packs_options options = {
        .source = source, .jobs = (unsigned)jobs, .quiet = quiet || as_json};
    if (q3_packs_check(arguments[0], &options, &report, &err))
        return finish(&report);
    q3_findings_free(&report);
    return q3_report(&err);
}

static int run_manifest(const char *const *arguments)
{
    q3_error err;
    q3_config config;
    q3_json json;
    q3_manifest manifest = {0};
    q3_json_writer writer = {0};
    if (!q3_config_load(arguments[0], &config, &json, &err))
        return q3_report(&err);
    int code = Q3_DONE;
    if (!q3_manifest_derive(&json, &manifest, &err) ||
        !q3_manifest_write(&manifest, &writer, &err) ||
        !q3_write_all(STDOUT_FILENO, "standard output", writer.text, writer.size, &err))
        code = q3_report(&err);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
    q3_json_free(&json);
    return code;
}

static const q3_option shapes_options[] = {
    {.name = "manifest",
     .letter = 'm',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &manifest_path,
     .help = "the manifest to compare with (needed)"},
    {.name = "components",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &components,
     .help = "compare these components only: \"all\", or names separated by commas (default: all "
             "that the manifest has; for a pack directory those that it holds anything of)"},
    {.name = "json",
     .kind = Q3_OPTION_FLAG,
     .target = &as_json,
     .help = "print one JSON object with all findings"},
};

static const q3_option packs_options[] = {
    {.name = "source",
     .kind = Q3_OPTION_TEXT,
     .value_name = "MODEL_DIR",
     .target = &source,
     .help = "also compare every tensor and copied file with this checkpoint, byte for byte"},
    {.name = "jobs",
     .letter = 'j',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &jobs,
     .min = 1,
     .max = 256,
     .help = "threads (default: one for each processor)"},
    {.name = "quiet",
     .letter = 'q',
     .kind = Q3_OPTION_FLAG,
     .target = &quiet,
     .help = "no progress line"},
    {.name = "json",
     .kind = Q3_OPTION_FLAG,
     .target = &as_json,
     .help = "print one JSON object with all findings"},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const q3_command commands[] = {
    {.name = "shapes",
     .arguments = "PATH",
     .summary = "compare names, dtypes and shapes of a checkpoint or a pack directory with a "
                "manifest, from the headers alone",
     .options = shapes_options,
     .option_count = COUNT(shapes_options),
     .run = run_shapes},
    {.name = "packs",
     .arguments = "PACK",
     .summary = "check every byte of a pack directory against its checksums",
     .options = packs_options,
     .option_count = COUNT(packs_options),
     .run = run_packs},
    {.name = "manifest",
     .arguments = "CONFIG_JSON",
     .summary = "print the manifest that follows from a model's config.json",
     .run = run_manifest},
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-verify",
        .summary = "Verifies Qwen3-Omni checkpoints and pack directories. Reports all differences, "
                   "not only the first.",
        .commands = commands,
        .command_count = COUNT(commands),
    };
    return q3_program_main(&program, argc, argv);
}
