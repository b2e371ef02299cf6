// SPDX-License-Identifier: Apache-2.0
//
// The offsets of FORMAT.md, shared by the reader and the writer of pack files and by nobody else.
#ifndef Q3_PACK_FORMAT_H
#define Q3_PACK_FORMAT_H

#include <stdint.h>

enum {
    HEADER_BYTES = 64,
    HEADER_VERSION = 8,
    HEADER_ALIGNMENT = 12,
    HEADER_TENSORS = 16,
    HEADER_FRAMES = 20,
    HEADER_DIRECTORY_BYTES = 24,
    HEADER_FILE_BYTES = 32,
    HEADER_DIRECTORY_HASH = 40,
    HEADER_RESERVED = 48,
    HEADER_HASH = 56, // of the bytes before it

    TENSOR_BYTES = 96,
    TENSOR_NAME_BYTES = 0,
    TENSOR_DTYPE = 2,
    TENSOR_RANK = 3,
    TENSOR_FRAME_BYTES = 4,
    TENSOR_SHAPE = 8, // eight dimensions
    TENSOR_HASH = 72, // low half, high half
    TENSOR_RESERVED = 88,

    FRAME_RECORD_BYTES = 16,
    FRAME_STORED_BYTES = 0,
    FRAME_CODEC = 4,
    FRAME_RESERVED = 5, // three bytes
    FRAME_HASH = 8,
};

// A PNG-like magic: not text, and any line-end conversion or 7-bit transfer damages it.
static const uint8_t pack_magic[8] = {0x89, 'Q', '3', 'P', 0x0d, 0x0a, 0x1a, 0x0a};

// Directories beyond this are refused: the largest real one (the talker's) takes 2 MB.
#define DIRECTORY_BYTES_MAX (UINT64_C(64) << 20)

#endif
