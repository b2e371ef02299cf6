// SPDX-License-Identifier: Apache-2.0
//
// The inventory: every tensor that a checkpoint of this architecture holds, as a short list of name
// patterns with ranges. It is derived from a configuration or read from a manifest, and answers the
// questions of all the tools: what is this name (component, layer, part, expert)? which shape must
// it have? what is missing?
#ifndef Q3_MODEL_INVENTORY_H
#define Q3_MODEL_INVENTORY_H

#include "base/json.h"
#include "config.h"
#include "tensor.h"

enum { Q3_RANGES_MAX = 3 };

typedef struct q3_range {
    uint32_t first, last; // both included
} q3_range;

// A family of tensors with one shape:
// "thinker.model.layers.{0-47}.mlp.experts.{0-127}.up_proj.weight".
typedef struct q3_pattern {
    char *name; // each range is written {first-last}
    // One expression a dimension: whole numbers and names of the component's values, joined by *
    // and / from left to right: "num_attention_heads*head_dim".
    char *dimension[Q3_RANK_MAX];
    q3_component component;
    q3_part part;
    q3_dtype dtype;
    unsigned rank;
    uint64_t shape[Q3_RANK_MAX];
    unsigned ranges;
    q3_range
        range[Q3_RANGES_MAX]; // in the text component the first is the layer, the second the expert
    uint64_t first;           // the ordinal of the pattern's first tensor
    uint64_t count;           // of its tensors
    uint64_t bytes;           // of each tensor
} q3_pattern;

// A value that dimensions refer to, such as hidden_size. Each component has its own.
typedef struct q3_value {
    char *name;
    q3_component component;
    uint64_t number;
} q3_value;

// All the tensors. Each has an ordinal: patterns in order, within a pattern the last range fastest.
typedef struct q3_inventory {
    q3_pattern *patterns;
    size_t pattern_count, pattern_capacity;
    q3_value *values;
    size_t value_count, value_capacity;
    uint64_t tensors, bytes; // totals
    bool has_component[Q3_COMPONENTS];
} q3_inventory;

// Derives the inventory of a configuration: the text model, and of a qwen3_omni_moe configuration
// the components that it configures (talker and code2wav only where enable_audio_output is not
// false). The dtype is the configuration's (`dtype` or `torch_dtype`), BF16 when it names none.
bool q3_inventory_derive(const q3_json *config, q3_inventory *inventory, q3_error *err);
void q3_inventory_free(q3_inventory *inventory); // a zeroed one is fine

// Building one by hand (manifests). add_value defines a name for later dimensions; add parses the
// ranges of the name and evaluates the dimensions (rank strings, copied).
bool q3_inventory_add_value(q3_inventory *inventory, q3_component component, const char *name,
                            uint64_t number, q3_error *err);
bool q3_inventory_add(q3_inventory *inventory, q3_component component, q3_part part, q3_dtype dtype,
                      const char *name, unsigned rank, const char *const *dimensions,
                      q3_error *err);

// The pattern that a name belongs to, or NULL, and its ordinal.
const q3_pattern *q3_inventory_find(const q3_inventory *inventory, const char *name,
                                    uint64_t *ordinal);
// The pattern of an ordinal below inventory->tensors, and the tensor's name.
const q3_pattern *q3_inventory_at(const q3_inventory *inventory, uint64_t ordinal,
                                  char name[Q3_NAME_MAX]);
// Which pack file the pattern's tensor with this ordinal goes to.
q3_place q3_pattern_place(const q3_pattern *pattern, uint64_t ordinal);

// Why a name that is in no pattern is not just unknown: a sentence part such as "attention biases
// are not supported", or NULL.
const char *q3_name_unsupported(const char *name);

#endif
