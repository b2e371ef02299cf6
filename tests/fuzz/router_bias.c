// SPDX-License-Identifier: Apache-2.0
//
// Files of biases, for a model of 2 layers of 3 experts. What is read comes back from what is
// written.
#include "router_bias.h"
#include "fuzz.h"

#include <string.h>

enum { LAYERS = 2, EXPERTS = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const q3_config config = {.num_hidden_layers = LAYERS, .num_experts = EXPERTS};
    float bias[LAYERS * EXPERTS] = {0}, again[LAYERS * EXPERTS] = {0};
    q3_error err;
    fuzz_write("bias.json", (q3_bytes){data, size}, 0);
    if (!q3_router_bias_load(fuzz_path("bias.json"), &config, bias, &err))
        return 0;
    for (unsigned i = 0; i < LAYERS * EXPERTS; i++)
        FUZZ_CHECK(bias[i] >= -1000 && bias[i] <= 1000);
    FUZZ_CHECK(q3_router_bias_save(fuzz_path("again.json"), LAYERS, EXPERTS, bias, &err));
    FUZZ_CHECK(q3_router_bias_load(fuzz_path("again.json"), &config, again, &err));
    FUZZ_CHECK(memcmp(bias, again, sizeof bias) == 0);
    return 0;
}
