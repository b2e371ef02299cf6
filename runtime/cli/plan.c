// SPDX-License-Identifier: Apache-2.0
//
// q3-run plan: what fits and how fast it can be, before any weights are read.
#include "cli.h"

#include "base/text.h"
#include "kv_cache.h"
#include "opened.h"
#include "plan.h"
#include "replay.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const char default_slots[] = "8,16,32,64,128";
static const double memory_seconds = 0.3, disk_seconds = 0.8;

// What is said of one budget.
typedef struct row {
    uint32_t slots; // the most of any layer
    uint64_t memory;
    double hit_rate;
    q3_plan_speed speed;
} row;

typedef struct planning {
    q3_opened opened;
    q3_trace trace; // empty without --trace
    q3_io_choice io;
    bool disk_cached; // what was measured of the disk was the page cache
    q3_plan_costs costs;
    uint64_t weight_bytes, kv_bytes; // that a token goes through
    uint32_t *slots;                 // [layer], of the row in hand
    row rows[Q3_SIZES_MAX + 1];      // the first is that of the budget
    unsigned row_count;
} planning;

static bool probe(planning *p, const q3_engine_options *options, q3_error *err)
{
    q3_memory_probe memory;
    q3_disk_probe disk;
    if (!q3_probe_memory(p->opened.team.workers, Q3_PROBE_MEMORY_BYTES, memory_seconds, &memory,
                         err) ||
        !q3_opened_probe_disk(&p->opened, disk_seconds, &disk, err) ||
        !q3_opened_probe_taking(&p->opened, &p->costs.taking_seconds, err))
        return false;
    p->costs.taking_seconds /= p->opened.team.count;
    p->io = (q3_io_choice){
        .mode = options->io == Q3_IO_AUTO ? Q3_IO_BUFFERED : options->io,
        .readers = options->readers ? options->readers : Q3_READERS_DEFAULT,
    };
    const q3_io_choice choice = q3_opened_choose_io(&p->opened, options, &disk);
    if (!p->opened.info.memory.all_fit)
        p->io = choice;
    p->costs.memory_speed = memory.bytes_per_second;
    p->costs.disk_speed = q3_disk_speed(&disk, &p->disk_cached);
    return true;
}

// What a token needs: the experts of a layer's average size.
static void count_costs(planning *p)
{
    const q3_opened *opened = &p->opened;
    const q3_config *config = opened->model.config;
    const uint32_t layers = config->num_hidden_layers, top_k = config->num_experts_per_tok;
    double experts = 0, bytes = 0;
    uint64_t files;
    const uint64_t file_bytes = q3_opened_expert_files(opened, &files);
    for (uint32_t i = 0; i < layers; i++) {
        const uint32_t allowed = opened->routing.allowed[i];
        const uint32_t needed = allowed < top_k ? allowed : top_k;
        experts += needed;
        bytes += (double)needed * (double)opened->slot_bytes[i];
    }
    p->weight_bytes = q3_model_dense_bytes(&opened->model) + (uint64_t)bytes;
    p->kv_bytes = q3_kv_cache_bytes(config, opened->info.context, opened->budget.narrow) / 2;
    p->costs.memory_bytes = (double)p->weight_bytes + (double)p->kv_bytes;
    p->costs.experts = experts;
    p->costs.expert_bytes = files ? (double)file_bytes / (double)files : 0;
}

static bool expect_hits(const planning *p, double *rate, q3_error *err)
{
    const uint32_t layers = p->opened.model.config->num_hidden_layers;
    q3_replay_counts counts;
    if (p->trace.tokens) {
        if (!q3_replay(&p->trace, Q3_POLICY_LRFU, p->slots, 1, &counts, err))
            return false;
        *rate = q3_replay_rate(counts);
        return true;
    }
    *rate = 0;
    for (uint32_t i = 0; i < layers; i++)
        *rate += q3_estimate_hits((double)p->slots[i] / (double)p->opened.routing.allowed[i]);
    *rate /= (double)layers;
    return true;
}

static bool add_row(planning *p, uint32_t slots, uint64_t memory, q3_error *err)
{
    row *r = &p->rows[p->row_count++];
    *r = (row){.slots = slots, .memory = memory};
    for (uint32_t i = 0; i < p->opened.model.config->num_hidden_layers; i++) {
        const uint32_t allowed = p->opened.routing.allowed[i];
        p->slots[i] = slots < allowed ? slots : allowed;
    }
    if (!expect_hits(p, &r->hit_rate, err))
        return false;
    r->speed = q3_plan_for(&p->costs, r->hit_rate);
    return true;
}

static bool add_rows(planning *p, q3_error *err)
{
    uint32_t sizes[Q3_SIZES_MAX];
    unsigned count;
    const q3_engine_info *info = &p->opened.info;
    if (!q3_parse_sizes("--slots", q3_options.slots, default_slots, info->config->num_experts,
                        sizes, &count, err) ||
        !add_row(p, info->slots_max, info->memory.total, err))
        return false;
    for (unsigned i = 0; i < count; i++)
        if (!add_row(p, sizes[i], q3_budget_total(&p->opened.budget, sizes[i]), err))
            return false;
    return true;
}

static void print_memory(const char *name, uint64_t bytes, const char *note)
{
    char text[Q3_GROUPED_MAX];
    printf("%-14s %19s%s%s\n", name, q3_grouped(bytes, text), *note ? "  " : "", note);
}

static void print_plan(const planning *p)
{
    const q3_engine_info *info = &p->opened.info;
    const q3_memory_plan *memory = &info->memory;
    char note[64], a[Q3_GROUPED_MAX], b[Q3_GROUPED_MAX];
    print_memory("process", memory->process, "");
    print_memory("dense weights", memory->dense, "");
    print_memory("embedding", memory->embedding, "");
    snprintf(note, sizeof note, "%" PRIu32 " positions", info->context);
    print_memory("KV cache", memory->kv_cache, note);
    print_memory("scratch", memory->scratch, "");
    const int used = snprintf(note, sizeof note, "%" PRIu32 " of %" PRIu32 " a layer",
                              info->slots_max, info->config->num_experts);
    if (memory->ahead)
        snprintf(note + used, sizeof note - (size_t)used, ", %u ahead", memory->ahead);
    print_memory("experts", memory->experts, note);
    if (memory->passing) {
        snprintf(note, sizeof note, "%u experts", memory->passing_experts);
        print_memory("passing", memory->passing, note);
    }
    print_memory("in all", memory->total, "");
    print_memory("budget", memory->budget, "");
    print_memory("minimum", memory->minimum, "1 a layer");
    printf("\nA token goes through %s of weights and %s of keys and\nvalues (half the context).\n",
           q3_human_bytes(p->weight_bytes, a), q3_human_bytes(p->kv_bytes, b));
    printf("Memory gives %s/s to %u thread%s,\n",
           q3_human_bytes((uint64_t)p->costs.memory_speed, a), info->threads,
           info->threads == 1 ? "" : "s");
    printf("the %s %s/s. Experts are read %s by %u.\n", p->disk_cached ? "page cache" : "disk",
           q3_human_bytes((uint64_t)p->costs.disk_speed, b), q3_io_mode_name(p->io.mode),
           p->io.readers);
    printf("Checking and unpacking an expert takes %.3g ms.\n", 1e3 * p->costs.taking_seconds);
    printf("Hits are %s.\n\n", p->trace.tokens
                                   ? "those of the trace, token by token"
                                   : "an estimate from another model; --trace gives this one's");
    printf("%7s %10s %7s %11s %9s %9s %9s\n", "slots", "memory", "hits", "disk/token", "memory",
           "disk", "tokens/s");
    for (unsigned i = 0; i < p->row_count; i++) {
        const row *r = &p->rows[i];
        printf("%7" PRIu32 " %10s %6.1f%% %11s %9.2f ", r->slots, q3_human_bytes(r->memory, a),
               100 * r->hit_rate, q3_human_bytes((uint64_t)r->speed.disk_bytes, b),
               r->speed.memory_rate);
        if (r->speed.disk_bytes > 0)
            printf("%9.2f ", r->speed.disk_rate);
        else
            printf("%9s ", "-");
        printf("%9.2f\n", r->speed.rate);
    }
}

static void put_memory(const q3_memory_plan *memory, q3_json_writer *json)
{
    q3_json_begin_object(json, "memory");
    q3_json_put_u64(json, "process", memory->process);
    q3_json_put_u64(json, "dense", memory->dense);
    q3_json_put_u64(json, "embedding", memory->embedding);
    q3_json_put_u64(json, "kv_cache", memory->kv_cache);
    q3_json_put_u64(json, "scratch", memory->scratch);
    q3_json_put_u64(json, "experts", memory->experts);
    q3_json_put_u64(json, "passing", memory->passing);
    q3_json_put_u64(json, "total", memory->total);
    q3_json_put_u64(json, "budget", memory->budget);
    q3_json_put_u64(json, "minimum", memory->minimum);
    q3_json_end_object(json);
}

static bool say_json(const planning *p, q3_error *err)
{
    const q3_engine_info *info = &p->opened.info;
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    put_memory(&info->memory, &json);
    q3_json_put_u64(&json, "context", info->context);
    q3_json_put_u64(&json, "threads", info->threads);
    q3_json_put_u64(&json, "experts_a_layer", info->config->num_experts);
    q3_json_put_u64(&json, "expert_slots_a_layer", info->slots_max);
    q3_json_put_u64(&json, "weight_bytes_a_token", p->weight_bytes);
    q3_json_put_u64(&json, "kv_bytes_a_token", p->kv_bytes);
    q3_json_put_double(&json, "memory_bytes_per_second", p->costs.memory_speed);
    q3_json_put_double(&json, "disk_bytes_per_second", p->costs.disk_speed);
    q3_json_put_double(&json, "expert_taking_seconds", p->costs.taking_seconds);
    q3_json_put_bool(&json, "disk_was_cached", p->disk_cached);
    q3_json_put_string(&json, "io", q3_io_mode_name(p->io.mode));
    q3_json_put_u64(&json, "readers", p->io.readers);
    q3_json_put_u64(&json, "experts_ahead", p->opened.info.memory.ahead);
    q3_json_put_string(&json, "hits_from", p->trace.tokens ? "trace" : "estimate");
    q3_json_begin_array(&json, "budgets");
    for (unsigned i = 0; i < p->row_count; i++) {
        const row *r = &p->rows[i];
        q3_json_begin_object(&json, NULL);
        q3_json_put_u64(&json, "expert_slots_a_layer", r->slots);
        q3_json_put_u64(&json, "memory", r->memory);
        q3_json_put_double(&json, "hit_rate", r->hit_rate);
        q3_json_put_double(&json, "disk_bytes_a_token", r->speed.disk_bytes);
        q3_json_put_double(&json, "memory_tokens_per_second", r->speed.memory_rate);
        q3_json_put_double(&json, "disk_tokens_per_second", r->speed.disk_rate);
        q3_json_put_double(&json, "tokens_per_second", r->speed.rate);
        q3_json_end_object(&json);
    }
    q3_json_end_array(&json);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

static bool plan(planning *p, const char *pack, q3_error *err)
{
    q3_engine_options options;
    if (!q3_engine_options_given(&options, err))
        return false;
    options.tokenizer = true;
    if (!q3_opened_create(pack, &options, &p->opened, err) ||
        (q3_options.trace &&
         !q3_open_trace(&p->opened.model.set, q3_options.trace, &p->trace, err)) ||
        !(p->slots = q3_alloc(p->opened.model.config->num_hidden_layers, sizeof *p->slots, err)))
        return false;
    count_costs(p);
    if (!probe(p, &options, err) || !add_rows(p, err))
        return false;
    if (q3_options.json)
        return say_json(p, err);
    print_plan(p);
    return true;
}

int q3_command_plan(const char *const *arguments)
{
    q3_error err;
    planning *p = q3_alloc_zeroed(1, sizeof *p, &err);
    if (!p)
        return q3_report(&err);
    const bool ok = plan(p, arguments[0], &err);
    free(p->slots);
    q3_trace_free(&p->trace);
    q3_opened_destroy(&p->opened);
    free(p);
    return ok ? Q3_DONE : q3_report(&err);
}
