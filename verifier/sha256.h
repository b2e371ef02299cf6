// SPDX-License-Identifier: Apache-2.0
//
// SHA-256, as model hubs publish it for their files. It comes from Nettle; built without it,
// hashing fails with a message that says so, and everything else works.
#ifndef Q3_SHA256_H
#define Q3_SHA256_H

#include "base/error.h"

#include <stdint.h>

enum { Q3_SHA256_BYTES = 32, Q3_SHA256_TEXT = 2 * Q3_SHA256_BYTES + 1 };

// Of a whole file; *size receives how long it is. Reads in small pieces and stops when a signal has
// come.
bool q3_sha256_file(const char *path, uint8_t digest[Q3_SHA256_BYTES], uint64_t *size,
                    q3_error *err);

const char *q3_sha256_text(const uint8_t digest[Q3_SHA256_BYTES], char out[Q3_SHA256_TEXT]);
// False unless text is exactly 64 lower-case hexadecimal digits.
bool q3_sha256_parse(const char *text, uint8_t digest[Q3_SHA256_BYTES]);

#endif
