// SPDX-License-Identifier: Apache-2.0
//
// Memory and speed from the command line: plan, traces and their replay, bench, and the options
// that must not change a byte of the output.
#include "base/cpu.h"
#include "json.h"
#include "trace.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STORY_PROMPT "Tell me a story about a brave fox named Tom."

static char *directory, *pack, *trace;
static cJSON *reference;

static int make_pack(void **state)
{
    (void)state;
    directory = q3_test_directory();
    pack = q3_test_path("%s/pack", directory);
    trace = q3_test_path("%s/trace", directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--quiet", NULL), 0,
                   "");
    reference = q3_test_load_json(Q3_TEST_REFERENCE);
    return 0;
}

static int remove_pack(void **state)
{
    (void)state;
    cJSON_Delete(reference);
    free(trace);
    free(pack);
    q3_test_remove(directory);
    return 0;
}

static const cJSON *prompt_at(int index)
{
    return q3_test_element(q3_test_member(reference, "prompts"), index);
}

// Fails unless the object has just these members, in this order.
static void expect_members(const cJSON *object, const char *names)
{
    char *found = q3_test_path("%s", "");
    for (const cJSON *item = object->child; item; item = item->next) {
        char *longer = q3_test_path("%s%s%s", found, *found ? " " : "", item->string);
        free(found);
        found = longer;
    }
    assert_string_equal(found, names);
    free(found);
}

// ---- what must not change the output ----

// 160 ids.
static char *many_ids(void)
{
    char *ids = calloc(1, 160 * 5 + 1), *at = ids;
    for (unsigned i = 0; i < 160; i++)
        at += sprintf(at, "%u ", 100 + i * 7 % 900);
    return ids;
}

// Fails unless the logits with these options are, to the byte, `expected`.
static void expect_logits(const char *expected, const char *ids, const char *a, const char *b,
                          const char *c, const char *d, const char *e, const char *f)
{
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "logits", pack, "--ids", ids, "-c",
                                        "256", a, b, c, d, e, f, NULL);
    assert_string_equal(result.out, expected);
    q3_test_expect(result, 0, "");
}

static char *logits(const char *ids, const char *option, const char *value)
{
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "logits", pack, "--ids", ids, "-c",
                                        "256", option, value, NULL);
    char *text = q3_test_path("%s", result.out);
    q3_test_expect(result, 0, "");
    return text;
}

static void test_reading(void **state)
{
    (void)state;
    char *ids = many_ids(), *expected = logits(ids, NULL, NULL);
    static const char *const modes[] = {"buffered", "direct"};
    static const char *const readers[] = {"1", "3", "64"};
    expect_logits(expected, ids, "--io", "auto", "-m", "24M", NULL, NULL);
    for (size_t i = 0; i < 2; i++)
        for (size_t j = 0; j < 3; j++)
            expect_logits(expected, ids, "--io", modes[i], "--readers", readers[j], "-m", "24M");
    free(expected);
    free(ids);
}

static void test_batches(void **state)
{
    (void)state;
    static const char *const batches[] = {"1", "7", "64", "8192"};
    char *ids = many_ids();
    for (q3_cpu_level level = Q3_CPU_C; level <= Q3_CPU_AVX512 && level <= q3_cpu_detected();
         level++) {
        const char *name = q3_cpu_name(level);
        char *expected = logits(ids, "--cpu", name);
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
            expect_logits(expected, ids, "--cpu", name, "--batch", batches[i], NULL, NULL);
        free(expected);
    }
    free(ids);
}

static char *prompt_ids(int index)
{
    char *ids = cJSON_PrintUnformatted(q3_test_member(prompt_at(index), "ids"));
    ids[0] = ids[strlen(ids) - 1] = ' ';
    return ids;
}

// Keys and values in bf16 move logits a little, and no answer.
static void test_narrow_keys(void **state)
{
    (void)state;
    double most = 0;
    for (int i = 0; i < 12; i++) {
        char *ids = prompt_ids(i), *text = logits(ids, "--kv", "bf16");
        cJSON *json = q3_test_parse_json(text);
        const cJSON *expected = q3_test_member(prompt_at(i), "last_logits")->child;
        for (const cJSON *x = q3_test_member(json, "logits")->child; x; x = x->next) {
            most = fmax(most, fabs(x->valuedouble - expected->valuedouble));
            expected = expected->next;
        }
        cJSON_Delete(json);
        free(text);
        cJSON_free(ids);
    }
    assert_true(most > 5e-4);
    assert_true(most < 0.1);
    for (int i = 0; i < 12; i++) {
        char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(i), "greedy_text"));
        q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "--kv", "bf16",
                                            "-p", q3_test_string(prompt_at(i), "user"), NULL);
        assert_string_equal(result.out, expected);
        q3_test_expect(result, 0, "");
        free(expected);
    }
}

static void test_io_statistics(void **state)
{
    (void)state;
    static const struct {
        const char *io, *memory, *readers;
        bool probed;
        const char *found; // NULL: either
        int found_readers; // 0: any
    } cases[] = {
        {"auto", "1G", NULL, false, "buffered", 4}, {"auto", "1G", "2", false, "buffered", 2},
        {"direct", "1G", NULL, false, "direct", 4}, {"auto", "20M", NULL, true, NULL, 0},
        {"auto", "20M", "3", true, NULL, 3},        {"direct", "20M", NULL, true, "direct", 0},
        {"direct", "20M", "5", false, "direct", 5}, {"buffered", "20M", "1", false, "buffered", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_test_result result =
            q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2 3", "-c", "64", "--stats",
                        "json", "--io", cases[i].io, "-m", cases[i].memory,
                        cases[i].readers ? "--readers" : NULL, cases[i].readers, NULL);
        cJSON *json = q3_test_parse_json(result.err);
        assert_int_equal(result.code, 0);
        assert_int_equal(cJSON_IsTrue(q3_test_member(json, "io_probed")), cases[i].probed);
        if (cases[i].found)
            assert_string_equal(q3_test_string(json, "io"), cases[i].found);
        if (cases[i].found_readers)
            assert_int_equal((int)q3_test_number(json, "readers"), cases[i].found_readers);
        assert_true(q3_test_number(json, "readers") >= 1 && q3_test_number(json, "readers") <= 8);
        cJSON_Delete(json);
        q3_test_result_free(&result);
    }
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2 3",
                                        "--stats", "text", "--readers", "1", NULL);
    assert_non_null(strstr(result.err, "\n         buffered, 1 reader\nmemory   "));
    // All fit: every expert of these three tokens is at its first use.
    assert_non_null(strstr(result.err, "experts  0 hits, "));
    assert_non_null(strstr(result.err, " misses (0.0 % hits)\n         "));
    assert_non_null(strstr(result.err, " at their first use, not kept\nread     "));
    q3_test_result_free(&result);
    result = q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, "-t", "1", "-c", "64", "-m", "1G", NULL);
    assert_non_null(strstr(result.out, "  128 of 128 a layer\npassing "));
    assert_non_null(strstr(result.out, "  8 experts\nin all "));
    q3_test_expect(result, 0, "");
    result = q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2 3", "--stats", "text",
                         "--io", "direct", "-m", "20M", "-c", "64", NULL);
    assert_non_null(strstr(result.err, ", as a probe of the disk says\nmemory   "));
    q3_test_result_free(&result);
}

// ---- traces ----

static cJSON *replay(const char *option, const char *value)
{
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, "--json", option, value, NULL);
    cJSON *json = q3_test_parse_json(result.out);
    q3_test_expect(result, 0, "");
    return json;
}

// A cache does what its replay says, to the hit.
static void test_replay_is_exact(void **state)
{
    (void)state;
    static const char *const budgets[] = {"20M", "21M", "24M", "1G"};
    char slots[32];
    for (size_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        q3_test_result result =
            q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "-t", "1", "-c",
                        "256", "--json", "--trace", trace, "-m", budgets[i], NULL);
        cJSON *answer = q3_test_parse_json(result.out);
        const cJSON *statistics = q3_test_member(answer, "statistics");
        q3_test_expect(result, 0, "");
        snprintf(slots, sizeof slots, "%.0f", q3_test_number(statistics, "expert_slots_a_layer"));
        cJSON *json = replay("--slots", slots);
        expect_members(json, "tokens batches step slots");
        // The prompt's 19 tokens at once, then the answer's 106 without the last.
        assert_int_equal((int)q3_test_number(json, "tokens"), 19 + 105);
        assert_int_equal((int)q3_test_number(json, "batches"), 1 + 105);
        const cJSON *row = q3_test_member(json, "slots")->child;
        expect_members(row, "slots lru lrfu optimal");
        expect_members(q3_test_member(row, "lru"), "hits misses hit_rate");
        const cJSON *ours = q3_test_member(row, "lrfu");
        // Where all fit, an expert passes when it is used first, and is kept from the second time
        // on.
        const bool all = q3_test_number(row, "slots") == 128;
        const double hits = q3_test_number(statistics, "expert_hits"),
                     misses = q3_test_number(statistics, "expert_misses"),
                     passed = q3_test_number(statistics, "experts_passed");
        assert_true(q3_test_number(ours, "misses") == (all ? passed : misses));
        assert_true(q3_test_number(ours, "hits") == hits + (all ? misses - passed : 0));
        assert_true(all ? misses > passed && misses <= 2 * passed : passed == 0);
        assert_true(q3_test_number(q3_test_member(row, "optimal"), "hits") >=
                    q3_test_number(ours, "hits"));
        cJSON_Delete(json);
        // The same slots from the budget.
        q3_test_result again = q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, "--json", "-t",
                                           "1", "-c", "256", "-m", budgets[i], NULL);
        json = q3_test_parse_json(again.out);
        row = q3_test_member(json, "slots")->child;
        assert_true(q3_test_number(row, "slots") ==
                    q3_test_number(statistics, "expert_slots_a_layer"));
        assert_true(q3_test_number(q3_test_member(row, "lrfu"), "hits") ==
                    hits + (all ? misses - passed : 0));
        q3_test_expect(again, 0, "");
        cJSON_Delete(json);
        cJSON_Delete(answer);
    }
}

static void test_replay_table(void **state)
{
    (void)state;
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1401 282 198 447",
                               "--cpu", "c", "--trace", trace, NULL),
                   0, "");
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, "--slots",
                                        "8,128", "--step", "1", NULL);
    assert_int_equal(
        strncmp(result.out,
                "4 tokens in 1 batches; % of the experts needed that were there\n"
                "   slots      lru     lrfu  optimal\n"
                "       8 ",
                strlen("4 tokens in 1 batches; % of the experts needed that were there\n"
                       "   slots      lru     lrfu  optimal\n"
                       "       8 ")),
        0);
    q3_test_expect(result, 0, "");
    cJSON *json = replay("--step", "1");
    const cJSON *slots = q3_test_member(json, "slots");
    assert_int_equal(cJSON_GetArraySize(slots), 9);
    const cJSON *last = q3_test_element(slots, 8);
    assert_int_equal((int)q3_test_number(last, "slots"), 128);
    // All that is needed is read once, whatever the policy.
    assert_true(q3_test_number(q3_test_member(last, "lru"), "misses") ==
                q3_test_number(q3_test_member(last, "optimal"), "misses"));
    assert_true(q3_test_number(q3_test_member(last, "lru"), "hits") +
                    q3_test_number(q3_test_member(last, "lru"), "misses") ==
                4 * 6 * 8);
    cJSON_Delete(json);
    // At once, nothing is there, and nothing is needed twice.
    json = replay("--slots", "128");
    const cJSON *row = q3_test_member(json, "slots")->child;
    assert_true(q3_test_number(q3_test_member(row, "lru"), "hits") == 0);
    cJSON_Delete(json);
}

// A conversation that is interrupted leaves the trace of what was computed.
static void test_interrupted_trace(void **state)
{
    (void)state;
    int to[2], from[2], status;
    char byte;
    remove(trace);
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        close(to[1]);
        close(from[0]);
        execl(Q3_TEST_RUN, "q3-run", "chat", pack, "--trace", trace, "-n", "20", (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0);
    close(to[0]);
    close(from[1]);
    assert_int_equal(write(to[1], STORY_PROMPT "\n", strlen(STORY_PROMPT) + 1),
                     strlen(STORY_PROMPT) + 1);
    do
        assert_int_equal(read(from[0], &byte, 1), 1);
    while (byte != '\n');
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 130);
    close(to[1]);
    close(from[0]);
    cJSON *json = replay(NULL, NULL);
    assert_int_equal((int)q3_test_number(json, "tokens"), 19 + 19);
    cJSON_Delete(json);
}

static void write_trace(uint64_t change, uint32_t layers, uint32_t tokens)
{
    // The header of a real one has the model's hash.
    q3_error err;
    q3_trace real;
    q3_trace_writer *writer;
    static const uint32_t chosen[8] = {0, 1, 2, 3, 4, 5, 6, 7}, counts[1] = {8};
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2", "--trace", trace, NULL), 0,
        "");
    assert_true(q3_trace_read(trace, &real, &err));
    real.model.low += change;
    const q3_config config = {
        .num_hidden_layers = layers, .num_experts = 128, .num_experts_per_tok = 8};
    assert_true(q3_trace_create(trace, &config, real.model, &writer, &err));
    for (uint32_t t = 0; t < tokens; t++) {
        q3_trace_begin(writer, t, 1);
        for (uint32_t i = 0; i < layers; i++)
            q3_trace_add(writer, chosen, counts);
    }
    assert_true(q3_trace_publish(writer, &err));
    q3_trace_free(&real);
}

static void expect_replay(int code, const char *format)
{
    char *message = q3_test_path(format, trace);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, NULL), code, message);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, "--trace", trace, NULL), code,
                   message);
    free(message);
}

static void test_wrong_traces(void **state)
{
    (void)state;
    write_trace(0, 6, 0);
    expect_replay(5, "q3-run: %s: has no tokens\n");
    write_trace(0, 5, 1);
    expect_replay(4, "q3-run: %s: expected 6 layers of 128 experts, found 5 of 128\n");
    write_trace(1, 6, 1);
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, NULL);
    char *message = q3_test_path("q3-run: %s: a trace of another model: expected ", trace);
    assert_int_equal(result.code, 3);
    assert_int_equal(strncmp(result.err, message, strlen(message)), 0);
    q3_test_result_free(&result);
    free(message);
    q3_test_write_text(trace, "q3trace\n");
    expect_replay(4, "q3-run: %s: expected a trace of at least 80 bytes, found 8 bytes\n");
    remove(trace);
    expect_replay(1, "q3-run: %s: cannot open: No such file or directory\n");
    message = q3_test_path("q3-run: %s/no/trace.part: cannot create: No such file or directory\n",
                           directory);
    char *path = q3_test_path("%s/no/trace", directory);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2", "--trace", path, NULL), 1,
        message);
    free(path);
    free(message);
}

// A command that fails leaves no trace.
static void test_no_trace(void **state)
{
    (void)state;
    remove(trace);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1536 1", "--trace", trace, NULL), 2,
        "q3-run: token id 1536 is not in the vocabulary of 1536\n");
    assert_int_equal(access(trace, F_OK), -1);
    char *part = q3_test_path("%s.part", trace);
    assert_int_equal(access(part, F_OK), -1);
    free(part);
}

// ---- plan ----

enum { EXPERT_SLOT_BYTES = 20480 };

#define PLAN_OPTIONS "-t", "1", "-c", "64", "--cpu", "c", "-m", "14M"

static void test_plan(void **state)
{
    (void)state;
    static const char memory[] = "process                  9,394,176\n"
                                 "dense weights              793,344\n"
                                 "embedding                  524,288\n"
                                 "KV cache                   196,608  64 positions\n"
                                 "scratch                  2,102,592\n"
                                 "experts                  1,658,880  13 of 128 a layer, 3 ahead\n"
                                 "in all                  14,669,888\n"
                                 "budget                  14,680,064\n"
                                 "minimum                 13,133,888  1 a layer\n"
                                 "\n"
                                 "A token goes through 1.8 MB of weights and 98.3 kB of keys and\n"
                                 "values (half the context).\n"
                                 "Memory gives ";
    static const char estimate[] =
        "Hits are an estimate from another model; --trace gives this one's.\n"
        "\n"
        "  slots     memory    hits  disk/token    memory      disk  tokens/s\n"
        "     13    14.7 MB   48.4%    405.6 kB ";
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, PLAN_OPTIONS, NULL);
    assert_int_equal(strncmp(result.out, memory, strlen(memory)), 0);
    assert_non_null(strstr(result.out, estimate));
    assert_non_null(strstr(result.out, "\n      8    14.0 MB   37.0%    495.5 kB "));
    assert_non_null(strstr(result.out, "\n    128    28.7 MB  100.0%         0 B "));
    q3_test_expect(result, 0, "");
}

static void test_plan_json(void **state)
{
    (void)state;
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, PLAN_OPTIONS, "--json",
                                        "--slots", "8,128", "--kv", "bf16", NULL);
    cJSON *json = q3_test_parse_json(result.out);
    q3_test_expect(result, 0, "");
    expect_members(json, "memory context threads experts_a_layer expert_slots_a_layer "
                         "weight_bytes_a_token kv_bytes_a_token memory_bytes_per_second "
                         "disk_bytes_per_second expert_taking_seconds disk_was_cached io readers "
                         "experts_ahead hits_from "
                         "budgets");
    const cJSON *memory = q3_test_member(json, "memory");
    expect_members(memory,
                   "process dense embedding kv_cache scratch experts passing total budget minimum");
    assert_true(q3_test_number(memory, "kv_cache") == 98304);
    assert_true(q3_test_number(memory, "budget") == 14 << 20);
    assert_true(q3_test_number(json, "kv_bytes_a_token") == 49152);
    assert_true(q3_test_number(json, "memory_bytes_per_second") > 0);
    assert_true(q3_test_number(json, "disk_bytes_per_second") > 0);
    assert_true(q3_test_number(json, "expert_taking_seconds") > 0);
    assert_string_equal(q3_test_string(json, "hits_from"), "estimate");
    const cJSON *budgets = q3_test_member(json, "budgets");
    assert_int_equal(cJSON_GetArraySize(budgets), 3);
    const cJSON *first = q3_test_element(budgets, 0), *second = q3_test_element(budgets, 1),
                *third = q3_test_element(budgets, 2);
    expect_members(first, "expert_slots_a_layer memory hit_rate disk_bytes_a_token "
                          "memory_tokens_per_second disk_tokens_per_second tokens_per_second");
    const double slots = q3_test_number(json, "expert_slots_a_layer"),
                 ahead = q3_test_number(json, "experts_ahead");
    assert_true(q3_test_number(first, "memory") == q3_test_number(memory, "total"));
    assert_true(q3_test_number(first, "expert_slots_a_layer") == slots);
    assert_true(fabs(q3_test_number(second, "hit_rate") - 0.37) < 1e-12);
    const double one_a_layer =
        (q3_test_number(memory, "experts") - ahead * EXPERT_SLOT_BYTES) / slots;
    assert_true(q3_test_number(second, "memory") ==
                q3_test_number(memory, "minimum") + 7 * one_a_layer);
    const double seconds = 1 / q3_test_number(second, "memory_tokens_per_second") +
                           1 / q3_test_number(second, "disk_tokens_per_second") +
                           6 * 8 * (1 - 0.37) * q3_test_number(json, "expert_taking_seconds");
    assert_true(fabs(q3_test_number(second, "tokens_per_second") * seconds - 1) < 1e-9);
    assert_true(q3_test_number(third, "hit_rate") == 1);
    assert_true(q3_test_number(third, "disk_bytes_a_token") == 0);
    assert_true(cJSON_IsNull(q3_test_member(third, "disk_tokens_per_second")));
    assert_true(q3_test_number(third, "tokens_per_second") ==
                q3_test_number(third, "memory_tokens_per_second"));
    cJSON_Delete(json);
}

// With a trace the hits are those of its replay.
static void test_plan_with_trace(void **state)
{
    (void)state;
    q3_test_result run = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                     "--trace", trace, NULL);
    q3_test_result_free(&run);
    cJSON *replayed = replay("--step", "1");
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, "--json", "--slots",
                                        "8,12,16,24,32,48,64,96,128", "--trace", trace, NULL);
    cJSON *json = q3_test_parse_json(result.out);
    q3_test_expect(result, 0, "");
    assert_string_equal(q3_test_string(json, "hits_from"), "trace");
    for (int i = 0; i < 9; i++) {
        const cJSON *row = q3_test_element(q3_test_member(replayed, "slots"), i);
        assert_true(
            q3_test_number(q3_test_element(q3_test_member(json, "budgets"), i + 1), "hit_rate") ==
            q3_test_number(q3_test_member(row, "lrfu"), "hit_rate"));
    }
    cJSON_Delete(json);
    cJSON_Delete(replayed);
}

// Plan does not touch weights: it works where they are damaged.
static void test_plan_reads_no_weights(void **state)
{
    (void)state;
    char *copy = q3_test_path("%s/copy", directory);
    char *file = q3_test_path("%s/lm_head.q3p", copy);
    size_t size;
    q3_test_copy_tree(pack, copy, false);
    char *bytes = q3_test_read(file, &size);
    bytes[5000] ^= 1;
    q3_test_write(file, bytes, size);
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "plan", copy, NULL);
    q3_test_expect(result, 0, "");
    result = q3_test_run(NULL, Q3_TEST_RUN, "logits", copy, "--ids", "1", NULL);
    assert_int_equal(result.code, 4);
    q3_test_result_free(&result);
    free(bytes);
    free(file);
    free(copy);
}

// ---- bench ----

static void test_bench(void **state)
{
    (void)state;
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "bench", pack, "-p", "8", "-n", "4",
                                        "-r", "2", "-t", "1", "--cpu", "c", "--json", NULL);
    cJSON *json = q3_test_parse_json(result.out);
    q3_test_expect(result, 0, "");
    expect_members(json, "kernels threads weights expert_slots_a_layer io readers memory_budget "
                         "memory_planned memory_peak depth repetitions memory_bytes_per_second "
                         "prefill decode");
    assert_string_equal(q3_test_string(json, "kernels"), "c");
    assert_true(q3_test_number(json, "threads") == 1);
    assert_true(q3_test_number(json, "expert_slots_a_layer") == 128);
    assert_true(q3_test_number(json, "repetitions") == 2);
    assert_true(q3_test_number(json, "memory_bytes_per_second") > 0);
    assert_true(q3_test_number(json, "memory_peak") > 0);
    static const char *const names[] = {"prefill", "decode"};
    for (int i = 0; i < 2; i++) {
        const cJSON *series = q3_test_member(json, names[i]);
        expect_members(series, "tokens tokens_per_second slowest fastest bytes_per_second "
                               "expert_misses_per_token disk_bytes_per_token "
                               "disk_bytes_per_second disk_busy_share "
                               "disk_bytes_per_second_reading disk_bytes_per_second_alone "
                               "experts_read_ahead_per_token experts_read_ahead_used_per_token "
                               "unused_bytes_per_token");
        assert_true(q3_test_number(series, "tokens") == (i ? 4 : 8));
        assert_true(q3_test_number(series, "slowest") <=
                    q3_test_number(series, "tokens_per_second"));
        assert_true(q3_test_number(series, "tokens_per_second") <=
                    q3_test_number(series, "fastest"));
        assert_true(q3_test_number(series, "bytes_per_second") > 0);
    }
    cJSON_Delete(json);
    result = q3_test_run(NULL, Q3_TEST_RUN, "bench", pack, "-p", "0", "-n", "2", "-r", "1", "-d",
                         "5", "-t", "1", "--cpu", "c", NULL);
    assert_int_equal(
        strncmp(result.out,
                "c, 1 threads, plain weights, 128 slots a layer, buffered reading by 4, memory "
                "reads ",
                strlen("c, 1 threads, plain weights, 128 slots a layer, buffered reading by 4, "
                       "memory reads ")),
        0);
    assert_non_null(strstr(result.out, " bytes of memory planned, "));
    assert_non_null(strstr(
        result.out, "                tokens/s   slowest   fastest     GB/s of reads  misses/t\n"
                    "decode 2 "));
    assert_null(strstr(result.out, "prefill"));
    q3_test_expect(result, 0, "");
}

// Under a budget experts are read ahead. What is resident, what misses, and what is read for it do
// not depend on that, nor on how many readers there are. Only what is read around the page cache is
// read again.
static void test_bench_ahead(void **state)
{
    (void)state;
    static const char *const readers[] = {"1", "2", "5", "2"};
    double misses = 0, bytes = 0;
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        q3_test_result result = q3_test_run(
            NULL, Q3_TEST_RUN, "bench", pack, "-p", "0", "-n", "12", "-r", "2", "-t", "1", "-c",
            "64", "--cpu", "c", "-m", "14M", "--io", i < 3 ? "buffered" : "direct", "--readers",
            readers[i], "--json", "--trace", trace, NULL);
        cJSON *json = q3_test_parse_json(result.out);
        q3_test_expect(result, 0, "");
        assert_true(q3_test_number(json, "expert_slots_a_layer") >= 13);
        const cJSON *decode = q3_test_member(json, "decode");
        const double ahead = q3_test_number(decode, "experts_read_ahead_per_token");
        const double used = q3_test_number(decode, "experts_read_ahead_used_per_token");
        assert_true(used <= ahead && ahead <= 4 * 6);
        assert_true(ahead > used || q3_test_number(decode, "unused_bytes_per_token") == 0);
        assert_true(q3_test_number(decode, "disk_busy_share") > 0);
        assert_true(q3_test_number(decode, "disk_busy_share") <= 1);
        assert_true(q3_test_number(decode, "disk_bytes_per_second_reading") > 0);
        assert_true((q3_test_number(decode, "disk_bytes_per_second_alone") > 0) == (i == 3));
        if (i == 0) {
            misses = q3_test_number(decode, "expert_misses_per_token");
            bytes = q3_test_number(decode, "disk_bytes_per_token");
            assert_true(misses > 0 && bytes > 0);
        } else if (q3_test_number(json, "expert_slots_a_layer") == 13) {
            assert_true(q3_test_number(decode, "expert_misses_per_token") == misses);
            assert_true(q3_test_number(decode, "disk_bytes_per_token") == bytes);
        }
        cJSON_Delete(json);
    }
    remove(trace);
}

// A trace of a bench has what was fed: the depth, and each measurement and the one before.
static void test_bench_trace(void **state)
{
    (void)state;
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "bench", pack, "-p", "8", "-n", "4",
                                        "-r", "2", "-d", "5", "--trace", trace, NULL);
    q3_test_expect(result, 0, "");
    cJSON *json = replay(NULL, NULL);
    assert_int_equal((int)q3_test_number(json, "tokens"), 5 + 3 * 8 + 3 * 4);
    assert_int_equal((int)q3_test_number(json, "batches"), 1 + 3 + 3 * 4);
    cJSON_Delete(json);
}

// ---- wrong command lines ----

static void test_wrong_command_lines(void **state)
{
    (void)state;
    static const struct {
        const char *command, *a, *b, *c, *d;
        const char *message;
    } cases[] = {
        {"bench", "-p", "0", "-n", "0", "nothing to measure: --prompt-tokens and --tokens are 0"},
        {"bench", "-p", "8", "-c", "6", "64 tokens after a depth of 0 do not fit a context of 6"},
        {"bench", "-r", "0", NULL, NULL,
         "--repetitions: expected a whole number from 1 to 1000, found \"0\" (see q3-run bench "
         "--help)"},
        {"bench", "--batch", "8193", NULL, NULL,
         "--batch: expected a whole number from 1 to 8192, found \"8193\" (see q3-run bench "
         "--help)"},
        {"bench", "--readers", "65", NULL, NULL,
         "--readers: expected a whole number from 1 to 64, found \"65\" (see q3-run bench --help)"},
        {"bench", "--kv", "f16", NULL, NULL,
         "--kv: expected one of f32|bf16, found \"f16\" (see q3-run bench --help)"},
        {"bench", "--io", "mmap", NULL, NULL,
         "--io: expected one of auto|buffered|direct, found \"mmap\" (see q3-run bench --help)"},
        {"plan", "--slots", "8,129", NULL, NULL,
         "--slots: expected numbers from 1 to 128 such as 8,16,32, found \"8,129\""},
        {"plan", "--slots", "", NULL, NULL, "--slots: none given"},
        {"plan", "--prefer-pool", "1", NULL, NULL, "--prefer-pool needs a --pool"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *message = q3_test_path("q3-run: %s\n", cases[i].message);
        q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, cases[i].command, pack, cases[i].a,
                                   cases[i].b, cases[i].c, cases[i].d, NULL),
                       2, message);
        free(message);
    }
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, trace, "-m", "1G", "--slots", "8", NULL), 2,
        "q3-run: expected one of --memory and --slots\n");
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "replay", pack, NULL), 2,
        "q3-run: expected PACK TRACE, found 1 of 2 arguments (see q3-run replay --help)\n");
    char *message =
        q3_test_path("q3-run: %s: a context of 5064 tokens is more than the model's 4096\n", pack);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "bench", pack, "-p", "8", "-d", "5000", NULL), 6,
                   message);
    free(message);
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "plan", pack, "-m", "1M", NULL);
    assert_int_equal(result.code, 6);
    assert_non_null(strstr(result.err, "q3-run: memory budget of 1,048,576 bytes: at least "));
    q3_test_result_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reading),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_narrow_keys),
        cmocka_unit_test(test_io_statistics),
        cmocka_unit_test(test_replay_is_exact),
        cmocka_unit_test(test_replay_table),
        cmocka_unit_test(test_interrupted_trace),
        cmocka_unit_test(test_wrong_traces),
        cmocka_unit_test(test_no_trace),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_plan_json),
        cmocka_unit_test(test_plan_with_trace),
        cmocka_unit_test(test_plan_reads_no_weights),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_bench_ahead),
        cmocka_unit_test(test_bench_trace),
        cmocka_unit_test(test_wrong_command_lines),
    };
    return cmocka_run_group_tests(tests, make_pack, remove_pack);
}
