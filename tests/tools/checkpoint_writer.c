// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_writer.h"

#include "base/bytes.h"
#include "base/file.h"
#include "base/text.h"
#include "base/workers.h"
#include "model/inventory.h"
#include "model/safetensors.h"
#include "weights.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CONFIG_BYTES_MAX = 16 << 20,
    COPY_BYTES_MAX = 64 << 20,
    CHUNK_BYTES = 1 << 20,
    CHUNKS_PER_JOB = 4,
};

typedef struct writing {
    const q3_checkpoint_options *options;
    q3_planned_tensor *tensors; // in the order of saving, then by shard as they lie there
    uint64_t tensor_count;
    uint32_t shard_count;
    bool *wanted; // [number of the shard, from 1]
    // The stream of the shard that is being written.
    q3_output output;
    uint64_t next, end; // the tensor that comes next
    uint64_t element;   // and its element
} writing;

// A run of elements of one tensor.
typedef struct chunk {
    q3_weights weights;
    uint64_t first;
    size_t count;
    uint8_t *data;
} chunk;

// ---- the order of saving ----

// save_pretrained goes through the modules in the order in which transformers' classes make them.
// Where two names part, these words tell which comes first; numbers go by value. Words that are not
// here come last.
static const char *const module_order[] = {
    "thinker",
    "talker",
    "code2wav",
    // the thinker
    "audio_tower",
    "visual",
    // the vision tower
    "merger_list",
    "patch_embed",
    "pos_embed",
    "blocks",
    "merger",
    "ln_q",
    "norm1",
    "norm2",
    "attn",
    "qkv",
    "proj",
    // decoders
    "model",
    "lm_head",
    "pre_transformer",
    "embed_tokens",
    "layers",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "q_norm",
    "k_norm",
    "mlp",
    "gate",
    "experts",
    "shared_expert",
    "shared_expert_gate",
    "gate_proj",
    "up_proj",
    "down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn_layer_scale",
    "mlp_layer_scale",
    // the audio tower
    "self_attn_layer_norm",
    "fc1",
    "fc2",
    "final_layer_norm",
    "ln_post",
    "conv2d1",
    "conv2d2",
    "conv2d3",
    "conv_out",
    "proj1",
    "proj2",
    // the talker
    "text_projection",
    "hidden_projection",
    "codec_head",
    "code_predictor",
    "linear_fc1",
    "linear_fc2",
    // code2wav
    "code_embedding",
    "upsample",
    "decoder",
    "gamma",
    "dwconv",
    "norm",
    "codec_embedding",
    "pwconv1",
    "pwconv2",
    "block",
    "conv",
    "act1",
    "conv1",
    "act2",
    "conv2",
    // a module's own parameters
    "weight",
    "bias",
    "alpha",
    "beta",
};

static size_t module_rank(const char *word, size_t length)
{
    const size_t count = sizeof module_order / sizeof *module_order;
    for (size_t i = 0; i < count; i++)
        if (strlen(module_order[i]) == length && memcmp(module_order[i], word, length) == 0)
            return i;
    return count;
}

static int compare_saving(const void *a, const void *b)
{
    const char *x = ((const q3_planned_tensor *)a)->name;
    const char *y = ((const q3_planned_tensor *)b)->name;
    size_t at = 0;
    for (size_t i = 0; x[i] && x[i] == y[i]; i++)
        if (x[i] == '.')
            at = i + 1;
    const size_t x_length = strcspn(x + at, "."), y_length = strcspn(y + at, ".");
    if (strspn(x + at, "0123456789") == x_length && strspn(y + at, "0123456789") == y_length) {
        const unsigned long left = strtoul(x + at, NULL, 10), right = strtoul(y + at, NULL, 10);
        return (left > right) - (left < right);
    }
    const size_t left = module_rank(x + at, x_length), right = module_rank(y + at, y_length);
    // The audio tower's attention alone makes its queries last.
    static const char audio[] = "thinker.audio_tower.";
    if (strncmp(x, audio, sizeof audio - 1) == 0 && strncmp(x + at + 1, "_proj", 5) == 0 &&
        strncmp(y + at + 1, "_proj", 5) == 0 && (x[at] == 'q' || y[at] == 'q'))
        return x[at] == 'q' ? 1 : -1;
    if (left != right)
        return left < right ? -1 : 1;
    return strcmp(x, y);
}

// ---- the plan ----

// Reads the configuration and writes the checkpoint's: the same, or with another number of layers.
static bool take_config(writing *w, q3_json *json, q3_error *err)
{
    const q3_checkpoint_options *options = w->options;
    char *text = NULL;
    size_t size;
    if (!q3_file_load(options->config, CONFIG_BYTES_MAX, &text, &size, err))
        return false;
    q3_config config;
    bool ok = q3_json_parse(options->config, (q3_bytes){(uint8_t *)text, size}, json, err);
    if (ok && options->layers) {
        ok = q3_config_read(json, &config, err);
        cJSON *section = json->root;
        if (ok && *config.family->text_config) {
            section = cJSON_GetObjectItemCaseSensitive(section, "thinker_config");
            section = cJSON_GetObjectItemCaseSensitive(section, "text_config");
        }
        if (ok)
            cJSON_SetNumberValue(cJSON_GetObjectItemCaseSensitive(section, "num_hidden_layers"),
                                 options->layers);
        free(text);
        text = ok ? cJSON_Print(json->root) : NULL;
        size = text ? strlen(text) : 0;
        if (ok && !text)
            ok = q3_fail(err, Q3_FAILED, "out of memory (config.json)");
    }
    char *path = ok ? q3_path_join(options->directory, "config.json", err) : NULL;
    ok = path && q3_file_publish(path, text, size, err);
    free(path);
    free(text);
    return ok;
}

static bool lay_out(writing *w, const q3_inventory *inventory, q3_error *err)
{
    w->tensor_count = inventory->tensors;
    w->tensors = q3_alloc_zeroed(w->tensor_count, sizeof *w->tensors, err);
    if (!w->tensors)
        return false;
    for (uint64_t i = 0; i < w->tensor_count; i++) {
        q3_planned_tensor *tensor = &w->tensors[i];
        const q3_pattern *pattern = q3_inventory_at(inventory, i, tensor->name);
        tensor->dtype = pattern->dtype;
        tensor->rank = pattern->rank;
        memcpy(tensor->shape, pattern->shape, sizeof tensor->shape);
        tensor->stored = tensor->listed = true;
    }
    qsort(w->tensors, w->tensor_count, sizeof *w->tensors, compare_saving);
    return true;
}

static q3_tensor described(const q3_planned_tensor *planned)
{
    q3_tensor tensor = {.name = planned->name, .dtype = planned->dtype, .rank = planned->rank};
    memcpy(tensor.shape, planned->shape, sizeof tensor.shape);
    return tensor;
}

// The size of a tensor that has been seen to have one.
static uint64_t bytes_of(const q3_planned_tensor *planned)
{
    q3_tensor tensor = described(planned);
    q3_tensor_size(&tensor);
    return tensor.bytes;
}

// A shard ends where the next tensor would take it over the limit.
static bool cut(writing *w, q3_error *err)
{
    const uint64_t limit =
        w->options->shard_bytes ? w->options->shard_bytes : Q3_SHARD_BYTES_DEFAULT;
    uint64_t used = 0;
    for (uint64_t i = 0; i < w->tensor_count; i++) {
        q3_tensor tensor = described(&w->tensors[i]);
        if (!q3_tensor_size(&tensor))
            return q3_fail(err, Q3_MALFORMED, "%s: its size does not fit 64 bits", tensor.name);
        if (i && (tensor.bytes > limit || used > limit - tensor.bytes)) {
            w->shard_count++;
            used = 0;
        }
        used += tensor.bytes;
        w->tensors[i].shard = w->tensors[i].listed_shard = w->shard_count;
    }
    w->shard_count++;
    if (w->shard_count > Q3_SAFETENSORS_SHARDS_MAX)
        return q3_fail(err, Q3_USAGE, "%u shards, more than %d: raise the limit of a shard's size",
                       w->shard_count, Q3_SAFETENSORS_SHARDS_MAX);
    return true;
}

static bool edit(writing *w, q3_checkpoint_summary *summary, q3_error *err)
{
    for (uint64_t i = 0; i < w->tensor_count; i++) {
        q3_planned_tensor *planned = &w->tensors[i];
        if (w->options->edit)
            w->options->edit(w->options->context, planned);
        q3_tensor tensor = described(planned);
        if (!q3_tensor_size(&tensor) || planned->shard >= w->shard_count)
            return q3_fail(err, Q3_USAGE, "%s: an edit left no size or no shard to write it to",
                           tensor.name);
        summary->tensors += planned->stored;
        summary->bytes += planned->stored ? tensor.bytes : 0;
    }
    return true;
}

// ---- the index ----

static bool write_index(const writing *w, q3_error *err)
{
    q3_safetensors_entry *entries = q3_alloc(w->tensor_count, sizeof *entries, err);
    char(*shards)[Q3_SAFETENSORS_NAME_MAX] = q3_alloc(w->tensor_count, sizeof *shards, err);
    bool ok = entries && shards;
    for (uint64_t i = 0; ok && i < w->tensor_count; i++) {
        const q3_planned_tensor *tensor = &w->tensors[i];
        q3_safetensors_shard_name(tensor->listed_shard, w->shard_count, shards[i]);
        entries[i] = (q3_safetensors_entry){.name = tensor->name,
                                            .shard = tensor->listed ? shards[i] : NULL,
                                            .dtype = tensor->dtype,
                                            .bytes = tensor->stored ? bytes_of(tensor) : 0};
    }
    ok = ok && q3_safetensors_publish_index(w->options->directory, entries, w->tensor_count, err);
    free(shards);
    free(entries);
    return ok;
}

// ---- the shards ----

// The library writes the types with the strictest alignment first. This is its order, turned round.
static unsigned dtype_rank(q3_dtype dtype)
{
    static const q3_dtype order[] = {Q3_U64,     Q3_I64,     Q3_F64, Q3_F32, Q3_U32,
                                     Q3_I32,     Q3_BF16,    Q3_F16, Q3_U16, Q3_I16,
                                     Q3_F8_E4M3, Q3_F8_E5M2, Q3_I8,  Q3_U8,  Q3_BOOL};
    unsigned rank = 0;
    while (rank < sizeof order / sizeof *order && order[rank] != dtype)
        rank++;
    return rank;
}

// What is stored comes first, shard by shard.
static int compare_stored(const void *a, const void *b)
{
    const q3_planned_tensor *x = a, *y = b;
    if (x->stored != y->stored)
        return x->stored ? -1 : 1;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    const unsigned left = dtype_rank(x->dtype), right = dtype_rank(y->dtype);
    if (left != right)
        return left < right ? -1 : 1;
    return strcmp(x->name, y->name);
}

// Appends the header of the shard whose tensors are [first, end); *data_bytes follow it.
static bool put_header(writing *w, uint64_t first, uint64_t end, uint64_t *data_bytes,
                       q3_error *err)
{
    q3_safetensors_header header;
    char *data;
    size_t size;
    if (!q3_safetensors_header_begin(&header, err))
        return false;
    for (uint64_t i = first; i < end; i++) {
        q3_tensor tensor = described(&w->tensors[i]);
        q3_tensor_size(&tensor);
        q3_safetensors_header_add(&header, &tensor);
    }
    if (!q3_safetensors_header_finish(&header, &data, &size, err))
        return false;
    const bool ok = q3_output_append(&w->output, data, size, err);
    free(data);
    *data_bytes = header.data_bytes;
    return ok;
}

static int next_chunk(void *context, void *slot, q3_error *err)
{
    writing *w = context;
    chunk *item = slot;
    while (w->next < w->end && bytes_of(&w->tensors[w->next]) == 0)
        w->next++;
    if (w->next == w->end)
        return 0;
    if (!item->data && !(item->data = q3_alloc(1, CHUNK_BYTES, err)))
        return -1;
    const q3_tensor tensor = described(&w->tensors[w->next]);
    q3_weights_describe(&tensor, w->options->seed, &item->weights);
    const size_t element_bytes = q3_dtype_size(tensor.dtype);
    const uint64_t left = bytes_of(&w->tensors[w->next]) / element_bytes - w->element;
    item->first = w->element;
    item->count = CHUNK_BYTES / element_bytes;
    if (left <= item->count) {
        item->count = (size_t)left;
        w->next++;
        w->element = 0;
    } else {
        w->element += item->count;
    }
    return 1;
}

static bool fill_chunk(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)context;
    (void)worker;
    (void)err;
    const chunk *item = slot;
    q3_weights_fill(&item->weights, item->first, item->count, item->data);
    return true;
}

static bool append_chunk(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    writing *w = context;
    const chunk *item = slot;
    return q3_output_append(&w->output, item->data, item->count * item->weights.element_bytes, err);
}

static void release_chunk(void *context, void *slot)
{
    (void)context;
    free(((chunk *)slot)->data);
}

static bool write_data(writing *w, uint64_t first, uint64_t end, q3_workers *workers, q3_error *err)
{
    w->next = first;
    w->end = end;
    w->element = 0;
    const q3_stream stream = {.context = w,
                              .slots = (size_t)q3_workers_count(workers) * CHUNKS_PER_JOB,
                              .slot_bytes = sizeof(chunk),
                              .next = next_chunk,
                              .work = fill_chunk,
                              .commit = append_chunk,
                              .release = release_chunk};
    return q3_workers_stream(workers, &stream, err);
}

static bool make_hole(writing *w, uint64_t bytes, q3_error *err)
{
    while (ftruncate(w->output.fd, (off_t)(w->output.size + bytes)) != 0)
        if (errno != EINTR)
            return q3_fail_errno(err, "%s: cannot extend", w->output.part_path);
    return true;
}

static bool write_shard(writing *w, uint32_t shard, uint64_t first, uint64_t end,
                        q3_workers *workers, q3_error *err)
{
    char name[Q3_SAFETENSORS_NAME_MAX];
    q3_safetensors_shard_name(shard, w->shard_count, name);
    char *path = q3_path_join(w->options->directory, name, err);
    bool ok = path && q3_output_create(path, &w->output, err);
    free(path);
    if (!ok)
        return false;
    uint64_t bytes = 0;
    ok = put_header(w, first, end, &bytes, err) &&
         (w->options->sparse ? make_hole(w, bytes, err) : write_data(w, first, end, workers, err));
    if (!ok) {
        q3_output_abandon(&w->output);
        return false;
    }
    return q3_output_publish(&w->output, err);
}

static bool write_shards(writing *w, q3_checkpoint_summary *summary, q3_error *err)
{
    q3_workers *workers;
    if (!q3_workers_create(w->options->jobs, &workers, err))
        return false;
    bool ok = true;
    uint64_t first = 0;
    for (uint32_t shard = 0; ok && shard < w->shard_count; shard++) {
        uint64_t end = first;
        while (end < w->tensor_count && w->tensors[end].stored && w->tensors[end].shard == shard)
            end++;
        if (w->wanted[shard + 1]) {
            ok = write_shard(w, shard, first, end, workers, err);
            summary->written++;
        }
        first = end;
    }
    q3_workers_destroy(workers);
    return ok;
}

// ---- all of it ----

static bool choose_shards(writing *w, q3_error *err)
{
    w->wanted = q3_alloc_zeroed((size_t)w->shard_count + 1, sizeof *w->wanted, err);
    if (!w->wanted)
        return false;
    if (w->options->shards) {
        if (!q3_parse_ranges("shards", w->options->shards, w->shard_count + 1, w->wanted, err))
            return false;
        return !w->wanted[0] || q3_fail(err, Q3_USAGE, "shards are counted from 1");
    }
    memset(w->wanted, true, (size_t)w->shard_count + 1);
    return true;
}

static bool copy_neighbours(const q3_checkpoint_options *options, q3_error *err)
{
    static const char *const names[] = {"generation_config.json", "tokenizer_config.json",
                                        "vocab.json", "merges.txt"};
    const char *slash = strrchr(options->config, '/');
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *from = slash ? q3_format(err, "%.*s/%s", (int)(slash - options->config),
                                       options->config, names[i])
                           : q3_format(err, "%s", names[i]);
        char *to = q3_path_join(options->directory, names[i], err);
        char *data = NULL;
        size_t size;
        const bool ok =
            from && to &&
            (!q3_path_exists(from) || (q3_file_load(from, COPY_BYTES_MAX, &data, &size, err) &&
                                       q3_file_publish(to, data, size, err)));
        free(data);
        free(to);
        free(from);
        if (!ok)
            return false;
    }
    return true;
}

bool q3_checkpoint_write(const q3_checkpoint_options *options, q3_checkpoint_summary *summary,
                         q3_error *err)
{
    writing w = {.options = options, .output = {.fd = -1}};
    q3_checkpoint_summary unused;
    if (!summary)
        summary = &unused;
    *summary = (q3_checkpoint_summary){0};
    q3_json json = {0};
    q3_inventory inventory = {0};
    bool ok = q3_directory_create(options->directory, err) && take_config(&w, &json, err) &&
              q3_inventory_derive(&json, &inventory, err) && lay_out(&w, &inventory, err) &&
              cut(&w, err) && edit(&w, summary, err) && choose_shards(&w, err);
    summary->shards = w.shard_count;
    if (ok && w.shard_count > 1)
        ok = write_index(&w, err);
    if (ok) {
        qsort(w.tensors, w.tensor_count, sizeof *w.tensors, compare_stored);
        ok = copy_neighbours(options, err) && write_shards(&w, summary, err) &&
             q3_directory_sync(options->directory, err);
    }
    q3_inventory_free(&inventory);
    q3_json_free(&json);
    free(w.wanted);
    free(w.tensors);
    return ok;
}
