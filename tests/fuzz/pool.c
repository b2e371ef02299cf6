// SPDX-License-Identifier: Apache-2.0
//
// Pool files, for a model of 3 layers of 8 experts whose pack holds some of them.
#include "expert_pool.h"
#include "fuzz.h"

enum { LAYERS = 3, EXPERTS = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char directory[] = "pack";
    static bool held[LAYERS * EXPERTS] = {1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1,
                                          0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1};
    const q3_config config = {.num_hidden_layers = LAYERS, .num_experts = EXPERTS};
    const q3_model model = {.set.directory = directory, .config = &config, .held = held};
    q3_error err;
    q3_expert_pool pool;
    fuzz_write("pool.json", (q3_bytes){data, size}, 0);
    if (q3_expert_pool_create(&model, fuzz_path("pool.json"), &pool, &err)) {
        uint64_t total = 0;
        for (unsigned layer = 0; layer < LAYERS; layer++) {
            uint32_t count = 0;
            for (unsigned expert = 0; expert < EXPERTS; expert++) {
                const unsigned at = layer * EXPERTS + expert;
                FUZZ_CHECK(!pool.allowed[at] || held[at]);
                count += pool.allowed[at];
            }
            FUZZ_CHECK(count > 0 && count == pool.count[layer]);
            total += count;
        }
        FUZZ_CHECK(total == pool.total && total <= pool.named);
        q3_expert_pool_destroy(&pool);
    } else {
        FUZZ_CHECK(pool.allowed == NULL && pool.count == NULL);
    }
    return 0;
}
