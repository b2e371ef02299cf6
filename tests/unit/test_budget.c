// SPDX-License-Identifier: Apache-2.0
//
// How a memory budget is shared out, at the size of the real model.
#include "budget.h"
#include "support.h"

#include <string.h>

enum { LAYERS = 48, EXPERTS = 128, EXPERT_BYTES = 9437184 };

static const q3_config config = {
    .vocab_size = 152064,
    .hidden_size = 2048,
    .num_hidden_layers = LAYERS,
    .num_attention_heads = 32,
    .num_key_value_heads = 4,
    .head_dim = 128,
    .num_experts = EXPERTS,
    .num_experts_per_tok = 8,
    .moe_intermediate_size = 768,
    .max_position_embeddings = 65536,
    .norm_topk_prob = true,
    .rms_norm_eps = 1e-6,
    .rope_theta = 1e6,
};

static uint32_t pool_count[LAYERS], slots[LAYERS];
static uint64_t slot_bytes[LAYERS];
static q3_memory_plan plan;

static q3_budget_request make_request(void)
{
    for (unsigned i = 0; i < LAYERS; i++)
        pool_count[i] = EXPERTS;
    for (unsigned i = 0; i < LAYERS; i++)
        slot_bytes[i] = EXPERT_BYTES;
    return (q3_budget_request){
        .config = &config,
        .pool_count = pool_count,
        .slot_bytes = slot_bytes,
        .dense_bytes = 2460000000,
        .embedding_bytes = 4 << 20,
        .pack_files = 6291,
        .scratch = {.config = &config,
                    .kernels = &q3_kernels_c,
                    .context = 4096,
                    .batch = 512,
                    .threads = 2},
        .sessions = 1,
        .available = UINT64_C(1) << 40,
    };
}

static void all_fits(void **state)
{
    (void)state;
    q3_error error;
    const q3_budget_request request = make_request();
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    for (unsigned i = 0; i < LAYERS; i++)
        assert_int_equal(slots[i], EXPERTS);
    assert_int_equal(plan.experts, (uint64_t)LAYERS * EXPERTS * EXPERT_BYTES);
    assert_int_equal(plan.kv_cache, (uint64_t)2 * LAYERS * 4 * 4096 * 128 * 4);
    assert_int_equal(plan.budget, (UINT64_C(1) << 40) / 4 * 3);
    assert_int_equal(plan.total, plan.process + plan.dense + plan.embedding + plan.kv_cache +
                                     plan.scratch + plan.experts);
}

static void given_budget(void **state)
{
    (void)state;
    q3_error error;
    q3_budget_request request = make_request();
    request.memory = UINT64_C(1) << 50;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    const uint64_t minimum = plan.minimum;
    static const uint32_t wanted[] = {1, 2, 8, 48, 127, 128};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        request.memory = minimum + (uint64_t)(wanted[i] - 1) * LAYERS * EXPERT_BYTES;
        assert_true(q3_budget_make(&request, &plan, slots, &error));
        assert_int_equal(slots[0], wanted[i]);
        assert_int_equal(plan.total, request.memory);
        request.memory += (uint64_t)LAYERS * EXPERT_BYTES - 1;
        assert_true(q3_budget_make(&request, &plan, slots, &error));
        assert_int_equal(slots[LAYERS - 1], wanted[i]);
    }
    request.memory = minimum - 1;
    assert_false(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(error.code, Q3_REFUSED);
}

// Layers with few experts leave their share to the others.
static void uneven_pools(void **state)
{
    (void)state;
    q3_error error;
    q3_budget_request request = make_request();
    request.memory = UINT64_C(1) << 50;
    for (unsigned i = 0; i < LAYERS; i += 2)
        pool_count[i] = 8;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.experts, (uint64_t)LAYERS / 2 * (8 + EXPERTS) * EXPERT_BYTES);
    request.memory = plan.total - 1;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(slots[0], 8);
    assert_int_equal(slots[1], EXPERTS - 1);
}

static void what_is_available(void **state)
{
    (void)state;
    q3_error error;
    q3_budget_request request = make_request();
    request.available = UINT64_C(20) << 30;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.budget, UINT64_C(15) << 30);
    assert_true(plan.total <= plan.budget);
    assert_true(plan.total + (uint64_t)LAYERS * EXPERT_BYTES > plan.budget);
    // The least that works may take more than three quarters.
    request.available = plan.minimum;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.budget, plan.minimum);
    assert_int_equal(slots[0], 1);
    request.available = plan.minimum - 1;
    assert_false(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(error.code, Q3_REFUSED);
}

// Experts pass where all have a slot, if the budget has room for what they pass through, and the
// page cache for their files.
static void what_passes(void **state)
{
    (void)state;
    enum { PASSING = 8, PASSING_BYTES = 6 << 20 };
    const uint64_t files = (uint64_t)LAYERS * EXPERTS * PASSING_BYTES;
    q3_error error;
    q3_budget_request request = make_request();
    request.passing = PASSING;
    request.passing_bytes = PASSING_BYTES;
    request.file_bytes = files;
    request.memory = UINT64_C(1) << 50;
    request.available = UINT64_C(1) << 50;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    const uint64_t total = plan.total, fixed = total - plan.experts - plan.passing;
    assert_int_equal(plan.passing_experts, PASSING);
    assert_int_equal(plan.passing, PASSING * PASSING_BYTES);
    assert_int_equal(plan.experts, (uint64_t)LAYERS * EXPERTS * EXPERT_BYTES);
    const struct {
        uint64_t memory, available;
        unsigned passing;
        uint32_t slots;
    } cases[] = {
        {total, total + files, PASSING, EXPERTS},
        {total - 1, total + files, 0, EXPERTS},
        {total, total + files - 1, 0, EXPERTS},
        {total, total - 1, 0, EXPERTS},
        {fixed + plan.experts, total + files, 0, EXPERTS},
        {fixed + plan.experts - 1, total + files, 0, EXPERTS - 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        request.memory = cases[i].memory;
        request.available = cases[i].available;
        assert_true(q3_budget_make(&request, &plan, slots, &error));
        assert_int_equal(plan.passing_experts, cases[i].passing);
        assert_int_equal(plan.passing, cases[i].passing * PASSING_BYTES);
        assert_int_equal(slots[0], cases[i].slots);
        assert_int_equal(plan.total, fixed + plan.experts + plan.passing);
    }
    // All that may be chosen have one in a smaller pool, too; and what no product can read as it is
    // stored does not pass.
    request.memory = request.available = UINT64_C(1) << 50;
    for (unsigned i = 0; i < LAYERS; i++)
        pool_count[i] = i % 2 ? 8 : 16;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.passing_experts, PASSING);
    request.passing_bytes = 0;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.passing_experts, 0);
}

// The largest batch for whose scratch, beyond that of the least, a 32nd of the budget has room.
static void batches(void **state)
{
    (void)state;
    q3_budget_request request = make_request();
    q3_scratch_shape shape = request.scratch;
    uint64_t scratch[3];
    for (unsigned i = 0; i < 3; i++) {
        shape.batch = 512U << i;
        scratch[i] = q3_scratch_bytes(&shape);
    }
    const uint64_t middle = 32 * (scratch[1] - scratch[0]), most = 32 * (scratch[2] - scratch[0]);
    assert_true(0 < middle && middle < most);
    static const uint32_t expected[] = {512, 512, 1024, 1024, 2048, 2048};
    const uint64_t memory[] = {1, middle - 1, middle, most - 1, most, UINT64_MAX};
    for (unsigned i = 0; i < 6; i++) {
        request.memory = memory[i];
        assert_int_equal(q3_budget_batch(&request), expected[i]);
    }
    // Without a budget it is three quarters of what there is.
    request.memory = 0;
    request.available = most / 3 * 4 + 4;
    assert_int_equal(q3_budget_batch(&request), 2048);
    request.available = most / 3 * 4 - 8;
    assert_int_equal(q3_budget_batch(&request), 1024);
    // More than the context holds takes nothing.
    request.scratch.context = 512;
    request.memory = 1;
    assert_int_equal(q3_budget_batch(&request), 2048);
}

// The sum for any number of slots, and what beside them counts.
static void totals(void **state)
{
    (void)state;
    q3_error error;
    q3_budget_request request = make_request();
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(q3_budget_total(&request, EXPERTS), plan.total);
    assert_int_equal(q3_budget_total(&request, 2 * EXPERTS), plan.total);
    assert_int_equal(q3_budget_total(&request, 1), plan.minimum);
    assert_int_equal(q3_budget_total(&request, 9),
                     plan.minimum + UINT64_C(8) * LAYERS * EXPERT_BYTES);
    // 6 MiB, 2 KiB a file of the pack, 768 KiB a thread.
    assert_int_equal(plan.process, (6 << 20) + 2048 * 6291 + 2 * (768 << 10));
    const uint64_t process = plan.process;
    request.tokenizer = true;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.process, process + 264 * 152064);
    request.tokenizer = false;
    request.readers = 8;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.process, process + 8 * (32 << 10));
    request.decodes = true;
    assert_true(q3_budget_make(&request, &plan, slots, &error));
    assert_int_equal(plan.process, process + 8 * (768 << 10));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_fits),     cmocka_unit_test(given_budget),
        cmocka_unit_test(uneven_pools), cmocka_unit_test(what_is_available),
        cmocka_unit_test(what_passes),  cmocka_unit_test(batches),
        cmocka_unit_test(totals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
