// SPDX-License-Identifier: Apache-2.0
//
// The header of one safetensors file, read strictly by the format's rules
// (github.com/huggingface/safetensors): 8 bytes of length, a JSON object of at most 100,000,000
// bytes that starts with '{', for each tensor a dtype, a shape and two offsets; the tensors lie one
// after the other from 0 to the end of the file, without holes or overlaps, and each takes exactly
// shape times dtype bytes.
#ifndef Q3_SAFETENSORS_H
#define Q3_SAFETENSORS_H

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "model/tensor.h"

#define Q3_SAFETENSORS_HEADER_MAX UINT64_C(100000000)

typedef struct q3_safetensor {
    q3_tensor tensor; // the name belongs to the header
    uint64_t offset;  // from the beginning of the file
} q3_safetensor;

typedef struct q3_safetensors {
    q3_safetensor *tensors; // in the order of their offsets
    size_t count;
    char **names;
    uint64_t header_bytes; // 8 + the JSON's length: where the data begin
    uint64_t file_bytes;   // of the file that the header describes: where the data end
    q3_hash128 hash;       // of the first header_bytes bytes
} q3_safetensors;

// Parses a header from the first bytes of a file of `size` bytes that messages call `name`. The
// file may be shorter or longer than the header says: q3_safetensors_check_size compares.
bool q3_safetensors_parse(const char *name, q3_bytes head, uint64_t size,
                          q3_safetensors *safetensors, q3_error *err);
bool q3_safetensors_check_size(const char *name, const q3_safetensors *safetensors, uint64_t size,
                               q3_error *err);
// Reads the header of a file; *size receives the file's size, to be checked as above.
bool q3_safetensors_load(const char *path, q3_safetensors *safetensors, uint64_t *size,
                         q3_error *err);
void q3_safetensors_free(q3_safetensors *safetensors); // a zeroed one is fine

#endif
