// SPDX-License-Identifier: Apache-2.0
//
// make-checkpoint: options in, one checkpoint of random weights, a summary out.
#include "base/options.h"
#include "base/text.h"
#include "base/workers.h"
#include "checkpoint_writer.h"

#include <inttypes.h>
#include <stdio.h>

static uint64_t seed, shard_bytes = Q3_SHARD_BYTES_DEFAULT, layers, jobs;
static const char *shards;
static bool sparse;

static int run(const char *const *arguments)
{
    const q3_checkpoint_options options = {
        .config = arguments[0],
        .directory = arguments[1],
        .seed = seed,
        .shard_bytes = shard_bytes,
        .layers = (uint32_t)layers,
        .shards = shards,
        .sparse = sparse,
        .jobs = jobs ? (unsigned)jobs : q3_workers_default(),
    };
    q3_checkpoint_summary summary;
    q3_error err;
    if (!q3_checkpoint_write(&options, &summary, &err))
        return q3_report(&err);
    char tensors[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
    printf("%s tensors, %s bytes in %" PRIu32 " shards, %" PRIu32 " of them written\n",
           q3_grouped(summary.tensors, tensors), q3_grouped(summary.bytes, bytes), summary.shards,
           summary.written);
    return q3_finish_output(Q3_DONE);
}

int main(int argc, char **argv)
{
    static const q3_option options[] = {
        {.name = "seed",
         .kind = Q3_OPTION_NUMBER,
         .value_name = "N",
         .target = &seed,
         .help = "of the weights (default 0)",
         .max = 9007199254740992.0},
        {.name = "shard-size",
         .kind = Q3_OPTION_SIZE,
         .value_name = "BYTES",
         .target = &shard_bytes,
         .help = "the most that a shard's tensors take (default 5000000000)",
         .min = 1,
         .max = 1e18},
        {.name = "layers",
         .kind = Q3_OPTION_NUMBER,
         .value_name = "N",
         .target = &layers,
         .help = "of the text model, instead of the configuration's",
         .min = 1,
         .max = 1024},
        {.name = "shards",
         .kind = Q3_OPTION_TEXT,
         .value_name = "LIST",
         .target = &shards,
         .help = "write only these, such as 1-3,5"},
        {.name = "sparse",
         .kind = Q3_OPTION_FLAG,
         .target = &sparse,
         .help = "zeros that take no disk instead of weights"},
        {.name = "jobs",
         .letter = 'j',
         .kind = Q3_OPTION_NUMBER,
         .value_name = "N",
         .target = &jobs,
         .help = "threads (default: the processors)",
         .min = 1,
         .max = Q3_WORKERS_MAX},
    };
    static const q3_command command = {.arguments = "CONFIG_JSON OUT_DIR",
                                       .summary = "write a checkpoint of random weights",
                                       .options = options,
                                       .option_count = sizeof options / sizeof *options,
                                       .run = run};
    static const q3_program program = {
        .name = "make-checkpoint", .commands = &command, .command_count = 1};
    return q3_program_main(&program, argc, argv);
}
