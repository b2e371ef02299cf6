// SPDX-License-Identifier: Apache-2.0
#include "bf12.h"

#include "codec/bitplane_kernels.h"

enum { SAMPLE = 1 << 12 }; // weights, at least, if there are as many

unsigned q3_bf12_window(const uint16_t *weights, size_t count)
{
    const size_t step = count < 2 * SAMPLE ? 1 : count / SAMPLE;
    uint32_t counts[256] = {0};
    for (size_t group = 0; group < count / Q3_BF12_GROUP; group += step)
        for (size_t i = 0; i < Q3_BF12_GROUP; i++)
            counts[weights[group * Q3_BF12_GROUP + i] >> 7 & 0xff]++;
    uint32_t inside = 0;
    for (unsigned e = 0; e < Q3_BF12_WINDOW; e++)
        inside += counts[e];
    unsigned best = 0;
    uint32_t most = inside;
    for (unsigned lowest = 2; lowest <= Q3_BF12_LOWEST_MAX; lowest += 2) {
        inside += counts[lowest + Q3_BF12_WINDOW - 2] + counts[lowest + Q3_BF12_WINDOW - 1];
        inside -= counts[lowest - 2] + counts[lowest - 1];
        if (inside > most) {
            most = inside;
            best = lowest;
        }
    }
    return best;
}

// A weight with the lowest exponent taken off; above 0xfff when it is outside the window.
static inline unsigned shorten(uint16_t weight, unsigned lowest)
{
    const unsigned exponent = (weight >> 7 & 0xffu) - lowest;
    if (exponent >= Q3_BF12_WINDOW)
        return 0x1000;
    return (unsigned)weight >> 15 << 11 | exponent << 7 | (weight & 0x7f);
}

static size_t outside(const uint16_t *weights, size_t count, unsigned lowest)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++)
        found += shorten(weights[i], lowest) > 0xfff;
    return found;
}

static void pack(const uint16_t *weights, size_t count, unsigned lowest, void *block)
{
    uint8_t *group = block;
    q3_bf12_exception *exception = q3_bf12_exceptions(block, count);
    for (size_t first = 0; first < count; first += Q3_BF12_GROUP, group += Q3_BF12_GROUP_BYTES)
        for (unsigned b = 0; b < Q3_BF12_GROUP; b++) {
            const unsigned half = Q3_BF12_GROUP / 2;
            const unsigned bits = shorten(weights[first + q3_bitplane_weight_of(b)], lowest);
            const uint8_t nibble = bits >> 8 & 15;
            group[half + b] = (uint8_t)bits;
            if (b < half)
                group[b] = nibble;
            else
                group[b - half] |= (uint8_t)(nibble << 4);
        }
    for (size_t i = 0; i < count; i++)
        if (shorten(weights[i], lowest) > 0xfff)
            *exception++ = (q3_bf12_exception){.weight = (uint32_t)i, .value = weights[i]};
    *exception = (q3_bf12_exception){.weight = UINT32_MAX};
}

static void unpack(const q3_bf12 *block, size_t count, uint16_t *weights)
{
    const uint8_t *group = block->groups;
    for (size_t first = 0; first < count; first += Q3_BF12_GROUP, group += Q3_BF12_GROUP_BYTES)
        for (unsigned b = 0; b < Q3_BF12_GROUP; b++) {
            const unsigned half = Q3_BF12_GROUP / 2;
            const unsigned nibble = (b < half ? group[b] : group[b - half] >> 4) & 15u;
            const unsigned bits = (nibble & 7) << 8 | group[half + b];
            weights[first + q3_bitplane_weight_of(b)] =
                (uint16_t)((nibble & 8) << 12 | (bits + (block->lowest << 7)));
        }
    for (const q3_bf12_exception *e = block->exceptions; e->weight != UINT32_MAX; e++)
        weights[e->weight] = e->value;
}

const q3_bf12_kernels q3_bf12_kernels_c = {.outside = outside, .pack = pack, .unpack = unpack};
