// SPDX-License-Identifier: Apache-2.0
#include "error.h"

#include "text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void q3_printable(char *out, size_t capacity, const char *text)
{
    static const char ellipsis[] = "...";
    const size_t size = strlen(text);
    size_t used = 0, last_fit = 0;
    for (size_t i = 0; i < size;) {
        const size_t length = q3_utf8_length((const uint8_t *)text + i, size - i);
        const unsigned char byte = (unsigned char)text[i];
        const bool plain = length > 1 ? !(byte == 0xc2 && (unsigned char)text[i + 1] < 0xa0)
                                      : length == 1 && byte >= 0x20 && byte != 0x7f;
        const size_t wanted = plain ? length : 4;
        if (used + wanted + 1 > capacity) {
            memcpy(out + last_fit, ellipsis, sizeof ellipsis);
            return;
        }
        if (plain)
            memcpy(out + used, text + i, length);
        else
            snprintf(out + used, 5, "\\x%02x", byte);
        used += wanted;
        i += plain ? length : 1;
        if (used + sizeof ellipsis <= capacity)
            last_fit = used;
    }
    out[used] = 0;
}

static void fill(q3_error *err, enum q3_exit code, const char *format, va_list arguments,
                 const char *suffix)
{
    // Long enough for two paths of the maximal length and a tensor name.
    char text[3 * 4096];
    const int length = vsnprintf(text, sizeof text, format, arguments);
    if (suffix && length >= 0 && (size_t)length < sizeof text)
        snprintf(text + length, sizeof text - (size_t)length, ": %s", suffix);
    err->code = (int)code;
    q3_printable(err->message, sizeof err->message, text);
}

bool q3_fail(q3_error *err, enum q3_exit code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(err, code, format, arguments, NULL);
    va_end(arguments);
    return false;
}

bool q3_fail_errno(q3_error *err, const char *format, ...)
{
    const char *reason = strerror(errno);
    va_list arguments;
    va_start(arguments, format);
    fill(err, Q3_FAILED, format, arguments, reason);
    va_end(arguments);
    return false;
}

bool q3_fail_memory(q3_error *err, size_t bytes)
{
    return q3_fail(err, Q3_FAILED, "out of memory (%zu bytes)", bytes);
}

static bool total_bytes(size_t count, size_t size, size_t *bytes, q3_error *err)
{
    if (__builtin_mul_overflow(count, size, bytes))
        return q3_fail(err, Q3_FAILED, "out of memory (%zu items of %zu bytes)", count, size);
    if (*bytes == 0)
        *bytes = 1;
    return true;
}

// malloc puts large blocks 16 bytes behind a page boundary. There the kernel copies from its cache
// at a third of the speed on some processors (rep movsb to an address that is not aligned), so what
// may become a buffer for reading begins at a cache line.
static void *allocate(size_t bytes)
{
    enum { LARGE = 64 * 1024, LINE = 64 };
    return bytes >= LARGE && bytes <= SIZE_MAX - LINE
               ? aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE)
               : malloc(bytes);
}

void *q3_alloc(size_t count, size_t size, q3_error *err)
{
    size_t bytes;
    if (!total_bytes(count, size, &bytes, err))
        return NULL;
    void *memory = allocate(bytes);
    if (!memory)
        q3_fail_memory(err, bytes);
    return memory;
}

void *q3_alloc_zeroed(size_t count, size_t size, q3_error *err)
{
    size_t bytes;
    if (!total_bytes(count, size, &bytes, err))
        return NULL;
    void *memory = calloc(1, bytes);
    if (!memory)
        q3_fail_memory(err, bytes);
    return memory;
}

bool q3_grow(void *items, size_t *capacity, size_t needed, size_t size, q3_error *err)
{
    if (needed <= *capacity)
        return true;
    size_t larger = *capacity + *capacity / 2;
    if (larger < needed)
        larger = needed;
    if (larger < 16)
        larger = 16;
    size_t bytes;
    if (!total_bytes(larger, size, &bytes, err))
        return false;
    void *old, *memory = allocate(bytes);
    if (!memory)
        return q3_fail_memory(err, bytes);
    memcpy(&old, items, sizeof old);
    if (old)
        memcpy(memory, old, *capacity * size);
    free(old);
    memcpy(items, &memory, sizeof memory);
    *capacity = larger;
    return true;
}

char *q3_format(q3_error *err, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    const int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0) {
        q3_fail(err, Q3_FAILED, "out of memory (a string)");
        return NULL;
    }
    return text;
}
