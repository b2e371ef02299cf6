// SPDX-License-Identifier: Apache-2.0
//
// Codecs: how the bytes of one frame are stored. A frame is the unit of everything: compression,
// checksum, parallel work, partial reads. FORMAT.md defines each codec to the byte.
#ifndef Q3_CODEC_CODEC_H
#define Q3_CODEC_CODEC_H

#include "base/error.h"
#include "model/tensor.h"

// The numbers stand in pack files and never change.
typedef enum q3_codec {
    Q3_CODEC_RAW = 0,  // the bytes as they are
    Q3_CODEC_ZSTD = 1, // bf16 only: sign and mantissa as they are, exponents as Huffman-only zstd
    Q3_CODEC_BITPLANE = 2, // bf16 only: the same, exponents as planes of bits
    Q3_CODEC_AUTO = 255,   // only to be asked for: whichever of the above makes a frame smallest
} q3_codec;

// For an option `--codec` of kind Q3_OPTION_CHOICE.
#define Q3_CODEC_CHOICES "raw|zstd|bitplane|auto"

// "raw", "zstd", "bitplane", "auto"; NULL for a number that is none of them.
const char *q3_codec_name(unsigned codec);
bool q3_codec_parse(const char *name, q3_codec *codec);
// Is it one that a frame can be stored with?
bool q3_codec_is_stored(unsigned codec);

// Can this codec be asked to store elements of this type? Raw stores all.
bool q3_codec_takes(q3_codec codec, q3_dtype dtype);

enum { Q3_FRAME_BYTES_MAX = 16 << 20 }; // of a frame's raw bytes; its stored bytes are never more

// What encoding and decoding need beside the data: one for each thread. It works at the level of
// processor that is in use when it is created (base/cpu.h).
typedef struct q3_coder q3_coder;
q3_coder *q3_coder_create(q3_error *err);
void q3_coder_destroy(q3_coder *coder); // NULL is fine

// Says that what is decoded from now on goes to memory that is not in the cache and will not be
// read soon, so that a codec may store around the cache. Such memory should be at a multiple of 64.
void q3_coder_set_streaming(q3_coder *coder, bool streaming);

// Stores raw_bytes (at most Q3_FRAME_BYTES_MAX) in `stored`, which has room for as many. *codec is
// the codec asked for and becomes the one used: a frame that does not shrink is stored raw. `row`
// is a hint: the elements of a row of the matrix that the frame is whole rows of, 0 for none.
bool q3_codec_encode(q3_coder *coder, q3_codec *codec, q3_dtype dtype, uint64_t row,
                     const void *raw, size_t raw_bytes, void *stored, size_t *stored_bytes,
                     q3_error *err);

// Recovers exactly raw_bytes from stored bytes of whatever content: never reads or writes outside,
// and fails (Q3_MALFORMED) when they do not make raw_bytes.
bool q3_codec_decode(q3_coder *coder, q3_codec codec, const void *stored, size_t stored_bytes,
                     void *raw, size_t raw_bytes, q3_error *err);

#endif
