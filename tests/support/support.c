// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

char *q3_test_directory(void)
{
    // Memory where there is some: the tests make thousands of small files, each synced.
    const char *base = getenv("TMPDIR");
    if (!base || !*base)
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    char *path = q3_test_path("%s/q3-test-XXXXXX", base);
    if (!mkdtemp(path))
        fail_msg("%s: %s", path, strerror(errno));
    return path;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

void q3_test_remove_tree(const char *path)
{
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        fail_msg("%s: cannot remove: %s", path, strerror(errno));
}

void q3_test_remove(char *directory)
{
    if (directory)
        q3_test_remove_tree(directory);
    free(directory);
}

char *q3_test_scratch;

int q3_test_make_scratch(void **state)
{
    (void)state;
    q3_test_scratch = q3_test_directory();
    return 0;
}

int q3_test_remove_scratch(void **state)
{
    (void)state;
    q3_test_remove(q3_test_scratch);
    return 0;
}

char *q3_test_path(const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        fail_msg("out of memory");
    va_end(arguments);
    return text;
}

char *q3_test_read(const char *path, size_t *size)
{
    FILE *stream = fopen(path, "rb");
    if (!stream)
        fail_msg("%s: %s", path, strerror(errno));
    struct stat status;
    if (fstat(fileno(stream), &status) != 0)
        fail_msg("%s: %s", path, strerror(errno));
    const size_t bytes = (size_t)status.st_size;
    char *data = malloc(bytes + 1);
    if (!data || fread(data, 1, bytes, stream) != bytes)
        fail_msg("%s: cannot read", path);
    data[bytes] = 0;
    fclose(stream);
    if (size)
        *size = bytes;
    return data;
}

void q3_test_write(const char *path, const void *data, size_t size)
{
    FILE *stream = fopen(path, "wb");
    if (!stream || fwrite(data, 1, size, stream) != size || fclose(stream) != 0)
        fail_msg("%s: cannot write: %s", path, strerror(errno));
}

void q3_test_write_text(const char *path, const char *text)
{
    q3_test_write(path, text, strlen(text));
}

void q3_test_flip(const char *path, size_t offset, unsigned bit)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    const int byte = getc(file);
    assert_true(byte >= 0);
    assert_int_equal(fseek(file, (long)offset, SEEK_SET), 0);
    assert_int_equal(putc(byte ^ 1 << bit, file), byte ^ 1 << bit);
    assert_int_equal(fclose(file), 0);
}

static int visible(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static bool is_directory(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

void q3_test_copy_tree(const char *from, const char *to, bool link_files)
{
    struct dirent **entries;
    const int count = scandir(from, &entries, visible, alphasort);
    if (count < 0 || (mkdir(to, 0777) != 0 && errno != EEXIST))
        fail_msg("%s to %s: %s", from, to, strerror(errno));
    for (int i = 0; i < count; i++) {
        char *source = q3_test_path("%s/%s", from, entries[i]->d_name);
        char *target = q3_test_path("%s/%s", to, entries[i]->d_name);
        if (is_directory(source)) {
            q3_test_copy_tree(source, target, link_files);
        } else if (!link_files || link(source, target) != 0) {
            size_t size;
            char *data = q3_test_read(source, &size);
            q3_test_write(target, data, size);
            free(data);
        }
        free(source);
        free(target);
        free(entries[i]);
    }
    free(entries);
}

void q3_test_trees_equal(const char *a, const char *b)
{
    struct dirent **in_a, **in_b;
    const int count = scandir(a, &in_a, visible, alphasort);
    const int other = scandir(b, &in_b, visible, alphasort);
    if (count < 0 || other < 0)
        fail_msg("%s or %s: %s", a, b, strerror(errno));
    for (int i = 0; i < count || i < other; i++) {
        if (i >= count || i >= other || strcmp(in_a[i]->d_name, in_b[i]->d_name) != 0)
            fail_msg("%s has %s, %s has %s", a, i < count ? in_a[i]->d_name : "nothing", b,
                     i < other ? in_b[i]->d_name : "nothing");
        char *left = q3_test_path("%s/%s", a, in_a[i]->d_name);
        char *right = q3_test_path("%s/%s", b, in_b[i]->d_name);
        if (is_directory(left)) {
            q3_test_trees_equal(left, right);
        } else {
            size_t left_size, right_size;
            char *left_data = q3_test_read(left, &left_size);
            char *right_data = q3_test_read(right, &right_size);
            if (left_size != right_size || memcmp(left_data, right_data, left_size) != 0)
                fail_msg("%s and %s differ", left, right);
            free(left_data);
            free(right_data);
        }
        free(left);
        free(right);
    }
    for (int i = 0; i < count; i++)
        free(in_a[i]);
    for (int i = 0; i < other; i++)
        free(in_b[i]);
    free(in_a);
    free(in_b);
}

// A pipe's text as it comes in.
typedef struct sink {
    int fd;
    char *text;
    size_t size;
} sink;

static void drain(sink *to)
{
    char block[65536];
    const ssize_t count = read(to->fd, block, sizeof block);
    if (count < 0 && errno == EINTR)
        return;
    if (count <= 0) {
        close(to->fd);
        to->fd = -1;
        return;
    }
    to->text = realloc(to->text, to->size + (size_t)count + 1);
    if (!to->text)
        fail_msg("out of memory");
    memcpy(to->text + to->size, block, (size_t)count);
    to->size += (size_t)count;
    to->text[to->size] = 0;
}

static void make_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC) != 0)
        fail_msg("pipe: %s", strerror(errno));
}

q3_test_result q3_test_run(const char *input, const char *program, ...)
{
    enum { ARGUMENTS_MAX = 64 };
    const char *argv[ARGUMENTS_MAX] = {program};
    va_list arguments;
    va_start(arguments, program);
    for (int i = 1; i < ARGUMENTS_MAX && (argv[i] = va_arg(arguments, const char *)); i++)
        ;
    va_end(arguments);
    int in[2], out[2], err[2];
    make_pipe(in);
    make_pipe(out);
    make_pipe(err);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    pid_t child;
    char *const *vector;
    const char *const *constant = argv;
    memcpy(&vector, &constant, sizeof vector); // posix_spawn does not write to it
    const int problem = posix_spawn(&child, program, &actions, NULL, vector, environ);
    if (problem)
        fail_msg("%s: cannot start: %s", program, strerror(problem));
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    signal(SIGPIPE, SIG_IGN);
    const char *left = input ? input : "";
    sink sinks[2] = {{.fd = out[0]}, {.fd = err[0]}};
    while (sinks[0].fd >= 0 || sinks[1].fd >= 0) {
        if (in[1] >= 0 && *left == 0) {
            close(in[1]);
            in[1] = -1;
        }
        struct pollfd polled[3] = {
            {sinks[0].fd, POLLIN, 0}, {sinks[1].fd, POLLIN, 0}, {in[1], POLLOUT, 0}};
        if (poll(polled, 3, -1) < 0 && errno != EINTR)
            fail_msg("poll: %s", strerror(errno));
        for (int i = 0; i < 2; i++)
            if (sinks[i].fd >= 0 && polled[i].revents)
                drain(&sinks[i]);
        if (in[1] >= 0 && polled[2].revents) {
            const size_t size = strlen(left);
            const ssize_t count = write(in[1], left, size < 4096 ? size : 4096);
            if (count < 0)
                left = ""; // the program reads no more
            else
                left += count;
        }
    }
    if (in[1] >= 0)
        close(in[1]);
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            fail_msg("waitpid: %s", strerror(errno));
    q3_test_result result = {
        .code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
        .out = sinks[0].text ? sinks[0].text : calloc(1, 1),
        .err = sinks[1].text ? sinks[1].text : calloc(1, 1),
        .out_size = sinks[0].size,
    };
    return result;
}

void q3_test_result_free(q3_test_result *result)
{
    free(result->out);
    free(result->err);
    *result = (q3_test_result){0};
}

void q3_test_expect(q3_test_result result, int code, const char *err)
{
    if (result.code != code || strcmp(result.err, err) != 0)
        fail_msg("expected exit code %d and\n%s\nfound %d and\n%s", code, err, result.code,
                 result.err);
    q3_test_result_free(&result);
}
