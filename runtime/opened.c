// SPDX-License-Identifier: Apache-2.0
#include "opened.h"

#include "base/limits.h"
#include "base/progress.h"
#include "expert_cache.h"
#include "router_bias.h"

#include <inttypes.h>
#include <stdlib.h>

enum { DEFAULT_CONTEXT = 4096, SAMPLE_FILES = 256 };

static bool choose_context(q3_opened *opened, uint32_t wanted, q3_error *err)
{
    const uint32_t max = opened->model.config->max_position_embeddings;
    if (wanted > max)
        return q3_fail(err, Q3_REFUSED,
                       "%s: a context of %" PRIu32 " tokens is more than the model's %" PRIu32,
                       opened->model.set.directory, wanted, max);
    opened->info.context = wanted ? wanted : max < DEFAULT_CONTEXT ? max : DEFAULT_CONTEXT;
    return true;
}

// Makes the rules by which experts are chosen.
static bool set_rules(q3_opened *opened, const q3_engine_options *options, q3_error *err)
{
    q3_routing *routing = &opened->routing;
    const q3_config *config = opened->model.config;
    if (!q3_routing_create(config, opened->model.held, routing, err))
        return false;
    if (options->router_bias) {
        const size_t count = (size_t)config->num_hidden_layers * config->num_experts;
        routing->bias = q3_alloc(count, sizeof *routing->bias, err);
        if (!routing->bias ||
            !q3_router_bias_load(options->router_bias, config, routing->bias, err))
            return false;
    }
    routing->soft = options->soft_pool;
    routing->pool_bias = options->pool_bias;
    routing->resident_bias = options->resident_bias;
    uint32_t layer;
    return q3_routing_set_pool(routing, opened->pool.allowed, &layer) ||
           q3_fail(err, Q3_INCOMPLETE, "layer %" PRIu32 ": %s has none of the pool's experts",
                   layer, opened->model.set.directory);
}

// Do readers want what a decoder of whole tensors, or of zstd, takes?
static bool decodes_experts(const q3_opened *opened)
{
    const q3_model *model = &opened->model;
    for (size_t i = 0; i < model->set.file_count; i++) {
        const q3_reading reading = model->file_reading[model->form][i];
        if (model->set.files[i].place.part == Q3_EXPERT &&
            (reading == Q3_READING_DECODES ||
             (reading == Q3_READING_SHORTENS && model->file_has_zstd[i])))
            return true;
    }
    return false;
}

// Do the slots take a fifth of the experts that may be chosen, in each layer?
static bool many_fit(const q3_opened *opened)
{
    for (uint32_t i = 0; i < opened->model.config->num_hidden_layers; i++)
        if (5 * (uint64_t)opened->slots[i] < opened->routing.allowed[i])
            return false;
    return true;
}

static bool make_budget(q3_opened *opened, q3_form form, q3_error *err)
{
    opened->model.form = form;
    opened->budget.dense_bytes = q3_model_dense_bytes(&opened->model);
    opened->budget.decodes = decodes_experts(opened);
    opened->budget.readers_bytes = q3_expert_threads_bytes(&opened->model, opened->budget.readers);
    opened->budget.passing_bytes = q3_model_passing_bytes(&opened->model);
    q3_expert_cache_slots(&opened->model, opened->model.held, opened->slot_bytes);
    return q3_budget_make(&opened->budget, &opened->info.memory, opened->slots, err);
}

static const q3_engine_weights weights_of[Q3_FORMS] = {
    [Q3_FORM_STORED] = Q3_WEIGHTS_STORED,
    [Q3_FORM_BF12] = Q3_WEIGHTS_BF12,
    [Q3_FORM_PLAIN] = Q3_WEIGHTS_PLAIN,
};

// Where a product takes bf12 it is the fastest form, and nearly the smallest. Where none does,
// weights are decoded if all of them fit so. What is stored takes the least memory: below a fifth
// of the experts the disk counts for more than the products (measured with one of 2 GB/s).
static bool choose_form(q3_opened *opened, q3_engine_weights weights, q3_error *err)
{
    q3_error too_small;
    for (unsigned form = 0; form < Q3_FORMS; form++)
        if (weights_of[form] == weights)
            return make_budget(opened, (q3_form)form, err);
    const bool takes = opened->kernels->few->multiply_bf12 != NULL;
    if (make_budget(opened, takes ? Q3_FORM_BF12 : Q3_FORM_PLAIN, &too_small) &&
        (takes ? many_fit(opened) : opened->info.memory.all_fit))
        return true;
    return make_budget(opened, Q3_FORM_STORED, err);
}

static bool share(q3_opened *opened, const q3_engine_options *options, q3_error *err)
{
    const q3_config *config = opened->model.config;
    const uint32_t layers = config->num_hidden_layers;
    uint64_t files;
    opened->slots = q3_alloc(layers, sizeof *opened->slots, err);
    opened->slot_bytes = opened->slots ? q3_alloc(layers, sizeof *opened->slot_bytes, err) : NULL;
    if (!opened->slot_bytes)
        return false;
    opened->budget = (q3_budget_request){
        .config = config,
        .pool_count = opened->routing.allowed,
        .slot_bytes = opened->slot_bytes,
        .embedding_bytes = q3_embedding_bytes(opened->embedding),
        .pack_files = opened->model.set.file_count,
        .scratch = {.config = config,
                    .kernels = opened->kernels,
                    .context = opened->info.context,
                    .threads = opened->team.count},
        .sessions = options->sessions ? options->sessions : 1,
        .narrow = options->narrow_kv,
        // How many a probe will find best is not known yet.
        .readers = q3_expert_threads(options->readers ? options->readers : Q3_PROBE_READERS_MAX),
        .ahead = Q3_AHEAD_MAX,
        // What is read around the page cache is not in it; and a bias towards what is in memory
        // would tell what has passed from what has not.
        .passing = options->io != Q3_IO_DIRECT && options->resident_bias == 0 ? Q3_PASSING_MAX : 0,
        .file_bytes = q3_opened_expert_files(opened, &files),
        .tokenizer = options->tokenizer,
        .kept_logits = options->kept_logits,
        .memory = options->memory,
        .available = q3_available_memory(),
    };
    opened->info.batch = options->batch ? options->batch : q3_budget_batch(&opened->budget);
    opened->budget.scratch.batch = opened->info.batch;
    return choose_form(opened, options->weights, err);
}

static void describe(q3_opened *opened)
{
    const q3_config *config = opened->model.config;
    q3_engine_info *info = &opened->info;
    info->config = config;
    info->threads = opened->team.count;
    info->kernels = opened->kernels->name;
    info->weights = weights_of[opened->model.form];
    info->experts = (uint64_t)config->num_hidden_layers * config->num_experts;
    info->held_experts = opened->model.held_count;
    info->pool_named = opened->pool.named;
    info->pool_experts = opened->pool.total;
    info->slots_min = info->slots_max = opened->slots[0];
    for (uint32_t i = 1; i < config->num_hidden_layers; i++) {
        if (opened->slots[i] < info->slots_min)
            info->slots_min = opened->slots[i];
        if (opened->slots[i] > info->slots_max)
            info->slots_max = opened->slots[i];
    }
}

bool q3_opened_create(const char *directory, const q3_engine_options *options, q3_opened *opened,
                      q3_error *err)
{
    *opened = (q3_opened){.kernels = q3_kernels_for(q3_cpu_in_use())};
    const unsigned threads = options->threads ? options->threads : q3_workers_of_cores();
    const bool ok = q3_team_create(threads, &opened->team, err) &&
                    q3_model_open(directory, opened->kernels, &opened->team, &opened->model, err) &&
                    choose_context(opened, options->context, err) &&
                    q3_expert_pool_create(&opened->model, options->pool, &opened->pool, err) &&
                    set_rules(opened, options, err) &&
                    q3_embedding_open(&opened->model, opened->kernels, &opened->embedding, err) &&
                    share(opened, options, err);
    if (!ok) {
        q3_opened_destroy(opened);
        return false;
    }
    describe(opened);
    return true;
}

void q3_opened_destroy(q3_opened *opened)
{
    q3_embedding_close(opened->embedding);
    q3_routing_destroy(&opened->routing);
    q3_expert_pool_destroy(&opened->pool);
    q3_model_close(&opened->model);
    q3_team_destroy(&opened->team);
    free(opened->slots);
    free(opened->slot_bytes);
    *opened = (q3_opened){0};
}

// ---- reading experts ----

static bool is_allowed(const q3_opened *opened, const q3_set_file *file)
{
    const q3_place *place = &file->place;
    const bool *allowed = opened->routing.soft ? opened->model.held : opened->routing.pool;
    return place->component == Q3_TEXT && place->part == Q3_EXPERT &&
           allowed[(size_t)place->layer * opened->model.config->num_experts + place->expert];
}

uint64_t q3_opened_expert_files(const q3_opened *opened, uint64_t *count)
{
    const q3_set *set = &opened->model.set;
    uint64_t bytes = 0;
    *count = 0;
    for (size_t i = 0; i < set->file_count; i++)
        if (is_allowed(opened, &set->files[i])) {
            bytes += set->files[i].size;
            (*count)++;
        }
    return bytes;
}

static bool list_sample(const q3_opened *opened, char *paths[SAMPLE_FILES], q3_disk_sample *sample,
                        q3_error *err)
{
    const q3_set *set = &opened->model.set;
    uint64_t count, seen = 0;
    q3_opened_expert_files(opened, &count);
    const uint64_t wanted = count < SAMPLE_FILES ? count : SAMPLE_FILES;
    for (size_t i = 0; i < set->file_count && sample->count < wanted; i++) {
        char name[Q3_PLACE_PATH_MAX];
        if (!is_allowed(opened, &set->files[i]))
            continue;
        // Evenly over all of them: every layer, every region of the disk.
        if (seen++ < sample->count * count / wanted)
            continue;
        char *path = q3_set_path(set, q3_place_path(&set->files[i].place, name), err);
        if (!path)
            return false;
        paths[sample->count++] = path;
        if (set->files[i].size > sample->file_bytes)
            sample->file_bytes = set->files[i].size;
    }
    return true;
}

bool q3_opened_probe_disk(const q3_opened *opened, double seconds, q3_disk_probe *probe,
                          q3_error *err)
{
    char *paths[SAMPLE_FILES];
    q3_disk_sample sample = {
        .paths = (const char *const *)paths,
        .seconds = seconds,
        // Another order each time: what one start leaves in the page cache is not all that the next
        // one reads.
        .seed = (uint64_t)(q3_now() * 1e9),
    };
    const bool ok = list_sample(opened, paths, &sample, err) && q3_probe_disk(&sample, probe, err);
    while (sample.count)
        free(paths[--sample.count]);
    return ok;
}

static bool time_taking(const q3_opened *opened, const q3_place *place, uint8_t *memory,
                        double *seconds, q3_error *err)
{
    q3_file file;
    uint64_t image;
    q3_taking *taking;
    q3_expert expert;
    const q3_model *model = &opened->model;
    bool ok = q3_model_open_expert(model, model->form, place->layer, place->expert, false, memory,
                                   &file, &image, &taking, err) &&
              q3_file_read_piece(&file, 0, memory + image, (size_t)file.size, err);
    const double started = q3_now();
    ok = ok && q3_model_take_expert(taking,
                                    q3_model_expert_file_bytes(model, place->layer, place->expert),
                                    &opened->team.readers[0], &expert, err);
    *seconds = q3_now() - started;
    q3_taking_destroy(taking);
    q3_file_close(&file);
    return ok;
}

bool q3_opened_probe_taking(const q3_opened *opened, double *seconds, q3_error *err)
{
    const q3_set *set = &opened->model.set;
    size_t at = 0;
    // Each layer has one.
    while (!is_allowed(opened, &set->files[at]))
        at++;
    const q3_place *place = &set->files[at].place;
    q3_region region;
    const q3_model *model = &opened->model;
    if (!q3_region_create(q3_model_expert_bytes(model, model->form, place->layer, place->expert),
                          &region, err))
        return false;
    // The second time the memory is there.
    const bool ok = time_taking(opened, place, region.data, seconds, err) &&
                    time_taking(opened, place, region.data, seconds, err);
    q3_region_destroy(&region);
    return ok;
}

q3_io_choice q3_opened_choose_io(const q3_opened *opened, const q3_engine_options *options,
                                 const q3_disk_probe *probe)
{
    const uint64_t available = opened->budget.available, planned = opened->info.memory.total;
    uint64_t count;
    q3_io_choice choice = q3_choose_io(probe, options->io, q3_opened_expert_files(opened, &count),
                                       available > planned ? available - planned : 0);
    if (options->readers)
        choice.readers = options->readers;
    return choice;
}
