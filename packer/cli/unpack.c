// SPDX-License-Identifier: Apache-2.0
#include "unpack.h"
#include "base/text.h"
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>

int q3_command_unpack(const char *const *arguments)
{
    q3_error err;
    const q3_unpack_options options = {
        .pack_directory = arguments[0],
        .output_directory = arguments[1],
        .jobs = q3_options.jobs ? (unsigned)q3_options.jobs : q3_workers_default(),
        .quiet = q3_options.quiet,
    };
    q3_unpack_result result;
    if (!q3_unpack(&options, &result, &err))
        return q3_report(&err);
    char tensors[Q3_GROUPED_MAX], bytes[Q3_GROUPED_MAX];
    if (!q3_options.quiet)
        printf("%s tensors, %s, in %" PRIu64 " shards in %.1f s\n",
               q3_grouped(result.tensors, tensors), q3_human_bytes(result.bytes, bytes),
               result.shards, result.seconds);
    return Q3_DONE;
}
