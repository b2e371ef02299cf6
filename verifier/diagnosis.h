// SPDX-License-Identifier: Apache-2.0
//
// One mistake can make thousands of findings. The diagnosis looks at all of them together and names
// the mistake: causes in the report, beside the findings and never in their place.
#ifndef Q3_DIAGNOSIS_H
#define Q3_DIAGNOSIS_H

#include "shapes.h"

// Looks for
// - an index that names only some of the shards that its file names count ("…-of-00015");
// - an index made as if each layer lay in one shard, so that layers at a shard's end lack what lies
//   in the next;
// - names of another family: "model.…" where "thinker.model.…" is expected, or the reverse;
// - experts saved fused, and with which shapes; tied embeddings;
// - experts that are gone from all layers alike: a pruned model.
// The listing is sorted, as q3_shapes_compare leaves it, and the report holds its findings.
bool q3_diagnose(const q3_expectation *expectation, const bool scope[Q3_COMPONENTS],
                 const q3_listing *listing, q3_findings *report, q3_error *err);

#endif
