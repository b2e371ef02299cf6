// SPDX-License-Identifier: Apache-2.0
//
// q3-verify: options in, one library call, a report out.
#include "base/file.h"
#include "base/options.h"
#include "base/progress.h"
#include "checkpoint.h"
#include "manifest.h"
#include "packs.h"
#include "report.h"
#include "sample.h"
#include "shapes.h"
#include "shards.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *manifest_path, *components, *source, *allow, *sample_text, *junit, *shards;
static uint64_t jobs;
static bool as_json, github, quiet, headers_only, data, sha256, deep;

static bool parse_allowed(q3_findings *report, q3_error *err)
{
    for (const char *at = allow; at;) {
        char name[32];
        q3_finding_kind kind;
        const size_t length = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : 0), at);
        if (!q3_finding_kind_parse(name, &kind))
            return q3_fail(err, Q3_USAGE, "--allow: \"%.*s\" is no kind of finding", (int)length,
                           at);
        report->allowed[kind] = true;
        at = at[length] ? at + length + 1 : NULL;
    }
    return true;
}

static bool begin(q3_findings *report, q3_error *err)
{
    report->seconds = q3_now();
    if (as_json && github)
        return q3_fail(err, Q3_USAGE, "--json and --github both write to standard output");
    return parse_allowed(report, err);
}

static bool write_report(const q3_findings *report, q3_error *err)
{
    q3_json_writer writer = {0};
    bool ok = !junit || q3_findings_write_junit(report, junit, err);
    if (as_json) {
        ok = q3_findings_write(report, &writer, err) &&
             q3_write_all(STDOUT_FILENO, "standard output", writer.text, writer.size, err) && ok;
        q3_json_writer_free(&writer);
        return ok;
    }
    return q3_findings_print(report, stdout, err) &&
           (!github || q3_findings_annotate(report, stdout, err)) && ok;
}

// Writes the report and gives its exit code, or, where `ok` is false, that of the error.
static int finish(q3_findings *report, bool ok, q3_error *err)
{
    int code = Q3_DONE;
    report->seconds = q3_now() - report->seconds;
    if (ok && write_report(report, err))
        code = q3_findings_exit_code(report);
    else
        code = q3_report(err);
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
    if (headers_only && (data || sha256)) {
        q3_fail(&err, Q3_USAGE, "--headers-only: --data and --sha256 read whole shards");
        return q3_report(&err);
    }
    if (!q3_manifest_load(manifest_path, &manifest, &err))
        return q3_report(&err);
    const q3_shapes_options options = {.scope = components ? scope : NULL,
                                       .headers_only = headers_only,
                                       .data = data,
                                       .sha256 = sha256,
                                       .jobs = (unsigned)jobs,
                                       .quiet = quiet || as_json};
    const bool ok = begin(&report, &err) && (!components || parse_scope(&manifest, scope, &err)) &&
                    q3_shapes_check(arguments[0], &manifest, &options, &report, &err);
    q3_manifest_free(&manifest);
    return finish(&report, ok, &err);
}

static int run_packs(const char *const *arguments)
{
    q3_error err;
    q3_sample sample;
    q3_findings report = {.command = "packs", .path = arguments[0], .against = source};
    const q3_packs_options options = {.source = source,
                                      .sample = sample_text ? &sample : NULL,
                                      .deep = deep,
                                      .jobs = (unsigned)jobs,
                                      .quiet = quiet || as_json};
    const bool ok = begin(&report, &err) &&
                    (!sample_text || q3_sample_parse(sample_text, &sample, &err)) &&
                    q3_packs_check(arguments[0], &options, &report, &err);
    return finish(&report, ok, &err);
}

// Adds the files of a checkpoint to a manifest.
static bool describe_shards(q3_manifest *manifest, q3_error *err)
{
    q3_checkpoint checkpoint;
    if (!q3_checkpoint_open(shards, &checkpoint, err))
        return false;
    const bool ok = q3_shards_describe(&checkpoint, (unsigned)jobs, quiet, manifest, err);
    q3_checkpoint_close(&checkpoint);
    return ok;
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
        (shards && !describe_shards(&manifest, &err)) ||
        !q3_manifest_write(&manifest, &writer, &err) ||
        !q3_write_all(STDOUT_FILENO, "standard output", writer.text, writer.size, &err))
        code = q3_report(&err);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
    q3_json_free(&json);
    return code;
}

// Options that several commands share.
#define JOBS_OPTION                                                                                \
    {                                                                                              \
        .name = "jobs", .letter = 'j', .kind = Q3_OPTION_NUMBER, .value_name = "N",                \
        .target = &jobs, .min = 1, .max = 256, .help = "threads (default: one for each processor)" \
    }
#define QUIET_OPTION                                                              \
    {                                                                             \
        .name = "quiet", .letter = 'q', .kind = Q3_OPTION_FLAG, .target = &quiet, \
        .help = "no progress line"                                                \
    }
#define REPORT_OPTIONS                                                                         \
    {.name = "allow",                                                                          \
     .kind = Q3_OPTION_TEXT,                                                                   \
     .value_name = "KINDS",                                                                    \
     .target = &allow,                                                                         \
     .help = "report findings of these kinds, separated by commas, without failing for them"}, \
        {.name = "json",                                                                       \
         .kind = Q3_OPTION_FLAG,                                                               \
         .target = &as_json,                                                                   \
         .help = "print a JSON object a line: each finding, and last a summary"},              \
        {.name = "junit",                                                                      \
         .kind = Q3_OPTION_TEXT,                                                               \
         .value_name = "FILE",                                                                 \
         .target = &junit,                                                                     \
         .help = "also write the report as JUnit XML"},                                        \
    {                                                                                          \
        .name = "github", .kind = Q3_OPTION_FLAG, .target = &github,                           \
        .help = "also print annotations for GitHub Actions"                                    \
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
    {.name = "headers-only",
     .kind = Q3_OPTION_FLAG,
     .target = &headers_only,
     .help = "accept shards of which only the first bytes are there (a download of the headers)"},
    {.name = "data",
     .kind = Q3_OPTION_FLAG,
     .target = &data,
     .help =
         "also read the weights: NaN, infinities, tensors that are all zero, rows of one value"},
    {.name = "sha256",
     .kind = Q3_OPTION_FLAG,
     .target = &sha256,
     .help = "also compare the shards with the SHA-256 in the manifest"},
    JOBS_OPTION,
    QUIET_OPTION,
    REPORT_OPTIONS,
};

static const q3_option packs_options[] = {
    {.name = "deep",
     .kind = Q3_OPTION_FLAG,
     .target = &deep,
     .help = "also decode every frame and check every tensor's own hash"},
    {.name = "sample",
     .kind = Q3_OPTION_TEXT,
     .value_name = "PART",
     .target = &sample_text,
     .help = "read a part of the tensors only: a share such as 5%, or 1/7, one part of seven that "
             "together are all"},
    {.name = "source",
     .kind = Q3_OPTION_TEXT,
     .value_name = "MODEL_DIR",
     .target = &source,
     .help = "also compare every tensor and copied file with this checkpoint, byte for byte"},
    JOBS_OPTION,
    QUIET_OPTION,
    REPORT_OPTIONS,
};

static const q3_option manifest_options[] = {
    {.name = "shards",
     .kind = Q3_OPTION_TEXT,
     .value_name = "MODEL_DIR",
     .target = &shards,
     .help = "also list the size and SHA-256 of this checkpoint's shards"},
    JOBS_OPTION,
    QUIET_OPTION,
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
     .options = manifest_options,
     .option_count = COUNT(manifest_options),
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
