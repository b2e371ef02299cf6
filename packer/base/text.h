// SPDX-License-Identifier: Apache-2.0
//
// Small things about text that every tool needs: UTF-8, numbers on a command line, sizes for
// people.
#ifndef Q3_BASE_TEXT_H
#define Q3_BASE_TEXT_H

#include "error.h"

#include <stdint.h>

// The length in bytes (1 to 4) of the well-formed UTF-8 sequence at `text`, or 0 when the bytes
// there are not one: overlong forms, surrogates, values above U+10FFFF, a sequence cut short by
// `size`. (The Unicode Standard, table 3-7.)
size_t q3_utf8_length(const uint8_t *text, size_t size);

// Decimal number from the whole of `text`: digits only, no sign, no blanks. False when it is not
// one or lies outside [min, max].
bool q3_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value);
bool q3_parse_double(const char *text, double min, double max, double *value);

// A size such as "512M", "1.5G", "800 MB" or "4096": a number and an optional power-of-1024 suffix
// K, M, G or T (with or without "B" or "iB").
bool q3_parse_size(const char *text, uint64_t *bytes);

// Set of small numbers from a list such as "0-7,12". members[n] becomes true for each number n <
// count named. False with a message that names `what` for bad syntax, a reversed range or n >=
// count.
bool q3_parse_ranges(const char *what, const char *text, uint32_t count, bool *members,
                     q3_error *err);

// "1,234,567": groups of three. The buffer takes any 64-bit number.
enum { Q3_GROUPED_MAX = 32 };
const char *q3_grouped(uint64_t value, char out[Q3_GROUPED_MAX]);

// "9.4 MB", "61.1 GB" (powers of ten, as disks are sold).
const char *q3_human_bytes(uint64_t bytes, char out[Q3_GROUPED_MAX]);

#endif
