// SPDX-License-Identifier: Apache-2.0
//
// The one error type of all the tools.
//
// A function that can fail returns bool and takes a `q3_error *` as its last argument. On failure
// it returns false and has filled the error: an exit code and one message that names the file, the
// tensor, what was expected and what was found. A caller passes the error on untouched, or replaces
// it with one that says more. Only `main` prints it and only `main` exits.
#ifndef Q3_BASE_ERROR_H
#define Q3_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>

// Exit codes of every q3-* program. They are part of the interface: see the man pages.
enum q3_exit {
    Q3_DONE = 0,          // all that was asked for was done
    Q3_FAILED = 1,        // an operation failed: I/O, memory, a system limit
    Q3_USAGE = 2,         // the command line makes no sense
    Q3_MISMATCH = 3,      // two things that were compared differ
    Q3_MALFORMED = 4,     // input is malformed, unsafe, or of a kind that is not supported
    Q3_INCOMPLETE = 5,    // input lacks something that it promises
    Q3_REFUSED = 6,       // would overwrite, or differs from what was asked before
    Q3_INTERRUPTED = 130, // SIGINT or SIGTERM
};

enum { Q3_ERROR_MESSAGE_MAX = 1024 };

typedef struct q3_error {
    int code; // an enum q3_exit, never Q3_DONE once filled
    char message[Q3_ERROR_MESSAGE_MAX];
} q3_error;

// Fills *err and returns false, so that `return q3_fail(...)` ends a function. The message is made
// safe to print: control characters and bytes that are not UTF-8 (names come from untrusted files)
// appear as \xNN, and what does not fit ends in "...".
bool q3_fail(q3_error *err, enum q3_exit code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// The same for a failed system call: appends ": " and the text of errno. The code is Q3_FAILED.
bool q3_fail_errno(q3_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

// "out of memory (N bytes)", code Q3_FAILED.
bool q3_fail_memory(q3_error *err, size_t bytes);

// Copies text to out (capacity bytes, always terminated) in the same printable form.
void q3_printable(char *out, size_t capacity, const char *text);

// malloc, calloc and realloc with an error. A count times a size that wraps is an error too. Free
// the result with free(). Zero bytes give a pointer that can be freed.
void *q3_alloc(size_t count, size_t size, q3_error *err);
void *q3_alloc_zeroed(size_t count, size_t size, q3_error *err);

// Makes room for at least `needed` items of `size` bytes in *items (grows by half). False
// leaves *items and *capacity as they were.
bool q3_grow(void *items, size_t *capacity, size_t needed, size_t size, q3_error *err);

// A formatted string to free(), or NULL with *err filled.
char *q3_format(q3_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
