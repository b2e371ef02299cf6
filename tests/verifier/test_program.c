// SPDX-License-Identifier: Apache-2.0
//
// q3-verify as it is run: output, messages and exit codes. The program's path is the argument.
#include "base/json.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TINY_MANIFEST Q3_TEST_MANIFEST_DIR "/tiny-omni.json"

static const char *program;

typedef struct outcome {
    int code;
    char *out, *err;
} outcome;

static void outcome_free(outcome *o)
{
    free(o->out);
    free(o->err);
}

// Runs the program with these arguments, the last one NULL.
static outcome run(const char *scratch, const char *const *arguments)
{
    enum { ARGUMENTS_MAX = 16 };
    char *paths[2] = {text_of("%s/out", scratch), text_of("%s/err", scratch)};
    char *argv[ARGUMENTS_MAX] = {text_of("%s", program)};
    size_t count = 1, size;
    for (; arguments[count - 1]; count++) {
        assert_true(count + 1 < ARGUMENTS_MAX);
        argv[count] = text_of("%s", arguments[count - 1]);
    }
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const int out = open(paths[0], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        const int err = open(paths[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (out < 0 || err < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
            _exit(127);
        execv(program, argv);
        _exit(127);
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    assert_true(WIFEXITED(status));
    outcome o = {.code = WEXITSTATUS(status)};
    o.out = file_load(paths[0], &size);
    o.err = file_load(paths[1], &size);
    for (size_t i = 0; i < count; i++)
        free(argv[i]);
    free(paths[0]);
    free(paths[1]);
    return o;
}

#define RUN(scratch, ...) run(scratch, (const char *const[]){__VA_ARGS__, NULL})

static void assert_outcome(outcome o, int code, const char *out, const char *err)
{
    assert_string_equal(o.err, err);
    assert_string_equal(o.out, out);
    assert_int_equal(o.code, code);
    outcome_free(&o);
}

static void nothing_wrong(void **state)
{
    (void)state;
    char *scratch = scratch_create(), *pack = text_of("%s/pack", scratch);
    size_t size;
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "--manifest", TINY_MANIFEST), 0,
                   "0 differences in 2,610 tensors, 7 files, 11.4 MB\n", "");
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--components",
                       "text,talker"),
                   0, "0 differences in 2,440 tensors, 7 files, 11.1 MB\n", "");
    pack_create(Q3_TEST_MODEL_DIR, pack, "text", "0", "0", Q3_CODEC_RAW);
    assert_outcome(RUN(scratch, "packs", pack, "--source", Q3_TEST_MODEL_DIR, "-j", "2"), 0,
                   "0 differences in 15 tensors, 12 files, 1.0 MB\n", "");
    char *manifest = file_load(TINY_MANIFEST, &size);
    assert_outcome(RUN(scratch, "manifest", Q3_TEST_MODEL_DIR "/config.json"), 0, manifest, "");
    free(manifest);
    free(pack);
    scratch_remove(scratch);
}

static void differences_for_people(void **state)
{
    (void)state;
    char *scratch = scratch_create(), *pack = text_of("%s/pack", scratch);
    pack_create(Q3_TEST_MODEL_DIR, pack, "text", NULL, "0-126", Q3_CODEC_RAW);
    char *part = text_of("%s/layers/03/router.q3p.part", pack);
    file_save(part, "x", 1);
    assert_outcome(RUN(scratch, "shapes", pack, "-m", TINY_MANIFEST), 3,
                   "missing (18):\n"
#define MISSING(layer, matrix, shape)                          \
    "  thinker.model.layers." layer ".mlp.experts.127." matrix \
    "_proj.weight: expected BF16 " shape ", found nothing: pack.json does not list it\n"
#define LAYER(layer)                    \
    MISSING(layer, "down", "[128, 16]") \
    MISSING(layer, "gate", "[16, 128]") \
    MISSING(layer, "up", "[16, 128]")
                   LAYER("0") LAYER("1") LAYER("2") LAYER("3") LAYER("4") LAYER(
                       "5") "18 differences in 2,361 tensors, 783 files, 10.9 MB (18 missing)\n",
                   "");
    char *out = text_of("stray (1):\n"
                        "  %s: left over from an extraction that was ended\n"
                        "1 difference in 2,343 tensors, 788 files, 14.3 MB (1 stray)\n",
                        part);
    assert_outcome(RUN(scratch, "packs", pack), 3, out, "");
    free(out);
    free(part);
    free(pack);
    scratch_remove(scratch);
}

static void what_repeats_is_counted(void **state)
{
    (void)state;
    char *scratch = scratch_create(), *pack = text_of("%s/pack", scratch);
    pack_create(Q3_TEST_MODEL_DIR, pack, "text", "0", "0-63", Q3_CODEC_RAW);
    outcome o = RUN(scratch, "shapes", pack, "-m", TINY_MANIFEST);
    assert_int_equal(o.code, 3);
    const char *tail = strstr(o.out, "  and ");
    assert_non_null(tail);
    assert_string_equal(
        tail, "  and 2,137 more:\n"
              "    698 in thinker.model.layers.{0-5}.mlp.experts.{0-127}.up_proj.weight\n"
              "    697 in thinker.model.layers.{0-5}.mlp.experts.{0-127}.down_proj.weight\n"
              "    697 in thinker.model.layers.{0-5}.mlp.experts.{0-127}.gate_proj.weight\n"
              "    5 in thinker.model.layers.{0-5}.input_layernorm.weight\n"
              "    5 in thinker.model.layers.{0-5}.mlp.gate.weight\n"
              "    5 in thinker.model.layers.{0-5}.post_attention_layernorm.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.k_norm.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.k_proj.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.o_proj.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.q_norm.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.q_proj.weight\n"
              "    5 in thinker.model.layers.{0-5}.self_attn.v_proj.weight\n"
              "2,157 differences in 2,361 tensors, 70 files, 1.7 MB (2,157 missing)\n");
    outcome_free(&o);
    free(pack);
    scratch_remove(scratch);
}

static void differences_for_programs(void **state)
{
    (void)state;
    char *scratch = scratch_create(), *pack = text_of("%s/pack", scratch);
    pack_create(Q3_TEST_MODEL_DIR, pack, "text", NULL, "0-126", Q3_CODEC_RAW);
    outcome o = RUN(scratch, "shapes", pack, "-m", TINY_MANIFEST, "--json");
    assert_int_equal(o.code, 3);
    assert_string_equal(o.err, "");
    q3_json json;
    q3_error err;
    if (!q3_json_parse("out", (q3_bytes){(const uint8_t *)o.out, strlen(o.out)}, &json, &err))
        fail_msg("%s", err.message);
    const cJSON *findings, *counts, *item;
    uint64_t number;
    const char *text;
    assert_true(q3_json_string(&json, json.root, "command", &text, &err));
    assert_string_equal(text, "shapes");
    assert_true(q3_json_string(&json, json.root, "path", &text, &err));
    assert_string_equal(text, pack);
    assert_true(q3_json_string(&json, json.root, "against", &text, &err));
    assert_string_equal(text, TINY_MANIFEST);
    assert_true(q3_json_u64(&json, json.root, "differences", 18, 18, &number, &err));
    assert_true(q3_json_u64(&json, json.root, "tensors", 2361, 2361, &number, &err));
    assert_true(q3_json_object(&json, json.root, "counts", &counts, &err));
    assert_true(q3_json_u64(&json, counts, "missing", 18, 18, &number, &err));
    assert_true(q3_json_array(&json, json.root, "findings", &findings, &err));
    assert_int_equal(cJSON_GetArraySize(findings), 18);
    item = cJSON_GetArrayItem(findings, 0);
    static const char *const members[][2] = {
        {"kind", "missing"},
        {"tensor", "thinker.model.layers.0.mlp.experts.127.down_proj.weight"},
        {"expected", "BF16 [128, 16]"},
        {"message", "thinker.model.layers.0.mlp.experts.127.down_proj.weight: expected BF16 [128, "
                    "16], found nothing: pack.json does not list it"}};
    for (size_t i = 0; i < 4; i++) {
        assert_true(q3_json_string(&json, item, members[i][0], &text, &err));
        assert_string_equal(text, members[i][1]);
    }
    assert_int_equal(cJSON_GetArraySize(item), 4);
    q3_json_free(&json);
    outcome_free(&o);
    free(pack);
    scratch_remove(scratch);
}

static void a_command_line_that_makes_no_sense(void **state)
{
    (void)state;
    char *scratch = scratch_create();
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR), 2, "",
                   "q3-verify: shapes: --manifest is missing (see q3-verify shapes --help)\n");
    assert_outcome(RUN(scratch, "shapes", "-m", TINY_MANIFEST), 2, "",
                   "q3-verify: expected PATH, found 0 of 1 arguments (see q3-verify shapes "
                   "--help)\n");
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "-m", TINY_MANIFEST, "--components",
                       "text,speech"),
                   2, "", "q3-verify: --components: \"speech\" is no component\n");
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "-m",
                       Q3_TEST_MANIFEST_DIR "/qwen3-omni-30b-a3b-thinking.json", "--components",
                       "talker"),
                   2, "", "q3-verify: --components: the manifest has no component \"talker\"\n");
    assert_outcome(RUN(scratch, "packs", scratch, "--jobs", "0"), 2, "",
                   "q3-verify: --jobs: expected a whole number from 1 to 256, found \"0\" (see "
                   "q3-verify packs --help)\n");
    scratch_remove(scratch);
}

static void input_that_cannot_be_examined(void **state)
{
    (void)state;
    char *scratch = scratch_create();
    assert_outcome(
        RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "-m",
            Q3_TEST_MODEL_DIR "/generation_config.json"),
        4, "", "q3-verify: " Q3_TEST_MODEL_DIR "/generation_config.json: \"format\" is missing\n");
    assert_outcome(RUN(scratch, "shapes", Q3_TEST_MODEL_DIR, "-m", "/absent.json"), 1, "",
                   "q3-verify: /absent.json: cannot open: No such file or directory\n");
    char *err =
        text_of("q3-verify: %s: no model.safetensors.index.json: not a checkpoint\n", scratch);
    assert_outcome(RUN(scratch, "shapes", scratch, "-m", TINY_MANIFEST), 5, "", err);
    free(err);
    err = text_of("q3-verify: %s: no pack.json: not a pack directory, or an unfinished "
                  "extraction\n",
                  scratch);
    assert_outcome(RUN(scratch, "packs", scratch), 5, "", err);
    free(err);
    err = text_of("q3-verify: %s/absent: no such directory\n", scratch);
    char *absent = text_of("%s/absent", scratch);
    assert_outcome(RUN(scratch, "packs", absent), 1, "", err);
    free(absent);
    free(err);
    char *index = text_of("%s/model.safetensors.index.json", scratch);
    file_save(index, "{\"weight_map\": {}}", 18);
    err = text_of("q3-verify: %s: weight_map: lists no tensors\n", index);
    assert_outcome(RUN(scratch, "shapes", scratch, "-m", TINY_MANIFEST), 4, "", err);
    free(err);
    free(index);
    char *config = text_of("%s/config.json", scratch);
    file_save(config, "{\"model_type\": \"llama\"}", 23);
    err = text_of("q3-verify: %s: model_type: expected \"qwen3_omni_moe\" or \"qwen3_moe\", found "
                  "\"llama\"\n",
                  config);
    assert_outcome(RUN(scratch, "manifest", config), 4, "", err);
    free(err);
    free(config);
    scratch_remove(scratch);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s Q3_VERIFY\n", argv[0]);
        return 2;
    }
    program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_wrong),
        cmocka_unit_test(differences_for_people),
        cmocka_unit_test(what_repeats_is_counted),
        cmocka_unit_test(differences_for_programs),
        cmocka_unit_test(a_command_line_that_makes_no_sense),
        cmocka_unit_test(input_that_cannot_be_examined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
