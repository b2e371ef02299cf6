// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static bool parse_components(const char *text, const q3_inventory *inventory, bool *wanted,
                             q3_error *err)
{
    if (strcmp(text, "all") == 0) {
        for (unsigned i = 0; i < Q3_COMPONENTS; i++)
            wanted[i] = inventory->has_component[i];
        return true;
    }
    for (const char *at = text;;) {
        char name[32];
        const size_t length = strcspn(at, ",");
        q3_component component;
        snprintf(name, sizeof name, "%.*s", (int)(length < 31 ? length : 31), at);
        if (!q3_component_parse(name, &component))
            return q3_fail(err, Q3_USAGE,
                           "--components: \"%s\" is none of text, audio_tower, visual, talker, "
                           "code2wav, all",
                           name);
        if (!inventory->has_component[component])
            return q3_fail(err, Q3_USAGE, "--components: this model has no %s component", name);
        wanted[component] = true;
        at += length;
        if (*at == 0)
            return true;
        at++;
    }
}

// Missing shards are judged later, by whether anything in them is wanted.
static bool absent_shards_wait(void *context, const q3_problem *problem)
{
    (void)context;
    return problem->kind == Q3_PROBLEM_SHARD_ABSENT || problem->kind == Q3_PROBLEM_TOTAL;
}

// Every name that the index lists has a place in the model.
static bool check_names(const q3_plan *plan, q3_error *err)
{
    const q3_checkpoint *checkpoint = &plan->checkpoint;
    const char *first = NULL;
    size_t unknown = 0;
    for (size_t i = 0; i < checkpoint->listed_count; i++) {
        uint64_t ordinal;
        if (q3_inventory_find(&plan->inventory, checkpoint->listed[i].name, &ordinal))
            continue;
        if (!first)
            first = checkpoint->listed[i].name;
        unknown++;
    }
    if (!first)
        return true;
    const char *reason = q3_name_unsupported(first);
    char more[64] = "";
    if (unknown > 1)
        snprintf(more, sizeof more, " (and %zu more)", unknown - 1);
    return q3_fail(err, Q3_MALFORMED, "%s: %s%s: %s", checkpoint->directory, first, more,
                   reason ? reason : "not part of the model that config.json describes");
}

// Is this tensor asked for?
static bool is_selected(const q3_plan *plan, const q3_place *place, const bool *layers)
{
    if (!plan->wanted[place->component])
        return false;
    const bool in_layer = place->part == Q3_ATTENTION || place->part == Q3_NORMS ||
                          place->part == Q3_ROUTER || place->part == Q3_EXPERT;
    return (!in_layer || layers[place->layer]) &&
           (place->part != Q3_EXPERT || q3_pool_has(&plan->pool, place->layer, place->expert));
}

// Counts a tensor that is not there; the first one is described in *err.
static void report_missing(const q3_plan *plan, const char *name, size_t *missing, q3_error *err)
{
    const q3_checkpoint *checkpoint = &plan->checkpoint;
    if ((*missing)++)
        return;
    const q3_listed_tensor *listed = q3_checkpoint_listed(checkpoint, name);
    if (listed)
        q3_fail(err, Q3_INCOMPLETE, "%s/%s: the shard is absent, but the index puts %s there",
                checkpoint->directory, checkpoint->shards[listed->shard].name, name);
    else
        q3_fail(err, Q3_INCOMPLETE,
                "%s: %s is never listed: config.json promises it, but the index names no shard for "
                "it",
                checkpoint->directory, name);
}

// Has the tensor the shape that the configuration gives it?
static bool check_shape(const q3_plan *plan, const q3_pattern *pattern,
                        const q3_stored_tensor *stored, q3_error *err)
{
    const q3_tensor *tensor = &stored->tensor;
    char expected[Q3_SHAPE_TEXT_MAX], found[Q3_SHAPE_TEXT_MAX];
    return q3_shape_equal(tensor->rank, tensor->shape, pattern->rank, pattern->shape) ||
           q3_fail(err, Q3_MALFORMED, "%s/%s: %s: expected shape %s, found %s",
                   plan->checkpoint.directory, plan->checkpoint.shards[stored->shard].name,
                   tensor->name, q3_shape_text(pattern->rank, pattern->shape, expected),
                   q3_shape_text(tensor->rank, tensor->shape, found));
}

// A tensor on its way to its file.
typedef struct placed {
    q3_place place;
    uint64_t ordinal, bytes;
    const q3_stored_tensor *tensor; // NULL: its shard is to come
} placed;

static int compare_placed(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    const int result = q3_place_compare(&x->place, &y->place);
    return result ? result : (x->ordinal > y->ordinal) - (x->ordinal < y->ordinal);
}

// What a pack file of these tensors takes when every frame is raw.
static uint64_t raw_size_of(const q3_plan_file *file)
{
    uint64_t names = 0, frames = 0, end;
    for (uint32_t i = 0; i < file->tensor_count; i++) {
        names += strlen(file->tensors[i]->tensor.name);
        frames += q3_frame_count(&file->tensors[i]->tensor);
    }
    end = q3_pack_head_bytes(file->tensor_count, frames, names);
    q3_align(end, Q3_PACK_ALIGNMENT, &end);
    for (uint32_t i = 0; i < file->tensor_count; i++) {
        // Frames of a raw tensor follow one another without gaps.
        end += file->tensors[i]->tensor.bytes;
        q3_align(end, Q3_PACK_ALIGNMENT, &end);
    }
    return end;
}

// Sorts the tensors into files.
static bool group(q3_plan *plan, placed *tensors, size_t count, q3_error *err)
{
    qsort(tensors, count, sizeof *tensors, compare_placed);
    size_t files = 0;
    for (size_t i = 0; i < count; i++)
        files += i == 0 || q3_place_compare(&tensors[i - 1].place, &tensors[i].place) != 0;
    plan->files = q3_alloc_zeroed(files, sizeof *plan->files, err);
    if (!plan->files)
        return false;
    for (size_t i = 0; i < count;) {
        size_t next = i;
        while (next < count && q3_place_compare(&tensors[i].place, &tensors[next].place) == 0)
            next++;
        q3_plan_file *file = &plan->files[plan->file_count++];
        file->place = tensors[i].place;
        file->tensors = q3_alloc(next - i, sizeof *file->tensors, err);
        if (!file->tensors)
            return false;
        for (; i < next; i++) {
            file->tensors[file->tensor_count++] = tensors[i].tensor;
            file->unknown += tensors[i].tensor == NULL;
            file->bytes += tensors[i].bytes;
        }
        plan->tensors += file->tensor_count;
        plan->bytes += file->bytes;
        if (file->unknown == 0)
            plan->raw_size += raw_size_of(file);
    }
    return true;
}

// The experts that are asked for, from --pool or --experts.
static bool select_experts(q3_plan *plan, const q3_selection *selection, q3_error *err)
{
    const uint32_t layers = plan->config.num_hidden_layers, experts = plan->config.num_experts;
    if (selection->pool)
        return q3_pool_read(selection->pool, layers, experts, &plan->pool, err);
    bool *members = q3_alloc_zeroed(experts, sizeof *members, err);
    const bool ok = members &&
                    q3_parse_ranges("--experts", selection->experts, experts, members, err) &&
                    q3_pool_create(layers, experts, &plan->pool, err);
    for (uint32_t layer = 0; ok && layer < layers; layer++)
        for (uint32_t expert = 0; expert < experts; expert++)
            if (members[expert])
                q3_pool_add(&plan->pool, layer, expert);
    free(members);
    return ok;
}

static bool select_tensors(q3_plan *plan, const q3_selection *selection, q3_error *err)
{
    const q3_config *config = &plan->config;
    bool *layers = q3_alloc_zeroed(config->num_hidden_layers, sizeof *layers, err);
    placed *tensors =
        layers ? q3_alloc((size_t)plan->inventory.tensors, sizeof *tensors, err) : NULL;
    bool ok = tensors != NULL;
    if (ok && (selection->layers || selection->experts || selection->pool) &&
        !plan->wanted[Q3_TEXT])
        ok = q3_fail(err, Q3_USAGE,
                     "--layers, --experts and --pool select parts of the text component, "
                     "which --components leaves out");
    if (ok)
        ok = q3_parse_ranges("--layers", selection->layers, config->num_hidden_layers, layers,
                             err) &&
             select_experts(plan, selection, err);
    size_t count = 0, missing = 0;
    for (uint64_t ordinal = 0; ok && ordinal < plan->inventory.tensors; ordinal++) {
        char name[Q3_NAME_MAX];
        const q3_pattern *pattern = q3_inventory_at(&plan->inventory, ordinal, name);
        const q3_place place = q3_pattern_place(pattern, ordinal);
        if (!is_selected(plan, &place, layers))
            continue;
        const q3_stored_tensor *stored = q3_checkpoint_find(&plan->checkpoint, name);
        if (stored)
            ok = check_shape(plan, pattern, stored, err);
        else if (!selection->partial || !q3_checkpoint_listed(&plan->checkpoint, name))
            report_missing(plan, name, &missing, err);
        tensors[count++] =
            (placed){.place = place, .ordinal = ordinal, .bytes = pattern->bytes, .tensor = stored};
    }
    if (ok && missing) {
        if (missing > 1) {
            const size_t used = strlen(err->message);
            snprintf(err->message + used, sizeof err->message - used,
                     " (and %zu more tensors are missing)", missing - 1);
        }
        ok = false;
    }
    ok = ok && group(plan, tensors, count, err);
    free(tensors);
    free(layers);
    return ok;
}

// The small files that make a pack directory self-sufficient: configuration, tokenizer, license.
static bool is_copied(const char *name)
{
    static const char *const suffixes[] = {".json", ".txt", ".jinja", ".md"};
    static const char *const prefixes[] = {"LICENSE", "NOTICE"};
    if (name[0] == '.' || !q3_safe_file_name(name) || strcmp(name, "pack.json") == 0 ||
        strcmp(name, "model.safetensors.index.json") == 0)
        return false;
    const size_t length = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        const size_t tail = strlen(suffixes[i]);
        if (length > tail && strcmp(name + length - tail, suffixes[i]) == 0)
            return true;
    }
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool collect_copies(q3_plan *plan, q3_error *err)
{
    const char *directory = plan->checkpoint.directory;
    DIR *stream = opendir(directory);
    if (!stream)
        return q3_fail_errno(err, "%s: cannot list the directory", directory);
    size_t capacity = 0;
    bool ok = true;
    const struct dirent *entry;
    while (ok && (errno = 0, entry = readdir(stream)) != NULL) {
        if (!is_copied(entry->d_name))
            continue;
        char *path = q3_path_join(directory, entry->d_name, err);
        struct stat status;
        ok = path != NULL;
        if (ok && stat(path, &status) == 0 && S_ISREG(status.st_mode)) {
            ok = q3_grow(&plan->copies, &capacity, plan->copy_count + 1, sizeof *plan->copies, err);
            char *name = ok ? q3_format(err, "%s", entry->d_name) : NULL;
            ok = name != NULL;
            if (ok)
                plan->copies[plan->copy_count++] = name;
        }
        free(path);
    }
    if (ok && errno)
        ok = q3_fail_errno(err, "%s: cannot list the directory", directory);
    closedir(stream);
    if (ok && plan->copy_count)
        qsort(plan->copies, plan->copy_count, sizeof *plan->copies, compare_names);
    return ok;
}

bool q3_plan_make(const char *model_directory, const char *headers, const q3_selection *selection,
                  q3_plan *plan, q3_error *err)
{
    *plan = (q3_plan){0};
    q3_json config = {0};
    char *path = NULL;
    const q3_survey_options options = {.headers = headers};
    if (selection->experts && selection->pool)
        return q3_fail(err, Q3_USAGE, "--experts and --pool both say which experts: give one");
    bool ok = q3_checkpoint_survey(model_directory, &options, absent_shards_wait, NULL,
                                   &plan->checkpoint, err) &&
              (path = q3_checkpoint_path(&plan->checkpoint, "config.json", err)) != NULL;
    if (ok && !q3_path_exists(path))
        ok = q3_fail(err, Q3_INCOMPLETE, "%s: no config.json", model_directory);
    ok = ok && q3_config_load(path, &plan->config, &config, err) &&
         q3_inventory_derive(&config, &plan->inventory, err) &&
         parse_components(selection->components, &plan->inventory, plan->wanted, err) &&
         check_names(plan, err) && select_tensors(plan, selection, err) &&
         collect_copies(plan, err);
    q3_json_free(&config);
    free(path);
    if (!ok)
        q3_plan_free(plan);
    return ok;
}

void q3_plan_free(q3_plan *plan)
{
    for (size_t i = 0; i < plan->file_count; i++)
        free(plan->files[i].tensors);
    for (size_t i = 0; i < plan->copy_count; i++)
        free(plan->copies[i]);
    free(plan->files);
    free(plan->copies);
    q3_pool_destroy(&plan->pool);
    q3_inventory_free(&plan->inventory);
    q3_checkpoint_close(&plan->checkpoint);
    *plan = (q3_plan){0};
}
