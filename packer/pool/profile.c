// SPDX-License-Identifier: Apache-2.0
#include "profile.h"

#include "base/file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROFILE_VERSION = 1, PROFILE_BYTES_MAX = 256 << 20, TEXTS_MAX = 1 << 16 };

// A token's choices in a layer, at most 4096, can be counted for so many tokens in 64 bits, and all
// counts are exact in JSON. The bound of the sums keeps them finite when they are added.
static const uint64_t tokens_max = UINT64_C(1) << 48;
static const double sum_max = 1e300;

static const char *const measure_names[Q3_MEASURES] = {"chosen", "weight", "score", "mass"};
static const char *const phase_names[Q3_PHASES] = {"prompt", "answer"};
static const char *const token_names[Q3_PHASES] = {"prompt_tokens", "answer_tokens"};

const char *q3_measure_name(q3_measure measure)
{
    return measure_names[measure];
}

bool q3_measure_parse(const char *name, q3_measure *measure)
{
    for (unsigned i = 0; i < Q3_MEASURES; i++)
        if (strcmp(name, measure_names[i]) == 0) {
            *measure = (q3_measure)i;
            return true;
        }
    return false;
}

const char *q3_phase_name(q3_phase phase)
{
    return phase_names[phase];
}

// ---- the model ----

static bool hash_router(const q3_set *set, uint32_t layer, q3_hasher *hasher, q3_error *err)
{
    const q3_place place = {.component = Q3_TEXT, .part = Q3_ROUTER, .layer = layer};
    const q3_set_file *file = q3_set_find(set, &place);
    if (!file)
        return q3_fail(err, Q3_INCOMPLETE, "%s: has no router of layer %" PRIu32, set->directory,
                       layer);
    q3_pack pack;
    if (!q3_set_open_pack(set, file, &pack, err))
        return false;
    char line[Q3_HASH_TEXT];
    const bool ok = pack.tensor_count == 1 ||
                    q3_fail(err, Q3_MALFORMED, "%s: expected one tensor, found %" PRIu32,
                            pack.file.path, pack.tensor_count);
    if (ok) {
        q3_hash128_text(pack.tensors[0].hash, line);
        line[Q3_HASH_TEXT - 1] = '\n';
        q3_hasher_update(hasher, line, sizeof line);
    }
    q3_pack_close(&pack);
    return ok;
}

bool q3_profile_model_hash(const q3_set *set, q3_hash128 *hash, q3_error *err)
{
    q3_hasher *hasher = q3_hasher_create(err);
    bool ok = hasher != NULL;
    for (uint32_t layer = 0; ok && layer < set->config.num_hidden_layers; layer++)
        ok = hash_router(set, layer, hasher, err);
    if (ok)
        *hash = q3_hasher_finish(hasher);
    q3_hasher_destroy(hasher);
    return ok;
}

// ---- making one ----

static bool create(uint32_t layers, uint32_t experts, q3_profile *profile, q3_error *err)
{
    const size_t count = (size_t)Q3_PHASES * layers * experts;
    *profile = (q3_profile){.layers = layers, .experts = experts};
    profile->chosen = q3_alloc_zeroed(count, sizeof *profile->chosen, err);
    profile->weight = profile->chosen ? q3_alloc_zeroed(count, sizeof(double), err) : NULL;
    profile->score = profile->weight ? q3_alloc_zeroed(count, sizeof(double), err) : NULL;
    profile->mass = profile->score ? q3_alloc_zeroed(count, sizeof(double), err) : NULL;
    if (!profile->mass)
        q3_profile_destroy(profile);
    return profile->mass != NULL;
}

bool q3_profile_create(const q3_config *config, q3_hash128 model, q3_profile *profile,
                       q3_error *err)
{
    if (!create(config->num_hidden_layers, config->num_experts, profile, err))
        return false;
    profile->top_k = config->num_experts_per_tok;
    // Three matrices of bf16.
    profile->expert_bytes = UINT64_C(3) * 2 * config->hidden_size * config->moe_intermediate_size;
    profile->model = model;
    return true;
}

void q3_profile_destroy(q3_profile *profile)
{
    for (size_t i = 0; i < profile->text_count; i++)
        free(profile->texts[i].name);
    free(profile->texts);
    free(profile->chosen);
    free(profile->weight);
    free(profile->score);
    free(profile->mass);
    *profile = (q3_profile){0};
}

static bool too_many_tokens(q3_error *err, const char *name)
{
    return q3_fail(err, Q3_MALFORMED, "%s: more than 2^48 tokens together", name);
}

bool q3_profile_add_text(q3_profile *profile, const char *name, uint64_t prompt_tokens,
                         uint64_t answer_tokens, q3_error *err)
{
    const uint64_t tokens[Q3_PHASES] = {prompt_tokens, answer_tokens};
    for (unsigned phase = 0; phase < Q3_PHASES; phase++)
        if (tokens[phase] > tokens_max - profile->tokens[phase])
            return too_many_tokens(err, name);
    if (profile->text_count == TEXTS_MAX)
        return q3_fail(err, Q3_MALFORMED, "%s: more than %d texts in a profile", name, TEXTS_MAX);
    if (!q3_grow(&profile->texts, &profile->text_capacity, profile->text_count + 1,
                 sizeof *profile->texts, err))
        return false;
    q3_profile_text *text = &profile->texts[profile->text_count];
    *text = (q3_profile_text){.name = q3_format(err, "%s", name)};
    if (!text->name)
        return false;
    for (unsigned phase = 0; phase < Q3_PHASES; phase++) {
        text->tokens[phase] = tokens[phase];
        profile->tokens[phase] += tokens[phase];
    }
    profile->text_count++;
    return true;
}

void q3_profile_add_mass(q3_profile *profile, q3_phase phase, uint32_t layer, const float *mass)
{
    double *sum = profile->mass + q3_profile_index(profile, phase, layer, 0);
    for (uint32_t expert = 0; expert < profile->experts; expert++)
        sum[expert] += (double)mass[expert];
}

// ---- reading ----

// Finds a table of numbers and checks its extent.
static bool find_table(const q3_json *json, const cJSON *object, const char *key, uint32_t layers,
                       uint32_t experts, const cJSON **table, q3_error *err)
{
    const cJSON *list;
    if (!q3_json_array(json, object, key, table, err))
        return false;
    if ((uint32_t)cJSON_GetArraySize(*table) != layers)
        return q3_json_fail(json, *table, Q3_MALFORMED, err,
                            "expected the model's %" PRIu32 " layers, found %d", layers,
                            cJSON_GetArraySize(*table));
    cJSON_ArrayForEach(list, *table)
    {
        if (!cJSON_IsArray(list) || (uint32_t)cJSON_GetArraySize(list) != experts)
            return q3_json_fail(json, list, Q3_MALFORMED, err,
                                "expected a list of %" PRIu32 " numbers", experts);
    }
    return true;
}

static bool read_model(const q3_json *json, const cJSON *model, q3_profile *profile, q3_error *err)
{
    uint32_t layers, experts, top_k;
    uint64_t expert_bytes;
    const char *hash;
    // As many as a configuration may have.
    if (!q3_json_u32(json, model, "layers", 1, 1024, &layers, err) ||
        !q3_json_u32(json, model, "experts", 1, 4096, &experts, err) ||
        !q3_json_u32(json, model, "top_k", 1, experts, &top_k, err) ||
        !q3_json_u64(json, model, "expert_bytes", 1, UINT64_C(1) << 40, &expert_bytes, err) ||
        !q3_json_string(json, model, "hash", &hash, err))
        return false;
    q3_hash128 number;
    if (!q3_hash128_parse(hash, &number))
        return q3_json_fail(json, q3_json_find(model, "hash"), Q3_MALFORMED, err,
                            "expected 32 hexadecimal digits, found \"%s\"", hash);
    // Before memory is taken for as many numbers as the file says that it has.
    const cJSON *ignored;
    if (!find_table(json, q3_json_find(json->root, phase_names[0]), measure_names[0], layers,
                    experts, &ignored, err))
        return false;
    if (!create(layers, experts, profile, err))
        return false;
    profile->top_k = top_k;
    profile->expert_bytes = expert_bytes;
    profile->model = number;
    return true;
}

static bool read_texts(const q3_json *json, q3_profile *profile, q3_error *err)
{
    const cJSON *texts, *text;
    if (!q3_json_array(json, json->root, "texts", &texts, err))
        return false;
    cJSON_ArrayForEach(text, texts)
    {
        const char *name;
        uint64_t tokens[Q3_PHASES];
        if (!q3_json_string(json, text, "name", &name, err))
            return false;
        for (unsigned phase = 0; phase < Q3_PHASES; phase++)
            if (!q3_json_u64(json, text, token_names[phase], 0, tokens_max, &tokens[phase], err))
                return false;
        if (!q3_profile_add_text(profile, name, tokens[Q3_PHASE_PROMPT], tokens[Q3_PHASE_ANSWER],
                                 err))
            return false;
    }
    return true;
}

static bool item_double(const q3_json *json, const cJSON *item, double *value, q3_error *err)
{
    const double number = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(number >= 0 && number <= sum_max))
        return q3_json_fail(json, item, Q3_MALFORMED, err, "expected a number from 0 to %g",
                            sum_max);
    *value = number == 0 ? 0 : number; // no -0
    return true;
}

// One number at its place in the profile.
static bool read_number(const q3_json *json, const cJSON *item, q3_profile *profile,
                        q3_measure measure, uint64_t tokens, size_t at, q3_error *err)
{
    double *const sums[Q3_MEASURES] = {NULL, profile->weight, profile->score, profile->mass};
    if (measure == Q3_MEASURE_CHOSEN)
        return q3_json_item_u64(json, item, 0, tokens, &profile->chosen[at], err);
    return item_double(json, item, &sums[measure][at], err);
}

static bool read_measure(const q3_json *json, const cJSON *object, q3_profile *profile,
                         q3_phase phase, q3_measure measure, q3_error *err)
{
    const cJSON *layers, *list, *item;
    if (!find_table(json, object, measure_names[measure], profile->layers, profile->experts,
                    &layers, err))
        return false;
    size_t at = q3_profile_index(profile, phase, 0, 0);
    cJSON_ArrayForEach(list, layers)
    {
        uint64_t sum = 0;
        cJSON_ArrayForEach(item, list)
        {
            if (!read_number(json, item, profile, measure, profile->tokens[phase], at, err))
                return false;
            if ((measure == Q3_MEASURE_WEIGHT || measure == Q3_MEASURE_SCORE) &&
                profile->chosen[at] == 0 && item->valuedouble != 0)
                return q3_json_fail(json, item, Q3_MALFORMED, err,
                                    "expected 0 for an expert that was never chosen, found %.17g",
                                    item->valuedouble);
            sum += profile->chosen[at];
            at++;
        }
        if (measure == Q3_MEASURE_CHOSEN && sum > profile->tokens[phase] * profile->top_k)
            return q3_json_fail(json, list, Q3_MALFORMED, err,
                                "expected at most top_k x tokens = %" PRIu64
                                " choices, found %" PRIu64,
                                profile->tokens[phase] * profile->top_k, sum);
    }
    return true;
}

static bool read_phase(const q3_json *json, q3_profile *profile, q3_phase phase, q3_error *err)
{
    const cJSON *object;
    uint64_t tokens;
    if (!q3_json_object(json, json->root, phase_names[phase], &object, err) ||
        !q3_json_u64(json, object, "tokens", 0, tokens_max, &tokens, err))
        return false;
    if (tokens != profile->tokens[phase])
        return q3_json_fail(json, q3_json_find(object, "tokens"), Q3_MALFORMED, err,
                            "expected the sum over the texts, %" PRIu64 ", found %" PRIu64,
                            profile->tokens[phase], tokens);
    for (unsigned measure = 0; measure < Q3_MEASURES; measure++)
        if (!read_measure(json, object, profile, phase, (q3_measure)measure, err))
            return false;
    return true;
}

static bool read_profile(const q3_json *json, q3_profile *profile, q3_error *err)
{
    const char *format;
    uint64_t version;
    const cJSON *model;
    if (!q3_json_string(json, json->root, "format", &format, err))
        return false;
    if (strcmp(format, "q3-profile") != 0)
        return q3_json_fail(json, q3_json_find(json->root, "format"), Q3_MALFORMED, err,
                            "expected \"q3-profile\", found \"%s\"", format);
    return q3_json_u64(json, json->root, "version", PROFILE_VERSION, PROFILE_VERSION, &version,
                       err) &&
           q3_json_object(json, json->root, "model", &model, err) &&
           read_model(json, model, profile, err) && read_texts(json, profile, err) &&
           read_phase(json, profile, Q3_PHASE_PROMPT, err) &&
           read_phase(json, profile, Q3_PHASE_ANSWER, err);
}

bool q3_profile_read(const char *path, q3_profile *profile, q3_error *err)
{
    q3_json json;
    *profile = (q3_profile){0};
    if (!q3_json_load(path, PROFILE_BYTES_MAX, &json, err))
        return false;
    const bool ok = read_profile(&json, profile, err);
    if (!ok)
        q3_profile_destroy(profile);
    q3_json_free(&json);
    return ok;
}

// ---- writing ----

static void put_measure(const q3_profile *profile, q3_phase phase, q3_measure measure,
                        q3_json_writer *out)
{
    const double *const sums[Q3_MEASURES] = {NULL, profile->weight, profile->score, profile->mass};
    q3_json_begin_array(out, measure_names[measure]);
    for (uint32_t layer = 0; layer < profile->layers; layer++) {
        q3_json_inline(out);
        q3_json_begin_array(out, NULL);
        for (uint32_t expert = 0; expert < profile->experts; expert++) {
            const size_t at = q3_profile_index(profile, phase, layer, expert);
            if (measure == Q3_MEASURE_CHOSEN)
                q3_json_put_u64(out, NULL, profile->chosen[at]);
            else
                q3_json_put_double(out, NULL, sums[measure][at]);
        }
        q3_json_end_array(out);
    }
    q3_json_end_array(out);
}

static void put_profile(const q3_profile *profile, q3_json_writer *out)
{
    char hash[Q3_HASH_TEXT];
    q3_json_begin_object(out, NULL);
    q3_json_put_string(out, "format", "q3-profile");
    q3_json_put_u64(out, "version", PROFILE_VERSION);
    q3_json_begin_object(out, "model");
    q3_json_put_u64(out, "layers", profile->layers);
    q3_json_put_u64(out, "experts", profile->experts);
    q3_json_put_u64(out, "top_k", profile->top_k);
    q3_json_put_u64(out, "expert_bytes", profile->expert_bytes);
    q3_json_put_string(out, "hash", q3_hash128_text(profile->model, hash));
    q3_json_end_object(out);
    q3_json_begin_array(out, "texts");
    for (size_t i = 0; i < profile->text_count; i++) {
        q3_json_inline(out);
        q3_json_begin_object(out, NULL);
        q3_json_put_string(out, "name", profile->texts[i].name);
        for (unsigned phase = 0; phase < Q3_PHASES; phase++)
            q3_json_put_u64(out, token_names[phase], profile->texts[i].tokens[phase]);
        q3_json_end_object(out);
    }
    q3_json_end_array(out);
    for (unsigned phase = 0; phase < Q3_PHASES; phase++) {
        q3_json_begin_object(out, phase_names[phase]);
        q3_json_put_u64(out, "tokens", profile->tokens[phase]);
        for (unsigned measure = 0; measure < Q3_MEASURES; measure++)
            put_measure(profile, (q3_phase)phase, (q3_measure)measure, out);
        q3_json_end_object(out);
    }
    q3_json_end_object(out);
}

bool q3_profile_write(const q3_profile *profile, const char *path, q3_error *err)
{
    q3_json_writer out = {0};
    put_profile(profile, &out);
    const bool ok = q3_json_finish(&out, err) && q3_file_publish(path, out.text, out.size, err);
    q3_json_writer_free(&out);
    return ok;
}

// ---- together ----

static bool fail_model(const char *path, q3_hash128 expected, q3_hash128 found, q3_error *err)
{
    char a[Q3_HASH_TEXT], b[Q3_HASH_TEXT];
    return q3_fail(err, Q3_MISMATCH, "%s: is of another model: expected %s, found %s", path,
                   q3_hash128_text(expected, a), q3_hash128_text(found, b));
}

bool q3_profile_check_model(const q3_profile *profile, const char *path, q3_hash128 model,
                            q3_error *err)
{
    return q3_hash128_equal(profile->model, model) || fail_model(path, model, profile->model, err);
}

bool q3_profile_check_same(const q3_profile *profile, const char *path, const q3_profile *other,
                           q3_error *err)
{
    if (!q3_profile_check_model(profile, path, other->model, err))
        return false;
    // The sizes follow from the model, but a file may say anything.
    return (profile->layers == other->layers && profile->experts == other->experts &&
            profile->top_k == other->top_k && profile->expert_bytes == other->expert_bytes) ||
           q3_fail(err, Q3_MISMATCH,
                   "%s: expected %" PRIu32 " layers of %" PRIu32 " experts of %" PRIu64
                   " bytes, %" PRIu32 " chosen; found %" PRIu32 " of %" PRIu32 " of %" PRIu64
                   ", %" PRIu32,
                   path, other->layers, other->experts, other->expert_bytes, other->top_k,
                   profile->layers, profile->experts, profile->expert_bytes, profile->top_k);
}

bool q3_profile_merge(q3_profile *profile, const q3_profile *other, const char *name, q3_error *err)
{
    if (!q3_profile_check_same(other, name, profile, err))
        return false;
    for (unsigned phase = 0; phase < Q3_PHASES; phase++)
        if (other->tokens[phase] > tokens_max - profile->tokens[phase])
            return too_many_tokens(err, name);
    const size_t count = (size_t)Q3_PHASES * profile->layers * profile->experts;
    double *const sums[] = {profile->weight, profile->score, profile->mass};
    const double *const added[] = {other->weight, other->score, other->mass};
    for (size_t m = 0; m < 3; m++)
        for (size_t i = 0; i < count; i++)
            if (!(sums[m][i] + added[m][i] <= sum_max))
                return q3_fail(err, Q3_MALFORMED, "%s: a sum is beyond %g", name, sum_max);
    const size_t texts = profile->text_count;
    const uint64_t tokens[Q3_PHASES] = {profile->tokens[0], profile->tokens[1]};
    for (size_t i = 0; i < other->text_count; i++) {
        const q3_profile_text *text = &other->texts[i];
        if (q3_profile_add_text(profile, text->name, text->tokens[Q3_PHASE_PROMPT],
                                text->tokens[Q3_PHASE_ANSWER], err))
            continue;
        while (profile->text_count > texts)
            free(profile->texts[--profile->text_count].name);
        memcpy(profile->tokens, tokens, sizeof tokens);
        return false;
    }
    for (size_t i = 0; i < count; i++)
        profile->chosen[i] += other->chosen[i];
    for (size_t m = 0; m < 3; m++)
        for (size_t i = 0; i < count; i++)
            sums[m][i] += added[m][i];
    return true;
}

bool q3_profile_shares(const q3_profile *profile, const char *path, q3_measure measure,
                       unsigned phases, double *share, q3_error *err)
{
    const double *const sums[Q3_MEASURES] = {NULL, profile->weight, profile->score, profile->mass};
    for (uint32_t layer = 0; layer < profile->layers; layer++) {
        double *row = share + (size_t)layer * profile->experts, largest = 0, total = 0;
        for (uint32_t expert = 0; expert < profile->experts; expert++) {
            row[expert] = 0;
            for (unsigned phase = 0; phase < Q3_PHASES; phase++) {
                const size_t at = q3_profile_index(profile, (q3_phase)phase, layer, expert);
                if (phases & 1u << phase)
                    row[expert] += measure == Q3_MEASURE_CHOSEN ? (double)profile->chosen[at]
                                                                : sums[measure][at];
            }
            largest = fmax(largest, row[expert]);
        }
        if (largest == 0)
            return q3_fail(err, Q3_INCOMPLETE, "%s: layer %" PRIu32 ": no %s was counted%s%s", path,
                           layer, measure_names[measure], phases == Q3_PHASES_ALL ? "" : " in the ",
                           phases == Q3_PHASES_ALL           ? ""
                           : phases == 1u << Q3_PHASE_PROMPT ? "prompt"
                                                             : "answer");
        // By the largest first: the sum of numbers near the largest that there may be would not be
        // finite.
        for (uint32_t expert = 0; expert < profile->experts; expert++)
            total += row[expert] /= largest;
        for (uint32_t expert = 0; expert < profile->experts; expert++)
            row[expert] /= total;
    }
    return true;
}
