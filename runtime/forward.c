// SPDX-License-Identifier: Apache-2.0
#include "forward.h"

#include "base/interrupt.h"

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

// A product for some vectors: y = W x, or, with a second matrix, the first half of a gated layer,
// y = silu(W x) * (V x).
typedef struct product {
    q3_matrix matrix;
    const q3_matrix *second; // of the same shape and blocks, or NULL
    const void *const *panels;
    float *const *y;
    float *const *second_y;
    uint32_t vectors;
    uint32_t group; // vectors of a task
    uint32_t first_task;
    q3_place place; // where the weights are from
} product;

// Vectors to be arranged: `count` of `columns` numbers each, into panels of `panel` vectors.
typedef struct arrangement {
    const float *const *x;
    void **panels;
    uint32_t count, first_task;
} arrangement;

// The tokens' choices of experts. A choice is numbered token * top_k + rank; those of an expert
// follow each other in `choices`, and are what its product is for. Experts are computed in waves
// that the buffers take: WAVE_VECTORS choices, or those of one expert.
//
// Where there is enough for all threads to do, an expert is one task of one thread, for so many
// choices at a time: what it makes of them stays in the thread's cache until it is used.
enum { WAVE_VECTORS = 2048, SHARE_VECTORS = 160 };

// Some choices of an expert, which are the task of a thread.
typedef struct share {
    uint32_t expert;       // of those to be computed
    uint32_t first, count; // of `choices`
} share;

struct q3_scratch {
    q3_region memory;
    const q3_kernels *kernels;
    uint32_t batch;                  // tokens that there is room for
    uint64_t weight_bytes, kv_bytes; // read so far, see q3_forward_bytes
    // For each token of the batch:
    float *hidden;        // [hidden_size]
    float *normed;        // [hidden_size], input of the projections
    float *query;         // [query heads][head_dim]
    float *key, *value;   // [key heads][head_dim]
    float *attention;     // [query heads][head_dim]
    float *projected;     // [hidden_size], attention behind the output projection
    float *router;        // [experts], logits
    float *cosine, *sine; // [head_dim / 2]
    uint32_t *chosen;     // [top_k], ascending
    float *weight;        // [top_k]
    uint32_t *expected;   // [top_k], of one token
    uint32_t *chosen_count;
    float *outside; // share of what the router wanted that is not in the pool
    // For each choice:
    float *expert_out;  // [hidden_size]
    float *norm;        // of expert_out, for an observer
    uint32_t *choices;  // the choices sorted by expert
    uint32_t *first_of; // [experts + 1]: where an expert's choices begin in there
    uint32_t *needed;   // [experts]: those that the batch chose, ascending
    // For each vector of a wave:
    float *gate, *up; // [moe_intermediate_size]
    const float **x_of;
    float **gate_of, **up_of, **out_of;
    // For each panel of a wave, an expert's vectors beginning with a panel of their own:
    void **in_panels, **inner_panels;
    uint8_t *in_memory, *inner_memory;
    product *products;         // [experts]
    arrangement *arrangements; // [experts]
    uint32_t wave_vectors, wave_panels;
    share *shares; // [experts + choices / share_most]
    // For each thread, of a share's vectors: gate and up, and the panels of both products.
    uint8_t *share_memory;
    uint64_t share_gate_bytes, share_in_bytes, share_bytes; // of gate, of the first panels, of all
    // The tokens' vectors as panels, and pointers to them, for the products:
    uint8_t *normed_memory, *attention_memory;
    void **normed_panels, **attention_panels;
    const float **normed_in, **attention_in;
    float **query_out, **key_out, **value_out, **projected_out, **router_out;
    float *scores; // for each thread, see q3_attention
    uint64_t scores_stride;
    float *logits; // [Q3_LOGITS_POSITIONS][vocab_size]
    float **logits_out;
    float *frequency; // [head_dim / 2]: radians a position
};

// Panels for `vectors` vectors that begin `parts` times with a panel of their own.
static uint64_t count_panels(const q3_products *products, uint64_t vectors, uint64_t parts)
{
    const uint64_t whole = vectors / products->panel + parts;
    return products->panel == 1 ? vectors : whole;
}

// Cuts vectors evenly into parts of at most so many, of whole panels but for the last one. Returns
// the vectors of a part.
static uint32_t cut_evenly(uint32_t vectors, uint32_t most, uint32_t panel)
{
    const uint32_t parts = (vectors - 1) / most + 1, even = (vectors - 1) / parts + 1;
    return (even - 1) / panel * panel + panel;
}

// The vectors of a product are cut into groups, for each of which a thread goes through all blocks.
static uint32_t group_of(const q3_products *kernels, uint32_t vectors, size_t columns)
{
    const size_t panels = kernels->group_bytes / kernels->panel_bytes(columns);
    if (panels >= vectors)
        return vectors;
    return cut_evenly(vectors, panels ? (uint32_t)panels * kernels->panel : kernels->panel,
                      kernels->panel);
}

// Choices of a share, at most.
static uint32_t share_most(const q3_products *kernels, const q3_config *config)
{
    return group_of(kernels, SHARE_VECTORS, config->hidden_size);
}

// Bytes that suffice for the panels of either kind of product.
static uint64_t panels_bytes(const q3_kernels *kernels, uint64_t vectors, uint64_t parts,
                             size_t columns)
{
    const uint64_t few =
        kernels->few->panel_bytes(columns) * count_panels(kernels->few, vectors, parts);
    const uint64_t many =
        kernels->many->panel_bytes(columns) * count_panels(kernels->many, vectors, parts);
    return few > many ? few : many;
}

// Lays the buffers out in the region; without one, only counts. Returns their size.
static uint64_t lay_out(q3_scratch *s, const q3_scratch_shape *shape, q3_region *region)
{
    const q3_config *c = shape->config;
    const q3_kernels *k = shape->kernels;
    const uint64_t batch = shape->context < shape->batch ? shape->context : shape->batch;
    const uint64_t hidden = c->hidden_size, experts = c->num_experts;
    const uint64_t inner = c->moe_intermediate_size;
    const uint64_t query = (uint64_t)c->num_attention_heads * c->head_dim;
    const uint64_t key = (uint64_t)c->num_key_value_heads * c->head_dim;
    const uint64_t choices = batch * c->num_experts_per_tok;
    const uint64_t group = c->num_attention_heads / c->num_key_value_heads;
    uint64_t wave = choices < WAVE_VECTORS ? choices : WAVE_VECTORS;
    wave = wave < batch ? batch : wave;
    const uint64_t parts = experts < wave ? experts : wave;
    s->kernels = k;
    s->batch = (uint32_t)batch;
    s->wave_vectors = (uint32_t)wave;
    s->wave_panels = (uint32_t)(wave + parts);
    const uint64_t few_scores = q3_region_part(
        group * Q3_ATTEND_TOKENS * q3_score_stride(shape->context + Q3_ATTEND_TOKENS),
        sizeof(float));
    const uint64_t many_scores =
        k->attend_many ? k->attend_many->scratch_bytes(group, c->head_dim) : 0;
    s->scores_stride = (few_scores > many_scores ? few_scores : many_scores) / sizeof(float);
    const uint64_t share_vectors = batch < SHARE_VECTORS ? batch : SHARE_VECTORS;
    s->share_gate_bytes = q3_region_part(share_vectors * inner, sizeof(float));
    s->share_in_bytes =
        k->many->panel == 1
            ? 0
            : q3_region_part(count_panels(k->many, share_vectors, 1), k->many->panel_bytes(hidden));
    s->share_bytes =
        2 * s->share_gate_bytes + s->share_in_bytes +
        q3_region_part(count_panels(k->many, share_vectors, 1), k->many->panel_bytes(inner));
    const struct {
        void *pointer; // to the member
        uint64_t count;
        size_t size;
    } parts_of[] = {
        {&s->hidden, batch * hidden, sizeof(float)},
        {&s->normed, batch * hidden, sizeof(float)},
        {&s->query, batch * query, sizeof(float)},
        {&s->key, batch * key, sizeof(float)},
        {&s->value, batch * key, sizeof(float)},
        {&s->attention, batch * query, sizeof(float)},
        {&s->projected, batch * hidden, sizeof(float)},
        {&s->router, batch * experts, sizeof(float)},
        {&s->cosine, batch * (c->head_dim / 2), sizeof(float)},
        {&s->sine, batch * (c->head_dim / 2), sizeof(float)},
        {&s->chosen, choices, sizeof(uint32_t)},
        {&s->weight, choices, sizeof(float)},
        {&s->expected, c->num_experts_per_tok, sizeof(uint32_t)},
        {&s->chosen_count, batch, sizeof(uint32_t)},
        {&s->outside, batch, sizeof(float)},
        {&s->expert_out, choices * hidden, sizeof(float)},
        {&s->norm, choices, sizeof(float)},
        {&s->choices, choices, sizeof(uint32_t)},
        {&s->first_of, experts + 1, sizeof(uint32_t)},
        {&s->needed, experts, sizeof(uint32_t)},
        {&s->gate, wave * inner, sizeof(float)},
        {&s->up, wave * inner, sizeof(float)},
        {&s->x_of, wave, sizeof(float *)},
        {&s->gate_of, wave, sizeof(float *)},
        {&s->up_of, wave, sizeof(float *)},
        {&s->out_of, wave, sizeof(float *)},
        {&s->in_panels, s->wave_panels, sizeof(void *)},
        {&s->inner_panels, s->wave_panels, sizeof(void *)},
        {&s->in_memory, panels_bytes(k, wave, parts, hidden), 1},
        {&s->inner_memory, panels_bytes(k, wave, parts, inner), 1},
        {&s->products, experts, sizeof(product)},
        {&s->arrangements, experts, sizeof(arrangement)},
        {&s->shares, experts + choices / share_most(k->many, c), sizeof(share)},
        {&s->share_memory, shape->threads * s->share_bytes, 1},
        {&s->normed_memory, panels_bytes(k, batch, 1, hidden), 1},
        {&s->attention_memory, panels_bytes(k, batch, 1, query), 1},
        {&s->normed_panels, batch, sizeof(void *)},
        {&s->attention_panels, batch, sizeof(void *)},
        {&s->normed_in, batch, sizeof(float *)},
        {&s->attention_in, batch, sizeof(float *)},
        {&s->query_out, batch, sizeof(float *)},
        {&s->key_out, batch, sizeof(float *)},
        {&s->value_out, batch, sizeof(float *)},
        {&s->projected_out, batch, sizeof(float *)},
        {&s->router_out, batch, sizeof(float *)},
        {&s->scores, shape->threads * s->scores_stride, sizeof(float)},
        {&s->logits, Q3_LOGITS_POSITIONS * (uint64_t)c->vocab_size, sizeof(float)},
        {&s->logits_out, Q3_LOGITS_POSITIONS, sizeof(float *)},
        {&s->frequency, c->head_dim / 2, sizeof(float)},
    };
    uint64_t total = 0;
    for (size_t i = 0; i < sizeof parts_of / sizeof *parts_of; i++) {
        const uint64_t bytes = q3_region_part(parts_of[i].count, parts_of[i].size);
        total += bytes;
        if (region) {
            void *part = q3_region_take(region, bytes);
            memcpy(parts_of[i].pointer, &part, sizeof part);
        }
    }
    return total;
}

uint64_t q3_scratch_bytes(const q3_scratch_shape *shape)
{
    q3_scratch counted;
    return lay_out(&counted, shape, NULL);
}

bool q3_scratch_create(const q3_scratch_shape *shape, q3_scratch **result, q3_error *err)
{
    *result = NULL;
    const q3_config *config = shape->config;
    q3_scratch *s = q3_alloc_zeroed(1, sizeof *s, err);
    if (!s)
        return false;
    if (!q3_region_create(lay_out(s, shape, NULL), &s->memory, err)) {
        free(s);
        return false;
    }
    lay_out(s, shape, &s->memory);
    const size_t query = (size_t)config->num_attention_heads * config->head_dim;
    const size_t key = (size_t)config->num_key_value_heads * config->head_dim;
    for (size_t t = 0; t < s->batch; t++) {
        s->normed_in[t] = s->normed + t * config->hidden_size;
        s->attention_in[t] = s->attention + t * query;
        s->query_out[t] = s->query + t * query;
        s->key_out[t] = s->key + t * key;
        s->value_out[t] = s->value + t * key;
        s->projected_out[t] = s->projected + t * config->hidden_size;
        s->router_out[t] = s->router + t * config->num_experts;
    }
    for (size_t i = 0; i < Q3_LOGITS_POSITIONS; i++)
        s->logits_out[i] = s->logits + i * config->vocab_size;
    // In float32 and in this order, as the model was trained and as transformers computes it: at
    // position 60,000 the rounding of a frequency moves an angle by 0.003.
    for (uint32_t j = 0; j < config->head_dim / 2; j++) {
        const float exponent = (float)(2 * j) / (float)config->head_dim;
        s->frequency[j] = 1.0f / (float)pow(config->rope_theta, (double)exponent);
    }
    *result = s;
    return true;
}

void q3_scratch_destroy(q3_scratch *scratch)
{
    if (!scratch)
        return;
    q3_region_destroy(&scratch->memory);
    free(scratch);
}

// ---- products ----

typedef struct product_run {
    const q3_forward *forward;
    const q3_products *kernels;
    const product *products;
    uint32_t count, tasks;
    atomic_uint failed; // the lowest product one of whose frames does not decode
} product_run;

// The product that a task is of, the task being before the end of products[count - 1].
static const product *product_of(const product_run *run, uint32_t task)
{
    uint32_t at = run->count - 1;
    while (run->products[at].first_task > task)
        at--;
    return &run->products[at];
}

// What a worker is likely to do after a task: the threads take tasks by turns.
static q3_next after_task(const product_run *run, uint32_t task)
{
    const uint64_t next = (uint64_t)task + run->forward->team->count;
    if (next >= run->tasks)
        return (q3_next){0};
    const product *p = product_of(run, (uint32_t)next);
    return q3_matrix_next(&p->matrix,
                          ((uint32_t)next - p->first_task) % q3_matrix_blocks(&p->matrix));
}

// One block of a product for all its vectors.
static bool compute_block(const q3_forward *f, const q3_products *kernels, const product *p,
                          uint32_t block, q3_next after, const q3_frame_reader *reader)
{
    const uint32_t first = block * p->matrix.block_rows, rows = q3_block_rows(&p->matrix, block);
    if (!q3_matrix_multiply(&p->matrix, block, f->kernels, kernels, p->panels, p->vectors, p->y,
                            p->second ? q3_matrix_next(p->second, block) : after, reader->block,
                            reader->coder))
        return false;
    if (!p->second)
        return true;
    if (!q3_matrix_multiply(p->second, block, f->kernels, kernels, p->panels, p->vectors,
                            p->second_y, after, reader->block, reader->coder))
        return false;
    for (uint32_t v = 0; v < p->vectors; v++)
        f->kernels->silu_multiply(p->y[v] + first, p->second_y[v] + first, rows);
    return true;
}

// All blocks of a product, one after the other.
static bool compute_blocks(const q3_forward *f, const q3_products *kernels, const product *p,
                           q3_next after, const q3_frame_reader *reader)
{
    const uint32_t blocks = q3_matrix_blocks(&p->matrix);
    for (uint32_t b = 0; b < blocks; b++)
        if (!compute_block(f, kernels, p, b,
                           b + 1 < blocks ? q3_matrix_next(&p->matrix, b + 1) : after, reader))
            return false;
    return true;
}

// Remembers the lowest number that failed.
static void note_failure(atomic_uint *lowest, unsigned number)
{
    unsigned failed = atomic_load(lowest);
    while (number < failed && !atomic_compare_exchange_weak(lowest, &failed, number))
        ;
}

// One block of a product for one group of vectors.
static void product_task(void *context, uint32_t index, unsigned worker)
{
    product_run *run = context;
    const q3_forward *f = run->forward;
    const product *whole = product_of(run, index);
    const uint32_t blocks = q3_matrix_blocks(&whole->matrix), task = index - whole->first_task;
    const uint32_t first = task / blocks * whole->group, left = whole->vectors - first;
    product p = *whole;
    p.vectors = left < whole->group ? left : whole->group;
    p.panels += first / run->kernels->panel;
    p.y += first;
    if (p.second)
        p.second_y += first;
    if (!compute_block(f, run->kernels, &p, task % blocks, after_task(run, index),
                       &f->team->readers[worker]))
        note_failure(&run->failed, (unsigned)(whole - run->products));
}

// Computes products that do not depend on each other, their blocks shared among the threads.
static bool run_products(const q3_forward *forward, const q3_products *kernels, product *products,
                         uint32_t count, q3_error *err)
{
    uint64_t operations = 0;
    uint32_t tasks = 0;
    for (uint32_t i = 0; i < count; i++) {
        const q3_matrix *matrix = &products[i].matrix;
        products[i].first_task = tasks;
        products[i].group = group_of(kernels, products[i].vectors, matrix->columns);
        const uint32_t groups = (products[i].vectors - 1) / products[i].group + 1;
        tasks += q3_matrix_blocks(matrix) * groups;
        forward->scratch->weight_bytes +=
            groups * (matrix->bytes + (products[i].second ? products[i].second->bytes : 0));
        operations += (uint64_t)matrix->rows * matrix->columns * products[i].vectors *
                      (products[i].second ? 2 : 1);
    }
    product_run run = {.forward = forward,
                       .kernels = kernels,
                       .products = products,
                       .count = count,
                       .tasks = tasks};
    atomic_init(&run.failed, UINT_MAX);
    q3_team_run(forward->team, product_task, &run, tasks, operations);
    const unsigned failed = atomic_load(&run.failed);
    if (failed == UINT_MAX)
        return true;
    q3_model_diagnose(forward->model, &products[failed].place, &forward->team->readers[0], err);
    return false;
}

// One panel of `count` vectors.
static void arrange_panel(const q3_products *kernels, const float *const *x, uint32_t count,
                          uint32_t panel, size_t columns, void *memory)
{
    const uint32_t first = panel * kernels->panel, left = count - first;
    kernels->arrange(x + first, left < kernels->panel ? left : kernels->panel, columns, memory);
}

// All panels of some vectors, one behind the other in the memory.
static void arrange_here(const q3_products *kernels, const float *const *x, uint32_t count,
                         size_t columns, uint8_t *memory, const void **panels)
{
    for (uint32_t i = 0; i * kernels->panel < count; i++, memory += kernels->panel_bytes(columns)) {
        arrange_panel(kernels, x, count, i, columns, memory);
        panels[i] = memory;
    }
}

typedef struct arrange_run {
    const q3_products *kernels;
    const arrangement *arrangements;
    uint32_t count;
    size_t columns;
} arrange_run;

static void arrange_task(void *context, uint32_t index, unsigned worker)
{
    (void)worker;
    const arrange_run *run = context;
    uint32_t at = run->count - 1;
    while (run->arrangements[at].first_task > index)
        at--;
    const arrangement *a = &run->arrangements[at];
    const uint32_t panel = index - a->first_task;
    arrange_panel(run->kernels, a->x, a->count, panel, run->columns, a->panels[panel]);
}

// Arranges vectors into panels, whose memory is taken one panel after the other.
static void run_arrange(const q3_forward *forward, const q3_products *kernels,
                        arrangement *arrangements, uint32_t count, size_t columns, uint8_t *memory)
{
    const size_t bytes = kernels->panel_bytes(columns);
    uint32_t tasks = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t panels = (arrangements[i].count - 1) / kernels->panel + 1;
        arrangements[i].first_task = tasks;
        for (uint32_t j = 0; j < panels; j++)
            arrangements[i].panels[j] = memory + (tasks + j) * bytes;
        tasks += panels;
    }
    arrange_run run = {
        .kernels = kernels, .arrangements = arrangements, .count = count, .columns = columns};
    q3_team_run(forward->team, arrange_task, &run, tasks,
                (uint64_t)tasks * kernels->panel * columns);
}

// ---- a batch ----

typedef struct batch_run {
    const q3_forward *forward;
    const q3_kv_cache *cache;
    const q3_batch *batch;
    uint32_t start, count; // of the batch's tokens, those in hand
    uint32_t layer;
    bool many; // of the kernels are used for them
    const q3_products *products;
    const q3_attend_many *attend_many; // or NULL
    uint32_t attend_tokens;            // of a task
    bool queries, keys;                // what is projected
    const uint16_t *norm;              // of the task in hand
    q3_route_rules rules;              // of the layer in hand
} batch_run;

static void norm_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const size_t hidden = f->model->config->hidden_size;
    f->kernels->rms_norm(f->scratch->hidden + token * hidden, run->norm,
                         (float)f->model->config->rms_norm_eps, hidden,
                         f->scratch->normed + token * hidden);
}

// normed = rmsnorm(hidden), and its panels.
static void norm_tokens(batch_run *run, const uint16_t *norm)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const size_t hidden = f->model->config->hidden_size;
    run->norm = norm;
    q3_team_run(f->team, norm_task, run, run->count, (uint64_t)run->count * hidden);
    arrangement in = {.x = s->normed_in, .panels = s->normed_panels, .count = run->count};
    run_arrange(f, run->products, &in, 1, hidden, s->normed_memory);
}

// The angles of a token's position.
static void angle_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_scratch *s = run->forward->scratch;
    const size_t half = run->forward->model->config->head_dim / 2;
    const float position = (float)(run->start + token);
    for (size_t j = 0; j < half; j++) {
        const double angle = (double)(position * s->frequency[j]);
        s->cosine[token * half + j] = (float)cos(angle);
        s->sine[token * half + j] = (float)sin(angle);
    }
}

// Norms and rotates some of a token's heads, one after the other.
static void turn_heads(const batch_run *run, uint32_t token, const uint16_t *norm, uint32_t count,
                       float *heads)
{
    const q3_forward *f = run->forward;
    const q3_config *config = f->model->config;
    const size_t dim = config->head_dim, half = dim / 2;
    for (uint32_t h = 0; h < count; h++, heads += dim) {
        f->kernels->rms_norm(heads, norm, (float)config->rms_norm_eps, dim, heads);
        f->kernels->rotate(heads, f->scratch->cosine + token * half,
                           f->scratch->sine + token * half, half);
    }
}

// Norms and rotates a token's query and key heads, and puts keys and values where they stay.
static void place_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    const size_t dim = config->head_dim;
    if (run->queries)
        turn_heads(run, token, layer->query_norm, config->num_attention_heads,
                   f->scratch->query_out[token]);
    if (!run->keys)
        return;
    const float *key = f->scratch->key_out[token], *value = f->scratch->value_out[token];
    turn_heads(run, token, layer->key_norm, config->num_key_value_heads,
               f->scratch->key_out[token]);
    for (uint32_t h = 0; h < config->num_key_value_heads; h++)
        q3_kv_cache_put(run->cache, run->layer, h, run->start + token, key + h * dim,
                        value + h * dim);
}

// The query heads that share a key head, for some tokens.
static void attend_task(void *context, uint32_t index, unsigned worker)
{
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const q3_config *config = f->model->config;
    const uint32_t head = index % config->num_key_value_heads;
    const uint32_t token = index / config->num_key_value_heads * run->attend_tokens;
    const uint32_t rest = run->count - token;
    const size_t group = config->num_attention_heads / config->num_key_value_heads;
    const size_t dim = config->head_dim, at = head * group * dim;
    const size_t width = config->num_attention_heads * dim;
    const q3_attention attention = {
        .query = f->scratch->query_out[token] + at,
        .out = f->scratch->attention + token * width + at,
        .query_stride = width,
        .out_stride = width,
        .tokens = rest < run->attend_tokens ? rest : run->attend_tokens,
        .heads = group,
        .head_dim = dim,
        .positions = run->start + token + 1,
        .keys = q3_kv_cache_keys(run->cache, run->layer, head),
        .values = q3_kv_cache_values(run->cache, run->layer, head),
        .narrow = run->cache->narrow,
        .scale = 1.0f / sqrtf((float)dim),
        .scores = f->scratch->scores + worker * f->scratch->scores_stride,
    };
    (run->attend_many ? run->attend_many->attend : f->kernels->attend)(&attention);
}

static void residual_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const size_t hidden = f->model->config->hidden_size;
    f->kernels->add_scaled(f->scratch->hidden + token * hidden, f->scratch->projected_out[token],
                           1.0f, hidden);
}

static q3_place layer_place(const batch_run *run, q3_part part)
{
    return (q3_place){.component = Q3_TEXT, .part = part, .layer = run->layer};
}

// Chooses the kernels for the tokens, and how many make a task of attention: as many as it takes,
// or a half or quarter if there would be too few tasks for the threads to be done at the same time.
static void choose_kernels(batch_run *run)
{
    const q3_forward *f = run->forward;
    const size_t tokens = f->kernels->many_rounds_differently ? run->batch->fed : run->count;
    run->many = tokens >= f->kernels->many_tokens;
    run->products = run->many ? f->kernels->many : f->kernels->few;
    run->attend_many = NULL;
    run->attend_tokens = Q3_ATTEND_TOKENS;
    if (!run->many || !f->kernels->attend_many)
        return;
    run->attend_many = f->kernels->attend_many;
    const uint32_t most = run->attend_many->tokens, heads = f->model->config->num_key_value_heads;
    run->attend_tokens = most;
    while (run->attend_tokens > most / 4 &&
           run->count / run->attend_tokens * heads < 8 * f->team->count)
        run->attend_tokens /= 2;
}

// The tokens' queries, or their keys and values, or both.
static bool project(batch_run *run, bool queries, bool keys, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    norm_tokens(run, layer->input_norm);
    const product from_normed = {.panels = (const void *const *)s->normed_panels,
                                 .vectors = run->count,
                                 .place = layer_place(run, Q3_ATTENTION)};
    product inputs[] = {from_normed, from_normed, from_normed};
    inputs[0].matrix = layer->query;
    inputs[0].y = s->query_out;
    inputs[1].matrix = layer->key;
    inputs[1].y = s->key_out;
    inputs[2].matrix = layer->value;
    inputs[2].y = s->value_out;
    run->queries = queries;
    run->keys = keys;
    const uint32_t first = queries ? 0 : 1, end = keys ? 3 : 1;
    if (!run_products(f, run->products, inputs + first, end - first, err))
        return false;
    q3_team_run(f->team, place_task, run, run->count,
                (uint64_t)run->count * config->num_attention_heads * config->head_dim * 4);
    return true;
}

// Goes on with the tokens that are wanted alone.
static void keep_wanted(batch_run *run)
{
    const uint32_t count = run->batch->wanted;
    q3_scratch *s = run->forward->scratch;
    const q3_config *config = run->forward->model->config;
    const size_t hidden = config->hidden_size, half = config->head_dim / 2;
    const size_t first = run->count - count;
    memmove(s->hidden, s->hidden + first * hidden, count * hidden * sizeof *s->hidden);
    memmove(s->cosine, s->cosine + first * half, count * half * sizeof *s->cosine);
    memmove(s->sine, s->sine + first * half, count * half * sizeof *s->sine);
    run->start += (uint32_t)first;
    run->count = count;
    choose_kernels(run);
}

static bool run_attention(batch_run *run, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    const uint64_t width = (uint64_t)config->num_attention_heads * config->head_dim;
    const uint32_t groups = (run->count - 1) / run->attend_tokens + 1;
    s->kv_bytes += q3_kv_cache_bytes(config, 1, run->cache->narrow) / Q3_KEY_PANEL /
                   config->num_hidden_layers * (run->start + run->count) * groups;
    q3_team_run(f->team, attend_task, run, groups * config->num_key_value_heads,
                run->count * width * (run->start + run->count) * 2);
    arrangement in = {.x = s->attention_in, .panels = s->attention_panels, .count = run->count};
    run_arrange(f, run->products, &in, 1, width, s->attention_memory);
    product output = {.matrix = layer->output,
                      .panels = (const void *const *)s->attention_panels,
                      .y = s->projected_out,
                      .vectors = run->count,
                      .place = layer_place(run, Q3_ATTENTION)};
    if (!run_products(f, run->products, &output, 1, err))
        return false;
    q3_team_run(f->team, residual_task, run, run->count,
                (uint64_t)run->count * config->hidden_size);
    return true;
}

// ---- experts ----

static q3_route_rules rules_of(const q3_forward *f, uint32_t layer)
{
    if (f->routing->resident_bias != 0)
        q3_expert_cache_mark(f->experts, layer, f->routing->resident);
    return q3_routing_rules(f->routing, layer);
}

// Chooses a token's experts from its router logits.
static void choose_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    q3_scratch *s = run->forward->scratch;
    const size_t first = (size_t)token * run->rules.top_k;
    s->chosen_count[token] =
        q3_route_token(&run->rules, run->forward->kernels, s->router_out[token], s->chosen + first,
                       s->weight + first, &s->outside[token]);
}

// Sorts the batch's choices by expert. Returns how many experts are needed.
static uint32_t sort_choices(const batch_run *run)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const uint32_t experts = config->num_experts, top_k = config->num_experts_per_tok;
    memset(s->first_of, 0, (experts + 1) * sizeof *s->first_of);
    for (uint32_t t = 0; t < run->count; t++)
        for (uint32_t i = 0; i < s->chosen_count[t]; i++)
            s->first_of[s->chosen[t * top_k + i] + 1]++;
    uint32_t needed = 0;
    for (uint32_t e = 0; e < experts; e++) {
        if (s->first_of[e + 1])
            s->needed[needed++] = e;
        s->first_of[e + 1] += s->first_of[e];
    }
    for (uint32_t t = 0; t < run->count; t++)
        for (uint32_t i = 0; i < s->chosen_count[t]; i++) {
            const uint32_t choice = t * top_k + i;
            s->choices[s->first_of[s->chosen[choice]]++] = choice;
        }
    // Each beginning has moved to its end, which is where the next one began.
    memmove(s->first_of + 1, s->first_of, experts * sizeof *s->first_of);
    s->first_of[0] = 0;
    return needed;
}

static uint32_t choices_of(const q3_scratch *s, uint32_t expert)
{
    return s->first_of[expert + 1] - s->first_of[expert];
}

// Computes what some experts give for all the tokens that chose them: no more than a wave.
static bool run_wave(const batch_run *run, const q3_expert *experts, uint32_t count, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const size_t hidden = config->hidden_size, inner = config->moe_intermediate_size;
    const uint32_t panel = run->products->panel, top_k = config->num_experts_per_tok;
    uint32_t vectors = 0, panels = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t number = experts[i].number, of_expert = choices_of(s, number);
        for (uint32_t j = 0; j < of_expert; j++) {
            const size_t choice = s->choices[s->first_of[number] + j], at = vectors + j;
            s->x_of[at] = s->normed_in[choice / top_k];
            s->gate_of[at] = s->gate + at * inner;
            s->up_of[at] = s->up + at * inner;
            s->out_of[at] = s->expert_out + choice * hidden;
            // Panels of one vector are there already.
            if (panel == 1)
                s->in_panels[at] = s->normed_panels[choice / top_k];
        }
        s->arrangements[i] = (arrangement){
            .x = s->x_of + vectors, .panels = s->in_panels + panels, .count = of_expert};
        s->products[i] = (product){
            .matrix = experts[i].gate,
            .second = &experts[i].up,
            .panels = (const void *const *)s->in_panels + panels,
            .y = s->gate_of + vectors,
            .second_y = s->up_of + vectors,
            .vectors = of_expert,
            .place = layer_place(run, Q3_EXPERT),
        };
        s->products[i].place.expert = number;
        vectors += of_expert;
        panels += (of_expert - 1) / panel + 1;
    }
    if (panel > 1)
        run_arrange(f, run->products, s->arrangements, count, hidden, s->in_memory);
    if (!run_products(f, run->products, s->products, count, err))
        return false;
    for (uint32_t i = 0, at = 0; i < count; at += s->arrangements[i++].count) {
        product *p = &s->products[i];
        p->panels =
            (const void *const *)s->inner_panels + (p->panels - (const void *const *)s->in_panels);
        s->arrangements[i].x = (const float *const *)s->gate_of + at;
        s->arrangements[i].panels = s->inner_panels + (s->arrangements[i].panels - s->in_panels);
        p->matrix = experts[i].down;
        p->second = NULL;
        p->y = s->out_of + at;
    }
    run_arrange(f, run->products, s->arrangements, count, inner, s->inner_memory);
    return run_products(f, run->products, s->products, count, err);
}

typedef struct share_run {
    const batch_run *batch;
    const q3_expert *experts;
    uint32_t count;
    atomic_uint failed; // the lowest share with a frame that does not decode
} share_run;

// The first half of an expert for a share: panels of silu(gate x) * (up x), laid out in `memory`.
static bool compute_inner(const q3_forward *f, const q3_products *kernels, const q3_expert *expert,
                          const product *gated, size_t inner, uint8_t *memory, const void **panels,
                          const q3_frame_reader *reader)
{
    const q3_next after = q3_matrix_next(&expert->down, 0);
    if (!q3_matrix_gates(kernels, &expert->gate, &expert->up)) {
        if (!compute_blocks(f, kernels, gated, after, reader))
            return false;
        arrange_here(kernels, (const float *const *)gated->y, gated->vectors, inner, memory,
                     panels);
        return true;
    }
    void *to[SHARE_VECTORS];
    const uint32_t count = (gated->vectors - 1) / kernels->panel + 1;
    const uint32_t blocks = q3_matrix_blocks(&expert->gate);
    for (uint32_t i = 0; i < count; i++)
        to[i] = memory + i * kernels->panel_bytes(inner);
    for (uint32_t b = 0; b < blocks; b++) {
        q3_next next[2] = {after};
        if (b + 1 < blocks) {
            next[0] = q3_matrix_next(&expert->gate, b + 1);
            next[1] = q3_matrix_next(&expert->up, b + 1);
        }
        q3_matrix_multiply_gated(&expert->gate, &expert->up, b, kernels, gated->panels,
                                 gated->vectors, to, next);
    }
    for (uint32_t i = 0; i < count; i++)
        panels[i] = to[i];
    return true;
}

// All that an expert does for a share of its choices.
static void share_task(void *context, uint32_t index, unsigned worker)
{
    share_run *run = context;
    const q3_forward *f = run->batch->forward;
    const q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const q3_products *kernels = run->batch->products;
    const q3_frame_reader *reader = &f->team->readers[worker];
    const share *mine = &s->shares[index];
    const q3_expert *expert = &run->experts[mine->expert];
    const size_t hidden = config->hidden_size, inner = config->moe_intermediate_size;
    uint8_t *memory = s->share_memory + worker * s->share_bytes;
    float *const gate = (float *)(void *)memory;
    float *const up = (float *)(void *)(memory + s->share_gate_bytes);
    uint8_t *const in_memory = memory + 2 * s->share_gate_bytes;
    const float *x[SHARE_VECTORS];
    float *gate_of[SHARE_VECTORS], *up_of[SHARE_VECTORS], *out_of[SHARE_VECTORS];
    const void *panels[SHARE_VECTORS];
    for (uint32_t i = 0; i < mine->count; i++) {
        const uint32_t choice = s->choices[mine->first + i];
        const uint32_t token = choice / config->num_experts_per_tok;
        x[i] = s->normed_in[token];
        gate_of[i] = gate + i * inner;
        up_of[i] = up + i * inner;
        out_of[i] = s->expert_out + choice * hidden;
        if (kernels->panel == 1)
            panels[i] = s->normed_panels[token];
    }
    if (kernels->panel > 1)
        arrange_here(kernels, x, mine->count, hidden, in_memory, panels);
    product p = {.matrix = expert->gate,
                 .second = &expert->up,
                 .panels = panels,
                 .y = gate_of,
                 .second_y = up_of,
                 .vectors = mine->count};
    if (!compute_inner(f, kernels, expert, &p, inner, in_memory + s->share_in_bytes, panels,
                       reader)) {
        note_failure(&run->failed, index);
        return;
    }
    const uint32_t later = index + f->team->count;
    const q3_next after = later < run->count
                              ? q3_matrix_next(&run->experts[s->shares[later].expert].gate, 0)
                              : (q3_next){0};
    p.matrix = expert->down;
    p.second = NULL;
    p.y = out_of;
    if (!compute_blocks(f, kernels, &p, after, reader))
        note_failure(&run->failed, index);
}

// Cuts some experts' choices into shares, whose panels stay in the second cache. Returns how many
// there are.
static uint32_t cut_shares(const batch_run *run, const q3_expert *experts, uint32_t count)
{
    enum { WHOLE = 16 }; // vectors, a panel of any products
    q3_scratch *s = run->forward->scratch;
    const uint32_t most = share_most(run->products, run->forward->model->config);
    uint32_t shares = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t first = s->first_of[experts[i].number];
        const uint32_t choices = choices_of(s, experts[i].number);
        const uint32_t some = cut_evenly(choices, most, WHOLE);
        for (uint32_t at = 0; at < choices; at += some)
            s->shares[shares++] = (share){
                .expert = i,
                .first = first + at,
                .count = choices - at < some ? choices - at : some,
            };
    }
    return shares;
}

static bool run_shares(const batch_run *batch, const q3_expert *experts, uint32_t count,
                       q3_error *err)
{
    const q3_forward *f = batch->forward;
    q3_scratch *s = f->scratch;
    share_run run = {.batch = batch, .experts = experts, .count = count};
    atomic_init(&run.failed, UINT_MAX);
    uint64_t vectors = 0;
    for (uint32_t i = 0; i < count; i++) {
        const q3_expert *expert = &experts[s->shares[i].expert];
        s->weight_bytes += expert->gate.bytes + expert->up.bytes + expert->down.bytes;
        vectors += s->shares[i].count;
    }
    q3_team_run(f->team, share_task, &run, count,
                vectors * f->model->config->hidden_size * f->model->config->moe_intermediate_size);
    const unsigned failed = atomic_load(&run.failed);
    if (failed == UINT_MAX)
        return true;
    q3_place place = layer_place(batch, Q3_EXPERT);
    place.expert = experts[s->shares[failed].expert].number;
    q3_model_diagnose(f->model, &place, &f->team->readers[0], err);
    return false;
}

static bool visit_group(void *context, const q3_expert *group, uint32_t count, q3_error *err)
{
    const batch_run *run = context;
    q3_scratch *s = run->forward->scratch;
    if (run->many) {
        // Fewer would leave threads without work at the end.
        enum { SHARES_A_THREAD = 4 };
        const uint32_t shares = cut_shares(run, group, count);
        if (shares >= SHARES_A_THREAD * run->forward->team->count)
            return run_shares(run, group, shares, err);
    }
    for (uint32_t first = 0; first < count;) {
        uint32_t last = first, vectors = 0;
        while (last < count &&
               (last == first || vectors + choices_of(s, group[last].number) <= s->wave_vectors))
            vectors += choices_of(s, group[last++].number);
        if (!run_wave(run, group + first, last - first, err))
            return false;
        first = last;
    }
    return true;
}

// hidden += the sum over a token's experts of weight * output, from the lowest number up.
static void combine_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const size_t hidden = f->model->config->hidden_size;
    const size_t first = (size_t)token * f->model->config->num_experts_per_tok;
    float *sum = s->projected_out[token];
    memset(sum, 0, hidden * sizeof *sum);
    for (uint32_t i = 0; i < s->chosen_count[token]; i++)
        f->kernels->add_scaled(sum, s->expert_out + (first + i) * hidden, s->weight[first + i],
                               hidden);
    f->kernels->add_scaled(s->hidden + token * hidden, sum, 1.0f, hidden);
}

// The norm of what each expert gives for a token.
static void norm_outputs_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    q3_scratch *s = run->forward->scratch;
    const size_t hidden = run->forward->model->config->hidden_size;
    const size_t first = (size_t)token * run->rules.top_k;
    for (size_t i = first; i < first + s->chosen_count[token]; i++) {
        double sum = 0;
        for (size_t j = 0; j < hidden; j++)
            sum += (double)s->expert_out[i * hidden + j] * (double)s->expert_out[i * hidden + j];
        s->norm[i] = (float)sqrt(sum);
    }
}

static void show_experts(batch_run *run, const q3_observer *observer)
{
    q3_scratch *s = run->forward->scratch;
    const q3_config *config = run->forward->model->config;
    const uint32_t top_k = run->rules.top_k;
    if (!observer || !observer->computed)
        return;
    q3_team_run(run->forward->team, norm_outputs_task, run, run->count,
                (uint64_t)run->count * config->hidden_size * top_k);
    for (uint32_t t = 0; t < run->count; t++)
        observer->computed(observer->context, run->start + t, run->layer, s->chosen + t * top_k,
                           s->weight + t * top_k, s->norm + t * top_k, s->chosen_count[t]);
}

static void show_routes(const batch_run *run, const q3_observer *observer)
{
    q3_scratch *s = run->forward->scratch;
    const uint32_t top_k = run->rules.top_k, experts = run->rules.experts;
    for (uint32_t t = 0; observer && t < run->count; t++) {
        if (observer->routed)
            observer->routed(observer->context, run->start + t, run->layer, s->chosen + t * top_k,
                             s->weight + t * top_k, s->chosen_count[t]);
        if (!observer->wanted)
            continue;
        run->forward->kernels->softmax(s->router_out[t], experts);
        observer->wanted(observer->context, run->start + t, run->layer, s->router_out[t], experts);
    }
}

// The logits of a layer's router for the tokens as they are now.
static bool run_router(batch_run *run, uint32_t index, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_layer *layer = &f->model->layers[index];
    norm_tokens(run, layer->post_attention_norm);
    product router = {.matrix = layer->router,
                      .panels = (const void *const *)s->normed_panels,
                      .y = s->router_out,
                      .vectors = run->count,
                      .place = {.component = Q3_TEXT, .part = Q3_ROUTER, .layer = index}};
    return run_products(f, run->products, &router, 1, err);
}

// Tells the cache which experts the next layer will probably need: the likelier half of those that
// its router would choose for the token as it is now. What is still to be added to it is small
// beside what is there. The other half is wrong so often that reading it gains nothing more.
static bool expect_experts(batch_run *run, bool after_visit, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const uint32_t next = run->layer + 1;
    // The last layer has no need of any when nothing is wanted of it.
    const uint32_t end = f->model->config->num_hidden_layers - (run->batch->wanted == 0);
    if (run->count > 1 || next >= end || !q3_expert_cache_expects(f->experts, next))
        return true;
    if (!run_router(run, next, err))
        return false;
    const q3_route_rules rules = rules_of(f, next);
    const uint32_t count =
        q3_route_token(&rules, f->kernels, s->router_out[0], s->expected, s->weight, NULL);
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j > 0 && s->weight[j] > s->weight[j - 1]; j--) {
            const float weight = s->weight[j];
            const uint32_t expert = s->expected[j];
            s->weight[j] = s->weight[j - 1];
            s->expected[j] = s->expected[j - 1];
            s->weight[j - 1] = weight;
            s->expected[j - 1] = expert;
        }
    q3_expert_cache_expect(f->experts, next, s->expected, (count + 1) / 2, after_visit);
    return true;
}

static bool run_experts(batch_run *run, const q3_observer *observer, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const uint32_t top_k = config->num_experts_per_tok;
    // Once before the layer's own are asked for: what they leave of the disk is not left unused
    // while they are computed. And again, better, before the next layer's attention.
    if (!expect_experts(run, true, err) || !run_router(run, run->layer, err))
        return false;
    run->rules = rules_of(f, run->layer);
    q3_team_run(f->team, choose_task, run, run->count,
                (uint64_t)run->count * config->num_experts * top_k);
    q3_routing_count(f->routing, run->layer, s->outside, run->count);
    show_routes(run, observer);
    if (f->trace)
        q3_trace_add(f->trace, s->chosen, s->chosen_count);
    const uint32_t needed = sort_choices(run);
    if (!q3_expert_cache_visit(f->experts, run->layer, s->needed, needed, true, visit_group, run,
                               err))
        return false;
    show_experts(run, observer);
    q3_team_run(f->team, combine_task, run, run->count,
                (uint64_t)run->count * config->hidden_size * top_k);
    return expect_experts(run, false, err);
}

static void show_hidden(const batch_run *run, const q3_observer *observer, bool last, uint32_t row)
{
    const size_t hidden = run->forward->model->config->hidden_size;
    if (last && observer && observer->hidden)
        observer->hidden(observer->context, row,
                         run->forward->scratch->hidden + (run->count - 1) * hidden);
}

bool q3_forward_batch(const q3_forward *forward, const q3_kv_cache *cache, const q3_batch *batch,
                      const q3_observer *observer, q3_error *err)
{
    const q3_config *config = forward->model->config;
    batch_run run = {.forward = forward,
                     .cache = cache,
                     .batch = batch,
                     .start = batch->start,
                     .count = batch->count};
    if (!q3_embedding_rows(forward->embedding, batch->ids, run.count, forward->team,
                           forward->scratch->hidden, err))
        return false;
    choose_kernels(&run);
    if (forward->trace)
        q3_trace_begin(forward->trace, run.start, run.count);
    show_hidden(&run, observer, batch->last, 0);
    q3_team_run(forward->team, angle_task, &run, run.count,
                (uint64_t)run.count * config->head_dim * 16);
    for (run.layer = 0; run.layer < config->num_hidden_layers; run.layer++) {
        const bool all = run.layer + 1 < config->num_hidden_layers || batch->wanted == batch->count;
        if (!q3_check_interrupt(err) || !project(&run, all, true, err))
            return false;
        if (!all) {
            if (batch->wanted == 0)
                break;
            keep_wanted(&run);
            if (!project(&run, true, false, err))
                return false;
        }
        if (!run_attention(&run, err) || !run_experts(&run, observer, err))
            return false;
        show_hidden(&run, observer, batch->last, run.layer + 1);
    }
    return true;
}

bool q3_forward_logits(const q3_forward *forward, uint32_t first, uint32_t count,
                       const q3_observer *observer, bool last,
                       const float *logits[Q3_LOGITS_POSITIONS], q3_error *err)
{
    q3_scratch *s = forward->scratch;
    const q3_config *config = forward->model->config;
    const q3_products *products = forward->kernels->few;
    const size_t hidden = config->hidden_size;
    for (uint32_t i = 0; i < count; i++) {
        forward->kernels->rms_norm(s->hidden + (first + i) * hidden, forward->model->final_norm,
                                   (float)config->rms_norm_eps, hidden, s->normed + i * hidden);
        logits[i] = s->logits_out[i];
    }
    if (last && observer && observer->hidden)
        observer->hidden(observer->context, config->num_hidden_layers + 1,
                         s->normed + (count - 1) * hidden);
    arrangement in = {.x = s->normed_in, .panels = s->normed_panels, .count = count};
    run_arrange(forward, products, &in, 1, hidden, s->normed_memory);
    product head = {.matrix = forward->model->lm_head,
                    .panels = (const void *const *)s->normed_panels,
                    .y = s->logits_out,
                    .vectors = count,
                    .place = {.component = Q3_TEXT, .part = Q3_LM_HEAD}};
    return run_products(forward, products, &head, 1, err);
}

uint64_t q3_forward_bytes(const q3_forward *forward)
{
    return forward->scratch->weight_bytes + forward->scratch->kv_bytes;
}
