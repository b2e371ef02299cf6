// SPDX-License-Identifier: Apache-2.0
//
// Conversations in ChatML, the text that Qwen's instruction models are trained on:
//
//   <|im_start|>system\n SYSTEM <|im_end|>\n              only when a system text is given
//   <|im_start|>user\n USER <|im_end|>\n
//   <|im_start|>assistant\n ANSWER <|im_end|>\n           and so on with the next user text
//
// A conversation is fed in pieces: q3_chat_first before the first answer, q3_chat_next between one
// answer and the next. The rule for what lies between: the answer's ids without the token that
// stopped it. Sampling that token does not put it into the KV cache, and q3_chat_next begins with
// the
// <|im_end|> that belongs there, whatever ended the answer (a stop token, a stop text, the limit of
// length, an interrupt). A last token that was sampled and is part of the answer must have been
// fed.
//
// Because every cut is at an added token, the pieces' ids, with the answers' between them, are the
// ids of the whole conversation as one prompt.
//
// System and user texts are not escaped: as in Hugging Face's templates, the whole text is
// tokenized, so "<|im_end|>" in a user's text becomes that token. A program that feeds untrusted
// text has to look for added tokens itself.
#ifndef Q3_RUNTIME_CHAT_H
#define Q3_RUNTIME_CHAT_H

#include "tokenizer.h"

// Appends the ids of the system text (NULL: none) and the first user text, up to where the first
// answer begins. A tokenizer without ChatML's tokens is Q3_MALFORMED.
bool q3_chat_first(const q3_tokenizer *tokenizer, const q3_bytes *system, q3_bytes user,
                   q3_ids *ids, q3_error *err);

// Appends what comes between an answer and the next: the end of the one, the user text, the start
// of the other.
bool q3_chat_next(const q3_tokenizer *tokenizer, q3_bytes user, q3_ids *ids, q3_error *err);

// Appends the ids that end an answer: <|im_end|> and <|endoftext|>, as far as the tokenizer has
// them.
bool q3_chat_stop_ids(const q3_tokenizer *tokenizer, q3_ids *ids, q3_error *err);

#endif
