// SPDX-License-Identifier: Apache-2.0
#include "pack.h"

#include "pack_format.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct header {
    uint32_t alignment, tensors, frames;
    uint64_t directory_bytes, file_bytes, directory_hash;
} header;

static bool parse_header(const char *path, q3_bytes head, uint64_t size, header *h, q3_error *err)
{
    if (head.size < HEADER_BYTES)
        return q3_fail(err, Q3_MALFORMED, "%s: expected at least %d bytes, found %zu", path,
                       HEADER_BYTES, head.size);
    if (memcmp(head.data, pack_magic, sizeof pack_magic) != 0)
        return q3_fail(err, Q3_MALFORMED, "%s: not a pack file (wrong magic)", path);
    uint32_t version = 0;
    uint64_t reserved = 0, hash = 0;
    // The reads cannot fail: the 64 bytes are there.
    q3_read_u32(head, HEADER_VERSION, &version);
    q3_read_u32(head, HEADER_ALIGNMENT, &h->alignment);
    q3_read_u32(head, HEADER_TENSORS, &h->tensors);
    q3_read_u32(head, HEADER_FRAMES, &h->frames);
    q3_read_u64(head, HEADER_DIRECTORY_BYTES, &h->directory_bytes);
    q3_read_u64(head, HEADER_FILE_BYTES, &h->file_bytes);
    q3_read_u64(head, HEADER_DIRECTORY_HASH, &h->directory_hash);
    q3_read_u64(head, HEADER_RESERVED, &reserved);
    q3_read_u64(head, HEADER_HASH, &hash);
    if (version != Q3_PACK_VERSION)
        return q3_fail(err, Q3_MALFORMED, "%s: expected pack version %d, found %" PRIu32, path,
                       Q3_PACK_VERSION, version);
    const uint64_t actual = q3_hash64(head.data, HEADER_HASH);
    if (actual != hash)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: the header is damaged: expected hash %016" PRIx64 ", found %016" PRIx64,
                       path, hash, actual);
    if (reserved)
        return q3_fail(err, Q3_MALFORMED, "%s: reserved header bytes are not zero", path);
    if (h->alignment < Q3_FRAME_ALIGNMENT || h->alignment > 1 << 20 ||
        (h->alignment & (h->alignment - 1)))
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected an alignment that is a power of two from %d to 1048576, found "
                       "%" PRIu32,
                       path, Q3_FRAME_ALIGNMENT, h->alignment);
    if (h->file_bytes != size)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected a file of %" PRIu64 " bytes, found %" PRIu64, path,
                       h->file_bytes, size);
    const uint64_t records =
        (uint64_t)h->tensors * TENSOR_BYTES + (uint64_t)h->frames * FRAME_RECORD_BYTES;
    if (h->directory_bytes > DIRECTORY_BYTES_MAX || h->directory_bytes < records ||
        h->directory_bytes > size - HEADER_BYTES)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: a directory of %" PRIu64 " bytes is impossible for %" PRIu32
                       " tensors, %" PRIu32 " frames and a file of %" PRIu64 " bytes",
                       path, h->directory_bytes, h->tensors, h->frames, size);
    return true;
}

// The tensor records and the names behind the frame records.
static bool parse_tensors(const header *h, q3_bytes directory, q3_pack *pack, q3_error *err)
{
    const char *path = pack->file.path;
    const uint64_t names_at =
        (uint64_t)h->tensors * TENSOR_BYTES + (uint64_t)h->frames * FRAME_RECORD_BYTES;
    uint64_t name_at = names_at, frames = 0;
    char *name = pack->names;
    for (uint32_t i = 0; i < h->tensors; i++) {
        q3_pack_tensor *entry = &pack->tensors[i];
        q3_tensor *tensor = &entry->tensor;
        const uint64_t at = (uint64_t)i * TENSOR_BYTES;
        uint16_t name_bytes = 0;
        uint8_t dtype = 0, rank = 0;
        uint64_t reserved = 0;
        q3_bytes name_text;
        q3_read_u16(directory, at + TENSOR_NAME_BYTES, &name_bytes);
        q3_read_u8(directory, at + TENSOR_DTYPE, &dtype);
        q3_read_u8(directory, at + TENSOR_RANK, &rank);
        q3_read_u32(directory, at + TENSOR_FRAME_BYTES, &entry->frame_bytes);
        q3_read_u64(directory, at + TENSOR_HASH, &entry->hash.low);
        q3_read_u64(directory, at + TENSOR_HASH + 8, &entry->hash.high);
        q3_read_u64(directory, at + TENSOR_RESERVED, &reserved);
        if (name_bytes == 0 || name_bytes >= Q3_NAME_MAX ||
            !q3_slice(directory, name_at, name_bytes, &name_text) ||
            memchr(name_text.data, 0, name_bytes))
            return q3_fail(err, Q3_MALFORMED, "%s: the name of tensor %" PRIu32 " is malformed",
                           path, i);
        name_at += name_bytes;
        memcpy(name, name_text.data, name_bytes);
        name[name_bytes] = 0;
        tensor->name = name;
        name += name_bytes + 1;
        tensor->dtype = (q3_dtype)dtype;
        tensor->rank = rank;
        if (!q3_dtype_name(dtype) || rank > Q3_RANK_MAX || reserved)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: %s: dtype %u, rank %u or reserved bytes are malformed", path,
                           tensor->name, dtype, rank);
        for (unsigned d = 0; d < Q3_RANK_MAX; d++) {
            uint64_t extent = 0;
            q3_read_u64(directory, at + TENSOR_SHAPE + 8 * d, &extent);
            if (d < rank)
                tensor->shape[d] = extent;
            else if (extent)
                return q3_fail(err, Q3_MALFORMED, "%s: %s: a dimension beyond the rank is not zero",
                               path, tensor->name);
        }
        if (!q3_tensor_size(tensor))
            return q3_fail(err, Q3_MALFORMED, "%s: %s: the size in bytes does not fit 64 bits",
                           path, tensor->name);
        if (tensor->bytes && (entry->frame_bytes == 0 || entry->frame_bytes > Q3_FRAME_BYTES_MAX))
            return q3_fail(err, Q3_MALFORMED,
                           "%s: %s: expected frames of 1 to %d bytes, found %" PRIu32, path,
                           tensor->name, Q3_FRAME_BYTES_MAX, entry->frame_bytes);
        const uint64_t count = tensor->bytes ? (tensor->bytes - 1) / entry->frame_bytes + 1 : 0;
        if (count > h->frames - frames)
            return q3_fail(err, Q3_MALFORMED,
                           "%s: %s: needs %" PRIu64 " frames, the file has %" PRIu64 " left", path,
                           tensor->name, count, h->frames - frames);
        entry->first_frame = (uint32_t)frames;
        entry->frame_count = (uint32_t)count;
        frames += count;
    }
    if (frames != h->frames || name_at != directory.size)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: the directory has frames or bytes that belong to no tensor", path);
    return true;
}

// The frame records: codec, size, and the place in the file that follows from the sizes before.
static bool parse_frames(const header *h, q3_bytes directory, q3_pack *pack, q3_error *err)
{
    const char *path = pack->file.path;
    const uint64_t records = (uint64_t)h->tensors * TENSOR_BYTES;
    // Cannot wrap: every stored size is below 2^32, and each end is checked against the file's.
    uint64_t end = HEADER_BYTES + h->directory_bytes;
    bool fits = q3_align(end, h->alignment, &end) && end <= h->file_bytes;
    pack->data_offset = end;
    for (uint32_t i = 0; i < h->tensors; i++) {
        const q3_pack_tensor *entry = &pack->tensors[i];
        for (uint32_t k = 0; k < entry->frame_count; k++) {
            q3_frame *frame = &pack->frames[entry->first_frame + k];
            const uint64_t at = records + (uint64_t)(entry->first_frame + k) * FRAME_RECORD_BYTES;
            uint8_t codec = 0, reserved[3] = {0};
            q3_read_u32(directory, at + FRAME_STORED_BYTES, &frame->stored_bytes);
            q3_read_u8(directory, at + FRAME_CODEC, &codec);
            for (unsigned r = 0; r < 3; r++)
                q3_read_u8(directory, at + FRAME_RESERVED + r, &reserved[r]);
            q3_read_u64(directory, at + FRAME_HASH, &frame->hash);
            const uint64_t raw_at = (uint64_t)k * entry->frame_bytes;
            const uint64_t left = entry->tensor.bytes - raw_at;
            frame->raw_bytes = left < entry->frame_bytes ? (uint32_t)left : entry->frame_bytes;
            if (!q3_codec_is_stored(codec))
                return q3_fail(err, Q3_MALFORMED, "%s: %s: frame %" PRIu32 ": unknown codec %u",
                               path, entry->tensor.name, k, codec);
            frame->codec = (q3_codec)codec;
            if (!q3_all_zero(reserved, 3) || !q3_codec_takes(frame->codec, entry->tensor.dtype) ||
                frame->stored_bytes == 0 || frame->stored_bytes > frame->raw_bytes ||
                (frame->codec == Q3_CODEC_RAW && frame->stored_bytes != frame->raw_bytes))
                return q3_fail(err, Q3_MALFORMED,
                               "%s: %s: frame %" PRIu32 ": %" PRIu32 " stored bytes of codec %s "
                               "cannot hold %" PRIu32 " bytes of %s",
                               path, entry->tensor.name, k, frame->stored_bytes,
                               q3_codec_name(codec), frame->raw_bytes,
                               q3_dtype_name(entry->tensor.dtype));
            fits = fits && q3_align(end, k ? Q3_FRAME_ALIGNMENT : h->alignment, &end);
            frame->offset = end;
            end += frame->stored_bytes;
            if (!fits || end > h->file_bytes)
                return q3_fail(err, Q3_MALFORMED,
                               "%s: %s: frame %" PRIu32 " ends at %" PRIu64
                               ", behind the end of the file at %" PRIu64,
                               path, entry->tensor.name, k, end, h->file_bytes);
        }
    }
    if (!q3_align(end, h->alignment, &end) || end != h->file_bytes)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected the file to end behind the last frame, at %" PRIu64
                       ", found %" PRIu64,
                       path, end, h->file_bytes);
    return true;
}

bool q3_pack_parse(const char *path, q3_bytes head, uint64_t size, q3_pack *pack, uint64_t *needed,
                   q3_error *err)
{
    *pack = (q3_pack){.file = {.fd = -1}};
    header h;
    if (!parse_header(path, head, size, &h, err))
        return false;
    *needed = HEADER_BYTES + h.directory_bytes;
    q3_bytes directory;
    if (!q3_slice(head, HEADER_BYTES, h.directory_bytes, &directory))
        return q3_fail(err, Q3_MALFORMED,
                       "%s: expected %" PRIu64 " bytes of header and directory, found %zu", path,
                       *needed, head.size);
    const uint64_t actual = q3_hash64(directory.data, directory.size);
    if (actual != h.directory_hash)
        return q3_fail(err, Q3_MALFORMED,
                       "%s: the directory is damaged: expected hash %016" PRIx64
                       ", found %016" PRIx64,
                       path, h.directory_hash, actual);
    pack->size = size;
    pack->root = q3_hash128_of(head.data, (size_t)*needed);
    pack->tensor_count = h.tensors;
    pack->frame_count = h.frames;
    pack->file.path = q3_format(err, "%s", path);
    const bool ok = pack->file.path &&
                    (pack->tensors = q3_alloc_zeroed(h.tensors, sizeof *pack->tensors, err)) &&
                    (pack->frames = q3_alloc_zeroed(h.frames, sizeof *pack->frames, err)) &&
                    // Every name of at most directory.size bytes in all, and a terminator each.
                    (pack->names = q3_alloc(directory.size + h.tensors, 1, err)) &&
                    parse_tensors(&h, directory, pack, err) &&
                    parse_frames(&h, directory, pack, err);
    if (!ok)
        q3_pack_close(pack);
    return ok;
}

bool q3_pack_open(const char *path, q3_pack *pack, q3_error *err)
{
    *pack = (q3_pack){.file = {.fd = -1}};
    q3_file file;
    if (!q3_file_open(path, &file, err))
        return false;
    // One page holds header and directory of all but the largest files.
    size_t have = file.size < Q3_PACK_ALIGNMENT ? (size_t)file.size : Q3_PACK_ALIGNMENT;
    uint8_t *head = q3_alloc(have, 1, err);
    bool ok = head && q3_file_read(&file, 0, head, have, err);
    header h;
    if (ok && parse_header(path, (q3_bytes){head, have}, file.size, &h, err)) {
        if (HEADER_BYTES + h.directory_bytes > have) {
            have = (size_t)(HEADER_BYTES + h.directory_bytes);
            free(head);
            head = q3_alloc(have, 1, err);
            ok = head && q3_file_read(&file, 0, head, have, err);
        }
        uint64_t needed;
        ok = ok && q3_pack_parse(path, (q3_bytes){head, have}, file.size, pack, &needed, err);
    } else {
        ok = false;
    }
    free(head);
    if (!ok) {
        q3_file_close(&file);
        return false;
    }
    free(pack->file.path);
    pack->file = file;
    return true;
}

void q3_pack_close(q3_pack *pack)
{
    if (pack->file.fd >= 0)
        q3_file_close(&pack->file);
    else
        free(pack->file.path);
    free(pack->tensors);
    free(pack->frames);
    free(pack->names);
    *pack = (q3_pack){.file = {.fd = -1}};
}

const q3_pack_tensor *q3_pack_find(const q3_pack *pack, const char *name)
{
    for (uint32_t i = 0; i < pack->tensor_count; i++)
        if (strcmp(pack->tensors[i].tensor.name, name) == 0)
            return &pack->tensors[i];
    return NULL;
}

static bool check_hash(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                       const void *stored, q3_error *err)
{
    const q3_frame *frame = &pack->frames[tensor->first_frame + index];
    const uint64_t hash = q3_hash64(stored, frame->stored_bytes);
    if (hash == frame->hash)
        return true;
    return q3_fail(err, Q3_MALFORMED,
                   "%s: %s: frame %" PRIu32 " at %" PRIu64 " is damaged: expected hash "
                   "%016" PRIx64 ", found %016" PRIx64,
                   pack->file.path, tensor->tensor.name, index, frame->offset, frame->hash, hash);
}

bool q3_pack_decode_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                          q3_coder *coder, const void *stored, void *raw, q3_error *err)
{
    const q3_frame *frame = &pack->frames[tensor->first_frame + index];
    q3_error reason;
    if (q3_codec_decode(coder, frame->codec, stored, frame->stored_bytes, raw, frame->raw_bytes,
                        &reason))
        return true;
    return q3_fail(err, (enum q3_exit)reason.code, "%s: %s: frame %" PRIu32 ": %s", pack->file.path,
                   tensor->tensor.name, index, reason.message);
}

bool q3_pack_load_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                        void *stored, q3_error *err)
{
    const q3_frame *frame = &pack->frames[tensor->first_frame + index];
    return q3_file_read(&pack->file, frame->offset, stored, frame->stored_bytes, err) &&
           check_hash(pack, tensor, index, stored, err);
}

bool q3_pack_read_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                        q3_coder *coder, void *stored, void *raw, q3_error *err)
{
    const q3_frame *frame = &pack->frames[tensor->first_frame + index];
    // Raw frames need no second buffer.
    const bool is_raw = frame->codec == Q3_CODEC_RAW;
    void *target = is_raw ? raw : stored;
    return q3_pack_load_frame(pack, tensor, index, target, err) &&
           (is_raw || q3_pack_decode_frame(pack, tensor, index, coder, stored, raw, err));
}

bool q3_pack_check_image(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                         const uint8_t *image, q3_error *err)
{
    return check_hash(pack, tensor, index, image + pack->frames[tensor->first_frame + index].offset,
                      err);
}

bool q3_pack_read_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_coder *coder,
                         void *stored, void *raw, q3_error *err)
{
    uint8_t *to = raw;
    for (uint32_t i = 0; i < tensor->frame_count; i++)
        if (!q3_pack_read_frame(pack, tensor, i, coder, stored,
                                to + (size_t)i * tensor->frame_bytes, err))
            return false;
    return true;
}

bool q3_pack_check_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_hash128 hash,
                          q3_error *err)
{
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT];
    if (q3_hash128_equal(hash, tensor->hash))
        return true;
    return q3_fail(err, Q3_MALFORMED, "%s: %s: expected raw bytes of hash %s, found %s",
                   pack->file.path, tensor->tensor.name, q3_hash128_text(tensor->hash, expected),
                   q3_hash128_text(hash, found));
}

size_t q3_pack_longest_frame(const q3_pack *pack)
{
    size_t longest = 0;
    for (uint32_t i = 0; i < pack->frame_count; i++)
        if (pack->frames[i].stored_bytes > longest)
            longest = pack->frames[i].stored_bytes;
    return longest;
}

// The bytes from `at` of the file on.
static bool check_zero(const q3_pack *pack, uint64_t at, const uint8_t *data, size_t size,
                       q3_error *err)
{
    if (q3_all_zero(data, size))
        return true;
    size_t first = 0;
    while (data[first] == 0)
        first++;
    return q3_fail(err, Q3_MALFORMED, "%s: byte %" PRIu64 " is padding, expected 0, found %u",
                   pack->file.path, at + first, data[first]);
}

bool q3_pack_check_lead(const q3_pack *pack, q3_error *err)
{
    uint64_t names = 0;
    for (uint32_t i = 0; i < pack->tensor_count; i++)
        names += strlen(pack->tensors[i].tensor.name);
    uint64_t at = q3_pack_head_bytes(pack->tensor_count, pack->frame_count, names);
    const uint64_t end = pack->frame_count ? pack->frames[0].offset : pack->size;
    uint8_t block[4096];
    while (at < end) {
        const size_t size = end - at < sizeof block ? (size_t)(end - at) : sizeof block;
        if (!q3_file_read(&pack->file, at, block, size, err) ||
            !check_zero(pack, at, block, size, err))
            return false;
        at += size;
    }
    return true;
}

uint64_t q3_pack_span(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index)
{
    const uint32_t frame = tensor->first_frame + index;
    const uint64_t end =
        frame + 1 < pack->frame_count ? pack->frames[frame + 1].offset : pack->size;
    return end - pack->frames[frame].offset;
}

bool q3_pack_check_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t index,
                         void *stored, q3_error *err)
{
    const q3_frame *frame = &pack->frames[tensor->first_frame + index];
    const size_t span = (size_t)q3_pack_span(pack, tensor, index);
    return q3_file_read(&pack->file, frame->offset, stored, span, err) &&
           check_hash(pack, tensor, index, stored, err) &&
           check_zero(pack, frame->offset + frame->stored_bytes,
                      (const uint8_t *)stored + frame->stored_bytes, span - frame->stored_bytes,
                      err);
}
