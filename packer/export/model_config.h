// SPDX-License-Identifier: Apache-2.0
//
// The exported checkpoint's config.json: the pack's, with the members changed that an export
// changes and all others as they stand, in their order.
#ifndef Q3_EXPORT_MODEL_CONFIG_H
#define Q3_EXPORT_MODEL_CONFIG_H

#include "plan.h"

// Publishes DIRECTORY/config.json. In the original layout num_experts and num_experts_per_tok of
// the text model change with the export, and enable_audio_output becomes false when the pack has
// not all of talker and code2wav, so that nobody expects their tensors; with nothing to change it
// is a copy. The text model alone gets a configuration of type qwen3_moe, whose members are those
// of the text configuration but for the multi-section rotary embedding: for text that is the plain
// one. Changes plan->config.
bool q3_export_config(q3_export_plan *plan, const char *directory, q3_error *err);

#endif
