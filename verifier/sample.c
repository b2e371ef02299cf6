// SPDX-License-Identifier: Apache-2.0
#include "sample.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

bool q3_sample_parse(const char *text, q3_sample *sample, q3_error *err)
{
    char number[32];
    const char *mark = strpbrk(text, "%/");
    *sample = (q3_sample){0};
    if (mark && (size_t)(mark - text) < sizeof number) {
        snprintf(number, sizeof number, "%.*s", (int)(mark - text), text);
        double percent;
        if (*mark == '%' && mark[1] == 0 && q3_parse_double(number, 0, 100, &percent) &&
            percent > 0) {
            sample->share = percent / 100;
            return true;
        }
        uint64_t part, parts;
        if (*mark == '/' && q3_parse_u64(mark + 1, 1, Q3_SAMPLE_PARTS_MAX, &parts) &&
            q3_parse_u64(number, 1, parts, &part)) {
            sample->part = (unsigned)part;
            sample->parts = (unsigned)parts;
            return true;
        }
    }
    return q3_fail(err, Q3_USAGE,
                   "--sample: expected a share such as 5%% or a part such as 1/7 (of at most %d), "
                   "found \"%s\"",
                   Q3_SAMPLE_PARTS_MAX, text);
}

bool q3_sampler_take(q3_sampler *sampler, uint64_t bytes)
{
    const q3_sample *sample = &sampler->sample;
    if (sample->share > 0) {
        // What one tensor takes too much or too little the next ones make up for.
        const double size = (double)bytes;
        sampler->credit += sample->share * size;
        if (sampler->credit < size / 2)
            return false;
        sampler->credit -= size;
        return true;
    }
    // To the part that has least so far, which keeps the parts alike in size.
    unsigned least = 0;
    for (unsigned i = 1; i < sample->parts; i++)
        if (sampler->load[i] < sampler->load[least])
            least = i;
    sampler->load[least] += bytes ? bytes : 1;
    return least + 1 == sample->part;
}
