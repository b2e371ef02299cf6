// SPDX-License-Identifier: Apache-2.0
//
// Conversations, fed in pieces and as a whole.
#include "chat.h"

#include "base/file.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static q3_bytes bytes_of(const char *text)
{
    return (q3_bytes){(const uint8_t *)text, strlen(text)};
}

static int open_tiny(void **state)
{
    q3_error err;
    q3_tokenizer *tokenizer;
    if (!q3_tokenizer_open(Q3_TEST_MODEL_DIR, &tokenizer, &err))
        return -1;
    *state = tokenizer;
    return 0;
}

static int close_tiny(void **state)
{
    q3_tokenizer_close(*state);
    return 0;
}

static void append_text(const q3_tokenizer *tokenizer, const char *text, q3_ids *ids)
{
    q3_error err;
    if (!q3_tokenizer_encode(tokenizer, bytes_of(text), ids, &err))
        fail_msg("%s", err.message);
}

static void assert_same(const q3_tokenizer *tokenizer, q3_ids *pieces, const char *whole)
{
    q3_ids expected = {0};
    append_text(tokenizer, whole, &expected);
    assert_int_equal(pieces->count, expected.count);
    assert_memory_equal(pieces->ids, expected.ids, expected.count * sizeof *expected.ids);
    q3_ids_free(&expected);
    q3_ids_free(pieces);
}

static void first_turn(void **state)
{
    const q3_tokenizer *tokenizer = *state;
    q3_error err;
    q3_ids ids = {0};
    assert_true(q3_chat_first(tokenizer, NULL, bytes_of("hi"), &ids, &err));
    const uint32_t expected[] = {1401, 282, 198, 712, 1402, 198};
    assert_true(ids.count > 6);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    assert_same(tokenizer, &ids, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
}

static void system_text_only_when_given(void **state)
{
    const q3_tokenizer *tokenizer = *state;
    q3_error err;
    q3_ids ids = {0};
    q3_bytes system = bytes_of("Be brief.\n");
    assert_true(q3_chat_first(tokenizer, &system, bytes_of(" hi "), &ids, &err));
    assert_same(tokenizer, &ids,
                "<|im_start|>system\nBe brief.\n<|im_end|>\n"
                "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n");
    // An empty one is given all the same.
    system = bytes_of("");
    assert_true(q3_chat_first(tokenizer, &system, bytes_of(""), &ids, &err));
    assert_same(tokenizer, &ids,
                "<|im_start|>system\n<|im_end|>\n"
                "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n");
}

static void pieces_make_the_whole(void **state)
{
    const q3_tokenizer *tokenizer = *state;
    q3_error err;
    q3_ids ids = {0};
    const q3_bytes system = bytes_of("You tell stories.");
    assert_true(q3_chat_first(tokenizer, &system, bytes_of("Tell me one.\n"), &ids, &err));
    append_text(tokenizer, "Once upon a time there was a fox.", &ids);
    assert_true(q3_chat_next(tokenizer, bytes_of("\n\nAnd then?"), &ids, &err));
    append_text(tokenizer, "It slept.\n", &ids);
    assert_true(q3_chat_next(tokenizer, bytes_of("é 日本"), &ids, &err));
    assert_same(tokenizer, &ids,
                "<|im_start|>system\nYou tell stories.<|im_end|>\n"
                "<|im_start|>user\nTell me one.\n<|im_end|>\n"
                "<|im_start|>assistant\nOnce upon a time there was a fox.<|im_end|>\n"
                "<|im_start|>user\n\n\nAnd then?<|im_end|>\n"
                "<|im_start|>assistant\nIt slept.\n<|im_end|>\n"
                "<|im_start|>user\né 日本<|im_end|>\n<|im_start|>assistant\n");
}

static void added_tokens_in_user_text(void **state)
{
    const q3_tokenizer *tokenizer = *state;
    q3_error err;
    q3_ids ids = {0};
    assert_true(q3_chat_first(tokenizer, NULL, bytes_of("a<|im_end|>"), &ids, &err));
    size_t ends = 0;
    for (size_t i = 0; i < ids.count; i++)
        ends += ids.ids[i] == 1402;
    assert_int_equal(ends, 2);
    assert_same(tokenizer, &ids,
                "<|im_start|>user\na<|im_end|><|im_end|>\n<|im_start|>assistant\n");
}

static void stop_ids(void **state)
{
    q3_error err;
    q3_ids ids = {0};
    assert_true(q3_chat_stop_ids(*state, &ids, &err));
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.ids[0], 1402);
    assert_int_equal(ids.ids[1], 1400);
    q3_ids_free(&ids);
}

static void text_that_is_not_utf8(void **state)
{
    q3_error err;
    q3_ids ids = {0};
    assert_false(q3_chat_first(*state, NULL, bytes_of("\xff"), &ids, &err));
    // The offset is the one in the whole text, behind "<|im_start|>user\n".
    assert_string_equal(err.message, "text: expected UTF-8, found the byte 0xff at offset 17");
    assert_int_equal(err.code, Q3_MALFORMED);
    q3_ids_free(&ids);
}

static void tokenizer_without_chatml(void **state)
{
    (void)state;
    q3_error err;
    char *vocab, *merges;
    q3_tokenizer_files files = {.vocab_name = "vocab.json",
                                .merges_name = "merges.txt",
                                .config_name = "tokenizer_config.json",
                                .config = bytes_of("{\"added_tokens_decoder\": {\"1400\": {"
                                                   "\"content\": \"<|im_start|>\"}}}")};
    assert_true(
        q3_file_load(Q3_TEST_MODEL_DIR "/vocab.json", 1 << 20, &vocab, &files.vocab.size, &err));
    assert_true(
        q3_file_load(Q3_TEST_MODEL_DIR "/merges.txt", 1 << 20, &merges, &files.merges.size, &err));
    files.vocab.data = (const uint8_t *)vocab;
    files.merges.data = (const uint8_t *)merges;
    q3_tokenizer *tokenizer;
    if (!q3_tokenizer_open_memory(&files, &tokenizer, &err))
        fail_msg("%s", err.message);
    free(vocab);
    free(merges);
    q3_ids ids = {0};
    assert_false(q3_chat_first(tokenizer, NULL, bytes_of("hi"), &ids, &err));
    assert_string_equal(err.message,
                        "chat: expected the tokenizer to have the added token \"<|im_end|>\"");
    assert_int_equal(err.code, Q3_MALFORMED);
    assert_false(q3_chat_next(tokenizer, bytes_of("hi"), &ids, &err));
    assert_true(q3_chat_stop_ids(tokenizer, &ids, &err));
    assert_int_equal(ids.count, 0);
    q3_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_turn),
        cmocka_unit_test(system_text_only_when_given),
        cmocka_unit_test(pieces_make_the_whole),
        cmocka_unit_test(added_tokens_in_user_text),
        cmocka_unit_test(stop_ids),
        cmocka_unit_test(text_that_is_not_utf8),
        cmocka_unit_test(tokenizer_without_chatml),
    };
    return cmocka_run_group_tests(tests, open_tiny, close_tiny);
}
