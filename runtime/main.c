// SPDX-License-Identifier: Apache-2.0
//
// q3-run: the commands and their options. What they do is in cli/.
#include "base/workers.h"
#include "cli/cli.h"
#include "expert_cache.h"
#include "forward.h"

#define COUNT(list) (sizeof(list) / sizeof *(list))

#define O q3_options

// Of every command that runs the model.
#define ENGINE_OPTIONS                                                                          \
    {.name = "threads",                                                                         \
     .letter = 't',                                                                             \
     .kind = Q3_OPTION_NUMBER,                                                                  \
     .value_name = "N",                                                                         \
     .target = &O.threads,                                                                      \
     .min = 1,                                                                                  \
     .max = Q3_WORKERS_MAX,                                                                     \
     .help = "threads; the default is one for each core"},                                      \
        {.name = "memory",                                                                      \
         .letter = 'm',                                                                         \
         .kind = Q3_OPTION_SIZE,                                                                \
         .value_name = "SIZE",                                                                  \
         .target = &O.memory,                                                                   \
         .help = "memory for everything, such as 8G; what dense weights, KV cache and scratch " \
                 "leave holds experts; the default is what the model takes, or three quarters " \
                 "of what is free"},                                                            \
        {.name = "batch",                                                                       \
         .kind = Q3_OPTION_NUMBER,                                                              \
         .value_name = "N",                                                                     \
         .target = &O.batch,                                                                    \
         .min = 1,                                                                              \
         .max = Q3_BATCH_MAX,                                                                   \
         .help = "tokens of a prompt that go through the layers together; by default 512 to "   \
                 "2048, as memory allows"},                                                     \
        {.name = "weights",                                                                     \
         .kind = Q3_OPTION_CHOICE,                                                              \
         .value_name = "auto|bf12|stored|plain",                                                \
         .target = &O.weights,                                                                  \
         .help =                                                                                \
             "bf12: weights in memory in twelve bits each, without loss; stored: as the pack "  \
             "stores them, which is smaller if it has bit planes; plain: as bf16; the default " \
             "is bf12 on processors with AVX2, which is fastest"},                              \
        {.name = "kv",                                                                          \
         .kind = Q3_OPTION_CHOICE,                                                              \
         .value_name = "f32|bf16",                                                              \
         .target = &O.kv,                                                                       \
         .help = "how keys and values are kept; bf16 takes half the memory and loses digits; "  \
                 "the default is f32"},                                                         \
        {.name = "io",                                                                          \
         .kind = Q3_OPTION_CHOICE,                                                              \
         .value_name = "auto|buffered|direct",                                                  \
         .target = &O.io,                                                                       \
         .help = "read experts through the page cache or around it; the default is a choice "   \
                 "after a short probe, when the budget does not hold all of them"},             \
        {.name = "readers",                                                                     \
         .kind = Q3_OPTION_NUMBER,                                                              \
         .value_name = "N",                                                                     \
         .target = &O.readers,                                                                  \
         .min = 1,                                                                              \
         .max = Q3_READERS_MAX,                                                                 \
         .help = "threads that read experts while others compute; the default is chosen as "    \
                 "with --io, or 4"},                                                            \
        {.name = "context",                                                                     \
         .letter = 'c',                                                                         \
         .kind = Q3_OPTION_NUMBER,                                                              \
         .value_name = "N",                                                                     \
         .target = &O.context,                                                                  \
         .min = 1,                                                                              \
         .max = 1 << 24,                                                                        \
         .help = "longest prompt and answer together, in tokens; the default is 4096, or the "  \
                 "model's maximum if that is less"},                                            \
        Q3_CPU_OPTION

// Of those in which the router can be led.
#define POOL_OPTIONS                                                                            \
    {.name = "pool",                                                                            \
     .kind = Q3_OPTION_TEXT,                                                                    \
     .value_name = "FILE",                                                                      \
     .target = &O.pool,                                                                         \
     .help = "limit the router to these experts of each layer: JSON {\"layers\": [[3, 17, "     \
             "...], ...]}"},                                                                    \
        {.name = "prefer-pool",                                                                 \
         .kind = Q3_OPTION_REAL,                                                                \
         .value_name = "BIAS",                                                                  \
         .target = &O.prefer_pool,                                                              \
         .max = 1000,                                                                           \
         .given = &O.prefer_pool_given,                                                         \
         .help = "prefer the experts of --pool in place of limiting the router to them: this "  \
                 "is added to their logits, for the choice and not for the weights"},           \
        {.name = "prefer-resident",                                                             \
         .kind = Q3_OPTION_REAL,                                                                \
         .value_name = "BIAS",                                                                  \
         .target = &O.prefer_resident,                                                          \
         .max = 1000,                                                                           \
         .help = "prefer the experts that are in memory, in the same way: fewer are read; the " \
                 "output then depends on --memory and on what was said before"},                \
    {                                                                                           \
        .name = "router-bias", .kind = Q3_OPTION_TEXT, .value_name = "FILE",                    \
        .target = &O.router_bias,                                                               \
        .help = "add these numbers to the router's logits, for the choice and not for the "     \
                "weights: JSON {\"version\": 1, \"layers\": [[0.5, -1, ...], ...]}"             \
    }

#define WARNING_OPTION                                                                             \
    {                                                                                              \
        .name = "pool-warning", .kind = Q3_OPTION_REAL, .value_name = "PERCENT",                   \
        .target = &O.pool_warning, .max = 100,                                                     \
        .help = "warn at the end when more than this share of what the router wanted was outside " \
                "the pool; the default is 25, and 100 never warns"                                 \
    }

#define STATS_OPTION                                                                               \
    {                                                                                              \
        .name = "stats", .kind = Q3_OPTION_CHOICE, .value_name = "text|json", .target = &O.stats,  \
        .help = "print speed, expert hits and misses, bytes read, memory, a hash of the answer's " \
                "ids and what the router wanted outside the pool to standard error"                \
    }

#define TRACE_OPTION                                                                       \
    {                                                                                      \
        .name = "trace", .kind = Q3_OPTION_TEXT, .value_name = "FILE", .target = &O.trace, \
        .help = "record which experts are chosen for every token, for plan and replay"     \
    }

#define IDS_OPTION                                                                     \
    {                                                                                  \
        .name = "ids", .kind = Q3_OPTION_TEXT, .value_name = "LIST", .target = &O.ids, \
        .help = "token ids, such as \"282 198 447\""                                   \
    }

#define ANSWER_OPTIONS                                                                             \
    {.name = "system",                                                                             \
     .letter = 's',                                                                                \
     .kind = Q3_OPTION_TEXT,                                                                       \
     .value_name = "TEXT",                                                                         \
     .target = &O.system,                                                                          \
     .help = "a system text before the conversation"},                                             \
        {.name = "max-tokens",                                                                     \
         .letter = 'n',                                                                            \
         .kind = Q3_OPTION_NUMBER,                                                                 \
         .value_name = "N",                                                                        \
         .target = &O.max_tokens,                                                                  \
         .max = 1 << 24,                                                                           \
         .given = &O.max_tokens_given,                                                             \
         .help = "end an answer after so many tokens; the default is when the model stops or the " \
                 "context is full"},                                                               \
        {.name = "stop",                                                                           \
         .kind = Q3_OPTION_LIST,                                                                   \
         .value_name = "TEXT",                                                                     \
         .target = &O.stop,                                                                        \
         .help = "end an answer where this text would come; may be given several times"},          \
        {.name = "temperature",                                                                    \
         .kind = Q3_OPTION_REAL,                                                                   \
         .value_name = "X",                                                                        \
         .target = &O.temperature,                                                                 \
         .max = 100,                                                                               \
         .given = &O.temperature_given,                                                            \
         .help = "0: always the likeliest token (greedy); the defaults of this and the next four " \
                 "come from the pack's generation_config.json, else greedy"},                      \
        {.name = "top-k",                                                                          \
         .kind = Q3_OPTION_NUMBER,                                                                 \
         .value_name = "N",                                                                        \
         .target = &O.top_k,                                                                       \
         .max = 1 << 24,                                                                           \
         .given = &O.top_k_given,                                                                  \
         .help = "sample from the N likeliest tokens; 0: off"},                                    \
        {.name = "top-p",                                                                          \
         .kind = Q3_OPTION_REAL,                                                                   \
         .value_name = "X",                                                                        \
         .target = &O.top_p,                                                                       \
         .max = 1,                                                                                 \
         .given = &O.top_p_given,                                                                  \
         .help = "sample from the likeliest tokens that have this probability together; 1: off"},  \
        {.name = "min-p",                                                                          \
         .kind = Q3_OPTION_REAL,                                                                   \
         .value_name = "X",                                                                        \
         .target = &O.min_p,                                                                       \
         .max = 1,                                                                                 \
         .given = &O.min_p_given,                                                                  \
         .help = "leave out tokens less probable than X times the likeliest; 0: off"},             \
        {.name = "repeat-penalty",                                                                 \
         .kind = Q3_OPTION_REAL,                                                                   \
         .value_name = "X",                                                                        \
         .target = &O.repeat_penalty,                                                              \
         .min = 0.01,                                                                              \
         .max = 100,                                                                               \
         .given = &O.repeat_penalty_given,                                                         \
         .help = "above 1: make tokens that have come before less likely; 1: off"},                \
    {                                                                                              \
        .name = "seed", .kind = Q3_OPTION_NUMBER, .value_name = "N", .target = &O.seed,            \
        .max = 9007199254740992.0, .help = "of the draws; the same seed gives the same text"       \
    }

static const q3_option generate_options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = Q3_OPTION_TEXT,
     .value_name = "TEXT",
     .target = &O.prompt,
     .help = "what the user says; - reads it from standard input"},
    {.name = "ids",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &O.ids,
     .help = "the whole prompt as token ids, such as \"282 198 447\", in place of --prompt"},
    {.name = "raw",
     .kind = Q3_OPTION_FLAG,
     .target = &O.raw,
     .help = "take the prompt as it is, without the chat template"},
    ANSWER_OPTIONS,
    ENGINE_OPTIONS,
    POOL_OPTIONS,
    TRACE_OPTION,
    STATS_OPTION,
    WARNING_OPTION,
    {.name = "json",
     .kind = Q3_OPTION_FLAG,
     .target = &O.json,
     .help = "print one object with ids, text, stop_reason and statistics at the end, in place of "
             "the text"},
};

static const q3_option chat_options[] = {ANSWER_OPTIONS, ENGINE_OPTIONS, POOL_OPTIONS,
                                         TRACE_OPTION,   STATS_OPTION,   WARNING_OPTION};

static const q3_option tokenize_options[] = {
    {.name = "text",
     .kind = Q3_OPTION_TEXT,
     .value_name = "TEXT",
     .target = &O.text,
     .help = "the text (or with --decode the ids); the default is standard input"},
    {.name = "decode",
     .letter = 'd',
     .kind = Q3_OPTION_FLAG,
     .target = &O.decode,
     .help = "ids to text"},
    {.name = "json-lines",
     .kind = Q3_OPTION_FLAG,
     .target = &O.json_lines,
     .help = "a JSON string a line in, an array of ids a line out; with --decode the other way"},
};

static const q3_option logits_options[] = {IDS_OPTION, ENGINE_OPTIONS, POOL_OPTIONS};

static const q3_option score_options[] = {
    {.name = "file",
     .letter = 'f',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.file,
     .help = "the text, taken as it is"},
    IDS_OPTION,
    {.name = "step",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.step,
     .min = 1,
     .max = 1 << 24,
     .help = "feed so many tokens at a time: with 1, experts are read as in an answer; the default "
             "is all"},
    ENGINE_OPTIONS,
    POOL_OPTIONS,
    TRACE_OPTION,
    STATS_OPTION,
    WARNING_OPTION,
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option profile_options[] = {
    {.name = "file",
     .letter = 'f',
     .kind = Q3_OPTION_LIST,
     .value_name = "FILE",
     .target = &O.files,
     .help = "a text, taken as it is and counted as prompt; may be given several times"},
    {.name = "prompts",
     .kind = Q3_OPTION_LIST,
     .value_name = "FILE",
     .target = &O.prompt_files,
     .help = "a file with a prompt a line; each is put into the chat template and answered, and "
             "the answer counted apart; may be given several times"},
    {.name = "prompt",
     .letter = 'p',
     .kind = Q3_OPTION_LIST,
     .value_name = "TEXT",
     .target = &O.prompts,
     .help = "one such prompt; may be given several times"},
    {.name = "system",
     .letter = 's',
     .kind = Q3_OPTION_TEXT,
     .value_name = "TEXT",
     .target = &O.system,
     .help = "a system text before each prompt"},
    {.name = "max-tokens",
     .letter = 'n',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.max_tokens,
     .max = 1 << 24,
     .given = &O.max_tokens_given,
     .help = "end an answer after so many tokens; the default is 256"},
    {.name = "output",
     .letter = 'o',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.output,
     .help = "write the profile there"},
    {.name = "merge",
     .kind = Q3_OPTION_LIST,
     .value_name = "FILE",
     .target = &O.merge,
     .help = "add what this profile has counted; may be given several times"},
    {.name = "router-bias-out",
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.router_bias_out,
     .help = "write a file for --router-bias that prefers the experts with high scores"},
    {.name = "strength",
     .kind = Q3_OPTION_REAL,
     .value_name = "S",
     .target = &O.strength,
     .max = 1000,
     .help = "of that file: S times the logarithm of an expert's score over the layer's mean; the "
             "default is 0.25"},
    ENGINE_OPTIONS,
};

static const q3_option bench_options[] = {
    {.name = "prompt-tokens",
     .letter = 'p',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.bench_prompt,
     .max = 1 << 24,
     .help = "tokens of the prompt; the default is 512; 0 measures no prefill"},
    {.name = "tokens",
     .letter = 'n',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.bench_tokens,
     .max = 1 << 24,
     .help = "tokens decoded one by one; the default is 64; 0 measures no decode"},
    {.name = "depth",
     .letter = 'd',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.bench_depth,
     .max = 1 << 24,
     .help = "tokens that are there before the measured ones; the default is 0"},
    {.name = "repetitions",
     .letter = 'r',
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.repetitions,
     .min = 1,
     .max = 1000,
     .help = "measurements of each kind, after one that does not count; the default is 5"},
    {.name = "seed",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.seed,
     .max = 9007199254740992.0,
     .help = "of the token ids"},
    ENGINE_OPTIONS,
    POOL_OPTIONS,
    TRACE_OPTION,
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option plan_options[] = {
    {.name = "slots",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &O.slots,
     .help = "also tell of so many slots for experts in each layer; the default is 8,16,32,64,128"},
    {.name = "trace",
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.trace,
     .help = "find the hits in this trace; the default is an estimate"},
    ENGINE_OPTIONS,
    POOL_OPTIONS,
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option replay_options[] = {
    {.name = "slots",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &O.slots,
     .help = "slots for experts in each layer; the default is " Q3_REPLAY_SLOTS
             ", or with --memory what the budget leaves"},
    {.name = "step",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.step,
     .min = 1,
     .max = 1 << 24,
     .help = "as if so many tokens had gone through the model together; the default is as they "
             "did"},
    ENGINE_OPTIONS,
    POOL_OPTIONS,
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
};

static const q3_option ladder_options[] = {
    {.name = "file",
     .letter = 'f',
     .kind = Q3_OPTION_LIST,
     .value_name = "FILE",
     .target = &O.files,
     .help = "a text, taken as it is; may be given several times"},
    {.name = "profile",
     .kind = Q3_OPTION_LIST,
     .value_name = "FILE",
     .target = &O.profiles,
     .help = "a profile, first that of the text's domain; may be given several times"},
    {.name = "sizes",
     .kind = Q3_OPTION_TEXT,
     .value_name = "LIST",
     .target = &O.sizes,
     .help = "experts in each layer; the default is 8,16,32,48,64,96,128"},
    {.name = "compare-rules",
     .kind = Q3_OPTION_FLAG,
     .target = &O.compare_rules,
     .help = "also pools with as many experts in all, but not in each layer: chosen by coverage "
             "and by bytes, as q3-pack pool does"},
    {.name = "by",
     .kind = Q3_OPTION_CHOICE,
     .value_name = "score|weight|chosen|mass",
     .target = &O.by,
     .help = "which of a profile's numbers counts; the default is score, routing weight times norm "
             "of the expert's output"},
    {.name = "phase",
     .kind = Q3_OPTION_CHOICE,
     .value_name = "all|prompt|answer",
     .target = &O.phase,
     .help = "which tokens count; the default is all"},
    {.name = "seed",
     .kind = Q3_OPTION_NUMBER,
     .value_name = "N",
     .target = &O.seed,
     .max = 9007199254740992.0,
     .help = "of the random pools"},
    {.name = "output",
     .letter = 'o',
     .kind = Q3_OPTION_TEXT,
     .value_name = "FILE",
     .target = &O.output,
     .help = "draw the ladder there, as SVG"},
    {.name = "json", .kind = Q3_OPTION_FLAG, .target = &O.json, .help = "print JSON"},
    ENGINE_OPTIONS,
};

static const q3_command commands[] = {
    {.name = "generate",
     .arguments = "PACK",
     .summary = "Answers a prompt; the text streams to standard output.",
     .options = generate_options,
     .option_count = COUNT(generate_options),
     .run = q3_command_generate},
    {.name = "chat",
     .arguments = "PACK",
     .summary = "Holds a conversation, a line of standard input a turn.",
     .options = chat_options,
     .option_count = COUNT(chat_options),
     .run = q3_command_chat},
    {.name = "tokenize",
     .arguments = "DIR",
     .summary = "Turns text into token ids or back. DIR is a pack, or any directory with "
                "vocab.json, merges.txt and tokenizer_config.json.",
     .options = tokenize_options,
     .option_count = COUNT(tokenize_options),
     .run = q3_command_tokenize},
    {.name = "logits",
     .arguments = "PACK",
     .summary = "Prints the logits behind the last of the given ids as JSON.",
     .options = logits_options,
     .option_count = COUNT(logits_options),
     .run = q3_command_logits},
    {.name = "score",
     .arguments = "PACK",
     .summary = "Prints how well the model predicts a text: the mean of -ln p over its tokens but "
                "the first.",
     .options = score_options,
     .option_count = COUNT(score_options),
     .run = q3_command_score},
    {.name = "profile",
     .arguments = "PACK",
     .summary = "Counts how much the model uses each expert on given texts: what q3-pack pool "
                "chooses pools from.",
     .options = profile_options,
     .option_count = COUNT(profile_options),
     .run = q3_command_profile},
    {.name = "bench",
     .arguments = "PACK",
     .summary = "Measures how fast prompts are read and tokens follow each other.",
     .options = bench_options,
     .option_count = COUNT(bench_options),
     .run = q3_command_bench},
    {.name = "plan",
     .arguments = "PACK",
     .summary = "Tells what fits into memory and how fast that can be, before weights are read.",
     .options = plan_options,
     .option_count = COUNT(plan_options),
     .run = q3_command_plan},
    {.name = "replay",
     .arguments = "PACK TRACE",
     .summary = "Tells what caches of experts would have done with a recorded trace.",
     .options = replay_options,
     .option_count = COUNT(replay_options),
     .run = q3_command_replay},
    {.name = "ladder",
     .arguments = "PACK",
     .summary = "Measures what the model loses on a text with pools of several sizes.",
     .options = ladder_options,
     .option_count = COUNT(ladder_options),
     .run = q3_command_ladder},
};

int main(int argc, char **argv)
{
    static const q3_program program = {
        .name = "q3-run",
        .summary = "Runs the text model of a pack directory, as q3-extract makes it.",
        .commands = commands,
        .command_count = COUNT(commands),
    };
    return q3_program_main(&program, argc, argv);
}
