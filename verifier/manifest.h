// SPDX-License-Identifier: Apache-2.0
//
// Manifests: an inventory as a JSON file that people read, review and keep under version control.
// A manifest lists name patterns with ranges and shapes in terms of named values, and the totals
// that follow from them. manifests/manifest.schema.json describes the layout, manifests/README.md
// what it means.
#ifndef Q3_MANIFEST_H
#define Q3_MANIFEST_H

#include "model/inventory.h"
#include "sha256.h"

enum { Q3_MANIFEST_VERSION = 1 };

// Totals of a component, or of all of them.
typedef struct q3_totals {
    uint64_t tensors, parameters, bytes;
} q3_totals;

// One file of the checkpoint.
typedef struct q3_manifest_shard {
    char *name;
    uint64_t bytes;
    uint8_t sha256[Q3_SHA256_BYTES];
} q3_manifest_shard;

typedef struct q3_manifest {
    char *model_type;       // of the configuration, such as "qwen3_omni_moe"
    q3_dtype dtype;         // of every pattern that does not name its own
    q3_inventory inventory; // a manifest does not say which pack file holds a tensor: the `part` of
                            // patterns that were read is Q3_WHOLE
    q3_manifest_shard *shards; // sorted by name; none when the manifest does not say
    size_t shard_count, shard_capacity;
} q3_manifest;

// Makes the manifest of a configuration (config.json).
bool q3_manifest_derive(const q3_json *config, q3_manifest *manifest, q3_error *err);

// Adds a shard; names must be added in ascending order.
bool q3_manifest_add_shard(q3_manifest *manifest, const char *name, uint64_t bytes,
                           const uint8_t sha256[Q3_SHA256_BYTES], q3_error *err);

// Reads a manifest, strictly: no unknown keys, every dimension at least 1, totals that are those of
// the patterns, and no tensor that two patterns name.
bool q3_manifest_read(const q3_json *json, q3_manifest *manifest, q3_error *err);
// The same from a file of at most 16 MiB.
bool q3_manifest_load(const char *path, q3_manifest *manifest, q3_error *err);
void q3_manifest_free(q3_manifest *manifest); // a zeroed one is fine

// Writes it as a JSON document with a line for each pattern. The same manifest gives the same text.
bool q3_manifest_write(const q3_manifest *manifest, q3_json_writer *writer, q3_error *err);

// The totals of the components with scope[component] true.
q3_totals q3_manifest_totals(const q3_manifest *manifest, const bool scope[Q3_COMPONENTS]);

#endif
