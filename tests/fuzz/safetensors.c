// SPDX-License-Identifier: Apache-2.0
//
// The header of a safetensors file. An input that starts with a digit is the number of bytes of
// data, then the header's JSON, whose length the target puts in front; any other is the file's
// first bytes as they are.
#include "safetensors.h"
#include "fuzz.h"

#include <stdlib.h>

static void check_header(const q3_safetensors *header)
{
    uint64_t end = header->header_bytes;
    for (size_t i = 0; i < header->count; i++) {
        const q3_tensor *tensor = &header->tensors[i].tensor;
        uint64_t bytes = q3_dtype_size(tensor->dtype);
        FUZZ_CHECK(bytes > 0);
        FUZZ_CHECK(tensor->name && *tensor->name && strlen(tensor->name) < Q3_NAME_MAX);
        FUZZ_CHECK(tensor->rank <= Q3_RANK_MAX);
        for (unsigned d = 0; d < tensor->rank; d++)
            bytes *= tensor->shape[d];
        FUZZ_CHECK(bytes == tensor->bytes);
        FUZZ_CHECK(header->tensors[i].offset == end);
        end += bytes;
    }
    FUZZ_CHECK(end == header->file_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    q3_error err;
    q3_safetensors header;
    q3_bytes text = {data, size};
    uint64_t data_bytes = 0, file_bytes = size;
    uint8_t *head;
    if (size && data[0] >= '0' && data[0] <= '9') {
        for (; text.size && *text.data >= '0' && *text.data <= '9'; text.data++, text.size--)
            data_bytes = (data_bytes * 10 + (*text.data - '0')) & ((UINT64_C(1) << 60) - 1);
        head = malloc(8 + text.size);
        FUZZ_CHECK(head != NULL);
        q3_put_u64(head, text.size);
        memcpy(head + 8, text.data, text.size);
        text.size += 8;
        file_bytes = text.size + data_bytes;
    } else {
        head = fuzz_copy(text);
    }
    if (q3_safetensors_parse("input", (q3_bytes){head, text.size}, file_bytes, &header, &err)) {
        check_header(&header);
        FUZZ_CHECK(q3_safetensors_check_size("input", &header, file_bytes, &err) ==
                   (header.file_bytes == file_bytes));
        q3_safetensors_free(&header);
    }
    free(head);
    return 0;
}
