// SPDX-License-Identifier: Apache-2.0
//
// Whatever happens to an extraction, the same command given again completes it, to the same bytes
// as if nothing had happened: ended before and after each call that changes the disk, killed at
// random, each call failed in turn, the disk full. And what the other programs do when their reads
// and allocations fail.
//
// Environment: with Q3_TEST_FULL all is tried at every call; without it some faults are tried at
// every n-th (the steps below), and fewer random kills. Q3_TEST_KILLS is the number of those. An
// argument is the name of the one test to run.
#include "base/hash.h"
#include "inject.h"
#include "pack.h"
#include "plan.h"
#include "pool/profile.h"
#include "power.h"
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

enum { HALF_OF_THE_WRITES = 55, HALF_OF_THE_RENAMES = 12 };

static char *directory, *model, *whole, *half, *pack, *record_path, *messages;
static q3_inject_record *record;
static bool full;

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

static q3_test_result extract_from(const char *from, const char *to, const char *jobs)
{
    return q3_test_run(NULL, Q3_TEST_EXTRACT, from, to, "--codec", "raw", "--jobs", jobs, "--quiet",
                       NULL);
}

static q3_test_result extract_with(const char *to, const char *jobs)
{
    return extract_from(model, to, jobs);
}

static q3_test_result extract(void)
{
    return extract_with(pack, "1");
}

static q3_test_result extract_on_four(void)
{
    return extract_with(pack, "4");
}

// Goes on from a tree that an earlier run left half done.
static q3_test_result extract_the_rest(void)
{
    q3_test_copy_tree(half, pack, false);
    return extract();
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
static void finish(const char *from, const char *to, const char *reference, const char *jobs)
{
    if (exists(to, "pack.json") && !exists(to, "extract.journal")) {
        char *expected =
            q3_test_path("q3-extract: %s: holds a finished extraction (pack.json exists)\n", to);
        q3_test_expect(extract_from(from, to, jobs), 6, expected);
        free(expected);
    } else {
        q3_test_expect(extract_from(from, to, jobs), 0, "");
    }
    q3_test_trees_equal(to, reference);
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
        q3_error error;
        q3_pack piece;
        if (strcmp(name, "extract.headers") == 0 || strcmp(name, "extract.journal") == 0 ||
            ends_in(name, ".part")) {
            // What an unfinished extraction has beside pack files.
        } else if (S_ISDIR(status.st_mode)) {
            check_nothing_half(path, expected);
        } else if (ends_in(name, ".piece")) {
            assert_ok(q3_pack_open(path, &piece, &error));
            q3_pack_close(&piece);
        } else {
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
    full = getenv("Q3_TEST_FULL") != NULL;
    directory = q3_test_directory();
    model = q3_test_path("%s/model", directory);
    whole = q3_test_path("%s/whole", directory);
    half = q3_test_path("%s/half", directory);
    pack = q3_test_path("%s/pack", directory);
    record_path = q3_test_path("%s/record", directory);
    messages = q3_test_path("%s/messages", directory);
    q3_test_write(record_path, &(q3_inject_record){0}, sizeof *record);
    const int fd = open(record_path, O_RDWR | O_CLOEXEC);
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_true(record != MAP_FAILED);
    assert_ok(q3_small_model_write(model, Q3_SMALL_WIDTH, &error));
    q3_test_expect(extract_with(whole, "1"), 0, "");
    q3_test_expect(
        q3_test_run(NULL, Q3_TEST_VERIFY, "packs", whole, "--source", model, "--quiet", NULL), 0,
        "");
    arm(Q3_INJECT_RENAME, Q3_INJECT_KILL_AFTER, 0, HALF_OF_THE_RENAMES);
    q3_test_expect(extract_with(half, "1"), 128 + SIGKILL, "");
    assert_true(disarm());
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    munmap(record, sizeof *record);
    free(messages);
    free(record_path);
    free(pack);
    free(half);
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
    assert_ok(q3_plan_make(model, NULL, &selection, &plan, &error));
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

static const q3_inject_kind changing_kinds[] = {Q3_INJECT_WRITE,    Q3_INJECT_SYNC,
                                                Q3_INJECT_RENAME,   Q3_INJECT_UNLINK,
                                                Q3_INJECT_TRUNCATE, Q3_INJECT_MKDIR};

// Ends run() before and after each call of each kind, or of every so many, and calls after() each
// time.
static void end_anywhere(const char *what, q3_test_result (*run)(void), void (*after)(void),
                         unsigned step)
{
    for (size_t i = 0; i < sizeof changing_kinds / sizeof *changing_kinds; i++) {
        unsigned ended = 0;
        bool fired = true;
        for (uint64_t at = 1; fired; at += full ? 1 : step)
            for (int late = 0; late < 2 && fired; late++) {
                arm(changing_kinds[i], late ? Q3_INJECT_KILL_AFTER : Q3_INJECT_KILL_BEFORE, 0, at);
                q3_test_result result = run();
                fired = disarm();
                assert_int_equal(result.code, fired ? 128 + SIGKILL : 0);
                assert_string_equal(result.err, "");
                q3_test_result_free(&result);
                ended += fired;
                after();
            }
        print_message("%s ended before and after each %s: %u times\n", what,
                      q3_inject_name(changing_kinds[i]), ended);
    }
}

static void extract_after_end(void)
{
    check_nothing_half(pack, whole);
    finish(model, pack, whole, "1");
    q3_test_remove_tree(pack);
}

static void test_ended_anywhere(void **state)
{
    (void)state;
    end_anywhere("q3-extract", extract, extract_after_end, 1);
    end_anywhere("q3-extract, going on,", extract_the_rest, extract_after_end, 3);
}

// Before each call the power goes, and with it what was not synced: bytes, or bytes and names.
static void test_power_lost(void **state)
{
    (void)state;
    static const int losses[] = {Q3_POWER_DATA, Q3_POWER_DATA | Q3_POWER_NAMES, Q3_POWER_NAMES};
    q3_test_result (*const runs[])(void) = {extract, extract_the_rest};
    unsigned lost = 0;
    for (size_t run = 0; run < (full ? 2 : 1); run++)
        for (size_t loss = 0; loss < (full ? 3 : 2); loss++)
            for (size_t i = 0; i < sizeof changing_kinds / sizeof *changing_kinds; i++) {
                bool fired = true;
                for (uint64_t at = 1; fired; at++) {
                    arm(changing_kinds[i], Q3_INJECT_POWER, losses[loss], at);
                    q3_test_result result = runs[run]();
                    fired = disarm();
                    assert_int_equal(result.code, fired ? 128 + SIGKILL : 0);
                    q3_test_result_free(&result);
                    lost += fired;
                    extract_after_end();
                }
            }
    print_message("power lost: %u times\n", lost);
}

// ---- shards that come one at a time, and go ----

static const unsigned orders[][Q3_SMALL_SHARDS] = {{1, 2, 3}, {3, 1, 2}};

static char *arriving;

static char *shard_path(const char *in, unsigned number)
{
    return q3_test_path("%s/model-%05u-of-%05u.safetensors", in, number, Q3_SMALL_SHARDS);
}

static void put_shard(unsigned number)
{
    char *from = shard_path(model, number), *to = shard_path(arriving, number);
    size_t size;
    char *data = q3_test_read(from, &size);
    q3_test_write(to, data, size);
    free(data);
    free(to);
    free(from);
}

static void take_shard(unsigned number)
{
    char *path = shard_path(arriving, number);
    assert_int_equal(unlink(path), 0);
    free(path);
}

static q3_test_result extract_arrived(void)
{
    return q3_test_run(NULL, Q3_TEST_EXTRACT, arriving, pack, "--codec", "raw", "--jobs", "1",
                       "--partial", "--quiet", NULL);
}

// The order's shards from the `first` on, each taken away when it is packed.
static void extract_arriving(const unsigned order[Q3_SMALL_SHARDS], unsigned first)
{
    for (unsigned i = first; i < Q3_SMALL_SHARDS; i++) {
        const bool last = i + 1 == Q3_SMALL_SHARDS;
        put_shard(order[i]);
        q3_test_result result = extract_arrived();
        if (last && result.code == 6)
            assert_non_null(strstr(result.err, ": holds a finished extraction "));
        else if (result.code != (last ? 0 : 5))
            fail_msg("shard %u after %s %" PRIu64 ", action %u, loss %d: exit code %d, \"%s\"",
                     order[i], q3_inject_name((q3_inject_kind)record->kind), record->at,
                     (unsigned)record->action, record->number, result.code, result.err);
        q3_test_result_free(&result);
        take_shard(order[i]);
    }
    q3_test_trees_equal(pack, whole);
}

// Ends the run that packs each shard, at each call; then goes on with that shard.
static unsigned end_arriving(const unsigned order[Q3_SMALL_SHARDS], unsigned number,
                             q3_inject_action action, int loss, const char *before)
{
    unsigned ended = 0;
    for (size_t i = 0; i < sizeof changing_kinds / sizeof *changing_kinds; i++) {
        bool fired = true;
        for (uint64_t at = 1; fired; at += full ? 1 : 19) {
            q3_test_copy_tree(before, pack, false);
            put_shard(order[number]);
            arm(changing_kinds[i], action, loss, at);
            q3_test_result result = extract_arrived();
            fired = disarm();
            q3_test_result_free(&result);
            ended += fired;
            check_nothing_half(pack, whole);
            extract_arriving(order, number);
            q3_test_remove_tree(pack);
        }
    }
    return ended;
}

// Ends it once it has said that the shard may be deleted, which is then done.
static void end_said(const unsigned order[Q3_SMALL_SHARDS], unsigned number, int loss,
                     const char *before)
{
    const bool last = number + 1 == Q3_SMALL_SHARDS;
    q3_test_copy_tree(before, pack, false);
    put_shard(order[number]);
    arm(Q3_INJECT_EXIT, Q3_INJECT_POWER, loss, 1);
    q3_test_result result = extract_arrived();
    assert_true(disarm());
    q3_test_result_free(&result);
    take_shard(order[number]);
    if (last)
        q3_test_trees_equal(pack, whole);
    else
        extract_arriving(order, number + 1);
    q3_test_remove_tree(pack);
}

static void test_arriving_shards(void **state)
{
    (void)state;
    static const int losses[] = {Q3_POWER_DATA, Q3_POWER_DATA | Q3_POWER_NAMES, Q3_POWER_NAMES};
    char *before = q3_test_path("%s/before", directory);
    unsigned ended = 0, lost = 0;
    arriving = q3_test_path("%s/arriving", directory);
    q3_test_copy_tree(model, arriving, false);
    for (unsigned i = 1; i <= Q3_SMALL_SHARDS; i++)
        take_shard(i);
    for (size_t o = 0; o < sizeof orders / sizeof *orders; o++) {
        const unsigned *order = orders[o];
        assert_int_equal(mkdir(before, 0777), 0);
        for (unsigned i = 0; i < Q3_SMALL_SHARDS; i++) {
            ended += end_arriving(order, i, Q3_INJECT_KILL_BEFORE, 0, before);
            ended += end_arriving(order, i, Q3_INJECT_KILL_AFTER, 0, before);
            for (size_t k = 0; k < (full ? 3 : 2); k++) {
                lost += end_arriving(order, i, Q3_INJECT_POWER, losses[k], before);
                end_said(order, i, losses[k], before);
                lost++;
            }
            // One shard further.
            q3_test_copy_tree(before, pack, false);
            put_shard(order[i]);
            q3_test_result result = extract_arrived();
            assert_int_equal(result.code, i + 1 < Q3_SMALL_SHARDS ? 5 : 0);
            q3_test_result_free(&result);
            take_shard(order[i]);
            q3_test_remove_tree(before);
            assert_int_equal(rename(pack, before), 0);
        }
        q3_test_trees_equal(before, whole);
        q3_test_remove_tree(before);
    }
    print_message("shards one at a time: ended %u times, power lost %u times\n", ended, lost);
    q3_test_remove_tree(arriving);
    free(arriving);
    free(before);
}

// ---- each call failed ----

typedef struct subject {
    const char *program;
    q3_test_result (*run)(void);
    void (*check)(const q3_test_result *result); // what a successful run leaves and prints
    void (*again)(void);                         // a run after one that failed; then as if new
    unsigned step;                               // multiplies the faults' steps
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
    bool forever;  // this call and all that follow
    unsigned step; // each such call in turn, or every so many of them; with Q3_TEST_FULL each
} fault;

static void check_failure(const subject *tested, const q3_test_result *result, uint64_t at)
{
    // q3-verify goes on to the end, and its report says what could not be read.
    const bool reported = strcmp(tested->program, "q3-verify") == 0 && *result->out &&
                          strstr(result->out, "unreadable (");
    if (result->code != 1)
        fail_msg("%s, call %" PRIu64 ": exit code %d, \"%s\" \"%s\"", tested->program, at,
                 result->code, result->out, result->err);
    if (!reported)
        check_message(result, tested->program);
}

static void try_fault(const subject *tested, const fault *tried)
{
    const uint64_t step = full ? 1 : (uint64_t)tried->step * tested->step;
    unsigned count = 0, failed = 0;
    for (uint64_t at = 1;; at += step) {
        arm(tried->kind, tried->action, tried->number, at);
        record->forever = tried->forever;
        q3_test_result result = tested->run();
        const bool fired = disarm();
        count += fired;
        if (!fired || tried->outcome == SUCCEEDS ||
            (tried->outcome == EITHER && result.code == 0)) {
            if (result.code != 0)
                fail_msg("%s, %s %" PRIu64 ": exit code %d, \"%s\"", tested->program,
                         q3_inject_name(tried->kind), at, result.code, result.err);
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
    print_message("%s, %s%s: %s: %u times, %u ended the program\n", tested->program,
                  q3_inject_name(tried->kind), tried->forever ? " and all after it" : "", what,
                  count, failed);
}

static void try_faults(const subject *tested, const fault *faults, size_t count)
{
    for (size_t i = 0; i < count; i++)
        try_fault(tested, &faults[i]);
}

#define TRY_FAULTS(tested, faults) try_faults(tested, faults, sizeof(faults) / sizeof *(faults))

static const fault writing_faults[] = {
    {Q3_INJECT_WRITE, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_WRITE, Q3_INJECT_FAIL, ENOSPC, FAILS, false, 5},
    {Q3_INJECT_WRITE, Q3_INJECT_FAIL, ENOSPC, FAILS, true, 5},
    {Q3_INJECT_WRITE, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
    {Q3_INJECT_WRITE, Q3_INJECT_SHORT, 0, SUCCEEDS, false, 3},
    {Q3_INJECT_SYNC, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_SYNC, Q3_INJECT_FAIL, ENOSPC, FAILS, false, 5},
    {Q3_INJECT_SYNC, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
    {Q3_INJECT_RENAME, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_RENAME, Q3_INJECT_FAIL, ENOSPC, FAILS, false, 5},
    {Q3_INJECT_UNLINK, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_MKDIR, Q3_INJECT_FAIL, EIO, EITHER, false, 1}, // some of them are there
    {Q3_INJECT_MKDIR, Q3_INJECT_FAIL, ENOSPC, EITHER, false, 5},
};

static const fault reading_faults[] = {
    {Q3_INJECT_OPEN, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_OPEN, Q3_INJECT_FAIL, EMFILE, FAILS, false, 5},
    {Q3_INJECT_OPEN, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
    {Q3_INJECT_READ, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_READ, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
    {Q3_INJECT_READ, Q3_INJECT_SHORT, 0, SUCCEEDS, false, 3},
    {Q3_INJECT_CLOSE, Q3_INJECT_FAIL, EIO, EITHER, false, 1}, // of files that are only read
    {Q3_INJECT_CLOSE, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
    {Q3_INJECT_ALLOCATE, Q3_INJECT_FAIL, ENOMEM, EITHER, false,
     23}, // vasprintf needs one of its two
    {Q3_INJECT_ALLOCATE, Q3_INJECT_FAIL, ENOMEM, EITHER, true, 47},
};

static const fault journal_faults[] = {
    {Q3_INJECT_TRUNCATE, Q3_INJECT_FAIL, EIO, FAILS, false, 1},
    {Q3_INJECT_TRUNCATE, Q3_INJECT_FAIL, EINTR, SUCCEEDS, false, 3},
};

static const fault thread_faults[] = {{Q3_INJECT_THREAD, Q3_INJECT_FAIL, EAGAIN, FAILS, false, 1}};

static const fault map_faults[] = {{Q3_INJECT_MAP, Q3_INJECT_FAIL, ENOMEM, FAILS, false, 1}};

static void check_extracted(const q3_test_result *result)
{
    assert_string_equal(result->out, "");
    q3_test_trees_equal(pack, whole);
    q3_test_remove_tree(pack);
}

static void test_extract_faults(void **state)
{
    (void)state;
    static const subject fresh = {"q3-extract", extract, check_extracted, extract_after_end, 1};
    static const subject rest = {"q3-extract", extract_the_rest, check_extracted, extract_after_end,
                                 5};
    static const subject four = {"q3-extract", extract_on_four, check_extracted, extract_after_end,
                                 1};
    TRY_FAULTS(&fresh, writing_faults);
    TRY_FAULTS(&fresh, reading_faults);
    TRY_FAULTS(&fresh, journal_faults);
    // Files are finished by any thread.
    static const subject threads = {"q3-extract", extract_on_four, check_extracted,
                                    extract_after_end, 4};
    TRY_FAULTS(&threads, writing_faults);
    TRY_FAULTS(&four, thread_faults);
    // What cannot be read again is written again.
    fault forgiving[sizeof reading_faults / sizeof *reading_faults];
    memcpy(forgiving, reading_faults, sizeof forgiving);
    for (size_t i = 0; i < sizeof forgiving / sizeof *forgiving; i++)
        if (forgiving[i].outcome == FAILS)
            forgiving[i].outcome = EITHER;
    TRY_FAULTS(&rest, writing_faults);
    TRY_FAULTS(&rest, forgiving);
    TRY_FAULTS(&rest, journal_faults);
}

// ---- killed at random ----

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

// Starts an extraction whose messages go to the file `messages`.
static pid_t start(const char *from, const char *to, const char *jobs)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const int fd = open(messages, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        if (fd >= 0 && dup2(fd, STDERR_FILENO) >= 0)
            execl(Q3_TEST_EXTRACT, Q3_TEST_EXTRACT, from, to, "--codec", "raw", "--jobs", jobs,
                  "--quiet", (char *)NULL);
        _exit(127);
    }
    return child;
}

// Kills an extraction within `duration`. True when it was still at work.
static bool extract_and_kill(const char *from, const char *to, uint64_t duration, uint64_t *seed)
{
    const pid_t child = start(from, to, "4");
    const uint64_t wait = next_random(seed) % duration;
    nanosleep(&(struct timespec){.tv_sec = (time_t)(wait / 1000000000),
                                 .tv_nsec = (long)(wait % 1000000000)},
              NULL);
    kill(child, SIGKILL);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static void test_killed_at_random(void **state)
{
    (void)state;
    const char *number = getenv("Q3_TEST_KILLS");
    const unsigned singles = number ? (unsigned)atoi(number) : full ? 200 : 12;
    const unsigned doubles = singles / 4;
    char *reference = q3_test_path("%s/tiny", directory);
    q3_test_expect(extract_from(Q3_TEST_MODEL_DIR, reference, "4"), 0, "");
    q3_test_remove_tree(reference);
    const uint64_t started = nanoseconds();
    q3_test_expect(extract_from(Q3_TEST_MODEL_DIR, reference, "4"), 0, "");
    const uint64_t duration = nanoseconds() - started;
    uint64_t seed = 1;
    unsigned landed = 0, landed_twice = 0;
    for (unsigned i = 0; i < singles + doubles; i++) {
        const uint64_t within = i < singles ? duration : duration / 2;
        const bool first = extract_and_kill(Q3_TEST_MODEL_DIR, pack, within, &seed);
        check_nothing_half(pack, reference);
        if (i < singles) {
            landed += first;
        } else if (first) {
            landed_twice += extract_and_kill(Q3_TEST_MODEL_DIR, pack, within, &seed);
            check_nothing_half(pack, reference);
        }
        finish(Q3_TEST_MODEL_DIR, pack, reference, "4");
        q3_test_remove_tree(pack);
    }
    print_message("killed at random: %u of %u at work, %u of %u twice\n", landed, singles,
                  landed_twice, doubles);
    free(reference);
}

// ---- stopped, and the world changed meanwhile ----

// Starts an extraction that stops before the k-th call of a kind. 0 when it ended without one.
static pid_t start_stopped(const char *from, const char *to, q3_inject_kind kind, uint64_t at)
{
    arm(kind, Q3_INJECT_SIGNAL, SIGSTOP, at);
    const pid_t child = start(from, to, "1");
    int status;
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    if (disarm()) {
        assert_true(WIFSTOPPED(status));
        return child;
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

// Lets it go on to its end.
static q3_test_result let_go(pid_t child)
{
    int status;
    kill(child, SIGCONT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return (q3_test_result){.code = WEXITSTATUS(status), .err = q3_test_read(messages, NULL)};
}

static void test_second_run(void **state)
{
    (void)state;
    const pid_t child = start_stopped(model, pack, Q3_INJECT_WRITE, HALF_OF_THE_WRITES);
    assert_true(child > 0);
    char *expected =
        q3_test_path("q3-extract: %s/extract.journal: another extraction is at work here\n", pack);
    q3_test_expect(extract(), 6, expected);
    q3_test_expect(let_go(child), 0, "");
    q3_test_trees_equal(pack, whole);
    q3_test_remove_tree(pack);
    free(expected);
}

static void cut_shards(const char *copy)
{
    for (unsigned i = 1; i <= Q3_SMALL_SHARDS; i++) {
        char *path = q3_test_path("%s/model-%05u-of-%05u.safetensors", copy, i, Q3_SMALL_SHARDS);
        struct stat status;
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(truncate(path, status.st_size / 2), 0);
        free(path);
    }
}

// Before each read all the shards lose their second half.
static void test_shards_shrink(void **state)
{
    (void)state;
    char *copy = q3_test_path("%s/copy", directory);
    unsigned tried = 0, noticed = 0;
    for (uint64_t at = 1;; at++) {
        q3_test_copy_tree(model, copy, false);
        const pid_t child = start_stopped(copy, pack, Q3_INJECT_READ, at);
        if (!child)
            break;
        tried++;
        cut_shards(copy);
        q3_test_result result = let_go(child);
        if (result.code != 0) {
            // Before its header is read a shard is only malformed.
            const bool ends = strstr(result.err, ": the file ends at ") != NULL;
            assert_int_equal(result.code, ends || strstr(result.err, "changed") ? 1 : 4);
            noticed += ends;
            check_message(&result, "q3-extract");
        }
        q3_test_result_free(&result);
        check_nothing_half(pack, whole);
        q3_test_copy_tree(model, copy, false);
        finish(copy, pack, whole, "1");
        q3_test_remove_tree(pack);
    }
    q3_test_remove_tree(pack);
    assert_true(noticed > 0);
    print_message("shards cut before every read: %u times, %u found while packing\n", tried,
                  noticed);
    q3_test_remove_tree(copy);
    free(copy);
}

// SIGINT at each call: the end, with its exit code, or too late to matter.
static void test_interrupted(void **state)
{
    (void)state;
    static const q3_inject_kind kinds[] = {Q3_INJECT_WRITE, Q3_INJECT_READ, Q3_INJECT_SYNC,
                                           Q3_INJECT_RENAME};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        unsigned tried = 0, ended = 0;
        bool fired = true;
        for (uint64_t at = 1; fired; at++) {
            arm(kinds[i], Q3_INJECT_SIGNAL, SIGINT, at);
            q3_test_result result = extract();
            fired = disarm();
            tried += fired;
            if (result.code == 0) {
                assert_string_equal(result.err, "");
                check_extracted(&result);
            } else {
                ended++;
                assert_int_equal(result.code, 130);
                assert_string_equal(result.err, "q3-extract: interrupted\n");
                extract_after_end();
            }
            q3_test_result_free(&result);
        }
        assert_true(ended > 0);
        print_message("interrupted at every %s: %u times, %u ended the program\n",
                      q3_inject_name(kinds[i]), tried, ended);
    }
}

// ---- a full disk ----

// A file system of this process alone, that goes when the process does. False when that is not
// allowed.
static bool mount_disk(const char *path, const char *options)
{
    static bool own;
    if (!own &&
        (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0))
        return false;
    own = true;
    return mount("tmpfs", path, "tmpfs", 0, options) == 0;
}

// It found the disk full, or, where `early`, perhaps saw beforehand that it would be.
static void check_full(q3_test_result result, const char *to, bool early)
{
    assert_int_equal(result.code, 1);
    check_message(&result, "q3-extract");
    if (!strstr(result.err, ": No space left on device\n") &&
        !(early && strstr(result.err, ": needs about ")))
        fail_msg("the disk is full, but: %s", result.err);
    q3_test_result_free(&result);
    check_nothing_half(to, whole);
}

static void fill_disk(const char *path)
{
    static const char block[4096];
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    while (write(fd, block, sizeof block) > 0)
        ;
    assert_int_equal(errno, ENOSPC);
    close(fd);
}

static void test_full_disk(void **state)
{
    (void)state;
    char *disk = q3_test_path("%s/disk", directory), *to = q3_test_path("%s/pack", disk);
    char *filler = q3_test_path("%s/filler", disk);
    assert_int_equal(mkdir(disk, 0777), 0);
    if (!mount_disk(disk, "size=32k")) {
        print_message("no right to mount a file system\n");
        free(filler);
        free(to);
        free(disk);
        skip();
    }
    // Too small, and seen to be before the first byte of a pack file.
    for (int i = 0; i < 2; i++) {
        q3_test_result result = extract_with(to, "2");
        assert_int_equal(result.code, 1);
        check_message(&result, "q3-extract");
        assert_non_null(strstr(result.err, ": needs about 55.1 kB of disk, "));
        q3_test_result_free(&result);
        assert_false(exists(to, "layers"));
    }
    // Too small for what comes with so small files: seen when it is full.
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=112k"), 0);
    check_full(extract_with(to, "2"), to, false);
    check_full(extract_with(to, "2"), to, true);
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=16m"), 0);
    finish(model, to, whole, "2");
    q3_test_remove_tree(to);
    // No room for another file.
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=16m,nr_inodes=16"), 0);
    check_full(extract_with(to, "2"), to, false);
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=16m,nr_inodes=1000"), 0);
    finish(model, to, whole, "2");
    q3_test_remove_tree(to);
    // Filled by others at any moment.
    unsigned tried = 0;
    for (uint64_t at = 1;; at++) {
        const pid_t child = start_stopped(model, to, Q3_INJECT_WRITE, at);
        if (!child)
            break;
        tried++;
        fill_disk(filler);
        q3_test_result result = let_go(child);
        if (result.code == 0) // what was left to write had its room
            q3_test_result_free(&result);
        else
            check_full(result, to, true);
        unlink(filler);
        finish(model, to, whole, "2");
        q3_test_remove_tree(to);
    }
    print_message("disk filled before every write: %u times\n", tried);
    q3_test_remove_tree(to);
    assert_int_equal(umount(disk), 0);
    free(filler);
    free(to);
    free(disk);
}

// ---- the other programs ----

static char *unpacked, *original, *manifest, *expected_output;

static q3_test_result unpack_with(const char *to, const char *jobs)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "unpack", whole, to, "--jobs", jobs, "--quiet", NULL);
}

static q3_test_result unpack(void)
{
    return unpack_with(unpacked, "1");
}

static q3_test_result unpack_on_four(void)
{
    return unpack_with(unpacked, "4");
}

static void check_unpacked(const q3_test_result *result)
{
    assert_string_equal(result->out, "");
    q3_test_trees_equal(unpacked, original);
    q3_test_remove_tree(unpacked);
}

// Nothing half under a final name, and no index until all is there. Then once more from the start.
static void unpack_after_end(void)
{
    check_nothing_half(unpacked, original);
    if (exists(unpacked, "model.safetensors.index.json"))
        q3_test_trees_equal(unpacked, original);
    q3_test_remove_tree(unpacked);
    q3_test_result result = unpack();
    check_unpacked(&result);
    q3_test_expect(result, 0, "");
}

static void test_unpack_faults(void **state)
{
    (void)state;
    unpacked = q3_test_path("%s/unpacked", directory);
    original = q3_test_path("%s/original", directory);
    q3_test_expect(unpack_with(original, "1"), 0, "");
    static const subject one = {"q3-pack", unpack, check_unpacked, unpack_after_end, 1};
    static const subject four = {"q3-pack", unpack_on_four, check_unpacked, unpack_after_end, 1};
    end_anywhere("q3-pack unpack", unpack, unpack_after_end, 1);
    TRY_FAULTS(&one, writing_faults);
    TRY_FAULTS(&one, reading_faults);
    TRY_FAULTS(&four, thread_faults);
    free(original);
    free(unpacked);
}

static char *exported;

static q3_test_result export_with(const char *to, const char *jobs)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "export", whole, to, "--format", "safetensors",
                       "--shard-size", "20K", "--jobs", jobs, "--quiet", NULL);
}

static q3_test_result export_model(void)
{
    return export_with(exported, "1");
}

static q3_test_result export_on_four(void)
{
    return export_with(exported, "4");
}

static void check_exported(const q3_test_result *result)
{
    assert_string_equal(result->out, "");
    q3_test_trees_equal(exported, original);
    q3_test_remove_tree(exported);
}

static void export_again(void)
{
    q3_test_remove_tree(exported);
    q3_test_result result = export_model();
    check_exported(&result);
    q3_test_expect(result, 0, "");
}

// Killed: nothing half under a final name, and no index until all is there.
static void export_after_end(void)
{
    check_nothing_half(exported, original);
    if (exists(exported, "model.safetensors.index.json"))
        q3_test_trees_equal(exported, original);
    export_again();
}

// Failed: nothing at all is left.
static void export_after_failure(void)
{
    if (exists(exported, "."))
        assert_int_equal(rmdir(exported), 0);
    export_again();
}

static void test_export_faults(void **state)
{
    (void)state;
    exported = q3_test_path("%s/exported", directory);
    original = q3_test_path("%s/exported-original", directory);
    q3_test_expect(export_with(original, "1"), 0, "");
    static const subject one = {"q3-pack", export_model, check_exported, export_after_failure, 1};
    static const subject four = {"q3-pack", export_on_four, check_exported, export_after_failure,
                                 1};
    end_anywhere("q3-pack export", export_model, export_after_end, 1);
    TRY_FAULTS(&one, writing_faults);
    TRY_FAULTS(&one, reading_faults);
    TRY_FAULTS(&four, thread_faults);
    // Ctrl-C in the middle of a shard.
    arm(Q3_INJECT_WRITE, Q3_INJECT_SIGNAL, SIGINT, 5);
    q3_test_result result = export_model();
    assert_true(disarm());
    q3_test_expect(result, 130, "q3-pack: interrupted\n");
    export_after_failure();
    q3_test_remove_tree(original);
    free(original);
    free(exported);
}

static q3_test_result verify_with(const char *jobs)
{
    return q3_test_run(NULL, Q3_TEST_VERIFY, "packs", whole, "--source", model, "--jobs", jobs,
                       "--quiet", NULL);
}

static q3_test_result verify(void)
{
    return verify_with("1");
}

static q3_test_result verify_on_four(void)
{
    return verify_with("4");
}

static q3_test_result verify_checkpoint(void)
{
    return q3_test_run(NULL, Q3_TEST_VERIFY, "shapes", model, "--manifest", manifest, NULL);
}

static q3_test_result verify_shapes(void)
{
    return q3_test_run(NULL, Q3_TEST_VERIFY, "shapes", whole, "--manifest", manifest, NULL);
}

static q3_test_result run_with(const char *threads)
{
    return q3_test_run(NULL, Q3_TEST_RUN, "logits", whole, "--ids", Q3_SMALL_IDS, "--threads",
                       threads, NULL);
}

static q3_test_result run(void)
{
    return run_with("1");
}

static q3_test_result run_on_four(void)
{
    return run_with("4");
}

static void check_output(const q3_test_result *result)
{
    assert_string_equal(result->out, expected_output);
}

static void nothing(void)
{
}

static void expect_output_of(q3_test_result (*action)(void))
{
    free(expected_output);
    q3_test_result result = action();
    assert_int_equal(result.code, 0);
    expected_output = strdup(result.out);
    q3_test_result_free(&result);
}

static void test_verify_faults(void **state)
{
    (void)state;
    static const subject one = {"q3-verify", verify, check_output, nothing, 1};
    static const subject four = {"q3-verify", verify_on_four, check_output, nothing, 1};
    expect_output_of(verify);
    TRY_FAULTS(&one, reading_faults);
    TRY_FAULTS(&four, thread_faults);

    static const subject checkpoint = {"q3-verify", verify_checkpoint, check_output, nothing, 1};
    static const subject shapes = {"q3-verify", verify_shapes, check_output, nothing, 1};
    char *config = q3_test_path("%s/config.json", model);
    manifest = q3_test_path("%s/manifest.json", directory);
    q3_test_result made = q3_test_run(NULL, Q3_TEST_VERIFY, "manifest", config, NULL);
    q3_test_write_text(manifest, made.out);
    q3_test_expect(made, 0, "");
    free(config);
    expect_output_of(verify_checkpoint);
    TRY_FAULTS(&checkpoint, reading_faults);
    expect_output_of(verify_shapes);
    TRY_FAULTS(&shapes, reading_faults);
    free(manifest);
}

static char *profile, *pool_file;

static q3_test_result choose_pool(void)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "pool", profile, "--size", "2", "--pack", whole,
                       "--quiet", NULL);
}

static q3_test_result choose_to_output(void)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "pool", profile, "--size", "2", "--quiet", NULL);
}

static q3_test_result draw_heatmap(void)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "heatmap", profile, NULL);
}

static q3_test_result write_pool(void)
{
    return q3_test_run(NULL, Q3_TEST_PACK, "pool", profile, "--size", "2", "--quiet", "-o",
                       pool_file, NULL);
}

static void check_pool_file(const q3_test_result *result)
{
    (void)result;
    char *text = q3_test_read(pool_file, NULL);
    assert_string_equal(text, expected_output);
    free(text);
    assert_int_equal(unlink(pool_file), 0);
}

// The whole file under its name, or none.
static void pool_after_end(void)
{
    if (access(pool_file, F_OK) == 0)
        check_pool_file(NULL);
}

static void test_pool_faults(void **state)
{
    (void)state;
    q3_error error;
    q3_set set;
    q3_hash128 hash;
    q3_profile made;
    profile = q3_test_path("%s/profile.json", directory);
    pool_file = q3_test_path("%s/pool.json", directory);
    if (!q3_set_open(whole, &set, &error) || !q3_profile_model_hash(&set, &hash, &error) ||
        !q3_profile_create(&set.config, hash, &made, &error) ||
        !q3_profile_add_text(&made, "text", 3, 0, &error))
        fail_msg("%s", error.message);
    for (uint32_t layer = 0; layer < made.layers; layer++)
        for (uint32_t expert = 0; expert < made.experts; expert++)
            q3_profile_add_chosen(&made, Q3_PHASE_PROMPT, layer, expert, 0.5, expert + 1);
    if (!q3_profile_write(&made, profile, &error))
        fail_msg("%s", error.message);
    q3_profile_destroy(&made);
    q3_set_close(&set);

    static const subject choose = {"q3-pack", choose_pool, check_output, nothing, 1};
    static const subject draw = {"q3-pack", draw_heatmap, check_output, nothing, 1};
    static const subject write = {"q3-pack", write_pool, check_pool_file, pool_after_end, 1};
    expect_output_of(choose_pool);
    TRY_FAULTS(&choose, reading_faults);
    expect_output_of(draw_heatmap);
    TRY_FAULTS(&draw, reading_faults);
    expect_output_of(choose_to_output);
    // Without the last two: it makes no directory.
    try_faults(&write, writing_faults, sizeof writing_faults / sizeof *writing_faults - 2);
    free(profile);
    free(pool_file);
}

static void test_run_faults(void **state)
{
    (void)state;
    static const subject one = {"q3-run", run, check_output, nothing, 1};
    static const subject four = {"q3-run", run_on_four, check_output, nothing, 1};
    expect_output_of(run);
    TRY_FAULTS(&one, reading_faults);
    TRY_FAULTS(&one, map_faults);
    TRY_FAULTS(&four, thread_faults);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_tree),       cmocka_unit_test(test_ended_anywhere),
        cmocka_unit_test(test_power_lost),     cmocka_unit_test(test_arriving_shards),
        cmocka_unit_test(test_extract_faults), cmocka_unit_test(test_killed_at_random),
        cmocka_unit_test(test_second_run),     cmocka_unit_test(test_shards_shrink),
        cmocka_unit_test(test_interrupted),    cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_unpack_faults),  cmocka_unit_test(test_export_faults),
        cmocka_unit_test(test_verify_faults),  cmocka_unit_test(test_run_faults),
        cmocka_unit_test(test_pool_faults),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
