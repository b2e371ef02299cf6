// SPDX-License-Identifier: Apache-2.0
//
// config.json: the text model's configuration, the inventory that follows from it, and the manifest
// that follows from that. A manifest made from a configuration that is accepted can be read.
#include "fuzz.h"
#include "manifest.h"

#include <stdlib.h>

static void check_manifest(const q3_manifest *manifest)
{
    q3_error err;
    q3_json_writer writer = {0};
    q3_json json;
    q3_manifest again;
    FUZZ_CHECK(q3_manifest_write(manifest, &writer, &err));
    FUZZ_CHECK(
        q3_json_parse("manifest", (q3_bytes){(uint8_t *)writer.text, writer.size}, &json, &err));
    if (!q3_manifest_read(&json, &again, &err))
        fuzz_violated(__FILE__, __LINE__, err.message);
    FUZZ_CHECK(again.inventory.tensors == manifest->inventory.tensors);
    FUZZ_CHECK(again.inventory.bytes == manifest->inventory.bytes);
    q3_manifest_free(&again);
    q3_json_free(&json);
    q3_json_writer_free(&writer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_json json;
    uint8_t *text = fuzz_copy((q3_bytes){data, size});
    if (q3_json_parse("config.json", (q3_bytes){text, size}, &json, &err)) {
        q3_config config;
        q3_inventory inventory;
        q3_manifest manifest;
        const bool read = q3_config_read(&json, &config, &err);
        if (read) {
            FUZZ_CHECK(config.num_experts_per_tok <= config.num_experts);
            FUZZ_CHECK(config.num_attention_heads % config.num_key_value_heads == 0);
            FUZZ_CHECK(config.head_dim % 2 == 0);
        }
        const bool derived = q3_inventory_derive(&json, &inventory, &err);
        if (derived) {
            FUZZ_CHECK(read);
            fuzz_check_inventory(&inventory);
            q3_inventory_free(&inventory);
        }
        if (q3_manifest_derive(&json, &manifest, &err)) {
            FUZZ_CHECK(derived);
            check_manifest(&manifest);
            q3_manifest_free(&manifest);
        }
        q3_json_free(&json);
    }
    free(text);
    return 0;
}
