// SPDX-License-Identifier: Apache-2.0
//
// The tokenizer inside a GGUF file: what llama.cpp needs to know of vocab.json, merges.txt,
// tokenizer_config.json and the chat template.
#ifndef Q3_EXPORT_GGUF_TOKENIZER_H
#define Q3_EXPORT_GGUF_TOKENIZER_H

#include "gguf_writer.h"
#include "set.h"

// Puts the pairs "tokenizer.…" from the pack's copies of these files. There are as many tokens as
// the model's vocabulary has rows; those without a token are called "[PADn]" and marked unused.
bool q3_gguf_put_tokenizer(q3_gguf_writer *writer, const q3_set *set, q3_error *err);

#endif
