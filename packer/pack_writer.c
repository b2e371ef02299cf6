// SPDX-License-Identifier: Apache-2.0
#include "pack.h"

#include "pack_format.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

uint32_t q3_frame_cut(const q3_tensor *tensor)
{
    if (tensor->bytes <= Q3_FRAME_BYTES)
        return (uint32_t)tensor->bytes;
    // A row is what one product reads: everything behind the first dimension.
    const uint64_t row = tensor->rank && tensor->shape[0] ? tensor->bytes / tensor->shape[0] : 0;
    if (row && row <= Q3_FRAME_BYTES / Q3_FRAME_ALIGNMENT) {
        // So many rows are a multiple of the alignment whatever the row's size.
        const uint64_t unit = row * Q3_FRAME_ALIGNMENT;
        return (uint32_t)(Q3_FRAME_BYTES / unit * unit);
    }
    if (row && row <= Q3_FRAME_BYTES && row % Q3_FRAME_ALIGNMENT == 0)
        return (uint32_t)(Q3_FRAME_BYTES / row * row);
    return Q3_FRAME_BYTES;
}

uint32_t q3_frame_count(const q3_tensor *tensor)
{
    return tensor->bytes ? (uint32_t)((tensor->bytes - 1) / q3_frame_cut(tensor) + 1) : 0;
}

uint64_t q3_pack_head_bytes(uint64_t tensors, uint64_t frames, uint64_t name_bytes)
{
    return HEADER_BYTES + tensors * TENSOR_BYTES + frames * FRAME_RECORD_BYTES + name_bytes;
}

struct q3_pack_writer {
    q3_output output;
    q3_hasher *hasher; // over the raw bytes of the tensor at work
    uint8_t *head;     // header and directory
    size_t head_bytes;
    uint64_t data_offset;
    q3_tensor *tensors;
    uint32_t tensor_count, frame_count;
    uint32_t tensor, frame, total_frame; // the next frame, in its tensor and in the file
};

static void skip_empty(q3_pack_writer *writer);

bool q3_pack_writer_create(const char *path, const q3_tensor *tensors, uint32_t count,
                           q3_pack_writer **result, q3_error *err)
{
    *result = NULL;
    uint64_t names = 0, frames = 0;
    for (uint32_t i = 0; i < count; i++) {
        names += strlen(tensors[i].name);
        frames += q3_frame_count(&tensors[i]);
    }
    const uint64_t head_bytes = q3_pack_head_bytes(count, frames, names);
    if (head_bytes > DIRECTORY_BYTES_MAX)
        return q3_fail(err, Q3_FAILED, "%s: a directory of %" PRIu64 " bytes is too large", path,
                       head_bytes);
    q3_pack_writer *writer = q3_alloc_zeroed(1, sizeof *writer, err);
    if (!writer)
        return false;
    writer->output.fd = -1;
    writer->head_bytes = (size_t)head_bytes;
    writer->tensor_count = count;
    writer->frame_count = (uint32_t)frames;
    writer->tensors = q3_alloc(count, sizeof *writer->tensors, err);
    writer->head = writer->tensors ? q3_alloc_zeroed(writer->head_bytes, 1, err) : NULL;
    writer->hasher = writer->head ? q3_hasher_create(err) : NULL;
    if (!writer->hasher || !q3_output_create(path, &writer->output, err)) {
        q3_pack_writer_abandon(writer);
        return false;
    }
    if (count)
        memcpy(writer->tensors, tensors, count * sizeof *tensors);
    uint8_t *name =
        writer->head + HEADER_BYTES + (size_t)count * TENSOR_BYTES + frames * FRAME_RECORD_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *record = writer->head + HEADER_BYTES + (size_t)i * TENSOR_BYTES;
        const size_t length = strlen(tensors[i].name);
        q3_put_u16(record + TENSOR_NAME_BYTES, (uint16_t)length);
        record[TENSOR_DTYPE] = (uint8_t)tensors[i].dtype;
        record[TENSOR_RANK] = (uint8_t)tensors[i].rank;
        q3_put_u32(record + TENSOR_FRAME_BYTES, q3_frame_cut(&tensors[i]));
        for (unsigned d = 0; d < tensors[i].rank; d++)
            q3_put_u64(record + TENSOR_SHAPE + 8 * d, tensors[i].shape[d]);
        memcpy(name, tensors[i].name, length);
        writer->tensors[i].name = NULL; // the caller's; the copy is in the directory
        name += length;
    }
    q3_align(writer->head_bytes, Q3_PACK_ALIGNMENT, &writer->data_offset);
    writer->output.size = writer->data_offset;
    skip_empty(writer);
    *result = writer;
    return true;
}

// Closes the hash of the tensor at work and goes to the next.
static void finish_tensor(q3_pack_writer *writer)
{
    uint8_t *record = writer->head + HEADER_BYTES + (size_t)writer->tensor * TENSOR_BYTES;
    const q3_hash128 hash = q3_hasher_finish(writer->hasher);
    q3_put_u64(record + TENSOR_HASH, hash.low);
    q3_put_u64(record + TENSOR_HASH + 8, hash.high);
    q3_hasher_reset(writer->hasher);
    writer->tensor++;
    writer->frame = 0;
}

// Tensors without bytes have no frame that would finish them.
static void skip_empty(q3_pack_writer *writer)
{
    while (writer->tensor < writer->tensor_count && writer->tensors[writer->tensor].bytes == 0)
        finish_tensor(writer);
}

// Pads with zeros up to a multiple of `alignment`.
static bool pad(q3_output *output, uint64_t alignment, q3_error *err)
{
    static const uint8_t zeros[Q3_PACK_ALIGNMENT];
    uint64_t end;
    q3_align(output->size, alignment, &end);
    return q3_output_append(output, zeros, (size_t)(end - output->size), err);
}

bool q3_pack_writer_add(q3_pack_writer *writer, q3_codec codec, const void *raw, size_t raw_bytes,
                        const void *stored, size_t stored_bytes, uint64_t hash, q3_error *err)
{
    if (writer->tensor == writer->tensor_count)
        return q3_fail(err, Q3_FAILED, "%s: a frame too many", writer->output.path);
    const q3_tensor *tensor = &writer->tensors[writer->tensor];
    if (!pad(&writer->output, writer->frame ? Q3_FRAME_ALIGNMENT : Q3_PACK_ALIGNMENT, err) ||
        !q3_output_append(&writer->output, stored, stored_bytes, err))
        return false;
    uint8_t *record = writer->head + HEADER_BYTES + (size_t)writer->tensor_count * TENSOR_BYTES +
                      (size_t)writer->total_frame * FRAME_RECORD_BYTES;
    q3_put_u32(record + FRAME_STORED_BYTES, (uint32_t)stored_bytes);
    record[FRAME_CODEC] = (uint8_t)codec;
    q3_put_u64(record + FRAME_HASH, hash);
    q3_hasher_update(writer->hasher, raw, raw_bytes);
    writer->frame++;
    writer->total_frame++;
    if (writer->frame == q3_frame_count(tensor)) {
        finish_tensor(writer);
        skip_empty(writer);
    }
    return true;
}

static void release(q3_pack_writer *writer)
{
    q3_hasher_destroy(writer->hasher);
    free(writer->head);
    free(writer->tensors);
    free(writer);
}

// Is what the disk gives back what was meant? A disk that lies would be noticed only when the
// source is gone.
static bool read_back(const q3_pack_writer *writer, q3_hash128 root, q3_error *err)
{
    q3_pack pack;
    if (!q3_pack_open(writer->output.part_path, &pack, err))
        return false;
    bool ok = (q3_hash128_equal(pack.root, root) ||
               q3_fail(err, Q3_FAILED, "%s: the disk gives back another directory",
                       writer->output.part_path)) &&
              q3_pack_check_lead(&pack, err);
    uint8_t *stored = NULL;
    size_t capacity = 0;
    for (uint32_t t = 0; ok && t < pack.tensor_count; t++)
        for (uint32_t f = 0; ok && f < pack.tensors[t].frame_count; f++)
            ok = q3_grow(&stored, &capacity, (size_t)q3_pack_span(&pack, &pack.tensors[t], f), 1,
                         err) &&
                 q3_pack_check_frame(&pack, &pack.tensors[t], f, stored, err);
    // Whoever reads the file next reads it from the disk; the memory is for others meanwhile.
    posix_fadvise(pack.file.fd, 0, 0, POSIX_FADV_DONTNEED);
    free(stored);
    q3_pack_close(&pack);
    return ok;
}

bool q3_pack_writer_publish(q3_pack_writer *writer, uint64_t *size, q3_hash128 *root, q3_error *err)
{
    bool ok = writer->total_frame == writer->frame_count ||
              q3_fail(err, Q3_FAILED, "%s: %" PRIu32 " frames are missing", writer->output.path,
                      writer->frame_count - writer->total_frame);
    ok = ok && pad(&writer->output, Q3_PACK_ALIGNMENT, err);
    if (ok) {
        uint8_t *head = writer->head;
        memcpy(head, pack_magic, sizeof pack_magic);
        q3_put_u32(head + HEADER_VERSION, Q3_PACK_VERSION);
        q3_put_u32(head + HEADER_ALIGNMENT, Q3_PACK_ALIGNMENT);
        q3_put_u32(head + HEADER_TENSORS, writer->tensor_count);
        q3_put_u32(head + HEADER_FRAMES, writer->frame_count);
        q3_put_u64(head + HEADER_DIRECTORY_BYTES, writer->head_bytes - HEADER_BYTES);
        q3_put_u64(head + HEADER_FILE_BYTES, writer->output.size);
        q3_put_u64(head + HEADER_DIRECTORY_HASH,
                   q3_hash64(head + HEADER_BYTES, writer->head_bytes - HEADER_BYTES));
        q3_put_u64(head + HEADER_HASH, q3_hash64(head, HEADER_HASH));
        *size = writer->output.size;
        *root = q3_hash128_of(head, writer->head_bytes);
        ok = q3_output_write_at(&writer->output, 0, head, writer->head_bytes, err) &&
             q3_output_sync(&writer->output, err) && read_back(writer, *root, err);
    }
    if (ok)
        ok = q3_output_publish(&writer->output, err);
    else
        q3_output_abandon(&writer->output);
    release(writer);
    return ok;
}

void q3_pack_writer_abandon(q3_pack_writer *writer)
{
    if (!writer)
        return;
    q3_output_abandon(&writer->output);
    release(writer);
}
