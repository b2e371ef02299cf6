// SPDX-License-Identifier: Apache-2.0
#include "data.h"

#include "base/progress.h"
#include "base/text.h"
#include "base/workers.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What fits a processor's own cache, so that each piece is scanned there.
enum { PIECE_BYTES = 256 << 10, SLOTS_PER_THREAD = 4 };

// ---- one run of elements ----

// For each width a loop without branches that compilers turn into vector code. A number is not
// finite when all bits of its exponent are set; it is infinite when the rest is zero.
#define SCAN(name, type)                                                                        \
    static q3_data_count name(const uint8_t *data, size_t count, type magnitude, type exponent) \
    {                                                                                           \
        uint64_t special = 0, infinite = 0;                                                     \
        type any = 0;                                                                           \
        for (size_t i = 0; i < count; i++) {                                                    \
            type x;                                                                             \
            memcpy(&x, data + i * sizeof x, sizeof x);                                          \
            x &= magnitude;                                                                     \
            any |= x;                                                                           \
            special += (x & exponent) == exponent;                                              \
            infinite += x == exponent;                                                          \
        }                                                                                       \
        q3_data_count result = {                                                                \
            .nan = special - infinite, .infinite = infinite, .first = count, .zero = any == 0}; \
        for (size_t i = 0; special && i < count; i++) {                                         \
            type x;                                                                             \
            memcpy(&x, data + i * sizeof x, sizeof x);                                          \
            if ((x & exponent) == exponent) {                                                   \
                result.first = i;                                                               \
                break;                                                                          \
            }                                                                                   \
        }                                                                                       \
        return result;                                                                          \
    }

SCAN(scan_8, uint8_t)
SCAN(scan_16, uint16_t)
SCAN(scan_32, uint32_t)
SCAN(scan_64, uint64_t)

q3_data_count q3_data_scan(q3_dtype dtype, const uint8_t *data, size_t count)
{
    switch (dtype) {
    case Q3_BF16:
        return scan_16(data, count, 0x7fff, 0x7f80);
    case Q3_F16:
        return scan_16(data, count, 0x7fff, 0x7c00);
    case Q3_F32:
        return scan_32(data, count, 0x7fffffff, 0x7f800000);
    case Q3_F64:
        return scan_64(data, count, INT64_MAX, UINT64_C(0x7ff0000000000000));
    case Q3_F8_E5M2:
        return scan_8(data, count, 0x7f, 0x7c);
    case Q3_F8_E4M3: {
        // Has no infinities: what is all ones is NaN.
        q3_data_count result = scan_8(data, count, 0x7f, 0x7f);
        result.nan = result.infinite;
        result.infinite = 0;
        return result;
    }
    default: {
        const size_t bytes = count * q3_dtype_size(dtype);
        return (q3_data_count){.first = count, .zero = q3_all_zero(data, bytes)};
    }
    }
}

// ---- pieces of tensors ----

// A tensor under way: how it is cut, and what has been found so far.
typedef struct subject {
    const q3_stored_tensor *stored;
    uint64_t row_bytes;   // of one index of the first dimension
    uint64_t piece_bytes; // whole rows, or a part of one
    // Filled by the commits, in order.
    q3_data_count count;
    uint64_t constant_rows, first_constant;
    bool row_constant; // of a row that takes several pieces: so far
    uint8_t row_value[8];
    bool unreadable;
} subject;

typedef struct piece {
    subject *subject;
    uint64_t offset; // inside the tensor
    size_t bytes;
    bool last;
    uint8_t *data;
    q3_data_count count;
    uint64_t constant_rows, first_constant; // of whole rows
    bool constant;                          // of a part of a row
    q3_error problem;
    bool read;
} piece;

typedef struct scan {
    const q3_checkpoint *checkpoint;
    const q3_inventory *inventory;
    const bool *scope;
    q3_findings *report;
    const q3_stored_tensor **order; // by shard and offset
    size_t count, next;
    subject *current;
    uint64_t offset; // of the next piece of it
    q3_file *files;  // one for each shard
    q3_progress progress;
} scan;

static int compare_places(const void *a, const void *b)
{
    const q3_stored_tensor *left = *(const q3_stored_tensor *const *)a;
    const q3_stored_tensor *right = *(const q3_stored_tensor *const *)b;
    if (left->shard != right->shard)
        return left->shard < right->shard ? -1 : 1;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

static subject *begin_subject(const q3_stored_tensor *stored, q3_error *err)
{
    subject *s = q3_alloc_zeroed(1, sizeof *s, err);
    if (!s)
        return NULL;
    const q3_tensor *tensor = &stored->tensor;
    *s = (subject){.stored = stored, .count.zero = true, .row_constant = true};
    s->row_bytes = tensor->rank >= 2 ? tensor->bytes / tensor->shape[0] : tensor->bytes;
    s->piece_bytes = PIECE_BYTES;
    if (s->row_bytes <= PIECE_BYTES)
        s->piece_bytes -= PIECE_BYTES % s->row_bytes;
    return s;
}

static int next_piece(void *context, void *slot, q3_error *err)
{
    scan *s = context;
    piece *p = slot;
    if (!s->current) {
        if (s->next == s->count)
            return 0;
        const q3_stored_tensor *stored = s->order[s->next++];
        q3_file *file = &s->files[stored->shard];
        s->current = begin_subject(stored, err);
        if (!s->current ||
            (file->fd < 0 && !q3_checkpoint_open_shard(s->checkpoint, stored->shard, file, err)))
            return -1;
        s->offset = 0;
    }
    const uint64_t size = s->current->stored->tensor.bytes, row = s->current->row_bytes;
    uint64_t end = s->offset + s->current->piece_bytes;
    // A row that takes several pieces does not share one with the next row.
    if (row > PIECE_BYTES && end / row != s->offset / row)
        end = (s->offset / row + 1) * row;
    if (end > size)
        end = size;
    p->subject = s->current;
    p->offset = s->offset;
    p->bytes = (size_t)(end - s->offset);
    p->last = end == size;
    s->offset = end;
    if (p->last)
        s->current = NULL;
    return 1;
}

static bool all_equal(const uint8_t *data, size_t bytes, size_t element)
{
    return bytes <= element || memcmp(data, data + element, bytes - element) == 0;
}

static bool scan_piece(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    const scan *s = context;
    piece *p = slot;
    const q3_tensor *tensor = &p->subject->stored->tensor;
    const size_t element = q3_dtype_size(tensor->dtype);
    if (!p->data && !(p->data = q3_alloc(PIECE_BYTES, 1, err)))
        return false;
    p->read = q3_file_read(&s->files[p->subject->stored->shard],
                           p->subject->stored->offset + p->offset, p->data, p->bytes, &p->problem);
    if (!p->read)
        return true;
    p->count = q3_data_scan(tensor->dtype, p->data, p->bytes / element);
    const uint64_t row = p->subject->row_bytes;
    p->constant_rows = 0;
    p->constant = all_equal(p->data, p->bytes, element);
    // A row of one element, and a vector, are no rows.
    if (tensor->rank < 2 || row == element)
        p->constant = false;
    else if (row <= PIECE_BYTES)
        for (size_t at = 0; at < p->bytes; at += (size_t)row)
            if (all_equal(p->data + at, (size_t)row, element) && p->constant_rows++ == 0)
                p->first_constant = (p->offset + at) / row;
    return true;
}

// The rows of this piece into the tensor's.
static void add_rows(subject *to, const piece *p)
{
    const uint64_t row = to->row_bytes;
    if (row <= PIECE_BYTES) {
        if (to->constant_rows == 0)
            to->first_constant = p->first_constant;
        to->constant_rows += p->constant_rows;
        return;
    }
    const size_t element = q3_dtype_size(to->stored->tensor.dtype);
    if (p->offset % row == 0) {
        to->row_constant = true;
        memcpy(to->row_value, p->data, element);
    }
    to->row_constant =
        to->row_constant && p->constant && memcmp(to->row_value, p->data, element) == 0;
    if ((p->offset + p->bytes) % row == 0 && to->row_constant && to->constant_rows++ == 0)
        to->first_constant = p->offset / row;
}

static bool report_subject(scan *s, const subject *of, q3_error *err)
{
    const q3_tensor *tensor = &of->stored->tensor;
    char nan[Q3_GROUPED_MAX], infinite[Q3_GROUPED_MAX], all[Q3_GROUPED_MAX];
    uint64_t ordinal;
    const q3_pattern *pattern = q3_inventory_find(s->inventory, tensor->name, &ordinal);
    const char *file = s->checkpoint->shards[of->stored->shard].name;
    q3_finding finding = {
        .tensor = tensor->name, .file = file, .group = pattern ? pattern->name : file};
    const uint64_t elements = tensor->bytes / q3_dtype_size(tensor->dtype);
    if (of->count.nan || of->count.infinite) {
        finding.kind = Q3_FINDING_NAN;
        finding.detail = of->count.nan ? "NaN" : "infinities";
        if (!q3_findings_add(s->report, &finding, err,
                             "%s: %s NaN and %s infinities in %s elements, the first is element "
                             "%" PRIu64,
                             tensor->name, q3_grouped(of->count.nan, nan),
                             q3_grouped(of->count.infinite, infinite), q3_grouped(elements, all),
                             of->count.first))
            return false;
    }
    if (of->count.zero) {
        finding.kind = Q3_FINDING_ZERO;
        finding.detail = "all zero";
        return q3_findings_add(s->report, &finding, err, "%s: all %s elements are zero",
                               tensor->name, q3_grouped(elements, all));
    }
    if (of->constant_rows == 0)
        return true;
    finding.kind = Q3_FINDING_CONSTANT;
    finding.detail = "rows of one value";
    return q3_findings_add(s->report, &finding, err,
                           "%s: %s of %s rows hold one value each, the first is row %" PRIu64,
                           tensor->name, q3_grouped(of->constant_rows, nan),
                           q3_grouped(tensor->shape[0], all), of->first_constant);
}

static bool commit_piece(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    scan *s = context;
    piece *p = slot;
    subject *to = p->subject;
    const char *file = s->checkpoint->shards[to->stored->shard].name;
    bool ok = true;
    if (!p->read && !to->unreadable) {
        to->unreadable = true;
        ok = q3_findings_add(s->report,
                             &(q3_finding){.kind = Q3_FINDING_UNREADABLE,
                                           .tensor = to->stored->tensor.name,
                                           .file = file,
                                           .group = file},
                             err, "%s: %s", to->stored->tensor.name, p->problem.message);
    }
    if (p->read) {
        const bool first = to->count.nan + to->count.infinite == 0;
        if (first)
            to->count.first = p->offset / q3_dtype_size(to->stored->tensor.dtype) + p->count.first;
        to->count.nan += p->count.nan;
        to->count.infinite += p->count.infinite;
        to->count.zero = to->count.zero && p->count.zero;
        add_rows(to, p);
    }
    q3_progress_add(&s->progress, p->bytes, file);
    if (!p->last)
        return ok;
    ok = ok && (to->unreadable || report_subject(s, to, err));
    free(to);
    p->subject = NULL;
    return ok;
}

static void release_piece(void *context, void *slot)
{
    (void)context;
    piece *p = slot;
    free(p->data);
}

// Is it to be read, and there?
static bool is_wanted(const scan *s, const q3_stored_tensor *stored)
{
    uint64_t ordinal;
    const q3_pattern *pattern = q3_inventory_find(s->inventory, stored->tensor.name, &ordinal);
    return stored->tensor.bytes && (!pattern || s->scope[pattern->component]) &&
           stored->offset + stored->tensor.bytes <= s->checkpoint->shards[stored->shard].size;
}

bool q3_data_check(const q3_checkpoint *checkpoint, const q3_inventory *inventory,
                   const bool scope[Q3_COMPONENTS], unsigned jobs, bool quiet, q3_findings *report,
                   q3_error *err)
{
    scan s = {.checkpoint = checkpoint, .inventory = inventory, .scope = scope, .report = report};
    q3_workers *workers = NULL;
    uint64_t total = 0;
    bool ok = q3_workers_create(jobs ? jobs : q3_workers_default(), &workers, err) &&
              (s.order = q3_alloc(checkpoint->tensor_count, sizeof *s.order, err)) != NULL &&
              (s.files = q3_alloc_zeroed(checkpoint->shard_count, sizeof *s.files, err)) != NULL;
    for (uint32_t i = 0; ok && i < checkpoint->shard_count; i++)
        s.files[i].fd = -1;
    for (size_t i = 0; ok && i < checkpoint->tensor_count; i++)
        if (is_wanted(&s, &checkpoint->tensors[i])) {
            s.order[s.count++] = &checkpoint->tensors[i];
            total += checkpoint->tensors[i].tensor.bytes;
        }
    if (ok) {
        if (s.count)
            qsort(s.order, s.count, sizeof *s.order, compare_places);
        q3_progress_begin(&s.progress, "reading weights", total, quiet);
        ok = q3_workers_stream(
            workers,
            &(q3_stream){.context = &s,
                         .slots = (size_t)SLOTS_PER_THREAD * q3_workers_count(workers),
                         .slot_bytes = sizeof(piece),
                         .next = next_piece,
                         .work = scan_piece,
                         .commit = commit_piece,
                         .release = release_piece},
            err);
        q3_progress_end(&s.progress);
    }
    for (uint32_t i = 0; s.files && i < checkpoint->shard_count; i++)
        if (s.files[i].fd >= 0)
            q3_file_close(&s.files[i]);
    free(s.files);
    free(s.order);
    q3_workers_destroy(workers);
    return ok;
}
