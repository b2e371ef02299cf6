// SPDX-License-Identifier: Apache-2.0
//
// q3-extract and q3-pack as a person uses them: the tiny model apart and together again, the same
// bytes whatever the number of threads, what is said about it, and going on after an interruption.
#include "support.h"

#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char *extract_all(const char *name, const char *codec, const char *jobs)
{
    char *path = q3_test_path("%s/%s", q3_test_scratch, name);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, path, "--components",
                               "all", "--codec", codec, "--jobs", jobs, "--quiet", NULL),
                   0, "");
    return path;
}

// Shards and small files come back byte for byte. The index, which nothing is computed from, comes
// back with the same members.
static void check_unpacked(const char *pack, const char *jobs)
{
    char *out = q3_test_path("%s/unpacked-%s", q3_test_scratch, jobs);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_PACK, "unpack", pack, out, "--jobs", jobs, "--quiet", NULL), 0,
        "");
    char *index = q3_test_path("%s/model.safetensors.index.json", out);
    char *text = q3_test_read(index, NULL);
    char *expected = q3_test_read(Q3_TEST_MODEL_DIR "/model.safetensors.index.json", NULL);
    text[strlen(text) - 1] = 0; // the line end, which the original lacks
    assert_string_equal(text, expected);
    q3_test_write_text(index, expected);
    q3_test_trees_equal(out, Q3_TEST_MODEL_DIR);
    free(expected);
    free(text);
    free(index);
    q3_test_remove_tree(out);
    free(out);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const char *const codecs[] = {"raw", "zstd", "bitplane", "auto"};
    for (size_t i = 0; i < 4; i++) {
        char *one = extract_all("one", codecs[i], "1"), *four = extract_all("four", codecs[i], "4");
        char *again = extract_all("again", codecs[i], "2");
        q3_test_trees_equal(one, four);
        q3_test_trees_equal(one, again);
        check_unpacked(four, "1");
        check_unpacked(four, "3");
        q3_test_remove_tree(one);
        q3_test_remove_tree(four);
        q3_test_remove_tree(again);
        free(one);
        free(four);
        free(again);
    }
}

// Encoded without any special instructions, the same bytes.
static void test_processor_levels(void **state)
{
    (void)state;
    char *best = extract_all("best", "bitplane", "2"),
         *plain = q3_test_path("%s/plain", q3_test_scratch);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, plain, "--components",
                               "all", "--cpu", "c", "--quiet", NULL),
                   0, "");
    q3_test_trees_equal(best, plain);
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, plain, "--cpu", "sse", NULL), 2,
        "q3-extract: --cpu: expected one of c|avx2|avx512|bf16|amx, found \"sse\" (see q3-extract "
        "--help)\n");
    q3_test_remove_tree(best);
    q3_test_remove_tree(plain);
    free(best);
    free(plain);
}

static void test_everything_accounted_for(void **state)
{
    (void)state;
    char *pack = extract_all("accounted", "zstd", "2");
    q3_test_result list = q3_test_run(NULL, Q3_TEST_PACK, "list", pack, NULL);
    assert_int_equal(list.code, 0);
    static const char summary[] = "text: 2,361 of 2,361 tensors\n"
                                  "audio_tower: 45 of 45 tensors\n"
                                  "visual: 39 of 39 tensors\n"
                                  "talker: 79 of 79 tensors\n"
                                  "code2wav: 86 of 86 tensors\n"
                                  "793 files, ";
    assert_non_null(strstr(list.out, summary));
    assert_int_equal(2361 + 45 + 39 + 79 + 86, 2610);
    for (unsigned layer = 0; layer < 6; layer++)
        for (unsigned expert = 0; expert < 128; expert++) {
            char line[64];
            snprintf(line, sizeof line, "layers/%02u/experts/%03u.q3p ", layer, expert);
            if (!strstr(list.out, line))
                fail_msg("%s is not listed", line);
        }
    q3_test_result_free(&list);

    // A tensor's bytes as q3-pack cat gives them are those in the shard.
    q3_test_result show =
        q3_test_run(NULL, Q3_TEST_PACK, "show", pack, "layers/03/router.q3p", NULL);
    assert_int_equal(show.code, 0);
    const char *from = strstr(show.out, "from model-");
    assert_non_null(from);
    char shard[64];
    long offset;
    assert_int_equal(sscanf(from, "from %63s at %ld", shard, &offset), 2);
    q3_test_result cat = q3_test_run(NULL, Q3_TEST_PACK, "cat", pack,
                                     "thinker.model.layers.3.mlp.gate.weight", NULL);
    assert_int_equal(cat.code, 0);
    assert_int_equal(cat.out_size, 128 * 128 * 2);
    char *path = q3_test_path("%s/%s", Q3_TEST_MODEL_DIR, shard);
    char *bytes = q3_test_read(path, NULL);
    assert_memory_equal(cat.out, bytes + offset, cat.out_size);
    free(bytes);
    free(path);
    q3_test_result_free(&cat);
    q3_test_result_free(&show);
    q3_test_remove_tree(pack);
    free(pack);
}

static void test_what_is_printed(void **state)
{
    (void)state;
    char *pack = q3_test_path("%s/printed", q3_test_scratch);
    q3_test_result plan =
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--dry-run", "--layers", "0-1",
                    "--experts", "0-7,12", "--components", "text,talker", NULL);
    assert_string_equal(plan.err, "");
    assert_string_equal(plan.out, "component       files   tensors              bytes\n"
                                  "text               27        75          1,271,296\n"
                                  "talker              1        79            110,144\n"
                                  "total              28       154          1,381,440\n"
                                  "pack files: 1,765,376 bytes as raw, at most that in other "
                                  "codecs; 5 small files are copied\n");
    assert_int_equal(plan.code, 0);
    assert_int_not_equal(access(pack, F_OK), 0); // a dry run writes nothing
    q3_test_result_free(&plan);

    q3_test_result run =
        q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--layers", "0-1", "--experts",
                    "0-7,12", "--components", "text,talker", "--codec", "raw", "--json", NULL);
    assert_string_equal(run.err, "");
    assert_memory_equal(run.out,
                        "{\n  \"files\": 28,\n  \"tensors\": 154,\n  \"bytes\": 1381440,\n"
                        "  \"stored_bytes\": 1765376,\n  \"resumed_files\": 0,\n",
                        strlen("{\n  \"files\": 28,\n  \"tensors\": 154,\n  \"bytes\": 1381440,\n"
                               "  \"stored_bytes\": 1765376,\n  \"resumed_files\": 0,\n"));
    q3_test_result_free(&run);
    q3_test_result list = q3_test_run(NULL, Q3_TEST_PACK, "list", pack, NULL);
    assert_non_null(strstr(list.out, "text: 75 of 2,361 tensors\ntalker: 79 of 79 tensors\n"));
    q3_test_result_free(&list);
    char *expected =
        q3_test_path("q3-extract: %s: holds a finished extraction (pack.json exists)\n", pack);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, NULL), 6, expected);
    free(expected);
    q3_test_remove_tree(pack);
    free(pack);
}

// ---- interrupted ----

static bool exists(const char *format, const char *pack)
{
    char *path = q3_test_path("%s/%s", pack, format);
    const bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

// Does the journal name a finished file?
static bool has_finished_file(const char *pack)
{
    if (!exists("extract.journal", pack))
        return false;
    char *path = q3_test_path("%s/extract.journal", pack);
    char *text = q3_test_read(path, NULL);
    const bool found = strstr(text, "\nfile ") != NULL;
    free(text);
    free(path);
    return found;
}

// Starts an extraction and sends it a signal once it has finished a file. Its exit status.
static int extract_and_signal(const char *pack, int number)
{
    const char *const arguments[] = {Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, pack, "--jobs", "2",
                                     "--quiet",       (char *)NULL};
    char *const *vector;
    const char *const *constant = arguments;
    memcpy(&vector, &constant, sizeof vector);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
    pid_t child;
    assert_int_equal(posix_spawn(&child, Q3_TEST_EXTRACT, &actions, NULL, vector, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    while (!has_finished_file(pack))
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    kill(child, number);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void test_interrupted(void **state)
{
    (void)state;
    char *whole = q3_test_path("%s/whole", q3_test_scratch),
         *cut = q3_test_path("%s/cut", q3_test_scratch);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, whole, "--quiet", NULL), 0,
                   "");
    static const int signals[] = {SIGINT, SIGTERM, SIGKILL};
    static const int codes[] = {130, 130, 128 + SIGKILL};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(extract_and_signal(cut, signals[i]), codes[i]);
        assert_true(exists("extract.journal", cut));
        assert_false(exists("pack.json", cut));
        // Whatever else reads it says what it is.
        char *expected = q3_test_path(
            "q3-pack: %s: no pack.json: not a pack directory, or an unfinished extraction\n", cut);
        q3_test_expect(q3_test_run(NULL, Q3_TEST_PACK, "list", cut, NULL), 5, expected);
        free(expected);
        // Another request is refused, and named.
        expected =
            q3_test_path("q3-extract: %s/extract.journal: an unfinished extraction was asked "
                         "for otherwise: before \"codec bitplane\", now \"codec raw\"\n",
                         cut);
        q3_test_expect(
            q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, cut, "--codec", "raw", NULL), 6,
            expected);
        free(expected);
        q3_test_result again = q3_test_run(NULL, Q3_TEST_EXTRACT, Q3_TEST_MODEL_DIR, cut, NULL);
        assert_int_equal(again.code, 0);
        assert_non_null(strstr(again.out, " of the files had been finished before\n"));
        q3_test_result_free(&again);
        q3_test_trees_equal(cut, whole);
        q3_test_remove_tree(cut);
    }
    q3_test_remove_tree(whole);
    free(whole);
    free(cut);
}

// ---- shards that come one at a time ----

static const char *const shards[] = {
    "model-00001-of-00007.safetensors", "model-00002-of-00007.safetensors",
    "model-00003-of-00007.safetensors", "model-00004-of-00007.safetensors",
    "model-00005-of-00007.safetensors", "model-00006-of-00007.safetensors",
    "model-00007-of-00007.safetensors",
};

static void move_shard(const char *from, const char *to, unsigned number)
{
    char *source = q3_test_path("%s/%s", from, shards[number]);
    char *target = q3_test_path("%s/%s", to, shards[number]);
    assert_int_equal(rename(source, target), 0);
    free(source);
    free(target);
}

static void test_one_shard_at_a_time(void **state)
{
    (void)state;
    static const unsigned orders[][7] = {
        {0, 1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1, 0}, {3, 0, 6, 1, 5, 2, 4}};
    char *whole = extract_all("whole", "bitplane", "2");
    char *model = q3_test_path("%s/model", q3_test_scratch),
         *away = q3_test_path("%s/away", q3_test_scratch);
    char *pack = q3_test_path("%s/pieces", q3_test_scratch);
    for (size_t order = 0; order < 3; order++) {
        q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, true);
        assert_int_equal(mkdir(away, 0777), 0);
        for (unsigned i = 0; i < 7; i++)
            move_shard(model, away, i);
        for (unsigned i = 0; i < 7; i++) {
            const unsigned number = orders[order][i];
            move_shard(away, model, number);
            q3_test_result found = q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--components",
                                               "all", "--partial", "--jobs", "2", NULL);
            if (i == 6) {
                assert_string_equal(found.err, "");
                assert_int_equal(found.code, 0);
            } else {
                assert_int_equal(found.code, 5);
                char *expected = q3_test_path(
                    "%s: all that is wanted of it is packed and synced, it may be deleted\n",
                    shards[number]);
                assert_string_equal(found.out, expected);
                free(expected);
                assert_non_null(strstr(found.err, " shards that have not come yet, the first is "));
                assert_false(exists("pack.json", pack));
            }
            q3_test_result_free(&found);
            move_shard(model, away, number);
        }
        q3_test_trees_equal(pack, whole);
        q3_test_remove_tree(pack);
        q3_test_remove_tree(model);
        q3_test_remove_tree(away);
    }
    free(pack);
    free(away);
    free(model);
    q3_test_remove_tree(whole);
    free(whole);
}

// Without --partial an absent shard is an error that writes nothing; a shard that has been replaced
// by another is refused.
static void test_wrong_shards_one_at_a_time(void **state)
{
    (void)state;
    char *model = q3_test_path("%s/model", q3_test_scratch),
         *pack = q3_test_path("%s/pieces", q3_test_scratch);
    char *away = q3_test_path("%s/away", q3_test_scratch);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, true);
    assert_int_equal(mkdir(away, 0777), 0);
    for (unsigned i = 1; i < 7; i++)
        move_shard(model, away, i);
    q3_test_result first = q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--partial", NULL);
    char *expected =
        q3_test_path("q3-extract: %s: 710 files wait for 6 of 7 shards that have not come "
                     "yet, the first is model-00002-of-00007.safetensors\n",
                     model);
    q3_test_expect(first, 5, expected);
    free(expected);
    expected =
        q3_test_path("q3-extract: %s/model-00002-of-00007.safetensors: the shard is absent, but "
                     "the index puts thinker.model.layers.1.self_attn.q_proj.weight there (and "
                     "2122 more tensors are missing)\n",
                     model);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, NULL), 5, expected);
    free(expected);
    // The same header with another size of the metadata is another shard.
    char *path = q3_test_path("%s/%s", model, shards[0]);
    size_t size;
    char *data = q3_test_read(path, &size);
    char *format = strstr(data + 8, "\"pt\"");
    assert_non_null(format);
    memcpy(format, "\"np\"", 4);
    assert_int_equal(unlink(path), 0);
    q3_test_write(path, data, size);
    expected =
        q3_test_path("q3-extract: %s/model-00001-of-00007.safetensors: is not the shard that this "
                     "extraction was begun with\n",
                     model);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_EXTRACT, model, pack, "--partial", NULL), 6, expected);
    free(expected);
    free(data);
    free(path);
    q3_test_remove_tree(pack);
    q3_test_remove_tree(model);
    q3_test_remove_tree(away);
    free(away);
    free(pack);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_processor_levels),
        cmocka_unit_test(test_everything_accounted_for),
        cmocka_unit_test(test_what_is_printed),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_one_shard_at_a_time),
        cmocka_unit_test(test_wrong_shards_one_at_a_time),
    };
    return cmocka_run_group_tests(tests, q3_test_make_scratch, q3_test_remove_scratch);
}
