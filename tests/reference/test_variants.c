// SPDX-License-Identifier: Apache-2.0
//
// Other configurations than the tiny model's, against the numbers that transformers gives for them
// (variants.json): write each as a checkpoint of random weights, extract it, run it, compare.
#include "checkpoint_writer.h"
#include "engine.h"
#include "extract.h"
#include "json.h"
#include "level.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Numbers in two parts of bf16 lack what is below 2^-17 of them, of which `text-only` makes the
// most.
static double logit_tolerance(void)
{
    return q3_cpu_in_use() <= Q3_CPU_AVX512 ? 2e-4 : 5e-4;
}

enum { IDS_MAX = 128, GREEDY = 16 };

static cJSON *reference;

static int load_reference(void **state)
{
    (void)state;
    reference = q3_test_load_json(Q3_TEST_VARIANTS);
    return 0;
}

static int free_reference(void **state)
{
    (void)state;
    cJSON_Delete(reference);
    return 0;
}

// Writes the variant's checkpoint and extracts it; returns the pack's path, to free().
static char *make_pack(const cJSON *variant, const char *directory)
{
    q3_error error;
    char *config = q3_test_path("%s/config.json", directory);
    char *model = q3_test_path("%s/model", directory);
    char *pack = q3_test_path("%s/pack", directory);
    char *text = cJSON_Print(q3_test_member(variant, "config"));
    assert_non_null(text);
    q3_test_write_text(config, text);
    const q3_checkpoint_options options = {.config = config,
                                           .directory = model,
                                           .seed = (uint64_t)q3_test_number(variant, "seed"),
                                           .shard_bytes =
                                               (uint64_t)q3_test_number(reference, "shard_bytes"),
                                           .jobs = 1};
    assert_ok(q3_checkpoint_write(&options, NULL, &error));
    const q3_extract_options extract = {.model_directory = model,
                                        .pack_directory = pack,
                                        .selection = {.components = "text"},
                                        .codec = Q3_CODEC_RAW,
                                        .jobs = 1,
                                        .quiet = true};
    q3_extract_result result;
    assert_ok(q3_extract(&extract, &result, &error));
    cJSON_free(text);
    free(model);
    free(config);
    return pack;
}

// Compares the last logits and then the greedy answer. Returns the largest difference.
static double check_case(q3_session *session, uint32_t vocabulary, const cJSON *expected)
{
    double largest = 0;
    q3_error error;
    uint32_t ids[IDS_MAX];
    q3_session_truncate(session, 0);
    assert_ok(q3_session_feed(
        session, ids, q3_test_ids(q3_test_member(expected, "ids"), ids, IDS_MAX), NULL, &error));
    const float *logits = q3_session_logits(session);
    const cJSON *item, *array = q3_test_member(expected, "logits");
    assert_int_equal(cJSON_GetArraySize(array), vocabulary);
    uint32_t i = 0;
    cJSON_ArrayForEach(item, array)
    {
        const double difference = fabs(item->valuedouble - (double)logits[i]);
        if (!(difference <= logit_tolerance()))
            fail_msg("logit %u: expected %.9g, found %.9g", i, item->valuedouble,
                     (double)logits[i]);
        largest = fmax(largest, difference);
        i++;
    }
    assert_int_equal(q3_test_ids(q3_test_member(expected, "greedy_ids"), ids, IDS_MAX), GREEDY);
    for (i = 0; i < GREEDY; i++) {
        uint32_t best = 0;
        for (uint32_t id = 1; id < vocabulary; id++)
            if (logits[id] > logits[best])
                best = id;
        assert_int_equal(best, ids[i]);
        assert_ok(q3_session_feed(session, &best, 1, NULL, &error));
        logits = q3_session_logits(session);
    }
    return largest;
}

static void check_variant(void **state)
{
    const char *name = *state;
    const cJSON *variant, *found = NULL, *expected;
    cJSON_ArrayForEach(variant, q3_test_member(reference, "variants"))
    {
        if (strcmp(q3_test_string(variant, "name"), name) == 0)
            found = variant;
    }
    assert_non_null(found);
    q3_error error;
    char *directory = q3_test_directory();
    char *pack = make_pack(found, directory);
    q3_engine *engine;
    q3_session *session;
    assert_ok(q3_engine_open(pack, &(q3_engine_options){.threads = 2}, &engine, &error));
    assert_ok(q3_session_create(engine, &session, &error));
    assert_int_equal(cJSON_GetArraySize(q3_test_member(found, "cases")), 2);
    const uint32_t vocabulary = q3_engine_describe(engine)->config->vocab_size;
    double largest = 0;
    cJSON_ArrayForEach(expected, q3_test_member(found, "cases"))
    {
        largest = fmax(largest, check_case(session, vocabulary, expected));
    }
    print_message("%s: logits differ by at most %.3g\n", name, largest);
    q3_session_destroy(session);
    q3_engine_close(engine);
    free(pack);
    q3_test_remove(directory);
}

int main(int argc, char **argv)
{
    if (!q3_test_has_level(argc, argv))
        return Q3_TEST_SKIPPED;
    static char unnormalised[] = "unnormalised", text_only[] = "text-only",
                rope_parameters[] = "rope-parameters", all_experts[] = "all-experts";
    const struct CMUnitTest tests[] = {
        {unnormalised, check_variant, NULL, NULL, unnormalised},
        {text_only, check_variant, NULL, NULL, text_only},
        {rope_parameters, check_variant, NULL, NULL, rope_parameters},
        {all_experts, check_variant, NULL, NULL, all_experts},
    };
    return cmocka_run_group_tests(tests, load_reference, free_reference);
}
