// SPDX-License-Identifier: Apache-2.0
//
// The files beside the weights against the manifest: config.json must mean the same model, and the
// tokenizer's ids must fit the vocabulary.
#ifndef Q3_COMPANIONS_H
#define Q3_COMPANIONS_H

#include "manifest.h"
#include "report.h"

// Reports
// - config.json: absent, malformed, not supported, or of another type, dtype, set of components,
//   size or number of layers and experts than the manifest;
// - vocab.json, merges.txt, tokenizer_config.json and tokenizer.json, each where it is there: ids
//   twice, with gaps, or beyond the vocabulary; an added token that takes another token's id;
//   merges of tokens that there are not. Where none is there a note says so.
// The directory is a checkpoint or a pack directory.
bool q3_companions_check(const char *directory, const q3_manifest *manifest, q3_findings *report,
                         q3_error *err);

#endif
