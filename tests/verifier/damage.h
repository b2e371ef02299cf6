// SPDX-License-Identifier: Apache-2.0
//
// What the verifier's tests share beside support.h: packs of the tiny model, damage to files, and
// what a report must say. Every function fails the test when it cannot do its work.
#ifndef Q3_TEST_DAMAGE_H
#define Q3_TEST_DAMAGE_H

#include "codec/codec.h"
#include "report.h"
#include "support.h"

// Replaces the first `from` in a file by `to`.
void file_replace(const char *path, const char *from, const char *to);

// Extracts from the tiny checkpoint into a new pack directory. experts and layers may be NULL.
void pack_create(const char *pack, const char *components, const char *layers, const char *experts,
                 q3_codec codec);

// Fails unless the report has exactly these messages, in this order.
void assert_messages(const q3_findings *report, const char *const *messages, size_t count);
#define ASSERT_MESSAGES(report, ...)                                           \
    do {                                                                       \
        const char *const expected_messages[] = {__VA_ARGS__};                 \
        assert_messages(report, expected_messages,                             \
                        sizeof expected_messages / sizeof *expected_messages); \
    } while (0)

#endif
