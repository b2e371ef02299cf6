// SPDX-License-Identifier: Apache-2.0
//
// How fast the engine is on this machine, in the manner of llama.cpp's llama-bench: prompts of
// random ids, then random ids one by one, each several times, beside what memory gives.
#include "cli.h"

#include "base/limits.h"
#include "base/progress.h"
#include "base/text.h"
#include "probe.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

// Measurements of one kind.
typedef struct series {
    const char *name;
    uint64_t tokens; // of each
    double *seconds;
    uint64_t *bytes, *misses;
    size_t count;
    q3_engine_statistics sums; // of all measurements: what is said of reading experts
    q3_misses last;            // experts that the last measurement read
    double alone;              // bytes a second that the disk gives for these reads alone, or 0
} series;

static bool make_series(series *s, const char *name, uint64_t tokens, q3_error *err)
{
    const size_t count = (size_t)q3_options.repetitions;
    *s = (series){.name = name, .tokens = tokens};
    return (s->seconds = q3_alloc_zeroed(count, sizeof *s->seconds, err)) &&
           (s->bytes = q3_alloc_zeroed(count, sizeof *s->bytes, err)) &&
           (s->misses = q3_alloc_zeroed(count, sizeof *s->misses, err));
}

static void free_series(series *s)
{
    free(s->seconds);
    free(s->bytes);
    free(s->misses);
    free(s->last.list);
}

// A small generator (splitmix64): the same ids for the same seed everywhere.
static uint32_t next_id(uint64_t *state, uint32_t vocabulary)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)((z ^ z >> 31) % vocabulary);
}

typedef struct bench {
    q3_loaded loaded;
    uint32_t *ids; // as many as the longest feed takes
    series prefill, decode;
    uint64_t peak;       // bytes of memory that the measurements took
    q3_engine_info info; // but for its pointers, once the engine is closed
} bench;

static void draw_ids(bench *b, uint64_t count, uint64_t *state)
{
    const uint32_t vocabulary = q3_engine_describe(b->loaded.engine)->config->vocab_size;
    for (uint64_t i = 0; i < count; i++)
        b->ids[i] = next_id(state, vocabulary);
}

// Feeds tokens in pieces and adds the measurement to the series; the first run of all is not
// counted.
static bool measure(bench *b, series *s, uint64_t piece, uint64_t run, q3_error *err)
{
    const bool counts = run > 0, last = run == q3_options.repetitions;
    q3_engine_record(b->loaded.engine, last ? &s->last : NULL);
    const q3_engine_statistics before = q3_engine_count(b->loaded.engine);
    const double started = q3_now();
    for (uint64_t i = 0; i < s->tokens; i += piece)
        if (!q3_session_feed(b->loaded.session, b->ids + i, (size_t)piece, NULL, err))
            return false;
    const double seconds = q3_now() - started;
    const q3_engine_statistics after = q3_engine_count(b->loaded.engine);
    if (counts) {
        s->seconds[s->count] = seconds;
        s->bytes[s->count] = after.computed_bytes - before.computed_bytes;
        s->misses[s->count] = after.expert_misses - before.expert_misses;
        s->sums.expert_bytes += after.expert_bytes - before.expert_bytes;
        s->sums.unused_bytes += after.unused_bytes - before.unused_bytes;
        s->sums.delivered_bytes += after.delivered_bytes - before.delivered_bytes;
        s->sums.reading_seconds += after.reading_seconds - before.reading_seconds;
        s->sums.experts_ahead += after.experts_ahead - before.experts_ahead;
        s->sums.experts_ahead_used += after.experts_ahead_used - before.experts_ahead_used;
        s->count++;
    }
    return true;
}

static bool run_series(bench *b, q3_error *err)
{
    uint64_t state = q3_options.seed;
    const uint64_t depth = q3_options.bench_depth;
    draw_ids(b, depth, &state);
    if (depth && !q3_session_feed(b->loaded.session, b->ids, (size_t)depth, NULL, err))
        return false;
    if (!q3_engine_preload(b->loaded.engine, err))
        return false;
    for (uint64_t i = 0; i <= q3_options.repetitions; i++) {
        draw_ids(b, b->prefill.tokens, &state);
        if (b->prefill.tokens && !measure(b, &b->prefill, b->prefill.tokens, i, err))
            return false;
        q3_session_truncate(b->loaded.session, (uint32_t)depth);
    }
    for (uint64_t i = 0; i <= q3_options.repetitions; i++) {
        draw_ids(b, b->decode.tokens, &state);
        if (b->decode.tokens && !measure(b, &b->decode, 1, i, err))
            return false;
        q3_session_truncate(b->loaded.session, (uint32_t)depth);
    }
    return true;
}

// What the disk gives for the same reads when nothing else is done. Reads through the page cache
// would find there what has just been read.
static bool read_again(bench *b, series *s, q3_error *err)
{
    return q3_engine_describe(b->loaded.engine)->io != Q3_IO_DIRECT ||
           q3_engine_replay(b->loaded.engine, &s->last, &s->alone, err);
}

static int by_size(const void *a, const void *b)
{
    const double one = *(const double *)a, other = *(const double *)b;
    return (one > other) - (one < other);
}

// What is said of a series: rates are tokens a second, of the median and of the slowest and the
// fastest measurement.
typedef struct summary {
    double median, slowest, fastest;
    double bytes_per_second; // gone through, on average
    double misses;           // for each token
    // Reading experts: bytes that were needed, a token and a second; the share of the time in which
    // there was something to read; bytes a second of that time, needed or not; experts a token that
    // were read ahead, those that were needed then, and what was read of the others.
    double disk_bytes, disk_rate, disk_share, reading_rate, ahead, ahead_used, unused_bytes;
} summary;

static summary summarize(const series *s)
{
    summary result = {0};
    double seconds = 0, bytes = 0, misses = 0;
    for (size_t i = 0; i < s->count; i++) {
        seconds += s->seconds[i];
        bytes += (double)s->bytes[i];
        misses += (double)s->misses[i];
    }
    qsort(s->seconds, s->count, sizeof *s->seconds, by_size);
    const double middle = (s->seconds[s->count / 2] + s->seconds[(s->count - 1) / 2]) / 2;
    const double tokens = (double)s->tokens;
    result.median = tokens / middle;
    result.slowest = tokens / s->seconds[s->count - 1];
    result.fastest = tokens / s->seconds[0];
    result.bytes_per_second = bytes / seconds;
    const double all_tokens = tokens * (double)s->count;
    result.misses = misses / all_tokens;
    result.disk_bytes = (double)s->sums.expert_bytes / all_tokens;
    result.disk_rate = (double)s->sums.expert_bytes / seconds;
    result.disk_share = s->sums.reading_seconds / seconds;
    if (s->sums.reading_seconds > 0)
        result.reading_rate = (double)s->sums.delivered_bytes / s->sums.reading_seconds;
    result.ahead = (double)s->sums.experts_ahead / all_tokens;
    result.ahead_used = (double)s->sums.experts_ahead_used / all_tokens;
    result.unused_bytes = (double)s->sums.unused_bytes / all_tokens;
    return result;
}

static void say_text(const series *s, double probed)
{
    if (!s->tokens)
        return;
    const summary r = summarize(s);
    char name[64];
    snprintf(name, sizeof name, "%s %" PRIu64, s->name, s->tokens);
    printf("%-14s %9.2f %9.2f %9.2f %8.2f %7.0f%% %9.2f\n", name, r.median, r.slowest, r.fastest,
           r.bytes_per_second / 1e9, probed > 0 ? 100 * r.bytes_per_second / probed : 0, r.misses);
}

// Of a series that had to read experts.
static void say_disk(const series *s)
{
    if (!s->tokens)
        return;
    const summary r = summarize(s);
    char name[64];
    snprintf(name, sizeof name, "%s %" PRIu64, s->name, s->tokens);
    if (r.disk_bytes == 0)
        return;
    printf("%-14s %9.2f %9.2f %8.0f%% %9.2f %9.2f %9.2f\n", name, r.disk_bytes / 1e6,
           r.disk_rate / 1e9, 100 * r.disk_share, r.ahead, r.ahead_used, r.unused_bytes / 1e6);
    printf("%14s %.2f GB/s while reading", "", r.reading_rate / 1e9);
    if (s->alone > 0)
        printf(", %.0f%% of the %.2f GB/s that the same reads get alone",
               100 * r.reading_rate / s->alone, s->alone / 1e9);
    printf("\n");
}

static void put_series(q3_json_writer *json, const series *s)
{
    if (!s->tokens)
        return;
    const summary r = summarize(s);
    q3_json_begin_object(json, s->name);
    q3_json_put_u64(json, "tokens", s->tokens);
    q3_json_put_double(json, "tokens_per_second", r.median);
    q3_json_put_double(json, "slowest", r.slowest);
    q3_json_put_double(json, "fastest", r.fastest);
    q3_json_put_double(json, "bytes_per_second", r.bytes_per_second);
    q3_json_put_double(json, "expert_misses_per_token", r.misses);
    q3_json_put_double(json, "disk_bytes_per_token", r.disk_bytes);
    q3_json_put_double(json, "disk_bytes_per_second", r.disk_rate);
    q3_json_put_double(json, "disk_busy_share", r.disk_share);
    q3_json_put_double(json, "disk_bytes_per_second_reading", r.reading_rate);
    q3_json_put_double(json, "disk_bytes_per_second_alone", s->alone);
    q3_json_put_double(json, "experts_read_ahead_per_token", r.ahead);
    q3_json_put_double(json, "experts_read_ahead_used_per_token", r.ahead_used);
    q3_json_put_double(json, "unused_bytes_per_token", r.unused_bytes);
    q3_json_end_object(json);
}

static bool say(const bench *b, double probed, q3_error *err)
{
    const q3_engine_info *info = &b->info;
    if (!q3_options.json) {
        char planned[Q3_GROUPED_MAX], peak[Q3_GROUPED_MAX];
        printf("%s, %u threads, %s weights, %" PRIu32
               " slots a layer, %s reading by %u, memory reads %.2f "
               "GB/s\n",
               info->kernels, info->threads, q3_weights_name(info->weights), info->slots_min,
               q3_io_mode_name(info->io), info->readers, probed / 1e9);
        printf("%s bytes of memory planned, %s taken at most\n",
               q3_grouped(info->memory.total, planned), q3_grouped(b->peak, peak));
        printf("%-14s %9s %9s %9s %8s %8s %9s\n", "", "tokens/s", "slowest", "fastest", "GB/s",
               "of reads", "misses/t");
        say_text(&b->prefill, probed);
        say_text(&b->decode, probed);
        if (b->prefill.sums.expert_bytes + b->decode.sums.expert_bytes)
            printf("%-14s %9s %9s %9s %9s %9s %9s\n", "experts read", "MB/token", "GB/s", "of time",
                   "ahead/t", "used/t", "MB unused");
        say_disk(&b->prefill);
        say_disk(&b->decode);
        return true;
    }
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_put_string(&json, "kernels", info->kernels);
    q3_json_put_u64(&json, "threads", info->threads);
    q3_json_put_string(&json, "weights", q3_weights_name(info->weights));
    q3_json_put_u64(&json, "expert_slots_a_layer", info->slots_min);
    q3_json_put_string(&json, "io", q3_io_mode_name(info->io));
    q3_json_put_u64(&json, "readers", info->readers);
    q3_json_put_u64(&json, "memory_budget", info->memory.budget);
    q3_json_put_u64(&json, "memory_planned", info->memory.total);
    q3_json_put_u64(&json, "memory_peak", b->peak);
    q3_json_put_u64(&json, "depth", q3_options.bench_depth);
    q3_json_put_u64(&json, "repetitions", q3_options.repetitions);
    q3_json_put_double(&json, "memory_bytes_per_second", probed);
    put_series(&json, &b->prefill);
    put_series(&json, &b->decode);
    q3_json_end_object(&json);
    return q3_say_json(&json, err);
}

// What the engine's threads can read from memory. The engine is closed by then: the probe's buffer
// is not in the budget.
static bool probe(bench *b, double *probed, q3_error *err)
{
    q3_workers *workers;
    q3_memory_probe result;
    b->info = *q3_engine_describe(b->loaded.engine);
    b->peak = q3_memory_used().peak;
    q3_loaded_close(&b->loaded);
    if (!q3_workers_create(b->info.threads, &workers, err))
        return false;
    const bool ok = q3_probe_memory(workers, Q3_PROBE_MEMORY_BYTES, 0.3, &result, err);
    q3_workers_destroy(workers);
    *probed = ok ? result.bytes_per_second : 0;
    return ok;
}

static bool run(bench *b, const char *pack, q3_error *err)
{
    q3_run_options *o = &q3_options;
    const uint64_t longest = o->bench_prompt > o->bench_tokens ? o->bench_prompt : o->bench_tokens;
    if (longest == 0)
        return q3_fail(err, Q3_USAGE, "nothing to measure: --prompt-tokens and --tokens are 0");
    if (!o->context)
        o->context = o->bench_depth + longest;
    if (!q3_loaded_open(pack, false, &b->loaded, err))
        return false;
    const uint32_t context = q3_session_context(b->loaded.session);
    if (o->bench_depth + longest > context)
        return q3_fail(err, Q3_USAGE,
                       "%" PRIu64 " tokens after a depth of %" PRIu64
                       " do not fit a context of %" PRIu32,
                       longest, o->bench_depth, context);
    const uint64_t ids = longest > o->bench_depth ? longest : o->bench_depth;
    return (b->ids = q3_alloc((size_t)ids, sizeof *b->ids, err)) &&
           make_series(&b->prefill, "prefill", o->bench_prompt, err) &&
           make_series(&b->decode, "decode", o->bench_tokens, err) && run_series(b, err) &&
           read_again(b, &b->prefill, err) && read_again(b, &b->decode, err);
}

int q3_command_bench(const char *const *arguments)
{
    q3_error err;
    bench b = {0};
    double probed;
    const bool ok = q3_loaded_end_trace(&b.loaded, run(&b, arguments[0], &err), &err) &&
                    probe(&b, &probed, &err) && say(&b, probed, &err);
    free(b.ids);
    free_series(&b.prefill);
    free_series(&b.decode);
    q3_loaded_close(&b.loaded);
    return ok ? Q3_DONE : q3_report(&err);
}
