// SPDX-License-Identifier: Apache-2.0
//
// q3-pack: the commands and their options. What they do is in cli/.
#include "cli/cli.h"

#define COUNT(list) (sizeof(list) / sizeof *(list))

q3_pack_options q3_options;

#define O q3_options

static const q3_option output_options[] = {
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option unpack_options[] = {
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
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-pack",
        .summary = "Looks into pack directories and turns them back into checkpoints.",
        .commands = commands,
        .command_count = COUNT(commands),
    };
    return q3_program_main(&program, argc, argv);
}
