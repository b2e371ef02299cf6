// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include "base/hash.h"
#include "base/limits.h"
#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double rate(uint64_t tokens, double seconds)
{
    return seconds > 0 ? (double)tokens / seconds : 0;
}

void q3_statistics_begin(const q3_loaded *loaded, q3_run_statistics *run)
{
    const uint32_t layers = q3_engine_describe(loaded->engine)->config->num_hidden_layers;
    run->before = q3_engine_count(loaded->engine);
    for (uint32_t i = 0; i < layers; i++)
        loaded->outside_before[i] = q3_engine_outside(loaded->engine, i);
}

static q3_outside outside_since(q3_outside now, q3_outside before)
{
    return (q3_outside){.routed = now.routed - before.routed, .sum = now.sum - before.sum};
}

static q3_engine_statistics counts_since(const q3_loaded *loaded, const q3_run_statistics *run)
{
    q3_engine_statistics counts = q3_engine_count(loaded->engine);
    counts.tokens -= run->before.tokens;
    counts.batches -= run->before.batches;
    counts.expert_hits -= run->before.expert_hits;
    counts.expert_misses -= run->before.expert_misses;
    counts.experts_passed -= run->before.experts_passed;
    counts.expert_bytes -= run->before.expert_bytes;
    counts.expert_seconds -= run->before.expert_seconds;
    counts.embedding_bytes -= run->before.embedding_bytes;
    counts.outside = outside_since(counts.outside, run->before.outside);
    return counts;
}

// The share of what the router wanted that is outside the pool.
static double outside_share(q3_outside outside)
{
    return outside.routed ? outside.sum / (double)outside.routed : 0;
}

static double layer_outside_share(const q3_loaded *loaded, uint32_t layer)
{
    return outside_share(
        outside_since(q3_engine_outside(loaded->engine, layer), loaded->outside_before[layer]));
}

// XXH3 over the answer's ids as little-endian 32-bit numbers.
static void hash_ids(const q3_run_statistics *run, char text[Q3_HASH_TEXT])
{
    uint8_t bytes[4];
    q3_error err;
    q3_hasher *hasher = q3_hasher_create(&err);
    snprintf(text, Q3_HASH_TEXT, "-");
    for (uint64_t i = 0; hasher && i < run->answer_tokens; i++) {
        q3_put_u32(bytes, run->answer_ids[i]);
        q3_hasher_update(hasher, bytes, sizeof bytes);
    }
    if (hasher)
        q3_hash128_text(q3_hasher_finish(hasher), text);
    q3_hasher_destroy(hasher);
}

void q3_statistics_put(const q3_loaded *loaded, const q3_run_statistics *run, q3_json_writer *json)
{
    const q3_engine_info *info = q3_engine_describe(loaded->engine);
    const q3_engine_statistics counts = counts_since(loaded, run);
    char hash[Q3_HASH_TEXT];
    hash_ids(run, hash);
    q3_json_put_double(json, "load_seconds", run->load_seconds);
    q3_json_put_u64(json, "prompt_tokens", run->prompt_tokens);
    q3_json_put_double(json, "prompt_seconds", run->prompt_seconds);
    q3_json_put_double(json, "prompt_tokens_per_second",
                       rate(run->prompt_tokens, run->prompt_seconds));
    q3_json_put_u64(json, "answer_tokens", run->answer_tokens);
    q3_json_put_double(json, "answer_seconds", run->answer_seconds);
    q3_json_put_double(json, "answer_tokens_per_second",
                       rate(run->answer_tokens, run->answer_seconds));
    q3_json_put_u64(json, "expert_hits", counts.expert_hits);
    q3_json_put_u64(json, "expert_misses", counts.expert_misses);
    q3_json_put_u64(json, "experts_passed", counts.experts_passed);
    q3_json_put_u64(json, "expert_bytes_read", counts.expert_bytes);
    q3_json_put_double(json, "expert_seconds", counts.expert_seconds);
    q3_json_put_u64(json, "embedding_bytes_read", counts.embedding_bytes);
    q3_json_put_u64(json, "expert_slots_a_layer", info->slots_max);
    q3_json_put_string(json, "io", q3_io_mode_name(info->io));
    q3_json_put_u64(json, "readers", info->readers);
    q3_json_put_bool(json, "io_probed", info->io_probed);
    q3_json_put_u64(json, "pool_experts", info->pool_experts);
    q3_json_put_u64(json, "threads", info->threads);
    q3_json_put_u64(json, "context", info->context);
    q3_json_put_u64(json, "memory_budget", info->memory.budget);
    q3_json_put_u64(json, "memory_planned", info->memory.total);
    q3_json_put_u64(json, "memory_peak", q3_memory_used().peak);
    q3_json_put_string(json, "answer_ids_hash", hash);
    q3_json_put_double(json, "outside_share", outside_share(counts.outside));
    q3_json_begin_array(json, "outside_share_layers");
    for (uint32_t i = 0; i < info->config->num_hidden_layers; i++)
        q3_json_put_double(json, NULL, layer_outside_share(loaded, i));
    q3_json_end_array(json);
}

static void show_outside(const q3_loaded *loaded, const q3_engine_statistics *counts)
{
    enum { A_LINE = 8 };
    const q3_engine_info *info = q3_engine_describe(loaded->engine);
    if (info->pool_experts == info->experts)
        return;
    fprintf(stderr, "outside  %.1f %% of what the router wanted; by layer in %%:",
            100 * outside_share(counts->outside));
    for (uint32_t i = 0; i < info->config->num_hidden_layers; i++) {
        if (i % A_LINE == 0)
            fprintf(stderr, "\n         %3" PRIu32 ":", i);
        fprintf(stderr, " %5.1f", 100 * layer_outside_share(loaded, i));
    }
    fputc('\n', stderr);
}

static void show_text(const q3_loaded *loaded, const q3_run_statistics *run)
{
    const q3_engine_info *info = q3_engine_describe(loaded->engine);
    const q3_engine_statistics counts = counts_since(loaded, run);
    const uint64_t needed = counts.expert_hits + counts.expert_misses;
    char a[Q3_GROUPED_MAX], b[Q3_GROUPED_MAX], hash[Q3_HASH_TEXT];
    hash_ids(run, hash);
    fprintf(stderr, "prompt   %s tokens in %.2f s, %.1f tokens/s\n",
            q3_grouped(run->prompt_tokens, a), run->prompt_seconds,
            rate(run->prompt_tokens, run->prompt_seconds));
    fprintf(stderr, "answer   %s tokens in %.2f s, %.1f tokens/s\n",
            q3_grouped(run->answer_tokens, a), run->answer_seconds,
            rate(run->answer_tokens, run->answer_seconds));
    fprintf(stderr, "experts  %s hits, %s misses (%.1f %% hits)\n",
            q3_grouped(counts.expert_hits, a), q3_grouped(counts.expert_misses, b),
            needed ? 100.0 * (double)counts.expert_hits / (double)needed : 100.0);
    if (counts.experts_passed)
        fprintf(stderr, "         %s at their first use, not kept\n",
                q3_grouped(counts.experts_passed, a));
    fprintf(stderr, "read     %s in %.2f s\n", q3_human_bytes(counts.expert_bytes, a),
            counts.expert_seconds);
    fprintf(stderr, "         %s, %u reader%s%s\n", q3_io_mode_name(info->io), info->readers,
            info->readers == 1 ? "" : "s", info->io_probed ? ", as a probe of the disk says" : "");
    fprintf(stderr, "memory   %s at most, %s planned,\n", q3_human_bytes(q3_memory_used().peak, a),
            q3_human_bytes(info->memory.total, b));
    fprintf(stderr, "         %" PRIu32 " expert slots a layer\n", info->slots_max);
    fprintf(stderr, "ids      %s\n", hash);
    show_outside(loaded, &counts);
}

bool q3_statistics_show(const q3_loaded *loaded, const q3_run_statistics *run, q3_error *err)
{
    if (!q3_options.stats)
        return true;
    if (strcmp(q3_options.stats, "text") == 0) {
        show_text(loaded, run);
        return true;
    }
    q3_json_writer json = {0};
    q3_json_inline(&json);
    q3_json_begin_object(&json, NULL);
    q3_statistics_put(loaded, run, &json);
    q3_json_end_object(&json);
    const bool ok = q3_json_finish(&json, err);
    if (ok)
        fputs(json.text, stderr);
    q3_json_writer_free(&json);
    return ok;
}

void q3_warn_of_pool(const q3_loaded *loaded)
{
    const double percent = 100 * outside_share(q3_engine_count(loaded->engine).outside);
    if (percent > q3_options.pool_warning)
        fprintf(stderr, "warning: %.1f %% of what the router wanted is outside the %s\n", percent,
                q3_options.pool ? "pool" : "pack");
}
