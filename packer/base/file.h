// SPDX-License-Identifier: Apache-2.0
//
// Files: exact reads that survive EINTR and short transfers, and output that appears under its
// final name only when it is whole and on the disk.
#ifndef Q3_BASE_FILE_H
#define Q3_BASE_FILE_H

#include "error.h"

#include <stdint.h>
#include <stdio.h>

// A regular file open for reading. The size is the one at opening; a file that shrinks meanwhile is
// an error of the read that notices.
typedef struct q3_file {
    int fd;
    char *path; // as opened, for messages
    uint64_t size;
} q3_file;

// Opens a regular file. "No such file" gives Q3_FAILED and errno ENOENT, for callers to tell apart.
bool q3_file_open(const char *path, q3_file *file, q3_error *err);
// Closes it; a zeroed or closed q3_file is fine.
void q3_file_close(q3_file *file);

// Has the system begin to read a part of the file that will be wanted soon. Linux begins with no
// more than the device takes at once, 128 KiB or some MiB: more is to be asked for in several
// parts.
void q3_file_prefetch(const q3_file *file, uint64_t offset, uint64_t size);

// Reads exactly size bytes from offset on.
bool q3_file_read(const q3_file *file, uint64_t offset, void *data, size_t size, q3_error *err);

// Files that are read whole, around the page cache if `direct` (where a file system does not do
// that, through it). Several threads may read pieces of one file at once: `offset` and `data` are
// multiples of Q3_DIRECT_ALIGNMENT, and `size` is, too, but for the piece that ends with the file;
// data has room for the next multiple of it.
enum { Q3_DIRECT_ALIGNMENT = 4096 };
bool q3_file_open_whole(const char *path, bool direct, q3_file *file, q3_error *err);
bool q3_file_read_piece(const q3_file *file, uint64_t offset, void *data, size_t size,
                        q3_error *err);

// The whole of a file of at most max_bytes, with a NUL after its last byte that *size does not
// count. The caller frees *data. A larger file is malformed.
bool q3_file_load(const char *path, uint64_t max_bytes, char **data, size_t *size, q3_error *err);

// Does something exist at path? (A broken link counts.)
bool q3_path_exists(const char *path);
// directory + "/" + name, to free().
char *q3_path_join(const char *directory, const char *name, q3_error *err);

// A name from an untrusted file that is to become a file name in a directory: one to 255 bytes, no
// '/', no control characters, not "." or "..".
bool q3_safe_file_name(const char *name);

// Creates the directory and its missing parents, each synced in the one above it.
bool q3_directory_create(const char *path, q3_error *err);
// Has the directory no entries, or only one named `except` (NULL for none)?
bool q3_directory_empty(const char *path, const char *except, bool *empty, q3_error *err);
// Fails when the directory's file system has less than `bytes` free: better before hours of work
// than after.
bool q3_directory_check_space(const char *path, uint64_t bytes, q3_error *err);

// Makes the directory's entries (new names, renames) survive a crash.
bool q3_directory_sync(const char *path, q3_error *err);

// A file being written. It lives under "<path>.part" until it is published: synced to the disk and
// renamed to its final name, in that order. A crash can leave a .part file, never half a file under
// its final name.
typedef struct q3_output {
    int fd;
    char *path, *part_path;
    uint64_t size;    // bytes appended so far
    uint64_t flushed; // of those, on their way to the disk already
} q3_output;

// Starts a file. A left-over .part file is replaced; an existing final file stays as it is until
// publishing replaces it.
bool q3_output_create(const char *path, q3_output *output, q3_error *err);
// Writes at the end, or over what was appended before. Large files go to the disk as they grow and
// leave the page cache again: the sync at the end has little left to do, and the memory of the
// machine stays with those who use it.
bool q3_output_append(q3_output *output, const void *data, size_t size, q3_error *err);
bool q3_output_write_at(q3_output *output, uint64_t offset, const void *data, size_t size,
                        q3_error *err);
// Puts what was written on the disk, and out of the page cache, so that reading it back reads the
// disk.
bool q3_output_sync(q3_output *output, q3_error *err);
// Sync, close, rename. On failure the part file is removed. The output is closed either way.
bool q3_output_publish(q3_output *output, q3_error *err);
// Closes and removes the part file; a zeroed or finished output is fine.
void q3_output_abandon(q3_output *output);

// A whole file at once, published.
bool q3_file_publish(const char *path, const void *data, size_t size, q3_error *err);

// Text made in memory through a stream. Other than one of open_memstream, it remembers when memory
// runs out.
typedef struct q3_memory {
    FILE *stream; // to write to
    char *data;   // after closing; to free()
    size_t size, capacity;
} q3_memory;

bool q3_memory_open(q3_memory *memory, q3_error *err);
// Closes the stream. False, with nothing to free, when not all that was written is there.
bool q3_memory_close(q3_memory *memory, q3_error *err);

// Writes all bytes to a descriptor (standard output, say).
bool q3_write_all(int fd, const char *name, const void *data, size_t size, q3_error *err);

#endif
