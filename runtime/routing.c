// SPDX-License-Identifier: Apache-2.0
#include "routing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// The top `count` of those allowed (NULL: all) by score, the best first.
static void choose_top(const float *score, const bool *allowed, uint32_t experts, uint32_t count,
                       uint32_t *chosen)
{
    bool taken[Q3_ROUTER_EXPERTS_MAX];
    for (uint32_t e = 0; e < experts; e++)
        taken[e] = allowed && !allowed[e];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t best = experts;
        for (uint32_t e = 0; e < experts; e++)
            if (!taken[e] && (best == experts || score[e] > score[best]))
                best = e;
        chosen[i] = best;
        taken[best] = true;
    }
}

static void sort_ascending(uint32_t *numbers, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++)
        for (uint32_t j = i; j > 0 && numbers[j] < numbers[j - 1]; j--) {
            const uint32_t larger = numbers[j - 1];
            numbers[j - 1] = numbers[j];
            numbers[j] = larger;
        }
}

static float outside_share(const q3_route_rules *rules, const float *logits)
{
    uint32_t wanted[Q3_ROUTER_EXPERTS_MAX];
    choose_top(logits, NULL, rules->experts, rules->top_k, wanted);
    double sum = 0, outside = 0;
    for (uint32_t i = 0; i < rules->top_k; i++) {
        const double mass = exp((double)logits[wanted[i]] - (double)logits[wanted[0]]);
        sum += mass;
        if (!rules->pool[wanted[i]])
            outside += mass;
    }
    return (float)(outside / sum);
}

uint32_t q3_route_token(const q3_route_rules *rules, const q3_kernels *kernels, const float *logits,
                        uint32_t *experts, float *weights, float *outside)
{
    float score[Q3_ROUTER_EXPERTS_MAX];
    uint32_t count = 0;
    memcpy(score, logits, rules->experts * sizeof *score);
    for (uint32_t e = 0; e < rules->experts; e++) {
        if (rules->bias)
            score[e] += rules->bias[e];
        count += rules->allowed[e];
    }
    count = count < rules->top_k ? count : rules->top_k;
    choose_top(score, rules->allowed, rules->experts, count, experts);
    float *probability = score;
    for (uint32_t e = 0; e < rules->experts; e++)
        probability[e] = rules->allowed[e] ? logits[e] : -INFINITY;
    kernels->softmax(probability, rules->experts);
    // The sum is taken from the best down, then the experts are put in order.
    float sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += probability[experts[i]];
    sort_ascending(experts, count);
    for (uint32_t i = 0; i < count; i++)
        weights[i] = rules->normalise ? probability[experts[i]] / sum : probability[experts[i]];
    if (outside)
        *outside = rules->pool ? outside_share(rules, logits) : 0;
    return count;
}

bool q3_routing_create(const q3_config *config, const bool *held, q3_routing *routing,
                       q3_error *err)
{
    const size_t layers = config->num_hidden_layers, experts = config->num_experts;
    *routing = (q3_routing){.config = config, .held = held};
    const bool ok =
        (routing->pool = q3_alloc_zeroed(layers * experts, sizeof *routing->pool, err)) &&
        (routing->resident = q3_alloc_zeroed(experts, sizeof *routing->resident, err)) &&
        (routing->bias_in_hand = q3_alloc_zeroed(experts, sizeof *routing->bias_in_hand, err)) &&
        (routing->outside_of = q3_alloc_zeroed(layers, sizeof *routing->outside_of, err)) &&
        (routing->allowed = q3_alloc_zeroed(layers, sizeof *routing->allowed, err)) &&
        (routing->outside = q3_alloc_zeroed(layers, sizeof *routing->outside, err));
    uint32_t layer;
    if (!ok)
        q3_routing_destroy(routing);
    else
        q3_routing_set_pool(routing, NULL, &layer);
    return ok;
}

void q3_routing_destroy(q3_routing *routing)
{
    free(routing->pool);
    free(routing->bias);
    free(routing->resident);
    free(routing->bias_in_hand);
    free(routing->outside_of);
    free(routing->allowed);
    free(routing->outside);
    *routing = (q3_routing){0};
}

bool q3_routing_set_pool(q3_routing *routing, const bool *members, uint32_t *layer)
{
    const uint32_t layers = routing->config->num_hidden_layers;
    const uint32_t experts = routing->config->num_experts;
    for (uint32_t i = 0; members && i < layers; i++) {
        bool any = false;
        for (size_t at = (size_t)i * experts; at < (size_t)(i + 1) * experts; at++)
            any = any || (members[at] && routing->held[at]);
        if (!any) {
            *layer = i;
            return false;
        }
    }
    for (uint32_t i = 0; i < layers; i++) {
        routing->outside_of[i] = routing->allowed[i] = 0;
        for (size_t at = (size_t)i * experts; at < (size_t)(i + 1) * experts; at++) {
            routing->pool[at] = routing->held[at] && (!members || members[at]);
            routing->outside_of[i] += !routing->pool[at];
            routing->allowed[i] += routing->soft ? routing->held[at] : routing->pool[at];
        }
    }
    return true;
}

q3_route_rules q3_routing_rules(q3_routing *routing, uint32_t layer)
{
    const q3_config *config = routing->config;
    const size_t at = (size_t)layer * config->num_experts;
    const bool *pool = routing->pool + at;
    const bool resident = routing->resident_bias != 0, soft = routing->soft;
    const float *bias = routing->bias ? routing->bias + at : NULL;
    if (resident || soft) {
        for (uint32_t e = 0; e < config->num_experts; e++)
            routing->bias_in_hand[e] =
                (bias ? bias[e] : 0) + (soft && pool[e] ? routing->pool_bias : 0) +
                (resident && routing->resident[e] ? routing->resident_bias : 0);
        bias = routing->bias_in_hand;
    }
    return (q3_route_rules){
        .experts = config->num_experts,
        .top_k = config->num_experts_per_tok,
        .normalise = config->norm_topk_prob,
        .allowed = soft ? routing->held + at : pool,
        .pool = routing->outside_of[layer] ? pool : NULL,
        .bias = bias,
    };
}

void q3_routing_count(q3_routing *routing, uint32_t layer, const float *outside, uint32_t tokens)
{
    for (uint32_t t = 0; t < tokens; t++)
        routing->outside[layer].sum += (double)outside[t];
    routing->outside[layer].routed += tokens;
}
