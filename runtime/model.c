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
    q3_reading reading; // blocks are its frames, unless it is decoded
} placement;

// What becomes of a matrix in a form.
static q3_reading reading_of(const q3_config *config, q3_form form, role which, const q3_pack *pack,
                             const q3_pack_tensor *tensor)
{
    const uint32_t columns = extent_size(config, layout[which].columns);
    bool can = layout[which].columns != NONE && tensor->frame_count > 0;
    for (uint32_t i = 0; can && i < tensor->frame_count; i++) {
        const q3_frame *frame = &pack->frames[tensor->first_frame + i];
        can = form == Q3_FORM_BF12 ? q3_block_shortens(frame->raw_bytes, columns)
                                   : (form == Q3_FORM_STORED || frame->codec == Q3_CODEC_RAW) &&
                                         q3_block_takes(frame->codec, frame->raw_bytes, columns);
    }
    if (!can)
        return Q3_READING_DECODES;
    return form == Q3_FORM_BF12 ? Q3_READING_SHORTENS : Q3_READING_KEEPS;
}

static placement place_matrix(const q3_config *config, role which, const q3_pack *pack,
                              const q3_pack_tensor *tensor, q3_reading reading)
{
    placement to = {.tensor = tensor,
                    .rows = extent_size(config, layout[which].rows),
                    .columns = extent_size(config, layout[which].columns),
                    .reading = reading};
    const bool decodes = reading == Q3_READING_DECODES;
    const uint64_t row_bytes = 2 * (uint64_t)to.columns;
    const uint64_t block_bytes =
        decodes ? PLAIN_BLOCK_BYTES : pack->frames[tensor->first_frame].raw_bytes;
    to.block_rows = block_bytes > row_bytes ? (uint32_t)(block_bytes / row_bytes) : 1;
    to.blocks = decodes ? (to.rows - 1) / to.block_rows + 1 : tensor->frame_count;
    return to;
}

static uint64_t blocks_bytes(const placement *to)
{
    return q3_region_part(to->blocks, sizeof(q3_block));
}

static const q3_frame *frame_of(const placement *to, const q3_pack *pack, uint32_t block)
{
    return &pack->frames[to->tensor->first_frame + block];
}

// Memory that a block of a matrix that is not decoded has: it is known before its weights are, so
// one that turns out to be too long for bf12 has room in another way.
static uint64_t room_for(const placement *to, const q3_frame *frame)
{
    uint64_t bytes = frame->stored_bytes;
    if (to->reading == Q3_READING_SHORTENS) {
        const uint64_t shorter = q3_bf12_bytes((size_t)frame->raw_bytes / 2);
        if (!q3_block_takes(frame->codec, frame->raw_bytes, to->columns))
            bytes = frame->raw_bytes;
        bytes = shorter > bytes ? shorter : bytes;
    }
    return q3_region_part(bytes, 1);
}

// Of a matrix that does not lie in an image of its file.
static uint64_t placement_bytes(const placement *to, const q3_pack *pack)
{
    uint64_t bytes = blocks_bytes(to);
    if (to->reading == Q3_READING_DECODES)
        return bytes + q3_region_part(to->tensor->tensor.bytes, 1);
    for (uint32_t i = 0; i < to->blocks; i++)
        bytes += room_for(to, frame_of(to, pack, i));
    return bytes;
}

static q3_block block_of(const q3_frame *frame, const uint8_t *data)
{
    return (q3_block){
        .data = data,
        .bytes = frame->stored_bytes,
        .kind = frame->codec == Q3_CODEC_BITPLANE ? Q3_BLOCK_FRAME : Q3_BLOCK_PLAIN,
    };
}

static q3_matrix matrix_of(const placement *to, const q3_block *blocks)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < to->blocks; i++)
        bytes += blocks[i].bytes;
    return (q3_matrix){.blocks = blocks,
                       .rows = to->rows,
                       .columns = to->columns,
                       .block_rows = to->block_rows,
                       .bytes = bytes};
}

// Blocks of decoded rows.
static void cut_plain(const placement *to, const uint8_t *raw, q3_block *blocks)
{
    for (uint32_t i = 0; i < to->blocks; i++) {
        const uint32_t first = i * to->block_rows, rest = to->rows - first;
        const uint32_t rows = rest < to->block_rows ? rest : to->block_rows;
        blocks[i] = (q3_block){.data = raw + 2 * (uint64_t)first * to->columns,
                               .bytes = 2 * rows * to->columns};
    }
}

// Puts a block of decoded rows to its room: as bf12 if its exceptions allow that, else as its
// stored frame if a product takes that, else as it is.
static bool shorten(const q3_bf12_kernels *kernels, const placement *to, const q3_frame *frame,
                    const void *stored, const void *raw, uint8_t *room, q3_block *block,
                    q3_error *err)
{
    if (q3_block_shorten(kernels, raw, (size_t)frame->raw_bytes / 2, room, block))
        return true;
    const bool keeps = frame->codec == Q3_CODEC_BITPLANE &&
                       q3_block_takes(frame->codec, frame->raw_bytes, to->columns);
    *block = keeps ? block_of(frame, room) : (q3_block){.data = room, .bytes = frame->raw_bytes};
    memmove(room, keeps ? stored : raw, block->bytes);
    return q3_block_check(block, frame->raw_bytes, err);
}

static uint64_t whole_pages(uint64_t bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

// How the three matrices of an expert lie in memory: in an image of the file, or each decoded, or
// each shortened from an image that is read to the end of the same memory.
typedef struct expert_placement {
    placement gate, up, down;
    q3_reading reading;
    uint64_t bytes;
} expert_placement;

enum { PARTS = 3 };

// An expert's matrices in the order of their frames in the file.
static void in_order(const expert_placement *to, const q3_pack *pack,
                     const placement *sorted[PARTS])
{
    const placement *parts[PARTS] = {&to->gate, &to->up, &to->down};
    for (size_t i = 0; i < PARTS; i++) {
        size_t at = i;
        for (; at > 0 &&
               frame_of(sorted[at - 1], pack, 0)->offset > frame_of(parts[i], pack, 0)->offset;
             at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = parts[i];
    }
}

// Memory in which an expert's blocks can be made, one after the other from the beginning on, from
// an image of the file at the end: all of the image, and no block may reach into a frame that is
// still to be read.
static uint64_t shortening_bytes(const expert_placement *to, const q3_pack *pack)
{
    const placement *sorted[PARTS];
    in_order(to, pack, sorted);
    uint64_t made = 0;
    for (size_t i = 0; i < PARTS; i++)
        made += placement_bytes(sorted[i], pack);
    const uint64_t image = whole_pages(pack->size);
    uint64_t bytes = image, first_unread = pack->size;
    for (size_t i = PARTS; i-- > 0;)
        for (uint32_t j = sorted[i]->blocks; j-- > 0;) {
            const q3_frame *frame = frame_of(sorted[i], pack, j);
            const uint64_t needed = made + image - first_unread;
            bytes = needed > bytes ? needed : bytes;
            made -= room_for(sorted[i], frame);
            first_unread = frame->offset < first_unread ? frame->offset : first_unread;
        }
    const uint64_t needed = made + image - first_unread;
    return needed > bytes ? needed : bytes;
}

static bool place_expert(const q3_config *config, q3_form form, const q3_place *place,
                         const q3_pack *pack, expert_placement *to, q3_error *err)
{
    static const role roles[PARTS] = {EXPERT_GATE, EXPERT_UP, EXPERT_DOWN};
    const q3_pack_tensor *tensors[PARTS];
    placement *parts[PARTS] = {&to->gate, &to->up, &to->down};
    q3_reading reading = Q3_READING_DECODES;
    bool decodes = false;
    for (size_t i = 0; i < PARTS; i++) {
        if (!(tensors[i] = find_role(config, roles[i], place, pack, err)))
            return false;
        reading = reading_of(config, form, roles[i], pack, tensors[i]);
        decodes = decodes || reading == Q3_READING_DECODES;
    }
    // Gate and up are multiplied block by block together.
    if (decodes || pack->frames[tensors[0]->first_frame].raw_bytes !=
                       pack->frames[tensors[1]->first_frame].raw_bytes)
        reading = Q3_READING_DECODES;
    to->reading = reading;
    // Of an image its last page, too, whole: a read may ask for all of it, and a file that grows
    // meanwhile has something there. It must not get into the lists of blocks behind.
    to->bytes = reading == Q3_READING_KEEPS ? whole_pages(pack->size) : 0;
    for (size_t i = 0; i < PARTS; i++) {
        *parts[i] = place_matrix(config, roles[i], pack, tensors[i], reading);
        to->bytes +=
            reading == Q3_READING_KEEPS ? blocks_bytes(parts[i]) : placement_bytes(parts[i], pack);
    }
    if (reading == Q3_READING_SHORTENS)
        to->bytes = shortening_bytes(to, pack);
    to->bytes = whole_pages(to->bytes);
    return true;
}

static uint64_t longest_block(const expert_placement *to, const q3_pack *pack)
{
    const placement *parts[PARTS] = {&to->gate, &to->up, &to->down};
    uint64_t longest = 0;
    for (size_t i = 0; i < PARTS; i++)
        for (uint32_t j = 0; j < parts[i]->blocks; j++)
            if (frame_of(parts[i], pack, j)->raw_bytes > longest)
                longest = frame_of(parts[i], pack, j)->raw_bytes;
    return longest;
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
        model->file_reading[form][index] = to.reading;
        if (form == Q3_FORM_BF12 && to.reading == Q3_READING_SHORTENS)
            model->file_block_bytes[index] = longest_block(&to, pack);
        for (uint32_t i = 0; i < pack->frame_count; i++)
            if (pack->frames[i].codec == Q3_CODEC_ZSTD)
                model->file_has_zstd[index] = true;
    }
    for (size_t i = 0; i < DENSE_ROLES; i++) {
        const role which = dense_roles[i];
        if (layout[which].part != place->part)
            continue;
        const q3_pack_tensor *tensor = find_role(model->config, which, place, pack, err);
        if (!tensor)
            return false;
        const q3_reading reading = reading_of(model->config, form, which, pack, tensor);
        const placement to = place_matrix(model->config, which, pack, tensor, reading);
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

static size_t index_of(const q3_model *model, const q3_set_file *file)
{
    return (size_t)(file - model->set.files);
}

uint64_t q3_model_expert_bytes(const q3_model *model, q3_form form, uint32_t layer, uint32_t expert)
{
    const q3_set_file *file = find_expert(model, layer, expert);
    return file ? model->file_bytes[form][index_of(model, file)] : 0;
}

uint64_t q3_model_passing_bytes(const q3_model *model)
{
    uint64_t most = 0;
    if (model->form == Q3_FORM_STORED)
        return 0;
    for (size_t i = 0; i < model->set.file_count; i++) {
        if (model->set.files[i].place.component != Q3_TEXT ||
            model->set.files[i].place.part != Q3_EXPERT)
            continue;
        if (model->file_reading[Q3_FORM_STORED][i] != Q3_READING_KEEPS)
            return 0;
        if (model->file_bytes[Q3_FORM_STORED][i] > most)
            most = model->file_bytes[Q3_FORM_STORED][i];
    }
    return most;
}

uint64_t q3_model_expert_file_bytes(const q3_model *model, uint32_t layer, uint32_t expert)
{
    const q3_set_file *file = find_expert(model, layer, expert);
    return file ? file->size : 0;
}

uint64_t q3_model_block_bytes(const q3_model *model)
{
    uint64_t longest = 0;
    for (size_t i = 0; model->form == Q3_FORM_BF12 && i < model->set.file_count; i++)
        if (model->file_block_bytes[i] > longest)
            longest = model->file_block_bytes[i];
    return longest;
}

bool q3_model_open(const char *directory, const q3_kernels *kernels, const q3_team *team,
                   q3_model *model, q3_error *err)
{
    *model = (q3_model){.kernels = kernels};
    if (!q3_set_open(directory, &model->set, err))
        return false;
    const q3_config *config = model->config = &model->set.config;
    const size_t experts = (size_t)config->num_hidden_layers * config->num_experts;
    bool ok =
        (model->layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *model->layers, err)) &&
        (model->held = q3_alloc_zeroed(experts, sizeof *model->held, err)) &&
        (model->file_block_bytes =
             q3_alloc_zeroed(model->set.file_count, sizeof *model->file_block_bytes, err)) &&
        (model->file_has_zstd =
             q3_alloc_zeroed(model->set.file_count, sizeof *model->file_has_zstd, err));
    for (unsigned form = 0; ok && form < Q3_FORMS; form++)
        ok = (model->file_bytes[form] =
                  q3_alloc_zeroed(model->set.file_count, sizeof *model->file_bytes[form], err)) &&
             (model->file_reading[form] =
                  q3_alloc_zeroed(model->set.file_count, sizeof *model->file_reading[form], err));
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
    free(model->file_block_bytes);
    free(model->file_has_zstd);
    for (unsigned form = 0; form < Q3_FORMS; form++) {
        free(model->file_bytes[form]);
        free(model->file_reading[form]);
    }
    q3_set_close(&model->set);
    *model = (q3_model){0};
}

// ---- loading ----

typedef struct matrix_load {
    const q3_pack *pack;
    const q3_kernels *kernels;
    placement to;
    q3_block *blocks; // of a matrix that is not decoded: where to
    uint8_t *raw;     // of one that is decoded
} matrix_load;

static bool fail_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                       const q3_error *reason, q3_error *err)
{
    return q3_fail(err, (enum q3_exit)reason->code, "%s: %s: frame %" PRIu32 ": %s",
                   pack->file.path, tensor->tensor.name, index, reason->message);
}

static bool check_block(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                        const q3_block *block, q3_error *err)
{
    q3_error reason;
    return q3_block_check(block, pack->frames[tensor->first_frame + index].raw_bytes, &reason) ||
           fail_frame(pack, tensor, index, &reason, err);
}

// What is read frame by frame leaves the disk without work while frames are decoded: so many of the
// matrix are on the way, some MiB.
enum { FRAMES_AHEAD = 32 };

static void prefetch_frame(const matrix_load *load, uint32_t index)
{
    const q3_pack_tensor *tensor = load->to.tensor;
    if (index >= tensor->frame_count)
        return;
    const q3_frame *frame = &load->pack->frames[tensor->first_frame + index];
    q3_file_prefetch(&load->pack->file, frame->offset, frame->stored_bytes);
}

static bool load_frame(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    const matrix_load *load = context;
    const q3_pack_tensor *tensor = load->to.tensor;
    prefetch_frame(load, index + FRAMES_AHEAD);
    if (load->to.reading == Q3_READING_DECODES)
        return q3_reader_frame(reader, load->pack, tensor, index,
                               load->raw + (size_t)index * tensor->frame_bytes, err);
    // The memory is the loader's own, the pointer says that nobody else writes to it.
    void *data = (void *)(uintptr_t)load->blocks[index].data;
    q3_error reason;
    if (load->to.reading == Q3_READING_SHORTENS)
        return q3_reader_frame(reader, load->pack, tensor, index, reader->block, err) &&
               (shorten(load->kernels->bf12, &load->to, frame_of(&load->to, load->pack, index),
                        reader->stored, reader->block, data, &load->blocks[index], &reason) ||
                fail_frame(load->pack, tensor, index, &reason, err));
    return q3_pack_load_frame(load->pack, tensor, index, data, err) &&
           check_block(load->pack, tensor, index, &load->blocks[index], err);
}

// Reads a matrix of an opened file, its frames on all threads. For a vector, the first block's data
// is all of it.
static bool load_role(q3_model *model, role which, const q3_place *place, const q3_pack *pack,
                      const q3_team *team, q3_matrix *matrix, q3_error *err)
{
    const q3_pack_tensor *tensor = find_role(model->config, which, place, pack, err);
    if (!tensor)
        return false;
    const q3_reading reading = reading_of(model->config, model->form, which, pack, tensor);
    matrix_load load = {.pack = pack,
                        .kernels = model->kernels,
                        .to = place_matrix(model->config, which, pack, tensor, reading)};
    load.blocks = q3_region_take(&model->dense, load.to.blocks * sizeof *load.blocks);
    if (reading == Q3_READING_DECODES) {
        load.raw = q3_region_take(&model->dense, tensor->tensor.bytes);
        cut_plain(&load.to, load.raw, load.blocks);
    } else {
        for (uint32_t i = 0; i < load.to.blocks; i++) {
            const q3_frame *frame = frame_of(&load.to, pack, i);
            load.blocks[i] =
                block_of(frame, q3_region_take(&model->dense, room_for(&load.to, frame)));
        }
    }
    for (uint32_t i = 0; i < FRAMES_AHEAD; i++)
        prefetch_frame(&load, i);
    if (!q3_team_try(team, load_frame, &load, tensor->frame_count, err))
        return false;
    *matrix = matrix_of(&load.to, load.blocks);
    return true;
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

// One that is decoded.
static bool decode_matrix(const placement *to, const q3_pack *pack, q3_frame_reader *reader,
                          uint8_t **memory, q3_matrix *matrix, q3_error *err)
{
    uint8_t *raw = take(memory, to->tensor->tensor.bytes);
    q3_block *blocks = take(memory, to->blocks * sizeof *blocks);
    cut_plain(to, raw, blocks);
    *matrix = matrix_of(to, blocks);
    return q3_reader_tensor(reader, pack, to->tensor, raw, err);
}

// Where in its memory an expert's file is read to: where it stays, or to the end.
static uint64_t image_at(const q3_model *model, q3_form form, const q3_set_file *file)
{
    const size_t index = index_of(model, file);
    return model->file_reading[form][index] == Q3_READING_SHORTENS
               ? model->file_bytes[form][index] - whole_pages(file->size)
               : 0;
}

// ---- taking an expert, while it is read ----

struct q3_taking {
    const q3_model *model;
    const q3_set_file *file;
    q3_form form;
    uint8_t *next; // of the expert's memory, what is not given out
    const uint8_t *image;
    q3_reading reading;
    bool parsed; // all that follows is there
    q3_pack pack;
    expert_placement to;
    const placement *sorted[PARTS];
    q3_block *blocks[PARTS]; // as sorted
    uint32_t part, block;    // the next
};

bool q3_model_open_expert(const q3_model *model, q3_form form, uint32_t layer, uint32_t expert,
                          bool direct, uint8_t *memory, q3_file *file, uint64_t *image,
                          q3_taking **result, q3_error *err)
{
    *file = (q3_file){.fd = -1};
    q3_taking *t = *result = q3_alloc_zeroed(1, sizeof *t, err);
    if (!t)
        return false;
    t->model = model;
    t->file = find_expert(model, layer, expert);
    t->form = form;
    t->reading = model->file_reading[form][index_of(model, t->file)];
    t->pack.file.fd = -1;
    *image = image_at(model, form, t->file);
    t->next = memory;
    t->image = memory + *image;
    return t->reading == Q3_READING_DECODES ||
           q3_set_open_image(&model->set, t->file, direct, file, err);
}

void q3_taking_destroy(q3_taking *taking)
{
    if (!taking)
        return;
    q3_pack_close(&taking->pack);
    free(taking);
}

// Reads header and directory, and finds the places of the blocks. What fails with the first bytes
// of a file is tried again with more: they may be too few.
static bool parse_expert(q3_taking *t, uint64_t arrived, q3_error *err)
{
    const q3_model *model = t->model;
    const q3_set_file *file = t->file;
    if (!(t->reading == Q3_READING_DECODES
              ? q3_model_open_part(model, &file->place, &t->pack, err)
              : q3_set_parse_image(&model->set, file, t->image, arrived, &t->pack, err)))
        return arrived < file->size;
    if (!place_expert(model->config, t->form, &file->place, &t->pack, &t->to, err))
        return false;
    // The file may have been replaced since it was measured.
    if (t->to.reading != t->reading ||
        t->to.bytes != model->file_bytes[t->form][index_of(model, file)])
        return q3_fail(err, Q3_MALFORMED, "%s: has changed since the pack was opened",
                       t->pack.file.path);
    in_order(&t->to, &t->pack, t->sorted);
    if (t->reading == Q3_READING_KEEPS)
        take(&t->next, whole_pages(t->pack.size));
    for (size_t i = 0; t->reading != Q3_READING_DECODES && i < PARTS; i++)
        t->blocks[i] = take(&t->next, t->sorted[i]->blocks * sizeof **t->blocks);
    t->parsed = true;
    return true;
}

// The first byte that no block may reach yet when the next one is made, see shortening_bytes.
static uint64_t first_unread(const q3_taking *t)
{
    const placement *to = t->sorted[t->part];
    if (t->block + 1 < to->blocks)
        return frame_of(to, &t->pack, t->block + 1)->offset;
    return t->part + 1 < PARTS ? frame_of(t->sorted[t->part + 1], &t->pack, 0)->offset
                               : t->pack.size;
}

// Checks the next frame of an expert's image and makes a block of it. Blocks are made in the
// frames' order, see shortening_bytes.
static bool take_block(q3_taking *t, q3_frame_reader *reader, q3_error *err)
{
    const placement *to = t->sorted[t->part];
    const q3_frame *frame = frame_of(to, &t->pack, t->block);
    const uint8_t *stored = t->image + frame->offset;
    q3_block *block = &t->blocks[t->part][t->block];
    q3_error reason;
    if (!q3_pack_check_image(&t->pack, to->tensor, t->block, t->image, err))
        return false;
    if (t->reading == Q3_READING_KEEPS) {
        *block = block_of(frame, stored);
        return check_block(&t->pack, to->tensor, t->block, block, err);
    }
    return (q3_codec_decode(reader->coder, frame->codec, stored, frame->stored_bytes, reader->block,
                            frame->raw_bytes, &reason) &&
            shorten(t->model->kernels->bf12, to, frame, stored, reader->block,
                    take(&t->next, room_for(to, frame)), block, &reason)) ||
           fail_frame(&t->pack, to->tensor, t->block, &reason, err);
}

static q3_matrix *matrix_for(const q3_taking *t, const placement *to, q3_expert *expert)
{
    return to == &t->to.gate ? &expert->gate : to == &t->to.up ? &expert->up : &expert->down;
}

bool q3_model_take_expert(q3_taking *t, uint64_t arrived, q3_frame_reader *reader,
                          q3_expert *result, q3_error *err)
{
    result->number = t->file->place.expert;
    if (!t->parsed && !parse_expert(t, arrived, err))
        return false;
    for (; t->parsed && t->part < PARTS; t->part++, t->block = 0) {
        const placement *to = t->sorted[t->part];
        q3_matrix *matrix = matrix_for(t, to, result);
        if (t->reading == Q3_READING_DECODES) {
            if (!decode_matrix(to, &t->pack, reader, &t->next, matrix, err))
                return false;
            continue;
        }
        // What is still to arrive must not be written over a block, either: not even padding.
        for (; t->block < to->blocks; t->block++) {
            if (first_unread(t) > arrived)
                return true;
            if (!take_block(t, reader, err))
                return false;
        }
        *matrix = matrix_of(to, t->blocks[t->part]);
    }
    return true;
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
