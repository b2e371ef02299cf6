// SPDX-License-Identifier: Apache-2.0
#include "forward.h"

#include "base/interrupt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Rows [r, r + n) of a product for some vectors: y = W x, or, with a second matrix, the first half
// of a gated layer, y = silu(W x) * (V x).
typedef struct product {
    q3_matrix matrix;
    const uint16_t *second; // of the same shape, or NULL
    const float *const *x;
    float *const *y;
    float *const *second_y;
    uint32_t vectors;
    uint32_t first_task;
} product;

// A token's choice of an expert. Choices are numbered token * top_k + rank.
struct q3_scratch {
    q3_region memory;
    uint32_t batch; // tokens that there is room for
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
    uint32_t *chosen_count;
    float *outside; // share of what the router wanted that is not in the pool
    // For each choice:
    float *gate, *up;   // [moe_intermediate_size]
    float *expert_out;  // [hidden_size]
    float *norm;        // of expert_out, for an observer
    uint32_t *choices;  // the choices sorted by expert
    uint32_t *first_of; // [experts + 1]: where an expert's choices begin in there
    uint32_t *needed;   // [experts]: those that the batch chose, ascending
    product *products;  // [experts]
    const float **x_of; // pointers into normed, gate, up, expert_out in the order of `choices`
    float **gate_of, **up_of, **out_of;
    // Pointers to the tokens' vectors, for the products:
    const float **normed_in, **attention_in;
    float **query_out, **key_out, **value_out, **projected_out, **router_out;
    float *scores; // for each thread: [query heads of a key head][context]
    uint64_t scores_stride;
    float *logits; // [Q3_LOGITS_POSITIONS][vocab_size]
    float **logits_out;
    float *frequency; // [head_dim / 2]: radians a position
};

// Lays the buffers out in the region; without one, only counts. Returns their size.
static uint64_t lay_out(q3_scratch *s, const q3_config *c, uint32_t context, unsigned threads,
                        q3_region *region)
{
    const uint64_t batch = context < Q3_BATCH_TOKENS ? context : Q3_BATCH_TOKENS;
    const uint64_t hidden = c->hidden_size, experts = c->num_experts;
    const uint64_t query = (uint64_t)c->num_attention_heads * c->head_dim;
    const uint64_t key = (uint64_t)c->num_key_value_heads * c->head_dim;
    const uint64_t choices = batch * c->num_experts_per_tok;
    const uint64_t group = c->num_attention_heads / c->num_key_value_heads;
    s->batch = (uint32_t)batch;
    s->scores_stride =
        q3_region_part(group * q3_score_stride(context), sizeof(float)) / sizeof(float);
    const struct {
        void *pointer; // to the member
        uint64_t count;
        size_t size;
    } parts[] = {
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
        {&s->chosen_count, batch, sizeof(uint32_t)},
        {&s->outside, batch, sizeof(float)},
        {&s->gate, choices * c->moe_intermediate_size, sizeof(float)},
        {&s->up, choices * c->moe_intermediate_size, sizeof(float)},
        {&s->expert_out, choices * hidden, sizeof(float)},
        {&s->norm, choices, sizeof(float)},
        {&s->choices, choices, sizeof(uint32_t)},
        {&s->first_of, experts + 1, sizeof(uint32_t)},
        {&s->needed, experts, sizeof(uint32_t)},
        {&s->products, experts, sizeof(product)},
        {&s->x_of, choices, sizeof(float *)},
        {&s->gate_of, choices, sizeof(float *)},
        {&s->up_of, choices, sizeof(float *)},
        {&s->out_of, choices, sizeof(float *)},
        {&s->normed_in, batch, sizeof(float *)},
        {&s->attention_in, batch, sizeof(float *)},
        {&s->query_out, batch, sizeof(float *)},
        {&s->key_out, batch, sizeof(float *)},
        {&s->value_out, batch, sizeof(float *)},
        {&s->projected_out, batch, sizeof(float *)},
        {&s->router_out, batch, sizeof(float *)},
        {&s->scores, threads * s->scores_stride, sizeof(float)},
        {&s->logits, Q3_LOGITS_POSITIONS * (uint64_t)c->vocab_size, sizeof(float)},
        {&s->logits_out, Q3_LOGITS_POSITIONS, sizeof(float *)},
        {&s->frequency, c->head_dim / 2, sizeof(float)},
    };
    uint64_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const uint64_t bytes = q3_region_part(parts[i].count, parts[i].size);
        total += bytes;
        if (region) {
            void *part = q3_region_take(region, bytes);
            memcpy(parts[i].pointer, &part, sizeof part);
        }
    }
    return total;
}

uint64_t q3_scratch_bytes(const q3_config *config, uint32_t context, unsigned threads)
{
    q3_scratch counted;
    return lay_out(&counted, config, context, threads, NULL);
}

bool q3_scratch_create(const q3_config *config, uint32_t context, unsigned threads,
                       q3_scratch **result, q3_error *err)
{
    *result = NULL;
    q3_scratch *s = q3_alloc_zeroed(1, sizeof *s, err);
    if (!s)
        return false;
    if (!q3_region_create(lay_out(s, config, context, threads, NULL), &s->memory, err)) {
        free(s);
        return false;
    }
    lay_out(s, config, context, threads, &s->memory);
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
    const q3_kernels *kernels;
    const product *products;
    uint32_t count, rows_per_task;
} product_run;

static void product_task(void *context, uint32_t index, unsigned worker)
{
    (void)worker;
    const product_run *run = context;
    uint32_t at = run->count - 1;
    while (run->products[at].first_task > index)
        at--;
    const product *p = &run->products[at];
    const uint32_t first = (index - p->first_task) * run->rows_per_task;
    uint32_t rows = p->matrix.rows - first;
    rows = rows > run->rows_per_task ? run->rows_per_task : rows;
    const q3_products *kernels = run->kernels->few;
    const void *const *panels = (const void *const *)p->x;
    const size_t columns = p->matrix.columns;
    kernels->multiply(p->matrix.values + first * columns, rows, columns, panels, p->vectors, p->y,
                      first);
    if (!p->second)
        return;
    kernels->multiply(p->second + first * columns, rows, columns, panels, p->vectors, p->second_y,
                      first);
    for (uint32_t v = 0; v < p->vectors; v++)
        run->kernels->silu_multiply(p->y[v] + first, p->second_y[v] + first, rows);
}

// Computes products that do not depend on each other, their rows shared among the threads.
static void run_products(const q3_forward *forward, product *products, uint32_t count)
{
    enum { ROWS_MIN = 16, TASKS_A_THREAD = 8 };
    uint64_t rows = 0, operations = 0;
    for (uint32_t i = 0; i < count; i++) {
        const q3_matrix *matrix = &products[i].matrix;
        rows += matrix->rows;
        operations += (uint64_t)matrix->rows * matrix->columns * products[i].vectors *
                      (products[i].second ? 2 : 1);
    }
    const uint64_t share = rows / ((uint64_t)TASKS_A_THREAD * forward->team->count) + 1;
    product_run run = {.kernels = forward->kernels, .products = products, .count = count};
    run.rows_per_task = share < ROWS_MIN ? ROWS_MIN : (uint32_t)share;
    uint32_t tasks = 0;
    for (uint32_t i = 0; i < count; i++) {
        products[i].first_task = tasks;
        tasks += (products[i].matrix.rows - 1) / run.rows_per_task + 1;
    }
    q3_team_run(forward->team, product_task, &run, tasks, operations);
}

// ---- a batch ----

typedef struct batch_run {
    const q3_forward *forward;
    const q3_kv_cache *cache;
    uint32_t start, count;
    uint32_t layer;
    const uint16_t *norm; // of the task in hand
    q3_route_rules rules; // of the layer in hand
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

// normed = rmsnorm(hidden)
static void norm_tokens(batch_run *run, const uint16_t *norm)
{
    run->norm = norm;
    q3_team_run(run->forward->team, norm_task, run, run->count,
                (uint64_t)run->count * run->forward->model->config->hidden_size);
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

// Norms and rotates a token's query and key heads, and puts keys and values where they stay.
static void place_task(void *context, uint32_t token, unsigned worker)
{
    (void)worker;
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    const size_t dim = config->head_dim, half = dim / 2;
    const float epsilon = (float)config->rms_norm_eps;
    const float *cosine = f->scratch->cosine + token * half;
    const float *sine = f->scratch->sine + token * half;
    float *query = f->scratch->query_out[token];
    for (uint32_t h = 0; h < config->num_attention_heads; h++, query += dim) {
        f->kernels->rms_norm(query, layer->query_norm, epsilon, dim, query);
        f->kernels->rotate(query, cosine, sine, half);
    }
    for (uint32_t h = 0; h < config->num_key_value_heads; h++) {
        float *key = f->scratch->key_out[token] + h * dim;
        f->kernels->rms_norm(key, layer->key_norm, epsilon, dim, key);
        f->kernels->rotate(key, cosine, sine, half);
        q3_kv_cache_put(run->cache, run->layer, h, run->start + token, key,
                        f->scratch->value_out[token] + h * dim);
    }
}

// The query heads that share a key head, for one token.
static void attend_task(void *context, uint32_t index, unsigned worker)
{
    const batch_run *run = context;
    const q3_forward *f = run->forward;
    const q3_config *config = f->model->config;
    const uint32_t head = index % config->num_key_value_heads;
    const uint32_t token = index / config->num_key_value_heads;
    const size_t group = config->num_attention_heads / config->num_key_value_heads;
    const size_t dim = config->head_dim, at = head * group * dim;
    f->kernels->attend(&(q3_attention){
        .query = f->scratch->query_out[token] + at,
        .out = f->scratch->attention + token * config->num_attention_heads * dim + at,
        .tokens = 1,
        .heads = group,
        .head_dim = dim,
        .positions = run->start + token + 1,
        .keys = q3_kv_cache_keys(run->cache, run->layer, head),
        .values = q3_kv_cache_values(run->cache, run->layer, head),
        .scale = 1.0f / sqrtf((float)dim),
        .scores = f->scratch->scores + worker * f->scratch->scores_stride,
    });
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

static void run_attention(batch_run *run)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    const uint64_t width = (uint64_t)config->num_attention_heads * config->head_dim;
    norm_tokens(run, layer->input_norm);
    product inputs[] = {
        {.matrix = layer->query, .x = s->normed_in, .y = s->query_out, .vectors = run->count},
        {.matrix = layer->key, .x = s->normed_in, .y = s->key_out, .vectors = run->count},
        {.matrix = layer->value, .x = s->normed_in, .y = s->value_out, .vectors = run->count},
    };
    run_products(f, inputs, 3);
    q3_team_run(f->team, place_task, run, run->count, run->count * width * 4);
    q3_team_run(f->team, attend_task, run, run->count * config->num_key_value_heads,
                run->count * width * (run->start + run->count) * 2);
    product output = {.matrix = layer->output,
                      .x = s->attention_in,
                      .y = s->projected_out,
                      .vectors = run->count};
    run_products(f, &output, 1);
    q3_team_run(f->team, residual_task, run, run->count,
                (uint64_t)run->count * config->hidden_size);
}

// ---- experts ----

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
    for (uint32_t i = 0; i < s->first_of[experts]; i++) {
        const size_t choice = s->choices[i];
        s->x_of[i] = s->normed_in[choice / top_k];
        s->gate_of[i] = s->gate + choice * config->moe_intermediate_size;
        s->up_of[i] = s->up + choice * config->moe_intermediate_size;
        s->out_of[i] = s->expert_out + choice * config->hidden_size;
    }
    return needed;
}

// Computes what a group of experts gives for all the tokens that chose them.
static void visit_group(void *context, const q3_expert *group, uint32_t count)
{
    const batch_run *run = context;
    q3_scratch *s = run->forward->scratch;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t first = s->first_of[group[i].number];
        s->products[i] = (product){
            .matrix = group[i].gate,
            .second = group[i].up.values,
            .x = s->x_of + first,
            .y = s->gate_of + first,
            .second_y = s->up_of + first,
            .vectors = s->first_of[group[i].number + 1] - first,
        };
    }
    run_products(run->forward, s->products, count);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t first = s->first_of[group[i].number];
        s->products[i] = (product){
            .matrix = group[i].down,
            .x = (const float *const *)(s->gate_of + first),
            .y = s->out_of + first,
            .vectors = s->first_of[group[i].number + 1] - first,
        };
    }
    run_products(run->forward, s->products, count);
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

static bool run_experts(batch_run *run, const q3_observer *observer, q3_error *err)
{
    const q3_forward *f = run->forward;
    q3_scratch *s = f->scratch;
    const q3_config *config = f->model->config;
    const q3_layer *layer = &f->model->layers[run->layer];
    const uint32_t top_k = config->num_experts_per_tok;
    norm_tokens(run, layer->post_attention_norm);
    product router = {
        .matrix = layer->router, .x = s->normed_in, .y = s->router_out, .vectors = run->count};
    run_products(f, &router, 1);
    if (f->routing->resident_bias != 0)
        q3_expert_cache_mark(f->experts, run->layer, f->routing->resident);
    run->rules = q3_routing_rules(f->routing, run->layer);
    q3_team_run(f->team, choose_task, run, run->count,
                (uint64_t)run->count * config->num_experts * top_k);
    q3_routing_count(f->routing, run->layer, s->outside, run->count);
    show_routes(run, observer);
    const uint32_t needed = sort_choices(run);
    if (!q3_expert_cache_visit(f->experts, run->layer, s->needed, needed, visit_group, run, err))
        return false;
    show_experts(run, observer);
    q3_team_run(f->team, combine_task, run, run->count,
                (uint64_t)run->count * config->hidden_size * top_k);
    return true;
}

static void show_hidden(const batch_run *run, const q3_observer *observer, bool last, uint32_t row)
{
    const size_t hidden = run->forward->model->config->hidden_size;
    if (last && observer && observer->hidden)
        observer->hidden(observer->context, row,
                         run->forward->scratch->hidden + (run->count - 1) * hidden);
}

bool q3_forward_batch(const q3_forward *forward, const q3_kv_cache *cache, uint32_t start,
                      const uint32_t *ids, uint32_t count, const q3_observer *observer, bool last,
                      q3_error *err)
{
    const q3_config *config = forward->model->config;
    batch_run run = {.forward = forward, .cache = cache, .start = start, .count = count};
    for (uint32_t t = 0; t < count; t++)
        if (!q3_embedding_row(forward->embedding, ids[t], &forward->team->readers[0],
                              forward->scratch->hidden + (size_t)t * config->hidden_size, err))
            return false;
    show_hidden(&run, observer, last, 0);
    q3_team_run(forward->team, angle_task, &run, count, (uint64_t)count * config->head_dim * 16);
    for (run.layer = 0; run.layer < config->num_hidden_layers; run.layer++) {
        if (!q3_check_interrupt(err))
            return false;
        run_attention(&run);
        if (!run_experts(&run, observer, err))
            return false;
        show_hidden(&run, observer, last, run.layer + 1);
    }
    return true;
}

void q3_forward_logits(const q3_forward *forward, uint32_t first, uint32_t count,
                       const q3_observer *observer, bool last,
                       const float *logits[Q3_LOGITS_POSITIONS])
{
    q3_scratch *s = forward->scratch;
    const q3_config *config = forward->model->config;
    const size_t hidden = config->hidden_size;
    for (uint32_t i = 0; i < count; i++) {
        forward->kernels->rms_norm(s->hidden + (first + i) * hidden, forward->model->final_norm,
                                   (float)config->rms_norm_eps, hidden, s->normed + i * hidden);
        logits[i] = s->logits_out[i];
    }
    if (last && observer && observer->hidden)
        observer->hidden(observer->context, config->num_hidden_layers + 1,
                         s->normed + (count - 1) * hidden);
    product head = {
        .matrix = forward->model->lm_head, .x = s->normed_in, .y = s->logits_out, .vectors = count};
    run_products(forward, &head, 1);
}
