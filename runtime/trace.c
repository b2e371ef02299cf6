// SPDX-License-Identifier: Apache-2.0
#include "trace.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_HEADER = 8, LAYERS_MAX = 1024, EXPERTS_MAX = 4096, BYTE_EXPERTS_MAX = 255 };

static const char magic[8] = {'q', '3', 't', 'r', 'a', 'c', 'e', '\n'};
static const uint64_t trace_bytes_max = UINT64_C(1) << 30;

static uint32_t number_bytes(uint32_t experts)
{
    return experts <= BYTE_EXPERTS_MAX ? 1 : 2;
}

// ---- writing ----

struct q3_trace_writer {
    uint32_t layers, experts, top_k;
    q3_hash128 model;
    uint64_t tokens, batches;
    q3_output output;
    q3_hasher *hasher;
    // The batch in hand, as it will stand in the file:
    uint8_t *batch;
    size_t size, capacity;
    uint32_t batch_tokens, batch_layers;
    bool failed;
    q3_error error;
};

bool q3_trace_create(const char *path, const q3_config *config, q3_hash128 model,
                     q3_trace_writer **result, q3_error *err)
{
    *result = NULL;
    q3_trace_writer *writer = q3_alloc_zeroed(1, sizeof *writer, err);
    if (!writer)
        return false;
    writer->layers = config->num_hidden_layers;
    writer->experts = config->num_experts;
    writer->top_k = config->num_experts_per_tok;
    writer->model = model;
    static const uint8_t header[Q3_TRACE_HEADER];
    const bool ok = (writer->hasher = q3_hasher_create(err)) &&
                    q3_output_create(path, &writer->output, err) &&
                    q3_output_append(&writer->output, header, sizeof header, err);
    if (!ok) {
        q3_trace_abandon(writer);
        return false;
    }
    *result = writer;
    return true;
}

void q3_trace_begin(q3_trace_writer *writer, uint32_t position, uint32_t tokens)
{
    const size_t size = BATCH_HEADER + (size_t)writer->layers * tokens * writer->top_k *
                                           number_bytes(writer->experts);
    writer->size = 0;
    if (writer->failed)
        return;
    if (!q3_grow(&writer->batch, &writer->capacity, size, 1, &writer->error)) {
        writer->failed = true;
        return;
    }
    q3_put_u32(writer->batch, position);
    q3_put_u32(writer->batch + 4, tokens);
    writer->size = BATCH_HEADER;
    writer->batch_tokens = tokens;
    writer->batch_layers = 0;
}

static void end_batch(q3_trace_writer *writer)
{
    q3_hasher_update(writer->hasher, writer->batch, writer->size);
    writer->failed =
        !q3_output_append(&writer->output, writer->batch, writer->size, &writer->error);
    writer->tokens += writer->batch_tokens;
    writer->batches++;
    writer->size = 0;
}

void q3_trace_add(q3_trace_writer *writer, const uint32_t *chosen, const uint32_t *counts)
{
    if (writer->failed)
        return;
    const uint32_t width = number_bytes(writer->experts);
    uint8_t *to = writer->batch + writer->size;
    for (uint32_t t = 0; t < writer->batch_tokens; t++)
        for (uint32_t i = 0; i < writer->top_k; i++, to += width) {
            const uint32_t expert =
                i < counts[t] ? chosen[(size_t)t * writer->top_k + i] : UINT32_MAX;
            to[0] = (uint8_t)expert;
            if (width == 2)
                to[1] = (uint8_t)(expert >> 8);
        }
    writer->size = (size_t)(to - writer->batch);
    if (++writer->batch_layers == writer->layers)
        end_batch(writer);
}

static void put_hash(uint8_t *at, q3_hash128 hash)
{
    q3_put_u64(at, hash.low);
    q3_put_u64(at + 8, hash.high);
}

bool q3_trace_publish(q3_trace_writer *writer, q3_error *err)
{
    uint8_t header[Q3_TRACE_HEADER];
    memcpy(header, magic, sizeof magic);
    q3_put_u32(header + 8, Q3_TRACE_VERSION);
    q3_put_u32(header + 12, writer->layers);
    q3_put_u32(header + 16, writer->experts);
    q3_put_u32(header + 20, writer->top_k);
    put_hash(header + 24, writer->model);
    q3_put_u64(header + 40, writer->tokens);
    q3_put_u64(header + 48, writer->batches);
    put_hash(header + 56, q3_hasher_finish(writer->hasher));
    q3_put_u64(header + 72, q3_hash64(header, 72));
    bool ok = !writer->failed;
    if (!ok)
        *err = writer->error;
    ok = ok && q3_output_write_at(&writer->output, 0, header, sizeof header, err) &&
         q3_output_publish(&writer->output, err);
    q3_trace_abandon(writer);
    return ok;
}

void q3_trace_abandon(q3_trace_writer *writer)
{
    if (!writer)
        return;
    q3_output_abandon(&writer->output);
    q3_hasher_destroy(writer->hasher);
    free(writer->batch);
    free(writer);
}

// ---- reading ----

static bool read_hash(q3_bytes bytes, uint64_t offset, q3_hash128 *hash)
{
    return q3_read_u64(bytes, offset, &hash->low) && q3_read_u64(bytes, offset + 8, &hash->high);
}

static bool read_header(const char *path, q3_bytes bytes, q3_trace *trace, uint64_t *batches,
                        q3_error *err)
{
    uint32_t version;
    uint64_t header_hash;
    q3_hash128 hash;
    q3_bytes header;
    if (!q3_slice(bytes, 0, Q3_TRACE_HEADER, &header))
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected a trace of at least %d bytes, found %zu bytes", path,
                       Q3_TRACE_HEADER, bytes.size);
    if (memcmp(header.data, magic, sizeof magic) != 0)
        return q3_fail(err, Q3_MALFORMED, "%s: not a trace: it does not begin with \"q3trace\"",
                       path);
    q3_read_u32(header, 8, &version);
    if (version != Q3_TRACE_VERSION)
        return q3_fail(err, Q3_MALFORMED, "%s: expected version %d, found %" PRIu32, path,
                       Q3_TRACE_VERSION, version);
    q3_read_u64(header, 72, &header_hash);
    if (header_hash != q3_hash64(header.data, 72))
        return q3_fail(err, Q3_MALFORMED, "%s: the header is damaged: its checksum is wrong", path);
    q3_read_u32(header, 12, &trace->layers);
    q3_read_u32(header, 16, &trace->experts);
    q3_read_u32(header, 20, &trace->top_k);
    read_hash(header, 24, &trace->model);
    q3_read_u64(header, 40, &trace->tokens);
    q3_read_u64(header, 48, batches);
    read_hash(header, 56, &hash);
    if (trace->layers < 1 || trace->layers > LAYERS_MAX || trace->experts < 1 ||
        trace->experts > EXPERTS_MAX || trace->top_k < 1 || trace->top_k > trace->experts)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: %" PRIu32 " layers of %" PRIu32 " experts, %" PRIu32
                       " for a token: not a model's",
                       path, trace->layers, trace->experts, trace->top_k);
    if (!q3_hash128_equal(
            hash, q3_hash128_of(bytes.data + Q3_TRACE_HEADER, bytes.size - Q3_TRACE_HEADER)))
        return q3_fail(err, Q3_MALFORMED, "%s: damaged: the checksum is wrong", path);
    return true;
}

static uint32_t number_at(const q3_trace *trace, const uint8_t *chosen, uint64_t index)
{
    if (number_bytes(trace->experts) == 1)
        return chosen[index];
    return (uint32_t)chosen[2 * index] | (uint32_t)chosen[2 * index + 1] << 8;
}

// A token's numbers ascend below the number of experts; behind the chosen ones all bits are set.
static bool check_token(const q3_trace *trace, const uint8_t *chosen, uint64_t first)
{
    const uint32_t none = number_bytes(trace->experts) == 1 ? UINT8_MAX : UINT16_MAX;
    uint32_t last = 0;
    bool ended = false;
    for (uint32_t i = 0; i < trace->top_k; i++) {
        const uint32_t number = number_at(trace, chosen, first + i);
        if (number == none && i > 0)
            ended = true;
        else if (ended || number >= trace->experts || (i > 0 && number <= last))
            return false;
        last = number;
    }
    return true;
}

static bool read_batch(const char *path, q3_bytes bytes, uint64_t *offset, q3_trace *trace,
                       q3_error *err)
{
    q3_trace_batch batch;
    q3_bytes chosen;
    uint64_t rows, size;
    if (!q3_read_u32(bytes, *offset, &batch.position) ||
        !q3_read_u32(bytes, *offset + 4, &batch.tokens) ||
        !q3_multiply(batch.tokens, trace->layers, &rows) ||
        !q3_multiply(rows, trace->top_k * number_bytes(trace->experts), &size) ||
        !q3_slice(bytes, *offset + BATCH_HEADER, size, &chosen))
        return q3_fail(err, Q3_MALFORMED, "%s: batch %zu does not fit the file", path,
                       trace->batch_count);
    if (batch.tokens == 0)
        return q3_fail(err, Q3_MALFORMED, "%s: batch %zu has no tokens", path, trace->batch_count);
    batch.chosen = chosen.data;
    for (uint64_t i = 0; i < rows; i++)
        if (!check_token(trace, chosen.data, i * trace->top_k))
            return q3_fail(err, Q3_MALFORMED,
                           "%s: batch %zu, layer %" PRIu64 ", token %" PRIu64
                           ": expected ascending experts below %" PRIu32,
                           path, trace->batch_count, i / batch.tokens, i % batch.tokens,
                           trace->experts);
    if (!q3_grow(&trace->batches, &trace->batch_capacity, trace->batch_count + 1,
                 sizeof *trace->batches, err))
        return false;
    trace->batches[trace->batch_count++] = batch;
    *offset += BATCH_HEADER + size;
    return true;
}

static bool read_all(const char *path, q3_bytes bytes, q3_trace *trace, q3_error *err)
{
    uint64_t batches = 0, tokens = 0, offset = Q3_TRACE_HEADER;
    if (!read_header(path, bytes, trace, &batches, err))
        return false;
    while (offset < bytes.size) {
        if (!read_batch(path, bytes, &offset, trace, err))
            return false;
        tokens += trace->batches[trace->batch_count - 1].tokens;
    }
    return (batches == trace->batch_count && tokens == trace->tokens) ||
           q3_fail(err, Q3_MALFORMED,
                   "%s: expected %" PRIu64 " tokens in %" PRIu64 " batches, found %" PRIu64
                   " in %zu",
                   path, trace->tokens, batches, tokens, trace->batch_count);
}

bool q3_trace_read(const char *path, q3_trace *trace, q3_error *err)
{
    size_t size;
    *trace = (q3_trace){0};
    if (!q3_file_load(path, trace_bytes_max, &trace->data, &size, err))
        return false;
    if (read_all(path, (q3_bytes){(const uint8_t *)trace->data, size}, trace, err))
        return true;
    q3_trace_free(trace);
    return false;
}

void q3_trace_free(q3_trace *trace)
{
    free(trace->batches);
    free(trace->data);
    *trace = (q3_trace){0};
}

bool q3_trace_check_model(const q3_trace *trace, const char *path, q3_hash128 model, q3_error *err)
{
    char found[Q3_HASH_TEXT], expected[Q3_HASH_TEXT];
    return q3_hash128_equal(trace->model, model) ||
           q3_fail(err, Q3_MISMATCH, "%s: a trace of another model: expected %s, found %s", path,
                   q3_hash128_text(model, expected), q3_hash128_text(trace->model, found));
}

uint32_t q3_trace_chosen(const q3_trace *trace, const q3_trace_batch *batch, uint32_t layer,
                         uint32_t token, uint32_t *experts)
{
    const uint64_t first = ((uint64_t)layer * batch->tokens + token) * trace->top_k;
    uint32_t count = 0;
    while (count < trace->top_k) {
        const uint32_t number = number_at(trace, batch->chosen, first + count);
        if (number >= trace->experts)
            break;
        experts[count++] = number;
    }
    return count;
}
