// SPDX-License-Identifier: Apache-2.0
//
// What both formats need of a pack before they write: all its tensors, checked against the model
// that its configuration describes; the experts that stay; and how a tensor's bytes become the
// exported ones.
#ifndef Q3_EXPORT_PLAN_H
#define Q3_EXPORT_PLAN_H

#include "export.h"
#include "kept.h"
#include "tensor_stream.h"

// A tensor of the pack.
typedef struct q3_export_source {
    q3_tensor tensor; // the name is the set's
    q3_place place;
    q3_tensor_place at;
} q3_export_source;

typedef struct q3_export_plan {
    const q3_export_options *options;
    q3_set set;
    q3_json config; // config.json, numbers with their spelling
    q3_kept kept;
    uint32_t top_k;
    q3_export_source *sources; // in the order of the set's files
    size_t source_count;
    size_t *first; // [file of the set]: its first source
} q3_export_plan;

// Opens the pack and checks that it has the whole text model but for its experts. The caller
// frees the plan, whatever happens.
bool q3_export_plan_make(const q3_export_options *options, q3_export_plan *plan, q3_error *err);
void q3_export_plan_free(q3_export_plan *plan);

// The source with this name in the file of a place.
const q3_export_source *q3_export_find(const q3_export_plan *plan, const q3_place *place,
                                       const char *name, q3_error *err);

// A tensor on its way out.
typedef struct q3_export_item {
    const q3_export_source *source;
    const uint32_t *rows; // only these of the first dimension, ascending; NULL for all
    uint32_t row_count;
    bool widen; // from BF16 to F32
} q3_export_item;

// The item's tensor as it is exported: name and dimensions of the source but for what the item
// changes.
q3_tensor q3_export_tensor(const q3_export_item *item);

// Appends what a piece of the item's source gives. *scratch (capacity *scratch_bytes, to free())
// grows as need be.
bool q3_export_append(const q3_export_item *item, const q3_tensor_piece *piece, q3_output *output,
                      uint8_t **scratch, size_t *scratch_bytes, q3_error *err);

// Streams the items of the plan, in order, to `put`.
bool q3_export_stream(const q3_export_plan *plan, const q3_export_item *items, size_t count,
                      void *context,
                      bool (*put)(void *context, const q3_tensor_piece *piece, q3_error *err),
                      q3_error *err);

// The formats. The plan has been made; the result's counts of what is written are theirs.
bool q3_export_safetensors(q3_export_plan *plan, q3_export_result *result, q3_error *err);
bool q3_export_gguf(const q3_export_plan *plan, q3_export_result *result, q3_error *err);

#endif
