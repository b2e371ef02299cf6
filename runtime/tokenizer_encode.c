// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.h"

#include "base/text.h"
#include "tokenizer_tables.h"

#include <stdlib.h>
#include <utf8proc.h>

#define NO_SYMBOL UINT32_MAX

// A part of a piece on its way to becoming tokens; the parts of a piece form a list.
typedef struct symbol {
    uint32_t id;
    uint32_t previous, next; // NO_SYMBOL at the ends
    uint32_t rank;           // of the merge with the next one; Q3_NO_RANK when there is none
} symbol;

// What one call of q3_tokenizer_encode works with.
typedef struct encoder {
    const q3_tokenizer *tokenizer;
    q3_ids *ids;
    pcre2_match_data *match;
    pcre2_match_context *limits;

    uint8_t *text; // a normalized stretch
    size_t text_size, text_capacity;
    utf8proc_int32_t *points; // code points being normalized
    size_t point_count, point_capacity;
    uint64_t *marks; // combining marks being sorted
    size_t mark_capacity;

    symbol *symbols;
    size_t symbol_capacity;
    uint64_t *heap; // possible merges, the best first: rank * 2^32 + place of the left symbol
    size_t heap_count, heap_capacity;
} encoder;

// ---- merging ----

static uint32_t rank_of(const q3_tokenizer *tokenizer, uint32_t left, uint32_t right)
{
    size_t low = tokenizer->pairs_from[left], high = tokenizer->pairs_from[left + 1];
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const pair_rank *pair = &tokenizer->pairs[middle];
        if (pair->right == right)
            return pair->rank;
        if (pair->right < right)
            low = middle + 1;
        else
            high = middle;
    }
    return Q3_NO_RANK;
}

static bool heap_push(encoder *e, uint64_t value, q3_error *err)
{
    if (e->heap_count == e->heap_capacity &&
        !q3_grow(&e->heap, &e->heap_capacity, e->heap_count + 1, sizeof *e->heap, err))
        return false;
    size_t at = e->heap_count++;
    while (at && e->heap[(at - 1) / 2] > value) {
        e->heap[at] = e->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    e->heap[at] = value;
    return true;
}

static uint64_t heap_pop(encoder *e)
{
    const uint64_t best = e->heap[0], value = e->heap[--e->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < e->heap_count; at = child) {
        if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child])
            child++;
        if (e->heap[child] >= value)
            break;
        e->heap[at] = e->heap[child];
    }
    e->heap[at] = value;
    return best;
}

// Notes the merge of a symbol with the one behind it, if there is such a merge.
static bool consider(encoder *e, uint32_t at, q3_error *err)
{
    symbol *left = &e->symbols[at];
    left->rank = left->next == NO_SYMBOL
                     ? Q3_NO_RANK
                     : rank_of(e->tokenizer, left->id, e->symbols[left->next].id);
    return left->rank == Q3_NO_RANK || heap_push(e, (uint64_t)left->rank << 32 | at, err);
}

static bool encode_piece(encoder *e, q3_bytes piece, q3_error *err)
{
    const q3_tokenizer *tokenizer = e->tokenizer;
    if (piece.size == 1)
        return q3_ids_append(e->ids, tokenizer->byte_token[piece.data[0]], err);
    if (!q3_grow(&e->symbols, &e->symbol_capacity, piece.size, sizeof *e->symbols, err))
        return false;
    symbol *symbols = e->symbols;
    const uint32_t count = (uint32_t)piece.size; // at most Q3_TOKENIZER_TEXT_MAX, times 3 by NFC
    for (uint32_t i = 0; i < count; i++)
        symbols[i] = (symbol){.id = tokenizer->byte_token[piece.data[i]],
                              .previous = i ? i - 1 : NO_SYMBOL,
                              .next = i + 1 < count ? i + 1 : NO_SYMBOL};
    e->heap_count = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!consider(e, i, err))
            return false;
    while (e->heap_count) {
        const uint64_t best = heap_pop(e);
        const uint32_t at = (uint32_t)best, rank = (uint32_t)(best >> 32);
        symbol *left = &symbols[at];
        // A neighbour may have been merged away since this was noted. A pair never comes back to
        // the same place, so an equal rank means that it is still there.
        if (left->rank != rank)
            continue;
        symbol *right = &symbols[left->next];
        left->id = tokenizer->merged[rank];
        left->next = right->next;
        right->rank = Q3_NO_RANK;
        if (left->next != NO_SYMBOL)
            symbols[left->next].previous = at;
        if (!consider(e, at, err) ||
            (left->previous != NO_SYMBOL && !consider(e, left->previous, err)))
            return false;
    }
    for (uint32_t at = 0; at != NO_SYMBOL; at = symbols[at].next)
        if (!q3_ids_append(e->ids, symbols[at].id, err))
            return false;
    return true;
}

// ---- cutting into pieces ----

static bool encode_normalized(encoder *e, q3_bytes text, q3_error *err)
{
    for (size_t at = 0; at < text.size;) {
        const int matches = pcre2_match(e->tokenizer->splitter, (PCRE2_SPTR)text.data, text.size,
                                        at, PCRE2_NO_UTF_CHECK, e->match, e->limits);
        const size_t end = matches > 0 ? pcre2_get_ovector_pointer(e->match)[1] : at;
        if (end <= at)
            return q3_fail(err, Q3_FAILED, "pre-tokenizer: PCRE2 error %d at byte %zu of %zu",
                           matches, at, text.size);
        if (!encode_piece(e, (q3_bytes){text.data + at, end - at}, err))
            return false;
        at = end;
    }
    return true;
}

// ---- normalization ----

// Below U+0300 a character is in NFC by itself and never joins the one before it. The lead byte
// tells.
static bool is_plain(uint8_t lead)
{
    return lead < 0xcc;
}

static int compare_marks(const void *left, const void *right)
{
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

// Sorts runs of combining marks by class, keeping the order within a class (the Unicode Standard,
// canonical ordering). utf8proc's own sorting takes quadratic time on a long run.
static bool order_marks(encoder *e, q3_error *err)
{
    for (size_t i = 0; i < e->point_count;) {
        size_t count = 0;
        bool ordered = true;
        uint64_t last = 0;
        for (; i + count < e->point_count; count++) {
            const utf8proc_property_t *property = utf8proc_get_property(e->points[i + count]);
            const uint64_t class = (uint64_t)property->combining_class;
            if (class == 0)
                break;
            if (!q3_grow(&e->marks, &e->mark_capacity, count + 1, sizeof *e->marks, err))
                return false;
            // 8 bits of class, 35 of place, 21 of code point.
            e->marks[count] =
                class << 56 | (uint64_t)count << 21 | (uint64_t)(uint32_t)e->points[i + count];
            ordered = ordered && class >= last;
            last = class;
        }
        if (!ordered) {
            qsort(e->marks, count, sizeof *e->marks, compare_marks);
            for (size_t k = 0; k < count; k++)
                e->points[i + k] = (utf8proc_int32_t)(e->marks[k] & 0x1fffff);
        }
        i += count + 1;
    }
    return true;
}

// Appends the NFC of a stretch to e->text.
static bool normalize_stretch(encoder *e, q3_bytes stretch, q3_error *err)
{
    e->point_count = 0;
    for (size_t at = 0; at < stretch.size;) {
        utf8proc_int32_t point;
        at += (size_t)utf8proc_iterate(stretch.data + at, (utf8proc_ssize_t)(stretch.size - at),
                                       &point);
        // No character decomposes into more than four.
        if (!q3_grow(&e->points, &e->point_capacity, e->point_count + 4, sizeof *e->points, err))
            return false;
        const utf8proc_ssize_t count =
            utf8proc_decompose_char(point, e->points + e->point_count, 4, UTF8PROC_DECOMPOSE, NULL);
        if (count < 0 || count > 4)
            return q3_fail(err, Q3_FAILED, "utf8proc cannot decompose U+%04X", (unsigned)point);
        e->point_count += (size_t)count;
    }
    if (!order_marks(e, err))
        return false;
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(
        e->points, (utf8proc_ssize_t)e->point_count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        if (!q3_grow(&e->text, &e->text_capacity, e->text_size + 4, 1, err))
            return false;
        e->text_size += (size_t)utf8proc_encode_char(e->points[i], e->text + e->text_size);
    }
    return true;
}

// Encodes text without added tokens in it.
static bool encode_between(encoder *e, q3_bytes text, q3_error *err)
{
    size_t plain = 0;
    while (plain < text.size && is_plain(text.data[plain]))
        plain++;
    if (plain == text.size)
        return encode_normalized(e, text, err);
    e->text_size = 0;
    for (size_t at = 0; at < text.size;) {
        // A stretch to normalize begins with the plain character that a mark may join, and ends
        // before the next plain one.
        size_t start = at;
        while (at < text.size && is_plain(text.data[at]))
            at++;
        size_t first = at;
        if (at < text.size && at > start) {
            first--;
            while ((text.data[first] & 0xc0) == 0x80)
                first--;
        }
        if (!q3_grow(&e->text, &e->text_capacity, e->text_size + (first - start) + 1, 1, err))
            return false;
        memcpy(e->text + e->text_size, text.data + start, first - start);
        e->text_size += first - start;
        while (at < text.size && (!is_plain(text.data[at]) || (text.data[at] & 0xc0) == 0x80))
            at++;
        if (!normalize_stretch(e, (q3_bytes){text.data + first, at - first}, err))
            return false;
    }
    return encode_normalized(e, (q3_bytes){e->text, e->text_size}, err);
}

// ---- added tokens ----

// The longest added token at the start of the text, if there is one.
static bool find_added(const q3_tokenizer *tokenizer, q3_bytes text, uint32_t *id)
{
    const uint8_t first = text.data[0];
    for (uint32_t i = tokenizer->added_from[first]; i < tokenizer->added_from[first + 1]; i++) {
        const q3_bytes content = tokenizer->tokens[tokenizer->added[i]].content;
        if (content.size <= text.size && memcmp(content.data, text.data, content.size) == 0) {
            *id = tokenizer->added[i];
            return true;
        }
    }
    return false;
}

static bool encode_text(encoder *e, q3_bytes text, q3_error *err)
{
    const q3_tokenizer *tokenizer = e->tokenizer;
    size_t start = 0;
    for (size_t at = 0; at < text.size; at++) {
        uint32_t id;
        if (!find_added(tokenizer, (q3_bytes){text.data + at, text.size - at}, &id))
            continue;
        if (!encode_between(e, (q3_bytes){text.data + start, at - start}, err) ||
            !q3_ids_append(e->ids, id, err))
            return false;
        start = at + tokenizer->tokens[id].content.size;
        at = start - 1;
    }
    return encode_between(e, (q3_bytes){text.data + start, text.size - start}, err);
}

bool q3_tokenizer_encode(const q3_tokenizer *tokenizer, q3_bytes text, q3_ids *ids, q3_error *err)
{
    if (text.size > Q3_TOKENIZER_TEXT_MAX)
        return q3_fail(err, Q3_MALFORMED, "text: expected at most %zu bytes, found %zu",
                       Q3_TOKENIZER_TEXT_MAX, text.size);
    for (size_t at = 0; at < text.size;) {
        const size_t length = q3_utf8_length(text.data + at, text.size - at);
        if (length == 0)
            return q3_fail(err, Q3_MALFORMED,
                           "text: expected UTF-8, found the byte 0x%02x at offset %zu",
                           text.data[at], at);
        at += length;
    }
    encoder e = {.tokenizer = tokenizer,
                 .ids = ids,
                 .match = pcre2_match_data_create(1, NULL),
                 .limits = pcre2_match_context_create(NULL)};
    bool ok = false;
    if (!e.match || !e.limits) {
        q3_fail_memory(err, sizeof e);
        goto done;
    }
    // The expression gives way one character at a time in a run of white space and nowhere else, so
    // a long run takes many steps, but no more than its length.
    pcre2_set_match_limit(e.limits, UINT32_MAX);
    ok = encode_text(&e, text, err);
done:
    pcre2_match_context_free(e.limits);
    pcre2_match_data_free(e.match);
    free(e.text);
    free(e.points);
    free(e.marks);
    free(e.symbols);
    free(e.heap);
    return ok;
}
