// SPDX-License-Identifier: Apache-2.0
//
// Reports for programs: JSON lines, JUnit XML, annotations of GitHub Actions.
#include "report.h"

#include "base/file.h"
#include "base/text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// ---- JSON lines ----

static void put_optional(q3_json_writer *writer, const char *key, const char *value)
{
    if (value)
        q3_json_put_string(writer, key, value);
}

static void begin_line(q3_json_writer *writer, const char *type)
{
    q3_json_inline(writer);
    q3_json_begin_object(writer, NULL);
    q3_json_put_string(writer, "type", type);
}

static bool end_line(q3_json_writer *writer, q3_error *err)
{
    q3_json_end_object(writer);
    return q3_json_finish(writer, err);
}

static bool write_sentences(q3_json_writer *writer, const char *type, const q3_sentences *sentences,
                            q3_error *err)
{
    for (size_t i = 0; i < sentences->count; i++) {
        begin_line(writer, type);
        q3_json_put_string(writer, "message", sentences->texts[i]);
        if (!end_line(writer, err))
            return false;
    }
    return true;
}

bool q3_findings_write(const q3_findings *report, q3_json_writer *writer, q3_error *err)
{
    for (size_t i = 0; i < report->count; i++) {
        const q3_finding *finding = &report->findings[i];
        begin_line(writer, "finding");
        q3_json_put_string(writer, "kind", q3_finding_kind_name(finding->kind));
        put_optional(writer, "tensor", finding->tensor);
        put_optional(writer, "file", finding->file);
        put_optional(writer, "expected", finding->expected);
        put_optional(writer, "found", finding->found);
        q3_json_put_string(writer, "message", finding->message);
        if (!end_line(writer, err))
            return false;
    }
    if (!write_sentences(writer, "cause", &report->causes, err) ||
        !write_sentences(writer, "note", &report->notes, err))
        return false;
    begin_line(writer, "summary");
    q3_json_put_string(writer, "command", report->command);
    q3_json_put_string(writer, "path", report->path);
    put_optional(writer, "against", report->against);
    q3_json_put_u64(writer, "tensors", report->tensors);
    q3_json_put_u64(writer, "files", report->files);
    q3_json_put_u64(writer, "bytes", report->bytes);
    q3_json_put_u64(writer, "differences", q3_findings_differences(report));
    q3_json_begin_object(writer, "counts");
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (report->counts[kind])
            q3_json_put_u64(writer, q3_finding_kind_name((q3_finding_kind)kind),
                            report->counts[kind]);
    q3_json_end_object(writer);
    return end_line(writer, err);
}

// ---- JUnit ----

// As text or attribute. Messages are printable UTF-8 by now; paths from the command line need not
// be.
static void put_xml(FILE *file, const char *text)
{
    char printable[4096];
    q3_printable(printable, sizeof printable, text);
    for (const char *at = printable; *at; at++)
        switch (*at) {
        case '&':
            fputs("&amp;", file);
            break;
        case '<':
            fputs("&lt;", file);
            break;
        case '>':
            fputs("&gt;", file);
            break;
        case '"':
            fputs("&quot;", file);
            break;
        default:
            putc(*at, file);
        }
}

static void put_attribute(FILE *file, const char *name, const char *value)
{
    fprintf(file, " %s=\"", name);
    put_xml(file, value);
    putc('"', file);
}

static void put_property(FILE *file, const char *name, const char *value)
{
    fputs("      <property", file);
    put_attribute(file, "name", name);
    put_attribute(file, "value", value);
    fputs("/>\n", file);
}

static bool is_failed(const q3_findings *report, unsigned kind)
{
    return report->counts[kind] && !report->allowed[kind];
}

static void put_case(FILE *file, const q3_findings *report, const q3_summary *summary,
                     unsigned kind)
{
    const char *name = q3_finding_kind_name((q3_finding_kind)kind);
    char number[Q3_GROUPED_MAX], class[64], message[128];
    snprintf(class, sizeof class, "q3-verify.%s", report->command);
    fputs("    <testcase", file);
    put_attribute(file, "name", name);
    put_attribute(file, "classname", class);
    fputs(" time=\"0\"", file);
    if (!is_failed(report, kind)) {
        fputs("/>\n", file);
        return;
    }
    // What could not be read is an error of the run, not a fault that it found.
    const char *element = kind == Q3_FINDING_UNREADABLE ? "error" : "failure";
    snprintf(message, sizeof message, "%s %s", q3_grouped(report->counts[kind], number), name);
    fprintf(file, ">\n      <%s", element);
    put_attribute(file, "message", message);
    put_attribute(file, "type", name);
    putc('>', file);
    for (size_t i = 0; i < summary->count; i++)
        if ((unsigned)summary->lines[i].kind == kind) {
            put_xml(file, summary->lines[i].text);
            putc('\n', file);
        }
    fprintf(file, "</%s>\n    </testcase>\n", element);
}

static void put_junit(FILE *file, const q3_findings *report, const q3_summary *summary)
{
    unsigned failures = 0, errors = 0;
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        if (is_failed(report, kind))
            ++*(kind == Q3_FINDING_UNREADABLE ? &errors : &failures);
    const time_t now = time(NULL);
    struct tm utc = {0};
    char stamp[32] = "1970-01-01T00:00:00";
    if (gmtime_r(&now, &utc))
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite", file);
    put_attribute(file, "name", report->command);
    put_attribute(file, "package", "q3-verify");
    fprintf(file, " id=\"0\" timestamp=\"%s\" hostname=\"localhost\"", stamp);
    fprintf(file, " tests=\"%d\" failures=\"%u\" errors=\"%u\" time=\"%.3f\">\n",
            (int)Q3_FINDING_KINDS, failures, errors, report->seconds);
    fputs("    <properties>\n", file);
    put_property(file, "path", report->path);
    if (report->against)
        put_property(file, "against", report->against);
    char number[24];
    snprintf(number, sizeof number, "%" PRIu64, report->tensors);
    put_property(file, "tensors", number);
    snprintf(number, sizeof number, "%" PRIu64, report->files);
    put_property(file, "files", number);
    fputs("    </properties>\n", file);
    for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
        put_case(file, report, summary, kind);
    fputs("    <system-out>", file);
    for (size_t i = 0; i < report->causes.count; i++) {
        fputs("cause: ", file);
        put_xml(file, report->causes.texts[i]);
        putc('\n', file);
    }
    for (size_t i = 0; i < report->notes.count; i++) {
        fputs("note: ", file);
        put_xml(file, report->notes.texts[i]);
        putc('\n', file);
    }
    fputs("</system-out>\n    <system-err></system-err>\n  </testsuite>\n</testsuites>\n", file);
}

bool q3_findings_write_junit(const q3_findings *report, const char *path, q3_error *err)
{
    // More lines than a screen holds, and fewer than a test report chokes on.
    enum { JUNIT_LINES = 1000 };
    q3_summary summary;
    if (!q3_summary_create(report, JUNIT_LINES, &summary, err))
        return false;
    q3_memory text;
    bool ok = q3_memory_open(&text, err);
    if (ok) {
        put_junit(text.stream, report, &summary);
        ok = q3_memory_close(&text, err);
    }
    q3_summary_free(&summary);
    if (!ok)
        return false;
    ok = q3_file_publish(path, text.data, text.size, err);
    free(text.data);
    return ok;
}

// ---- GitHub ----

// Escaped as the runner unescapes it; a property's value more than the message.
static void put_escaped(FILE *file, const char *text, bool property)
{
    for (; *text; text++)
        if (*text == '%' || *text == '\r' || *text == '\n' ||
            (property && (*text == ':' || *text == ',')))
            fprintf(file, "%%%02X", (unsigned)(unsigned char)*text);
        else
            putc(*text, file);
}

static void annotate(FILE *file, const char *level, const char *path, const char *title,
                     const char *message)
{
    fprintf(file, "::%s ", level);
    if (path) {
        fputs("file=", file);
        put_escaped(file, path, true);
        putc(',', file);
    }
    fputs("title=", file);
    put_escaped(file, title, true);
    fputs("::", file);
    put_escaped(file, message, false);
    putc('\n', file);
}

bool q3_findings_annotate(const q3_findings *report, FILE *file, q3_error *err)
{
    unsigned left = Q3_ANNOTATIONS_MAX;
    char title[128], path[4096];
    snprintf(title, sizeof title, "q3-verify %s: cause", report->command);
    for (size_t i = 0; i < report->causes.count && left; i++, left--)
        annotate(file, "error", NULL, title, report->causes.texts[i]);
    q3_summary summary;
    if (!q3_summary_create(report, left, &summary, err))
        return false;
    for (size_t i = 0; i < summary.count && left; i++, left--) {
        const q3_summary_line *line = &summary.lines[i];
        const char *about = line->count == 1 ? line->example->file : NULL;
        if (about) {
            char full[4096];
            const bool is_path = strncmp(about, report->path, strlen(report->path)) == 0;
            snprintf(full, sizeof full, "%s%s%s", is_path ? "" : report->path, is_path ? "" : "/",
                     about);
            q3_printable(path, sizeof path, full);
        }
        snprintf(title, sizeof title, "q3-verify %s: %s", report->command,
                 q3_finding_kind_name(line->kind));
        annotate(file, report->allowed[line->kind] ? "warning" : "error", about ? path : NULL,
                 title, line->text);
    }
    q3_summary_free(&summary);
    return true;
}
