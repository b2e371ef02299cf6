// SPDX-License-Identifier: Apache-2.0
//
// Which experts a token goes to. The router gives a logit for each expert of the model, held or
// not; from these come
//
//   the choice         the top k by logit + bias among the experts allowed, of equal ones the
//                      lower number;
//   the weights        the softmax of the logits alone over the experts allowed, of those chosen;
//   the outside share  of the probability of the top k among all experts, by logits alone, the
//                      part of those that are not in the pool.
//
// A bias thus moves the choice and never a weight. Nothing here depends on other tokens.
#ifndef Q3_RUNTIME_ROUTING_H
#define Q3_RUNTIME_ROUTING_H

#include "base/error.h"
#include "engine.h"
#include "kernels/kernels.h"
#include "model/config.h"

enum { Q3_ROUTER_EXPERTS_MAX = 4096 }; // what a configuration can have at most

// How the tokens of one layer are routed.
typedef struct q3_route_rules {
    uint32_t experts, top_k;
    bool normalise;      // the weights of a token sum to 1
    const bool *allowed; // [experts]: those that may be chosen, at least one
    const bool *pool;    // [experts]: what the outside share is measured against; NULL: it is 0
    const float *bias;   // [experts]: added to the logits for the choice, or NULL
} q3_route_rules;

// Writes the experts (ascending) and their weights, top_k at most. Returns how many there are:
// top_k, or all that are allowed when that is less. outside may be NULL.
uint32_t q3_route_token(const q3_route_rules *rules, const q3_kernels *kernels, const float *logits,
                        uint32_t *experts, float *weights, float *outside);

// The rules of all layers of a model, and what has been measured with them.
typedef struct q3_routing {
    const q3_config *config;
    const bool *held;     // [layer][expert]: which experts there are
    bool *pool;           // [layer][expert]: held and in the pool
    bool soft;            // all held experts are allowed, and those of the pool are preferred
    float pool_bias;      // added to those of a soft pool
    float *bias;          // [layer][expert], or NULL
    float resident_bias;  // added to the experts that are in memory; 0: where they are is not asked
    bool *resident;       // [expert], of the layer in hand
    float *bias_in_hand;  // [expert], of the layer in hand
    uint32_t *outside_of; // [layer]: how many experts are not in the pool
    uint32_t *allowed;    // [layer]: how many experts may be chosen
    q3_outside *outside;  // [layer]: of the tokens so far
} q3_routing;

// held: [layer][expert], at least one in each layer, and the configuration must outlive the
// routing. At first the pool is what is held.
bool q3_routing_create(const q3_config *config, const bool *held, q3_routing *routing,
                       q3_error *err);
void q3_routing_destroy(q3_routing *routing); // a zeroed one is fine

// Another pool: of members ([layer][expert]; NULL: all) those that are held. False when there are
// none in some layer, which *layer then names; the pool is then as before.
bool q3_routing_set_pool(q3_routing *routing, const bool *members, uint32_t *layer);

// The rules of a layer for the next tokens; good until the next call.
q3_route_rules q3_routing_rules(q3_routing *routing, uint32_t layer);

// Counts the outside shares of a layer's tokens.
void q3_routing_count(q3_routing *routing, uint32_t layer, const float *outside, uint32_t tokens);

#endif
