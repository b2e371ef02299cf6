// SPDX-License-Identifier: Apache-2.0
//
// Pools from the profile to the pack: q3-pack pool and heatmap, q3-extract --pool.
#include "pool/choose.h"
#include "pool/profile.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static q3_error error;
static char *one, *two, *pool_path; // profiles of a model of 2 layers of 4 experts, top 1

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

// A profile whose experts have these scores in the prompt, and none in the answer.
static void write_profile(const char *path, const double *score, uint64_t model)
{
    const q3_config config = {.hidden_size = 10,
                              .num_hidden_layers = 2,
                              .num_experts = 4,
                              .num_experts_per_tok = 1,
                              .moe_intermediate_size = 2};
    q3_profile profile;
    assert_ok(q3_profile_create(&config, (q3_hash128){.low = model}, &profile, &error));
    assert_ok(q3_profile_add_text(&profile, "texts/a.txt", 8, 0, &error));
    for (uint32_t layer = 0; layer < 2; layer++)
        for (uint32_t expert = 0; expert < 4; expert++)
            if (score[layer * 4 + expert] > 0)
                q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, layer, expert, 1,
                                      score[layer * 4 + expert]);
    assert_ok(q3_profile_write(&profile, path, &error));
    q3_profile_destroy(&profile);
}

static void write_profiles(void)
{
    write_profile(one, (const double[]){1, 4, 2, 1, 0.25, 0.25, 0.25, 0.25}, 1);
    write_profile(two, (const double[]){0, 0, 1, 3, 0, 2, 0, 2}, 1);
}

// ---- q3-pack pool ----

static void test_pool(void **state)
{
    (void)state;
    write_profiles();
    char *expected =
        q3_test_path("{\n"
                     "  \"model\": \"00000000000000000000000000000001\",\n"
                     "  \"made_from\": [\n"
                     "    \"%s\"\n"
                     "  ],\n"
                     "  \"rule\": {\"by\": \"score\", \"phase\": \"all\", \"size\": 2},\n"
                     "  \"experts\": 4,\n"
                     "  \"bytes\": 480,\n"
                     "  \"coverage\": 0.625,\n"
                     "  \"layer_coverage\": [0.75, 0.5],\n"
                     "  \"layers\": [\n"
                     "    [1, 2],\n"
                     "    [0, 1]\n"
                     "  ]\n"
                     "}\n",
                     one);
    static const char table[] = "layer  experts              bytes  coverage\n"
                                "    0        2                240    75.0 %\n"
                                "    1        2                240    50.0 %\n"
                                "total        4                480    62.5 % (the least 50.0 % in "
                                "layer 1)\n";
    // To standard output, the summary to standard error.
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "pool", one, "--size", "2", NULL);
    assert_string_equal(result.out, expected);
    q3_test_expect(result, 0, table);
    result = q3_test_run(NULL, Q3_TEST_PACK, "pool", one, "--size", "2", "--quiet", NULL);
    assert_string_equal(result.out, expected);
    q3_test_expect(result, 0, "");
    // To a file, the summary to standard output.
    result = q3_test_run(NULL, Q3_TEST_PACK, "pool", one, "--size", "2", "-o", pool_path, NULL);
    assert_string_equal(result.out, table);
    q3_test_expect(result, 0, "");
    char *text = q3_test_read(pool_path, NULL);
    assert_string_equal(text, expected);
    free(text);
    free(expected);
    // As JSON.
    expected =
        q3_test_path("{\n"
                     "  \"rule\": {\"by\": \"weight\", \"phase\": \"prompt\", \"coverage\": 0.5},\n"
                     "  \"experts\": 4,\n"
                     "  \"bytes\": 480,\n"
                     "  \"coverage\": 0.5,\n"
                     "  \"least_coverage\": 0.5,\n"
                     "  \"layers\": [\n"
                     "    {\"experts\": 2, \"bytes\": 240, \"coverage\": 0.5},\n"
                     "    {\"experts\": 2, \"bytes\": 240, \"coverage\": 0.5}\n"
                     "  ],\n"
                     "  \"profiles\": [\n"
                     "    {\"path\": \"%s\", \"coverage\": 0.5, \"least_coverage\": 0.5}\n"
                     "  ]\n"
                     "}\n",
                     one);
    result = q3_test_run(NULL, Q3_TEST_PACK, "pool", one, "--coverage", "0.5", "--by", "weight",
                         "--phase", "prompt", "--json", "-o", pool_path, NULL);
    assert_string_equal(result.out, expected);
    q3_test_expect(result, 0, "");
    free(expected);
}

// The members that a command line gives: the text behind "layers".
static void check_layers(const char *const *a, const char *expected)
{
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "pool", "--quiet", a[0], a[1], a[2],
                                        a[3], a[4], a[5], a[6], NULL);
    assert_string_equal(result.err, "");
    assert_int_equal(result.code, 0);
    const char *layers = strstr(result.out, "\"layers\": ");
    assert_non_null(layers);
    assert_string_equal(layers + strlen("\"layers\": "), expected);
    q3_test_result_free(&result);
}

static void test_rules(void **state)
{
    (void)state;
    write_profiles();
#define LISTS(a, b) "[\n    [" a "],\n    [" b "]\n  ]\n}\n"
    const char *const size[7] = {one, two, "--size", "2", NULL};
    // The sums of the shares: 1/8 1/2 1/4+1/4 1/8+3/4, 1/4 1/4+1/2 1/4 1/4+1/2.
    check_layers(size, LISTS("1, 3", "1, 3"));
    // Each by itself: 1 2 and 0 1; 2 3 and 1 3.
    const char *const unite[7] = {one, two, "--size", "2", "--union", NULL};
    check_layers(unite, LISTS("1, 2, 3", "0, 1, 3"));
    const char *const coverage[7] = {two, "--coverage", "0.75", NULL};
    check_layers(coverage, LISTS("3", "1, 3"));
    // 120 bytes each: the best of each layer, then what has most.
    const char *const bytes[7] = {one, two, "--bytes", "599", NULL};
    check_layers(bytes, LISTS("1, 3", "1, 3"));
    const char *const least[7] = {one, two, "--bytes", "240", NULL};
    check_layers(least, LISTS("3", "1"));
    const char *const all[7] = {two, "--bytes", "1G", NULL};
    check_layers(all, LISTS("2, 3", "1, 3"));
    const char *const chosen[7] = {two, "--size", "1", "--by", "chosen", NULL};
    check_layers(chosen, LISTS("2", "1"));
#undef LISTS
    // What each profile has of the common pool is said.
    q3_test_result result =
        q3_test_run(NULL, Q3_TEST_PACK, "pool", one, two, "--size", "2", "-o", pool_path, NULL);
    char *expected = q3_test_path("layer  experts              bytes  coverage\n"
                                  "    0        2                240    68.8 %%\n"
                                  "    1        2                240    75.0 %%\n"
                                  "total        4                480    71.9 %% (the least 68.8 %% "
                                  "in layer 0)\n"
                                  "%s: 56.2 %% (the least 50.0 %% in layer 1)\n"
                                  "%s: 87.5 %% (the least 75.0 %% in layer 0)\n",
                                  one, two);
    assert_string_equal(result.out, expected);
    q3_test_expect(result, 0, "");
    free(expected);
}

static void test_wrong_commands(void **state)
{
    (void)state;
    write_profiles();
    char *other = q3_test_path("%s/other.json", q3_test_scratch);
    write_profile(other, (const double[]){1, 1, 1, 1, 1, 1, 1, 1}, 2);
    const struct {
        const char *arguments[6], *message;
        int code;
    } cases[] = {
        {{"pool"}, "expected PROFILE..., found 0 of 1 arguments (see q3-pack pool --help)", 2},
        {{"pool", one}, "expected one of --size, --coverage and --bytes, found none", 2},
        {{"pool", one, "--size", "1", "--bytes=1"},
         "expected one of --size, --coverage and --bytes, found several",
         2},
        {{"pool", one, "--union", "--bytes=1"},
         "--union: a union of pools keeps to no budget; give --size or --coverage, or leave "
         "--union out",
         2},
        {{"pool", one, "--size", "0"},
         "--size: expected a whole number from 1 to 4096, found \"0\" (see q3-pack pool --help)",
         2},
        {{"pool", one, "--size", "5"},
         "--size: expected 1 (as many as are chosen for a token) to 4 (all), found 5",
         2},
        {{"pool", one, "--coverage", "1.5"},
         "--coverage: expected a number from 0 to 1, found \"1.5\" (see q3-pack pool --help)",
         2},
        {{"pool", one, "--bytes", "239"},
         "a budget of 239 bytes: at least 240 are needed, for the 1 best of each of 2 layers",
         2},
        {{"pool", one, "--size=1", "--by", "norm"},
         "--by: expected one of score|weight|chosen|mass, found \"norm\" (see q3-pack pool --help)",
         2},
        {{"pool", one, "--size=1", "--phase", "answer"},
         "ONE: layer 0: no score was counted in the answer",
         5},
        {{"pool", one, "--size=1", "--by", "mass"}, "ONE: layer 0: no mass was counted", 5},
        {{"pool", one, other, "--size=1"},
         "OTHER: is of another model: expected 00000000000000000000000000000001, found "
         "00000000000000000000000000000002",
         3},
        {{"pool", one, "/nowhere/p.json", "--size=1"},
         "/nowhere/p.json: cannot open: No such file or directory",
         1},
        {{"pool", one, "--size=1", "--pack=/nowhere"}, "/nowhere: no such directory", 1},
        {{"heatmap", one, two}, NULL, 2},
        {{"heatmap", one, "--phase", "answer"},
         "ONE: layer 0: no score was counted in the answer",
         5},
        {{"heatmap", one, "--pool", two}, "TWO: \"layers\" is missing", 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const *a = cases[i].arguments;
        char *message = NULL;
        const struct {
            const char *name, *path;
        } names[] = {{"ONE", one}, {"TWO", two}, {"OTHER", other}};
        if (!cases[i].message)
            message = q3_test_path(
                "q3-pack: unexpected argument \"%s\" (see q3-pack heatmap --help)\n", two);
        for (size_t n = 0; !message && n < 3; n++)
            if (strncmp(cases[i].message, names[n].name, strlen(names[n].name)) == 0)
                message = q3_test_path("q3-pack: %s%s\n", names[n].path,
                                       cases[i].message + strlen(names[n].name));
        if (!message)
            message = q3_test_path("q3-pack: %s\n", cases[i].message);
        q3_test_result result =
            q3_test_run(NULL, Q3_TEST_PACK, a[0], a[1], a[2], a[3], a[4], a[5], NULL);
        assert_string_equal(result.out, "");
        q3_test_expect(result, cases[i].code, message);
        free(message);
    }
    free(other);
}

// ---- q3-pack heatmap ----

static void test_heatmap(void **state)
{
    (void)state;
    write_profiles();
    char *picture = q3_test_path("%s/experts.svg", q3_test_scratch);
    q3_test_write_text(pool_path, "{\"layers\": [[1],[0,3]]}");
    q3_test_result shown =
        q3_test_run(NULL, Q3_TEST_PACK, "heatmap", one, "--pool", pool_path, NULL);
    assert_int_equal(shown.code, 0);
    assert_string_equal(shown.err, "");
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "heatmap", one, "--pool", pool_path, "-o", picture, NULL),
        0, "");
    char *text = q3_test_read(picture, NULL);
    assert_string_equal(text, shown.out);
    assert_non_null(strstr(text, ">What each expert adds</text>"));
    assert_non_null(strstr(text, ">a.txt; tokens: prompt 8, answer 0</text>"));
    assert_non_null(strstr(text, ">in the pool</text>"));
    free(text);
    q3_test_result_free(&shown);
    if (exists("/usr/bin/xmllint"))
        q3_test_expect(q3_test_run(NULL, "/usr/bin/xmllint", "--noout", picture, NULL), 0, "");
    shown = q3_test_run(NULL, Q3_TEST_PACK, "heatmap", two, "--by", "chosen", "--phase", "prompt",
                        "--sort", NULL);
    assert_int_equal(shown.code, 0);
    assert_non_null(
        strstr(shown.out, ">How often each expert is chosen: tokens of the prompt</text>"));
    assert_non_null(strstr(shown.out, ">rank of the expert in its layer</text>"));
    q3_test_result_free(&shown);
    free(picture);
}

// ---- the real thing: a pack's model, its sizes ----

static char *extract(const char *name, const char *option, const char *value)
{
    char *pack = q3_test_path("%s/%s", q3_test_scratch, name);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--quiet", option, value, NULL),
        0, "");
    return pack;
}

static q3_hash128 model_of(const char *pack, q3_config *config)
{
    q3_set set;
    q3_hash128 hash;
    assert_ok(q3_set_open(pack, &set, &error));
    assert_ok(q3_profile_model_hash(&set, &hash, &error));
    *config = set.config;
    q3_set_close(&set);
    return hash;
}

static void test_pack(void **state)
{
    (void)state;
    q3_config config;
    char hash[Q3_HASH_TEXT];
    q3_test_write_text(pool_path, "{\"layers\": [[0,1,2,3,4,5,6,7],[0,1,2,3,4,5,6,7],"
                                  "[0,1,2,3,4,5,6,7],[0,1,2,3,4,5,6,7],[0,1,2,3,4,5,6,7],"
                                  "[0,1,2,3,4,5,6,120,121,122,123]]}");
    char *pack = extract("whole", "--codec", "zstd"), *few = extract("few", "--pool", pool_path);
    // The same model, stored otherwise and only in part; this number is the checkpoint's.
    const q3_hash128 model = model_of(pack, &config);
    assert_true(q3_hash128_equal(model, model_of(few, &config)));
    assert_string_equal(q3_hash128_text(model, hash), "9ad46d33bace91b7658c8e9af75565dd");

    q3_profile profile;
    assert_ok(q3_profile_create(&config, model, &profile, &error));
    assert_int_equal(profile.expert_bytes, 12288);
    assert_ok(q3_profile_add_text(&profile, "t", 1, 0, &error));
    for (uint32_t layer = 0; layer < 6; layer++)
        for (uint32_t expert = 0; expert < 8; expert++)
            q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, layer,
                                  layer == 5 ? 120 + expert : expert, 0.125, 8 - expert);
    char *path = q3_test_path("%s/tiny.json", q3_test_scratch);
    char *made = q3_test_path("%s/made.json", q3_test_scratch);
    assert_ok(q3_profile_write(&profile, path, &error));
    // Bytes as the pack stores them.
    q3_test_result result = q3_test_run(NULL, Q3_TEST_PACK, "pool", path, "--size", "8", "--pack",
                                        pack, "--json", "-o", made, NULL);
    assert_string_equal(result.err, "");
    q3_set set;
    assert_ok(q3_set_open(pack, &set, &error));
    uint64_t bytes = 0;
    for (size_t i = 0; i < set.file_count; i++) {
        const q3_place *place = &set.files[i].place;
        if (place->part == Q3_EXPERT &&
            (place->layer == 5 ? place->expert >= 120 : place->expert < 8))
            bytes += set.files[i].size;
    }
    q3_set_close(&set);
    char *line =
        q3_test_path("\n  \"experts\": 48,\n  \"bytes\": %llu,\n", (unsigned long long)bytes);
    assert_non_null(strstr(result.out, line));
    free(line);
    q3_test_expect(result, 0, "");
    // A pack that lacks what would be chosen; within a budget, what it has is chosen.
    line = q3_test_path("q3-pack: %s: layer 5: has no expert 124, which would be chosen\n", few);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "pool", path, "--size", "8", "--pack", few, NULL), 5, line);
    free(line);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "pool", path, "--bytes", "1G", "--pack", few,
                               "--quiet", "-o", made, NULL),
                   0, "");
    q3_pool pool;
    assert_ok(q3_pool_read(made, 6, 128, &pool, &error));
    assert_int_equal(pool.total, 48);
    assert_int_equal(pool.count[5], 8);
    for (uint32_t expert = 120; expert < 124; expert++)
        assert_true(q3_pool_has(&pool, 5, expert));
    q3_pool_destroy(&pool);
    // A profile of another model.
    profile.model.low ^= 1;
    assert_ok(q3_profile_write(&profile, path, &error));
    char other[Q3_HASH_TEXT];
    line = q3_test_path("q3-pack: %s: is of another model: expected %s, found %s\n", path, hash,
                        q3_hash128_text(profile.model, other));
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "pool", path, "--size", "8", "--pack", pack, NULL), 3,
        line);
    free(line);
    // A pack without all routers is no model.
    char *part = extract("part", "--layers", "0-2");
    line = q3_test_path("q3-pack: %s: has no router of layer 3\n", part);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "pool", path, "--size", "8", "--pack", part, NULL), 5,
        line);
    free(line);
    q3_profile_destroy(&profile);
    q3_test_remove_tree(pack);
    q3_test_remove_tree(few);
    q3_test_remove_tree(part);
    free(part);
    free(few);
    free(pack);
    free(made);
    free(path);
}

// ---- q3-extract --pool ----

static const char pool_text[] =
    "{\"layers\": [[127,0],[1],[2,3,4],[5],[6,7,8,9,10,11,12,13,14],[0,64]]}";

static void test_extract(void **state)
{
    (void)state;
    q3_test_write_text(pool_path, pool_text);
    char *pack = extract("pooled", "--pool", pool_path);
    // These and no others.
    q3_set set;
    assert_ok(q3_set_open(pack, &set, &error));
    q3_pool pool, found;
    assert_ok(q3_pool_read(pool_path, 6, 128, &pool, &error));
    assert_ok(q3_pool_create(6, 128, &found, &error));
    for (size_t i = 0; i < set.file_count; i++)
        if (set.files[i].place.part == Q3_EXPERT)
            q3_pool_add(&found, set.files[i].place.layer, set.files[i].place.expert);
    assert_int_equal(found.total, 18);
    assert_memory_equal(found.members, pool.members, 6 * 128);
    assert_int_equal(set.file_count, 3 + 6 * 3 + 18);
    q3_pool_destroy(&found);
    q3_pool_destroy(&pool);
    q3_set_close(&set);
    // A sound pack, of which the verifier finds nothing amiss.
    q3_test_result verified = q3_test_run(NULL, Q3_TEST_VERIFY, "packs", pack, "--deep", "--source",
                                          Q3_TEST_MODEL_DIR, "--quiet", NULL);
    assert_string_equal(verified.err, "");
    assert_int_equal(verified.code, 0);
    q3_test_result_free(&verified);
    // With --layers, of these layers only.
    char *layers = q3_test_path("%s/layers", q3_test_scratch);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, layers, "--quiet",
                               "--layers", "4", "--pool", pool_path, NULL),
                   0, "");
    assert_ok(q3_set_open(layers, &set, &error));
    assert_int_equal(set.file_count, 3 + 3 + 9);
    q3_set_close(&set);
    q3_test_remove_tree(layers);
    free(layers);
    // A pool of the same experts in every layer gives what --experts gives.
    q3_test_write_text(pool_path, "{\"layers\": [[5,3],[3,5],[3,5],[3,5],[3,5],[3,5]]}");
    char *lists = extract("lists", "--experts", "3,5"),
         *pools = extract("pools", "--pool", pool_path);
    q3_test_trees_equal(lists, pools);
    q3_test_remove_tree(lists);
    q3_test_remove_tree(pools);
    q3_test_remove_tree(pack);
    free(lists);
    free(pools);
    free(pack);
}

static void test_wrong_extractions(void **state)
{
    (void)state;
    char *pack = q3_test_path("%s/wrong", q3_test_scratch);
    q3_test_write_text(pool_path, "{\"layers\": [[0]]}");
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--pool", pool_path,
                               "--experts", "0", NULL),
                   2, "q3-extract: --experts and --pool both say which experts: give one\n");
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--pool", pool_path,
                               "--components", "talker", NULL),
                   2,
                   "q3-extract: --layers, --experts and --pool select parts of the text component, "
                   "which --components leaves out\n");
    char *expected =
        q3_test_path("q3-extract: %s: layers: expected the model's 6 layers, found 1\n", pool_path);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--pool", pool_path, NULL), 4,
        expected);
    free(expected);
    assert_int_equal(unlink(pool_path), 0);
    expected = q3_test_path("q3-extract: %s: cannot open: No such file or directory\n", pool_path);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--pool", pool_path, NULL), 1,
        expected);
    free(expected);
    assert_false(exists(pack)); // nothing is written before all is checked
    free(pack);
}

// Shards that come one at a time, with a pool: taken up by any file of the same experts, refused
// with another pool, with a list, and without.
static void test_partial(void **state)
{
    (void)state;
    char *model = q3_test_path("%s/model", q3_test_scratch),
         *away = q3_test_path("%s/away", q3_test_scratch),
         *pack = q3_test_path("%s/pieces", q3_test_scratch);
    q3_test_write_text(pool_path, pool_text);
    char *whole = extract("at-once", "--pool", pool_path);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, true);
    assert_int_equal(mkdir(away, 0777), 0);
    for (unsigned i = 0; i < 7; i++) {
        char *there = q3_test_path("%s/model-%05u-of-00007.safetensors", model, i + 1);
        char *gone = q3_test_path("%s/model-%05u-of-00007.safetensors", away, i + 1);
        assert_int_equal(rename(there, gone), 0);
        free(gone);
        free(there);
    }
    char first_hash[Q3_HASH_TEXT], other_hash[Q3_HASH_TEXT];
    for (unsigned i = 0; i < 7; i++) {
        char *there = q3_test_path("%s/model-%05u-of-00007.safetensors", model, i + 1);
        char *gone = q3_test_path("%s/model-%05u-of-00007.safetensors", away, i + 1);
        assert_int_equal(rename(gone, there), 0);
        if (i == 3) {
            // The same experts, spelled otherwise.
            q3_test_write_text(pool_path, "{\"rule\": {}, \"layers\": [[0,127],[1],[4,3,2],[5],"
                                          "[6,7,8,9,10,11,12,13,14],[64,0]]}");
        }
        q3_test_result found = q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--pool", pool_path,
                                           "--partial", "--quiet", NULL);
        assert_int_equal(found.code, i == 6 ? 0 : 5);
        q3_test_result_free(&found);
        if (i == 2) {
            q3_pool pool;
            assert_ok(q3_pool_read(pool_path, 6, 128, &pool, &error));
            q3_hash128_text(q3_pool_hash(&pool), first_hash);
            q3_pool_add(&pool, 3, 6);
            q3_hash128_text(q3_pool_hash(&pool), other_hash);
            char *other = q3_test_path("%s/other.json", q3_test_scratch);
            assert_ok(q3_pool_write(&pool, other, &error));
            q3_pool_destroy(&pool);
            const struct {
                const char *option, *value;
                char *now;
            } cases[] = {
                {"--pool", other, q3_test_path("experts of pool %s", other_hash)},
                {"--experts", "0-7", q3_test_path("experts 0-7")},
                {"--codec", "bitplane", q3_test_path("experts all")},
            };
            for (size_t k = 0; k < 3; k++) {
                char *expected = q3_test_path(
                    "q3-extract: %s/extract.journal: an unfinished extraction was asked for "
                    "otherwise: before \"experts of pool %s\", now \"%s\"\n",
                    pack, first_hash, cases[k].now);
                q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, cases[k].option,
                                           cases[k].value, "--partial", NULL),
                               6, expected);
                free(expected);
                free(cases[k].now);
            }
            free(other);
        }
        assert_int_equal(rename(there, gone), 0);
        free(gone);
        free(there);
    }
    q3_test_trees_equal(pack, whole);
    q3_test_remove_tree(pack);
    q3_test_remove_tree(whole);
    q3_test_remove_tree(model);
    q3_test_remove_tree(away);
    free(whole);
    free(pack);
    free(away);
    free(model);
}

static int set_up(void **state)
{
    const int failed = q3_test_make_scratch(state);
    one = q3_test_path("%s/one.json", q3_test_scratch);
    two = q3_test_path("%s/two.json", q3_test_scratch);
    pool_path = q3_test_path("%s/pool.json", q3_test_scratch);
    return failed;
}

static int tear_down(void **state)
{
    free(one);
    free(two);
    free(pool_path);
    return q3_test_remove_scratch(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_wrong_commands),
        cmocka_unit_test(test_heatmap),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_extract),
        cmocka_unit_test(test_wrong_extractions),
        cmocka_unit_test(test_partial),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
