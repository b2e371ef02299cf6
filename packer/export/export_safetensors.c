// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"
#include "model/safetensors.h"
#include "model_config.h"
#include "plan.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A tensor of the checkpoint.
typedef struct outgoing {
    q3_export_item item;
    q3_tensor tensor;
    char *name; // tensor.name, where it is not the source's or a part of it
    uint32_t shard;
} outgoing;

typedef struct exporting {
    q3_export_plan *plan;
    const char *directory;
    outgoing *tensors; // shard by shard, in the order of their data
    size_t count;
    uint32_t shard_count;
    q3_output output; // the shard being written
    uint8_t *scratch; // for q3_export_append
    size_t scratch_bytes;
    char **written; // paths of the files under their final names
    size_t written_count, written_capacity;
} exporting;

// ---- the tensors ----

// "…mlp.experts.17.up_proj.weight" with another number. The name is one that the model has.
static char *renumber(const char *name, uint32_t number, q3_error *err)
{
    static const char mark[] = ".mlp.experts.";
    const char *from = strstr(name, mark) + sizeof mark - 1;
    return q3_format(err, "%.*s%" PRIu32 "%s", (int)(from - name), name, number,
                     from + strspn(from, "0123456789"));
}

static bool add_tensor(exporting *x, const q3_export_source *source, q3_error *err)
{
    const q3_export_plan *plan = x->plan;
    const q3_place *place = &source->place;
    uint32_t number;
    outgoing *to = &x->tensors[x->count];
    *to = (outgoing){.item = {.source = source}};
    if (place->component != Q3_TEXT && plan->options->text_model)
        return true;
    const bool pruned = plan->kept.count < plan->set.config.num_experts;
    if (place->component == Q3_TEXT && pruned && place->part == Q3_EXPERT) {
        if (!q3_kept_number(&plan->kept, place->layer, place->expert, &number))
            return true;
        to->name = renumber(source->tensor.name, number, err);
        if (!to->name)
            return false;
    }
    if (place->component == Q3_TEXT && pruned && place->part == Q3_ROUTER) {
        to->item.rows = q3_kept_of(&plan->kept, place->layer);
        to->item.row_count = plan->kept.count;
    }
    to->tensor = q3_export_tensor(&to->item);
    if (to->name)
        to->tensor.name = to->name;
    if (plan->options->text_model)
        to->tensor.name += strlen(plan->set.config.family->prefix);
    x->count++;
    return true;
}

// What lies in one shard is sorted by the size of its elements, so that each tensor is aligned.
static int compare_outgoing(const void *a, const void *b)
{
    const outgoing *x = a, *y = b;
    const size_t left = q3_dtype_size(x->tensor.dtype), right = q3_dtype_size(y->tensor.dtype);
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    if (left != right)
        return left > right ? -1 : 1;
    return (x->item.source > y->item.source) - (x->item.source < y->item.source);
}

// The tensors in the pack's order, cut where the next one would take a shard over the limit.
static bool lay_out(exporting *x, q3_export_result *result, q3_error *err)
{
    const q3_export_plan *plan = x->plan;
    const uint64_t limit = plan->options->shard_bytes;
    x->tensors = q3_alloc(plan->source_count, sizeof *x->tensors, err);
    if (!x->tensors)
        return false;
    for (size_t i = 0; i < plan->source_count; i++)
        if (!add_tensor(x, &plan->sources[i], err))
            return false;
    uint64_t used = 0;
    for (size_t i = 0; i < x->count; i++) {
        const uint64_t bytes = x->tensors[i].tensor.bytes;
        if (i && (bytes > limit || used > limit - bytes)) {
            x->shard_count++;
            used = 0;
        }
        used += bytes;
        x->tensors[i].shard = x->shard_count;
        result->bytes += bytes;
    }
    x->shard_count++;
    if (x->shard_count > Q3_SAFETENSORS_SHARDS_MAX)
        return q3_fail(err, Q3_USAGE, "%" PRIu32 " shards, more than %d: raise --shard-size",
                       x->shard_count, Q3_SAFETENSORS_SHARDS_MAX);
    qsort(x->tensors, x->count, sizeof *x->tensors, compare_outgoing);
    result->files = x->shard_count;
    result->tensors = x->count;
    return true;
}

// ---- the shards ----

// Remembers a file that is about to get its final name, so that a failure can take it away.
static bool remember(exporting *x, const char *name, q3_error *err)
{
    if (!q3_grow(&x->written, &x->written_capacity, x->written_count + 1, sizeof *x->written, err))
        return false;
    char *path = q3_path_join(x->directory, name, err);
    if (!path)
        return false;
    x->written[x->written_count++] = path;
    return true;
}

// Starts the shard whose first tensor is this one.
static bool begin_shard(exporting *x, size_t first, q3_error *err)
{
    q3_safetensors_header header;
    char name[Q3_SAFETENSORS_NAME_MAX];
    char *data;
    size_t size;
    const uint32_t shard = x->tensors[first].shard;
    if (!q3_safetensors_header_begin(&header, err))
        return false;
    for (size_t i = first; i < x->count && x->tensors[i].shard == shard; i++)
        q3_safetensors_header_add(&header, &x->tensors[i].tensor);
    if (!q3_safetensors_header_finish(&header, &data, &size, err))
        return false;
    const bool ok = remember(x, q3_safetensors_shard_name(shard, x->shard_count, name), err) &&
                    q3_output_create(x->written[x->written_count - 1], &x->output, err) &&
                    q3_output_append(&x->output, data, size, err);
    free(data);
    return ok;
}

static bool put_piece(void *context, const q3_tensor_piece *piece, q3_error *err)
{
    exporting *x = context;
    const outgoing *tensor = &x->tensors[piece->which];
    const bool first = piece->which == 0 || tensor[-1].shard != tensor->shard;
    const bool last = piece->which + 1 == x->count || tensor[1].shard != tensor->shard;
    if (first && piece->offset == 0 && !begin_shard(x, piece->which, err))
        return false;
    return q3_export_append(&tensor->item, piece, &x->output, &x->scratch, &x->scratch_bytes,
                            err) &&
           (!last || !piece->last || q3_output_publish(&x->output, err));
}

static bool write_shards(exporting *x, q3_error *err)
{
    q3_export_item *items = q3_alloc(x->count, sizeof *items, err);
    for (size_t i = 0; items && i < x->count; i++)
        items[i] = x->tensors[i].item;
    const bool ok = items && q3_export_stream(x->plan, items, x->count, x, put_piece, err);
    free(items);
    return ok;
}

// ---- the small files ----

// Is this a file about the parts that the text model alone has not got?
static bool is_for_other_parts(const char *name)
{
    static const char *const names[] = {"preprocessor_config.json", "processor_config.json",
                                        "video_preprocessor_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static bool copy_file(exporting *x, const char *name, q3_error *err)
{
    char *data = NULL;
    size_t size;
    const bool ok = remember(x, name, err) &&
                    q3_set_load_copy(&x->plan->set, name, &data, &size, err) &&
                    q3_file_publish(x->written[x->written_count - 1], data, size, err);
    free(data);
    return ok;
}

static bool write_small_files(exporting *x, q3_error *err)
{
    const q3_set *set = &x->plan->set;
    for (size_t i = 0; i < set->copy_count; i++) {
        const char *name = set->copies[i].name;
        if (strcmp(name, "config.json") == 0 || strcmp(name, Q3_SAFETENSORS_INDEX) == 0 ||
            (x->plan->options->text_model && is_for_other_parts(name)))
            continue;
        if (!copy_file(x, name, err))
            return false;
    }
    return remember(x, "config.json", err) && q3_export_config(x->plan, x->directory, err);
}

static bool write_index(exporting *x, q3_error *err)
{
    // A lone model.safetensors needs no index.
    if (x->shard_count == 1)
        return true;
    q3_safetensors_entry *entries = q3_alloc(x->count, sizeof *entries, err);
    char(*shards)[Q3_SAFETENSORS_NAME_MAX] = q3_alloc(x->shard_count, sizeof *shards, err);
    for (uint32_t i = 0; shards && i < x->shard_count; i++)
        q3_safetensors_shard_name(i, x->shard_count, shards[i]);
    for (size_t i = 0; entries && shards && i < x->count; i++)
        entries[i] = (q3_safetensors_entry){.name = x->tensors[i].tensor.name,
                                            .shard = shards[x->tensors[i].shard],
                                            .dtype = x->tensors[i].tensor.dtype,
                                            .bytes = x->tensors[i].tensor.bytes};
    const bool ok = entries && shards && remember(x, Q3_SAFETENSORS_INDEX, err) &&
                    q3_safetensors_publish_index(x->directory, entries, x->count, err);
    free(shards);
    free(entries);
    return ok;
}

static bool prepare_output(const exporting *x, uint64_t bytes, q3_error *err)
{
    bool empty;
    if (!q3_directory_create(x->directory, err) ||
        !q3_directory_empty(x->directory, NULL, &empty, err))
        return false;
    if (!empty)
        return q3_fail(err, Q3_REFUSED, "%s: is not empty", x->directory);
    return q3_directory_check_space(x->directory, bytes, err);
}

bool q3_export_safetensors(q3_export_plan *plan, q3_export_result *result, q3_error *err)
{
    exporting x = {.plan = plan, .directory = plan->options->output};
    // The index comes last: without it several shards are no checkpoint.
    const bool ok = lay_out(&x, result, err) && prepare_output(&x, result->bytes, err) &&
                    write_shards(&x, err) && write_small_files(&x, err) && write_index(&x, err) &&
                    q3_directory_sync(x.directory, err);
    q3_output_abandon(&x.output);
    for (size_t i = 0; i < x.written_count; i++) {
        if (!ok)
            unlink(x.written[i]);
        free(x.written[i]);
    }
    for (size_t i = 0; i < x.count; i++)
        free(x.tensors[i].name);
    free(x.written);
    free(x.tensors);
    free(x.scratch);
    return ok;
}
