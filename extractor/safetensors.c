// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include "base/file.h"
#include "base/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8 };

// The length of the header in the file's first 8 bytes, checked against the file's size.
static bool parse_length(const char *name, q3_bytes head, uint64_t size, uint64_t *length,
                         q3_error *err)
{
    if (size < LENGTH_BYTES || !q3_read_u64(head, 0, length))
        return q3_fail(err, Q3_MALFORMED, "%s: expected at least 8 bytes, found %" PRIu64, name,
                       size);
    if (*length > Q3_SAFETENSORS_HEADER_MAX)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected a header of at most %" PRIu64 " bytes, found %" PRIu64, name,
                       Q3_SAFETENSORS_HEADER_MAX, *length);
    if (*length > size - LENGTH_BYTES)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: the header of %" PRIu64 " bytes does not fit the file of %" PRIu64
                       " bytes",
                       name, *length, size);
    return true;
}

static bool check_metadata(const q3_json *json, const cJSON *metadata, q3_error *err)
{
    const cJSON *item;
    if (!cJSON_IsObject(metadata))
        return q3_json_fail(json, metadata, Q3_MALFORMED, err, "expected an object");
    cJSON_ArrayForEach(item, metadata)
    {
        const char *ignored;
        if (!q3_json_item_string(json, item, &ignored, err))
            return false;
    }
    return true;
}

// One entry of the header: {"dtype": …, "shape": […], "data_offsets": [begin, end]}.
static bool parse_entry(const q3_json *json, const cJSON *entry, q3_safetensor *to, q3_error *err)
{
    const uint64_t integer_max = UINT64_C(1) << 53;
    q3_tensor *tensor = &to->tensor;
    const char *dtype;
    const cJSON *shape, *offsets, *item;
    if (!q3_json_string(json, entry, "dtype", &dtype, err) ||
        !q3_json_array(json, entry, "shape", &shape, err) ||
        !q3_json_array(json, entry, "data_offsets", &offsets, err))
        return false;
    if (cJSON_GetArraySize(entry) != 3)
        return q3_json_fail(json, entry, Q3_MALFORMED, err,
                            "expected dtype, shape and data_offsets only");
    if (!q3_dtype_parse(dtype, &tensor->dtype))
        return q3_json_fail(json, entry, Q3_MALFORMED, err, "unknown dtype \"%s\"", dtype);
    cJSON_ArrayForEach(item, shape)
    {
        if (tensor->rank == Q3_RANK_MAX)
            return q3_json_fail(json, shape, Q3_MALFORMED, err, "expected at most %d dimensions",
                                Q3_RANK_MAX);
        if (!q3_json_item_u64(json, item, 0, integer_max, &tensor->shape[tensor->rank++], err))
            return false;
    }
    if (!q3_tensor_size(tensor))
        return q3_json_fail(json, shape, Q3_MALFORMED, err,
                            "the size in bytes does not fit 64 bits");
    uint64_t bound[2];
    if (cJSON_GetArraySize(offsets) != 2)
        return q3_json_fail(json, offsets, Q3_MALFORMED, err, "expected two offsets");
    for (int i = 0; i < 2; i++)
        if (!q3_json_item_u64(json, cJSON_GetArrayItem(offsets, i), 0, integer_max, &bound[i], err))
            return false;
    if (bound[0] > bound[1])
        return q3_json_fail(json, offsets, Q3_MALFORMED, err,
                            "the end %" PRIu64 " lies before the beginning %" PRIu64, bound[1],
                            bound[0]);
    if (bound[1] - bound[0] != tensor->bytes) {
        char text[Q3_SHAPE_TEXT_MAX];
        return q3_json_fail(json, entry, Q3_MALFORMED, err,
                            "%s of %s takes %" PRIu64 " bytes, the offsets give %" PRIu64,
                            q3_shape_text(tensor->rank, tensor->shape, text), dtype, tensor->bytes,
                            bound[1] - bound[0]);
    }
    to->offset = bound[0];
    return true;
}

static int compare_offsets(const void *a, const void *b)
{
    const q3_safetensor *x = a, *y = b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return (x->tensor.bytes > y->tensor.bytes) - (x->tensor.bytes < y->tensor.bytes);
}

static bool parse_entries(const q3_json *json, q3_safetensors *st, q3_error *err)
{
    const size_t members = (size_t)cJSON_GetArraySize(json->root);
    st->tensors = q3_alloc_zeroed(members, sizeof *st->tensors, err);
    st->names = st->tensors ? q3_alloc_zeroed(members, sizeof *st->names, err) : NULL;
    if (!st->names)
        return false;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, json->root)
    {
        if (strcmp(entry->string, "__metadata__") == 0) {
            if (!check_metadata(json, entry, err))
                return false;
            continue;
        }
        if (*entry->string == 0 || strlen(entry->string) >= Q3_NAME_MAX)
            return q3_json_fail(json, entry, Q3_MALFORMED, err,
                                "expected a name of 1 to %d bytes, found %zu", Q3_NAME_MAX - 1,
                                strlen(entry->string));
        q3_safetensor *to = &st->tensors[st->count];
        if (!parse_entry(json, entry, to, err))
            return false;
        st->names[st->count] = q3_format(err, "%s", entry->string);
        if (!st->names[st->count])
            return false;
        to->tensor.name = st->names[st->count++];
    }
    qsort(st->tensors, st->count, sizeof *st->tensors, compare_offsets);
    uint64_t end = 0;
    for (size_t i = 0; i < st->count; i++) {
        q3_safetensor *tensor = &st->tensors[i];
        if (tensor->offset != end)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: %s: expected data from %" PRIu64 " on, found %" PRIu64
                           " (a hole or an overlap)",
                           json->name, tensor->tensor.name, end, tensor->offset);
        end += tensor->tensor.bytes;
        tensor->offset += st->header_bytes;
    }
    st->file_bytes = st->header_bytes + end;
    return true;
}

bool q3_safetensors_parse(const char *name, q3_bytes head, uint64_t size, q3_safetensors *st,
                          q3_error *err)
{
    *st = (q3_safetensors){0};
    uint64_t length = 0;
    q3_bytes text;
    if (!parse_length(name, head, size, &length, err))
        return false;
    if (!q3_slice(head, LENGTH_BYTES, length, &text))
        return q3_fail(err, Q3_MALFORMED, "%s: expected a header of %" PRIu64 " bytes, found %zu",
                       name, length, head.size - LENGTH_BYTES);
    if (length == 0 || text.data[0] != '{')
        return q3_fail(err, Q3_MALFORMED, "%s: the header does not start with '{'", name);
    st->header_bytes = LENGTH_BYTES + length;
    st->hash = q3_hash128_of(head.data, (size_t)st->header_bytes);
    q3_json json;
    bool ok = q3_json_parse(name, text, &json, err) && parse_entries(&json, st, err);
    q3_json_free(&json);
    if (!ok)
        q3_safetensors_free(st);
    return ok;
}

bool q3_safetensors_check_size(const char *name, const q3_safetensors *st, uint64_t size,
                               q3_error *err)
{
    return st->file_bytes == size ||
           q3_fail(err, Q3_MALFORMED,
                   "%s: the header describes a file of %" PRIu64 " bytes, found %" PRIu64, name,
                   st->file_bytes, size);
}

bool q3_safetensors_load(const char *path, q3_safetensors *st, uint64_t *size, q3_error *err)
{
    *st = (q3_safetensors){0};
    q3_file file;
    if (!q3_file_open(path, &file, err))
        return false;
    uint8_t first[LENGTH_BYTES] = {0};
    uint8_t *head = NULL;
    uint64_t length = 0;
    bool ok = (file.size < LENGTH_BYTES || q3_file_read(&file, 0, first, sizeof first, err)) &&
              parse_length(path, (q3_bytes){first, LENGTH_BYTES}, file.size, &length, err);
    if (ok) {
        const size_t bytes = (size_t)(LENGTH_BYTES + length);
        head = q3_alloc(bytes, 1, err);
        ok = head && q3_file_read(&file, 0, head, bytes, err) &&
             q3_safetensors_parse(path, (q3_bytes){head, bytes}, file.size, st, err);
    }
    *size = file.size;
    free(head);
    q3_file_close(&file);
    return ok;
}

void q3_safetensors_free(q3_safetensors *st)
{
    for (size_t i = 0; i < st->count; i++)
        free(st->names[i]);
    free(st->names);
    free(st->tensors);
    *st = (q3_safetensors){0};
}
