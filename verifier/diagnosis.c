// SPDX-License-Identifier: Apache-2.0
#include "diagnosis.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS_MAX = 1024, SHARDS_COUNTED_MAX = 100000 };

typedef struct patient {
    const q3_expectation *expectation;
    const bool *scope;
    const q3_listing *listing;
    q3_findings *report;
    q3_error *err;
} patient;

static int compare_expected(const void *key, const void *expected)
{
    return strcmp(key, ((const q3_expected_tensor *)expected)->name);
}

static const q3_pattern *find_expected(const patient *p, const char *name)
{
    const q3_expected_tensor *found = bsearch(name, p->expectation->tensors, p->expectation->count,
                                              sizeof *p->expectation->tensors, compare_expected);
    return found ? found->pattern : NULL;
}

static int compare_listed(const void *key, const void *entry)
{
    return strcmp(key, ((const q3_listing_entry *)entry)->tensor.name);
}

static const q3_listing_entry *find_listed(const patient *p, const char *name)
{
    return bsearch(name, p->listing->entries, p->listing->count, sizeof *p->listing->entries,
                   compare_listed);
}

// ---- shards that the index does not name ----

// "model-00005-of-00015.safetensors": 5 of 15.
static bool parse_shard_name(const char *name, unsigned *number, unsigned *count)
{
    const char *dash = strstr(name, "-of-");
    if (!dash)
        return false;
    const char *digits = dash;
    while (digits > name && digits[-1] >= '0' && digits[-1] <= '9')
        digits--;
    return digits < dash && sscanf(digits, "%6u-of-%6u", number, count) == 2 && *number >= 1 &&
           *number <= *count && *count <= SHARDS_COUNTED_MAX;
}

static bool find_unnamed_shards(const patient *p)
{
    unsigned number, count = 0, others;
    for (size_t i = 0; i < p->listing->count; i++) {
        if (!parse_shard_name(p->listing->entries[i].file, &number, &others) ||
            (count && others != count))
            return true;
        count = others;
    }
    if (count == 0)
        return true;
    bool *named = q3_alloc_zeroed(count + 1, sizeof *named, p->err);
    if (!named)
        return false;
    for (size_t i = 0; i < p->listing->count; i++)
        if (parse_shard_name(p->listing->entries[i].file, &number, &others))
            named[number] = true;
    char text[256];
    size_t used = 0;
    unsigned unnamed = 0;
    for (unsigned i = 1; i <= count; i++)
        if (!named[i] && unnamed++ < 8)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%u", used ? ", " : "", i);
    free(named);
    if (unnamed == 0)
        return true;
    return q3_sentences_add(&p->report->causes, p->err,
                            "the index names %u of %u shards, and not number %s%s: %s absent?",
                            count - unnamed, count, text, unnamed > 8 ? ", …" : "",
                            unnamed == 1 ? "is it" : "are they");
}

// ---- one shard a layer ----

typedef struct layer {
    const char *file; // where its tensors are listed
    bool spans;       // in more than one
    uint64_t missing;
    uint32_t last_expert; // of which something is missing, where has_expert
    uint32_t matrices;    // of it that are missing so far
    bool has_expert;
} layer;

// The text model's layer that a tensor belongs to; false when it is of none.
static bool layer_of(const q3_pattern *pattern, const char *name, uint32_t *number,
                     uint32_t *expert, bool *has_expert)
{
    static const char mark[] = ".layers.", expert_mark[] = ".experts.";
    if (pattern->component != Q3_TEXT || pattern->ranges == 0)
        return false;
    const char *at = strstr(name, mark);
    if (!at)
        return false;
    *number = (uint32_t)strtoul(at + sizeof mark - 1, NULL, 10);
    at = strstr(name, expert_mark);
    *has_expert = at && pattern->ranges == 2;
    *expert = *has_expert ? (uint32_t)strtoul(at + sizeof expert_mark - 1, NULL, 10) : 0;
    return *number < LAYERS_MAX;
}

static void put_layers(char *text, size_t capacity, const layer *layers, uint32_t count)
{
    enum { SHOWN = 3 };
    size_t used = 0;
    uint32_t shown = 0, total = 0, last = 0;
    for (uint32_t i = 0; i < count; i++)
        if (layers[i].missing) {
            total++;
            last = i;
        }
    for (uint32_t i = 0; i < count && used < capacity; i++)
        if (layers[i].missing && (shown++ < SHOWN || i == last || total <= SHOWN + 2))
            used += (size_t)snprintf(text + used, capacity - used, "%s%" PRIu32,
                                     !used                            ? ""
                                     : i == last && total > SHOWN + 2 ? ", …, "
                                                                      : ", ",
                                     i);
}

static bool find_cut_layers(const patient *p, layer *layers)
{
    uint32_t number, expert, count = 0;
    bool has_expert, spans = false, several = false;
    for (size_t i = 0; i < p->listing->count; i++) {
        const q3_listing_entry *entry = &p->listing->entries[i];
        const q3_pattern *pattern = find_expected(p, entry->tensor.name);
        if (!pattern || !layer_of(pattern, entry->tensor.name, &number, &expert, &has_expert))
            continue;
        layer *of = &layers[number];
        if (of->file && strcmp(of->file, entry->file) != 0)
            of->spans = spans = true;
        of->file = entry->file;
        count = number + 1 > count ? number + 1 : count;
    }
    enum { EXPERT_MATRICES = 3 };
    uint64_t missing = 0, experts = 0, wholly = 0;
    for (size_t i = 0; i < p->expectation->count; i++) {
        const q3_expected_tensor *expected = &p->expectation->tensors[i];
        if (!p->scope[Q3_TEXT] || find_listed(p, expected->name) ||
            !layer_of(expected->pattern, expected->name, &number, &expert, &has_expert))
            continue;
        layers[number].missing++;
        missing++;
        if (has_expert && (!layers[number].has_expert || layers[number].last_expert != expert)) {
            layers[number].has_expert = true;
            layers[number].last_expert = expert;
            layers[number].matrices = 0;
            experts++;
        }
        wholly += has_expert && ++layers[number].matrices == EXPERT_MATRICES;
    }
    // Whole layers lie in one shard each, and what is incomplete lies where one shard ends.
    bool at_ends = missing != 0 && !spans;
    for (uint32_t i = 0; i < count; i++) {
        const bool before = i > 0 && layers[i - 1].file && layers[i].file &&
                            strcmp(layers[i - 1].file, layers[i].file) != 0;
        const bool after = i + 1 < count && layers[i + 1].file && layers[i].file &&
                           strcmp(layers[i + 1].file, layers[i].file) != 0;
        several = several || after;
        at_ends = at_ends && (!layers[i].missing || before || after || i + 1 == count);
    }
    if (!at_ends || !several)
        return true;
    uint64_t unlisted = 0;
    for (size_t i = 0; i < p->report->count; i++)
        unlisted +=
            p->report->findings[i].kind == Q3_FINDING_INDEX && p->report->findings[i].tensor;
    char text[256], tensors[Q3_GROUPED_MAX], lost[Q3_GROUPED_MAX], held[Q3_GROUPED_MAX];
    char whole[Q3_GROUPED_MAX];
    char where[160];
    put_layers(text, sizeof text, layers, count);
    if (unlisted)
        snprintf(where, sizeof where,
                 "; the shards hold %s tensors that it does not list: use the index that was saved "
                 "with them",
                 q3_grouped(unlisted, held));
    else
        snprintf(where, sizeof where, ": is the rest in the next shard?");
    return q3_sentences_add(&p->report->causes, p->err,
                            "%s gives each layer to one shard, but layers are cut where a shard "
                            "ends: layers %s lack %s tensors, of %s experts (%s of them wholly)%s",
                            p->listing->index, text, q3_grouped(missing, tensors),
                            q3_grouped(experts, lost), q3_grouped(wholly, whole), where);
}

// ---- names of another family ----

static bool find_prefix(const patient *p)
{
    static const char prefix[] = "thinker.";
    char name[2 * Q3_NAME_MAX], number[Q3_GROUPED_MAX];
    uint64_t lacking = 0, wrapped = 0;
    char wrapper[64] = "";
    for (size_t i = 0; i < p->listing->count; i++) {
        const char *found = p->listing->entries[i].tensor.name;
        if (find_expected(p, found))
            continue;
        snprintf(name, sizeof name, "%s%s", prefix, found);
        lacking += find_expected(p, name) != NULL;
        // "module.model.…", "thinker.model.…": the first word is one too many.
        const char *dot = strchr(found, '.');
        if (dot && find_expected(p, dot + 1) && (size_t)(dot - found) < sizeof wrapper &&
            wrapped++ == 0)
            snprintf(wrapper, sizeof wrapper, "%.*s", (int)(dot - found + 1), found);
    }
    if (lacking && !q3_sentences_add(&p->report->causes, p->err,
                                     "%s names would be expected ones with \"%s\" before them: is "
                                     "this the text model alone?",
                                     q3_grouped(lacking, number), prefix))
        return false;
    return !wrapped || q3_sentences_add(&p->report->causes, p->err,
                                        "%s names would be expected ones without \"%s\" before "
                                        "them: is this another family's or a wrapped model?",
                                        q3_grouped(wrapped, number), wrapper);
}

// ---- variants ----

static const q3_pattern *find_pattern(const patient *p, const char *suffix)
{
    for (size_t i = 0; i < p->expectation->count; i++) {
        const q3_pattern *pattern = p->expectation->tensors[i].pattern;
        const size_t length = strlen(pattern->name), end = strlen(suffix);
        if (pattern->component == Q3_TEXT && length >= end &&
            strcmp(pattern->name + length - end, suffix) == 0)
            return pattern;
    }
    return NULL;
}

// Fused experts: experts.gate_up_proj [E, 2I, H] and experts.down_proj [E, H, I] of each layer.
static bool find_fused(const patient *p)
{
    const q3_pattern *up = find_pattern(p, "}.up_proj.weight");
    uint64_t fused = 0, other = 0;
    char shape[Q3_SHAPE_TEXT_MAX] = "";
    for (size_t i = 0; up && up->ranges == 2 && i < p->listing->count; i++) {
        const q3_listing_entry *entry = &p->listing->entries[i];
        const bool gate_up = strstr(entry->tensor.name, ".mlp.experts.gate_up_proj") != NULL;
        const bool down = strstr(entry->tensor.name, ".mlp.experts.down_proj") != NULL;
        if ((!gate_up && !down) || find_expected(p, entry->tensor.name))
            continue;
        const uint64_t experts = up->range[1].last - up->range[1].first + UINT64_C(1);
        const uint64_t inner = up->shape[0], hidden = up->shape[1];
        const uint64_t wanted[3] = {experts, gate_up ? 2 * inner : hidden,
                                    gate_up ? hidden : inner};
        fused++;
        if (entry->presence == Q3_PRESENT &&
            !q3_shape_equal(3, wanted, entry->tensor.rank, entry->tensor.shape) && other++ == 0)
            q3_shape_text(entry->tensor.rank, entry->tensor.shape, shape);
    }
    if (fused == 0)
        return true;
    char number[Q3_GROUPED_MAX], differing[Q3_GROUPED_MAX];
    return q3_sentences_add(&p->report->causes, p->err,
                            "the experts are saved fused, in %s tensors (experts.gate_up_proj and "
                            "experts.down_proj)%s%s%s%s: a variant that is not supported; save the "
                            "experts one by one",
                            q3_grouped(fused, number), other ? ", of which " : "",
                            other ? q3_grouped(other, differing) : "",
                            other ? " have shapes that do not fit the configuration, such as " : "",
                            shape);
}

static bool find_tied(const patient *p)
{
    const q3_pattern *head = find_pattern(p, "lm_head.weight");
    const q3_pattern *embedding = find_pattern(p, "model.embed_tokens.weight");
    if (!p->scope[Q3_TEXT] || !head || !embedding || find_listed(p, head->name) ||
        !find_listed(p, embedding->name))
        return true;
    // A pack of some layers lacks more than the head.
    uint64_t missing = 0;
    for (size_t i = 0; i < p->expectation->count; i++)
        missing += p->expectation->tensors[i].pattern->component == Q3_TEXT &&
                   !find_listed(p, p->expectation->tensors[i].name);
    return missing != 1 ||
           q3_sentences_add(&p->report->causes, p->err,
                            "%s is not there and %s is: the embeddings are tied, a variant that is "
                            "not supported; save the head as a tensor of its own",
                            head->name, embedding->name);
}

// The same experts gone from every layer.
static bool find_pruned(const patient *p)
{
    const q3_pattern *up = find_pattern(p, "}.up_proj.weight");
    if (!up || up->ranges != 2 || !p->scope[Q3_TEXT])
        return true;
    const uint32_t layers = up->range[0].last - up->range[0].first + 1;
    const uint32_t experts = up->range[1].last - up->range[1].first + 1;
    uint32_t *gone = q3_alloc_zeroed(experts, sizeof *gone, p->err);
    if (!gone)
        return false;
    for (size_t i = 0; i < p->expectation->count; i++) {
        const q3_expected_tensor *expected = &p->expectation->tensors[i];
        uint32_t number, expert;
        bool has_expert;
        if (expected->pattern == up &&
            layer_of(up, expected->name, &number, &expert, &has_expert) && has_expert &&
            !find_listed(p, expected->name))
            gone[expert - up->range[1].first]++;
    }
    uint32_t everywhere = 0, nowhere = 0;
    for (uint32_t i = 0; i < experts; i++) {
        everywhere += gone[i] == layers;
        nowhere += gone[i] == 0;
    }
    free(gone);
    if (everywhere == 0 || nowhere == 0 || everywhere + nowhere != experts)
        return true;
    return q3_sentences_add(
        &p->report->causes, p->err,
        "every layer lacks the same %" PRIu32 " of %" PRIu32
        " experts: for a pruned model use the manifest of its own configuration "
        "(q3-verify manifest)",
        everywhere, experts);
}

bool q3_diagnose(const q3_expectation *expectation, const bool scope[Q3_COMPONENTS],
                 const q3_listing *listing, q3_findings *report, q3_error *err)
{
    const patient p = {.expectation = expectation,
                       .scope = scope,
                       .listing = listing,
                       .report = report,
                       .err = err};
    if (report->counts[Q3_FINDING_MISSING] == 0)
        return true;
    layer *layers = q3_alloc_zeroed(LAYERS_MAX, sizeof *layers, err);
    const bool is_index = strcmp(listing->index, "pack.json") != 0;
    const bool ok =
        layers && (!is_index || (find_unnamed_shards(&p) && find_cut_layers(&p, layers))) &&
        find_prefix(&p) && find_fused(&p) && find_tied(&p) && (!is_index || find_pruned(&p));
    free(layers);
    return ok;
}
