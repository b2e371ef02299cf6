// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer against ids from Hugging Face's, and against files that are wrong.
#include "json.h"
#include "text_stream.h"
#include "tokenizer.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

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

static void assert_encodes(const q3_tokenizer *tokenizer, const char *text,
                           const uint32_t *expected, size_t count)
{
    q3_ids ids;
    encode(tokenizer, bytes_of(text), &ids);
    assert_int_equal(ids.count, count);
    assert_memory_equal(ids.ids, expected, count * sizeof *expected);
    q3_ids_free(&ids);
}

#define ASSERT_ENCODES(tokenizer, text, ...)                         \
    assert_encodes(tokenizer, text, (const uint32_t[]){__VA_ARGS__}, \
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

// The strict reader refuses "\u0000", which some texts hold: U+FDD0, which none does, takes its
// place in the JSON and turns back into NUL in the text.
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
    char *text = strdup(q3_test_string(item, "text"));
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
    const cJSON *expected = q3_test_member(item, "ids");
    size_t count = 0;
    for (const cJSON *id = expected->child; id; id = id->next, count++)
        if (count < ids.count && (double)ids.ids[count] != id->valuedouble)
            fail_msg("case %d: token %zu: expected %.0f, found %u: %s", number, count,
                     id->valuedouble, ids.ids[count], text);
    assert_int_equal(ids.count, count);

    char *decoded;
    size_t decoded_size;
    assert_true(
        q3_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &decoded, &decoded_size, &err));
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

// ---- a vocabulary small enough to reason about ----

// Its base tokens: every byte b as id b, then these.
enum { AB = 256, ABC, BC, AA, TWELVE, TWO_BLANKS, LONG_S_END_A, SHORT, LONGER, VISIBLE };

static const char small_merges[] = "#version: 0.2\na b\nab c\nb c\na a\n1 2\nĠ Ġ\n¿ a\n";
static const char small_config[] =
    "{\"added_tokens_decoder\": {\n"
    "\"263\": {\"content\": \"<a>\", \"special\": true, \"normalized\": false},\n"
    "\"264\": {\"content\": \"<a>b\", \"special\": true, \"normalized\": false},\n"
    "\"265\": {\"content\": \"<see>\", \"special\": false, \"normalized\": false}\n"
    "}, \"tokenizer_class\": \"Qwen2Tokenizer\"}";

// The caller frees it.
static char *small_vocab(void)
{
    const size_t capacity = 1 << 14;
    char *text = malloc(capacity);
    assert_non_null(text);
    size_t size = 0;
    unsigned other = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        const bool itself = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        const unsigned spelling = itself ? byte : other++;
        size += (size_t)snprintf(text + size, capacity - size, "%s\"\\u%04x\": %u",
                                 byte ? ",\n" : "{", spelling, byte);
    }
    snprintf(text + size, capacity - size,
             ",\n\"ab\": 256,\n\"abc\": 257,\n\"bc\": 258,\n\"aa\": 259,\n\"12\": 260,\n"
             "\"ĠĠ\": 261,\n\"¿a\": 262}");
    return text;
}

static bool open_texts(const char *vocab, const char *merges, const char *config,
                       q3_tokenizer **tokenizer, q3_error *err)
{
    const q3_tokenizer_files files = {.vocab_name = "vocab.json",
                                      .merges_name = "merges.txt",
                                      .config_name = "tokenizer_config.json",
                                      .vocab = bytes_of(vocab),
                                      .merges = bytes_of(merges),
                                      .config = bytes_of(config)};
    return q3_tokenizer_open_memory(&files, tokenizer, err);
}

static q3_tokenizer *open_small(void)
{
    q3_error err;
    q3_tokenizer *tokenizer;
    char *vocab = small_vocab();
    if (!open_texts(vocab, small_merges, small_config, &tokenizer, &err))
        fail_msg("%s", err.message);
    free(vocab);
    return tokenizer;
}

static void merges_in_order(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    assert_encodes(tokenizer, "", NULL, 0);
    ASSERT_ENCODES(tokenizer, "a", 'a');
    ASSERT_ENCODES(tokenizer, "abc", ABC);
    ASSERT_ENCODES(tokenizer, "bcbc", BC, BC);
    ASSERT_ENCODES(tokenizer, "aabc", 'a', ABC);
    ASSERT_ENCODES(tokenizer, "abbc", AB, BC);
    ASSERT_ENCODES(tokenizer, "aaaaa", AA, AA, 'a');
    q3_tokenizer_close(tokenizer);
}

static void pieces_are_cut_first(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    ASSERT_ENCODES(tokenizer, "12", '1', '2');
    ASSERT_ENCODES(tokenizer, "  ", TWO_BLANKS);
    ASSERT_ENCODES(tokenizer, "  a", ' ', ' ', 'a');
    ASSERT_ENCODES(tokenizer, "   a", TWO_BLANKS, ' ', 'a');
    ASSERT_ENCODES(tokenizer, "  \n", TWO_BLANKS, '\n');
    ASSERT_ENCODES(tokenizer, "a\r\na", 'a', '\r', '\n', 'a');
    // U+017F is an s without regard to case: it ends the piece that an apostrophe starts.
    ASSERT_ENCODES(tokenizer, "ſa", 0xc5, LONG_S_END_A);
    ASSERT_ENCODES(tokenizer, "'ſa", '\'', 0xc5, 0xbf, 'a');
    // U+180E was white space once and is no longer; U+0085 is.
    ASSERT_ENCODES(tokenizer, "  \u180e", ' ', ' ', 0xe1, 0xa0, 0x8e);
    ASSERT_ENCODES(tokenizer, "  \xc2\x85", TWO_BLANKS, 0xc2, 0x85);
    q3_tokenizer_close(tokenizer);
}

static void added_tokens_are_cut_out(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    ASSERT_ENCODES(tokenizer, "<a>", SHORT);
    ASSERT_ENCODES(tokenizer, "<a>b<a>c<a", LONGER, SHORT, 'c', '<', 'a');
    ASSERT_ENCODES(tokenizer, "a<see>b", 'a', VISIBLE, 'b');
    ASSERT_ENCODES(tokenizer, " <see> ", ' ', VISIBLE, ' ');
    // Normalization sees only what is between: the stroke stays apart from the ">".
    ASSERT_ENCODES(tokenizer, "<see>\u0338", VISIBLE, 0xcc, 0xb8);
    ASSERT_ENCODES(tokenizer, "->\u0338", '-', 0xe2, 0x89, 0xaf);
    q3_tokenizer_close(tokenizer);
}

static void text_is_normalized(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    ASSERT_ENCODES(tokenizer, "xe\u0301y", 'x', 0xc3, 0xa9, 'y');
    ASSERT_ENCODES(tokenizer, "\u00e9\u0323", 0xe1, 0xba, 0xb9, 0xcc, 0x81);
    ASSERT_ENCODES(tokenizer, "\u1100\u1161\u11a8", 0xea, 0xb0, 0x81); // Hangul GAG
    ASSERT_ENCODES(tokenizer, "\u212b", 0xc3, 0x85);                   // Angstrom sign
    ASSERT_ENCODES(tokenizer, "\u0958", 0xe0, 0xa4, 0x95, 0xe0, 0xa4, 0xbc);
    ASSERT_ENCODES(tokenizer, "\u0323\u0301\u0323", 0xcc, 0xa3, 0xcc, 0xa3, 0xcc, 0x81);
    q3_tokenizer_close(tokenizer);
}

static void nul_is_a_character(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    q3_ids ids;
    encode(tokenizer, (q3_bytes){(const uint8_t *)"a\0b", 3}, &ids);
    const uint32_t expected[] = {'a', 0, 'b'};
    assert_int_equal(ids.count, 3);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    q3_ids_free(&ids);
    q3_tokenizer_close(tokenizer);
}

static void text_must_be_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"a\xff", "text: expected UTF-8, found the byte 0xff at offset 1"},
        {"\xc3", "text: expected UTF-8, found the byte 0xc3 at offset 0"},
        {"ab\xc0\x80", "text: expected UTF-8, found the byte 0xc0 at offset 2"},
        {"\xed\xa0\x80", "text: expected UTF-8, found the byte 0xed at offset 0"},
        {"<a>\xf4\x90\x80\x80", "text: expected UTF-8, found the byte 0xf4 at offset 3"},
    };
    q3_tokenizer *tokenizer = open_small();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        q3_error err;
        q3_ids ids = {0};
        assert_false(q3_tokenizer_encode(tokenizer, bytes_of(bad[i].text), &ids, &err));
        assert_string_equal(err.message, bad[i].message);
        assert_int_equal(err.code, Q3_MALFORMED);
        assert_int_equal(ids.count, 0);
        q3_ids_free(&ids);
    }
    q3_tokenizer_close(tokenizer);
}

// Long runs of one kind: what is quadratic, or recursive, does not come back from here.
static void long_runs(void **state)
{
    (void)state;
    const size_t count = 1 << 20;
    q3_tokenizer *tokenizer = open_small();
    uint8_t *text = malloc(count + 1);
    assert_non_null(text);
    q3_ids ids;

    memset(text, 'a', count);
    encode(tokenizer, (q3_bytes){text, count}, &ids);
    assert_int_equal(ids.count, count / 2);
    for (size_t i = 0; i < ids.count; i++)
        assert_int_equal(ids.ids[i], AA);
    q3_ids_free(&ids);

    memset(text, ' ', count);
    text[count] = 'x';
    encode(tokenizer, (q3_bytes){text, count + 1}, &ids);
    assert_int_equal(ids.count, count / 2 - 1 + 3);
    for (size_t i = 0; i < count / 2 - 1; i++)
        assert_int_equal(ids.ids[i], TWO_BLANKS);
    assert_int_equal(ids.ids[count / 2 - 1], ' ');
    assert_int_equal(ids.ids[count / 2], ' ');
    assert_int_equal(ids.ids[count / 2 + 1], 'x');
    q3_ids_free(&ids);

    // Marks of class 230 and 220 in turn: sorted, all U+0323 come before all U+0301.
    for (size_t i = 0; i < count; i += 4)
        memcpy(text + i, "\u0301\u0323", 4);
    encode(tokenizer, (q3_bytes){text, count}, &ids);
    assert_int_equal(ids.count, count);
    for (size_t i = 0; i < count; i += 2) {
        assert_int_equal(ids.ids[i], 0xcc);
        assert_int_equal(ids.ids[i + 1], i < count / 2 ? 0xa3 : 0x81);
    }
    q3_ids_free(&ids);
    free(text);
    q3_tokenizer_close(tokenizer);
}

static void line_ends_of_merges(void **state)
{
    (void)state;
    q3_error err;
    char *vocab = small_vocab();
    static const char *const variants[] = {
        "#version: 0.2\r\na b\r\nab c\r\nb c\r\na a\r\n1 2\r\nĠ Ġ\r\n¿ a\r\n",
        "a b\nab c\nb c\na a\n1 2\nĠ Ġ\n¿ a",
        "a b\r\nab c\r\nb c\r\n\r\na a\r\n1 2\r\nĠ Ġ\r\n¿ a\r\n",
    };
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        q3_tokenizer *tokenizer;
        if (!open_texts(vocab, variants[i], small_config, &tokenizer, &err))
            fail_msg("%s", err.message);
        ASSERT_ENCODES(tokenizer, "abcaa", ABC, AA);
        ASSERT_ENCODES(tokenizer, "ſa", 0xc5, LONG_S_END_A);
        q3_tokenizer_close(tokenizer);
    }
    free(vocab);
}

static void queries(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    uint32_t id;
    q3_bytes content;
    assert_int_equal(q3_tokenizer_base_count(tokenizer), 263);
    assert_int_equal(q3_tokenizer_count(tokenizer), 266);
    assert_true(q3_tokenizer_find(tokenizer, bytes_of("<see>"), &id));
    assert_int_equal(id, VISIBLE);
    assert_true(q3_tokenizer_find(tokenizer, bytes_of("  "), &id));
    assert_int_equal(id, TWO_BLANKS);
    assert_true(q3_tokenizer_find(tokenizer, (q3_bytes){(const uint8_t *)"\0", 1}, &id));
    assert_int_equal(id, 0);
    assert_false(q3_tokenizer_find(tokenizer, bytes_of("<se"), &id));
    assert_false(q3_tokenizer_find(tokenizer, bytes_of(""), &id));
    assert_true(q3_tokenizer_content(tokenizer, ABC, &content));
    assert_int_equal(content.size, 3);
    assert_memory_equal(content.data, "abc", 3);
    assert_false(q3_tokenizer_content(tokenizer, 266, &content));
    assert_true(q3_tokenizer_is_special(tokenizer, SHORT));
    assert_false(q3_tokenizer_is_special(tokenizer, VISIBLE));
    assert_false(q3_tokenizer_is_special(tokenizer, ABC));
    assert_false(q3_tokenizer_is_special(tokenizer, 266));
    q3_tokenizer_close(tokenizer);
}

// ---- decoding ----

#define FFFD "\xef\xbf\xbd"
#define IDS(...) (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / 4

static void broken_characters(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    assert_decodes(tokenizer, NULL, 0, false, "");
    assert_decodes(tokenizer, IDS(0xe2, 0x82, 0xac), false, "€");
    assert_decodes(tokenizer, IDS(0xe2, 0x82, 'a'), false, FFFD "a");
    assert_decodes(tokenizer, IDS(0xe2, 0x82), false, FFFD);
    assert_decodes(tokenizer, IDS(0xf0, 0x9f, 0x98, 0x80), false, "😀");
    assert_decodes(tokenizer, IDS(0xf0, 0x9f, 0x98, 'A'), false, FFFD "A");
    assert_decodes(tokenizer, IDS(0xe2, 0xe2, 0x82, 0xac), false, FFFD "€");
    assert_decodes(tokenizer, IDS(0x80, 0xbf), false, FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xc0, 0x80), false, FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xe0, 0x80, 0x80), false, FFFD FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xed, 0xa0, 0x80), false, FFFD FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xf4, 0x90, 0x80, 0x80), false, FFFD FFFD FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xf1, 0x80, 0x80, 0xf1), false, FFFD FFFD);
    assert_decodes(tokenizer, IDS(0xc3, ABC), false, FFFD "abc");
    q3_tokenizer_close(tokenizer);
}

static void special_tokens_can_be_left_out(void **state)
{
    (void)state;
    q3_tokenizer *tokenizer = open_small();
    assert_decodes(tokenizer, IDS('x', SHORT, VISIBLE, 'y'), false, "x<a><see>y");
    assert_decodes(tokenizer, IDS('x', SHORT, VISIBLE, 'y'), true, "x<see>y");
    assert_decodes(tokenizer, IDS(0xc3, SHORT, 0xa9), false, FFFD "<a>" FFFD);
    assert_decodes(tokenizer, IDS(0xc3, SHORT, 0xa9), true, "é");
    q3_tokenizer_close(tokenizer);
}

static void stream_holds_back(void **state)
{
    (void)state;
    q3_error err;
    q3_tokenizer *tokenizer = open_small();
    q3_text_stream *stream;
    q3_bytes part;
    assert_true(q3_text_stream_create(tokenizer, false, &stream, &err));
    static const struct {
        uint32_t id;
        const char *text;
    } steps[] = {{'a', "a"},  {0xf0, ""},         {0x9f, ""},   {0x98, ""}, {0x80, "😀"},
                 {0xe2, ""},  {'b', FFFD "b"},    {0xff, FFFD}, {0xe2, ""}, {0xc3, FFFD},
                 {0xa9, "é"}, {VISIBLE, "<see>"}, {0xf0, ""}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        assert_true(q3_text_stream_push(stream, steps[i].id, &part, &err));
        assert_int_equal(part.size, strlen(steps[i].text));
        if (part.size)
            assert_memory_equal(part.data, steps[i].text, part.size);
    }
    assert_true(q3_text_stream_finish(stream, &part, &err));
    assert_int_equal(part.size, 3);
    assert_memory_equal(part.data, FFFD, 3);
    assert_true(q3_text_stream_finish(stream, &part, &err));
    assert_int_equal(part.size, 0);
    assert_false(q3_text_stream_push(stream, 266, &part, &err));
    assert_string_equal(err.message, "token 266: expected an id below 266");
    assert_int_equal(err.code, Q3_MALFORMED);
    q3_text_stream_destroy(stream);
    q3_tokenizer_close(tokenizer);
}

// ---- wrong files ----

typedef enum which { VOCAB, MERGES, CONFIG } which;

typedef struct bad_file {
    const char *name;
    which file;
    const char *find, *replace; // an empty `find`: the whole file
    const char *message;
} bad_file;

static const bad_file bad_files[] = {
    {"vocabulary is an array", VOCAB, "", "[1, 2]",
     "vocab.json: expected an object of tokens and their ids"},
    {"vocabulary is empty", VOCAB, "", "{}",
     "vocab.json: expected a token for each of the 256 bytes, found 0 tokens"},
    {"vocabulary is cut short", VOCAB, "", "{\"a\": 0,",
     "vocab.json: not valid JSON: the text ends too early at byte 8"},
    {"token twice", VOCAB, "\"abc\"", "\"ab\"", "vocab.json: the key \"ab\" stands twice"},
    {"id twice", VOCAB, "258", "257",
     "vocab.json: token \"bc\": id 257 is already another token's"},
    {"id out of range", VOCAB, "262", "263",
     "vocab.json: token \"¿a\": expected an id below 263 (that many tokens, no gap), found 263"},
    {"id that leaves a gap", VOCAB, "\"bc\": 258,\n", "",
     "vocab.json: token \"¿a\": expected an id below 262 (that many tokens, no gap), found 262"},
    {"id beyond 32 bits", VOCAB, "262", "4294967296",
     "vocab.json: ¿a: expected an integer from 0 to 4294967295, found 4294967296"},
    {"id that is negative", VOCAB, "262", "-1",
     "vocab.json: ¿a: expected an integer from 0 to 4294967295, found -1"},
    {"id that is a fraction", VOCAB, "262", "262.5",
     "vocab.json: ¿a: expected an integer from 0 to 4294967295, found 262.5"},
    {"id that is a string", VOCAB, "262", "\"262\"",
     "vocab.json: ¿a: expected an integer from 0 to 4294967295, found \"262\""},
    {"empty token", VOCAB, "\"aa\"", "\"\"", "vocab.json: token 259 is empty"},
    {"token that spells no bytes", VOCAB, "\"aa\"", "\"a a\"",
     "vocab.json: token \"a a\" (id 259): expected only characters that spell bytes as in GPT-2"},
    {"token in another script", VOCAB, "\"aa\"", "\"日\"",
     "vocab.json: token \"日\" (id 259): expected only characters that spell bytes as in GPT-2"},
    {"byte without a token", VOCAB, "\"\\u0041\"", "\"zz\"",
     "vocab.json: no token for the byte 0x41"},
    {"vocabulary not UTF-8", VOCAB, "\"aa\"",
     "\"\xff"
     "\"",
     "vocab.json: not valid JSON: bytes that are not UTF-8 at byte 3766"},
    {"merge of one token", MERGES, "b c", "bc",
     "merges.txt: line 3: expected two tokens with a blank between them, found \"abc\""},
    {"merge of three tokens", MERGES, "b c", "b c a",
     "merges.txt: line 3: expected a token of the vocabulary, found \"c a\""},
    {"merge with two blanks", MERGES, "b c", "b  c",
     "merges.txt: line 3: expected a token of the vocabulary, found \" c\""},
    {"merge with a blank at the end", MERGES, "b c", "bc ",
     "merges.txt: line 3: expected two tokens with a blank between them, found \"abc \""},
    {"merge of an unknown left token", MERGES, "ab c", "abb c",
     "merges.txt: line 3: expected a token of the vocabulary, found \"abb\""},
    {"merge of an unknown right token", MERGES, "ab c", "ab cc",
     "merges.txt: line 3: expected a token of the vocabulary, found \"cc\""},
    {"merge into an unknown token", MERGES, "b c", "b d",
     "merges.txt: line 3: expected a merge into a token of the vocabulary, found \"ab d\""},
    {"merge of an added token", MERGES, "\nb c", "\n<a> b",
     "merges.txt: line 4: expected a token of the vocabulary, found \"<a>\""},
    {"merge twice", MERGES, "\nb c", "\na b", "merges.txt: line 4 repeats the merge of line 2"},
    {"merges not UTF-8", MERGES, "b c",
     "\xff"
     " c",
     "merges.txt: line 3: expected a token of the vocabulary, found \"a\\xff\""},
    {"header in the second line", MERGES, "a b\n", "#version: 0.2\n",
     "merges.txt: line 2: expected a token of the vocabulary, found \"#version:\""},
    {"header of another kind", MERGES, "#version: 0.2", "# merges",
     "merges.txt: line 1: expected a token of the vocabulary, found \"merges\""},
    {"no added_tokens_decoder", CONFIG, "", "{}",
     "tokenizer_config.json: \"added_tokens_decoder\" is missing"},
    {"configuration is an array", CONFIG, "", "[]",
     "tokenizer_config.json: expected an object, found an array of 0"},
    {"added tokens are an array", CONFIG, "", "{\"added_tokens_decoder\": []}",
     "tokenizer_config.json: added_tokens_decoder: expected an object, found an array of 0"},
    {"added token is a string", CONFIG, "", "{\"added_tokens_decoder\": {\"263\": \"<a>\"}}",
     "tokenizer_config.json: added_tokens_decoder.263: expected an object, found \"<a>\""},
    {"added token without content", CONFIG, "\"content\": \"<a>\", ", "",
     "tokenizer_config.json: added_tokens_decoder.263: \"content\" is missing"},
    {"added token with empty content", CONFIG, "\"<a>\"", "\"\"",
     "tokenizer_config.json: added_tokens_decoder.263: the content is empty"},
    {"added token with a number as content", CONFIG, "\"<a>\"", "7",
     "tokenizer_config.json: added_tokens_decoder.263.content: expected a string, found 7"},
    {"added token in the vocabulary's ids", CONFIG, "\"263\"", "\"262\"",
     "tokenizer_config.json: added_tokens_decoder.262: expected ids from 263 to 265 (behind the "
     "vocabulary, no gap), found 262"},
    {"added token that leaves a gap", CONFIG, "\"265\"", "\"266\"",
     "tokenizer_config.json: added_tokens_decoder.266: expected ids from 263 to 265 (behind the "
     "vocabulary, no gap), found 266"},
    {"added token with two ids alike", CONFIG, "\"264\"", "\"0263\"",
     "tokenizer_config.json: added_tokens_decoder.0263: id 263 is given twice"},
    {"key that is no id", CONFIG, "\"264\"", "\"+264\"",
     "tokenizer_config.json: added_tokens_decoder.+264: expected a token id as the key, found "
     "\"+264\""},
    {"added token like another", CONFIG, "<a>b", "<a>",
     "tokenizer_config.json: added token 264 has the content \"<a>\" of token 263"},
    {"added token like a base token", CONFIG, "<see>", "abc",
     "tokenizer_config.json: added token 265 has the content \"abc\" of token 257"},
    {"added token with lstrip", CONFIG, "\"normalized\": false",
     "\"normalized\": false, \"lstrip\": true",
     "tokenizer_config.json: added_tokens_decoder.263.lstrip: true is not supported"},
    {"added token with rstrip", CONFIG, "\"normalized\": false",
     "\"normalized\": false, \"rstrip\": true",
     "tokenizer_config.json: added_tokens_decoder.263.rstrip: true is not supported"},
    {"added token with single_word", CONFIG, "\"normalized\": false",
     "\"normalized\": false, \"single_word\": true",
     "tokenizer_config.json: added_tokens_decoder.263.single_word: true is not supported"},
    {"added token that is normalized", CONFIG, "\"normalized\": false", "\"normalized\": true",
     "tokenizer_config.json: added_tokens_decoder.263.normalized: true is not supported"},
    {"special that is a number", CONFIG, "\"special\": true", "\"special\": 1",
     "tokenizer_config.json: added_tokens_decoder.263.special: expected true or false, found 1"},
    {"blank before the text", CONFIG, "\"tokenizer_class\"",
     "\"add_prefix_space\": true, \"tokenizer_class\"",
     "tokenizer_config.json: add_prefix_space: true is not supported"},
    {"start token", CONFIG, "\"tokenizer_class\"", "\"add_bos_token\": true, \"tokenizer_class\"",
     "tokenizer_config.json: add_bos_token: true is not supported"},
    {"added tokens spelt out", CONFIG, "\"tokenizer_class\"",
     "\"split_special_tokens\": true, \"tokenizer_class\"",
     "tokenizer_config.json: split_special_tokens: true is not supported"},
    {"another class", CONFIG, "Qwen2Tokenizer", "LlamaTokenizer",
     "tokenizer_config.json: tokenizer_class: expected \"Qwen2Tokenizer\" or "
     "\"Qwen2TokenizerFast\", found \"LlamaTokenizer\""},
};

// `text` with the first `find` in it replaced; the caller frees it.
static char *replaced(const char *text, const char *find, const char *replace)
{
    const char *at = strstr(text, find);
    assert_non_null(at);
    const size_t before = (size_t)(at - text), cut = *find ? strlen(find) : strlen(text);
    char *changed = malloc(strlen(text) - cut + strlen(replace) + 1);
    assert_non_null(changed);
    memcpy(changed, text, before);
    strcpy(changed + before, replace);
    strcat(changed, at + cut);
    return changed;
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    char *vocab = small_vocab();
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        const bad_file *bad = &bad_files[i];
        const char *texts[3] = {vocab, small_merges, small_config};
        char *changed = replaced(texts[bad->file], bad->find, bad->replace);
        texts[bad->file] = changed;
        q3_error err = {0};
        q3_tokenizer *tokenizer = NULL;
        if (open_texts(texts[VOCAB], texts[MERGES], texts[CONFIG], &tokenizer, &err))
            fail_msg("%s: not refused", bad->name);
        if (strcmp(err.message, bad->message) != 0)
            fail_msg("%s:\nexpected: %s\nfound:    %s", bad->name, bad->message, err.message);
        assert_int_equal(err.code, Q3_MALFORMED);
        assert_null(tokenizer);
        free(changed);
    }
    free(vocab);
}

static void absent_files_are_named(void **state)
{
    (void)state;
    q3_error err;
    q3_tokenizer *tokenizer;
    assert_false(q3_tokenizer_open(Q3_TEST_MODEL_DIR "/absent", &tokenizer, &err));
    assert_string_equal(err.message, Q3_TEST_MODEL_DIR
                        "/absent/vocab.json: cannot open: No such file or directory");
    assert_int_equal(err.code, Q3_FAILED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_cases),
        cmocka_unit_test(prompts_of_the_reference),
        cmocka_unit_test(qwen_cases),
        cmocka_unit_test(merges_in_order),
        cmocka_unit_test(pieces_are_cut_first),
        cmocka_unit_test(added_tokens_are_cut_out),
        cmocka_unit_test(text_is_normalized),
        cmocka_unit_test(nul_is_a_character),
        cmocka_unit_test(text_must_be_utf8),
        cmocka_unit_test(long_runs),
        cmocka_unit_test(line_ends_of_merges),
        cmocka_unit_test(queries),
        cmocka_unit_test(broken_characters),
        cmocka_unit_test(special_tokens_can_be_left_out),
        cmocka_unit_test(stream_holds_back),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(absent_files_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
