// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include "base/bytes.h"
#include "base/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8 };

bool q3_safetensors_header_begin(q3_safetensors_header *header, q3_error *err)
{
    static const uint8_t length[LENGTH_BYTES] = {0};
    header->data_bytes = 0;
    if (!q3_memory_open(&header->text, err))
        return false;
    fwrite(length, 1, sizeof length, header->text.stream);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", header->text.stream);
    return true;
}

void q3_safetensors_header_add(q3_safetensors_header *header, const q3_tensor *tensor)
{
    FILE *stream = header->text.stream;
    fputs(",\"", stream);
    for (const char *c = tensor->name; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(stream, "\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            fprintf(stream, "\\u%04x", (unsigned)*c);
        else
            fputc(*c, stream);
    }
    fprintf(stream, "\":{\"dtype\":\"%s\",\"shape\":[", q3_dtype_name(tensor->dtype));
    for (unsigned d = 0; d < tensor->rank; d++)
        fprintf(stream, "%s%" PRIu64, d ? "," : "", tensor->shape[d]);
    fprintf(stream, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", header->data_bytes,
            header->data_bytes + tensor->bytes);
    header->data_bytes += tensor->bytes;
}

bool q3_safetensors_header_finish(q3_safetensors_header *header, char **data, size_t *size,
                                  q3_error *err)
{
    q3_memory *text = &header->text;
    fputc('}', text->stream);
    fflush(text->stream); // so that text->size is right
    fprintf(text->stream, "%*s", (int)(7 - (text->size + 7) % 8), "");
    if (!q3_memory_close(text, err))
        return false;
    q3_put_u64((uint8_t *)text->data, text->size - LENGTH_BYTES);
    *data = text->data;
    *size = text->size;
    return true;
}

const char *q3_safetensors_shard_name(uint32_t shard, uint32_t count,
                                      char out[Q3_SAFETENSORS_NAME_MAX])
{
    if (count == 1)
        snprintf(out, Q3_SAFETENSORS_NAME_MAX, "model.safetensors");
    else
        snprintf(out, Q3_SAFETENSORS_NAME_MAX, "model-%05" PRIu32 "-of-%05" PRIu32 ".safetensors",
                 shard + 1, count);
    return out;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const q3_safetensors_entry *)a)->name, ((const q3_safetensors_entry *)b)->name);
}

bool q3_safetensors_publish_index(const char *directory, q3_safetensors_entry *entries,
                                  size_t count, q3_error *err)
{
    char *path = q3_path_join(directory, Q3_SAFETENSORS_INDEX, err);
    if (!path)
        return false;
    uint64_t parameters = 0, bytes = 0;
    for (size_t i = 0; i < count; i++) {
        parameters += entries[i].bytes / q3_dtype_size(entries[i].dtype);
        bytes += entries[i].bytes;
    }
    if (count)
        qsort(entries, count, sizeof *entries, compare_names);
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_begin_object(&json, "metadata");
    q3_json_put_u64(&json, "total_parameters", parameters);
    q3_json_put_u64(&json, "total_size", bytes);
    q3_json_end_object(&json);
    q3_json_begin_object(&json, "weight_map");
    for (size_t i = 0; i < count; i++)
        if (entries[i].shard)
            q3_json_put_string(&json, entries[i].name, entries[i].shard);
    q3_json_end_object(&json);
    q3_json_end_object(&json);
    const bool ok = q3_json_finish(&json, err) && q3_file_publish(path, json.text, json.size, err);
    q3_json_writer_free(&json);
    free(path);
    return ok;
}
