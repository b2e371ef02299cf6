// SPDX-License-Identifier: Apache-2.0
//
// Manifests. One that is accepted, written and read again, gives the same text.
#include "manifest.h"
#include "fuzz.h"

#include <stdlib.h>

static bool read_text(const char *text, size_t size, q3_manifest *manifest, q3_error *err)
{
    q3_json json;
    if (!q3_json_parse("manifest", (q3_bytes){(const uint8_t *)text, size}, &json, err))
        return false;
    const bool ok = q3_manifest_read(&json, manifest, err);
    q3_json_free(&json);
    return ok;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_manifest manifest, again;
    uint8_t *text = fuzz_copy((q3_bytes){data, size});
    if (read_text((const char *)text, size, &manifest, &err)) {
        q3_json_writer first = {0}, second = {0};
        fuzz_check_inventory(&manifest.inventory);
        FUZZ_CHECK(q3_manifest_write(&manifest, &first, &err));
        if (!read_text(first.text, first.size, &again, &err))
            fuzz_violated(__FILE__, __LINE__, err.message);
        FUZZ_CHECK(q3_manifest_write(&again, &second, &err));
        FUZZ_CHECK(first.size == second.size && memcmp(first.text, second.text, first.size) == 0);
        q3_manifest_free(&again);
        q3_manifest_free(&manifest);
        q3_json_writer_free(&first);
        q3_json_writer_free(&second);
    }
    free(text);
    return 0;
}
