// SPDX-License-Identifier: Apache-2.0
#include "export/export.h"
#include "base/text.h"
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// What people should know about what they got.
static void print_notes(const q3_export_options *options, const q3_export_result *result)
{
    if (result->experts < result->model_experts)
        printf("note: %" PRIu32 " of %" PRIu32 " experts in each layer%s\n", result->experts,
               result->model_experts, options->pool ? "" : ", which are those that the pack has");
    if (result->top_k != result->model_top_k)
        printf("note: %" PRIu32 " experts a token instead of %" PRIu32 "\n", result->top_k,
               result->model_top_k);
    char names[256];
    size_t used = 0;
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        if (result->configured[i] && !result->whole[i])
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                     q3_component_name((q3_component)i));
    if (used)
        printf("note: the pack does not have all of %s: programs that load the whole model miss "
               "it; --as qwen3_moe writes the text model alone\n",
               names);
}

static bool check_options(const q3_export_options *options, q3_error *err)
{
    if (options->format == Q3_EXPORT_GGUF && q3_options.shard_size)
        return q3_fail(err, Q3_USAGE, "--shard-size is for --format safetensors");
    if (options->format == Q3_EXPORT_GGUF && q3_options.as)
        return q3_fail(err, Q3_USAGE, "--as is for --format safetensors");
    return true;
}

int q3_command_export(const char *const *arguments)
{
    q3_error err;
    const char *format = q3_options.format;
    if (!format) {
        q3_fail(&err, Q3_USAGE, "--format safetensors or --format gguf is needed");
        return q3_report(&err);
    }
    const q3_export_options options = {
        .pack_directory = arguments[0],
        .output = arguments[1],
        .format = strcmp(format, "gguf") == 0 ? Q3_EXPORT_GGUF : Q3_EXPORT_SAFETENSORS,
        .text_model = q3_options.as != NULL,
        .pool = q3_options.pool,
        .top_k = (uint32_t)q3_options.top_k,
        .shard_bytes = q3_options.shard_size ? q3_options.shard_size : Q3_EXPORT_SHARD_BYTES,
        .jobs = q3_options.jobs ? (unsigned)q3_options.jobs : q3_workers_default(),
        .quiet = q3_options.quiet,
    };
    q3_export_result result;
    if (!check_options(&options, &err) || !q3_export(&options, &result, &err))
        return q3_report(&err);
    if (q3_options.quiet)
        return Q3_DONE;
    char tensors[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
    printf("%s tensors, %s, in %" PRIu64 " %s in %.1f s\n", q3_grouped(result.tensors, tensors),
           q3_human_bytes(result.bytes, bytes), result.files, result.files == 1 ? "file" : "files",
           result.seconds);
    print_notes(&options, &result);
    return Q3_DONE;
}
