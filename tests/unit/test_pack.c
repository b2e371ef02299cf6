// SPDX-License-Identifier: Apache-2.0
//
// Pack files: what is written is read, of any type and shape; every changed bit and every
// truncation is reported; a directory with right checksums and wrong contents is refused.
#include "base/hash.h"
#include "pack.h"
#include "pack_format.h"
#include "support.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint8_t *weights_of(const q3_tensor *tensor, unsigned seed)
{
    uint8_t *raw = malloc(tensor->bytes ? tensor->bytes : 1);
    uint64_t random = seed;
    for (uint64_t i = 0; i < tensor->bytes; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        // Odd bytes, where a bf16 has its exponent, take few values.
        raw[i] = i % 2 ? (uint8_t)(0x3c + (random >> 60 & 1)) : (uint8_t)(random >> 40);
    }
    return raw;
}

// Writes a pack file of the tensors with weights_of as their contents.
static void write_pack(const char *path, q3_tensor *tensors, uint32_t count, q3_codec codec,
                       q3_hash128 *root)
{
    q3_error err;
    q3_pack_writer *writer;
    q3_coder *coder = q3_coder_create(&err);
    if (!q3_pack_writer_create(path, tensors, count, &writer, &err))
        fail_msg("%s", err.message);
    uint8_t *stored = malloc(Q3_FRAME_BYTES);
    for (uint32_t t = 0; t < count; t++) {
        uint8_t *raw = weights_of(&tensors[t], t);
        for (uint32_t f = 0; f < q3_frame_count(&tensors[t]); f++) {
            const uint64_t at = (uint64_t)f * q3_frame_cut(&tensors[t]);
            const uint64_t left = tensors[t].bytes - at;
            const size_t size =
                left < q3_frame_cut(&tensors[t]) ? (size_t)left : q3_frame_cut(&tensors[t]);
            q3_codec used = codec;
            size_t stored_bytes;
            if (!q3_codec_encode(coder, &used, tensors[t].dtype, 0, raw + at, size, stored,
                                 &stored_bytes, &err) ||
                !q3_pack_writer_add(writer, used, raw + at, size, stored, stored_bytes,
                                    q3_hash64(stored, stored_bytes), &err))
                fail_msg("%s", err.message);
        }
        free(raw);
    }
    uint64_t size;
    if (!q3_pack_writer_publish(writer, &size, root, &err))
        fail_msg("%s", err.message);
    free(stored);
    q3_coder_destroy(coder);
}

static q3_tensor tensor_of(const char *name, q3_dtype dtype, unsigned rank, uint64_t a, uint64_t b)
{
    q3_tensor tensor = {.name = name, .dtype = dtype, .rank = rank, .shape = {a, b}};
    assert_true(q3_tensor_size(&tensor));
    return tensor;
}

// Reads everything of a pack file and checks everything. NULL, or the message of what is wrong.
static const char *check_pack(const char *path, q3_error *err)
{
    q3_pack pack;
    if (!q3_pack_open(path, &pack, err))
        return err->message;
    q3_coder *coder = q3_coder_create(err);
    bool ok = q3_pack_check_lead(&pack, err);
    for (uint32_t t = 0; ok && t < pack.tensor_count; t++) {
        const q3_pack_tensor *tensor = &pack.tensors[t];
        uint8_t *raw = malloc(tensor->tensor.bytes + 1);
        size_t longest = 1;
        for (uint32_t i = 0; i < tensor->frame_count; i++) {
            const size_t span = (size_t)q3_pack_span(&pack, tensor, i);
            longest = span > longest ? span : longest;
        }
        uint8_t *stored = malloc(longest);
        for (uint32_t i = 0; ok && i < tensor->frame_count; i++)
            ok = q3_pack_check_frame(&pack, tensor, i, stored, err);
        ok = ok && q3_pack_read_tensor(&pack, tensor, coder, stored, raw, err) &&
             q3_pack_check_tensor(&pack, tensor, q3_hash128_of(raw, tensor->tensor.bytes), err);
        free(raw);
        free(stored);
    }
    q3_coder_destroy(coder);
    q3_pack_close(&pack);
    return ok ? NULL : err->message;
}

static void test_round_trip(void **state)
{
    (void)state;
    q3_error err;
    q3_tensor tensors[] = {
        tensor_of("whole rows", Q3_BF16, 2, 768, 2048),
        tensor_of("rows that align only by 64", Q3_BF16, 2, 3000, 101),
        tensor_of("one long row", Q3_BF16, 1, 1000003, 0),
        tensor_of("empty", Q3_BF16, 2, 0, 5),
        tensor_of("scalar", Q3_F32, 0, 0, 0),
        tensor_of("bytes", Q3_U8, 1, 300001, 0),
        tensor_of("doubles", Q3_F64, 2, 7, 3),
    };
    const uint32_t count = sizeof tensors / sizeof *tensors;
    for (q3_codec codec = Q3_CODEC_RAW; codec <= Q3_CODEC_ZSTD; codec++) {
        char *path = q3_test_path("%s/round-trip.q3p", q3_test_scratch);
        q3_hash128 root;
        write_pack(path, tensors, count, codec, &root);
        assert_null(check_pack(path, &err));
        q3_pack pack;
        assert_true(q3_pack_open(path, &pack, &err));
        assert_int_equal(pack.tensor_count, count);
        assert_true(q3_hash128_equal(pack.root, root));
        assert_int_equal(pack.size % Q3_PACK_ALIGNMENT, 0);
        q3_coder *coder = q3_coder_create(&err);
        for (uint32_t t = 0; t < count; t++) {
            const q3_pack_tensor *found = q3_pack_find(&pack, tensors[t].name);
            assert_non_null(found);
            assert_int_equal(found->tensor.dtype, tensors[t].dtype);
            assert_true(q3_shape_equal(found->tensor.rank, found->tensor.shape, tensors[t].rank,
                                       tensors[t].shape));
            uint8_t *expected = weights_of(&tensors[t], t), *raw = malloc(tensors[t].bytes + 1);
            uint8_t *stored = malloc(Q3_FRAME_BYTES);
            assert_true(q3_pack_read_tensor(&pack, found, coder, stored, raw, &err));
            assert_memory_equal(raw, expected, tensors[t].bytes);
            free(stored);
            free(raw);
            free(expected);
            for (uint32_t f = 0; f < found->frame_count; f++) {
                const q3_frame *frame = &pack.frames[found->first_frame + f];
                assert_int_equal(frame->offset % (f ? 64 : 4096), 0);
                // Raw tensors lie in one piece.
                if (f && codec == Q3_CODEC_RAW)
                    assert_int_equal(frame->offset, frame[-1].offset + frame[-1].stored_bytes);
            }
        }
        q3_coder_destroy(coder);
        q3_pack_close(&pack);
        free(path);
    }
}

static void test_frame_cut(void **state)
{
    (void)state;
    q3_tensor tensor = tensor_of("t", Q3_BF16, 2, 768, 2048);
    assert_int_equal(q3_frame_cut(&tensor), 64 * 4096); // 64 rows
    assert_int_equal(q3_frame_count(&tensor), 12);
    tensor = tensor_of("t", Q3_BF16, 2, 2048, 768);
    assert_int_equal(q3_frame_cut(&tensor), 128 * 1536); // 170 rows fit, 128 are a multiple of 64
    tensor = tensor_of("t", Q3_BF16, 2, 3000, 101);
    assert_int_equal(q3_frame_cut(&tensor) % (202 * 64), 0);
    tensor = tensor_of("t", Q3_BF16, 2, 4, 100000);
    assert_int_equal(q3_frame_cut(&tensor), 200000);
    tensor = tensor_of("t", Q3_BF16, 1, 1 << 20, 0);
    assert_int_equal(q3_frame_cut(&tensor), Q3_FRAME_BYTES);
    tensor = tensor_of("t", Q3_BF16, 2, 16, 128);
    assert_int_equal(q3_frame_cut(&tensor), 4096);
}

// A small file with two tensors, the first compressed if the codec says so, and room between them.
static char *small_pack(q3_codec codec, size_t *size, char **data)
{
    q3_tensor tensors[] = {
        tensor_of("first", Q3_BF16, 2, 8, 32),
        tensor_of("second", Q3_F32, 1, 5, 0),
    };
    char *path = q3_test_path("%s/small.q3p", q3_test_scratch);
    q3_hash128 root;
    write_pack(path, tensors, 2, codec, &root);
    *data = q3_test_read(path, size);
    return path;
}

static void test_every_bit(void **state)
{
    (void)state;
    q3_error err;
    size_t size;
    char *data, *path = small_pack(Q3_CODEC_ZSTD, &size, &data);
    assert_int_equal(size, 3 * 4096);
    assert_null(check_pack(path, &err));
    const int fd = open(path, O_WRONLY);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        const char changed = (char)(data[bit / 8] ^ 1 << bit % 8);
        assert_int_equal(pwrite(fd, &changed, 1, (off_t)(bit / 8)), 1);
        if (!check_pack(path, &err))
            fail_msg("bit %zu of byte %zu flipped and nobody noticed", bit % 8, bit / 8);
        assert_int_equal(err.code, Q3_MALFORMED);
        assert_non_null(strstr(err.message, path));
        assert_int_equal(pwrite(fd, &data[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    close(fd);
    free(data);
    free(path);
}

static void test_every_truncation(void **state)
{
    (void)state;
    q3_error err;
    size_t size;
    char *data, *path = small_pack(Q3_CODEC_ZSTD, &size, &data);
    for (size_t cut = size; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        if (!check_pack(path, &err))
            fail_msg("cut to %zu bytes and nobody noticed", cut);
        assert_int_equal(err.code, Q3_MALFORMED);
    }
    char *longer = calloc(1, size + 1);
    memcpy(longer, data, size);
    q3_test_write(path, longer, size + 1);
    assert_non_null(check_pack(path, &err));
    free(longer);
    free(data);
    free(path);
}

// ---- wrong contents under right checksums ----

static void sign(uint8_t *file)
{
    uint64_t directory_bytes = 0;
    memcpy(&directory_bytes, file + HEADER_DIRECTORY_BYTES, 8);
    if (directory_bytes <= 4096)
        q3_put_u64(file + HEADER_DIRECTORY_HASH, q3_hash64(file + HEADER_BYTES, directory_bytes));
    q3_put_u64(file + HEADER_HASH, q3_hash64(file, HEADER_HASH));
}

// One field of the small file changed: little-endian, `bytes` wide.
typedef struct wrong_field {
    const char *what;
    size_t offset;
    unsigned bytes;
    uint64_t value;
    const char *message; // behind "PATH: "
} wrong_field;

static void test_signed_lies(void **state)
{
    (void)state;
    enum { FIRST = HEADER_BYTES, SECOND = FIRST + TENSOR_BYTES, FRAMES = SECOND + TENSOR_BYTES };
    const wrong_field table[] = {
        {"version", HEADER_VERSION, 4, 2, "expected pack version 1, found 2"},
        {"alignment zero", HEADER_ALIGNMENT, 4, 0,
         "expected an alignment that is a power of two from 64 to 1048576, found 0"},
        {"alignment odd", HEADER_ALIGNMENT, 4, 4097,
         "expected an alignment that is a power of two from 64 to 1048576, found 4097"},
        {"alignment huge", HEADER_ALIGNMENT, 4, 0x80000000,
         "expected an alignment that is a power of two from 64 to 1048576, found 2147483648"},
        {"alignment other", HEADER_ALIGNMENT, 4, 64,
         "expected the file to end behind the last frame, at 896, found 12288"},
        {"tensors more", HEADER_TENSORS, 4, 3,
         "a directory of 235 bytes is impossible for 3 tensors, 2 frames and a file of 12288 "
         "bytes"},
        {"tensors many", HEADER_TENSORS, 4, 0xffffffff,
         "a directory of 235 bytes is impossible for 4294967295 tensors, 2 frames and a file of "
         "12288 "
         "bytes"},
        {"frames none", HEADER_FRAMES, 4, 0, "the name of tensor 0 is malformed"},
        {"frames many", HEADER_FRAMES, 4, 0xffffffff,
         "a directory of 235 bytes is impossible for 2 tensors, 4294967295 frames and a file of "
         "12288 "
         "bytes"},
        {"directory too long", HEADER_DIRECTORY_BYTES, 8, 13000,
         "a directory of 13000 bytes is impossible for 2 tensors, 2 frames and a file of 12288 "
         "bytes"},
        {"directory wraps", HEADER_DIRECTORY_BYTES, 8, UINT64_MAX - 8,
         "a directory of 18446744073709551607 bytes is impossible for 2 tensors, 2 frames and a "
         "file of "
         "12288 bytes"},
        {"directory longer", HEADER_DIRECTORY_BYTES, 8, 236,
         "the directory has frames or bytes that belong to no tensor"},
        {"file size", HEADER_FILE_BYTES, 8, 12287, "expected a file of 12287 bytes, found 12288"},
        {"reserved", HEADER_RESERVED, 8, 1, "reserved header bytes are not zero"},
        {"name empty", FIRST + TENSOR_NAME_BYTES, 2, 0, "the name of tensor 0 is malformed"},
        {"name long", FIRST + TENSOR_NAME_BYTES, 2, 0xffff, "the name of tensor 0 is malformed"},
        {"dtype", FIRST + TENSOR_DTYPE, 1, 0,
         "first: dtype 0, rank 2 or reserved bytes are malformed"},
        {"dtype high", FIRST + TENSOR_DTYPE, 1, 16,
         "first: dtype 16, rank 2 or reserved bytes are malformed"},
        {"rank", FIRST + TENSOR_RANK, 1, 9,
         "first: dtype 9, rank 9 or reserved bytes are malformed"},
        {"tensor reserved", FIRST + TENSOR_RESERVED, 8, 1,
         "first: dtype 9, rank 2 or reserved bytes are malformed"},
        {"shape beyond rank", FIRST + TENSOR_SHAPE + 16, 8, 1,
         "first: a dimension beyond the rank is not zero"},
        {"shape wraps", FIRST + TENSOR_SHAPE, 8, UINT64_C(1) << 63,
         "first: the size in bytes does not fit 64 bits"},
        {"shape large", FIRST + TENSOR_SHAPE, 8, UINT64_C(1) << 40,
         "first: needs 137438953472 frames, the file has 2 left"},
        {"shape empty", FIRST + TENSOR_SHAPE, 8, 0,
         "the directory has frames or bytes that belong to no tensor"},
        {"frame bytes zero", FIRST + TENSOR_FRAME_BYTES, 4, 0,
         "first: expected frames of 1 to 16777216 bytes, found 0"},
        {"frame bytes huge", FIRST + TENSOR_FRAME_BYTES, 4, 0xffffffff,
         "first: expected frames of 1 to 16777216 bytes, found 4294967295"},
        {"codec unknown", FRAMES + FRAME_CODEC, 1, 200, "first: frame 0: unknown codec 200"},
        {"raw of another size", FRAMES + FRAME_STORED_BYTES, 4, 511,
         "first: frame 0: 511 stored bytes of codec raw cannot hold 512 bytes of BF16"},
        {"codec for another type", FRAMES + FRAME_RECORD_BYTES + FRAME_CODEC, 1, 1,
         "second: frame 0: 20 stored bytes of codec zstd cannot hold 20 bytes of F32"},
        {"stored none", FRAMES + FRAME_STORED_BYTES, 4, 0,
         "first: frame 0: 0 stored bytes of codec raw cannot hold 512 bytes of BF16"},
        {"stored more than raw", FRAMES + FRAME_STORED_BYTES, 4, 513,
         "first: frame 0: 513 stored bytes of codec raw cannot hold 512 bytes of BF16"},
        {"frame reserved", FRAMES + FRAME_RESERVED, 1, 1,
         "first: frame 0: 512 stored bytes of codec raw cannot hold 512 bytes of BF16"},
    };
    size_t size;
    char *data, *path = small_pack(Q3_CODEC_RAW, &size, &data);
    q3_error err;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        uint8_t *copy = malloc(size);
        memcpy(copy, data, size);
        for (unsigned b = 0; b < table[i].bytes; b++)
            copy[table[i].offset + b] = (uint8_t)(table[i].value >> 8 * b);
        sign(copy);
        q3_test_write(path, copy, size);
        const char *message = check_pack(path, &err);
        char *expected = q3_test_path("%s: %s", path, table[i].message);
        if (!message || strcmp(message, expected) != 0)
            fail_msg("%s:\nexpected %s\nfound    %s", table[i].what, expected,
                     message ? message : "nothing wrong");
        assert_int_equal(err.code, Q3_MALFORMED);
        free(expected);
        free(copy);
    }
    free(data);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_frame_cut),
        cmocka_unit_test(test_every_bit),   cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_signed_lies),
    };
    return cmocka_run_group_tests(tests, q3_test_make_scratch, q3_test_remove_scratch);
}
