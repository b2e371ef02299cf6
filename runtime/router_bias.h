// SPDX-License-Identifier: Apache-2.0
//
// A number for each layer and expert that is added to the router's logits for the choice of
// experts, and not for their weights (see routing.h).
//
// The file is JSON: {"version": 1, "layers": [[0.25, -1.5, …], …]}, a list for each layer of the
// model with a number from -1000 to 1000 for each expert. Other members of the object are left for
// other programs.
#ifndef Q3_RUNTIME_ROUTER_BIAS_H
#define Q3_RUNTIME_ROUTER_BIAS_H

#include "base/error.h"
#include "model/config.h"

#define Q3_ROUTER_BIAS_MAX 1000.0

// Fills bias[layer][expert].
bool q3_router_bias_load(const char *path, const q3_config *config, float *bias, q3_error *err);

// Writes such a file.
bool q3_router_bias_save(const char *path, uint32_t layers, uint32_t experts, const float *bias,
                         q3_error *err);

// A layer's biases from scores (not negative) measured for its experts: strength * ln(score / mean
// score), an expert without a score as the lowest with one, and then moved so that their mean is 0,
// which changes no choice. A layer without scores has none.
void q3_router_bias_from_scores(const double *scores, uint32_t experts, double strength,
                                float *bias);

#endif
