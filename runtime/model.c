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

// ---- how matrices lie in memory ----

enum { PAGE = 4096, PLAIN_BLOCK_BYTES = 256 << 10 };

// A matrix of a pack file as it is to lie in memory.
typedef struct placement {
    const q3_pack_tensor *tensor;
    uint32_t rows, columns, block_rows, blocks;
    bool stays; // its frames are the blocks; else the rows are decoded
} placement;

// Can a matrix stay as it is stored?
static bool can_stay(const q3_config *config, q3_form form, role which, const q3_pack *pack,
                     const q3_pack_tensor *tensor)
{
    bool can = layout[which].columns != NONE && tensor->frame_count > 0;
    for (uint32_t i = 0; can && i < tensor->frame_count; i++) {
        const q3_frame *frame = &pack->frames[tensor->first_frame + i];
        can = (form == Q3_FORM_STORED || frame->codec == Q3_CODEC_RAW) &&
              q3_block_takes(frame->codec, frame->raw_bytes,
                             extent_size(config, layout[which].columns));
    }
    return can;
}

static placement place_matrix(const q3_config *config, role which, const q3_pack *pack,
                              const q3_pack_tensor *tensor, bool stays)
{
    placement to = {.tensor = tensor,
                    .rows = extent_size(config, layout[which].rows),
                    .columns = extent_size(config, layout[which].columns),
                    .stays = stays};
    const uint64_t row_bytes = 2 * (uint64_t)to.columns;
    const uint64_t block_bytes =
        stays ? pack->frames[tensor->first_frame].raw_bytes : PLAIN_BLOCK_BYTES;
    to.block_rows = block_bytes > row_bytes ? (uint32_t)(block_bytes / row_bytes) : 1;
    to.blocks = stays ? tensor->frame_count : (to.rows - 1) / to.block_rows + 1;
    return to;
}

static uint64_t blocks_bytes(const placement *to)
{
    return q3_region_part(to->blocks, sizeof(q3_block));
}

// Of a matrix that does not lie in an image of its file.
static uint64_t placement_bytes(const placement *to, const q3_pack *pack)
{
    uint64_t bytes = 0;
    if (!to->stays)
        return q3_region_part(to->tensor->tensor.bytes, 1) + blocks_bytes(to);
    for (uint32_t i = 0; i < to->tensor->frame_count; i++)
        bytes += q3_region_part(pack->frames[to->tensor->first_frame + i].stored_bytes, 1);
    return bytes + blocks_bytes(to);
}

static q3_block block_of(const q3_frame *frame, const uint8_t *data)
{
    return (q3_block){
        .data = data,
        .stored_bytes = frame->codec == Q3_CODEC_BITPLANE ? frame->stored_bytes : 0,
    };
}

static q3_matrix matrix_of(const placement *to, const q3_pack *pack, const q3_block *blocks)
{
    uint64_t bytes = to->stays ? 0 : to->tensor->tensor.bytes;
    for (uint32_t i = 0; to->stays && i < to->blocks; i++)
        bytes += pack->frames[to->tensor->first_frame + i].stored_bytes;
    return (q3_matrix){.blocks = blocks,
                       .rows = to->rows,
                       .columns = to->columns,
                       .block_rows = to->block_rows,
                       .bytes = bytes};
}

// Blocks of decoded rows.
static void cut_plain(const placement *to, const uint8_t *raw, q3_block *blocks)
{
    for (uint32_t i = 0; i < to->blocks; i++)
        blocks[i] = (q3_block){.data = raw + 2 * (uint64_t)i * to->block_rows * to->columns};
}

// How the three matrices of an expert lie in memory: in an image of the file, or each decoded.
typedef struct expert_placement {
    placement gate, up, down;
    bool stays;
    uint64_t bytes;
} expert_placement;

static bool place_expert(const q3_config *config, q3_form form, const q3_place *place,
                         const q3_pack *pack, expert_placement *to, q3_error *err)
{
    static const role roles[] = {EXPERT_GATE, EXPERT_UP, EXPERT_DOWN};
    const q3_pack_tensor *tensors[3];
    placement *parts[] = {&to->gate, &to->up, &to->down};
    bool stays = true;
    for (size_t i = 0; i < 3; i++) {
        if (!(tensors[i] = find_role(config, roles[i], place, pack, err)))
            return false;
        stays = stays && can_stay(config, form, roles[i], pack, tensors[i]);
    }
    // Gate and up are multiplied block by block together.
    stays = stays && pack->frames[tensors[0]->first_frame].raw_bytes ==
                         pack->frames[tensors[1]->first_frame].raw_bytes;
    to->stays = stays;
    to->bytes = stays ? q3_region_part(pack->size, 1) : 0;
    for (size_t i = 0; i < 3; i++) {
        *parts[i] = place_matrix(config, roles[i], pack, tensors[i], stays);
        to->bytes += stays ? blocks_bytes(parts[i]) : placement_bytes(parts[i], pack);
    }
    to->bytes = (to->bytes + PAGE - 1) / PAGE * PAGE;
    return true;
}

// ---- opening ----

static const role dense_roles[] = {QUERY,      KEY,        VALUE,      OUTPUT,
                                   QUERY_NORM, KEY_NORM,   INPUT_NORM, POST_ATTENTION_NORM,
                                   ROUTER,     FINAL_NORM, LM_HEAD};
enum { DENSE_ROLES = sizeof dense_roles / sizeof *dense_roles };

// Memory that the matrices of an opened file will take.
static bool measure_file(const q3_model *model, q3_form form, uint32_t index, const q3_pack *pack,
                         q3_error *err)
{
    const q3_place *place = &model->set.files[index].place;
    uint64_t *bytes = &model->file_bytes[form][index];
    if (place->part == Q3_EXPERT) {
        expert_placement to = {0};
        if (!place_expert(model->config, form, place, pack, &to, err))
            return false;
        *bytes = to.bytes;
        model->file_stays[form][index] = to.stays;
    }
    for (size_t i = 0; i < DENSE_ROLES; i++) {
        const role which = dense_roles[i];
        if (layout[which].part != place->part)
            continue;
        const q3_pack_tensor *tensor = find_role(model->config, which, place, pack, err);
        if (!tensor)
            return false;
        const bool stays = can_stay(model->config, form, which, pack, tensor);
        const placement to = place_matrix(model->config, which, pack, tensor, stays);
        *bytes += placement_bytes(&to, pack);
    }
    return true;
}

// Checks a file and counts the memory that its matrices will take.
static bool check_file(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    (void)reader;
    const q3_model *model = context;
    const q3_place *place = &model->set.files[index].place;
    q3_pack pack;
    bool ok = true;
    if (place->component != Q3_TEXT)
        return true;
    if (!q3_model_open_part(model, place, &pack, err))
        return false;
    for (unsigned form = 0; ok && form < Q3_FORMS; form++)
        ok = measure_file(model, (q3_form)form, index, &pack, err);
    q3_pack_close(&pack);
    return ok;
}

uint64_t q3_model_dense_bytes(const q3_model *model)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < model->set.file_count; i++)
        if (model->set.files[i].place.part != Q3_EXPERT)
            sum += model->file_bytes[model->form][i];
    return sum;
}

static const q3_set_file *find_expert(const q3_model *model, uint32_t layer, uint32_t expert)
{
    return q3_set_find(
        &model->set,
        &(q3_place){.component = Q3_TEXT, .part = Q3_EXPERT, .layer = layer, .expert = expert});
}

uint64_t q3_model_expert_bytes(const q3_model *model, uint32_t layer, uint32_t expert)
{
    const q3_set_file *file = find_expert(model, layer, expert);
    return file ? model->file_bytes[model->form][file - model->set.files] : 0;
}

uint64_t q3_model_expert_file_bytes(const q3_model *model, uint32_t layer, uint32_t expert)
{
    const q3_set_file *file = find_expert(model, layer, expert);
    return file ? file->size : 0;
}

bool q3_model_open(const char *directory, const q3_team *team, q3_model *model, q3_error *err)
{
    *model = (q3_model){0};
    if (!q3_set_open(directory, &model->set, err))
        return false;
    const q3_config *config = model->config = &model->set.config;
    const size_t experts = (size_t)config->num_hidden_layers * config->num_experts;
    bool ok =
        (model->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *model->layers, err)) &&
        (model->held = q3_alloc_zeroed(experts, sizeof *model->held, err));
    for (unsigned form = 0; ok && form < Q3_FORMS; form++)
        ok = (model->file_bytes[form] =
                  q3_alloc_zeroed(model->set.file_count, sizeof *model->file_bytes[form], err)) &&
             (model->file_stays[form] =
                  q3_alloc_zeroed(model->set.file_count, sizeof *model->file_stays[form], err));
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
    for (unsigned form = 0; form < Q3_FORMS; form++) {
        free(model->file_bytes[form]);
        free(model->file_stays[form]);
    }
    q3_set_close(&model->set);
    *model = (q3_model){0};
}

// ---- loading ----

typedef struct matrix_load {
    const q3_pack *pack;
    placement to;
    q3_block *blocks; // of a matrix that stays as it is stored: where to
    uint8_t *raw;     // of one that is decoded
} matrix_load;

static bool check_block(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                        const q3_block *block, q3_error *err)
{
    q3_error reason;
    return q3_block_check(block, pack->frames[tensor->first_frame + index].raw_bytes, &reason) ||
           q3_fail(err, (enum q3_exit)reason.code, "%s: %s: frame %" PRIu32 ": %s", pack->file.path,
                   tensor->tensor.name, index, reason.message);
}

static bool load_frame(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    const matrix_load *load = context;
    const q3_pack_tensor *tensor = load->to.tensor;
    if (!load->to.stays)
        return q3_reader_frame(reader, load->pack, tensor, index,
                               load->raw + (size_t)index * tensor->frame_bytes, err);
    // The memory is the loader's own, the pointer says that nobody else writes to it.
    void *data = (void *)(uintptr_t)load->blocks[index].data;
    return q3_pack_load_frame(load->pack, tensor, index, data, err) &&
           check_block(load->pack, tensor, index, &load->blocks[index], err);
}

// Reads a matrix of an opened file, its frames on all threads. *values becomes the first block's
// data: for a vector that is all of it.
static bool load_role(q3_model *model, role which, const q3_place *place, const q3_pack *pack,
                      const q3_team *team, q3_matrix *matrix, q3_error *err)
{
    const q3_pack_tensor *tensor = find_role(model->config, which, place, pack, err);
    if (!tensor)
        return false;
    const bool stays = can_stay(model->config, model->form, which, pack, tensor);
    matrix_load load = {.pack = pack,
                        .to = place_matrix(model->config, which, pack, tensor, stays)};
    load.blocks = q3_region_take(&model->dense, load.to.blocks * sizeof *load.blocks);
    if (load.to.stays) {
        for (uint32_t i = 0; i < load.to.blocks; i++) {
            const q3_frame *frame = &pack->frames[tensor->first_frame + i];
            load.blocks[i] = block_of(frame, q3_region_take(&model->dense, frame->stored_bytes));
        }
    } else {
        load.raw = q3_region_take(&model->dense, tensor->tensor.bytes);
        cut_plain(&load.to, load.raw, load.blocks);
    }
    *matrix = matrix_of(&load.to, pack, load.blocks);
    return q3_team_try(team, load_frame, &load, tensor->frame_count, err);
}

// Reads the dense roles of one file; matrices[role] is that of a role.
static bool load_part(q3_model *model, q3_part part, uint32_t layer, const q3_team *team,
                      q3_matrix matrices[ROLES], q3_error *err)
{
    const q3_place place = {.component = Q3_TEXT, .part = part, .layer = layer};
    q3_pack pack;
    if (!q3_model_open_part(model, &place, &pack, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < DENSE_ROLES; i++)
        if (layout[dense_roles[i]].part == part)
            ok = load_role(model, dense_roles[i], &place, &pack, team, &matrices[dense_roles[i]],
                           err);
    q3_pack_close(&pack);
    return ok;
}

static bool load_layer(q3_model *model, uint32_t index, const q3_team *team, q3_error *err)
{
    static const q3_part parts[] = {Q3_ATTENTION, Q3_NORMS, Q3_ROUTER};
    q3_matrix by_role[ROLES] = {0};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!load_part(model, parts[i], index, team, by_role, err))
            return false;
    model->layers[index] = (q3_layer){
        .query = by_role[QUERY],
        .key = by_role[KEY],
        .value = by_role[VALUE],
        .output = by_role[OUTPUT],
        .router = by_role[ROUTER],
        .query_norm = by_role[QUERY_NORM].blocks[0].data,
        .key_norm = by_role[KEY_NORM].blocks[0].data,
        .input_norm = by_role[INPUT_NORM].blocks[0].data,
        .post_attention_norm = by_role[POST_ATTENTION_NORM].blocks[0].data,
    };
    return true;
}

bool q3_model_load(q3_model *model, const q3_team *team, q3_error *err)
{
    q3_matrix by_role[ROLES];
    if (!q3_region_create(q3_model_dense_bytes(model), &model->dense, err))
        return false;
    for (uint32_t i = 0; i < model->config->num_hidden_layers; i++)
        if (!q3_check_interrupt(err) || !load_layer(model, i, team, err))
            return false;
    if (!load_part(model, Q3_FINAL_NORM, 0, team, by_role, err) ||
        !load_part(model, Q3_LM_HEAD, 0, team, by_role, err))
        return false;
    model->final_norm = by_role[FINAL_NORM].blocks[0].data;
    model->lm_head = by_role[LM_HEAD];
    return true;
}

static void *take(uint8_t **memory, uint64_t bytes)
{
    void *part = *memory;
    *memory += q3_region_part(bytes, 1);
    return part;
}

// One matrix of an expert whose file lies in memory.
static bool find_in_image(const placement *to, const q3_pack *pack, const uint8_t *image,
                          uint8_t **memory, q3_matrix *matrix, q3_error *err)
{
    q3_block *blocks = take(memory, to->blocks * sizeof *blocks);
    for (uint32_t i = 0; i < to->blocks; i++) {
        const q3_frame *frame = &pack->frames[to->tensor->first_frame + i];
        blocks[i] = block_of(frame, image + frame->offset);
        if (!q3_pack_check_image(pack, to->tensor, i, image, err) ||
            !check_block(pack, to->tensor, i, &blocks[i], err))
            return false;
    }
    *matrix = matrix_of(to, pack, blocks);
    return true;
}

// One that is decoded.
static bool decode_matrix(const placement *to, const q3_pack *pack, q3_frame_reader *reader,
                          uint8_t **memory, q3_matrix *matrix, q3_error *err)
{
    uint8_t *raw = take(memory, to->tensor->tensor.bytes);
    q3_block *blocks = take(memory, to->blocks * sizeof *blocks);
    cut_plain(to, raw, blocks);
    *matrix = matrix_of(to, pack, blocks);
    return q3_reader_tensor(reader, pack, to->tensor, raw, err);
}

static bool expert_stays(const q3_model *model, const q3_set_file *file)
{
    return model->file_stays[model->form][file - model->set.files];
}

bool q3_model_open_expert(const q3_model *model, uint32_t layer, uint32_t expert, bool direct,
                          q3_file *file, q3_error *err)
{
    const q3_set_file *listed = find_expert(model, layer, expert);
    *file = (q3_file){.fd = -1};
    return !expert_stays(model, listed) ||
           q3_set_open_image(&model->set, listed, direct, file, err);
}

bool q3_model_take_expert(const q3_model *model, uint32_t layer, uint32_t expert,
                          q3_frame_reader *reader, uint8_t *memory, q3_expert *result,
                          q3_error *err)
{
    const q3_set_file *file = find_expert(model, layer, expert);
    const bool stays = expert_stays(model, file);
    q3_pack pack;
    if (!(stays ? q3_set_parse_image(&model->set, file, memory, &pack, err)
                : q3_model_open_part(model, &file->place, &pack, err)))
        return false;
    expert_placement to;
    bool ok = place_expert(model->config, model->form, &file->place, &pack, &to, err);
    uint8_t *next = memory + (stays ? q3_region_part(pack.size, 1) : 0);
    const placement *parts[] = {&to.gate, &to.up, &to.down};
    q3_matrix *matrices[] = {&result->gate, &result->up, &result->down};
    for (size_t i = 0; ok && i < 3; i++)
        ok = stays ? find_in_image(parts[i], &pack, memory, &next, matrices[i], err)
                   : decode_matrix(parts[i], &pack, reader, &next, matrices[i], err);
    q3_pack_close(&pack);
    result->number = expert;
    return ok;
}

void q3_model_diagnose(const q3_model *model, const q3_place *place, q3_frame_reader *reader,
                       q3_error *err)
{
    q3_pack pack;
    char path[Q3_PLACE_PATH_MAX];
    if (!q3_model_open_part(model, place, &pack, err))
        return;
    bool ok = true;
    for (uint32_t i = 0; ok && i < pack.tensor_count; i++) {
        const q3_pack_tensor *tensor = &pack.tensors[i];
        uint8_t *raw = q3_alloc((size_t)tensor->tensor.bytes, 1, err);
        ok = raw && q3_reader_tensor(reader, &pack, tensor, raw, err);
        free(raw);
    }
    q3_pack_close(&pack);
    if (ok)
        q3_fail(err, Q3_MALFORMED, "%s/%s: has changed while it was in use", model->set.directory,
                q3_place_path(place, path));
}
