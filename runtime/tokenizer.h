// SPDX-License-Identifier: Apache-2.0
//
// Qwen's tokenizer: text to token ids and back, id for id what Hugging Face's `tokenizers` gives
// for the Qwen2 and Qwen3 families.
//
// Encoding, in this order:
//   1. Added tokens ("<|im_end|>" and the like) are cut out of the text as it stands, from the
//   left,
//      the longest one at each place. Wherever the text comes from, such a token is never spelt
//      out.
//   2. The text between them is brought to Unicode normalization form NFC.
//   3. A regular expression cuts it into pieces (words with the sign before them, single digits,
//      punctuation, white space).
//   4. Each piece becomes bytes, each byte a token, and neighbours are merged in the order of
//      merges.txt, the leftmost first among equals.
//
// Letters, digits and normalization are those of the Unicode version of the installed PCRE2 and
// utf8proc; white space is spelt out. Characters younger than that version may be cut differently.
//
// Nothing is added at the front or the end. Text must be UTF-8: what is not is refused with the
// offset of the first bad byte. (Python would have put U+FFFD there before the tokenizer saw it.)
//
// Three files make a tokenizer: vocab.json (token to id, in GPT-2's spelling of bytes as printable
// characters), merges.txt ("left right" a line, LF or CRLF, optionally after a line that starts
// with
// "#version") and tokenizer_config.json (added_tokens_decoder). The vocabulary's ids must run from
// 0 without a gap, those of the added tokens must follow without a gap, and all tokens must differ.
// Switches that would change the result (lstrip, rstrip, single_word, normalized, add_prefix_space,
// add_bos_token, split_special_tokens, another tokenizer_class) are refused by name. A
// tokenizer.json beside the three files is not read.
//
// A tokenizer does not change once it is open: threads may share it.
#ifndef Q3_RUNTIME_TOKENIZER_H
#define Q3_RUNTIME_TOKENIZER_H

#include "base/bytes.h"
#include "base/error.h"

typedef struct q3_tokenizer q3_tokenizer;

// A growing list of token ids; start it zeroed.
typedef struct q3_ids {
    uint32_t *ids;
    size_t count, capacity;
} q3_ids;

bool q3_ids_append(q3_ids *list, uint32_t id, q3_error *err);
void q3_ids_free(q3_ids *list);

// Opens the tokenizer whose three files lie in a directory.
bool q3_tokenizer_open(const char *directory, q3_tokenizer **tokenizer, q3_error *err);

// The same from memory. The names are what messages call the texts; nothing is kept of `files`.
typedef struct q3_tokenizer_files {
    const char *vocab_name, *merges_name, *config_name;
    q3_bytes vocab, merges, config;
} q3_tokenizer_files;

bool q3_tokenizer_open_memory(const q3_tokenizer_files *files, q3_tokenizer **tokenizer,
                              q3_error *err);

// NULL is fine.
void q3_tokenizer_close(q3_tokenizer *tokenizer);

// The number of tokens, added ones included. Ids from here to the model's vocabulary size are
// padding: no text gives them, none comes of them, and they must never be sampled.
uint32_t q3_tokenizer_count(const q3_tokenizer *tokenizer);

// The number of tokens of vocab.json; the first added token has this id.
uint32_t q3_tokenizer_base_count(const q3_tokenizer *tokenizer);

// The id of the token, base or added, that stands for exactly these bytes; false when there is
// none.
bool q3_tokenizer_find(const q3_tokenizer *tokenizer, q3_bytes content, uint32_t *id);

// The bytes that a token stands for (perhaps part of a character); false when the id has no token.
// They stay the tokenizer's.
bool q3_tokenizer_content(const q3_tokenizer *tokenizer, uint32_t id, q3_bytes *content);

// Is it an added token marked "special", one that people are not meant to see?
bool q3_tokenizer_is_special(const q3_tokenizer *tokenizer, uint32_t id);

// The longest text that q3_tokenizer_encode takes.
#define Q3_TOKENIZER_TEXT_MAX ((size_t)1 << 30)

// Appends the text's ids to *ids. Time grows as n log n at worst, whatever the text. On failure
// *ids may hold some of them.
bool q3_tokenizer_encode(const q3_tokenizer *tokenizer, q3_bytes text, q3_ids *ids, q3_error *err);

#endif
