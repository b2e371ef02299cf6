// SPDX-License-Identifier: Apache-2.0
//
// Names, dtypes and shapes against a manifest, from headers alone. What a checkpoint or a pack
// directory says of its tensors is first brought into one form, a listing; one comparison then
// serves both, and tests, without touching a file.
#ifndef Q3_SHAPES_H
#define Q3_SHAPES_H

#include "manifest.h"
#include "report.h"

// The manifest's tensors one by one, sorted by name.
typedef struct q3_expected_tensor {
    const char *name;
    const q3_pattern *pattern; // of the manifest, which must outlive this
} q3_expected_tensor;

typedef struct q3_expectation {
    q3_expected_tensor *tensors;
    size_t count;
    char *names; // what the names point to
} q3_expectation;

bool q3_expectation_create(const q3_manifest *manifest, q3_expectation *expectation, q3_error *err);
void q3_expectation_free(q3_expectation *expectation); // a zeroed one is fine

// What an index lists, and what became of it.
typedef enum q3_presence {
    Q3_PRESENT,         // the file's header describes the tensor
    Q3_FILE_ABSENT,     // the file that should hold it does not exist
    Q3_FILE_UNREADABLE, // the system could not read the file
    Q3_FILE_UNSOUND,    // the file's header could not be used
    Q3_FILE_LACKS,      // the file does not hold it
} q3_presence;

typedef struct q3_listing_entry {
    q3_tensor tensor; // only the name unless present; borrowed
    const char *file; // borrowed
    q3_presence presence;
} q3_listing_entry;

typedef struct q3_listing {
    const char *index; // what lists the tensors: "model.safetensors.index.json", "pack.json"
    q3_listing_entry *entries;
    size_t count;
} q3_listing;

// Compares and reports every difference: missing, unknown, duplicate, dtype, shape, bytes. Tensors
// of components outside `scope` are not compared; names that the manifest does not know are
// reported whatever the scope. Sorts the listing. report->tensors grows by what was expected.
bool q3_shapes_compare(const q3_expectation *expectation, const bool scope[Q3_COMPONENTS],
                       q3_listing *listing, q3_findings *report, q3_error *err);

typedef struct q3_shapes_options {
    // Of Q3_COMPONENTS, or NULL: of a checkpoint all that the manifest has; of a pack directory the
    // components that it holds anything of.
    const bool *scope;
    bool headers_only; // of the shards only the first bytes need be there
    bool data;         // also read the weights (data.h)
    bool sha256;       // also compare the shards' SHA-256 with the manifest's (shards.h)
    unsigned jobs;     // threads for the two; 0 for one a processor
    bool quiet;        // no progress line
} q3_shapes_options;

// Compares a checkpoint or a pack directory (which is what has a pack.json), its configuration and
// its tokenizer files. Contradictions inside the checkpoint or the pack directory are reported too,
// and what may have caused many findings (diagnosis.h). False only when nothing could be compared.
bool q3_shapes_check(const char *path, const q3_manifest *manifest,
                     const q3_shapes_options *options, q3_findings *report, q3_error *err);

#endif
