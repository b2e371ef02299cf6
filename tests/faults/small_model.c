// SPDX-License-Identifier: Apache-2.0
#include "small_model.h"

#include "base/file.h"
#include "checkpoint_writer.h"

#include <stdlib.h>
#include <string.h>

static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\",\n"
    " \"attention_bias\": false, \"decoder_sparse_step\": 1, \"dtype\": \"bfloat16\",\n"
    " \"head_dim\": 16, \"hidden_act\": \"silu\", \"hidden_size\": 32, \"intermediate_size\": 64,\n"
    " \"max_position_embeddings\": 64, \"mlp_only_layers\": [], \"moe_intermediate_size\": 32,\n"
    " \"norm_topk_prob\": true, \"num_attention_heads\": 2, \"num_experts\": 3,\n"
    " \"num_experts_per_tok\": 2, \"num_hidden_layers\": 2, \"num_key_value_heads\": 1,\n"
    " \"rms_norm_eps\": 1e-06, \"rope_scaling\": null, \"rope_theta\": 10000,\n"
    " \"tie_word_embeddings\": false, \"vocab_size\": 40}\n";

bool q3_small_model_write(const char *directory, q3_error *err)
{
    // Not beside the checkpoint's own config.json, which is written from it.
    char *path = q3_format(err, "%s.config", directory);
    const q3_checkpoint_options options = {
        .config = path, .directory = directory, .seed = 7, .shard_bytes = 20000, .jobs = 1};
    const bool ok = path && q3_file_publish(path, config, strlen(config), err) &&
                    q3_checkpoint_write(&options, NULL, err);
    free(path);
    return ok;
}
