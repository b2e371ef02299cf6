// SPDX-License-Identifier: Apache-2.0
//
// Pools, profiles, and the rules that choose one from the other.
#include "pool/choose.h"
#include "pool/profile.h"
#include "support.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static q3_error error;

// The failure is this one; %s in the message stands for the path.
static void assert_fails(bool ok, int code, const char *message, const char *path)
{
    assert_false(ok);
    char *expected = q3_test_path(message, path);
    assert_string_equal(error.message, expected);
    assert_int_equal(error.code, code);
    free(expected);
}

// ---- pools ----

// The members as "0 2 | 1 | 0 1 2".
static const char *members(const q3_pool *pool)
{
    static char text[1024];
    size_t used = 0;
    text[0] = 0;
    for (uint32_t layer = 0; layer < pool->layers; layer++) {
        used += (size_t)snprintf(text + used, sizeof text - used, layer ? " |" : "");
        uint32_t count = 0;
        for (uint32_t expert = 0; expert < pool->experts; expert++)
            if (q3_pool_has(pool, layer, expert)) {
                used +=
                    (size_t)snprintf(text + used, sizeof text - used, used ? " %u" : "%u", expert);
                count++;
            }
        assert_int_equal(count, pool->count[layer]);
    }
    return text;
}

static void test_pool_file(void **state)
{
    (void)state;
    char *path = q3_test_path("%s/pool.json", q3_test_scratch);
    q3_pool pool, again;
    assert_ok(q3_pool_create(3, 4, &pool, &error));
    q3_pool_add(&pool, 0, 3);
    q3_pool_add(&pool, 0, 1);
    q3_pool_add(&pool, 0, 3);
    q3_pool_add(&pool, 1, 0);
    q3_pool_add(&pool, 2, 2);
    assert_int_equal(pool.total, 4);
    assert_ok(q3_pool_write(&pool, path, &error));
    char *text = q3_test_read(path, NULL);
    assert_string_equal(text, "{\n  \"layers\": [\n    [1, 3],\n    [0],\n    [2]\n  ]\n}\n");
    free(text);
    // In another order, with members that are for others: the same pool.
    q3_test_write_text(path, "{\"note\": [1], \"layers\": [[3,1],[0],[2]]}");
    assert_ok(q3_pool_read(path, 3, 4, &again, &error));
    assert_string_equal(members(&again), "1 3 | 0 | 2");
    assert_int_equal(again.total, 4);
    assert_true(q3_hash128_equal(q3_pool_hash(&again), q3_pool_hash(&pool)));
    q3_pool_add(&again, 2, 3);
    assert_false(q3_hash128_equal(q3_pool_hash(&again), q3_pool_hash(&pool)));
    q3_pool_add(&pool, 1, 1);
    q3_pool_add_all(&pool, &again);
    assert_string_equal(members(&pool), "1 3 | 0 1 | 2 3");
    assert_int_equal(pool.total, 6);
    q3_pool_destroy(&again);
    q3_pool_destroy(&pool);
    free(path);
}

static void test_wrong_pool_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"[]", "%s: expected an object, found an array of 0"},
        {"{}", "%s: \"layers\" is missing"},
        {"{\"layers\": {}}", "%s: layers: expected an array, found an object"},
        {"{\"layers\": [[0]]}", "%s: layers: expected the model's 2 layers, found 1"},
        {"{\"layers\": [[0],[1],[2]]}", "%s: layers: expected the model's 2 layers, found 3"},
        {"{\"layers\": [[0],[]]}", "%s: layers[1]: expected a list of at least one expert"},
        {"{\"layers\": [[0],{\"a\":1}]}", "%s: layers[1]: expected a list of at least one expert"},
        {"{\"layers\": [[0],[4]]}", "%s: layers[1][0]: expected an integer from 0 to 3, found 4"},
        {"{\"layers\": [[0,0],[1]]}", "%s: layers[0][1]: expert 0 is there twice"},
    };
    char *path = q3_test_path("%s/pool.json", q3_test_scratch);
    q3_pool pool;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_test_write_text(path, cases[i].text);
        assert_fails(q3_pool_read(path, 2, 4, &pool, &error), Q3_MALFORMED, cases[i].message, path);
        assert_null(pool.members);
        assert_null(pool.count);
    }
    free(path);
}

// ---- choosing ----

enum { LAYERS = 3, EXPERTS = 6 };

// A layer with one large expert, an even one, and one where two are equal and two have nothing.
static const double share[LAYERS * EXPERTS] = {
    0.03125, 0.5,  0.0625, 0.25, 0.125, 0.03125, //
    0.125,   0.25, 0.125,  0.25, 0.125, 0.125,   //
    0,       0.25, 0,      0.25, 0.5,   0,
};

static void check_size(uint32_t size, const char *expected)
{
    q3_pool pool;
    assert_ok(q3_pool_choose_size(share, LAYERS, EXPERTS, size, &pool, &error));
    assert_string_equal(members(&pool), expected);
    assert_int_equal(pool.total, size * LAYERS);
    q3_pool_destroy(&pool);
}

static void test_choose_size(void **state)
{
    (void)state;
    check_size(1, "1 | 1 | 4");
    check_size(2, "1 3 | 1 3 | 1 4");
    check_size(3, "1 3 4 | 0 1 3 | 1 3 4");
    // Of equal experts the lower number, also where nothing is left to choose by.
    check_size(5, "0 1 2 3 4 | 0 1 2 3 4 | 0 1 2 3 4");
    check_size(6, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 0 1 2 3 4 5");
}

static void check_coverage(double coverage, uint32_t least, const char *expected)
{
    q3_pool pool;
    assert_ok(q3_pool_choose_coverage(share, LAYERS, EXPERTS, coverage, least, &pool, &error));
    assert_string_equal(members(&pool), expected);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        assert_true(q3_pool_coverage(&pool, share, layer) >= coverage);
    q3_pool_destroy(&pool);
}

static void test_choose_coverage(void **state)
{
    (void)state;
    check_coverage(0, 1, "1 | 1 | 4");
    check_coverage(0, 2, "1 3 | 1 3 | 1 4");
    // Exactly reached is enough.
    check_coverage(0.5, 1, "1 | 1 3 | 4");
    check_coverage(0.75, 1, "1 3 | 0 1 2 3 | 1 4");
    check_coverage(0.875, 1, "1 3 4 | 0 1 2 3 4 | 1 3 4");
    // The whole: all that have something, and no more.
    check_coverage(1, 1, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 1 3 4");
    check_coverage(1, 4, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 0 1 3 4");
    // Sums that are not exact reach it too.
    double thirds[7];
    for (unsigned i = 0; i < 7; i++)
        thirds[i] = 1.0 / 7;
    q3_pool pool;
    assert_ok(q3_pool_choose_coverage(thirds, 1, 7, 1, 1, &pool, &error));
    assert_int_equal(pool.total, 7);
    assert_true(q3_pool_coverage(&pool, thirds, 0) == 1);
    q3_pool_destroy(&pool);
}

static void check_bytes(const uint64_t *bytes, uint64_t budget, uint32_t least,
                        const char *expected, uint64_t used)
{
    q3_pool pool;
    assert_ok(q3_pool_choose_bytes(share, bytes, LAYERS, EXPERTS, budget, least, &pool, &error));
    assert_string_equal(members(&pool), expected);
    uint64_t sum = 0;
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        sum += pool.members[i] ? bytes[i] : 0;
    assert_int_equal(sum, used);
    assert_true(sum <= budget);
    q3_pool_destroy(&pool);
}

static void test_choose_bytes(void **state)
{
    (void)state;
    uint64_t bytes[LAYERS * EXPERTS];
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        bytes[i] = 10;
    check_bytes(bytes, 30, 1, "1 | 1 | 4", 30);
    check_bytes(bytes, 39, 1, "1 | 1 | 4", 30);
    // Equal shares a byte: the lower layer, then the lower number.
    check_bytes(bytes, 40, 1, "1 3 | 1 | 4", 40);
    check_bytes(bytes, 50, 1, "1 3 | 1 3 | 4", 50);
    check_bytes(bytes, 70, 1, "1 3 | 1 3 | 1 3 4", 70);
    check_bytes(bytes, 80, 1, "1 3 4 | 1 3 | 1 3 4", 80);
    // Experts without any share are not taken, however much is left.
    check_bytes(bytes, 1000, 1, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 1 3 4", 150);
    check_bytes(bytes, UINT64_MAX, 4, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 0 1 3 4", 160);
    // A large expert waits for its share a byte; one that does not fit is passed over.
    bytes[3] = 100;
    check_bytes(bytes, 70, 1, "1 4 | 1 3 | 1 3 4", 70);
    check_bytes(bytes, 159, 1, "0 1 2 4 5 | 0 1 2 3 4 5 | 1 3 4", 140);
    check_bytes(bytes, 240, 1, "0 1 2 3 4 5 | 0 1 2 3 4 5 | 1 3 4", 240);
    // What the pack does not have is not chosen, not even among the least.
    bytes[1] = 0;
    bytes[4] = 0;
    check_bytes(bytes, 150, 2, "2 3 | 1 3 | 1 4", 150);

    q3_pool pool;
    assert_fails(
        q3_pool_choose_bytes(share, bytes, LAYERS, EXPERTS, 149, 2, &pool, &error), Q3_USAGE,
        "a budget of 149 bytes: at least 150 are needed, for the 2 best of each of 3 layers", NULL);
    assert_null(pool.members);
    bytes[0] = bytes[2] = bytes[5] = 0;
    assert_fails(q3_pool_choose_bytes(share, bytes, LAYERS, EXPERTS, 1000, 2, &pool, &error),
                 Q3_INCOMPLETE, "layer 0: expected at least 2 experts to choose from, found 1",
                 NULL);
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        bytes[i] = UINT64_MAX;
    assert_fails(q3_pool_choose_bytes(share, bytes, LAYERS, EXPERTS, 1000, 2, &pool, &error),
                 Q3_USAGE,
                 "a budget of 1,000 bytes: at least 18,446,744,073,709,551,615 are needed, for the "
                 "2 best of each of 3 layers",
                 NULL);
}

// No split of a budget over equal experts covers more: compared with all splits.
static void test_bytes_is_best(void **state)
{
    (void)state;
    uint64_t bytes[LAYERS * EXPERTS];
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        bytes[i] = 1;
    for (uint32_t budget = 3; budget <= 18; budget++) {
        double best = 0, sum = 0;
        for (uint32_t a = 1; a <= EXPERTS; a++)
            for (uint32_t b = 1; b <= EXPERTS; b++)
                for (uint32_t c = 1; c <= EXPERTS; c++) {
                    const uint32_t sizes[LAYERS] = {a, b, c};
                    double covered = 0;
                    if (a + b + c > budget)
                        continue;
                    for (uint32_t layer = 0; layer < LAYERS; layer++) {
                        q3_pool pool;
                        assert_ok(q3_pool_choose_size(share + (size_t)layer * EXPERTS, 1, EXPERTS,
                                                      sizes[layer], &pool, &error));
                        covered += q3_pool_coverage(&pool, share + (size_t)layer * EXPERTS, 0);
                        q3_pool_destroy(&pool);
                    }
                    best = fmax(best, covered);
                }
        q3_pool pool;
        assert_ok(q3_pool_choose_bytes(share, bytes, LAYERS, EXPERTS, budget, 1, &pool, &error));
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            sum += q3_pool_coverage(&pool, share, layer);
        assert_true(sum == best); // powers of two: the sums are exact
        q3_pool_destroy(&pool);
    }
}

// ---- profiles ----

static const q3_config config = {
    .hidden_size = 16,
    .num_hidden_layers = 2,
    .num_experts = 3,
    .num_experts_per_tok = 2,
    .moe_intermediate_size = 4,
};
static const q3_hash128 model = {.low = 0x0123456789abcdef, .high = 0xfedcba9876543210};

static q3_profile make_profile(void)
{
    q3_profile profile;
    assert_ok(q3_profile_create(&config, model, &profile, &error));
    assert_ok(q3_profile_add_text(&profile, "a \"story\".txt", 2, 1, &error));
    q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, 0, 0, 0.75, 2);
    q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, 0, 2, 0.25, 4);
    q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, 0, 0, 0.1, 1.0 / 3);
    q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, 1, 1, 1, 0);
    q3_profile_add_chosen(&profile, Q3_PHASE_ANSWER, 1, 2, 0.5, 1e-30);
    q3_profile_add_mass(&profile, Q3_PHASE_PROMPT, 1, (const float[]){0.1F, 0.7F, 0.2F});
    q3_profile_add_mass(&profile, Q3_PHASE_PROMPT, 1, (const float[]){0.5F, 0.25F, 0.25F});
    return profile;
}

static void assert_equal(const q3_profile *a, const q3_profile *b)
{
    const size_t count = (size_t)Q3_PHASES * a->layers * a->experts;
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->experts, b->experts);
    assert_int_equal(a->top_k, b->top_k);
    assert_int_equal(a->expert_bytes, b->expert_bytes);
    assert_true(q3_hash128_equal(a->model, b->model));
    assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
    assert_memory_equal(a->chosen, b->chosen, count * sizeof *a->chosen);
    assert_memory_equal(a->weight, b->weight, count * sizeof(double));
    assert_memory_equal(a->score, b->score, count * sizeof(double));
    assert_memory_equal(a->mass, b->mass, count * sizeof(double));
    assert_int_equal(a->text_count, b->text_count);
    for (size_t i = 0; i < a->text_count; i++) {
        assert_string_equal(a->texts[i].name, b->texts[i].name);
        assert_memory_equal(a->texts[i].tokens, b->texts[i].tokens, sizeof a->tokens);
    }
}

static void test_profile_file(void **state)
{
    (void)state;
    char *path = q3_test_path("%s/profile.json", q3_test_scratch);
    q3_profile profile = make_profile(), again;
    assert_int_equal(profile.expert_bytes, 16 * 4 * 3 * 2);
    assert_ok(q3_profile_write(&profile, path, &error));
    char *text = q3_test_read(path, NULL);
    assert_string_equal(
        text, "{\n"
              "  \"format\": \"q3-profile\",\n"
              "  \"version\": 1,\n"
              "  \"model\": {\n"
              "    \"layers\": 2,\n"
              "    \"experts\": 3,\n"
              "    \"top_k\": 2,\n"
              "    \"expert_bytes\": 384,\n"
              "    \"hash\": \"fedcba98765432100123456789abcdef\"\n"
              "  },\n"
              "  \"texts\": [\n"
              "    {\"name\": \"a \\\"story\\\".txt\", \"prompt_tokens\": 2, \"answer_tokens\": "
              "1}\n"
              "  ],\n"
              "  \"prompt\": {\n"
              "    \"tokens\": 2,\n"
              "    \"chosen\": [\n      [2, 0, 1],\n      [0, 1, 0]\n    ],\n"
              "    \"weight\": [\n      [0.85, 0, 0.25],\n      [0, 1, 0]\n    ],\n"
              "    \"score\": [\n      [1.5333333333333334, 0, 1],\n      [0, 0, 0]\n    ],\n"
              "    \"mass\": [\n      [0, 0, 0],\n"
              "      [0.60000000149011612, 0.949999988079071, 0.45000000298023224]\n    ]\n"
              "  },\n"
              "  \"answer\": {\n"
              "    \"tokens\": 1,\n"
              "    \"chosen\": [\n      [0, 0, 0],\n      [0, 0, 1]\n    ],\n"
              "    \"weight\": [\n      [0, 0, 0],\n      [0, 0, 0.5]\n    ],\n"
              "    \"score\": [\n      [0, 0, 0],\n      [0, 0, 5e-31]\n    ],\n"
              "    \"mass\": [\n      [0, 0, 0],\n      [0, 0, 0]\n    ]\n"
              "  }\n"
              "}\n");
    assert_ok(q3_profile_read(path, &again, &error));
    assert_equal(&profile, &again);
    q3_profile_destroy(&again);

    // Numbers that need all their digits.
    profile.weight[0] = 0.1 + 0.2;
    profile.score[0] = nextafter(1e300, 0);
    profile.mass[0] = DBL_TRUE_MIN;
    profile.mass[1] = DBL_MIN;
    assert_ok(q3_profile_write(&profile, path, &error));
    assert_ok(q3_profile_read(path, &again, &error));
    assert_equal(&profile, &again);
    q3_profile_destroy(&again);
    q3_profile_destroy(&profile);
    free(text);
    free(path);
}

// The profile's text with one piece replaced.
static void write_changed(const char *path, const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("%s is not in the file", from);
    char *changed = q3_test_path("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    q3_test_write_text(path, changed);
    free(changed);
}

static void test_wrong_profile_files(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
    } cases[] = {
        {"\"q3-profile\"", "\"q3\"", "%s: format: expected \"q3-profile\", found \"q3\""},
        {"\"version\": 1", "\"version\": 2",
         "%s: version: expected an integer from 1 to 1, found 2"},
        {"\"layers\": 2", "\"layers\": 0",
         "%s: model.layers: expected an integer from 1 to 1024, found 0"},
        {"\"layers\": 2", "\"layers\": 1024",
         "%s: prompt.chosen: expected the model's 1024 layers, found 2"},
        {"\"experts\": 3", "\"experts\": 4", "%s: prompt.chosen[0]: expected a list of 4 numbers"},
        {"\"experts\": 3", "\"experts\": 5000",
         "%s: model.experts: expected an integer from 1 to 4096, found 5000"},
        {"\"top_k\": 2", "\"top_k\": 4",
         "%s: model.top_k: expected an integer from 1 to 3, found 4"},
        {"\"top_k\": 2", "\"top_k\": 1",
         "%s: prompt.chosen[0]: expected at most top_k x tokens = 2 choices, found 3"},
        {"fedcba98", "FEDCBA98",
         "%s: model.hash: expected 32 hexadecimal digits, found "
         "\"FEDCBA98765432100123456789abcdef\""},
        {"\"prompt_tokens\": 2", "\"prompt_tokens\": 3",
         "%s: prompt.tokens: expected the sum over the texts, 3, found 2"},
        {"\"prompt_tokens\": 2", "\"prompt_tokens\": 281474976710657",
         "%s: texts[0].prompt_tokens: expected an integer from 0 to 281474976710656, found "
         "281474976710657"},
        {"\"answer_tokens\"", "\"tokens\"", "%s: texts[0]: \"answer_tokens\" is missing"},
        {"{\"name\"", "7, {\"name\"", "%s: texts[0]: expected an object, found 7"},
        {"[2, 0, 1]", "[3, 0, 0]",
         "%s: prompt.chosen[0][0]: expected an integer from 0 to 2, "
         "found 3"},
        {"[2, 0, 1]", "[2, 0.5, 1]",
         "%s: prompt.chosen[0][1]: expected an integer from 0 to 2, found 0.5"},
        {"[2, 0, 1]", "[2, 0, 1, 0]", "%s: prompt.chosen[0]: expected a list of 3 numbers"},
        {"[2, 0, 1]", "7", "%s: prompt.chosen[0]: expected a list of 3 numbers"},
        {"0.85", "-0.85", "%s: prompt.weight[0][0]: expected a number from 0 to 1e+300"},
        {"0.85", "1e301", "%s: prompt.weight[0][0]: expected a number from 0 to 1e+300"},
        {"0.85", "null", "%s: prompt.weight[0][0]: expected a number from 0 to 1e+300"},
        {"0.85", "1e999", "%s: not valid JSON: a number beyond the range of a double at byte 390"},
        {"[0.85, 0,", "[0.85, 0.5,",
         "%s: prompt.weight[0][1]: expected 0 for an expert that was never chosen, found 0.5"},
        {"\"mass\": [\n      [0, 0, 0],\n", "\"mass\": [\n",
         "%s: prompt.mass: expected the model's 2 layers, found 1"},
        {"\"answer\": {", "\"reply\": {", "%s: \"answer\" is missing"},
    };
    char *path = q3_test_path("%s/profile.json", q3_test_scratch);
    q3_profile profile = make_profile();
    assert_ok(q3_profile_write(&profile, path, &error));
    q3_profile_destroy(&profile);
    char *text = q3_test_read(path, NULL);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_changed(path, text, cases[i].from, cases[i].to);
        assert_fails(q3_profile_read(path, &profile, &error), Q3_MALFORMED, cases[i].message, path);
        assert_null(profile.chosen);
        assert_null(profile.texts);
    }
    free(text);
    free(path);
}

static void test_merge(void **state)
{
    (void)state;
    q3_profile a = make_profile(), b = make_profile();
    assert_ok(q3_profile_add_text(&b, "more", 5, 0, &error));
    q3_profile_add_chosen(&b, Q3_PHASE_PROMPT, 1, 0, 0.5, 3);
    assert_ok(q3_profile_merge(&a, &b, "b", &error));
    static const uint64_t chosen[] = {4, 0, 2, 1, 2, 0, 0, 0, 0, 0, 0, 2};
    assert_memory_equal(a.chosen, chosen, sizeof chosen);
    assert_true(a.weight[0] == 2 * 0.85 && a.weight[2] == 0.5 && a.weight[3] == 0.5);
    assert_true(a.score[2] == 2 && a.score[3] == 1.5 && a.score[11] == 1e-30);
    assert_true(a.mass[4] == 2 * b.mass[4]);
    assert_int_equal(a.tokens[Q3_PHASE_PROMPT], 9);
    assert_int_equal(a.tokens[Q3_PHASE_ANSWER], 2);
    assert_int_equal(a.text_count, 3);
    assert_string_equal(a.texts[2].name, "more");
    assert_int_equal(a.texts[2].tokens[Q3_PHASE_PROMPT], 5);
    q3_profile_destroy(&a);

    // What is refused leaves the profile as it was.
    a = make_profile();
    const q3_profile before = make_profile();
    b.model.low++;
    assert_fails(q3_profile_merge(&a, &b, "b", &error), Q3_MISMATCH,
                 "b: is of another model: expected fedcba98765432100123456789abcdef, found "
                 "fedcba98765432100123456789abcdf0",
                 NULL);
    b.model.low--;
    b.expert_bytes = 6;
    assert_fails(q3_profile_merge(&a, &b, "b", &error), Q3_MISMATCH,
                 "b: expected 2 layers of 3 experts of 384 bytes, 2 chosen; found 2 of 3 of 6, 2",
                 NULL);
    b.expert_bytes = 384;
    b.mass[5] = 1e300;
    a.mass[5] = 1e300;
    assert_fails(q3_profile_merge(&a, &b, "b", &error), Q3_MALFORMED, "b: a sum is beyond 1e+300",
                 NULL);
    a.mass[5] = before.mass[5];
    b.tokens[Q3_PHASE_ANSWER] = UINT64_C(1) << 48;
    assert_fails(q3_profile_merge(&a, &b, "b", &error), Q3_MALFORMED,
                 "b: more than 2^48 tokens together", NULL);
    b.tokens[Q3_PHASE_ANSWER] = 1;
    b.texts[1].tokens[Q3_PHASE_ANSWER] = UINT64_C(1) << 48;
    assert_fails(q3_profile_merge(&a, &b, "b", &error), Q3_MALFORMED,
                 "more: more than 2^48 tokens together", NULL);
    assert_equal(&a, &before);
    q3_profile_destroy(&a);
    q3_profile_destroy(&b);
    q3_profile unchanged = before;
    q3_profile_destroy(&unchanged);
}

static void test_shares(void **state)
{
    (void)state;
    q3_profile profile = make_profile();
    double found[6];
    assert_ok(q3_profile_shares(&profile, "p", Q3_MEASURE_CHOSEN, Q3_PHASES_ALL, found, &error));
    const double chosen[] = {2.0 / 3, 0, 1.0 / 3, 0, 0.5, 0.5};
    for (size_t i = 0; i < 6; i++)
        assert_true(fabs(found[i] - chosen[i]) < 1e-15);
    assert_ok(
        q3_profile_shares(&profile, "p", Q3_MEASURE_WEIGHT, 1u << Q3_PHASE_PROMPT, found, &error));
    assert_true(fabs(found[0] - 0.85 / 1.1) < 1e-15 && found[4] == 1 && found[5] == 0);
    assert_fails(
        q3_profile_shares(&profile, "p", Q3_MEASURE_WEIGHT, 1u << Q3_PHASE_ANSWER, found, &error),
        Q3_INCOMPLETE, "p: layer 0: no weight was counted in the answer", NULL);
    assert_fails(q3_profile_shares(&profile, "p", Q3_MEASURE_MASS, Q3_PHASES_ALL, found, &error),
                 Q3_INCOMPLETE, "p: layer 0: no mass was counted", NULL);
    // As large as a file may have them, and as small.
    profile.score[0] = profile.score[2] = 1e300;
    profile.score[3] = profile.score[4] = DBL_TRUE_MIN;
    profile.score[11] = 0;
    assert_ok(q3_profile_shares(&profile, "p", Q3_MEASURE_SCORE, Q3_PHASES_ALL, found, &error));
    assert_true(found[0] == 0.5 && found[1] == 0 && found[2] == 0.5);
    assert_true(found[3] == 0.5 && found[4] == 0.5);
    q3_profile_destroy(&profile);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const names[] = {"chosen", "weight", "score", "mass"};
    q3_measure measure;
    for (unsigned i = 0; i < Q3_MEASURES; i++) {
        assert_string_equal(q3_measure_name((q3_measure)i), names[i]);
        assert_true(q3_measure_parse(names[i], &measure));
        assert_int_equal(measure, i);
    }
    assert_false(q3_measure_parse("scores", &measure));
    assert_string_equal(q3_phase_name(Q3_PHASE_PROMPT), "prompt");
    assert_string_equal(q3_phase_name(Q3_PHASE_ANSWER), "answer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_file),    cmocka_unit_test(test_wrong_pool_files),
        cmocka_unit_test(test_choose_size),  cmocka_unit_test(test_choose_coverage),
        cmocka_unit_test(test_choose_bytes), cmocka_unit_test(test_bytes_is_best),
        cmocka_unit_test(test_profile_file), cmocka_unit_test(test_wrong_profile_files),
        cmocka_unit_test(test_merge),        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, q3_test_make_scratch, q3_test_remove_scratch);
}
