// SPDX-License-Identifier: Apache-2.0
//
// What the verifier's tests share: scratch directories, damaged copies, packs of the tiny model.
// Every function fails the test when it cannot do its work.
#ifndef Q3_TEST_SUPPORT_H
#define Q3_TEST_SUPPORT_H

#include "codec/codec.h"
#include "report.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

// Makes an empty directory and removes it with all that is in it.
char *scratch_create(void);
void scratch_remove(char *path);

// A formatted string to free().
char *text_of(const char *format, ...) __attribute__((format(printf, 1, 2)));

// A whole file, NUL-terminated, to free().
char *file_load(const char *path, size_t *size);
void file_save(const char *path, const void *data, size_t size);
// Inverts one bit.
void file_flip(const char *path, size_t offset, unsigned bit);
// Replaces the first `from` in a file by `to`.
void file_replace(const char *path, const char *from, const char *to);
// Copies the files of a directory, and what is below it, into a new one.
void tree_copy(const char *from, const char *to);

// Extracts from a checkpoint into a new pack directory. experts and layers may be NULL.
void pack_create(const char *model, const char *pack, const char *components, const char *layers,
                 const char *experts, q3_codec codec);

// Fails unless the report has exactly these messages, in this order.
void assert_messages(const q3_findings *report, const char *const *messages, size_t count);
#define ASSERT_MESSAGES(report, ...)                                           \
    do {                                                                       \
        const char *const expected_messages[] = {__VA_ARGS__};                 \
        assert_messages(report, expected_messages,                             \
                        sizeof expected_messages / sizeof *expected_messages); \
    } while (0)

#endif
