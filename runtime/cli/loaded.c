// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include "base/file.h"
#include "base/progress.h"
#include "base/text.h"
#include "pool/profile.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

q3_run_options q3_options = {.pool_warning = 25,
                             .top_p = 1,
                             .repeat_penalty = 1,
                             .strength = 0.25,
                             .bench_prompt = 512,
                             .bench_tokens = 64,
                             .repetitions = 5};

// The tokenizer of a pack. It takes a processor a fifth of a second, so a thread opens it while the
// engine is opened, which waits for the disk.
typedef struct opening {
    const char *pack;
    pthread_t thread;
    bool in_thread;
    bool ok;
    q3_tokenizer *tokenizer; // if it is
    q3_error error;          // if it is not
} opening;

static bool open_tokenizer(const char *pack, q3_tokenizer **tokenizer, q3_error *err)
{
    q3_set set;
    q3_tokenizer_files files = {.vocab_name = "vocab.json",
                                .merges_name = "merges.txt",
                                .config_name = "tokenizer_config.json"};
    const struct {
        const char *name;
        q3_bytes *bytes;
    } wanted[] = {{files.vocab_name, &files.vocab},
                  {files.merges_name, &files.merges},
                  {files.config_name, &files.config}};
    char *text[3] = {NULL};
    if (!q3_set_open(pack, &set, err))
        return false;
    bool ok = true;
    for (size_t i = 0; ok && i < 3; i++) {
        size_t size;
        ok = q3_set_load_copy(&set, wanted[i].name, &text[i], &size, err);
        if (ok)
            *wanted[i].bytes = (q3_bytes){(const uint8_t *)text[i], size};
    }
    q3_set_close(&set);
    ok = ok && q3_tokenizer_open_memory(&files, tokenizer, err);
    for (size_t i = 0; i < 3; i++)
        free(text[i]);
    return ok;
}

static void *run_opening(void *argument)
{
    opening *o = argument;
    o->ok = open_tokenizer(o->pack, &o->tokenizer, &o->error);
    return NULL;
}

static void begin_opening(opening *o, const char *pack)
{
    *o = (opening){.pack = pack};
    o->in_thread = pthread_create(&o->thread, NULL, run_opening, o) == 0;
    if (!o->in_thread)
        run_opening(o);
}

// Waits for the thread, too, when the engine could not be opened.
static bool end_opening(opening *o, q3_loaded *loaded, q3_error *err)
{
    if (o->in_thread)
        pthread_join(o->thread, NULL);
    loaded->tokenizer = o->tokenizer;
    if (!o->ok)
        *err = o->error;
    return o->ok;
}

// What the pack's generation_config.json says, and over it the command line.
static bool choose_sampling(const q3_loaded *loaded, const char *pack, q3_sampling *sampling,
                            q3_error *err)
{
    static const char name[] = "generation_config.json";
    char *text;
    size_t size;
    *sampling = q3_sampling_default();
    if (q3_engine_load_file(loaded->engine, name, &text, &size, err)) {
        free(text);
        char *path = q3_path_join(pack, name, err);
        const bool ok = path && q3_sampling_load(path, sampling, err);
        free(path);
        if (!ok)
            return false;
    } else if (err->code != Q3_INCOMPLETE) {
        return false;
    }
    const q3_run_options *o = &q3_options;
    if (o->temperature_given)
        sampling->temperature = o->temperature;
    if (o->top_k_given)
        sampling->top_k = (uint32_t)o->top_k;
    if (o->top_p_given)
        sampling->top_p = o->top_p;
    if (o->min_p_given)
        sampling->min_p = o->min_p;
    if (o->repeat_penalty_given)
        sampling->repeat_penalty = o->repeat_penalty;
    sampling->seed = o->seed;
    return q3_sampling_check(sampling, err);
}

static bool open_sampler(q3_loaded *loaded, const char *pack, q3_error *err)
{
    q3_sampling sampling;
    const uint32_t vocabulary = q3_engine_describe(loaded->engine)->config->vocab_size;
    const uint32_t tokens = q3_tokenizer_count(loaded->tokenizer);
    if (tokens > vocabulary)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: the tokenizer has %" PRIu32 " tokens, the model only %" PRIu32, pack,
                       tokens, vocabulary);
    if (!choose_sampling(loaded, pack, &sampling, err) ||
        !q3_chat_stop_ids(loaded->tokenizer, &loaded->stop_ids, err))
        return false;
    for (uint32_t i = 0; i < sampling.stop_count; i++)
        if (!q3_ids_append(&loaded->stop_ids, sampling.stop_ids[i], err))
            return false;
    return q3_sampler_create(&sampling, tokens, &loaded->sampler, err);
}

static void print_notes(const q3_engine_info *info)
{
    char some[Q3_GROUPED_MAX], all[Q3_GROUPED_MAX];
    if (info->held_experts < info->experts)
        fprintf(stderr,
                "note: the pack has %s of the model's %s experts;\nthe router is limited to "
                "them\n",
                q3_grouped(info->held_experts, some), q3_grouped(info->experts, all));
    if (info->pool_named && info->pool_experts < info->pool_named)
        fprintf(stderr, "note: the pack has %s of the pool's %s experts\n",
                q3_grouped(info->pool_experts, some), q3_grouped(info->pool_named, all));
}

static bool make_room(q3_loaded *loaded, q3_error *err)
{
    const uint32_t layers = q3_engine_describe(loaded->engine)->config->num_hidden_layers;
    loaded->outside_before = q3_alloc_zeroed(layers, sizeof *loaded->outside_before, err);
    return loaded->outside_before != NULL;
}

bool q3_loaded_open(const char *pack, bool speaks, q3_loaded *loaded, q3_error *err)
{
    return q3_loaded_open_for(pack, speaks, 1, 0, loaded, err);
}

static q3_engine_weights weights_of(const char *name)
{
    q3_engine_weights weights = Q3_WEIGHTS_PLAIN;
    while (weights != Q3_WEIGHTS_AUTO && (!name || strcmp(name, q3_weights_name(weights)) != 0))
        weights--;
    return weights;
}

static q3_io_mode io_of(const char *name)
{
    if (name && strcmp(name, "direct") == 0)
        return Q3_IO_DIRECT;
    return name && strcmp(name, "buffered") == 0 ? Q3_IO_BUFFERED : Q3_IO_AUTO;
}

bool q3_engine_options_given(q3_engine_options *options, q3_error *err)
{
    *options = (q3_engine_options){
        .threads = (unsigned)q3_options.threads,
        .context = (uint32_t)q3_options.context,
        .memory = q3_options.memory,
        .batch = (uint32_t)q3_options.batch,
        .readers = (unsigned)q3_options.readers,
        .narrow_kv = q3_options.kv && strcmp(q3_options.kv, "bf16") == 0,
        .io = io_of(q3_options.io),
        .weights = weights_of(q3_options.weights),
        .pool = q3_options.pool,
        .soft_pool = q3_options.prefer_pool_given,
        .pool_bias = (float)q3_options.prefer_pool,
        .router_bias = q3_options.router_bias,
        .resident_bias = (float)q3_options.prefer_resident,
    };
    return !q3_options.prefer_pool_given || q3_options.pool ||
           q3_fail(err, Q3_USAGE, "--prefer-pool needs a --pool");
}

static bool begin_trace(q3_loaded *loaded, q3_error *err)
{
    q3_hash128 model;
    if (!q3_options.trace)
        return true;
    if (!q3_profile_model_hash(q3_engine_pack(loaded->engine), &model, err) ||
        !q3_trace_create(q3_options.trace, q3_engine_describe(loaded->engine)->config, model,
                         &loaded->trace, err))
        return false;
    q3_engine_set_trace(loaded->engine, loaded->trace);
    return true;
}

bool q3_loaded_end_trace(q3_loaded *loaded, bool done, q3_error *err)
{
    q3_error problem;
    q3_trace_writer *trace = loaded->trace;
    if (!trace || (!done && err->code != Q3_INTERRUPTED))
        return done;
    loaded->trace = NULL;
    q3_engine_set_trace(loaded->engine, NULL);
    if (q3_trace_publish(trace, &problem))
        return done;
    *err = problem;
    return false;
}

bool q3_loaded_open_for(const char *pack, bool speaks, uint32_t sessions, uint32_t kept_logits,
                        q3_loaded *loaded, q3_error *err)
{
    const double started = q3_now();
    *loaded = (q3_loaded){0};
    q3_engine_options options;
    if (!q3_engine_options_given(&options, err))
        return false;
    options.sessions = sessions;
    options.kept_logits = kept_logits;
    options.tokenizer = speaks;
    opening tokenizer = {0};
    if (speaks)
        begin_opening(&tokenizer, pack);
    bool ok = q3_engine_open(pack, &options, &loaded->engine, err) &&
              q3_session_create(loaded->engine, &loaded->session, err) && make_room(loaded, err) &&
              begin_trace(loaded, err);
    if (speaks) {
        q3_error later;
        ok = end_opening(&tokenizer, loaded, ok ? err : &later) && ok &&
             open_sampler(loaded, pack, err);
    }
    if (!ok) {
        q3_loaded_close(loaded);
        return false;
    }
    print_notes(q3_engine_describe(loaded->engine));
    loaded->seconds = q3_now() - started;
    return true;
}

void q3_loaded_close(q3_loaded *loaded)
{
    q3_trace_abandon(loaded->trace);
    q3_sampler_destroy(loaded->sampler);
    q3_tokenizer_close(loaded->tokenizer);
    q3_session_destroy(loaded->session);
    q3_engine_close(loaded->engine);
    q3_ids_free(&loaded->stop_ids);
    free(loaded->outside_before);
    *loaded = (q3_loaded){0};
}

bool q3_parse_ids(const char *text, q3_ids *ids, q3_error *err)
{
    static const char between[] = " ,\t\r\n";
    const size_t before = ids->count;
    for (const char *at = text + strspn(text, between); *at; at += strspn(at, between)) {
        const size_t length = strcspn(at, between);
        char word[32] = "";
        uint64_t id;
        memcpy(word, at, length < sizeof word ? length : sizeof word - 1);
        if (!q3_parse_u64(word, 0, UINT32_MAX, &id))
            return q3_fail(err, Q3_USAGE, "expected token ids, found \"%s\"", word);
        if (!q3_ids_append(ids, (uint32_t)id, err))
            return false;
        at += length;
    }
    return ids->count > before || q3_fail(err, Q3_USAGE, "no token ids given");
}

bool q3_parse_sizes(const char *option, const char *list, const char *default_list, uint32_t most,
                    uint32_t sizes[Q3_SIZES_MAX], unsigned *count, q3_error *err)
{
    *count = 0;
    for (const char *at = list ? list : default_list; *at; at += *at == ',') {
        const size_t length = strcspn(at, ",");
        char word[16] = "";
        uint64_t size;
        memcpy(word, at, length < sizeof word ? length : sizeof word - 1);
        at += length;
        if (!q3_parse_u64(word, 1, most, &size)) {
            if (!list)
                continue;
            return q3_fail(err, Q3_USAGE,
                           "%s: expected numbers from 1 to %" PRIu32
                           " such as 8,16,32, found \"%s\"",
                           option, most, list);
        }
        if (*count == Q3_SIZES_MAX)
            return q3_fail(err, Q3_USAGE, "%s: more than %d", option, Q3_SIZES_MAX);
        sizes[(*count)++] = (uint32_t)size;
    }
    return *count || q3_fail(err, Q3_USAGE, "%s: none given", option);
}

bool q3_check_length(const q3_loaded *loaded, const char *what, size_t count, q3_error *err)
{
    const uint32_t context = q3_session_context(loaded->session);
    const uint32_t max = q3_engine_describe(loaded->engine)->config->max_position_embeddings;
    return count <= context || q3_fail(err, Q3_USAGE,
                                       "%s has %zu tokens, more than the context of %" PRIu32
                                       " (--context takes up to %" PRIu32 ")",
                                       what, count, context, max);
}

bool q3_load_text(const q3_loaded *loaded, const char *path, q3_ids *ids, q3_error *err)
{
    char *text;
    size_t size;
    if (!q3_file_load(path, Q3_TEXT_BYTES_MAX, &text, &size, err))
        return false;
    const bool ok =
        q3_tokenizer_encode(loaded->tokenizer, (q3_bytes){(const uint8_t *)text, size}, ids, err);
    free(text);
    return ok;
}

bool q3_say(const void *text, size_t size, q3_error *err)
{
    return q3_write_all(STDOUT_FILENO, "standard output", text, size, err);
}

bool q3_say_json(q3_json_writer *json, q3_error *err)
{
    const bool ok = q3_json_finish(json, err) && q3_say(json->text, json->size, err);
    q3_json_writer_free(json);
    return ok;
}
