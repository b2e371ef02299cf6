// SPDX-License-Identifier: Apache-2.0
//
// The kernels of every level that this processor has: against double arithmetic on random numbers
// of every awkward shape, and the promise that an output does not depend on how the work is cut or
// on how the weights are stored. All buffers end where memory that cannot be touched begins.
#include "codec/bitplane.h"
#include "kernels/kernels.h"
#include "matrix.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const q3_kernels *tables[Q3_CPU_LEVELS];
static unsigned table_count;
static const q3_products *products[2 * Q3_CPU_LEVELS];
static unsigned products_count;

static void add_products(const q3_products *one)
{
    for (unsigned i = 0; i < products_count; i++)
        if (products[i] == one)
            return;
    products[products_count++] = one;
}

static int set_up(void **state)
{
    (void)state;
    for (unsigned level = 0; level <= q3_cpu_detected(); level++) {
        const q3_kernels *table = q3_kernels_for((q3_cpu_level)level);
        if (table_count == 0 || tables[table_count - 1] != table)
            tables[table_count++] = table;
        add_products(table->few);
        add_products(table->many);
    }
    assert_ptr_equal(tables[0], &q3_kernels_c);
    return 0;
}

// ---- buffers ----

enum { GUARD = 64 };
static const uint8_t guard = 0xa5;

// `size` bytes before memory that cannot be touched, with GUARD bytes of a pattern before them.
typedef struct buffer {
    uint8_t *memory;
    size_t mapped, size;
    uint8_t *data;
} buffer;

static buffer make_buffer(size_t size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inside = (size + GUARD + page - 1) / page * page;
    buffer b = {.mapped = inside + page, .size = size};
    void *memory = mmap(NULL, b.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    b.memory = memory;
    assert_int_equal(mprotect(b.memory + inside, page, PROT_NONE), 0);
    b.data = b.memory + inside - size;
    memset(b.memory, guard, inside);
    return b;
}

static void free_buffer(buffer *b)
{
    for (size_t i = 1; i <= GUARD; i++)
        assert_int_equal(*(b->data - i), guard);
    munmap(b->memory, b->mapped);
}

// ---- random numbers, the same in every run ----

static uint64_t random_state;

static uint64_t random_bits(void)
{
    // SplitMix64 (Steele, Lea, Flood 2014).
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static float random_float(void)
{
    return (float)(2 * ((double)(random_bits() >> 11) * 0x1p-53) - 1);
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static float from_bf16(uint16_t value)
{
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static buffer make_floats(size_t count, float **data)
{
    const buffer b = make_buffer(count * sizeof **data);
    *data = (float *)(void *)b.data;
    for (size_t i = 0; i < count; i++)
        (*data)[i] = random_float();
    return b;
}

static buffer make_weights(size_t count, uint16_t **data)
{
    const buffer b = make_buffer(count * sizeof **data);
    *data = (uint16_t *)(void *)b.data;
    for (size_t i = 0; i < count; i++)
        (*data)[i] = to_bf16(random_float());
    return b;
}

// |found - expected| within `units` roundings of float32 at the given size.
static void assert_near(double expected, float found, double size, double units)
{
    if (!(fabs(expected - (double)found) <= units * 0x1p-24 * (size + 1e-30)))
        fail_msg("expected %.9g, found %.9g", expected, (double)found);
}

// The same bits, or both not a number.
static void assert_same(const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            fail_msg("number %zu: %.9g and %.9g", i, (double)a[i], (double)b[i]);
}

static const size_t lengths[] = {1,  2,  3,  7,  8,  9,  15,  16,  17,  23,  31,  32,   33,
                                 47, 48, 49, 63, 64, 65, 100, 127, 128, 129, 768, 2000, 2048};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

// ---- products ----

// How far a product may be off, in roundings of float32 of the sum of all |terms|.
static double product_units(const q3_products *p, size_t columns)
{
    // Numbers as a pair of bf16 have 16 bits.
    const bool pairs = strcmp(p->name, "bf16") == 0 || strcmp(p->name, "amx") == 0;
    return 16 + (double)columns / 8 + (pairs ? 512 : 0);
}

enum { VECTORS_MAX = 70 };

// Vectors [first, first + count) of x, arranged: panels[i] is in `memory`.
static buffer arrange(const q3_products *p, const float *const *x, size_t count, size_t columns,
                      const void **panels)
{
    const size_t bytes = p->panel_bytes(columns);
    assert_int_equal(bytes % 64, 0);
    const size_t needed = (count + p->panel - 1) / p->panel;
    const buffer b = make_buffer(needed * bytes);
    for (size_t i = 0; i < needed; i++) {
        const size_t left = count - i * p->panel;
        p->arrange(x + i * p->panel, (unsigned)(left < p->panel ? left : p->panel), columns,
                   b.data + i * bytes);
        panels[i] = b.data + i * bytes;
    }
    return b;
}

static void check_product(const q3_products *p, size_t rows, size_t columns, size_t vectors)
{
    enum { FIRST = 3 };
    uint16_t *weights;
    buffer matrix = make_weights(rows * columns, &weights);
    buffer in[VECTORS_MAX], out[VECTORS_MAX];
    float *x[VECTORS_MAX], *y[VECTORS_MAX];
    const void *panels[VECTORS_MAX];
    for (size_t v = 0; v < vectors; v++) {
        in[v] = make_floats(columns, &x[v]);
        out[v] = make_floats(FIRST + rows, &y[v]);
    }
    buffer arranged = arrange(p, (const float *const *)x, vectors, columns, panels);
    const q3_next nothing = {0}, itself = {weights, 2 * rows * columns};
    p->multiply(weights, rows, columns, panels, vectors, y, FIRST, nothing);
    const double units = product_units(p, columns);
    for (size_t v = 0; v < vectors; v++)
        for (size_t r = 0; r < rows; r++) {
            double sum = 0, size = 0;
            for (size_t i = 0; i < columns; i++) {
                const double term = (double)from_bf16(weights[r * columns + i]) * (double)x[v][i];
                sum += term;
                size += fabs(term);
            }
            assert_near(sum, y[v][FIRST + r], size, units);
        }
    // Vectors alone, in rows alone and in two parts, whatever comes next: the same bits.
    float *alone;
    buffer alone_out = make_floats(rows, &alone);
    for (size_t v = 0; v < vectors; v++) {
        const void *panel;
        const float *one = x[v];
        buffer own = arrange(p, &one, 1, columns, &panel);
        for (size_t r = 0; r < rows; r++)
            p->multiply(weights + r * columns, 1, columns, &panel, 1, &alone, r, itself);
        assert_same(alone, y[v] + FIRST, rows);
        const size_t half = rows / 2;
        if (half)
            p->multiply(weights, half, columns, &panel, 1, &alone, 0,
                        (q3_next){weights + half * columns, 2 * (rows - half) * columns});
        p->multiply(weights + half * columns, rows - half, columns, &panel, 1, &alone, half,
                    nothing);
        assert_same(alone, y[v] + FIRST, rows);
        free_buffer(&own);
    }
    free_buffer(&alone_out);
    free_buffer(&arranged);
    for (size_t v = 0; v < vectors; v++) {
        free_buffer(&in[v]);
        free_buffer(&out[v]);
    }
    free_buffer(&matrix);
}

static void test_multiply(void **state)
{
    (void)state;
    static const size_t rows[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33};
    static const size_t vectors[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 15, 16, 17, 33};
    for (unsigned i = 0; i < products_count; i++) {
        random_state = 1;
        for (size_t n = 0; n < LENGTHS; n++) {
            check_product(products[i], 7, lengths[n], 9);
            check_product(products[i], 5, lengths[n], 1);
            check_product(products[i], 5, lengths[n], 2);
        }
        for (size_t a = 0; a < sizeof rows / sizeof *rows; a++)
            for (size_t b = 0; b < sizeof vectors / sizeof *vectors; b++)
                check_product(products[i], rows[a], random_bits() % 150 + 1, vectors[b]);
        check_product(products[i], 70, 768, VECTORS_MAX);
        check_product(products[i], 3, 9000, 4);
    }
}

// Where the level has no numbers of its own for them, many vectors give what few do.
static void test_few_and_many(void **state)
{
    (void)state;
    static const size_t columns[] = {1, 15, 16, 40, 64, 300, 768, 2048, 4096, 4097};
    enum { ROWS = 37, VECTORS = 101 };
    for (unsigned t = 0; t < table_count && strcmp(tables[t]->name, "bf16") != 0 &&
                         strcmp(tables[t]->name, "amx") != 0;
         t++) {
        random_state = 12;
        for (unsigned n = 0; n < sizeof columns / sizeof *columns; n++) {
            uint16_t *weights;
            float *x, *y[2][VECTORS];
            const float *in[VECTORS];
            const void *panels[VECTORS];
            buffer matrix = make_weights(ROWS * columns[n], &weights);
            buffer vectors = make_floats(VECTORS * columns[n], &x), out[2];
            for (unsigned kind = 0; kind < 2; kind++) {
                out[kind] = make_floats(VECTORS * ROWS, &y[kind][0]);
                for (size_t v = 0; v < VECTORS; v++) {
                    in[v] = x + v * columns[n];
                    y[kind][v] = y[kind][0] + v * ROWS;
                }
                const q3_products *p = kind ? tables[t]->many : tables[t]->few;
                buffer arranged = arrange(p, in, VECTORS, columns[n], panels);
                p->multiply(weights, ROWS, columns[n], panels, VECTORS, y[kind], 0, (q3_next){0});
                free_buffer(&arranged);
            }
            assert_same(y[0][0], y[1][0], VECTORS * ROWS);
            free_buffer(&out[0]);
            free_buffer(&out[1]);
            free_buffer(&vectors);
            free_buffer(&matrix);
        }
    }
}

// ---- frames ----

enum frame_kind { LIKE_WEIGHTS, ESCAPES, LONG_CODES, ONE_EXPONENT, FRAME_KINDS };

static void fill_frame(uint16_t *weights, size_t count, size_t row, enum frame_kind kind)
{
    for (size_t i = 0; i < count; i++) {
        const uint64_t bits = random_bits();
        // Exponents as trained weights have them: each step down half as likely, a scale a row.
        unsigned exponent =
            122 - 3 * (unsigned)(i / row % 4) - (unsigned)__builtin_ctzll(bits >> 20 | 1 << 20);
        if (kind == ESCAPES && i % 40 == 0)
            exponent = 60 + (unsigned)(i / 40 % 40);
        if (kind == LONG_CODES) // of the index 8 and beyond in whole groups
            exponent = i / 64 % 8 ? 120 : 100 + (unsigned)(bits >> 20) % 8;
        if (kind == ONE_EXPONENT)
            exponent = 121;
        weights[i] = (uint16_t)((bits & 0x8000) | exponent << 7 | (bits & 0x7f));
    }
}

// The product from the frame must be what decoding and multiplying makes of it, or fail with it.
// Returns whether it decodes.
static bool check_frame(const q3_products *p, const uint8_t *stored, size_t stored_bytes,
                        size_t rows, size_t columns)
{
    enum { FIRST = 2 };
    q3_error err;
    q3_bitplane decoder;
    q3_bitplane_init(&decoder);
    const size_t raw_bytes = 2 * rows * columns;
    buffer raw = make_buffer(raw_bytes);
    const bool decoded =
        q3_bitplane_decode(&decoder, stored, stored_bytes, raw.data, raw_bytes, false, &err);
    q3_bitplane_free(&decoder);
    q3_bitplane_view view;
    if (!q3_bitplane_parse(stored, stored_bytes, raw_bytes, &view, &err)) {
        assert_false(decoded);
        free_buffer(&raw);
        return false;
    }
    buffer in[8], out[8], expected_out[8];
    float *x[8], *y[8], *expected[8];
    const void *panels[8];
    assert_in_range(p->fused_vectors, 1, 8);
    const size_t most = p->fused_vectors;
    for (size_t v = 0; v < most; v++) {
        in[v] = make_floats(columns, &x[v]);
        out[v] = make_floats(FIRST + rows, &y[v]);
        expected_out[v] = make_floats(FIRST + rows, &expected[v]);
    }
    buffer arranged = arrange(p, (const float *const *)x, most, columns, panels);
    if (decoded)
        p->multiply((const uint16_t *)(const void *)raw.data, rows, columns, panels, most, expected,
                    FIRST, (q3_next){0});
    for (size_t vectors = 1; vectors <= most; vectors++) {
        assert_int_equal(p->multiply_frame(&view, rows, columns, panels, vectors, y, FIRST),
                         decoded);
        for (size_t v = 0; decoded && v < vectors; v++) {
            assert_same(y[v] + FIRST, expected[v] + FIRST, rows);
            memset(y[v], 0x55, (FIRST + rows) * sizeof(float));
        }
    }
    for (size_t v = 0; v < most; v++) {
        free_buffer(&in[v]);
        free_buffer(&out[v]);
        free_buffer(&expected_out[v]);
    }
    free_buffer(&arranged);
    free_buffer(&raw);
    return decoded;
}

// A frame in the last bytes of `b`; returns where it begins and in *bytes its size, NULL when it
// does not shrink.
static uint8_t *make_frame(buffer *b, size_t rows, size_t columns, enum frame_kind kind,
                           size_t *bytes)
{
    q3_error err;
    q3_bitplane encoder;
    q3_bitplane_init(&encoder);
    uint16_t *weights;
    buffer raw = make_weights(rows * columns, &weights);
    fill_frame(weights, rows * columns, columns, kind);
    assert_true(q3_bitplane_encode(&encoder, weights, raw.size, columns, b->data, bytes, &err));
    q3_bitplane_free(&encoder);
    const bool shrunk = *bytes < raw.size;
    free_buffer(&raw);
    if (!shrunk)
        return NULL;
    memmove(b->data + b->size - *bytes, b->data, *bytes);
    return b->data + b->size - *bytes;
}

static const struct {
    size_t rows, columns;
} frame_shapes[] = {{8, 64},  {9, 64},    {4, 128},  {3, 192},   {1, 512}, {17, 320},
                    {2, 768}, {170, 768}, {1, 2048}, {64, 2048}, {5, 4096}};

static void test_multiply_frame(void **state)
{
    (void)state;
    for (unsigned i = 0; i < products_count; i++) {
        const q3_products *p = products[i];
        if (!p->multiply_frame)
            continue;
        random_state = 2;
        for (size_t s = 0; s < sizeof frame_shapes / sizeof *frame_shapes; s++)
            for (unsigned kind = 0; kind < FRAME_KINDS; kind++) {
                const size_t rows = frame_shapes[s].rows, columns = frame_shapes[s].columns;
                buffer b = make_buffer(2 * rows * columns);
                size_t bytes;
                const uint8_t *frame = make_frame(&b, rows, columns, kind, &bytes);
                assert_non_null(frame);
                assert_true(check_frame(p, frame, bytes, rows, columns));
                // A view of other weights does not fit.
                q3_bitplane_view view;
                q3_error err;
                float number = 0, *y = &number;
                const void *panel = NULL;
                assert_true(q3_bitplane_parse(frame, bytes, 2 * rows * columns, &view, &err));
                assert_false(p->multiply_frame(&view, rows + 1, columns, &panel, 1, &y, 0));
                free_buffer(&b);
            }
    }
}

static void test_broken_frames(void **state)
{
    (void)state;
    for (unsigned i = 0; i < products_count; i++) {
        const q3_products *p = products[i];
        if (!p->multiply_frame)
            continue;
        random_state = 3;
        for (unsigned kind = 0; kind < FRAME_KINDS; kind++) {
            enum { ROWS = 6, COLUMNS = 128 };
            buffer b = make_buffer(2 * ROWS * COLUMNS);
            size_t bytes, accepted = 0, tried = 0;
            uint8_t *frame = make_frame(&b, ROWS, COLUMNS, kind, &bytes);
            assert_non_null(frame);
            uint8_t *copy = malloc(bytes);
            assert_non_null(copy);
            memcpy(copy, frame, bytes);
            for (size_t bit = 0; bit < 8 * bytes; bit += 1 + random_bits() % 6, tried++) {
                frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
                accepted += check_frame(p, frame, bytes, ROWS, COLUMNS);
                frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
            }
            assert_in_range(accepted, 1, tried - 1);
            // Planes that ask for all, streams of ones, and a few random bytes.
            for (unsigned round = 0; round < 300; round++) {
                memcpy(frame, copy, bytes);
                uint8_t *planes = frame + bytes - ROWS * COLUMNS / 64 * 16;
                if (round % 3 == 0)
                    memset(planes + random_bits() % 64, 0xff, 128);
                if (round % 3 == 1)
                    memset(frame + 96, 0xff, random_bits() % 200);
                for (unsigned n = 0; round % 3 == 2 && n < 4; n++)
                    frame[random_bits() % bytes] = (uint8_t)random_bits();
                check_frame(p, frame, bytes, ROWS, COLUMNS);
            }
            free(copy);
            free_buffer(&b);
        }
    }
}

// ---- bf12 ----

// Weights whose exponents are a window from `lowest` on, but for one in `rare` (0: none) that is
// anything, and the first and the last of all, which are the largest and the smallest there are.
static void fill_window(uint16_t *weights, size_t count, unsigned lowest, unsigned rare)
{
    for (size_t i = 0; i < count; i++) {
        const uint64_t bits = random_bits();
        const unsigned exponent = rare && (bits >> 33) % rare == 0
                                      ? (unsigned)(bits >> 8) & 0xff
                                      : lowest + ((unsigned)bits >> 8 & 15);
        weights[i] = (uint16_t)((bits & 0x8000) | exponent << 7 | (bits & 0x7f));
    }
    if (rare) {
        weights[0] = 0xffff;
        weights[count - 1] = 0;
    }
}

// The block, of plain C and in the last bytes of a buffer, must be the same for all; and what comes
// back, and the product.
static void check_bf12(const uint16_t *weights, size_t rows, size_t columns, unsigned lowest)
{
    enum { FIRST = 2, MOST = 173 };
    const size_t count = rows * columns;
    const size_t outside = q3_kernels_c.bf12->outside(weights, count, lowest);
    const size_t bytes = count / 64 * 96 + (outside + 1) * sizeof(q3_bf12_exception);
    buffer block = make_buffer(bytes);
    q3_kernels_c.bf12->pack(weights, count, lowest, block.data);
    const q3_bf12 bf12 = q3_bf12_at(block.data, count, lowest);
    assert_int_equal(bf12.exceptions[outside].weight, UINT32_MAX);
    for (unsigned t = 0; t < table_count; t++) {
        buffer again = make_buffer(bytes), back = make_buffer(2 * count);
        assert_int_equal(tables[t]->bf12->outside(weights, count, lowest), outside);
        tables[t]->bf12->pack(weights, count, lowest, again.data);
        assert_memory_equal(again.data + count / 64 * 96, bf12.exceptions, bytes - count / 64 * 96);
        if (!outside)
            assert_memory_equal(again.data, block.data, bytes);
        const q3_bf12 other = q3_bf12_at(again.data, count, lowest);
        tables[t]->bf12->unpack(&other, count, (uint16_t *)(void *)back.data);
        assert_memory_equal(back.data, weights, 2 * count);
        tables[t]->bf12->unpack(&bf12, count, (uint16_t *)(void *)back.data);
        assert_memory_equal(back.data, weights, 2 * count);
        free_buffer(&again);
        free_buffer(&back);
    }
    for (unsigned i = 0; i < products_count; i++) {
        const q3_products *p = products[i];
        if (!p->multiply_bf12)
            continue;
        // So many that there are several panels, and groups of them.
        const size_t some = rows >= 33 && (columns <= 768 || columns > 4096) ? MOST : 13;
        const size_t most = p->bf12_vectors < some ? p->bf12_vectors : some;
        buffer in[MOST], out[MOST], expected_out[MOST];
        float *x[MOST], *y[MOST], *expected[MOST];
        const void *panels[MOST];
        for (size_t v = 0; v < most; v++) {
            in[v] = make_floats(columns, &x[v]);
            out[v] = make_floats(FIRST + rows, &y[v]);
            expected_out[v] = make_floats(FIRST + rows, &expected[v]);
        }
        buffer arranged = arrange(p, (const float *const *)x, most, columns, panels);
        p->multiply(weights, rows, columns, panels, most, expected, FIRST, (q3_next){0});
        for (size_t vectors = 1; vectors <= most; vectors += vectors < 13 ? 1 : 20) {
            p->multiply_bf12(&bf12, rows, columns, panels, vectors, y, FIRST, (q3_next){0});
            for (size_t v = 0; v < vectors; v++) {
                assert_same(y[v] + FIRST, expected[v] + FIRST, rows);
                memset(y[v], 0x55, (FIRST + rows) * sizeof(float));
            }
        }
        free_buffer(&arranged);
        for (size_t v = 0; v < most; v++) {
            free_buffer(&in[v]);
            free_buffer(&out[v]);
            free_buffer(&expected_out[v]);
        }
    }
    free_buffer(&block);
}

static void test_bf12(void **state)
{
    (void)state;
    static const size_t rows[] = {1, 2, 3, 4, 5, 7, 8, 33, 70};
    static const size_t columns[] = {64, 128, 192, 768, 2048, 4160};
    static const unsigned rare[] = {0, 5, 60, 1000};
    random_state = 9;
    for (size_t a = 0; a < sizeof rows / sizeof *rows; a++)
        for (size_t b = 0; b < sizeof columns / sizeof *columns; b++)
            for (size_t c = 0; c < sizeof rare / sizeof *rare; c++) {
                const unsigned lowest = (unsigned)(random_bits() % 121) * 2;
                uint16_t *weights;
                buffer matrix = make_weights(rows[a] * columns[b], &weights);
                fill_window(weights, rows[a] * columns[b], lowest, rare[c]);
                check_bf12(weights, rows[a], columns[b], lowest);
                free_buffer(&matrix);
            }
    // Every bf16 number, with the lowest and the highest window.
    enum { ALL = 1 << 16 };
    uint16_t *all;
    buffer numbers = make_weights(ALL, &all);
    for (unsigned i = 0; i < ALL; i++)
        all[i] = (uint16_t)i;
    static const unsigned ends[] = {0, 112, Q3_BF12_LOWEST_MAX};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        assert_int_equal(q3_kernels_c.bf12->outside(all, ALL, ends[i]), ALL / 16 * 15);
        check_bf12(all, ALL / 256, 256, ends[i]);
    }
    free_buffer(&numbers);
}

// ---- gated pairs ----

// The same rows, plain and as bf12.
typedef struct gated_rows {
    buffer plain, block;
    q3_rows as[2];
} gated_rows;

static gated_rows make_gated_rows(size_t count)
{
    enum { LOWEST = 112, RARE = 300 };
    gated_rows rows;
    uint16_t *weights;
    rows.plain = make_weights(count, &weights);
    fill_window(weights, count, LOWEST, RARE);
    for (size_t i = 0; i < count; i++)
        if ((weights[i] & 0x7f80) > 0x3f80) // so that sums are finite
            weights[i] = 0x3f80;
    const size_t outside = q3_kernels_c.bf12->outside(weights, count, LOWEST);
    rows.block = make_buffer(count / 64 * 96 + (outside + 1) * sizeof(q3_bf12_exception));
    q3_kernels_c.bf12->pack(weights, count, LOWEST, rows.block.data);
    rows.as[0] = (q3_rows){.plain = weights};
    rows.as[1] = (q3_rows){.bf12 = q3_bf12_at(rows.block.data, count, LOWEST)};
    return rows;
}

// In two calls, what is arranged must be what multiply, silu_multiply and arrange make.
static void check_gated(const q3_kernels *table, const q3_products *p, size_t rows, size_t columns,
                        size_t vectors)
{
    enum { MOST = 173 };
    assert_true(vectors <= MOST);
    const size_t upper = p->gated_rows, lower = rows - upper;
    gated_rows gate[2] = {make_gated_rows(upper * columns), make_gated_rows(lower * columns)};
    gated_rows up[2] = {make_gated_rows(upper * columns), make_gated_rows(lower * columns)};
    buffer in[MOST], gates[MOST], ups[MOST];
    float *x[MOST], *gate_of[MOST], *up_of[MOST];
    const void *panels[MOST], *expected[MOST];
    void *inner[MOST];
    for (size_t v = 0; v < vectors; v++) {
        in[v] = make_floats(columns, &x[v]);
        gates[v] = make_floats(rows, &gate_of[v]);
        ups[v] = make_floats(rows, &up_of[v]);
    }
    buffer arranged = arrange(p, (const float *const *)x, vectors, columns, panels);
    for (unsigned part = 0; part < 2; part++) {
        const size_t first = part ? upper : 0, count = part ? lower : upper;
        p->multiply(gate[part].as[0].plain, count, columns, panels, vectors, gate_of, first,
                    (q3_next){0});
        p->multiply(up[part].as[0].plain, count, columns, panels, vectors, up_of, first,
                    (q3_next){0});
    }
    for (size_t v = 0; v < vectors; v++)
        table->silu_multiply(gate_of[v], up_of[v], rows);
    buffer wanted = arrange(p, (const float *const *)gate_of, vectors, rows, expected);
    buffer found = make_buffer(wanted.size);
    for (size_t i = 0; i * p->panel < vectors; i++)
        inner[i] = found.data + i * p->panel_bytes(rows);
    for (unsigned form = 0; form < 2; form++) {
        memset(found.data, 0x55, found.size);
        for (unsigned part = 0; part < 2; part++) {
            const q3_next next[2] = {{gate[1].as[0].plain, 2 * columns * form},
                                     {up[1].as[1].bf12.groups, 96 * (1 - form)}};
            p->multiply_gated(&gate[part].as[form], &up[part].as[form], part ? lower : upper,
                              columns, panels, vectors, inner, part ? upper : 0, next);
        }
        assert_memory_equal(found.data, wanted.data, wanted.size);
    }
    free_buffer(&found);
    free_buffer(&wanted);
    free_buffer(&arranged);
    for (size_t v = 0; v < vectors; v++) {
        free_buffer(&in[v]);
        free_buffer(&gates[v]);
        free_buffer(&ups[v]);
    }
    for (unsigned part = 0; part < 2; part++) {
        free_buffer(&gate[part].plain);
        free_buffer(&gate[part].block);
        free_buffer(&up[part].plain);
        free_buffer(&up[part].block);
    }
}

static void test_gated(void **state)
{
    (void)state;
    static const size_t columns[] = {64, 192, 768, 2112};
    static const size_t vectors[] = {1, 15, 16, 17, 33, 49, 160, 173};
    unsigned checked = 0;
    for (unsigned t = 0; t < table_count; t++) {
        const q3_products *p = tables[t]->many;
        if (!p->multiply_gated)
            continue;
        random_state = 15;
        for (size_t a = 0; a < sizeof columns / sizeof *columns; a++)
            for (size_t b = 0; b < sizeof vectors / sizeof *vectors; b++)
                for (size_t rows = 2; rows <= 6; rows += b % 2 ? 1 : 2)
                    check_gated(tables[t], p, rows * p->gated_rows, columns[a], vectors[b]);
        checked++;
    }
    if (!checked)
        skip();
}

// The lowest of the windows that take in the most of the weights.
static void test_bf12_window(void **state)
{
    (void)state;
    static const struct {
        unsigned first, last, window; // exponents that there are
    } cases[] = {{0, 15, 0},   {240, 255, 240}, {101, 102, 88},  {100, 115, 100}, {101, 115, 100},
                 {99, 99, 84}, {1, 1, 0},       {255, 255, 240}, {120, 124, 110}};
    enum { COUNT = 1 << 17 };
    uint16_t *weights;
    buffer b = make_weights(COUNT, &weights);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t count = 64; count <= COUNT; count *= 8) {
            const unsigned exponents = cases[i].last - cases[i].first + 1;
            for (size_t j = 0; j < count; j++)
                weights[j] =
                    (uint16_t)((cases[i].first + j % exponents) << 7 | (j & 0x7f) | (j & 1) << 15);
            assert_int_equal(q3_bf12_window(weights, count), cases[i].window);
        }
    free_buffer(&b);
}

// A block is made bf12 as long as its exceptions have room, and else left alone with its memory.
static void test_bf12_room(void **state)
{
    (void)state;
    static const size_t counts[] = {64, 512, 8192, 1 << 17};
    random_state = 11;
    for (unsigned t = 0; t < table_count; t++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const size_t count = counts[i], room = q3_bf12_room(count);
            uint16_t *weights;
            buffer b = make_weights(count, &weights);
            buffer memory = make_buffer(q3_bf12_bytes(count)), back = make_buffer(2 * count);
            fill_window(weights, count, 100, 0);
            for (size_t j = 0; j < room; j++)
                weights[count - 1 - j * (count / (room + 1))] = j % 2 ? 0x7fff : 0x8001;
            q3_block block = {0};
            assert_true(q3_block_shorten(tables[t]->bf12, weights, count, memory.data, &block));
            assert_ptr_equal(block.data, memory.data);
            assert_int_equal(block.bytes, count / 64 * 96);
            assert_int_equal(block.kind, Q3_BLOCK_BF12);
            assert_int_equal(block.lowest, 100);
            const q3_bf12 made = q3_bf12_at(block.data, count, block.lowest);
            assert_int_equal(made.exceptions[room].weight, UINT32_MAX);
            tables[t]->bf12->unpack(&made, count, (uint16_t *)(void *)back.data);
            assert_memory_equal(back.data, weights, 2 * count);
            weights[0] = 0;
            memset(memory.data, guard, memory.size);
            block = (q3_block){.bytes = 1};
            assert_false(q3_block_shorten(tables[t]->bf12, weights, count, memory.data, &block));
            for (size_t j = 0; j < memory.size; j++)
                assert_int_equal(memory.data[j], guard);
            assert_null(block.data);
            assert_int_equal(block.bytes, 1);
            // All of them of one kind: zeros, the smallest numbers, infinite, none.
            static const uint16_t same[] = {0, 0x8000, 1, 0x807f, 0x7f80, 0xff80, 0x7fff, 0xffc0};
            for (size_t k = 0; k < sizeof same / sizeof *same; k++) {
                for (size_t j = 0; j < count; j++)
                    weights[j] = same[k];
                assert_true(q3_block_shorten(tables[t]->bf12, weights, count, memory.data, &block));
                const q3_bf12 uniform = q3_bf12_at(block.data, count, block.lowest);
                assert_int_equal(uniform.exceptions[0].weight, UINT32_MAX);
                tables[t]->bf12->unpack(&uniform, count, (uint16_t *)(void *)back.data);
                assert_memory_equal(back.data, weights, 2 * count);
            }
            free_buffer(&b);
            free_buffer(&memory);
            free_buffer(&back);
        }
}

// ---- number by number ----

static void test_rms_norm(void **state)
{
    (void)state;
    for (unsigned t = 0; t < table_count; t++)
        for (size_t n = 0; n < LENGTHS; n++) {
            const size_t count = lengths[n];
            float *x, *y;
            uint16_t *weight;
            random_state = 4 + n;
            buffer in = make_floats(count, &x), out = make_floats(count, &y);
            buffer weights = make_weights(count, &weight);
            double sum = 0;
            for (size_t i = 0; i < count; i++)
                sum += (double)x[i] * (double)x[i];
            const double factor = 1 / sqrt(sum / (double)count + 1e-6);
            tables[t]->rms_norm(x, weight, 1e-6f, count, y);
            for (size_t i = 0; i < count; i++) {
                const double expected = (double)from_bf16(weight[i]) * (double)x[i] * factor;
                assert_near(expected, y[i], fabs(expected), 16 + (double)count / 32);
            }
            tables[t]->rms_norm(x, weight, 1e-6f, count, x);
            assert_same(x, y, count);
            free_buffer(&in);
            free_buffer(&out);
            free_buffer(&weights);
        }
}

static void test_rotate(void **state)
{
    (void)state;
    for (unsigned t = 0; t < table_count; t++)
        for (size_t n = 0; n < LENGTHS; n++) {
            const size_t half = lengths[n];
            float *x, *cosine, *sine;
            random_state = 5 + n;
            buffer in = make_floats(2 * half, &x), c = make_floats(half, &cosine);
            buffer s = make_floats(half, &sine);
            double *expected = malloc(2 * half * sizeof *expected);
            assert_non_null(expected);
            for (size_t j = 0; j < half; j++) {
                const double a = (double)x[j], b = (double)x[j + half];
                expected[j] = a * (double)cosine[j] - b * (double)sine[j];
                expected[j + half] = b * (double)cosine[j] + a * (double)sine[j];
            }
            tables[t]->rotate(x, cosine, sine, half);
            for (size_t j = 0; j < 2 * half; j++)
                assert_near(expected[j], x[j], 2, 2);
            free(expected);
            free_buffer(&in);
            free_buffer(&c);
            free_buffer(&s);
        }
}

static void test_softmax(void **state)
{
    (void)state;
    for (unsigned t = 0; t < table_count; t++) {
        for (size_t n = 0; n < LENGTHS; n++) {
            const size_t count = lengths[n];
            float *x;
            random_state = 6 + n;
            buffer b = make_floats(count, &x);
            double *expected = malloc(count * sizeof *expected);
            assert_non_null(expected);
            double sum = 0, largest = -INFINITY;
            for (size_t i = 0; i < count; i++) {
                x[i] *= 20;
                if (i % 5 == 3)
                    x[i] = -INFINITY;
                largest = fmax(largest, (double)x[i]);
            }
            for (size_t i = 0; i < count; i++)
                sum += expected[i] = exp((double)x[i] - largest);
            tables[t]->softmax(x, count);
            for (size_t i = 0; i < count; i++) {
                if (i % 5 == 3)
                    assert_true(x[i] == 0.0f);
                // The argument is rounded before exp: up to 32 roundings of the result.
                assert_near(expected[i] / sum, x[i], expected[i] / sum, 40 + (double)count / 16);
            }
            // The largest at each place, a lot below zero, so that no other number may come first.
            for (size_t place = 0; place < count; place += 1 + count / 40) {
                for (size_t i = 0; i < count; i++)
                    x[i] = i == place ? -500.0f : -1000.0f;
                tables[t]->softmax(x, count);
                for (size_t i = 0; i < count; i++)
                    assert_true(x[i] == (i == place ? 1.0f : 0.0f));
            }
            // One that is not a number makes all so, wherever it is.
            for (size_t place = 0; place < count; place += 1 + count / 40) {
                for (size_t i = 0; i < count; i++)
                    x[i] = i == place ? NAN : 1.0f;
                tables[t]->softmax(x, count);
                for (size_t i = 0; i < count; i++)
                    assert_true(isnan(x[i]));
            }
            free(expected);
            free_buffer(&b);
        }
        float far[] = {1000.0f, 0.0f, -1000.0f, 1000.0f};
        tables[t]->softmax(far, 4);
        assert_true(far[0] == 0.5f && far[1] == 0.0f && far[2] == 0.0f && far[3] == 0.5f);
    }
}

static void test_silu_multiply(void **state)
{
    (void)state;
    enum { COUNT = 4001 };
    for (unsigned t = 0; t < table_count; t++) {
        float *gate, *up;
        random_state = 7;
        buffer a = make_floats(COUNT, &gate), b = make_floats(COUNT, &up);
        double expected[COUNT];
        for (size_t i = 0; i < COUNT; i++) {
            gate[i] = (float)((double)i / 20 - 100);
            const double x = (double)gate[i];
            expected[i] = x / (1 + exp(-x)) * (double)up[i];
        }
        tables[t]->silu_multiply(gate, up, COUNT);
        for (size_t i = 0; i < COUNT; i++)
            // Beyond -87 the result is below 1e-35, and how far is of no interest.
            assert_near(expected[i], gate[i], fabs(expected[i]) + (i < 260 ? 1e-28 : 0), 8);
        free_buffer(&a);
        free_buffer(&b);
        for (size_t n = 0; n < LENGTHS; n++) {
            const size_t count = lengths[n];
            float *whole, *alone;
            a = make_floats(count, &whole), b = make_floats(count, &alone);
            memcpy(alone, whole, count * sizeof *alone);
            whole[count / 2] = alone[count / 2] = n % 3 ? INFINITY : NAN;
            const float one = 1.0f;
            float ones[2048];
            for (size_t i = 0; i < count; i++) {
                ones[i] = 1.0f;
                tables[t]->silu_multiply(alone + i, &one, 1);
            }
            tables[t]->silu_multiply(whole, ones, count);
            assert_same(whole, alone, count);
            assert_true(n % 3 ? whole[count / 2] == INFINITY : isnan(whole[count / 2]));
            free_buffer(&a);
            free_buffer(&b);
        }
    }
}

static void test_add_scaled(void **state)
{
    (void)state;
    for (unsigned t = 0; t < table_count; t++)
        for (size_t n = 0; n < LENGTHS; n++) {
            const size_t count = lengths[n];
            float *x, *y;
            random_state = 8 + n;
            buffer a = make_floats(count, &x), b = make_floats(count, &y);
            double *expected = malloc(count * sizeof *expected);
            assert_non_null(expected);
            for (size_t i = 0; i < count; i++)
                expected[i] = (double)y[i] + 0.75 * (double)x[i];
            tables[t]->add_scaled(y, x, 0.75f, count);
            for (size_t i = 0; i < count; i++)
                assert_near(expected[i], y[i], 2, 2);
            free(expected);
            free_buffer(&a);
            free_buffer(&b);
        }
}

static void test_conversions(void **state)
{
    (void)state;
    enum { COUNT = 1 << 16 };
    uint16_t *narrow, *again, *expected;
    float *wide;
    buffer a = make_weights(COUNT, &narrow), b = make_weights(COUNT, &again);
    buffer c = make_weights(COUNT, &expected), d = make_floats(COUNT, &wide);
    for (unsigned t = 0; t < table_count; t++) {
        // Every bf16 there and back; what is not a number becomes quiet.
        for (unsigned i = 0; i < COUNT; i++)
            narrow[i] = (uint16_t)i;
        tables[t]->widen(narrow, COUNT, wide);
        for (unsigned i = 0; i < COUNT; i++) {
            uint32_t bits;
            memcpy(&bits, &wide[i], sizeof bits);
            assert_int_equal(bits, i << 16);
        }
        tables[t]->narrow(wide, COUNT, again);
        for (unsigned i = 0; i < COUNT; i++)
            assert_int_equal(again[i], (i & 0x7fff) > 0x7f80 ? i | 0x40 : i);
        // Random bits, and ties and their neighbours.
        random_state = 9;
        for (unsigned i = 0; i < COUNT; i++) {
            uint32_t bits = (uint32_t)random_bits();
            if (i % 4)
                bits = (bits & 0xffff0000) + 0x7ffe + i % 4;
            memcpy(&wide[i], &bits, sizeof bits);
        }
        q3_kernels_c.narrow(wide, COUNT, expected);
        tables[t]->narrow(wide, COUNT, again);
        assert_memory_equal(again, expected, COUNT * sizeof *again);
        for (size_t n = 0; n < LENGTHS; n++) {
            uint16_t *short_narrow, *short_again;
            float *short_wide;
            const size_t count = lengths[n];
            buffer e = make_weights(count, &short_narrow), f = make_weights(count, &short_again);
            buffer g = make_floats(count, &short_wide);
            tables[t]->widen(short_narrow, count, short_wide);
            tables[t]->narrow(short_wide, count, short_again);
            assert_memory_equal(short_again, short_narrow, count * sizeof *short_again);
            free_buffer(&e);
            free_buffer(&f);
            free_buffer(&g);
        }
    }
    free_buffer(&a);
    free_buffer(&b);
    free_buffer(&c);
    free_buffer(&d);
}

// ---- attention ----

// A way to compute attention: of `many`, or else of few tokens.
typedef struct attending {
    const q3_kernels *kernels;
    const q3_attend_many *many;
} attending;

static void attend(const attending *how, const q3_attention *attention)
{
    (how->many ? how->many->attend : how->kernels->attend)(attention);
}

// Queries are up to `strength`: how different a row's weights are.
static void check_attention(const attending *how, size_t tokens, size_t heads, size_t dim,
                            size_t positions, bool is_narrow, float strength)
{
    const size_t all = positions + tokens - 1, stride = q3_score_stride(all);
    const size_t query_stride = heads * dim + random_bits() % 5;
    const size_t out_stride = heads * dim + random_bits() % 5;
    const size_t scratch =
        how->many ? how->many->scratch_bytes(heads, dim) / sizeof(float) : tokens * heads * stride;
    float *query, *out, *keys, *values, *scores, *alone;
    uint16_t *narrow_keys, *narrow_values;
    buffer buffers[8];
    buffers[0] = make_floats((tokens - 1) * query_stride + heads * dim, &query);
    buffers[1] = make_floats((tokens - 1) * out_stride + heads * dim, &out);
    buffers[2] = make_floats(stride * dim, &keys);
    buffers[3] = make_floats(all * dim, &values);
    buffers[4] = make_floats(scratch, &scores);
    buffers[5] = make_floats(tokens * heads * dim, &alone);
    buffers[6] = make_weights(stride * dim, &narrow_keys);
    buffers[7] = make_weights(all * dim, &narrow_values);
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < heads * dim; i++)
            query[t * query_stride + i] *= strength;
    if (is_narrow) {
        q3_kernels_c.narrow(keys, stride * dim, narrow_keys);
        q3_kernels_c.widen(narrow_keys, stride * dim, keys);
        q3_kernels_c.narrow(values, all * dim, narrow_values);
        q3_kernels_c.widen(narrow_values, all * dim, values);
    }
    const double scale = 1 / sqrt((double)dim);
    q3_attention attention = {
        .query = query,
        .out = out,
        .query_stride = query_stride,
        .out_stride = out_stride,
        .tokens = tokens,
        .heads = heads,
        .head_dim = dim,
        .positions = positions,
        .keys = is_narrow ? (const void *)narrow_keys : keys,
        .values = is_narrow ? (const void *)narrow_values : values,
        .narrow = is_narrow,
        .scale = (float)scale,
        .scores = scores,
    };
    attend(how, &attention);
    // In roundings of float32. With tiles weights and values are split in parts of 16 bits
    // together.
    const double units = how->many ? 256 + 8 * (double)strength : 32 + (double)(dim + all) / 16;
    double *weight = malloc(all * sizeof *weight);
    assert_non_null(weight);
    for (size_t t = 0; t < tokens; t++)
        for (size_t h = 0; h < heads; h++) {
            const float *q = query + t * query_stride + h * dim;
            const float *found = out + t * out_stride + h * dim;
            double sum = 0;
            for (size_t p = 0; p < positions + t; p++) {
                double dot = 0;
                for (size_t i = 0; i < dim; i++)
                    dot += (double)q[i] * (double)keys[p / Q3_KEY_PANEL * Q3_KEY_PANEL * dim +
                                                       i * Q3_KEY_PANEL + p % Q3_KEY_PANEL];
                sum += weight[p] = exp(scale * dot);
            }
            for (size_t i = 0; i < dim; i++) {
                double expected = 0;
                for (size_t p = 0; p < positions + t; p++)
                    expected += weight[p] / sum * (double)values[p * dim + i];
                assert_near(expected, found[i], 1, units);
            }
            // A head of a token by itself: the same bits.
            if (how->many && random_bits() % 16)
                continue;
            q3_attention one = attention;
            one.query = q;
            one.out = alone;
            one.tokens = one.heads = 1;
            one.positions = positions + t;
            one.query_stride = one.out_stride = 0;
            attend(how, &one);
            assert_same(alone, found, dim);
        }
    // The last tokens of them.
    q3_attention last = attention;
    const size_t first = random_bits() % tokens;
    last.query += first * query_stride;
    last.out = alone;
    last.out_stride = heads * dim;
    last.tokens -= first;
    last.positions += first;
    attend(how, &last);
    for (size_t t = first; t < tokens; t++)
        assert_same(alone + (t - first) * last.out_stride, out + t * out_stride, heads * dim);
    free(weight);
    for (unsigned i = 0; i < 8; i++)
        free_buffer(&buffers[i]);
}

static const size_t attend_dims[] = {1, 2, 5, 8, 15, 16, 17, 24, 30, 32, 40, 48, 64, 100, 128};
static const size_t attend_positions[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 100, 300};
enum {
    ATTEND_DIMS = sizeof attend_dims / sizeof *attend_dims,
    ATTEND_POSITIONS = sizeof attend_positions / sizeof *attend_positions,
};

static void test_attend(void **state)
{
    (void)state;
    for (unsigned t = 0; t < table_count; t++) {
        const attending how = {.kernels = tables[t]};
        random_state = 10;
        for (size_t a = 0; a < ATTEND_DIMS; a++)
            for (size_t b = 0; b < ATTEND_POSITIONS; b++) {
                const size_t tokens = 1 + random_bits() % Q3_ATTEND_TOKENS;
                const size_t heads = 1 + random_bits() % 9;
                const size_t dim = attend_dims[a], positions = attend_positions[b];
                check_attention(&how, tokens, heads, dim, positions, false, 1);
                check_attention(&how, tokens, heads, dim, positions, true, 1);
            }
        check_attention(&how, 4, 8, 128, 1000, false, 1);
        check_attention(&how, 4, 16, 128, 1001, true, 1);
    }
}

static void test_attend_many(void **state)
{
    (void)state;
    bool any = false;
    for (unsigned t = 0; t < table_count; t++) {
        const attending how = {.kernels = tables[t], .many = tables[t]->attend_many};
        if (!how.many)
            continue;
        any = true;
        random_state = 11;
        for (size_t a = 0; a < ATTEND_DIMS; a++)
            for (size_t b = 0; b < ATTEND_POSITIONS; b++) {
                const size_t tokens = 1 + random_bits() % how.many->tokens;
                const size_t heads = 1 + random_bits() % 9;
                const size_t dim = attend_dims[a], positions = attend_positions[b];
                check_attention(&how, tokens, heads, dim, positions, b % 2, 1);
                check_attention(&how, 1 + random_bits() % 4, heads, dim, positions, a % 2, 16);
            }
        check_attention(&how, how.many->tokens, 8, 128, 1, false, 1);
        check_attention(&how, how.many->tokens, 8, 128, 1000, false, 16);
        check_attention(&how, how.many->tokens, 4, 128, 1001, true, 1);
    }
    if (!any)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_multiply),       cmocka_unit_test(test_few_and_many),
        cmocka_unit_test(test_multiply_frame), cmocka_unit_test(test_broken_frames),
        cmocka_unit_test(test_rms_norm),       cmocka_unit_test(test_rotate),
        cmocka_unit_test(test_softmax),        cmocka_unit_test(test_silu_multiply),
        cmocka_unit_test(test_add_scaled),     cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_attend),         cmocka_unit_test(test_attend_many),
        cmocka_unit_test(test_bf12),           cmocka_unit_test(test_bf12_window),
        cmocka_unit_test(test_bf12_room),      cmocka_unit_test(test_gated),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
