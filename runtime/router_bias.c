// SPDX-License-Identifier: Apache-2.0
#include "router_bias.h"

#include "base/file.h"
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { FILE_BYTES_MAX = 64 << 20 };

static bool read_layers(const q3_json *json, const q3_config *config, float *bias, q3_error *err)
{
    const cJSON *layers, *layer, *item;
    uint32_t version;
    if (!q3_json_u32(json, json->root, "version", 1, 1, &version, err) ||
        !q3_json_array(json, json->root, "layers", &layers, err))
        return false;
    if ((uint32_t)cJSON_GetArraySize(layers) != config->num_hidden_layers)
        return q3_json_fail(json, layers, Q3_MALFORMED, err,
                            "expected the model's %" PRIu32 " layers, found %d",
                            config->num_hidden_layers, cJSON_GetArraySize(layers));
    cJSON_ArrayForEach(layer, layers)
    {
        if (!cJSON_IsArray(layer) || (uint32_t)cJSON_GetArraySize(layer) != config->num_experts)
            return q3_json_fail(json, layer, Q3_MALFORMED, err,
                                "expected a list of %" PRIu32 " numbers, one for each expert",
                                config->num_experts);
        cJSON_ArrayForEach(item, layer)
        {
            if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= Q3_ROUTER_BIAS_MAX))
                return q3_json_fail(json, item, Q3_MALFORMED, err,
                                    "expected a number from %g to %g", -Q3_ROUTER_BIAS_MAX,
                                    Q3_ROUTER_BIAS_MAX);
            *bias++ = (float)item->valuedouble;
        }
    }
    return true;
}

bool q3_router_bias_load(const char *path, const q3_config *config, float *bias, q3_error *err)
{
    q3_json json;
    if (!q3_json_load(path, FILE_BYTES_MAX, &json, err))
        return false;
    const bool ok = read_layers(&json, config, bias, err);
    q3_json_free(&json);
    return ok;
}

bool q3_router_bias_save(const char *path, uint32_t layers, uint32_t experts, const float *bias,
                         q3_error *err)
{
    q3_json_writer json = {0};
    q3_json_begin_object(&json, NULL);
    q3_json_put_u64(&json, "version", 1);
    q3_json_begin_array(&json, "layers");
    for (uint32_t i = 0; i < layers; i++) {
        q3_json_inline(&json);
        q3_json_begin_array(&json, NULL);
        for (uint32_t e = 0; e < experts; e++)
            q3_json_put_float(&json, NULL, bias[(size_t)i * experts + e]);
        q3_json_end_array(&json);
    }
    q3_json_end_array(&json);
    q3_json_end_object(&json);
    const bool ok = q3_json_finish(&json, err) && q3_file_publish(path, json.text, json.size, err);
    q3_json_writer_free(&json);
    return ok;
}

void q3_router_bias_from_scores(const double *scores, uint32_t experts, double strength,
                                float *bias)
{
    double sum = 0, lowest = INFINITY, mean = 0;
    for (uint32_t e = 0; e < experts; e++) {
        sum += scores[e];
        if (scores[e] > 0 && scores[e] < lowest)
            lowest = scores[e];
    }
    const double average = sum / experts;
    for (uint32_t e = 0; e < experts && sum > 0; e++)
        mean += strength * log((scores[e] > 0 ? scores[e] : lowest) / average) / experts;
    for (uint32_t e = 0; e < experts; e++) {
        const double centred =
            sum > 0 ? strength * log((scores[e] > 0 ? scores[e] : lowest) / average) - mean : 0;
        bias[e] = (float)fmax(-Q3_ROUTER_BIAS_MAX, fmin(Q3_ROUTER_BIAS_MAX, centred));
    }
}
