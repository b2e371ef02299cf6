// SPDX-License-Identifier: Apache-2.0
//
// q3-pack: the commands and their options. What they do is in cli/.
#include "cli/cli.h"

#define COUNT(list) (sizeof(list) / sizeof *(list))

q3_pack_options q3_options = {.by = "score", .phase = "all"};

#define O q3_options

static const q3_option output_options[] = {
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option unpack_options[] = {
    Q3_JOBS_OPTION(&O.jobs),
    Q3_QUIET_OPTION(&O.quiet),
    Q3_CPU_OPTION,
};

// Which numbers of a profile count.
#define PROFILE_OPTIONS                                                                         \
    {.name = "by",                                                                              \
     .kind = Q3_OPTION_CHOICE,                                                                  \
     .value_name = "score|weight|chosen|mass",                                                  \
     .target = &O.by,                                                                           \
     .help = "which of a profile's numbers counts; the default is score, routing weight times " \
             "norm of the expert's output"},                                                    \
    {                                                                                           \
        .name = "phase", .kind = Q3_OPTION_CHOICE, .value_name = "all|prompt|answer",           \
        .target = &O.phase, .help = "which tokens count; the default is all"                    \
    }

static const q3_option pool_options[] = {
    {.name = "size",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.size,
     .min = 1,
     .max = 4096,
     .given = &O.size_given,
     .help = "the N best experts of each layer"},
    {.name = "coverage",
     .kind = Q3_OPTION_REAL,
     .value_name = "X",
     .target = &O.coverage,
     .min = 0,
     .max = 1,
     .given = &O.coverage_given,
     .help = "as few experts of each layer as reach this part of the layer's total, such as 0.95"},
    {.name = "bytes",
     .kind = Q3_OPTION_SIZE,
     .value_name = "SIZE",
     .target = &O.bytes,
     .given = &O.bytes_given,
     .help = "the best split of so many bytes of experts over all layers, such as 12G"},
    PROFILE_OPTIONS,
    {.name = "union",
     .kind = Q3_OPTION_FLAG,
     .target = &O.unite,
     .help = "choose for each profile by itself and take all that is chosen; the default is to "
             "choose once, by the sum of the profiles' shares"},
    {.name = "pack",
     .kind = Q3_OPTION_TEXT,
     .value_name = "PACK",
     .target = &O.pack,
     .help = "count each expert's bytes as they are stored in this pack; the default is "
             "uncompressed"},
    {.name = "output",
     .letter = 'o',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.output,
     .help = "write the pool there, and the summary to standard output; the default is the pool "
             "to standard output, and the summary to standard error"},
    Q3_QUIET_OPTION(&O.quiet),
    {.name = "json",
     .kind = Q3_OPTION_FLAG,
     .target = &O.json,
     .help = "print the summary as JSON"},
};

static const q3_option heatmap_options[] = {
    PROFILE_OPTIONS,
    {.name = "pool",
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.pool,
     .help = "outline the experts of this pool"},
    {.name = "sort",
     .kind = Q3_OPTION_FLAG,
     .target = &O.sort,
     .help = "sort the experts of each layer, the largest share first"},
    {.name = "output",
     .letter = 'o',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.output,
     .help = "write the picture there; the default is standard output"},
};

static const q3_option export_options[] = {
    {.name = "format",
     .kind = Q3_OPTION_CHOICE,
     .value_name = "safetensors|gguf",
     .target = &O.format,
     .help = "what to write: a checkpoint directory, or a file for llama.cpp"},
    {.name = "as",
     .kind = Q3_OPTION_CHOICE,
     .value_name = "qwen3_moe",
     .target = &O.as,
     .help = "safetensors: the text model alone, as a language model of this type; the default is "
             "the original layout"},
    {.name = "pool",
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.pool,
     .help = "keep only the experts of this pool, which has the same number in every layer"},
    {.name = "top-k",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.top_k,
     .min = 1,
     .max = 4096,
     .help = "experts for each token; the default is the model's number, or all that are kept when "
             "those are fewer"},
    {.name = "shard-size",
     .kind = Q3_OPTION_SIZE,
     .value_name = "SIZE",
     .target = &O.shard_size,
     .help = "safetensors: the most that the tensors of a file take, such as 2G; the default is "
             "5,000,000,000 bytes"},
    Q3_JOBS_OPTION(&O.jobs),
    Q3_QUIET_OPTION(&O.quiet),
    Q3_CPU_OPTION,
};

static const q3_command commands[] = {
    {.name = "list",
     .arguments = "PACK",
     .summary = "Lists the pack files of a pack directory: path, bytes, tensors.",
     .options = output_options,
     .option_count = COUNT(output_options),
     .run = q3_command_list},
    {.name = "show",
     .arguments = "PACK FILE",
     .summary = "Shows the tensors of one pack file: type, shape, hash, how they are stored, where "
                "they came from. FILE is a path as list prints it.",
     .options = output_options,
     .option_count = COUNT(output_options),
     .run = q3_command_show},
    {.name = "cat",
     .arguments = "PACK TENSOR",
     .summary = "Writes a tensor's raw bytes to standard output, every checksum checked.",
     .run = q3_command_cat},
    {.name = "unpack",
     .arguments = "PACK OUT_DIR",
     .summary =
         "Turns a pack directory back into safetensors shards with their index and the other "
         "files. OUT_DIR must not exist or be empty.",
     .options = unpack_options,
     .option_count = COUNT(unpack_options),
     .run = q3_command_unpack},
    {.name = "pool",
     .arguments = "PROFILE...",
     .summary = "Chooses a pool of experts from profiles, which q3-run profile makes.",
     .options = pool_options,
     .option_count = COUNT(pool_options),
     .run = q3_command_pool},
    {.name = "heatmap",
     .arguments = "PROFILE",
     .summary = "Draws how much each expert of each layer is used, as SVG.",
     .options = heatmap_options,
     .option_count = COUNT(heatmap_options),
     .run = q3_command_heatmap},
    {.name = "export",
     .arguments = "PACK OUT",
     .summary = "Writes the model, whole or with the experts of a pool only, for other programs: a "
                "safetensors checkpoint (OUT must not exist or be empty) or a GGUF file.",
     .options = export_options,
     .option_count = COUNT(export_options),
     .run = q3_command_export},
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-pack",
        .summary =
            "Looks into pack directories, turns them back into checkpoints, chooses pools of "
            "experts, and exports the model for other programs.",
        .commands = commands,
        .command_count = COUNT(commands),
    };
    return q3_program_main(&program, argc, argv);
}
