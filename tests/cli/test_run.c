// SPDX-License-Identifier: Apache-2.0
//
// q3-run as a person uses it: answers, conversations, scores, and what it says to wrong pools,
// wrong command lines and damaged packs.
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STORY_PROMPT "Tell me a story about a brave fox named Tom."

static char *directory, *pack;
static cJSON *reference;

static int make_pack(void **state)
{
    (void)state;
    directory = q3_test_directory();
    pack = q3_test_path("%s/pack", directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--quiet", NULL), 0,
                   "");
    reference = q3_test_load_json(Q3_TEST_REFERENCE);
    return 0;
}

static int remove_pack(void **state)
{
    (void)state;
    cJSON_Delete(reference);
    free(pack);
    q3_test_remove(directory);
    return 0;
}

static const cJSON *prompt_at(int index)
{
    return q3_test_element(q3_test_member(reference, "prompts"), index);
}

// Fails unless the program ended well and wrote this.
static void expect_output(q3_test_result result, const char *out)
{
    assert_string_equal(result.out, out);
    q3_test_expect(result, 0, "");
}

// ---- answers ----

static void test_generate(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(i), "greedy_text"));
        expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p",
                                  q3_test_string(prompt_at(i), "user"), NULL),
                      expected);
        if (i == 0)
            expect_output(q3_test_run(STORY_PROMPT, Q3_TEST_RUN, "generate", pack, "-p", "-", NULL),
                          expected);
        free(expected);
    }
}

static cJSON *generate_json(const char *option, const char *value)
{
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                        "--json", option, value, NULL);
    cJSON *json = q3_test_parse_json(result.out);
    q3_test_expect(result, 0, "");
    return json;
}

static void expect_stop(const char *option, const char *value, const char *reason, int tokens)
{
    cJSON *json = generate_json(option, value);
    assert_string_equal(q3_test_string(json, "stop_reason"), reason);
    assert_int_equal(cJSON_GetArraySize(q3_test_member(json, "ids")), tokens);
    cJSON_Delete(json);
}

static void test_stops(void **state)
{
    (void)state;
    expect_stop("--max-tokens", "7", "length", 7);
    expect_stop("--max-tokens", "0", "length", 0);
    expect_stop("--max-tokens", "106", "stop", 106);
    expect_stop("--context", "25", "context", 7);
    expect_stop("--context", "19", "context", 1);
    static const char begin[] = "Once upon a time there was a brave ";
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--stop",
                              "fox", "--stop", "lived", NULL),
                  "Once upon a time there was a brave \n");
    // A stop text that begins in one token and ends in another.
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--stop",
                              "ve fox na", NULL),
                  "Once upon a time there was a bra\n");
    // The beginning of a stop text that does not come is not lost.
    char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(0), "greedy_text"));
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--stop",
                              "you find.!", NULL),
                  expected);
    free(expected);
    cJSON *json = generate_json("--stop", "fox");
    assert_string_equal(q3_test_string(json, "stop_reason"), "stop_text");
    assert_string_equal(q3_test_string(json, "text"), begin);
    cJSON_Delete(json);
}

static void test_statistics(void **state)
{
    (void)state;
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                        "--json", "--stats", "json", NULL);
    assert_int_equal(result.code, 0);
    cJSON *json = q3_test_parse_json(result.out), *line = q3_test_parse_json(result.err);
    assert_true(cJSON_Compare(q3_test_member(json, "ids"),
                              q3_test_member(prompt_at(0), "greedy_ids"), true));
    assert_string_equal(q3_test_string(json, "text"), q3_test_string(prompt_at(0), "greedy_text"));
    const cJSON *statistics = q3_test_member(json, "statistics");
    assert_int_equal((int)q3_test_number(statistics, "prompt_tokens"), 19);
    assert_int_equal((int)q3_test_number(statistics, "answer_tokens"), 106);
    assert_int_equal((int)q3_test_number(statistics, "expert_slots_a_layer"), 128);
    assert_int_equal((int)q3_test_number(statistics, "pool_experts"), 768);
    const double passed = q3_test_number(statistics, "experts_passed");
    assert_true(passed > 0 && passed <= 768);
    assert_true(q3_test_number(statistics, "expert_misses") > passed);
    assert_true(q3_test_number(statistics, "expert_misses") <= 2 * passed);
    assert_true(q3_test_number(statistics, "expert_bytes_read") > 0);
    assert_true(q3_test_number(statistics, "memory_peak") > 0);
    assert_string_equal(q3_test_string(statistics, "answer_ids_hash"),
                        "deaa6f38d71be7f8cb323fa3466f4bc0");
    assert_string_equal(q3_test_string(line, "answer_ids_hash"),
                        "deaa6f38d71be7f8cb323fa3466f4bc0");
    assert_true(strchr(result.err, '\n') == result.err + strlen(result.err) - 1);
    cJSON_Delete(line);
    cJSON_Delete(json);
    q3_test_result_free(&result);
}

static void test_sampling(void **state)
{
    (void)state;
    q3_test_result first = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                       "--temperature", "2", "--seed", "7", NULL);
    q3_test_result same = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                      "--temperature", "2", "--seed", "7", "--threads", "3", NULL);
    q3_test_result other = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                       "--temperature", "2", "--seed", "8", NULL);
    assert_string_equal(first.out, same.out);
    assert_string_not_equal(first.out, other.out);
    q3_test_expect(first, 0, "");
    q3_test_expect(same, 0, "");
    q3_test_expect(other, 0, "");
    // One candidate: greedy again.
    char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(0), "greedy_text"));
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                              "--temperature", "2", "--top-k", "1", NULL),
                  expected);
    free(expected);
}

static void test_raw_and_ids(void **state)
{
    (void)state;
    char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(3), "greedy_text"));
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "--raw", "-p",
                              q3_test_string(prompt_at(3), "text"), NULL),
                  expected);
    char *ids = cJSON_PrintUnformatted(q3_test_member(prompt_at(3), "ids"));
    ids[strlen(ids) - 1] = 0;
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "--ids", ids + 1, NULL),
                  expected);
    cJSON_free(ids);
    free(expected);
}

static void test_chat(void **state)
{
    (void)state;
    const char *story = q3_test_string(prompt_at(0), "greedy_text");
    const char *sum = q3_test_string(prompt_at(3), "greedy_text");
    char *input = q3_test_path("%s\r\n\n/reset\n%s\n/exit\n%s\n", STORY_PROMPT,
                               q3_test_string(prompt_at(3), "user"), STORY_PROMPT);
    char *expected = q3_test_path("%s\n%s\n", story, sum);
    expect_output(q3_test_run(input, Q3_TEST_RUN, "chat", pack, NULL), expected);
    free(expected);
    free(input);
    // Two turns give what the whole conversation as one prompt gives.
    input = q3_test_path("%s\n%s", STORY_PROMPT, q3_test_string(prompt_at(3), "user"));
    char *whole = q3_test_path("%s%s<|im_end|>\n%s", q3_test_string(prompt_at(0), "text"), story,
                               q3_test_string(prompt_at(3), "text"));
    q3_test_result turns = q3_test_run(input, Q3_TEST_RUN, "chat", pack, NULL);
    q3_test_result prompt =
        q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "--raw", "-p", whole, NULL);
    expected = q3_test_path("%s\n%s", story, prompt.out);
    assert_string_equal(turns.out, expected);
    free(expected);
    free(whole);
    free(input);
    q3_test_expect(turns, 0, "");
    q3_test_expect(prompt, 0, "");
    q3_test_expect(q3_test_run("/what\n/help\n", Q3_TEST_RUN, "chat", pack, NULL), 0,
                   "unknown command /what: /help lists them\n"
                   "Type a line to say something to the model.\n"
                   "  /reset  forget the conversation\n"
                   "  /help   print this text\n"
                   "  /exit   end (so does Ctrl-D)\n"
                   "Ctrl-C stops an answer.\n");
    // The second turn no longer fits.
    input = q3_test_path("%s\n%s\n", STORY_PROMPT, STORY_PROMPT);
    q3_test_expect(
        q3_test_run(input, Q3_TEST_RUN, "chat", pack, "--context", "40", "-n", "10", NULL), 2,
        "q3-run: the conversation has 50 tokens, more than the context of 40 (--context takes up "
        "to 4096)\n");
    free(input);
}

// Starts the program with pipes; the caller reads out and closes both.
static pid_t start_chat(int *in, int *out)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0)
        fail_msg("pipe: %s", strerror(errno));
    const pid_t child = fork();
    if (child == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        dup2(from[1], STDERR_FILENO);
        execl(Q3_TEST_RUN, "q3-run", "chat", pack, (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0);
    close(to[0]);
    close(from[1]);
    *in = to[1];
    *out = from[0];
    return child;
}

static void read_until(int fd, char *text, size_t capacity, const char *end)
{
    size_t used = 0;
    const size_t length = strlen(end);
    for (;;) {
        assert_true(used + 1 < capacity);
        const ssize_t count = read(fd, text + used, 1);
        if (count <= 0)
            break;
        text[++used] = 0;
        if (used >= length && strcmp(text + used - length, end) == 0)
            break;
    }
    text[used] = 0;
}

static void test_interrupt(void **state)
{
    (void)state;
    int in, out, status;
    char text[4096];
    const pid_t child = start_chat(&in, &out);
    char *line = q3_test_path("%s\n", q3_test_string(prompt_at(3), "user"));
    assert_int_equal(write(in, line, strlen(line)), strlen(line));
    read_until(out, text, sizeof text, "\n");
    char *expected = q3_test_path("%s\n", q3_test_string(prompt_at(3), "greedy_text"));
    assert_string_equal(text, expected);
    kill(child, SIGINT);
    read_until(out, text, sizeof text, "\n");
    assert_string_equal(text, "q3-run: interrupted\n");
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 130);
    free(expected);
    free(line);
    close(in);
    close(out);
}

static void test_full_disk(void **state)
{
    (void)state;
    char *command = q3_test_path("exec '%s' generate '%s' -p 'Tell me a story.' > /dev/full",
                                 Q3_TEST_RUN, pack);
    q3_test_expect(q3_test_run(NULL, "/bin/sh", "-c", command, NULL), 1,
                   "q3-run: standard output: cannot write: No space left on device\n");
    free(command);
}

// ---- logits, scores, tokens ----

static void test_logits(void **state)
{
    (void)state;
    char *ids = cJSON_PrintUnformatted(q3_test_member(prompt_at(0), "ids"));
    ids[strlen(ids) - 1] = 0;
    q3_test_result result = q3_test_run(NULL, Q3_TEST_RUN, "logits", pack, "--ids", ids + 1, NULL);
    cJSON_free(ids);
    cJSON *json = q3_test_parse_json(result.out);
    const cJSON *found = q3_test_member(json, "logits"), *item;
    const cJSON *expected = q3_test_member(prompt_at(0), "last_logits");
    assert_int_equal(cJSON_GetArraySize(found), cJSON_GetArraySize(expected));
    const cJSON *other = expected->child;
    cJSON_ArrayForEach(item, found)
    {
        assert_true(fabs(item->valuedouble - other->valuedouble) <= 2e-4);
        other = other->next;
    }
    cJSON_Delete(json);
    q3_test_expect(result, 0, "");
}

static void test_score(void **state)
{
    (void)state;
    const cJSON *text;
    char *file = q3_test_path("%s/text.txt", directory);
    cJSON_ArrayForEach(text, q3_test_member(reference, "nll"))
    {
        q3_test_write_text(file, q3_test_string(text, "text"));
        q3_test_result result =
            q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--file", file, "--json", NULL);
        cJSON *json = q3_test_parse_json(result.out);
        assert_true(fabs(q3_test_number(json, "mean_nll") - q3_test_number(text, "mean_nll")) <=
                    1e-4);
        assert_int_equal((int)q3_test_number(json, "tokens"),
                         cJSON_GetArraySize(q3_test_member(text, "ids")) - 1);
        cJSON_Delete(json);
        q3_test_expect(result, 0, "");
    }
    free(file);
    expect_output(q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1401 282 198 447",
                              "--cpu", "c", NULL),
                  "0.353452 nats a token, perplexity 1.4240, 3 tokens\n");
}

static void test_tokenize(void **state)
{
    (void)state;
    expect_output(
        q3_test_run(NULL, Q3_TEST_RUN, "tokenize", pack, "--text", "Tell me<|im_end|>\n", NULL),
        "447 369 1402 198\n");
    expect_output(q3_test_run("447 369 1402 198", Q3_TEST_RUN, "tokenize", Q3_TEST_MODEL_DIR,
                              "--decode", NULL),
                  "Tell me<|im_end|>\n");
    const char *strings = "\"a\\u0000b\\ud83d\\ude00 \\\"x\\n\"\n\"caf\\u00e9\"\n\"\"\n";
    const char *ids =
        "[64, 188, 65, 172, 253, 246, 222, 303, 87, 198]\n[66, 64, 69, 127, 102]\n[]\n";
    expect_output(q3_test_run(strings, Q3_TEST_RUN, "tokenize", pack, "--json-lines", NULL), ids);
    expect_output(q3_test_run(ids, Q3_TEST_RUN, "tokenize", pack, "--json-lines", "--decode", NULL),
                  "\"a\\u0000b\xf0\x9f\x98\x80 \\\"x\\n\"\n\"caf\xc3\xa9\"\n\"\"\n");
}

static void test_wrong_lines(void **state)
{
    (void)state;
    static const char *const strings[] = {"abc",         "\"a",          "\"",          "\"\\x\"",
                                          "\"\\ud800\"", "\"\\ud83dx\"", "\"\\udc00\"", "\"\\u12\"",
                                          "\"a\" \"b\"", "\"a\\\"",      "\"\xff\"",    "\"a\tb\"",
                                          "[1]"};
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        q3_test_expect(q3_test_run(strings[i], Q3_TEST_RUN, "tokenize", pack, "--json-lines", NULL),
                       4, "q3-run: standard input: line 1: expected one JSON string\n");
    static const struct {
        const char *line, *message;
    } arrays[] = {
        {"abc", "not valid JSON: not a JSON value at byte 0"},
        {"{}", "expected an array of ids"},
        {"[1.5]", "[0]: expected an integer from 0 to 4294967295, found 1.5"},
        {"[1, -1]", "[1]: expected an integer from 0 to 4294967295, found -1"},
        {"[99999]", "token 99999: expected an id below 1433"},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        char *message = q3_test_path("q3-run: standard input: line 1: %s\n", arrays[i].message);
        q3_test_expect(q3_test_run(arrays[i].line, Q3_TEST_RUN, "tokenize", pack, "--json-lines",
                                   "--decode", NULL),
                       4, message);
        free(message);
    }
}

// ---- wrong command lines ----

static void test_wrong_command_lines(void **state)
{
    (void)state;
#define SEE_GENERATE " (see q3-run generate --help)"
    static const struct {
        const char *command, *option, *value, *option2, *value2;
        int code;
        const char *message;
    } cases[] = {
        {"generate", NULL, NULL, NULL, NULL, 2, "expected one of --prompt and --ids"},
        {"generate", "-p", "a", "--ids", "1", 2, "expected one of --prompt and --ids"},
        {"generate", "--ids", "x", NULL, NULL, 2, "expected token ids, found \"x\""},
        {"generate", "--ids", "1 -2", NULL, NULL, 2, "expected token ids, found \"-2\""},
        {"generate", "--ids", " ", NULL, NULL, 2, "no token ids given"},
        {"generate", "--ids", "1536", NULL, NULL, 2,
         "token id 1536 is not in the vocabulary of 1536"},
        {"generate", "--ids", "1", "--system", "x", 2,
         "--system does not go with --ids, which are fed as given"},
        {"generate", "-p", "a", "--context", "0", 2,
         "--context: expected a whole number from 1 to 16777216, found \"0\"" SEE_GENERATE},
        {"generate", "-p", "a", "--context", "4", 2,
         "the prompt has 9 tokens, more than the context of 4 (--context takes up to 4096)"},
        {"generate", "-p", "a", "--threads", "0", 2,
         "--threads: expected a whole number from 1 to 256, found \"0\"" SEE_GENERATE},
        {"generate", "-p", "a", "--memory", "lots", 2,
         "--memory: expected a size such as 800M or 4G, found \"lots\"" SEE_GENERATE},
        {"generate", "-p", "a", "--stop", "", 2, "--stop: the text is empty"},
        {"generate", "-p", "a", "--stop", "a\xff", 2, "--stop: \"a\\xff\" is not UTF-8"},
        {"generate", "-p", "a", "-n", "x", 2,
         "--max-tokens: expected a whole number from 0 to 16777216, found \"x\"" SEE_GENERATE},
        {"generate", "-p", "a", "--temperature", "-1", 2,
         "--temperature: expected a number from 0 to 100, found \"-1\"" SEE_GENERATE},
        {"generate", "-p", "a", "--top-p", "2", 2,
         "--top-p: expected a number from 0 to 1, found \"2\"" SEE_GENERATE},
        {"generate", "-p", "a", "--stats", "xml", 2,
         "--stats: expected one of text|json, found \"xml\"" SEE_GENERATE},
        {"generate", "-p", "", "--raw", NULL, 2, "the prompt is empty"},
        {"generate", "-p", "a\xff", NULL, NULL, 4,
         "text: expected UTF-8, found the byte 0xff at offset 18"},
        {"score", NULL, NULL, NULL, NULL, 2, "expected one of --file and --ids"},
        {"score", "--ids", "1", NULL, NULL, 2, "expected at least 2 tokens to score, found 1"},
        {"logits", NULL, NULL, NULL, NULL, 2, "expected --ids"},
        {"tokenize", "--text", "a", "--json-lines", NULL, 2,
         "--json-lines reads standard input, it does not go with --text"},
        {"tokenize", "--decode", "--text", "a", NULL, 2, "expected token ids, found \"a\""},
        {"run", NULL, NULL, NULL, NULL, 2, "unknown command \"run\" (see q3-run --help)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *message = q3_test_path("q3-run: %s\n", cases[i].message);
        q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, cases[i].command, pack, cases[i].option,
                                   cases[i].value, cases[i].option2, cases[i].value2, NULL),
                       cases[i].code, message);
        free(message);
    }
    char *message =
        q3_test_path("q3-run: %s: a context of 5000 tokens is more than the model's 4096\n", pack);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", "a", "-c", "5000", NULL),
                   6, message);
    free(message);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", "a", "-m", "1M", "-t",
                               "1", "-c", "64", "--cpu", "c", NULL),
                   6,
                   "q3-run: memory budget of 1,048,576 bytes: at least 13,133,888 are needed: "
                   "dense weights 793,344, KV cache for 64 positions 196,608, one expert a layer "
                   "122,880, program and scratch 12,021,056\n");
}

// ---- wrong pools ----

static void test_wrong_pools(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{", ": not valid JSON: the text ends too early at byte 1"},
        {"[]", ": expected an object, found an array of 0"},
        {"{}", ": \"layers\" is missing"},
        {"{\"layers\": 3}", ": layers: expected an array, found 3"},
        {"{\"layers\": [[1]]}", ": layers: expected the model's 6 layers, found 1"},
        {"{\"layers\": [[1],[1],[1],[1],[1],[1],[1]]}",
         ": layers: expected the model's 6 layers, found 7"},
        {"{\"layers\": [[1],[1],[1],[1],[1],[]]}",
         ": layers[5]: expected a list of at least one expert"},
        {"{\"layers\": [[1],[1],[1],[1],[1],7]}",
         ": layers[5]: expected a list of at least one expert"},
        {"{\"layers\": [[1],[1],[1],[1],[1],[1,2,1]]}", ": layers[5][2]: expert 1 is there twice"},
        {"{\"layers\": [[1],[1],[1],[128],[1],[1]]}",
         ": layers[3][0]: expected an integer from 0 to 127, found 128"},
        {"{\"layers\": [[1],[1],[1],[-1],[1],[1]]}",
         ": layers[3][0]: expected an integer from 0 to 127, found -1"},
        {"{\"layers\": [[1],[1],[1],[1.5],[1],[1]]}",
         ": layers[3][0]: expected an integer from 0 to 127, found 1.5"},
        {"{\"layers\": [[1],[1],[1],[\"1\"],[1],[1]]}",
         ": layers[3][0]: expected an integer from 0 to 127, found \"1\""},
        {"{\"layers\": [], \"layers\": []}", ": the key \"layers\" stands twice"},
    };
    char *pool = q3_test_path("%s/pool.json", directory);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_test_write_text(pool, cases[i].text);
        char *message = q3_test_path("q3-run: %s%s\n", pool, cases[i].message);
        q3_test_expect(
            q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", "a", "--pool", pool, NULL), 4,
            message);
        free(message);
    }
    unlink(pool);
    char *message = q3_test_path("q3-run: %s: cannot open: No such file or directory\n", pool);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", "a", "--pool", pool, NULL), 1,
        message);
    free(message);
    free(pool);
}

// ---- packs that lack something ----

// A pack with only some experts answers as the full one with a pool of these.
static void test_some_experts(void **state)
{
    (void)state;
    char *few = q3_test_path("%s/few", directory), *pool = q3_test_path("%s/few.json", directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, few, "--experts",
                               "0-2,100", "--quiet", NULL),
                   0, "");
    q3_test_write_text(pool, "{\"layers\": [[0,1,2,100],[0,1,2,100],[0,1,2,100],[0,1,2,100],"
                             "[0,1,2,100],[0,1,2,100]]}");
    q3_test_result limited = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                                         "-n", "20", "--pool", pool, NULL);
    q3_test_result partial =
        q3_test_run(NULL, Q3_TEST_RUN, "generate", few, "-p", STORY_PROMPT, "-n", "20", NULL);
    assert_string_equal(limited.out, partial.out);
    assert_true(limited.out_size > 1);
    q3_test_expect(limited, 0, "warning: 96.4 % of what the router wanted is outside the pool\n");
    q3_test_expect(partial, 0,
                   "note: the pack has 24 of the model's 768 experts;\n"
                   "the router is limited to them\n"
                   "warning: 96.4 % of what the router wanted is outside the pack\n");
    q3_test_write_text(pool, "{\"layers\": [[0],[0],[0],[0,5],[0],[0]]}");
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "logits", few, "--ids", "1", "--pool", pool, NULL), 0,
        "note: the pack has 24 of the model's 768 experts;\n"
        "the router is limited to them\n"
        "note: the pack has 6 of the pool's 7 experts\n");
    q3_test_write_text(pool, "{\"layers\": [[0],[0],[0],[5],[0],[0]]}");
    char *message =
        q3_test_path("q3-run: %s: layer 3: %s has none of the pool's experts\n", pool, few);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_RUN, "logits", few, "--ids", "1", "--pool", pool, NULL), 5,
        message);
    free(message);
    free(pool);
    free(few);
}

static void test_some_layers(void **state)
{
    (void)state;
    char *part = q3_test_path("%s/part", directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, part, "--layers", "0-1,4",
                               "--quiet", NULL),
                   0, "");
    char *message = q3_test_path("q3-run: %s: cannot be run: the pack lacks layers 2-3, layer 5 "
                                 "(the model has 6 layers)\n",
                                 part);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "logits", part, "--ids", "1", NULL), 5, message);
    free(message);
    free(part);
}

static void test_no_pack(void **state)
{
    (void)state;
    char *message = q3_test_path("q3-run: %s: no pack.json: not a pack directory, or an unfinished "
                                 "extraction\n",
                                 directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "logits", directory, "--ids", "1", NULL), 5,
                   message);
    free(message);
}

// Damage is found when the expert is first needed, a wrong length or a missing file at once.
static void test_damaged(void **state)
{
    (void)state;
    char *copy = q3_test_path("%s/copy", directory), *pool = q3_test_path("%s/one.json", directory);
    q3_test_copy_tree(pack, copy, false);
    char *file = q3_test_path("%s/layers/03/experts/007.q3p", copy);
    size_t size;
    char *bytes = q3_test_read(file, &size);
    bytes[5000] ^= 1;
    q3_test_write(file, bytes, size);
    q3_test_write_text(pool, "{\"layers\": [[1],[1],[1],[7],[1],[1]]}");
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_RUN, "logits", copy, "--ids", "1", "--pool", pool, NULL);
    char *message = q3_test_path("q3-run: %s: thinker.model.layers.3.mlp.experts.7.gate_proj.weight"
                                 ": frame 0 at 4096 is damaged: expected hash ",
                                 file);
    assert_int_equal(result.code, 4);
    assert_int_equal(strncmp(result.err, message, strlen(message)), 0);
    q3_test_result_free(&result);
    free(message);
    q3_test_write(file, bytes, 5000);
    message = q3_test_path("q3-run: %s: expected a file of %zu bytes, found 5000\n", file, size);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "logits", copy, "--ids", "1", NULL), 4, message);
    free(message);
    unlink(file);
    message = q3_test_path("q3-run: %s: listed in pack.json, but absent\n", file);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "logits", copy, "--ids", "1", NULL), 5, message);
    free(message);
    bytes[5000] ^= 1;
    q3_test_write(file, bytes, size);
    free(bytes);
    free(file);
    file = q3_test_path("%s/vocab.json", copy);
    unlink(file);
    message = q3_test_path("q3-run: %s: listed in pack.json, but absent\n", file);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "generate", copy, "-p", "a", NULL), 5, message);
    free(message);
    free(file);
    free(pool);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_raw_and_ids),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_wrong_lines),
        cmocka_unit_test(test_wrong_command_lines),
        cmocka_unit_test(test_wrong_pools),
        cmocka_unit_test(test_some_experts),
        cmocka_unit_test(test_some_layers),
        cmocka_unit_test(test_no_pack),
        cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, make_pack, remove_pack);
}
