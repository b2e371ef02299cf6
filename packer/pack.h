// SPDX-License-Identifier: Apache-2.0
//
// Pack files (.q3p), format version 1: a few tensors, cut into frames, each checksummed and maybe
// compressed. FORMAT.md defines them to the byte; the words here are the words there.
//
// Trust: a header vouches for itself and for the directory, the directory for every frame's stored
// bytes and every tensor's raw bytes, and the bytes between are zero. So the 128-bit `root`, the
// hash of header and directory, vouches for the whole file, and knowing it from pack.json tells at
// opening whether this is the file that was meant.
#ifndef Q3_PACK_H
#define Q3_PACK_H

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "codec/codec.h"
#include "model/tensor.h"

enum {
    Q3_PACK_VERSION = 1,
    Q3_PACK_ALIGNMENT = 4096, // of each tensor's first frame: a page, and what direct I/O needs
    Q3_FRAME_ALIGNMENT = 64,  // of each frame: a cache line
    Q3_FRAME_BYTES =
        256 * 1024, // raw bytes of a frame as the writer cuts them: 128 Ki bf16 weights
};

typedef struct q3_frame {
    uint64_t offset; // in the file
    uint32_t stored_bytes, raw_bytes;
    q3_codec codec;
    uint64_t hash; // of the stored bytes
} q3_frame;

typedef struct q3_pack_tensor {
    q3_tensor tensor;     // the name is owned by the pack
    uint32_t frame_bytes; // raw bytes of each frame but the last
    uint32_t first_frame, frame_count;
    q3_hash128 hash; // of the raw bytes
} q3_pack_tensor;

typedef struct q3_pack {
    q3_file file; // file.path for messages; not open when the pack was parsed from memory
    uint64_t size, data_offset;
    q3_hash128 root;
    q3_pack_tensor *tensors;
    uint32_t tensor_count;
    q3_frame *frames;
    uint32_t frame_count;
    char *names;
} q3_pack;

// ---- reading ----

// Opens a pack file and checks its header and directory: everything that they say is consistent
// with itself and with the file's size.
bool q3_pack_open(const char *path, q3_pack *pack, q3_error *err);
void q3_pack_close(q3_pack *pack); // a zeroed or closed one is fine

// The same from the file's first bytes in memory, for a file of `size` bytes at `path`. `head` must
// hold header and directory; when it is too short *needed tells how much they take.
bool q3_pack_parse(const char *path, q3_bytes head, uint64_t size, q3_pack *pack, uint64_t *needed,
                   q3_error *err);

// The tensor with this name, or NULL.
const q3_pack_tensor *q3_pack_find(const q3_pack *pack, const char *name);

// Reads one frame (an index below frame_count): checks its hash and decodes it to raw, which has
// room for its raw_bytes. `stored` is scratch of at least its stored_bytes.
bool q3_pack_read_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame,
                        q3_coder *coder, void *stored, void *raw, q3_error *err);

// Reads one frame's stored bytes and checks their hash.
bool q3_pack_load_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame,
                        void *stored, q3_error *err);
// The same for a file that is in memory whole, from its first byte on: only the check.
bool q3_pack_check_image(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame,
                         const uint8_t *image, q3_error *err);

// Reads a whole tensor to raw, which has room for tensor.bytes: every frame checked as it is read.
// `stored` is scratch of Q3_FRAME_BYTES_MAX, or of the longest frame's stored bytes.
bool q3_pack_read_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_coder *coder,
                         void *stored, void *raw, q3_error *err);
// Compares the hash of a tensor's raw bytes with the directory's.
bool q3_pack_check_tensor(const q3_pack *pack, const q3_pack_tensor *tensor, q3_hash128 hash,
                          q3_error *err);
// The largest stored_bytes of the pack's frames: how much scratch the two above need.
size_t q3_pack_longest_frame(const q3_pack *pack);

// Checking a file to the last byte, in the order in which it lies on the disk: the padding before
// the first frame, then each frame with the padding behind it, in one read. With header, directory
// and tensor hashes checked too, no byte is unaccounted for.
bool q3_pack_check_lead(const q3_pack *pack, q3_error *err);
// Checks a frame's hash, and that what lies between it and the next one (or the end) is zero.
// `stored` has room for q3_pack_span bytes and receives the stored bytes.
uint64_t q3_pack_span(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame);
bool q3_pack_check_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame,
                         void *stored, q3_error *err);
// Decodes a frame's stored bytes, which have been checked, to raw.
bool q3_pack_decode_frame(const q3_pack *pack, const q3_pack_tensor *tensor, uint32_t frame,
                          q3_coder *coder, const void *stored, void *raw, q3_error *err);

// ---- writing ----

// How a writer cuts a tensor: the raw bytes of each frame but the last. Whole rows where that can
// be, a multiple of Q3_FRAME_ALIGNMENT, near Q3_FRAME_BYTES. 0 for a tensor without bytes.
uint32_t q3_frame_cut(const q3_tensor *tensor);
// How many frames that makes.
uint32_t q3_frame_count(const q3_tensor *tensor);
// Bytes of header and directory for so many tensors and frames, and bytes of names.
uint64_t q3_pack_head_bytes(uint64_t tensors, uint64_t frames, uint64_t name_bytes);

typedef struct q3_pack_writer q3_pack_writer;

// Starts a pack file of these tensors (copied, names included). It has its final name only once it
// is published.
bool q3_pack_writer_create(const char *path, const q3_tensor *tensors, uint32_t count,
                           q3_pack_writer **writer, q3_error *err);
// The next frame: tensors in order, and the frames of each in order. raw is what the tensor's hash
// is made of; stored is what encoding it gave.
bool q3_pack_writer_add(q3_pack_writer *writer, q3_codec codec, const void *raw, size_t raw_bytes,
                        const void *stored, size_t stored_bytes, uint64_t hash, q3_error *err);
// Writes header and directory, syncs, reads all of it back from the disk and checks every hash,
// renames. The writer is gone afterwards, whatever happens.
bool q3_pack_writer_publish(q3_pack_writer *writer, uint64_t *size, q3_hash128 *root,
                            q3_error *err);
// Gives up and removes what was written; NULL is fine.
void q3_pack_writer_abandon(q3_pack_writer *writer);

#endif
