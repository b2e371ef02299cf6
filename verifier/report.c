// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_MAX = 4096 };

static const char *const kind_names[Q3_FINDING_KINDS] = {
    [Q3_FINDING_MISSING] = "missing",
    [Q3_FINDING_UNKNOWN] = "unknown",
    [Q3_FINDING_DTYPE] = "dtype",
    [Q3_FINDING_SHAPE] = "shape",
    [Q3_FINDING_BYTES] = "bytes",
    [Q3_FINDING_DUPLICATE] = "duplicate",
    [Q3_FINDING_INDEX] = "index",
    [Q3_FINDING_ABSENT] = "absent",
    [Q3_FINDING_SIZE] = "size",
    [Q3_FINDING_MALFORMED] = "malformed",
    [Q3_FINDING_CONFIG] = "config",
    [Q3_FINDING_TOKENIZER] = "tokenizer",
    [Q3_FINDING_DAMAGED] = "damaged",
    [Q3_FINDING_STRAY] = "stray",
    [Q3_FINDING_SOURCE] = "source",
    [Q3_FINDING_NAN] = "nan",
    [Q3_FINDING_ZERO] = "zero",
    [Q3_FINDING_CONSTANT] = "constant",
    [Q3_FINDING_UNREADABLE] = "unreadable",
};

const char *q3_finding_kind_name(q3_finding_kind kind)
{
    return kind_names[kind];
}

bool q3_finding_kind_parse(const char *name, q3_finding_kind *kind)
{
    for (unsigned i = 0; i < Q3_FINDING_KINDS; i++)
        if (strcmp(kind_names[i], name) == 0) {
            *kind = (q3_finding_kind)i;
            return true;
        }
    return false;
}

bool q3_findings_add(q3_findings *report, const q3_finding *finding, q3_error *err,
                     const char *format, ...)
{
    char text[MESSAGE_MAX], message[MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    q3_printable(message, sizeof message, text);
    q3_finding own = *finding;
    own.message = message;
    const char **const strings[] = {&own.tensor, &own.file,   &own.expected, &own.found,
                                    &own.group,  &own.detail, &own.message};
    enum { STRINGS = sizeof strings / sizeof *strings };
    size_t size = 0;
    for (size_t i = 0; i < STRINGS; i++)
        size += *strings[i] ? strlen(*strings[i]) + 1 : 0;
    if (!q3_grow(&report->findings, &report->capacity, report->count + 1, sizeof own, err) ||
        !q3_grow(&report->texts, &report->text_capacity, report->count + 1, sizeof *report->texts,
                 err))
        return false;
    char *to = q3_alloc(size, 1, err);
    if (!to)
        return false;
    report->texts[report->count] = to;
    for (size_t i = 0; i < STRINGS; i++)
        if (*strings[i]) {
            const size_t bytes = strlen(*strings[i]) + 1;
            *strings[i] = memcpy(to, *strings[i], bytes);
            to += bytes;
        }
    report->findings[report->count++] = own;
    report->counts[own.kind]++;
    return true;
}

bool q3_sentences_add(q3_sentences *sentences, q3_error *err, const char *format, ...)
{
    char text[MESSAGE_MAX], message[MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    q3_printable(message, sizeof message, text);
    char *copy = NULL;
    if (!q3_grow(&sentences->texts, &sentences->capacity, sentences->count + 1,
                 sizeof *sentences->texts, err) ||
        !(copy = q3_format(err, "%s", message)))
        return false;
    sentences->texts[sentences->count++] = copy;
    return true;
}

static void free_sentences(q3_sentences *sentences)
{
    for (size_t i = 0; i < sentences->count; i++)
        free(sentences->texts[i]);
    free(sentences->texts);
}

void q3_findings_free(q3_findings *report)
{
    for (size_t i = 0; i < report->count; i++)
        free(report->texts[i]);
    free(report->texts);
    free(report->findings);
    free_sentences(&report->causes);
    free_sentences(&report->notes);
    *report = (q3_findings){0};
}

uint64_t q3_findings_differences(const q3_findings *report)
{
    uint64_t count = 0;
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (!report->allowed[kind])
            count += report->counts[kind];
    return count;
}

int q3_findings_exit_code(const q3_findings *report)
{
    const uint64_t count = q3_findings_differences(report);
    if (count == 0)
        return Q3_DONE;
    const bool only_unreadable =
        !report->allowed[Q3_FINDING_UNREADABLE] && report->counts[Q3_FINDING_UNREADABLE] == count;
    return only_unreadable ? Q3_FAILED : Q3_MISMATCH;
}
