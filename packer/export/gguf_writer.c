// SPDX-License-Identifier: Apache-2.0
#include "gguf_writer.h"

#include <stdlib.h>
#include <string.h>

// ggml's numbers of the types that are written (enum ggml_type in the specification).
enum { GGML_F32 = 0, GGML_BF16 = 30 };

static void put_u32(FILE *stream, uint32_t value)
{
    uint8_t bytes[4];
    q3_put_u32(bytes, value);
    fwrite(bytes, 1, sizeof bytes, stream);
}

static void put_u64(FILE *stream, uint64_t value)
{
    uint8_t bytes[8];
    q3_put_u64(bytes, value);
    fwrite(bytes, 1, sizeof bytes, stream);
}

static void put_string(FILE *stream, const void *data, size_t size)
{
    put_u64(stream, size);
    fwrite(data, 1, size, stream);
}

bool q3_gguf_begin(q3_gguf_writer *writer, q3_error *err)
{
    *writer = (q3_gguf_writer){0};
    if (q3_memory_open(&writer->metadata, err) && q3_memory_open(&writer->infos, err))
        return true;
    q3_gguf_abandon(writer);
    return false;
}

static void abandon(q3_memory *memory)
{
    q3_error ignored;
    if (memory->stream)
        q3_memory_close(memory, &ignored);
    free(memory->data);
}

void q3_gguf_abandon(q3_gguf_writer *writer)
{
    abandon(&writer->metadata);
    abandon(&writer->infos);
    *writer = (q3_gguf_writer){0};
}

static FILE *begin_pair(q3_gguf_writer *writer, const char *key, q3_gguf_type type)
{
    FILE *stream = writer->metadata.stream;
    writer->pairs++;
    put_string(stream, key, strlen(key));
    put_u32(stream, type);
    return stream;
}

void q3_gguf_put_u32(q3_gguf_writer *writer, const char *key, uint32_t value)
{
    put_u32(begin_pair(writer, key, Q3_GGUF_U32), value);
}

void q3_gguf_put_f32(q3_gguf_writer *writer, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_u32(begin_pair(writer, key, Q3_GGUF_F32), bits);
}

void q3_gguf_put_bool(q3_gguf_writer *writer, const char *key, bool value)
{
    fputc(value, begin_pair(writer, key, Q3_GGUF_BOOL));
}

void q3_gguf_put_string(q3_gguf_writer *writer, const char *key, const char *value)
{
    put_string(begin_pair(writer, key, Q3_GGUF_STRING), value, strlen(value));
}

void q3_gguf_begin_array(q3_gguf_writer *writer, const char *key, q3_gguf_type type, uint64_t count)
{
    FILE *stream = begin_pair(writer, key, Q3_GGUF_ARRAY);
    put_u32(stream, type);
    put_u64(stream, count);
}

void q3_gguf_add_string(q3_gguf_writer *writer, q3_bytes value)
{
    put_string(writer->metadata.stream, value.data, value.size);
}

void q3_gguf_add_i32(q3_gguf_writer *writer, int32_t value)
{
    put_u32(writer->metadata.stream, (uint32_t)value);
}

static uint64_t aligned(uint64_t offset)
{
    return (offset + Q3_GGUF_ALIGNMENT - 1) / Q3_GGUF_ALIGNMENT * Q3_GGUF_ALIGNMENT;
}

uint64_t q3_gguf_add_tensor(q3_gguf_writer *writer, const q3_tensor *tensor)
{
    FILE *stream = writer->infos.stream;
    const uint64_t offset = aligned(writer->data_bytes);
    writer->tensors++;
    writer->data_bytes = offset + tensor->bytes;
    put_string(stream, tensor->name, strlen(tensor->name));
    put_u32(stream, tensor->rank);
    for (unsigned d = tensor->rank; d-- > 0;)
        put_u64(stream, tensor->shape[d]);
    put_u32(stream, tensor->dtype == Q3_F32 ? GGML_F32 : GGML_BF16);
    put_u64(stream, offset);
    return offset;
}

bool q3_gguf_finish(q3_gguf_writer *writer, char **head, size_t *size, q3_error *err)
{
    q3_memory whole;
    bool ok = q3_memory_close(&writer->metadata, err) && q3_memory_close(&writer->infos, err) &&
              q3_memory_open(&whole, err);
    if (ok) {
        FILE *stream = whole.stream;
        fwrite("GGUF", 1, 4, stream);
        put_u32(stream, Q3_GGUF_VERSION);
        put_u64(stream, writer->tensors);
        put_u64(stream, writer->pairs);
        fwrite(writer->metadata.data, 1, writer->metadata.size, stream);
        fwrite(writer->infos.data, 1, writer->infos.size, stream);
        fflush(stream); // so that whole.size is right
        for (uint64_t at = whole.size, end = aligned(at); at < end; at++)
            fputc(0, stream);
        ok = q3_memory_close(&whole, err);
    }
    if (ok) {
        *head = whole.data;
        *size = whole.size;
    }
    q3_gguf_abandon(writer);
    return ok;
}
