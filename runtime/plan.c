// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <math.h>
#include <stddef.h>

double q3_estimate_hits(double share)
{
    static const struct {
        double share, hits;
    } points[] = {{0, 0},
                  {8.0 / 128, 0.37},
                  {15.0 / 128, 0.53},
                  {24.0 / 128, 0.74},
                  {48.0 / 128, 0.89},
                  {81.0 / 128, 0.96},
                  {1, 1}};
    enum { POINTS = sizeof points / sizeof *points };
    if (share <= 0)
        return 0;
    for (size_t i = 1; i < POINTS; i++)
        if (share <= points[i].share)
            return points[i - 1].hits + (points[i].hits - points[i - 1].hits) *
                                            (share - points[i - 1].share) /
                                            (points[i].share - points[i - 1].share);
    return 1;
}

q3_plan_speed q3_plan_for(const q3_plan_costs *costs, double hit_rate)
{
    q3_plan_speed speed = {
        .disk_bytes = costs->experts * costs->expert_bytes * (1 - hit_rate),
        .memory_rate = costs->memory_speed / costs->memory_bytes,
    };
    speed.disk_rate = speed.disk_bytes > 0 ? costs->disk_speed / speed.disk_bytes : INFINITY;
    speed.rate = speed.memory_rate;
    if (speed.disk_bytes > 0)
        speed.rate = 1 / (1 / speed.memory_rate + 1 / speed.disk_rate +
                          costs->experts * (1 - hit_rate) * costs->taking_seconds);
    return speed;
}
