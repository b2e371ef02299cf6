// SPDX-License-Identifier: Apache-2.0
#include "checkpoint.h"

#include "base/json.h"
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INDEX_BYTES_MAX = 256 << 20, SHARDS_MAX = 10000 };

static const char index_name[] = "model.safetensors.index.json";
static const char single_name[] = "model.safetensors";

// One survey: what is known so far and whom to tell.
typedef struct survey {
    q3_checkpoint *checkpoint;
    q3_survey_options options;
    q3_problem_listener *listener;
    void *context;
    bool has_total;
    uint64_t total; // that the index states
    size_t *listed; // how many tensors the index puts in each shard
    q3_error *err;
} survey;

// Tells the listener. False when it wants no more; *s->err is then the problem's error.
static bool tell(survey *s, q3_problem_kind kind, const char *subject, const char *shard,
                 enum q3_exit code, const char *format, ...) __attribute__((format(printf, 6, 7)));

static bool tell(survey *s, q3_problem_kind kind, const char *subject, const char *shard,
                 enum q3_exit code, const char *format, ...)
{
    char text[2 * Q3_ERROR_MESSAGE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    q3_problem problem = {.kind = kind, .subject = subject, .shard = shard};
    q3_fail(&problem.error, code, "%s", text);
    if (s->listener(s->context, &problem))
        return true;
    *s->err = problem.error;
    return false;
}

// A copy of a name that lives as long as the checkpoint.
static const char *keep_name(q3_checkpoint *checkpoint, const char *name, q3_error *err)
{
    if (!q3_grow(&checkpoint->names, &checkpoint->name_capacity, checkpoint->name_count + 1,
                 sizeof *checkpoint->names, err))
        return NULL;
    char *copy = q3_format(err, "%s", name);
    if (copy)
        checkpoint->names[checkpoint->name_count++] = copy;
    return copy;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_shard(const void *key, const void *shard)
{
    return strcmp(key, ((const q3_shard *)shard)->name);
}

static int compare_listed(const void *a, const void *b)
{
    return strcmp(((const q3_listed_tensor *)a)->name, ((const q3_listed_tensor *)b)->name);
}

static int compare_stored(const void *a, const void *b)
{
    return strcmp(((const q3_stored_tensor *)a)->tensor.name,
                  ((const q3_stored_tensor *)b)->tensor.name);
}

static bool add_shard(q3_checkpoint *checkpoint, const char *name, q3_error *err)
{
    q3_shard *shard = &checkpoint->shards[checkpoint->shard_count];
    shard->name = q3_format(err, "%s", name);
    checkpoint->shard_count += shard->name != NULL;
    return shard->name != NULL;
}

// The distinct file names in the weight map, sorted.
static bool collect_shards(const q3_json *index, const cJSON *map, q3_checkpoint *checkpoint,
                           q3_error *err)
{
    const size_t count = (size_t)cJSON_GetArraySize(map);
    const char **names = q3_alloc(count, sizeof *names, err);
    if (!names)
        return false;
    bool ok = true;
    size_t filled = 0, distinct = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        const char *name;
        ok = ok && q3_json_item_string(index, item, &name, err);
        if (ok && !q3_safe_file_name(name))
            ok = q3_json_fail(index, item, Q3_MALFORMED, err,
                              "\"%s\" cannot be the name of a shard in this directory", name);
        if (!ok)
            break;
        names[filled++] = name;
    }
    if (ok) {
        qsort(names, filled, sizeof *names, compare_strings);
        for (size_t i = 0; i < filled; i++)
            if (i == 0 || strcmp(names[i - 1], names[i]) != 0)
                names[distinct++] = names[i];
        if (distinct > SHARDS_MAX)
            ok = q3_fail(err, Q3_MALFORMED, "%s: expected at most %d shards, found %zu",
                         index->name, SHARDS_MAX, distinct);
    }
    checkpoint->shards = ok ? q3_alloc_zeroed(distinct, sizeof *checkpoint->shards, err) : NULL;
    ok = checkpoint->shards != NULL;
    for (size_t i = 0; ok && i < distinct; i++)
        ok = add_shard(checkpoint, names[i], err);
    free(names);
    return ok;
}

static bool read_index(survey *s, const char *path)
{
    q3_checkpoint *checkpoint = s->checkpoint;
    q3_error *err = s->err;
    q3_json index;
    const cJSON *map, *item;
    if (!q3_json_load(path, INDEX_BYTES_MAX, &index, err))
        return false;
    bool ok = q3_json_object(&index, index.root, "weight_map", &map, err);
    if (ok && !map->child)
        ok = q3_json_fail(&index, map, Q3_MALFORMED, err, "lists no tensors");
    ok = ok && collect_shards(&index, map, checkpoint, err);
    if (ok) {
        checkpoint->listed =
            q3_alloc_zeroed((size_t)cJSON_GetArraySize(map), sizeof *checkpoint->listed, err);
        ok = checkpoint->listed != NULL;
    }
    for (item = ok ? map->child : NULL; ok && item; item = item->next) {
        if (*item->string == 0 || strlen(item->string) >= Q3_NAME_MAX) {
            ok = q3_json_fail(&index, map, Q3_MALFORMED, err,
                              "expected a name of 1 to %d bytes, found %zu", Q3_NAME_MAX - 1,
                              strlen(item->string));
            break;
        }
        const q3_shard *shard = bsearch(item->valuestring, checkpoint->shards,
                                        checkpoint->shard_count, sizeof *shard, compare_shard);
        q3_listed_tensor *listed = &checkpoint->listed[checkpoint->listed_count++];
        listed->shard = (uint32_t)(shard - checkpoint->shards);
        listed->name = keep_name(checkpoint, item->string, err);
        ok = listed->name != NULL;
    }
    const cJSON *metadata = q3_json_find(index.root, "metadata");
    if (ok && q3_json_find(metadata, "total_size")) {
        s->has_total = true;
        ok = q3_json_u64(&index, metadata, "total_size", 0, UINT64_C(1) << 53, &s->total, err);
    }
    q3_json_free(&index);
    if (ok)
        qsort(checkpoint->listed, checkpoint->listed_count, sizeof *checkpoint->listed,
              compare_listed);
    return ok;
}

// A checkpoint in one file has no index; the file lists itself.
static bool list_single(survey *s, const char *path)
{
    q3_checkpoint *checkpoint = s->checkpoint;
    q3_safetensors header;
    uint64_t size;
    if (!q3_safetensors_load(path, &header, &size, s->err))
        return false;
    checkpoint->shards = q3_alloc_zeroed(1, sizeof *checkpoint->shards, s->err);
    checkpoint->listed = q3_alloc_zeroed(header.count, sizeof *checkpoint->listed, s->err);
    bool ok =
        checkpoint->shards && checkpoint->listed && add_shard(checkpoint, single_name, s->err);
    for (size_t i = 0; ok && i < header.count; i++) {
        q3_listed_tensor *listed = &checkpoint->listed[checkpoint->listed_count++];
        listed->name = keep_name(checkpoint, header.names[i], s->err);
        ok = listed->name != NULL;
    }
    q3_safetensors_free(&header);
    if (ok)
        qsort(checkpoint->listed, checkpoint->listed_count, sizeof *checkpoint->listed,
              compare_listed);
    return ok;
}

// A kept header is the shard's size in 8 bytes and then its first bytes.
enum { SAVED_SIZE_BYTES = 8 };

static char *saved_path(const char *headers, const q3_shard *shard, q3_error *err)
{
    return q3_format(err, "%s/%s.header", headers, shard->name);
}

static bool load_saved(const char *path, q3_safetensors *header, uint64_t *size, q3_error *err)
{
    char *data;
    size_t bytes;
    if (!q3_file_load(path, SAVED_SIZE_BYTES + 8 + Q3_SAFETENSORS_HEADER_MAX, &data, &bytes, err))
        return false;
    const q3_bytes whole = {(const uint8_t *)data, bytes};
    q3_bytes head;
    const bool ok = (q3_read_u64(whole, 0, size) &&
                     q3_slice(whole, SAVED_SIZE_BYTES, bytes - SAVED_SIZE_BYTES, &head)) ||
                    q3_fail(err, Q3_MALFORMED, "%s: not a kept header", path);
    const bool parsed = ok && q3_safetensors_parse(path, head, *size, header, err);
    free(data);
    return parsed;
}

bool q3_shard_save_header(const q3_checkpoint *checkpoint, uint32_t number, const char *headers,
                          q3_error *err)
{
    const q3_shard *shard = &checkpoint->shards[number];
    q3_file file = {.fd = -1};
    uint8_t *data = NULL;
    char *path = saved_path(headers, shard, err);
    bool ok = path != NULL;
    if (ok && q3_path_exists(path)) {
        q3_safetensors kept = {0};
        uint64_t size = 0;
        ok = load_saved(path, &kept, &size, err);
        if (ok && (size != shard->size || !q3_hash128_equal(kept.hash, shard->header_hash)))
            ok = q3_fail(err, Q3_REFUSED,
                         "%s/%s: is not the shard that this extraction was begun with",
                         checkpoint->directory, shard->name);
        q3_safetensors_free(&kept);
        free(path);
        return ok;
    }
    ok = ok && q3_checkpoint_open_shard(checkpoint, number, &file, err);
    if (ok) {
        const size_t head = (size_t)shard->header_bytes;
        data = q3_alloc(SAVED_SIZE_BYTES + head, 1, err);
        ok = data && q3_file_read(&file, 0, data + SAVED_SIZE_BYTES, head, err);
        if (ok) {
            q3_put_u64(data, shard->size);
            ok = q3_file_publish(path, data, SAVED_SIZE_BYTES + head, err);
        }
    }
    free(data);
    q3_file_close(&file);
    free(path);
    return ok;
}

// Takes over what a header says, and holds it against the index.
static bool take_header(survey *s, uint32_t number, const char *path, const q3_safetensors *header)
{
    q3_checkpoint *checkpoint = s->checkpoint;
    q3_shard *shard = &checkpoint->shards[number];
    bool ok = true;
    shard->read = true;
    shard->file_bytes = header->file_bytes;
    shard->header_bytes = header->header_bytes;
    shard->header_hash = header->hash;
    for (size_t i = 0; ok && i < header->count; i++) {
        const q3_safetensor *tensor = &header->tensors[i];
        const char *name = tensor->tensor.name;
        q3_listed_tensor *listed =
            bsearch(&(q3_listed_tensor){.name = name}, checkpoint->listed, checkpoint->listed_count,
                    sizeof *listed, compare_listed);
        if (!listed) {
            ok = tell(s, Q3_PROBLEM_UNLISTED, name, shard->name, Q3_MALFORMED,
                      "%s: holds %s, which the index does not list", path, name);
        } else if (listed->shard != number) {
            ok = tell(s, Q3_PROBLEM_ELSEWHERE, name, shard->name, Q3_MALFORMED,
                      "%s: holds %s, which the index gives to %s", path, name,
                      checkpoint->shards[listed->shard].name);
        } else {
            q3_stored_tensor *to = &checkpoint->tensors[checkpoint->tensor_count++];
            listed->found = true;
            *to = (q3_stored_tensor){
                .tensor = tensor->tensor, .shard = number, .offset = tensor->offset};
            to->tensor.name = listed->name;
            checkpoint->bytes += tensor->tensor.bytes;
        }
    }
    return ok;
}

static bool tell_absent(survey *s, uint32_t number, const char *path)
{
    const q3_checkpoint *checkpoint = s->checkpoint;
    return tell(s, Q3_PROBLEM_SHARD_ABSENT, checkpoint->shards[number].name,
                checkpoint->shards[number].name, Q3_INCOMPLETE,
                "%s: the shard is absent; the index puts %zu tensors there", path,
                s->listed[number]);
}

static bool read_shard(survey *s, uint32_t number)
{
    q3_shard *shard = &s->checkpoint->shards[number];
    q3_safetensors header = {0};
    q3_error problem;
    bool ok = true;
    char *path = q3_checkpoint_path(s->checkpoint, shard->name, s->err);
    char *saved = path && s->options.headers ? saved_path(s->options.headers, shard, s->err) : NULL;
    if (!path || (s->options.headers && !saved)) {
        free(path);
        return false;
    }
    shard->present = q3_path_exists(path);
    if (shard->present) {
        const bool loaded = q3_safetensors_load(path, &header, &shard->size, &problem);
        shard->unreadable = !loaded && problem.code == Q3_FAILED;
        // Of a file cut short on purpose only what lies behind its header's word is wrong.
        if (loaded && (!s->options.headers_only || shard->size > header.file_bytes) &&
            !q3_safetensors_check_size(path, &header, shard->size, &problem))
            ok = tell(s, Q3_PROBLEM_SIZE, shard->name, shard->name, Q3_MALFORMED, "%s",
                      problem.message);
        if (loaded)
            ok = ok && take_header(s, number, path, &header);
        else
            ok = tell(s, Q3_PROBLEM_MALFORMED, shard->name, shard->name, (enum q3_exit)problem.code,
                      "%s", problem.message);
    } else if (saved && q3_path_exists(saved)) {
        ok = load_saved(saved, &header, &shard->size, s->err) &&
             take_header(s, number, path, &header);
    } else {
        ok = tell_absent(s, number, path);
    }
    q3_safetensors_free(&header);
    free(saved);
    free(path);
    return ok;
}

static int is_shard_file(const struct dirent *entry)
{
    static const char suffix[] = ".safetensors";
    const size_t length = strlen(entry->d_name);
    return length >= sizeof suffix &&
           strcmp(entry->d_name + length - (sizeof suffix - 1), suffix) == 0;
}

// Shards in the directory that the index does not name would be dropped without a word.
static bool check_strays(survey *s)
{
    const q3_checkpoint *checkpoint = s->checkpoint;
    struct dirent **entries;
    const int count = scandir(checkpoint->directory, &entries, is_shard_file, alphasort);
    if (count < 0)
        return q3_fail_errno(s->err, "%s: cannot list the directory", checkpoint->directory);
    bool ok = true;
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        if (ok && !bsearch(name, checkpoint->shards, checkpoint->shard_count,
                           sizeof *checkpoint->shards, compare_shard))
            ok = tell(s, Q3_PROBLEM_UNLISTED, name, name, Q3_MALFORMED,
                      "%s/%s: a shard that the index does not name", checkpoint->directory, name);
        free(entries[i]);
    }
    free(entries);
    return ok;
}

static bool check_found(survey *s)
{
    const q3_checkpoint *checkpoint = s->checkpoint;
    bool all_found = true;
    for (size_t i = 0; i < checkpoint->listed_count; i++) {
        const q3_listed_tensor *listed = &checkpoint->listed[i];
        const q3_shard *shard = &checkpoint->shards[listed->shard];
        all_found = all_found && listed->found;
        if (!listed->found && shard->read &&
            !tell(s, Q3_PROBLEM_SHARD_LACKS, listed->name, shard->name, Q3_INCOMPLETE,
                  "%s/%s: lacks %s, which the index puts there", checkpoint->directory, shard->name,
                  listed->name))
            return false;
    }
    // Without all the tensors the sum says nothing new.
    if (all_found && s->has_total && s->total != checkpoint->bytes)
        return tell(s, Q3_PROBLEM_TOTAL, index_name, NULL, Q3_MISMATCH,
                    "%s/%s: total_size is %" PRIu64 ", the tensors take %" PRIu64 " bytes",
                    checkpoint->directory, index_name, s->total, checkpoint->bytes);
    return true;
}

bool q3_checkpoint_survey(const char *directory, const q3_survey_options *options,
                          q3_problem_listener *listener, void *context, q3_checkpoint *checkpoint,
                          q3_error *err)
{
    *checkpoint = (q3_checkpoint){0};
    survey s = {.checkpoint = checkpoint,
                .options = options ? *options : (q3_survey_options){0},
                .listener = listener,
                .context = context,
                .err = err};
    char *index = NULL, *single = NULL;
    checkpoint->directory = q3_format(err, "%s", directory);
    bool ok = checkpoint->directory && (index = q3_checkpoint_path(checkpoint, index_name, err)) &&
              (single = q3_checkpoint_path(checkpoint, single_name, err));
    if (ok) {
        if (q3_path_exists(index))
            ok = read_index(&s, index);
        else if (q3_path_exists(single))
            ok = list_single(&s, single);
        else if (q3_path_exists(directory))
            ok = q3_fail(err, Q3_INCOMPLETE, "%s: no %s: not a checkpoint", directory, index_name);
        else
            ok = q3_fail(err, Q3_FAILED, "%s: no such directory", directory);
    }
    if (ok) {
        checkpoint->tensors =
            q3_alloc_zeroed(checkpoint->listed_count, sizeof *checkpoint->tensors, err);
        s.listed = q3_alloc_zeroed(checkpoint->shard_count, sizeof *s.listed, err);
        ok = checkpoint->tensors && s.listed;
    }
    for (size_t i = 0; ok && i < checkpoint->listed_count; i++)
        s.listed[checkpoint->listed[i].shard]++;
    for (uint32_t i = 0; ok && i < checkpoint->shard_count; i++)
        ok = read_shard(&s, i);
    if (ok) {
        qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof *checkpoint->tensors,
              compare_stored);
        ok = check_strays(&s) && check_found(&s);
    }
    free(s.listed);
    free(index);
    free(single);
    if (!ok)
        q3_checkpoint_close(checkpoint);
    return ok;
}

static bool only_total(void *context, const q3_problem *problem)
{
    (void)context;
    return problem->kind == Q3_PROBLEM_TOTAL;
}

bool q3_checkpoint_open(const char *directory, q3_checkpoint *checkpoint, q3_error *err)
{
    return q3_checkpoint_survey(directory, NULL, only_total, NULL, checkpoint, err);
}

void q3_checkpoint_close(q3_checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < checkpoint->shard_count; i++)
        free(checkpoint->shards[i].name);
    for (size_t i = 0; i < checkpoint->name_count; i++)
        free(checkpoint->names[i]);
    free(checkpoint->names);
    free(checkpoint->shards);
    free(checkpoint->listed);
    free(checkpoint->tensors);
    free(checkpoint->directory);
    *checkpoint = (q3_checkpoint){0};
}

const q3_listed_tensor *q3_checkpoint_listed(const q3_checkpoint *checkpoint, const char *name)
{
    return bsearch(&(q3_listed_tensor){.name = name}, checkpoint->listed, checkpoint->listed_count,
                   sizeof *checkpoint->listed, compare_listed);
}

const q3_stored_tensor *q3_checkpoint_find(const q3_checkpoint *checkpoint, const char *name)
{
    const q3_stored_tensor key = {.tensor.name = name};
    return bsearch(&key, checkpoint->tensors, checkpoint->tensor_count, sizeof *checkpoint->tensors,
                   compare_stored);
}

char *q3_checkpoint_path(const q3_checkpoint *checkpoint, const char *name, q3_error *err)
{
    return q3_path_join(checkpoint->directory, name, err);
}

bool q3_checkpoint_open_shard(const q3_checkpoint *checkpoint, uint32_t number, q3_file *file,
                              q3_error *err)
{
    const q3_shard *shard = &checkpoint->shards[number];
    char *path = q3_checkpoint_path(checkpoint, shard->name, err);
    if (!path)
        return false;
    bool ok = q3_file_open(path, file, err);
    if (ok && file->size != shard->size) {
        ok = q3_fail(err, Q3_FAILED,
                     "%s: the file changed while it was read: expected %" PRIu64
                     " bytes, found %" PRIu64,
                     path, shard->size, file->size);
        q3_file_close(file);
    }
    free(path);
    return ok;
}
