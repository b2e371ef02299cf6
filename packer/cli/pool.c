// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"
#include "cli.h"
#include "pool/choose.h"
#include "profiles.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A pool with what is said of it.
typedef struct choice {
    const q3_profiles *profiles;
    uint32_t layers, experts;
    uint64_t *expert_bytes; // [layer][expert]; 0: the pack does not have it
    q3_pool pool;
    uint64_t *layer_bytes;
    double *coverage; // of each layer
    uint64_t bytes;
    double mean_coverage, least_coverage;
    uint32_t least_layer; // the first that has least_coverage
} choice;

static bool check_options(q3_error *err)
{
    const int rules = q3_options.size_given + q3_options.coverage_given + q3_options.bytes_given;
    if (rules != 1)
        return q3_fail(err, Q3_USAGE, "expected one of --size, --coverage and --bytes, found %s",
                       rules ? "several" : "none");
    if (q3_options.unite && q3_options.bytes_given)
        return q3_fail(err, Q3_USAGE,
                       "--union: a union of pools keeps to no budget; give --size or --coverage, "
                       "or leave --union out");
    return true;
}

// ---- what an expert takes ----

static bool read_sizes(choice *c, q3_error *err)
{
    const q3_profile *profile = &c->profiles->first;
    q3_set set;
    if (!q3_set_open(q3_options.pack, &set, err))
        return false;
    q3_hash128 model;
    bool ok = q3_profile_model_hash(&set, &model, err) &&
              q3_profile_check_model(profile, c->profiles->path[0], model, err);
    if (ok && (set.config.num_hidden_layers != c->layers || set.config.num_experts != c->experts))
        ok = q3_fail(err, Q3_MISMATCH,
                     "%s: expected the layers and experts of %s, %" PRIu32 " of %" PRIu32
                     ", found %" PRIu32 " of %" PRIu32,
                     c->profiles->path[0], q3_options.pack, set.config.num_hidden_layers,
                     set.config.num_experts, c->layers, c->experts);
    for (size_t i = 0; ok && i < set.file_count; i++) {
        const q3_place *place = &set.files[i].place;
        if (place->component == Q3_TEXT && place->part == Q3_EXPERT)
            c->expert_bytes[(size_t)place->layer * c->experts + place->expert] = set.files[i].size;
    }
    q3_set_close(&set);
    return ok;
}

static bool find_sizes(choice *c, q3_error *err)
{
    const size_t count = (size_t)c->layers * c->experts;
    c->expert_bytes = q3_alloc_zeroed(count, sizeof *c->expert_bytes, err);
    if (!c->expert_bytes)
        return false;
    if (q3_options.pack)
        return read_sizes(c, err);
    for (size_t i = 0; i < count; i++)
        c->expert_bytes[i] = c->profiles->first.expert_bytes;
    return true;
}

// ---- the choice ----

static bool choose_from(const choice *c, const double *share, q3_pool *pool, q3_error *err)
{
    const uint32_t least = c->profiles->first.top_k;
    if (q3_options.size_given)
        return q3_pool_choose_size(share, c->layers, c->experts, (uint32_t)q3_options.size, pool,
                                   err);
    if (q3_options.coverage_given)
        return q3_pool_choose_coverage(share, c->layers, c->experts, q3_options.coverage, least,
                                       pool, err);
    return q3_pool_choose_bytes(share, c->expert_bytes, c->layers, c->experts, q3_options.bytes,
                                least, pool, err);
}

static bool choose(choice *c, q3_error *err)
{
    const q3_profile *profile = &c->profiles->first;
    if (q3_options.size_given &&
        (q3_options.size < profile->top_k || q3_options.size > profile->experts))
        return q3_fail(err, Q3_USAGE,
                       "--size: expected %" PRIu32 " (as many as are chosen for a token) to "
                       "%" PRIu32 " (all), found %" PRIu64,
                       profile->top_k, profile->experts, q3_options.size);
    if (!q3_options.unite)
        return choose_from(c, c->profiles->sum, &c->pool, err);
    bool ok = q3_pool_create(c->layers, c->experts, &c->pool, err);
    for (size_t i = 0; ok && i < c->profiles->count; i++) {
        q3_pool one;
        ok = choose_from(c, c->profiles->share[i], &one, err);
        if (ok)
            q3_pool_add_all(&c->pool, &one);
        if (ok)
            q3_pool_destroy(&one);
    }
    return ok;
}

static void cover(const choice *c, const double *share, double *coverage, double *mean,
                  double *least, uint32_t *least_layer)
{
    double sum = 0;
    *least = INFINITY;
    for (uint32_t layer = 0; layer < c->layers; layer++) {
        const double part = q3_pool_coverage(&c->pool, share, layer);
        if (coverage)
            coverage[layer] = part;
        sum += part;
        if (part < *least) {
            *least = part;
            *least_layer = layer;
        }
    }
    *mean = sum / c->layers;
}

static bool measure(choice *c, q3_error *err)
{
    c->layer_bytes = q3_alloc_zeroed(c->layers, sizeof *c->layer_bytes, err);
    c->coverage = c->layer_bytes ? q3_alloc_zeroed(c->layers, sizeof *c->coverage, err) : NULL;
    if (!c->coverage)
        return false;
    cover(c, c->profiles->sum, c->coverage, &c->mean_coverage, &c->least_coverage, &c->least_layer);
    for (uint32_t layer = 0; layer < c->layers; layer++) {
        for (uint32_t expert = 0; expert < c->experts; expert++) {
            if (!q3_pool_has(&c->pool, layer, expert))
                continue;
            const uint64_t bytes = c->expert_bytes[(size_t)layer * c->experts + expert];
            if (bytes == 0)
                return q3_fail(err, Q3_INCOMPLETE,
                               "%s: layer %" PRIu32 ": has no expert %" PRIu32
                               ", which would be chosen",
                               q3_options.pack, layer, expert);
            c->layer_bytes[layer] += bytes;
        }
        c->bytes += c->layer_bytes[layer];
    }
    return true;
}

// ---- what is written ----

static void put_rule(q3_json_writer *out)
{
    q3_json_inline(out);
    q3_json_begin_object(out, "rule");
    q3_json_put_string(out, "by", q3_options.by);
    q3_json_put_string(out, "phase", q3_options.phase);
    if (q3_options.size_given)
        q3_json_put_u64(out, "size", q3_options.size);
    else if (q3_options.coverage_given)
        q3_json_put_double(out, "coverage", q3_options.coverage);
    else
        q3_json_put_u64(out, "bytes", q3_options.bytes);
    if (q3_options.unite)
        q3_json_put_bool(out, "union", true);
    q3_json_end_object(out);
}

static bool write_pool(const choice *c, q3_error *err)
{
    char hash[Q3_HASH_TEXT];
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_string(&out, "model", q3_hash128_text(c->profiles->first.model, hash));
    q3_json_begin_array(&out, "made_from");
    for (size_t i = 0; i < c->profiles->count; i++)
        q3_json_put_bytes(&out, NULL, c->profiles->path[i], strlen(c->profiles->path[i]));
    q3_json_end_array(&out);
    put_rule(&out);
    q3_json_put_u64(&out, "experts", c->pool.total);
    q3_json_put_u64(&out, "bytes", c->bytes);
    q3_json_put_double(&out, "coverage", c->mean_coverage);
    q3_json_inline(&out);
    q3_json_begin_array(&out, "layer_coverage");
    for (uint32_t layer = 0; layer < c->layers; layer++)
        q3_json_put_double(&out, NULL, c->coverage[layer]);
    q3_json_end_array(&out);
    q3_pool_put(&c->pool, &out);
    q3_json_end_object(&out);
    const bool ok = q3_json_finish(&out, err) && q3_write_result(out.text, out.size, err);
    q3_json_writer_free(&out);
    return ok;
}

static void summarize_text(const choice *c, FILE *to)
{
    char bytes[Q3_GROUPED_MAX], experts[Q3_GROUPED_MAX];
    fprintf(to, "%5s %8s %18s %9s\n", "layer", "experts", "bytes", "coverage");
    for (uint32_t layer = 0; layer < c->layers; layer++)
        fprintf(to, "%5" PRIu32 " %8" PRIu32 " %18s %7.1f %%\n", layer, c->pool.count[layer],
                q3_grouped(c->layer_bytes[layer], bytes), 100 * c->coverage[layer]);
    fprintf(to, "%5s %8s %18s %7.1f %% (the least %.1f %% in layer %" PRIu32 ")\n", "total",
            q3_grouped(c->pool.total, experts), q3_grouped(c->bytes, bytes), 100 * c->mean_coverage,
            100 * c->least_coverage, c->least_layer);
    for (size_t i = 0; c->profiles->count > 1 && i < c->profiles->count; i++) {
        double mean, least;
        uint32_t least_layer = 0;
        cover(c, c->profiles->share[i], NULL, &mean, &least, &least_layer);
        fprintf(to, "%s: %.1f %% (the least %.1f %% in layer %" PRIu32 ")\n", c->profiles->path[i],
                100 * mean, 100 * least, least_layer);
    }
}

static bool summarize_json(const choice *c, FILE *to, q3_error *err)
{
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    put_rule(&out);
    q3_json_put_u64(&out, "experts", c->pool.total);
    q3_json_put_u64(&out, "bytes", c->bytes);
    q3_json_put_double(&out, "coverage", c->mean_coverage);
    q3_json_put_double(&out, "least_coverage", c->least_coverage);
    q3_json_begin_array(&out, "layers");
    for (uint32_t layer = 0; layer < c->layers; layer++) {
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_u64(&out, "experts", c->pool.count[layer]);
        q3_json_put_u64(&out, "bytes", c->layer_bytes[layer]);
        q3_json_put_double(&out, "coverage", c->coverage[layer]);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_begin_array(&out, "profiles");
    for (size_t i = 0; i < c->profiles->count; i++) {
        double mean, least;
        uint32_t least_layer;
        cover(c, c->profiles->share[i], NULL, &mean, &least, &least_layer);
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_bytes(&out, "path", c->profiles->path[i], strlen(c->profiles->path[i]));
        q3_json_put_double(&out, "coverage", mean);
        q3_json_put_double(&out, "least_coverage", least);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    const bool ok = q3_json_finish(&out, err);
    if (ok)
        fputs(out.text, to);
    q3_json_writer_free(&out);
    return ok;
}

static bool summarize(const choice *c, q3_error *err)
{
    FILE *to = q3_options.output ? stdout : stderr;
    if (q3_options.json)
        return summarize_json(c, to, err);
    if (!q3_options.quiet)
        summarize_text(c, to);
    return true;
}

int q3_command_pool(const char *const *arguments)
{
    q3_error err;
    q3_profiles profiles = {0};
    choice c = {.profiles = &profiles};
    bool ok = check_options(&err) && q3_profiles_read(arguments, &profiles, &err);
    c.layers = profiles.first.layers;
    c.experts = profiles.first.experts;
    ok = ok && find_sizes(&c, &err) && choose(&c, &err) && measure(&c, &err) &&
         write_pool(&c, &err) && summarize(&c, &err);
    free(c.expert_bytes);
    free(c.layer_bytes);
    free(c.coverage);
    q3_pool_destroy(&c.pool);
    q3_profiles_free(&profiles);
    return ok ? Q3_DONE : q3_report(&err);
}
