// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer's three files, and a text to encode. An input has four parts, with a byte 0xff
// between them: vocab.json, merges.txt, tokenizer_config.json and the text. A first part that does
// not begin with '{' is a list of words, one a line, that follow the tokens of the 256 bytes. An
// empty third part is a configuration without added tokens.
#include "tokenizer.h"
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

// vocab.json of the bytes and of words as they are spelt, which the target need not check.
static char *make_vocabulary(q3_bytes words, size_t *size)
{
    char *text = NULL;
    FILE *stream = open_memstream(&text, size);
    FUZZ_CHECK(stream != NULL);
    unsigned other = 0x100, id = 0;
    for (unsigned byte = 0; byte < 256; byte++) {
        const bool itself = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
        const unsigned character = itself ? byte : other++;
        fprintf(stream, "%c\"", byte ? ',' : '{');
        if (character >= 0x80)
            fprintf(stream, "%c%c", 0xc0 | character >> 6, 0x80 | (character & 0x3f));
        else
            fprintf(stream, "%s%c", character == '"' || character == '\\' ? "\\" : "", character);
        fprintf(stream, "\":%u", id++);
    }
    while (words.size) {
        const uint8_t *end = memchr(words.data, '\n', words.size);
        const size_t length = end ? (size_t)(end - words.data) : words.size;
        fprintf(stream, ",\"%.*s\":%u", (int)length, (const char *)words.data, id++);
        words.data += end ? length + 1 : length;
        words.size -= end ? length + 1 : length;
    }
    fputc('}', stream);
    FUZZ_CHECK(fclose(stream) == 0);
    return text;
}

// The ids' contents are the text in NFC, where no added token was cut out before.
static void check_ids(const q3_tokenizer *tokenizer, const q3_ids *ids, q3_bytes text)
{
    char *decoded = NULL;
    size_t size = 0;
    bool added = false;
    FILE *stream = open_memstream(&decoded, &size);
    FUZZ_CHECK(stream != NULL);
    for (size_t i = 0; i < ids->count; i++) {
        q3_bytes content;
        FUZZ_CHECK(q3_tokenizer_content(tokenizer, ids->ids[i], &content));
        fwrite(content.data, 1, content.size, stream);
        added = added || ids->ids[i] >= q3_tokenizer_base_count(tokenizer);
    }
    FUZZ_CHECK(fclose(stream) == 0);
    if (!added) {
        utf8proc_uint8_t *normal = NULL;
        const utf8proc_ssize_t length = utf8proc_map(text.data, (utf8proc_ssize_t)text.size,
                                                     &normal, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        FUZZ_CHECK(length >= 0 && (size_t)length == size && memcmp(normal, decoded, size) == 0);
        free(normal);
    }
    free(decoded);
}

static void check_tokenizer(const q3_tokenizer *tokenizer, q3_bytes text)
{
    q3_error err;
    q3_ids ids = {0};
    q3_bytes content;
    // Of the tokens of single bytes, which every vocabulary has, a few will do.
    for (uint32_t id = 0; id < q3_tokenizer_count(tokenizer); id += id < 250 ? 50 : 1) {
        uint32_t found;
        FUZZ_CHECK(q3_tokenizer_content(tokenizer, id, &content) && content.size > 0);
        FUZZ_CHECK(q3_tokenizer_find(tokenizer, content, &found) && found == id);
    }
    FUZZ_CHECK(!q3_tokenizer_content(tokenizer, q3_tokenizer_count(tokenizer), &content));
    if (q3_tokenizer_encode(tokenizer, text, &ids, &err))
        check_ids(tokenizer, &ids, text);
    q3_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char no_added[] = "{\"added_tokens_decoder\":{}}";
    q3_error err;
    q3_tokenizer *tokenizer;
    q3_bytes rest = {data, size};
    const q3_bytes vocab = fuzz_take_part(&rest), merges = fuzz_take_part(&rest);
    q3_bytes config = fuzz_take_part(&rest);
    size_t vocab_size = vocab.size;
    char *vocab_text = NULL;
    if (vocab.size == 0 || vocab.data[0] != '{')
        vocab_text = make_vocabulary(vocab, &vocab_size);
    if (config.size == 0)
        config = (q3_bytes){(const uint8_t *)no_added, sizeof no_added - 1};
    uint8_t *merges_copy = fuzz_copy(merges), *config_copy = fuzz_copy(config);
    uint8_t *text_copy = fuzz_copy(rest);
    const q3_tokenizer_files files = {
        .vocab_name = "vocab.json",
        .merges_name = "merges.txt",
        .config_name = "tokenizer_config.json",
        .vocab = {vocab_text ? (const uint8_t *)vocab_text : vocab.data, vocab_size},
        .merges = {merges_copy, merges.size},
        .config = {config_copy, config.size},
    };
    if (q3_tokenizer_open_memory(&files, &tokenizer, &err)) {
        check_tokenizer(tokenizer, (q3_bytes){text_copy, rest.size});
        q3_tokenizer_close(tokenizer);
    }
    free(merges_copy);
    free(config_copy);
    free(text_copy);
    free(vocab_text);
    return 0;
}
