// SPDX-License-Identifier: Apache-2.0
//
// Whatever happens to an extraction, the same command given again completes it, to the same bytes
// as if nothing had happened: ended before and after each call that changes the disk, killed at
// random, each call failed in turn, the disk full. And what the other programs do when their reads
// and allocations fail.
//
// Environment: Q3_TEST_FULL tries every allocation instead of every n-th and more random kills;
// Q3_TEST_KILLS is the number of those.
#include "base/hash.h"
#include "inject.h"
#include "plan.h"
#include "small_model.h"
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Of the whole tree that the small model gives with codec raw: any compiler, any number of threads.
static const char tree_hash[] = "ba114b53e95017c5afd38199ef0b7a8e";

// Every so many allocations one fails, unless Q3_TEST_FULL is set.
enum { ALLOCATION_STEP = 23 };

static char *directory, *model, *whole, *pack, *record_path;
static q3_inject_record *record;
static bool full;

#define assert_ok(call)                    \
    do {                                   \
        if (!(call))                       \
            fail_msg("%s", error.message); \
    } while (0)

// ---- running with faults ----

static void arm(q3_inject_kind kind, q3_inject_action action, int number, uint64_t at)
{
    memset(record, 0, sizeof *record);
    record->kind = kind;
    record->action = action;
    record->number = number;
    record->at = at;
    setenv("LD_PRELOAD", Q3_TEST_INJECT, 1);
    setenv("Q3_INJECT", record_path, 1);
}

static bool disarm(void)
{
    unsetenv("LD_PRELOAD");
    unsetenv("Q3_INJECT");
    return atomic_load(&record->fired) > 0;
}

static q3_test_result extract_with(const char *to, const char *jobs)
{
    return q3_test_run(NULL, Q3_TEST_EXTRACT, model, to, "--codec", "raw", "--jobs", jobs,
                       "--quiet", NULL);
}

static q3_test_result extract(void)
{
    return extract_with(pack, "1");
}

static q3_test_result extract_on_four(void)
{
    return extract_with(pack, "4");
}

static bool exists(const char *tree, const char *name)
{
    char *path = q3_test_path("%s/%s", tree, name);
    const bool found = access(path, F_OK) == 0;
    free(path);
    return found;
}

// The same command again, undisturbed. Where the work was done and only the process did not live to
// say so, it is told that there is nothing to do.
static void extract_again(void)
{
    if (exists(pack, "pack.json") && !exists(pack, "extract.journal")) {
        char *expected =
            q3_test_path("q3-extract: %s: holds a finished extraction (pack.json exists)\n", pack);
        q3_test_expect(extract(), 6, expected);
        free(expected);
    } else {
        q3_test_expect(extract(), 0, "");
    }
    q3_test_trees_equal(pack, whole);
}

static bool ends_in(const char *name, const char *end)
{
    const size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

// Under final names there is nothing but what the whole tree has there, complete.
static void check_nothing_half(const char *tree, const char *reference)
{
    struct dirent **entries;
    const int count = scandir(tree, &entries, visible, alphasort);
    if (count < 0 && errno == ENOENT)
        return;
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        char *path = q3_test_path("%s/%s", tree, name);
        char *expected = q3_test_path("%s/%s", reference, name);
        struct stat status;
        assert_int_equal(lstat(path, &status), 0);
        if (S_ISDIR(status.st_mode)) {
            check_nothing_half(path, expected);
        } else if (!ends_in(name, ".part") && strcmp(name, "extract.journal") != 0) {
            size_t size, expected_size;
            char *data = q3_test_read(path, &size), *other = q3_test_read(expected, &expected_size);
            if (size != expected_size || memcmp(data, other, size) != 0)
                fail_msg("%s is not whole", path);
            free(other);
            free(data);
        }
        free(expected);
        free(path);
        free(entries[i]);
    }
    free(entries);
}

// "q3-extract: MESSAGE", one line.
static void check_message(const q3_test_result *result, const char *program)
{
    char prefix[32];
    const int length = snprintf(prefix, sizeof prefix, "%s: ", program);
    const char *end = strchr(result->err, '\n');
    if (strncmp(result->err, prefix, (size_t)length) != 0 || !end || end[1] || end[-1] == ' ')
        fail_msg("expected one line of %s, found \"%s\"", program, result->err);
}

// ---- the model and the tree that all are compared with ----

static int prepare(void **state)
{
    (void)state;
    q3_error error;
    // Thousands of files are written and synced: in memory, where that is possible.
    if (access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 0);
    full = getenv("Q3_TEST_FULL") != NULL;
    directory = q3_test_directory();
    model = q3_test_path("%s/model", directory);
    whole = q3_test_path("%s/whole", directory);
    pack = q3_test_path("%s/pack", directory);
    record_path = q3_test_path("%s/record", directory);
    q3_test_write(record_path, &(q3_inject_record){0}, sizeof *record);
    const int fd = open(record_path, O_RDWR | O_CLOEXEC);
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_true(record != MAP_FAILED);
    assert_ok(q3_small_model_write(model, &error));
    q3_test_expect(extract_with(whole, "1"), 0, "");
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_VERIFY, "packs", whole, "--source", model, "--quiet", NULL), 0,
        "");
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    munmap(record, sizeof *record);
    free(record_path);
    free(pack);
    free(whole);
    free(model);
    q3_test_remove(directory);
    return 0;
}

static void hash_tree(const char *path, const char *name, q3_hasher *hasher)
{
    struct dirent **entries;
    const int count = scandir(path, &entries, visible, alphasort);
    assert_true(count >= 0);
    for (int i = 0; i < count; i++) {
        char *below = q3_test_path("%s/%s", path, entries[i]->d_name);
        char *below_name = q3_test_path("%s/%s", name, entries[i]->d_name);
        struct stat status;
        assert_int_equal(lstat(below, &status), 0);
        if (S_ISDIR(status.st_mode)) {
            hash_tree(below, below_name, hasher);
        } else {
            size_t size;
            char *data = q3_test_read(below, &size);
            q3_hasher_update(hasher, below_name, strlen(below_name) + 1);
            q3_hasher_update(hasher, data, size);
            free(data);
        }
        free(below_name);
        free(below);
        free(entries[i]);
    }
    free(entries);
}

// The model is what it is meant to be, and its tree the same everywhere.
static void test_one_tree(void **state)
{
    (void)state;
    q3_error error;
    q3_plan plan;
    const q3_selection selection = {.components = "text"};
    assert_ok(q3_plan_make(model, &selection, &plan, &error));
    assert_int_equal(plan.checkpoint.shard_count, Q3_SMALL_SHARDS);
    assert_int_equal(plan.file_count, Q3_SMALL_FILES);
    unsigned across = 0;
    for (size_t i = 0; i < plan.file_count; i++) {
        const q3_plan_file *file = &plan.files[i];
        across += file->place.part == Q3_EXPERT &&
                  file->tensors[0]->shard != file->tensors[file->tensor_count - 1]->shard;
    }
    assert_int_equal(across, 2);
    q3_plan_free(&plan);

    static const char *const jobs[] = {"1", "2", "4", "8"};
    for (size_t i = 0; i < 4; i++) {
        q3_test_expect(extract_with(pack, jobs[i]), 0, "");
        char text[Q3_HASH_TEXT];
        q3_hasher *hasher = q3_hasher_create(&error);
        hash_tree(pack, "", hasher);
        assert_string_equal(q3_hash128_text(q3_hasher_finish(hasher), text), tree_hash);
        q3_hasher_destroy(hasher);
        q3_test_remove_tree(pack);
    }
}

// ---- ended before and after each call ----

static const char *const kind_names[Q3_INJECT_KINDS] = {
    "write", "sync", "rename", "unlink",     "truncate", "mkdir",
    "open",  "read", "close",  "allocation", "map",      "thread",
};

static void test_ended_anywhere(void **state)
{
    (void)state;
    static const q3_inject_kind kinds[] = {Q3_INJECT_WRITE,  Q3_INJECT_SYNC,     Q3_INJECT_RENAME,
                                           Q3_INJECT_UNLINK, Q3_INJECT_TRUNCATE, Q3_INJECT_MKDIR};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        unsigned ended = 0;
        bool fired = true;
        for (uint64_t at = 1; fired; at++)
            for (int late = 0; late < 2 && fired; late++) {
                arm(kinds[i], late ? Q3_INJECT_KILL_AFTER : Q3_INJECT_KILL_BEFORE, 0, at);
                q3_test_result result = extract();
                fired = disarm();
                assert_int_equal(result.code, fired ? 128 + SIGKILL : 0);
                assert_string_equal(result.err, "");
                q3_test_result_free(&result);
                if (fired) {
                    ended++;
                    check_nothing_half(pack, whole);
                    extract_again();
                }
                q3_test_remove_tree(pack);
            }
        assert_true(ended > 0);
        print_message("ended before and after every %s: %u times\n", kind_names[kinds[i]], ended);
    }
}

// ---- each call failed ----

typedef struct subject {
    const char *program;
    q3_test_result (*run)(void);
    void (*check)(const q3_test_result *result); // what a successful run leaves and prints
    void (*again)(void);                         // a run after one that failed; then as if new
} subject;

typedef enum outcome {
    SUCCEEDS,
    FAILS,
    EITHER, // what failed may not have been needed
} outcome;

typedef struct fault {
    q3_inject_kind kind;
    q3_inject_action action;
    int number;
    outcome outcome;
} fault;

static void check_failure(const subject *tested, const q3_test_result *result, uint64_t at)
{
    // q3-verify goes on to the end, and its report says what could not be read.
    const bool reported = strcmp(tested->program, "q3-verify") == 0 && *result->out &&
                          strstr(result->out, "\nunreadable");
    if (result->code != 1)
        fail_msg("%s, call %" PRIu64 ": exit code %d, \"%s\"", tested->program, at, result->code,
                 result->err);
    if (!reported)
        check_message(result, tested->program);
}

static void try_fault(const subject *tested, const fault *tried, uint64_t step)
{
    unsigned count = 0, failed = 0;
    for (uint64_t at = 1;; at += step) {
        arm(tried->kind, tried->action, tried->number, at);
        q3_test_result result = tested->run();
        const bool fired = disarm();
        count += fired;
        if (!fired || tried->outcome == SUCCEEDS ||
            (tried->outcome == EITHER && result.code == 0)) {
            if (result.code != 0)
                fail_msg("%s, %s %" PRIu64 ": exit code %d, \"%s\"", tested->program,
                         kind_names[tried->kind], at, result.code, result.err);
            assert_string_equal(result.err, "");
            tested->check(&result);
        } else {
            failed++;
            check_failure(tested, &result, at);
            tested->again();
        }
        q3_test_result_free(&result);
        if (!fired)
            break;
    }
    assert_true(count > 0);
    const char *what = tried->action == Q3_INJECT_SHORT ? "cut short" : strerror(tried->number);
    print_message("%s, %s: %s: %u times, %u ended the program\n", tested->program,
                  kind_names[tried->kind], what, count, failed);
}

static void check_extracted(const q3_test_result *result)
{
    assert_string_equal(result->out, "");
    q3_test_trees_equal(pack, whole);
    q3_test_remove_tree(pack);
}

static void extract_after_failure(void)
{
    check_nothing_half(pack, whole);
    extract_again();
    q3_test_remove_tree(pack);
}

static const subject extraction = {"q3-extract", extract, check_extracted, extract_after_failure};

static void test_failing_calls(void **state)
{
    (void)state;
    static const fault faults[] = {
        {Q3_INJECT_WRITE, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_WRITE, Q3_INJECT_FAIL, ENOSPC, FAILS},
        {Q3_INJECT_WRITE, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
        {Q3_INJECT_WRITE, Q3_INJECT_SHORT, 0, SUCCEEDS},
        {Q3_INJECT_SYNC, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_SYNC, Q3_INJECT_FAIL, ENOSPC, FAILS},
        {Q3_INJECT_SYNC, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
        {Q3_INJECT_RENAME, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_RENAME, Q3_INJECT_FAIL, ENOSPC, FAILS},
        {Q3_INJECT_UNLINK, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_TRUNCATE, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_TRUNCATE, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
        {Q3_INJECT_MKDIR, Q3_INJECT_FAIL, EIO, EITHER}, // some of them are there
        {Q3_INJECT_MKDIR, Q3_INJECT_FAIL, ENOSPC, EITHER},
        {Q3_INJECT_OPEN, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_OPEN, Q3_INJECT_FAIL, ENOSPC, FAILS},
        {Q3_INJECT_OPEN, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
        {Q3_INJECT_READ, Q3_INJECT_FAIL, EIO, FAILS},
        {Q3_INJECT_READ, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
        {Q3_INJECT_READ, Q3_INJECT_SHORT, 0, SUCCEEDS},
        {Q3_INJECT_CLOSE, Q3_INJECT_FAIL, EIO, EITHER}, // of files that are only read
        {Q3_INJECT_CLOSE, Q3_INJECT_FAIL, EINTR, SUCCEEDS},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        try_fault(&extraction, &faults[i], 1);
}

static void test_failing_allocations(void **state)
{
    (void)state;
    static const fault allocation = {Q3_INJECT_ALLOCATE, Q3_INJECT_FAIL, ENOMEM, EITHER};
    try_fault(&extraction, &allocation, full ? 1 : ALLOCATION_STEP);
    static const subject four = {"q3-extract", extract_on_four, check_extracted,
                                 extract_after_failure};
    static const fault thread = {Q3_INJECT_THREAD, Q3_INJECT_FAIL, EAGAIN, FAILS};
    try_fault(&four, &thread, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_tree),
        cmocka_unit_test(test_ended_anywhere),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
