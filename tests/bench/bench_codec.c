// SPDX-License-Identifier: Apache-2.0
//
// Measures the codecs on synthetic experts: three matrices (768 x 2048 twice, 2048 x 768) of
// Gaussian weights, or of Student's t with 5 degrees of freedom, times a scale per row that is
// log-normal with a deviation of 0.3. Cut into frames as a pack file has them.
//
// Speeds are uncompressed bytes by the CPU time of one thread, the median of several passes; the
// methods take turns, so that a busy machine slows them alike. "Warm": one frame again and again,
// from cache to cache. "Cold": stored frames and output are larger than any cache.
//
// bench_codec [EXPERTS [PASSES]]: how many experts' memory the cold figures go through.
#include "base/cpu.h"
#include "base/hash.h"
#include "bench.h"
#include "codec/codec.h"
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    EXPERTS = 48,
    PASSES = 7,
    PASSES_MAX = 99,
    MATRICES = 3,
    WEIGHTS = MATRICES * 768 * 2048,
    EXPERT_BYTES = WEIGHTS * 2,
    FRAMES_MAX = 64,
    METHODS_MAX = 2 + Q3_CPU_LEVELS,
};

static const uint64_t rows_of[MATRICES] = {768, 768, 2048},
                      columns_of[MATRICES] = {2048, 2048, 768};

// ---- weights ----

static double random_t5(void)
{
    double squares = 0;
    const double normal = bench_normal();
    for (unsigned i = 0; i < 5; i++) {
        const double other = bench_normal();
        squares += other * other;
    }
    return normal / sqrt(squares / 5) * sqrt(3.0 / 5); // of variance 1
}

static uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void make_expert(double (*draw)(void), uint16_t *weights)
{
    bench_seed(20261122);
    for (unsigned m = 0; m < MATRICES; m++)
        for (uint64_t r = 0; r < rows_of[m]; r++) {
            const double scale = 0.02 * exp(0.3 * bench_normal());
            for (uint64_t c = 0; c < columns_of[m]; c++)
                *weights++ = to_bf16((float)(scale * draw()));
        }
}

// ---- what is measured ----

typedef struct frame {
    size_t raw_at, raw_bytes, row;
} frame;

static frame frames[FRAMES_MAX];
static unsigned frame_count;

// A codec at a level of processor.
typedef struct method {
    char name[32];
    q3_codec codec;
    q3_coder *coder;
    uint8_t *stored; // every expert's frames, each at a multiple of 64
    size_t stored_at[FRAMES_MAX], stored_bytes[FRAMES_MAX];
    uint64_t hash[FRAMES_MAX];
    size_t expert_stored; // of one expert, gaps included
    size_t stored_sum;
} method;

static method methods[METHODS_MAX];
static unsigned method_count;
static unsigned experts, passes;
static uint8_t *expert, *output; // one expert's weights, room for all
static uint8_t scratch[Q3_FRAME_BYTES];

static void cut_frames(void)
{
    size_t at = 0;
    for (unsigned m = 0; m < MATRICES; m++) {
        q3_tensor tensor = {
            .name = "", .dtype = Q3_BF16, .rank = 2, .shape = {rows_of[m], columns_of[m]}};
        q3_tensor_size(&tensor);
        for (uint64_t done = 0; done < tensor.bytes;) {
            const uint64_t left = tensor.bytes - done;
            const size_t size =
                (size_t)(left < q3_frame_cut(&tensor) ? left : q3_frame_cut(&tensor));
            frames[frame_count++] =
                (frame){.raw_at = at, .raw_bytes = size, .row = (size_t)columns_of[m]};
            at += size;
            done += size;
        }
    }
}

static void encode_frame(method *m, unsigned f, uint8_t *stored, size_t *stored_bytes)
{
    q3_error err;
    q3_codec codec = m->codec;
    if (!q3_codec_encode(m->coder, &codec, Q3_BF16, frames[f].row, expert + frames[f].raw_at,
                         frames[f].raw_bytes, stored, stored_bytes, &err))
        bench_die(err.message);
    if (codec != m->codec)
        bench_die("a frame did not shrink");
}

static void decode_frame(const method *m, unsigned f, const uint8_t *stored, uint8_t *raw)
{
    q3_error err;
    if (!q3_codec_decode(m->coder, m->codec, stored, m->stored_bytes[f], raw, frames[f].raw_bytes,
                         &err))
        bench_die(err.message);
}

static void store_experts(method *m)
{
    m->expert_stored = m->stored_sum = 0;
    uint8_t *once = bench_map(EXPERT_BYTES);
    for (unsigned f = 0; f < frame_count; f++) {
        size_t size;
        encode_frame(m, f, scratch, &size);
        m->stored_at[f] = m->expert_stored;
        m->stored_bytes[f] = size;
        m->hash[f] = q3_hash64(scratch, size);
        memcpy(once + m->expert_stored, scratch, size);
        m->expert_stored +=
            (size + Q3_FRAME_ALIGNMENT - 1) / Q3_FRAME_ALIGNMENT * Q3_FRAME_ALIGNMENT;
        m->stored_sum += size;
    }
    m->stored = bench_map(m->expert_stored * experts);
    for (unsigned e = 0; e < experts; e++)
        memcpy(m->stored + e * m->expert_stored, once, m->expert_stored);
    for (unsigned f = 0; f < frame_count; f++) {
        decode_frame(m, f, once + m->stored_at[f], scratch);
        if (memcmp(scratch, expert + frames[f].raw_at, frames[f].raw_bytes) != 0)
            bench_die("a frame did not come back");
    }
    munmap(once, EXPERT_BYTES);
}

enum { ENCODE, WARM, COLD, STREAMING, VERIFIED, FIGURES };
static const char *const figure_names[FIGURES] = {"encode", "warm", "cold", "streaming",
                                                  "verified"};

static double cpu_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// GB/s of one pass.
static double measure(method *m, unsigned figure)
{
    double bytes = 0;
    q3_coder_set_streaming(m->coder, figure == STREAMING || figure == VERIFIED);
    const double start = cpu_seconds();
    if (figure == ENCODE) {
        for (unsigned f = 0; f < frame_count; f++) {
            size_t size;
            encode_frame(m, f, scratch, &size);
            bytes += (double)frames[f].raw_bytes;
        }
    } else if (figure == WARM) {
        for (unsigned i = 0; i < 100; i++) {
            decode_frame(m, 0, m->stored, scratch);
            bytes += (double)frames[0].raw_bytes;
        }
    } else {
        for (unsigned e = 0; e < experts; e++)
            for (unsigned f = 0; f < frame_count; f++) {
                const uint8_t *stored = m->stored + e * m->expert_stored + m->stored_at[f];
                if (figure == VERIFIED && q3_hash64(stored, m->stored_bytes[f]) != m->hash[f])
                    bench_die("a hash is wrong");
                decode_frame(m, f, stored, output + (size_t)e * EXPERT_BYTES + frames[f].raw_at);
                bytes += (double)frames[f].raw_bytes;
            }
    }
    return bytes / (cpu_seconds() - start) / 1e9;
}

static void measure_all(const char *weights)
{
    static double speeds[METHODS_MAX][FIGURES][PASSES_MAX];
    for (unsigned p = 0; p < passes; p++)
        for (unsigned figure = 0; figure < FIGURES; figure++)
            for (unsigned i = 0; i < method_count; i++)
                speeds[i][figure][p] = measure(&methods[i], figure);
    printf("%-18s %7s", weights, "ratio");
    for (unsigned figure = 0; figure < FIGURES; figure++)
        printf(" %9s", figure_names[figure]);
    printf("  streaming / zstd\n");
    double of_zstd = 0;
    for (unsigned i = 0; i < method_count; i++) {
        double median[FIGURES];
        printf("%-18s %7.4f", methods[i].name, (double)methods[i].stored_sum / EXPERT_BYTES);
        for (unsigned figure = 0; figure < FIGURES; figure++) {
            median[figure] = bench_median(speeds[i][figure], passes);
            printf(" %9.2f", median[figure]);
        }
        if (methods[i].codec == Q3_CODEC_ZSTD)
            of_zstd = median[STREAMING];
        if (of_zstd > 0)
            printf("  %.2f", median[STREAMING] / of_zstd);
        printf("\n");
    }
}

static void add_method(q3_codec codec, q3_cpu_level level)
{
    q3_error err;
    method *m = &methods[method_count++];
    if (!q3_cpu_limit(level, &err) || !(m->coder = q3_coder_create(&err)))
        bench_die(err.message);
    m->codec = codec;
    snprintf(m->name, sizeof m->name, codec == Q3_CODEC_BITPLANE ? "%s %s" : "%s",
             q3_codec_name(codec), q3_cpu_name(level));
}

int main(int argc, char **argv)
{
    static const char usage[] = "bench_codec [EXPERTS [PASSES]]";
    experts = bench_argument(argc, argv, 1, EXPERTS, 1024, usage);
    passes = bench_argument(argc, argv, 2, PASSES, PASSES_MAX, usage);
    add_method(Q3_CODEC_RAW, q3_cpu_detected());
    add_method(Q3_CODEC_ZSTD, q3_cpu_detected());
    for (unsigned level = 0; level <= q3_cpu_detected(); level++)
        add_method(Q3_CODEC_BITPLANE, (q3_cpu_level)level);
    cut_frames();
    expert = bench_map(EXPERT_BYTES);
    output = bench_map((size_t)EXPERT_BYTES * experts);
    static double (*const draws[])(void) = {bench_normal, random_t5};
    static const char *const draw_names[] = {"Gauss, GB/s", "Student t5, GB/s"};
    for (unsigned d = 0; d < sizeof draws / sizeof *draws; d++) {
        uint16_t *weights = (uint16_t *)(void *)expert;
        make_expert(draws[d], weights);
        for (unsigned i = 0; i < method_count; i++)
            store_experts(&methods[i]);
        measure_all(draw_names[d]);
        for (unsigned i = 0; i < method_count; i++)
            munmap(methods[i].stored, methods[i].expert_stored * experts);
    }
    munmap(output, (size_t)EXPERT_BYTES * experts);
    munmap(expert, EXPERT_BYTES);
    for (unsigned i = 0; i < method_count; i++)
        q3_coder_destroy(methods[i].coder);
    return 0;
}
