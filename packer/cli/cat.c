// SPDX-License-Identifier: Apache-2.0
#include "cli.h"
#include "set.h"

#include <stdlib.h>
#include <unistd.h>

static bool write_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_error *err)
{
    q3_coder *coder = q3_coder_create(err);
    q3_hasher *hasher = coder ? q3_hasher_create(err) : NULL;
    const size_t scratch = q3_pack_longest_frame(pack);
    uint8_t *stored = hasher ? q3_alloc(scratch, 1, err) : NULL;
    uint8_t *raw = stored ? q3_alloc(tensor->frame_bytes, 1, err) : NULL;
    bool ok = raw != NULL;
    for (uint32_t i = 0; ok && i < tensor->frame_count; i++) {
        const size_t size = pack->frames[tensor->first_frame + i].raw_bytes;
        ok = q3_pack_read_frame(pack, tensor, i, coder, stored, raw, err) &&
             q3_write_all(STDOUT_FILENO, "standard output", raw, size, err);
        if (ok)
            q3_hasher_update(hasher, raw, size);
    }
    ok = ok && q3_pack_check_tensor(pack, tensor, q3_hasher_finish(hasher), err);
    free(raw);
    free(stored);
    q3_hasher_destroy(hasher);
    q3_coder_destroy(coder);
    return ok;
}

int q3_command_cat(const char *const *arguments)
{
    q3_error err;
    q3_set set;
    uint32_t index;
    if (!q3_set_open(arguments[0], &set, &err))
        return q3_report(&err);
    const q3_set_file *file = q3_set_find_tensor(&set, arguments[1], &index);
    bool ok = file || q3_fail(&err, Q3_USAGE, "%s: has no tensor %s", arguments[0], arguments[1]);
    q3_pack pack;
    if (ok && (ok = q3_set_open_pack(&set, file, &pack, &err))) {
        ok = write_tensor(&pack, &pack.tensors[index], &err);
        q3_pack_close(&pack);
    }
    q3_set_close(&set);
    return ok ? Q3_DONE : q3_report(&err);
}
