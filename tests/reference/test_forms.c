// SPDX-License-Identifier: Apache-2.0
//
// Packs that the extractor does not write: matrices that are only partly short enough for bf12,
// frames of other lengths and codecs, other alignments, tensors in another order or beside others.
// In every form of weights they must give the same bits; and a frame that does not decode although
// its checksum is right must give the same message. Experts must come to memory as they are
// whatever becomes of their files meanwhile, and be read again as they were.
#include "base/bytes.h"
#include "base/hash.h"
#include "checkpoint_writer.h"
#include "engine.h"
#include "extract.h"
#include "level.h"
#include "model.h"
#include "pack_format.h"
#include "set.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Experts' rows are of 128 and of 192 weights, both whole groups of bf12.
static const char config[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\",\n"
    " \"attention_bias\": false, \"decoder_sparse_step\": 1, \"dtype\": \"bfloat16\",\n"
    " \"head_dim\": 32, \"hidden_act\": \"silu\", \"hidden_size\": 128,\n"
    " \"intermediate_size\": 192, \"max_position_embeddings\": 512, \"mlp_only_layers\": [],\n"
    " \"moe_intermediate_size\": 192, \"norm_topk_prob\": true, \"num_attention_heads\": 4,\n"
    " \"num_experts\": 4, \"num_experts_per_tok\": 2, \"num_hidden_layers\": 2,\n"
    " \"num_key_value_heads\": 2, \"rms_norm_eps\": 1e-06, \"rope_scaling\": null,\n"
    " \"rope_theta\": 10000, \"tie_word_embeddings\": false, \"vocab_size\": 300}\n";

enum { LAYERS = 2, EXPERTS = 4, VOCABULARY = 300, TENSORS_MAX = 8, FRAME_BYTES = 12288 };

static char *plain; // the pack as the extractor writes it

// ---- packs ----

// How a pack is written again.
typedef struct rewriting {
    const char *name;
    const char *codecs;   // of a matrix's frames, in turn: r(aw), z(std), b(itplane)
    uint32_t alignment;   // 0: as writers do
    uint32_t frame_bytes; // of matrices, at most; 0: FRAME_BYTES
    bool reversed;        // tensors in the other order
    bool stuffed;         // an expert's file begins with a tensor that nobody needs
    const char *broken;   // the tensor whose second frame does not decode; NULL for none
    // Of bf12's form: blocks that lie in memory in each way, and bytes of an expert's slot (0: they
    // depend on how well the codec does).
    unsigned plain, bf12, frames;
    uint64_t slot;
} rewriting;

static q3_codec codec_of(const rewriting *how, uint32_t frame)
{
    switch (how->codecs[frame % strlen(how->codecs)]) {
    case 'z':
        return Q3_CODEC_ZSTD;
    case 'b':
        return Q3_CODEC_BITPLANE;
    default:
        return Q3_CODEC_RAW;
    }
}

static uint32_t alignment_of(const rewriting *how)
{
    return how->alignment ? how->alignment : Q3_PACK_ALIGNMENT;
}

static bool is_matrix(const q3_tensor *tensor)
{
    return tensor->rank == 2;
}

// Raw bytes of a tensor's frames but the last: whole rows.
static uint32_t cut_of(const rewriting *how, const q3_tensor *tensor)
{
    const uint64_t most = how->frame_bytes ? how->frame_bytes : FRAME_BYTES;
    const uint64_t row = tensor->bytes / tensor->shape[0];
    return (uint32_t)(is_matrix(tensor) ? most / row * row : tensor->bytes);
}

// Every second block of a matrix gets more exceptions than bf12 has room for.
static void make_long(uint16_t *weights, size_t count)
{
    for (size_t i = 0; i < count; i += 40)
        weights[i] = (uint16_t)(weights[i] & 0x8000) | (i % 80 ? 0 : 60 << 7);
}

typedef struct writing {
    const rewriting *how;
    q3_coder *coder;
    uint8_t *file;
    uint64_t size;
} writing;

static void pad_to(writing *w, uint64_t alignment)
{
    assert_true(q3_align(w->size, alignment, &w->size));
}

static void write_frame(writing *w, const q3_tensor *tensor, uint32_t index, const uint8_t *raw,
                        size_t raw_bytes, uint8_t *record)
{
    q3_error error;
    q3_codec codec = is_matrix(tensor) ? codec_of(w->how, index) : Q3_CODEC_RAW;
    size_t stored_bytes;
    pad_to(w, index ? Q3_FRAME_ALIGNMENT : alignment_of(w->how));
    uint8_t *stored = w->file + w->size;
    assert_ok(q3_codec_encode(w->coder, &codec, tensor->dtype, tensor->shape[1], raw, raw_bytes,
                              stored, &stored_bytes, &error));
    // Where the planes of bits begin, or the zstd frame.
    const size_t at = codec == Q3_CODEC_BITPLANE ? stored_bytes - raw_bytes / 8 : raw_bytes / 2;
    if (w->how->broken && strcmp(tensor->name, w->how->broken) == 0 && index == 1)
        memset(stored + at, 0xff, 64);
    memset(stored + stored_bytes, 0, raw_bytes - stored_bytes);
    q3_put_u32(record + FRAME_STORED_BYTES, (uint32_t)stored_bytes);
    record[FRAME_CODEC] = (uint8_t)codec;
    q3_put_u64(record + FRAME_HASH, q3_hash64(stored, stored_bytes));
    w->size += stored_bytes;
}

// Writes a pack file of these tensors over the one of a set.
static void write_file(const rewriting *how, const char *path, const q3_tensor *tensors,
                       uint8_t *const *raw, uint32_t count, q3_set_file *entry)
{
    q3_error error;
    uint64_t names = 0, frames = 0, room = 0;
    for (uint32_t i = 0; i < count; i++) {
        names += strlen(tensors[i].name);
        frames += (tensors[i].bytes - 1) / cut_of(how, &tensors[i]) + 1;
        room += tensors[i].bytes + alignment_of(how);
    }
    const uint64_t head = q3_pack_head_bytes(count, frames, names);
    writing w = {.how = how, .coder = q3_coder_create(&error)};
    w.file = calloc(1, head + room + frames * Q3_FRAME_ALIGNMENT + 2 * alignment_of(how));
    assert_true(w.coder && w.file);
    uint8_t *record = w.file + HEADER_BYTES, *frame = record + count * TENSOR_BYTES;
    uint8_t *name = frame + frames * FRAME_RECORD_BYTES;
    w.size = head;
    for (uint32_t i = 0; i < count; i++, record += TENSOR_BYTES) {
        const q3_hash128 hash = q3_hash128_of(raw[i], tensors[i].bytes);
        const uint32_t cut = cut_of(how, &tensors[i]);
        q3_put_u16(record + TENSOR_NAME_BYTES, (uint16_t)strlen(tensors[i].name));
        record[TENSOR_DTYPE] = (uint8_t)tensors[i].dtype;
        record[TENSOR_RANK] = (uint8_t)tensors[i].rank;
        q3_put_u32(record + TENSOR_FRAME_BYTES, cut);
        for (unsigned d = 0; d < tensors[i].rank; d++)
            q3_put_u64(record + TENSOR_SHAPE + 8 * d, tensors[i].shape[d]);
        q3_put_u64(record + TENSOR_HASH, hash.low);
        q3_put_u64(record + TENSOR_HASH + 8, hash.high);
        memcpy(name, tensors[i].name, strlen(tensors[i].name));
        name += strlen(tensors[i].name);
        for (uint64_t at = 0; at < tensors[i].bytes; at += cut) {
            const uint64_t left = tensors[i].bytes - at;
            write_frame(&w, &tensors[i], (uint32_t)(at / cut), raw[i] + at, left < cut ? left : cut,
                        frame);
            frame += FRAME_RECORD_BYTES;
        }
    }
    pad_to(&w, alignment_of(how));
    memcpy(w.file, pack_magic, sizeof pack_magic);
    q3_put_u32(w.file + HEADER_VERSION, Q3_PACK_VERSION);
    q3_put_u32(w.file + HEADER_ALIGNMENT, alignment_of(how));
    q3_put_u32(w.file + HEADER_TENSORS, count);
    q3_put_u32(w.file + HEADER_FRAMES, (uint32_t)frames);
    q3_put_u64(w.file + HEADER_DIRECTORY_BYTES, head - HEADER_BYTES);
    q3_put_u64(w.file + HEADER_FILE_BYTES, w.size);
    q3_put_u64(w.file + HEADER_DIRECTORY_HASH,
               q3_hash64(w.file + HEADER_BYTES, head - HEADER_BYTES));
    q3_put_u64(w.file + HEADER_HASH, q3_hash64(w.file, HEADER_HASH));
    q3_test_write(path, w.file, w.size);
    entry->size = w.size;
    entry->root = q3_hash128_of(w.file, head);
    free(w.file);
    q3_coder_destroy(w.coder);
}

// Puts `stuffing` before the tensors of an expert's file.
static void stuff(q3_set_file *entry, q3_tensor *tensors, uint8_t **raw, uint32_t *count)
{
    enum { ROWS = 64 };
    memmove(tensors + 1, tensors, *count * sizeof *tensors);
    memmove(raw + 1, raw, *count * sizeof *raw);
    tensors[0] = (q3_tensor){
        .name = "stuffing", .dtype = Q3_BF16, .rank = 2, .shape = {ROWS, FRAME_BYTES / 2}};
    assert_true(q3_tensor_size(&tensors[0]));
    raw[0] = calloc(1, tensors[0].bytes);
    entry->tensors = realloc(entry->tensors, (*count + 1) * sizeof *entry->tensors);
    assert_true(raw[0] && entry->tensors);
    memmove(entry->tensors + 1, entry->tensors, *count * sizeof *entry->tensors);
    entry->tensors[0] = (q3_set_tensor){.name = strdup("stuffing"), .offset = 8};
    entry->tensor_count = ++*count;
}

static void rewrite_file(const rewriting *how, const q3_set *set, q3_set_file *entry)
{
    q3_error error;
    q3_pack pack;
    q3_tensor tensors[TENSORS_MAX];
    uint8_t *raw[TENSORS_MAX], *stored = malloc(Q3_FRAME_BYTES_MAX);
    q3_coder *coder = q3_coder_create(&error);
    assert_true(coder && stored);
    assert_ok(q3_set_open_pack(set, entry, &pack, &error));
    uint32_t count = pack.tensor_count;
    assert_in_range(count, 1, TENSORS_MAX - 1);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t from = how->reversed ? count - 1 - i : i;
        tensors[i] = pack.tensors[from].tensor;
        raw[i] = malloc(tensors[i].bytes);
        assert_non_null(raw[i]);
        assert_ok(q3_pack_read_tensor(&pack, &pack.tensors[from], coder, stored, raw[i], &error));
        for (uint64_t at = FRAME_BYTES; is_matrix(&tensors[i]) && at < tensors[i].bytes;
             at += 2 * FRAME_BYTES) {
            const uint64_t left = tensors[i].bytes - at;
            make_long((uint16_t *)(void *)(raw[i] + at),
                      (left < FRAME_BYTES ? left : FRAME_BYTES) / 2);
        }
    }
    for (uint32_t i = 0; how->reversed && i < count / 2; i++) {
        const q3_set_tensor other = entry->tensors[i];
        entry->tensors[i] = entry->tensors[count - 1 - i];
        entry->tensors[count - 1 - i] = other;
    }
    if (how->stuffed && entry->place.part == Q3_EXPERT)
        stuff(entry, tensors, raw, &count);
    write_file(how, pack.file.path, tensors, raw, count, entry);
    q3_pack_close(&pack);
    for (uint32_t i = 0; i < count; i++)
        free(raw[i]);
    free(stored);
    q3_coder_destroy(coder);
}

// Copies the extractor's pack with its matrices written again; returns the path, to free().
static char *rewrite(const rewriting *how)
{
    q3_error error;
    q3_set set;
    char *pack = q3_test_path("%s/%s", q3_test_scratch, how->name);
    q3_test_copy_tree(plain, pack, false);
    assert_ok(q3_set_open(pack, &set, &error));
    for (size_t i = 0; i < set.file_count; i++)
        if (set.files[i].place.part != Q3_EMBEDDING)
            rewrite_file(how, &set, &set.files[i]);
    assert_ok(q3_set_write(&set, &error));
    q3_set_close(&set);
    return pack;
}

static int make_plain(void **state)
{
    q3_error error;
    if (q3_test_make_scratch(state) != 0)
        return -1;
    char *text = q3_test_path("%s/config.json", q3_test_scratch);
    char *model = q3_test_path("%s/model", q3_test_scratch);
    plain = q3_test_path("%s/plain", q3_test_scratch);
    q3_test_write_text(text, config);
    const q3_checkpoint_options options = {
        .config = text, .directory = model, .seed = 5, .shard_bytes = 1 << 20, .jobs = 1};
    const q3_extract_options extract = {.model_directory = model,
                                        .pack_directory = plain,
                                        .selection = {.components = "text"},
                                        .codec = Q3_CODEC_RAW,
                                        .jobs = 1,
                                        .quiet = true};
    q3_extract_result result;
    assert_ok(q3_checkpoint_write(&options, NULL, &error));
    assert_ok(q3_extract(&extract, &result, &error));
    free(model);
    free(text);
    return 0;
}

static int remove_plain(void **state)
{
    free(plain);
    return q3_test_remove_scratch(state);
}

// ---- the same bits ----

// Many: products are of many vectors, and what an expert does for some of them is one task, if
// there are enough of these for the threads; for one thread there are.
enum { TOKENS = 20, MANY_TOKENS = 300, ANSWER = 4, LOGITS = (ANSWER + 1) * VOCABULARY };

static const q3_engine_weights forms[] = {Q3_WEIGHTS_PLAIN, Q3_WEIGHTS_STORED, Q3_WEIGHTS_BF12};
enum { FORMS = sizeof forms / sizeof *forms };

// The logits behind a prompt of some tokens, and behind single ones.
static bool feed(q3_engine *engine, uint32_t tokens, float *out, q3_error *err)
{
    uint32_t ids[MANY_TOKENS];
    q3_session *session;
    for (uint32_t i = 0; i < tokens; i++)
        ids[i] = (13 * i + 5) % VOCABULARY;
    bool ok = q3_session_create(engine, &session, err) &&
              q3_session_feed(session, ids, tokens, NULL, err);
    for (unsigned i = 0; ok && i <= ANSWER; i++) {
        memcpy(out + i * VOCABULARY, q3_session_logits(session), VOCABULARY * sizeof *out);
        ok = i == ANSWER || q3_session_feed(session, &ids[i], 1, NULL, err);
    }
    q3_session_destroy(session);
    return ok;
}

// As many experts as there are slots for are in memory when the prompt comes: a group of them is
// there to be computed.
static bool run(const char *pack, const q3_engine_options *options, uint32_t tokens, float *out,
                q3_error *err)
{
    q3_engine *engine;
    if (!q3_engine_open(pack, options, &engine, err))
        return false;
    const bool ok = q3_engine_preload(engine, err) && feed(engine, tokens, out, err);
    q3_engine_close(engine);
    return ok;
}

// In every form, with all experts in memory and with one a layer.
static void check_forms(const char *pack, uint64_t slot, const float *expected)
{
    static float found[LOGITS];
    q3_error error;
    for (size_t i = 0; i < FORMS; i++) {
        q3_engine_options options = {
            .threads = 2, .weights = forms[i], .io = Q3_IO_BUFFERED, .readers = 2};
        q3_engine *engine;
        assert_ok(q3_engine_open(pack, &options, &engine, &error));
        const q3_engine_info info = *q3_engine_describe(engine);
        q3_engine_close(engine);
        assert_int_equal(info.weights, forms[i]);
        assert_int_equal(info.slots_min, EXPERTS);
        if (forms[i] == Q3_WEIGHTS_BF12 && slot)
            assert_int_equal(info.memory.experts, LAYERS * EXPERTS * slot);
        for (unsigned least = 0; least < 2; least++) {
            options.memory = least ? info.memory.minimum : 0;
            memset(found, 0, sizeof found);
            assert_ok(run(pack, &options, TOKENS, found, &error));
            assert_memory_equal(found, expected, sizeof found);
        }
    }
}

// Reads an expert a page at a time, and takes each at once: what arrives late must not be written
// over what has been made. `grows`: the file does, when it has been opened.
static void take_in_pages(const q3_model *model, uint32_t at, bool grows, q3_frame_reader *reader,
                          uint8_t *memory, q3_expert *expert)
{
    q3_error error;
    q3_file file;
    uint64_t image;
    q3_taking *taking;
    assert_ok(q3_model_open_expert(model, model->form, at / EXPERTS, at % EXPERTS, false, memory,
                                   &file, &image, &taking, &error));
    if (grows) {
        uint8_t more[8192];
        memset(more, 0xff, sizeof more);
        FILE *end = fopen(file.path, "ab");
        assert_true(end && fwrite(more, 1, sizeof more, end) == sizeof more && !fclose(end));
    }
    for (uint64_t read = 0, size; read < file.size; read += size) {
        size = file.size - read < 4096 ? file.size - read : 4096;
        assert_ok(q3_file_read_piece(&file, read, memory + image + read, (size_t)size, &error));
        assert_ok(q3_model_take_expert(taking, read + size, reader, expert, &error));
    }
    q3_taking_destroy(taking);
    q3_file_close(&file);
}

// Blocks of the LM head and of the experts that lie in memory in each way.
static void count_kinds(const char *pack, unsigned counts[Q3_BLOCK_FRAME + 1])
{
    q3_error error;
    q3_team team;
    q3_model model;
    assert_ok(q3_team_create(1, &team, &error));
    assert_ok(q3_model_open(pack, q3_kernels_for(q3_cpu_in_use()), &team, &model, &error));
    model.form = Q3_FORM_BF12;
    assert_ok(q3_model_load(&model, &team, &error));
    for (uint32_t i = 0; i < q3_matrix_blocks(&model.lm_head); i++)
        counts[model.lm_head.blocks[i].kind]++;
    for (uint32_t at = 0; at < LAYERS * EXPERTS; at++) {
        const uint64_t bytes =
            q3_model_expert_bytes(&model, model.form, at / EXPERTS, at % EXPERTS);
        uint8_t *memory = aligned_alloc(4096, bytes);
        q3_expert expert;
        assert_non_null(memory);
        assert_in_range(q3_model_block_bytes(&model), 1, Q3_BLOCK_BYTES_MAX);
        take_in_pages(&model, at, false, &team.readers[0], memory, &expert);
        const q3_matrix *matrices[] = {&expert.gate, &expert.up, &expert.down};
        for (unsigned m = 0; m < 3; m++)
            for (uint32_t i = 0; i < q3_matrix_blocks(matrices[m]); i++)
                counts[matrices[m]->blocks[i].kind]++;
        free(memory);
    }
    q3_model_close(&model);
    q3_team_destroy(&team);
}

static void test_mixed_blocks(void **state)
{
    (void)state;
    // The LM head has seven blocks, gate, up and down of each expert four: every second is long.
    enum { SHORT = 4 + LAYERS * EXPERTS * 3 * 2, LONG = 3 + LAYERS * EXPERTS * 3 * 2 };
    // Twelve blocks with the room of plain ones, and three lists of blocks, in whole pages.
    enum { SLOT = (12 * FRAME_BYTES + 3 * 128 + 4095) / 4096 * 4096 };
    static const rewriting packs[] = {
        {.name = "raw", .codecs = "r", .plain = LONG, .bf12 = SHORT, .slot = SLOT},
        {.name = "zstd", .codecs = "z", .plain = LONG, .bf12 = SHORT, .slot = SLOT},
        {.name = "planes", .codecs = "b", .frames = LONG, .bf12 = SHORT},
        {.name = "mixed", .codecs = "rbzb", .reversed = true, .frames = LONG, .bf12 = SHORT},
        {.name = "tight",
         .codecs = "zrb",
         .alignment = 64,
         .reversed = true,
         .plain = LONG - 1,
         .frames = 1,
         .bf12 = SHORT},
        {.name = "wide",
         .codecs = "brz",
         .alignment = 1 << 16,
         .plain = LONG - 25,
         .slot = 4 << 16, // the file: its header and three matrices
         .frames = 25,
         .bf12 = SHORT},
        {.name = "stuffed", .codecs = "b", .stuffed = true, .frames = LONG, .bf12 = SHORT},
        // Frames of a row, longer in bf12 than in bf16, and of most of a matrix.
        {.name = "rows",
         .codecs = "rbz",
         .frame_bytes = 384,
         .bf12 = 300 + LAYERS * EXPERTS * (192 + 192 + 128)},
        {.name = "long",
         .codecs = "bzr",
         .frame_bytes = 4 * FRAME_BYTES - 1,
         .plain = 1,
         .frames = 1 + LAYERS * EXPERTS * 3,
         .bf12 = LAYERS * EXPERTS * 3},
    };
    static float expected[LOGITS];
    for (size_t i = 0; i < sizeof packs / sizeof *packs; i++) {
        q3_error error;
        char *pack = rewrite(&packs[i]);
        if (i == 0)
            assert_ok(run(pack, &(q3_engine_options){.weights = Q3_WEIGHTS_PLAIN, .threads = 1},
                          TOKENS, expected, &error));
        check_forms(pack, packs[i].slot, expected);
        unsigned counts[Q3_BLOCK_FRAME + 1] = {0};
        count_kinds(pack, counts);
        assert_int_equal(counts[Q3_BLOCK_PLAIN], packs[i].plain);
        assert_int_equal(counts[Q3_BLOCK_BF12], packs[i].bf12);
        assert_int_equal(counts[Q3_BLOCK_FRAME], packs[i].frames);
        q3_test_remove(pack);
    }
}

// The same expert at two places of memory.
static void assert_same(const q3_expert *a, const uint8_t *a_memory, const q3_expert *b,
                        const uint8_t *b_memory)
{
    const q3_matrix *of_a[] = {&a->gate, &a->up, &a->down}, *of_b[] = {&b->gate, &b->up, &b->down};
    for (unsigned m = 0; m < 3; m++)
        for (uint32_t i = 0; i < q3_matrix_blocks(of_a[m]); i++) {
            const q3_block *one = &of_a[m]->blocks[i], *other = &of_b[m]->blocks[i];
            assert_int_equal((const uint8_t *)one->data - a_memory,
                             (const uint8_t *)other->data - b_memory);
            assert_int_equal(one->bytes, other->bytes);
            assert_int_equal(one->kind, other->kind);
            assert_memory_equal(one->data, other->data, one->bytes);
        }
}

// A file that grows while it is read is read as it was.
static void test_growing_files(void **state)
{
    (void)state;
    static const q3_form in_pieces[] = {Q3_FORM_STORED, Q3_FORM_BF12};
    char *pack = rewrite(&(rewriting){.name = "tight", .codecs = "rb", .alignment = 64});
    q3_error error;
    q3_team team;
    q3_model model;
    assert_ok(q3_team_create(1, &team, &error));
    assert_ok(q3_model_open(pack, q3_kernels_for(q3_cpu_in_use()), &team, &model, &error));
    for (unsigned i = 0; i < 2 * LAYERS * EXPERTS; i++) {
        const uint32_t at = i / 2;
        char name[Q3_PLACE_PATH_MAX];
        const q3_place place = {
            .component = Q3_TEXT, .part = Q3_EXPERT, .layer = at / EXPERTS, .expert = at % EXPERTS};
        char *path = q3_test_path("%s/%s", pack, q3_place_path(&place, name));
        size_t size;
        char *content = q3_test_read(path, &size);
        model.form = in_pieces[i % 2];
        const uint64_t bytes =
            q3_model_expert_bytes(&model, model.form, at / EXPERTS, at % EXPERTS);
        uint8_t *expected = aligned_alloc(4096, bytes), *memory = aligned_alloc(4096, bytes);
        q3_expert one, other;
        assert_true(expected && memory);
        assert_int_not_equal(size % 4096, 0);
        take_in_pages(&model, at, false, &team.readers[0], expected, &one);
        take_in_pages(&model, at, true, &team.readers[0], memory, &other);
        assert_same(&one, expected, &other, memory);
        q3_test_write(path, content, size);
        free(expected);
        free(memory);
        free(content);
        free(path);
    }
    q3_model_close(&model);
    q3_team_destroy(&team);
    q3_test_remove(pack);
}

// Tasks of one expert each, and of a block each.
static void test_shares(void **state)
{
    (void)state;
    static float expected[LOGITS], found[LOGITS];
    q3_error error;
    for (unsigned threads = 1; threads <= 3; threads++)
        for (size_t i = 0; i < FORMS; i++) {
            const q3_engine_options options = {.threads = threads, .weights = forms[i]};
            const bool first = threads == 1 && i == 0;
            assert_ok(run(plain, &options, MANY_TOKENS, first ? expected : found, &error));
            if (!first)
                assert_memory_equal(found, expected, sizeof found);
        }
}

// ---- reading again ----

static void test_reading_again(void **state)
{
    (void)state;
    static float expected[LOGITS], found[LOGITS];
    q3_engine_options options = {
        .threads = 1, .weights = Q3_WEIGHTS_STORED, .io = Q3_IO_BUFFERED, .readers = 3};
    q3_error error;
    q3_engine *engine;
    q3_misses misses = {0};
    double rate;
    char *pack = rewrite(&(rewriting){.name = "again", .codecs = "b"});
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    options.memory = q3_engine_describe(engine)->memory.minimum;
    q3_engine_close(engine);
    assert_ok(q3_engine_open(pack, &options, &engine, &error));
    q3_engine_record(engine, &misses);
    assert_ok(feed(engine, TOKENS, expected, &error));
    const q3_engine_statistics before = q3_engine_count(engine);
    assert_int_equal(misses.count, before.expert_misses);
    assert_ok(q3_engine_replay(engine, &misses, &rate, &error));
    assert_true(rate > 0);
    // All of it again, from empty slots, and nothing is recorded any more.
    const q3_engine_statistics after = q3_engine_count(engine);
    assert_int_equal(after.expert_misses, 2 * before.expert_misses);
    assert_int_equal(after.expert_bytes, 2 * before.expert_bytes);
    assert_ok(feed(engine, TOKENS, found, &error));
    assert_memory_equal(found, expected, sizeof found);
    assert_int_equal(misses.count, before.expert_misses);
    // A file is not there in between.
    char *path =
        q3_test_path("%s/layers/01/experts/%03u.q3p", pack, misses.list[misses.count - 1].expert);
    char *away = q3_test_path("%s.away", path);
    char *message = q3_test_path("%s: listed in pack.json, but absent", path);
    assert_int_equal(misses.list[misses.count - 1].layer, 1);
    assert_int_equal(rename(path, away), 0);
    assert_false(q3_engine_replay(engine, &misses, &rate, &error));
    assert_string_equal(error.message, message);
    assert_true(rate == 0);
    assert_int_equal(rename(away, path), 0);
    assert_ok(feed(engine, TOKENS, found, &error));
    assert_memory_equal(found, expected, sizeof found);
    q3_engine_close(engine);
    free(misses.list);
    free(message);
    free(away);
    free(path);
    q3_test_remove(pack);
}

// ---- frames that do not decode ----

static void check_broken(const rewriting *how, const char *file, const char *reason)
{
    static float found[LOGITS];
    char *pack = rewrite(how);
    char *expected = q3_test_path("%s/%s: %s: frame 1: %s", pack, file, how->broken, reason);
    for (size_t i = 0; i < FORMS; i++)
        for (unsigned many = 0; many < 2; many++) {
            const q3_engine_options options = {.threads = many ? 1 : 2, .weights = forms[i]};
            q3_error error;
            assert_false(run(pack, &options, many ? MANY_TOKENS : TOKENS, found, &error));
            assert_string_equal(error.message, expected);
            assert_int_equal(error.code, Q3_MALFORMED);
        }
    free(expected);
    q3_test_remove(pack);
}

static void test_broken_frames(void **state)
{
    (void)state;
    static const struct {
        const char *file, *tensor;
    } places[] = {
        {"lm_head.q3p", "lm_head.weight"},
        {"layers/00/attention.q3p", "model.layers.0.self_attn.q_proj.weight"},
        {"layers/01/experts/003.q3p", "model.layers.1.mlp.experts.3.down_proj.weight"},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *broken = places[i].tensor;
        check_broken(&(rewriting){.name = "planes", .codecs = "b", .broken = broken},
                     places[i].file,
                     "bit-plane frame: the streams do not hold what the planes say");
        check_broken(&(rewriting){.name = "zstd", .codecs = "z", .broken = broken}, places[i].file,
                     "zstd frame: Unknown frame descriptor");
    }
}

int main(int argc, char **argv)
{
    if (!q3_test_has_level(argc, argv))
        return Q3_TEST_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed_blocks),  cmocka_unit_test(test_growing_files),
        cmocka_unit_test(test_shares),        cmocka_unit_test(test_reading_again),
        cmocka_unit_test(test_broken_frames),
    };
    return cmocka_run_group_tests(tests, make_plain, remove_plain);
}
