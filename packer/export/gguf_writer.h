// SPDX-License-Identifier: Apache-2.0
//
// The head of a GGUF file, version 3: everything before the tensors' data. The format is specified
// in docs/gguf.md of github.com/ggml-org/ggml; the words here are the words there.
//
//   "GGUF", version, number of tensors, number of metadata pairs     4, 4, 8, 8 bytes
//   the metadata pairs: key, type of the value, value
//   the tensor infos: name, dimensions, type, offset in the data
//   zeros up to a multiple of the alignment, then the data
//
// Numbers are little-endian. A string is its length in 8 bytes and its bytes. Dimensions are listed
// fastest first, other than in safetensors; each tensor's data begin at a multiple of the
// alignment.
#ifndef Q3_EXPORT_GGUF_WRITER_H
#define Q3_EXPORT_GGUF_WRITER_H

#include "base/bytes.h"
#include "base/file.h"
#include "model/tensor.h"

enum {
    Q3_GGUF_VERSION = 3,
    Q3_GGUF_ALIGNMENT = 32, // the default, which files need not state
    Q3_GGUF_NAME_MAX = 64,  // bytes of a tensor's name
};

// Types of metadata values.
typedef enum q3_gguf_type {
    Q3_GGUF_U32 = 4,
    Q3_GGUF_I32 = 5,
    Q3_GGUF_F32 = 6,
    Q3_GGUF_BOOL = 7,
    Q3_GGUF_STRING = 8,
    Q3_GGUF_ARRAY = 9,
} q3_gguf_type;

typedef struct q3_gguf_writer {
    q3_memory metadata, infos;
    uint64_t pairs, tensors;
    uint64_t data_bytes; // of the tensors so far, up to the last one's end
} q3_gguf_writer;

// Begun, given its pairs and its tensors, and finished or abandoned. Running out of memory on the
// way is remembered and reported at the end.
bool q3_gguf_begin(q3_gguf_writer *writer, q3_error *err);
void q3_gguf_abandon(q3_gguf_writer *writer); // a zeroed or finished one is fine

void q3_gguf_put_u32(q3_gguf_writer *writer, const char *key, uint32_t value);
void q3_gguf_put_f32(q3_gguf_writer *writer, const char *key, float value);
void q3_gguf_put_bool(q3_gguf_writer *writer, const char *key, bool value);
void q3_gguf_put_string(q3_gguf_writer *writer, const char *key, const char *value);
// An array of so many values, which are then added one by one.
void q3_gguf_begin_array(q3_gguf_writer *writer, const char *key, q3_gguf_type type,
                         uint64_t count);
void q3_gguf_add_string(q3_gguf_writer *writer, q3_bytes value);
void q3_gguf_add_i32(q3_gguf_writer *writer, int32_t value);

// Adds a tensor (BF16 or F32, at least one dimension) behind those added before and returns where
// its data begin. Its shape is the one of safetensors, slowest first.
uint64_t q3_gguf_add_tensor(q3_gguf_writer *writer, const q3_tensor *tensor);

// The bytes before the data; the caller frees *head.
bool q3_gguf_finish(q3_gguf_writer *writer, char **head, size_t *size, q3_error *err);

#endif
