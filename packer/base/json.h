// SPDX-License-Identifier: Apache-2.0
//
// Strict JSON in, exact JSON out.
//
// Reading: cJSON builds the tree, but only from text that a stricter pass has accepted: RFC 8259 to
// the letter (cJSON is lax about numbers, control characters, trailing bytes), UTF-8 without a byte
// order mark, no "\u0000" (it would cut a name short), no lone surrogate, no number beyond double,
// no key twice in an object, nesting of at most Q3_JSON_DEPTH_MAX. The getters take a key, say what
// they expect, and on failure name the file, the path inside it, what was expected and what was
// found.
#ifndef Q3_BASE_JSON_H
#define Q3_BASE_JSON_H

#include "bytes.h"
#include "error.h"

#include <cJSON.h>

enum { Q3_JSON_DEPTH_MAX = 64 };

typedef struct q3_json {
    char *name; // what messages call it: a path, or "shard.safetensors: header"
    cJSON *root;
} q3_json;

// Parses text (it need not be terminated).
bool q3_json_parse(const char *name, q3_bytes text, q3_json *json, q3_error *err);
// Parses a file of at most max_bytes.
bool q3_json_load(const char *path, uint64_t max_bytes, q3_json *json, q3_error *err);
// Remembers how the document's numbers are spelt ("1.0", "1e-06"), so that q3_json_put_item writes
// them so. `text` is what the tree was parsed from; the tree must not have been changed.
bool q3_json_keep_spelling(q3_json *json, q3_bytes text, q3_error *err);

// Frees the tree; a zeroed q3_json is fine.
void q3_json_free(q3_json *json);

// Fails with "NAME: PATH: MESSAGE", where PATH is where `item` stands in the document.
bool q3_json_fail(const q3_json *json, const cJSON *item, enum q3_exit code, q3_error *err,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));

// The member `key` (exact case), or NULL; NULL too when `object` is NULL or no object. Its time is
// linear in the object: walk large objects with cJSON_ArrayForEach instead.
const cJSON *q3_json_find(const cJSON *object, const char *key);

// Members that must be there and of the type. Strings and items stay owned by the tree. Numbers
// must be integers written or equal to one in [min, max], where max is at most 2^53.
bool q3_json_object(const q3_json *json, const cJSON *object, const char *key, const cJSON **value,
                    q3_error *err);
bool q3_json_array(const q3_json *json, const cJSON *object, const char *key, const cJSON **value,
                   q3_error *err);
bool q3_json_string(const q3_json *json, const cJSON *object, const char *key, const char **value,
                    q3_error *err);
bool q3_json_u64(const q3_json *json, const cJSON *object, const char *key, uint64_t min,
                 uint64_t max, uint64_t *value, q3_error *err);
bool q3_json_u32(const q3_json *json, const cJSON *object, const char *key, uint32_t min,
                 uint32_t max, uint32_t *value, q3_error *err);
bool q3_json_double(const q3_json *json, const cJSON *object, const char *key, double min,
                    double max, double *value, q3_error *err);
bool q3_json_bool(const q3_json *json, const cJSON *object, const char *key, bool *value,
                  q3_error *err);

// An item that is itself the number (array elements).
bool q3_json_item_u64(const q3_json *json, const cJSON *item, uint64_t min, uint64_t max,
                      uint64_t *value, q3_error *err);
// An item that is itself a string, or the failure.
bool q3_json_item_string(const q3_json *json, const cJSON *item, const char **value, q3_error *err);

// Writing: text grows in memory; 64-bit integers keep all their digits, floats are written with as
// many as it takes to read the same float again. Objects and arrays are laid out one member a line,
// or on one line after q3_json_inline. Running out of memory is remembered and reported at the end.
typedef struct q3_json_writer {
    char *text;
    size_t size, capacity;
    unsigned depth,
        inline_depth; // inline_depth: the depth at which one-line layout began, 0 if not
    bool comma, failed;
} q3_json_writer;

// key is NULL inside an array and for the outermost value.
void q3_json_begin_object(q3_json_writer *writer, const char *key);
void q3_json_begin_array(q3_json_writer *writer, const char *key);
void q3_json_end_object(q3_json_writer *writer);
void q3_json_end_array(q3_json_writer *writer);
// What is begun next goes on one line, with all inside it.
void q3_json_inline(q3_json_writer *writer);
void q3_json_put_string(q3_json_writer *writer, const char *key, const char *value);
// Bytes that need not be UTF-8: each byte that is not becomes U+FFFD.
void q3_json_put_bytes(q3_json_writer *writer, const char *key, const char *value, size_t size);
void q3_json_put_u64(q3_json_writer *writer, const char *key, uint64_t value);
void q3_json_put_bool(q3_json_writer *writer, const char *key, bool value);
void q3_json_put_null(q3_json_writer *writer, const char *key);
// NaN and infinities, which JSON lacks, become null.
void q3_json_put_double(q3_json_writer *writer, const char *key, double value);
void q3_json_put_float(q3_json_writer *writer, const char *key, float value);

// A whole item of a tree, which stays as it is.
void q3_json_put_item(q3_json_writer *writer, const char *key, cJSON *item);

// Ends the document with a newline; another one may follow. False when memory ran out on the way;
// the text stays the writer's.
bool q3_json_finish(q3_json_writer *writer, q3_error *err);
void q3_json_writer_free(q3_json_writer *writer);

#endif
