// SPDX-License-Identifier: Apache-2.0
//
// Every byte of a pack directory against its checksums, and, when a source is given, against the
// checkpoint that it was made from.
#ifndef Q3_PACKS_H
#define Q3_PACKS_H

#include "report.h"
#include "sample.h"

typedef struct q3_packs_options {
    const char *source;      // directory of the checkpoint, or NULL
    const q3_sample *sample; // look at these tensors only, or NULL
    bool deep;               // decode every frame too; always so with a source
    unsigned jobs;           // threads; 0 for one a processor
    bool quiet;              // no progress line
} q3_packs_options;

// Checks, and reports all that is wrong:
// - copies: size and hash;
// - pack files: header, directory, size, root and names as pack.json says; every frame's stored
//   bytes against its hash; padding all zero; and when `deep`, that every frame decodes, and every
//   tensor's hash;
// - pack.json: each tensor in the file where it belongs, the numbers of tensors and bytes of each
//   component, and those that the copied configuration promises;
// - files in the directory that pack.json does not list;
// - with a source: shards' sizes and header hashes, where each tensor came from, its dtype, shape
//   and bytes, and the copied files.
// Of a sample only the bytes of frames, and the padding behind them, are left out; the report has a
// note of that, and one when frames are not decoded.
// The findings come in the same order whatever the number of threads. Memory is bounded by three
// frames a thread. False only when nothing could be examined: no sound pack.json or config.json, no
// sound index of the source, no memory, an interruption.
bool q3_packs_check(const char *directory, const q3_packs_options *options, q3_findings *report,
                    q3_error *err);

#endif
