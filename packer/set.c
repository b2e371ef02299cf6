// SPDX-License-Identifier: Apache-2.0
#include "set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SET_BYTES_MAX = 256 << 20,
    COPY_BYTES_MAX = 256 << 20,
    FILES_MAX = 1 << 22,
    SET_VERSION = 1,
};

// pack.json ends with exactly this, where the digits are the hash of all the bytes before it.
static const char checksum_key[] = ",\n  \"checksum\": \"";
static const char checksum_end[] = "\"\n}\n";
enum {
    CHECKSUM_DIGITS = Q3_HASH_TEXT - 1,
    CHECKSUM_BYTES = sizeof checksum_key - 1 + CHECKSUM_DIGITS + sizeof checksum_end - 1,
};

static const uint64_t json_integer_max = UINT64_C(1) << 53;

// ---- writing ----

static void write_model(q3_json_writer *json, const q3_config *config)
{
    q3_json_begin_object(json, "model");
    q3_json_put_string(json, "model_type", config->family->model_type);
    q3_json_put_u64(json, "vocab_size", config->vocab_size);
    q3_json_put_u64(json, "hidden_size", config->hidden_size);
    q3_json_put_u64(json, "num_hidden_layers", config->num_hidden_layers);
    q3_json_put_u64(json, "num_attention_heads", config->num_attention_heads);
    q3_json_put_u64(json, "num_key_value_heads", config->num_key_value_heads);
    q3_json_put_u64(json, "head_dim", config->head_dim);
    q3_json_put_u64(json, "num_experts", config->num_experts);
    q3_json_put_u64(json, "num_experts_per_tok", config->num_experts_per_tok);
    q3_json_put_u64(json, "moe_intermediate_size", config->moe_intermediate_size);
    q3_json_put_u64(json, "max_position_embeddings", config->max_position_embeddings);
    q3_json_put_bool(json, "norm_topk_prob", config->norm_topk_prob);
    q3_json_put_double(json, "rms_norm_eps", config->rms_norm_eps);
    q3_json_put_double(json, "rope_theta", config->rope_theta);
    q3_json_end_object(json);
}

static void write_files(q3_json_writer *json, const q3_set *set)
{
    char path[Q3_PLACE_PATH_MAX], hash[Q3_HASH_TEXT];
    q3_json_begin_array(json, "files");
    for (size_t i = 0; i < set->file_count; i++) {
        const q3_set_file *file = &set->files[i];
        q3_json_begin_object(json, NULL);
        q3_json_put_string(json, "path", q3_place_path(&file->place, path));
        q3_json_put_u64(json, "size", file->size);
        q3_json_put_string(json, "root", q3_hash128_text(file->root, hash));
        q3_json_begin_array(json, "tensors");
        for (uint32_t t = 0; t < file->tensor_count; t++) {
            q3_json_inline(json);
            q3_json_begin_object(json, NULL);
            q3_json_put_string(json, "name", file->tensors[t].name);
            q3_json_put_u64(json, "shard", file->tensors[t].shard);
            q3_json_put_u64(json, "offset", file->tensors[t].offset);
            q3_json_end_object(json);
        }
        q3_json_end_array(json);
        q3_json_end_object(json);
    }
    q3_json_end_array(json);
}

static void write_set(q3_json_writer *json, const q3_set *set)
{
    char hash[Q3_HASH_TEXT];
    q3_json_begin_object(json, NULL);
    q3_json_put_string(json, "format", "q3-pack");
    q3_json_put_u64(json, "version", SET_VERSION);
    write_model(json, &set->config);
    q3_json_put_string(json, "codec", q3_codec_name(set->codec));
    q3_json_begin_array(json, "components");
    for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
        const q3_set_component *component = &set->components[i];
        if (component->expected_tensors == 0)
            continue;
        q3_json_inline(json);
        q3_json_begin_object(json, NULL);
        q3_json_put_string(json, "name", q3_component_name((q3_component)i));
        q3_json_put_bool(json, "complete", component->tensors == component->expected_tensors);
        q3_json_put_u64(json, "tensors", component->tensors);
        q3_json_put_u64(json, "bytes", component->bytes);
        q3_json_put_u64(json, "expected_tensors", component->expected_tensors);
        q3_json_put_u64(json, "expected_bytes", component->expected_bytes);
        q3_json_end_object(json);
    }
    q3_json_end_array(json);
    q3_json_begin_array(json, "shards");
    for (uint32_t i = 0; i < set->shard_count; i++) {
        q3_json_inline(json);
        q3_json_begin_object(json, NULL);
        q3_json_put_string(json, "name", set->shards[i].name);
        q3_json_put_u64(json, "size", set->shards[i].size);
        q3_json_put_string(json, "header", q3_hash128_text(set->shards[i].header_hash, hash));
        q3_json_end_object(json);
    }
    q3_json_end_array(json);
    q3_json_begin_array(json, "copies");
    for (size_t i = 0; i < set->copy_count; i++) {
        q3_json_inline(json);
        q3_json_begin_object(json, NULL);
        q3_json_put_string(json, "name", set->copies[i].name);
        q3_json_put_u64(json, "size", set->copies[i].size);
        q3_json_put_string(json, "hash", q3_hash128_text(set->copies[i].hash, hash));
        q3_json_end_object(json);
    }
    q3_json_end_array(json);
    write_files(json, set);
    if (!json->failed)
        q3_json_put_string(json, "checksum",
                           q3_hash128_text(q3_hash128_of(json->text, json->size), hash));
    q3_json_end_object(json);
}

bool q3_set_write(const q3_set *set, q3_error *err)
{
    q3_json_writer json = {0};
    write_set(&json, set);
    char *path = q3_set_path(set, "pack.json", err);
    const bool ok = path && q3_json_finish(&json, err) &&
                    q3_file_publish(path, json.text, json.size, err) &&
                    q3_directory_sync(set->directory, err);
    free(path);
    q3_json_writer_free(&json);
    return ok;
}

// ---- reading ----

static bool check_checksum(const char *path, const char *text, size_t size, q3_error *err)
{
    char digits[Q3_HASH_TEXT], actual[Q3_HASH_TEXT];
    if (size < CHECKSUM_BYTES)
        return q3_fail(err, Q3_MALFORMED, "%s: does not end in a checksum", path);
    const char *end = text + size - CHECKSUM_BYTES;
    memcpy(digits, end + sizeof checksum_key - 1, CHECKSUM_DIGITS);
    digits[CHECKSUM_DIGITS] = 0;
    q3_hash128 ignored;
    if (memcmp(end, checksum_key, sizeof checksum_key - 1) != 0 ||
        memcmp(text + size - (sizeof checksum_end - 1), checksum_end, sizeof checksum_end - 1) ||
        !q3_hash128_parse(digits, &ignored))
        return q3_fail(err, Q3_MALFORMED, "%s: does not end in a checksum", path);
    q3_hash128_text(q3_hash128_of(text, size - CHECKSUM_BYTES), actual);
    if (strcmp(actual, digits) != 0)
        return q3_fail(err, Q3_MALFORMED, "%s: is damaged: expected checksum %s, found %s", path,
                       digits, actual);
    return true;
}

static bool read_hash(const q3_json *json, const cJSON *object, const char *key, q3_hash128 *hash,
                      q3_error *err)
{
    const char *text;
    if (!q3_json_string(json, object, key, &text, err))
        return false;
    if (!q3_hash128_parse(text, hash))
        return q3_json_fail(json, q3_json_find(object, key), Q3_MALFORMED, err,
                            "expected 32 hexadecimal digits, found \"%s\"", text);
    return true;
}

// Copies a string member that is to be used as a file name.
static bool read_file_name(const q3_json *json, const cJSON *object, char **name, q3_error *err)
{
    const char *text;
    if (!q3_json_string(json, object, "name", &text, err))
        return false;
    if (!q3_safe_file_name(text))
        return q3_json_fail(json, q3_json_find(object, "name"), Q3_MALFORMED, err,
                            "\"%s\" cannot be the name of a file here", text);
    *name = q3_format(err, "%s", text);
    return *name != NULL;
}

// The length of an array member, and memory for as many items.
static bool begin_list(const q3_json *json, const char *key, size_t size, const cJSON **list,
                       void *items, q3_error *err)
{
    if (!q3_json_array(json, json->root, key, list, err))
        return false;
    const int count = cJSON_GetArraySize(*list);
    if (count > FILES_MAX)
        return q3_json_fail(json, *list, Q3_MALFORMED, err, "expected at most %d entries",
                            FILES_MAX);
    void *memory = q3_alloc_zeroed((size_t)count, size, err);
    memcpy(items, &memory, sizeof memory);
    return memory != NULL;
}

static bool read_components(const q3_json *json, q3_set *set, q3_error *err)
{
    const cJSON *list, *item;
    if (!q3_json_array(json, json->root, "components", &list, err))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        const char *name;
        q3_component id;
        if (!q3_json_string(json, item, "name", &name, err))
            return false;
        if (!q3_component_parse(name, &id) || set->components[id].expected_tensors)
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "\"%s\" is no component, or stands twice", name);
        q3_set_component *component = &set->components[id];
        bool complete;
        if (!q3_json_u64(json, item, "expected_tensors", 1, json_integer_max,
                         &component->expected_tensors, err) ||
            !q3_json_u64(json, item, "expected_bytes", 0, json_integer_max,
                         &component->expected_bytes, err) ||
            !q3_json_u64(json, item, "tensors", 0, component->expected_tensors, &component->tensors,
                         err) ||
            !q3_json_u64(json, item, "bytes", 0, component->expected_bytes, &component->bytes,
                         err) ||
            !q3_json_bool(json, item, "complete", &complete, err))
            return false;
        if (complete != (component->tensors == component->expected_tensors))
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "\"complete\" contradicts the numbers of tensors");
    }
    return true;
}

static bool read_shards(const q3_json *json, q3_set *set, q3_error *err)
{
    const cJSON *list, *item;
    if (!begin_list(json, "shards", sizeof *set->shards, &list, &set->shards, err))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        q3_set_shard *shard = &set->shards[set->shard_count++];
        if (!read_file_name(json, item, &shard->name, err) ||
            !q3_json_u64(json, item, "size", 0, json_integer_max, &shard->size, err) ||
            !read_hash(json, item, "header", &shard->header_hash, err))
            return false;
    }
    return true;
}

static bool read_copies(const q3_json *json, q3_set *set, q3_error *err)
{
    const cJSON *list, *item;
    if (!begin_list(json, "copies", sizeof *set->copies, &list, &set->copies, err))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        q3_set_copy *copy = &set->copies[set->copy_count++];
        if (!read_file_name(json, item, &copy->name, err) ||
            !q3_json_u64(json, item, "size", 0, COPY_BYTES_MAX, &copy->size, err) ||
            !read_hash(json, item, "hash", &copy->hash, err))
            return false;
        if (set->copy_count > 1 && strcmp(copy[-1].name, copy->name) >= 0)
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "\"%s\" is out of order, names must ascend", copy->name);
    }
    return true;
}

static bool read_file_tensors(const q3_json *json, const cJSON *item, q3_set *set,
                              q3_set_file *file, q3_error *err)
{
    const cJSON *list, *tensor;
    if (!q3_json_array(json, item, "tensors", &list, err))
        return false;
    file->tensors = q3_alloc_zeroed((size_t)cJSON_GetArraySize(list), sizeof *file->tensors, err);
    if (!file->tensors)
        return false;
    cJSON_ArrayForEach(tensor, list)
    {
        q3_set_tensor *to = &file->tensors[file->tensor_count++];
        const char *name;
        if (!q3_json_string(json, tensor, "name", &name, err) ||
            !q3_json_u32(json, tensor, "shard", 0, set->shard_count ? set->shard_count - 1 : 0,
                         &to->shard, err) ||
            !q3_json_u64(json, tensor, "offset", 8, json_integer_max, &to->offset, err))
            return false;
        if (*name == 0 || strlen(name) >= Q3_NAME_MAX || set->shard_count == 0)
            return q3_json_fail(json, tensor, Q3_MALFORMED, err, "malformed tensor name or shard");
        to->name = q3_format(err, "%s", name);
        if (!to->name)
            return false;
    }
    return true;
}

static bool read_files(const q3_json *json, q3_set *set, q3_error *err)
{
    const cJSON *list, *item;
    if (!begin_list(json, "files", sizeof *set->files, &list, &set->files, err))
        return false;
    cJSON_ArrayForEach(item, list)
    {
        q3_set_file *file = &set->files[set->file_count++];
        const char *path;
        if (!q3_json_string(json, item, "path", &path, err))
            return false;
        if (!q3_place_parse(path, &file->place))
            return q3_json_fail(json, item, Q3_MALFORMED, err, "\"%s\" is no path of a pack file",
                                path);
        if (set->file_count > 1 && q3_place_compare(&file[-1].place, &file->place) >= 0)
            return q3_json_fail(json, item, Q3_MALFORMED, err, "\"%s\" is out of order", path);
        if (file->place.layer >= set->config.num_hidden_layers ||
            file->place.expert >= set->config.num_experts)
            return q3_json_fail(json, item, Q3_MALFORMED, err,
                                "\"%s\" is beyond the model's %" PRIu32 " layers of %" PRIu32
                                " experts",
                                path, set->config.num_hidden_layers, set->config.num_experts);
        if (!q3_json_u64(json, item, "size", 0, json_integer_max, &file->size, err) ||
            !read_hash(json, item, "root", &file->root, err) ||
            !read_file_tensors(json, item, set, file, err))
            return false;
    }
    return true;
}

// The configuration comes from the copied config.json; the summary in pack.json must agree with it,
// which is checked by writing the summary again and comparing the two as JSON.
static bool read_model(const q3_json *json, q3_set *set, q3_error *err)
{
    char *text = NULL;
    size_t size;
    q3_json config = {0}, summary = {0};
    q3_json_writer writer = {0};
    const cJSON *model;
    bool ok = q3_json_object(json, json->root, "model", &model, err) &&
              q3_set_load_copy(set, "config.json", &text, &size, err);
    char *path = ok ? q3_set_path(set, "config.json", err) : NULL;
    ok = path && q3_json_parse(path, (q3_bytes){(const uint8_t *)text, size}, &config, err) &&
         q3_config_read(&config, &set->config, err);
    if (ok) {
        q3_json_begin_object(&writer, NULL);
        write_model(&writer, &set->config);
        q3_json_end_object(&writer);
        ok = q3_json_finish(&writer, err) &&
             q3_json_parse("summary", (q3_bytes){(const uint8_t *)writer.text, writer.size},
                           &summary, err);
    }
    if (ok && !cJSON_Compare(model, q3_json_find(summary.root, "model"), true))
        ok = q3_json_fail(json, model, Q3_MALFORMED, err, "does not agree with config.json");
    q3_json_free(&summary);
    q3_json_writer_free(&writer);
    q3_json_free(&config);
    free(path);
    free(text);
    return ok;
}

static bool read_set(const q3_json *json, q3_set *set, q3_error *err)
{
    const char *format, *codec;
    uint32_t version;
    if (!q3_json_string(json, json->root, "format", &format, err))
        return false;
    if (strcmp(format, "q3-pack") != 0)
        return q3_json_fail(json, q3_json_find(json->root, "format"), Q3_MALFORMED, err,
                            "expected \"q3-pack\", found \"%s\"", format);
    if (!q3_json_u32(json, json->root, "version", SET_VERSION, SET_VERSION, &version, err) ||
        !q3_json_string(json, json->root, "codec", &codec, err))
        return false;
    if (!q3_codec_parse(codec, &set->codec))
        return q3_json_fail(json, q3_json_find(json->root, "codec"), Q3_MALFORMED, err,
                            "\"%s\" is no codec", codec);
    return read_components(json, set, err) && read_shards(json, set, err) &&
           read_copies(json, set, err) && read_model(json, set, err) && read_files(json, set, err);
}

bool q3_set_open(const char *directory, q3_set *set, q3_error *err)
{
    *set = (q3_set){0};
    set->directory = q3_format(err, "%s", directory);
    char *path = set->directory ? q3_set_path(set, "pack.json", err) : NULL;
    char *text = NULL;
    size_t size = 0;
    q3_json json = {0};
    bool ok = path != NULL;
    if (ok && !q3_path_exists(path)) {
        ok = q3_path_exists(directory)
                 ? q3_fail(err, Q3_INCOMPLETE,
                           "%s: no pack.json: not a pack directory, or an unfinished extraction",
                           directory)
                 : q3_fail(err, Q3_FAILED, "%s: no such directory", directory);
    }
    ok = ok && q3_file_load(path, SET_BYTES_MAX, &text, &size, err) &&
         check_checksum(path, text, size, err) &&
         q3_json_parse(path, (q3_bytes){(const uint8_t *)text, size}, &json, err);
    free(text);
    ok = ok && read_set(&json, set, err);
    q3_json_free(&json);
    free(path);
    if (!ok)
        q3_set_close(set);
    return ok;
}

void q3_set_close(q3_set *set)
{
    for (size_t i = 0; i < set->file_count; i++) {
        for (uint32_t t = 0; t < set->files[i].tensor_count; t++)
            free(set->files[i].tensors[t].name);
        free(set->files[i].tensors);
    }
    for (size_t i = 0; i < set->copy_count; i++)
        free(set->copies[i].name);
    for (uint32_t i = 0; i < set->shard_count; i++)
        free(set->shards[i].name);
    free(set->files);
    free(set->copies);
    free(set->shards);
    free(set->directory);
    *set = (q3_set){0};
}

static int compare_file(const void *key, const void *file)
{
    return q3_place_compare(key, &((const q3_set_file *)file)->place);
}

const q3_set_file *q3_set_find(const q3_set *set, const q3_place *place)
{
    return bsearch(place, set->files, set->file_count, sizeof *set->files, compare_file);
}

const q3_set_file *q3_set_find_tensor(const q3_set *set, const char *name, uint32_t *index)
{
    for (size_t i = 0; i < set->file_count; i++)
        for (uint32_t t = 0; t < set->files[i].tensor_count; t++)
            if (strcmp(set->files[i].tensors[t].name, name) == 0) {
                *index = t;
                return &set->files[i];
            }
    return NULL;
}

static bool check_size(const q3_set_file *file, const char *path, uint64_t size, q3_error *err)
{
    return size == file->size ||
           q3_fail(err, Q3_MALFORMED, "%s: pack.json expects %" PRIu64 " bytes, found %" PRIu64,
                   path, file->size, size);
}

// Is this the file that pack.json means?
static bool check_pack(const q3_set_file *file, const q3_pack *pack, q3_error *err)
{
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    const char *path = pack->file.path;
    if (!check_size(file, path, pack->size, err))
        return false;
    if (!q3_hash128_equal(pack->root, file->root))
        return q3_fail(err, Q3_MALFORMED,
                       "%s: is another file than the one in pack.json: expected root %s, found %s",
                       path, q3_hash128_text(file->root, expected),
                       q3_hash128_text(pack->root, found));
    if (pack->tensor_count != file->tensor_count)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: pack.json expects %" PRIu32 " tensors, found %" PRIu32, path,
                       file->tensor_count, pack->tensor_count);
    for (uint32_t i = 0; i < pack->tensor_count; i++)
        if (strcmp(pack->tensors[i].tensor.name, file->tensors[i].name) != 0)
            return q3_fail(err, Q3_MALFORMED, "%s: pack.json expects tensor %s, found %s", path,
                           file->tensors[i].name, pack->tensors[i].tensor.name);
    return true;
}

static char *pack_path(const q3_set *set, const q3_set_file *file, q3_error *err)
{
    char name[Q3_PLACE_PATH_MAX];
    return q3_set_path(set, q3_place_path(&file->place, name), err);
}

// After opening has failed: an absent file is another matter than one that cannot be read.
static void tell_absent(const char *path, q3_error *err)
{
    if (errno == ENOENT && !q3_path_exists(path))
        q3_fail(err, Q3_INCOMPLETE, "%s: listed in pack.json, but absent", path);
}

bool q3_set_open_pack(const q3_set *set, const q3_set_file *file, q3_pack *pack, q3_error *err)
{
    *pack = (q3_pack){.file = {.fd = -1}};
    char *path = pack_path(set, file, err);
    if (!path)
        return false;
    bool ok = q3_pack_open(path, pack, err);
    if (!ok)
        tell_absent(path, err);
    else if (!check_pack(file, pack, err)) {
        q3_pack_close(pack);
        ok = false;
    }
    free(path);
    return ok;
}

bool q3_set_open_image(const q3_set *set, const q3_set_file *file, bool direct, q3_file *source,
                       q3_error *err)
{
    *source = (q3_file){.fd = -1};
    char *path = pack_path(set, file, err);
    if (!path)
        return false;
    bool ok = q3_file_open_whole(path, direct, source, err);
    if (!ok)
        tell_absent(path, err);
    else if (!check_size(file, path, source->size, err)) {
        q3_file_close(source);
        ok = false;
    }
    free(path);
    return ok;
}

bool q3_set_parse_image(const q3_set *set, const q3_set_file *file, const uint8_t *image,
                        uint64_t arrived, q3_pack *pack, q3_error *err)
{
    *pack = (q3_pack){.file = {.fd = -1}};
    char *path = pack_path(set, file, err);
    if (!path)
        return false;
    uint64_t needed;
    bool ok =
        q3_pack_parse(path, (q3_bytes){image, (size_t)arrived}, file->size, pack, &needed, err);
    if (ok && !check_pack(file, pack, err)) {
        q3_pack_close(pack);
        ok = false;
    }
    free(path);
    return ok;
}

char *q3_set_path(const q3_set *set, const char *name, q3_error *err)
{
    return q3_path_join(set->directory, name, err);
}

bool q3_set_load_copy(const q3_set *set, const char *name, char **data, size_t *size, q3_error *err)
{
    const q3_set_copy *copy = NULL;
    for (size_t i = 0; i < set->copy_count; i++)
        if (strcmp(set->copies[i].name, name) == 0)
            copy = &set->copies[i];
    if (!copy)
        return q3_fail(err, Q3_INCOMPLETE, "%s: pack.json lists no %s", set->directory, name);
    char *path = q3_set_path(set, name, err);
    if (!path)
        return false;
    char *text = NULL, expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    bool ok = q3_file_load(path, COPY_BYTES_MAX, &text, size, err);
    if (!ok && !q3_path_exists(path))
        q3_fail(err, Q3_INCOMPLETE, "%s: listed in pack.json, but absent", path);
    if (ok) {
        const q3_hash128 hash = q3_hash128_of(text, *size);
        if (*size != copy->size || !q3_hash128_equal(hash, copy->hash))
            ok = q3_fail(err, Q3_MALFORMED, "%s: pack.json expects hash %s, found %s", path,
                         q3_hash128_text(copy->hash, expected), q3_hash128_text(hash, found));
    }
    free(path);
    if (ok)
        *data = text;
    else
        free(text);
    return ok;
}
