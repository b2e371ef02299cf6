// SPDX-License-Identifier: Apache-2.0
//
// Pack files with each codec. The input is a whole pack file; sizes and checksums of the header,
// the directory and every frame are put right first, so that what they guard is reached. Then all
// of it is read: every frame, every tensor, the padding.
#include "pack.h"
#include "fuzz.h"
#include "pack_format.h"

#include <stdio.h>
#include <stdlib.h>

// Frames and tensors beyond this are skipped: they would only cost time.
enum { BYTES_MAX = 1 << 18 };

static void sign_directory(uint8_t *file, size_t size)
{
    uint64_t directory_bytes = 0;
    q3_read_u64((q3_bytes){file, size}, HEADER_DIRECTORY_BYTES, &directory_bytes);
    if (directory_bytes <= size - HEADER_BYTES)
        q3_put_u64(file + HEADER_DIRECTORY_HASH,
                   q3_hash64(file + HEADER_BYTES, (size_t)directory_bytes));
    q3_put_u64(file + HEADER_FILE_BYTES, size);
    q3_put_u64(file + HEADER_HASH, q3_hash64(file, HEADER_HASH));
}

// Signs every frame of a file whose directory is accepted.
static bool sign_frames(uint8_t *file, size_t size)
{
    q3_pack pack;
    q3_error err;
    uint64_t needed = 0;
    sign_directory(file, size);
    if (!q3_pack_parse("input", (q3_bytes){file, size}, size, &pack, &needed, &err))
        return false;
    FUZZ_CHECK(needed <= size);
    uint8_t *records = file + HEADER_BYTES + (size_t)pack.tensor_count * TENSOR_BYTES;
    for (uint32_t i = 0; i < pack.frame_count; i++) {
        const q3_frame *frame = &pack.frames[i];
        FUZZ_CHECK(frame->offset >= needed && frame->offset <= size &&
                   frame->stored_bytes <= size - frame->offset);
        q3_put_u64(records + (size_t)i * FRAME_RECORD_BYTES + FRAME_HASH,
                   q3_hash64(file + frame->offset, frame->stored_bytes));
    }
    q3_pack_close(&pack);
    sign_directory(file, size);
    return true;
}

static void read_pack(const q3_pack *pack)
{
    static q3_coder *coder;
    q3_error err;
    if (!coder)
        coder = q3_coder_create(&err);
    FUZZ_CHECK(coder != NULL);
    q3_pack_check_lead(pack, &err);
    uint32_t frames = 0;
    for (uint32_t t = 0; t < pack->tensor_count; t++) {
        const q3_pack_tensor *tensor = &pack->tensors[t];
        const q3_pack_tensor *found = q3_pack_find(pack, tensor->tensor.name);
        FUZZ_CHECK(found && strcmp(found->tensor.name, tensor->tensor.name) == 0);
        FUZZ_CHECK(tensor->first_frame == frames);
        frames += tensor->frame_count;
        uint64_t raw_bytes = 0;
        bool decoded = true;
        for (uint32_t f = 0; f < tensor->frame_count; f++) {
            const q3_frame *frame = &pack->frames[tensor->first_frame + f];
            raw_bytes += frame->raw_bytes;
            if (frame->raw_bytes > BYTES_MAX)
                continue;
            // Memory of exactly the sizes, so that a sanitizer sees what goes beyond.
            void *stored = malloc(frame->stored_bytes), *raw = malloc(frame->raw_bytes);
            FUZZ_CHECK(stored && raw);
            const bool read = q3_pack_read_frame(pack, tensor, f, coder, stored, raw, &err);
            FUZZ_CHECK(read || frame->codec != Q3_CODEC_RAW);
            decoded = decoded && read;
            free(stored);
            // The same by way of checking the file in its own order.
            const uint64_t span = q3_pack_span(pack, tensor, f);
            FUZZ_CHECK(span >= frame->stored_bytes && span <= pack->size);
            stored = malloc(span);
            FUZZ_CHECK(stored != NULL);
            if (q3_pack_check_frame(pack, tensor, f, stored, &err)) {
                void *again = malloc(frame->raw_bytes);
                FUZZ_CHECK(again != NULL);
                FUZZ_CHECK(q3_pack_decode_frame(pack, tensor, f, coder, stored, again, &err) ==
                           read);
                FUZZ_CHECK(!read || memcmp(again, raw, frame->raw_bytes) == 0);
                free(again);
            }
            free(stored);
            free(raw);
        }
        FUZZ_CHECK(raw_bytes == tensor->tensor.bytes);
        if (raw_bytes > BYTES_MAX)
            continue;
        void *stored = malloc(q3_pack_longest_frame(pack) + 1), *raw = malloc(raw_bytes + 1);
        FUZZ_CHECK(stored && raw);
        FUZZ_CHECK(q3_pack_read_tensor(pack, tensor, coder, stored, raw, &err) == decoded);
        if (decoded)
            q3_pack_check_tensor(pack, tensor, q3_hash128_of(raw, (size_t)raw_bytes), &err);
        free(stored);
        free(raw);
    }
    FUZZ_CHECK(frames == pack->frame_count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_pack pack;
    uint64_t needed;
    uint8_t *file = fuzz_copy((q3_bytes){data, size});
    if (size < HEADER_BYTES) {
        FUZZ_CHECK(!q3_pack_parse("input", (q3_bytes){file, size}, size, &pack, &needed, &err));
    } else if (sign_frames(file, size)) {
        fuzz_write("input.q3p", (q3_bytes){file, size}, 0);
        if (!q3_pack_open(fuzz_path("input.q3p"), &pack, &err))
            fuzz_violated(__FILE__, __LINE__, err.message);
        read_pack(&pack);
        q3_pack_close(&pack);
    }
    free(file);
    return 0;
}
