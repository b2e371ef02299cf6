// SPDX-License-Identifier: Apache-2.0
//
// q3-verify as it is run: output, messages and exit codes.
#include "base/json.h"
#include "damage.h"
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TINY_MANIFEST Q3_TEST_MANIFEST_DIR "/tiny-omni.json"

// Runs q3-verify with these arguments.
#define RUN(...) q3_test_run(NULL, Q3_TEST_VERIFY, __VA_ARGS__, NULL)

static void assert_result(q3_test_result result, int code, const char *out, const char *err)
{
    assert_string_equal(result.err, err);
    assert_string_equal(result.out, out);
    assert_int_equal(result.code, code);
    q3_test_result_free(&result);
}

// A pack directory without expert 127, made once.
static char *directory, *pack;

static int create_pack(void **state)
{
    (void)state;
    directory = q3_test_directory();
    pack = q3_test_path("%s/pack", directory);
    pack_create(pack, "text", NULL, "0-126", Q3_CODEC_RAW);
    return 0;
}

static int remove_pack(void **state)
{
    (void)state;
    q3_test_remove(directory);
    free(pack);
    return 0;
}

static void nothing_wrong(void **state)
{
    (void)state;
    char *scratch = q3_test_directory(), *small = q3_test_path("%s/pack", scratch);
    size_t size;
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR, "--manifest", TINY_MANIFEST), 0,
                  "0 differences in 2,610 tensors, 7 files, 11.4 MB\n", "");
    assert_result(
        RUN("shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--components", "text,talker"), 0,
        "0 differences in 2,440 tensors, 7 files, 11.1 MB\n", "");
    pack_create(small, "text", "0", "0", Q3_CODEC_RAW);
    assert_result(RUN("packs", small, "--source", Q3_TEST_MODEL_DIR, "-j", "2"), 0,
                  "0 differences in 15 tensors, 12 files, 1.0 MB\n", "");
    assert_result(RUN("packs", small, "--deep"), 0,
                  "0 differences in 15 tensors, 12 files, 1.0 MB\n", "");
    assert_result(RUN("packs", small, "--sample", "1/3"), 0,
                  "note: a sample: the bytes of 1 of 15 tensors were read\n"
                  "note: stored bytes were checked; --deep also decodes them and checks the "
                  "tensors' own hashes\n"
                  "0 differences in 15 tensors, 12 files, 1.0 MB\n",
                  "");
    char *manifest = q3_test_read(TINY_MANIFEST, &size);
    assert_result(RUN("manifest", Q3_TEST_MODEL_DIR "/config.json"), 0, manifest, "");
    free(manifest);
    free(small);
    q3_test_remove(scratch);
}

static void differences_for_people(void **state)
{
    (void)state;
    char *part = q3_test_path("%s/layers/03/router.q3p.part", pack);
    q3_test_write(part, "x", 1);
    assert_result(RUN("shapes", pack, "-m", TINY_MANIFEST), 3,
                  "missing (18):\n"
                  "  layers 0–5: expert 127 (18 tensors): not in pack.json\n"
                  "18 differences in 2,361 tensors, 783 files, 10.9 MB (18 missing)\n",
                  "");
    char *out = q3_test_path("stray (1):\n"
                             "  %s: left over from an extraction that was ended\n"
                             "1 difference in 2,343 tensors, 788 files, 14.3 MB (1 stray)\n",
                             part);
    assert_result(RUN("packs", pack, "--deep"), 3, out, "");
    free(out);
    out = q3_test_path("stray (1, allowed):\n"
                       "  %s: left over from an extraction that was ended\n"
                       "0 differences in 2,343 tensors, 788 files, 14.3 MB (1 stray allowed)\n",
                       part);
    assert_result(RUN("packs", pack, "--deep", "--allow", "absent,stray"), 0, out, "");
    free(out);
    assert_int_equal(remove(part), 0);
    free(part);
}

static void what_repeats_is_counted(void **state)
{
    (void)state;
    char *scratch = q3_test_directory(), *small = q3_test_path("%s/pack", scratch);
    pack_create(small, "text", "0", "0-63", Q3_CODEC_RAW);
    q3_test_result o = RUN("shapes", small, "-m", TINY_MANIFEST);
    assert_int_equal(o.code, 3);
    assert_string_equal(o.out,
                        "missing (2,157):\n"
                        "  layers 1–5: input_layernorm.weight, mlp.gate.weight, "
                        "post_attention_layernorm.weight, self_attn.k_norm.weight and 5 others (45 "
                        "tensors): not in pack.json\n"
                        "  layer 0: experts 64–127 (192 tensors): not in pack.json\n"
                        "  layers 1–5: experts 0–127 (1,920 tensors): not in pack.json\n"
                        "2,157 differences in 2,361 tensors, 70 files, 1.7 MB (2,157 missing)\n");
    assert_string_equal(o.err, "");
    q3_test_result_free(&o);
    free(small);
    q3_test_remove(scratch);
}

static void differences_for_programs(void **state)
{
    (void)state;
    q3_test_result o = RUN("shapes", pack, "-m", TINY_MANIFEST, "--json");
    assert_int_equal(o.code, 3);
    assert_string_equal(o.err, "");
    unsigned findings = 0, summaries = 0;
    char *rest = o.out, *line;
    while ((line = strsep(&rest, "\n")) != NULL && *line) {
        q3_json json;
        q3_error err;
        assert_int_equal(summaries, 0);
        if (!q3_json_parse("out", (q3_bytes){(const uint8_t *)line, strlen(line)}, &json, &err))
            fail_msg("%s", err.message);
        const char *type = q3_test_string(json.root, "type");
        if (strcmp(type, "finding") == 0) {
            if (findings++ == 0)
                assert_string_equal(
                    line, "{\"type\": \"finding\", \"kind\": \"missing\", \"tensor\": "
                          "\"thinker.model.layers.0.mlp.experts.127.down_proj.weight\", "
                          "\"expected\": \"BF16 [128, 16]\", \"message\": "
                          "\"thinker.model.layers.0.mlp.experts.127.down_proj.weight: expected "
                          "BF16 [128, 16], found nothing: pack.json does not list it\"}");
        } else {
            assert_string_equal(type, "summary");
            summaries++;
            assert_string_equal(q3_test_string(json.root, "command"), "shapes");
            assert_string_equal(q3_test_string(json.root, "path"), pack);
            assert_string_equal(q3_test_string(json.root, "against"), TINY_MANIFEST);
            assert_true(q3_test_number(json.root, "differences") == 18);
            assert_true(q3_test_number(json.root, "tensors") == 2361);
            assert_true(q3_test_number(q3_test_member(json.root, "counts"), "missing") == 18);
        }
        q3_json_free(&json);
    }
    assert_int_equal(findings, 18);
    assert_int_equal(summaries, 1);
    q3_test_result_free(&o);
}

static void a_command_line_that_makes_no_sense(void **state)
{
    (void)state;
    char *scratch = q3_test_directory();
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR), 2, "",
                  "q3-verify: shapes: --manifest is missing (see q3-verify shapes --help)\n");
    assert_result(RUN("shapes", "-m", TINY_MANIFEST), 2, "",
                  "q3-verify: expected PATH, found 0 of 1 arguments (see q3-verify shapes "
                  "--help)\n");
    assert_result(
        RUN("shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--components", "text,speech"), 2, "",
        "q3-verify: --components: \"speech\" is no component\n");
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR, "-m",
                      Q3_TEST_MANIFEST_DIR "/qwen3-omni-30b-a3b-thinking.json", "--components",
                      "talker"),
                  2, "", "q3-verify: --components: the manifest has no component \"talker\"\n");
    assert_result(RUN("packs", scratch, "--jobs", "0"), 2, "",
                  "q3-verify: --jobs: expected a whole number from 1 to 256, found \"0\" (see "
                  "q3-verify packs --help)\n");
    assert_result(RUN("packs", scratch, "--sample", "7/3"), 2, "",
                  "q3-verify: --sample: expected a share such as 5% or a part such as 1/7 (of at "
                  "most 1000), found \"7/3\"\n");
    assert_result(RUN("packs", pack, "--allow", "stray,odd"), 2, "",
                  "q3-verify: --allow: \"odd\" is no kind of finding\n");
    assert_result(RUN("packs", pack, "--json", "--github"), 2, "",
                  "q3-verify: --json and --github both write to standard output\n");
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--headers-only", "--data"),
                  2, "", "q3-verify: --headers-only: --data and --sha256 read whole shards\n");
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--sha256"), 2, "",
                  "q3-verify: --sha256: the manifest lists no shards (see q3-verify manifest "
                  "--shards)\n");
    char *err = q3_test_path("q3-verify: %s: a pack directory; --data, --sha256 and --headers-only "
                             "are for checkpoints\n",
                             pack);
    assert_result(RUN("shapes", pack, "-m", TINY_MANIFEST, "--data"), 2, "", err);
    free(err);
    q3_test_remove(scratch);
}

static void input_that_cannot_be_examined(void **state)
{
    (void)state;
    char *scratch = q3_test_directory();
    assert_result(
        RUN("shapes", Q3_TEST_MODEL_DIR, "-m", Q3_TEST_MODEL_DIR "/generation_config.json"), 4, "",
        "q3-verify: " Q3_TEST_MODEL_DIR "/generation_config.json: \"format\" is missing\n");
    assert_result(RUN("shapes", Q3_TEST_MODEL_DIR, "-m", "/absent.json"), 1, "",
                  "q3-verify: /absent.json: cannot open: No such file or directory\n");
    char *err =
        q3_test_path("q3-verify: %s: no model.safetensors.index.json: not a checkpoint\n", scratch);
    assert_result(RUN("shapes", scratch, "-m", TINY_MANIFEST), 5, "", err);
    free(err);
    err = q3_test_path("q3-verify: %s: no pack.json: not a pack directory, or an unfinished "
                       "extraction\n",
                       scratch);
    assert_result(RUN("packs", scratch), 5, "", err);
    free(err);
    err = q3_test_path("q3-verify: %s/absent: no such directory\n", scratch);
    char *absent = q3_test_path("%s/absent", scratch);
    assert_result(RUN("packs", absent), 1, "", err);
    free(absent);
    free(err);
    char *index = q3_test_path("%s/model.safetensors.index.json", scratch);
    q3_test_write(index, "{\"weight_map\": {}}", 18);
    err = q3_test_path("q3-verify: %s: weight_map: lists no tensors\n", index);
    assert_result(RUN("shapes", scratch, "-m", TINY_MANIFEST), 4, "", err);
    free(err);
    free(index);
    char *config = q3_test_path("%s/config.json", scratch);
    q3_test_write(config, "{\"model_type\": \"llama\"}", 23);
    err = q3_test_path(
        "q3-verify: %s: model_type: expected \"qwen3_omni_moe\" or \"qwen3_moe\", found "
        "\"llama\"\n",
        config);
    assert_result(RUN("manifest", config), 4, "", err);
    free(err);
    free(config);
    q3_test_remove(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_wrong),
        cmocka_unit_test(differences_for_people),
        cmocka_unit_test(what_repeats_is_counted),
        cmocka_unit_test(differences_for_programs),
        cmocka_unit_test(a_command_line_that_makes_no_sense),
        cmocka_unit_test(input_that_cannot_be_examined),
    };
    return cmocka_run_group_tests(tests, create_pack, remove_pack);
}
