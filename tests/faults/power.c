// SPDX-License-Identifier: Apache-2.0

// inject.c has the functions of both kinds of names; here it does not matter which are called.
#undef _FORTIFY_SOURCE

#include "power.h"

#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DESCRIPTORS = 1024, RENAMES = 4096 };

// By descriptor. A file that is closed with bytes to lose is kept open under another number.
static struct {
    bool dirty;
    off_t lasting; // bytes that are on the disk
} files[DESCRIPTORS];

static struct {
    dev_t device; // of the directory, which 0, 0 says has been synced
    ino_t directory;
    char from[PATH_MAX], to[PATH_MAX]; // from is empty where `to` is a new directory
} renames[RENAMES];
static unsigned rename_count;

static bool watching;

void q3_power_watch(void)
{
    watching = true;
}

static bool known(int fd)
{
    return watching && fd >= 0 && fd < DESCRIPTORS;
}

void q3_power_opened(int fd)
{
    struct stat status;
    if (!known(fd) || fstat(fd, &status) != 0)
        return;
    files[fd].dirty = false;
    files[fd].lasting = status.st_size;
}

void q3_power_wrote(int fd)
{
    if (known(fd))
        files[fd].dirty = true;
}

void q3_power_synced(int fd)
{
    struct stat status;
    if (!known(fd) || fstat(fd, &status) != 0)
        return;
    files[fd].dirty = false;
    files[fd].lasting = status.st_size;
    for (unsigned i = 0; S_ISDIR(status.st_mode) && i < rename_count; i++)
        if (renames[i].device == status.st_dev && renames[i].directory == status.st_ino)
            renames[i].directory = 0;
}

void q3_power_closing(int fd)
{
    if (!known(fd) || !files[fd].dirty)
        return;
    const int kept = fcntl(fd, F_DUPFD_CLOEXEC, DESCRIPTORS / 2);
    if (known(kept))
        files[kept] = files[fd];
    files[fd].dirty = false;
}

static void remember(const char *from, const char *to)
{
    struct stat status;
    char path[PATH_MAX];
    if (!watching || rename_count == RENAMES)
        return;
    snprintf(path, sizeof path, "%s", to);
    if (stat(dirname(path), &status) != 0)
        return;
    renames[rename_count].device = status.st_dev;
    renames[rename_count].directory = status.st_ino;
    snprintf(renames[rename_count].from, sizeof path, "%s", from);
    snprintf(renames[rename_count].to, sizeof path, "%s", to);
    rename_count++;
}

void q3_power_renamed(const char *from, const char *to)
{
    remember(from, to);
}

void q3_power_made(const char *path)
{
    remember("", path);
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static void undo(const char *from, const char *to)
{
    if (*from)
        renameat(AT_FDCWD, to, AT_FDCWD, from);
    else
        nftw(to, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

void q3_power_lost(int what)
{
    for (int fd = 0; what & Q3_POWER_DATA && fd < DESCRIPTORS; fd++)
        if (files[fd].dirty && ftruncate(fd, files[fd].lasting) != 0)
            perror("ftruncate");
    // The latest first; a name that has gone meanwhile stays gone.
    for (unsigned i = rename_count; what & Q3_POWER_NAMES && i-- > 0;)
        if (renames[i].directory)
            undo(renames[i].from, renames[i].to);
}
