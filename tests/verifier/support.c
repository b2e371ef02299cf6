// SPDX-License-Identifier: Apache-2.0
#include "support.h"

#include "base/file.h"
#include "extract.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN_MAX_FTW = 16, FILE_BYTES_MAX = 64 << 20 };

char *text_of(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    const int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    assert_true(length >= 0);
    return text;
}

char *scratch_create(void)
{
    const char *base = getenv("TMPDIR");
    char *path = text_of("%s/q3-verify-XXXXXX", base && *base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status;
    (void)kind;
    (void)walk;
    return remove(path);
}

void scratch_remove(char *path)
{
    assert_int_equal(nftw(path, remove_entry, OPEN_MAX_FTW, FTW_DEPTH | FTW_PHYS), 0);
    free(path);
}

char *file_load(const char *path, size_t *size)
{
    q3_error err;
    char *data;
    if (!q3_file_load(path, FILE_BYTES_MAX, &data, size, &err))
        fail_msg("%s", err.message);
    return data;
}

void file_save(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

void file_flip(const char *path, size_t offset, unsigned bit)
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

void file_replace(const char *path, const char *from, const char *to)
{
    size_t size;
    char *data = file_load(path, &size);
    const char *at = memmem(data, size, from, strlen(from));
    assert_non_null(at);
    const size_t before = (size_t)(at - data), removed = strlen(from), added = strlen(to);
    char *changed = malloc(size - removed + added + 1);
    assert_non_null(changed);
    memcpy(changed, data, before);
    memcpy(changed + before, to, added);
    memcpy(changed + before + added, at + removed, size - before - removed);
    file_save(path, changed, size - removed + added);
    free(changed);
    free(data);
}

// nftw has no context for its callback.
static const char *copy_from, *copy_to;

static int copy_entry(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)walk;
    char *target = text_of("%s%s", copy_to, path + strlen(copy_from));
    if (kind == FTW_D) {
        assert_int_equal(mkdir(target, 0755), 0);
    } else {
        size_t size;
        char *data = file_load(path, &size);
        assert_int_equal(size, status->st_size);
        file_save(target, data, size);
        free(data);
    }
    free(target);
    return 0;
}

void tree_copy(const char *from, const char *to)
{
    copy_from = from;
    copy_to = to;
    assert_int_equal(nftw(from, copy_entry, OPEN_MAX_FTW, FTW_PHYS), 0);
}

void pack_create(const char *model, const char *pack, const char *components, const char *layers,
                 const char *experts, q3_codec codec)
{
    const q3_extract_options options = {
        .model_directory = model,
        .pack_directory = pack,
        .selection = {.components = components, .layers = layers, .experts = experts},
        .codec = codec,
        .jobs = 2,
        .quiet = true};
    q3_extract_result result;
    q3_error err;
    if (!q3_extract(&options, &result, &err))
        fail_msg("%s", err.message);
}

void assert_messages(const q3_findings *report, const char *const *messages, size_t count)
{
    for (size_t i = 0; i < count && i < report->count; i++)
        assert_string_equal(report->findings[i].message, messages[i]);
    if (report->count != count)
        fail_msg("expected %zu findings, found %zu; the first beyond: %s", count, report->count,
                 report->count > count ? report->findings[count].message : "none");
}
