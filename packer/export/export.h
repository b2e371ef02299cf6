// SPDX-License-Identifier: Apache-2.0
//
// Exporting: the model of a pack directory for other programs, whole or with some experts only.
//
// safetensors: a checkpoint in the original layout, as transformers, vLLM and SGLang load it, or
// the text model alone as one of type qwen3_moe. gguf: the text model as a file for llama.cpp.
//
// With a pool, the experts outside it are gone: those that stay get the numbers from 0 on in
// ascending order, the rows of the routers (mlp.gate) are cut and reordered alike, and the
// configuration says how many there are. That gives what masking the others' logits before the
// softmax gives. These formats have one number of experts for all layers, so a pool must have the
// same number in each. EXPORT.md says what is written, to the name.
#ifndef Q3_EXPORT_H
#define Q3_EXPORT_H

#include "model/tensor.h"

// For an option `--shard-size`: what save_pretrained cut the original checkpoint at ("5GB").
#define Q3_EXPORT_SHARD_BYTES UINT64_C(5000000000)

typedef enum q3_export_format {
    Q3_EXPORT_SAFETENSORS,
    Q3_EXPORT_GGUF,
} q3_export_format;

typedef struct q3_export_options {
    const char *pack_directory;
    const char *output; // safetensors: a directory that does not exist or is empty; gguf: a file
                        // that does not exist
    q3_export_format format;
    bool text_model;      // safetensors: the text model alone, as a qwen3_moe checkpoint
    const char *pool;     // a pool file (pool/pool.h); NULL for all experts that the pack has
    uint32_t top_k;       // experts a token; 0 for the model's, or all when fewer are kept
    uint64_t shard_bytes; // safetensors: the most that a shard's tensors take, unless one alone
                          // takes more
    unsigned jobs;
    bool quiet; // no progress line
} q3_export_options;

typedef struct q3_export_result {
    uint64_t files, tensors, bytes;  // shards or the one file; tensors in them, their bytes
    uint32_t experts, model_experts; // in each layer: exported, in the configuration
    uint32_t top_k, model_top_k;     // experts a token: exported, in the configuration
    bool whole[Q3_COMPONENTS];       // the component is in what was exported
    bool configured[Q3_COMPONENTS];  // the component belongs to the model
    double seconds;
} q3_export_result;

// Nothing is under a final name unless all of it is: on failure the output directory is empty, the
// file absent. Every frame's and every tensor's hash is checked on the way. A pack that has not the
// whole text model but for its experts is Q3_INCOMPLETE.
bool q3_export(const q3_export_options *options, q3_export_result *result, q3_error *err);

#endif
