// SPDX-License-Identifier: Apache-2.0
//
// What a disk may hold after the power went: written bytes that no fsync covers are gone, renames
// and new directories that no fsync of the directory above covers have not happened. inject.c tells
// here what a process does, and before it ends it so, these are undone. For processes of one
// thread.
#ifndef Q3_TESTS_POWER_H
#define Q3_TESTS_POWER_H

enum {
    Q3_POWER_DATA = 1,  // lose bytes
    Q3_POWER_NAMES = 2, // lose renames and directories
};

// Nothing is kept of what is told before.
void q3_power_watch(void);

void q3_power_opened(int fd);
void q3_power_wrote(int fd);
void q3_power_synced(int fd); // a file or a directory
void q3_power_closing(int fd);
void q3_power_renamed(const char *from, const char *to);
void q3_power_made(const char *path); // a directory

// Undoes what would be lost: an or of the above.
void q3_power_lost(int what);

#endif
