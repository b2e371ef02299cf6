// SPDX-License-Identifier: Apache-2.0
//
// Experts whose files are longer than what is read at a time: several threads read pieces of one
// file, while another one takes what is there. However many they are, around the page cache or
// through it, for whatever form of weights and with room for all experts or for one, the results
// must be the same to the bit; and what is wrong with the last piece must be found and said.
#include "base/hash.h"
#include "checkpoint_writer.h"
#include "engine.h"
#include "expert_cache.h"
#include "extract.h"
#include "support.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Every token needs both experts of a layer. Their rows are whole groups of bf12.
static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\",\n"
    " \"attention_bias\": false, \"decoder_sparse_step\": 1, \"dtype\": \"bfloat16\",\n"
    " \"head_dim\": 32, \"hidden_act\": \"silu\", \"hidden_size\": 768,\n"
    " \"intermediate_size\": 64, \"max_position_embeddings\": 64, \"mlp_only_layers\": [],\n"
    " \"moe_intermediate_size\": 1088, \"norm_topk_prob\": true, \"num_attention_heads\": 2,\n"
    " \"num_experts\": 2, \"num_experts_per_tok\": 2, \"num_hidden_layers\": 2,\n"
    " \"num_key_value_heads\": 1, \"rms_norm_eps\": 1e-06, \"rope_scaling\": null,\n"
    " \"rope_theta\": 10000, \"tie_word_embeddings\": false, \"vocab_size\": 64}\n";

// Pieces are of a megabyte at most, and files longer than three of them.
enum { LAYERS = 2, EXPERTS = 2, VOCABULARY = 64, TOKENS = 2, LONG = 3 << 20 };

static const uint32_t ids[TOKENS] = {5, 44};
#define IDS "5 44"

// What a pack is made with, and the form of weights: their experts are kept as they are, or made
// bf12. (Bit-plane frames that are to become plain are decoded one by one, not in pieces.)
static const struct {
    const char *pack;
    q3_codec codec;
    q3_engine_weights weights;
} readings[] = {
    {"planes", Q3_CODEC_BITPLANE, Q3_WEIGHTS_STORED},
    {"planes", Q3_CODEC_BITPLANE, Q3_WEIGHTS_BF12},
    {"raw", Q3_CODEC_RAW, Q3_WEIGHTS_PLAIN},
};
static const q3_io_mode modes[] = {Q3_IO_BUFFERED, Q3_IO_DIRECT};
static const unsigned readers[] = {1, 2, 5};
enum {
    READINGS = sizeof readings / sizeof *readings,
    MODES = sizeof modes / sizeof *modes,
    READERS = sizeof readers / sizeof *readers,
};

static q3_engine_options options_of(unsigned reading, unsigned mode, unsigned reader)
{
    return (q3_engine_options){.threads = 2,
                               .weights = readings[reading].weights,
                               .io = modes[mode],
                               .readers = readers[reader]};
}

static char *pack_of(unsigned reading)
{
    return q3_test_path("%s/%s", q3_test_scratch, readings[reading].pack);
}

static int make_packs(void **state)
{
    q3_error error;
    if (q3_test_make_scratch(state) != 0)
        return -1;
    char *text = q3_test_path("%s/config.json", q3_test_scratch);
    char *model = q3_test_path("%s/model", q3_test_scratch);
    q3_test_write_text(text, config);
    const q3_checkpoint_options options = {
        .config = text, .directory = model, .seed = 11, .shard_bytes = 1 << 30, .jobs = 2};
    assert_ok(q3_checkpoint_write(&options, NULL, &error));
    for (unsigned i = 0; i < READINGS; i++) {
        if (i > 0 && readings[i].codec == readings[i - 1].codec)
            continue;
        char *pack = pack_of(i);
        const q3_extract_options extract = {.model_directory = model,
                                            .pack_directory = pack,
                                            .selection = {.components = "text"},
                                            .codec = readings[i].codec,
                                            .jobs = 2,
                                            .quiet = true};
        q3_extract_result result;
        assert_ok(q3_extract(&extract, &result, &error));
        free(pack);
    }
    q3_test_remove_tree(model);
    free(model);
    free(text);
    return 0;
}

// ---- the same bits ----

// Room for all experts, for one a layer, and for one a layer and another one that is read ahead.
enum { ALL, ONE, ONE_AND_AHEAD, ROOMS };

// With room for all, does an expert pass when it is asked for first?
static bool passes(const q3_engine_options *options)
{
    return options->io == Q3_IO_BUFFERED && options->weights != Q3_WEIGHTS_STORED;
}

static q3_engine *open_engine(const char *pack, q3_engine_options options, unsigned room)
{
    q3_error error;
    q3_engine *engine;
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    const q3_engine_info all = *q3_engine_describe(engine);
    assert_int_equal(all.slots_min, EXPERTS);
    assert_int_equal(all.memory.passing_experts, passes(&options) ? Q3_PASSING_MAX : 0);
    if (room == ALL)
        return engine;
    q3_engine_close(engine);
    options.memory =
        all.memory.minimum + (room == ONE ? 0 : all.memory.experts / (LAYERS * EXPERTS));
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    const q3_engine_info *info = q3_engine_describe(engine);
    assert_int_equal(info->slots_max, 1);
    assert_int_equal(info->memory.ahead, room == ONE ? 0 : 1);
    assert_int_equal(info->weights, options.weights);
    assert_int_equal(info->io, options.io);
    assert_int_equal(info->readers, options.readers);
    return engine;
}

static void feed(q3_session *session, unsigned token, float logits[VOCABULARY])
{
    q3_error error;
    assert_ok(q3_session_feed(session, &ids[token], 1, NULL, &error));
    memcpy(logits, q3_session_logits(session), VOCABULARY * sizeof *logits);
}

static void run(const char *pack, q3_engine_options options, unsigned room,
                float logits[TOKENS][VOCABULARY])
{
    q3_error error;
    q3_session *session;
    q3_engine *engine = open_engine(pack, options, room);
    assert_ok(q3_session_create(engine, &session, &error));
    for (unsigned i = 0; i < TOKENS; i++)
        feed(session, i, logits[i]);
    // The first token misses both of a layer, and so does the second if they have passed; where
    // there is room for one, each token leaves the second.
    const q3_engine_statistics counts = q3_engine_count(engine);
    const uint64_t passed = room == ALL && passes(&options) ? EXPERTS : 0;
    const uint64_t misses = room == ALL ? EXPERTS + passed : EXPERTS + TOKENS - 1;
    assert_int_equal(counts.experts_passed, LAYERS * passed);
    assert_int_equal(counts.expert_misses, LAYERS * misses);
    assert_int_equal(counts.expert_hits, LAYERS * (TOKENS * EXPERTS - misses));
    q3_session_destroy(session);
    q3_engine_close(engine);
}

static void test_same_bits(void **state)
{
    (void)state;
    static float expected[TOKENS][VOCABULARY], found[TOKENS][VOCABULARY];
    for (unsigned i = 0; i < READINGS; i++) {
        char *pack = pack_of(i);
        if (i == 0)
            run(pack, options_of(i, 0, 0), ALL, expected);
        for (unsigned j = 0; j < MODES * READERS * ROOMS; j++) {
            memset(found, 0, sizeof found);
            run(pack, options_of(i, j / ROOMS / READERS, j / ROOMS % READERS), j % ROOMS, found);
            assert_memory_equal(found, expected, sizeof found);
        }
        free(pack);
    }
}

// ---- what is wrong with the last piece ----

// The file of the second layer's first expert.
typedef struct victim {
    char *path;
    size_t size, last; // a byte of the last frame, which is in the last piece
    uint8_t byte;      // that it is
    // What is said when it is another one; and when the file ends before it, as the pack is opened
    // and later.
    char *damaged, *short_opened, *short_read;
} victim;

// Gives the file this byte there, and this size.
static void change(const victim *v, uint8_t byte, size_t size)
{
    const int fd = open(v->path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)v->last), 1);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    assert_int_equal(close(fd), 0);
}

static void damage(const victim *v)
{
    change(v, v->byte ^ 16, v->size);
}

static void shorten(const victim *v)
{
    change(v, 0, v->last);
}

// What is behind the byte is padding.
static void mend(const victim *v)
{
    change(v, v->byte, v->size);
}

static victim choose_victim(const char *directory)
{
    q3_error error;
    q3_set set;
    q3_pack pack;
    victim v = {.size = 0};
    const q3_place place = {
        .component = Q3_TEXT, .part = Q3_EXPERT, .layer = LAYERS - 1, .expert = 0};
    assert_ok(q3_set_open(directory, &set, &error));
    const q3_set_file *file = q3_set_find(&set, &place);
    assert_non_null(file);
    assert_ok(q3_set_open_pack(&set, file, &pack, &error));
    v.path = q3_test_path("%s", pack.file.path);
    char *bytes = q3_test_read(v.path, &v.size);
    const q3_pack_tensor *tensor = &pack.tensors[pack.tensor_count - 1];
    const q3_frame *frame = &pack.frames[tensor->first_frame + tensor->frame_count - 1];
    assert_int_equal(tensor->first_frame + tensor->frame_count, pack.frame_count);
    v.last = frame->offset + frame->stored_bytes - 1;
    assert_true(v.last > LONG);
    v.byte = (uint8_t)bytes[v.last];
    bytes[v.last] ^= 16;
    v.damaged =
        q3_test_path("%s: model.layers.1.mlp.experts.0.down_proj.weight: frame %" PRIu32
                     " at %" PRIu64 " is damaged: expected hash %016" PRIx64 ", found %016" PRIx64,
                     v.path, tensor->frame_count - 1, frame->offset, frame->hash,
                     q3_hash64(bytes + frame->offset, frame->stored_bytes));
    v.short_opened =
        q3_test_path("%s: expected a file of %zu bytes, found %zu", v.path, v.size, v.last);
    v.short_read =
        q3_test_path("%s: pack.json expects %zu bytes, found %zu", v.path, v.size, v.last);
    free(bytes);
    q3_pack_close(&pack);
    q3_set_close(&set);
    return v;
}

static void free_victim(victim *v)
{
    free(v->path);
    free(v->damaged);
    free(v->short_opened);
    free(v->short_read);
}

static void expect_failure(const char *pack, q3_engine_options options, const char *message)
{
    char *expected = q3_test_path("q3-run: %s\n", message);
    char *count = q3_test_path("%u", options.readers);
    q3_test_expect(q3_test_run(NULL, Q3_TEST_RUN, "logits", pack, "--ids", IDS, "--weights",
                               q3_weights_name(options.weights), "--io",
                               q3_io_mode_name(options.io), "--readers", count, NULL),
                   Q3_MALFORMED, expected);
    free(count);
    free(expected);
}

static void test_exit_codes(void **state)
{
    (void)state;
    for (unsigned i = 0; i < READINGS; i++) {
        char *pack = pack_of(i);
        victim v = choose_victim(pack);
        damage(&v);
        for (unsigned j = 0; j < MODES * READERS; j++)
            expect_failure(pack, options_of(i, j / READERS, j % READERS), v.damaged);
        shorten(&v);
        expect_failure(pack, options_of(i, 0, 0), v.short_opened);
        mend(&v);
        free_victim(&v);
        free(pack);
    }
}

static void feed_in_vain(q3_session *session, const char *message)
{
    q3_error error;
    const uint32_t length = q3_session_length(session);
    assert_false(q3_session_feed(session, &ids[length], 1, NULL, &error));
    assert_string_equal(error.message, message);
    assert_int_equal(error.code, Q3_MALFORMED);
    assert_int_equal(q3_session_length(session), length);
}

static void feed_around_damage(q3_session *session, const victim *v, float logits[VOCABULARY])
{
    damage(v);
    feed_in_vain(session, v->damaged);
    shorten(v);
    feed_in_vain(session, v->short_read);
    mend(v);
    feed(session, q3_session_length(session), logits);
}

// An expert that could not be read is read when its file is sound again.
static void test_recovery(void **state)
{
    (void)state;
    static float expected[TOKENS][VOCABULARY], found[TOKENS][VOCABULARY];
    // The first token leaves the other expert in memory; or both, unless they have passed.
    static const struct {
        unsigned room, damaged; // when this token is fed
    } cases[] = {{ONE_AND_AHEAD, 1}, {ALL, 0}, {ALL, 1}};
    enum { CASES = sizeof cases / sizeof *cases };
    for (unsigned i = 0; i < READINGS; i++) {
        char *pack = pack_of(i);
        victim v = choose_victim(pack);
        if (i == 0)
            run(pack, options_of(i, 0, 0), ALL, expected);
        for (unsigned j = 0; j < MODES * CASES; j++) {
            const unsigned room = cases[j / MODES].room, damaged = cases[j / MODES].damaged;
            q3_error error;
            q3_session *session;
            const q3_engine_options options = options_of(i, j % MODES, READERS - 1);
            q3_engine *engine = open_engine(pack, options, room);
            assert_ok(q3_session_create(engine, &session, &error));
            for (unsigned token = 0; token < TOKENS; token++)
                if (token == damaged && (token == 0 || room != ALL || passes(&options)))
                    feed_around_damage(session, &v, found[token]);
                else
                    feed(session, token, found[token]);
            assert_memory_equal(found, expected, sizeof found);
            q3_session_destroy(session);
            q3_engine_close(engine);
        }
        free_victim(&v);
        free(pack);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_exit_codes),
        cmocka_unit_test(test_recovery),
    };
    return cmocka_run_group_tests(tests, make_packs, q3_test_remove_scratch);
}
