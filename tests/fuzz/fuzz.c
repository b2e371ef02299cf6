// SPDX-License-Identifier: Apache-2.0
#include "fuzz.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Noreturn void fuzz_violated(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, condition);
    abort();
}

q3_bytes fuzz_take_part(q3_bytes *rest)
{
    const uint8_t *end = rest->size ? memchr(rest->data, 0xff, rest->size) : NULL;
    const q3_bytes part = {rest->data, end ? (size_t)(end - rest->data) : rest->size};
    const size_t taken = end ? part.size + 1 : part.size;
    if (taken)
        rest->data += taken;
    rest->size -= taken;
    return part;
}

uint8_t *fuzz_copy(q3_bytes bytes)
{
    uint8_t *copy = malloc(bytes.size ? bytes.size : 1);
    FUZZ_CHECK(copy != NULL);
    if (bytes.size)
        memcpy(copy, bytes.data, bytes.size);
    return copy;
}

static char directory[4096];

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void remove_directory(void)
{
    nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *fuzz_directory(void)
{
    if (*directory)
        return directory;
    const char *temporary = getenv("TMPDIR");
    const char *const bases[] = {"/dev/shm", temporary && *temporary ? temporary : "/tmp"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(directory, sizeof directory, "%s/q3-fuzz-XXXXXX", bases[i]);
        if (mkdtemp(directory)) {
            atexit(remove_directory);
            return directory;
        }
    }
    perror("q3-fuzz-XXXXXX");
    exit(1);
}

const char *fuzz_path(const char *name)
{
    static char path[sizeof directory + 256];
    snprintf(path, sizeof path, "%s/%s", fuzz_directory(), name);
    return path;
}

void fuzz_write(const char *name, q3_bytes bytes, uint64_t size)
{
    const int fd = open(fuzz_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, bytes.data, bytes.size) != (ssize_t)bytes.size ||
        (size > bytes.size && ftruncate(fd, (off_t)size) != 0)) {
        perror(name);
        exit(1);
    }
    close(fd);
}

void fuzz_remove(const char *name)
{
    unlink(fuzz_path(name));
}

void fuzz_check_inventory(const q3_inventory *inventory)
{
    uint64_t tensors = 0, bytes = 0;
    for (size_t i = 0; i < inventory->pattern_count; i++) {
        const q3_pattern *pattern = &inventory->patterns[i];
        FUZZ_CHECK(pattern->first == tensors);
        FUZZ_CHECK(pattern->count > 0);
        tensors += pattern->count;
        bytes += pattern->count * pattern->bytes;
    }
    FUZZ_CHECK(tensors == inventory->tensors);
    FUZZ_CHECK(bytes == inventory->bytes);
    const uint64_t step = tensors / 100 + 1;
    for (uint64_t ordinal = 0; ordinal < tensors; ordinal += step) {
        char name[Q3_NAME_MAX];
        uint64_t found;
        const q3_pattern *pattern = q3_inventory_at(inventory, ordinal, name);
        FUZZ_CHECK(pattern != NULL);
        FUZZ_CHECK(q3_inventory_find(inventory, name, &found) == pattern);
        FUZZ_CHECK(found == ordinal);
    }
}
