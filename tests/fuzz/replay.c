// SPDX-License-Identifier: Apache-2.0
//
// Runs a fuzz target without libFuzzer: on each file of a corpus, and on a fixed number of
// mutations of each, the same in every run.
//
// usage: replay CORPUS_DIRECTORY MUTATIONS
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INPUT_MAX = 1 << 16 };

typedef struct input {
    char *path;
    uint8_t *data;
    size_t size;
} input;

// splitmix64 (Steele, Lea, Flood 2014).
static uint64_t next_random(uint64_t *state)
{
    uint64_t value = *state += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}

static size_t below(uint64_t *state, size_t bound)
{
    return bound ? (size_t)(next_random(state) % bound) : 0;
}

static input read_input(const char *directory, const char *name)
{
    input in = {.data = malloc(INPUT_MAX)};
    if (!in.data || asprintf(&in.path, "%s/%s", directory, name) < 0)
        abort();
    FILE *stream = fopen(in.path, "rb");
    if (!stream) {
        perror(in.path);
        exit(1);
    }
    in.size = fread(in.data, 1, INPUT_MAX, stream);
    fclose(stream);
    return in;
}

// One change to data (capacity INPUT_MAX); other is where bytes to splice in come from.
static size_t mutate(uint8_t *data, size_t size, const input *other, uint64_t *random)
{
    static const char *const words[] = {"0",    "-1",      "1e999", "9007199254740993",
                                        "null", "true",    "[]",    "{}",
                                        "\"\"", "\\u0000", "\xff",  ",",
                                        "{0-",  "}",       ":",     "18446744073709551616"};
    const size_t at = below(random, size + 1);
    const size_t length = 1 + below(random, 16);
    const size_t inside = size - at < length ? size - at : length;
    uint8_t piece[64];
    size_t taken = 0;
    switch (below(random, 8)) {
    case 0:
        if (at < size)
            data[at] = (uint8_t)(data[at] ^ 1u << below(random, 8));
        return size;
    case 1:
        if (at < size)
            data[at] = (uint8_t)next_random(random);
        return size;
    case 2: // a little-endian number in place
        for (size_t i = 0, number = below(random, 2) ? (size_t)next_random(random) : 0; i < inside;
             i++)
            data[at + i] = (uint8_t)(i < 8 ? number >> 8 * i : 0xff);
        return size;
    case 3: // cut out
        memmove(data + at, data + at + inside, size - at - inside);
        return size - inside;
    case 4: // cut off
        return at;
    case 5: { // a word
        const char *word = words[below(random, sizeof words / sizeof *words)];
        taken = strlen(word);
        memcpy(piece, word, taken);
        break;
    }
    case 6: // bytes from elsewhere in the same input
        taken = inside;
        memcpy(piece, data + at, taken);
        break;
    default: { // bytes from another input
        const size_t from = below(random, other->size + 1);
        taken = other->size - from < length ? other->size - from : length;
        memcpy(piece, other->data + from, taken);
    }
    }
    const size_t to = below(random, size + 1);
    if (size + taken > INPUT_MAX)
        return size;
    memmove(data + to + taken, data + to, size - to);
    memcpy(data + to, piece, taken);
    return size + taken;
}

// Runs the target on memory of exactly the input's size.
static void run(const uint8_t *data, size_t size)
{
    uint8_t *exact = fuzz_copy((q3_bytes){data, size});
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s CORPUS_DIRECTORY MUTATIONS\n", argv[0]);
        return 2;
    }
    const unsigned long mutations = strtoul(argv[2], NULL, 10);
    struct dirent **entries;
    const int count = scandir(argv[1], &entries, visible, alphasort);
    if (count <= 0) {
        fprintf(stderr, "%s: no corpus\n", argv[1]);
        return 1;
    }
    input *inputs = calloc((size_t)count, sizeof *inputs);
    uint8_t *changed = malloc(INPUT_MAX);
    if (!inputs || !changed)
        abort();
    for (int i = 0; i < count; i++) {
        inputs[i] = read_input(argv[1], entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    uint64_t random = 0;
    for (int i = 0; i < count; i++) {
        run(inputs[i].data, inputs[i].size);
        for (unsigned long k = 0; k < mutations; k++) {
            size_t size = inputs[i].size;
            memcpy(changed, inputs[i].data, size);
            for (size_t left = 1 + below(&random, 4); left; left--)
                size = mutate(changed, size, &inputs[below(&random, (size_t)count)], &random);
            run(changed, size);
        }
    }
    printf("%d inputs, %lu mutations of each\n", count, mutations);
    for (int i = 0; i < count; i++) {
        free(inputs[i].path);
        free(inputs[i].data);
    }
    free(inputs);
    free(changed);
    return 0;
}
