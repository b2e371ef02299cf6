// SPDX-License-Identifier: Apache-2.0
#include "journal.h"

#include "base/file.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { JOURNAL_BYTES_MAX = 256 << 20 };

static const char journal_name[] = "extract.journal";
// What a run leaves that is ended while it begins its journal.
static const char journal_part_name[] = "extract.journal.part";
static const char first_line[] = "q3-extract journal 1\n";

typedef struct journal_entry {
    q3_place place;
    uint32_t shard; // of a piece, or Q3_WHOLE_FILE
    size_t line;    // where it stands: of several the last is right
    uint64_t size;
    q3_hash128 root;
} journal_entry;

struct q3_journal {
    char *directory, *path;
    int fd;
    journal_entry *entries; // of earlier runs, sorted
    size_t count;
};

static int compare_entries(const void *a, const void *b)
{
    const journal_entry *x = a, *y = b;
    const int result = q3_place_compare(&x->place, &y->place);
    return result ? result : (x->shard > y->shard) - (x->shard < y->shard);
}

static int compare_lines(const void *a, const void *b)
{
    const journal_entry *x = a, *y = b;
    const int result = compare_entries(a, b);
    return result ? result : (x->line > y->line) - (x->line < y->line);
}

// The first line in which the request differs from the journal's, said as what was asked before.
static bool fail_request(const char *path, const char *before, const char *now, q3_error *err)
{
    while (*before && *now) {
        const size_t a = strcspn(before, "\n"), b = strcspn(now, "\n");
        if (a != b || memcmp(before, now, a) != 0)
            return q3_fail(err, Q3_REFUSED,
                           "%s: an unfinished extraction was asked for otherwise: before \"%.*s\", "
                           "now \"%.*s\"",
                           path, (int)a, before, (int)b, now);
        before += a + (before[a] == '\n');
        now += b + (now[b] == '\n');
    }
    return q3_fail(err, Q3_REFUSED, "%s: an unfinished extraction was asked for otherwise", path);
}

static bool parse_entry(char *line, journal_entry *entry)
{
    char *rest = NULL;
    uint64_t shard = Q3_WHOLE_FILE;
    const char *word = strtok_r(line, " ", &rest), *path = strtok_r(NULL, " ", &rest);
    if (!word || !path || !q3_place_parse(path, &entry->place))
        return false;
    if (strcmp(word, "piece") == 0) {
        const char *number = strtok_r(NULL, " ", &rest);
        if (!number || !q3_parse_u64(number, 0, Q3_WHOLE_FILE - 1, &shard))
            return false;
    } else if (strcmp(word, "file") != 0) {
        return false;
    }
    entry->shard = (uint32_t)shard;
    const char *size = strtok_r(NULL, " ", &rest), *root = strtok_r(NULL, " ", &rest);
    return size && root && !strtok_r(NULL, " ", &rest) &&
           q3_parse_u64(size, 0, UINT64_MAX, &entry->size) && q3_hash128_parse(root, &entry->root);
}

// Sorts the entries; of several for one file the last line stays.
static void sort_entries(q3_journal *journal)
{
    if (journal->count == 0)
        return;
    journal_entry *entries = journal->entries;
    qsort(entries, journal->count, sizeof *entries, compare_lines);
    size_t kept = 0;
    for (size_t i = 0; i < journal->count; i++)
        if (i + 1 == journal->count || compare_entries(&entries[i], &entries[i + 1]) != 0)
            entries[kept++] = entries[i];
    journal->count = kept;
}

static bool parse(q3_journal *journal, char *text, size_t size, const char *request, q3_error *err)
{
    const size_t first = sizeof first_line - 1, wanted = strlen(request);
    if (strlen(text) != size || strncmp(text, first_line, first) != 0)
        return q3_fail(err, Q3_MALFORMED, "%s: not a journal of q3-extract", journal->path);
    if (strncmp(text + first, request, wanted) != 0)
        return fail_request(journal->path, text + first, request, err);
    size_t capacity = 0;
    char *line = text + first + wanted;
    for (char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        if (!q3_grow(&journal->entries, &capacity, journal->count + 1, sizeof *journal->entries,
                     err))
            return false;
        if (!parse_entry(line, &journal->entries[journal->count])) {
            // Parsing cut the line into words.
            for (char *at = line; at < end; at++)
                *at = *at ? *at : ' ';
            return q3_fail(err, Q3_MALFORMED, "%s: damaged line \"%s\"", journal->path, line);
        }
        journal->entries[journal->count].line = journal->count;
        journal->count++;
    }
    // What a torn last line left must not run into the next one.
    while (ftruncate(journal->fd, line - text) != 0)
        if (errno != EINTR)
            return q3_fail_errno(err, "%s: cannot truncate", journal->path);
    sort_entries(journal);
    return true;
}

static bool create(q3_journal *journal, const char *directory, const char *request, q3_error *err)
{
    // Published as a whole: a journal exists with its request or not at all.
    char *text = q3_format(err, "%s%s", first_line, request);
    const bool ok = text && q3_file_publish(journal->path, text, strlen(text), err) &&
                    q3_directory_sync(directory, err);
    free(text);
    return ok;
}

static bool take_up(q3_journal *journal, const char *request, q3_error *err)
{
    do
        journal->fd = open(journal->path, O_RDWR | O_APPEND | O_CLOEXEC);
    while (journal->fd < 0 && errno == EINTR);
    if (journal->fd < 0)
        return q3_fail_errno(err, "%s: cannot open", journal->path);
    if (flock(journal->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? q3_fail(err, Q3_REFUSED, "%s: another extraction is at work here",
                             journal->path)
                   : q3_fail_errno(err, "%s: cannot lock", journal->path);
    char *text;
    size_t size;
    if (!q3_file_load(journal->path, JOURNAL_BYTES_MAX, &text, &size, err))
        return false;
    const bool ok = parse(journal, text, size, request, err);
    free(text);
    return ok;
}

bool q3_journal_open(const char *directory, const char *request, q3_journal **result, q3_error *err)
{
    *result = NULL;
    q3_journal *journal = q3_alloc_zeroed(1, sizeof *journal, err);
    if (!journal)
        return false;
    journal->fd = -1;
    bool empty = false;
    char *finished = NULL;
    bool ok = q3_directory_create(directory, err) &&
              (journal->path = q3_path_join(directory, journal_name, err)) &&
              (journal->directory = q3_format(err, "%s", directory)) &&
              (finished = q3_path_join(directory, "pack.json", err)) &&
              q3_directory_empty(directory, journal_part_name, &empty, err);
    if (ok && q3_path_exists(finished))
        ok = q3_fail(err, Q3_REFUSED, "%s: holds a finished extraction (pack.json exists)",
                     directory);
    if (ok && !q3_path_exists(journal->path))
        ok = empty ? create(journal, directory, request, err)
                   : q3_fail(err, Q3_REFUSED, "%s: is not empty and holds no unfinished extraction",
                             directory);
    ok = ok && take_up(journal, request, err);
    free(finished);
    if (ok)
        *result = journal;
    else
        q3_journal_close(journal);
    return ok;
}

void q3_journal_close(q3_journal *journal)
{
    if (!journal)
        return;
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal->entries);
    free(journal->directory);
    free(journal->path);
    free(journal);
}

// Removes a directory of plain files; none is fine.
static bool remove_directory(const char *path, q3_error *err)
{
    DIR *stream = opendir(path);
    if (!stream)
        return errno == ENOENT || q3_fail_errno(err, "%s: cannot list the directory", path);
    bool ok = true;
    const struct dirent *entry;
    while (ok && (entry = readdir(stream)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        ok = unlinkat(dirfd(stream), entry->d_name, 0) == 0 ||
             q3_fail_errno(err, "%s/%s: cannot remove", path, entry->d_name);
    }
    closedir(stream);
    return ok && (rmdir(path) == 0 || q3_fail_errno(err, "%s: cannot remove", path));
}

// The headers first: without the journal nobody would look for them.
static bool remove_all(const char *directory, const char *path, q3_error *err)
{
    char *headers = q3_journal_headers(directory, err);
    const bool ok = headers && remove_directory(headers, err) &&
                    (unlink(path) == 0 || q3_fail_errno(err, "%s: cannot remove", path)) &&
                    q3_directory_sync(directory, err);
    free(headers);
    return ok;
}

bool q3_journal_finish(q3_journal *journal, q3_error *err)
{
    const bool ok = remove_all(journal->directory, journal->path, err);
    q3_journal_close(journal);
    return ok;
}

bool q3_journal_tidy(const char *directory, bool *finished, q3_error *err)
{
    char *path = q3_path_join(directory, journal_name, err);
    char *set = path ? q3_path_join(directory, "pack.json", err) : NULL;
    bool ok = set != NULL;
    *finished = ok && q3_path_exists(path) && q3_path_exists(set);
    if (*finished)
        ok = remove_all(directory, path, err);
    free(set);
    free(path);
    return ok;
}

char *q3_journal_headers(const char *directory, q3_error *err)
{
    return q3_path_join(directory, "extract.headers", err);
}

const char *q3_piece_path(const q3_place *place, uint32_t shard, char out[Q3_PIECE_PATH_MAX])
{
    char path[Q3_PLACE_PATH_MAX];
    snprintf(out, Q3_PIECE_PATH_MAX, "%s.%" PRIu32 ".piece", q3_place_path(place, path), shard);
    return out;
}

bool q3_journal_sync(q3_journal *journal, q3_error *err)
{
    while (fdatasync(journal->fd) != 0)
        if (errno != EINTR)
            return q3_fail_errno(err, "%s: cannot sync", journal->path);
    return true;
}

bool q3_journal_find(const q3_journal *journal, const q3_place *place, uint32_t shard,
                     uint64_t *size, q3_hash128 *root)
{
    const journal_entry key = {.place = *place, .shard = shard};
    const journal_entry *entry = journal->count ? bsearch(&key, journal->entries, journal->count,
                                                          sizeof key, compare_entries)
                                                : NULL;
    if (!entry)
        return false;
    *size = entry->size;
    *root = entry->root;
    return true;
}

bool q3_journal_record(q3_journal *journal, const q3_place *place, uint32_t shard, uint64_t size,
                       q3_hash128 root, q3_error *err)
{
    char path[Q3_PLACE_PATH_MAX], hash[Q3_HASH_TEXT], number[16] = "", line[192];
    if (shard != Q3_WHOLE_FILE)
        snprintf(number, sizeof number, "%" PRIu32 " ", shard);
    const int length = snprintf(
        line, sizeof line, "%s %s %s%" PRIu64 " %s\n", shard == Q3_WHOLE_FILE ? "file" : "piece",
        q3_place_path(place, path), number, size, q3_hash128_text(root, hash));
    // Not synced here: a line that a crash loses only means that its file is made again.
    return q3_write_all(journal->fd, journal->path, line, (size_t)length, err);
}
