// SPDX-License-Identifier: Apache-2.0
#include "probe.h"

#include "base/progress.h"
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// ---- memory ----

enum {
    CHUNK = 1 << 20, // bytes of a task
    CHUNK_WORDS = CHUNK / 8,
    // Memory is read fastest in several streams at a time (see multiply_one in products.h), and
    // with a sum for each word of a cache line of each.
    STREAMS = 4,
    LINE_WORDS = 8,
    PASSES_MIN = 3,
    PASSES_MAX = 256,
};

typedef struct memory_pass {
    uint64_t *words;
    _Atomic uint64_t sum;
} memory_pass;

static void fill_chunk(void *context, uint32_t index, unsigned worker)
{
    (void)worker;
    const memory_pass *pass = context;
    const uint64_t first = (uint64_t)index * CHUNK_WORDS;
    for (uint64_t i = first; i < first + CHUNK_WORDS; i++)
        pass->words[i] = i;
}

static void sum_chunk(void *context, uint32_t index, unsigned worker)
{
    (void)worker;
    memory_pass *pass = context;
    const uint64_t *words = pass->words + (uint64_t)index * CHUNK_WORDS;
    uint64_t sums[STREAMS][LINE_WORDS] = {{0}}, sum = 0;
    for (size_t i = 0; i < CHUNK_WORDS / STREAMS; i += LINE_WORDS)
        for (size_t s = 0; s < STREAMS; s++)
            for (size_t j = 0; j < LINE_WORDS; j++)
                sums[s][j] += words[s * (CHUNK_WORDS / STREAMS) + i + j];
    for (size_t s = 0; s < STREAMS; s++)
        for (size_t j = 0; j < LINE_WORDS; j++)
            sum += sums[s][j];
    atomic_fetch_add_explicit(&pass->sum, sum, memory_order_relaxed);
}

bool q3_probe_memory(q3_workers *workers, uint64_t bytes, double seconds, q3_memory_probe *probe,
                     q3_error *err)
{
    const uint64_t wanted = bytes / CHUNK + (bytes % CHUNK != 0);
    const uint32_t chunks = wanted < 1 ? 1 : wanted > UINT32_MAX ? UINT32_MAX : (uint32_t)wanted;
    q3_region region;
    if (!q3_region_create((uint64_t)chunks * CHUNK, &region, err))
        return false;
    memory_pass pass = {.words = q3_region_take(&region, (uint64_t)chunks * CHUNK)};
    q3_workers_run(workers, fill_chunk, &pass, chunks);
    double times[PASSES_MAX];
    const double end = q3_now() + seconds;
    uint32_t passes = 0;
    while (passes < PASSES_MIN || (passes < PASSES_MAX && q3_now() < end)) {
        const double start = q3_now();
        q3_workers_run(workers, sum_chunk, &pass, chunks);
        times[passes++] = q3_now() - start;
    }
    qsort(times, passes, sizeof *times, compare_doubles);
    const double median = times[passes / 2];
    *probe = (q3_memory_probe){
        .bytes_per_second = median > 0 ? (double)region.size / median : 0,
        .bytes = region.size,
        .passes = passes,
        .sum = atomic_load(&pass.sum),
    };
    q3_region_destroy(&region);
    return true;
}

// ---- disk ----

enum {
    PIECE_MAX = 4 << 20, // bytes of a read
    PAGE = 4096,         // what direct reads are aligned to
    MODES = 2,
};

typedef struct disk_run {
    const q3_disk_sample *sample;
    const uint32_t *order;
    _Atomic uint64_t *next; // file, counted on through all the rates
    q3_io_mode mode;
    double end;
    uint8_t *buffers; // a piece for each reader
    size_t piece;     // bytes of a read
    pthread_mutex_t lock;
    // Under the lock:
    uint64_t bytes;
    double cached_bytes;
    bool refused, failed;
    q3_error error;
} disk_run;

static bool is_refusal(int problem)
{
    return problem == EINVAL || problem == EOPNOTSUPP || problem == ENOTSUP;
}

// The share of a file's pages that are in the page cache.
static double cached_share(int fd, uint64_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size == 0 || size > SIZE_MAX / 2)
        return 0;
    const size_t pages = ((size_t)size + page - 1) / page;
    void *map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return 0;
    unsigned char *there = malloc(pages);
    size_t cached = 0;
    if (there && mincore(map, (size_t)size, there) == 0)
        for (size_t i = 0; i < pages; i++)
            cached += there[i] & 1;
    free(there);
    munmap(map, (size_t)size);
    return (double)cached / (double)pages;
}

// Reads a file until its end, or until the time is up. False with errno set.
static bool read_pieces(const disk_run *run, int fd, uint8_t *buffer, uint64_t *bytes)
{
    for (*bytes = 0; *bytes == 0 || q3_now() < run->end;) {
        const ssize_t got = pread(fd, buffer, run->piece, (off_t)*bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return false;
        *bytes += (uint64_t)got;
        // A direct read that ends within a page has come to the file's end.
        if (got == 0 || got % PAGE)
            return true;
    }
    return true;
}

static void add_file(disk_run *run, uint64_t bytes, double share)
{
    pthread_mutex_lock(&run->lock);
    run->bytes += bytes;
    run->cached_bytes += share * (double)bytes;
    pthread_mutex_unlock(&run->lock);
}

// Remembers why a file could not be read, of which errno tells.
static bool give_up(disk_run *run, const char *what, const char *path)
{
    const bool refused = run->mode == Q3_IO_DIRECT && is_refusal(errno);
    q3_error error;
    q3_fail_errno(&error, "%s: cannot %s", path, what);
    pthread_mutex_lock(&run->lock);
    if (refused)
        run->refused = true;
    else if (!run->failed) {
        run->failed = true;
        run->error = error;
    }
    pthread_mutex_unlock(&run->lock);
    return false;
}

static bool read_file(disk_run *run, const char *path, uint8_t *buffer)
{
    struct stat status;
    uint64_t bytes;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | (run->mode == Q3_IO_DIRECT ? O_DIRECT : 0));
    if (fd < 0)
        return give_up(run, "open", path);
    if (run->sample->drop)
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    const double share = fstat(fd, &status) == 0 && status.st_size > 0
                             ? cached_share(fd, (uint64_t)status.st_size)
                             : 0;
    const bool ok = read_pieces(run, fd, buffer, &bytes) || give_up(run, "read", path);
    if (ok)
        add_file(run, bytes, share);
    close(fd);
    return ok;
}

static void read_files(void *context, uint32_t index, unsigned worker)
{
    (void)index;
    disk_run *run = context;
    do {
        const uint64_t file = atomic_fetch_add(run->next, 1) % run->sample->count;
        if (!read_file(run, run->sample->paths[run->order[file]],
                       run->buffers + worker * run->piece))
            return;
    } while (q3_now() < run->end);
}

static bool measure(disk_run run, q3_workers *workers, unsigned readers, double seconds,
                    q3_disk_rate *rate, bool *refused, q3_error *err)
{
    pthread_mutex_init(&run.lock, NULL);
    const double start = q3_now();
    run.end = start + seconds;
    q3_workers_run(workers, read_files, &run, readers);
    const double taken = q3_now() - start;
    pthread_mutex_destroy(&run.lock);
    if (run.failed) {
        *err = run.error;
        return false;
    }
    *refused = run.refused;
    if (!run.refused && run.bytes && taken > 0)
        *rate = (q3_disk_rate){
            .bytes_per_second = (double)run.bytes / taken,
            .bytes = run.bytes,
            .cached = run.cached_bytes / (double)run.bytes,
        };
    return true;
}

// Fisher and Yates, with SplitMix64 (Steele, Lea, Flood 2014) for the dice.
static void shuffle(uint32_t *order, uint32_t count, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = count; i > 1; i--) {
        uint64_t z = seed += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        const uint32_t j = (uint32_t)((z ^ z >> 31) % i), other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
}

bool q3_probe_disk(const q3_disk_sample *sample, q3_disk_probe *probe, q3_error *err)
{
    *probe = (q3_disk_probe){0};
    if (sample->count == 0 || sample->count > UINT32_MAX)
        return q3_fail(err, Q3_USAGE, "disk probe: %zu files to read", sample->count);
    q3_region buffers;
    q3_workers *workers = NULL;
    _Atomic uint64_t next = 0;
    uint32_t *order = q3_alloc(sample->count, sizeof *order, err);
    if (!order)
        return false;
    const uint64_t largest = sample->file_bytes / PAGE * PAGE + PAGE;
    const size_t piece =
        sample->file_bytes && largest < PIECE_MAX ? (size_t)largest : (size_t)PIECE_MAX;
    bool ok = q3_region_create(Q3_PROBE_READERS_MAX * piece, &buffers, err);
    if (!ok) {
        free(order);
        return false;
    }
    shuffle(order, (uint32_t)sample->count, sample->seed);
    const disk_run run = {
        .sample = sample,
        .order = order,
        .next = &next,
        .buffers = q3_region_take(&buffers, Q3_PROBE_READERS_MAX * piece),
        .piece = piece,
    };
    // The pages are there before the first read is timed.
    memset(run.buffers, 0, Q3_PROBE_READERS_MAX * piece);
    ok = q3_workers_create(Q3_PROBE_READERS_MAX, &workers, err);
    const double seconds = sample->seconds / (MODES * Q3_PROBE_READERS);
    bool refused = false;
    // Direct first: buffered reads leave pages behind.
    for (unsigned step = 0; ok && !refused && step < Q3_PROBE_READERS; step++) {
        disk_run direct = run;
        direct.mode = Q3_IO_DIRECT;
        ok = measure(direct, workers, q3_probe_readers(step), seconds, &probe->direct[step],
                     &refused, err);
    }
    probe->direct_works = ok && !refused;
    if (refused)
        memset(probe->direct, 0, sizeof probe->direct);
    for (unsigned step = 0; ok && step < Q3_PROBE_READERS; step++)
        ok = measure(run, workers, q3_probe_readers(step), seconds, &probe->buffered[step],
                     &refused, err);
    q3_workers_destroy(workers);
    q3_region_destroy(&buffers);
    free(order);
    return ok;
}

// ---- the rule ----

// The best rate of a mode that is the disk's.
static double best_rate(const q3_disk_rate rates[Q3_PROBE_READERS])
{
    double best = 0;
    for (unsigned i = 0; i < Q3_PROBE_READERS; i++)
        if (rates[i].cached <= 0.1 && rates[i].bytes_per_second > best)
            best = rates[i].bytes_per_second;
    return best;
}

// Direct reads come from the disk whatever the page cache holds.
static void copy_direct(const q3_disk_probe *probe, q3_disk_rate rates[Q3_PROBE_READERS])
{
    memcpy(rates, probe->direct, sizeof probe->direct);
    for (unsigned i = 0; i < Q3_PROBE_READERS; i++)
        rates[i].cached = 0;
}

static bool prefer_direct(double buffered, double direct, uint64_t expert_bytes,
                          uint64_t cache_bytes)
{
    if (direct == 0 || cache_bytes >= expert_bytes)
        return false;
    const double missed = 1 - (double)cache_bytes / (double)expert_bytes;
    return direct * missed > 0.5 * buffered && (buffered > 0 || missed > 0.5);
}

static bool reaches(const q3_disk_rate *rate, double bytes_per_second)
{
    return rate->cached <= 0.1 && rate->bytes_per_second >= bytes_per_second;
}

q3_io_choice q3_choose_io(const q3_disk_probe *probe, q3_io_mode wanted, uint64_t expert_bytes,
                          uint64_t cache_bytes)
{
    q3_disk_rate direct_rates[Q3_PROBE_READERS];
    copy_direct(probe, direct_rates);
    const double buffered = best_rate(probe->buffered);
    const double direct = probe->direct_works ? best_rate(direct_rates) : 0;
    q3_io_choice choice = {.mode = wanted, .readers = 4};
    if (wanted == Q3_IO_AUTO)
        choice.mode = prefer_direct(buffered, direct, expert_bytes, cache_bytes) ? Q3_IO_DIRECT
                                                                                 : Q3_IO_BUFFERED;
    const q3_disk_rate *rates = choice.mode == Q3_IO_DIRECT ? direct_rates : probe->buffered;
    choice.bytes_per_second = best_rate(rates);
    for (unsigned i = Q3_PROBE_READERS; choice.bytes_per_second > 0 && i-- > 0;)
        if (reaches(&rates[i], 0.95 * choice.bytes_per_second))
            choice.readers = q3_probe_readers(i);
    // One alone is late when it wakes up beside threads that compute.
    if (choice.readers == 1 && reaches(&rates[1], 0.8 * choice.bytes_per_second))
        choice.readers = q3_probe_readers(1);
    return choice;
}

double q3_disk_speed(const q3_disk_probe *probe, bool *cached)
{
    q3_disk_rate direct_rates[Q3_PROBE_READERS];
    copy_direct(probe, direct_rates);
    const double direct = best_rate(direct_rates), buffered = best_rate(probe->buffered);
    double best = direct > buffered ? direct : buffered;
    *cached = best == 0;
    for (unsigned i = 0; *cached && i < Q3_PROBE_READERS; i++)
        if (probe->buffered[i].bytes_per_second > best)
            best = probe->buffered[i].bytes_per_second;
    return best;
}
