// SPDX-License-Identifier: Apache-2.0
//
// The tiny model against the numbers that transformers gives for it (tiny-omni.reference.json):
// extract it, run it, compare. And what must not change them: threads, memory, codec, batches.
#include "base/file.h"
#include "base/json.h"
#include "chat.h"
#include "engine.h"
#include "extract.h"
#include "json.h"
#include "kernels/kernels.h"
#include "level.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOGIT_TOLERANCE 2e-4 // at every level; what is asked for is 5e-4
#define NLL_TOLERANCE 1e-4

enum { VOCABULARY = 1536, HIDDEN = 128, LAYERS = 6, EXPERTS = 128, TOP_K = 8, IDS_MAX = 1024 };

static cJSON *reference;
static char *directory, *raw_pack, *zstd_pack, *plane_pack, *pool_path;

// ---- the reference's numbers ----

static double largest_difference(const cJSON *expected, const float *found, size_t count)
{
    double largest = 0;
    size_t i = 0;
    const cJSON *item;
    assert_int_equal(cJSON_GetArraySize(expected), count);
    cJSON_ArrayForEach(item, expected)
    {
        const double difference = fabs(item->valuedouble - (double)found[i++]);
        if (!(difference <= largest))
            largest = difference;
    }
    return largest;
}

// ---- running ----

// Always with the same batch: what one budget takes beside experts is then what another does.
static q3_engine *open_engine(const char *pack, q3_engine_options options)
{
    enum { BATCH = 512 };
    q3_error error;
    q3_engine *engine;
    if (!options.batch)
        options.batch = BATCH;
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    return engine;
}

static q3_session *create_session(q3_engine *engine)
{
    q3_error error;
    q3_session *session;
    assert_ok(q3_session_create(engine, &session, &error));
    return session;
}

static void feed(q3_session *session, const uint32_t *ids, size_t count,
                 const q3_observer *observer)
{
    q3_error error;
    assert_ok(q3_session_feed(session, ids, count, observer, &error));
}

// The id with the highest logit; ids that are padding in this model have no logit that could win.
static uint32_t greedy(const q3_session *session)
{
    const float *logits = q3_session_logits(session);
    uint32_t best = 0;
    for (uint32_t i = 1; i < VOCABULARY; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

// Compares the last logits and then the greedy answer. Returns the largest difference.
static double check_answer(q3_session *session, const cJSON *expected)
{
    uint32_t ids[IDS_MAX];
    q3_session_truncate(session, 0);
    feed(session, ids, q3_test_ids(q3_test_member(expected, "ids"), ids, IDS_MAX), NULL);
    const double difference = largest_difference(q3_test_member(expected, "last_logits"),
                                                 q3_session_logits(session), VOCABULARY);
    assert_true(difference <= LOGIT_TOLERANCE);
    const size_t count = q3_test_ids(q3_test_member(expected, "greedy_ids"), ids, IDS_MAX);
    assert_true(count > 0);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(greedy(session), ids[i]);
        feed(session, &ids[i], 1, NULL);
    }
    return difference;
}

static void test_prompts(void **state)
{
    (void)state;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){0});
    q3_session *session = create_session(engine);
    const cJSON *prompt, *prompts = q3_test_member(reference, "prompts");
    double largest = 0;
    assert_int_equal(cJSON_GetArraySize(prompts), 12);
    cJSON_ArrayForEach(prompt, prompts) largest = fmax(largest, check_answer(session, prompt));
    print_message("12 prompts: logits differ by at most %.3g\n", largest);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

typedef struct inside {
    float hidden[LAYERS + 2][HIDDEN];
    unsigned rows;
    uint32_t experts[LAYERS][TOP_K];
    double weights[LAYERS];
    uint32_t last_position;
} inside;

static void see_hidden(void *context, uint32_t row, const float *values)
{
    inside *seen = context;
    assert_int_equal(row, seen->rows);
    memcpy(seen->hidden[seen->rows++], values, sizeof seen->hidden[0]);
}

static void see_routed(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                       const float *weights, uint32_t count)
{
    inside *seen = context;
    assert_int_equal(count, TOP_K);
    seen->last_position = position;
    memcpy(seen->experts[layer], experts, sizeof seen->experts[layer]);
    seen->weights[layer] = 0;
    for (uint32_t i = 0; i < count; i++)
        seen->weights[layer] += (double)weights[i];
}

static void test_inside(void **state)
{
    (void)state;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){0});
    q3_session *session = create_session(engine);
    const cJSON *prompt;
    double largest = 0;
    unsigned detailed = 0;
    cJSON_ArrayForEach(prompt, q3_test_member(reference, "prompts"))
    {
        const cJSON *rows = q3_json_find(prompt, "layer_last_hidden");
        if (!rows)
            continue;
        detailed++;
        uint32_t ids[IDS_MAX];
        inside seen = {.rows = 0};
        const q3_observer observer = {.context = &seen, .hidden = see_hidden, .routed = see_routed};
        const size_t count = q3_test_ids(q3_test_member(prompt, "ids"), ids, IDS_MAX);
        q3_session_truncate(session, 0);
        feed(session, ids, count, &observer);
        assert_int_equal(seen.rows, LAYERS + 2);
        assert_int_equal(seen.last_position, count - 1);
        assert_int_equal(cJSON_GetArraySize(rows), LAYERS + 1);
        for (int i = 0; i <= LAYERS; i++) {
            // The reference has the final norm's output in place of the last layer's.
            const double difference = largest_difference(
                q3_test_element(rows, i), seen.hidden[i < LAYERS ? i : LAYERS + 1], HIDDEN);
            assert_true(difference <= LOGIT_TOLERANCE);
            largest = fmax(largest, difference);
        }
        // The reference's experts are those of the last token that was fed to get the answer: the
        // one before the stop token.
        const size_t answer = q3_test_ids(q3_test_member(prompt, "greedy_ids"), ids, IDS_MAX) - 1;
        seen.rows = 0;
        feed(session, ids, answer, &observer);
        assert_int_equal(seen.last_position, count + answer - 1);
        const cJSON *layers = q3_test_member(prompt, "last_experts");
        assert_int_equal(cJSON_GetArraySize(layers), LAYERS);
        for (int i = 0; i < LAYERS; i++) {
            uint32_t experts[IDS_MAX];
            assert_int_equal(q3_test_ids(q3_test_element(layers, i), experts, IDS_MAX), TOP_K);
            assert_memory_equal(experts, seen.experts[i], sizeof seen.experts[i]);
            assert_true(fabs(seen.weights[i] - 1) < 1e-6);
        }
    }
    assert_int_equal(detailed, 3);
    print_message("3 prompts: hidden states differ by at most %.3g\n", largest);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

typedef struct scoring {
    const uint32_t *ids;
    size_t count;
    uint32_t seen;
    double sum;
} scoring;

static void see_logits(void *context, uint32_t position, const float *logits)
{
    scoring *score = context;
    assert_int_equal(position, score->seen++);
    if (position + 1 == score->count)
        return;
    double sum = 0, largest = (double)logits[0];
    for (size_t i = 1; i < VOCABULARY; i++)
        largest = fmax(largest, (double)logits[i]);
    for (size_t i = 0; i < VOCABULARY; i++)
        sum += exp((double)logits[i] - largest);
    score->sum += largest + log(sum) - (double)logits[score->ids[position + 1]];
}

static void test_nll(void **state)
{
    (void)state;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){0});
    q3_session *session = create_session(engine);
    const cJSON *text, *texts = q3_test_member(reference, "nll");
    double largest = 0;
    assert_int_equal(cJSON_GetArraySize(texts), 5);
    cJSON_ArrayForEach(text, texts)
    {
        uint32_t ids[IDS_MAX];
        scoring score = {.ids = ids,
                         .count = q3_test_ids(q3_test_member(text, "ids"), ids, IDS_MAX)};
        const q3_observer observer = {.context = &score, .logits = see_logits};
        q3_session_truncate(session, 0);
        feed(session, ids, score.count, &observer);
        assert_int_equal(score.seen, score.count);
        const double difference =
            fabs(score.sum / (double)(score.count - 1) - q3_test_number(text, "mean_nll"));
        assert_true(difference <= NLL_TOLERANCE);
        largest = fmax(largest, difference);
    }
    print_message("5 texts: mean NLL differs by at most %.3g\n", largest);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

static void write_pool(const cJSON *experts)
{
    q3_error error;
    char *layers = cJSON_PrintUnformatted(experts);
    assert_non_null(layers);
    char *text = q3_format(&error, "{\"layers\": %s}\n", layers);
    assert_non_null(text);
    assert_ok(q3_file_publish(pool_path, text, strlen(text), &error));
    free(text);
    cJSON_free(layers);
}

static void test_pools(void **state)
{
    (void)state;
    const cJSON *pool, *pools = q3_test_member(reference, "pools");
    double largest = 0;
    assert_int_equal(cJSON_GetArraySize(pools), 10);
    cJSON_ArrayForEach(pool, pools)
    {
        const uint64_t size = (uint64_t)q3_test_number(pool, "size");
        write_pool(q3_test_member(pool, "experts"));
        q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){.pool = pool_path});
        q3_session *session = create_session(engine);
        assert_int_equal(q3_engine_describe(engine)->pool_experts, size * LAYERS);
        assert_int_equal(q3_engine_describe(engine)->slots_max, size);
        largest = fmax(largest, check_answer(session, pool));
        q3_session_destroy(session);
        q3_engine_close(engine);
    }
    print_message("10 pools: logits differ by at most %.3g\n", largest);
}

// The pool of an open engine can be changed between feeds, and what is in memory stays.
static void test_changed_pool(void **state)
{
    (void)state;
    static bool members[LAYERS * EXPERTS];
    q3_error error;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){0});
    q3_session *session = create_session(engine);
    const cJSON *pool, *prompt = q3_test_element(q3_test_member(reference, "prompts"), 0);
    check_answer(session, prompt);
    cJSON_ArrayForEach(pool, q3_test_member(reference, "pools"))
    {
        memset(members, 0, sizeof members);
        for (int i = 0; i < LAYERS; i++) {
            uint32_t experts[IDS_MAX];
            const size_t count =
                q3_test_ids(q3_test_element(q3_test_member(pool, "experts"), i), experts, IDS_MAX);
            for (size_t e = 0; e < count; e++)
                members[(size_t)i * EXPERTS + experts[e]] = true;
        }
        assert_ok(q3_engine_set_pool(engine, members, &error));
        check_answer(session, pool);
    }
    memset(members + 3 * EXPERTS, 0, EXPERTS * sizeof *members);
    assert_false(q3_engine_set_pool(engine, members, &error));
    assert_int_equal(error.code, Q3_INCOMPLETE);
    char expected[Q3_ERROR_MESSAGE_MAX];
    snprintf(expected, sizeof expected, "layer 3: %s has none of the pool's experts", zstd_pack);
    assert_string_equal(error.message, expected);
    const uint64_t misses = q3_engine_count(engine).expert_misses;
    assert_ok(q3_engine_set_pool(engine, NULL, &error));
    check_answer(session, prompt);
    assert_int_equal(q3_engine_count(engine).expert_misses, misses);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

// What an observer of experts sees of one token and layer.
typedef struct experts_seen {
    uint32_t experts[LAYERS][TOP_K];
    float weights[LAYERS][TOP_K];
    unsigned routed, wanted, computed;
} experts_seen;

static void see_choice(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                       const float *weights, uint32_t count)
{
    experts_seen *seen = context;
    (void)position;
    assert_int_equal(count, TOP_K);
    memcpy(seen->experts[layer], experts, sizeof seen->experts[layer]);
    memcpy(seen->weights[layer], weights, sizeof seen->weights[layer]);
    seen->routed++;
}

// Without a pool the top k of what was wanted are chosen, with their shares of it.
static void see_wanted(void *context, uint32_t position, uint32_t layer, const float *probabilities,
                       uint32_t count)
{
    experts_seen *seen = context;
    double all = 0, top = 0, least = 1;
    (void)position;
    assert_int_equal(count, EXPERTS);
    for (uint32_t i = 0; i < count; i++)
        all += (double)probabilities[i];
    assert_true(fabs(all - 1) < 1e-5);
    for (uint32_t i = 0; i < TOP_K; i++) {
        const double wanted = (double)probabilities[seen->experts[layer][i]];
        top += wanted;
        least = fmin(least, wanted);
    }
    unsigned better = 0;
    for (uint32_t i = 0; i < count; i++)
        better += (double)probabilities[i] > least;
    assert_int_equal(better, TOP_K - 1);
    for (uint32_t i = 0; i < TOP_K; i++) {
        const double wanted = (double)probabilities[seen->experts[layer][i]];
        assert_true(fabs((double)seen->weights[layer][i] - wanted / top) < 1e-5);
    }
    seen->wanted++;
}

static void see_computed(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                         const float *weights, const float *norms, uint32_t count)
{
    experts_seen *seen = context;
    (void)position;
    assert_int_equal(count, TOP_K);
    assert_memory_equal(experts, seen->experts[layer], sizeof seen->experts[layer]);
    assert_memory_equal(weights, seen->weights[layer], sizeof seen->weights[layer]);
    for (uint32_t i = 0; i < count; i++)
        assert_true(norms[i] > 0 && isfinite(norms[i]));
    seen->computed++;
}

static void test_experts_seen(void **state)
{
    (void)state;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){0});
    q3_session *session = create_session(engine);
    experts_seen seen = {.routed = 0};
    const q3_observer observer = {
        .context = &seen, .routed = see_choice, .wanted = see_wanted, .computed = see_computed};
    static const uint32_t ids[] = {282, 198, 447, 369, 256};
    // One at a time: routed, wanted and computed of a layer then come one after the other.
    for (size_t i = 0; i < 5; i++)
        feed(session, &ids[i], 1, &observer);
    assert_int_equal(seen.routed, 5 * LAYERS);
    assert_int_equal(seen.wanted, 5 * LAYERS);
    assert_int_equal(seen.computed, 5 * LAYERS);
    // To be watched changes nothing, and nothing is wanted outside.
    static float watched[VOCABULARY];
    memcpy(watched, q3_session_logits(session), sizeof watched);
    q3_session_truncate(session, 0);
    feed(session, ids, 5, NULL);
    assert_memory_equal(watched, q3_session_logits(session), sizeof watched);
    // Of the tokens fed together, the last layer routed the last one only.
    assert_int_equal(q3_engine_count(engine).outside.routed, 5 * LAYERS + 5 * (LAYERS - 1) + 1);
    assert_true(q3_engine_count(engine).outside.sum == 0);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

// A pool smaller than top k: all of it is used, with weights that sum to 1.
static void see_three(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                      const float *weights, uint32_t count)
{
    static const uint32_t pool[] = {3, 40, 127};
    (void)position;
    assert_int_equal(count, 3);
    assert_memory_equal(experts, pool, sizeof pool);
    assert_true(fabs((double)weights[0] + (double)weights[1] + (double)weights[2] - 1) < 1e-6);
    *(unsigned *)context += layer == LAYERS - 1;
}

static void test_small_pool(void **state)
{
    (void)state;
    static const char text[] = "{\"layers\": [[40,3,127],[40,3,127],[3,40,127],[127,40,3],"
                               "[3,127,40],[40,127,3]]}";
    q3_error error;
    unsigned tokens = 0;
    const q3_observer observer = {.context = &tokens, .routed = see_three};
    assert_ok(q3_file_publish(pool_path, text, strlen(text), &error));
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){.pool = pool_path});
    q3_session *session = create_session(engine);
    feed(session, (const uint32_t[]){282, 198, 447}, 3, &observer);
    assert_int_equal(tokens, 3);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

// ---- what must not change the result ----

enum { RUN_ANSWER = 12, RUN_LOGITS = RUN_ANSWER + 1, WHOLE = 1000 };

// The logits behind a prompt and behind each of the tokens that then follow greedily, as bytes. The
// prompt is fed `step` tokens at a time.
static void run_bytes(q3_session *session, size_t step, float out[RUN_LOGITS * VOCABULARY])
{
    uint32_t ids[IDS_MAX];
    const cJSON *text = q3_test_element(q3_test_member(reference, "nll"), 0);
    const size_t count = q3_test_ids(q3_test_member(text, "ids"), ids, IDS_MAX);
    assert_true(count > 150);
    q3_session_truncate(session, 0);
    for (size_t i = 0; i < count; i += step)
        feed(session, ids + i, count - i < step ? count - i : step, NULL);
    for (unsigned i = 0; i < RUN_LOGITS; i++) {
        const uint32_t next = greedy(session);
        memcpy(out + i * VOCABULARY, q3_session_logits(session), VOCABULARY * sizeof *out);
        if (i < RUN_ANSWER)
            feed(session, &next, 1, NULL);
    }
}

static float expected_bytes[RUN_LOGITS * VOCABULARY], found_bytes[RUN_LOGITS * VOCABULARY];

// How a text is cut into feeds does not change a bit, but where the processor has other products
// for many tokens than for a few.
static void assert_same_cut(const float *expected, const float *found, size_t count)
{
    if (q3_cpu_in_use() <= Q3_CPU_AVX512) {
        assert_memory_equal(expected, found, count * sizeof *found);
        return;
    }
    for (size_t i = 0; i < count; i++)
        assert_true(fabsf(expected[i] - found[i]) < 5e-4F);
}

// Compares what an engine gives, and closes it.
static void check_engine(q3_engine *engine, size_t step)
{
    q3_session *session = create_session(engine);
    memset(found_bytes, 0, sizeof found_bytes);
    run_bytes(session, step, found_bytes);
    if (step == WHOLE)
        assert_memory_equal(expected_bytes, found_bytes, sizeof found_bytes);
    else
        assert_same_cut(expected_bytes, found_bytes, RUN_LOGITS * VOCABULARY);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

static void check_bytes(const char *pack, unsigned threads, uint64_t memory, size_t step)
{
    check_engine(open_engine(pack, (q3_engine_options){.threads = threads, .memory = memory}),
                 step);
}

// How one feed is cut into batches does not change a bit at any level.
static void check_batches(const char *pack)
{
    static const uint32_t batches[] = {1, 7, 50, 149};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
        check_engine(open_engine(pack, (q3_engine_options){.threads = 2, .batch = batches[i]}),
                     WHOLE);
}

// In every form of weights, with all experts in memory and with one a layer.
static void check_forms(const char *pack)
{
    static const q3_engine_weights forms[] = {Q3_WEIGHTS_BF12, Q3_WEIGHTS_STORED, Q3_WEIGHTS_PLAIN};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        for (unsigned least = 0; least < 2; least++) {
            q3_engine_options options = {.threads = 2, .weights = forms[i]};
            q3_engine *engine = open_engine(pack, options);
            assert_int_equal(q3_engine_describe(engine)->weights, forms[i]);
            if (least) {
                options.memory = q3_engine_describe(engine)->memory.minimum;
                q3_engine_close(engine);
                engine = open_engine(pack, options);
                assert_int_equal(q3_engine_describe(engine)->slots_max, 1);
            }
            check_engine(engine, WHOLE);
        }
}

static uint64_t budget_of(const char *pack, uint64_t more_slots)
{
    q3_engine *engine = open_engine(pack, (q3_engine_options){.threads = 1});
    const q3_memory_plan plan = q3_engine_describe(engine)->memory;
    q3_engine_close(engine);
    return plan.minimum + more_slots * (plan.total - plan.minimum) / (EXPERTS - 1);
}

// What gives either pack so many slots a layer beyond the first, and one of them perhaps more.
static uint64_t budget_for(const char *pack, const char *other, uint64_t more_slots)
{
    const uint64_t one = budget_of(pack, more_slots), two = budget_of(other, more_slots);
    return one > two ? one : two;
}

static void test_same_bytes(void **state)
{
    (void)state;
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){.threads = 1});
    q3_session *session = create_session(engine);
    run_bytes(session, WHOLE, expected_bytes);
    static const size_t steps[] = {1, 7, 128, 150};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        run_bytes(session, steps[i], found_bytes);
        assert_same_cut(expected_bytes, found_bytes, RUN_LOGITS * VOCABULARY);
    }
    q3_session_destroy(session);
    q3_engine_close(engine);
    check_batches(zstd_pack);
    check_bytes(zstd_pack, 2, 0, WHOLE);
    check_bytes(zstd_pack, 3, 0, 5);
    check_bytes(raw_pack, 1, 0, WHOLE);
    check_bytes(raw_pack, 8, 0, 100);
    check_bytes(plane_pack, 1, 0, WHOLE);
    check_bytes(plane_pack, 2, 0, 1);
    check_bytes(plane_pack, 3, 0, 3);
    check_forms(zstd_pack);
    check_forms(raw_pack);
    check_forms(plane_pack);
    static const uint64_t slots[] = {0, 6, 40};
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        check_bytes(i % 2 ? raw_pack : zstd_pack, 1, budget_for(raw_pack, zstd_pack, slots[i]),
                    WHOLE);
        check_bytes(plane_pack, 1, budget_for(raw_pack, plane_pack, slots[i]), WHOLE);
        check_bytes(i % 2 ? zstd_pack : raw_pack, 1, budget_for(raw_pack, zstd_pack, slots[i]), 3);
    }
}

// ---- memory ----

// A decoded expert of the model: three matrices of one block each, in whole pages. As it is stored,
// its file: a page of header and one for each matrix, and the three blocks. Its rows of 16 weights
// cannot be bf12, so that it is decoded there, too.
enum {
    DECODED_SLOT = 4 * 4096,
    RAW_FILE = 4 * 4096,
    STORED_SLOT = RAW_FILE + 4096,
    BF12_SLOT = DECODED_SLOT,
};

static void test_budget(void **state)
{
    (void)state;
    q3_error error;
    static const struct {
        q3_engine_weights weights;
        uint64_t slot;
        unsigned passing;
        q3_io_mode io;
        float resident_bias;
    } raw[] = {{Q3_WEIGHTS_STORED, STORED_SLOT, 0, Q3_IO_AUTO, 0},
               {Q3_WEIGHTS_BF12, BF12_SLOT, 8, Q3_IO_AUTO, 0},
               {Q3_WEIGHTS_BF12, BF12_SLOT, 8, Q3_IO_BUFFERED, 0},
               {Q3_WEIGHTS_BF12, BF12_SLOT, 0, Q3_IO_DIRECT, 0},
               {Q3_WEIGHTS_BF12, BF12_SLOT, 0, Q3_IO_AUTO, 1}};
    q3_engine *engine;
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
        engine = open_engine(raw_pack, (q3_engine_options){.threads = 2,
                                                           .weights = raw[i].weights,
                                                           .io = raw[i].io,
                                                           .resident_bias = raw[i].resident_bias});
        const q3_memory_plan *plan = &q3_engine_describe(engine)->memory;
        assert_int_equal(plan->experts, (uint64_t)LAYERS * EXPERTS * raw[i].slot);
        assert_int_equal(plan->passing_experts, raw[i].passing);
        assert_int_equal(plan->passing, raw[i].passing * STORED_SLOT);
        assert_int_equal(plan->total,
                         plan->minimum + plan->experts / EXPERTS * (EXPERTS - 1) + plan->passing);
        q3_engine_close(engine);
    }
    q3_engine_options options = {.threads = 2, .weights = Q3_WEIGHTS_PLAIN};
    engine = open_engine(zstd_pack, options);
    const q3_engine_info all = *q3_engine_describe(engine);
    q3_engine_close(engine);
    const uint64_t experts_bytes = all.memory.experts;
    assert_int_equal(experts_bytes, (uint64_t)LAYERS * EXPERTS * DECODED_SLOT);
    assert_int_equal(all.slots_min, EXPERTS);
    assert_int_equal(all.slots_max, EXPERTS);
    assert_int_equal(all.memory.kv_cache, (uint64_t)LAYERS * 2 * 2 * 4096 * 32 * sizeof(float));
    // zstd is not what a product can read: nothing passes.
    assert_int_equal(all.memory.passing, 0);
    assert_int_equal(all.memory.minimum + experts_bytes / EXPERTS * (EXPERTS - 1),
                     all.memory.total);
    options.memory = all.memory.minimum;
    engine = open_engine(zstd_pack, options);
    assert_int_equal(q3_engine_describe(engine)->slots_max, 1);
    assert_int_equal(q3_engine_describe(engine)->memory.total, all.memory.minimum);
    q3_engine_close(engine);
    options.memory = all.memory.minimum + experts_bytes / EXPERTS * 5 - 1;
    engine = open_engine(zstd_pack, options);
    assert_int_equal(q3_engine_describe(engine)->slots_max, 5);
    q3_engine_close(engine);
    options.batch = all.batch;
    options.memory = all.memory.minimum - 1;
    assert_false(q3_engine_open(zstd_pack, &options, &engine, &error));
    assert_int_equal(error.code, Q3_REFUSED);
    char expected[64];
    snprintf(expected, sizeof expected, "at least %" PRIu64 ",%03" PRIu64 ",%03" PRIu64 " are",
             all.memory.minimum / 1000000, all.memory.minimum / 1000 % 1000,
             all.memory.minimum % 1000);
    assert_non_null(strstr(error.message, expected));
}

// The same token again and again: its experts pass, are read to be kept, and are there.
static void test_counts(void **state)
{
    (void)state;
    enum { EACH = LAYERS * TOP_K };
    static const struct {
        q3_io_mode io;
        unsigned passed, misses, hits; // after so many times, of EACH
    } expected[2][3] = {
        {{Q3_IO_AUTO, 1, 1, 0}, {Q3_IO_AUTO, 1, 2, 0}, {Q3_IO_AUTO, 1, 2, 1}},
        {{Q3_IO_DIRECT, 0, 1, 0}, {Q3_IO_DIRECT, 0, 1, 1}, {Q3_IO_DIRECT, 0, 1, 2}},
    };
    for (unsigned i = 0; i < 2; i++) {
        q3_engine *engine =
            open_engine(raw_pack, (q3_engine_options){.threads = 1, .io = expected[i][0].io});
        q3_session *session = create_session(engine);
        for (unsigned j = 0; j < 3; j++) {
            q3_session_truncate(session, 0);
            feed(session, (const uint32_t[]){282}, 1, NULL);
            const q3_engine_statistics counts = q3_engine_count(engine);
            assert_int_equal(counts.tokens, j + 1);
            assert_int_equal(counts.experts_passed, expected[i][j].passed * EACH);
            assert_int_equal(counts.expert_misses, expected[i][j].misses * EACH);
            assert_int_equal(counts.expert_hits, expected[i][j].hits * EACH);
            assert_int_equal(counts.expert_bytes, counts.expert_misses * RAW_FILE);
        }
        q3_session_destroy(session);
        q3_engine_close(engine);
    }
}

// ---- experts that pass ----

typedef struct experts_of_layer {
    uint32_t layer;
    bool needed[EXPERTS];
} experts_of_layer;

static void see_layer(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                      const float *weights, uint32_t count)
{
    experts_of_layer *seen = context;
    (void)position;
    (void)weights;
    for (uint32_t i = 0; i < count; i++)
        if (layer == seen->layer)
            seen->needed[experts[i]] = true;
}

// One that cannot be read, behind as many as pass at the same time, fails what asked for it and
// nothing else: once it is whole, all goes on in the same session.
static void test_failure_while_passing(void **state)
{
    (void)state;
    enum { PASSING = 8, LAYER = 1, IN_LAST_FRAME = RAW_FILE - 4096 };
    static float expected[VOCABULARY];
    uint32_t ids[IDS_MAX];
    q3_error error;
    const cJSON *prompt = q3_test_element(q3_test_member(reference, "prompts"), 0);
    const size_t count = q3_test_ids(q3_test_member(prompt, "ids"), ids, IDS_MAX);
    experts_of_layer seen = {.layer = LAYER};
    const q3_observer observer = {.context = &seen, .routed = see_layer};
    q3_engine *engine = open_engine(raw_pack, (q3_engine_options){.threads = 2});
    q3_session *session = create_session(engine);
    assert_int_equal(q3_engine_describe(engine)->memory.passing_experts, PASSING);
    feed(session, ids, count, &observer);
    memcpy(expected, q3_session_logits(session), sizeof expected);
    q3_session_destroy(session);
    q3_engine_close(engine);
    uint32_t victim = 0;
    for (unsigned before = 0; before <= PASSING; victim++) {
        assert_true(victim < EXPERTS);
        before += seen.needed[victim];
    }
    victim--;
    char *path = q3_test_path("%s/layers/%02d/experts/%03" PRIu32 ".q3p", raw_pack, LAYER, victim);
    engine = open_engine(raw_pack, (q3_engine_options){.threads = 2});
    session = create_session(engine);
    q3_test_flip(path, IN_LAST_FRAME, 0);
    // The first time as it passes, the second as it is read to its slot.
    for (unsigned i = 0; i < 2; i++) {
        assert_false(q3_session_feed(session, ids, count, NULL, &error));
        assert_int_equal(error.code, Q3_MALFORMED);
        assert_int_equal(strncmp(error.message, path, strlen(path)), 0);
        assert_non_null(strstr(error.message, " is damaged: expected hash "));
        assert_int_equal(q3_session_length(session), 0);
    }
    q3_test_flip(path, IN_LAST_FRAME, 0);
    feed(session, ids, count, NULL);
    assert_memory_equal(q3_session_logits(session), expected, sizeof expected);
    q3_session_destroy(session);
    q3_engine_close(engine);
    free(path);
}

// ---- the last layer ----

enum { CUT = 20, CUTS = 3, FED = 56 };

// The experts that each batch of CUT tokens needs in a layer.
typedef struct experts_needed {
    bool by_token[FED][LAYERS][EXPERTS];
} experts_needed;

static void see_needed(void *context, uint32_t position, uint32_t layer, const uint32_t *experts,
                       const float *weights, uint32_t count)
{
    experts_needed *needed = context;
    (void)weights;
    for (uint32_t i = 0; i < count; i++)
        needed->by_token[position][layer][experts[i]] = true;
}

static unsigned count_needed(const experts_needed *needed, unsigned first, unsigned end, int layer)
{
    unsigned count = 0;
    for (int e = 0; e < EXPERTS; e++) {
        bool any = false;
        for (unsigned t = first; t < end; t++)
            any = any || needed->by_token[t][layer][e];
        count += any;
    }
    return count;
}

// Nobody asks what the last layer makes of a prompt but for its last token: no experts are fetched
// for the others, and what is asked for is the same.
static void test_last_layer(void **state)
{
    (void)state;
    uint32_t ids[IDS_MAX];
    static experts_needed needed;
    static float logits[VOCABULARY];
    const cJSON *text = q3_test_element(q3_test_member(reference, "nll"), 0);
    assert_true(q3_test_ids(q3_test_member(text, "ids"), ids, IDS_MAX) >= FED);
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){.batch = CUT});
    q3_session *session = create_session(engine);
    const q3_observer observer = {.context = &needed, .routed = see_needed};
    feed(session, ids, FED, &observer);
    memcpy(logits, q3_session_logits(session), sizeof logits);
    unsigned all = 0, asked_for = count_needed(&needed, FED - 1, FED, LAYERS - 1);
    for (unsigned batch = 0; batch < CUTS; batch++)
        for (int layer = 0; layer < LAYERS; layer++) {
            const unsigned first = batch * CUT, end = first + CUT < FED ? first + CUT : FED;
            const unsigned count = count_needed(&needed, first, end, layer);
            all += count;
            asked_for += layer + 1 < LAYERS ? count : 0;
        }
    const q3_engine_statistics watched = q3_engine_count(engine);
    assert_int_equal(watched.expert_hits + watched.expert_misses, all);
    assert_int_equal(watched.outside.routed, FED * LAYERS);
    q3_session_truncate(session, 0);
    feed(session, ids, FED, NULL);
    assert_memory_equal(logits, q3_session_logits(session), sizeof logits);
    const q3_engine_statistics fed = q3_engine_count(engine);
    assert_int_equal(fed.expert_hits + fed.expert_misses - all, asked_for);
    assert_int_equal(fed.outside.routed - watched.outside.routed, FED * (LAYERS - 1) + 1);
    assert_true(asked_for < all - 100);
    q3_session_destroy(session);
    q3_engine_close(engine);
}

// ---- sessions ----

static void test_limits(void **state)
{
    (void)state;
    q3_error error;
    q3_engine_options options = {.context = 4, .threads = 1};
    q3_engine *engine = open_engine(zstd_pack, options);
    q3_session *session = create_session(engine), *second;
    const uint32_t ids[] = {282, 198, 447, 369, 256};
    assert_false(q3_session_create(engine, &second, &error));
    assert_int_equal(error.code, Q3_REFUSED);
    assert_string_equal(error.message, "a session more than the 1 that the memory budget counts");
    feed(session, ids, 2, NULL);
    assert_false(q3_session_feed(session, ids, 3, NULL, &error));
    assert_int_equal(error.code, Q3_USAGE);
    assert_string_equal(error.message, "3 tokens after 2 do not fit a context of 4 tokens");
    assert_int_equal(q3_session_length(session), 2);
    assert_false(q3_session_feed(session, (const uint32_t[]){VOCABULARY}, 1, NULL, &error));
    assert_int_equal(error.code, Q3_USAGE);
    assert_string_equal(error.message, "token id 1536 is not in the vocabulary of 1536");
    feed(session, ids + 2, 2, NULL);
    assert_int_equal(q3_session_length(session), 4);
    q3_session_destroy(session);
    q3_engine_close(engine);
    options.context = 4097;
    assert_false(q3_engine_open(zstd_pack, &options, &engine, &error));
    assert_int_equal(error.code, Q3_REFUSED);
    char expected[800];
    snprintf(expected, sizeof expected,
             "%s: a context of 4097 tokens is more than the model's 4096", zstd_pack);
    assert_string_equal(error.message, expected);
}

// A conversation of three turns that keeps its cache gives what one prompt gives.
static void test_turns(void **state)
{
    (void)state;
    static const char *const users[] = {"Tell me a story about a brave fox named Tom.",
                                        "What is the fox's name?", "How much is 3 + 4?"};
    q3_error error;
    q3_tokenizer *tokenizer;
    q3_ids whole = {0};
    assert_ok(q3_tokenizer_open(zstd_pack, &tokenizer, &error));
    q3_engine *engine = open_engine(zstd_pack, (q3_engine_options){.sessions = 2});
    q3_session *kept = create_session(engine), *fresh = create_session(engine);
    for (unsigned turn = 0; turn < 3; turn++) {
        const q3_bytes user = {(const uint8_t *)users[turn], strlen(users[turn])};
        const size_t before = whole.count;
        assert_ok(turn ? q3_chat_next(tokenizer, user, &whole, &error)
                       : q3_chat_first(tokenizer, NULL, user, &whole, &error));
        feed(kept, whole.ids + before, whole.count - before, NULL);
        q3_session_truncate(fresh, 0);
        feed(fresh, whole.ids, whole.count, NULL);
        for (unsigned i = 0; i < 200; i++) {
            assert_same_cut(q3_session_logits(kept), q3_session_logits(fresh), VOCABULARY);
            const uint32_t id = greedy(kept);
            if (id == 1402)
                break;
            assert_ok(q3_ids_append(&whole, id, &error));
            feed(kept, &id, 1, NULL);
            feed(fresh, &id, 1, NULL);
        }
        assert_true(whole.count - before > 20);
    }
    q3_session_destroy(fresh);
    q3_session_destroy(kept);
    q3_engine_close(engine);
    q3_tokenizer_close(tokenizer);
    q3_ids_free(&whole);
}

// ---- packs ----

static int remove_packs(void **state)
{
    (void)state;
    cJSON_Delete(reference);
    q3_test_remove(directory);
    free(raw_pack);
    free(zstd_pack);
    free(plane_pack);
    free(pool_path);
    return 0;
}

static bool extract(const char *pack, q3_codec codec, q3_error *err)
{
    q3_extract_result result;
    const q3_extract_options options = {
        .model_directory = Q3_TEST_MODEL_DIR,
        .pack_directory = pack,
        .selection = {.components = "text"},
        .codec = codec,
        .jobs = 2,
        .quiet = true,
    };
    return q3_extract(&options, &result, err);
}

static int make_packs(void **state)
{
    (void)state;
    q3_error err;
    directory = q3_test_directory();
    raw_pack = q3_test_path("%s/raw", directory);
    zstd_pack = q3_test_path("%s/zstd", directory);
    plane_pack = q3_test_path("%s/planes", directory);
    pool_path = q3_test_path("%s/pool.json", directory);
    reference = q3_test_load_json(Q3_TEST_REFERENCE);
    if (extract(raw_pack, Q3_CODEC_RAW, &err) && extract(zstd_pack, Q3_CODEC_ZSTD, &err) &&
        extract(plane_pack, Q3_CODEC_BITPLANE, &err))
        return 0;
    print_error("%s\n", err.message);
    remove_packs(state);
    return -1;
}

int main(int argc, char **argv)
{
    if (!q3_test_has_level(argc, argv))
        return Q3_TEST_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_inside),
        cmocka_unit_test(test_nll),
        cmocka_unit_test(test_pools),
        cmocka_unit_test(test_changed_pool),
        cmocka_unit_test(test_experts_seen),
        cmocka_unit_test(test_small_pool),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_failure_while_passing),
        cmocka_unit_test(test_last_layer),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_turns),
    };
    return cmocka_run_group_tests(tests, make_packs, remove_packs);
}
