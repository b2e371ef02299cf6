// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static bool load_config(q3_export_plan *plan, q3_error *err)
{
    char *text = NULL;
    size_t size;
    char *path = q3_set_path(&plan->set, "config.json", err);
    bool ok = path && q3_set_load_copy(&plan->set, "config.json", &text, &size, err);
    if (ok) {
        const q3_bytes bytes = {(const uint8_t *)text, size};
        ok = q3_json_parse(path, bytes, &plan->config, err) &&
             q3_json_keep_spelling(&plan->config, bytes, err);
    }
    free(text);
    free(path);
    return ok;
}

static bool choose_top_k(q3_export_plan *plan, q3_error *err)
{
    const uint32_t asked = plan->options->top_k, kept = plan->kept.count;
    const uint32_t model = plan->set.config.num_experts_per_tok;
    if (asked > kept)
        return q3_fail(err, Q3_USAGE, "--top-k %" PRIu32 ": only %" PRIu32 " experts are kept",
                       asked, kept);
    plan->top_k = asked ? asked : model < kept ? model : kept;
    return true;
}

// ---- what is there ----

// Without these there is no text model.
static bool check_files(const q3_set *set, q3_error *err)
{
    q3_place lacking = {0};
    uint64_t count = 0;
    static const q3_part ends[] = {Q3_EMBEDDING, Q3_FINAL_NORM, Q3_LM_HEAD};
    static const q3_part parts[] = {Q3_ATTENTION, Q3_NORMS, Q3_ROUTER};
    for (uint32_t layer = 0; layer <= set->config.num_hidden_layers; layer++)
        for (size_t i = 0; i < 3; i++) {
            const bool last = layer == set->config.num_hidden_layers;
            const q3_place place = {
                .component = Q3_TEXT, .part = last ? ends[i] : parts[i], .layer = last ? 0 : layer};
            if (q3_set_find(set, &place))
                continue;
            if (count++ == 0)
                lacking = place;
        }
    if (count == 0)
        return true;
    char path[Q3_PLACE_PATH_MAX], more[64] = "";
    if (count > 1)
        snprintf(more, sizeof more, " and %" PRIu64 " more files of the text model", count - 1);
    return q3_fail(err, Q3_INCOMPLETE, "%s: cannot be exported: the pack lacks %s%s",
                   set->directory, q3_place_path(&lacking, path), more);
}

// Checks that a tensor is the one that the model has under this name, and there once.
static bool check_source(const q3_inventory *inventory, const q3_pack *pack,
                         const q3_export_source *source, bool *seen, q3_error *err)
{
    const q3_tensor *tensor = &source->tensor;
    uint64_t ordinal;
    const q3_pattern *pattern = q3_inventory_find(inventory, tensor->name, &ordinal);
    if (!pattern)
        return q3_fail(err, Q3_MALFORMED, "%s: %s is no tensor of the model that config.json says",
                       pack->file.path, tensor->name);
    const q3_place place = q3_pattern_place(pattern, ordinal);
    char expected[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX];
    if (q3_place_compare(&place, &source->place) != 0)
        return q3_fail(err, Q3_MALFORMED, "%s: %s belongs into another file", pack->file.path,
                       tensor->name);
    if (!q3_shape_equal(pattern->rank, pattern->shape, tensor->rank, tensor->shape))
        return q3_fail(err, Q3_MALFORMED, "%s: %s: expected shape %s, found %s", pack->file.path,
                       tensor->name, q3_shape_text(pattern->rank, pattern->shape, expected),
                       q3_shape_text(tensor->rank, tensor->shape, found));
    if (seen[ordinal])
        return q3_fail(err, Q3_MALFORMED, "%s: %s stands twice", pack->file.path, tensor->name);
    seen[ordinal] = true;
    return true;
}

static bool collect_file(q3_export_plan *plan, const q3_inventory *inventory, size_t index,
                         bool *seen, q3_error *err)
{
    const q3_set_file *file = &plan->set.files[index];
    q3_pack pack;
    if (!q3_set_open_pack(&plan->set, file, &pack, err))
        return false;
    bool ok = true;
    plan->first[index] = plan->source_count;
    for (uint32_t t = 0; ok && t < file->tensor_count; t++) {
        q3_export_source *source = &plan->sources[plan->source_count++];
        *source = (q3_export_source){.tensor = pack.tensors[t].tensor,
                                     .place = file->place,
                                     .at = {.file = (uint32_t)index, .index = t}};
        source->tensor.name = file->tensors[t].name;
        ok = check_source(inventory, &pack, source, seen, err);
    }
    q3_pack_close(&pack);
    return ok;
}

// All the tensors are the model's, each stands once, and there are as many as there must be.
static bool collect(q3_export_plan *plan, q3_error *err)
{
    const q3_set *set = &plan->set;
    q3_inventory inventory = {0};
    size_t total = 0;
    for (size_t f = 0; f < set->file_count; f++)
        total += set->files[f].tensor_count;
    plan->sources = q3_alloc(total, sizeof *plan->sources, err);
    plan->first = plan->sources ? q3_alloc(set->file_count, sizeof *plan->first, err) : NULL;
    bool ok = plan->first && q3_inventory_derive(&plan->config, &inventory, err);
    bool *seen = ok ? q3_alloc_zeroed(inventory.tensors, sizeof *seen, err) : NULL;
    ok = seen != NULL;
    uint64_t text = 0, held = 0;
    for (size_t f = 0; ok && f < set->file_count; f++) {
        ok = collect_file(plan, &inventory, f, seen, err);
        text += set->files[f].place.component == Q3_TEXT ? set->files[f].tensor_count : 0;
        held += set->files[f].place.component == Q3_TEXT && set->files[f].place.part == Q3_EXPERT;
    }
    uint64_t expected = 0;
    for (size_t i = 0; ok && i < inventory.pattern_count; i++) {
        const q3_pattern *pattern = &inventory.patterns[i];
        if (pattern->component == Q3_TEXT)
            expected += pattern->part == Q3_EXPERT ? held : pattern->count;
    }
    free(seen);
    q3_inventory_free(&inventory);
    return ok && (text == expected ||
                  q3_fail(err, Q3_INCOMPLETE,
                          "%s: expected %" PRIu64 " tensors of the text model, found %" PRIu64,
                          set->directory, expected, text));
}

bool q3_export_plan_make(const q3_export_options *options, q3_export_plan *plan, q3_error *err)
{
    *plan = (q3_export_plan){.options = options};
    return q3_set_open(options->pack_directory, &plan->set, err) && load_config(plan, err) &&
           check_files(&plan->set, err) &&
           q3_kept_choose(&plan->set, options->pool, &plan->kept, err) && choose_top_k(plan, err) &&
           collect(plan, err);
}

void q3_export_plan_free(q3_export_plan *plan)
{
    free(plan->first);
    free(plan->sources);
    q3_kept_free(&plan->kept);
    q3_json_free(&plan->config);
    q3_set_close(&plan->set);
}

const q3_export_source *q3_export_find(const q3_export_plan *plan, const q3_place *place,
                                       const char *name, q3_error *err)
{
    const q3_set_file *file = q3_set_find(&plan->set, place);
    for (uint32_t t = 0; file && t < file->tensor_count; t++)
        if (strcmp(file->tensors[t].name, name) == 0)
            return &plan->sources[plan->first[file - plan->set.files] + t];
    q3_fail(err, Q3_INCOMPLETE, "%s: lacks %s", plan->set.directory, name);
    return NULL;
}

// ---- the bytes ----

q3_tensor q3_export_tensor(const q3_export_item *item)
{
    q3_tensor tensor = item->source->tensor;
    if (item->widen)
        tensor.dtype = Q3_F32;
    if (item->rows)
        tensor.shape[0] = item->row_count;
    q3_tensor_size(&tensor); // not more than twice what fits memory-mapped files
    return tensor;
}

// BF16 is the upper half of F32.
static bool widen(const q3_tensor_piece *piece, uint8_t **scratch, size_t *scratch_bytes,
                  q3_error *err)
{
    if (!q3_grow(scratch, scratch_bytes, 2 * piece->size, 1, err))
        return false;
    for (size_t i = 0; i < piece->size / 2; i++) {
        const uint8_t wide[4] = {0, 0, piece->data[2 * i], piece->data[2 * i + 1]};
        memcpy(*scratch + 4 * i, wide, sizeof wide);
    }
    return true;
}

bool q3_export_append(const q3_export_item *item, const q3_tensor_piece *piece, q3_output *output,
                      uint8_t **scratch, size_t *scratch_bytes, q3_error *err)
{
    const q3_tensor *tensor = &item->source->tensor;
    const uint8_t *data = piece->data;
    uint64_t begin = piece->offset, end = piece->offset + piece->size;
    uint64_t row_bytes = tensor->rank ? tensor->bytes / tensor->shape[0] : tensor->bytes;
    if (item->widen) {
        if (piece->size % 2)
            return q3_fail(err, Q3_MALFORMED, "%s: a frame ends inside a number", tensor->name);
        if (!widen(piece, scratch, scratch_bytes, err))
            return false;
        data = *scratch;
        begin *= 2;
        end *= 2;
        row_bytes *= 2;
    }
    if (!item->rows)
        return q3_output_append(output, data, end - begin, err);
    // A frame need not hold whole rows.
    for (uint32_t i = 0; i < item->row_count; i++) {
        const uint64_t row = item->rows[i] * row_bytes;
        const uint64_t from = row > begin ? row : begin;
        const uint64_t to = row + row_bytes < end ? row + row_bytes : end;
        if (from < to && !q3_output_append(output, data + (from - begin), to - from, err))
            return false;
    }
    return true;
}

bool q3_export_stream(const q3_export_plan *plan, const q3_export_item *items, size_t count,
                      void *context,
                      bool (*put)(void *context, const q3_tensor_piece *piece, q3_error *err),
                      q3_error *err)
{
    q3_tensor_place *places = q3_alloc(count, sizeof *places, err);
    if (!places)
        return false;
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++) {
        places[i] = items[i].source->at;
        bytes += items[i].source->tensor.bytes;
    }
    const q3_tensor_stream stream = {
        .set = &plan->set,
        .tensors = places,
        .count = count,
        .jobs = plan->options->jobs,
        .verb = "exporting",
        .bytes = bytes,
        .quiet = plan->options->quiet,
        .context = context,
        .put = put,
    };
    const bool ok = q3_tensor_stream_run(&stream, err);
    free(places);
    return ok;
}
