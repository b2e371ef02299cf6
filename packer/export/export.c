// SPDX-License-Identifier: Apache-2.0
#include "export.h"

#include "base/progress.h"
#include "plan.h"

bool q3_export(const q3_export_options *options, q3_export_result *result, q3_error *err)
{
    const double started = q3_now();
    *result = (q3_export_result){0};
    q3_export_plan plan;
    bool ok = q3_export_plan_make(options, &plan, err);
    if (ok) {
        result->experts = plan.kept.count;
        result->model_experts = plan.set.config.num_experts;
        result->top_k = plan.top_k;
        result->model_top_k = plan.set.config.num_experts_per_tok;
        for (unsigned i = 0; i < Q3_COMPONENTS; i++) {
            const q3_set_component *component = &plan.set.components[i];
            const bool wanted =
                i == Q3_TEXT || (options->format == Q3_EXPORT_SAFETENSORS && !options->text_model);
            result->configured[i] = wanted && component->expected_tensors;
            result->whole[i] =
                wanted && (i == Q3_TEXT || component->tensors == component->expected_tensors);
        }
        ok = options->format == Q3_EXPORT_GGUF ? q3_export_gguf(&plan, result, err)
                                               : q3_export_safetensors(&plan, result, err);
    }
    q3_export_plan_free(&plan);
    result->seconds = q3_now() - started;
    return ok;
}
