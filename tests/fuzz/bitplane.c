// SPDX-License-Identifier: Apache-2.0
//
// The bit-plane codec. All levels of this processor must encode alike, and decode alike whatever
// they are given: the same bytes, or a refusal from each.
//
// The first byte chooses:
//   0  the rest is a stored frame for as many weights as its header says;
//   1  the rest is raw bytes to encode and decode, its first two bytes the row;
//   2  a count of patches (4 bytes each: two of offset, value, mask) and raw bytes, which are
//      encoded; the stored frame is patched, which gets behind the header's checks.
#include "codec/bitplane.h"
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RAW_BYTES_MAX = 1 << 16 };

static q3_bitplane coders[Q3_CPU_LEVELS];
static unsigned levels;

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "bitplane: %s\n", what);
    abort();
}

static void set_up(void)
{
    if (levels)
        return;
    q3_error err;
    levels = q3_cpu_detected() + 1;
    for (unsigned level = 0; level < levels; level++) {
        check(q3_cpu_limit((q3_cpu_level)level, &err), err.message);
        q3_bitplane_init(&coders[level]);
    }
}

// At an address that is a multiple of 64, for streaming; the sanitizer watches its end.
static uint8_t *allocate(size_t size)
{
    void *memory = NULL;
    check(posix_memalign(&memory, 64, size ? size : 1) == 0, "out of memory");
    return memory;
}

static bool decode(const uint8_t *stored, size_t stored_bytes, uint8_t *raw, size_t raw_bytes)
{
    q3_error err;
    bool decoded = false;
    uint8_t *other = allocate(raw_bytes);
    for (unsigned level = 0; level < levels; level++)
        for (unsigned streaming = 0; streaming < 2; streaming++) {
            uint8_t *to = level + streaming ? other : raw;
            const bool again = q3_bitplane_decode(&coders[level], stored, stored_bytes, to,
                                                  raw_bytes, streaming, &err);
            if (level + streaming == 0)
                decoded = again;
            check(again == decoded, "levels do not agree whether to refuse");
            check(!again || memcmp(to, raw, raw_bytes) == 0, "levels decode to different bytes");
        }
    free(other);
    return decoded;
}

// The stored frame, or NULL when it would not shrink. The caller frees it.
static uint8_t *encode(const uint8_t *raw, size_t raw_bytes, uint64_t row, size_t *stored_bytes)
{
    q3_error err;
    uint8_t *stored = allocate(raw_bytes), *other = allocate(raw_bytes);
    check(q3_bitplane_encode(&coders[0], raw, raw_bytes, row, stored, stored_bytes, &err),
          err.message);
    const bool shrunk = *stored_bytes < raw_bytes;
    for (unsigned level = 1; level < levels; level++) {
        size_t again = 0;
        check(q3_bitplane_encode(&coders[level], raw, raw_bytes, row, other, &again, &err),
              err.message);
        check(again == *stored_bytes && (!shrunk || memcmp(other, stored, again) == 0),
              "levels encode to different bytes");
    }
    free(other);
    if (shrunk)
        return stored;
    free(stored);
    return NULL;
}

static void fuzz_stored(const uint8_t *data, size_t size)
{
    uint32_t weights = 0;
    q3_read_u32((q3_bytes){data, size}, 0, &weights);
    const size_t raw_bytes = weights <= RAW_BYTES_MAX / 2 ? 2 * (size_t)weights : 128;
    uint8_t *stored = fuzz_copy((q3_bytes){data, size}), *raw = allocate(raw_bytes);
    decode(stored, size, raw, raw_bytes);
    free(raw);
    free(stored);
}

static void fuzz_raw(const uint8_t *raw, size_t raw_bytes, uint64_t row, const uint8_t *patches,
                     size_t patch_count)
{
    size_t stored_bytes = 0;
    uint8_t *stored = encode(raw, raw_bytes, row, &stored_bytes);
    if (!stored)
        return;
    uint8_t *exact = fuzz_copy((q3_bytes){stored, stored_bytes});
    free(stored);
    for (size_t i = 0; i < patch_count; i++) {
        const uint8_t *patch = patches + 4 * i;
        uint8_t *at = exact + (patch[0] | (size_t)patch[1] << 8) % stored_bytes;
        *at = (uint8_t)((*at & ~patch[3]) | (patch[2] & patch[3]));
    }
    uint8_t *again = allocate(raw_bytes);
    const bool decoded = decode(exact, stored_bytes, again, raw_bytes);
    if (patch_count == 0)
        check(decoded && memcmp(again, raw, raw_bytes) == 0, "a frame does not come back");
    free(again);
    free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    set_up();
    if (size < 3 || size > RAW_BYTES_MAX)
        return 0;
    if (data[0] == 0) {
        fuzz_stored(data + 1, size - 1);
    } else if (data[0] == 1) {
        fuzz_raw(data + 3, (size - 3) & ~(size_t)1, data[1] | (uint64_t)data[2] << 8, NULL, 0);
    } else if (data[0] == 2) {
        const size_t patches = data[1] % 16;
        if (size < 2 + 4 * patches)
            return 0;
        fuzz_raw(data + 2 + 4 * patches, (size - 2 - 4 * patches) & ~(size_t)1, 512, data + 2,
                 patches);
    }
    return 0;
}
