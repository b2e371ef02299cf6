// SPDX-License-Identifier: Apache-2.0
//
// The sampler: its generator, its filters one by one and in their order, and its defaults' file.
#include "sampler.h"

#include "base/file.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { COUNT = 5 };

static float probable[COUNT]; // the logits of the probabilities 1/2, 1/4, 1/8, 1/16, 1/16

static int fill_logits(void **state)
{
    (void)state;
    static const float of[COUNT] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.0625f};
    for (size_t i = 0; i < COUNT; i++)
        probable[i] = logf(of[i]);
    return 0;
}

static q3_sampler *create(const q3_sampling *sampling, uint32_t count)
{
    q3_error err;
    q3_sampler *sampler;
    if (!q3_sampler_create(sampling, count, &sampler, &err))
        fail_msg("%s", err.message);
    return sampler;
}

static uint32_t next(q3_sampler *sampler, const float *logits)
{
    q3_error err;
    uint32_t id;
    if (!q3_sampler_next(sampler, logits, &id, &err))
        fail_msg("%s", err.message);
    return id;
}

// Which ids come up in 2000 draws, as a set of bits. None that may come is rarer than one in 20.
static uint32_t drawn(const q3_sampling *sampling)
{
    q3_sampler *sampler = create(sampling, COUNT);
    uint32_t set = 0;
    for (size_t i = 0; i < 2000; i++)
        set |= 1u << next(sampler, probable);
    q3_sampler_destroy(sampler);
    return set;
}

static void generator(void **state)
{
    (void)state;
    // The published first outputs of SplitMix64 from 0, and of xoshiro256** from {1, 2, 3, 4}.
    q3_random random;
    q3_random_seed(&random, 0);
    assert_true(random.state[0] == 0xe220a8397b1dcdaf);
    assert_true(random.state[1] == 0x6e789e6aa1b965f4);
    assert_true(random.state[2] == 0x06c45d188009454f);
    assert_true(random.state[3] == 0xf88bb8a8724c81ec);
    random = (q3_random){{1, 2, 3, 4}};
    static const uint64_t outputs[] = {11520,
                                       0,
                                       1509978240,
                                       1215971899390074240,
                                       1216172134540287360,
                                       607988272756665600,
                                       16172922978634559625u,
                                       8476171486693032832,
                                       10595114339597558777u,
                                       2904607092377533576};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        assert_true(q3_random_next(&random) == outputs[i]);
}

static void greedy(void **state)
{
    (void)state;
    const q3_sampling sampling = q3_sampling_default();
    q3_sampler *sampler = create(&sampling, 4);
    assert_int_equal(next(sampler, (const float[]){1, 3, 2, -1}), 1);
    assert_int_equal(next(sampler, (const float[]){1, 3, 3, 3}), 1);
    assert_int_equal(next(sampler, (const float[]){-5, -4, -3, -2}), 3);
    assert_int_equal(next(sampler, (const float[]){-INFINITY, -INFINITY, -3e38f, -INFINITY}), 2);
    q3_sampler_destroy(sampler);
}

static void padding_is_never_sampled(void **state)
{
    (void)state;
    const float logits[] = {1, 2, 0, 100, NAN};
    q3_sampling sampling = q3_sampling_default();
    q3_sampler *sampler = create(&sampling, 3);
    assert_int_equal(next(sampler, logits), 1);
    q3_sampler_destroy(sampler);
    sampling.temperature = 100;
    sampler = create(&sampling, 3);
    uint32_t set = 0;
    for (size_t i = 0; i < 200; i++)
        set |= 1u << next(sampler, logits);
    assert_int_equal(set, 7);
    q3_sampler_destroy(sampler);
}

static void broken_logits(void **state)
{
    (void)state;
    static const struct {
        float logits[3];
        const char *message;
    } bad[] = {
        {{0, NAN, 1}, "logits: the value for token 1 is not a number"},
        {{0, 1, INFINITY}, "logits: the value for token 2 is infinite"},
        {{-INFINITY, -INFINITY, -INFINITY}, "logits: all 3 values are minus infinity"},
    };
    for (size_t i = 0; i < 6; i++) {
        q3_error err;
        uint32_t id;
        q3_sampling sampling = q3_sampling_default();
        sampling.temperature = i < 3 ? 0 : 1;
        q3_sampler *sampler = create(&sampling, 3);
        assert_false(q3_sampler_next(sampler, bad[i % 3].logits, &id, &err));
        assert_string_equal(err.message, bad[i % 3].message);
        assert_int_equal(err.code, Q3_FAILED);
        q3_sampler_destroy(sampler);
    }
}

static void repeat_penalty(void **state)
{
    (void)state;
    q3_sampling sampling = q3_sampling_default();
    sampling.repeat_penalty = 2;
    q3_sampler *sampler = create(&sampling, 4);
    // 5 / 2 falls behind 3; both sampled, 4 / 2 leads 3 / 2.
    assert_int_equal(next(sampler, (const float[]){5, 3, 0, -9}), 0);
    assert_int_equal(next(sampler, (const float[]){5, 3, 0, -9}), 1);
    assert_int_equal(next(sampler, (const float[]){4, 3, 0, -9}), 0);
    // -3 * 2 falls behind -4, which has not been seen.
    q3_sampler_reset(sampler);
    q3_sampler_see(sampler, (const uint32_t[]){1, 1, 700}, 3);
    assert_int_equal(next(sampler, (const float[]){-8, -3, -4, -9}), 2);
    q3_sampler_reset(sampler);
    assert_int_equal(next(sampler, (const float[]){-8, -3, -4, -9}), 1);
    q3_sampler_destroy(sampler);
}

static void temperature_zero_ignores_filters(void **state)
{
    (void)state;
    q3_sampling sampling = q3_sampling_default();
    sampling.top_k = 3;
    sampling.top_p = 0.9;
    sampling.min_p = 0.1;
    assert_int_equal(drawn(&sampling), 1);
}

static void draws_by_seed(void **state)
{
    (void)state;
    // Worked out from the generator's definition in another program.
    static const uint32_t of_42[] = {0, 0, 1, 3, 4, 2, 1, 2, 2, 1, 1, 0, 2, 0, 1, 3,
                                     1, 2, 1, 1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 1};
    static const uint32_t of_7[] = {1, 0, 2, 4, 4, 2, 0, 0, 0, 0, 1, 1, 4, 3, 0, 1,
                                    0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0};
    q3_sampling sampling = q3_sampling_default();
    sampling.temperature = 1;
    for (size_t round = 0; round < 2; round++) {
        sampling.seed = round ? 7 : 42;
        const uint32_t *expected = round ? of_7 : of_42;
        q3_sampler *sampler = create(&sampling, COUNT);
        for (size_t again = 0; again < 2; again++) {
            for (size_t i = 0; i < 32; i++)
                assert_int_equal(next(sampler, probable), expected[i]);
            q3_sampler_reset(sampler);
        }
        q3_sampler_destroy(sampler);
    }
}

static void filters(void **state)
{
    (void)state;
    static const struct {
        double temperature;
        uint32_t top_k;
        double top_p, min_p;
        uint32_t expected; // the ids that may come, as bits
    } cases[] = {
        {1, 0, 1, 0, 0x1f},
        {1, 1, 1, 0, 0x01},
        {1, 2, 1, 0, 0x03},
        {1, 3, 1, 0, 0x07},
        {1, 4, 1, 0, 0x1f}, // the fourth and the fifth are equal
        {1, 9, 1, 0, 0x1f},
        {1, 0, 0, 0, 0x01},
        {1, 0, 0.49, 0, 0x01},
        {1, 0, 0.51, 0, 0x03},
        {1, 0, 0.74, 0, 0x03},
        {1, 0, 0.76, 0, 0x07},
        {1, 0, 0.93, 0, 0x0f}, // of equals, the lower id
        {1, 0, 0.95, 0, 0x1f},
        {1, 0, 1, 0.6, 0x01},
        {1, 0, 1, 0.49, 0x03},
        {1, 0, 1, 0.2, 0x07},
        {1, 0, 1, 0.1, 0x1f},
        {1, 2, 0.6, 0, 0x01},   // of the two that are left, the first has 2/3
        {0.5, 0, 0.7, 0, 0x01}, // squared, the first has 0.74
        {2, 0, 0.5, 0, 0x03},   // square roots: the first has 0.37, the second 0.26
        {2, 0, 1, 0.49, 0x07},  // square roots: 1, 0.71, 0.5, 0.35, 0.35
        {1, 0, 0.76, 0.45, 0x03},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_sampling sampling = q3_sampling_default();
        sampling.temperature = cases[i].temperature;
        sampling.top_k = cases[i].top_k;
        sampling.top_p = cases[i].top_p;
        sampling.min_p = cases[i].min_p;
        const uint32_t set = drawn(&sampling);
        if (set != cases[i].expected)
            fail_msg("case %zu: expected the ids 0x%02x, found 0x%02x", i, cases[i].expected, set);
    }
}

// Filters gather candidates in steps: a large vocabulary with its few good tokens far apart.
static void large_vocabulary(void **state)
{
    (void)state;
    enum { MANY = 20000 };
    float *logits = malloc(MANY * sizeof *logits);
    assert_non_null(logits);
    for (size_t i = 0; i < MANY; i++)
        logits[i] = -3000 - (float)(i % 100);
    logits[500] = 0;
    logits[19999] = -30;
    logits[3] = -300;
    q3_sampling sampling = q3_sampling_default();
    sampling.temperature = 100;
    sampling.top_k = 3;
    q3_sampler *sampler = create(&sampling, MANY);
    size_t found[3] = {0};
    for (size_t i = 0; i < 500; i++) {
        const uint32_t id = next(sampler, logits);
        assert_true(id == 500 || id == 19999 || id == 3);
        found[id == 500 ? 0 : id == 19999 ? 1 : 2]++;
    }
    assert_true(found[0] > found[1] && found[1] > found[2] && found[2] > 0);
    q3_sampler_destroy(sampler);

    // All equal: the nucleus is the lower half.
    for (size_t i = 0; i < MANY; i++)
        logits[i] = 1;
    sampling.top_k = 0;
    sampling.top_p = 0.5;
    sampler = create(&sampling, MANY);
    for (size_t i = 0; i < 100; i++)
        assert_true(next(sampler, logits) < MANY / 2);
    q3_sampler_destroy(sampler);
    free(logits);
}

static void parameters_are_checked(void **state)
{
    (void)state;
    static const struct {
        double temperature, top_p, min_p, repeat_penalty;
        const char *message;
    } bad[] = {
        {-1, 1, 0, 1, "temperature: expected 0 or a number from 0.001 to 100, found -1"},
        {1e-9, 1, 0, 1, "temperature: expected 0 or a number from 0.001 to 100, found 1e-09"},
        {101, 1, 0, 1, "temperature: expected 0 or a number from 0.001 to 100, found 101"},
        {1, 1.5, 0, 1, "top_p: expected a number from 0 to 1, found 1.5"},
        {1, 1, -0.5, 1, "min_p: expected a number from 0 to 1, found -0.5"},
        {1, 1, 0, 0, "repeat_penalty: expected a number from 0.01 to 100, found 0"},
    };
    q3_error err;
    q3_sampler *sampler;
    q3_sampling sampling = q3_sampling_default();
    assert_true(q3_sampling_check(&sampling, &err));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        sampling.temperature = bad[i].temperature;
        sampling.top_p = bad[i].top_p;
        sampling.min_p = bad[i].min_p;
        sampling.repeat_penalty = bad[i].repeat_penalty;
        assert_false(q3_sampler_create(&sampling, 1, &sampler, &err));
        assert_string_equal(err.message, bad[i].message);
        assert_int_equal(err.code, Q3_USAGE);
    }
    sampling = q3_sampling_default();
    sampling.top_p = NAN;
    assert_false(q3_sampling_check(&sampling, &err));
    sampling = q3_sampling_default();
    assert_false(q3_sampler_create(&sampling, 0, &sampler, &err));
    assert_string_equal(err.message, "sampler: expected at least one token");
}

// ---- generation_config.json ----

// Loads defaults from a file that holds `text`. What a message says is compared without the path.
static bool load_text(const char *text, q3_sampling *sampling, char message[Q3_ERROR_MESSAGE_MAX],
                      int *code)
{
    char path[] = "/tmp/q3-test-sampler-XXXXXX";
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), strlen(text));
    close(file);
    q3_error err = {0};
    const bool ok = q3_sampling_load(path, sampling, &err);
    unlink(path);
    message[0] = 0;
    if (!ok) {
        assert_memory_equal(err.message, path, strlen(path));
        strcpy(message, err.message + strlen(path));
    }
    *code = err.code;
    return ok;
}

static void assert_loads(const char *text, q3_sampling expected)
{
    char message[Q3_ERROR_MESSAGE_MAX];
    int code;
    q3_sampling sampling = q3_sampling_default();
    sampling.seed = expected.seed = 9;
    if (!load_text(text, &sampling, message, &code))
        fail_msg("%s", message);
    assert_true(sampling.temperature == expected.temperature);
    assert_int_equal(sampling.top_k, expected.top_k);
    assert_true(sampling.top_p == expected.top_p);
    assert_true(sampling.min_p == expected.min_p);
    assert_true(sampling.repeat_penalty == expected.repeat_penalty);
    assert_true(sampling.seed == expected.seed);
    assert_int_equal(sampling.stop_count, expected.stop_count);
    for (size_t i = 0; i < expected.stop_count; i++)
        assert_int_equal(sampling.stop_ids[i], expected.stop_ids[i]);
}

static void defaults_from_a_file(void **state)
{
    (void)state;
    q3_sampling expected = q3_sampling_default();
    assert_loads("{}", expected);
    assert_loads("{\"talker_temperature\": 0.9, \"talker_top_k\": 50}", expected);
    assert_loads("{\"top_k\": 20, \"top_p\": 0.5}",
                 (q3_sampling){.top_k = 20, .top_p = 0.5, .repeat_penalty = 1});
    assert_loads(
        "{\"max_new_tokens\": 32768, \"temperature\": 0.6, \"top_p\": 0.95,\n"
        " \"top_k\": 20, \"repetition_penalty\": 1.0}",
        (q3_sampling){.temperature = 0.6, .top_k = 20, .top_p = 0.95, .repeat_penalty = 1});
    assert_loads("{\"do_sample\": false, \"temperature\": 0.6, \"repetition_penalty\": 1.05}",
                 (q3_sampling){.top_p = 1, .repeat_penalty = 1.05});
    assert_loads("{\"do_sample\": true, \"min_p\": 0.05, \"top_k\": null}",
                 (q3_sampling){.temperature = 1, .top_p = 1, .min_p = 0.05, .repeat_penalty = 1});
    assert_loads("{\"temperature\": null, \"eos_token_id\": null}", expected);
    expected.stop_count = 1;
    expected.stop_ids[0] = 151645;
    assert_loads("{\"eos_token_id\": 151645}", expected);
    expected.stop_count = 2;
    expected.stop_ids[1] = 151643;
    assert_loads("{\"eos_token_id\": [151645, 151643]}", expected);
}

static void tiny_model_is_greedy(void **state)
{
    (void)state;
    q3_error err;
    q3_sampling sampling = q3_sampling_default();
    assert_true(q3_sampling_load(Q3_TEST_MODEL_DIR "/generation_config.json", &sampling, &err));
    assert_true(sampling.temperature == 0);
    assert_true(sampling.repeat_penalty == 1);
    assert_int_equal(sampling.stop_count, 0);
}

static void absent_file_changes_nothing(void **state)
{
    (void)state;
    q3_error err;
    q3_sampling sampling = q3_sampling_default();
    sampling.temperature = 0.25;
    sampling.top_k = 3;
    assert_true(q3_sampling_load(Q3_TEST_MODEL_DIR "/absent.json", &sampling, &err));
    assert_true(sampling.temperature == 0.25);
    assert_int_equal(sampling.top_k, 3);
    assert_false(q3_sampling_load(Q3_TEST_MODEL_DIR, &sampling, &err));
    assert_string_equal(err.message, Q3_TEST_MODEL_DIR ": not a regular file");
    assert_int_equal(err.code, Q3_FAILED);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", ": not valid JSON: the text ends too early at byte 0"},
        {"[]", ": expected an object"},
        {"{\"temperature\": \"hot\"}",
         ": temperature: expected a number from 0 to 100, found \"hot\""},
        {"{\"temperature\": -1}", ": temperature: expected a number from 0 to 100, found -1"},
        {"{\"temperature\": 1e-9}",
         ": temperature: expected 0 or a number from 0.001 to 100, found 1e-09"},
        {"{\"top_p\": 2}", ": top_p: expected a number from 0 to 1, found 2"},
        {"{\"top_k\": 1.5}", ": top_k: expected an integer from 0 to 4294967295, found 1.5"},
        {"{\"repetition_penalty\": 0}",
         ": repetition_penalty: expected a number from 0.01 to 100, found 0"},
        {"{\"do_sample\": 1}", ": do_sample: expected true or false, found 1"},
        {"{\"eos_token_id\": -1}",
         ": eos_token_id: expected an integer from 0 to 4294967295, found -1"},
        {"{\"eos_token_id\": [1, \"2\"]}",
         ": eos_token_id[1]: expected an integer from 0 to 4294967295, found \"2\""},
        {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}",
         ": eos_token_id[16]: expected at most 16 ids"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char message[Q3_ERROR_MESSAGE_MAX];
        int code;
        q3_sampling sampling = q3_sampling_default();
        assert_false(load_text(bad[i].text, &sampling, message, &code));
        assert_string_equal(message, bad[i].message);
        assert_int_equal(code, Q3_MALFORMED);
        assert_int_equal(sampling.stop_count, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generator),
        cmocka_unit_test(greedy),
        cmocka_unit_test(padding_is_never_sampled),
        cmocka_unit_test(broken_logits),
        cmocka_unit_test(repeat_penalty),
        cmocka_unit_test(temperature_zero_ignores_filters),
        cmocka_unit_test(draws_by_seed),
        cmocka_unit_test(filters),
        cmocka_unit_test(large_vocabulary),
        cmocka_unit_test(parameters_are_checked),
        cmocka_unit_test(defaults_from_a_file),
        cmocka_unit_test(tiny_model_is_greedy),
        cmocka_unit_test(absent_file_changes_nothing),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests(tests, fill_logits, NULL);
}
