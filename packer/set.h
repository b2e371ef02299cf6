// SPDX-License-Identifier: Apache-2.0
//
// A pack directory: the pack files of one checkpoint, copies of its small files (configuration,
// tokenizer), and pack.json, which lists them all and is written last. FORMAT.md defines it. A
// directory without pack.json is an extraction that has not finished.
#ifndef Q3_SET_H
#define Q3_SET_H

#include "base/hash.h"
#include "model/config.h"
#include "model/inventory.h"
#include "pack.h"

// Where in the source checkpoint a tensor's bytes lie.
typedef struct q3_set_tensor {
    char *name;
    uint32_t shard;  // index into q3_set.shards
    uint64_t offset; // from the beginning of the shard
} q3_set_tensor;

// One pack file.
typedef struct q3_set_file {
    q3_place place;
    uint64_t size;
    q3_hash128 root;        // q3_pack.root
    q3_set_tensor *tensors; // in the order of the pack file
    uint32_t tensor_count;
} q3_set_file;

// A copy of a small file of the checkpoint, byte for byte.
typedef struct q3_set_copy {
    char *name;
    uint64_t size;
    q3_hash128 hash;
} q3_set_copy;

typedef struct q3_set_shard {
    char *name;
    uint64_t size;
    q3_hash128 header_hash; // of the shard's first bytes: the length and the header
} q3_set_shard;

// How much of a component is there.
typedef struct q3_set_component {
    uint64_t tensors, bytes;                   // in the pack files, bytes uncompressed
    uint64_t expected_tensors, expected_bytes; // in the whole component
} q3_set_component;

typedef struct q3_set {
    char *directory;
    q3_config config;
    q3_codec codec; // that was asked for
    q3_set_component components[Q3_COMPONENTS];
    q3_set_file *files; // in the order of q3_place_compare
    size_t file_count;
    q3_set_copy *copies; // sorted by name
    size_t copy_count;
    q3_set_shard *shards;
    uint32_t shard_count;
} q3_set;

// Reads pack.json and checks it: its own checksum, every path, size and hash well-formed, nothing
// twice, the model's configuration equal to the one of the copied config.json (whose hash is
// checked too). The pack files themselves are not opened. No pack.json: Q3_INCOMPLETE.
bool q3_set_open(const char *directory, q3_set *set, q3_error *err);
void q3_set_close(q3_set *set); // a zeroed or closed one is fine

// The file of a place, or NULL when the set does not have it.
const q3_set_file *q3_set_find(const q3_set *set, const q3_place *place);
// The file and the index in it of a tensor, or NULL. Linear in the number of tensors.
const q3_set_file *q3_set_find_tensor(const q3_set *set, const char *name, uint32_t *index);

// Opens a pack file of the set and checks that it is the one that pack.json means: its size, its
// root, the names of its tensors. An absent file is Q3_INCOMPLETE.
bool q3_set_open_pack(const q3_set *set, const q3_set_file *file, q3_pack *pack, q3_error *err);

// The same in two steps, for a caller that reads the whole file itself: opens it, of the size that
// pack.json gives (see q3_file_open_whole for `direct`), and makes a pack of the first `arrived`
// bytes that were read from it, which must hold header and directory. That pack has no open file;
// closing it does not touch the image. Checked are header and directory, not the frames.
bool q3_set_open_image(const q3_set *set, const q3_set_file *file, bool direct, q3_file *source,
                       q3_error *err);
bool q3_set_parse_image(const q3_set *set, const q3_set_file *file, const uint8_t *image,
                        uint64_t arrived, q3_pack *pack, q3_error *err);

// Path of a file inside the directory, to free().
char *q3_set_path(const q3_set *set, const char *name, q3_error *err);

// Loads a copied file and checks size and hash; the caller frees *data. NUL-terminated as
// q3_file_load does. A name that is not among the copies is Q3_INCOMPLETE.
bool q3_set_load_copy(const q3_set *set, const char *name, char **data, size_t *size,
                      q3_error *err);

// Writes pack.json into set->directory, published. Files must be sorted.
bool q3_set_write(const q3_set *set, q3_error *err);

#endif
