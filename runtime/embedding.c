// SPDX-License-Identifier: Apache-2.0
#include "embedding.h"

#include <stdlib.h>
#include <string.h>

enum { CACHE_BYTES = 4 << 20 };

typedef struct decoded_frame {
    uint32_t frame;
    uint64_t last_use; // 0: holds nothing
    uint8_t *raw;
} decoded_frame;

struct q3_embedding {
    q3_pack pack;
    const q3_pack_tensor *tensor;
    const q3_kernels *kernels;
    uint32_t hidden_size;
    decoded_frame *cache;
    uint32_t cache_count;
    uint64_t uses, bytes_read;
    uint8_t *memory;
    uint16_t *row; // one row whose pieces may lie in two frames
};

bool q3_embedding_open(const q3_model *model, const q3_kernels *kernels, q3_embedding **result,
                       q3_error *err)
{
    *result = NULL;
    q3_embedding *embedding = q3_alloc_zeroed(1, sizeof *embedding, err);
    if (!embedding)
        return false;
    embedding->pack.file.fd = -1;
    embedding->kernels = kernels;
    embedding->hidden_size = model->config->hidden_size;
    const q3_place place = {.component = Q3_TEXT, .part = Q3_EMBEDDING};
    if (!q3_model_open_part(model, &place, &embedding->pack, err)) {
        free(embedding);
        return false;
    }
    embedding->tensor = q3_model_embedding(model, &embedding->pack, err);
    if (!embedding->tensor) {
        q3_embedding_close(embedding);
        return false;
    }
    const uint32_t frame_bytes = embedding->tensor->frame_bytes;
    uint32_t count = CACHE_BYTES / frame_bytes;
    count = count < 1 ? 1 : count;
    count = count > embedding->tensor->frame_count ? embedding->tensor->frame_count : count;
    embedding->cache_count = count;
    embedding->memory = q3_alloc(count, frame_bytes, err);
    embedding->cache =
        embedding->memory ? q3_alloc_zeroed(count, sizeof *embedding->cache, err) : NULL;
    embedding->row =
        embedding->cache ? q3_alloc(embedding->hidden_size, sizeof *embedding->row, err) : NULL;
    if (!embedding->row) {
        q3_embedding_close(embedding);
        return false;
    }
    for (uint32_t i = 0; i < count; i++)
        embedding->cache[i].raw = embedding->memory + (size_t)i * frame_bytes;
    *result = embedding;
    return true;
}

void q3_embedding_close(q3_embedding *embedding)
{
    if (!embedding)
        return;
    q3_pack_close(&embedding->pack);
    free(embedding->memory);
    free(embedding->cache);
    free(embedding->row);
    free(embedding);
}

uint64_t q3_embedding_bytes(const q3_embedding *embedding)
{
    return (uint64_t)embedding->cache_count * embedding->tensor->frame_bytes;
}

uint64_t q3_embedding_bytes_read(const q3_embedding *embedding)
{
    return embedding->bytes_read;
}

// The decoded bytes of a frame, from the cache or the file.
static const uint8_t *find_frame(q3_embedding *embedding, uint32_t frame, q3_frame_reader *reader,
                                 q3_error *err)
{
    decoded_frame *oldest = embedding->cache;
    for (uint32_t i = 0; i < embedding->cache_count; i++) {
        decoded_frame *entry = &embedding->cache[i];
        if (entry->last_use && entry->frame == frame) {
            entry->last_use = ++embedding->uses;
            return entry->raw;
        }
        if (entry->last_use < oldest->last_use)
            oldest = entry;
    }
    oldest->last_use = 0;
    if (!q3_reader_frame(reader, &embedding->pack, embedding->tensor, frame, oldest->raw, err))
        return NULL;
    embedding->bytes_read +=
        embedding->pack.frames[embedding->tensor->first_frame + frame].stored_bytes;
    oldest->frame = frame;
    oldest->last_use = ++embedding->uses;
    return oldest->raw;
}

bool q3_embedding_row(q3_embedding *embedding, uint32_t id, q3_frame_reader *reader, float *row,
                      q3_error *err)
{
    const size_t row_bytes = (size_t)embedding->hidden_size * sizeof *embedding->row;
    const uint32_t frame_bytes = embedding->tensor->frame_bytes;
    uint8_t *to = (uint8_t *)embedding->row;
    uint64_t from = (uint64_t)id * row_bytes;
    for (size_t copied = 0; copied < row_bytes;) {
        const uint32_t within = (uint32_t)(from % frame_bytes);
        size_t piece = frame_bytes - within;
        piece = piece > row_bytes - copied ? row_bytes - copied : piece;
        const uint8_t *raw = find_frame(embedding, (uint32_t)(from / frame_bytes), reader, err);
        if (!raw)
            return false;
        memcpy(to + copied, raw + within, piece);
        copied += piece;
        from += piece;
    }
    embedding->kernels->widen(embedding->row, embedding->hidden_size, row);
    return true;
}
