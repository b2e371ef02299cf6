// SPDX-License-Identifier: Apache-2.0
#include "config.h"

#include <math.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 16 << 20 };

static const q3_family families[] = {
    {"qwen3_omni_moe", "thinker_config.text_config", "thinker."},
    {"qwen3_moe", "", ""},
};

static bool find_text_config(const q3_json *json, const q3_family **family, const cJSON **text,
                             q3_error *err)
{
    const char *type;
    if (!q3_json_string(json, json->root, "model_type", &type, err))
        return false;
    *family = NULL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(type, families[i].model_type) == 0)
            *family = &families[i];
    if (!*family)
        return q3_json_fail(json, q3_json_find(json->root, "model_type"), Q3_MALFORMED, err,
                            "expected \"qwen3_omni_moe\" or \"qwen3_moe\", found \"%s\"", type);
    *text = json->root;
    for (const char *at = (*family)->text_config; *at;) {
        char key[64];
        const size_t length = strcspn(at, ".");
        memcpy(key, at, length);
        key[length] = 0;
        if (!q3_json_object(json, *text, key, text, err))
            return false;
        at += length + (at[length] == '.');
    }
    return true;
}

// A member that must be absent, null, or the one value that the engine computes.
static bool only_false(const q3_json *json, const cJSON *text, const char *key, q3_error *err)
{
    const cJSON *item = q3_json_find(text, key);
    if (!item || cJSON_IsNull(item) || cJSON_IsFalse(item))
        return true;
    return q3_json_fail(json, item, Q3_MALFORMED, err, "not supported, expected false");
}

static bool check_supported(const q3_json *json, const cJSON *text, q3_error *err)
{
    if (!only_false(json, text, "attention_bias", err) ||
        !only_false(json, text, "tie_word_embeddings", err) ||
        !only_false(json, text, "use_sliding_window", err))
        return false;
    const cJSON *item = q3_json_find(text, "use_qk_norm");
    if (item && !cJSON_IsNull(item) && !cJSON_IsTrue(item))
        return q3_json_fail(json, item, Q3_MALFORMED, err, "not supported, expected true");
    item = q3_json_find(text, "hidden_act");
    if (item && !(cJSON_IsString(item) && strcmp(item->valuestring, "silu") == 0))
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "activation not supported, expected \"silu\"");
    item = q3_json_find(text, "decoder_sparse_step");
    if (item && !(cJSON_IsNumber(item) && item->valuedouble == 1))
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "dense layers are not supported, expected 1");
    item = q3_json_find(text, "mlp_only_layers");
    if (item && !cJSON_IsNull(item) && !(cJSON_IsArray(item) && cJSON_GetArraySize(item) == 0))
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "dense layers are not supported, expected an empty array");
    item = q3_json_find(text, "shared_expert_intermediate_size");
    if (item && !cJSON_IsNull(item) && !(cJSON_IsNumber(item) && item->valuedouble == 0))
        return q3_json_fail(json, item, Q3_MALFORMED, err,
                            "shared experts are not supported, expected 0");
    const cJSON *const scopes[] = {json->root, text};
    for (size_t i = 0; i < 2; i++) {
        item = q3_json_find(scopes[i], "quantization_config");
        if (item && !cJSON_IsNull(item))
            return q3_json_fail(json, item, Q3_MALFORMED, err, "quantized weights not supported");
    }
    return true;
}

// Checks that a rotary embedding section asks for plain RoPE. Multi-section RoPE of type "default"
// is exactly plain for text, where the three positions are equal.
static bool check_rope(const q3_json *json, const cJSON *rope, q3_error *err)
{
    static const char *const keys[] = {"rope_type", "type"};
    for (size_t i = 0; i < 2; i++) {
        const cJSON *type = q3_json_find(rope, keys[i]);
        if (type && !(cJSON_IsString(type) && (strcmp(type->valuestring, "default") == 0 ||
                                               strcmp(type->valuestring, "mrope") == 0)))
            return q3_json_fail(json, type, Q3_MALFORMED, err,
                                "rotary scaling not supported, expected \"default\"");
    }
    return true;
}

static bool read_rope(const q3_json *json, const cJSON *text, double *theta, q3_error *err)
{
    // transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters.
    const cJSON *parameters = q3_json_find(text, "rope_parameters");
    const cJSON *scaling = q3_json_find(text, "rope_scaling");
    const cJSON *holder = cJSON_IsObject(parameters) ? parameters : text;
    if (!check_rope(json, parameters, err) || !check_rope(json, scaling, err))
        return false;
    const cJSON *const scopes[] = {text, parameters};
    for (size_t i = 0; i < 2; i++) {
        const cJSON *item = q3_json_find(scopes[i], "partial_rotary_factor");
        if (item && !cJSON_IsNull(item) && !(cJSON_IsNumber(item) && item->valuedouble == 1))
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "partial rotary embedding not supported, expected 1");
    }
    return q3_json_double(json, holder, "rope_theta", 1, 1e12, theta, err);
}

bool q3_config_read(const q3_json *json, q3_config *config, q3_error *err)
{
    *config = (q3_config){0};
    const cJSON *text;
    if (!find_text_config(json, &config->family, &text, err))
        return false;
    const struct {
        const char *key;
        uint32_t max;
        uint32_t *value;
    } fields[] = {
        {"vocab_size", 1 << 24, &config->vocab_size},
        {"hidden_size", 1 << 16, &config->hidden_size},
        {"num_hidden_layers", 1024, &config->num_hidden_layers},
        {"num_attention_heads", 1024, &config->num_attention_heads},
        {"num_key_value_heads", 1024, &config->num_key_value_heads},
        {"head_dim", 4096, &config->head_dim},
        {"num_experts", 4096, &config->num_experts},
        {"num_experts_per_tok", 4096, &config->num_experts_per_tok},
        {"moe_intermediate_size", 1 << 16, &config->moe_intermediate_size},
        {"max_position_embeddings", 1 << 24, &config->max_position_embeddings},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!q3_json_u32(json, text, fields[i].key, 1, fields[i].max, fields[i].value, err))
            return false;
    if (!q3_json_bool(json, text, "norm_topk_prob", &config->norm_topk_prob, err) ||
        !q3_json_double(json, text, "rms_norm_eps", 0, 1, &config->rms_norm_eps, err) ||
        !read_rope(json, text, &config->rope_theta, err) || !check_supported(json, text, err))
        return false;
    if (config->num_attention_heads % config->num_key_value_heads)
        return q3_json_fail(json, q3_json_find(text, "num_key_value_heads"), Q3_MALFORMED, err,
                            "expected a divisor of num_attention_heads (%u), found %u",
                            config->num_attention_heads, config->num_key_value_heads);
    if (config->head_dim % 2)
        return q3_json_fail(json, q3_json_find(text, "head_dim"), Q3_MALFORMED, err,
                            "expected an even number, found %u", config->head_dim);
    if (config->num_experts_per_tok > config->num_experts)
        return q3_json_fail(json, q3_json_find(text, "num_experts_per_tok"), Q3_MALFORMED, err,
                            "expected at most num_experts (%u), found %u", config->num_experts,
                            config->num_experts_per_tok);
    return true;
}

bool q3_config_load(const char *path, q3_config *config, q3_json *json, q3_error *err)
{
    q3_json local;
    if (!json)
        json = &local;
    if (!q3_json_load(path, CONFIG_BYTES_MAX, json, err))
        return false;
    const bool ok = q3_config_read(json, config, err);
    if (!ok || json == &local)
        q3_json_free(json);
    return ok;
}
