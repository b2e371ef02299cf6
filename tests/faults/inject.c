// SPDX-License-Identifier: Apache-2.0

// Both the 32-bit and the 64-bit names of the same functions are defined here, so neither may be
// turned into the other, nor into a checked variant.
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#undef _FORTIFY_SOURCE

#include "inject.h"
#include "power.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static _Atomic(q3_inject_record *) followed;

void q3_inject_follow(q3_inject_record *record)
{
    atomic_store(&followed, record);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("Q3_INJECT");
    if (!path)
        return;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    void *record =
        fd < 0 ? MAP_FAILED
               : mmap(NULL, sizeof(q3_inject_record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (record == MAP_FAILED)
        abort();
    close(fd);
    q3_inject_follow(record);
    if (((const q3_inject_record *)record)->action == Q3_INJECT_POWER)
        q3_power_watch();
}

// Counts a call. What is to be done about it, and with which number.
static q3_inject_action on_call(q3_inject_kind kind, int *number)
{
    q3_inject_record *record = atomic_load(&followed);
    if (!record)
        return Q3_INJECT_NOTHING;
    const uint_fast64_t call = atomic_fetch_add(&record->calls[kind], 1) + 1;
    if (record->action == Q3_INJECT_NOTHING || record->kind != (uint32_t)kind ||
        (record->forever ? call < record->at : call != record->at))
        return Q3_INJECT_NOTHING;
    atomic_fetch_add(&record->fired, 1);
    *number = record->number;
    return (q3_inject_action)record->action;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void before(q3_inject_action action, int number)
{
    if (action == Q3_INJECT_KILL_BEFORE)
        die();
    if (action == Q3_INJECT_SIGNAL)
        kill(getpid(), number);
    if (action == Q3_INJECT_POWER) {
        q3_power_lost(number);
        die();
    }
}

// ---- calls that return -1 on failure ----

static void *look_up(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        abort();
    return function;
}

// Declares `real`, the function `name` behind ours.
#define REAL(result_type, name, ...)                     \
    static _Atomic(void *) found;                        \
    result_type (*real)(__VA_ARGS__);                    \
    void *function = atomic_load(&found);                \
    if (!function)                                       \
        atomic_store(&found, function = look_up(#name)); \
    memcpy(&real, &function, sizeof real)

// Declares `action`, what is to be done about this call; ends it if that is to fail.
#define COUNT(kind)                                         \
    int number = 0;                                         \
    const q3_inject_action action = on_call(kind, &number); \
    before(action, number);                                 \
    if (action == Q3_INJECT_FAIL) {                         \
        errno = number;                                     \
        return -1;                                          \
    }

static size_t cut(q3_inject_action action, size_t size)
{
    return action == Q3_INJECT_SHORT && size > 1 ? size / 2 : size;
}

// What the real function returned, if the process lives to see it.
static ssize_t after(q3_inject_action action, ssize_t result)
{
    if (action == Q3_INJECT_KILL_AFTER)
        die();
    return result;
}

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    COUNT(Q3_INJECT_WRITE)
    q3_power_wrote(fd);
    return after(action, real(fd, data, cut(action, size)));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    COUNT(Q3_INJECT_WRITE)
    q3_power_wrote(fd);
    return after(action, real(fd, data, cut(action, size), offset));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    COUNT(Q3_INJECT_WRITE)
    q3_power_wrote(fd);
    return after(action, real(fd, data, cut(action, size), offset));
}

ssize_t read(int fd, void *data, size_t size)
{
    REAL(ssize_t, read, int, void *, size_t);
    COUNT(Q3_INJECT_READ)
    return after(action, real(fd, data, cut(action, size)));
}

ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    REAL(ssize_t, pread, int, void *, size_t, off_t);
    COUNT(Q3_INJECT_READ)
    return after(action, real(fd, data, cut(action, size), offset));
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    COUNT(Q3_INJECT_READ)
    return after(action, real(fd, data, cut(action, size), offset));
}

int fsync(int fd)
{
    REAL(int, fsync, int);
    COUNT(Q3_INJECT_SYNC)
    const int result = (int)after(action, real(fd));
    if (result == 0)
        q3_power_synced(fd);
    return result;
}

int fdatasync(int fd)
{
    REAL(int, fdatasync, int);
    COUNT(Q3_INJECT_SYNC)
    const int result = (int)after(action, real(fd));
    if (result == 0)
        q3_power_synced(fd);
    return result;
}

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    COUNT(Q3_INJECT_RENAME)
    const int result = (int)after(action, real(from, to));
    if (result == 0)
        q3_power_renamed(from, to);
    return result;
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    COUNT(Q3_INJECT_UNLINK)
    return (int)after(action, real(path));
}

int unlinkat(int directory, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    COUNT(Q3_INJECT_UNLINK)
    return (int)after(action, real(directory, path, flags));
}

int rmdir(const char *path)
{
    REAL(int, rmdir, const char *);
    COUNT(Q3_INJECT_UNLINK)
    return (int)after(action, real(path));
}

int ftruncate(int fd, off_t length)
{
    REAL(int, ftruncate, int, off_t);
    COUNT(Q3_INJECT_TRUNCATE)
    q3_power_wrote(fd);
    return (int)after(action, real(fd, length));
}

int ftruncate64(int fd, off64_t length)
{
    REAL(int, ftruncate64, int, off64_t);
    COUNT(Q3_INJECT_TRUNCATE)
    q3_power_wrote(fd);
    return (int)after(action, real(fd, length));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    COUNT(Q3_INJECT_MKDIR)
    const int result = (int)after(action, real(path, mode));
    if (result == 0)
        q3_power_made(path);
    return result;
}

int close(int fd)
{
    REAL(int, close, int);
    int number = 0;
    const q3_inject_action action = on_call(Q3_INJECT_CLOSE, &number);
    before(action, number);
    q3_power_closing(fd);
    const int result = (int)after(action, real(fd));
    if (action != Q3_INJECT_FAIL)
        return result;
    errno = number;
    return -1;
}

// Declares `mode`, the argument that is there only when a file may be created.
#define TAKE_MODE(flags)                                         \
    mode_t mode = 0;                                             \
    if (((flags)&O_CREAT) || ((flags)&O_TMPFILE) == O_TMPFILE) { \
        va_list arguments;                                       \
        va_start(arguments, flags);                              \
        mode = va_arg(arguments, mode_t);                        \
        va_end(arguments);                                       \
    }

int open(const char *path, int flags, ...)
{
    TAKE_MODE(flags)
    REAL(int, open, const char *, int, ...);
    COUNT(Q3_INJECT_OPEN)
    const int fd = (int)after(action, real(path, flags, mode));
    q3_power_opened(fd);
    return fd;
}

int open64(const char *path, int flags, ...)
{
    TAKE_MODE(flags)
    REAL(int, open64, const char *, int, ...);
    COUNT(Q3_INJECT_OPEN)
    const int fd = (int)after(action, real(path, flags, mode));
    q3_power_opened(fd);
    return fd;
}

int openat(int directory, const char *path, int flags, ...)
{
    TAKE_MODE(flags)
    REAL(int, openat, int, const char *, int, ...);
    COUNT(Q3_INJECT_OPEN)
    const int fd = (int)after(action, real(directory, path, flags, mode));
    q3_power_opened(fd);
    return fd;
}

int openat64(int directory, const char *path, int flags, ...)
{
    TAKE_MODE(flags)
    REAL(int, openat64, int, const char *, int, ...);
    COUNT(Q3_INJECT_OPEN)
    const int fd = (int)after(action, real(directory, path, flags, mode));
    q3_power_opened(fd);
    return fd;
}

// ---- calls that report failure in other ways ----

// Is this call to fail? Then errno is set.
static bool fails(q3_inject_kind kind)
{
    int number = 0;
    const q3_inject_action action = on_call(kind, &number);
    before(action, number);
    after(action, 0);
    if (action == Q3_INJECT_FAIL)
        errno = number;
    return action == Q3_INJECT_FAIL;
}

__attribute__((destructor)) static void end(void)
{
    fails(Q3_INJECT_EXIT);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return fails(Q3_INJECT_THREAD) ? errno : real(thread, attributes, start, argument);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    REAL(void *, mmap, void *, size_t, int, int, int, off_t);
    if (fails(Q3_INJECT_MAP))
        return MAP_FAILED;
    return real(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    if (fails(Q3_INJECT_MAP))
        return MAP_FAILED;
    return real(address, length, protection, flags, fd, offset);
}

// ---- memory ----

// glibc's own names: looking up the others may itself allocate.
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *block);

// The blocks that are tracked: a table with open addressing, where a freed one leaves a tombstone.
enum { BLOCKS = 1 << 17 };
static void *blocks[BLOCKS];
static size_t live;
static atomic_bool tracking;
static pthread_mutex_t block_lock = PTHREAD_MUTEX_INITIALIZER;
static char tombstone;

void q3_inject_track(bool on)
{
    pthread_mutex_lock(&block_lock);
    if (on) {
        memset(blocks, 0, sizeof blocks);
        live = 0;
    }
    pthread_mutex_unlock(&block_lock);
    atomic_store(&tracking, on);
}

size_t q3_inject_live(void)
{
    return live;
}

static size_t first_place(const void *block)
{
    return (size_t)(((uintptr_t)block >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 40) % BLOCKS;
}

static void *remember(void *block)
{
    if (!block || !atomic_load(&tracking))
        return block;
    pthread_mutex_lock(&block_lock);
    size_t at = first_place(block), seen = 0;
    while (blocks[at] && blocks[at] != &tombstone) {
        if (++seen == BLOCKS)
            abort();
        at = (at + 1) % BLOCKS;
    }
    blocks[at] = block;
    live++;
    pthread_mutex_unlock(&block_lock);
    return block;
}

// Was it known?
static bool forget(const void *block)
{
    if (!block || !atomic_load(&tracking))
        return false;
    pthread_mutex_lock(&block_lock);
    size_t at = first_place(block);
    for (size_t seen = 0; blocks[at] && blocks[at] != block && seen < BLOCKS; seen++)
        at = (at + 1) % BLOCKS;
    const bool known = blocks[at] == block;
    if (known) {
        blocks[at] = &tombstone;
        live--;
    }
    pthread_mutex_unlock(&block_lock);
    return known;
}

void *malloc(size_t bytes)
{
    return fails(Q3_INJECT_ALLOCATE) ? NULL : remember(__libc_malloc(bytes));
}

void *calloc(size_t count, size_t bytes)
{
    return fails(Q3_INJECT_ALLOCATE) ? NULL : remember(__libc_calloc(count, bytes));
}

void *realloc(void *block, size_t bytes)
{
    if (fails(Q3_INJECT_ALLOCATE))
        return NULL;
    const bool known = forget(block);
    void *result = __libc_realloc(block, bytes);
    if (!result && known && bytes)
        remember(block);
    return remember(result);
}

void *memalign(size_t alignment, size_t bytes)
{
    return fails(Q3_INJECT_ALLOCATE) ? NULL : remember(__libc_memalign(alignment, bytes));
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    return memalign(alignment, bytes);
}

int posix_memalign(void **block, size_t alignment, size_t bytes)
{
    const int before = errno;
    void *result = memalign(alignment, bytes);
    errno = before;
    if (!result)
        return ENOMEM;
    *block = result;
    return 0;
}

void free(void *block)
{
    forget(block);
    __libc_free(block);
}
