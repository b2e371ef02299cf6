// SPDX-License-Identifier: Apache-2.0
//
// Strings by their content: whether one is among many, and which. A hash table of so many places
// that it never grows.
#ifndef Q3_BASE_STRING_INDEX_H
#define Q3_BASE_STRING_INDEX_H

#include "bytes.h"
#include "error.h"

// A string, which stays where it is, and the number that it is known by.
typedef struct q3_indexed {
    q3_bytes string; // .data is NULL where the table is empty
    uint32_t number;
} q3_indexed;

typedef struct q3_string_index {
    q3_indexed *places;
    size_t mask; // of places, a power of two, less one
    uint64_t mix;
} q3_string_index;

// Room for `count` strings: some 48 bytes for each. False when out of memory.
bool q3_string_index_create(size_t count, q3_string_index *index, q3_error *err);
void q3_string_index_free(q3_string_index *index); // one of zeros is fine

// Adds a string, whose data is not NULL, unless an equal one is there. Returns the place of that,
// or NULL when it was added. No more than there is room for may be added.
const q3_indexed *q3_string_index_add(q3_string_index *index, q3_bytes string, uint32_t number);

// The place of an equal string, or NULL.
const q3_indexed *q3_string_index_find(const q3_string_index *index, q3_bytes string);

#endif
