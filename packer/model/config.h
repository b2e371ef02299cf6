// SPDX-License-Identifier: Apache-2.0
//
// The text model's configuration, read from a checkpoint's config.json. Every field that the
// computation depends on must be there: there are no defaults to fall back to. What the engine does
// not compute (dense layers, attention biases, tied embeddings, sliding windows, other activations
// or rotary scalings, quantized weights) is refused by name.
#ifndef Q3_MODEL_CONFIG_H
#define Q3_MODEL_CONFIG_H

#include "base/json.h"

// Families of checkpoints that hold this text model. They differ in where config.json keeps the
// text configuration and in what stands before the tensors' names.
typedef struct q3_family {
    const char *model_type;  // of config.json
    const char *text_config; // keys on the way to the text configuration, separated by '.'
    const char *prefix;      // before "model.…" and "lm_head.weight"
} q3_family;

typedef struct q3_config {
    const q3_family *family;
    uint32_t vocab_size;
    uint32_t hidden_size;             // H
    uint32_t num_hidden_layers;       // L
    uint32_t num_attention_heads;     // query heads
    uint32_t num_key_value_heads;     // divides num_attention_heads
    uint32_t head_dim;                // even
    uint32_t num_experts;             // E, in every layer
    uint32_t num_experts_per_tok;     // top k, at most E
    uint32_t moe_intermediate_size;   // I, of one expert
    uint32_t max_position_embeddings; // the longest context
    bool norm_topk_prob;              // divide the top k weights by their sum
    double rms_norm_eps;
    double rope_theta;
} q3_config;

// Reads the text configuration from a parsed config.json.
bool q3_config_read(const q3_json *json, q3_config *config, q3_error *err);

// Parses a config.json (16 MiB at most) and reads it. *json may be NULL; else the caller frees it.
bool q3_config_load(const char *path, q3_config *config, q3_json *json, q3_error *err);

#endif
