// SPDX-License-Identifier: Apache-2.0
//
// Pack directories: nothing is reported of what is right; all damage is, in the same order for any
// number of threads.
#include "base/hash.h"
#include "damage.h"
#include "pack_format.h"
#include "packs.h"
#include "set.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char norm_shard[] = "model-00007-of-00007.safetensors";

// Pack directories of the tiny model, made once: every test works on a copy of what it damages.
typedef struct world {
    char *scratch;
    char *whole; // all components, rotated split
    char *small; // one layer, one expert, raw
} world;

static int create_world(void **state)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->scratch = q3_test_directory();
    w->whole = q3_test_path("%s/whole", w->scratch);
    w->small = q3_test_path("%s/small", w->scratch);
    pack_create(w->whole, "all", NULL, NULL, Q3_CODEC_ZSTD);
    pack_create(w->small, "text", "0", "0", Q3_CODEC_RAW);
    *state = w;
    return 0;
}

static int destroy_world(void **state)
{
    world *w = *state;
    q3_test_remove(w->scratch);
    free(w->whole);
    free(w->small);
    free(w);
    return 0;
}

static void check(const char *pack, const char *source, unsigned jobs, q3_findings *report)
{
    q3_error err;
    const q3_packs_options options = {.source = source, .deep = true, .jobs = jobs, .quiet = true};
    *report = (q3_findings){.command = "packs", .path = pack, .against = source};
    if (!q3_packs_check(pack, &options, report, &err))
        fail_msg("%s", err.message);
}

// A copy of a pack directory, named "pack", in the caller's scratch directory.
static char *copy_pack(const char *scratch, const char *pack)
{
    char *path = q3_test_path("%s/pack", scratch);
    q3_test_copy_tree(pack, path, false);
    return path;
}

static void sound_packs(void **state)
{
    const world *w = *state;
    q3_findings report;
    for (unsigned jobs = 1; jobs <= 4; jobs += 3) {
        check(w->whole, NULL, jobs, &report);
        assert_int_equal(report.count, 0);
        assert_int_equal(report.tensors, 2610);
        assert_int_equal(report.files, 798);
        check(w->whole, Q3_TEST_MODEL_DIR, jobs, &report);
        assert_int_equal(report.count, 0);
        check(w->small, Q3_TEST_MODEL_DIR, jobs, &report);
        assert_int_equal(report.count, 0);
        assert_int_equal(report.tensors, 15);
    }
}

static void each_byte_of_a_file(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    char *path = q3_test_path("%s/layers/00/norms.q3p", pack);
    size_t size;
    char *sound = q3_test_read(path, &size);
    // Two tensors of 256 bytes, each with a page of its own, behind one page of header and
    // directory.
    assert_int_equal(size, 3 * 4096);
    for (size_t at = 0; at < size; at += at < 512 ? 1 : 61) {
        q3_findings report;
        q3_test_flip(path, at, (unsigned)(at % 8));
        check(pack, NULL, 1, &report);
        if (report.count != 1)
            fail_msg("byte %zu: %zu findings", at, report.count);
        assert_int_equal(report.findings[0].kind, Q3_FINDING_DAMAGED);
        assert_string_equal(report.findings[0].file, "layers/00/norms.q3p");
        assert_int_equal(q3_findings_exit_code(&report), Q3_MISMATCH);
        q3_findings_free(&report);
        q3_test_write(path, sound, size);
    }
    free(sound);
    free(path);
    free(pack);
    q3_test_remove(scratch);
}

static void damage_is_named(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    char *norms = q3_test_path("%s/layers/00/norms.q3p", pack);
    q3_findings report;
    q3_pack sound;
    q3_error err;
    assert_true(q3_pack_open(norms, &sound, &err));
    const uint64_t frame = sound.frames[1].hash, padding = sound.frames[0].offset + 256 + 7;
    q3_pack_close(&sound);
    size_t size;
    char *bytes = q3_test_read(norms, &size);
    bytes[8192] ^= 0x10;
    q3_test_write(norms, bytes, size);
    q3_test_flip(norms, padding, 3);
    char *damaged =
        q3_test_path("%s: thinker.model.layers.0.post_attention_layernorm.weight: frame 0 "
                     "at 8192 is damaged: expected hash %016" PRIx64 ", found %016" PRIx64,
                     norms, frame, q3_hash64(bytes + 8192, 256));
    char *not_zero =
        q3_test_path("%s: byte %" PRIu64 " is padding, expected 0, found 8", norms, padding);
    check(pack, NULL, 2, &report);
    ASSERT_MESSAGES(&report, not_zero, damaged);
    q3_findings_free(&report);
    free(bytes);
    free(damaged);
    free(not_zero);
    free(norms);
    free(pack);
    q3_test_remove(scratch);
}

// A file that is sound by its own checksums up to the tensor's: what is left when a program
// mistakes one frame for another.
static void a_tensor_hash_is_checked(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    char *path = q3_test_path("%s/final_norm.q3p", pack);
    size_t size;
    q3_pack sound;
    q3_error err;
    assert_true(q3_pack_open(path, &sound, &err));
    char hash[Q3_HASH_TEXT], wrong[Q3_HASH_TEXT], old_root[Q3_HASH_TEXT], new_root[Q3_HASH_TEXT];
    const q3_hash128 right = sound.tensors[0].hash;
    q3_hash128_text((q3_hash128){right.low ^ 1, right.high}, wrong);
    q3_hash128_text(right, hash);
    q3_hash128_text(sound.root, old_root);
    q3_pack_close(&sound);
    uint8_t *data = (uint8_t *)q3_test_read(path, &size);
    uint64_t directory_bytes = 0;
    assert_true(q3_read_u64((q3_bytes){data, size}, HEADER_DIRECTORY_BYTES, &directory_bytes));
    data[HEADER_BYTES + TENSOR_HASH] ^= 1;
    q3_put_u64(data + HEADER_DIRECTORY_HASH,
               q3_hash64(data + HEADER_BYTES, (size_t)directory_bytes));
    q3_put_u64(data + HEADER_HASH, q3_hash64(data, HEADER_HASH));
    q3_test_write(path, data, size);
    q3_hash128_text(q3_hash128_of(data, HEADER_BYTES + (size_t)directory_bytes), new_root);
    free(data);
    char *other =
        q3_test_path("%s: is another file than the one in pack.json: expected root %s, found "
                     "%s",
                     path, old_root, new_root);
    char *tensor =
        q3_test_path("%s: thinker.model.norm.weight: the tensor is damaged: expected hash "
                     "%s, found %s",
                     path, wrong, hash);
    q3_findings report;
    check(pack, Q3_TEST_MODEL_DIR, 2, &report);
    ASSERT_MESSAGES(&report, other, tensor);
    q3_findings_free(&report);
    free(other);
    free(tensor);
    free(path);
    free(pack);
    q3_test_remove(scratch);
}

static void all_damage_in_one_order(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->whole);
    // Absent, cut short, swapped, a flipped bit in a large file, and files that do not belong.
    char *absent = q3_test_path("%s/layers/05/router.q3p", pack);
    char *cut = q3_test_path("%s/lm_head.q3p", pack);
    char *left = q3_test_path("%s/layers/01/experts/003.q3p", pack);
    char *right = q3_test_path("%s/layers/01/experts/004.q3p", pack);
    char *between = q3_test_path("%s/between", scratch);
    char *flipped = q3_test_path("%s/talker.q3p", pack);
    char *part = q3_test_path("%s/layers/00/norms.q3p.part", pack);
    char *journal = q3_test_path("%s/extract.journal", pack);
    char *stray = q3_test_path("%s/layers/00/experts/128.q3p", pack);
    char *vocabulary = q3_test_path("%s/vocab.json", pack);
    char *merges = q3_test_path("%s/merges.txt", pack);
    size_t size;
    char *data = q3_test_read(cut, &size);
    q3_test_write(cut, data, size - 1);
    free(data);
    assert_int_equal(unlink(absent), 0);
    assert_int_equal(rename(left, between), 0);
    assert_int_equal(rename(right, left), 0);
    assert_int_equal(rename(between, right), 0);
    q3_pack talker;
    q3_error err;
    assert_true(q3_pack_open(flipped, &talker, &err));
    const uint64_t at = talker.frames[5].offset;
    q3_pack_close(&talker);
    q3_test_flip(flipped, at, 0);
    q3_test_write(part, "x", 1);
    q3_test_write(journal, "x", 1);
    q3_test_write(stray, "x", 1);
    q3_test_flip(vocabulary, 10, 2);
    assert_int_equal(unlink(merges), 0);

    q3_json_writer first = {0};
    for (unsigned jobs = 1; jobs <= 5; jobs += 2) {
        q3_findings report;
        q3_json_writer writer = {0};
        check(pack, NULL, jobs, &report);
        static const struct {
            q3_finding_kind kind;
            const char *file, *message; // after the pack's path and the file's name; NULL: not said
        } rows[] = {
            {Q3_FINDING_STRAY, "extract.journal", "left over from an extraction that was ended"},
            {Q3_FINDING_STRAY, "layers/00/experts/128.q3p", "pack.json does not list it"},
            {Q3_FINDING_STRAY, "layers/00/norms.q3p.part",
             "left over from an extraction that was ended"},
            {Q3_FINDING_ABSENT, "merges.txt", "listed in pack.json, but absent"},
            {Q3_FINDING_DAMAGED, "vocab.json", NULL},
            {Q3_FINDING_DAMAGED, "layers/01/experts/003.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/003.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/003.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/003.q3p", NULL},
            {Q3_FINDING_DAMAGED, "layers/01/experts/004.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/004.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/004.q3p", NULL},
            {Q3_FINDING_INDEX, "layers/01/experts/004.q3p", NULL},
            {Q3_FINDING_ABSENT, "layers/05/router.q3p", "listed in pack.json, but absent"},
            {Q3_FINDING_DAMAGED, "lm_head.q3p", NULL},
            {Q3_FINDING_DAMAGED, "talker.q3p", NULL},
        };
        enum { ROWS = sizeof rows / sizeof *rows };
        for (size_t i = 0; i < ROWS && i < report.count; i++) {
            assert_int_equal(report.findings[i].kind, rows[i].kind);
            assert_string_equal(report.findings[i].file, rows[i].file);
            if (!rows[i].message)
                continue;
            char *message = q3_test_path("%s/%s: %s", pack, rows[i].file, rows[i].message);
            assert_string_equal(report.findings[i].message, message);
            free(message);
        }
        assert_int_equal(report.count, ROWS);
        assert_string_equal(report.findings[6].message,
                            "layers/01/experts/003.q3p: holds "
                            "thinker.model.layers.1.mlp.experts.4.gate_proj.weight, which belongs "
                            "in layers/01/experts/004.q3p");
        assert_true(q3_findings_write(&report, &writer, &err));
        if (first.text)
            assert_string_equal(writer.text, first.text);
        else
            first = writer;
        if (writer.text != first.text)
            q3_json_writer_free(&writer);
        q3_findings_free(&report);
    }
    q3_json_writer_free(&first);
    char *const paths[] = {absent, cut,     left,  right,      between, flipped,
                           part,   journal, stray, vocabulary, merges,  pack};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        free(paths[i]);
    q3_test_remove(scratch);
}

// ---- against the source ----

static void a_source_that_differs_in_a_byte(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *model = q3_test_path("%s/model", scratch);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, false);
    char *shard = q3_test_path("%s/%s", model, norm_shard);
    q3_set set;
    q3_error err;
    assert_true(q3_set_open(w->small, &set, &err));
    uint32_t index;
    const q3_set_file *file = q3_set_find_tensor(&set, "thinker.model.norm.weight", &index);
    assert_non_null(file);
    const uint64_t at = file->tensors[index].offset + 77;
    q3_set_close(&set);
    size_t size;
    char *data = q3_test_read(shard, &size);
    const unsigned found = (unsigned char)data[at];
    q3_test_flip(shard, at, 6);
    q3_test_flip(shard, at + 100, 6);
    char *message =
        q3_test_path("final_norm.q3p: thinker.model.norm.weight: 2 of 256 bytes differ from "
                     "the source, the first at 77: expected 0x%02x, found 0x%02x",
                     found ^ 0x40, found);
    const char *const packs[] = {w->small, w->whole};
    for (size_t i = 0; i < 2; i++) {
        q3_findings report;
        check(packs[i], model, 3, &report);
        ASSERT_MESSAGES(&report, message);
        assert_int_equal(report.findings[0].kind, Q3_FINDING_SOURCE);
        q3_findings_free(&report);
    }
    free(data);
    free(message);
    free(shard);
    free(model);
    q3_test_remove(scratch);
}

static void a_source_that_is_another(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *model = q3_test_path("%s/model", scratch);
    q3_test_copy_tree(Q3_TEST_MODEL_DIR, model, false);
    char *shard = q3_test_path("%s/%s", model, norm_shard);
    char *vocabulary = q3_test_path("%s/vocab.json", model);
    q3_set set;
    q3_error err;
    assert_true(q3_set_open(w->small, &set, &err));
    char expected[Q3_HASH_TEXT], found[Q3_HASH_TEXT], copied[Q3_HASH_TEXT], changed[Q3_HASH_TEXT];
    for (uint32_t i = 0; i < set.shard_count; i++)
        if (strcmp(set.shards[i].name, norm_shard) == 0)
            q3_hash128_text(set.shards[i].header_hash, expected);
    size_t vocabulary_size;
    char *text = q3_test_read(vocabulary, &vocabulary_size);
    q3_hash128_text(q3_hash128_of(text, vocabulary_size), copied);
    text[vocabulary_size - 1] ^= 1;
    q3_hash128_text(q3_hash128_of(text, vocabulary_size), changed);
    q3_test_write(vocabulary, text, vocabulary_size);
    free(text);
    q3_set_close(&set);
    file_replace(shard, "\"thinker.model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[128]",
                 "\"thinker.model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[64]  ");
    size_t size;
    uint8_t *data = (uint8_t *)q3_test_read(shard, &size);
    uint64_t header = 0;
    assert_true(q3_read_u64((q3_bytes){data, size}, 0, &header));
    q3_hash128_text(q3_hash128_of(data, (size_t)header + 8), found);
    free(data);
    char *hash = q3_test_path("%s: pack.json expects a header with hash %s, found %s", shard,
                              expected, found);
    char *copy = q3_test_path("%s: pack.json expects %zu bytes with hash %s, found %zu with %s",
                              vocabulary, vocabulary_size, copied, vocabulary_size, changed);
    q3_findings report;
    check(w->small, model, 2, &report);
    ASSERT_MESSAGES(&report, hash, copy,
                    "final_norm.q3p: thinker.model.norm.weight: the source has F32 [64], found "
                    "BF16 [128]");
    q3_findings_free(&report);
    assert_int_equal(unlink(shard), 0);
    char *absent = q3_test_path("%s: the shard is absent", shard);
    check(w->small, model, 2, &report);
    ASSERT_MESSAGES(&report, absent, copy,
                    "final_norm.q3p: thinker.model.norm.weight: the source does not have it: "
                    "model-00007-of-00007.safetensors is absent",
                    "lm_head.q3p: thinker.lm_head.weight: the source does not have it: "
                    "model-00007-of-00007.safetensors is absent");
    q3_findings_free(&report);
    free(absent);
    free(hash);
    free(copy);
    free(vocabulary);
    free(shard);
    free(model);
    q3_test_remove(scratch);
}

// ---- what pack.json says ----

// pack.json is written anew, so that its checksum is right and its content is not.
static void claims_are_checked(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    q3_set set;
    q3_error err;
    assert_true(q3_set_open(pack, &set, &err));
    const uint64_t offset = set.files[0].tensors[0].offset;
    char *shard = q3_test_path("%s", set.shards[set.files[0].tensors[0].shard].name);
    set.components[Q3_TEXT].tensors++;
    set.components[Q3_TEXT].expected_bytes += 2;
    set.files[0].tensors[0].offset += 2;
    assert_true(q3_set_write(&set, &err));
    q3_set_close(&set);
    char *moved =
        q3_test_path("embedding.q3p: thinker.model.embed_tokens.weight: the source has it in "
                     "%s at %" PRIu64 ", pack.json says %s at %" PRIu64,
                     shard, offset, shard, offset + 2);
    q3_findings report;
    check(pack, Q3_TEST_MODEL_DIR, 2, &report);
    ASSERT_MESSAGES(&report, moved,
                    "pack.json: component text: expected 11014144 bytes in the whole of it, found "
                    "11014146",
                    "pack.json: component text: expected 15 tensors as in the pack files, found "
                    "16");
    q3_findings_free(&report);
    free(moved);
    free(shard);
    free(pack);
    q3_test_remove(scratch);
}

// ---- parts of the work ----

static const char shallow_note[] = "stored bytes were checked; --deep also decodes them and checks "
                                   "the tensors' own hashes";

static void check_as(const char *pack, const q3_packs_options *options, q3_findings *report)
{
    q3_error err;
    *report = (q3_findings){.command = "packs", .path = pack};
    if (!q3_packs_check(pack, options, report, &err))
        fail_msg("%s", err.message);
}

// Bytes whose hash is right and that do not decode: only decoding tells.
static void what_only_deep_finds(void **state)
{
    const world *w = *state;
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    char *path = q3_test_path("%s/final_norm.q3p", pack);
    size_t size;
    uint8_t *data = (uint8_t *)q3_test_read(path, &size);
    uint64_t directory_bytes = 0;
    assert_true(q3_read_u64((q3_bytes){data, size}, HEADER_DIRECTORY_BYTES, &directory_bytes));
    data[HEADER_BYTES + TENSOR_HASH] ^= 1;
    q3_put_u64(data + HEADER_DIRECTORY_HASH,
               q3_hash64(data + HEADER_BYTES, (size_t)directory_bytes));
    q3_put_u64(data + HEADER_HASH, q3_hash64(data, HEADER_HASH));
    q3_test_write(path, data, size);
    q3_set set;
    q3_error err;
    assert_true(q3_set_open(pack, &set, &err));
    for (size_t i = 0; i < set.file_count; i++)
        if (set.files[i].place.part == Q3_FINAL_NORM)
            set.files[i].root = q3_hash128_of(data, HEADER_BYTES + (size_t)directory_bytes);
    assert_true(q3_set_write(&set, &err));
    q3_set_close(&set);
    free(data);
    q3_findings report;
    check_as(pack, &(q3_packs_options){.jobs = 2, .quiet = true}, &report);
    assert_int_equal(report.count, 0);
    assert_int_equal(report.notes.count, 1);
    assert_string_equal(report.notes.texts[0], shallow_note);
    q3_findings_free(&report);
    check_as(pack, &(q3_packs_options){.deep = true, .jobs = 2, .quiet = true}, &report);
    assert_int_equal(report.count, 1);
    assert_int_equal(report.notes.count, 0);
    assert_string_equal(report.findings[0].tensor, "thinker.model.norm.weight");
    assert_int_equal(report.findings[0].kind, Q3_FINDING_DAMAGED);
    q3_findings_free(&report);
    free(path);
    free(pack);
    q3_test_remove(scratch);
}

// Seven nights find what one run finds, and nothing twice.
static void parts_together_are_everything(void **state)
{
    const world *w = *state;
    enum { NIGHTS = 7 };
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->whole);
    q3_findings report;
    q3_set set;
    q3_error err;
    // A bit in every file: each is found by one of the nights.
    assert_true(q3_set_open(pack, &set, &err));
    for (size_t i = 0; i < set.file_count; i++) {
        char name[Q3_PLACE_PATH_MAX];
        char *path = q3_test_path("%s/%s", pack, q3_place_path(&set.files[i].place, name));
        q3_pack opened;
        assert_true(q3_pack_open(path, &opened, &err));
        const uint64_t at = opened.frames[i % opened.frame_count].offset;
        q3_pack_close(&opened);
        q3_test_flip(path, at, (unsigned)(i % 8));
        free(path);
    }
    const size_t files = set.file_count;
    q3_set_close(&set);
    uint64_t tensors = 0, found = 0;
    for (unsigned night = 1; night <= NIGHTS; night++) {
        const q3_sample sample = {.part = night, .parts = NIGHTS};
        check_as(pack, &(q3_packs_options){.sample = &sample, .jobs = 2, .quiet = true}, &report);
        assert_int_equal(report.counts[Q3_FINDING_DAMAGED], report.count);
        found += report.count;
        assert_int_equal(report.notes.count, 2);
        unsigned long read;
        unsigned thousands;
        if (sscanf(report.notes.texts[0],
                   "a sample: the bytes of %u,%lu of 2,610 tensors were read", &thousands,
                   &read) == 2)
            read += 1000UL * thousands;
        else
            assert_int_equal(sscanf(report.notes.texts[0],
                                    "a sample: the bytes of %lu of 2,610 tensors were read", &read),
                             1);
        tensors += read;
        q3_findings_free(&report);
    }
    assert_int_equal(tensors, 2610);
    assert_int_equal(found, files);
    free(pack);
    q3_test_remove(scratch);
}

static void samples_are_parsed(void **state)
{
    (void)state;
    q3_sample sample;
    q3_error err;
    assert_true(q3_sample_parse("5%", &sample, &err));
    assert_true(sample.share == 0.05 && sample.parts == 0);
    assert_true(q3_sample_parse("100%", &sample, &err));
    assert_true(q3_sample_parse("2/7", &sample, &err));
    assert_int_equal(sample.part, 2);
    assert_int_equal(sample.parts, 7);
    static const char *const bad[] = {"",    "5",   "%",   "0%", "101%",   "5%5",  "1/",
                                      "0/7", "8/7", "1/0", "/7", "1/1001", "-1/7", "nan%"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(q3_sample_parse(bad[i], &sample, &err));
        char *message = q3_test_path("--sample: expected a share such as 5%% or a part such as 1/7 "
                                     "(of at most 1000), found \"%s\"",
                                     bad[i]);
        assert_string_equal(err.message, message);
        assert_int_equal(err.code, Q3_USAGE);
        free(message);
    }
    // Of a thousand alike a twentieth, evenly; and parts of unlike ones that are alike in size.
    static q3_sampler sampler;
    sampler = (q3_sampler){.sample = {.share = 0.05}};
    unsigned taken = 0, longest = 0, since = 0;
    for (unsigned i = 0; i < 1000; i++) {
        since++;
        if (q3_sampler_take(&sampler, 100)) {
            taken++;
            longest = since > longest ? since : longest;
            since = 0;
        }
    }
    assert_int_equal(taken, 50);
    assert_true(longest <= 21);
    uint64_t least = UINT64_MAX, most = 0;
    for (unsigned part = 1; part <= 7; part++) {
        uint64_t bytes = 0;
        sampler = (q3_sampler){.sample = {.part = part, .parts = 7}};
        for (uint64_t i = 0; i < 1000; i++)
            if (q3_sampler_take(&sampler, i % 50 * 1000))
                bytes += i % 50 * 1000;
        least = bytes < least ? bytes : least;
        most = bytes > most ? bytes : most;
    }
    assert_true(most - least <= 50000);
}

static void what_cannot_be_examined(void **state)
{
    const world *w = *state;
    const q3_packs_options options = {.jobs = 1, .quiet = true};
    char *scratch = q3_test_directory(), *pack = copy_pack(scratch, w->small);
    char *list = q3_test_path("%s/pack.json", pack), *config = q3_test_path("%s/config.json", pack);
    char digits[Q3_HASH_TEXT], actual[Q3_HASH_TEXT];
    q3_findings report = {0};
    q3_error err;

    size_t size;
    char *sound = q3_test_read(config, &size);
    q3_hash128_text(q3_hash128_of(sound, size), digits);
    sound[size / 2] ^= 1;
    q3_hash128_text(q3_hash128_of(sound, size), actual);
    q3_test_write(config, sound, size);
    char *message = q3_test_path("%s: pack.json expects hash %s, found %s", config, digits, actual);
    assert_false(q3_packs_check(pack, &options, &report, &err));
    assert_string_equal(err.message, message);
    assert_int_equal(err.code, Q3_MALFORMED);
    free(message);
    free(sound);

    file_replace(list, "\"codec\": \"raw\"", "\"codec\": \"war\"");
    assert_false(q3_packs_check(pack, &options, &report, &err));
    message = q3_test_path("%s: is damaged: expected checksum ", list);
    assert_memory_equal(err.message, message, strlen(message));
    assert_int_equal(err.code, Q3_MALFORMED);
    free(message);

    assert_int_equal(unlink(list), 0);
    assert_false(q3_packs_check(pack, &options, &report, &err));
    message =
        q3_test_path("%s: no pack.json: not a pack directory, or an unfinished extraction", pack);
    assert_string_equal(err.message, message);
    assert_int_equal(err.code, Q3_INCOMPLETE);
    free(message);

    const q3_packs_options no_source = {.source = scratch, .jobs = 1, .quiet = true};
    assert_false(q3_packs_check(w->small, &no_source, &report, &err));
    message = q3_test_path("%s: no model.safetensors.index.json: not a checkpoint", scratch);
    assert_string_equal(err.message, message);
    assert_int_equal(err.code, Q3_INCOMPLETE);
    free(message);

    free(list);
    free(config);
    free(pack);
    q3_test_remove(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_packs),
        cmocka_unit_test(each_byte_of_a_file),
        cmocka_unit_test(damage_is_named),
        cmocka_unit_test(a_tensor_hash_is_checked),
        cmocka_unit_test(all_damage_in_one_order),
        cmocka_unit_test(a_source_that_differs_in_a_byte),
        cmocka_unit_test(a_source_that_is_another),
        cmocka_unit_test(claims_are_checked),
        cmocka_unit_test(what_only_deep_finds),
        cmocka_unit_test(parts_together_are_everything),
        cmocka_unit_test(samples_are_parsed),
        cmocka_unit_test(what_cannot_be_examined),
    };
    return cmocka_run_group_tests(tests, create_world, destroy_world);
}
