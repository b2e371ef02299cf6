// SPDX-License-Identifier: Apache-2.0
//
// The base library: text and numbers, strict JSON, files, workers.
#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/interrupt.h"
#include "base/json.h"
#include "base/string_index.h"
#include "base/text.h"
#include "base/workers.h"
#include "support.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void test_printable(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"plain text, caf\xc3\xa9, \xf0\x9f\xa6\x8a", "plain text, caf\xc3\xa9, \xf0\x9f\xa6\x8a"},
        {"line\nbell\a\x1b[31m\x7f", "line\\x0abell\\x07\\x1b[31m\\x7f"},
        {"bad \xff\xc3( \xed\xa0\x80", "bad \\xff\\xc3( \\xed\\xa0\\x80"},
        {"C1 \xc2\x9b end", "C1 \\xc2\\x9b end"},
    };
    char out[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_printable(out, sizeof out, cases[i].text);
        assert_string_equal(out, cases[i].expected);
    }
    q3_printable(out, 8, "1234567");
    assert_string_equal(out, "1234567");
    q3_printable(out, 8, "12345678");
    assert_string_equal(out, "1234...");
    q3_printable(out, 8,
                 "123\xf0\x9f\xa6\x8a"
                 "4");
    assert_string_equal(out, "123...");
}

static void test_errors(void **state)
{
    (void)state;
    q3_error err;
    assert_false(q3_fail(&err, Q3_MISMATCH, "%s: %d", "a\nb", 7));
    assert_int_equal(err.code, 3);
    assert_string_equal(err.message, "a\\x0ab: 7");
    errno = ENOSPC;
    assert_false(q3_fail_errno(&err, "%s: cannot write", "f"));
    assert_int_equal(err.code, 1);
    assert_string_equal(err.message, "f: cannot write: No space left on device");
    assert_null(q3_alloc(SIZE_MAX / 2, 3, &err));
    assert_int_equal(err.code, 1);
    int *items = NULL;
    size_t capacity = 0;
    assert_true(q3_grow(&items, &capacity, 100, sizeof *items, &err));
    assert_true(capacity >= 100);
    assert_false(q3_grow(&items, &capacity, SIZE_MAX / 2, sizeof *items, &err));
    free(items);
}

static void test_numbers(void **state)
{
    (void)state;
    uint64_t number;
    double real;
    assert_true(q3_parse_u64("0", 0, 10, &number));
    assert_true(q3_parse_u64("18446744073709551615", 0, UINT64_MAX, &number));
    assert_true(number == UINT64_MAX);
    static const char *const bad[] = {
        "", " 1", "1 ", "-1", "+1", "0x10", "1.0", "11", "18446744073709551616", "one"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(q3_parse_u64(bad[i], 0, 10, &number));
    assert_true(q3_parse_double("-1.5e-1", -1, 1, &real));
    assert_true(real == -0.15);
    static const char *const bad_reals[] = {"", "nan", "inf", "0x1p3", "1e", "1 ", "2", "1e400"};
    for (size_t i = 0; i < sizeof bad_reals / sizeof *bad_reals; i++)
        assert_false(q3_parse_double(bad_reals[i], -1, 1, &real));
    static const struct {
        const char *text;
        uint64_t bytes;
    } sizes[] = {{"0", 0},
                 {"4096", 4096},
                 {"1K", 1024},
                 {"1.5M", 1536 << 10},
                 {"2g", 2u << 30},
                 {"800 MB", 800 << 20},
                 {"3GiB", 3u * 1024 * 1024 * 1024ull},
                 {"1T", 1ull << 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_true(q3_parse_size(sizes[i].text, &number));
        assert_true(number == sizes[i].bytes);
    }
    static const char *const bad_sizes[] = {"", "-1", "K", "1X", "1 GB free", "99999999T", "nan"};
    for (size_t i = 0; i < sizeof bad_sizes / sizeof *bad_sizes; i++)
        assert_false(q3_parse_size(bad_sizes[i], &number));
    char text[Q3_GROUPED_MAX];
    assert_string_equal(q3_grouped(0, text), "0");
    assert_string_equal(q3_grouped(999, text), "999");
    assert_string_equal(q3_grouped(1000, text), "1,000");
    assert_string_equal(q3_grouped(UINT64_MAX, text), "18,446,744,073,709,551,615");
    assert_string_equal(q3_human_bytes(0, text), "0 B");
    assert_string_equal(q3_human_bytes(999, text), "999 B");
    assert_string_equal(q3_human_bytes(999960, text), "1.0 MB");
    assert_string_equal(q3_human_bytes(61065293824, text), "61.1 GB");
}

static void test_ranges(void **state)
{
    (void)state;
    q3_error err;
    bool members[16] = {false};
    assert_true(q3_parse_ranges("--experts", "0-2,7,15", 16, members, &err));
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(members[i], i <= 2 || i == 7 || i == 15);
    assert_true(q3_parse_ranges("--experts", NULL, 16, members, &err));
    for (unsigned i = 0; i < 16; i++)
        assert_true(members[i]);
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "x: \"\" is not a list of numbers and ranges such as 0-7,12"},
        {"1,", "x: \"1,\" is not a list of numbers and ranges such as 0-7,12"},
        {"1-2-3", "x: \"1-2-3\" is not a list of numbers and ranges such as 0-7,12"},
        {"a", "x: \"a\" is not a list of numbers and ranges such as 0-7,12"},
        {"99999999999", "x: \"99999999999\" is not a list of numbers and ranges such as 0-7,12"},
        {"3-1", "x: range 3-1 runs backwards"},
        {"0-16", "x: 16 is out of range, the last is 15"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(q3_parse_ranges("x", bad[i].text, 16, members, &err));
        assert_string_equal(err.message, bad[i].message);
        assert_int_equal(err.code, Q3_USAGE);
    }
}

static void test_bytes(void **state)
{
    (void)state;
    static const uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    const q3_bytes whole = {data, sizeof data};
    q3_bytes part;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    assert_true(q3_slice(whole, 9, 0, &part));
    assert_false(q3_slice(whole, 9, 1, &part));
    assert_false(q3_slice(whole, 1, UINT64_MAX, &part));
    assert_false(q3_slice(whole, UINT64_MAX, 1, &part));
    assert_true(q3_read_u16(whole, 7, &u16));
    assert_int_equal(u16, 0x0908);
    assert_false(q3_read_u16(whole, 8, &u16));
    assert_true(q3_read_u32(whole, 5, &u32));
    assert_int_equal(u32, 0x09080706);
    assert_true(q3_read_u64(whole, 1, &u64));
    assert_true(u64 == 0x0908070605040302);
    assert_false(q3_read_u64(whole, 2, &u64));
    assert_true(q3_align(4097, 4096, &u64));
    assert_int_equal(u64, 8192);
    assert_false(q3_align(UINT64_MAX, 4096, &u64));
    assert_true(q3_all_zero((const uint8_t[4]){0}, 4));
    assert_false(q3_all_zero((const uint8_t[4]){0, 0, 0, 1}, 4));
    assert_true(q3_all_zero(data, 0));
}

static void test_hash(void **state)
{
    (void)state;
    // The published values of XXH3 for no input.
    assert_true(q3_hash64("", 0) == 0x2d06800538d394c2);
    char text[Q3_HASH_TEXT];
    q3_hash128 hash = q3_hash128_of("", 0), back;
    assert_string_equal(q3_hash128_text(hash, text), "99aa06d3014798d86001c324468d497f");
    assert_true(q3_hash128_parse(text, &back));
    assert_true(q3_hash128_equal(hash, back));
    assert_false(q3_hash128_parse("99AA06d3014798d86001c324468d497f", &back));
    assert_false(q3_hash128_parse("99aa06d3014798d86001c324468d497", &back));
    q3_error err;
    q3_hasher *hasher = q3_hasher_create(&err);
    for (int i = 0; i < 1000; i++)
        q3_hasher_update(hasher, "0123456789", 10);
    char *whole = malloc(10000);
    for (int i = 0; i < 1000; i++)
        memcpy(whole + 10 * i, "0123456789", 10);
    assert_true(q3_hash128_equal(q3_hasher_finish(hasher), q3_hash128_of(whole, 10000)));
    q3_hasher_reset(hasher);
    assert_true(q3_hash128_equal(q3_hasher_finish(hasher), hash));
    q3_hasher_destroy(hasher);
    free(whole);
}

// ---- JSON ----

static bool parse(const char *text, size_t size, q3_json *json, q3_error *err)
{
    // An exact copy: AddressSanitizer sees a read beyond the end.
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, text, size);
    const bool ok = q3_json_parse("t.json", (q3_bytes){copy, size}, json, err);
    free(copy);
    return ok;
}

static void test_json_grammar(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}",
        "[]",
        " [ ] ",
        "0",
        "-0",
        "1.5e+3",
        "\"\"",
        "true",
        "null",
        "{\"a\":{\"b\":[1,2,{\"c\":null}]},\"d\":\"\\u00e9\\ud83e\\udd8a\\n\"}",
        "[1,\n2\r\n,\t3]",
    };
    static const struct {
        const char *text, *problem;
    } bad[] = {
        {"", "the text ends too early at byte 0"},
        {"{", "the text ends too early at byte 1"},
        {"[1,]", "not a JSON value at byte 3"},
        {"{\"a\":1,}", "expected a key in quotes at byte 7"},
        {"{a:1}", "expected a key in quotes at byte 1"},
        {"{\"a\" 1}", "expected a colon after a key at byte 5"},
        {"[1 2]", "expected a comma or the end at byte 3"},
        {"[1}", "expected a comma or the end at byte 2"},
        {"{} x", "bytes after the end of the document at byte 3"},
        {"01", "not a JSON number at byte 2"},
        {"1.", "not a JSON number at byte 2"},
        {".5", "not a JSON value at byte 0"},
        {"+1", "not a JSON value at byte 0"},
        {"1e", "not a JSON number at byte 2"},
        {"1e400", "a number beyond the range of a double at byte 5"},
        {"NaN", "not a JSON value at byte 0"},
        {"tru", "not a JSON value at byte 0"},
        {"\"\t\"", "a control character in a string at byte 1"},
        {"\"\\x\"", "an unknown escape in a string at byte 3"},
        {"\"\\u00g0\"", "\\u without four hexadecimal digits at byte 3"},
        {"\"a\\u0000b\"", "\\u0000 in a string at byte 8"},
        {"\"\\ud800\"", "a lone surrogate in a string at byte 7"},
        {"\"\\udc00\"", "a lone surrogate in a string at byte 7"},
        {"\"\\ud83e\\u0041\"", "a lone surrogate in a string at byte 7"},
        {"\"\xff\"", "bytes that are not UTF-8 at byte 1"},
        {"\"\xc0\x80\"", "bytes that are not UTF-8 at byte 1"},
        {"\"\xed\xa0\x80\"", "bytes that are not UTF-8 at byte 1"},
        {"\"abc", "the text ends inside a string at byte 4"},
        {"\xef\xbb\xbf{}", "a byte order mark at byte 0"},
    };
    q3_error err;
    q3_json json;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (!parse(good[i], strlen(good[i]), &json, &err))
            fail_msg("%s: %s", good[i], err.message);
        q3_json_free(&json);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char expected[128];
        snprintf(expected, sizeof expected, "t.json: not valid JSON: %s", bad[i].problem);
        if (parse(bad[i].text, strlen(bad[i].text), &json, &err))
            fail_msg("%s was accepted", bad[i].text);
        assert_string_equal(err.message, expected);
        assert_int_equal(err.code, Q3_MALFORMED);
    }
    assert_false(parse("{}\0\0", 4, &json, &err));
    assert_string_equal(err.message,
                        "t.json: not valid JSON: bytes after the end of the document at byte 2");
    char deep[2 * Q3_JSON_DEPTH_MAX + 3] = "";
    memset(deep, '[', Q3_JSON_DEPTH_MAX);
    memset(deep + Q3_JSON_DEPTH_MAX, ']', Q3_JSON_DEPTH_MAX);
    assert_true(parse(deep, strlen(deep), &json, &err));
    q3_json_free(&json);
    memset(deep, '[', Q3_JSON_DEPTH_MAX + 1);
    memset(deep + Q3_JSON_DEPTH_MAX + 1, ']', Q3_JSON_DEPTH_MAX + 1);
    assert_false(parse(deep, strlen(deep), &json, &err));
    assert_string_equal(err.message, "t.json: not valid JSON: nested too deeply at byte 64");
    static const char twice[] = "{\"x\":[{\"a\":1,\"b\":2,\"a\":3}]}";
    assert_false(parse(twice, strlen(twice), &json, &err));
    assert_string_equal(err.message, "t.json: x[0]: the key \"a\" stands twice");
}

static void test_string_index(void **state)
{
    (void)state;
    enum { COUNT = 3000 };
    static char text[COUNT][8];
    q3_error err;
    q3_string_index index;
    assert_true(q3_string_index_create(COUNT + 2, &index, &err));
    for (uint32_t i = 0; i < COUNT; i++) {
        const int size = snprintf(text[i], sizeof text[i], "%" PRIu32, i * 7);
        assert_null(q3_string_index_add(&index, (q3_bytes){(uint8_t *)text[i], (size_t)size}, i));
    }
    // Strings may be empty, and hold any bytes.
    static const uint8_t zeros[2] = {0};
    assert_null(q3_string_index_add(&index, (q3_bytes){zeros, 0}, COUNT));
    assert_null(q3_string_index_add(&index, (q3_bytes){zeros, 2}, COUNT + 1));
    assert_null(q3_string_index_find(&index, (q3_bytes){zeros, 1}));
    assert_int_equal(q3_string_index_find(&index, (q3_bytes){zeros, 0})->number, COUNT);
    assert_int_equal(q3_string_index_find(&index, (q3_bytes){zeros, 2})->number, COUNT + 1);
    for (uint32_t i = 0; i < COUNT; i++) {
        char again[8];
        const size_t size = (size_t)snprintf(again, sizeof again, "%" PRIu32, i * 7);
        const q3_bytes string = {(uint8_t *)again, size};
        const q3_indexed *there = q3_string_index_add(&index, string, 9999);
        assert_non_null(there);
        assert_int_equal(there->number, i);
        assert_ptr_equal(there->string.data, text[i]);
        assert_ptr_equal(q3_string_index_find(&index, string), there);
        again[0] = 'x';
        assert_null(q3_string_index_find(&index, string));
    }
    q3_string_index_free(&index);
}

static void test_json_getters(void **state)
{
    (void)state;
    static const char text[] =
        "{\"n\": 5, \"half\": 0.5, \"big\": 9007199254740993, \"text\": \"t\", \"yes\": true,"
        " \"list\": [1, 2, \"three\"], \"N\": 6, \"minus\": -1}";
    q3_error err;
    q3_json json;
    assert_true(parse(text, strlen(text), &json, &err));
    uint64_t number;
    uint32_t small;
    const char *string;
    const cJSON *item;
    double real;
    bool flag;
    assert_true(q3_json_u64(&json, json.root, "n", 0, 10, &number, &err));
    assert_int_equal(number, 5);
    assert_true(q3_json_u32(&json, json.root, "N", 0, 10, &small, &err)); // exact case
    assert_int_equal(small, 6);
    assert_true(q3_json_bool(&json, json.root, "yes", &flag, &err) && flag);
    assert_true(q3_json_double(&json, json.root, "half", 0, 1, &real, &err));
    assert_true(real == 0.5);

    assert_false(q3_json_u64(&json, json.root, "absent", 0, 1, &number, &err));
    assert_string_equal(err.message, "t.json: \"absent\" is missing");
    assert_false(q3_json_u64(&json, json.root, "n", 6, 9, &number, &err));
    assert_string_equal(err.message, "t.json: n: expected an integer from 6 to 9, found 5");
    assert_false(q3_json_u64(&json, json.root, "half", 0, 9, &number, &err));
    assert_string_equal(err.message, "t.json: half: expected an integer from 0 to 9, found 0.5");
    assert_false(q3_json_u64(&json, json.root, "minus", 0, 9, &number, &err));
    assert_string_equal(err.message, "t.json: minus: expected an integer from 0 to 9, found -1");
    assert_false(q3_json_string(&json, json.root, "n", &string, &err));
    assert_string_equal(err.message, "t.json: n: expected a string, found 5");
    assert_false(q3_json_object(&json, json.root, "list", &item, &err));
    assert_string_equal(err.message, "t.json: list: expected an object, found an array of 3");
    assert_true(q3_json_array(&json, json.root, "list", &item, &err));
    assert_false(q3_json_item_u64(&json, cJSON_GetArrayItem(item, 2), 0, 9, &number, &err));
    assert_string_equal(err.message,
                        "t.json: list[2]: expected an integer from 0 to 9, found \"three\"");
    assert_false(q3_json_bool(&json, json.root, "text", &flag, &err));
    assert_string_equal(err.message, "t.json: text: expected true or false, found \"t\"");
    q3_json_free(&json);
}

// A tree written again is the text it was read from, numbers as they were spelt.
static void test_json_items(void **state)
{
    (void)state;
    static const char text[] = "{\n"
                               "  \"9\": 0.0,\n"
                               "  \"a\": {},\n"
                               "  \"b\": [],\n"
                               "  \"c\": {\n"
                               "    \"d\": [\n"
                               "      1E-6,\n"
                               "      [\n"
                               "        -0,\n"
                               "        \"12 \\\" 3\"\n"
                               "      ],\n"
                               "      {\n"
                               "        \"e\": 18446744073709551615\n"
                               "      }\n"
                               "    ]\n"
                               "  },\n"
                               "  \"f\": [\n"
                               "    true,\n"
                               "    false,\n"
                               "    null\n"
                               "  ],\n"
                               "  \"g\": \"x\\ny\"\n"
                               "}\n";
    const q3_bytes bytes = {(const uint8_t *)text, sizeof text - 1};
    q3_error err;
    q3_json json;
    q3_json_writer out = {0};
    assert_true(q3_json_parse("text", bytes, &json, &err));
    assert_true(q3_json_keep_spelling(&json, bytes, &err));
    q3_json_put_item(&out, NULL, json.root);
    assert_true(q3_json_finish(&out, &err));
    assert_string_equal(out.text, text);
    q3_json_writer_free(&out);
    // Inside another document, and a leaf alone.
    q3_json_begin_object(&out, NULL);
    q3_json_put_item(&out, "c",
                     cJSON_GetObjectItem(cJSON_GetObjectItem(json.root, "c"), "d")->child);
    q3_json_inline(&out);
    q3_json_put_item(&out, "f", cJSON_GetObjectItem(json.root, "f"));
    q3_json_put_item(&out, "a", cJSON_GetObjectItem(json.root, "a"));
    q3_json_end_object(&out);
    assert_true(q3_json_finish(&out, &err));
    assert_string_equal(out.text,
                        "{\n  \"c\": 1E-6,\n  \"f\": [true, false, null],\n  \"a\": {}\n}\n");
    q3_json_writer_free(&out);
    q3_json_free(&json);
    // Without the spelling, the shortest number that is the same.
    assert_true(q3_json_parse("text", bytes, &json, &err));
    q3_json_put_item(&out, NULL, json.root->child);
    assert_true(q3_json_finish(&out, &err));
    assert_string_equal(out.text, "0\n");
    q3_json_writer_free(&out);
    q3_json_free(&json);
}

static void test_json_writer(void **state)
{
    (void)state;
    q3_error err;
    q3_json_writer out = {0};
    q3_json_begin_object(&out, NULL);
    q3_json_put_u64(&out, "large", UINT64_MAX);
    q3_json_put_double(&out, "third", 1.0 / 3);
    q3_json_put_double(&out, "nan", NAN);
    q3_json_put_float(&out, "tenth", 0.1f);
    q3_json_put_string(&out, "text", "\"\\\n\x01 \xc3\xa9");
    q3_json_put_bytes(&out, "bytes", "a\xff\x00z", 4);
    q3_json_begin_array(&out, "empty");
    q3_json_end_array(&out);
    q3_json_begin_array(&out, "rows");
    for (uint64_t i = 0; i < 2; i++) {
        q3_json_inline(&out);
        q3_json_begin_object(&out, NULL);
        q3_json_put_u64(&out, "i", i);
        q3_json_begin_array(&out, "list");
        q3_json_put_bool(&out, NULL, true);
        q3_json_put_null(&out, NULL);
        q3_json_end_array(&out);
        q3_json_end_object(&out);
    }
    q3_json_end_array(&out);
    q3_json_end_object(&out);
    assert_true(q3_json_finish(&out, &err));
    assert_string_equal(out.text, "{\n"
                                  "  \"large\": 18446744073709551615,\n"
                                  "  \"third\": 0.33333333333333331,\n"
                                  "  \"nan\": null,\n"
                                  "  \"tenth\": 0.100000001,\n"
                                  "  \"text\": \"\\\"\\\\\\n\\u0001 \xc3\xa9\",\n"
                                  "  \"bytes\": \"a\xef\xbf\xbd\\u0000z\",\n"
                                  "  \"empty\": [],\n"
                                  "  \"rows\": [\n"
                                  "    {\"i\": 0, \"list\": [true, null]},\n"
                                  "    {\"i\": 1, \"list\": [true, null]}\n"
                                  "  ]\n"
                                  "}\n");
    q3_json_writer_free(&out);
    static const float floats[] = {0.0f, 1.0f / 3, FLT_MAX, FLT_MIN, FLT_EPSILON, 16777217.0f};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        q3_json_put_float(&out, NULL, floats[i]);
        assert_true(strtof(out.text, NULL) == floats[i]);
        q3_json_writer_free(&out);
    }
}

// ---- files ----

static void test_files(void **state)
{
    (void)state;
    q3_error err;
    char *directory = q3_test_directory();
    char *path = q3_test_path("%s/a", directory), *part = q3_test_path("%s/a.part", directory);
    q3_output output;
    assert_true(q3_output_create(path, &output, &err));
    assert_true(q3_output_append(&output, "hello world", 11, &err));
    assert_true(q3_output_write_at(&output, 6, "there", 5, &err));
    assert_true(q3_path_exists(part));
    assert_false(q3_path_exists(path));
    assert_true(q3_output_publish(&output, &err));
    assert_false(q3_path_exists(part));
    size_t size;
    char *data = q3_test_read(path, &size);
    assert_string_equal(data, "hello there");
    free(data);

    // Another version that is given up leaves the first as it was.
    assert_true(q3_output_create(path, &output, &err));
    assert_true(q3_output_append(&output, "x", 1, &err));
    q3_output_abandon(&output);
    assert_false(q3_path_exists(part));
    data = q3_test_read(path, &size);
    assert_int_equal(size, 11);
    free(data);

    q3_file file;
    char bytes[16];
    assert_true(q3_file_open(path, &file, &err));
    assert_int_equal(file.size, 11);
    assert_true(q3_file_read(&file, 6, bytes, 5, &err));
    assert_memory_equal(bytes, "there", 5);
    assert_false(q3_file_read(&file, 6, bytes, 6, &err));
    char *expected = q3_test_path("%s: the file ends at 11, expected 1 bytes more", path);
    assert_string_equal(err.message, expected);
    free(expected);
    q3_file_close(&file);

    assert_false(q3_file_load(path, 10, &data, &size, &err));
    expected = q3_test_path("%s: expected at most 10 bytes, found 11", path);
    assert_string_equal(err.message, expected);
    free(expected);
    assert_false(q3_file_open(directory, &file, &err));
    expected = q3_test_path("%s: not a regular file", directory);
    assert_string_equal(err.message, expected);
    free(expected);
    char *deep = q3_test_path("%s/x/y/z", directory), *under = q3_test_path("%s/b", path);
    assert_true(q3_directory_create(deep, &err));
    assert_true(q3_directory_create(deep, &err));
    bool empty;
    assert_true(q3_directory_empty(deep, NULL, &empty, &err) && empty);
    assert_true(q3_directory_empty(directory, NULL, &empty, &err) && !empty);
    assert_false(q3_directory_create(under, &err));
    assert_int_equal(err.code, Q3_FAILED);

    static const char *const unsafe[] = {"", ".", "..", "a/b", "/a", "a\nb", "\x7f"};
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        assert_false(q3_safe_file_name(unsafe[i]));
    assert_true(q3_safe_file_name("model-00001-of-00015.safetensors"));
    assert_true(q3_safe_file_name("..."));
    free(under);
    free(deep);
    free(part);
    free(path);
    q3_test_remove(directory);
}

// ---- workers ----

static void count_task(void *context, uint32_t index, unsigned worker)
{
    atomic_uint *counts = context;
    assert_true(worker < 8);
    atomic_fetch_add(&counts[index], 1);
}

static void test_workers(void **state)
{
    (void)state;
    q3_error err;
    for (unsigned threads = 1; threads <= 8; threads *= 2) {
        q3_workers *workers;
        assert_true(q3_workers_create(threads, &workers, &err));
        assert_int_equal(q3_workers_count(workers), threads);
        for (uint32_t count = 0; count < 300; count += 37) {
            atomic_uint counts[300] = {0};
            q3_workers_run(workers, count_task, counts, count);
            for (uint32_t i = 0; i < 300; i++)
                assert_int_equal(atomic_load(&counts[i]), i < count);
        }
        q3_workers_destroy(workers);
    }
}

// Runs that follow each other at once, and some after the threads have gone to sleep. The values
// are not atomic: each run must see what the ones before it wrote, and its caller what it wrote.
typedef struct many_runs {
    uint32_t values[8];
    uint32_t next_of[8]; // of each worker: it gets indices in ascending order
} many_runs;

static void add_task(void *context, uint32_t index, unsigned worker)
{
    many_runs *runs = context;
    assert_true(index >= runs->next_of[worker]);
    runs->next_of[worker] = index + 1;
    for (unsigned i = 0; i < 50; i++)
        runs->values[index] = runs->values[index] * 5 + 1;
}

static void test_many_runs(void **state)
{
    (void)state;
    q3_error err;
    for (unsigned threads = 2; threads <= 8; threads += 3) {
        q3_workers *workers;
        assert_true(q3_workers_create(threads, &workers, &err));
        many_runs runs = {0};
        uint32_t expected = 0;
        for (unsigned i = 0; i < 2000; i++) {
            for (unsigned j = 0; j < 50; j++)
                expected = expected * 5 + 1;
            memset(runs.next_of, 0, sizeof runs.next_of);
            q3_workers_run(workers, add_task, &runs, 8);
            for (unsigned j = 0; j < 8; j++)
                assert_int_equal(runs.values[j], expected);
            if (i % 100 == 0)
                nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        }
        q3_workers_destroy(workers);
    }
}

typedef struct stream_test {
    unsigned items, fail_next, fail_work, fail_commit; // failures: which item, 0 for none
    unsigned taken, committed;
    atomic_uint working;
} stream_test;

static int stream_next(void *context, void *slot, q3_error *err)
{
    stream_test *test = context;
    if (test->taken == test->items)
        return 0;
    if (++test->taken == test->fail_next) {
        q3_fail(err, Q3_FAILED, "next %u", test->taken);
        return -1;
    }
    *(unsigned *)slot = test->taken;
    return 1;
}

static bool stream_work(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    stream_test *test = context;
    const unsigned item = *(unsigned *)slot;
    atomic_fetch_add(&test->working, 1);
    return item != test->fail_work || q3_fail(err, Q3_FAILED, "work %u", item);
}

static bool stream_commit(void *context, void *slot, unsigned worker, q3_error *err)
{
    (void)worker;
    stream_test *test = context;
    const unsigned item = *(unsigned *)slot;
    if (item != test->committed + 1)
        return q3_fail(err, Q3_FAILED, "item %u after %u", item, test->committed);
    test->committed = item;
    return item != test->fail_commit || q3_fail(err, Q3_FAILED, "commit %u", item);
}

static void test_stream(void **state)
{
    (void)state;
    q3_error err;
    for (unsigned threads = 1; threads <= 4; threads++) {
        q3_workers *workers;
        assert_true(q3_workers_create(threads, &workers, &err));
        stream_test test = {.items = 1000};
        q3_stream stream = {.context = &test,
                            .slots = 5,
                            .slot_bytes = sizeof(unsigned),
                            .next = stream_next,
                            .work = stream_work,
                            .commit = stream_commit};
        if (!q3_workers_stream(workers, &stream, &err))
            fail_msg("%s", err.message);
        assert_int_equal(test.committed, 1000);
        static const struct {
            unsigned next, work, commit;
            const char *message;
        } failures[] = {{7, 0, 0, "next 7"}, {0, 7, 0, "work 7"}, {0, 0, 7, "commit 7"}};
        for (size_t i = 0; i < 3; i++) {
            test = (stream_test){.items = 1000,
                                 .fail_next = failures[i].next,
                                 .fail_work = failures[i].work,
                                 .fail_commit = failures[i].commit};
            assert_false(q3_workers_stream(workers, &stream, &err));
            assert_string_equal(err.message, failures[i].message);
            assert_true(test.committed <= 7);
            assert_true(atomic_load(&test.working) <= 7 + 5);
        }
        test = (stream_test){.items = 0};
        assert_true(q3_workers_stream(workers, &stream, &err));
        assert_int_equal(test.committed, 0);
        q3_workers_destroy(workers);
    }
    // A signal ends a stream between items.
    q3_workers *workers;
    assert_true(q3_workers_create(2, &workers, &err));
    q3_interrupt_install();
    raise(SIGINT);
    assert_true(q3_interrupted());
    stream_test test = {.items = 1000};
    const q3_stream stream = {.context = &test,
                              .slots = 5,
                              .slot_bytes = sizeof(unsigned),
                              .next = stream_next,
                              .work = stream_work,
                              .commit = stream_commit};
    assert_false(q3_workers_stream(workers, &stream, &err));
    assert_string_equal(err.message, "interrupted");
    assert_int_equal(err.code, 130);
    q3_interrupt_clear();
    q3_workers_destroy(workers);
}

static void test_memory_stream(void **state)
{
    (void)state;
    q3_error err;
    q3_memory memory;
    assert_true(q3_memory_open(&memory, &err));
    for (unsigned i = 0; i < 10000; i++)
        fprintf(memory.stream, "%04u", i);
    fflush(memory.stream);
    assert_int_equal(memory.size, 40000);
    assert_true(q3_memory_close(&memory, &err));
    assert_int_equal(memory.size, 40000);
    assert_memory_equal(memory.data + 4 * 1234, "1234", 4);
    assert_memory_equal(memory.data + 4 * 9999, "9999", 4);
    free(memory.data);
    assert_true(q3_memory_open(&memory, &err));
    assert_true(q3_memory_close(&memory, &err));
    assert_int_equal(memory.size, 0);
    free(memory.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_printable),    cmocka_unit_test(test_errors),
        cmocka_unit_test(test_numbers),      cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_bytes),        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_json_grammar), cmocka_unit_test(test_string_index),
        cmocka_unit_test(test_json_getters), cmocka_unit_test(test_json_items),
        cmocka_unit_test(test_json_writer),  cmocka_unit_test(test_files),
        cmocka_unit_test(test_workers),      cmocka_unit_test(test_many_runs),
        cmocka_unit_test(test_stream),       cmocka_unit_test(test_memory_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
