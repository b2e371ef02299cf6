// SPDX-License-Identifier: Apache-2.0
//
// What the commands of q3-run share: the options, opening a pack, the ids of a prompt, statistics.
#ifndef Q3_RUNTIME_CLI_H
#define Q3_RUNTIME_CLI_H

#include "base/json.h"
#include "base/options.h"
#include "chat.h"
#include "engine.h"
#include "generation.h"
#include "sampler.h"

// Slots a layer that are looked at unless others are asked for.
#define Q3_REPLAY_SLOTS "8,12,16,24,32,48,64,96,128"

// The command line, filled by the option tables of main.c.
typedef struct q3_run_options {
    // the engine
    uint64_t threads, context, memory, batch, readers;
    const char *kv, *io, *weights;
    const char *pool, *router_bias;
    double prefer_pool, prefer_resident;
    bool prefer_pool_given;
    double pool_warning; // percent
    // what is run
    const char *prompt, *ids, *system, *file, *text;
    bool raw;
    uint64_t step; // tokens fed at a time; 0: all
    // the answer
    double temperature, top_p, min_p, repeat_penalty;
    uint64_t top_k, seed, max_tokens;
    bool temperature_given, top_k_given, top_p_given, min_p_given, repeat_penalty_given;
    bool max_tokens_given;
    q3_text_list stop;
    // profiles and pools
    q3_text_list files, prompts, prompt_files, merge, profiles;
    const char *output, *router_bias_out, *sizes, *by, *phase;
    double strength;
    bool compare_rules;
    // measurements
    uint64_t bench_prompt, bench_tokens, bench_depth, repetitions;
    const char *trace, *slots;
    // output
    const char *stats;
    bool json, json_lines, decode;
} q3_run_options;

extern q3_run_options q3_options;

// One function for each command; see main.c for what they do. They return the exit code.
int q3_command_generate(const char *const *arguments);
int q3_command_chat(const char *const *arguments);
int q3_command_tokenize(const char *const *arguments);
int q3_command_logits(const char *const *arguments);
int q3_command_score(const char *const *arguments);
int q3_command_profile(const char *const *arguments);
int q3_command_ladder(const char *const *arguments);
int q3_command_bench(const char *const *arguments);
int q3_command_plan(const char *const *arguments);
int q3_command_replay(const char *const *arguments);

// ---- an open pack ----

typedef struct q3_loaded {
    q3_engine *engine;
    q3_session *session;
    q3_tokenizer *tokenizer;
    q3_sampler *sampler;
    q3_ids stop_ids;
    q3_trace_writer *trace;     // NULL without --trace
    double seconds;             // that opening took
    q3_outside *outside_before; // [layer]: q3_engine_outside when the answer in hand began
} q3_loaded;

// Opens the pack as the options say and prints notes (experts that are not there) to standard
// error. With `speaks`, the tokenizer, the sampler and the stop ids too.
bool q3_loaded_open(const char *pack, bool speaks, q3_loaded *loaded, q3_error *err);
// The same for a program that wants `sessions` in all (it creates the others itself) and keeps so
// many rows of logits.
bool q3_loaded_open_for(const char *pack, bool speaks, uint32_t sessions, uint32_t kept_logits,
                        q3_loaded *loaded, q3_error *err);
// Ends what --trace records: publishes it when the command has done its work or was interrupted, as
// `done` and the error tell. Returns whether the command is done.
bool q3_loaded_end_trace(q3_loaded *loaded, bool done, q3_error *err);
void q3_loaded_close(q3_loaded *loaded); // a zeroed one is fine
// What the options say about the engine.
bool q3_engine_options_given(q3_engine_options *options, q3_error *err);

// Ids from "1 2 3" (blanks or commas between them). None at all is Q3_USAGE.
bool q3_parse_ids(const char *text, q3_ids *ids, q3_error *err);
// Numbers from 1 to `most`, at most Q3_SIZES_MAX of them, from a list such as "8,16,32". Without a
// list those of the default that are not above `most`. `option` is what messages call it.
enum { Q3_SIZES_MAX = 64 };
bool q3_parse_sizes(const char *option, const char *list, const char *default_list, uint32_t most,
                    uint32_t sizes[Q3_SIZES_MAX], unsigned *count, q3_error *err);
// Q3_USAGE, naming both numbers, when a prompt is longer than the session's context.
bool q3_check_length(const q3_loaded *loaded, const char *what, size_t count, q3_error *err);

// Reads a trace and checks that it is of the pack's model and has tokens.
bool q3_open_trace(const q3_set *set, const char *path, q3_trace *trace, q3_error *err);

// ---- texts ----

enum { Q3_TEXT_BYTES_MAX = 256 << 20 };

// Appends the ids of a file's text, taken as it is.
bool q3_load_text(const q3_loaded *loaded, const char *path, q3_ids *ids, q3_error *err);
// ln of the sum of exp: -ln p of a token is this less its logit.
double q3_log_sum(const float *logits, uint32_t count);

// ---- input and output ----

// All of standard input, with a NUL behind it that *size does not count; the caller frees *text.
bool q3_read_input(char **text, size_t *size, q3_error *err);

// Standard input line by line. Start it zeroed.
typedef struct q3_lines {
    char *text;
    size_t start, used, capacity; // what has been read and not handed out is [start, used)
    bool ended;
} q3_lines;

// 1: *line is the next one, without its LF or CRLF and with a NUL behind it that *size does not
// count; it is good until the next call. 0 at the end, -1 on failure. Every wait for input ends
// when a signal comes (Q3_INTERRUPTED).
int q3_next_line(q3_lines *lines, char **line, size_t *size, q3_error *err);
void q3_lines_free(q3_lines *lines);

// Writes to standard output at once: a closed pipe is noticed when it happens.
bool q3_say(const void *text, size_t size, q3_error *err);
// Ends a JSON document, writes it to standard output and frees it.
bool q3_say_json(q3_json_writer *json, q3_error *err);

// Are the --stop texts something that text can be searched for? Q3_USAGE if not.
bool q3_check_stops(q3_error *err);
// An answer from the session's logits on, as the options say; streamed to standard output unless
// quiet. The result is to be freed after a failure too.
bool q3_answer(const q3_loaded *loaded, bool quiet, q3_generation *result, q3_error *err);

// ---- statistics ----

typedef struct q3_run_statistics {
    uint64_t prompt_tokens, answer_tokens;
    double prompt_seconds, answer_seconds, load_seconds;
    const uint32_t *answer_ids;
    q3_engine_statistics before; // counts that belong to earlier answers
} q3_run_statistics;

// What has been counted until now belongs to earlier answers.
void q3_statistics_begin(const q3_loaded *loaded, q3_run_statistics *run);
// As the members of an object that has been begun.
void q3_statistics_put(const q3_loaded *loaded, const q3_run_statistics *run, q3_json_writer *json);
// On standard error, as --stats says, or not at all.
bool q3_statistics_show(const q3_loaded *loaded, const q3_run_statistics *run, q3_error *err);
// Says on standard error, at the end of a run, that the pool does not fit what was run, when it
// does not.
void q3_warn_of_pool(const q3_loaded *loaded);

#endif
