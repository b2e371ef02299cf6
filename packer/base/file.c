// SPDX-License-Identifier: Apache-2.0
#include "file.h"

#include "bytes.h"
#include "text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

// open() that a signal does not end: on a network file system it can take its time.
static int open_retrying(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

static bool sync_retrying(int fd)
{
    while (fsync(fd) != 0)
        if (errno != EINTR)
            return false;
    return true;
}

// A descriptor that open_retrying gave, or -1 with errno, becomes a q3_file.
static bool adopt(int fd, const char *path, q3_file *file, q3_error *err)
{
    *file = (q3_file){.fd = -1};
    if (fd < 0)
        return q3_fail_errno(err, "%s: cannot open", path);
    struct stat status;
    if (fstat(fd, &status) != 0) {
        q3_fail_errno(err, "%s: cannot stat", path);
        close(fd);
        return false;
    }
    if (!S_ISREG(status.st_mode)) {
        close(fd);
        errno = 0;
        return q3_fail(err, Q3_FAILED, "%s: not a regular file", path);
    }
    file->path = q3_format(err, "%s", path);
    if (!file->path) {
        close(fd);
        errno = ENOMEM;
        return false;
    }
    file->fd = fd;
    file->size = (uint64_t)status.st_size;
    return true;
}

// O_NONBLOCK: opening a FIFO that somebody put there must not hang; no effect on regular files.
enum { READING = O_RDONLY | O_NONBLOCK };

bool q3_file_open(const char *path, q3_file *file, q3_error *err)
{
    return adopt(open_retrying(path, READING), path, file, err);
}

bool q3_file_open_whole(const char *path, bool direct, q3_file *file, q3_error *err)
{
#ifdef O_DIRECT
    if (direct) {
        const int fd = open_retrying(path, READING | O_DIRECT);
        if (fd >= 0 || errno != EINVAL)
            return adopt(fd, path, file, err);
    }
#else
    (void)direct;
#endif
    return q3_file_open(path, file, err);
}

void q3_file_prefetch(const q3_file *file, uint64_t offset, uint64_t size)
{
    // Where the system cannot, nothing is lost.
    (void)posix_fadvise(file->fd, (off_t)offset, (off_t)size, POSIX_FADV_WILLNEED);
}

void q3_file_close(q3_file *file)
{
    if (file->path) {
        close(file->fd);
        free(file->path);
    }
    *file = (q3_file){.fd = -1};
}

// Reads `size` bytes, asking for up to `room`.
static bool read_at(const q3_file *file, uint64_t offset, uint8_t *to, size_t size, size_t room,
                    q3_error *err)
{
    size_t done = 0;
    while (done < size) {
        const ssize_t count = pread(file->fd, to + done, room - done, (off_t)(offset + done));
        if (count < 0) {
            if (errno == EINTR)
                continue;
            return q3_fail_errno(err, "%s: cannot read %zu bytes at %" PRIu64, file->path,
                                 size - done, offset + done);
        }
        if (count == 0)
            return q3_fail(err, Q3_FAILED,
                           "%s: the file ends at %" PRIu64 ", expected %zu bytes more", file->path,
                           offset + done, size - done);
        done += (size_t)count;
    }
    return true;
}

bool q3_file_read(const q3_file *file, uint64_t offset, void *data, size_t size, q3_error *err)
{
    return read_at(file, offset, data, size, size, err);
}

bool q3_file_read_piece(const q3_file *file, uint64_t offset, void *data, size_t size,
                        q3_error *err)
{
    const size_t room =
        (size + Q3_DIRECT_ALIGNMENT - 1) / Q3_DIRECT_ALIGNMENT * Q3_DIRECT_ALIGNMENT;
    return read_at(file, offset, data, size, room, err);
}

bool q3_file_load(const char *path, uint64_t max_bytes, char **data, size_t *size, q3_error *err)
{
    q3_file file;
    if (!q3_file_open(path, &file, err))
        return false;
    bool ok = false;
    char *text = NULL;
    if (file.size > max_bytes) {
        q3_fail(err, Q3_MALFORMED, "%s: expected at most %" PRIu64 " bytes, found %" PRIu64, path,
                max_bytes, file.size);
        goto done;
    }
    text = q3_alloc(1, (size_t)file.size + 1, err);
    if (!text || !q3_file_read(&file, 0, text, (size_t)file.size, err))
        goto done;
    text[file.size] = 0;
    *data = text;
    *size = (size_t)file.size;
    text = NULL;
    ok = true;
done:
    free(text);
    q3_file_close(&file);
    return ok;
}

bool q3_path_exists(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

char *q3_path_join(const char *directory, const char *name, q3_error *err)
{
    const size_t length = strlen(directory);
    const char *separator = length && directory[length - 1] == '/' ? "" : "/";
    return q3_format(err, "%s%s%s", directory, separator, name);
}

bool q3_safe_file_name(const char *name)
{
    const size_t length = strlen(name);
    if (length == 0 || length > 255 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    return true;
}

bool q3_directory_sync(const char *path, q3_error *err)
{
    const int fd = open_retrying(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return q3_fail_errno(err, "%s: cannot open the directory", path);
    // Some file systems cannot sync a directory and say so with EINVAL; there is nothing to add
    // then.
    const bool ok = sync_retrying(fd) || errno == EINVAL;
    if (!ok)
        q3_fail_errno(err, "%s: cannot sync the directory", path);
    close(fd);
    return ok;
}

// Syncs the directory in which `path` stands, which is changed and changed back.
static bool sync_above(char *path, q3_error *err)
{
    char *slash = strrchr(path, '/');
    if (!slash)
        return q3_directory_sync(".", err);
    if (slash == path)
        return q3_directory_sync("/", err);
    *slash = 0;
    const bool ok = q3_directory_sync(path, err);
    *slash = '/';
    return ok;
}

bool q3_directory_create(const char *path, q3_error *err)
{
    char *prefix = q3_format(err, "%s", path);
    if (!prefix)
        return false;
    bool ok = true;
    for (char *at = prefix + 1; ok; at++) {
        if (*at != '/' && *at != 0)
            continue;
        const char saved = *at;
        *at = 0;
        if (mkdir(prefix, 0777) == 0) {
            ok = sync_above(prefix, err);
        } else {
            struct stat status;
            const int reason = errno;
            if (stat(prefix, &status) != 0 || !S_ISDIR(status.st_mode)) {
                errno = reason;
                ok = q3_fail_errno(err, "%s: cannot create the directory", prefix);
            }
        }
        *at = saved;
        if (saved == 0)
            break;
    }
    free(prefix);
    return ok;
}

bool q3_directory_empty(const char *path, const char *except, bool *empty, q3_error *err)
{
    DIR *stream = opendir(path);
    if (!stream)
        return q3_fail_errno(err, "%s: cannot list the directory", path);
    *empty = true;
    const struct dirent *entry;
    while ((entry = readdir(stream)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            (!except || strcmp(entry->d_name, except) != 0))
            *empty = false;
    closedir(stream);
    return true;
}

bool q3_directory_check_space(const char *path, uint64_t bytes, q3_error *err)
{
    struct statvfs status;
    if (statvfs(path, &status) != 0)
        return q3_fail_errno(err, "%s: cannot tell the free space", path);
    const uint64_t available = (uint64_t)status.f_bavail * status.f_frsize;
    char has[Q3_GROUPED_MAX], needs[Q3_GROUPED_MAX];
    return bytes <= available ||
           q3_fail(err, Q3_FAILED, "%s: needs about %s of disk, %s are free", path,
                   q3_human_bytes(bytes, needs), q3_human_bytes(available, has));
}

bool q3_output_create(const char *path, q3_output *output, q3_error *err)
{
    *output = (q3_output){.fd = -1};
    char *final = q3_format(err, "%s", path);
    char *part = final ? q3_format(err, "%s.part", path) : NULL;
    if (!part) {
        free(final);
        return false;
    }
    // A fresh inode each time: what an earlier run left may be open elsewhere, or be a link.
    if (unlink(part) != 0 && errno != ENOENT) {
        q3_fail_errno(err, "%s: cannot remove", part);
        goto fail;
    }
    const int fd = open_retrying(part, O_RDWR | O_CREAT | O_EXCL);
    if (fd < 0) {
        q3_fail_errno(err, "%s: cannot create", part);
        goto fail;
    }
    *output = (q3_output){.fd = fd, .path = final, .part_path = part};
    return true;
fail:
    free(part);
    free(final);
    return false;
}

static bool write_fully(int fd, const char *path, uint64_t offset, const void *data, size_t size,
                        q3_error *err)
{
    const uint8_t *from = data;
    size_t done = 0;
    while (done < size) {
        const ssize_t count = pwrite(fd, from + done, size - done, (off_t)(offset + done));
        if (count < 0) {
            if (errno == EINTR)
                continue;
            return q3_fail_errno(err, "%s: cannot write %zu bytes at %" PRIu64, path, size - done,
                                 offset + done);
        }
        done += (size_t)count;
    }
    return true;
}

// Both calls are advice: what they cannot do, the sync at the end does.
static void write_behind(q3_output *output)
{
    const off_t window = 8 << 20;
    while (output->size - output->flushed >= (uint64_t)window) {
        const off_t at = (off_t)output->flushed;
        sync_file_range(output->fd, at, window, SYNC_FILE_RANGE_WRITE);
        if (at >= window) {
            sync_file_range(output->fd, at - window, window,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER);
            posix_fadvise(output->fd, at - window, window, POSIX_FADV_DONTNEED);
        }
        output->flushed += (uint64_t)window;
    }
}

bool q3_output_append(q3_output *output, const void *data, size_t size, q3_error *err)
{
    if (!write_fully(output->fd, output->part_path, output->size, data, size, err))
        return false;
    output->size += size;
    write_behind(output);
    return true;
}

bool q3_output_write_at(q3_output *output, uint64_t offset, const void *data, size_t size,
                        q3_error *err)
{
    return write_fully(output->fd, output->part_path, offset, data, size, err);
}

bool q3_output_sync(q3_output *output, q3_error *err)
{
    if (!sync_retrying(output->fd))
        return q3_fail_errno(err, "%s: cannot sync", output->part_path);
    posix_fadvise(output->fd, 0, 0, POSIX_FADV_DONTNEED);
    return true;
}

bool q3_output_publish(q3_output *output, q3_error *err)
{
    bool ok = q3_output_sync(output, err);
    const int fd = output->fd;
    output->fd = -1;
    if (close(fd) != 0 && errno != EINTR && ok)
        ok = q3_fail_errno(err, "%s: cannot close", output->part_path);
    if (ok && rename(output->part_path, output->path) != 0)
        ok = q3_fail_errno(err, "%s: cannot rename to %s", output->part_path, output->path);
    if (!ok)
        unlink(output->part_path);
    free(output->path);
    free(output->part_path);
    *output = (q3_output){.fd = -1};
    return ok;
}

void q3_output_abandon(q3_output *output)
{
    if (output->path) {
        close(output->fd);
        unlink(output->part_path);
        free(output->path);
        free(output->part_path);
    }
    *output = (q3_output){.fd = -1};
}

bool q3_file_publish(const char *path, const void *data, size_t size, q3_error *err)
{
    q3_output output;
    if (!q3_output_create(path, &output, err))
        return false;
    if (!q3_output_append(&output, data, size, err)) {
        q3_output_abandon(&output);
        return false;
    }
    return q3_output_publish(&output, err);
}

static ssize_t write_memory(void *cookie, const char *data, size_t size)
{
    q3_memory *memory = cookie;
    q3_error ignored;
    uint64_t needed;
    if (!q3_add(memory->size, size, &needed) || needed > SIZE_MAX ||
        !q3_grow(&memory->data, &memory->capacity, (size_t)needed, 1, &ignored))
        return 0;
    memcpy(memory->data + memory->size, data, size);
    memory->size = (size_t)needed;
    return (ssize_t)size;
}

bool q3_memory_open(q3_memory *memory, q3_error *err)
{
    *memory = (q3_memory){0};
    memory->stream = fopencookie(memory, "w", (cookie_io_functions_t){.write = write_memory});
    return memory->stream || q3_fail_memory(err, sizeof(FILE));
}

bool q3_memory_close(q3_memory *memory, q3_error *err)
{
    const bool whole = fflush(memory->stream) == 0 && !ferror(memory->stream);
    fclose(memory->stream);
    memory->stream = NULL;
    if (whole)
        return true;
    free(memory->data);
    memory->data = NULL;
    return q3_fail_memory(err, memory->size);
}

bool q3_write_all(int fd, const char *name, const void *data, size_t size, q3_error *err)
{
    const char *from = data;
    while (size) {
        const ssize_t count = write(fd, from, size);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            return q3_fail_errno(err, "%s: cannot write", name);
        }
        from += count;
        size -= (size_t)count;
    }
    return true;
}
