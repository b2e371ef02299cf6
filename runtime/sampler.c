// SPDX-License-Identifier: Apache-2.0
#include "sampler.h"

#include "base/json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { CONFIG_BYTES_MAX = 1 << 20 };

// ---- parameters ----

q3_sampling q3_sampling_default(void)
{
    return (q3_sampling){.top_p = 1, .repeat_penalty = 1};
}

static const struct range {
    const char *option, *key;
    size_t offset;
    double min, max;
    bool or_zero; // 0 is in the range, too
} ranges[] = {
    // From 0.001 on, no quotient of a float leaves a double's range.
    {"temperature", "temperature", offsetof(q3_sampling, temperature), 0.001, 100, true},
    {"top_p", "top_p", offsetof(q3_sampling, top_p), 0, 1, true},
    {"min_p", "min_p", offsetof(q3_sampling, min_p), 0, 1, true},
    {"repeat_penalty", "repetition_penalty", offsetof(q3_sampling, repeat_penalty), 0.01, 100,
     false},
};

enum { RANGES = sizeof ranges / sizeof *ranges };

bool q3_sampling_check(const q3_sampling *sampling, q3_error *err)
{
    for (size_t i = 0; i < RANGES; i++) {
        const struct range *range = &ranges[i];
        double value;
        memcpy(&value, (const char *)sampling + range->offset, sizeof value);
        if ((value >= range->min && value <= range->max) || (range->or_zero && value == 0))
            continue;
        return q3_fail(err, Q3_USAGE, "%s: expected %sa number from %g to %g, found %g",
                       range->option, range->or_zero && range->min > 0 ? "0 or " : "", range->min,
                       range->max, value);
    }
    return true;
}

// The member, or NULL when it is absent or null.
static const cJSON *find(const q3_json *json, const char *key)
{
    const cJSON *item = q3_json_find(json->root, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

static bool read_stop_id(const q3_json *json, const cJSON *item, q3_sampling *sampling,
                         q3_error *err)
{
    uint64_t id;
    if (!q3_json_item_u64(json, item, 0, UINT32_MAX, &id, err))
        return false;
    if (sampling->stop_count == Q3_STOP_IDS_MAX)
        return q3_json_fail(json, item, Q3_MALFORMED, err, "expected at most %d ids",
                            Q3_STOP_IDS_MAX);
    sampling->stop_ids[sampling->stop_count++] = (uint32_t)id;
    return true;
}

static bool read_stop_ids(const q3_json *json, q3_sampling *sampling, q3_error *err)
{
    const cJSON *stop = find(json, "eos_token_id");
    if (!stop)
        return true;
    sampling->stop_count = 0;
    if (!cJSON_IsArray(stop))
        return read_stop_id(json, stop, sampling, err);
    for (const cJSON *item = stop->child; item; item = item->next)
        if (!read_stop_id(json, item, sampling, err))
            return false;
    return true;
}

static bool read_sampling(const q3_json *json, q3_sampling *sampling, q3_error *err)
{
    if (!cJSON_IsObject(json->root))
        return q3_json_fail(json, json->root, Q3_MALFORMED, err, "expected an object");
    bool samples = find(json, "temperature") != NULL;
    if (find(json, "do_sample") && !q3_json_bool(json, json->root, "do_sample", &samples, err))
        return false;
    q3_sampling read = *sampling;
    read.temperature = 1;
    read.top_k = 0;
    read.top_p = 1;
    read.min_p = 0;
    for (size_t i = 0; i < RANGES; i++) {
        const struct range *range = &ranges[i];
        double value;
        if (!find(json, range->key))
            continue;
        if (!q3_json_double(json, json->root, range->key, range->or_zero ? 0 : range->min,
                            range->max, &value, err))
            return false;
        if (value != 0 && value < range->min)
            return q3_json_fail(json, find(json, range->key), Q3_MALFORMED, err,
                                "expected 0 or a number from %g to %g, found %g", range->min,
                                range->max, value);
        memcpy((char *)&read + range->offset, &value, sizeof value);
    }
    if (find(json, "top_k") &&
        !q3_json_u32(json, json->root, "top_k", 0, UINT32_MAX, &read.top_k, err))
        return false;
    if (!samples)
        read.temperature = 0;
    if (!read_stop_ids(json, &read, err))
        return false;
    *sampling = read;
    return true;
}

bool q3_sampling_load(const char *path, q3_sampling *sampling, q3_error *err)
{
    q3_json json;
    errno = 0;
    if (!q3_json_load(path, CONFIG_BYTES_MAX, &json, err))
        return errno == ENOENT && err->code == Q3_FAILED;
    const bool ok = read_sampling(&json, sampling, err);
    q3_json_free(&json);
    return ok;
}

// ---- random numbers ----

static uint64_t rotate(uint64_t value, unsigned bits)
{
    return value << bits | value >> (64 - bits);
}

void q3_random_seed(q3_random *random, uint64_t seed)
{
    for (size_t i = 0; i < 4; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t mixed = seed;
        mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
        mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
        random->state[i] = mixed ^ mixed >> 31;
    }
}

uint64_t q3_random_next(q3_random *random)
{
    uint64_t *state = random->state;
    const uint64_t result = rotate(state[1] * 5, 7) * 9;
    const uint64_t shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate(state[3], 45);
    return result;
}

// ---- the sampler ----

typedef struct candidate {
    double score;
    uint32_t id;
} candidate;

struct q3_sampler {
    q3_sampling sampling;
    uint32_t count;
    q3_random random;
    bool *seen;     // by id
    double *scores; // by id: logits after penalty and temperature
    candidate *candidates;
};

bool q3_sampler_create(const q3_sampling *sampling, uint32_t count, q3_sampler **sampler,
                       q3_error *err)
{
    if (!q3_sampling_check(sampling, err))
        return false;
    if (count == 0)
        return q3_fail(err, Q3_USAGE, "sampler: expected at least one token");
    q3_sampler *created = q3_alloc_zeroed(1, sizeof *created, err);
    if (!created)
        return false;
    created->sampling = *sampling;
    created->count = count;
    created->seen = q3_alloc_zeroed(count, sizeof *created->seen, err);
    created->scores = q3_alloc(count, sizeof *created->scores, err);
    created->candidates = q3_alloc(count, sizeof *created->candidates, err);
    if (!created->seen || !created->scores || !created->candidates) {
        q3_sampler_destroy(created);
        return false;
    }
    q3_sampler_reset(created);
    *sampler = created;
    return true;
}

void q3_sampler_destroy(q3_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->seen);
    free(sampler->scores);
    free(sampler->candidates);
    free(sampler);
}

void q3_sampler_reset(q3_sampler *sampler)
{
    memset(sampler->seen, 0, sampler->count * sizeof *sampler->seen);
    q3_random_seed(&sampler->random, sampler->sampling.seed);
}

void q3_sampler_see(q3_sampler *sampler, const uint32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] < sampler->count)
            sampler->seen[ids[i]] = true;
}

// Fills scores; *best is the id of the highest, the lowest such id.
static bool score(q3_sampler *sampler, const float *logits, uint32_t *best, q3_error *err)
{
    const q3_sampling *sampling = &sampler->sampling;
    const double temperature = sampling->temperature > 0 ? sampling->temperature : 1;
    double highest = -INFINITY;
    *best = sampler->count;
    for (uint32_t id = 0; id < sampler->count; id++) {
        double value = (double)logits[id];
        if (isnan(value) || value == INFINITY)
            return q3_fail(err, Q3_FAILED, "logits: the value for token %" PRIu32 " is %s", id,
                           isnan(value) ? "not a number" : "infinite");
        if (sampler->seen[id])
            value = value > 0 ? value / sampling->repeat_penalty : value * sampling->repeat_penalty;
        value /= temperature;
        sampler->scores[id] = value;
        if (value > highest) {
            highest = value;
            *best = id;
        }
    }
    if (*best == sampler->count)
        return q3_fail(err, Q3_FAILED, "logits: all %" PRIu32 " values are minus infinity",
                       sampler->count);
    return true;
}

// The higher score first, the lower id among equals.
static int compare_candidates(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

// The candidates within `distance` of the highest score, unsorted; returns how many.
static uint32_t gather(q3_sampler *sampler, double highest, double distance)
{
    uint32_t found = 0;
    for (uint32_t id = 0; id < sampler->count; id++)
        if (highest - sampler->scores[id] <= distance)
            sampler->candidates[found++] = (candidate){sampler->scores[id], id};
    return found;
}

// Probability, but for a factor that all candidates share.
static double weight_of(candidate one, double highest)
{
    return exp(one.score - highest);
}

static double sum_weights(const candidate *candidates, uint32_t count, double highest)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += weight_of(candidates[i], highest);
    return sum;
}

// Sorted candidates after top_k and top_p; returns how many. Sorting the whole vocabulary for every
// token would take longer than the rest: only what lies near the highest score is gathered, and
// more until no filter can want what is left out.
static uint32_t filter(q3_sampler *sampler, double highest)
{
    const q3_sampling *sampling = &sampler->sampling;
    const uint32_t top_k =
        sampling->top_k && sampling->top_k < sampler->count ? sampling->top_k : 0;
    candidate *candidates = sampler->candidates;
    double total = 0;
    if (!top_k) {
        const uint32_t all = gather(sampler, highest, INFINITY);
        total = sum_weights(candidates, all, highest);
    }
    uint32_t count;
    for (double distance = 4;; distance = distance < 1000 ? distance * 2 : INFINITY) {
        count = gather(sampler, highest, distance);
        if (count == sampler->count || (top_k && count >= top_k))
            break;
        if (!top_k && sampling->top_p < 1 &&
            sum_weights(candidates, count, highest) >= sampling->top_p * total)
            break;
    }
    qsort(candidates, count, sizeof *candidates, compare_candidates);
    if (top_k) {
        uint32_t kept = top_k;
        while (kept < count && candidates[kept].score == candidates[top_k - 1].score)
            kept++;
        count = kept;
    }
    if (sampling->top_p < 1) {
        const double left = top_k ? sum_weights(candidates, count, highest) : total;
        double sum = 0;
        uint32_t kept = 0;
        while (kept < count && (kept == 0 || sum < sampling->top_p * left))
            sum += weight_of(candidates[kept++], highest);
        count = kept;
    }
    return count;
}

static uint32_t draw(q3_sampler *sampler, uint32_t best)
{
    const q3_sampling *sampling = &sampler->sampling;
    const double highest = sampler->scores[best];
    candidate *candidates = sampler->candidates;
    uint32_t count = sampling->top_k || sampling->top_p < 1 ? filter(sampler, highest)
                                                            : gather(sampler, highest, INFINITY);
    if (sampling->min_p > 0) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < count; i++)
            if (weight_of(candidates[i], highest) >= sampling->min_p)
                candidates[kept++] = candidates[i];
        count = kept;
    }
    const double number = (double)(q3_random_next(&sampler->random) >> 11) * 0x1p-53;
    const double wanted = number * sum_weights(candidates, count, highest);
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += weight_of(candidates[i], highest);
        if (sum > wanted)
            return candidates[i].id;
    }
    // Only where rounding made of a number next to 1 the whole sum.
    return best;
}

bool q3_sampler_next(q3_sampler *sampler, const float *logits, uint32_t *id, q3_error *err)
{
    uint32_t best;
    if (!score(sampler, logits, &best, err))
        return false;
    *id = sampler->sampling.temperature > 0 ? draw(sampler, best) : best;
    sampler->seen[*id] = true;
    return true;
}
