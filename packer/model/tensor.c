// SPDX-License-Identifier: Apache-2.0
#include "tensor.h"

#include "base/bytes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t size;
} dtypes[] = {
    [Q3_BOOL] = {"BOOL", 1},       [Q3_U8] = {"U8", 1},           [Q3_I8] = {"I8", 1},
    [Q3_F8_E4M3] = {"F8_E4M3", 1}, [Q3_F8_E5M2] = {"F8_E5M2", 1}, [Q3_U16] = {"U16", 2},
    [Q3_I16] = {"I16", 2},         [Q3_F16] = {"F16", 2},         [Q3_BF16] = {"BF16", 2},
    [Q3_U32] = {"U32", 4},         [Q3_I32] = {"I32", 4},         [Q3_F32] = {"F32", 4},
    [Q3_U64] = {"U64", 8},         [Q3_I64] = {"I64", 8},         [Q3_F64] = {"F64", 8},
};

enum { DTYPES = sizeof dtypes / sizeof *dtypes };

const char *q3_dtype_name(unsigned dtype)
{
    return dtype < DTYPES ? dtypes[dtype].name : NULL;
}

size_t q3_dtype_size(unsigned dtype)
{
    return dtype < DTYPES ? dtypes[dtype].size : 0;
}

bool q3_dtype_parse(const char *name, q3_dtype *dtype)
{
    for (unsigned i = 1; i < DTYPES; i++)
        if (strcmp(name, dtypes[i].name) == 0) {
            *dtype = (q3_dtype)i;
            return true;
        }
    return false;
}

static const char *const component_names[Q3_COMPONENTS] = {
    [Q3_TEXT] = "text",     [Q3_AUDIO_TOWER] = "audio_tower", [Q3_VISUAL] = "visual",
    [Q3_TALKER] = "talker", [Q3_CODE2WAV] = "code2wav",
};

const char *q3_component_name(q3_component component)
{
    return component_names[component];
}

bool q3_component_parse(const char *name, q3_component *component)
{
    for (unsigned i = 0; i < Q3_COMPONENTS; i++)
        if (strcmp(name, component_names[i]) == 0) {
            *component = (q3_component)i;
            return true;
        }
    return false;
}

static const struct {
    const char *path; // %02u is the layer, %03u the expert
    bool layer, expert;
} part_files[] = {
    [Q3_EMBEDDING] = {"embedding.q3p", false, false},
    [Q3_ATTENTION] = {"layers/%02u/attention.q3p", true, false},
    [Q3_NORMS] = {"layers/%02u/norms.q3p", true, false},
    [Q3_ROUTER] = {"layers/%02u/router.q3p", true, false},
    [Q3_EXPERT] = {"layers/%02u/experts/%03u.q3p", true, true},
    [Q3_FINAL_NORM] = {"final_norm.q3p", false, false},
    [Q3_LM_HEAD] = {"lm_head.q3p", false, false},
};

// The position of a place among the files of the text model: the layers lie between the embedding
// and the final norm.
static unsigned text_section(q3_part part)
{
    return part == Q3_EMBEDDING ? 0 : part == Q3_FINAL_NORM ? 2 : part == Q3_LM_HEAD ? 3 : 1;
}

static int order(uint32_t a, uint32_t b)
{
    return (a > b) - (a < b);
}

int q3_place_compare(const q3_place *a, const q3_place *b)
{
    int result = order(a->component, b->component);
    if (!result)
        result = order(text_section(a->part), text_section(b->part));
    if (!result)
        result = order(a->layer, b->layer);
    if (!result)
        result = order(a->part, b->part);
    return result ? result : order(a->expert, b->expert);
}

const char *q3_place_path(const q3_place *place, char out[Q3_PLACE_PATH_MAX])
{
    if (place->component != Q3_TEXT)
        snprintf(out, Q3_PLACE_PATH_MAX, "%s.q3p", q3_component_name(place->component));
    else if (place->part == Q3_EXPERT)
        snprintf(out, Q3_PLACE_PATH_MAX, "layers/%02" PRIu32 "/experts/%03" PRIu32 ".q3p",
                 place->layer, place->expert);
    else if (part_files[place->part].layer)
        snprintf(out, Q3_PLACE_PATH_MAX, "layers/%02" PRIu32 "/%s", place->layer,
                 strrchr(part_files[place->part].path, '/') + 1);
    else
        snprintf(out, Q3_PLACE_PATH_MAX, "%s", part_files[place->part].path);
    return out;
}

// The number at *at, which moves behind it; false when there are no digits or too many.
static bool take_number(const char **at, uint32_t *number)
{
    const size_t digits = strspn(*at, "0123456789");
    if (digits == 0 || digits > 9)
        return false;
    *number = (uint32_t)strtoul(*at, NULL, 10);
    *at += digits;
    return true;
}

bool q3_place_parse(const char *path, q3_place *place)
{
    // Guess the place from the first and the last words, then accept it only if its own path is the
    // text given: one spelling, no "..", no other digits.
    *place = (q3_place){.component = Q3_TEXT};
    const char *at = path;
    if (strncmp(at, "layers/", 7) == 0) {
        at += 7;
        if (!take_number(&at, &place->layer))
            return false;
        if (strncmp(at, "/experts/", 9) == 0) {
            at += 9;
            place->part = Q3_EXPERT;
            if (!take_number(&at, &place->expert))
                return false;
        } else {
            place->part = strcmp(at, "/attention.q3p") == 0 ? Q3_ATTENTION
                          : strcmp(at, "/norms.q3p") == 0   ? Q3_NORMS
                                                            : Q3_ROUTER;
        }
    } else {
        place->part = strcmp(at, "embedding.q3p") == 0    ? Q3_EMBEDDING
                      : strcmp(at, "final_norm.q3p") == 0 ? Q3_FINAL_NORM
                                                          : Q3_LM_HEAD;
        for (unsigned i = Q3_TEXT + 1; i < Q3_COMPONENTS; i++) {
            const size_t length = strlen(component_names[i]);
            if (strncmp(path, component_names[i], length) == 0 &&
                strcmp(path + length, ".q3p") == 0)
                *place = (q3_place){.component = (q3_component)i, .part = Q3_WHOLE};
        }
    }
    char canonical[Q3_PLACE_PATH_MAX];
    return strcmp(q3_place_path(place, canonical), path) == 0;
}

bool q3_tensor_size(q3_tensor *tensor)
{
    uint64_t bytes = q3_dtype_size(tensor->dtype);
    for (unsigned i = 0; i < tensor->rank; i++)
        if (!q3_multiply(bytes, tensor->shape[i], &bytes))
            return false;
    tensor->bytes = bytes;
    return true;
}

const char *q3_shape_text(unsigned rank, const uint64_t *shape, char out[Q3_SHAPE_TEXT_MAX])
{
    size_t used = 0;
    out[used++] = '[';
    for (unsigned i = 0; i < rank; i++)
        used += (size_t)snprintf(out + used, Q3_SHAPE_TEXT_MAX - used, "%s%" PRIu64, i ? ", " : "",
                                 shape[i]);
    snprintf(out + used, Q3_SHAPE_TEXT_MAX - used, "]");
    return out;
}

bool q3_shape_equal(unsigned rank_a, const uint64_t *a, unsigned rank_b, const uint64_t *b)
{
    return rank_a == rank_b && (rank_a == 0 || memcmp(a, b, rank_a * sizeof *a) == 0);
}
