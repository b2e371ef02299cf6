// SPDX-License-Identifier: Apache-2.0
//
// The model's description: configurations accepted and refused, names to places and back.
#include "model/inventory.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static q3_json config;

static int load_config(void **state)
{
    (void)state;
    q3_error err;
    if (!q3_json_load(Q3_TEST_MODEL_DIR "/config.json", 1 << 20, &config, &err))
        fail_msg("%s", err.message);
    return 0;
}

static int free_config(void **state)
{
    (void)state;
    q3_json_free(&config);
    return 0;
}

static void test_inventory(void **state)
{
    (void)state;
    q3_error err;
    q3_inventory inventory;
    if (!q3_inventory_derive(&config, &inventory, &err))
        fail_msg("%s", err.message);
    assert_int_equal(inventory.tensors, 2610);
    assert_int_equal(inventory.bytes, 11442722);
    for (uint64_t ordinal = 0; ordinal < inventory.tensors; ordinal++) {
        char name[Q3_NAME_MAX];
        uint64_t found;
        const q3_pattern *pattern = q3_inventory_at(&inventory, ordinal, name);
        assert_ptr_equal(q3_inventory_find(&inventory, name, &found), pattern);
        assert_int_equal(found, ordinal);
    }
    static const struct {
        const char *name, *path;
    } places[] = {
        {"thinker.model.embed_tokens.weight", "embedding.q3p"},
        {"thinker.model.layers.0.self_attn.q_norm.weight", "layers/00/attention.q3p"},
        {"thinker.model.layers.5.input_layernorm.weight", "layers/05/norms.q3p"},
        {"thinker.model.layers.3.mlp.gate.weight", "layers/03/router.q3p"},
        {"thinker.model.layers.3.mlp.experts.127.down_proj.weight", "layers/03/experts/127.q3p"},
        {"thinker.model.norm.weight", "final_norm.q3p"},
        {"thinker.lm_head.weight", "lm_head.q3p"},
        {"thinker.audio_tower.conv2d1.bias", "audio_tower.q3p"},
        {"thinker.visual.merger_list.0.mlp.2.weight", "visual.q3p"},
        {"talker.model.layers.1.mlp.experts.3.up_proj.weight", "talker.q3p"},
        {"code2wav.decoder.2.block.4.act2.beta", "code2wav.q3p"},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        uint64_t ordinal;
        const q3_pattern *pattern = q3_inventory_find(&inventory, places[i].name, &ordinal);
        assert_non_null(pattern);
        q3_place place = q3_pattern_place(pattern, ordinal), back;
        char path[Q3_PLACE_PATH_MAX];
        assert_string_equal(q3_place_path(&place, path), places[i].path);
        assert_true(q3_place_parse(path, &back));
        assert_int_equal(q3_place_compare(&place, &back), 0);
    }
    static const char *const unknown[] = {
        "",
        "thinker.model.layers.6.input_layernorm.weight",
        "thinker.model.layers.00.input_layernorm.weight",
        "thinker.model.layers.-1.input_layernorm.weight",
        "thinker.model.layers.0.mlp.experts.128.up_proj.weight",
        "thinker.model.layers.0.mlp.experts.4294967296.up_proj.weight",
        "thinker.model.layers.0.input_layernorm.weight2",
        "thinker.model.layers.0.input_layernorm",
        "model.norm.weight",
        "thinker.model.layers.{0-5}.input_layernorm.weight",
    };
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        uint64_t ordinal;
        assert_null(q3_inventory_find(&inventory, unknown[i], &ordinal));
    }
    q3_inventory_free(&inventory);
}

static void test_paths(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "pack.json",
        "../embedding.q3p",
        "/embedding.q3p",
        "embedding.q3p/",
        "Embedding.q3p",
        "text.q3p",
        "layers/0/norms.q3p",
        "layers/000/norms.q3p",
        "layers/00/norm.q3p",
        "layers/00/experts/00.q3p",
        "layers/00/experts/0000.q3p",
        "layers/00/experts/000.q3p.part",
        "layers/00/../00/norms.q3p",
        "layers/99999999999/norms.q3p",
        "layers/+1/norms.q3p",
    };
    q3_place place;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (q3_place_parse(bad[i], &place))
            fail_msg("%s was accepted", bad[i]);
    char path[Q3_PLACE_PATH_MAX];
    place = (q3_place){.part = Q3_EXPERT, .layer = 123, .expert = 4567};
    assert_string_equal(q3_place_path(&place, path), "layers/123/experts/4567.q3p");
    assert_true(q3_place_parse(path, &place));
    assert_int_equal(place.expert, 4567);
}

// One member of the tiny model's text configuration changed; an empty value takes it out.
static void test_configurations(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value, *message; // message NULL: accepted
    } table[] = {
        {"norm_topk_prob", "false", NULL},
        {"attention_bias", "null", NULL},
        {"hidden_act", "", NULL},
        {"rope_scaling", "null", NULL},
        {"hidden_size", "", "c.json: thinker_config.text_config: \"hidden_size\" is missing"},
        {"norm_topk_prob", "", "c.json: thinker_config.text_config: \"norm_topk_prob\" is missing"},
        {"rope_theta", "", "c.json: thinker_config.text_config: \"rope_theta\" is missing"},
        {"hidden_size", "128.5",
         "c.json: thinker_config.text_config.hidden_size: expected an integer from 1 to 65536, "
         "found "
         "128.5"},
        {"vocab_size", "4294967297",
         "c.json: thinker_config.text_config.vocab_size: expected an integer from 1 to 16777216, "
         "found "
         "4294967297"},
        {"num_hidden_layers", "0",
         "c.json: thinker_config.text_config.num_hidden_layers: expected an integer from 1 to "
         "1024, "
         "found 0"},
        {"num_key_value_heads", "3",
         "c.json: thinker_config.text_config.num_key_value_heads: expected a divisor of "
         "num_attention_heads (4), found 3"},
        {"head_dim", "31",
         "c.json: thinker_config.text_config.head_dim: expected an even number, found 31"},
        {"num_experts_per_tok", "129",
         "c.json: thinker_config.text_config.num_experts_per_tok: expected at most num_experts "
         "(128), "
         "found 129"},
        {"attention_bias", "true",
         "c.json: thinker_config.text_config.attention_bias: not supported, expected false"},
        {"tie_word_embeddings", "true",
         "c.json: thinker_config.text_config.tie_word_embeddings: not supported, expected false"},
        {"use_sliding_window", "true",
         "c.json: thinker_config.text_config.use_sliding_window: not supported, expected false"},
        {"use_qk_norm", "false",
         "c.json: thinker_config.text_config.use_qk_norm: not supported, expected true"},
        {"hidden_act", "\"gelu\"",
         "c.json: thinker_config.text_config.hidden_act: activation not supported, expected "
         "\"silu\""},
        {"decoder_sparse_step", "2",
         "c.json: thinker_config.text_config.decoder_sparse_step: dense layers are not supported, "
         "expected 1"},
        {"mlp_only_layers", "[0]",
         "c.json: thinker_config.text_config.mlp_only_layers: dense layers are not supported, "
         "expected "
         "an empty array"},
        {"shared_expert_intermediate_size", "64",
         "c.json: thinker_config.text_config.shared_expert_intermediate_size: shared experts are "
         "not "
         "supported, expected 0"},
        {"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4}",
         "c.json: thinker_config.text_config.rope_scaling.rope_type: rotary scaling not supported, "
         "expected \"default\""},
        {"partial_rotary_factor", "0.5",
         "c.json: thinker_config.text_config.partial_rotary_factor: partial rotary embedding not "
         "supported, expected 1"},
        {"quantization_config", "{}",
         "c.json: thinker_config.text_config.quantization_config: quantized weights not supported"},
        {"rope_parameters", "{\"rope_type\": \"default\"}",
         "c.json: thinker_config.text_config.rope_parameters: \"rope_theta\" is missing"},
        {"rms_norm_eps", "\"1e-6\"",
         "c.json: thinker_config.text_config.rms_norm_eps: expected a number from 0 to 1, found "
         "\"1e-6\""},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        cJSON *changed = cJSON_Duplicate(config.root, true);
        cJSON *text =
            cJSON_GetObjectItem(cJSON_GetObjectItem(changed, "thinker_config"), "text_config");
        cJSON_DeleteItemFromObjectCaseSensitive(text, table[i].key);
        if (*table[i].value)
            cJSON_AddItemToObject(text, table[i].key, cJSON_Parse(table[i].value));
        char *printed = cJSON_Print(changed);
        q3_error err = {.message = "accepted"};
        q3_json json;
        q3_config read;
        assert_true(q3_json_parse("c.json", (q3_bytes){(const uint8_t *)printed, strlen(printed)},
                                  &json, &err));
        if (q3_config_read(&json, &read, &err) != !table[i].message)
            fail_msg("%s %s: %s", table[i].key, table[i].value, err.message);
        if (table[i].message) {
            assert_string_equal(err.message, table[i].message);
            assert_int_equal(err.code, Q3_MALFORMED);
        }
        q3_json_free(&json);
        cJSON_free(printed);
        cJSON_Delete(changed);
    }
}

// Numbers in the other components' sections that make no shape.
static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *path[2], *key;
        double value;
        const char *message;
    } table[] = {
        {{"thinker_config", "vision_config"},
         "patch_size",
         17,
         "c.json: thinker.visual.pos_embed.weight: the dimension "
         "\"image_size/patch_size*image_size/patch_size\" is 0, expected at least 1"},
        {{"code2wav_config", NULL},
         "num_attention_heads",
         33,
         "c.json: code2wav.pre_transformer.layers.{0-0}.self_attn.q_proj.weight: the dimension "
         "\"num_attention_heads*head_dim\" is 0, expected at least 1"},
        {{"code2wav_config", NULL},
         "decoder_dim",
         2,
         "c.json: code2wav.decoder.2.block.1.conv.weight: the dimension \"0\" is 0, expected at "
         "least 1"},
        {{"thinker_config", "vision_config"},
         "spatial_merge_size",
         16777216,
         "c.json: thinker.visual.merger.mlp.0.weight: the size in bytes does not fit 64 bits"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        cJSON *changed = cJSON_Duplicate(config.root, true), *section = changed;
        for (size_t k = 0; k < 2 && table[i].path[k]; k++)
            section = cJSON_GetObjectItem(section, table[i].path[k]);
        assert_non_null(section);
        cJSON_SetNumberValue(cJSON_GetObjectItem(section, table[i].key), table[i].value);
        const q3_json json = {.name = (char[]){"c.json"}, .root = changed};
        q3_error err = {.message = "accepted"};
        q3_inventory inventory;
        assert_false(q3_inventory_derive(&json, &inventory, &err));
        assert_string_equal(err.message, table[i].message);
        assert_int_equal(err.code, Q3_MALFORMED);
        cJSON_Delete(changed);
    }
}

static void test_families(void **state)
{
    (void)state;
    static const char text[] =
        "{\"model_type\": \"qwen3_moe\", \"vocab_size\": 64, \"hidden_size\": 8,"
        " \"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1,"
        " \"head_dim\": 4, \"num_experts\": 3, \"num_experts_per_tok\": 2,"
        " \"moe_intermediate_size\": 6, \"max_position_embeddings\": 32, \"norm_topk_prob\": true,"
        " \"rms_norm_eps\": 1e-6, \"rope_parameters\": {\"rope_theta\": 10000, \"rope_type\":"
        " \"default\"}}";
    q3_error err;
    q3_json json;
    q3_config read;
    q3_inventory inventory;
    assert_true(
        q3_json_parse("c.json", (q3_bytes){(const uint8_t *)text, strlen(text)}, &json, &err));
    assert_true(q3_config_read(&json, &read, &err));
    assert_true(read.rope_theta == 10000);
    assert_true(q3_inventory_derive(&json, &inventory, &err));
    assert_int_equal(inventory.tensors, 3 + 2 * (6 + 2 + 1 + 3 * 3));
    uint64_t ordinal;
    assert_non_null(
        q3_inventory_find(&inventory, "model.layers.1.mlp.experts.2.up_proj.weight", &ordinal));
    assert_non_null(q3_inventory_find(&inventory, "lm_head.weight", &ordinal));
    q3_inventory_free(&inventory);
    q3_json_free(&json);
    static const char other[] = "{\"model_type\": \"llama\"}";
    assert_true(
        q3_json_parse("c.json", (q3_bytes){(const uint8_t *)other, strlen(other)}, &json, &err));
    assert_false(q3_config_read(&json, &read, &err));
    assert_string_equal(err.message,
                        "c.json: model_type: expected \"qwen3_omni_moe\" or \"qwen3_moe\", found "
                        "\"llama\"");
    q3_json_free(&json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inventory),      cmocka_unit_test(test_paths),
        cmocka_unit_test(test_configurations), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_families),
    };
    return cmocka_run_group_tests(tests, load_config, free_config);
}
