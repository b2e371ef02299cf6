// SPDX-License-Identifier: Apache-2.0
//
// Which experts a token goes to, with what weights, and what it wanted instead.
#include "router_bias.h"
#include "routing.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EXPERTS = 6, TOP_K = 3, LAYERS = 2 };

// exp of these is 1, 2, 4, 8, 16, 32 in another order: 4, 32, 1, 16, 2, 8.
#define LN2 0.69314718f
static const float logits[EXPERTS] = {2 * LN2, 5 * LN2, 0, 4 * LN2, LN2, 3 * LN2};

static const bool all[EXPERTS] = {true, true, true, true, true, true};

typedef struct choice {
    uint32_t count, experts[TOP_K];
    float weights[TOP_K], outside;
} choice;

static choice route(const float *of, q3_route_rules rules)
{
    choice made = {.outside = -1};
    rules.experts = EXPERTS;
    rules.top_k = TOP_K;
    made.count =
        q3_route_token(&rules, &q3_kernels_c, of, made.experts, made.weights, &made.outside);
    return made;
}

// weights are given as numerators over `whole`.
static void check(choice made, uint32_t count, const uint32_t *experts, const double *weights,
                  double whole, double outside)
{
    assert_int_equal(made.count, count);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(made.experts[i], experts[i]);
        assert_true(fabs((double)made.weights[i] - weights[i] / whole) < 1e-6);
    }
    assert_true(fabs((double)made.outside - outside) < 1e-6);
}

#define EXPECT(made, whole, outside, count, e0, e1, e2, w0, w1, w2)                               \
    check((made), (count), (const uint32_t[]){e0, e1, e2}, (const double[]){w0, w1, w2}, (whole), \
          (outside))

static void test_all(void **state)
{
    (void)state;
    EXPECT(route(logits, (q3_route_rules){.allowed = all, .normalise = true}), 56, 0, 3, 1, 3, 5,
           32, 16, 8);
    EXPECT(route(logits, (q3_route_rules){.allowed = all}), 63, 0, 3, 1, 3, 5, 32, 16, 8);
    // All are in the pool: nothing is wanted outside.
    EXPECT(route(logits, (q3_route_rules){.allowed = all, .pool = all, .normalise = true}), 56, 0,
           3, 1, 3, 5, 32, 16, 8);
}

static void test_masked(void **state)
{
    (void)state;
    static const bool pool[EXPERTS] = {true, false, true, true, true, false};
    // Wanted were 32, 16 and 8, of which 32 and 8 are outside.
    const q3_route_rules rules = {.allowed = pool, .pool = pool, .normalise = true};
    EXPECT(route(logits, rules), 22, 40.0 / 56, 3, 0, 3, 4, 4, 16, 2);
    q3_route_rules whole = rules;
    whole.normalise = false;
    EXPECT(route(logits, whole), 23, 40.0 / 56, 3, 0, 3, 4, 4, 16, 2);
    // Fewer than top k: all of them.
    static const bool two[EXPERTS] = {false, false, true, false, true, false};
    EXPECT(route(logits, (q3_route_rules){.allowed = two, .pool = two, .normalise = true}), 3, 1, 2,
           2, 4, 0, 1, 2, 0);
    static const bool one[EXPERTS] = {false, true, false, false, false, false};
    EXPECT(route(logits, (q3_route_rules){.allowed = one, .pool = one, .normalise = true}), 1,
           24.0 / 56, 1, 1, 0, 0, 1, 0, 0);
    // Masked by the pack, with a share that nobody asked for.
    float weights[TOP_K];
    uint32_t experts[TOP_K];
    q3_route_rules unasked = rules;
    unasked.experts = EXPERTS;
    unasked.top_k = TOP_K;
    assert_int_equal(q3_route_token(&unasked, &q3_kernels_c, logits, experts, weights, NULL), 3);
}

// A bias moves the choice; the weights are those of the logits alone.
static void test_bias(void **state)
{
    (void)state;
    static const float bias[EXPERTS] = {0, -100, 6 * LN2, 0, 0, 0};
    EXPECT(route(logits, (q3_route_rules){.allowed = all, .bias = bias, .normalise = true}), 25, 0,
           3, 2, 3, 5, 1, 16, 8);
    EXPECT(route(logits, (q3_route_rules){.allowed = all, .bias = bias}), 63, 0, 3, 2, 3, 5, 1, 16,
           8);
    static const float none[EXPERTS] = {0};
    const choice biased =
        route(logits, (q3_route_rules){.allowed = all, .bias = none, .normalise = true});
    const choice plain = route(logits, (q3_route_rules){.allowed = all, .normalise = true});
    assert_memory_equal(&biased, &plain, sizeof plain);
}

// The lower number among equals, by logit and by logit with bias.
static void test_ties(void **state)
{
    (void)state;
    static const float equal[EXPERTS] = {0}, last[EXPERTS] = {0, 0, 0, 0, 0, 1};
    EXPECT(route(equal, (q3_route_rules){.allowed = all, .normalise = true}), 3, 0, 3, 0, 1, 2, 1,
           1, 1);
    EXPECT(route(equal, (q3_route_rules){.allowed = all, .bias = last, .normalise = true}), 3, 0, 3,
           0, 1, 5, 1, 1, 1);
    static const bool odd[EXPERTS] = {false, true, false, true, false, true};
    // Wanted are 0, 1 and 2.
    EXPECT(route(equal, (q3_route_rules){.allowed = odd, .pool = odd, .normalise = true}), 3,
           2.0 / 3, 3, 1, 3, 5, 1, 1, 1);
}

// Large logits do not overflow, neither in the weights nor in the share.
static void test_large(void **state)
{
    (void)state;
    static const float large[EXPERTS] = {1e4f, 1e4f, -1e4f, -1e4f, -1e4f, -1e4f};
    static const bool pool[EXPERTS] = {true, false, true, true, false, false};
    EXPECT(route(large, (q3_route_rules){.allowed = pool, .pool = pool, .normalise = true}), 1, 0.5,
           3, 0, 2, 3, 1, 0, 0);
}

// ---- the rules of all layers ----

static const q3_config config = {.num_hidden_layers = LAYERS,
                                 .num_experts = EXPERTS,
                                 .num_experts_per_tok = TOP_K,
                                 .norm_topk_prob = true};
// Layer 1 lacks expert 1.
static const bool held[LAYERS * EXPERTS] = {1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1};

static q3_routing create(void)
{
    q3_routing routing;
    q3_error error;
    if (!q3_routing_create(&config, held, &routing, &error))
        fail_msg("%s", error.message);
    return routing;
}

static void test_pools(void **state)
{
    (void)state;
    static const bool pool[LAYERS * EXPERTS] = {1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1};
    static const bool inside[EXPERTS] = {0, 0, 0, 0, 0, 1};
    static const bool lacking[LAYERS * EXPERTS] = {1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0};
    q3_routing routing = create();
    q3_route_rules rules = q3_routing_rules(&routing, 0);
    assert_int_equal(rules.experts, EXPERTS);
    assert_int_equal(rules.top_k, TOP_K);
    assert_true(rules.normalise);
    assert_null(rules.pool);
    assert_null(rules.bias);
    assert_memory_equal(rules.allowed, all, sizeof all);
    // What the pack lacks is outside, too.
    rules = q3_routing_rules(&routing, 1);
    assert_memory_equal(rules.allowed, held + EXPERTS, sizeof all);
    assert_memory_equal(rules.pool, held + EXPERTS, sizeof all);
    assert_int_equal(routing.allowed[0], 6);
    assert_int_equal(routing.allowed[1], 5);

    uint32_t layer = 77;
    assert_true(q3_routing_set_pool(&routing, pool, &layer));
    rules = q3_routing_rules(&routing, 1);
    assert_memory_equal(rules.allowed, inside, sizeof inside);
    assert_memory_equal(rules.pool, inside, sizeof inside);
    assert_int_equal(routing.allowed[0], 2);
    assert_int_equal(routing.allowed[1], 1);
    assert_int_equal(layer, 77);
    assert_false(q3_routing_set_pool(&routing, lacking, &layer));
    assert_int_equal(layer, 1);
    assert_memory_equal(q3_routing_rules(&routing, 1).allowed, inside, sizeof inside);
    assert_int_equal(routing.allowed[0], 2);
    assert_true(q3_routing_set_pool(&routing, NULL, &layer));
    assert_null(q3_routing_rules(&routing, 0).pool);
    q3_routing_destroy(&routing);
}

// A soft pool allows all that is held; biases of all kinds add up.
static void test_soft_pool(void **state)
{
    (void)state;
    static const bool pool[LAYERS * EXPERTS] = {1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1};
    q3_routing routing = create();
    uint32_t layer;
    routing.soft = true;
    routing.pool_bias = 2;
    assert_true(q3_routing_set_pool(&routing, pool, &layer));
    assert_int_equal(routing.allowed[0], 6);
    assert_int_equal(routing.allowed[1], 5);
    q3_route_rules rules = q3_routing_rules(&routing, 1);
    assert_memory_equal(rules.allowed, held + EXPERTS, sizeof all);
    static const bool inside[EXPERTS] = {1, 0, 0, 0, 0, 1};
    assert_memory_equal(rules.pool, inside, sizeof inside);
    static const float preferred[EXPERTS] = {2, 0, 0, 0, 0, 2};
    assert_memory_equal(rules.bias, preferred, sizeof preferred);

    static const float given[LAYERS * EXPERTS] = {0, 0, 0, 0, 0, 0, 0.5f, 0, 0.25f, 0, -1, 0};
    q3_error error;
    routing.bias = q3_alloc(LAYERS * EXPERTS, sizeof *routing.bias, &error);
    assert_non_null(routing.bias);
    memcpy(routing.bias, given, sizeof given);
    routing.resident_bias = 8;
    routing.resident[4] = routing.resident[5] = true;
    static const float sum[EXPERTS] = {2.5f, 0, 0.25f, 0, 7, 10};
    assert_memory_equal(q3_routing_rules(&routing, 1).bias, sum, sizeof sum);
    routing.soft = false;
    routing.resident_bias = 0;
    assert_memory_equal(q3_routing_rules(&routing, 1).bias, given + EXPERTS, sizeof sum);
    q3_routing_destroy(&routing);
}

static void test_counts(void **state)
{
    (void)state;
    q3_routing routing = create();
    q3_routing_count(&routing, 0, (const float[]){0.5f, 0.25f}, 2);
    q3_routing_count(&routing, 1, (const float[]){1, 0}, 2);
    q3_routing_count(&routing, 0, (const float[]){0.125f}, 1);
    assert_int_equal(routing.outside[0].routed, 3);
    assert_int_equal(routing.outside[1].routed, 2);
    assert_true(routing.outside[0].sum == 0.875);
    assert_true(routing.outside[1].sum == 1);
    q3_routing_destroy(&routing);
}

// ---- files of biases ----

static void test_bias_from_scores(void **state)
{
    (void)state;
    float bias[4];
    // Logarithms of 1, 1, 2, 4 (0 counts as the lowest, 1), in units of ln 2: 0, 0, 1, 2.
    q3_router_bias_from_scores((const double[]){0, 3, 6, 12}, 4, 1 / log(2), bias);
    static const float expected[] = {-0.75f, -0.75f, 0.25f, 1.25f};
    for (unsigned i = 0; i < 4; i++)
        assert_true(fabsf(bias[i] - expected[i]) < 1e-6f);
    q3_router_bias_from_scores((const double[]){0, 0, 0, 0}, 4, 1, bias);
    static const float none[4] = {0};
    assert_memory_equal(bias, none, sizeof none);
    q3_router_bias_from_scores((const double[]){1e-300, 1, 1, 1}, 4, 1000, bias);
    assert_true(bias[0] == -1000);
}

static void test_bias_file(void **state)
{
    (void)state;
    q3_error error;
    static const float written[LAYERS * EXPERTS] = {0.1f, -2, 3, 0, 1e-7f, 5,
                                                    -6,   7,  8, 9, 10,    -1000};
    float found[LAYERS * EXPERTS];
    char *path = q3_test_path("%s/bias.json", q3_test_scratch);
    assert_true(q3_router_bias_save(path, LAYERS, EXPERTS, written, &error));
    assert_true(q3_router_bias_load(path, &config, found, &error));
    assert_memory_equal(found, written, sizeof written);
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{\"layers\": []}", "\"version\" is missing"},
        {"{\"version\": 2}", "version: expected an integer from 1 to 1, found 2"},
        {"{\"version\": 1, \"layers\": 7}", "layers: expected an array, found 7"},
        {"{\"version\": 1, \"layers\": [[0,0,0,0,0,0]]}",
         "layers: expected the model's 2 layers, found 1"},
        {"{\"version\": 1, \"layers\": [[0,0,0,0,0,0],[0,0,0,0,0]]}",
         "layers[1]: expected a list of 6 numbers, one for each expert"},
        {"{\"version\": 1, \"layers\": [[0,0,0,0,0,0],[0,0,0,0,0,\"1\"]]}",
         "layers[1][5]: expected a number from -1000 to 1000"},
        {"{\"version\": 1, \"layers\": [[0,0,0,0,1000.5,0],[0,0,0,0,0,1]]}",
         "layers[0][4]: expected a number from -1000 to 1000"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        q3_test_write_text(path, cases[i].text);
        assert_false(q3_router_bias_load(path, &config, found, &error));
        assert_int_equal(error.code, Q3_MALFORMED);
        char *message = q3_test_path("%s: %s", path, cases[i].message);
        assert_string_equal(error.message, message);
        free(message);
    }
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),       cmocka_unit_test(test_masked),
        cmocka_unit_test(test_bias),      cmocka_unit_test(test_ties),
        cmocka_unit_test(test_large),     cmocka_unit_test(test_pools),
        cmocka_unit_test(test_soft_pool), cmocka_unit_test(test_counts),
        cmocka_unit_test(test_bias_file), cmocka_unit_test(test_bias_from_scores),
    };
    return cmocka_run_group_tests(tests, q3_test_make_scratch, q3_test_remove_scratch);
}
