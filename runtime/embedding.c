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

static bool read_row(q3_embedding *embedding, uint32_t id, q3_frame_reader *reader, float *row,
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

// A token of a batch, and the frame that its row is in.
typedef struct wanted_row {
    uint32_t frame, token;
} wanted_row;

static int by_frame(const void *a, const void *b)
{
    const wanted_row *one = a, *other = b;
    return (one->frame > other->frame) - (one->frame < other->frame);
}

typedef struct rows_run {
    const q3_embedding *embedding;
    const uint32_t *ids;
    const wanted_row *wanted;
    const uint32_t *first; // of each frame's rows in `wanted`, and the end behind the last
    float *rows;
} rows_run;

static bool read_frame_rows(void *context, uint32_t index, q3_frame_reader *reader, q3_error *err)
{
    const rows_run *run = context;
    const q3_embedding *embedding = run->embedding;
    const size_t hidden = embedding->hidden_size;
    const uint32_t frame_rows = embedding->tensor->frame_bytes / (uint32_t)(2 * hidden);
    const wanted_row *wanted = run->wanted + run->first[index];
    if (!q3_reader_frame(reader, &embedding->pack, embedding->tensor, wanted->frame, reader->block,
                         err))
        return false;
    for (; wanted < run->wanted + run->first[index + 1]; wanted++)
        embedding->kernels->widen((const uint16_t *)reader->block +
                                      run->ids[wanted->token] % frame_rows * hidden,
                                  hidden, run->rows + wanted->token * hidden);
    return true;
}

// The rows of many tokens, the frames on all threads.
static bool read_rows(q3_embedding *embedding, const uint32_t *ids, uint32_t count,
                      const q3_team *team, float *rows, q3_error *err)
{
    const uint32_t frame_rows = embedding->tensor->frame_bytes / (2 * embedding->hidden_size);
    wanted_row *wanted = q3_alloc(count, sizeof *wanted, err);
    uint32_t *first = wanted ? q3_alloc(count + 1, sizeof *first, err) : NULL;
    bool ok = first != NULL;
    if (ok) {
        uint32_t frames = 0;
        for (uint32_t i = 0; i < count; i++)
            wanted[i] = (wanted_row){.frame = ids[i] / frame_rows, .token = i};
        qsort(wanted, count, sizeof *wanted, by_frame);
        for (uint32_t i = 0; i < count; i++)
            if (i == 0 || wanted[i].frame != wanted[i - 1].frame)
                first[frames++] = i;
        first[frames] = count;
        rows_run run = {
            .embedding = embedding, .ids = ids, .wanted = wanted, .first = first, .rows = rows};
        ok = q3_team_try(team, read_frame_rows, &run, frames, err);
        for (uint32_t i = 0; ok && i < frames; i++)
            embedding->bytes_read +=
                embedding->pack.frames[embedding->tensor->first_frame + wanted[first[i]].frame]
                    .stored_bytes;
    }
    free(wanted);
    free(first);
    return ok;
}

bool q3_embedding_rows(q3_embedding *embedding, const uint32_t *ids, uint32_t count,
                       const q3_team *team, float *rows, q3_error *err)
{
    enum { A_FEW = 4 };
    const uint32_t frame_bytes = embedding->tensor->frame_bytes;
    if (count > A_FEW && frame_bytes <= Q3_BLOCK_BYTES_MAX &&
        frame_bytes % (2 * embedding->hidden_size) == 0)
        return read_rows(embedding, ids, count, team, rows, err);
    for (uint32_t i = 0; i < count; i++)
        if (!read_row(embedding, ids[i], &team->readers[0],
                      rows + (size_t)i * embedding->hidden_size, err))
            return false;
    return true;
}
