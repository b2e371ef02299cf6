// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include "base/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INPUT_BYTES_MAX = 256 << 20, READ_BYTES = 65536 };

// Waits until there is something to read. A signal that comes just before the wait does not end it,
// and one that another thread takes does not either: look for them a few times a second.
static bool wait_for_input(q3_error *err)
{
    enum { MILLISECONDS = 200 };
    for (;;) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        if (!q3_check_interrupt(err))
            return false;
        const int ready = poll(&input, 1, MILLISECONDS);
        if (ready > 0)
            return true;
        if (ready < 0 && errno != EINTR)
            return q3_fail_errno(err, "standard input: cannot wait");
    }
}

// Reads more behind text[used], where there is room for a NUL afterwards. *count is 0 at the end.
static bool read_more(char **text, size_t used, size_t *capacity, size_t *count, q3_error *err)
{
    if (used > INPUT_BYTES_MAX)
        return q3_fail(err, Q3_MALFORMED, "standard input: more than %d bytes", INPUT_BYTES_MAX);
    if (!q3_grow(text, capacity, used + READ_BYTES + 1, 1, err))
        return false;
    for (;;) {
        if (!wait_for_input(err))
            return false;
        const ssize_t size = read(STDIN_FILENO, *text + used, READ_BYTES);
        if (size >= 0) {
            *count = (size_t)size;
            return true;
        }
        if (errno != EINTR && errno != EAGAIN)
            return q3_fail_errno(err, "standard input: cannot read");
    }
}

bool q3_read_input(char **text, size_t *size, q3_error *err)
{
    char *data = NULL;
    size_t used = 0, capacity = 0, count = 1;
    bool ok = true;
    while (ok && count) {
        ok = read_more(&data, used, &capacity, &count, err);
        if (ok)
            used += count;
    }
    if (!ok) {
        free(data);
        return false;
    }
    data[used] = 0;
    *text = data;
    *size = used;
    return true;
}

int q3_next_line(q3_lines *lines, char **line, size_t *size, q3_error *err)
{
    size_t searched = lines->start;
    for (;;) {
        char *end = lines->used > searched
                        ? memchr(lines->text + searched, '\n', lines->used - searched)
                        : NULL;
        if (!end && lines->ended && lines->start < lines->used)
            end = lines->text + lines->used; // a last line without an end
        if (end) {
            *line = lines->text + lines->start;
            *size = (size_t)(end - *line);
            lines->start += *size + (end < lines->text + lines->used);
            if (*size && (*line)[*size - 1] == '\r')
                --*size;
            (*line)[*size] = 0;
            return 1;
        }
        if (lines->ended)
            return 0;
        if (lines->start) {
            lines->used -= lines->start;
            memmove(lines->text, lines->text + lines->start, lines->used);
            lines->start = 0;
        }
        searched = lines->used;
        size_t count;
        if (!read_more(&lines->text, lines->used, &lines->capacity, &count, err))
            return -1;
        lines->used += count;
        lines->ended = count == 0;
    }
}

void q3_lines_free(q3_lines *lines)
{
    free(lines->text);
    *lines = (q3_lines){0};
}
