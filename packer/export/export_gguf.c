// SPDX-License-Identifier: Apache-2.0
//
// The text model as llama.cpp's architecture qwen3moe: which names its tensors have there, and what
// is said of it in metadata (docs/gguf.md of github.com/ggml-org/ggml).
#include "base/file.h"
#include "gguf_tokenizer.h"
#include "gguf_writer.h"
#include "plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// general.file_type of a file whose matrices are BF16.
enum { FILE_TYPE_MOSTLY_BF16 = 32 };

// The tensors in the order in which they are written: what is behind the family's prefix in the
// checkpoint ("#" stands for the layer, "@" for the expert) and the name in the file. llama.cpp
// multiplies norms and routers in F32. One matrix of all of a layer's experts becomes one tensor.
static const struct {
    q3_part part;
    const char *name, *exported;
    bool widen;
} layout[] = {
    {Q3_EMBEDDING, "model.embed_tokens.weight", "token_embd.weight", false},
    {Q3_NORMS, "model.layers.#.input_layernorm.weight", "blk.#.attn_norm.weight", true},
    {Q3_ATTENTION, "model.layers.#.self_attn.q_proj.weight", "blk.#.attn_q.weight", false},
    {Q3_ATTENTION, "model.layers.#.self_attn.k_proj.weight", "blk.#.attn_k.weight", false},
    {Q3_ATTENTION, "model.layers.#.self_attn.v_proj.weight", "blk.#.attn_v.weight", false},
    {Q3_ATTENTION, "model.layers.#.self_attn.o_proj.weight", "blk.#.attn_output.weight", false},
    {Q3_ATTENTION, "model.layers.#.self_attn.q_norm.weight", "blk.#.attn_q_norm.weight", true},
    {Q3_ATTENTION, "model.layers.#.self_attn.k_norm.weight", "blk.#.attn_k_norm.weight", true},
    {Q3_NORMS, "model.layers.#.post_attention_layernorm.weight", "blk.#.ffn_norm.weight", true},
    {Q3_ROUTER, "model.layers.#.mlp.gate.weight", "blk.#.ffn_gate_inp.weight", true},
    {Q3_EXPERT, "model.layers.#.mlp.experts.@.gate_proj.weight", "blk.#.ffn_gate_exps.weight",
     false},
    {Q3_EXPERT, "model.layers.#.mlp.experts.@.up_proj.weight", "blk.#.ffn_up_exps.weight", false},
    {Q3_EXPERT, "model.layers.#.mlp.experts.@.down_proj.weight", "blk.#.ffn_down_exps.weight",
     false},
    {Q3_FINAL_NORM, "model.norm.weight", "output_norm.weight", true},
    {Q3_LM_HEAD, "lm_head.weight", "output.weight", false},
};

enum { ROLES = sizeof layout / sizeof *layout };

typedef struct exporting {
    const q3_export_plan *plan;
    q3_gguf_writer head;
    q3_export_item *items; // in the order of their data
    uint64_t *offset;      // [item]: where its data begin, behind the head
    size_t count, items_capacity, offset_capacity;
    q3_output output;
    uint64_t head_bytes;
    uint8_t *scratch; // for q3_export_append
    size_t scratch_bytes;
} exporting;

// ---- the layout ----

static void fill_name(const char *pattern, const char *prefix, const q3_place *place,
                      char name[Q3_NAME_MAX])
{
    size_t used = (size_t)snprintf(name, Q3_NAME_MAX, "%s", prefix);
    for (const char *at = pattern; *at && used < Q3_NAME_MAX; at++)
        used += (size_t)(*at == '#' || *at == '@'
                             ? snprintf(name + used, Q3_NAME_MAX - used, "%" PRIu32,
                                        *at == '#' ? place->layer : place->expert)
                             : snprintf(name + used, Q3_NAME_MAX - used, "%c", *at));
}

static bool add_item(exporting *x, unsigned role, const q3_place *place, uint64_t offset,
                     q3_error *err)
{
    const q3_export_plan *plan = x->plan;
    char name[Q3_NAME_MAX];
    fill_name(layout[role].name, plan->set.config.family->prefix, place, name);
    q3_export_item item = {.source = q3_export_find(plan, place, name, err),
                           .widen = layout[role].widen};
    if (!item.source)
        return false;
    if (item.source->tensor.dtype != Q3_BF16)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: %s: expected BF16, found %s, which is not exported as GGUF",
                       plan->set.directory, name, q3_dtype_name(item.source->tensor.dtype));
    if (place->part == Q3_ROUTER && plan->kept.count < plan->set.config.num_experts) {
        item.rows = q3_kept_of(&plan->kept, place->layer);
        item.row_count = plan->kept.count;
    }
    if (!q3_grow(&x->items, &x->items_capacity, x->count + 1, sizeof *x->items, err) ||
        !q3_grow(&x->offset, &x->offset_capacity, x->count + 1, sizeof *x->offset, err))
        return false;
    x->items[x->count] = item;
    x->offset[x->count++] = offset;
    return true;
}

static bool add_role(exporting *x, unsigned role, uint32_t layer, q3_error *err)
{
    q3_place place = {.component = Q3_TEXT, .part = layout[role].part, .layer = layer};
    const q3_kept *kept = &x->plan->kept;
    const bool merged = place.part == Q3_EXPERT;
    const size_t first = x->count;
    char name[Q3_NAME_MAX];
    for (uint32_t i = 0; i < (merged ? kept->count : 1); i++) {
        place.expert = merged ? q3_kept_of(kept, layer)[i] : 0;
        if (!add_item(x, role, &place, 0, err))
            return false;
    }
    q3_tensor tensor = q3_export_tensor(&x->items[first]);
    if (merged) {
        memmove(tensor.shape + 1, tensor.shape, tensor.rank * sizeof *tensor.shape);
        tensor.shape[0] = kept->count;
        tensor.rank++;
    }
    const uint64_t part = tensor.bytes;
    tensor.bytes *= x->count - first;
    fill_name(layout[role].exported, "", &place, name);
    tensor.name = name;
    const uint64_t offset = q3_gguf_add_tensor(&x->head, &tensor);
    for (size_t i = first; i < x->count; i++)
        x->offset[i] = offset + part * (i - first);
    return true;
}

static bool add_all(exporting *x, q3_error *err)
{
    const uint32_t layers = x->plan->set.config.num_hidden_layers;
    unsigned role = 0;
    bool ok = true;
    while (ok && role < ROLES) {
        if (!strchr(layout[role].name, '#')) {
            ok = add_role(x, role++, 0, err);
            continue;
        }
        unsigned end = role;
        while (strchr(layout[end].name, '#'))
            end++;
        for (uint32_t layer = 0; ok && layer < layers; layer++)
            for (unsigned i = role; ok && i < end; i++)
                ok = add_role(x, i, layer, err);
        role = end;
    }
    return ok;
}

// ---- the metadata ----

static bool put_metadata(exporting *x, q3_error *err)
{
    const q3_config *config = &x->plan->set.config;
    q3_gguf_writer *head = &x->head;
    // There is no key that turns this division off.
    if (!config->norm_topk_prob)
        return q3_fail(err, Q3_MALFORMED,
                       "%s/config.json: norm_topk_prob: false cannot be said in GGUF: the "
                       "architecture qwen3moe always divides by the sum of the top k",
                       x->plan->set.directory);
    q3_gguf_put_string(head, "general.architecture", "qwen3moe");
    q3_gguf_put_string(head, "general.type", "model");
    q3_gguf_put_u32(head, "general.file_type", FILE_TYPE_MOSTLY_BF16);
    q3_gguf_put_u32(head, "general.alignment", Q3_GGUF_ALIGNMENT);
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {
        {"qwen3moe.block_count", config->num_hidden_layers},
        {"qwen3moe.context_length", config->max_position_embeddings},
        {"qwen3moe.embedding_length", config->hidden_size},
        {"qwen3moe.feed_forward_length", config->moe_intermediate_size * x->plan->top_k},
        {"qwen3moe.vocab_size", config->vocab_size},
        {"qwen3moe.attention.head_count", config->num_attention_heads},
        {"qwen3moe.attention.head_count_kv", config->num_key_value_heads},
        {"qwen3moe.attention.key_length", config->head_dim},
        {"qwen3moe.attention.value_length", config->head_dim},
        {"qwen3moe.rope.dimension_count", config->head_dim},
        {"qwen3moe.expert_count", x->plan->kept.count},
        {"qwen3moe.expert_used_count", x->plan->top_k},
        {"qwen3moe.expert_feed_forward_length", config->moe_intermediate_size},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        q3_gguf_put_u32(head, numbers[i].key, numbers[i].value);
    q3_gguf_put_f32(head, "qwen3moe.rope.freq_base", (float)config->rope_theta);
    q3_gguf_put_f32(head, "qwen3moe.attention.layer_norm_rms_epsilon", (float)config->rms_norm_eps);
    return q3_gguf_put_tokenizer(head, &x->plan->set, err);
}

// ---- the file ----

static bool append_zeros(exporting *x, uint64_t end, q3_error *err)
{
    static const uint8_t zeros[Q3_GGUF_ALIGNMENT] = {0};
    return q3_output_append(&x->output, zeros, end - x->output.size, err);
}

static bool put_piece(void *context, const q3_tensor_piece *piece, q3_error *err)
{
    exporting *x = context;
    if (piece->offset == 0 && !append_zeros(x, x->head_bytes + x->offset[piece->which], err))
        return false;
    return q3_export_append(&x->items[piece->which], piece, &x->output, &x->scratch,
                            &x->scratch_bytes, err);
}

// The directory of a path, to free().
static char *directory_of(const char *path, q3_error *err)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL   ? q3_format(err, ".")
           : slash == path ? q3_format(err, "/")
                           : q3_format(err, "%.*s", (int)(slash - path), path);
}

static bool write_file(exporting *x, const char *path, q3_error *err)
{
    char *head, *directory = directory_of(path, err);
    size_t size;
    const uint64_t data_bytes = x->head.data_bytes;
    if (!directory || !q3_gguf_finish(&x->head, &head, &size, err)) {
        free(directory);
        return false;
    }
    x->head_bytes = size;
    bool ok = q3_directory_check_space(directory, size + data_bytes, err) &&
              q3_output_create(path, &x->output, err) &&
              q3_output_append(&x->output, head, size, err) &&
              q3_export_stream(x->plan, x->items, x->count, x, put_piece, err);
    // The last tensor, too, takes a multiple of the alignment.
    const uint64_t end =
        (x->output.size + Q3_GGUF_ALIGNMENT - 1) / Q3_GGUF_ALIGNMENT * Q3_GGUF_ALIGNMENT;
    ok = ok && append_zeros(x, end, err) && q3_output_publish(&x->output, err) &&
         q3_directory_sync(directory, err);
    free(head);
    free(directory);
    return ok;
}

bool q3_export_gguf(const q3_export_plan *plan, q3_export_result *result, q3_error *err)
{
    const char *path = plan->options->output;
    exporting x = {.plan = plan};
    if (q3_path_exists(path))
        return q3_fail(err, Q3_REFUSED, "%s: exists already", path);
    bool ok = q3_gguf_begin(&x.head, err) && put_metadata(&x, err) && add_all(&x, err);
    result->files = 1;
    result->tensors = x.head.tensors;
    result->bytes = x.head.data_bytes;
    ok = ok && write_file(&x, path, err);
    q3_output_abandon(&x.output);
    q3_gguf_abandon(&x.head);
    free(x.items);
    free(x.offset);
    free(x.scratch);
    return ok;
}
