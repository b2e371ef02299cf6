// SPDX-License-Identifier: Apache-2.0
#include "small_model.h"

#include "base/file.h"
#include "checkpoint_writer.h"

#include <stdlib.h>
#include <string.h>

// With the widths of a head, of the hidden state and of an expert.
static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\",\n"
    " \"attention_bias\": false, \"decoder_sparse_step\": 1, \"dtype\": \"bfloat16\",\n"
    " \"head_dim\": %u, \"hidden_act\": \"silu\", \"hidden_size\": %u, \"intermediate_size\": 64,\n"
    " \"max_position_embeddings\": 64, \"mlp_only_layers\": [], \"moe_intermediate_size\": %u,\n"
    " \"norm_topk_prob\": true, \"num_attention_heads\": 2, \"num_experts\": 3,\n"
    " \"num_experts_per_tok\": 2, \"num_hidden_layers\": 2, \"num_key_value_heads\": 1,\n"
    " \"rms_norm_eps\": 1e-06, \"rope_scaling\": null, \"rope_theta\": 10000,\n"
    " \"tie_word_embeddings\": false, \"vocab_size\": 40}\n";

bool q3_small_model_write(const char *directory, unsigned width, q3_error *err)
{
    // Not beside the checkpoint's own config.json, which is written from it.
    char *path = q3_format(err, "%s.config", directory);
    char *text = path ? q3_format(err, config, width / 2, width, width) : NULL;
    const q3_checkpoint_options options = {.config = path,
                                           .directory = directory,
                                           .seed = 7,
                                           .shard_bytes = 20000 * (width / 32) * (width / 32),
                                           .jobs = 1};
    const bool ok = text && q3_file_publish(path, text, strlen(text), err) &&
                    q3_checkpoint_write(&options, NULL, err);
    free(text);
    free(path);
    return ok;
}
