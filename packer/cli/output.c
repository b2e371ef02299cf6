// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include <stdio.h>

bool q3_print_json(q3_json_writer *out, q3_error *err)
{
    const bool ok = q3_json_finish(out, err);
    if (ok)
        fputs(out->text, stdout);
    q3_json_writer_free(out);
    return ok;
}
