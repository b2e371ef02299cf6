// SPDX-License-Identifier: Apache-2.0
//
// The probes on a small scale, and the rule that chooses how experts are read.
#include "probe.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

enum { FILES = 5, FILE_BYTES = 3 * 4096 + 100 };

static void memory(void **state)
{
    (void)state;
    q3_error err;
    for (unsigned threads = 1; threads <= 3; threads++) {
        q3_workers *workers;
        q3_memory_probe probe;
        assert_true(q3_workers_create(threads, &workers, &err));
        assert_true(q3_probe_memory(workers, (5 << 20) - 7, 0, &probe, &err));
        const uint64_t words = (5 << 20) / 8;
        assert_int_equal(probe.bytes, 5 << 20);
        assert_int_equal(probe.passes, 3);
        assert_int_equal(probe.sum, 3 * (words * (words - 1) / 2));
        assert_true(probe.bytes_per_second > 0);
        q3_workers_destroy(workers);
    }
}

static void disk(void **state)
{
    (void)state;
    q3_error err;
    static char text[FILE_BYTES];
    char *paths[FILES];
    char *directory = q3_test_directory();
    memset(text, 'x', sizeof text);
    for (unsigned i = 0; i < FILES; i++) {
        paths[i] = q3_test_path("%s/%u", directory, i);
        q3_test_write(paths[i], text, sizeof text);
    }
    q3_disk_sample sample = {.paths = (const char *const *)paths, .count = FILES, .seconds = 0};
    q3_disk_probe probe;
    for (unsigned drop = 0; drop < 2; drop++) {
        sample.drop = drop;
        sample.file_bytes = drop ? FILE_BYTES : 0;
        if (!q3_probe_disk(&sample, &probe, &err))
            fail_msg("%s", err.message);
        for (unsigned direct = 0; direct < 2; direct++)
            for (unsigned i = 0; i < Q3_PROBE_READERS; i++) {
                const q3_disk_rate *rate = direct ? &probe.direct[i] : &probe.buffered[i];
                const bool there = !direct || probe.direct_works;
                // Without time, each reader reads one file, and it reads all of it.
                assert_int_equal(rate->bytes, there ? FILE_BYTES * q3_probe_readers(i) : 0);
                assert_true((rate->bytes_per_second > 0) == there);
                assert_true(rate->cached >= 0 && rate->cached <= 1);
            }
    }

    char *missing = q3_test_path("%s/none", directory);
    const char *const missing_paths[] = {missing};
    char *message = q3_test_path("%s: cannot open: No such file or directory", missing);
    sample = (q3_disk_sample){.paths = missing_paths, .count = 1};
    assert_false(q3_probe_disk(&sample, &probe, &err));
    assert_string_equal(err.message, message);
    sample.count = 0;
    assert_false(q3_probe_disk(&sample, &probe, &err));
    assert_string_equal(err.message, "disk probe: 0 files to read");
    free(message);
    free(missing);
    for (unsigned i = 0; i < FILES; i++)
        free(paths[i]);
    q3_test_remove(directory);
}

// Rates in GB/s for 1, 2, 4 and 8 readers.
static q3_disk_probe make_probe(const double buffered[Q3_PROBE_READERS], double cached,
                                const double direct[Q3_PROBE_READERS])
{
    q3_disk_probe probe = {.direct_works = direct != NULL};
    for (unsigned i = 0; i < Q3_PROBE_READERS; i++) {
        probe.buffered[i] =
            (q3_disk_rate){.bytes_per_second = buffered[i] * 1e9, .bytes = 1, .cached = cached};
        if (direct)
            probe.direct[i] =
                (q3_disk_rate){.bytes_per_second = direct[i] * 1e9, .bytes = 1, .cached = cached};
    }
    return probe;
}

static void expect(q3_disk_probe probe, uint64_t experts, uint64_t cache, q3_io_mode mode,
                   unsigned readers, double gigabytes)
{
    const q3_io_choice choice = q3_choose_io(&probe, Q3_IO_AUTO, experts, cache);
    assert_string_equal(q3_io_mode_name(choice.mode), q3_io_mode_name(mode));
    assert_int_equal(choice.readers, readers);
    assert_true(choice.bytes_per_second == gigabytes * 1e9);
}

static void rule(void **state)
{
    (void)state;
    const double slow[] = {0.5, 1.0, 1.5, 1.5}, fast[] = {1.0, 2.0, 3.0, 2.0};
    const double flat[] = {1.94, 1.96, 2.0, 1.98}, slower[] = {0.8, 0.8, 0.8, 0.8};
    const double slowest[] = {0.7, 0.7, 0.7, 0.7};
    const double falling[] = {2.0, 1.6, 1.2, 1.1}, alone[] = {2.0, 1.5, 1.2, 1.1};
    const double memory_rate[] = {4, 7, 8, 8};

    // Refused, or all fits the page cache.
    expect(make_probe(slow, 0, NULL), 100, 0, Q3_IO_BUFFERED, 4, 1.5);
    expect(make_probe(slow, 0, fast), 100, 100, Q3_IO_BUFFERED, 4, 1.5);
    expect(make_probe(slow, 0, fast), 0, 0, Q3_IO_BUFFERED, 4, 1.5);
    // Fast enough for what the page cache cannot hold: 3.0 * (1 - h) against 1.5 / 2.
    expect(make_probe(slow, 0, fast), 100, 0, Q3_IO_DIRECT, 4, 3.0);
    expect(make_probe(slow, 0, fast), 100, 74, Q3_IO_DIRECT, 4, 3.0);
    expect(make_probe(slow, 0, fast), 100, 76, Q3_IO_BUFFERED, 4, 1.5);
    expect(make_probe(slow, 0, slower), 100, 0, Q3_IO_DIRECT, 2, 0.8);
    expect(make_probe(slow, 0, slowest), 100, 0, Q3_IO_BUFFERED, 4, 1.5);
    // Two readers that give as much as several are enough; one, when it gives much more.
    expect(make_probe(flat, 0, NULL), 100, 0, Q3_IO_BUFFERED, 2, 2.0);
    expect(make_probe(falling, 0, NULL), 100, 0, Q3_IO_BUFFERED, 2, 2.0);
    expect(make_probe(alone, 0, NULL), 100, 0, Q3_IO_BUFFERED, 1, 2.0);
    // Buffered rates that were the page cache's say nothing about the disk.
    expect(make_probe(memory_rate, 0.2, fast), 100, 49, Q3_IO_DIRECT, 4, 3.0);
    expect(make_probe(memory_rate, 0.2, fast), 100, 50, Q3_IO_BUFFERED, 4, 0);
    expect(make_probe(memory_rate, 1, NULL), 100, 0, Q3_IO_BUFFERED, 4, 0);
    expect(make_probe(memory_rate, 0.1, NULL), 100, 0, Q3_IO_BUFFERED, 4, 8);
    // What is asked for is taken, with the readers that suit it.
    q3_disk_probe probe = make_probe(slow, 0, fast);
    q3_io_choice choice = q3_choose_io(&probe, Q3_IO_BUFFERED, 100, 0);
    assert_int_equal(choice.mode, Q3_IO_BUFFERED);
    assert_true(choice.bytes_per_second == 1.5e9);
    probe = make_probe(flat, 0, slow);
    choice = q3_choose_io(&probe, Q3_IO_DIRECT, 100, 100);
    assert_int_equal(choice.mode, Q3_IO_DIRECT);
    assert_int_equal(choice.readers, 4);

    // The disk's speed: the best rate that was the disk's, else the page cache's.
    bool cached;
    probe = make_probe(slow, 0, fast);
    assert_true(q3_disk_speed(&probe, &cached) == 3e9 && !cached);
    probe = make_probe(memory_rate, 1, slow);
    assert_true(q3_disk_speed(&probe, &cached) == 1.5e9 && !cached);
    probe = make_probe(memory_rate, 1, NULL);
    assert_true(q3_disk_speed(&probe, &cached) == 8e9 && cached);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory),
        cmocka_unit_test(disk),
        cmocka_unit_test(rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
