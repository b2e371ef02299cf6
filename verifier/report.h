// SPDX-License-Identifier: Apache-2.0
//
// The report: every check hands its findings to one collector, and what a finding looks like on
// paper is decided here alone (summary.c for people, formats.c for programs). A check does not stop
// at its first finding.
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
    Q3_FINDING_INDEX,     // index, shards, pack.json and pack files contradict each other
    Q3_FINDING_ABSENT,    // a file that is listed does not exist
    Q3_FINDING_SIZE,      // a file is shorter or longer than its header or the manifest says
    Q3_FINDING_MALFORMED, // a file breaks the rules of its format
    Q3_FINDING_CONFIG,    // config.json means another model than the manifest
    Q3_FINDING_TOKENIZER, // tokenizer files contradict themselves or the vocabulary's size
    Q3_FINDING_DAMAGED,   // bytes that a checksum does not vouch for
    Q3_FINDING_STRAY,     // a file that nothing lists
    Q3_FINDING_SOURCE,    // a pack does not hold what its source holds
    // Weights.
    Q3_FINDING_NAN,      // NaN or infinities
    Q3_FINDING_ZERO,     // all of a tensor is zero
    Q3_FINDING_CONSTANT, // rows of one value
    //
    Q3_FINDING_UNREADABLE, // the system could not read it
    Q3_FINDING_KINDS
} q3_finding_kind;

// "missing", "unknown", "dtype", …: the words of reports.
const char *q3_finding_kind_name(q3_finding_kind kind);
bool q3_finding_kind_parse(const char *name, q3_finding_kind *kind);

// Everything but kind and message may be NULL.
typedef struct q3_finding {
    q3_finding_kind kind;
    const char *tensor;           // its name
    const char *file;             // that holds it or should, or that the finding is about
    const char *expected, *found; // as text
    const char *group;            // a name for what repeats, such as the tensor's pattern
    const char *detail;           // what the summary says of all that is alike: "not in the index"
    const char *message;          // one sentence that stands alone
} q3_finding;

// Sentences about the whole.
typedef struct q3_sentences {
    char **texts;
    size_t count, capacity;
} q3_sentences;

typedef struct q3_findings {
    const char *command;            // "shapes"
    const char *path;               // what was examined
    const char *against;            // the manifest or source that it was compared with, or NULL
    uint64_t tensors, files, bytes; // that were examined
    double seconds;                 // that it took
    q3_finding *findings;           // in the order in which they were added
    char **texts;                   // what the strings of each finding point into
    size_t count, capacity, text_capacity;
    uint64_t counts[Q3_FINDING_KINDS];
    bool allowed[Q3_FINDING_KINDS]; // kinds that are reported, and are no difference
    q3_sentences causes;            // what may have made many findings
    q3_sentences notes;             // what was not checked, so that nobody takes it for sound
} q3_findings;

// Adds a finding; its message is the formatted text, made safe to print. The strings are copied.
bool q3_findings_add(q3_findings *report, const q3_finding *finding, q3_error *err,
                     const char *format, ...) __attribute__((format(printf, 4, 5)));
// Adds a sentence to report->causes or report->notes.
bool q3_sentences_add(q3_sentences *sentences, q3_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void q3_findings_free(q3_findings *report);

// Findings of kinds that are not allowed.
uint64_t q3_findings_differences(const q3_findings *report);
// The exit code: Q3_DONE without differences; Q3_FAILED when all of them are that files could not
// be read; else Q3_MISMATCH.
int q3_findings_exit_code(const q3_findings *report);

// What is alike, in one line: "layers 1, 5, 9: experts 76–127 (468 tensors): not in the index".
typedef struct q3_summary_line {
    q3_finding_kind kind;
    char *text;
    uint64_t count;            // of findings; 0 for a line that only counts what is left out
    const q3_finding *example; // the first of them
} q3_summary_line;

typedef struct q3_summary {
    q3_summary_line *lines; // by kind
    size_t count, capacity;
} q3_summary;

enum { Q3_SUMMARY_LINES = 18 };
// Groups the findings. At most `limit` lines, but at least one for each kind there is.
bool q3_summary_create(const q3_findings *report, size_t limit, q3_summary *summary, q3_error *err);
void q3_summary_free(q3_summary *summary);

// For people: causes, the summary of at most Q3_SUMMARY_LINES lines, notes, and a last line such as
// "0 differences in 2,610 tensors". False without memory for it.
bool q3_findings_print(const q3_findings *report, FILE *file, q3_error *err);

// For programs: a JSON object a line: each finding, cause and note, and last the summary.
bool q3_findings_write(const q3_findings *report, q3_json_writer *writer, q3_error *err);
// JUnit XML: one test suite with a test case for each kind of finding.
bool q3_findings_write_junit(const q3_findings *report, const char *path, q3_error *err);
// Annotations of GitHub Actions (workflow commands). GitHub shows ten of them for a step, so there
// is one for each cause and line of the summary, and no more than ten.
enum { Q3_ANNOTATIONS_MAX = 10 };
bool q3_findings_annotate(const q3_findings *report, FILE *file, q3_error *err);

#endif
