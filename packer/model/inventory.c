// SPDX-License-Identifier: Apache-2.0
#include "inventory.h"

#include "base/bytes.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// More tensors than this in one inventory is a hostile manifest, not a model.
enum { TENSORS_MAX = 1 << 24, DIMENSION_TEXT_MAX = 128 };

// ---- building ----

bool q3_inventory_add_value(q3_inventory *inventory, q3_component component, const char *name,
                            uint64_t number, q3_error *err)
{
    for (size_t i = 0; i < inventory->value_count; i++)
        if (inventory->values[i].component == component &&
            strcmp(inventory->values[i].name, name) == 0)
            return q3_fail(err, Q3_MALFORMED, "the value \"%s\" is defined twice", name);
    if (!q3_grow(&inventory->values, &inventory->value_capacity, inventory->value_count + 1,
                 sizeof *inventory->values, err))
        return false;
    char *copy = q3_format(err, "%s", name);
    if (!copy)
        return false;
    inventory->values[inventory->value_count++] =
        (q3_value){.name = copy, .component = component, .number = number};
    return true;
}

static bool evaluate(const q3_inventory *inventory, q3_component component, const char *expression,
                     uint64_t *result)
{
    uint64_t value = 1;
    char operation = '*';
    const char *at = expression;
    for (;;) {
        const size_t length = strcspn(at, "*/");
        uint64_t term = 0;
        bool known = false;
        if (length && strspn(at, "0123456789") >= length && length < 19) {
            term = strtoull(at, NULL, 10);
            known = true;
        }
        for (size_t i = 0; i < inventory->value_count && !known; i++) {
            const q3_value *candidate = &inventory->values[i];
            if (candidate->component == component && strlen(candidate->name) == length &&
                memcmp(candidate->name, at, length) == 0) {
                term = candidate->number;
                known = true;
            }
        }
        if (!known || (operation == '/' && term == 0))
            return false;
        if (operation == '/')
            value /= term;
        else if (!q3_multiply(value, term, &value))
            return false;
        at += length;
        if (*at == 0)
            break;
        operation = *at++;
    }
    *result = value;
    return true;
}

// Parses the ranges of pattern->name and counts its tensors.
static bool parse_ranges(q3_pattern *pattern, q3_error *err)
{
    pattern->count = 1;
    for (const char *at = pattern->name; (at = strpbrk(at, "{}")) != NULL;) {
        uint32_t bound[2];
        int used = 0;
        if (*at != '{' || pattern->ranges == Q3_RANGES_MAX ||
            sscanf(at, "{%9" SCNu32 "-%9" SCNu32 "}%n", &bound[0], &bound[1], &used) != 2 ||
            used == 0 || bound[0] > bound[1])
            return q3_fail(err, Q3_MALFORMED,
                           "the name pattern \"%s\" is malformed, expected ranges such as {0-47}",
                           pattern->name);
        pattern->range[pattern->ranges++] = (q3_range){bound[0], bound[1]};
        pattern->count *= (uint64_t)bound[1] - bound[0] + 1;
        if (pattern->count > TENSORS_MAX)
            return q3_fail(err, Q3_MALFORMED, "the name pattern \"%s\" names too many tensors",
                           pattern->name);
        at += used;
    }
    return true;
}

bool q3_inventory_add(q3_inventory *inventory, q3_component component, q3_part part, q3_dtype dtype,
                      const char *name, unsigned rank, const char *const *dimensions, q3_error *err)
{
    if (strlen(name) >= Q3_NAME_MAX - 3 * 8)
        return q3_fail(err, Q3_MALFORMED, "the name pattern \"%s\" is too long", name);
    if (!q3_grow(&inventory->patterns, &inventory->pattern_capacity, inventory->pattern_count + 1,
                 sizeof *inventory->patterns, err))
        return false;
    q3_pattern *pattern = &inventory->patterns[inventory->pattern_count++];
    *pattern = (q3_pattern){.component = component,
                            .part = part,
                            .dtype = dtype,
                            .rank = rank,
                            .first = inventory->tensors};
    pattern->name = q3_format(err, "%s", name);
    if (!pattern->name || !parse_ranges(pattern, err))
        return false;
    for (unsigned i = 0; i < rank; i++) {
        // Every term is looked up: a long expression would take as long as it likes.
        const size_t length = strlen(dimensions[i]);
        if (length >= DIMENSION_TEXT_MAX)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: expected dimensions of at most %d bytes, found %zu", name,
                           DIMENSION_TEXT_MAX - 1, length);
        pattern->dimension[i] = q3_format(err, "%s", dimensions[i]);
        if (!pattern->dimension[i])
            return false;
        if (!evaluate(inventory, component, dimensions[i], &pattern->shape[i]))
            return q3_fail(err, Q3_MALFORMED, "%s: the dimension \"%s\" cannot be evaluated", name,
                           dimensions[i]);
    }
    q3_tensor tensor = {.dtype = dtype, .rank = rank};
    memcpy(tensor.shape, pattern->shape, sizeof tensor.shape);
    uint64_t bytes;
    if (!q3_tensor_size(&tensor) || !q3_multiply(tensor.bytes, pattern->count, &bytes) ||
        !q3_add(inventory->bytes, bytes, &inventory->bytes))
        return q3_fail(err, Q3_MALFORMED, "%s: the size in bytes does not fit 64 bits", name);
    pattern->bytes = tensor.bytes;
    inventory->tensors += pattern->count;
    if (inventory->tensors > TENSORS_MAX)
        return q3_fail(err, Q3_MALFORMED, "%s: the inventory names too many tensors", name);
    inventory->has_component[component] = true;
    return true;
}

void q3_inventory_free(q3_inventory *inventory)
{
    for (size_t i = 0; i < inventory->pattern_count; i++) {
        free(inventory->patterns[i].name);
        for (unsigned d = 0; d < Q3_RANK_MAX; d++)
            free(inventory->patterns[i].dimension[d]);
    }
    for (size_t i = 0; i < inventory->value_count; i++)
        free(inventory->values[i].name);
    free(inventory->patterns);
    free(inventory->values);
    *inventory = (q3_inventory){0};
}

// ---- deriving from a configuration ----

// A failure sticks, so that the tables below read as tables; the end looks at `ok` once.
typedef struct builder {
    const q3_json *json;
    q3_inventory *inventory;
    q3_component component;
    q3_part part;
    q3_dtype dtype;
    char prefix[64]; // what the names below start with
    q3_error *err;
    bool ok;
} builder;

// Takes a whole number from the configuration as a value named `name`.
static uint32_t define_as(builder *b, const cJSON *section, const char *key, const char *name)
{
    uint32_t number = 1;
    b->ok = b->ok && q3_json_u32(b->json, section, key, 1, 1 << 24, &number, b->err) &&
            q3_inventory_add_value(b->inventory, b->component, name, number, b->err);
    return number;
}

static uint32_t define(builder *b, const cJSON *section, const char *key)
{
    return define_as(b, section, key, key);
}

// One pattern: `dimensions` are separated by blanks. The name is a format for what follows.
static void add(builder *b, const char *dimensions, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void add(builder *b, const char *dimensions, const char *format, ...)
{
    if (!b->ok)
        return;
    char name[2 * Q3_NAME_MAX], text[DIMENSION_TEXT_MAX];
    const int used = snprintf(name, sizeof name, "%s", b->prefix);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name + used, sizeof name - (size_t)used, format, arguments);
    va_end(arguments);
    snprintf(text, sizeof text, "%s", dimensions);
    const char *dimension[Q3_RANK_MAX];
    unsigned rank = 0;
    char *rest = NULL;
    for (char *word = strtok_r(text, " ", &rest); word && rank < Q3_RANK_MAX;
         word = strtok_r(NULL, " ", &rest))
        dimension[rank++] = word;
    q3_error reason;
    b->ok = q3_inventory_add(b->inventory, b->component, b->part, b->dtype, name, rank, dimension,
                             &reason);
    if (!b->ok) {
        q3_json_fail(b->json, NULL, (enum q3_exit)reason.code, b->err, "%s", reason.message);
        return;
    }
    // No model has an empty tensor; a quotient that rounds down to 0 would make one.
    const q3_pattern *pattern = &b->inventory->patterns[b->inventory->pattern_count - 1];
    for (unsigned i = 0; i < rank && b->ok; i++)
        if (pattern->shape[i] == 0)
            b->ok = q3_json_fail(b->json, NULL, Q3_MALFORMED, b->err,
                                 "%s: the dimension \"%s\" is 0, expected at least 1", name,
                                 pattern->dimension[i]);
}

// NAME.weight and NAME.bias, the bias with the first dimension alone.
static void add_with_bias(builder *b, const char *dimensions, const char *name)
{
    char bias[DIMENSION_TEXT_MAX];
    snprintf(bias, sizeof bias, "%.*s", (int)strcspn(dimensions, " "), dimensions);
    add(b, dimensions, "%s.weight", name);
    add(b, bias, "%s.bias", name);
}

// Query, key, value and output projections with normed heads, as all the decoders of the family
// have.
static void add_attention(builder *b, const char *layers, const char *queries, const char *keys,
                          const char *hidden)
{
    char in[DIMENSION_TEXT_MAX], out[DIMENSION_TEXT_MAX], kv[DIMENSION_TEXT_MAX];
    snprintf(in, sizeof in, "%s %s", queries, hidden);
    snprintf(kv, sizeof kv, "%s %s", keys, hidden);
    snprintf(out, sizeof out, "%s %s", hidden, queries);
    add(b, in, "%s.self_attn.q_proj.weight", layers);
    add(b, kv, "%s.self_attn.k_proj.weight", layers);
    add(b, kv, "%s.self_attn.v_proj.weight", layers);
    add(b, out, "%s.self_attn.o_proj.weight", layers);
}

static void add_gated_mlp(builder *b, const char *name, const char *inner, const char *hidden)
{
    char up[DIMENSION_TEXT_MAX], down[DIMENSION_TEXT_MAX];
    snprintf(up, sizeof up, "%s %s", inner, hidden);
    snprintf(down, sizeof down, "%s %s", hidden, inner);
    add(b, up, "%s.gate_proj.weight", name);
    add(b, up, "%s.up_proj.weight", name);
    add(b, down, "%s.down_proj.weight", name);
}

static void add_text(builder *b, const q3_config *config)
{
    const struct {
        const char *name;
        uint32_t number;
    } values[] = {
        {"vocab_size", config->vocab_size},
        {"hidden_size", config->hidden_size},
        {"num_attention_heads", config->num_attention_heads},
        {"num_key_value_heads", config->num_key_value_heads},
        {"head_dim", config->head_dim},
        {"num_experts", config->num_experts},
        {"moe_intermediate_size", config->moe_intermediate_size},
    };
    for (size_t i = 0; i < sizeof values / sizeof *values && b->ok; i++)
        b->ok =
            q3_inventory_add_value(b->inventory, Q3_TEXT, values[i].name, values[i].number, b->err);
    char layers[64], experts[128];
    snprintf(layers, sizeof layers, "layers.{0-%u}", config->num_hidden_layers - 1);
    snprintf(experts, sizeof experts, "%s.mlp.experts.{0-%u}", layers, config->num_experts - 1);
    snprintf(b->prefix, sizeof b->prefix, "%smodel.", config->family->prefix);
    b->component = Q3_TEXT;
    b->part = Q3_EMBEDDING;
    add(b, "vocab_size hidden_size", "embed_tokens.weight");
    b->part = Q3_ATTENTION;
    add_attention(b, layers, "num_attention_heads*head_dim", "num_key_value_heads*head_dim",
                  "hidden_size");
    add(b, "head_dim", "%s.self_attn.q_norm.weight", layers);
    add(b, "head_dim", "%s.self_attn.k_norm.weight", layers);
    b->part = Q3_NORMS;
    add(b, "hidden_size", "%s.input_layernorm.weight", layers);
    add(b, "hidden_size", "%s.post_attention_layernorm.weight", layers);
    b->part = Q3_ROUTER;
    add(b, "num_experts hidden_size", "%s.mlp.gate.weight", layers);
    b->part = Q3_EXPERT;
    add_gated_mlp(b, experts, "moe_intermediate_size", "hidden_size");
    b->part = Q3_FINAL_NORM;
    add(b, "hidden_size", "norm.weight");
    b->part = Q3_LM_HEAD;
    snprintf(b->prefix, sizeof b->prefix, "%s", config->family->prefix);
    add(b, "vocab_size hidden_size", "lm_head.weight");
}

static void begin_component(builder *b, q3_component component, const char *prefix)
{
    b->component = component;
    b->part = Q3_WHOLE;
    snprintf(b->prefix, sizeof b->prefix, "%s", prefix);
}

static void add_audio_tower(builder *b, const cJSON *section)
{
    begin_component(b, Q3_AUDIO_TOWER, "thinker.audio_tower.");
    define(b, section, "d_model");
    define(b, section, "encoder_ffn_dim");
    define(b, section, "downsample_hidden_size");
    define(b, section, "output_dim");
    uint32_t layers = 1, mel_bins = 8;
    b->ok = b->ok && q3_json_u32(b->json, section, "encoder_layers", 1, 1024, &layers, b->err) &&
            q3_json_u32(b->json, section, "num_mel_bins", 1, 1 << 16, &mel_bins, b->err);
    // Three convolutions of stride 2 and padding 1 in turn.
    for (int i = 0; i < 3; i++)
        mel_bins = (mel_bins + 1) / 2;
    add_with_bias(b, "downsample_hidden_size 1 3 3", "conv2d1");
    add_with_bias(b, "downsample_hidden_size downsample_hidden_size 3 3", "conv2d2");
    add_with_bias(b, "downsample_hidden_size downsample_hidden_size 3 3", "conv2d3");
    char text[DIMENSION_TEXT_MAX];
    snprintf(text, sizeof text, "d_model downsample_hidden_size*%u", mel_bins);
    add(b, text, "conv_out.weight");
    static const char *const square[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                         "self_attn.out_proj"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(text, sizeof text, "layers.{0-%u}.%s", layers - 1, square[i]);
        add_with_bias(b, "d_model d_model", text);
    }
    snprintf(text, sizeof text, "layers.{0-%u}.self_attn_layer_norm", layers - 1);
    add_with_bias(b, "d_model", text);
    snprintf(text, sizeof text, "layers.{0-%u}.fc1", layers - 1);
    add_with_bias(b, "encoder_ffn_dim d_model", text);
    snprintf(text, sizeof text, "layers.{0-%u}.fc2", layers - 1);
    add_with_bias(b, "d_model encoder_ffn_dim", text);
    snprintf(text, sizeof text, "layers.{0-%u}.final_layer_norm", layers - 1);
    add_with_bias(b, "d_model", text);
    add_with_bias(b, "d_model", "ln_post");
    add_with_bias(b, "d_model d_model", "proj1");
    add_with_bias(b, "output_dim d_model", "proj2");
}

// The patch merger: normalises (before or after joining patches) and projects to the text width.
static void add_merger(builder *b, const char *name, const char *norm)
{
    static const char joined[] = "hidden_size*spatial_merge_size*spatial_merge_size";
    char text[DIMENSION_TEXT_MAX], part[DIMENSION_TEXT_MAX];
    snprintf(part, sizeof part, "%s.ln_q", name);
    add_with_bias(b, norm ? norm : joined, part);
    snprintf(part, sizeof part, "%s.mlp.0", name);
    snprintf(text, sizeof text, "%s %s", joined, joined);
    add_with_bias(b, text, part);
    snprintf(part, sizeof part, "%s.mlp.2", name);
    snprintf(text, sizeof text, "out_hidden_size %s", joined);
    add_with_bias(b, text, part);
}

static void add_visual(builder *b, const cJSON *section)
{
    begin_component(b, Q3_VISUAL, "thinker.visual.");
    define(b, section, "hidden_size");
    define(b, section, "intermediate_size");
    define(b, section, "out_hidden_size");
    define(b, section, "spatial_merge_size");
    define(b, section, "in_channels");
    define(b, section, "temporal_patch_size");
    define(b, section, "patch_size");
    define(b, section, "image_size");
    uint32_t depth = 1;
    b->ok = b->ok && q3_json_u32(b->json, section, "depth", 1, 1024, &depth, b->err);
    add_with_bias(b, "hidden_size in_channels temporal_patch_size patch_size patch_size",
                  "patch_embed.proj");
    add(b, "image_size/patch_size*image_size/patch_size hidden_size", "pos_embed.weight");
    const struct {
        const char *name, *dimensions;
    } rows[] = {
        {"norm1", "hidden_size"},
        {"attn.qkv", "3*hidden_size hidden_size"},
        {"attn.proj", "hidden_size hidden_size"},
        {"norm2", "hidden_size"},
        {"mlp.linear_fc1", "intermediate_size hidden_size"},
        {"mlp.linear_fc2", "hidden_size intermediate_size"},
    };
    char text[DIMENSION_TEXT_MAX];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(text, sizeof text, "blocks.{0-%u}.%s", depth - 1, rows[i].name);
        add_with_bias(b, rows[i].dimensions, text);
    }
    add_merger(b, "merger", "hidden_size");
    const cJSON *deepstack = NULL;
    b->ok =
        b->ok && q3_json_array(b->json, section, "deepstack_visual_indexes", &deepstack, b->err);
    const int mergers = deepstack ? cJSON_GetArraySize(deepstack) : 0;
    if (mergers > 0) {
        snprintf(text, sizeof text, "merger_list.{0-%d}", mergers - 1);
        add_merger(b, text, NULL);
    }
}

// A plain decoder stack inside the talker: attention, gated MLP or experts, norms.
static void add_talker(builder *b, const cJSON *talker)
{
    begin_component(b, Q3_TALKER, "talker.");
    const cJSON *text = NULL, *predictor = NULL;
    b->ok = b->ok && q3_json_object(b->json, talker, "text_config", &text, b->err) &&
            q3_json_object(b->json, talker, "code_predictor_config", &predictor, b->err);
    static const char *const text_keys[] = {
        "vocab_size",          "hidden_size",           "intermediate_size",
        "num_attention_heads", "num_key_value_heads",   "head_dim",
        "num_experts",         "moe_intermediate_size", "shared_expert_intermediate_size"};
    for (size_t i = 0; i < sizeof text_keys / sizeof *text_keys; i++)
        define(b, text, text_keys[i]);
    define(b, talker, "thinker_hidden_size");
    static const char *const predictor_keys[][2] = {
        {"vocab_size", "predictor_vocab_size"},
        {"hidden_size", "predictor_hidden_size"},
        {"intermediate_size", "predictor_intermediate_size"},
        {"num_attention_heads", "predictor_attention_heads"},
        {"num_key_value_heads", "predictor_key_value_heads"},
        {"head_dim", "predictor_head_dim"}};
    for (size_t i = 0; i < sizeof predictor_keys / sizeof *predictor_keys; i++)
        define_as(b, predictor, predictor_keys[i][0], predictor_keys[i][1]);
    uint32_t layers = 1, experts = 1, predictor_layers = 1, groups = 2;
    b->ok =
        b->ok && q3_json_u32(b->json, text, "num_hidden_layers", 1, 1024, &layers, b->err) &&
        q3_json_u32(b->json, text, "num_experts", 1, 4096, &experts, b->err) &&
        q3_json_u32(b->json, predictor, "num_hidden_layers", 1, 1024, &predictor_layers, b->err) &&
        q3_json_u32(b->json, predictor, "num_code_groups", 2, 1024, &groups, b->err);
    if (!b->ok)
        return;

    add_with_bias(b, "intermediate_size thinker_hidden_size", "text_projection.linear_fc1");
    add_with_bias(b, "hidden_size intermediate_size", "text_projection.linear_fc2");
    add_with_bias(b, "intermediate_size thinker_hidden_size", "hidden_projection.linear_fc1");
    add_with_bias(b, "hidden_size intermediate_size", "hidden_projection.linear_fc2");
    add(b, "vocab_size hidden_size", "model.codec_embedding.weight");
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, "model.layers.{0-%u}", layers - 1);
    add_attention(b, prefix, "num_attention_heads*head_dim", "num_key_value_heads*head_dim",
                  "hidden_size");
    add(b, "head_dim", "%s.self_attn.q_norm.weight", prefix);
    add(b, "head_dim", "%s.self_attn.k_norm.weight", prefix);
    add(b, "hidden_size", "%s.input_layernorm.weight", prefix);
    add(b, "hidden_size", "%s.post_attention_layernorm.weight", prefix);
    add(b, "num_experts hidden_size", "%s.mlp.gate.weight", prefix);
    snprintf(name, sizeof name, "%s.mlp.experts.{0-%u}", prefix, experts - 1);
    add_gated_mlp(b, name, "moe_intermediate_size", "hidden_size");
    snprintf(name, sizeof name, "%s.mlp.shared_expert", prefix);
    add_gated_mlp(b, name, "shared_expert_intermediate_size", "hidden_size");
    add(b, "1 hidden_size", "%s.mlp.shared_expert_gate.weight", prefix);
    add(b, "hidden_size", "model.norm.weight");
    add(b, "vocab_size hidden_size", "codec_head.weight");

    add(b, "predictor_vocab_size predictor_hidden_size",
        "code_predictor.model.codec_embedding.{0-%u}.weight", groups - 2);
    snprintf(prefix, sizeof prefix, "code_predictor.model.layers.{0-%u}", predictor_layers - 1);
    add_attention(b, prefix, "predictor_attention_heads*predictor_head_dim",
                  "predictor_key_value_heads*predictor_head_dim", "predictor_hidden_size");
    add(b, "predictor_head_dim", "%s.self_attn.q_norm.weight", prefix);
    add(b, "predictor_head_dim", "%s.self_attn.k_norm.weight", prefix);
    add(b, "predictor_hidden_size", "%s.input_layernorm.weight", prefix);
    add(b, "predictor_hidden_size", "%s.post_attention_layernorm.weight", prefix);
    snprintf(name, sizeof name, "%s.mlp", prefix);
    add_gated_mlp(b, name, "predictor_intermediate_size", "predictor_hidden_size");
    add(b, "predictor_hidden_size", "code_predictor.model.norm.weight");
    add(b, "predictor_vocab_size predictor_hidden_size", "code_predictor.lm_head.{0-%u}.weight",
        groups - 2);
}

// A list of whole numbers from the configuration, at most `capacity` long.
static unsigned read_list(builder *b, const cJSON *section, const char *key, uint64_t *numbers,
                          unsigned capacity)
{
    const cJSON *list = NULL, *item;
    unsigned count = 0;
    b->ok = b->ok && q3_json_array(b->json, section, key, &list, b->err);
    cJSON_ArrayForEach(item, list)
    {
        if (!b->ok)
            break;
        if (count == capacity)
            b->ok =
                q3_json_fail(b->json, list, Q3_MALFORMED, b->err, "more than %u entries", capacity);
        else
            b->ok = q3_json_item_u64(b->json, item, 1, 1 << 16, &numbers[count++], b->err);
    }
    return b->ok ? count : 0;
}

static void add_code2wav(builder *b, const cJSON *section)
{
    enum { STAGES_MAX = 16 };
    begin_component(b, Q3_CODE2WAV, "code2wav.");
    define(b, section, "hidden_size");
    define(b, section, "intermediate_size");
    const uint32_t heads = define(b, section, "num_attention_heads");
    define(b, section, "num_key_value_heads");
    define(b, section, "codebook_size");
    define(b, section, "num_quantizers");
    const uint32_t decoder_width = define(b, section, "decoder_dim");
    uint32_t layers = 1, hidden = 1;
    b->ok = b->ok && q3_json_u32(b->json, section, "num_hidden_layers", 1, 1024, &layers, b->err) &&
            q3_json_u32(b->json, section, "hidden_size", 1, 1 << 24, &hidden, b->err);
    // The heads' width is the hidden size shared out unless it is given.
    if (q3_json_find(section, "head_dim"))
        define(b, section, "head_dim");
    else
        b->ok = b->ok && q3_inventory_add_value(b->inventory, Q3_CODE2WAV, "head_dim",
                                                hidden / heads, b->err);
    uint64_t ratio[STAGES_MAX] = {0}, rate[STAGES_MAX] = {0};
    const unsigned ratios = read_list(b, section, "upsampling_ratios", ratio, STAGES_MAX);
    const unsigned rates = read_list(b, section, "upsample_rates", rate, STAGES_MAX);
    if (!b->ok)
        return;

    char prefix[64], text[DIMENSION_TEXT_MAX], name[128];
    add(b, "codebook_size*num_quantizers hidden_size", "code_embedding.weight");
    snprintf(prefix, sizeof prefix, "pre_transformer.layers.{0-%u}", layers - 1);
    add_attention(b, prefix, "num_attention_heads*head_dim", "num_key_value_heads*head_dim",
                  "hidden_size");
    add(b, "hidden_size", "%s.self_attn_layer_scale.scale", prefix);
    add(b, "hidden_size", "%s.input_layernorm.weight", prefix);
    add(b, "hidden_size", "%s.post_attention_layernorm.weight", prefix);
    snprintf(name, sizeof name, "%s.mlp", prefix);
    add_gated_mlp(b, name, "intermediate_size", "hidden_size");
    add(b, "hidden_size", "%s.mlp_layer_scale.scale", prefix);
    add(b, "hidden_size", "pre_transformer.norm.weight");

    for (unsigned i = 0; i < ratios; i++) {
        snprintf(name, sizeof name, "upsample.%u.0.conv", i);
        snprintf(text, sizeof text, "hidden_size hidden_size %" PRIu64, ratio[i]);
        add_with_bias(b, text, name);
        snprintf(name, sizeof name, "upsample.%u.1.dwconv.conv", i);
        add_with_bias(b, "hidden_size 1 7", name);
        snprintf(name, sizeof name, "upsample.%u.1.norm", i);
        add_with_bias(b, "hidden_size", name);
        snprintf(name, sizeof name, "upsample.%u.1.pwconv1", i);
        add_with_bias(b, "4*hidden_size hidden_size", name);
        snprintf(name, sizeof name, "upsample.%u.1.pwconv2", i);
        add_with_bias(b, "hidden_size 4*hidden_size", name);
        add(b, "hidden_size", "upsample.%u.1.gamma", i);
    }

    add_with_bias(b, "decoder_dim hidden_size 7", "decoder.0.conv");
    uint64_t width = decoder_width;
    for (unsigned i = 1; i <= rates; i++) {
        // Each stage halves the width and stretches time by its rate.
        const uint64_t in = width, out = width / 2;
        char in_text[24], out_text[24];
        snprintf(in_text, sizeof in_text, "%" PRIu64, in);
        snprintf(out_text, sizeof out_text, "%" PRIu64, out);
        add(b, in_text, "decoder.%u.block.0.alpha", i);
        add(b, in_text, "decoder.%u.block.0.beta", i);
        // A transposed convolution: [in, out, kernel], so the bias is not of the first dimension.
        snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " %" PRIu64, in, out, 2 * rate[i - 1]);
        add(b, text, "decoder.%u.block.1.conv.weight", i);
        add(b, out_text, "decoder.%u.block.1.conv.bias", i);
        static const char *const snakes[] = {"act1.alpha", "act1.beta", "act2.alpha", "act2.beta"};
        for (size_t k = 0; k < 4; k++)
            add(b, out_text, "decoder.%u.block.{2-4}.%s", i, snakes[k]);
        snprintf(name, sizeof name, "decoder.%u.block.{2-4}.conv1.conv", i);
        snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " 7", out, out);
        add_with_bias(b, text, name);
        snprintf(name, sizeof name, "decoder.%u.block.{2-4}.conv2.conv", i);
        snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " 1", out, out);
        add_with_bias(b, text, name);
        width = out;
    }
    snprintf(text, sizeof text, "%" PRIu64, width);
    add(b, text, "decoder.%u.alpha", rates + 1);
    add(b, text, "decoder.%u.beta", rates + 1);
    snprintf(name, sizeof name, "decoder.%u.conv", rates + 2);
    snprintf(text, sizeof text, "1 %" PRIu64 " 7", width);
    add_with_bias(b, text, name);
}

static bool read_dtype(const q3_json *json, q3_dtype *dtype, q3_error *err)
{
    static const struct {
        const char *name;
        q3_dtype dtype;
    } names[] = {{"bfloat16", Q3_BF16}, {"float16", Q3_F16}, {"float32", Q3_F32}};
    const cJSON *item = q3_json_find(json->root, "dtype");
    if (!item)
        item = q3_json_find(json->root, "torch_dtype");
    *dtype = Q3_BF16;
    if (!item || cJSON_IsNull(item))
        return true;
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof names / sizeof *names; i++)
        if (strcmp(item->valuestring, names[i].name) == 0) {
            *dtype = names[i].dtype;
            return true;
        }
    return q3_json_fail(json, item, Q3_MALFORMED, err,
                        "expected \"bfloat16\", \"float16\" or \"float32\"");
}

bool q3_inventory_derive(const q3_json *json, q3_inventory *inventory, q3_error *err)
{
    *inventory = (q3_inventory){0};
    q3_config config;
    builder b = {.json = json, .inventory = inventory, .err = err, .ok = true};
    if (!q3_config_read(json, &config, err) || !read_dtype(json, &b.dtype, err))
        return false;
    add_text(&b, &config);
    const cJSON *thinker = q3_json_find(json->root, "thinker_config");
    const cJSON *section = q3_json_find(thinker, "audio_config");
    if (section)
        add_audio_tower(&b, section);
    section = q3_json_find(thinker, "vision_config");
    if (section)
        add_visual(&b, section);
    if (!cJSON_IsFalse(q3_json_find(json->root, "enable_audio_output"))) {
        section = q3_json_find(json->root, "talker_config");
        if (section)
            add_talker(&b, section);
        section = q3_json_find(json->root, "code2wav_config");
        if (section)
            add_code2wav(&b, section);
    }
    if (!b.ok)
        q3_inventory_free(inventory);
    return b.ok;
}

// ---- looking up ----

// Matches a name with a pattern; on success index[i] is the number in place of range i.
static bool match(const q3_pattern *pattern, const char *name, uint32_t *index)
{
    const char *at = pattern->name;
    unsigned range = 0;
    while (*at) {
        if (*at != '{') {
            if (*at++ != *name++)
                return false;
            continue;
        }
        const size_t digits = strspn(name, "0123456789");
        // One spelling for each number: "07" is another name.
        if (digits == 0 || digits > 9 || (*name == '0' && digits > 1))
            return false;
        const uint32_t number = (uint32_t)strtoul(name, NULL, 10);
        if (number < pattern->range[range].first || number > pattern->range[range].last)
            return false;
        index[range++] = number;
        name += digits;
        at = strchr(at, '}') + 1;
    }
    return *name == 0;
}

const q3_pattern *q3_inventory_find(const q3_inventory *inventory, const char *name,
                                    uint64_t *ordinal)
{
    for (size_t i = 0; i < inventory->pattern_count; i++) {
        const q3_pattern *pattern = &inventory->patterns[i];
        uint32_t index[Q3_RANGES_MAX];
        if (!match(pattern, name, index))
            continue;
        uint64_t position = 0;
        for (unsigned r = 0; r < pattern->ranges; r++)
            position = position * (pattern->range[r].last - pattern->range[r].first + 1) +
                       (index[r] - pattern->range[r].first);
        *ordinal = pattern->first + position;
        return pattern;
    }
    return NULL;
}

// The number in place of each range for a tensor of the pattern.
static void indices(const q3_pattern *pattern, uint64_t ordinal, uint32_t *index)
{
    uint64_t position = ordinal - pattern->first;
    for (unsigned r = pattern->ranges; r-- > 0;) {
        const uint64_t span = (uint64_t)pattern->range[r].last - pattern->range[r].first + 1;
        index[r] = pattern->range[r].first + (uint32_t)(position % span);
        position /= span;
    }
}

const q3_pattern *q3_inventory_at(const q3_inventory *inventory, uint64_t ordinal,
                                  char name[Q3_NAME_MAX])
{
    size_t low = 0, high = inventory->pattern_count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (inventory->patterns[middle].first <= ordinal)
            low = middle;
        else
            high = middle;
    }
    const q3_pattern *pattern = &inventory->patterns[low];
    uint32_t index[Q3_RANGES_MAX];
    indices(pattern, ordinal, index);
    size_t used = 0;
    unsigned range = 0;
    for (const char *at = pattern->name; *at && used + 12 < Q3_NAME_MAX;) {
        if (*at == '{') {
            used += (size_t)snprintf(name + used, Q3_NAME_MAX - used, "%" PRIu32, index[range++]);
            at = strchr(at, '}') + 1;
        } else {
            name[used++] = *at++;
        }
    }
    name[used] = 0;
    return pattern;
}

q3_place q3_pattern_place(const q3_pattern *pattern, uint64_t ordinal)
{
    q3_place place = {.component = pattern->component, .part = pattern->part};
    uint32_t index[Q3_RANGES_MAX] = {0};
    if (pattern->component == Q3_TEXT) {
        indices(pattern, ordinal, index);
        place.layer = index[0];
        place.expert = index[1];
    }
    return place;
}

const char *q3_name_unsupported(const char *name)
{
    static const struct {
        const char *part, *reason;
    } table[] = {
        {".mlp.experts.gate_up_proj", "fused experts are not supported"},
        {".mlp.experts.down_proj", "fused experts are not supported"},
        {".self_attn.qkv_proj.", "a fused attention projection is not supported"},
        {".self_attn.q_proj.bias", "attention biases are not supported"},
        {".self_attn.k_proj.bias", "attention biases are not supported"},
        {".self_attn.v_proj.bias", "attention biases are not supported"},
        {".self_attn.o_proj.bias", "attention biases are not supported"},
        {".mlp.gate_proj.weight", "dense layers are not supported"},
        {".mlp.up_proj.weight", "dense layers are not supported"},
        {".mlp.down_proj.weight", "dense layers are not supported"},
        {".mlp.shared_expert", "shared experts are not supported in the text model"},
        {".weight_scale", "quantized weights are not supported"},
        {".qweight", "quantized weights are not supported"},
    };
    // Other components have names like these and mean other things by them.
    if (strncmp(name, "thinker.model.", 14) != 0 && strncmp(name, "model.", 6) != 0)
        return NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strstr(name, table[i].part))
            return table[i].reason;
    return NULL;
}
