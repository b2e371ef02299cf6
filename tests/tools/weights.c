// SPDX-License-Identifier: Apache-2.0
#include "weights.h"

#include "base/bytes.h"
#include "base/hash.h"

#include <string.h>

// Gaussians come in units of 2^-28, deviations in units of 2^-20.
enum { UNIT_BITS = 28, DEVIATION_BITS = 20 };

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014) over a counter: any element's random bits
// without those before it.
static uint64_t random_bits(uint64_t key, uint64_t counter)
{
    uint64_t x = key + counter * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

// Near enough to a Gaussian of variance 1: 64 coins, of variance 16, and two uniform numbers that
// fill the gaps between whole numbers of heads and add 1/6.
static int64_t gaussian(uint64_t key, uint64_t index)
{
    const uint64_t coins = random_bits(key, 2 * index + 1), rest = random_bits(key, 2 * index + 2);
    const int64_t heads = __builtin_popcountll(coins) - 32;
    const int64_t fraction = (int64_t)(rest >> 36) + (int64_t)(rest & 0xfffffff) - 0xfffffff;
    // 65536 / sqrt(16 + 1/6) = 16299.
    return (heads * (INT64_C(1) << UNIT_BITS) + fraction) * 16299 / 65536;
}

// exp(0.3 g) in units of 2^-16, by 2^f = 1 + f (0.6565 + 0.3435 f) for f in [0, 1).
static int64_t row_scale(uint64_t key, uint64_t row)
{
    enum { BIAS = 8 };
    // 0.3 / ln 2 = 0.43281 = 28364 / 65536.
    const int64_t exponent = gaussian(key, row) / 4096 * 28364 / 65536 + BIAS * 65536;
    const int64_t fraction = exponent & 0xffff;
    const int64_t mantissa = 65536 + fraction * (43025 + fraction * 22511 / 65536) / 65536;
    return mantissa * (INT64_C(1) << (exponent >> 16)) / (1 << BIAS);
}

// The BF16 next to number * 2^exponent, ties to even.
static uint16_t to_bf16(int64_t number, int exponent)
{
    if (number == 0)
        return 0;
    const uint64_t sign = number < 0 ? 0x8000 : 0;
    uint64_t magnitude = (uint64_t)(number < 0 ? -number : number);
    int top = 63 - __builtin_clzll(magnitude);
    if (top > 7) {
        const int drop = top - 7;
        const uint64_t odd = magnitude >> drop & 1;
        magnitude = (magnitude + (UINT64_C(1) << (drop - 1)) - 1 + odd) >> drop;
    } else {
        magnitude <<= 7 - top;
    }
    // A carry out of the eight bits steps the exponent by itself.
    return (uint16_t)(sign | (((uint64_t)(top + exponent + 127) << 7) + magnitude - 128));
}

static uint64_t square_root(uint64_t number)
{
    uint64_t root = 0;
    for (uint64_t bit = UINT64_C(1) << 31; bit; bit >>= 1)
        if ((root + bit) * (root + bit) <= number)
            root += bit;
    return root;
}

static bool ends_with(const char *text, const char *tail)
{
    const size_t length = strlen(text), tail_length = strlen(tail);
    return length >= tail_length && strcmp(text + length - tail_length, tail) == 0;
}

void q3_weights_describe(const q3_tensor *tensor, uint64_t seed, q3_weights *weights)
{
    *weights = (q3_weights){.key = random_bits(q3_hash64(tensor->name, strlen(tensor->name)), seed),
                            .dtype = tensor->dtype,
                            .element_bytes = q3_dtype_size(tensor->dtype)};
    if (tensor->rank < 2) {
        // Every vector called "weight" is a norm's.
        const bool norm = ends_with(tensor->name, ".weight");
        weights->center = norm ? INT64_C(1) << UNIT_BITS : 0;
        weights->deviation = (INT64_C(1) << DEVIATION_BITS) / (norm ? 16 : 64);
        return;
    }
    weights->row = 1;
    for (unsigned i = 1; i < tensor->rank; i++)
        weights->row *= tensor->shape[i];
    const bool decides =
        ends_with(tensor->name, "mlp.gate.weight") || ends_with(tensor->name, "lm_head.weight");
    const uint64_t inputs = weights->row ? weights->row : 1;
    weights->deviation =
        (int64_t)square_root((UINT64_C(1) << (2 * DEVIATION_BITS)) / inputs) * (decides ? 2 : 1);
}

void q3_weights_fill(const q3_weights *weights, uint64_t first, size_t count, uint8_t *out)
{
    if (weights->dtype != Q3_BF16 && weights->dtype != Q3_F32) {
        for (size_t i = 0; i < count; i++) {
            uint8_t bytes[8];
            q3_put_u64(bytes, random_bits(weights->key, first + i));
            if (weights->dtype == Q3_BOOL)
                bytes[0] &= 1;
            memcpy(out + i * weights->element_bytes, bytes, weights->element_bytes);
        }
        return;
    }
    for (size_t i = 0; i < count;) {
        int64_t deviation = weights->deviation;
        size_t end = count;
        if (weights->row) {
            const uint64_t row = (first + i) / weights->row;
            const uint64_t left = (row + 1) * weights->row - (first + i);
            end = left < count - i ? i + (size_t)left : count;
            deviation = deviation * row_scale(~weights->key, row) / 65536;
        }
        for (; i < end; i++) {
            const int64_t number = gaussian(weights->key, first + i) * deviation +
                                   weights->center * (INT64_C(1) << DEVIATION_BITS);
            const uint16_t value = to_bf16(number, -UNIT_BITS - DEVIATION_BITS);
            if (weights->dtype == Q3_BF16)
                q3_put_u16(out + 2 * i, value);
            else
                q3_put_u32(out + 4 * i, (uint32_t)value << 16);
        }
    }
}
