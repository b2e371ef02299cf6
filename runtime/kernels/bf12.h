// SPDX-License-Identifier: Apache-2.0
//
// bf12: bf16 weights in twelve bits each, without loss, as they can lie in memory.
//
// A bf16 number has a sign, eight bits of exponent and seven of mantissa. Trained weights use few
// exponents, and those next to each other: a window of 16 holds all but some weights in ten
// thousand of a block of rows. So the sign, the place in the window (4 bits) and the mantissa tell
// a weight, and the others are listed beside. Entropy coding would save another eighth of the
// bytes, but this takes four operations on vectors to undo where that takes dozens: a product reads
// a quarter fewer bytes than from bf16 and is still bound by memory alone.
//
// With the window's lowest exponent taken off, a weight is sign << 15 | place << 7 | mantissa. Of
// that the low byte is kept as it is, and bits 8 to 10 with the sign above them as a nibble. 64
// weights are a group of 96 bytes:
//
//     0-31   byte i: nibble of the weight of byte i, and, in the upper half, of byte 32 + i
//     32-95  the low bytes; byte b is that of weight q3_bitplane_weight_of(b) of the group
//
// That order suits vectors of 32 and of 64 bytes: interleaving low and high bytes in each 16 bytes
// gives the weights in order. A window's lowest exponent is even, so that the low byte is that of
// the bf16 number itself.
#ifndef Q3_BF12_H
#define Q3_BF12_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    Q3_BF12_GROUP = 64, // weights
    Q3_BF12_GROUP_BYTES = 96,
    Q3_BF12_WINDOW = 16, // exponents
    Q3_BF12_LOWEST_MAX = 240,
};

typedef struct q3_bf12_exception {
    uint32_t weight; // its number in the block
    uint16_t value;  // bf16
    uint16_t unused;
} q3_bf12_exception;

// A block of whole groups.
typedef struct q3_bf12 {
    const uint8_t *groups;
    // In ascending order, and one behind the last whose `weight` is UINT32_MAX. What the groups say
    // of these weights means nothing.
    const q3_bf12_exception *exceptions;
    unsigned lowest; // exponent of the window, even
} q3_bf12;

// Exceptions that a block of so many weights has room for: 20 times as many as normally distributed
// weights have.
static inline size_t q3_bf12_room(size_t weights)
{
    return 8 + weights / 512;
}

static inline size_t q3_bf12_groups_bytes(size_t weights)
{
    return weights / Q3_BF12_GROUP * Q3_BF12_GROUP_BYTES;
}

// Where a block's exceptions lie.
static inline q3_bf12_exception *q3_bf12_exceptions(void *block, size_t weights)
{
    return (q3_bf12_exception *)(void *)((uint8_t *)block + q3_bf12_groups_bytes(weights));
}

// Bytes of a block: the groups, then the exceptions and the one behind the last.
static inline size_t q3_bf12_bytes(size_t weights)
{
    return q3_bf12_groups_bytes(weights) + (q3_bf12_room(weights) + 1) * sizeof(q3_bf12_exception);
}

// The block that lies in so many bytes, a multiple of 8.
static inline q3_bf12 q3_bf12_at(const void *block, size_t weights, unsigned lowest)
{
    return (q3_bf12){
        .groups = block,
        // Only to be read through the result.
        .exceptions = q3_bf12_exceptions((void *)(uintptr_t)block, weights),
        .lowest = lowest,
    };
}

// The high byte of a bf16 number for each nibble.
static inline void q3_bf12_high_bytes(unsigned lowest, uint8_t high_bytes[16])
{
    for (unsigned i = 0; i < 16; i++)
        high_bytes[i] = (uint8_t)((i & 8) << 4 | (lowest / 2 + (i & 7)));
}

// The lowest exponent of the window that takes in the most of a sample of the weights.
unsigned q3_bf12_window(const uint16_t *weights, size_t count);

typedef struct q3_bf12_kernels {
    // How many of `count` weights, a multiple of 64, are outside the window.
    size_t (*outside)(const uint16_t *weights, size_t count, unsigned lowest);
    // Makes the block. There must be room for its exceptions. `block` and the weights do not
    // overlap.
    void (*pack)(const uint16_t *weights, size_t count, unsigned lowest, void *block);
    // The weights as they were.
    void (*unpack)(const q3_bf12 *block, size_t count, uint16_t *weights);
} q3_bf12_kernels;

extern const q3_bf12_kernels q3_bf12_kernels_c;

#endif
