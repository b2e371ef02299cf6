// SPDX-License-Identifier: Apache-2.0
//
// What an open tokenizer holds: tables that tokenizer.c fills from the files and tokenizer_encode.c
// reads. Private to these two.
#ifndef Q3_RUNTIME_TOKENIZER_TABLES_H
#define Q3_RUNTIME_TOKENIZER_TABLES_H

#include "tokenizer.h"

#include "base/json.h"
#include "base/string_index.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define Q3_NO_RANK UINT32_MAX

typedef struct token {
    q3_bytes content;
    bool special;
} token;

// "When `right` follows, the pair has this rank."
typedef struct pair_rank {
    uint32_t right, rank;
} pair_rank;

struct q3_tokenizer {
    uint8_t *base_bytes; // the base tokens' bytes, one after the other
    q3_json config;      // owns the added tokens' bytes

    token *tokens; // by id
    uint32_t base_count, count;
    q3_string_index by_content; // all tokens' ids

    uint32_t byte_token[256];
    // The pairs whose left token is t are pairs[pairs_from[t] .. pairs_from[t + 1]), by right
    // token.
    uint32_t *pairs_from;
    pair_rank *pairs;
    uint32_t *merged; // the token that the merge of a rank makes
    uint32_t merge_count;

    // The added tokens that start with byte b are added[added_from[b] .. added_from[b + 1]), the
    // longest first.
    uint32_t *added;
    uint32_t added_from[257];

    pcre2_code *splitter;
};

#endif
