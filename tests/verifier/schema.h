// SPDX-License-Identifier: Apache-2.0
//
// Checks a document against a JSON Schema, as far as manifests/manifest.schema.json goes: the
// keywords below, references into #/$defs, patterns by PCRE2. A keyword that is not known fails, so
// that nothing in a schema goes unchecked.
#ifndef Q3_TEST_SCHEMA_H
#define Q3_TEST_SCHEMA_H

#include "base/json.h"

// True when `value` is as `schema` says, a part of the document `root`. Else *err says where not.
bool schema_check(const cJSON *root, const cJSON *schema, const cJSON *value, q3_error *err);

#endif
