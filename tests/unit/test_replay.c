// SPDX-License-Identifier: Apache-2.0
//
// Traces, written and read and damaged; what caches do with small ones, to the hit; and the numbers
// of a plan.
#include "base/file.h"
#include "expert_score.h"
#include "plan.h"
#include "replay.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const q3_hash128 model = {.low = 0x0123456789abcdef, .high = 0xfedcba9876543210};
static char *path;

static int make_path(void **state)
{
    if (q3_test_make_scratch(state) != 0)
        return -1;
    path = q3_test_path("%s/trace", q3_test_scratch);
    return 0;
}

static int remove_path(void **state)
{
    free(path);
    return q3_test_remove_scratch(state);
}

static q3_trace read_trace(void)
{
    q3_error err;
    q3_trace trace;
    if (!q3_trace_read(path, &trace, &err))
        fail_msg("%s", err.message);
    return trace;
}

static q3_trace_writer *create(uint32_t layers, uint32_t experts, uint32_t top_k)
{
    const q3_config config = {
        .num_hidden_layers = layers, .num_experts = experts, .num_experts_per_tok = top_k};
    q3_error err;
    q3_trace_writer *writer;
    if (!q3_trace_create(path, &config, model, &writer, &err))
        fail_msg("%s", err.message);
    return writer;
}

static void publish(q3_trace_writer *writer)
{
    q3_error err;
    if (!q3_trace_publish(writer, &err))
        fail_msg("%s", err.message);
}

// One layer of 6 experts, one for each token: letters from 'a', so many in a batch.
static q3_trace letters(const char *text, uint32_t batch)
{
    q3_trace_writer *writer = create(1, 6, 1);
    const uint32_t length = (uint32_t)strlen(text);
    for (uint32_t at = 0; at < length; at += batch) {
        uint32_t chosen[16], counts[16], tokens = 0;
        for (; tokens < batch && at + tokens < length; tokens++) {
            chosen[tokens] = (uint32_t)(text[at + tokens] - 'a');
            counts[tokens] = 1;
        }
        q3_trace_begin(writer, at, tokens);
        q3_trace_add(writer, chosen, counts);
    }
    publish(writer);
    return read_trace();
}

static void expect(const q3_trace *trace, q3_policy policy, uint32_t slots, uint32_t step,
                   uint64_t hits, uint64_t misses)
{
    q3_error err;
    q3_replay_counts counts;
    const uint32_t of_layers[2] = {slots, slots};
    assert_true(q3_replay(trace, policy, of_layers, step, &counts, &err));
    assert_int_equal(counts.hits, hits);
    assert_int_equal(counts.misses, misses);
}

static void test_policies(void **state)
{
    (void)state;
    q3_trace trace = letters("abcabc", 1);
    expect(&trace, Q3_POLICY_LRU, 2, 0, 0, 6);
    expect(&trace, Q3_POLICY_LRFU, 2, 0, 0, 6);
    expect(&trace, Q3_POLICY_OPTIMAL, 2, 0, 2, 4);
    for (unsigned p = 0; p < Q3_POLICIES; p++) {
        expect(&trace, (q3_policy)p, 3, 0, 3, 3);
        expect(&trace, (q3_policy)p, 100, 0, 3, 3);
    }
    q3_trace_free(&trace);
    // What is used often survives what is used once.
    trace = letters("aaabca", 1);
    expect(&trace, Q3_POLICY_LRU, 2, 0, 2, 4);
    expect(&trace, Q3_POLICY_LRFU, 2, 0, 3, 3);
    expect(&trace, Q3_POLICY_OPTIMAL, 2, 0, 3, 3);
    q3_trace_free(&trace);
    // But not for ever: a goes when both b and c have more.
    trace = letters("aaabcbcbcbc", 1);
    expect(&trace, Q3_POLICY_LRU, 2, 0, 8, 3);
    expect(&trace, Q3_POLICY_LRFU, 2, 0, 4, 7);
    expect(&trace, Q3_POLICY_OPTIMAL, 2, 0, 8, 3);
    q3_trace_free(&trace);
}

// Experts of a batch are asked for together: those that are there first, then in ascending order.
static void test_batches(void **state)
{
    (void)state;
    q3_trace trace = letters("abab", 2);
    assert_int_equal(trace.batch_count, 2);
    expect(&trace, Q3_POLICY_LRU, 1, 0, 1, 3);
    expect(&trace, Q3_POLICY_LRU, 1, 1, 0, 4);
    expect(&trace, Q3_POLICY_LRU, 2, 0, 2, 2);
    expect(&trace, Q3_POLICY_LRFU, 1, 0, 1, 3);
    expect(&trace, Q3_POLICY_OPTIMAL, 1, 0, 1, 3);
    expect(&trace, Q3_POLICY_OPTIMAL, 1, 1, 1, 3);
    q3_trace_free(&trace);
    // A batch in which a token's expert comes twice needs it once.
    trace = letters("aabb", 4);
    expect(&trace, Q3_POLICY_LRU, 2, 0, 0, 2);
    expect(&trace, Q3_POLICY_LRU, 2, 3, 1, 2);
    expect(&trace, Q3_POLICY_LRU, 2, 1, 2, 2);
    q3_trace_free(&trace);
}

static void test_layers(void **state)
{
    (void)state;
    q3_trace_writer *writer = create(2, 300, 2);
    // Two tokens; the second has one expert in the first layer.
    q3_trace_begin(writer, 7, 2);
    q3_trace_add(writer, (const uint32_t[]){0, 299, 5, 0}, (const uint32_t[]){2, 1});
    q3_trace_add(writer, (const uint32_t[]){255, 256, 1, 2}, (const uint32_t[]){2, 2});
    // One that is not finished is forgotten.
    q3_trace_begin(writer, 9, 1);
    q3_trace_add(writer, (const uint32_t[]){0, 1}, (const uint32_t[]){2});
    q3_trace_begin(writer, 9, 1);
    q3_trace_add(writer, (const uint32_t[]){5, 299}, (const uint32_t[]){2});
    q3_trace_add(writer, (const uint32_t[]){3, 4}, (const uint32_t[]){2});
    publish(writer);
    q3_trace trace = read_trace();
    assert_int_equal(trace.layers, 2);
    assert_int_equal(trace.experts, 300);
    assert_int_equal(trace.top_k, 2);
    assert_int_equal(trace.tokens, 3);
    assert_int_equal(trace.batch_count, 2);
    assert_int_equal(trace.batches[0].position, 7);
    assert_int_equal(trace.batches[1].position, 9);
    uint32_t experts[2];
    assert_int_equal(q3_trace_chosen(&trace, &trace.batches[0], 0, 0, experts), 2);
    assert_int_equal(experts[1], 299);
    assert_int_equal(q3_trace_chosen(&trace, &trace.batches[0], 0, 1, experts), 1);
    assert_int_equal(experts[0], 5);
    assert_int_equal(q3_trace_chosen(&trace, &trace.batches[0], 1, 0, experts), 2);
    assert_int_equal(experts[0], 255);
    assert_int_equal(experts[1], 256);
    expect(&trace, Q3_POLICY_LRU, 3, 0, 2, 9);
    q3_trace_free(&trace);
    // Nothing at all can be written and read, too; an abandoned one leaves nothing.
    publish(create(1, 1, 1));
    trace = read_trace();
    assert_int_equal(trace.tokens, 0);
    expect(&trace, Q3_POLICY_OPTIMAL, 1, 0, 0, 0);
    assert_true(q3_replay_rate((q3_replay_counts){0, 0}) == 1);
    assert_true(q3_replay_rate((q3_replay_counts){1, 3}) == 0.25);
    q3_trace_free(&trace);
    remove(path);
    q3_trace_abandon(create(1, 1, 1));
    assert_false(q3_path_exists(path));
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *seed >> 33;
}

// The most hits of all that any policy can have, found by trying every set of experts that can be
// kept after each token.
static uint32_t most_hits(const char *text, unsigned slots)
{
    int best[64], next[64];
    memset(best, -1, sizeof best);
    best[0] = 0;
    for (; *text; text++) {
        const unsigned wanted = 1U << (*text - 'a');
        memset(next, -1, sizeof next);
        for (unsigned set = 0; set < 64; set++) {
            if (best[set] < 0)
                continue;
            const int hits = best[set] + ((set & wanted) != 0);
            for (unsigned kept = 0; kept < 64; kept++)
                if ((kept & ~(set | wanted)) == 0 && (unsigned)__builtin_popcount(kept) <= slots &&
                    hits > next[kept])
                    next[kept] = hits;
        }
        memcpy(best, next, sizeof best);
    }
    int most = 0;
    for (unsigned set = 0; set < 64; set++)
        most = best[set] > most ? best[set] : most;
    return (uint32_t)most;
}

static void test_optimal(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (unsigned round = 0; round < 40; round++) {
        char text[25] = "";
        for (unsigned i = 0; i < 24; i++)
            text[i] = (char)('a' + next_random(&seed) % 6);
        q3_trace trace = letters(text, 1);
        for (uint32_t slots = 1; slots <= 4; slots++) {
            const uint32_t hits = most_hits(text, slots);
            expect(&trace, Q3_POLICY_OPTIMAL, slots, 0, hits, 24 - hits);
        }
        q3_trace_free(&trace);
    }
}

// Scores do not wrap, however often an expert is used.
static void test_scores(void **state)
{
    (void)state;
    uint32_t score = 0;
    for (unsigned i = 0; i < 1000; i++) {
        q3_scores_fade(&score, 1);
        const uint32_t before = score;
        q3_score_use(&score);
        assert_true(score > before);
    }
    assert_true(score <= (UINT32_C(1) << 29) + (UINT32_C(1) << 24));
}

// ---- damage ----

static void expect_refused(const void *bytes, size_t size, const char *message)
{
    q3_error err;
    q3_trace trace;
    q3_test_write(path, bytes, size);
    assert_false(q3_trace_read(path, &trace, &err));
    assert_int_equal(err.code, Q3_MALFORMED);
    assert_null(trace.batches);
    assert_null(trace.data);
    if (message) {
        char *expected = q3_test_path("%s: %s", path, message);
        assert_string_equal(err.message, expected);
        free(expected);
    }
}

static void put_hash(uint8_t *at, q3_hash128 hash)
{
    q3_put_u64(at, hash.low);
    q3_put_u64(at + 8, hash.high);
}

// Makes the checksums right, and expects another complaint.
static void expect_sealed(uint8_t *bytes, size_t size, const char *message)
{
    put_hash(bytes + 56, q3_hash128_of(bytes + Q3_TRACE_HEADER, size - Q3_TRACE_HEADER));
    q3_put_u64(bytes + 72, q3_hash64(bytes, 72));
    expect_refused(bytes, size, message);
}

static void test_damage(void **state)
{
    (void)state;
    q3_trace trace = letters("abc", 2);
    q3_trace_free(&trace);
    size_t size;
    uint8_t *bytes = (uint8_t *)q3_test_read(path, &size);
    uint8_t copy[128];
    assert_int_equal(size, Q3_TRACE_HEADER + 8 + 2 + 8 + 1);
    for (size_t i = 0; i < size; i++) {
        memcpy(copy, bytes, size);
        copy[i] ^= 0x10;
        expect_refused(copy, size, NULL);
    }
    for (size_t i = 0; i < size; i++)
        expect_refused(bytes, i, NULL);
    expect_refused(bytes, 79, "expected a trace of at least 80 bytes, found 79 bytes");
    expect_refused(bytes, 80, "damaged: the checksum is wrong");
    memcpy(copy, bytes, size);
    copy[0] = 'Q';
    expect_refused(copy, size, "not a trace: it does not begin with \"q3trace\"");
    memcpy(copy, bytes, size);
    copy[8] = 2;
    expect_refused(copy, size, "expected version 1, found 2");
    memcpy(copy, bytes, size);
    copy[12] = 2;
    expect_refused(copy, size, "the header is damaged: its checksum is wrong");
    expect_sealed(copy, size, "batch 1 does not fit the file");
    static const struct {
        size_t at;
        uint32_t value;
        const char *message;
    } cases[] = {
        {12, 0, "0 layers of 6 experts, 1 for a token: not a model's"},
        {12, 1025, "1025 layers of 6 experts, 1 for a token: not a model's"},
        {16, 0, "1 layers of 0 experts, 1 for a token: not a model's"},
        {16, 4097, "1 layers of 4097 experts, 1 for a token: not a model's"},
        {20, 0, "1 layers of 6 experts, 0 for a token: not a model's"},
        {20, 7, "1 layers of 6 experts, 7 for a token: not a model's"},
        {16, 1, "batch 0, layer 0, token 1: expected ascending experts below 1"},
        {40, 4, "expected 4 tokens in 2 batches, found 3 in 2"},
        {48, 1, "expected 3 tokens in 1 batches, found 3 in 2"},
        {84, 0, "batch 0 has no tokens"},
        {84, 0xffffffff, "batch 0 does not fit the file"},
        {94, 2, "batch 1 does not fit the file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(copy, bytes, size);
        q3_put_u32(copy + cases[i].at, cases[i].value);
        expect_sealed(copy, size, cases[i].message);
    }
    memcpy(copy, bytes, size);
    copy[88] = 0xff; // nothing chosen
    expect_sealed(copy, size, "batch 0, layer 0, token 0: expected ascending experts below 6");
    free(bytes);
    q3_error err;
    trace = letters("a", 1);
    q3_hash128 other = model;
    assert_true(q3_trace_check_model(&trace, "t", model, &err));
    other.low++;
    assert_false(q3_trace_check_model(&trace, "t", other, &err));
    assert_int_equal(err.code, Q3_MISMATCH);
    assert_string_equal(err.message,
                        "t: a trace of another model: expected fedcba98765432100123456789abcdf0, "
                        "found fedcba98765432100123456789abcdef");
    q3_trace_free(&trace);
}

// ---- plans ----

static void test_estimate(void **state)
{
    (void)state;
    static const struct {
        double slots, hits;
    } points[] = {{0, 0},     {4, 0.185}, {8, 0.37},  {15, 0.53}, {24, 0.74}, {36, 0.815},
                  {48, 0.89}, {81, 0.96}, {128, 1.0}, {200, 1.0}, {-1, 0}};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        assert_true(fabs(q3_estimate_hits(points[i].slots / 128) - points[i].hits) < 1e-12);
}

static void test_plan(void **state)
{
    (void)state;
    const q3_plan_costs costs = {.memory_bytes = 2e9,
                                 .experts = 48,
                                 .expert_bytes = 1e7,
                                 .memory_speed = 2e10,
                                 .disk_speed = 1e9,
                                 .taking_seconds = 0.005};
    q3_plan_speed speed = q3_plan_for(&costs, 0.5);
    assert_true(speed.disk_bytes == 2.4e8);
    assert_true(speed.memory_rate == 10);
    assert_true(fabs(speed.disk_rate - 1 / 0.24) < 1e-9);
    assert_true(fabs(speed.rate - 1 / (0.1 + 0.24 + 0.12)) < 1e-9);
    speed = q3_plan_for(&costs, 1);
    assert_true(speed.disk_bytes == 0);
    assert_true(isinf(speed.disk_rate));
    assert_true(speed.rate == 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policies), cmocka_unit_test(test_batches),
        cmocka_unit_test(test_layers),   cmocka_unit_test(test_optimal),
        cmocka_unit_test(test_scores),   cmocka_unit_test(test_damage),
        cmocka_unit_test(test_estimate), cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
