// SPDX-License-Identifier: Apache-2.0
//
// The report: every check hands its findings to one collector, and what a finding looks like on
// paper is decided here alone. A check does not stop at its first finding.
#ifndef Q3_REPORT_H
#define Q3_REPORT_H

#include "base/json.h"

#include <stdio.h>

typedef enum q3_finding_kind {
    // A tensor against the manifest.
    Q3_FINDING_MISSING,   // expected, and not there
    Q3_FINDING_UNKNOWN,   // there, and not expected
    Q3_FINDING_DTYPE,     // of another type
    Q3_FINDING_SHAPE,     // of another shape
    Q3_FINDING_BYTES,     // of another size than dtype and shape make
    Q3_FINDING_DUPLICATE, // there more than once
    // A file, or what it says about others.
    Q3_FINDING_INDEX,      // index, shards, pack.json and pack files contradict each other
    Q3_FINDING_ABSENT,     // a file that is listed does not exist
    Q3_FINDING_MALFORMED,  // a file breaks the rules of its format
    Q3_FINDING_DAMAGED,    // bytes that a checksum does not vouch for
    Q3_FINDING_STRAY,      // a file that nothing lists
    Q3_FINDING_SOURCE,     // a pack does not hold what its source holds
    Q3_FINDING_UNREADABLE, // the system could not read it
    Q3_FINDING_KINDS
} q3_finding_kind;

// "missing", "unknown", "dtype", …: the words of reports.
const char *q3_finding_kind_name(q3_finding_kind kind);

// Everything but kind and message may be NULL.
typedef struct q3_finding {
    q3_finding_kind kind;
    const char *tensor;           // its name
    const char *file;             // that holds it or should, or that the finding is about
    const char *expected, *found; // as text
    const char *group;            // a name for what repeats, such as the tensor's pattern
    const char *message;          // one sentence that stands alone
} q3_finding;

typedef struct q3_findings {
    const char *command;            // "shapes"
    const char *path;               // what was examined
    const char *against;            // the manifest or source that it was compared with, or NULL
    uint64_t tensors, files, bytes; // that were examined
    q3_finding *findings;           // in the order in which they were added
    char **texts;                   // what the strings of each finding point into
    size_t count, capacity, text_capacity;
    uint64_t counts[Q3_FINDING_KINDS];
} q3_findings;

// Adds a finding; its message is the formatted text, made safe to print. The strings are copied.
bool q3_findings_add(q3_findings *report, const q3_finding *finding, q3_error *err,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));
void q3_findings_free(q3_findings *report);

// For people: findings by kind, the first Q3_FINDINGS_SHOWN of each kind in full and the others
// counted by group, the largest groups first, and a last line such as "0 differences in 2,610
// tensors".
enum { Q3_FINDINGS_SHOWN = 20 };
void q3_findings_print(const q3_findings *report, FILE *file);

// For programs: one object with all findings.
bool q3_findings_write(const q3_findings *report, q3_json_writer *writer, q3_error *err);

// The exit code: Q3_DONE without findings; Q3_FAILED when all that was found is that files could
// not be read; else Q3_MISMATCH.
int q3_findings_exit_code(const q3_findings *report);

#endif
