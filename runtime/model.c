// SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include "base/interrupt.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the layout that is expected ----

// Dimensions that shapes are made of.
typedef enum extent {
    NONE,
    VOCABULARY,
    HIDDEN,
    QUERY_WIDTH, // of all query heads
    KEY_WIDTH,   // of all key or value heads
    HEAD,
    EXPERTS,
    INTERMEDIATE,
} extent;

typedef enum role {
    EMBEDDING,
    QUERY,
    KEY,
    VALUE,
    OUTPUT,
    QUERY_NORM,
    KEY_NORM,
    INPUT_NORM,
    POST_ATTENTION_NORM,
    ROUTER,
    EXPERT_GATE,
    EXPERT_UP,
    EXPERT_DOWN,
    FINAL_NORM,
    LM_HEAD,
    ROLES,
} role;

// Every tensor of the text model: the name behind the family's prefix ("#" stands for the layer,
// "@" for the expert), the file that holds it, and its shape.
static const struct {
    const char *name;
    q3_part part;
    extent rows, columns;
} layout[ROLES] = {
    [EMBEDDING] = {"model.embed_tokens.weight", Q3_EMBEDDING, VOCABULARY, HIDDEN},
    [QUERY] = {"model.layers.#.self_attn.q_proj.weight", Q3_ATTENTION, QUERY_WIDTH, HIDDEN},
    [KEY] = {"model.layers.#.self_attn.k_proj.weight", Q3_ATTENTION, KEY_WIDTH, HIDDEN},
    [VALUE] = {"model.layers.#.self_attn.v_proj.weight", Q3_ATTENTION, KEY_WIDTH, HIDDEN},
    [OUTPUT] = {"model.layers.#.self_attn.o_proj.weight", Q3_ATTENTION, HIDDEN, QUERY_WIDTH},
    [QUERY_NORM] = {"model.layers.#.self_attn.q_norm.weight", Q3_ATTENTION, HEAD, NONE},
    [KEY_NORM] = {"model.layers.#.self_attn.k_norm.weight", Q3_ATTENTION, HEAD, NONE},
    [INPUT_NORM] = {"model.layers.#.input_layernorm.weight", Q3_NORMS, HIDDEN, NONE},
    [POST_ATTENTION_NORM] = {"model.layers.#.post_attention_layernorm.weight", Q3_NORMS, HIDDEN,
                             NONE},
    [ROUTER] = {"model.layers.#.mlp.gate.weight", Q3_ROUTER, EXPERTS, HIDDEN},
    [EXPERT_GATE] = {"model.layers.#.mlp.experts.@.gate_proj.weight", Q3_EXPERT, INTERMEDIATE,
                     HIDDEN},
    [EXPERT_UP] = {"model.layers.#.mlp.experts.@.up_proj.weight", Q3_EXPERT, INTERMEDIATE, HIDDEN},
    [EXPERT_DOWN] = {"model.layers.#.mlp.experts.@.down_proj.weight", Q3_EXPERT, HIDDEN,
                     INTERMEDIATE},
    [FINAL_NORM] = {"model.norm.weight", Q3_FINAL_NORM, HIDDEN, NONE},
    [LM_HEAD] = {"lm_head.weight", Q3_LM_HEAD, VOCABULARY, HIDDEN},
};

static uint32_t extent_size(const q3_config *config, extent which)
{
    switch (which) {
    case NONE:
        return 1;
    case VOCABULARY:
        return config->vocab_size;
    case HIDDEN:
        return config->hidden_size;
    case QUERY_WIDTH:
        return config->num_attention_heads * config->head_dim;
    case KEY_WIDTH:
        return config->num_key_value_heads * config->head_dim;
    case HEAD:
        return config->head_dim;
    case EXPERTS:
        return config->num_experts;
    case INTERMEDIATE:
        return config->moe_intermediate_size;
    }
    return 0;
}

static uint64_t role_bytes(const q3_config *config, role which)
{
    return 2 * (uint64_t)extent_size(config, layout[which].rows) *
           extent_size(config, layout[which].columns);
}

static void role_name(const q3_config *config, role which, const q3_place *place,
                      char name[Q3_NAME_MAX])
{
    size_t used = (size_t)snprintf(name, Q3_NAME_MAX, "%s", config->family->prefix);
    for (const char *at = layout[which].name; *at && used < Q3_NAME_MAX; at++)
        used += (size_t)(*at == '#' || *at == '@'
                             ? snprintf(name + used, Q3_NAME_MAX - used, "%" PRIu32,
                                        *at == '#' ? place->layer : place->expert)
                             : snprintf(name + used, Q3_NAME_MAX - used, "%c", *at));
}

// The tensor of a role in its opened file, checked.
static const q3_pack_tensor *find_role(const q3_config *config, role which, const q3_place *place,
                                       const q3_pack *pack, q3_error *err)
{
    char name[Q3_NAME_MAX], expected[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX];
    role_name(config, which, place, name);
    const q3_pack_tensor *entry = q3_pack_find(pack, name);
    if (!entry) {
        q3_fail(err, Q3_INCOMPLETE, "%s: lacks %s", pack->file.path, name);
        return NULL;
    }
    const q3_tensor *tensor = &entry->tensor;
    const uint64_t shape[2] = {extent_size(config, layout[which].rows),
                               extent_size(config, layout[which].columns)};
    const unsigned rank = layout[which].columns == NONE ? 1 : 2;
    if (tensor->dtype != Q3_BF16) {
        q3_fail(err, Q3_MALFORMED, "%s: %s: expected BF16, found %s, which cannot be run",
                pack->file.path, name, q3_dtype_name(tensor->dtype));
        return NULL;
    }
    if (!q3_shape_equal(rank, shape, tensor->rank, tensor->shape)) {
        q3_fail(err, Q3_MALFORMED, "%s: %s: expected shape %s, found %s", pack->file.path, name,
                q3_shape_text(rank, shape, expected),
                q3_shape_text(tensor->rank, tensor->shape, found));
        return NULL;
    }
    return entry;
}

bool q3_model_open_part(const q3_model *model, const q3_place *place, q3_pack *pack, q3_error *err)
{
    const q3_set_file *file = q3_set_find(&model->set, place);
    if (!file) {
        char path[Q3_PLACE_PATH_MAX];
        return q3_fail(err, Q3_INCOMPLETE, "%s: the pack does not have %s", model->set.directory,
                       q3_place_path(place, path));
    }
    if (!q3_set_open_pack(&model->set, file, pack, err))
        return false;
    for (unsigned i = 0; i < ROLES; i++)
        if (layout[i].part == place->part && !find_role(model->config, (role)i, place, pack, err)) {
            q3_pack_close(pack);
            return false;
        }
    return true;
}

const q3_pack_tensor *q3_model_embedding(const q3_model *model, const q3_pack *pack, q3_error *err)
{
    const q3_place place = {.component = Q3_TEXT, .part = Q3_EMBEDDING};
    return find_role(model->config, EMBEDDING, &place, pack, err);
}

// ---- what is there ----

static bool has_part(const q3_model *model, q3_part part, uint32_t layer)
{
    return q3_set_find(&model->set,
                       &(q3_place){.component = Q3_TEXT, .part = part, .layer = layer});
}

static bool layer_is_whole(const q3_model *model, uint32_t layer)
{
    const bool *held = model->held + (size_t)layer * model->config->num_experts;
    return has_part(model, Q3_ATTENTION, layer) && has_part(model, Q3_NORMS, layer) &&
           has_part(model, Q3_ROUTER, layer) &&
           memchr(held, true, model->config->num_experts) != NULL;
}

// Says what a pack lacks: "the embedding, layers 2-5, the LM head".
static bool check_parts(const q3_model *model, q3_error *err)
{
    char lacks[512];
    size_t used = 0;
    const uint32_t layers = model->config->num_hidden_layers;
    static const struct {
        q3_part part;
        const char *name;
    } ends[] = {{Q3_EMBEDDING, "the embedding"},
                {Q3_FINAL_NORM, "the final norm"},
                {Q3_LM_HEAD, "the LM head"}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (!has_part(model, ends[i].part, 0))
            used += (size_t)snprintf(lacks + used, sizeof lacks - used, "%s%s", used ? ", " : "",
                                     ends[i].name);
    for (uint32_t from = 0; from < layers && used < sizeof lacks - 64; from++) {
        uint32_t to = from;
        while (to < layers && !layer_is_whole(model, to))
            to++;
        if (to == from)
            continue;
        used +=
            (size_t)snprintf(lacks + used, sizeof lacks - used,
                             to == from + 1 ? "%slayer %" PRIu32 : "%slayers %" PRIu32 "-%" PRIu32,
                             used ? ", " : "", from, to - 1);
        from = to;
    }
    return used == 0 ||
           q3_fail(err, Q3_INCOMPLETE,
                   "%s: cannot be run: the pack lacks %s (the model has %" PRIu32 " layers)",
                   model->set.directory, lacks, layers);
}

static bool check_file(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    (void)reader;
    const q3_model *model = context;
    const q3_set_file *file = &model->set.files[index];
    q3_pack pack;
    if (file->place.component != Q3_TEXT)
        return true;
    if (!q3_model_open_part(model, &file->place, &pack, err))
        return false;
    q3_pack_close(&pack);
    return true;
}

uint64_t q3_model_expert_bytes(const q3_config *config)
{
    return role_bytes(config, EXPERT_GATE) + role_bytes(config, EXPERT_UP) +
           role_bytes(config, EXPERT_DOWN);
}

static const role dense_layer_roles[] = {
    QUERY, KEY, VALUE, OUTPUT, QUERY_NORM, KEY_NORM, INPUT_NORM, POST_ATTENTION_NORM, ROUTER};
enum { DENSE_LAYER_ROLES = sizeof dense_layer_roles / sizeof *dense_layer_roles };

static uint64_t count_dense_bytes(const q3_config *config)
{
    uint64_t layer = 0;
    for (size_t i = 0; i < DENSE_LAYER_ROLES; i++)
        layer += q3_region_part(role_bytes(config, dense_layer_roles[i]), 1);
    return layer * config->num_hidden_layers + q3_region_part(role_bytes(config, FINAL_NORM), 1) +
           q3_region_part(role_bytes(config, LM_HEAD), 1);
}

bool q3_model_open(const char *directory, const q3_team *team, q3_model *model, q3_error *err)
{
    *model = (q3_model){0};
    if (!q3_set_open(directory, &model->set, err))
        return false;
    const q3_config *config = model->config = &model->set.config;
    model->dense_bytes = count_dense_bytes(config);
    model->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *model->layers, err);
    model->held =
        model->layers ? q3_alloc_zeroed(config->num_hidden_layers, config->num_experts, err) : NULL;
    bool ok = model->held != NULL;
    for (size_t i = 0; ok && i < model->set.file_count; i++) {
        const q3_place *place = &model->set.files[i].place;
        if (place->component != Q3_TEXT || place->part != Q3_EXPERT)
            continue;
        model->held[(size_t)place->layer * config->num_experts + place->expert] = true;
        model->held_count++;
    }
    ok = ok && check_parts(model, err) &&
         q3_team_try(team, check_file, model, (uint32_t)model->set.file_count, err);
    if (!ok)
        q3_model_close(model);
    return ok;
}

void q3_model_close(q3_model *model)
{
    q3_region_destroy(&model->dense);
    free(model->layers);
    free(model->held);
    q3_set_close(&model->set);
    *model = (q3_model){0};
}

// ---- loading ----

typedef struct frame_load {
    const q3_pack *pack;
    const q3_pack_tensor *tensor;
    uint8_t *raw;
} frame_load;

static bool load_frame(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    const frame_load *load = context;
    return q3_reader_frame(reader, load->pack, load->tensor, index,
                           load->raw + (size_t)index * load->tensor->frame_bytes, err);
}

// Reads a tensor of an opened file, its frames on all threads.
static bool load_role(q3_model *model, role which, const q3_place *place, const q3_pack *pack,
                      const q3_team *team, q3_matrix *matrix, q3_error *err)
{
    const q3_config *config = model->config;
    frame_load load = {.pack = pack, .tensor = find_role(config, which, place, pack, err)};
    if (!load.tensor)
        return false;
    load.raw = q3_region_take(&model->dense, load.tensor->tensor.bytes);
    *matrix = (q3_matrix){.values = (const uint16_t *)(void *)load.raw,
                          .rows = extent_size(config, layout[which].rows),
                          .columns = extent_size(config, layout[which].columns)};
    return q3_team_try(team, load_frame, &load, load.tensor->frame_count, err);
}

// Reads the roles of one file; matrices[i] is that of roles[i].
static bool load_part(q3_model *model, q3_part part, uint32_t layer, const q3_team *team,
                      const role *roles, size_t count, q3_matrix *matrices, q3_error *err)
{
    const q3_place place = {.component = Q3_TEXT, .part = part, .layer = layer};
    q3_pack pack;
    if (!q3_model_open_part(model, &place, &pack, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < count; i++)
        if (layout[roles[i]].part == part)
            ok = load_role(model, roles[i], &place, &pack, team, &matrices[i], err);
    q3_pack_close(&pack);
    return ok;
}

static bool load_layer(q3_model *model, uint32_t index, const q3_team *team, q3_error *err)
{
    static const q3_part parts[] = {Q3_ATTENTION, Q3_NORMS, Q3_ROUTER};
    q3_matrix matrix[DENSE_LAYER_ROLES] = {0}, by_role[ROLES] = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!load_part(model, parts[i], index, team, dense_layer_roles, DENSE_LAYER_ROLES, matrix,
                       err))
            return false;
    for (size_t i = 0; i < DENSE_LAYER_ROLES; i++)
        by_role[dense_layer_roles[i]] = matrix[i];
    model->layers[index] = (q3_layer){
        .query = by_role[QUERY],
        .key = by_role[KEY],
        .value = by_role[VALUE],
        .output = by_role[OUTPUT],
        .router = by_role[ROUTER],
        .query_norm = by_role[QUERY_NORM].values,
        .key_norm = by_role[KEY_NORM].values,
        .input_norm = by_role[INPUT_NORM].values,
        .post_attention_norm = by_role[POST_ATTENTION_NORM].values,
    };
    return true;
}

bool q3_model_load(q3_model *model, const q3_team *team, q3_error *err)
{
    static const role final_norm = FINAL_NORM, lm_head = LM_HEAD;
    q3_matrix norm;
    if (!q3_region_create(model->dense_bytes, &model->dense, err))
        return false;
    for (uint32_t i = 0; i < model->config->num_hidden_layers; i++)
        if (!q3_check_interrupt(err) || !load_layer(model, i, team, err))
            return false;
    if (!load_part(model, Q3_FINAL_NORM, 0, team, &final_norm, 1, &norm, err) ||
        !load_part(model, Q3_LM_HEAD, 0, team, &lm_head, 1, &model->lm_head, err))
        return false;
    model->final_norm = norm.values;
    return true;
}

bool q3_model_read_expert(const q3_model *model, uint32_t layer, uint32_t expert,
                          q3_frame_reader *reader, uint16_t *raw, uint64_t *bytes_read,
                          q3_error *err)
{
    static const role roles[] = {EXPERT_GATE, EXPERT_UP, EXPERT_DOWN};
    const q3_place place = {
        .component = Q3_TEXT, .part = Q3_EXPERT, .layer = layer, .expert = expert};
    q3_pack pack;
    if (!q3_model_open_part(model, &place, &pack, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof roles / sizeof *roles; i++) {
        const q3_pack_tensor *tensor = find_role(model->config, roles[i], &place, &pack, err);
        ok = tensor && q3_reader_tensor(reader, &pack, tensor, raw, err);
        if (ok)
            raw += tensor->tensor.bytes / 2;
    }
    for (uint32_t i = 0; ok && i < pack.frame_count; i++)
        *bytes_read += pack.frames[i].stored_bytes;
    q3_pack_close(&pack);
    return ok;
}
