// SPDX-License-Identifier: Apache-2.0
//
// Measures the kernels on synthetic experts (two matrices of 768 x 2048 and one of 2048 x 768,
// Gaussian weights times a scale per row) that are streamed from memory once a pass, as a forward
// pass does: plain, as bf12, and stored in bit-plane frames, multiplied from or decoded first; cut
// as a pack file has them. Then attention from float32 and from bf16 keys and values.
//
// Times are the best of several passes. GB/s count weights as plain
// bf16, however they are stored. The read probe is a sum over the same plain memory.
//
// bench_kernels [EXPERTS [PASSES]]
#include "base/cpu.h"
#include "base/workers.h"
#include "bench.h"
#include "kernels/kernels.h"
#include "matrix.h"
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    EXPERTS = 16,
    PASSES = 5,
    MATRICES = 3,
    WEIGHTS = MATRICES * 768 * 2048,
    EXPERT_BYTES = WEIGHTS * 2,
    BLOCKS_MAX = 64,
    VECTORS_MAX = 128,
    COLUMNS_MAX = 2048,
    THREADS = 2,
};

static const uint32_t rows_of[MATRICES] = {768, 768, 2048},
                      columns_of[MATRICES] = {2048, 2048, 768};

static unsigned experts, passes;
// The forms of weights: plain, bf12, stored as bit planes, and these decoded first.
enum { PLAIN, BF12, STORED, DECODED, HOWS, FORMS = DECODED };
static uint8_t *raw_memory, *frame_memory, *bf12_memory;
static uint32_t block_rows[MATRICES], blocks_in[MATRICES];
// Of each expert, and in each form.
static q3_block *blocks[FORMS];
static unsigned blocks_an_expert;

// ---- experts ----

static void make_experts(void)
{
    q3_error err;
    raw_memory = bench_map((size_t)EXPERT_BYTES * experts);
    frame_memory = bench_map((size_t)EXPERT_BYTES * experts);
    bf12_memory = bench_map((size_t)EXPERT_BYTES * experts);
    float *row = bench_map(COLUMNS_MAX * sizeof *row);
    uint8_t *to = raw_memory;
    for (unsigned m = 0; m < MATRICES; m++) {
        for (uint32_t r = 0; r < rows_of[m]; r++) {
            const double scale = 0.02 * exp(0.3 * bench_normal());
            for (uint32_t c = 0; c < columns_of[m]; c++)
                row[c] = (float)(scale * bench_normal());
            q3_kernels_c.narrow(row, columns_of[m], (uint16_t *)(void *)to);
            to += 2 * columns_of[m];
        }
        q3_tensor tensor = {
            .name = "", .dtype = Q3_BF16, .rank = 2, .shape = {rows_of[m], columns_of[m]}};
        q3_tensor_size(&tensor);
        block_rows[m] = q3_frame_cut(&tensor) / (2 * columns_of[m]);
        blocks_in[m] = (rows_of[m] - 1) / block_rows[m] + 1;
        blocks_an_expert += blocks_in[m];
    }
    munmap(row, COLUMNS_MAX * sizeof *row);
    for (unsigned form = 0; form < FORMS; form++)
        blocks[form] = bench_map(experts * blocks_an_expert * sizeof **blocks);
    q3_coder *coder = q3_coder_create(&err);
    size_t raw_at = 0, frame_at = 0, bf12_at = 0;
    size_t sizes[BLOCKS_MAX], raw_sizes[BLOCKS_MAX], frames_at[BLOCKS_MAX], raws_at[BLOCKS_MAX],
        bf12s_at[BLOCKS_MAX];
    q3_block bf12_blocks[BLOCKS_MAX];
    for (unsigned m = 0, b = 0; m < MATRICES; m++)
        for (uint32_t i = 0; i < blocks_in[m]; i++, b++) {
            const uint32_t left = rows_of[m] - i * block_rows[m];
            const size_t bytes =
                2 * (size_t)columns_of[m] * (left < block_rows[m] ? left : block_rows[m]);
            q3_codec codec = Q3_CODEC_BITPLANE;
            if (!coder ||
                !q3_codec_encode(coder, &codec, Q3_BF16, columns_of[m], raw_memory + raw_at, bytes,
                                 frame_memory + frame_at, &sizes[b], &err))
                bench_die(err.message);
            if (!q3_block_shorten(&q3_bf12_kernels_c, (const uint16_t *)(raw_memory + raw_at),
                                  bytes / 2, bf12_memory + bf12_at, &bf12_blocks[b]))
                bench_die("too many exceptions");
            bf12s_at[b] = bf12_at;
            bf12_at += (q3_bf12_bytes(bytes / 2) + 63) / 64 * 64;
            frames_at[b] = frame_at;
            raws_at[b] = raw_at;
            raw_sizes[b] = bytes;
            raw_at += bytes;
            frame_at += (sizes[b] + 63) / 64 * 64;
        }
    q3_coder_destroy(coder);
    for (unsigned e = 0; e < experts; e++) {
        if (e) {
            memcpy(raw_memory + e * raw_at, raw_memory, raw_at);
            memcpy(frame_memory + e * frame_at, frame_memory, frame_at);
            memcpy(bf12_memory + e * bf12_at, bf12_memory, bf12_at);
        }
        for (unsigned b = 0; b < blocks_an_expert; b++) {
            blocks[PLAIN][e * blocks_an_expert + b] = (q3_block){
                .data = raw_memory + e * raw_at + raws_at[b], .bytes = (uint32_t)raw_sizes[b]};
            blocks[BF12][e * blocks_an_expert + b] = bf12_blocks[b];
            blocks[BF12][e * blocks_an_expert + b].data = bf12_memory + e * bf12_at + bf12s_at[b];
            blocks[STORED][e * blocks_an_expert + b] =
                (q3_block){.data = frame_memory + e * frame_at + frames_at[b],
                           .bytes = (uint32_t)sizes[b],
                           .kind = Q3_BLOCK_FRAME};
        }
    }
}

// ---- products ----

typedef struct product_run {
    const q3_kernels *kernels;
    const q3_products *products;
    unsigned form, threads;
    size_t vectors;
    const void *panels[MATRICES][VECTORS_MAX];
    float *y[VECTORS_MAX];
    void *scratch[THREADS];
    q3_coder *coders[THREADS];
} product_run;

static product_run run;
static uint64_t probe_sums[THREADS];

// The matrix and block that a task is about; returns the number of the matrix in its expert.
static unsigned find_block(uint32_t index, q3_matrix *matrix, uint32_t *block)
{
    const uint32_t expert = index / blocks_an_expert;
    *block = index % blocks_an_expert;
    unsigned m = 0;
    const q3_block *first = blocks[run.form] + expert * blocks_an_expert;
    for (; *block >= blocks_in[m]; *block -= blocks_in[m++])
        first += blocks_in[m];
    *matrix = (q3_matrix){
        .blocks = first, .rows = rows_of[m], .columns = columns_of[m], .block_rows = block_rows[m]};
    return m;
}

static void product_task(void *context, uint32_t index, unsigned worker)
{
    (void)context;
    q3_matrix matrix;
    uint32_t block;
    q3_next next = {0};
    if (index + run.threads < experts * blocks_an_expert) {
        find_block(index + run.threads, &matrix, &block);
        next = q3_matrix_next(&matrix, block);
    }
    const unsigned m = find_block(index, &matrix, &block);
    if (!q3_matrix_multiply(&matrix, block, run.kernels, run.products, run.panels[m], run.vectors,
                            run.y, next, run.scratch[worker], run.coders[worker]))
        bench_die("a frame is broken");
}

static void probe_task(void *context, uint32_t index, unsigned worker)
{
    (void)context;
    const uint64_t *from =
        (const uint64_t *)(const void *)(raw_memory + (size_t)index * (EXPERT_BYTES / 16));
    enum { STREAMS = 4, LINE = 8, STREAM = EXPERT_BYTES / 16 / sizeof *from / STREAMS };
    uint64_t sums[STREAMS][LINE] = {{0}};
    for (size_t i = 0; i < STREAM; i += LINE)
        for (size_t s = 0; s < STREAMS; s++)
            for (unsigned j = 0; j < LINE; j++)
                sums[s][j] += from[s * STREAM + i + j];
    for (size_t s = 0; s < STREAMS; s++)
        for (unsigned j = 0; j < LINE; j++)
            probe_sums[worker] += sums[s][j];
}

// Seconds of the best pass over all experts.
static double time_passes(q3_workers *workers, q3_task *task, uint32_t tasks)
{
    double best = INFINITY;
    for (unsigned p = 0; p < passes; p++) {
        const double start = q3_now();
        q3_workers_run(workers, task, NULL, tasks);
        best = fmin(best, q3_now() - start);
    }
    return best;
}

static void set_vectors(const q3_products *products, size_t vectors)
{
    static float *x;
    static void *panels[MATRICES][VECTORS_MAX];
    if (!x) {
        x = bench_map(COLUMNS_MAX * sizeof *x);
        for (unsigned i = 0; i < COLUMNS_MAX; i++)
            x[i] = (float)bench_normal();
    }
    const float *all[VECTORS_MAX];
    for (size_t v = 0; v < VECTORS_MAX; v++)
        all[v] = x;
    run.products = products;
    run.vectors = vectors;
    for (unsigned m = 0; m < MATRICES; m++)
        for (size_t v = 0; v < vectors; v += products->panel) {
            const size_t panel = v / products->panel;
            const size_t left = vectors - v;
            free(panels[m][panel]);
            panels[m][panel] = aligned_alloc(64, products->panel_bytes(columns_of[m]));
            if (!panels[m][panel])
                bench_die("out of memory");
            products->arrange(all, (unsigned)(left < products->panel ? left : products->panel),
                              columns_of[m], panels[m][panel]);
            run.panels[m][panel] = panels[m][panel];
        }
}

static void measure_products(const q3_products *products, q3_workers *const workers[THREADS])
{
    static const size_t counts[] = {1, 2, 3, 4, 6, 8, 16, 32, 64, 128};
    const double bytes = (double)EXPERT_BYTES * experts;
    q3_products decoding = *products;
    decoding.fused_vectors = 0;
    printf("\n%-8s           GB/s on one thread                           on two                   "
           "                  GFLOP/s, plain and bf12\n%-8s",
           products->name, " vectors");
    for (unsigned t = 0; t < THREADS; t++)
        printf("%10s%10s%10s%10s", "plain", "bf12", "stored", "decoded");
    printf("\n");
    for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
        double figure[THREADS][HOWS] = {0};
        const unsigned before = passes;
        passes = counts[i] > 8 ? 1 : counts[i] > 2 ? 3 : passes;
        for (unsigned t = 0; t < THREADS; t++)
            for (unsigned how = 0; how < HOWS; how++) {
                if ((how == STORED &&
                     (!products->multiply_frame || counts[i] > products->fused_vectors)) ||
                    (how == DECODED && counts[i] > 8))
                    continue;
                set_vectors(how == DECODED ? &decoding : products, counts[i]);
                run.form = how == DECODED ? STORED : how;
                run.threads = t + 1;
                const unsigned all = experts;
                if (counts[i] > 8)
                    experts = all > 4 ? 4 : all;
                const uint32_t tasks = experts * blocks_an_expert;
                figure[t][how] =
                    bytes * experts / all / time_passes(workers[t], product_task, tasks) / 1e9;
                experts = all;
            }
        passes = before;
        printf("%8zu", counts[i]);
        for (unsigned t = 0; t < THREADS; t++)
            for (unsigned how = 0; how < HOWS; how++)
                printf(figure[t][how] > 0 ? "%10.2f" : "         -", figure[t][how]);
        for (unsigned t = 0; t < THREADS; t++)
            printf("  %.1f %.1f", figure[t][PLAIN] * (double)counts[i],
                   figure[t][BF12] * (double)counts[i]);
        printf("\n");
    }
}

// ---- attention ----

static void measure_attention(const q3_kernels *kernels)
{
    enum { HEADS = 8, DIM = 128, POSITIONS_MAX = 8192 };
    static const size_t positions[] = {512, 4096, POSITIONS_MAX};
    const q3_attend_many *many = kernels->attend_many;
    const unsigned tokens_max = many ? many->tokens : Q3_ATTEND_TOKENS;
    const size_t stride = q3_score_stride(POSITIONS_MAX + tokens_max - 1);
    const size_t kept = stride * DIM;
    const size_t scratch = tokens_max * HEADS * stride * sizeof(float);
    float *query = bench_map(tokens_max * HEADS * DIM * sizeof *query);
    float *out = bench_map(tokens_max * HEADS * DIM * sizeof *out);
    float *scores = bench_map(scratch);
    float *keys = bench_map(kept * sizeof *keys), *values = bench_map(kept * sizeof *values);
    uint16_t *narrow_keys = bench_map(kept * 2), *narrow_values = bench_map(kept * 2);
    for (size_t i = 0; i < tokens_max * HEADS * DIM; i++)
        query[i] = (float)bench_normal();
    for (size_t i = 0; i < kept; i++) {
        keys[i] = (float)(2 * bench_unit() - 1);
        values[i] = (float)(2 * bench_unit() - 1);
    }
    kernels->narrow(keys, kept, narrow_keys);
    kernels->narrow(values, kept, narrow_values);
    const unsigned tokens[] = {1, Q3_ATTEND_TOKENS, tokens_max};
    const unsigned ways = many ? 3 : 2;
    printf("\n%-8s attention of 8 heads of 128: us and GFLOP/s for 1, 4", kernels->name);
    if (many)
        printf(", %u", tokens_max);
    printf(" tokens, float32 and bf16\n");
    for (unsigned i = 0; i < sizeof positions / sizeof *positions; i++) {
        printf("%16zu", positions[i]);
        for (unsigned narrow = 0; narrow < 2; narrow++)
            for (unsigned way = 0; way < ways; way++) {
                const q3_attention attention = {
                    .query = query,
                    .out = out,
                    .query_stride = HEADS * DIM,
                    .out_stride = HEADS * DIM,
                    .tokens = tokens[way],
                    .heads = HEADS,
                    .head_dim = DIM,
                    .positions = positions[i],
                    .keys = narrow ? (const void *)narrow_keys : keys,
                    .values = narrow ? (const void *)narrow_values : values,
                    .narrow = narrow,
                    .scale = 0.088388348f,
                    .scores = scores,
                };
                double best = INFINITY;
                for (unsigned p = 0; p < 2 + passes; p++) {
                    const double start = q3_now();
                    (way == 2 ? many->attend : kernels->attend)(&attention);
                    best = fmin(best, q3_now() - start);
                }
                printf("%10.1f (%5.1f)", best * 1e6,
                       4.0 * HEADS * DIM * (double)positions[i] * tokens[way] / best / 1e9);
            }
        printf("\n");
    }
    munmap(query, tokens_max * HEADS * DIM * sizeof *query);
    munmap(out, tokens_max * HEADS * DIM * sizeof *out);
    munmap(scores, scratch);
    munmap(keys, kept * sizeof *keys);
    munmap(values, kept * sizeof *values);
    munmap(narrow_keys, kept * 2);
    munmap(narrow_values, kept * 2);
}

int main(int argc, char **argv)
{
    q3_error err;
    static const char usage[] = "bench_kernels [EXPERTS [PASSES]]";
    experts = bench_argument(argc, argv, 1, EXPERTS, 1024, usage);
    passes = bench_argument(argc, argv, 2, PASSES, 99, usage);
    bench_seed(20261122);
    make_experts();
    q3_workers *workers[THREADS];
    double probe[THREADS];
    for (unsigned v = 0; v < VECTORS_MAX; v++)
        run.y[v] = bench_map(COLUMNS_MAX * sizeof(float));
    for (unsigned t = 0; t < THREADS; t++) {
        run.scratch[t] = bench_map(Q3_BLOCK_BYTES_MAX);
        if (!q3_workers_create(t + 1, &workers[t], &err) ||
            !(run.coders[t] = q3_coder_create(&err)))
            bench_die(err.message);
        probe[t] = (double)EXPERT_BYTES * experts /
                   time_passes(workers[t], probe_task, 16 * experts) / 1e9;
    }
    printf("read probe: %.2f GB/s on 1 thread, %.2f on 2\n", probe[0], probe[1]);
    const q3_kernels *before = NULL;
    for (unsigned level = 1; level <= q3_cpu_detected(); level++) {
        const q3_kernels *kernels = q3_kernels_for((q3_cpu_level)level);
        if (kernels == before)
            continue;
        run.kernels = kernels;
        measure_products(kernels->few, workers);
        if (kernels->many != kernels->few)
            measure_products(kernels->many, workers);
        measure_attention(kernels);
        before = kernels;
    }
    for (unsigned t = 0; t < THREADS; t++) {
        q3_workers_destroy(workers[t]);
        q3_coder_destroy(run.coders[t]);
    }
    return probe_sums[0] == 1;
}
