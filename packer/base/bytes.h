// SPDX-License-Identifier: Apache-2.0
//
// Bounds-checked access to bytes from a file, and arithmetic that does not wrap. Parsers use these
// and nothing else: no cast of a buffer to a struct, no pointer arithmetic on an untrusted length.
#ifndef Q3_BASE_BYTES_H
#define Q3_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// A borrowed run of bytes.
typedef struct q3_bytes {
    const uint8_t *data;
    size_t size;
} q3_bytes;

// *value = a + b and a * b; false (and *value is not to be used) when the result does not fit.
static inline bool q3_add(uint64_t a, uint64_t b, uint64_t *value)
{
    return !__builtin_add_overflow(a, b, value);
}

static inline bool q3_multiply(uint64_t a, uint64_t b, uint64_t *value)
{
    return !__builtin_mul_overflow(a, b, value);
}

// *value = the least multiple of `alignment` (a power of two) that is not below `number`.
static inline bool q3_align(uint64_t number, uint64_t alignment, uint64_t *value)
{
    if (!q3_add(number, alignment - 1, value))
        return false;
    *value &= ~(alignment - 1);
    return true;
}

// The `size` bytes from `offset` on; false when they are not all inside `whole`.
static inline bool q3_slice(q3_bytes whole, uint64_t offset, uint64_t size, q3_bytes *part)
{
    if (offset > whole.size || size > whole.size - offset)
        return false;
    part->data = whole.data + offset;
    part->size = (size_t)size;
    return true;
}

// Little-endian numbers at `offset`; false when they are not inside `whole`.
static inline bool q3_read_u8(q3_bytes whole, uint64_t offset, uint8_t *value)
{
    q3_bytes part;
    if (!q3_slice(whole, offset, 1, &part))
        return false;
    *value = part.data[0];
    return true;
}

static inline bool q3_read_u16(q3_bytes whole, uint64_t offset, uint16_t *value)
{
    q3_bytes part;
    if (!q3_slice(whole, offset, 2, &part))
        return false;
    *value = (uint16_t)(part.data[0] | part.data[1] << 8);
    return true;
}

static inline bool q3_read_u32(q3_bytes whole, uint64_t offset, uint32_t *value)
{
    q3_bytes part;
    if (!q3_slice(whole, offset, 4, &part))
        return false;
    *value = 0;
    for (unsigned i = 0; i < 4; i++)
        *value |= (uint32_t)part.data[i] << 8 * i;
    return true;
}

static inline bool q3_read_u64(q3_bytes whole, uint64_t offset, uint64_t *value)
{
    q3_bytes part;
    if (!q3_slice(whole, offset, 8, &part))
        return false;
    *value = 0;
    for (unsigned i = 0; i < 8; i++)
        *value |= (uint64_t)part.data[i] << 8 * i;
    return true;
}

// Little-endian numbers into memory that the caller knows to be large enough.
static inline void q3_put_u16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static inline void q3_put_u32(uint8_t *at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline void q3_put_u64(uint8_t *at, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline bool q3_all_zero(const uint8_t *data, size_t size)
{
    return size == 0 || (data[0] == 0 && memcmp(data, data + 1, size - 1) == 0);
}

#endif
