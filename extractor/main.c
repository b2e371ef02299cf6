// SPDX-License-Identifier: Apache-2.0
//
// q3-extract: options in, one extraction, a summary out.
#include "base/options.h"
#include "base/text.h"
#include "base/workers.h"
#include "extract.h"
#include "journal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char *components = "text", *layers, *experts, *pool, *codec = "bitplane";
static uint64_t jobs;
static bool partial, dry_run, quiet, json;

static const char *ratio_text(uint64_t stored, uint64_t bytes, char out[16])
{
    snprintf(out, 16, "%.1f %%", bytes ? 100.0 * (double)stored / (double)bytes : 100.0);
    return out;
}

// What each component of the plan has.
typedef struct totals {
    uint64_t files, tensors, bytes;
} totals;

static void add_up(const q3_plan *plan, totals sums[Q3_COMPONENTS])
{
    for (size_t i = 0; i < plan->file_count; i++) {
        totals *sum = &sums[plan->files[i].place.component];
        sum->files++;
        sum->tensors += plan->files[i].tensor_count;
        sum->bytes += plan->files[i].bytes;
    }
}

static void print_row(const char *name, const totals *sum)
{
    char files[Q3_GROUPED_MAX], tensors[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
    printf("%-12s %8s %9s %18s\n", name, q3_grouped(sum->files, files),
           q3_grouped(sum->tensors, tensors), q3_grouped(sum->bytes, bytes));
}

static bool print_plan(const q3_plan *plan, q3_error *err)
{
    totals sums[Q3_COMPONENTS] = {0}, all = {plan->file_count, plan->tensors, plan->bytes};
    add_up(plan, sums);
    if (!json) {
        char text[Q3_GROUPED_MAX];
        printf("%-12s %8s %9s %18s\n", "component", "files", "tensors", "bytes");
        for (unsigned i = 0; i < Q3_COMPONENTS; i++)
            if (sums[i].files)
                print_row(q3_component_name((q3_component)i), &sums[i]);
        print_row("total", &all);
        printf("pack files: %s bytes as raw, at most that in other codecs; %zu small files are "
               "copied\n",
               q3_grouped(plan->raw_size, text), plan->copy_count);
        return true;
    }
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_u64(&out, "files", all.files);
    q3_json_put_u64(&out, "tensors", all.tensors);
    q3_json_put_u64(&out, "bytes", all.bytes);
    q3_json_put_u64(&out, "raw_pack_bytes", plan->raw_size);
    q3_json_begin_array(&out, "copies");
    for (size_t i = 0; i < plan->copy_count; i++)
        q3_json_put_string(&out, NULL, plan->copies[i]);
    q3_json_end_array(&out);
    q3_json_begin_array(&out, "components");
    for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
        if (!sums[i].files)
            continue;
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_string(&out, "name", q3_component_name((q3_component)i));
        q3_json_put_u64(&out, "files", sums[i].files);
        q3_json_put_u64(&out, "tensors", sums[i].tensors);
        q3_json_put_u64(&out, "bytes", sums[i].bytes);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    const bool ok = q3_json_finish(&out, err);
    if (ok)
        fputs(out.text, stdout);
    q3_json_writer_free(&out);
    return ok;
}

// Of an extraction whose shards come one at a time: what may be deleted, and what is still to come.
static void print_shards(const q3_plan *plan)
{
    const q3_checkpoint *checkpoint = &plan->checkpoint;
    for (uint32_t i = 0; i < checkpoint->shard_count; i++)
        if (checkpoint->shards[i].present)
            printf("%s: all that is wanted of it is packed and synced, it may be deleted\n",
                   checkpoint->shards[i].name);
}

static bool print_result(const q3_plan *plan, const q3_extract_result *result, q3_error *err)
{
    if (!json) {
        char tensors[Q3_GROUPED_MAX], files[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
        char stored[Q3_GROUPED_MAX], ratio[16];
        if (quiet)
            return true;
        if (result->waiting_files) {
            print_shards(plan);
            return true;
        }
        printf("%s tensors, %s, in %s pack files of %s together (%s) in %.1f s\n",
               q3_grouped(result->tensors, tensors), q3_human_bytes(result->bytes, bytes),
               q3_grouped(result->files, files), q3_human_bytes(result->stored, stored),
               ratio_text(result->stored, result->bytes, ratio), result->seconds);
        if (result->resumed_files)
            printf("%s of the files had been finished before\n",
                   q3_grouped(result->resumed_files, files));
        return true;
    }
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_u64(&out, "files", result->files);
    q3_json_put_u64(&out, "tensors", result->tensors);
    q3_json_put_u64(&out, "bytes", result->bytes);
    q3_json_put_u64(&out, "stored_bytes", result->stored);
    q3_json_put_u64(&out, "resumed_files", result->resumed_files);
    q3_json_put_u64(&out, "waiting_files", result->waiting_files);
    q3_json_begin_array(&out, "deletable_shards");
    for (uint32_t i = 0; i < plan->checkpoint.shard_count; i++)
        if (plan->checkpoint.shards[i].present)
            q3_json_put_string(&out, NULL, plan->checkpoint.shards[i].name);
    q3_json_end_array(&out);
    q3_json_put_double(&out, "seconds", result->seconds);
    q3_json_end_object(&out);
    const bool ok = q3_json_finish(&out, err);
    if (ok)
        fputs(out.text, stdout);
    q3_json_writer_free(&out);
    return ok;
}

// The message of an extraction that waits for shards.
static bool fail_waiting(const q3_plan *plan, const q3_extract_result *result, q3_error *err)
{
    const q3_checkpoint *checkpoint = &plan->checkpoint;
    uint32_t unseen = 0;
    const char *first = "";
    for (uint32_t i = checkpoint->shard_count; i-- > 0;)
        if (!checkpoint->shards[i].read) {
            unseen++;
            first = checkpoint->shards[i].name;
        }
    return q3_fail(err, Q3_INCOMPLETE,
                   "%s: %" PRIu64 " files wait for %" PRIu32 " of %" PRIu32
                   " shards that have not come yet, the first is %s",
                   checkpoint->directory, result->waiting_files, unseen, checkpoint->shard_count,
                   first);
}

static bool extract(const q3_plan *plan, const q3_extract_options *options, q3_error *err)
{
    q3_extract_result result;
    return q3_extract_plan(plan, options, &result, err) && print_result(plan, &result, err) &&
           (result.waiting_files == 0 || fail_waiting(plan, &result, err));
}

static int run(const char *const *arguments)
{
    q3_error err;
    q3_extract_options options = {
        .model_directory = arguments[0],
        .pack_directory = arguments[1],
        .selection = {.components = components,
                      .layers = layers,
                      .experts = experts,
                      .pool = pool,
                      .partial = partial},
        .jobs = jobs ? (unsigned)jobs : q3_workers_default(),
        .quiet = quiet,
    };
    q3_codec_parse(codec, &options.codec); // one of the option's choices
    bool finished = false;
    if (!dry_run && !q3_journal_tidy(options.pack_directory, &finished, &err))
        return q3_report(&err);
    if (finished) {
        if (!quiet)
            printf("%s: had been finished before\n", options.pack_directory);
        return Q3_DONE;
    }
    q3_plan plan;
    char *headers = q3_journal_headers(options.pack_directory, &err);
    bool ok =
        headers && q3_plan_make(options.model_directory, headers, &options.selection, &plan, &err);
    free(headers);
    if (!ok)
        return q3_report(&err);
    ok = dry_run ? print_plan(&plan, &err) : extract(&plan, &options, &err);
    q3_plan_free(&plan);
    return ok ? Q3_DONE : q3_report(&err);
}

static const q3_option options[] = {
    {.name = "components",
     .letter = 'c',
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &components,
     .help = "what to extract: text (the default), all, or names from text, audio_tower, visual, "
             "talker, code2wav separated by commas"},
    {.name = "layers",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &layers,
     .help = "only these layers of the text model, such as 0-5"},
    {.name = "experts",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &experts,
     .help = "only these experts of each layer, such as 0-7,12"},
    {.name = "pool",
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &pool,
     .help = "only the experts of this pool, which may be others in each layer: JSON {\"layers\": "
             "[[3, 17, ...], ...]}, as q3-pack pool makes it"},
    {.name = "codec",
     .kind = Q3_OPTION_CHOICE,
     .value_name = Q3_CODEC_CHOICES,
     .target = &codec,
     .help = "how frames are stored: bitplane (the default, fastest to read), zstd, raw, or for "
             "each frame whichever is smallest"},
    {.name = "partial",
     .kind = Q3_OPTION_FLAG,
     .target = &partial,
     .help = "shards may come one at a time: pack what is there, say which shards may be deleted, "
             "and go on with the same command when more have come"},
    Q3_JOBS_OPTION(&jobs),
    {.name = "dry-run",
     .letter = 'n',
     .kind = Q3_OPTION_FLAG,
     .target = &dry_run,
     .help = "check the checkpoint and print what would be written, write nothing"},
    Q3_QUIET_OPTION(&quiet),
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &json, .help = "print results as JSON"},
    Q3_CPU_OPTION,
};

static const q3_command command = {
    .arguments = "MODEL_DIR PACK_DIR",
    .summary = "Takes a Qwen3-Omni or Qwen3-MoE checkpoint in MODEL_DIR apart into checksummed "
               "pack files in PACK_DIR. An extraction that was ended goes on when the same command "
               "is given again.",
    .options = options,
    .option_count = sizeof options / sizeof *options,
    .run = run,
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-extract", .commands = &command, .command_count = 1};
    return q3_program_main(&program, argc, argv);
}
