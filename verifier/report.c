// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS_SHOWN = 20, MESSAGE_MAX = 4096 };

static const char *const kind_names[Q3_FINDING_KINDS] = {
    [Q3_FINDING_MISSING] = "missing",      [Q3_FINDING_UNKNOWN] = "unknown",
    [Q3_FINDING_DTYPE] = "dtype",          [Q3_FINDING_SHAPE] = "shape",
    [Q3_FINDING_BYTES] = "bytes",          [Q3_FINDING_DUPLICATE] = "duplicate",
    [Q3_FINDING_INDEX] = "index",          [Q3_FINDING_ABSENT] = "absent",
    [Q3_FINDING_MALFORMED] = "malformed",  [Q3_FINDING_DAMAGED] = "damaged",
    [Q3_FINDING_STRAY] = "stray",          [Q3_FINDING_SOURCE] = "source",
    [Q3_FINDING_UNREADABLE] = "unreadable"};

const char *q3_finding_kind_name(q3_finding_kind kind)
{
    return kind_names[kind];
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
    const char **const strings[] = {&own.tensor, &own.file,  &own.expected,
                                    &own.found,  &own.group, &own.message};
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

void q3_findings_free(q3_findings *report)
{
    for (size_t i = 0; i < report->count; i++)
        free(report->texts[i]);
    free(report->texts);
    free(report->findings);
    *report = (q3_findings){0};
}

int q3_findings_exit_code(const q3_findings *report)
{
    if (report->count == 0)
        return Q3_DONE;
    return report->counts[Q3_FINDING_UNREADABLE] == report->count ? Q3_FAILED : Q3_MISMATCH;
}

// ---- for people ----

typedef struct group {
    const char *name;
    uint64_t count;
} group;

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const group *)a)->name, ((const group *)b)->name);
}

static int compare_counts(const void *a, const void *b)
{
    const group *left = a, *right = b;
    const int order = (left->count < right->count) - (left->count > right->count);
    return order ? order : compare_names(a, b);
}

// The groups of the findings of a kind behind the first Q3_FINDINGS_SHOWN, the largest first. NULL
// when memory runs out: a report then goes without them.
static group *count_groups(const q3_findings *report, q3_finding_kind kind, size_t *count)
{
    q3_error ignored;
    uint64_t seen = 0;
    size_t named = 0;
    *count = 0;
    group *groups = q3_alloc((size_t)report->counts[kind], sizeof *groups, &ignored);
    for (size_t i = 0; groups && i < report->count; i++)
        if (report->findings[i].kind == kind && seen++ >= Q3_FINDINGS_SHOWN &&
            report->findings[i].group)
            groups[named++] = (group){report->findings[i].group, 1};
    if (named == 0)
        return groups;
    qsort(groups, named, sizeof *groups, compare_names);
    for (size_t i = 0; i < named; i++)
        if (*count && strcmp(groups[*count - 1].name, groups[i].name) == 0)
            groups[*count - 1].count++;
        else
            groups[(*count)++] = groups[i];
    qsort(groups, *count, sizeof *groups, compare_counts);
    return groups;
}

static void print_kind(const q3_findings *report, q3_finding_kind kind, FILE *file)
{
    char number[Q3_GROUPED_MAX], name[1024];
    uint64_t shown = 0;
    fprintf(file, "%s (%s):\n", kind_names[kind], q3_grouped(report->counts[kind], number));
    for (size_t i = 0; i < report->count && shown < Q3_FINDINGS_SHOWN; i++)
        if (report->findings[i].kind == kind) {
            fprintf(file, "  %s\n", report->findings[i].message);
            shown++;
        }
    if (report->counts[kind] == shown)
        return;
    size_t count;
    group *groups = count_groups(report, kind, &count);
    uint64_t others = report->counts[kind] - shown;
    fprintf(file, "  and %s more:\n", q3_grouped(others, number));
    for (size_t i = 0; i < count && i < GROUPS_SHOWN; i++) {
        q3_printable(name, sizeof name, groups[i].name);
        fprintf(file, "    %s in %s\n", q3_grouped(groups[i].count, number), name);
        others -= groups[i].count;
    }
    free(groups);
    if (others)
        fprintf(file, "    %s others (--json lists all)\n", q3_grouped(others, number));
}

void q3_findings_print(const q3_findings *report, FILE *file)
{
    char number[Q3_GROUPED_MAX];
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (report->counts[kind])
            print_kind(report, (q3_finding_kind)kind, file);
    fprintf(file, "%s difference%s", q3_grouped(report->count, number),
            report->count == 1 ? "" : "s");
    fprintf(file, " in %s tensor%s", q3_grouped(report->tensors, number),
            report->tensors == 1 ? "" : "s");
    if (report->files)
        fprintf(file, ", %s file%s", q3_grouped(report->files, number),
                report->files == 1 ? "" : "s");
    if (report->bytes)
        fprintf(file, ", %s", q3_human_bytes(report->bytes, number));
    const char *before = " (";
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (report->counts[kind]) {
            fprintf(file, "%s%s %s", before, q3_grouped(report->counts[kind], number),
                    kind_names[kind]);
            before = ", ";
        }
    fputs(report->count ? ")\n" : "\n", file);
}

// ---- for programs ----

static void put_optional(q3_json_writer *writer, const char *key, const char *value)
{
    if (value)
        q3_json_put_string(writer, key, value);
}

bool q3_findings_write(const q3_findings *report, q3_json_writer *writer, q3_error *err)
{
    q3_json_begin_object(writer, NULL);
    q3_json_put_string(writer, "command", report->command);
    q3_json_put_string(writer, "path", report->path);
    put_optional(writer, "against", report->against);
    q3_json_put_u64(writer, "tensors", report->tensors);
    q3_json_put_u64(writer, "files", report->files);
    q3_json_put_u64(writer, "bytes", report->bytes);
    q3_json_put_u64(writer, "differences", report->count);
    q3_json_inline(writer);
    q3_json_begin_object(writer, "counts");
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (report->counts[kind])
            q3_json_put_u64(writer, kind_names[kind], report->counts[kind]);
    q3_json_end_object(writer);
    q3_json_begin_array(writer, "findings");
    for (size_t i = 0; i < report->count; i++) {
        const q3_finding *finding = &report->findings[i];
        q3_json_inline(writer);
        q3_json_begin_object(writer, NULL);
        q3_json_put_string(writer, "kind", kind_names[finding->kind]);
        put_optional(writer, "tensor", finding->tensor);
        put_optional(writer, "file", finding->file);
        put_optional(writer, "expected", finding->expected);
        put_optional(writer, "found", finding->found);
        q3_json_put_string(writer, "message", finding->message);
        q3_json_end_object(writer);
    }
    q3_json_end_array(writer);
    q3_json_end_object(writer);
    return q3_json_finish(writer, err);
}
