// SPDX-License-Identifier: Apache-2.0
//
// q3-run profile and ladder, and how pools, soft pools and biases lead the router, as a person uses
// them.
#include "json.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define STORY_PROMPT "Tell me a story about a brave fox named Tom."
#define TEXTS Q3_TEST_SOURCE_DIR "/tests/texts/"

enum { LAYERS = 6, EXPERTS = 128, TOP_K = 8, VOCABULARY = 1536 };

static char *directory, *pack, *pool48;

static int make_pack(void **state)
{
    (void)state;
    directory = q3_test_directory();
    pack = q3_test_path("%s/pack", directory);
    pool48 = q3_test_path("%s/pool48.json", directory);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--quiet", NULL), 0,
                   "");
    // The reference's pool of 48 for stories.
    cJSON *reference = q3_test_load_json(Q3_TEST_REFERENCE);
    const cJSON *pool;
    cJSON_ArrayForEach(pool, q3_test_member(reference, "pools"))
    {
        if (strcmp(q3_test_string(pool, "domain"), "story") != 0 ||
            q3_test_number(pool, "size") != 48)
            continue;
        char *layers = cJSON_PrintUnformatted(q3_test_member(pool, "experts"));
        char *file = q3_test_path("{\"layers\": %s}", layers);
        q3_test_write_text(pool48, file);
        free(file);
        cJSON_free(layers);
    }
    cJSON_Delete(reference);
    return 0;
}

static int remove_pack(void **state)
{
    (void)state;
    free(pack);
    free(pool48);
    q3_test_remove(directory);
    return 0;
}

static char *in_directory(const char *name)
{
    return q3_test_path("%s/%s", directory, name);
}

// Fails unless the run ended well, with nothing on standard error.
static void run_well(q3_test_result result)
{
    q3_test_expect(result, 0, "");
}

// What it printed, after it ended well; to free().
static char *output_of(q3_test_result result)
{
    char *out = q3_test_path("%s", result.out);
    q3_test_expect(result, 0, "");
    return out;
}

// ---- profiles ----

// A phase's numbers of one kind, summed over the experts of a layer.
static double layer_sum(const cJSON *phase, const char *measure, int layer)
{
    const cJSON *list = q3_test_element(q3_test_member(phase, measure), layer), *item;
    double sum = 0;
    assert_int_equal(cJSON_GetArraySize(list), EXPERTS);
    cJSON_ArrayForEach(item, list) sum += item->valuedouble;
    return sum;
}

// Every token chooses top k experts in every layer, with weights that sum to 1, and the router's
// whole softmax sums to 1, too.
static void check_phase(const cJSON *profile, const char *name, double tokens)
{
    const cJSON *phase = q3_test_member(profile, name);
    assert_true(q3_test_number(phase, "tokens") == tokens);
    for (int i = 0; i < LAYERS; i++) {
        assert_true(layer_sum(phase, "chosen", i) == tokens * TOP_K);
        assert_true(fabs(layer_sum(phase, "weight", i) - tokens) <= 1e-5 * tokens);
        assert_true(fabs(layer_sum(phase, "mass", i) - tokens) <= 1e-5 * tokens);
        assert_true((layer_sum(phase, "score", i) > 0) == (tokens > 0));
    }
}

// How many tokens a file has.
static double count_tokens(const char *path)
{
    char *text = q3_test_read(path, NULL);
    char *out = output_of(q3_test_run(text, Q3_TEST_RUN, "tokenize", pack, NULL));
    double count = 1;
    for (const char *c = out; *c; c++)
        count += *c == ' ';
    free(out);
    free(text);
    return count;
}

static void test_profile_of_text(void **state)
{
    (void)state;
    static const char text[] = TEXTS "story-1.txt";
    char *whole = in_directory("whole.json"), *same = in_directory("same.json");
    char *cut = in_directory("cut.json");
    const double tokens = count_tokens(text);
    assert_true(tokens > 128);
    char *out = output_of(
        q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--file", text, "-o", whole, NULL));
    char *expected = q3_test_path("1 text, %.0f tokens of prompts, 0 of answers\n", tokens);
    assert_string_equal(out, expected);
    free(expected);
    free(out);
    cJSON *profile = q3_test_load_json(whole);
    check_phase(profile, "prompt", tokens);
    check_phase(profile, "answer", 0);
    const cJSON *texts = q3_test_member(profile, "texts");
    assert_int_equal(cJSON_GetArraySize(texts), 1);
    assert_string_equal(q3_test_string(texts->child, "name"), text);
    assert_true(q3_test_number(texts->child, "prompt_tokens") == tokens);
    assert_true(q3_test_number(texts->child, "answer_tokens") == 0);
    cJSON_Delete(profile);
    // Neither threads nor memory change a byte.
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--file", text, "-o", same, "-t",
                               "3", "-m", "27M", "-c", "256", NULL)));
    char *a = q3_test_read(whole, NULL), *b = q3_test_read(same, NULL);
    assert_string_equal(a, b);
    free(a);
    free(b);
    // A text longer than the context is cut, and no token is lost.
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--file", text, "-o", cut, "-c",
                               "50", NULL)));
    profile = q3_test_load_json(cut);
    check_phase(profile, "prompt", tokens);
    cJSON_Delete(profile);
    free(whole);
    free(same);
    free(cut);
}

static double answer_tokens(const char *prompt, const char *max)
{
    char *out = output_of(
        q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", prompt, "--json", "-n", max, NULL));
    cJSON *answer = q3_test_parse_json(out);
    // The last one, a stop token or one too many, is not fed.
    const double tokens = q3_test_number(q3_test_member(answer, "statistics"), "answer_tokens") - 1;
    cJSON_Delete(answer);
    free(out);
    return tokens;
}

static double prompt_tokens(const char *prompt)
{
    char *out = output_of(
        q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", prompt, "--json", "-n", "0", NULL));
    cJSON *answer = q3_test_parse_json(out);
    const double tokens = q3_test_number(q3_test_member(answer, "statistics"), "prompt_tokens");
    cJSON_Delete(answer);
    free(out);
    return tokens;
}

static void test_profile_of_prompts(void **state)
{
    (void)state;
    static const char sum[] = "What is 17 + 25?", capital[] = "What is the capital of Japan?";
    char *prompts = in_directory("two.prompts"), *path = in_directory("two.json");
    q3_test_write_text(prompts, "What is 17 + 25?\r\n\nWhat is the capital of Japan?");
    const double prompted = prompt_tokens(sum) + prompt_tokens(capital);
    const double answered = answer_tokens(sum, "256") + answer_tokens(capital, "256");
    assert_true(answered > 8);
    free(output_of(
        q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--prompts", prompts, "-o", path, NULL)));
    cJSON *profile = q3_test_load_json(path);
    check_phase(profile, "prompt", prompted);
    check_phase(profile, "answer", answered);
    cJSON_Delete(profile);
    // A limit of length; a prompt on the command line is its own name.
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--prompt", sum, "-p", capital,
                               "-n", "5", "-o", path, NULL)));
    profile = q3_test_load_json(path);
    check_phase(profile, "prompt", prompted);
    check_phase(profile, "answer", answer_tokens(sum, "5") + answer_tokens(capital, "5"));
    assert_true(q3_test_number(q3_test_member(profile, "answer"), "tokens") == 8);
    assert_int_equal(cJSON_GetArraySize(q3_test_member(profile, "texts")), 2);
    assert_string_equal(q3_test_string(q3_test_member(profile, "texts")->child, "name"), sum);
    cJSON_Delete(profile);
    // A system text is part of every prompt.
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-p", sum, "-n", "1", "-s",
                               "You are brief.", "-o", path, NULL)));
    profile = q3_test_load_json(path);
    assert_true(q3_test_number(q3_test_member(profile, "prompt"), "tokens") > prompt_tokens(sum));
    check_phase(profile, "answer", 0);
    cJSON_Delete(profile);
    free(prompts);
    free(path);
}

static const char *const phases[] = {"prompt", "answer"};
static const char *const measures[] = {"chosen", "weight", "score", "mass"};

// a == b + c (c may be NULL), but for the rounding of sums.
static void check_sum(const cJSON *a, const cJSON *b, const cJSON *c)
{
    for (int p = 0; p < 2; p++)
        for (int m = 0; m < 4; m++)
            for (int i = 0; i < LAYERS; i++)
                for (int e = 0; e < EXPERTS; e++) {
                    const cJSON *of[] = {a, b, c};
                    double value[3] = {0};
                    for (int k = 0; k < (c ? 3 : 2); k++) {
                        const cJSON *layers =
                            q3_test_member(q3_test_member(of[k], phases[p]), measures[m]);
                        value[k] = q3_test_element(q3_test_element(layers, i), e)->valuedouble;
                    }
                    const double sum = value[1] + value[2];
                    assert_true(m == 0 ? value[0] == sum
                                       : fabs(value[0] - sum) <= 1e-12 * fabs(sum));
                }
}

static void test_merge(void **state)
{
    (void)state;
    char *a = in_directory("a.json"), *b = in_directory("b.json"), *ab = in_directory("ab.json");
    static const char text[] = TEXTS "story-2.txt", prompt[] = "What is 17 + 25?";
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-f", text, "-o", a, NULL)));
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-p", prompt, "-o", b, NULL)));
    static const char *const merged[] = {"by counting", "by merging", "by adding to a profile"};
    for (int i = 0; i < 3; i++) {
        print_message("%s\n", merged[i]);
        q3_test_result result = i == 0 ? q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-f", text,
                                                     "-p", prompt, "-o", ab, NULL)
                                : i == 1 ? q3_test_run(NULL, Q3_TEST_RUN, "profile", pack,
                                                       "--merge", a, "--merge", b, "-o", ab, NULL)
                                         : q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-p",
                                                       prompt, "--merge", a, "-o", a, NULL);
        run_well(result);
        cJSON *sum = q3_test_load_json(i == 2 ? a : ab);
        assert_int_equal(cJSON_GetArraySize(q3_test_member(sum, "texts")), 2);
        if (i < 2) {
            cJSON *one = q3_test_load_json(a), *other = q3_test_load_json(b);
            check_sum(sum, one, other);
            cJSON_Delete(one);
            cJSON_Delete(other);
        } else {
            cJSON *before = q3_test_load_json(ab);
            check_sum(sum, before, NULL);
            cJSON_Delete(before);
        }
        cJSON_Delete(sum);
    }
    free(a);
    free(b);
    free(ab);
}

// Does the process handle SIGINT by now?
static bool handles_interrupt(pid_t child)
{
    char path[64], line[256];
    unsigned long long mask = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)child);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "SigCgt:", 7) == 0)
            mask = strtoull(line + 7, NULL, 16);
    fclose(file);
    return mask >> (SIGINT - 1) & 1;
}

static void test_interrupted_profile(void **state)
{
    (void)state;
    enum { PROMPTS = 20000 };
    char *prompts = in_directory("many.prompts"), *out = in_directory("many.json");
    char *text = malloc(PROMPTS * 4 + 1);
    assert_non_null(text);
    for (int i = 0; i < PROMPTS; i++)
        memcpy(text + 4 * (size_t)i, "Hi!\n", 5);
    q3_test_write_text(prompts, text);
    free(text);
    const pid_t child = fork();
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr))
            execl(Q3_TEST_RUN, "q3-run", "profile", pack, "--prompts", prompts, "-o", out,
                  (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0);
    while (!handles_interrupt(child))
        usleep(1000);
    int status;
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 130);
    char *part = in_directory("many.json.part");
    assert_int_not_equal(access(out, F_OK), 0);
    assert_int_not_equal(access(part, F_OK), 0);
    free(part);
    free(prompts);
    free(out);
}

// ---- how the router is led ----

// The logits behind a few tokens, run with the options; to be Deleted.
static cJSON *logits(const char *a, const char *b, const char *c, const char *d)
{
    char *out = output_of(q3_test_run(NULL, Q3_TEST_RUN, "logits", pack, "--ids",
                                      "282 198 447 12 99", a, b, c, d, NULL));
    cJSON *json = q3_test_parse_json(out);
    assert_int_equal(cJSON_GetArraySize(q3_test_member(json, "logits")), VOCABULARY);
    free(out);
    return json;
}

// The largest difference; frees both.
static double difference(cJSON *one, cJSON *other)
{
    double largest = 0;
    const cJSON *a = q3_test_member(one, "logits")->child,
                *b = q3_test_member(other, "logits")->child;
    for (; a && b; a = a->next, b = b->next)
        largest = fmax(largest, fabs(a->valuedouble - b->valuedouble));
    cJSON_Delete(one);
    cJSON_Delete(other);
    return largest;
}

static void test_soft_pool(void **state)
{
    (void)state;
    // Preferred by nothing, the pool has no effect; preferred without limit it is a hard one, whose
    // weights come from another softmax and are the same but for rounding.
    assert_true(difference(logits("--pool", pool48, "--prefer-pool", "0"),
                           logits(NULL, NULL, NULL, NULL)) == 0);
    assert_true(difference(logits("--pool", pool48, "--prefer-pool", "1000"),
                           logits("--pool", pool48, NULL, NULL)) < 1e-4);
    assert_true(difference(logits("--pool", pool48, NULL, NULL), logits(NULL, NULL, NULL, NULL)) >
                0.1);
    assert_true(difference(logits("--pool", pool48, "--prefer-pool", "0.5"),
                           logits(NULL, NULL, NULL, NULL)) > 0);
}

static void test_router_bias(void **state)
{
    (void)state;
    char *profile = in_directory("bias-profile.json"), *bias = in_directory("bias.json");
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "-f", TEXTS "story-1.txt", "-o",
                               profile, NULL)));
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--merge", profile,
                               "--router-bias-out", bias, "--strength", "0", NULL)));
    assert_true(
        difference(logits("--router-bias", bias, NULL, NULL), logits(NULL, NULL, NULL, NULL)) == 0);
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--merge", profile,
                               "--router-bias-out", bias, "--strength", "2", NULL)));
    assert_true(
        difference(logits("--router-bias", bias, NULL, NULL), logits(NULL, NULL, NULL, NULL)) > 0);
    // S * ln(score / mean score), centred: differences of biases are those of the logarithms.
    cJSON *written = q3_test_load_json(bias), *measured = q3_test_load_json(profile);
    assert_int_equal(cJSON_GetArraySize(q3_test_member(written, "layers")), LAYERS);
    for (int i = 0; i < LAYERS; i++) {
        const cJSON *layer = q3_test_element(q3_test_member(written, "layers"), i);
        const cJSON *scores =
            q3_test_element(q3_test_member(q3_test_member(measured, "prompt"), "score"), i);
        const cJSON *b = layer->child, *s = scores->child;
        double sum = 0, lowest = INFINITY, shift = NAN;
        for (; s; s = s->next)
            lowest = s->valuedouble > 0 ? fmin(lowest, s->valuedouble) : lowest;
        for (s = scores->child; b && s; b = b->next, s = s->next) {
            const double score = 2 * log(s->valuedouble > 0 ? s->valuedouble : lowest);
            shift = isnan(shift) ? b->valuedouble - score : shift;
            assert_true(fabs(b->valuedouble - score - shift) < 1e-5);
            sum += b->valuedouble;
        }
        assert_int_equal(cJSON_GetArraySize(layer), EXPERTS);
        assert_true(fabs(sum) < 1e-3);
    }
    cJSON_Delete(written);
    cJSON_Delete(measured);
    free(profile);
    free(bias);
}

// Statistics of a text fed as an answer is, in a budget of some slots, with a bias for resident
// experts.
static cJSON *run_small(const char *bias)
{
    q3_test_result result = q3_test_run(
        NULL, Q3_TEST_RUN, "score", pack, "--file", TEXTS "story-1.txt", "--step", "1", "-m", "23M",
        "-t", "1", "-c", "256", "--prefer-resident", bias, "--stats", "json", NULL);
    assert_int_equal(result.code, 0);
    cJSON *statistics = q3_test_parse_json(result.err);
    q3_test_result_free(&result);
    return statistics;
}

static void test_prefer_resident(void **state)
{
    (void)state;
    cJSON *without = run_small("0"), *with = run_small("2");
    const double slots = q3_test_number(without, "expert_slots_a_layer");
    assert_true(slots >= TOP_K && slots < EXPERTS);
    assert_true(q3_test_number(with, "expert_misses") <
                q3_test_number(without, "expert_misses") / 2);
    assert_true(q3_test_number(with, "expert_bytes_read") <
                q3_test_number(without, "expert_bytes_read") / 2);
    cJSON_Delete(without);
    cJSON_Delete(with);
}

// ---- what was wanted outside ----

static void test_outside_share(void **state)
{
    (void)state;
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--pool", pool48,
                    "--stats", "json", "--pool-warning", "100", NULL);
    assert_int_equal(result.code, 0);
    cJSON *statistics = q3_test_parse_json(result.err);
    const double share = q3_test_number(statistics, "outside_share");
    assert_true(fabs(share - 0.468) < 0.001);
    // The last layer routes none of the prompt but its last token; the answer's last token is fed
    // to none.
    const cJSON *layers = q3_test_member(statistics, "outside_share_layers");
    const double answered = q3_test_number(statistics, "answer_tokens");
    const double fed = q3_test_number(statistics, "prompt_tokens") + answered - 1;
    double sum = 0, routed = 0;
    assert_int_equal(cJSON_GetArraySize(layers), LAYERS);
    for (int i = 0; i < LAYERS; i++) {
        const double tokens = i + 1 < LAYERS ? fed : answered;
        sum += tokens * q3_test_element(layers, i)->valuedouble;
        routed += tokens;
    }
    assert_true(fabs(sum / routed - share) < 1e-12);
    cJSON_Delete(statistics);
    q3_test_result_free(&result);

    result = q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--pool", pool48,
                         "--stats", "text", NULL);
    assert_int_equal(result.code, 0);
    assert_non_null(strstr(result.err,
                           "\noutside  46.8 % of what the router wanted; by layer in %:\n"
                           "           0:  46.6  49.1  52.0  43.3  41.6  48.1\n"
                           "warning: 46.8 % of what the router wanted is outside the pool\n"));
    q3_test_result_free(&result);
    // Below the threshold there is no warning, and without a pool nothing is outside.
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT, "--pool",
                               pool48, "--pool-warning", "46.9", NULL)));
    free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "generate", pack, "-p", STORY_PROMPT,
                               "--pool-warning", "0", NULL)));
    // score and chat warn, too; a conversation once, of all that was said.
    result = q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "--ids", "1 2 3", "--pool", pool48,
                         "--pool-warning", "1", NULL);
    assert_non_null(strstr(result.err, "% of what the router wanted is outside the pool\n"));
    assert_int_equal(result.code, 0);
    q3_test_result_free(&result);
    result = q3_test_run(STORY_PROMPT "\nWho was Tom?\n", Q3_TEST_RUN, "chat", pack, "--pool",
                         pool48, "-n", "5", NULL);
    assert_int_equal(result.code, 0);
    assert_int_equal(strncmp(result.err, "warning: ", 9), 0);
    assert_null(strchr(result.err, '\n')[1] ? result.err : NULL);
    q3_test_result_free(&result);
}

// ---- the ladder ----

static const char *const domains[] = {"story", "facts", "math", "translation", "code", "chat"};
static char *profiles[6];

static void make_profiles(void)
{
    for (int i = 0; i < 6; i++) {
        char *prompts = q3_test_path(TEXTS "%s.prompts", domains[i]);
        profiles[i] = q3_test_path("%s/%s.json", directory, domains[i]);
        free(output_of(q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--prompts", prompts, "-o",
                                   profiles[i], NULL)));
        free(prompts);
    }
}

static const cJSON *row(const cJSON *ladder, int size, const char *chosen)
{
    const cJSON *pool;
    cJSON_ArrayForEach(pool, q3_test_member(ladder, "pools"))
    {
        if (q3_test_number(pool, "size") == size &&
            strcmp(q3_test_string(pool, "chosen"), chosen) == 0)
            return pool;
    }
    fail_msg("no row %d %s", size, chosen);
    return NULL;
}

// A pool of the domain loses least, then one of all the domains, then any.
static void test_ladder_order(void **state)
{
    (void)state;
    static const int sizes[] = {32, 48, 64, 96};
    char *out = output_of(
        q3_test_run(NULL, Q3_TEST_RUN, "ladder", pack, "--file", TEXTS "story-2.txt", "--profile",
                    profiles[0], "--profile", profiles[1], "--profile", profiles[2], "--profile",
                    profiles[3], "--profile", profiles[4], "--profile", profiles[5], "--sizes",
                    "32,48,64,96", "-c", "256", "--json", NULL));
    cJSON *ladder = q3_test_parse_json(out);
    free(out);
    assert_int_equal(cJSON_GetArraySize(q3_test_member(ladder, "pools")), 16);
    double smaller = INFINITY;
    for (int i = 0; i < 4; i++) {
        const double own = q3_test_number(row(ladder, sizes[i], "own"), "mean_nll");
        const double all = q3_test_number(row(ladder, sizes[i], "all"), "mean_nll");
        assert_true(q3_test_number(row(ladder, sizes[i], "own"), "kl") <
                    q3_test_number(row(ladder, sizes[i], "all"), "kl"));
        assert_true(own < all);
        assert_true(all < q3_test_number(row(ladder, sizes[i], "first"), "mean_nll"));
        assert_true(all < q3_test_number(row(ladder, sizes[i], "random"), "mean_nll"));
        assert_true(own < smaller);
        smaller = own;
        assert_true(q3_test_number(row(ladder, sizes[i], "own"), "experts") == sizes[i] * LAYERS);
    }
    cJSON_Delete(ladder);
}

// At its end the ladder is the full model, and on the way it is what the other commands give.
static void test_ladder_exact(void **state)
{
    (void)state;
    static const char text[] = TEXTS "story-1.txt";
    char *out =
        output_of(q3_test_run(NULL, Q3_TEST_RUN, "ladder", pack, "-f", text, "--profile",
                              profiles[0], "--sizes", "128,48", "--compare-rules", "--json", NULL));
    cJSON *ladder = q3_test_parse_json(out);
    free(out);
    out = output_of(q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "-f", text, "--json", NULL));
    cJSON *score = q3_test_parse_json(out);
    free(out);
    const double full = q3_test_number(score, "mean_nll");
    assert_true(q3_test_number(q3_test_member(ladder, "full"), "mean_nll") == full);
    assert_true(q3_test_number(ladder, "tokens") == q3_test_number(score, "tokens"));
    static const char *const chosen[] = {"own", "coverage", "bytes", "first", "random"};
    assert_int_equal(cJSON_GetArraySize(q3_test_member(ladder, "pools")), 10);
    for (int i = 0; i < 5; i++) {
        const cJSON *last = row(ladder, 128, chosen[i]);
        assert_true(q3_test_number(row(ladder, 48, chosen[i]), "kl") > 0);
        assert_true(q3_test_number(row(ladder, 48, chosen[i]), "top1_agreement") < 1);
        // Experts that the profile has never seen add nothing to a coverage: these rules leave
        // them out.
        if (q3_test_number(last, "experts") < EXPERTS * LAYERS && i > 0 && i < 3)
            continue;
        assert_true(q3_test_number(last, "mean_nll") == full);
        assert_true(q3_test_number(last, "perplexity") == exp(full));
        assert_true(q3_test_number(last, "kl") == 0);
        assert_true(q3_test_number(last, "top1_agreement") == 1);
        assert_true(q3_test_number(last, "outside_share") == 0);
    }
    // Pools of other rules have no more experts, and hardly fewer.
    assert_true(q3_test_number(row(ladder, 48, "bytes"), "experts") == 48 * LAYERS);
    assert_true(q3_test_number(row(ladder, 48, "coverage"), "experts") <= 48 * LAYERS);
    assert_true(q3_test_number(row(ladder, 48, "coverage"), "experts") > 47 * LAYERS);
    cJSON_Delete(score);
    char *pool = in_directory("own48.json");
    q3_test_result made =
        q3_test_run(NULL, Q3_TEST_PACK, "pool", profiles[0], "--size", "48", "-o", pool, NULL);
    assert_int_equal(made.code, 0);
    q3_test_result_free(&made);
    out = output_of(q3_test_run(NULL, Q3_TEST_RUN, "score", pack, "-f", text, "--json", "--pool",
                                pool, "--pool-warning", "100", NULL));
    score = q3_test_parse_json(out);
    assert_true(q3_test_number(row(ladder, 48, "own"), "mean_nll") ==
                q3_test_number(score, "mean_nll"));
    free(out);
    cJSON_Delete(score);
    cJSON_Delete(ladder);
    free(pool);
}

// The table, line by line narrow enough for half a screen, and the same numbers when the text is
// cut into windows that are scored by themselves.
static void test_ladder_table(void **state)
{
    (void)state;
    char *svg = in_directory("ladder.svg");
    char *out = output_of(q3_test_run(NULL, Q3_TEST_RUN, "ladder", pack, "-f", TEXTS "story-1.txt",
                                      "-f", TEXTS "story-2.txt", "--profile", profiles[0],
                                      "--sizes", "128", "-c", "100", "-o", svg, NULL));
    static const char head[] = "size pool          NLL perplexity top-1 %       KL outside %\n"
                               " all full";
    assert_int_equal(strncmp(out, head, strlen(head)), 0);
    int lines = 0;
    for (const char *line = out; *line; lines++) {
        const size_t length = strcspn(line, "\n");
        assert_true(length <= 60);
        line += length + 1;
    }
    assert_int_equal(lines, 5);
    assert_non_null(strstr(out, "\n 128 random"));
    free(out);
    char *picture = q3_test_read(svg, NULL);
    assert_non_null(strstr(picture, "<svg "));
    assert_non_null(strstr(picture, "chosen for this text's domain"));
    assert_non_null(strstr(picture, "the full model"));
    assert_non_null(strstr(picture, "story-1.txt and 1 more<"));
    assert_non_null(strstr(picture, "</svg>\n"));
    free(picture);
    free(svg);
}

// ---- what is refused ----

static void expect_failure(int code, const char *message, const char *command, const char *a,
                           const char *b, const char *c, const char *d, const char *e,
                           const char *f)
{
    char *expected = q3_test_path("q3-run: %s\n", message);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, command, pack, a, b, c, d, e, f, NULL), code,
                   expected);
    free(expected);
}

static void test_refused(void **state)
{
    (void)state;
    static const char text[] = TEXTS "story-1.txt";
    char *out = in_directory("refused.json"), *empty = in_directory("empty.txt");
    char *other = in_directory("other.json"), *missing = in_directory("missing.json");
    q3_test_write_text(empty, "");
    expect_failure(2, "expected --output or --router-bias-out", "profile", "-f", text, NULL, NULL,
                   NULL, NULL);
    expect_failure(2, "expected --file, --prompts, --prompt or --merge", "profile", "-o", out, NULL,
                   NULL, NULL, NULL);
    expect_failure(2, "expected --file and --profile", "ladder", "-f", text, NULL, NULL, NULL,
                   NULL);
    expect_failure(2, "expected --file and --profile", "ladder", "--profile", profiles[0], NULL,
                   NULL, NULL, NULL);
    expect_failure(2, "--prefer-pool needs a --pool", "logits", "--ids", "1", "--prefer-pool", "1",
                   NULL, NULL);
    expect_failure(2,
                   "--prefer-pool: expected a number from 0 to 1000, found \"-1\" (see q3-run "
                   "logits --help)",
                   "logits", "--prefer-pool", "-1", NULL, NULL, NULL, NULL);
    expect_failure(2, "--sizes: expected numbers from 1 to 128 such as 8,16,32, found \"8,129\"",
                   "ladder", "-f", text, "--profile", profiles[0], "--sizes", "8,129");
    expect_failure(2, "--sizes: expected numbers from 1 to 128 such as 8,16,32, found \"0\"",
                   "ladder", "-f", text, "--profile", profiles[0], "--sizes", "0");
    expect_failure(2, "--sizes: none given", "ladder", "-f", text, "--profile", profiles[0],
                   "--sizes", "");
    char *message = q3_test_path("%s: the text is empty", empty);
    expect_failure(2, message, "profile", "-f", empty, "-o", out, NULL, NULL);
    free(message);
    message = q3_test_path("%s: no prompts", empty);
    expect_failure(2, message, "profile", "--prompts", empty, "-o", out, NULL, NULL);
    free(message);
    message = q3_test_path("%s: expected at least 2 tokens to score, found 0", empty);
    expect_failure(2, message, "ladder", "-f", empty, "--profile", profiles[0], NULL, NULL);
    free(message);
    expect_failure(2,
                   "the prompt has 19 tokens, more than the context of 10 (--context takes up "
                   "to 4096)",
                   "profile", "-p", STORY_PROMPT, "-o", out, "-c", "10");
    message = q3_test_path("%s: cannot open: No such file or directory", missing);
    expect_failure(1, message, "profile", "--merge", missing, "-o", out, NULL, NULL);
    expect_failure(1, message, "ladder", "-f", text, "--profile", missing, NULL, NULL);
    expect_failure(1, message, "logits", "--ids", "1", "--router-bias", missing, NULL, NULL);
    free(message);
    // A profile of another model of this shape.
    char *profile = q3_test_read(profiles[0], NULL);
    char *hash = strstr(profile, "\"hash\": \"");
    assert_non_null(hash);
    hash[9] = hash[9] == '0' ? '1' : '0';
    q3_test_write_text(other, profile);
    free(profile);
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_RUN, "ladder", pack, "-f", text, "--profile", other, NULL);
    assert_int_equal(result.code, 3);
    assert_non_null(strstr(result.err, other));
    q3_test_result_free(&result);
    result = q3_test_run(NULL, Q3_TEST_RUN, "profile", pack, "--merge", other, "-o", out, NULL);
    assert_int_equal(result.code, 3);
    q3_test_result_free(&result);
    assert_int_not_equal(access(out, F_OK), 0);
    free(out);
    free(empty);
    free(other);
    free(missing);
}

static int make_ladder(void **state)
{
    (void)state;
    make_profiles();
    return 0;
}

static int remove_ladder(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++)
        free(profiles[i]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_profile_of_text),
        cmocka_unit_test(test_profile_of_prompts),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_interrupted_profile),
        cmocka_unit_test(test_soft_pool),
        cmocka_unit_test(test_router_bias),
        cmocka_unit_test(test_prefer_resident),
        cmocka_unit_test(test_outside_share),
        cmocka_unit_test_setup(test_ladder_order, make_ladder),
        cmocka_unit_test(test_ladder_exact),
        cmocka_unit_test(test_ladder_table),
        cmocka_unit_test_teardown(test_refused, remove_ladder),
    };
    return cmocka_run_group_tests(tests, make_pack, remove_pack);
}
