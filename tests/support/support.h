// SPDX-License-Identifier: Apache-2.0
//
// What the tests share: temporary directories, files, trees, and running the programs. A failure of
// one of these ends the test with cmocka's fail_msg.
#ifndef Q3_TEST_SUPPORT_H
#define Q3_TEST_SUPPORT_H

// cmocka.h wants these four before it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>

// A call that fills the caller's `q3_error error` when it fails: then the test fails with its
// message.
#define assert_ok(call)                    \
    do {                                   \
        if (!(call))                       \
            fail_msg("%s", error.message); \
    } while (0)

// A fresh directory under TMPDIR (else /dev/shm or /tmp), to be freed with q3_test_remove.
char *q3_test_directory(void);
// Removes the directory and all in it, and frees the string. NULL is fine.
void q3_test_remove(char *directory);
// Removes a file or a tree and keeps the string.
void q3_test_remove_tree(const char *path);

// A directory for a whole group of tests: pass these two to cmocka_run_group_tests.
extern char *q3_test_scratch;
int q3_test_make_scratch(void **state);
int q3_test_remove_scratch(void **state);

// "directory/name" formatted, to free().
char *q3_test_path(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The whole of a file, NUL-terminated, to free(). size may be NULL.
char *q3_test_read(const char *path, size_t *size);
void q3_test_write(const char *path, const void *data, size_t size);
void q3_test_write_text(const char *path, const char *text);
// Inverts one bit of a file.
void q3_test_flip(const char *path, size_t offset, unsigned bit);

// Copies a tree of directories and regular files; links regular files instead where `link` is set
// (the copies must not be written to then).
void q3_test_copy_tree(const char *from, const char *to, bool link);
// Fails unless the trees hold the same names with the same bytes.
void q3_test_trees_equal(const char *a, const char *b);

// What a program did.
typedef struct q3_test_result {
    int code;        // exit code, or 128 + the signal
    char *out, *err; // what it wrote, NUL-terminated
    size_t out_size;
} q3_test_result;

// Runs a program (arguments end with NULL) with `input` on its standard input (NULL: nothing
// there).
q3_test_result q3_test_run(const char *input, const char *program, ...) __attribute__((sentinel));
void q3_test_result_free(q3_test_result *result);

// Fails unless the code and the whole of standard error are these.
void q3_test_expect(q3_test_result result, int code, const char *err);

#endif
