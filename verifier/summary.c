// SPDX-License-Identifier: Apache-2.0
//
// Groups findings for people. A tensor's finding carries the pattern of its name; its numbers (the
// layer, the expert) are read back from the name, and what differs by them alone becomes one line.
#include "report.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    TEXT_MAX = 600,   // of a line
    RANGES_SHOWN = 4, // in a list of numbers
    ALIKE_SHOWN = 2,  // of findings about files that are alike
    NAMES_SHOWN = 4,  // tensor names within a layer
    LINES_OF_A_FAMILY = 3,
};

// A finding, taken apart. What is compared for grouping stands first.
typedef struct item {
    const q3_finding *finding;
    const char *head; // the pattern, up to the first range; NULL for a finding without a pattern
    size_t head_size;
    const char *middle; // from there to the second range; of one range, NULL
    size_t middle_size;
    const char *tail; // behind the last range
    uint32_t layer, expert;
} item;

static const char *or_empty(const char *text)
{
    return text ? text : "";
}

// The number in place of a range, and where the name goes on.
static const char *take_number(const char *name, uint32_t *number)
{
    char *end;
    *number = (uint32_t)strtoul(name, &end, 10);
    return end;
}

static item take_apart(const q3_finding *finding)
{
    item it = {.finding = finding};
    const char *brace = finding->group && finding->tensor ? strchr(finding->group, '{') : NULL;
    const char *behind = brace ? strchr(brace, '}') : NULL;
    const size_t head_size = brace ? (size_t)(brace - finding->group) : 0;
    if (!behind || strlen(finding->tensor) <= head_size)
        return it;
    it.head = finding->group;
    it.head_size = head_size;
    const char *name = take_number(finding->tensor + head_size, &it.layer);
    it.tail = behind + 1;
    brace = strchr(it.tail, '{');
    behind = brace ? strchr(brace, '}') : NULL;
    if (!behind)
        return it;
    it.middle = it.tail;
    it.middle_size = (size_t)(brace - it.middle);
    if (strlen(name) > it.middle_size)
        take_number(name + it.middle_size, &it.expert);
    it.tail = behind + 1;
    return it;
}

static int compare_runs(const char *a, size_t a_size, const char *b, size_t b_size)
{
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

// Findings of one family differ by numbers and the end of the name.
static int compare_families(const item *a, const item *b)
{
    if (a->finding->kind != b->finding->kind)
        return a->finding->kind < b->finding->kind ? -1 : 1;
    int order = (a->head != NULL) - (b->head != NULL);
    if (order)
        return order;
    if (!a->head) {
        const q3_finding *left = a->finding, *right = b->finding;
        return strcmp(or_empty(left->detail ? left->detail : left->group),
                      or_empty(right->detail ? right->detail : right->group));
    }
    order = strcmp(or_empty(a->finding->detail), or_empty(b->finding->detail));
    if (order == 0)
        order = compare_runs(a->head, a->head_size, b->head, b->head_size);
    if (order == 0)
        order =
            compare_runs(or_empty(a->middle), a->middle_size, or_empty(b->middle), b->middle_size);
    return order;
}

static int compare_items(const void *a, const void *b)
{
    const item *left = a, *right = b;
    int order = compare_families(left, right);
    if (order == 0 && left->head) {
        order = (left->layer > right->layer) - (left->layer < right->layer);
        if (order == 0)
            order = (left->expert > right->expert) - (left->expert < right->expert);
        if (order == 0)
            order = strcmp(left->tail, right->tail);
    }
    // As they were found: findings lie in one array.
    return order ? order : (left->finding > right->finding) - (left->finding < right->finding);
}

// ---- text that grows, up to its end ----

typedef struct text {
    char data[TEXT_MAX];
    size_t size;
} text;

static void put(text *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(text *to, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    const int wanted = vsnprintf(to->data + to->size, TEXT_MAX - to->size, format, arguments);
    va_end(arguments);
    if (wanted > 0)
        to->size += (size_t)wanted;
    if (to->size > TEXT_MAX - 1)
        to->size = TEXT_MAX - 1;
}

// Ascending numbers as ranges, "1, 5–7, 9, …, 45". The last range is always shown.
static void put_numbers(text *to, const uint32_t *numbers, size_t count)
{
    size_t ranges = 0, number = 0;
    for (size_t i = 0; i < count; i++)
        ranges += i == 0 || numbers[i] != numbers[i - 1] + 1;
    for (size_t first = 0, last; first < count; first = last + 1, number++) {
        for (last = first; last + 1 < count && numbers[last + 1] == numbers[last] + 1;)
            last++;
        if (ranges > RANGES_SHOWN + 1 && number >= RANGES_SHOWN && number + 1 < ranges) {
            if (number == RANGES_SHOWN)
                put(to, ", …");
            continue;
        }
        put(to, "%s%" PRIu32, number ? ", " : "", numbers[first]);
        if (last > first)
            put(to, "%s%" PRIu32, last == first + 1 ? ", " : "–", numbers[last]);
    }
}

// ---- one family ----

// What is the matter in one layer: its items lie together.
typedef struct portion {
    size_t from, to;
    uint32_t layer;
    char *what;       // "experts 76–127"
    const char *tail; // of all of them, where it is one: ".up_proj.weight"; else ""
    bool told;
} portion;

typedef struct grouping {
    const q3_findings *report;
    item *items;
    size_t count;
    q3_summary *summary;
    q3_error *err;
} grouping;

static bool add_line(grouping *g, const item *first, uint64_t count, const char *line)
{
    q3_summary *summary = g->summary;
    char *copy = NULL;
    if (!q3_grow(&summary->lines, &summary->capacity, summary->count + 1, sizeof *summary->lines,
                 g->err) ||
        !(copy = q3_format(g->err, "%s", line)))
        return false;
    summary->lines[summary->count++] = (q3_summary_line){
        .kind = first->finding->kind, .text = copy, .count = count, .example = first->finding};
    return true;
}

// Tails such as ".self_attn.q_proj.weight", each once: "self_attn.q_proj.weight, …".
static void put_names(text *to, const item *items, size_t count)
{
    size_t shown = 0, others = 0;
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t k = 0; k < i && !known; k++)
            known = strcmp(items[k].tail, items[i].tail) == 0;
        if (known)
            continue;
        if (shown == NAMES_SHOWN) {
            others++;
            continue;
        }
        const char *name = items[i].tail + (*items[i].tail == '.');
        if (*name) {
            put(to, "%s%s", shown ? ", " : "", name);
            shown++;
        }
    }
    if (others)
        put(to, " and %zu others", others);
}

// "experts 76–127", with the matrix where it is one alone; or the names of a layer's tensors.
static bool describe_portion(grouping *g, portion *at)
{
    const item *items = g->items + at->from;
    const size_t count = at->to - at->from;
    text what = {.size = 0};
    at->tail = "";
    if (!items->middle) {
        put_names(&what, items, count);
    } else {
        uint32_t *numbers = q3_alloc(count, sizeof *numbers, g->err);
        if (!numbers)
            return false;
        size_t distinct = 0;
        bool one_tail = true;
        for (size_t i = 0; i < count; i++) {
            if (distinct == 0 || numbers[distinct - 1] != items[i].expert)
                numbers[distinct++] = items[i].expert;
            one_tail = one_tail && strcmp(items[i].tail, items[0].tail) == 0;
        }
        // ".mlp.experts." is "experts".
        size_t end = items->middle_size, start;
        end -= end && items->middle[end - 1] == '.';
        for (start = end; start && items->middle[start - 1] != '.';)
            start--;
        size_t word = end - start;
        // One of them: "expert 127".
        if (distinct == 1 && word && items->middle[end - 1] == 's')
            word--;
        put(&what, "%.*s ", (int)word, items->middle + start);
        put_numbers(&what, numbers, distinct);
        if (one_tail)
            at->tail = items->tail;
        free(numbers);
    }
    at->what = q3_format(g->err, "%s", what.data);
    return at->what != NULL;
}

// "layers 0–47", after what stands before it where it is not the text model.
static void put_layers(text *line, const item *first, const uint32_t *layers, size_t count)
{
    static const char *const text_prefixes[] = {"thinker.model.", "model.", "thinker."};
    const char *head = first->head;
    size_t size = first->head_size;
    for (size_t i = 0; i < sizeof text_prefixes / sizeof *text_prefixes; i++) {
        const size_t prefix = strlen(text_prefixes[i]);
        if (size > prefix && strncmp(head, text_prefixes[i], prefix) == 0) {
            head += prefix;
            size -= prefix;
            break;
        }
    }
    size -= size && head[size - 1] == '.';
    if (count == 1 && size && head[size - 1] == 's')
        size--;
    put(line, "%.*s ", (int)size, head);
    put_numbers(line, layers, count);
}

static void put_count(text *line, const item *first, uint64_t count)
{
    char number[Q3_GROUPED_MAX];
    put(line, " (%s tensor%s)", q3_grouped(count, number), count == 1 ? "" : "s");
    if (first->finding->detail)
        put(line, ": %s", first->finding->detail);
}

static bool same_portion(const portion *a, const portion *b)
{
    return strcmp(a->what, b->what) == 0 && strcmp(a->tail, b->tail) == 0;
}

static void put_tail(text *line, const char *tail)
{
    if (*tail)
        put(line, " %s", tail + (*tail == '.'));
}

// A line for all portions with the same `what`, or, of too many, one line for all.
static bool tell_portions(grouping *g, portion *portions, size_t count)
{
    uint32_t *layers = q3_alloc(count, sizeof *layers, g->err);
    bool ok = layers != NULL;
    size_t distinct = 0;
    for (size_t i = 0; ok && i < count; i++) {
        bool known = false;
        for (size_t k = 0; k < i && !known; k++)
            known = same_portion(&portions[k], &portions[i]);
        distinct += !known;
    }
    if (ok && distinct > LINES_OF_A_FAMILY) {
        const item *first = &g->items[portions[0].from];
        text line = {.size = 0};
        for (size_t i = 0; i < count; i++)
            layers[i] = portions[i].layer;
        bool one_tail = true;
        for (size_t i = 1; i < count; i++)
            one_tail = one_tail && strcmp(portions[i].tail, portions[0].tail) == 0;
        put_layers(&line, first, layers, count);
        put(&line, ": ");
        if (first->middle)
            for (size_t i = 0; i < count; i++) {
                // As many as layers are shown, in the same order.
                const char *what = portions[i].what;
                if (i >= RANGES_SHOWN && i + 1 < count && count > RANGES_SHOWN + 1) {
                    if (i == RANGES_SHOWN)
                        put(&line, ", …");
                    continue;
                }
                const char *numbers = strchr(what, ' ');
                put(&line, "%s%s", i ? ", " : "", i && numbers ? numbers + 1 : what);
            }
        else
            put_names(&line, first, portions[count - 1].to - portions[0].from);
        if (one_tail)
            put_tail(&line, portions[0].tail);
        const uint64_t all = portions[count - 1].to - portions[0].from;
        put_count(&line, first, all);
        ok = add_line(g, first, all, line.data);
        free(layers);
        return ok;
    }
    for (size_t i = 0; ok && i < count; i++) {
        if (portions[i].told)
            continue;
        const item *first = &g->items[portions[i].from];
        uint64_t tensors = 0;
        size_t alike = 0;
        for (size_t k = i; k < count; k++)
            if (!portions[k].told && same_portion(&portions[k], &portions[i])) {
                portions[k].told = true;
                layers[alike++] = portions[k].layer;
                tensors += portions[k].to - portions[k].from;
            }
        if (tensors == 1) {
            ok = add_line(g, first, 1, first->finding->message);
            continue;
        }
        text line = {.size = 0};
        put_layers(&line, first, layers, alike);
        if (*portions[i].what)
            put(&line, ": %s", portions[i].what);
        put_tail(&line, portions[i].tail);
        put_count(&line, first, tensors);
        ok = add_line(g, first, tensors, line.data);
    }
    free(layers);
    return ok;
}

static bool tell_family(grouping *g, size_t from, size_t to)
{
    size_t count = 0;
    portion *portions = q3_alloc_zeroed(to - from, sizeof *portions, g->err);
    bool ok = portions != NULL;
    for (size_t i = from; ok && i < to; i++) {
        if (count == 0 || portions[count - 1].layer != g->items[i].layer)
            portions[count++] = (portion){.from = i, .layer = g->items[i].layer};
        portions[count - 1].to = i + 1;
    }
    for (size_t i = 0; ok && i < count; i++)
        ok = describe_portion(g, &portions[i]);
    ok = ok && tell_portions(g, portions, count);
    for (size_t i = 0; portions && i < count; i++)
        free(portions[i].what);
    free(portions);
    return ok;
}

// Findings without a pattern: a few in full, and how many are like them.
static bool tell_files(grouping *g, size_t from, size_t to)
{
    const size_t shown = to - from <= ALIKE_SHOWN + 1 ? to - from : ALIKE_SHOWN;
    for (size_t i = from; i < from + shown; i++)
        if (!add_line(g, &g->items[i], 1, g->items[i].finding->message))
            return false;
    if (from + shown == to)
        return true;
    char number[Q3_GROUPED_MAX];
    text line = {.size = 0};
    put(&line, "and %s more like these", q3_grouped(to - from - shown, number));
    return add_line(g, &g->items[from + shown], to - from - shown, line.data);
}

// Leaves each kind its share of the lines and one that counts the rest.
static bool shorten(grouping *g, size_t limit)
{
    q3_summary *summary = g->summary;
    size_t lines[Q3_FINDING_KINDS] = {0}, share[Q3_FINDING_KINDS] = {0}, left = limit;
    for (size_t i = 0; i < summary->count; i++)
        lines[summary->lines[i].kind]++;
    for (bool grown = true; grown;) {
        grown = false;
        for (unsigned kind = 0; kind < Q3_FINDING_KINDS; kind++)
            if (share[kind] < lines[kind] && (left || share[kind] == 0)) {
                share[kind]++;
                left -= left != 0;
                grown = true;
            }
    }
    size_t kept = 0, seen[Q3_FINDING_KINDS] = {0};
    for (size_t i = 0; i < summary->count; i++) {
        q3_summary_line *line = &summary->lines[i];
        const q3_finding_kind kind = line->kind;
        const bool cut = lines[kind] > share[kind];
        if (++seen[kind] < share[kind] || !cut) {
            summary->lines[kept++] = *line;
        } else if (seen[kind] == share[kind]) {
            // Becomes the line that counts the rest; of one line alone, it is said behind it.
            const bool alone = share[kind] == 1;
            uint64_t rest = 0;
            for (size_t k = alone ? i + 1 : i; k < summary->count && summary->lines[k].kind == kind;
                 k++)
                rest += summary->lines[k].count;
            char number[Q3_GROUPED_MAX];
            char *told =
                q3_format(g->err, "%s%sand %s more (--json lists all)", alone ? line->text : "",
                          alone ? "; " : "", q3_grouped(rest, number));
            if (!told) {
                // Lines that were kept have moved up; what is behind them follows.
                for (; i < summary->count; i++)
                    summary->lines[kept++] = summary->lines[i];
                summary->count = kept;
                return false;
            }
            free(line->text);
            line->text = told;
            if (!alone)
                line->count = 0;
            summary->lines[kept++] = *line;
        } else {
            free(line->text);
        }
    }
    summary->count = kept;
    return true;
}

bool q3_summary_create(const q3_findings *report, size_t limit, q3_summary *summary, q3_error *err)
{
    *summary = (q3_summary){0};
    grouping g = {.report = report, .count = report->count, .summary = summary, .err = err};
    g.items = q3_alloc(report->count, sizeof *g.items, err);
    bool ok = g.items != NULL;
    for (size_t i = 0; ok && i < report->count; i++)
        g.items[i] = take_apart(&report->findings[i]);
    if (ok && report->count)
        qsort(g.items, report->count, sizeof *g.items, compare_items);
    for (size_t from = 0, to; ok && from < report->count; from = to) {
        for (to = from + 1;
             to < report->count && compare_families(&g.items[from], &g.items[to]) == 0;)
            to++;
        ok = g.items[from].head ? tell_family(&g, from, to) : tell_files(&g, from, to);
    }
    ok = ok && shorten(&g, limit);
    free(g.items);
    if (!ok)
        q3_summary_free(summary);
    return ok;
}

void q3_summary_free(q3_summary *summary)
{
    for (size_t i = 0; i < summary->count; i++)
        free(summary->lines[i].text);
    free(summary->lines);
    *summary = (q3_summary){0};
}

bool q3_findings_print(const q3_findings *report, FILE *file, q3_error *err)
{
    char number[Q3_GROUPED_MAX];
    q3_summary summary;
    if (!q3_summary_create(report, Q3_SUMMARY_LINES, &summary, err))
        return false;
    for (size_t i = 0; i < report->causes.count; i++)
        fprintf(file, "cause: %s\n", report->causes.texts[i]);
    for (size_t i = 0; i < summary.count; i++) {
        const q3_finding_kind kind = summary.lines[i].kind;
        if (i == 0 || summary.lines[i - 1].kind != kind)
            fprintf(file, "%s (%s%s):\n", q3_finding_kind_name(kind),
                    q3_grouped(report->counts[kind], number),
                    report->allowed[kind] ? ", allowed" : "");
        fprintf(file, "  %s\n", summary.lines[i].text);
    }
    q3_summary_free(&summary);
    for (size_t i = 0; i < report->notes.count; i++)
        fprintf(file, "note: %s\n", report->notes.texts[i]);
    const uint64_t differences = q3_findings_differences(report);
    fprintf(file, "%s difference%s", q3_grouped(differences, number), differences == 1 ? "" : "s");
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
            fprintf(file, "%s%s %s%s", before, q3_grouped(report->counts[kind], number),
                    q3_finding_kind_name((q3_finding_kind)kind),
                    report->allowed[kind] ? " allowed" : "");
            before = ", ";
        }
    fputs(report->count ? ")\n" : "\n", file);
    return true;
}
