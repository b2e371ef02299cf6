// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer against ids from Hugging Face's, and against files that are wrong.
#include "text_stream.h"
#include "tokenizer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include <cmocka.h>

static q3_bytes bytes_of(const char *text)
{
    return (q3_bytes){(const uint8_t *)text, strlen(text)};
}

static char *load(const char *path, size_t *size)
{
    q3_error err;
    char *data;
    if (!q3_file_load(path, 64 << 20, &data, size, &err))
        fail_msg("%s", err.message);
    return data;
}

static q3_tokenizer *open_tokenizer(const char *directory)
{
    q3_error err;
    q3_tokenizer *tokenizer;
    if (!q3_tokenizer_open(directory, &tokenizer, &err))
        fail_msg("%s", err.message);
    return tokenizer;
}

static void encode(const q3_tokenizer *tokenizer, q3_bytes text, q3_ids *ids)
{
    q3_error err;
    *ids = (q3_ids){0};
    if (!q3_tokenizer_encode(tokenizer, text, ids, &err))
        fail_msg("%s", err.message);
}

static void assert_encodes(const q3_tokenizer *tokenizer, const char *text, const uint32_t *expected,
                           size_t count)
{
    q3_ids ids;
    encode(tokenizer, bytes_of(text), &ids);
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.ids, expected, count * sizeof *expected);
    q3_ids_free(&ids);
}

#define ASSERT_ENCODES(tokenizer, text, ...)                                                       \
    assert_encodes(tokenizer, text, (const uint32_t[]){__VA_ARGS__},                               \
                   sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

static void assert_decodes(const q3_tokenizer *tokenizer, const uint32_t *ids, size_t count,
                           bool skip_special, const char *expected)
{
    q3_error err;
    char *text;
    size_t size;
    if (!q3_tokenizer_decode(tokenizer, ids, count, skip_special, &text, &size, &err))
        fail_msg("%s", err.message);
    assert_int_equal(size, strlen(expected));
    assert_string_equal(text, expected);
    free(text);
}

// ---- cases with the ids that Hugging Face gives ----

// The strict reader refuses "\u0000", which some texts hold: U+FDD0, which none does, takes its place
// in the JSON and turns back into NUL in the text.
typedef struct cases {
    q3_json json;
    const cJSON *list;
} cases;

static void load_cases(const char *path, const char *key, cases *loaded)
{
    q3_error err;
    size_t size;
    char *text = load(path, &size);
    assert_null(strstr(text, "\xef\xb7\x90"));
    assert_null(strstr(text, "\\ufdd0"));
    assert_null(strstr(text, "\\\\u0000"));
    for (char *at = text; (at = strstr(at, "\\u0000"));)
        memcpy(at, "\\ufdd0", 6);
    if (!q3_json_parse(path, (q3_bytes){(const uint8_t *)text, size}, &loaded->json, &err))
        fail_msg("%s", err.message);
    free(text);
    loaded->list = key ? q3_json_find(loaded->json.root, key) : loaded->json.root;
    assert_true(cJSON_IsArray(loaded->list));
}

// The text of a case; the caller frees it.
static char *case_text(const cJSON *item, size_t *size)
{
    const cJSON *member = q3_json_find(item, "text");
    assert_true(cJSON_IsString(member));
    char *text = strdup(member->valuestring);
    assert_non_null(text);
    *size = strlen(text);
    for (char *at = text; (at = strstr(at, "\xef\xb7\x90"));) {
        *at = 0;
        memmove(at + 1, at + 3, (size_t)(text + *size - (at + 3)) + 1);
        *size -= 2;
        at++;
    }
    return text;
}

static void assert_case(const q3_tokenizer *tokenizer, const cJSON *item, int number)
{
    q3_error err;
    size_t size;
    char *text = case_text(item, &size);
    q3_ids ids;
    encode(tokenizer, (q3_bytes){(const uint8_t *)text, size}, &ids);
    const cJSON *expected = q3_json_find(item, "ids");
    size_t count = 0;
    for (const cJSON *id = expected->child; id; id = id->next, count++)
        if (count < ids.count && (double)ids.ids[count] != id->valuedouble)
            fail_msg("case %d: token %zu: expected %.0f, found %u: %s", number, count,
                     id->valuedouble, ids.ids[count], text);
    assert_int_equal(ids.count, count);

    char *decoded;
    size_t decoded_size;
    assert_true(q3_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &decoded, &decoded_size,
                                    &err));
    utf8proc_uint8_t *normal;
    const utf8proc_ssize_t normal_size =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, &normal,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    assert_true(normal_size >= 0);
    assert_int_equal(decoded_size, normal_size);
    assert_memory_equal(decoded, normal, decoded_size);
    free(normal);

    // Each push hands out whole characters only, and together they are the text.
    q3_text_stream *stream;
    assert_true(q3_text_stream_create(tokenizer, false, &stream, &err));
    size_t at = 0;
    for (size_t i = 0; i <= ids.count; i++) {
        q3_bytes part;
        assert_true(i < ids.count ? q3_text_stream_push(stream, ids.ids[i], &part, &err)
                                  : q3_text_stream_finish(stream, &part, &err));
        assert_true(part.size <= decoded_size - at);
        if (part.size)
            assert_memory_equal(part.data, decoded + at, part.size);
        for (size_t k = 0; k < part.size;) {
            const size_t length = q3_utf8_length(part.data + k, part.size - k);
            assert_true(length > 0);
            k += length;
        }
        at += part.size;
    }
    assert_int_equal(at, decoded_size);
    q3_text_stream_destroy(stream);
    free(decoded);
    free(text);
    q3_ids_free(&ids);
}

static void assert_cases(const q3_tokenizer *tokenizer, const cases *loaded, int count)
{
    int number = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, loaded->list) assert_case(tokenizer, item, number++);
    assert_int_equal(number, count);
}

static void reference_cases(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_tokenizer(Q3_TEST_MODEL_DIR);
    cases loaded;
    load_cases(Q3_TEST_REFERENCE, "tokenizer", &loaded);
    assert_cases(tokenizer, &loaded, 25);
    q3_json_free(&loaded.json);
    q3_tokenizer_close(tokenizer);
}

static void prompts_of_the_reference(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_tokenizer(Q3_TEST_MODEL_DIR);
    cases loaded;
    load_cases(Q3_TEST_REFERENCE, "prompts", &loaded);
    assert_cases(tokenizer, &loaded, 12);
    q3_json_free(&loaded.json);
    q3_tokenizer_close(tokenizer);
}

// Qwen's own vocabulary is too large to ship: its 600 cases run where a directory with it is named.
static void qwen_cases(void **state)
{
    (void)state;
    const char *directory = getenv("Q3_QWEN_TOKENIZER_DIR");
    if (!directory) {
        print_message("Q3_QWEN_TOKENIZER_DIR is not set\n");
        skip();
    }
    q3_error err;
    q3_tokenizer *tokenizer = open_tokenizer(directory);
    assert_int_equal(q3_tokenizer_base_count(tokenizer), 151643);
    assert_int_equal(q3_tokenizer_count(tokenizer), 151676);
    char *path = q3_path_join(directory, "cases.json", &err);
    assert_non_null(path);
    cases loaded;
    load_cases(path, NULL, &loaded);
    assert_cases(tokenizer, &loaded, 600);
    q3_json_free(&loaded.json);
    free(path);
    q3_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_cases),
        cmocka_unit_test(prompts_of_the_reference),
        cmocka_unit_test(qwen_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
