// SPDX-License-Identifier: Apache-2.0
//
// JSON that the programs write and that references are kept in, for tests to look into. What is not
// there or not of the type ends the test with cmocka's fail_msg, which names the key.
//
// Read by cJSON alone: one text of the tiny model's reference has a NUL, which base/json.h refuses.
#ifndef Q3_TEST_JSON_H
#define Q3_TEST_JSON_H

#include "support.h"

#include <cJSON.h>

// The one value that the text is, or that the file has; to cJSON_Delete().
cJSON *q3_test_parse_json(const char *text);
cJSON *q3_test_load_json(const char *path);

// The member of that very name, of any type, or a number, or a string. They stay the tree's.
const cJSON *q3_test_member(const cJSON *object, const char *key);
double q3_test_number(const cJSON *object, const char *key);
const char *q3_test_string(const cJSON *object, const char *key);

// The array's element, counted from 0.
const cJSON *q3_test_element(const cJSON *array, int index);

// Copies an array of at most `most` ids, returns how many there are.
size_t q3_test_ids(const cJSON *array, uint32_t *ids, size_t most);

#endif
