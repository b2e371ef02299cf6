// SPDX-License-Identifier: Apache-2.0
//
// What control groups leave of a machine, on made-up /proc and /sys/fs/cgroup trees.
#include "base/file.h"
#include "base/limits.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MACHINE_KB = 20000000 };

static char *root;

static int make_root(void **state)
{
    (void)state;
    root = q3_test_directory();
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    q3_test_remove(root);
    return 0;
}

static void put(const char *name, const char *text)
{
    q3_error err;
    char *path = q3_test_path("%s/%s", root, name);
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_true(q3_directory_create(path, &err));
    *slash = '/';
    q3_test_write_text(path, text);
    free(path);
}

static void put_machine(const char *groups, const char *mounts)
{
    char text[256];
    snprintf(text, sizeof text,
             "MemTotal:       24000000 kB\nMemFree:         100000 kB\n"
             "MemAvailable:   %8d kB\n",
             MACHINE_KB);
    put("proc/meminfo", text);
    put("proc/self/cgroup", groups);
    put("proc/self/mountinfo", mounts);
}

static const char mounts_2[] =
    "22 1 0:20 / /proc rw - proc proc rw\n"
    "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

static void no_groups(void **state)
{
    (void)state;
    assert_true(q3_available_memory_under(root) == UINT64_MAX);
    assert_int_equal(q3_quota_processors_under(root, 7), 7);
    put_machine("", "");
    assert_int_equal(q3_available_memory_under(root), (uint64_t)MACHINE_KB * 1024);
}

static void version_2(void **state)
{
    (void)state;
    put_machine("0::/a.slice/b\n", mounts_2);
    put("sys/fs/cgroup/a.slice/b/memory.max", "max\n");
    put("sys/fs/cgroup/a.slice/b/memory.high", "max\n");
    put("sys/fs/cgroup/a.slice/b/memory.current", "900\n");
    assert_int_equal(q3_available_memory_under(root), (uint64_t)MACHINE_KB * 1024);

    put("sys/fs/cgroup/a.slice/b/memory.max", "8000000\n");
    assert_int_equal(q3_available_memory_under(root), 8000000 - 900);
    put("sys/fs/cgroup/a.slice/b/memory.high", "7000000\n");
    assert_int_equal(q3_available_memory_under(root), 7000000 - 900);
    put("sys/fs/cgroup/a.slice/b/memory.stat",
        "anon 500\nfile 300\nkernel 100\ninactive_file 200\nactive_file 50\n");
    assert_int_equal(q3_available_memory_under(root), 7000000 - 650);
    // A group above it, with what its other children use.
    put("sys/fs/cgroup/a.slice/memory.max", "9000000\n");
    put("sys/fs/cgroup/a.slice/memory.current", "4000000\n");
    assert_int_equal(q3_available_memory_under(root), 5000000);
    // More in use than the limit, which was lowered.
    put("sys/fs/cgroup/a.slice/memory.max", "3000000\n");
    assert_int_equal(q3_available_memory_under(root), 0);
}

static void version_1(void **state)
{
    (void)state;
    // As a container sees it: its own group is the top of the mount.
    put_machine("5:cpuset,memory:/docker/0f\n4:cpu,cpuacct:/docker/0f\n0::/elsewhere\n",
                "31 30 0:27 /docker/0f /sys/fs/cgroup/memory ro - cgroup cgroup rw,cpuset,memory\n"
                "32 30 0:28 /docker/0f /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n");
    assert_int_equal(q3_available_memory_under(root), (uint64_t)MACHINE_KB * 1024);
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "6000000\n");
    put("sys/fs/cgroup/memory/memory.stat",
        "cache 700\ntotal_inactive_file 300\ntotal_active_file 100\n");
    assert_int_equal(q3_available_memory_under(root), 6000000 - 600);

    put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 16);
    put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "250000\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 3);
    assert_int_equal(q3_quota_processors_under(root, 2), 2);
}

static void quota_of_version_2(void **state)
{
    (void)state;
    put_machine("0::/a\n", mounts_2);
    put("sys/fs/cgroup/a/cpu.max", "max 100000\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 16);
    put("sys/fs/cgroup/cpu.max", "400000 100000\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 4);
    put("sys/fs/cgroup/a/cpu.max", "50000 100000\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 1);
    put("sys/fs/cgroup/a/cpu.max", "50000 0\n");
    assert_int_equal(q3_quota_processors_under(root, 16), 4);
}

static void put_siblings(unsigned processor, const char *list)
{
    char name[96];
    snprintf(name, sizeof name, "sys/devices/system/cpu/cpu%u/topology/thread_siblings_list",
             processor);
    put(name, list);
}

static void cores(void **state)
{
    (void)state;
    enum { COUNT = 8 };
    bool usable[COUNT];
    for (unsigned i = 0; i < COUNT; i++)
        usable[i] = true;
    // Nothing is known: each is a core.
    assert_int_equal(q3_cores_under(root, usable, COUNT), 8);
    // The second threads are numbered after all the first ones, as usual; the last two have a core
    // each.
    static const char *const lists[COUNT] = {"0,3\n", "1,4\n", "2,5\n", "0,3\n",
                                             "1,4\n", "2,5\n", "6\n",   "7\n"};
    for (unsigned i = 0; i < COUNT; i++)
        put_siblings(i, lists[i]);
    assert_int_equal(q3_cores_under(root, usable, COUNT), 5);
    assert_int_equal(q3_cores_under(root, usable, 4), 3);
    // A core whose first thread is not for this process counts all the same.
    usable[0] = usable[6] = false;
    assert_int_equal(q3_cores_under(root, usable, COUNT), 4);
    usable[3] = false;
    assert_int_equal(q3_cores_under(root, usable, COUNT), 3);
    // Ranges, and what cannot be.
    put_siblings(4, "4-5\n");
    put_siblings(5, "4-5\n");
    assert_int_equal(q3_cores_under(root, usable, COUNT), 4);
    put_siblings(7, "9\n");
    put_siblings(2, "?\n");
    put_siblings(1, "");
    assert_int_equal(q3_cores_under(root, usable, COUNT), 4);
    memset(usable, 0, sizeof usable);
    assert_int_equal(q3_cores_under(root, usable, COUNT), 0);
}

// A path that leads out of what is mounted, and lines that are no good.
static void odd_files(void **state)
{
    (void)state;
    put_machine("nonsense\n0::/../other\n", mounts_2);
    put("sys/fs/cgroup/memory.max", "5000\n");
    put("sys/fs/other/memory.max", "1\n");
    assert_int_equal(q3_available_memory_under(root), 5000);
    put_machine("0::/a\n", "31 30\nx - cgroup2\n- - -\n");
    assert_int_equal(q3_available_memory_under(root), (uint64_t)MACHINE_KB * 1024);
}

static void this_process(void **state)
{
    (void)state;
    enum { BYTES = 32 << 20 };
    const unsigned found = q3_available_cores();
    assert_in_range(found, 1, q3_available_processors());
    const q3_memory_use before = q3_memory_used();
    assert_true(before.now > 0 && before.peak >= before.now);
    char *memory = malloc(BYTES);
    assert_non_null(memory);
    for (size_t i = 0; i < BYTES; i += 1024)
        *(volatile char *)(memory + i) = 1;
    const q3_memory_use after = q3_memory_used();
    assert_true(after.peak >= before.now + BYTES / 2);
    free(memory);
    // The system counts with some slack for each processor.
    assert_true(q3_memory_used().peak >= before.now + BYTES / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_groups, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(quota_of_version_2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(cores, make_root, remove_root),
        cmocka_unit_test_setup_teardown(odd_files, make_root, remove_root),
        cmocka_unit_test(this_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
