// SPDX-License-Identifier: Apache-2.0
#include "string_index.h"

#include "hash.h"

#include <stdlib.h>
#include <string.h>

bool q3_string_index_create(size_t count, q3_string_index *index, q3_error *err)
{
    size_t places = 4;
    while (places / 4 * 3 < count)
        places *= 2;
    *index = (q3_string_index){.places = q3_alloc_zeroed(places, sizeof *index->places, err),
                               .mask = places - 1};
    // Where the memory lies nobody foresees, so no file can be made whose strings all meet.
    index->mix = (uint64_t)(uintptr_t)index->places * UINT64_C(0x9e3779b97f4a7c15) | 1;
    return index->places != NULL;
}

void q3_string_index_free(q3_string_index *index)
{
    free(index->places);
    *index = (q3_string_index){0};
}

// Where an equal string is, or where it would have to be.
static q3_indexed *find_place(const q3_string_index *index, q3_bytes string)
{
    size_t at = (size_t)(q3_hash64(string.data, string.size) * index->mix >> 32) & index->mask;
    while (index->places[at].string.data) {
        const q3_bytes other = index->places[at].string;
        if (other.size == string.size && memcmp(other.data, string.data, string.size) == 0)
            break;
        at = (at + 1) & index->mask;
    }
    return &index->places[at];
}

const q3_indexed *q3_string_index_add(q3_string_index *index, q3_bytes string, uint32_t number)
{
    q3_indexed *place = find_place(index, string);
    if (place->string.data)
        return place;
    *place = (q3_indexed){string, number};
    return NULL;
}

const q3_indexed *q3_string_index_find(const q3_string_index *index, q3_bytes string)
{
    const q3_indexed *place = find_place(index, string);
    return place->string.data ? place : NULL;
}
