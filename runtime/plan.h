// SPDX-License-Identifier: Apache-2.0
//
// How fast a model can be with so many expert slots a layer, as far as memory and disk go: every
// token reads its weights, keys and values from memory, and from the disk the experts that are not
// there, which are then checked and unpacked. These count as if one followed the other. Some of it
// does overlap, which gains about as much as what is not counted here takes.
#ifndef Q3_RUNTIME_PLAN_H
#define Q3_RUNTIME_PLAN_H

#include <stdint.h>

// The share of the experts needed that is expected to be in memory when a layer has slots for this
// share (0 to 1) of its experts. Between points published for a model of 48 layers of 128 experts,
// top 8, each layer with slots of its own, least recently used out first (8 slots 37 %, 15 53 %, 24
// 74 %, 48 89 %, 81 96 %), and from nothing to all; straight lines between them. An estimate: texts
// and models differ.
double q3_estimate_hits(double share);

// What a token needs, and what the machine gives.
typedef struct q3_plan_costs {
    double memory_bytes;             // that a token goes through: weights, keys, values
    double experts;                  // that it needs, of all layers
    double expert_bytes;             // read from the disk for one that is not in memory, on average
    double memory_speed, disk_speed; // bytes a second
    double taking_seconds;           // checking and unpacking an expert that was read
} q3_plan_costs;

typedef struct q3_plan_speed {
    double disk_bytes;  // that a token reads
    double memory_rate; // tokens a second that memory allows
    double disk_rate;   // and the disk; infinite when nothing is read
    double rate;        // what is left with all three one after the other
} q3_plan_speed;

q3_plan_speed q3_plan_for(const q3_plan_costs *costs, double hit_rate);

#endif
