// SPDX-License-Identifier: Apache-2.0
//
// A checkpoint's shards, as files, against what a manifest says of them: names, sizes and SHA-256.
#ifndef Q3_SHARDS_H
#define Q3_SHARDS_H

#include "checkpoint.h"
#include "manifest.h"
#include "report.h"

// Compares, when the manifest lists shards: names in both directions; sizes unless `headers_only`;
// and where `sha256`, the digests, on `jobs` threads (0 for one a processor). A manifest that lists
// none is a note in the report, and with `sha256` a failure (Q3_USAGE).
bool q3_shards_check(const q3_checkpoint *checkpoint, const q3_manifest *manifest,
                     bool headers_only, bool sha256, unsigned jobs, bool quiet, q3_findings *report,
                     q3_error *err);

// Adds the shards of a sound checkpoint, with their sizes and SHA-256, to a manifest that has none.
bool q3_shards_describe(const q3_checkpoint *checkpoint, unsigned jobs, bool quiet,
                        q3_manifest *manifest, q3_error *err);

#endif
