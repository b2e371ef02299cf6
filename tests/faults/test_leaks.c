// SPDX-License-Identifier: Apache-2.0
//
// The libraries give back what they took, whatever fails: every allocation, read, write, open and
// thread in turn, and after each failure no block of memory, descriptor or thread is left, and an
// error is told. With Q3_TEST_FULL at every call; without it allocations at every n-th.
#include "engine.h"
#include "export/export.h"
#include "extract.h"
#include "inject.h"
#include "packs.h"
#include "plot/chart.h"
#include "pool/choose.h"
#include "pool/heatmap.h"
#include "pool/profile.h"
#include "shapes.h"
#include "small_model.h"
#include "support.h"
#include "tokenizer.h"
#include "unpack.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char *directory, *model, *whole, *made, *manifest_path, *profile_path, *pool_path;
static char *spoken, *pair_path; // a pack with a tokenizer, and a pool of two experts in each layer
static float *logits;            // of a run without faults
static q3_inject_record record;

// ---- what is done ----

static bool extract_to(const char *to, unsigned jobs, q3_error *err)
{
    const q3_extract_options options = {.model_directory = model,
                                        .pack_directory = to,
                                        .selection = {.components = "text"},
                                        .codec = Q3_CODEC_ZSTD,
                                        .jobs = jobs,
                                        .quiet = true};
    q3_extract_result result;
    return q3_extract(&options, &result, err);
}

static bool extract(q3_error *err)
{
    return extract_to(made, 1, err);
}

static bool extract_on_three(q3_error *err)
{
    return extract_to(made, 3, err);
}

static bool unpack_with(unsigned jobs, q3_error *err)
{
    const q3_unpack_options options = {
        .pack_directory = whole, .output_directory = made, .jobs = jobs, .quiet = true};
    q3_unpack_result result;
    return q3_unpack(&options, &result, err);
}

static bool unpack(q3_error *err)
{
    return unpack_with(1, err);
}

static bool unpack_on_three(q3_error *err)
{
    return unpack_with(3, err);
}

static bool export_as(q3_export_format format, unsigned jobs, q3_error *err)
{
    const q3_export_options options = {.pack_directory = spoken,
                                       .output = made,
                                       .format = format,
                                       .text_model = jobs == 1,
                                       .pool = pair_path,
                                       .shard_bytes = 20000,
                                       .jobs = jobs,
                                       .quiet = true};
    q3_export_result result;
    return q3_export(&options, &result, err);
}

static bool export_safetensors(q3_error *err)
{
    return export_as(Q3_EXPORT_SAFETENSORS, 1, err);
}

static bool export_on_three(q3_error *err)
{
    return export_as(Q3_EXPORT_SAFETENSORS, 3, err);
}

static bool export_gguf(q3_error *err)
{
    return export_as(Q3_EXPORT_GGUF, 1, err);
}

static bool check_packs_with(unsigned jobs, q3_error *err)
{
    q3_findings report = {.command = "packs", .path = whole, .against = model};
    const q3_packs_options options = {.source = model, .jobs = jobs, .quiet = true};
    bool ok = q3_packs_check(whole, &options, &report, err);
    if (ok && report.count)
        ok = q3_fail(err, Q3_FAILED, "%s", report.findings[0].message);
    q3_findings_free(&report);
    return ok;
}

static bool check_packs(q3_error *err)
{
    return check_packs_with(1, err);
}

static bool check_packs_on_three(q3_error *err)
{
    return check_packs_with(3, err);
}

static bool check_shapes(q3_error *err)
{
    q3_findings report = {.command = "shapes", .path = whole, .against = manifest_path};
    q3_manifest manifest;
    if (!q3_manifest_load(manifest_path, &manifest, err))
        return false;
    const q3_shapes_options options = {.jobs = 1, .quiet = true};
    bool ok = q3_shapes_check(whole, &manifest, &options, &report, err) &&
              q3_shapes_check(model, &manifest, &options, &report, err);
    if (ok && report.count)
        ok = q3_fail(err, Q3_FAILED, "%s", report.findings[0].message);
    q3_findings_free(&report);
    q3_manifest_free(&manifest);
    return ok;
}

// Against the manifest of another model, with more to say than there are lines for.
static bool report_differences(q3_error *err)
{
    q3_findings report = {.command = "shapes", .path = model, .against = manifest_path};
    q3_manifest manifest;
    q3_summary summary;
    q3_json_writer writer = {0};
    FILE *out = fopen("/dev/null", "w");
    if (!out)
        return q3_fail_errno(err, "/dev/null");
    bool ok = q3_manifest_load(Q3_TEST_SOURCE_DIR "/manifests/tiny-omni.json", &manifest, err);
    if (ok) {
        const q3_shapes_options options = {.jobs = 1, .quiet = true};
        ok = q3_shapes_check(model, &manifest, &options, &report, err) &&
             q3_findings_print(&report, out, err) && q3_findings_annotate(&report, out, err) &&
             q3_findings_write(&report, &writer, err) &&
             q3_findings_write_junit(&report, made, err) &&
             q3_summary_create(&report, 3, &summary, err);
        if (ok)
            q3_summary_free(&summary);
        q3_manifest_free(&manifest);
    }
    q3_json_writer_free(&writer);
    q3_findings_free(&report);
    fclose(out);
    return ok;
}

static bool run_with(unsigned threads, q3_error *err)
{
    static const uint32_t ids[] = {3, 1, 4, 1, 5, 9};
    q3_engine *engine = NULL;
    q3_session *session = NULL;
    const q3_engine_options options = {.threads = threads};
    bool ok =
        q3_engine_open(whole, &options, &engine, err) && q3_session_create(engine, &session, err);
    if (ok) {
        ok = q3_session_feed(session, ids, 6, NULL, err);
        // A session outlives a failure as it was.
        q3_inject_follow(NULL);
        q3_error error;
        if (!ok)
            assert_ok(q3_session_feed(session, ids, 6, NULL, &error));
        const size_t bytes = q3_engine_describe(engine)->config->vocab_size * sizeof *logits;
        if (!logits) {
            logits = malloc(bytes);
            assert_non_null(logits);
            memcpy(logits, q3_session_logits(session), bytes);
        }
        assert_memory_equal(logits, q3_session_logits(session), bytes);
    }
    q3_session_destroy(session);
    q3_engine_close(engine);
    return ok;
}

static bool run(q3_error *err)
{
    return run_with(1, err);
}

static bool run_on_three(q3_error *err)
{
    return run_with(3, err);
}

static bool tokenize(q3_error *err)
{
    static const char text[] = "<|im_start|>user\nSay 1,000 times: caf\xc3\xa9!<|im_end|>\n";
    q3_tokenizer *tokenizer = NULL;
    q3_ids ids = {0};
    const bool ok = q3_tokenizer_open(Q3_TEST_MODEL_DIR, &tokenizer, err) &&
                    q3_tokenizer_encode(
                        tokenizer, (q3_bytes){(const uint8_t *)text, sizeof text - 1}, &ids, err);
    q3_ids_free(&ids);
    q3_tokenizer_close(tokenizer);
    return ok;
}

// From a profile, read twice and added up, to a picture and a pool file.
static bool choose_pool(q3_error *err)
{
    static const uint64_t bytes[6] = {1, 1, 1, 1, 1, 1};
    double share[6];
    q3_set set = {0};
    q3_profile profile = {0}, other = {0};
    q3_pool pool = {0};
    q3_hash128 hash;
    char *picture = NULL;
    size_t size;
    bool ok =
        q3_set_open(whole, &set, err) && q3_profile_model_hash(&set, &hash, err) &&
        q3_profile_read(profile_path, &profile, err) &&
        q3_profile_check_model(&profile, profile_path, hash, err) &&
        q3_profile_read(profile_path, &other, err) &&
        q3_profile_merge(&profile, &other, profile_path, err) &&
        q3_profile_write(&profile, made, err) &&
        q3_profile_shares(&profile, profile_path, Q3_MEASURE_SCORE, Q3_PHASES_ALL, share, err) &&
        q3_pool_choose_bytes(share, bytes, 2, 3, 5, 1, &pool, err);
    if (ok) {
        const q3_heatmap map = {.title = "",
                                .what = "",
                                .layers = 2,
                                .experts = 3,
                                .share = share,
                                .pool = &pool,
                                .sort = true};
        ok = q3_heatmap_draw(&map, &picture, &size, err) && q3_pool_write(&pool, made, err);
    }
    free(picture);
    q3_pool_destroy(&pool);
    q3_profile_destroy(&other);
    q3_profile_destroy(&profile);
    q3_set_close(&set);
    return ok;
}

static bool draw_chart(q3_error *err)
{
    static const double x[] = {1, 2, 4}, y[] = {3, 2, 1};
    const q3_series series = {.name = "a", .x = x, .y = y, .count = 3};
    const q3_chart chart = {
        .title = "", .x_label = "", .y_label = "", .series = &series, .series_count = 1};
    char *text = NULL;
    size_t size;
    const bool ok = q3_chart_draw(&chart, &text, &size, err);
    free(text);
    return ok;
}

static bool extract_pool(q3_error *err)
{
    const q3_extract_options options = {.model_directory = model,
                                        .pack_directory = made,
                                        .selection = {.components = "text", .pool = pool_path},
                                        .codec = Q3_CODEC_RAW,
                                        .jobs = 1,
                                        .quiet = true};
    q3_extract_result result;
    return q3_extract(&options, &result, err);
}

// ---- and what is left ----

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int count_entries(const char *path)
{
    struct dirent **entries;
    const int count = scandir(path, &entries, visible, NULL);
    assert_true(count > 0);
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
    return count;
}

// The threads of this program itself, before it has started any.
static int own_threads;

// The threads that there are once the kernel has taken away those that have been joined, which it
// does shortly after the join returns. One that was never joined is still there at the end of the
// wait.
static int count_threads(int expected)
{
    int count = count_entries("/proc/self/task");
    for (unsigned waited = 0; count != expected && waited < 2000; waited++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        count = count_entries("/proc/self/task");
    }
    return count;
}

static void *sleep_shortly(void *unused)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    return unused;
}

// The C library keeps the stacks of threads that have ended, up to 40 MB, and a block of memory
// with each. As many threads at once as in any run to come have to be seen before blocks can be
// counted.
static void warm_up_threads(void)
{
    enum { LARGE = 3, THREADS = 12, SMALL_STACK = 512 << 10 };
    pthread_t threads[THREADS];
    pthread_attr_t small;
    pthread_attr_init(&small);
    assert_int_equal(pthread_attr_setstacksize(&small, SMALL_STACK), 0);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(
            pthread_create(&threads[i], i < LARGE ? NULL : &small, sleep_shortly, NULL), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_attr_destroy(&small);
}

// Does it with the k-th call failed. False when there was none.
static bool try_once(const char *what, bool (*action)(q3_error *err), uint64_t at)
{
    q3_error error = {0};
    const q3_inject_kind kind = (q3_inject_kind)record.kind;
    const int descriptors = count_entries("/proc/self/fd");
    record.at = at;
    memset(record.calls, 0, sizeof record.calls);
    record.fired = 0;
    q3_inject_track(true);
    q3_inject_follow(&record);
    const bool ok = action(&error);
    q3_inject_follow(NULL);
    const size_t left = q3_inject_live();
    q3_inject_track(false);
    if (left)
        fail_msg("%s, %s %" PRIu64 ": %zu blocks are left (%s)", what, q3_inject_name(kind), at,
                 left, error.message);
    assert_int_equal(count_entries("/proc/self/fd"), descriptors);
    assert_int_equal(count_threads(own_threads), own_threads);
    if (!ok && (error.code != Q3_FAILED || !*error.message))
        fail_msg("%s, %s %" PRIu64 ": code %d, \"%s\"", what, q3_inject_name(kind), at, error.code,
                 error.message);
    q3_test_remove_tree(made);
    if (!record.fired && !ok)
        fail_msg("%s: %s", what, error.message);
    return record.fired;
}

static void try_all(const char *what, bool (*action)(q3_error *err), q3_inject_kind kind,
                    int number, bool forever, uint64_t step)
{
    // What the C library allocates once and keeps is there after a first time.
    record = (q3_inject_record){.action = Q3_INJECT_NOTHING};
    q3_error error;
    assert_ok(action(&error));
    q3_test_remove_tree(made);
    record = (q3_inject_record){
        .kind = kind, .action = Q3_INJECT_FAIL, .number = number, .forever = forever};
    uint64_t at = 1, tried = 0;
    for (; try_once(what, action, at); at += getenv("Q3_TEST_FULL") ? 1 : step)
        tried++;
    assert_true(tried > 0);
    print_message("%s, failed %s%s: %" PRIu64 " times\n", what, q3_inject_name(kind),
                  forever ? " and all after it" : "", tried);
}

static void try_reading(const char *what, bool (*action)(q3_error *err))
{
    try_all(what, action, Q3_INJECT_ALLOCATE, ENOMEM, false, 5);
    try_all(what, action, Q3_INJECT_ALLOCATE, ENOMEM, true, 7);
    try_all(what, action, Q3_INJECT_OPEN, EIO, false, 1);
    try_all(what, action, Q3_INJECT_READ, EIO, false, 1);
}

static void try_writing(const char *what, bool (*action)(q3_error *err))
{
    try_all(what, action, Q3_INJECT_WRITE, ENOSPC, false, 1);
    try_all(what, action, Q3_INJECT_SYNC, EIO, false, 1);
    try_all(what, action, Q3_INJECT_RENAME, EIO, false, 1);
    try_all(what, action, Q3_INJECT_UNLINK, EIO, false, 1);
}

static void test_extract(void **state)
{
    (void)state;
    try_reading("extract", extract);
    try_writing("extract", extract);
    try_all("extract on three threads", extract_on_three, Q3_INJECT_THREAD, EAGAIN, false, 1);
    try_all("extract on three threads", extract_on_three, Q3_INJECT_WRITE, EIO, false, 3);
    try_all("extract on three threads", extract_on_three, Q3_INJECT_ALLOCATE, ENOMEM, false, 23);
}

static void test_unpack(void **state)
{
    (void)state;
    try_reading("unpack", unpack);
    try_writing("unpack", unpack);
    try_all("unpack on three threads", unpack_on_three, Q3_INJECT_THREAD, EAGAIN, false, 1);
    try_all("unpack on three threads", unpack_on_three, Q3_INJECT_READ, EIO, false, 3);
}

static void test_export(void **state)
{
    (void)state;
    try_reading("export", export_safetensors);
    try_writing("export", export_safetensors);
    try_all("export on three threads", export_on_three, Q3_INJECT_WRITE, EIO, false, 3);
    try_all("export on three threads", export_on_three, Q3_INJECT_ALLOCATE, ENOMEM, false, 23);
    try_reading("export as GGUF", export_gguf);
    try_writing("export as GGUF", export_gguf);
}

static void test_verify(void **state)
{
    (void)state;
    try_reading("check packs", check_packs);
    try_all("check packs on three threads", check_packs_on_three, Q3_INJECT_THREAD, EAGAIN, false,
            1);
    try_all("check packs on three threads", check_packs_on_three, Q3_INJECT_READ, EIO, false, 3);
    try_reading("check shapes", check_shapes);
    try_all("report", report_differences, Q3_INJECT_ALLOCATE, ENOMEM, false, 23);
    try_all("report", report_differences, Q3_INJECT_ALLOCATE, ENOMEM, true, 47);
    try_all("report", report_differences, Q3_INJECT_WRITE, ENOSPC, false, 1);
}

static void test_run(void **state)
{
    (void)state;
    try_reading("run", run);
    try_all("run", run, Q3_INJECT_MAP, ENOMEM, false, 1);
    try_all("run on three threads", run_on_three, Q3_INJECT_THREAD, EAGAIN, false, 1);
    try_all("run on three threads", run_on_three, Q3_INJECT_READ, EIO, false, 3);
}

static void test_tokenizer(void **state)
{
    (void)state;
    try_all("tokenize", tokenize, Q3_INJECT_ALLOCATE, ENOMEM, false, 41);
    try_all("tokenize", tokenize, Q3_INJECT_ALLOCATE, ENOMEM, true, 97);
    try_all("tokenize", tokenize, Q3_INJECT_OPEN, EIO, false, 1);
    try_all("tokenize", tokenize, Q3_INJECT_READ, EIO, false, 1);
}

// A pack whose checkpoint has a tokenizer.
static void make_spoken(void)
{
    static const struct {
        const char *name, *text;
    } files[] = {
        {"vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2}"},
        {"merges.txt", "#version: 0.2\na b\n"},
        {"tokenizer_config.json",
         "{\"added_tokens_decoder\": {\"3\": {\"content\": \"<end>\", \"special\": true}}, "
         "\"eos_token\": {\"content\": \"<end>\"}, \"pad_token\": \"<end>\"}"},
        {"chat_template.json", "{\"chat_template\": \"{{ x }}\"}"},
    };
    q3_error error;
    char *with_files = q3_test_path("%s/with-tokenizer", directory);
    q3_test_copy_tree(model, with_files, false);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = q3_test_path("%s/%s", with_files, files[i].name);
        q3_test_write_text(path, files[i].text);
        free(path);
    }
    const q3_extract_options options = {.model_directory = with_files,
                                        .pack_directory = spoken,
                                        .selection = {.components = "text"},
                                        .codec = Q3_CODEC_RAW,
                                        .jobs = 1,
                                        .quiet = true};
    q3_extract_result result;
    assert_ok(q3_extract(&options, &result, &error));
    q3_test_write_text(pair_path, "{\"layers\": [[0, 2], [1, 2]]}");
    free(with_files);
}

static void test_pools(void **state)
{
    (void)state;
    try_reading("choose a pool", choose_pool);
    try_writing("choose a pool", choose_pool);
    try_all("draw a chart", draw_chart, Q3_INJECT_ALLOCATE, ENOMEM, false, 1);
    try_all("extract a pool", extract_pool, Q3_INJECT_ALLOCATE, ENOMEM, false, 5);
    try_all("extract a pool", extract_pool, Q3_INJECT_OPEN, EIO, false, 1);
}

// A profile of the small model and a pool for it.
static void write_profile(const q3_config *config)
{
    q3_error error;
    q3_set set;
    q3_hash128 hash;
    q3_profile profile;
    assert_ok(q3_set_open(whole, &set, &error) && q3_profile_model_hash(&set, &hash, &error) &&
              q3_profile_create(config, hash, &profile, &error) &&
              q3_profile_add_text(&profile, "text", 3, 0, &error));
    for (uint32_t layer = 0; layer < config->num_hidden_layers; layer++)
        for (uint32_t expert = 0; expert < config->num_experts; expert++)
            q3_profile_add_chosen(&profile, Q3_PHASE_PROMPT, layer, expert, 0.5, expert + 1);
    assert_ok(q3_profile_write(&profile, profile_path, &error));
    q3_profile_destroy(&profile);
    q3_set_close(&set);
    q3_test_write_text(pool_path, "{\"layers\": [[0], [1, 2]]}");
}

static int prepare(void **state)
{
    (void)state;
    own_threads = count_entries("/proc/self/task");
    warm_up_threads();
    q3_error error;
    directory = q3_test_directory();
    model = q3_test_path("%s/model", directory);
    whole = q3_test_path("%s/whole", directory);
    made = q3_test_path("%s/made", directory);
    manifest_path = q3_test_path("%s/manifest.json", directory);
    profile_path = q3_test_path("%s/profile.json", directory);
    pool_path = q3_test_path("%s/pool.json", directory);
    assert_ok(q3_small_model_write(model, Q3_SMALL_WIDTH_BF12, &error));
    assert_ok(extract_to(whole, 1, &error));
    spoken = q3_test_path("%s/spoken", directory);
    pair_path = q3_test_path("%s/pair.json", directory);
    make_spoken();
    char *path = q3_test_path("%s/config.json", model);
    q3_config config;
    q3_json json;
    q3_manifest manifest;
    q3_json_writer writer = {0};
    assert_ok(q3_config_load(path, &config, &json, &error) &&
              q3_manifest_derive(&json, &manifest, &error) &&
              q3_manifest_write(&manifest, &writer, &error));
    q3_test_write(manifest_path, writer.text, writer.size);
    q3_json_writer_free(&writer);
    q3_manifest_free(&manifest);
    q3_json_free(&json);
    free(path);
    write_profile(&config);
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    free(logits);
    free(pool_path);
    free(spoken);
    free(pair_path);
    free(profile_path);
    free(manifest_path);
    free(made);
    free(whole);
    free(model);
    q3_test_remove(directory);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extract), cmocka_unit_test(test_unpack),
        cmocka_unit_test(test_export),  cmocka_unit_test(test_verify),
        cmocka_unit_test(test_run),     cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_pools),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
