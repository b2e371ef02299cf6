// SPDX-License-Identifier: Apache-2.0
#include "bitplane.h"

#include <stdlib.h>
#include <string.h>

enum {
    HEADER_WEIGHTS = 0,
    HEADER_SEGMENT_GROUPS = 4,
    HEADER_ONE = 8,
    HEADER_TWO = 12,
    HEADER_THREE = 16,
    HEADER_ESCAPES = 20,
    HEADER_TABLES = 24,
    HEADER_RESERVED = 25, // seven bytes
    HEADER_BYTES = 32,

    GROUP_STORED_BYTES = Q3_BITPLANE_GROUP + Q3_BITPLANE_PLANES_BYTES,
    ALIGNMENT = 64, // of the low bytes in the frame
};

void q3_bitplane_kernels_fill(q3_bitplane_kernels *kernels, q3_cpu_level level)
{
    q3_bitplane_kernels_fill_c(kernels);
#if defined __x86_64__
    if (level < Q3_CPU_AVX2)
        return;
    q3_bitplane_kernels_fill_avx2(kernels);
    if (level < Q3_CPU_AVX512)
        return;
    q3_bitplane_kernels_fill_avx512(kernels);
#else
    (void)level;
#endif
}

void q3_bitplane_init(q3_bitplane *state)
{
    *state = (q3_bitplane){0};
    q3_bitplane_kernels_fill(&state->kernels, q3_cpu_in_use());
}

void q3_bitplane_free(q3_bitplane *state)
{
    free(state->counts);
    free(state->streams);
    *state = (q3_bitplane){0};
}

static size_t divide_up(size_t number, size_t by)
{
    return number / by + (number % by != 0);
}

// ---- decoding ----

static bool check_tables(q3_bitplane_view *view, q3_error *err)
{
    for (unsigned t = 0; t < view->tables; t++) {
        const uint8_t *table = view->table + t * Q3_BITPLANE_TABLE_BYTES;
        for (unsigned i = 0; i < Q3_BITPLANE_CODED; i++) {
            uint64_t *word = &view->coded[t][table[i] / 64];
            const uint64_t bit = UINT64_C(1) << table[i] % 64;
            if (*word & bit)
                return q3_fail(err, Q3_MALFORMED,
                               "bit-plane frame: table %u has the exponent %u twice", t, table[i]);
            *word |= bit;
        }
        if (table[Q3_BITPLANE_CODED])
            return q3_fail(err, Q3_MALFORMED,
                           "bit-plane frame: the last byte of table %u is not zero", t);
    }
    return true;
}

static bool check_numbers(const q3_bitplane_view *view, size_t segments, q3_error *err)
{
    for (size_t i = 0; i < segments; i++)
        if (q3_bitplane_number(view, i) >= view->tables)
            return q3_fail(err, Q3_MALFORMED,
                           "bit-plane frame: segment %zu asks for table %u of %u", i,
                           q3_bitplane_number(view, i), view->tables);
    if (segments % 4 && view->numbers[segments / 4] >> segments % 4 * 2)
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: bits behind the last table number are not zero");
    return true;
}

bool q3_bitplane_parse(const void *stored, size_t stored_bytes, size_t raw_bytes,
                       q3_bitplane_view *view, q3_error *err)
{
    const q3_bytes frame = {stored, stored_bytes};
    uint32_t weights, segment_groups, stream_bytes[4];
    if (frame.size < HEADER_BYTES)
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: expected a header of %d bytes, found %zu bytes",
                       HEADER_BYTES, frame.size);
    q3_read_u32(frame, HEADER_WEIGHTS, &weights);
    q3_read_u32(frame, HEADER_SEGMENT_GROUPS, &segment_groups);
    for (unsigned i = 0; i < 4; i++)
        q3_read_u32(frame, HEADER_ONE + 4 * i, &stream_bytes[i]);
    *view = (q3_bitplane_view){.weights = weights,
                               .groups = weights / Q3_BITPLANE_GROUP,
                               .segment_groups = segment_groups,
                               .tables = frame.data[HEADER_TABLES],
                               .frame = frame.data};
    if (raw_bytes % 2 || view->weights != raw_bytes / 2)
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: expected weights of %zu bytes, found %zu weights",
                       raw_bytes, view->weights);
    if (view->groups == 0)
        return q3_fail(err, Q3_MALFORMED, "bit-plane frame: %zu weights are less than a group",
                       view->weights);
    if (view->tables == 0 || view->tables > Q3_BITPLANE_TABLES_MAX)
        return q3_fail(err, Q3_MALFORMED, "bit-plane frame: expected 1 to %d tables, found %u",
                       Q3_BITPLANE_TABLES_MAX, view->tables);
    if (view->segment_groups == 0 || view->segment_groups > view->groups ||
        (view->tables == 1 && view->segment_groups != view->groups))
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: segments of %zu groups are impossible for %zu groups and "
                       "%u tables",
                       view->segment_groups, view->groups, view->tables);
    if (!q3_all_zero(frame.data + HEADER_RESERVED, HEADER_BYTES - HEADER_RESERVED))
        return q3_fail(err, Q3_MALFORMED, "bit-plane frame: reserved bytes are not zero");

    // Nothing here wraps: each term is below 2^40.
    const size_t segments = divide_up(view->groups, view->segment_groups);
    const size_t numbers_bytes = view->tables == 1 ? 0 : divide_up(segments, 4);
    const uint64_t tables_at = HEADER_BYTES;
    const uint64_t numbers_at = tables_at + (uint64_t)view->tables * Q3_BITPLANE_TABLE_BYTES;
    uint64_t at = numbers_at + numbers_bytes, low_at;
    q3_bytes *const streams[4] = {&view->one, &view->two, &view->three, &view->escapes};
    for (unsigned i = 0; i < 4; i++)
        at += stream_bytes[i];
    q3_align(at, ALIGNMENT, &low_at);
    const uint64_t expected = low_at + (uint64_t)view->groups * GROUP_STORED_BYTES +
                              view->weights % Q3_BITPLANE_GROUP * 2;
    if (frame.size != expected)
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: its sections take %llu bytes, found %zu",
                       (unsigned long long)expected, frame.size);
    view->table = frame.data + tables_at;
    view->numbers = frame.data + numbers_at;
    const uint8_t *stream = view->numbers + numbers_bytes;
    for (unsigned i = 0; i < 4; i++) {
        *streams[i] = (q3_bytes){stream, stream_bytes[i]};
        stream += stream_bytes[i];
    }
    if (!q3_all_zero(frame.data + at, (size_t)(low_at - at)))
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: bytes between the streams and the low bytes are not zero");
    view->low = frame.data + low_at;
    view->planes = view->low + view->groups * Q3_BITPLANE_GROUP;
    view->tail = view->planes + view->groups * Q3_BITPLANE_PLANES_BYTES;
    return check_tables(view, err) && (view->tables == 1 || check_numbers(view, segments, err));
}

static bool ends(q3_bytes stream, size_t bits)
{
    return stream.size == divide_up(bits, 8) &&
           (bits % 8 == 0 || stream.data[stream.size - 1] >> bits % 8 == 0);
}

bool q3_bitplane_finished(const q3_bitplane_view *view, const q3_bitplane_cursors *end,
                          q3_error *err)
{
    if (ends(view->one, end->one) && ends(view->two, end->two) && ends(view->three, end->three) &&
        view->escapes.size == end->escapes)
        return true;
    return q3_fail(err, Q3_MALFORMED,
                   "bit-plane frame: the streams do not end where the planes say");
}

bool q3_bitplane_decode(const q3_bitplane *state, const void *stored, size_t stored_bytes,
                        void *raw, size_t raw_bytes, bool streaming, q3_error *err)
{
    q3_bitplane_view view;
    if (!q3_bitplane_parse(stored, stored_bytes, raw_bytes, &view, err))
        return false;
    streaming = streaming && (uintptr_t)raw % 64 == 0;
    q3_bitplane_cursors end;
    const bool inside = streaming ? state->kernels.decode_streaming(&view, raw, &end)
                                  : state->kernels.decode(&view, raw, &end);
    if (!inside)
        return q3_fail(err, Q3_MALFORMED,
                       "bit-plane frame: the streams do not hold what the planes say");
    if (!q3_bitplane_finished(&view, &end, err))
        return false;
    const size_t whole = view.groups * Q3_BITPLANE_GROUP * 2;
    memcpy((uint8_t *)raw + whole, view.tail, raw_bytes - whole);
    return true;
}

// ---- encoding ----

// Bits of each stream, and bytes of the escapes, for weights with a certain index.
typedef struct stream_sizes {
    uint64_t one, two, three, escapes;
} stream_sizes;

static void add_sizes(stream_sizes *sizes, unsigned index, uint64_t count)
{
    sizes->one += index >= 2 ? count : 0;
    sizes->two += index >= 5 ? 2 * count : 0;
    sizes->three += index >= 8 ? 3 * count : 0;
    sizes->escapes += index == Q3_BITPLANE_ESCAPE ? count : 0;
}

static size_t streams_bytes(const stream_sizes *sizes)
{
    return (size_t)(divide_up(sizes->one, 8) + divide_up(sizes->two, 8) +
                    divide_up(sizes->three, 8) + sizes->escapes);
}

// All decisions are made here, with whole numbers, so that they do not depend on the processor.
enum {
    SEGMENT_GROUPS_LEAST = 8, // less hardly pays for the table numbers
    SEGMENT_GROUPS_USUAL = 16,
    SEGMENTS_MAX = 1024, // bounds the encoder's memory
    ROUNDS = 3,
};

static size_t choose_segment_groups(size_t groups, size_t row)
{
    size_t unit = SEGMENT_GROUPS_USUAL;
    if (row && row % Q3_BITPLANE_GROUP == 0 && row / Q3_BITPLANE_GROUP <= groups)
        unit = row / Q3_BITPLANE_GROUP;
    size_t segment = unit;
    if (segment < SEGMENT_GROUPS_LEAST)
        segment = unit * divide_up(SEGMENT_GROUPS_LEAST, unit);
    if (divide_up(groups, segment) > SEGMENTS_MAX)
        segment = unit * divide_up(divide_up(groups, SEGMENTS_MAX), unit);
    return segment < groups ? segment : groups;
}

static void count_exponents(const uint8_t *raw, size_t weights, uint32_t counts[256])
{
    // Several counters for each exponent: equal exponents in a row do not wait for each other.
    uint32_t parts[4][256] = {0};
    size_t i = 0;
    for (; i + 4 <= weights; i += 4)
        for (unsigned k = 0; k < 4; k++) {
            const uint8_t *weight = raw + 2 * (i + k);
            parts[k][(weight[0] | (unsigned)weight[1] << 8) >> 7 & 0xff]++;
        }
    for (unsigned e = 0; e < 256; e++)
        counts[e] = parts[0][e] + parts[1][e] + parts[2][e] + parts[3][e];
}

// The most frequent exponents in descending order, of equal ones the lower first.
static void rank_exponents(const uint32_t counts[256], uint8_t table[Q3_BITPLANE_TABLE_BYTES])
{
    uint32_t count_of[Q3_BITPLANE_CODED];
    unsigned used = 0;
    for (unsigned e = 0; e < 256; e++) {
        unsigned at = used;
        if (used < Q3_BITPLANE_CODED)
            used++;
        else if (counts[e] > count_of[Q3_BITPLANE_CODED - 1])
            at = Q3_BITPLANE_CODED - 1;
        else
            continue;
        for (; at && count_of[at - 1] < counts[e]; at--) {
            count_of[at] = count_of[at - 1];
            table[at] = table[at - 1];
        }
        count_of[at] = counts[e];
        table[at] = (uint8_t)e;
    }
    table[Q3_BITPLANE_CODED] = 0;
}

static void invert_table(const uint8_t table[Q3_BITPLANE_TABLE_BYTES], uint8_t index[256])
{
    memset(index, Q3_BITPLANE_ESCAPE, 256);
    for (unsigned i = 0; i < Q3_BITPLANE_CODED; i++)
        index[table[i]] = (uint8_t)i;
}

// What the encoder knows of a frame.
typedef struct survey {
    size_t segments;
    const uint32_t *counts;   // 256 a segment
    unsigned lowest, highest; // exponents that occur
} survey;

typedef struct segment_mean {
    uint32_t mean, segment;
} segment_mean;

static int compare_means(const void *a, const void *b)
{
    const segment_mean *x = a, *y = b;
    if (x->mean != y->mean)
        return x->mean < y->mean ? -1 : 1;
    return x->segment < y->segment ? -1 : 1;
}

// Rows of a matrix differ mostly in scale: to begin with, equally many segments of small, of larger
// exponents, and so on.
static void assign_by_mean(const survey *s, uint8_t *numbers)
{
    segment_mean means[SEGMENTS_MAX];
    for (size_t i = 0; i < s->segments; i++) {
        const uint32_t *counts = s->counts + 256 * i;
        uint64_t sum = 0, count = 0;
        for (unsigned e = s->lowest; e <= s->highest; e++) {
            sum += (uint64_t)e * counts[e];
            count += counts[e];
        }
        means[i] = (segment_mean){.mean = (uint32_t)((sum << 16) / count), .segment = (uint32_t)i};
    }
    qsort(means, s->segments, sizeof *means, compare_means);
    for (size_t i = 0; i < s->segments; i++)
        numbers[means[i].segment] = (uint8_t)(i * Q3_BITPLANE_TABLES_MAX / s->segments);
}

static void make_tables(const survey *s, q3_bitplane_plan *plan, const uint8_t *numbers)
{
    uint32_t counts[Q3_BITPLANE_TABLES_MAX][256] = {0};
    for (size_t i = 0; i < s->segments; i++)
        for (unsigned e = s->lowest; e <= s->highest; e++)
            counts[numbers[i]][e] += s->counts[256 * i + e];
    for (unsigned t = 0; t < Q3_BITPLANE_TABLES_MAX; t++) {
        rank_exponents(counts[t], plan->table[t]);
        invert_table(plan->table[t], plan->index[t]);
    }
}

// Gives each segment the table that stores it in the fewest bits.
static void assign_by_cost(const survey *s, const q3_bitplane_plan *plan, uint8_t *numbers)
{
    static const uint8_t bits[16] = {2, 2, 3, 3, 3, 5, 5, 5, 8, 8, 8, 8, 8, 8, 8, 16};
    uint32_t cost_of[Q3_BITPLANE_TABLES_MAX][256];
    for (unsigned t = 0; t < Q3_BITPLANE_TABLES_MAX; t++)
        for (unsigned e = 0; e < 256; e++)
            cost_of[t][e] = bits[plan->index[t][e]];
    for (size_t i = 0; i < s->segments; i++) {
        const uint32_t *counts = s->counts + 256 * i;
        uint32_t least = UINT32_MAX;
        for (unsigned t = 0; t < Q3_BITPLANE_TABLES_MAX; t++) {
            uint32_t cost = 0; // of at most 2^23 weights
            for (unsigned e = s->lowest; e <= s->highest; e++)
                cost += counts[e] * cost_of[t][e];
            if (cost < least) {
                least = cost;
                numbers[i] = (uint8_t)t;
            }
        }
    }
}

static stream_sizes measure(const survey *s, const q3_bitplane_plan *plan, const uint8_t *numbers)
{
    stream_sizes sizes = {0};
    for (size_t i = 0; i < s->segments; i++)
        for (unsigned e = s->lowest; e <= s->highest; e++)
            add_sizes(&sizes, plan->index[numbers[i]][e], s->counts[256 * i + e]);
    return sizes;
}

// Leaves out tables that no segment uses.
static void drop_unused(const survey *s, q3_bitplane_plan *plan, uint8_t *numbers)
{
    bool used[Q3_BITPLANE_TABLES_MAX] = {0};
    uint8_t renamed[Q3_BITPLANE_TABLES_MAX] = {0};
    for (size_t i = 0; i < s->segments; i++)
        used[numbers[i]] = true;
    plan->tables = 0;
    for (unsigned t = 0; t < Q3_BITPLANE_TABLES_MAX; t++)
        if (used[t]) {
            renamed[t] = (uint8_t)plan->tables;
            memmove(plan->table[plan->tables], plan->table[t], sizeof *plan->table);
            memmove(plan->index[plan->tables], plan->index[t], sizeof *plan->index);
            plan->tables++;
        }
    for (size_t i = 0; i < s->segments; i++)
        numbers[i] = renamed[numbers[i]];
}

static size_t tables_bytes(unsigned tables, size_t segments)
{
    return tables * Q3_BITPLANE_TABLE_BYTES + (tables == 1 ? 0 : divide_up(segments, 4));
}

// Decides on tables and on the table of each segment (numbers has room for SEGMENTS_MAX).
static stream_sizes make_plan(const survey *s, q3_bitplane_plan *plan, uint8_t *numbers)
{
    stream_sizes several = {0};
    size_t several_bytes = SIZE_MAX;
    plan->numbers = numbers;
    if (s->segments > 1) {
        assign_by_mean(s, numbers);
        for (unsigned round = 0; round < ROUNDS; round++) {
            make_tables(s, plan, numbers);
            assign_by_cost(s, plan, numbers);
        }
        make_tables(s, plan, numbers);
        drop_unused(s, plan, numbers);
        several = measure(s, plan, numbers);
        several_bytes = tables_bytes(plan->tables, s->segments) + streams_bytes(&several);
        if (plan->tables == 1)
            several_bytes = SIZE_MAX;
    }
    uint32_t counts[256] = {0};
    for (size_t i = 0; i < s->segments; i++)
        for (unsigned e = s->lowest; e <= s->highest; e++)
            counts[e] += s->counts[256 * i + e];
    uint8_t table[Q3_BITPLANE_TABLE_BYTES], index[256];
    rank_exponents(counts, table);
    invert_table(table, index);
    stream_sizes single = {0};
    for (unsigned e = s->lowest; e <= s->highest; e++)
        add_sizes(&single, index[e], counts[e]);
    if (several_bytes < tables_bytes(1, s->segments) + streams_bytes(&single))
        return several;
    memcpy(plan->table[0], table, sizeof table);
    memcpy(plan->index[0], index, sizeof index);
    memset(numbers, 0, s->segments);
    plan->tables = 1;
    plan->segment_groups = plan->groups;
    return single;
}

static void survey_frame(const uint8_t *raw, const q3_bitplane_plan *plan, size_t segments,
                         uint32_t *counts, survey *s)
{
    *s = (survey){.segments = segments, .counts = counts, .lowest = 255, .highest = 0};
    uint32_t present[256] = {0};
    for (size_t i = 0; i < segments; i++) {
        const size_t done = i * plan->segment_groups;
        const size_t left = plan->groups - done;
        const size_t size = left < plan->segment_groups ? left : plan->segment_groups;
        count_exponents(raw + done * Q3_BITPLANE_GROUP * 2, size * Q3_BITPLANE_GROUP,
                        counts + 256 * i);
        for (unsigned e = 0; e < 256; e++)
            present[e] |= counts[256 * i + e];
    }
    while (!present[s->highest] && s->highest < 255)
        s->highest++;
    for (unsigned e = 0; e < 256; e++)
        if (present[e]) {
            s->lowest = e < s->lowest ? e : s->lowest;
            s->highest = e;
        }
}

bool q3_bitplane_encode(q3_bitplane *state, const void *raw, size_t raw_bytes, size_t row,
                        void *stored, size_t *stored_bytes, q3_error *err)
{
    *stored_bytes = raw_bytes;
    const size_t weights = raw_bytes / 2, groups = weights / Q3_BITPLANE_GROUP;
    if (groups == 0 || raw_bytes % 2 || weights > UINT32_MAX)
        return true;
    q3_bitplane_plan plan = {.groups = groups,
                             .segment_groups = choose_segment_groups(groups, row)};
    const size_t segments = divide_up(groups, plan.segment_groups);
    if (!q3_grow(&state->counts, &state->counts_capacity, segments * 256, sizeof *state->counts,
                 err))
        return false;
    uint8_t numbers[SEGMENTS_MAX];
    survey s;
    survey_frame(raw, &plan, segments, state->counts, &s);
    const stream_sizes sizes = make_plan(&s, &plan, numbers);

    const size_t stream_bytes[4] = {(size_t)divide_up(sizes.one, 8),
                                    (size_t)divide_up(sizes.two, 8),
                                    (size_t)divide_up(sizes.three, 8), (size_t)sizes.escapes};
    const size_t streams_at = HEADER_BYTES + tables_bytes(plan.tables, segments);
    size_t at = streams_at + streams_bytes(&sizes);
    const size_t low_at = divide_up(at, ALIGNMENT) * ALIGNMENT;
    const size_t size = low_at + groups * GROUP_STORED_BYTES + weights % Q3_BITPLANE_GROUP * 2;
    if (size >= raw_bytes)
        return true;
    // Streams are made at the side: writing them in place would need care at each one's end.
    if (!q3_grow(&state->streams, &state->streams_capacity,
                 streams_bytes(&sizes) + 4 * Q3_BITPLANE_SLACK, 1, err))
        return false;
    uint8_t *frame = stored, *side = state->streams;
    uint8_t **const streams[4] = {&plan.one, &plan.two, &plan.three, &plan.escapes};
    for (unsigned i = 0; i < 4; i++) {
        *streams[i] = side;
        side += stream_bytes[i] + Q3_BITPLANE_SLACK;
    }
    plan.low = frame + low_at;
    plan.planes = plan.low + groups * Q3_BITPLANE_GROUP;
    state->kernels.encode(&plan, raw);

    memset(frame, 0, streams_at);
    q3_put_u32(frame + HEADER_WEIGHTS, (uint32_t)weights);
    q3_put_u32(frame + HEADER_SEGMENT_GROUPS, (uint32_t)plan.segment_groups);
    frame[HEADER_TABLES] = (uint8_t)plan.tables;
    for (unsigned t = 0; t < plan.tables; t++)
        memcpy(frame + HEADER_BYTES + t * Q3_BITPLANE_TABLE_BYTES, plan.table[t],
               Q3_BITPLANE_TABLE_BYTES);
    if (plan.tables > 1)
        for (size_t i = 0; i < segments; i++)
            frame[HEADER_BYTES + plan.tables * Q3_BITPLANE_TABLE_BYTES + i / 4] |=
                (uint8_t)(numbers[i] << i % 4 * 2);
    at = streams_at;
    for (unsigned i = 0; i < 4; i++) {
        q3_put_u32(frame + HEADER_ONE + 4 * i, (uint32_t)stream_bytes[i]);
        memcpy(frame + at, *streams[i], stream_bytes[i]);
        at += stream_bytes[i];
    }
    memset(frame + at, 0, low_at - at);
    const size_t whole = groups * Q3_BITPLANE_GROUP * 2;
    memcpy(plan.planes + groups * Q3_BITPLANE_PLANES_BYTES, (const uint8_t *)raw + whole,
           raw_bytes - whole);
    *stored_bytes = size;
    return true;
}
